//! The file with the key that wraps all other keys: 32 random bytes in base64, mode 0600.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::seal::{self, Key};
use crate::{Result, StoreError};

fn refuse(path: &Path, reason: impl Into<String>) -> StoreError {
    StoreError::Key { path: path.to_owned(), reason: reason.into() }
}

fn failed(path: &Path, doing: &str, cause: &io::Error) -> StoreError {
    if cause.kind() == io::ErrorKind::StorageFull {
        return StoreError::Full { doing: "writing the key file" };
    }
    refuse(path, format!("{doing}: {cause}"))
}

/// Reads the key; `None` when there is no such file.
pub(crate) fn read(path: &Path) -> Result<Option<Key>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => Zeroizing::new(text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(path, "reading", &e)),
    };
    // A group of its own may read it: Kubernetes hands a Secret to a process that is not root so.
    if let Ok(metadata) = fs::metadata(path)
        && metadata.permissions().mode() & 0o037 != 0
    {
        tracing::warn!(path = %path.display(), "the key file can be read by others: chmod 600");
    }
    let bytes = STANDARD
        .decode(text.trim())
        .map(Zeroizing::new)
        .map_err(|_| refuse(path, "its content is not base64: put the right file back"))?;
    Key::from_bytes(&bytes)
        .map(Some)
        .ok_or_else(|| refuse(path, format!("it must hold {} bytes in base64", seal::KEY_BYTES)))
}

/// Makes a new key, durable before it is used. When somebody else made one meanwhile, theirs is
/// taken.
pub(crate) fn create(path: &Path) -> Result<Key> {
    let random = |e: seal::NoRandom| refuse(path, e.to_string());
    let key = Key::random().map_err(random)?;
    let suffix = u64::from_ne_bytes(seal::random().map_err(random)?);
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{suffix:016x}"));
    let temporary = PathBuf::from(temporary);
    let written = write(path, &temporary, &key);
    let removed = fs::remove_file(&temporary);
    written?;
    removed.map_err(|e| failed(&temporary, "removing", &e))?;
    read(path)?.ok_or_else(|| refuse(path, "it vanished while it was made"))
}

fn write(path: &Path, temporary: &Path, key: &Key) -> Result<()> {
    let text = Zeroizing::new(STANDARD.encode(key.bytes()) + "\n");
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(temporary)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .map_err(|e| failed(temporary, "writing", &e))?;
    // A link, not a rename: it never replaces a key that is in use.
    match fs::hard_link(temporary, path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed(path, "creating", &e));
        }
        Ok(()) | Err(_) => {}
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|e| failed(path, "making its folder durable", &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_is_private_and_reads_back() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("secret.key");
        assert!(read(&path).expect("read").is_none());
        let key = create(&path).expect("create");
        assert_eq!(fs::metadata(&path).expect("metadata").permissions().mode() & 0o777, 0o600);
        assert_eq!(read(&path).expect("read").expect("key").bytes(), key.bytes());
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 1, "no leftovers");
        assert_eq!(create(&path).expect("again").bytes(), key.bytes(), "a key is never replaced");
    }

    #[test]
    fn a_spoiled_key_file_is_refused_without_showing_it() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("secret.key");
        for content in ["not base64 at all!", "c2hvcnQ="] {
            fs::write(&path, content).expect("write");
            let error = read(&path).expect_err("spoiled").to_string();
            assert!(error.contains("secret.key") && !error.contains(content), "{error}");
        }
    }
}
