//! Names in a link log's folder.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A version: `v.<seq>`, 20 digits.
const VERSION: &str = "v.";
/// A file that belongs to one writer: `t.<random>`.
const TEMPORARY: &str = "t.";
/// A file with room for a value that belongs to nobody yet: `s.<random>`.
const SPARE: &str = "s.";

/// What one look at the folder has found.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Numbers of the versions, rising.
    pub(crate) versions: Vec<u64>,
    pub(crate) spares: Vec<PathBuf>,
    pub(crate) temporaries: Vec<PathBuf>,
}

impl Listing {
    pub(crate) fn newest(&self) -> Option<u64> {
        self.versions.last().copied()
    }
}

/// Lists `dir`; a folder that is missing has nothing in it. So few names come with one
/// `getdents64`, during which the kernel holds the folder's lock: nothing that was there all the
/// time is missed.
pub(crate) fn list(dir: &Path) -> io::Result<Listing> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Listing::default()),
        Err(error) => return Err(error),
    };
    let mut listing = Listing::default();
    for entry in entries {
        let name = entry?.file_name();
        if let Some(number) = rest(&name, VERSION).and_then(|number| number.parse().ok()) {
            listing.versions.push(number);
        } else if rest(&name, SPARE).is_some() {
            listing.spares.push(dir.join(name));
        } else if rest(&name, TEMPORARY).is_some() {
            listing.temporaries.push(dir.join(name));
        }
    }
    listing.versions.sort_unstable();
    listing.spares.sort_unstable();
    Ok(listing)
}

fn rest<'n>(name: &'n OsStr, prefix: &str) -> Option<&'n str> {
    name.to_str().and_then(|name| name.strip_prefix(prefix))
}

pub(crate) fn version(dir: &Path, seq: u64) -> PathBuf {
    dir.join(format!("{VERSION}{seq:020}"))
}

/// A name that nobody else has.
pub(crate) fn temporary(dir: &Path) -> io::Result<PathBuf> {
    Ok(dir.join(format!("{TEMPORARY}{:016x}", random_u64()?)))
}

/// A name that no other spare has.
pub(crate) fn spare(dir: &Path) -> io::Result<PathBuf> {
    Ok(dir.join(format!("{SPARE}{:016x}", random_u64()?)))
}

pub(crate) fn random_u64() -> io::Result<u64> {
    let mut bytes = [0_u8; 8];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(u64::from_ne_bytes(bytes))
}
