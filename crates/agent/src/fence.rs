//! Killing the server of another node of the same machine, when its agent does not answer.

use std::fs;
use std::path::PathBuf;

use larder_model::NodeId;
use larder_model::local::ProcessMark;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::boot::NodeDir;
use crate::proc;

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
