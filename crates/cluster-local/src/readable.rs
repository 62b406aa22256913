//! Reading our own files, of which a disk, an editor or a cleaner may have left nothing of use.

use std::io;
use std::path::Path;

use larder_cluster::ClusterError;
use larder_keeper::files;
use serde::de::DeserializeOwned;

use crate::error;

/// `None` when the file is missing, and when it cannot be understood: what was in it is known
/// elsewhere, and it is written anew. The log names file and cause.
///
/// # Errors
/// [`ClusterError::Unreachable`] when the system does not let us read it.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ClusterError> {
    match files::read_json(path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            // Not the error's words: they may quote what is in the file.
            tracing::warn!(path = %path.display(), "file is damaged, it counts as missing");
            Ok(None)
        }
        other => other.map_err(error::io("read", path)),
    }
}
