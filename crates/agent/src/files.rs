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

/// Files that are overwritten on a full disk have a multiple of this length, padded with spaces.
const BLOCK: usize = 4096;

/// JSON with room for `more` bytes in its last block.
pub(crate) fn with_room(mut json: Vec<u8>, more: usize) -> Vec<u8> {
    json.resize((json.len() + more).next_multiple_of(BLOCK), b' ');
    json
}

/// Keeps a file beside `path` that has room for `length` bytes, for [`write_into_reserve`].
///
/// # Errors
/// Any IO error, as that there is no room for it.
pub(crate) fn keep_reserve(path: &Path, length: usize) -> io::Result<()> {
    let reserve = reserve_name(path);
    if fs::metadata(&reserve).is_ok_and(|meta| meta.len() >= length as u64) {
        return Ok(());
    }
    write(&reserve, &with_room(Vec::new(), length.max(1)), true)
}

/// Replaces `path` without needing a block: writes the reserve and lets the two change names. A
/// crash at any point leaves the old content or the new one. The old file is the next reserve.
///
/// # Errors
/// `StorageFull` when the reserve is too small; what the system says when there is none, or when
/// the file system cannot exchange names.
pub(crate) fn write_into_reserve(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let reserve = reserve_name(path);
    overwrite(&reserve, bytes)?;
    rustix::fs::renameat_with(
        rustix::fs::CWD,
        &reserve,
        rustix::fs::CWD,
        path,
        rustix::fs::RenameFlags::EXCHANGE,
    )?;
    match path.parent() {
        // Before the next write into what was `path` until now.
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

fn reserve_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".reserve");
    path.with_file_name(name)
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

    #[test]
    fn the_reserve_takes_content_after_content_and_a_longer_one_changes_nothing() {
        let folder = tempfile::tempdir().expect("temp dir");
        let path = folder.path().join("state.json");
        write(&path, &with_room(b"{}".to_vec(), 100), true).expect("write");
        assert!(write_into_reserve(&path, b"{\"n\":0}").is_err(), "without a reserve");
        keep_reserve(&path, 3000).expect("reserve");
        for n in 0..5 {
            write_into_reserve(&path, format!("{{\"n\":{n}}}").as_bytes()).expect("written");
            let read: serde_json::Value =
                serde_json::from_slice(&fs::read(&path).expect("read")).expect("json");
            assert_eq!(read["n"], n);
        }
        let error = write_into_reserve(&path, &[b' '; 5000]).expect_err("too long");
        assert!(is_disk_full(&error));
        let read: serde_json::Value =
            serde_json::from_slice(&fs::read(&path).expect("read")).expect("json");
        assert_eq!(read["n"], 4);
    }
}
