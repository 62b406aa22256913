//! Spares: files that were written when there was room, for values that come when there is none.
//!
//! What makes it safe to write into a file that is there already:
//!
//! - It is written only under a temporary name that is its only name (one link), by the one
//!   process that gave it that name. Taking a spare is a rename to such a name: one taker wins.
//! - It is written before it gets the name of a version, never after.
//! - It loses the name of a version only when a newer one is there; and [`crate::LinkLog::read`]
//!   looks for newer ones after it has read, so nobody believes what was written over what they
//!   had open.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::content::{self, BLOCK};
use crate::{folder, step};

/// So many spares a folder shall have, for all writers together. A take-over needs two, each
/// change of content sets an older file free again, and a writer stopped in the middle of one keeps
/// its spare from the others.
pub(crate) const SPARES: usize = 4;

/// Above this number they are removed: two that fill up at once may make too many.
const TOO_MANY: usize = 2 * SPARES;

pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Makes the spares that are missing.
///
/// # Errors
/// When there is no room for all of them; those that were made stay.
pub(crate) fn fill_up(dir: &Path) -> io::Result<()> {
    step::point();
    let spares = folder::list(dir)?.spares;
    for extra in spares.iter().skip(TOO_MANY) {
        step::point();
        let _ = fs::remove_file(extra);
    }
    for _ in spares.len()..SPARES {
        let temporary = folder::temporary(dir)?;
        let made = write_new(&temporary, &content::padded(b""), true).and_then(|()| {
            step::point();
            fs::rename(&temporary, folder::spare(dir)?)
        });
        if let Err(error) = made {
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
    }
    Ok(())
}

/// Writes `padded` into a spare, durably, and answers its temporary name. `None`: no spare that
/// could hold it.
pub(crate) fn take(dir: &Path, padded: &[u8]) -> io::Result<Option<PathBuf>> {
    step::point();
    for spare in folder::list(dir)?.spares {
        step::point();
        if !fs::metadata(&spare).is_ok_and(|meta| meta.len() >= padded.len() as u64) {
            continue;
        }
        let own = folder::temporary(dir)?;
        step::point();
        match fs::rename(&spare, &own) {
            Ok(()) => {}
            // Somebody else was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        }
        match refill(dir, &own, padded) {
            Ok(true) => return Ok(Some(own)),
            Ok(false) => drop(fs::remove_file(&own)),
            Err(error) => {
                let _ = fs::remove_file(&own);
                return Err(error);
            }
        }
    }
    Ok(None)
}

/// Answers `false` when the file must not be written, because it has another name, or has lost
/// this one.
fn refill(dir: &Path, own: &Path, padded: &[u8]) -> io::Result<bool> {
    step::point();
    // A version's file that became a spare: that its old name is gone has to be on disk before its
    // content goes, or a loss of power would bring back the name with the new content.
    sync_dir(dir)?;
    step::point();
    let file = match OpenOptions::new().write(true).open(own) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    step::point();
    let meta = file.metadata()?;
    if meta.nlink() != 1 {
        return Ok(false);
    }
    step::write_at_start(&file, &content::fit(padded.to_vec(), meta.len())?)?;
    file.sync_all()?;
    Ok(true)
}

/// Makes the file of an old version, or one that was not needed, a spare. Answers `false` when it
/// is none; it is as it was then.
pub(crate) fn give_back(dir: &Path, file: &Path) -> bool {
    step::point();
    let fit = fs::metadata(file).is_ok_and(|meta| meta.nlink() == 1 && meta.len() >= BLOCK as u64);
    step::point();
    fit && folder::spare(dir).is_ok_and(|spare| fs::rename(file, spare).is_ok())
}

/// Writes a new file.
pub(crate) fn write_new(path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    step::point();
    step::room()?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    step::write_at_start(&file, bytes)?;
    if durable { file.sync_all() } else { Ok(()) }
}

pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
