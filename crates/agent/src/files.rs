//! Small private files: written whole, renamed into place, tolerant of a full disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Mode of everything an agent writes: configuration and state hold secrets.
const PRIVATE: u32 = 0o600;

/// Writes `bytes` to `path` by way of a temporary file and a rename. `durable` also syncs the
/// file and its folder.
///
/// # Errors
/// Any IO error; `path` then still has its old content.
pub(crate) fn write(path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    let temporary = temporary_name(path);
    let written = write_new(&temporary, bytes, durable).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // The temporary file may hold a part of the content; it must not pile up.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    if durable && let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// As [`write`], but leaves a file alone that has this content already, so that a full disk
/// stops nobody who changes nothing. Answers whether it wrote.
pub(crate) fn write_if_different(path: &Path, bytes: &[u8]) -> io::Result<bool> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(false);
    }
    write(path, bytes, false)?;
    Ok(true)
}

/// As [`write`]; when the disk is full it overwrites the old file in place, padded to its old
/// length, which needs no new block.
pub(crate) fn write_or_overwrite(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let Err(error) = write(path, bytes, false) else { return Ok(()) };
    if !is_disk_full(&error) {
        return Err(error);
    }
    overwrite(path, bytes)
}

/// Replaces the content of a file in place, padded with spaces to its old length, and syncs it.
/// Needs no new block; a crash within it may leave a mixture, which readers find malformed.
///
/// # Errors
/// `StorageFull` when the file is shorter than `bytes`.
pub(crate) fn overwrite(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let old_length = usize::try_from(fs::metadata(path)?.len()).unwrap_or(0);
    if bytes.len() > old_length {
        return Err(io::ErrorKind::StorageFull.into());
    }
    let mut padded = bytes.to_vec();
    padded.resize(old_length, b' ');
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.write_all(&padded)?;
    file.sync_data()
}

pub(crate) fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn write_new(path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(PRIVATE).open(path)?;
    file.write_all(bytes)?;
    if durable { file.sync_all() } else { Ok(()) }
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_are_private_and_written_whole() {
        let folder = tempfile::tempdir().expect("temp dir");
        let path = folder.path().join("secret.json");
        write(&path, b"one", true).expect("write");
        assert!(write_if_different(&path, b"two").expect("write"));
        assert!(!write_if_different(&path, b"two").expect("same"));
        assert_eq!(fs::read(&path).expect("read"), b"two");
        assert_eq!(fs::metadata(&path).expect("meta").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 1, "no temporary file left");
    }
}
