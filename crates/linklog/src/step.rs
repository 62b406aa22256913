//! The places at which a process may be stopped, for tests that stop one there. Outside of tests
//! these are the plain calls.

#[cfg(not(test))]
mod plain {
    use std::fs::{self, File};
    use std::io;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::time::Duration;

    /// Another process may do anything here.
    pub(crate) fn point() {}

    /// Before something that needs a new block or inode.
    ///
    /// # Errors
    /// In tests, that there is no room.
    #[expect(clippy::unnecessary_wraps, reason = "in tests it fails")]
    pub(crate) fn room() -> io::Result<()> {
        Ok(())
    }

    pub(crate) fn write_at_start(file: &File, bytes: &[u8]) -> io::Result<()> {
        file.write_all_at(bytes, 0)
    }

    pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    /// The age from which on a temporary file is a leftover.
    pub(crate) fn leftover_age() -> Duration {
        crate::LEFTOVER
    }
}

#[cfg(not(test))]
pub(crate) use plain::{leftover_age, point, read, room, write_at_start};

#[cfg(test)]
pub(crate) use crate::interleaving::{leftover_age, point, read, room, write_at_start};
