//! The newest order that was obeyed, per instance: older ones are refused.

use std::path::{Path, PathBuf};

use larder_cluster::ClusterError;
use larder_keeper::files;
use larder_model::agent::Fence;

use crate::{error, readable};

fn file(instance_dir: &Path) -> PathBuf {
    instance_dir.join("fence.json")
}

/// Refuses an order that is older than one that was obeyed, and remembers a newer one before it
/// is obeyed. An instance without a folder has obeyed nothing yet.
pub(crate) fn check(instance_dir: &Path, fence: Fence) -> Result<(), ClusterError> {
    let file = file(instance_dir);
    // Where it was lost, the agents' own memory of orders and the lock of `serve` have to do.
    let seen: Option<Fence> = readable::read(&file)?;
    match seen {
        Some(seen) if fence < seen => Err(ClusterError::Stale { seen }),
        Some(seen) if fence == seen => Ok(()),
        Some(_) | None if instance_dir.is_dir() => {
            files::write_json(&file, &fence).map_err(error::io("write", &file))
        }
        Some(_) | None => Ok(()),
    }
}
