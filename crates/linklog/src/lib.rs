//! A value in a folder, changed by compare-and-set through hard links.
//!
//! Many processes may read and write; any of them may be stopped at any instruction without
//! holding up the others. A renewal works on a full disk, and so does a new content as long as
//! there are spares. The format and its reasons are in `docs/design/0001-leases-as-links.md`.

mod content;
mod folder;
#[cfg(test)]
mod interleaving;
mod spare;
mod step;
mod watch;

pub use watch::{Watch, notify};

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How many of the newest versions stay in the folder: the current one, and one for readers that
/// have listed the folder and not opened the file yet.
const KEPT: usize = 2;

/// A temporary file of this age has nobody who is still at it: writing takes milliseconds.
const LEFTOVER: Duration = Duration::from_secs(600);

/// Reading gives up when the newest version was replaced this often while it was read.
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
        step::point();
        Ok(folder::list(&self.dir)?.newest())
    }

    /// The newest version with its content.
    ///
    /// # Errors
    /// When the folder cannot be read, or changes faster than it can be read.
    pub fn read(&self) -> io::Result<Option<Entry>> {
        let mut newest = self.newest()?;
        for _ in 0..READ_ATTEMPTS {
            let Some(seq) = newest else { return Ok(None) };
            step::point();
            let read = step::read(&folder::version(&self.dir, seq));
            // A newer one by now? Then the name may have been taken off the file that was read,
            // and the file may have been written anew.
            newest = self.newest()?;
            match read {
                Ok(file) if newest == Some(seq) => {
                    return Ok(Some(Entry { seq, bytes: content::value(file) }));
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        Err(io::Error::new(io::ErrorKind::WouldBlock, "the link log changes too fast to be read"))
    }

    /// Makes sure that contents can be written while the disk is full, for writers to call when
    /// they begin and now and then. What is needed for that is used up slowly: most of it comes
    /// back when old versions go. Syncs files, so it may take long; safe to be called by
    /// many at once, and to be interrupted.
    ///
    /// # Errors
    /// When there is no room for it, or the folder cannot be written.
    pub fn reserve(&self) -> io::Result<()> {
        spare::fill_up(&self.dir)
    }

    /// Writes a new content, provided that the newest version is `after` (`None`: nothing was
    /// written yet). Durable once it returns. On a full disk it needs a spare, see
    /// [`LinkLog::reserve`].
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
        let (own, is_spare) = self.prepare(bytes, durable).map_err(|e| self.io(e))?;
        let result = self.link(&own, seq).and_then(|()| {
            step::point();
            if durable { spare::sync_dir(&self.dir).map_err(|e| self.io(e)) } else { Ok(()) }
        });
        // A spare that has become no version serves the next one. Else the name is of no use any
        // more, whatever happened.
        let unused = is_spare && matches!(result, Err(AppendError::Conflict));
        if !(unused && spare::give_back(&self.dir, &own)) {
            step::point();
            let _ = fs::remove_file(&own);
        }
        result?;
        notify(&self.dir);
        self.clean(seq);
        Ok(seq)
    }

    /// Writes the content to a file of its own; answers its name, and whether it was a spare.
    fn prepare(&self, bytes: &[u8], durable: bool) -> io::Result<(PathBuf, bool)> {
        let padded = content::padded(bytes);
        let own = folder::temporary(&self.dir)?;
        let Err(error) = spare::write_new(&own, &padded, durable) else { return Ok((own, false)) };
        step::point();
        let _ = fs::remove_file(&own);
        if !spare::is_full(&error) {
            return Err(error);
        }
        Ok((spare::take(&self.dir, &padded)?.ok_or(error)?, true))
    }

    /// Writes the same content again under the next number, provided that `seq` is the newest.
    /// Needs neither a data block nor an inode. Not durable: a renewal that dies with the machine
    /// is no loss.
    ///
    /// # Errors
    /// [`AppendError::Conflict`] when another version is there already.
    pub fn renew(&self, seq: u64) -> Result<u64, AppendError> {
        match self.link(&folder::version(&self.dir, seq), seq + 1) {
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
        let path = folder::version(&self.dir, seq);
        step::point();
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
        step::point();
        match fs::remove_file(&path) {
            // Gone: whoever cleans up old versions was faster.
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.io(error)),
            _ => Err(AppendError::Conflict),
        }
    }

    /// Removes what is old: versions, and temporary files of writers that were killed. Best effort:
    /// what is left over goes with the next version.
    fn clean(&self, newest: u64) {
        step::point();
        let Ok(listing) = folder::list(&self.dir) else { return };
        let mut spares = listing.spares.len();
        let old = listing.versions.iter().filter(|seq| **seq < newest).rev().skip(KEPT - 1);
        for seq in old {
            let path = folder::version(&self.dir, *seq);
            if spares < spare::SPARES && spare::give_back(&self.dir, &path) {
                spares += 1;
            } else {
                step::point();
                let _ = fs::remove_file(path);
            }
        }
        for temporary in &listing.temporaries {
            // Not to be made a spare: its writer may only be stopped, and go on writing into it.
            // Once the name is gone that writer's link fails.
            step::point();
            if age(temporary).is_some_and(|age| age > step::leftover_age()) {
                step::point();
                let _ = fs::remove_file(temporary);
            }
        }
    }

    fn io(&self, source: io::Error) -> AppendError {
        AppendError::Io { dir: self.dir.clone(), source }
    }
}

/// How long ago a file's names or content changed last: a spare's content may be old when a writer
/// takes it.
fn age(path: &Path) -> Option<Duration> {
    let changed = u64::try_from(fs::metadata(path).ok()?.ctime()).ok()?;
    SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_secs(changed)).ok()
}

#[cfg(test)]
mod full_disk_tests;
#[cfg(test)]
mod tests;
