//! A value in a folder, changed by compare-and-set through hard links.
//!
//! Many processes may read and write; any of them may be stopped at any instruction without
//! holding up the others, and a renewal works on a full disk. The format and its reasons are in
//! `docs/design/0001-leases-as-links.md`.

mod watch;

pub use watch::{Watch, notify};

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How many of the newest versions stay in the folder: the current one, and one for readers that
/// have listed the folder and not opened the file yet.
const KEPT: usize = 2;

/// A temporary file of this age has nobody who is still at it: writing takes milliseconds.
const LEFTOVER: Duration = Duration::from_secs(600);

/// Reading gives up when the newest version was replaced this often between listing and opening.
const READ_ATTEMPTS: usize = 16;

/// The newest version of the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub seq: u64,
    pub bytes: Vec<u8>,
}

/// Why a version was not written.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Somebody else wrote first. Read again and decide again.
    #[error("another version was written first")]
    Conflict,
    /// The folder cannot be written; whether the version exists is unknown only when the error
    /// came after the link, which readers then see.
    #[error("writing the link log in {}: {source}", dir.display())]
    Io { dir: PathBuf, source: io::Error },
}

/// One value with its short history. Cheap to open and to clone.
#[derive(Clone, Debug)]
pub struct LinkLog {
    dir: PathBuf,
}

impl LinkLog {
    /// Opens the log in `dir` and makes the folder when it is missing.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// The log in `dir`, which need not exist yet: reading it then answers that nothing is there.
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The number of the newest version; `None` when nothing was ever written.
    ///
    /// # Errors
    /// When the folder cannot be listed. A missing folder is not an error.
    pub fn newest(&self) -> io::Result<Option<u64>> {
        Ok(self.versions()?.last().copied())
    }

    /// The newest version with its content.
    ///
    /// # Errors
    /// When the folder cannot be read, or changes faster than it can be read.
    pub fn read(&self) -> io::Result<Option<Entry>> {
        for _ in 0..READ_ATTEMPTS {
            let Some(seq) = self.newest()? else { return Ok(None) };
            match fs::read(self.version_path(seq)) {
                Ok(bytes) => return Ok(Some(Entry { seq, bytes })),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::new(io::ErrorKind::WouldBlock, "the link log changes too fast to be read"))
    }

    /// Writes a new content, provided that the newest version is `after` (`None`: nothing was
    /// written yet). Durable once it returns.
    ///
    /// # Errors
    /// [`AppendError::Conflict`] when another version is there already.
    pub fn append(&self, after: Option<u64>, bytes: &[u8]) -> Result<u64, AppendError> {
        self.append_with(after, bytes, true)
    }

    /// As [`LinkLog::append`], but a loss of power may lose it or leave it empty: for what is
    /// written anew after a restart anyway.
    ///
    /// # Errors
    /// As [`LinkLog::append`].
    pub fn append_volatile(&self, after: Option<u64>, bytes: &[u8]) -> Result<u64, AppendError> {
        self.append_with(after, bytes, false)
    }

    fn append_with(
        &self,
        after: Option<u64>,
        bytes: &[u8],
        durable: bool,
    ) -> Result<u64, AppendError> {
        let seq = after.map_or(0, |seq| seq + 1);
        let temporary = self.dir.join(format!("t.{:016x}", random_u64().map_err(|e| self.io(e))?));
        let result = self
            .write_temporary(&temporary, bytes, durable)
            .map_err(|e| self.io(e))
            .and_then(|()| {
                self.link(&temporary, seq)?;
                if durable { self.sync_dir().map_err(|e| self.io(e)) } else { Ok(()) }
            });
        // The name is of no use any more whatever happened.
        let _ = fs::remove_file(&temporary);
        result?;
        notify(&self.dir);
        self.clean(seq);
        self.sweep();
        Ok(seq)
    }

    /// Writes the same content again under the next number, provided that `seq` is the newest.
    /// Needs neither a data block nor an inode. Not durable: a renewal that dies with the machine
    /// is no loss.
    ///
    /// # Errors
    /// [`AppendError::Conflict`] when another version is there already.
    pub fn renew(&self, seq: u64) -> Result<u64, AppendError> {
        match self.link(&self.version_path(seq), seq + 1) {
            Ok(()) => {
                self.clean(seq + 1);
                Ok(seq + 1)
            }
            // The version to be renewed was cleaned up: newer ones exist.
            Err(AppendError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Err(AppendError::Conflict)
            }
            Err(error) => Err(error),
        }
    }

    /// Wakes its owner whenever a new content was written. Renewals do not wake it: whoever
    /// measures a version's age looks by itself now and then.
    ///
    /// # Errors
    /// When the folder is missing or has no room for one more name.
    pub fn watch(&self) -> io::Result<Watch> {
        Watch::new(&self.dir)
    }

    /// `link` is the compare-and-set; the listing after it unmasks a writer that was stopped
    /// between reading and linking for so long that its number was cleaned up.
    fn link(&self, from: &Path, seq: u64) -> Result<(), AppendError> {
        let path = self.version_path(seq);
        match fs::hard_link(from, &path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(AppendError::Conflict);
            }
            Err(error) => return Err(self.io(error)),
        }
        if self.newest().map_err(|e| self.io(e))? == Some(seq) {
            return Ok(());
        }
        fs::remove_file(&path).map_err(|e| self.io(e))?;
        Err(AppendError::Conflict)
    }

    fn write_temporary(&self, path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(bytes)?;
        if durable { file.sync_all() } else { Ok(()) }
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    /// Removes old versions. Best effort: what is left over goes with the next version.
    fn clean(&self, newest: u64) {
        let Ok(versions) = self.versions() else { return };
        let old = versions.iter().filter(|seq| **seq < newest).rev().skip(KEPT - 1);
        for seq in old {
            let _ = fs::remove_file(self.version_path(*seq));
        }
    }

    /// Removes temporary files of writers that were killed. One that was only stopped fails when
    /// it goes on, as it would have anyway.
    fn sweep(&self) {
        let Ok(listing) = fs::read_dir(&self.dir) else { return };
        for entry in listing.flatten() {
            let is_temporary = entry.file_name().as_encoded_bytes().starts_with(b"t.");
            let age = entry.metadata().and_then(|meta| meta.modified()).map(|at| at.elapsed());
            if is_temporary && matches!(age, Ok(Ok(age)) if age > LEFTOVER) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// All version numbers, rising.
    fn versions(&self) -> io::Result<Vec<u64>> {
        let listing = match fs::read_dir(&self.dir) {
            Ok(listing) => listing,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut versions = Vec::with_capacity(KEPT + 2);
        for entry in listing {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("v."));
            versions.extend(number.and_then(|number| number.parse::<u64>().ok()));
        }
        versions.sort_unstable();
        Ok(versions)
    }

    fn version_path(&self, seq: u64) -> PathBuf {
        self.dir.join(format!("v.{seq:020}"))
    }

    fn io(&self, source: io::Error) -> AppendError {
        AppendError::Io { dir: self.dir.clone(), source }
    }
}

fn random_u64() -> io::Result<u64> {
    let mut bytes = [0_u8; 8];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(u64::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests;
