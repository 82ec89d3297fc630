//! Compiled kernels on disk: cubins for a GPU, shared objects for the emulator.
//!
//! The directory is `$SWARA_CACHE`, else `$XDG_CACHE_HOME/swara`, else `~/.cache/swara`; it belongs to one user and only that
//! user may write to it, because what lies in it is run. An entry's name is the hash of everything that went into it, and
//! its last 32 bytes are the hash of the rest, so a torn or altered file is rebuilt instead of loaded. (Bytes after the last
//! section of an ELF file are ignored by every loader.)

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use sha2::{Digest, Sha256};

use crate::{Error, Result};

const TRAILER: usize = 32;

/// A directory of compiled kernels.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
}

/// A compiled kernel: its contents, and where they lie on disk.
pub struct Entry {
    pub bytes: Vec<u8>,
    /// `None` if the disk refused it (full, read-only); the contents are good all the same.
    pub path: Option<PathBuf>,
}

impl Cache {
    /// The user's cache, made if need be.
    ///
    /// # Errors
    /// [`Error::Io`] if no directory can be used: not writable, or owned by somebody else.
    pub fn open() -> Result<Cache> {
        if let Some(dir) = variable("SWARA_CACHE") {
            return Cache::at(dir);
        }
        let xdg = variable("XDG_CACHE_HOME").filter(|dir| dir.is_absolute()).map(|dir| dir.join("swara"));
        let home = variable("HOME").map(|home| home.join(".cache").join("swara"));
        let mut refusal = Error::Io { path: "cache".into(), why: "neither SWARA_CACHE, XDG_CACHE_HOME nor HOME is set".into() };
        for dir in [xdg, home].into_iter().flatten() {
            match Cache::at(dir) {
                Ok(cache) => return Ok(cache),
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    /// The cache in `dir`, made if need be.
    pub fn at(dir: impl Into<PathBuf>) -> Result<Cache> {
        let dir = dir.into();
        let refuse = |why: String| Error::Io { path: dir.display().to_string(), why };
        fs::create_dir_all(&dir).map_err(|e| refuse(format!("cannot be used as the kernel cache: {e}")))?;
        secure(&dir).map_err(refuse)?;
        Ok(Cache { dir })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Bytes of all entries.
    pub fn size(&self) -> u64 {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.metadata().ok()).filter(fs::Metadata::is_file).map(|meta| meta.len()).sum()
    }

    /// The entry whose ingredients are `key`, from disk if it is there and whole, else from `build`. `label` and `extension` only
    /// make the file name readable.
    pub fn entry(&self, label: &str, extension: &str, key: &[&[u8]], build: impl FnOnce() -> Result<Vec<u8>>) -> Result<Entry> {
        let key = digest(key);
        let path = self.dir.join(format!("{label}-{}.{extension}", hex(&key[..16])));
        if let Some(bytes) = read(&path, &key) {
            return Ok(Entry { bytes, path: Some(path) });
        }
        let bytes = build()?;
        let stored = self.store(&path, &bytes, &key).is_ok();
        Ok(Entry { bytes, path: stored.then_some(path) })
    }

    /// Written beside its place and renamed into it: another process sees nothing or all of it.
    fn store(&self, path: &Path, bytes: &[u8], key: &[u8]) -> std::io::Result<()> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let draft = self.dir.join(format!(".{}-{}.tmp", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
        let written = fs::File::create(&draft).and_then(|mut file| {
            file.write_all(bytes)?;
            file.write_all(&digest(&[key, bytes]))
        });
        let renamed = written.and_then(|()| fs::rename(&draft, path));
        if renamed.is_err() {
            let _ = fs::remove_file(&draft); // the first error is the one that matters
        }
        renamed
    }
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Contents without the trailer, or `None` if the file is absent, torn or altered.
fn read(path: &Path, key: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = fs::read(path).ok()?;
    let trailer = bytes.split_off(bytes.len().checked_sub(TRAILER)?);
    (trailer == digest(&[key, &bytes])).then_some(bytes)
}

fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes()); // so that moving a boundary changes the hash
        hash.update(part);
    }
    hash.finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Makes sure that only this user can put code into `dir`.
#[cfg(unix)]
fn secure(dir: &Path) -> std::result::Result<(), String> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let describe = |e: std::io::Error| format!("cannot be used as the kernel cache: {e}");
    // A file that we make is owned by us: the plainest way to learn who we are, and a test that the directory takes files.
    let probe = dir.join(format!(".probe-{}-{:?}", std::process::id(), std::thread::current().id()));
    let ours = fs::File::create(&probe).and_then(|file| file.metadata()).map(|meta| meta.uid());
    let _ = fs::remove_file(&probe);
    let ours = ours.map_err(describe)?;
    let meta = fs::metadata(dir).map_err(describe)?;
    if meta.uid() != ours {
        return Err(format!("belongs to user {}, not to user {ours}; set SWARA_CACHE to a directory of your own", meta.uid()));
    }
    if meta.mode() & 0o077 != 0 {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(describe)?;
    }
    Ok(())
}

#[cfg(not(unix))]
fn secure(_: &Path) -> std::result::Result<(), String> {
    Ok(()) // profile directories are private to their user
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("swara-cache-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        dir
    }

    fn built(cache: &Cache, key: &[&[u8]], contents: &[u8]) -> (Vec<u8>, bool) {
        let mut ran = false;
        let entry = cache.entry("k", "bin", key, || {
            ran = true;
            Ok(contents.to_vec())
        });
        (entry.unwrap().bytes, ran)
    }

    #[test]
    fn an_entry_is_built_once_and_every_kind_of_damage_rebuilds_it() {
        let dir = scratch("damage");
        let cache = Cache::at(&dir).unwrap();
        let key: &[&[u8]] = &[b"source", b"options"];
        assert_eq!(built(&cache, key, b"cubin"), (b"cubin".to_vec(), true));
        assert_eq!(built(&cache, key, b"other"), (b"cubin".to_vec(), false));

        let file = cache.entry("k", "bin", key, || unreachable!()).unwrap().path.unwrap();
        let whole = fs::read(&file).unwrap();
        let mut flipped = whole.clone();
        flipped[2] ^= 1;
        for damage in [&whole[..whole.len() - 1], &whole[1..], &flipped, b"", b"short"] {
            fs::write(&file, damage).unwrap();
            assert_eq!(built(&cache, key, b"rebuilt"), (b"rebuilt".to_vec(), true));
            assert_eq!(built(&cache, key, b"unused"), (b"rebuilt".to_vec(), false));
        }
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn another_ingredient_or_another_boundary_is_another_entry() {
        let dir = scratch("keys");
        let cache = Cache::at(&dir).unwrap();
        built(&cache, &[b"ab", b"c"], b"1");
        assert_eq!(built(&cache, &[b"a", b"bc"], b"2"), (b"2".to_vec(), true));
        assert_eq!(built(&cache, &[b"ab", b"d"], b"3"), (b"3".to_vec(), true));
        // A whole file under a foreign name is not that name's entry.
        let path = |key: &[&[u8]]| cache.entry("k", "bin", key, || unreachable!()).unwrap().path.unwrap();
        fs::copy(path(&[b"ab", b"d"]), path(&[b"ab", b"c"])).unwrap();
        assert_eq!(built(&cache, &[b"ab", b"c"], b"4"), (b"4".to_vec(), true));
        fs::remove_dir_all(dir).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn the_directory_is_closed_to_others_and_a_useless_one_is_an_error() {
        use std::os::unix::fs::PermissionsExt;
        let dir = scratch("mode");
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        let cache = Cache::at(&dir).unwrap();
        assert_eq!(fs::metadata(cache.dir()).unwrap().permissions().mode() & 0o777, 0o700);
        let file = dir.join("file");
        fs::write(&file, b"").unwrap();
        assert!(matches!(Cache::at(&file), Err(Error::Io { .. })));
        assert!(matches!(Cache::at("/proc/swara"), Err(Error::Io { .. })));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn concurrent_builders_leave_whole_entries() {
        let dir = scratch("race");
        let cache = Cache::at(&dir).unwrap();
        let contents = vec![7u8; 100_000];
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| assert_eq!(built(&cache, &[b"one"], &contents).0, contents));
            }
        });
        assert_eq!(cache.size(), (contents.len() + TRAILER) as u64);
        fs::remove_dir_all(dir).unwrap();
    }
}
