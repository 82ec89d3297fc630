//! Small files, read whole.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use crate::{Error, Result};

/// The whole of a regular file of at most `max` bytes. Pipes and devices, which may never end, are refused.
pub fn read(path: impl AsRef<Path>, action: &'static str, max: u64) -> Result<Vec<u8>> {
    let path = path.as_ref();
    let fail = |e| Error::io(action, path, e);
    regular(path).map_err(fail)?;
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(max.saturating_add(1)).read_to_end(&mut bytes)).map_err(fail)?;
    if bytes.len() as u64 > max {
        return Err(fail(io::Error::other(format!("more than {max} bytes"))));
    }
    Ok(bytes)
}

/// As [`read`], for UTF-8.
pub fn read_text(path: impl AsRef<Path>, action: &'static str, max: u64) -> Result<String> {
    let path = path.as_ref();
    String::from_utf8(read(path, action, max)?).map_err(|_| Error::io(action, path, io::Error::other("not UTF-8 text")))
}

/// An error if `path`, through symbolic links, is neither a file nor a folder. Asked before opening it: a pipe blocks.
pub(crate) fn regular(path: &Path) -> io::Result<()> {
    let meta = fs::metadata(path)?;
    match meta.is_file() || meta.is_dir() {
        true => Ok(()),
        false => Err(io::Error::other("not a regular file")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_or_no_text_or_missing_is_an_error_that_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        fs::write(&path, b"12345").unwrap();
        assert_eq!(read_text(&path, "read text", 5).unwrap(), "12345");
        assert!(read_text(&path, "read text", 4).unwrap_err().to_string().contains("more than 4 bytes"));
        fs::write(&path, [0xff]).unwrap();
        assert!(read_text(&path, "read text", 5).unwrap_err().to_string().contains("not UTF-8"));
        assert!(read_text(dir.path().join("none"), "read text", 5).unwrap_err().to_string().contains("no such file"));
    }

    #[cfg(unix)]
    #[test]
    fn a_device_is_refused() {
        assert!(read("/dev/zero", "read text", u64::MAX).unwrap_err().to_string().contains("not a regular file"));
    }
}
