//! From what the system says to what a backend may say.

use std::io;
use std::path::Path;

use larder_cluster::ClusterError;
use larder_model::{Code, Refusal};

/// For `map_err`: says what was being done to which file. A full disk is a refusal, because
/// somebody has to make room; everything else leaves the machine's state unknown.
pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ClusterError {
    let path = path.to_owned();
    move |error| match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            tracing::error!(path = %path.display(), %error, doing, "disk full");
            refused(Code::DiskFull, "the disk of this machine is full: make room, then try again")
        }
        _ => unreachable(format!("{doing} {}: {error}", path.display())),
    }
}

pub(crate) fn refused(code: Code, detail: impl Into<String>) -> ClusterError {
    ClusterError::Refused(Refusal::new(code, detail))
}

pub(crate) fn unreachable(reason: String) -> ClusterError {
    ClusterError::Unreachable { cluster: "local".to_owned(), reason }
}
