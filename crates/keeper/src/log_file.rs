//! Log files of the processes: appended to by the processes themselves, kept from growing.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// One log and one older log per process, of at most about this size each.
pub(crate) const LARGEST_LOG: u64 = 8 << 20;

/// Opens a log for appending, as the output of a process.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Moves the content to `<log>.1` when the log has grown beyond `largest` bytes; answers whether
/// it did. The file itself stays: processes write through a descriptor that they got at their
/// start, and, as it appends, they go on at the new end. Lines written during the copy are lost.
pub(crate) fn rotate(path: &Path, largest: u64) -> io::Result<bool> {
    let length = match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => metadata.len(),
        Ok(_) => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if length <= largest {
        return Ok(false);
    }
    let mut older = path.as_os_str().to_owned();
    older.push(".1");
    let copied = fs::copy(path, &older);
    // On a full disk the copy fails; the log is cut all the same, or it would keep the disk full.
    OpenOptions::new().write(true).open(path)?.set_len(0)?;
    copied.map(|_| true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_grown_log_is_moved_aside_while_its_writer_goes_on() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("a.log");
        let mut writer = open(&path).expect("open");
        writer.write_all(b"first\n").expect("write");
        assert!(!rotate(&path, 100).expect("small"));
        assert!(rotate(&path, 5).expect("grown"));
        writer.write_all(b"second\n").expect("write");
        assert_eq!(fs::read_to_string(&path).expect("read"), "second\n");
        assert_eq!(fs::read_to_string(dir.path().join("a.log.1")).expect("read"), "first\n");
    }
}
