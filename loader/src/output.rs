//! Files that appear whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A file being written.
///
/// A regular file is written to `.NAME.partial` beside its target, which [`commit`](Self::commit) synchronises to the disk
/// and renames over the target: whoever opens the target, at any moment and after any crash, finds the old file or the new
/// one. Dropped without `commit`, it leaves nothing. Devices, pipes and open files under their names in `/dev` and `/proc` are
/// written directly.
#[derive(Debug)]
pub struct AtomicFile {
    target: PathBuf,
    /// None: written directly.
    partial: Option<PathBuf>,
    file: BufWriter<File>,
    regular: bool,
}

impl AtomicFile {
    /// Fails at once if the target is a directory, or its folder is missing or not writable.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let fail = |e| Error::io("create file", path, e);
        let existing = match fs::metadata(path) {
            Ok(meta) => Some(meta),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(fail(e)),
        };
        if existing.as_ref().is_some_and(|m| m.is_dir()) {
            return Err(fail(io::ErrorKind::IsADirectory.into()));
        }
        let regular = existing.as_ref().is_none_or(|m| m.is_file());
        let open_file = (path.starts_with("/dev") && !path.starts_with("/dev/shm")) || path.starts_with("/proc");
        if !regular || open_file {
            let file = OpenOptions::new().write(true).open(path).map_err(fail)?;
            return Ok(Self { target: path.to_owned(), partial: None, file: BufWriter::new(file), regular });
        }
        // Through a symbolic link, the file it points to is replaced, not the link.
        let target = match &existing {
            Some(_) => fs::canonicalize(path).map_err(fail)?,
            None => path.to_owned(),
        };
        let name = target.file_name().ok_or_else(|| fail(io::ErrorKind::InvalidFilename.into()))?;
        let mut partial_name = std::ffi::OsString::from(".");
        partial_name.push(name);
        partial_name.push(".partial");
        let partial = target.with_file_name(partial_name);
        let file = claim(&partial).map_err(fail)?;
        if let Some(meta) = existing {
            file.set_permissions(meta.permissions()).map_err(fail)?;
        }
        Ok(Self { target, partial: Some(partial), file: BufWriter::new(file), regular })
    }

    /// Whether the bytes already written can be gone back to (not so for devices and pipes).
    pub fn seekable(&self) -> bool {
        self.regular
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io("write file", &self.target, e))
    }

    /// Overwrites bytes at `at`, then returns to the end. Only where [`seekable`](Self::seekable).
    pub fn patch(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let mut patch = || {
            self.file.seek(SeekFrom::Start(at))?;
            self.file.write_all(bytes)?;
            self.file.seek(SeekFrom::End(0)).map(drop)
        };
        patch().map_err(|e| Error::io("write file", &self.target, e))
    }

    /// Brings everything to the disk and the file under its name.
    pub fn commit(mut self) -> Result<()> {
        self.finish().map_err(|e| Error::io("write file", &self.target, e))
    }

    fn finish(&mut self) -> io::Result<()> {
        self.file.flush()?;
        let Some(partial) = &self.partial else { return Ok(()) };
        self.file.get_ref().sync_all()?;
        fs::rename(partial, &self.target)?;
        self.partial = None;
        sync_parent(&self.target)
    }

    pub fn path(&self) -> &Path {
        &self.target
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if let Some(partial) = &self.partial {
            let _ = fs::remove_file(partial);
        }
    }
}

/// Fails where [`AtomicFile::create`] would. What is no regular file is let through: devices and pipes are opened once.
pub fn check(path: impl AsRef<Path>) -> Result<()> {
    match fs::metadata(path.as_ref()) {
        Ok(meta) if !meta.is_file() && !meta.is_dir() => Ok(()),
        _ => AtomicFile::create(path).map(drop),
    }
}

/// Writes `bytes` as the whole of `path`, atomically.
pub fn write(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write(bytes)?;
    file.commit()
}

