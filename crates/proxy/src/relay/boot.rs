//! `relay.json`, and the log of routes.

use std::io;
use std::path::{Path, PathBuf};

use larder_linklog::{LinkLog, Watch};
use larder_model::lease::Route;
use larder_model::local::RelayBoot;

/// Name of the relay's own file in its folder.
pub(crate) const BOOT_FILE: &str = "relay.json";

/// The relay's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not a relay's file: {source}", path.display())]
    Parse { path: PathBuf, source: serde_json::Error },
}

pub(crate) fn read_boot(dir: &Path) -> Result<RelayBoot, BootError> {
    let path = dir.join(BOOT_FILE);
    let bytes =
        std::fs::read(&path).map_err(|source| BootError::Read { path: path.clone(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| BootError::Parse { path, source })
}

/// Wakes on changes of a folder; where that is impossible it never wakes, and the tick has to do.
pub(crate) struct FolderWatch {
    dir: PathBuf,
    watch: Option<Watch>,
    failed: bool,
}

impl FolderWatch {
    pub(crate) fn new(dir: &Path) -> Self {
        let mut watch = Self { dir: dir.to_owned(), watch: None, failed: false };
        watch.renew();
        watch
    }

    /// Watches anew: the folder may be another one by now.
    pub(crate) fn renew(&mut self) {
        // Who replaces `relay.json` gives notice in the same way as who writes a link log.
        match LinkLog::at(&self.dir).watch() {
            Ok(watch) => {
                self.watch = Some(watch);
                self.failed = false;
            }
            Err(error) => {
                // Said once: this is tried again and again.
                if !self.failed {
                    tracing::warn!(dir = %self.dir.display(), %error, "folder cannot be watched");
                }
                self.watch = None;
                self.failed = true;
            }
        }
    }

    pub(crate) fn is_watching(&self) -> bool {
        self.watch.is_some()
    }

    /// Cancel-safe.
    pub(crate) async fn changed(&mut self) {
        match &mut self.watch {
            Some(watch) => watch.changed().await,
            None => std::future::pending().await,
        }
    }
}

/// The newest route with its number; `None` while there is none, or while it cannot be read,
/// which keeps what is known.
pub(crate) fn read_route(log: &LinkLog) -> Option<(u64, Route)> {
    let entry = match log.read() {
        Ok(entry) => entry?,
        Err(error) => {
            tracing::warn!(dir = %log.dir().display(), %error, "route cannot be read");
            return None;
        }
    };
    match serde_json::from_slice(&entry.bytes) {
        Ok(route) => Some((entry.seq, route)),
        Err(error) => {
            tracing::warn!(dir = %log.dir().display(), seq = entry.seq, %error, "route is not one");
            None
        }
    }
}
