//! What the election's actions mean for a real server.

use std::time::Duration;

use larder_election::Action;
use larder_model::agent::Role;
use larder_model::lease::LeaseRecord;
use larder_model::{Address, Millis, Severity, Timestamp};

use crate::clock;
use crate::core::{Core, SAMPLE};

/// How long a take-over waits for the disk.
const SYNC_LIMIT: Duration = Duration::from_secs(1);

/// Where nobody listens: a server that copies from here is read-only and stays as it is.
pub(crate) fn nobody() -> Address {
    Address::new("127.0.0.1", 1)
}

/// Whether the world is another one after this action, so that the next decision need not wait.
pub(crate) fn moves(action: &Action) -> bool {
    match action {
        Action::AcquireLease { .. }
        | Action::ReleaseLease { .. }
        | Action::StartServer { .. }
        | Action::KillServer { .. }
        | Action::Promote { .. }
        | Action::Follow(_)
        | Action::Join(_)
        | Action::Park
        | Action::PauseWrites { .. }
        | Action::CloseClients
        | Action::BeginHandOver { .. }
        | Action::EndHandOver
        | Action::FinishOrder(_) => true,
        Action::RenewLease { .. }
        | Action::SyncData
        | Action::ResumeWrites
        | Action::FenceOldPrimary { .. }
        | Action::AskPeers
        | Action::AskPromises { .. }
        | Action::PublishRoute(_)
        | Action::KeepDataAside
        | Action::LeaveUpstream(_)
        | Action::DropDataAside => false,
    }
}

pub(crate) fn note_take_over(core: &mut Core, record: &LeaseRecord) {
    let from = record.previous.as_ref().filter(|previous| previous.node != core.config.node);
    match from {
        Some(previous) if previous.reason.is_automatic() => {
            let message = format!(
                "takes over as primary from node {}, because {}; epoch {}",
                previous.node, previous.reason, record.epoch
            );
            core.memory.event(Severity::Warning, "failover", message);
        }
        Some(previous) => {
            let message = format!(
                "takes over as primary from node {} as planned, epoch {}",
                previous.node, record.epoch
            );
            core.memory.event(Severity::Info, "handed-over", message);
        }
        None => {
            let message = format!("leads, epoch {}", record.epoch);
            core.memory.event(Severity::Info, "lease-taken", message);
        }
    }
}

/// Puts what the server has written on the disk itself. Without it a power cut would take up to a
/// second of what was acknowledged by the primary before this one.
pub(crate) async fn sync_data(core: &mut Core) -> bool {
    let volume = core.volume.clone();
    // The files belong to the server, but what is synced is the file and not the descriptor. On a
    // thread of its own: a hanging disk would hold up the lease.
    let synced = tokio::task::spawn_blocking(move || volume.sync_data());
    let message = match tokio::time::timeout(SYNC_LIMIT, synced).await {
        Ok(Ok(Ok(()))) => return true,
        Ok(Ok(Err(error))) => format!("the data could not be put on the disk first: {error}"),
        Ok(Err(error)) => format!("the data could not be put on the disk first: {error}"),
        Err(_) => "the disk takes long: leads before its data are surely on it".to_owned(),
    };
    core.memory.event(Severity::Warning, "data-not-synced", message);
    true
}

/// Makes the server a primary, once the lineage is on disk, and no later than `until`.
pub(crate) async fn promote(core: &mut Core, epoch: u64, until: Option<Timestamp>) -> bool {
    if core.memory.get().data_epoch < epoch {
        core.memory.change(|memory| memory.data_epoch = epoch);
        if !core.memory.save() {
            return false;
        }
    }
    // Connecting and writing may have taken long, or this agent was stopped: look at the clock
    // right before the order.
    core.beat();
    let hands = match core.server.hands().await {
        Ok(hands) => hands,
        Err(error) => {
            tracing::info!(%error, "server out of reach");
            return false;
        }
    };
    if until.is_some_and(|until| clock::monotonic() >= until) {
        tracing::warn!(epoch, "not promoted: the lease may have run out meanwhile");
        return false;
    }
    if let Err(error) = hands.replicaof(None).await {
        tracing::info!(%error, "promotion failed");
        return false;
    }
    core.beat();
    core.server.sample(SAMPLE).await;
    let promoted = core.server.replication().is_some_and(|view| view.role == Role::Primary);
    if promoted {
        core.memory.event(Severity::Info, "promoted", format!("takes writes, epoch {epoch}"));
    }
    promoted
}

pub(crate) async fn replicate(core: &mut Core, upstream: &Address) -> bool {
    let address = upstream.clone();
    done(core.server.hands().await, async |hands| hands.replicaof(Some(&address)).await).await
}

/// Stops writes; a server that does not obey in time is killed.
pub(crate) async fn park(core: &mut Core) -> bool {
    let limit = Duration::from_millis(core.config.election.fence_margin.0 / 2);
    let message = "stops taking writes".to_owned();
    core.memory.event(Severity::Warning, "parked", message);
    match tokio::time::timeout(limit, replicate(core, &nobody())).await {
        Ok(true) => true,
        _ => core.kill_server().await,
    }
}

pub(crate) async fn pause(core: &mut Core, for_: Millis) -> bool {
    let paused =
        done(core.server.hands().await, async |h| h.client_pause_write(for_.duration()).await)
            .await;
    if paused {
        core.server.paused(for_);
    }
    paused
}

/// Runs an order on the connection, if there is one, and logs why it failed.
pub(crate) async fn done<'a, E: std::fmt::Display>(
    hands: Result<&'a mut larder_node::Connection, E>,
    order: impl AsyncFnOnce(&'a mut larder_node::Connection) -> Result<(), larder_node::NodeError>,
) -> bool {
    let hands = match hands {
        Ok(hands) => hands,
        Err(error) => {
            tracing::info!(%error, "server out of reach");
            return false;
        }
    };
    match order(hands).await {
        Ok(()) => true,
        Err(error) => {
            tracing::info!(%error, "order to the server failed");
            false
        }
    }
}