/// Opens and locks the partial file. What a killed process left under this name is taken over, so such leavings do not
/// pile up; one that is being written right now is refused.
fn claim(partial: &Path) -> io::Result<File> {
    loop {
        // A link planted under this name would have its target overwritten; a pipe would never take the bytes.
        if fs::symlink_metadata(partial).is_ok_and(|meta| !meta.is_file()) {
            let name = partial.file_name().unwrap_or_default().display();
            return Err(io::Error::other(format!("{name} is in the way and no file")));
        }
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(partial)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, "another process is writing it"));
            }
            // File systems without locks.
            Err(fs::TryLockError::Error(_)) => {}
        }
        // Between open and lock the previous owner may have renamed this very file to its target: then start again.
        if same_file(&file, partial) {
            file.set_len(0)?;
            return Ok(file);
        }
    }
}

#[cfg(unix)]
fn same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn same_file(_: &File, path: &Path) -> bool {
    path.exists()
}

/// Makes the rename itself survive a crash. Folders that cannot be synchronised are left to their file system.
fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    match File::open(parent).and_then(|d| d.sync_all()) {
        Err(e) if e.raw_os_error() == Some(5) => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_only_when_committed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        fs::write(&path, b"old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        file.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["a.bin"]);
    }

    #[test]
    fn a_dropped_file_leaves_the_old_one_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        fs::write(&path, b"old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write(b"new").unwrap();
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["a.bin"]);
    }

    #[test]
    fn a_killed_writers_leavings_are_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".a.bin.partial"), b"half a checkpoint").unwrap();
        write(dir.path().join("a.bin"), b"x").unwrap();
        assert_eq!(fs::read(dir.path().join("a.bin")).unwrap(), b"x");
        assert_eq!(names(dir.path()), ["a.bin"]);
    }

    #[test]
    fn two_writers_of_one_file_do_not_mix() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        let first = AtomicFile::create(&path).unwrap();
        let second = AtomicFile::create(&path).unwrap_err();
        assert!(second.to_string().contains("another process"), "{second}");
        first.commit().unwrap();
        write(&path, b"later").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"later");
    }

    #[cfg(unix)]
    #[test]
    fn a_symbolic_link_keeps_pointing_at_the_replaced_file() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::write(&real, b"old").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        write(&link, b"new").unwrap();
        assert_eq!(fs::read(&real).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[cfg(unix)]
    #[test]
    fn a_link_planted_under_the_partial_name_is_neither_followed_nor_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        std::os::unix::fs::symlink(&victim, dir.path().join(".a.bin.partial")).unwrap();
        assert!(write(dir.path().join("a.bin"), b"x").unwrap_err().to_string().contains(".a.bin.partial is in the way"));
        assert!(!victim.exists());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn shared_memory_is_a_folder_like_others() {
        let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { return println!("skipped: no /dev/shm here") };
        let path = dir.path().join("a.bin");
        write(&path, b"long").unwrap();
        write(&path, b"x").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"x");
    }

    #[test]
    fn a_directory_and_a_missing_folder_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = AtomicFile::create(dir.path()).unwrap_err();
        assert!(error.to_string().contains("is a directory"), "{error}");
        let error = AtomicFile::create(dir.path().join("no/a.bin")).unwrap_err();
        assert!(error.to_string().contains("no such file or directory"), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_device_is_an_error_and_dev_null_is_not() {
        let full = write("/dev/full", b"x").unwrap_err();
        assert!(full.to_string().contains("no space left"), "{full}");
        write("/dev/null", b"x").unwrap();
        assert!(Path::new("/dev/full").exists() && Path::new("/dev/null").exists());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_read_only_folder_is_refused() {
        // Even root cannot create files there.
        let error = AtomicFile::create("/sys/kernel/a.bin").unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_is_written_directly() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let reader = std::thread::spawn({
            let path = path.clone();
            move || fs::read(path).unwrap()
        });
        write(&path, b"through").unwrap();
        assert_eq!(reader.join().unwrap(), b"through");
        assert_eq!(names(dir.path()), ["fifo"]);
    }
}
