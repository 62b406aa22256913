//! Why the keeper could not do what it was asked.

use std::io;
use std::path::{Path, PathBuf};

/// Errors of the keeper as a whole. What goes wrong with one process is logged and tried again.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Another keeper holds the lock of this data directory. Nothing has to be done.
    #[error("another keeper looks after {}", .data.display())]
    AlreadyRunning { data: PathBuf },
    /// The data directory was removed or replaced under the keeper.
    #[error("{} is not the folder any more that this keeper looks after", .data.display())]
    DataReplaced { data: PathBuf },
    /// A keeper was started and ended at once; its log says why.
    #[error("the keeper did not start ({status}): see {}", .log.display())]
    DidNotStart { status: String, log: PathBuf },
    /// A file operation failed.
    #[error("{doing} {}: {source}", .path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
}

impl KeeperError {
    /// For `map_err`: says what was being done to which file.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}
