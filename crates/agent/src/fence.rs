//! Stopping the server of another node when its agent does not answer: by a kill on the same
//! machine, by the server's own protocol elsewhere.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use larder_model::local::ProcessMark;
use larder_model::{Address, NodeId, Secret};
use larder_node::{Connection, NodeError};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::act::nobody;
use crate::boot::NodeDir;
use crate::proc;
use crate::render::SYSTEM_USER;

/// The new holder has clients waiting.
const DEADLINE: Duration = Duration::from_millis(250);

/// Kills the server that `node`'s mark names. Best effort: only nodes of this machine have their
/// folder beside ours, and the lease has run out in any case.
pub(crate) fn kill_server_of(own: &NodeDir, node: &NodeId) {
    let Some(file) = mark_file(own, node) else { return };
    let Some(mark) =
        fs::read(&file).ok().and_then(|bytes| serde_json::from_slice::<ProcessMark>(&bytes).ok())
    else {
        return;
    };
    let pid = i32::try_from(mark.pid).ok().and_then(Pid::from_raw);
    let Some(Ok(fd)) = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) else { return };
    // Checked after the pidfd is held: from now on the pid cannot become another process.
    if !proc::is_alive(&mark) {
        return;
    }
    match pidfd_send_signal(&fd, Signal::KILL) {
        Ok(()) => tracing::warn!(%node, pid = mark.pid, "old primary killed"),
        Err(error) => tracing::warn!(%node, pid = mark.pid, %error, "old primary not killed"),
    }
}

fn mark_file(own: &NodeDir, node: &NodeId) -> Option<PathBuf> {
    let path = own.server_mark();
    let nodes = path.parent()?.parent()?;
    Some(nodes.join(node.as_str()).join(path.file_name()?))
}

/// Makes the server at `address` read-only. Best effort, as [`kill_server_of`].
pub(crate) async fn demote_server_at(address: &Address, password: &Secret) {
    let demoted: Result<(), NodeError> = async {
        let mut server = Connection::login(address, SYSTEM_USER, password, DEADLINE).await?;
        server.replicaof(Some(&nobody())).await
    }
    .await;
    match demoted {
        Ok(()) => tracing::warn!(%address, "old primary demoted over its own protocol"),
        Err(error) => tracing::info!(%address, %error, "old primary not reached"),
    }
}
