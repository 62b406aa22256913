//! Stopping the server of another node when its agent does not answer: by a kill on the same
//! machine, by the server's own protocol elsewhere.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use larder_model::agent::Member;
use larder_model::local::ProcessMark;
use larder_model::{Address, NodeId, Secret};
use larder_node::{Connection, NodeError};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::act::nobody;
use crate::boot::NodeDir;
use crate::proc;
use crate::render::SYSTEM_USER;
use crate::{clock, server};

/// How long an old primary may take to be demoted: the new holder has clients waiting.
const DEADLINE: Duration = Duration::from_millis(250);
/// How long the old primary may take for one answer before it is looked at again.
const ANSWER: Duration = Duration::from_secs(1);
/// Between two looks at one that is silent.
const LOOK: Duration = Duration::from_millis(200);

/// Kills the server that `node`'s mark names. Best effort: only nodes of this machine have their
/// folder beside ours, and the lease has run out in any case.
pub(crate) fn kill_server_of(own: &NodeDir, node: &NodeId) {
    let Some(mark) = mark(own, node) else { return };
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

/// Watches the server of `old`, whose slots another has taken, until it answers, is gone, or hangs
/// by the same rules as one's own server does; then it is killed. When it thawed it would answer
/// the writes that wait in its sockets before it hears of its successor. One that is only slow (it
/// may be emptying a large data set before its full sync) hears of it first, and is left alone.
///
/// Ends after little more than ten seconds. Nothing is done about a server of another machine.
pub(crate) async fn kill_when_hung(own: NodeDir, old: Member, password: Secret) {
    let began = clock::monotonic();
    loop {
        let state = mark(&own, &old.node).filter(proc::is_alive).map(|mark| proc::stat(mark.pid));
        let Some(Ok(stat)) = state else { return };
        let silent = clock::monotonic().since(began);
        if server::is_hung(stat.state, silent) {
            tracing::warn!(node = %old.node, state = ?stat.state, %silent, "old primary hangs");
            return kill_server_of(&own, &old.node);
        }
        if answers(&old, &password).await {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether it says anything at all, or lets nobody in any more.
async fn answers(member: &Member, password: &Secret) -> bool {
    let asked = async {
        let mut connection =
            Connection::login(&member.address, SYSTEM_USER, password, ANSWER).await?;
        connection.info().await
    };
    !matches!(asked.await, Err(NodeError::Timeout { .. }))
}

fn mark(own: &NodeDir, node: &NodeId) -> Option<ProcessMark> {
    let file = mark_file(own, node)?;
    fs::read(file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok())
}

fn mark_file(own: &NodeDir, node: &NodeId) -> Option<PathBuf> {
    let path = own.server_mark();
    let nodes = path.parent()?.parent()?;
    Some(nodes.join(node.as_str()).join(path.file_name()?))
}

/// Makes the server at `address` read-only. Best effort, as [`kill_server_of`], and no longer than
/// [`DEADLINE`].
pub(crate) async fn demote_server_at(address: &Address, password: &Secret) {
    let demote = async {
        let mut server = Connection::login(address, SYSTEM_USER, password, DEADLINE).await?;
        server.replicaof(Some(&nobody())).await
    };
    // For all of it together: each question has the whole time by itself.
    match tokio::time::timeout(DEADLINE, demote).await {
        Ok(Ok(())) => tracing::warn!(%address, "old primary demoted over its own protocol"),
        Ok(Err(error)) => tracing::info!(%address, %error, "old primary not reached"),
        Err(_) => tracing::info!(%address, "old primary slow: it is not waited for"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn an_old_primary_that_is_slow_with_each_answer_is_waited_for_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("free port");
        let port = listener.local_addr().expect("bound").port();
        let slow = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("called");
            let mut input = [0; 1024];
            while stream.read(&mut input).await.is_ok_and(|read| read > 0) {
                tokio::time::sleep(DEADLINE * 4 / 5).await;
                let _ = stream.write_all(b"+OK\r\n").await;
            }
        });
        let began = Instant::now();
        demote_server_at(&Address::new("127.0.0.1", port), &Secret::new("x")).await;
        let took = began.elapsed();
        assert!(took < DEADLINE + DEADLINE / 4, "{took:?}");
        slow.abort();
    }
}
