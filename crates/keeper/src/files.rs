//! Small JSON files, private to their user, written whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Writes `value` as JSON with mode 0600: to a temporary file beside `path`, made durable, then
/// renamed. A reader sees the old content or the new one, also after a power cut. Two writers of
/// the same file at once are the caller's mistake.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    write(path, &to_bytes(value)?, true)
}

/// The same without making it durable, for what means nothing after a reboot.
pub fn write_json_volatile<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    write(path, &to_bytes(value)?, false)
}

/// Writes only when the file does not hold this value yet; answers whether it wrote.
pub fn write_json_if_changed<T: Serialize>(path: &Path, value: &T) -> io::Result<bool> {
    let bytes = to_bytes(value)?;
    match fs::read(path) {
        Ok(present) if present == bytes => return Ok(false),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    write(path, &bytes, true)?;
    Ok(true)
}

/// Writes text the same way as [`write_json`].
pub fn write_text(path: &Path, text: &str) -> io::Result<()> {
    write(path, text.as_bytes(), true)
}

/// `None` when there is no such file.
///
/// # Errors
/// `InvalidData` when the content is not what it should be; else what the system says.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes a folder of mode 0700 with its parents; one that exists is left as it is.
pub fn make_private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Removes a file; one that is not there is removed already.
pub fn remove_if_exists(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn to_bytes<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(io::Error::other)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn write(path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a path without a file name"))?;
    // One fixed name, so that a writer that was killed leaves at most one file, which the next
    // one overwrites. Readers of folders skip names that start with a dot.
    let temporary = path.with_file_name(format!(".{}.tmp", name.to_string_lossy()));
    let result =
        write_temporary(&temporary, bytes, durable).and_then(|()| fs::rename(&temporary, path));
    if result.is_err() {
        // The first error counts; a file left behind is overwritten by the next writer.
        let _ = fs::remove_file(&temporary);
    }
    result
}

fn write_temporary(path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    let mut file: File =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    if durable { file.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_are_private_and_read_back() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("a.json");
        assert_eq!(read_json::<Vec<u32>>(&path).expect("absent"), None);
        write_json(&path, &vec![1, 2]).expect("write");
        assert_eq!(read_json::<Vec<u32>>(&path).expect("read"), Some(vec![1, 2]));
        let mode = fs::metadata(&path).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!write_json_if_changed(&path, &vec![1, 2]).expect("same"));
        assert!(write_json_if_changed(&path, &vec![3]).expect("other"));
    }

    #[test]
    fn a_broken_file_is_an_error_not_an_absence() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("a.json");
        fs::write(&path, b"{").expect("write");
        let error = read_json::<Vec<u32>>(&path).expect_err("broken");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
