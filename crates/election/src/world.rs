//! What one agent knows when it decides.

use larder_model::agent::{Member, ReplicationView, Role, ServerState, VolumeState};
use larder_model::lease::{LeaseRecord, Previous, Route};
use larder_model::{ElectionPolicy, NodeId, Observation, Timestamp};
use serde::{Deserialize, Serialize};

use crate::chain::{self, Chain};
use crate::rules::Rules;

/// The agent's own node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    pub me: Member,
    pub server: LocalServer,
    /// `Lost` stays until a full sync has completed.
    pub volume: VolumeState,
    /// Lineage of the data on disk: the newest epoch in which this node led or completed a sync;
    /// 0: never. Durable.
    pub data_epoch: u64,
    /// Older data are kept aside ([`crate::Action::KeepDataAside`]).
    pub data_aside: bool,
    /// From [`sync_mark`]; durable.
    pub synced: Option<SyncMark>,
    /// May take the very first lease of the instance.
    pub bootstrap: bool,
    /// The instance has served before.
    pub initialized: bool,
    /// Given by this node to a holder; durable.
    pub promise: Option<Promise>,
    /// When the last successful acquisition or renewal by this life of the agent was *sent*
    /// (monotonic). `None` after a start of the agent and after a release.
    pub renewed_at: Option<Timestamp>,
    pub order: Option<PendingOrder>,
    pub hand_over: Option<HandOverProgress>,
    /// The route as it is published, if any.
    pub route: Option<Route>,
    /// `None`: every replica copies from the primary.
    pub chain: Option<Chain>,
}

/// The agent's own server, sampled right before deciding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalServer {
    pub state: ServerState,
    /// `None` until the process has answered.
    pub run_id: Option<String>,
    /// `None` when it does not answer.
    pub replication: Option<ReplicationView>,
    /// Writes are paused (by [`crate::Action::PauseWrites`] of this life of the agent).
    pub writes_paused: bool,
    /// Since when it is absent, dead or hung (monotonic).
    pub down_since: Option<Timestamp>,
    /// The process may be started: not stopped for good by an order, not held back after repeated
    /// exits, engine present.
    pub may_start: bool,
}

impl LocalServer {
    pub(crate) fn role(&self) -> Option<Role> {
        self.replication.as_ref().map(|r| r.role)
    }

    pub(crate) fn is_down(&self) -> bool {
        matches!(self.state, ServerState::Absent | ServerState::Dead)
    }
}

/// This server process completed a sync with the primary of `epoch`, or was that primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncMark {
    /// Run id of the *own* server.
    pub run_id: String,
    pub epoch: u64,
    pub replid: String,
}

/// Not to take the lease, nor to promote, before `until` (monotonic, of the node that gave it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    /// Epoch of the holder it was given to.
    pub epoch: u64,
    pub until: Timestamp,
}

/// A promise as the holder that got it sees it: `until` is its own monotonic time, counted from
/// when it *sent* the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerPromise {
    pub epoch: u64,
    pub until: Timestamp,
}

/// An order to this node that is not finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingOrder {
    pub kind: OrderKind,
    /// When it came (monotonic).
    pub since: Timestamp,
}

/// The orders that an election obeys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderKind {
    HandOver { to: Option<NodeId> },
    TakeLease { accept_data_loss: bool },
}

/// A hand-over that this node has begun as the holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandOverProgress {
    pub to: NodeId,
    /// When writes were paused (monotonic).
    pub since: Timestamp,
}

/// What an agent tells its peers (`GET /v1/peer`), sampled from the server when asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerReport {
    pub node: NodeId,
    pub state: ServerState,
    pub run_id: Option<String>,
    pub replication: Option<ReplicationView>,
    pub volume: VolumeState,
    pub data_epoch: u64,
    pub synced: Option<SyncMark>,
    /// The newest epoch this agent has seen; 0: none.
    pub lease_epoch: u64,
}

/// Another node of the shard.
#[derive(Clone, Debug, PartialEq)]
pub struct Peer {
    pub member: Member,
    /// When it was last asked (monotonic).
    pub asked_at: Option<Timestamp>,
    /// Its last answer; `at` is when the question was *sent* (monotonic). `Unknown` when the last
    /// question was not answered.
    pub answer: Observation<PeerReport>,
    pub promise: Option<PeerPromise>,
}

/// The lease as this agent last saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseView {
    /// It was read and there is none.
    Absent,
    Known(LeaseKnown),
    /// The last call failed or timed out.
    Unreachable {
        since: Timestamp,
        last: Option<LeaseKnown>,
    },
}

/// One version of the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseKnown {
    pub record: LeaseRecord,
    pub version: u64,
    /// When this agent first had this version in its hands (monotonic).
    pub seen_at: Timestamp,
    /// When it first saw this epoch (monotonic).
    pub epoch_seen_at: Timestamp,
}

impl LeaseView {
    /// What is known, however old.
    pub fn last(&self) -> Option<&LeaseKnown> {
        match self {
            Self::Absent => None,
            Self::Known(known) => Some(known),
            Self::Unreachable { last, .. } => last.as_ref(),
        }
    }
}

/// The newest epoch in which a primary may have taken writes.
pub(crate) fn lineage(record: &LeaseRecord) -> u64 {
    match (&record.holder, &record.previous) {
        // Whether it has promoted is not known from outside: assume it has.
        (Some(_), _) | (None, None) => record.epoch,
        // A holder that let go without having led leaves `previous` as it was.
        (None, Some(Previous { epoch, .. })) => *epoch,
    }
}

/// Who led in the lineage's epoch.
pub(crate) fn former_holder(record: &LeaseRecord) -> Option<&NodeId> {
    match (&record.holder, &record.previous) {
        (Some(holder), _) => Some(&holder.node),
        (None, Some(previous)) => Some(&previous.node),
        (None, None) => None,
    }
}

/// The mark that this sample of the own server gives, or the one it had. The agent calls it after
/// every sample, keeps the answer durably, and raises `data_epoch` to the mark's epoch once the
/// copy is on the server's disk.
///
/// A replica is synced with the primary of an epoch when its link to the holder's address is up, no
/// full sync runs, and its replication id is not the one it had in an older epoch: every promotion
/// makes a new one (`REPLICAOF NO ONE` shifts it), so an old id is a link that the server has not
/// yet noticed to be broken. Or it got the new id through a chain before its agent heard of the new
/// epoch; then the holder's own word tells the two apart. The primary is in sync with itself.
pub fn sync_mark(local: &Local, peers: &[Peer], lease: &LeaseView) -> Option<SyncMark> {
    let old = local.synced.clone();
    let (LeaseView::Known(known), Some(run_id), Some(view)) =
        (lease, &local.server.run_id, &local.server.replication)
    else {
        return old;
    };
    let Some(holder) = &known.record.holder else { return old };
    let epoch = known.record.epoch;
    let mark = || SyncMark { run_id: run_id.clone(), epoch, replid: view.replid.clone() };
    if local.server.state != ServerState::Serving {
        return old;
    }
    if view.role == Role::Primary {
        let leads =
            holder.node == local.me.node && holder.run_id == *run_id && local.data_epoch >= epoch;
        return if leads { Some(mark()) } else { old };
    }
    let holder_at = peers.iter().find(|p| p.member.node == holder.node).map(|p| &p.member.address);
    if !view.link_up || view.syncing || holder_at.is_none() {
        return old;
    }
    if view.primary.as_ref() != holder_at {
        let fed = chain::is_fed_through(peers, epoch, view.primary.as_ref(), &view.replid);
        return if fed { Some(mark()) } else { old };
    }
    match &old {
        Some(old_mark)
            if is_old_link(old_mark, epoch, view) && !holder_confirms(peers, known, view) =>
        {
            old
        }
        _ => Some(mark()),
    }
}

/// The link carries the replication id that the node had in an older epoch.
pub(crate) fn is_old_link(mark: &SyncMark, epoch: u64, view: &ReplicationView) -> bool {
    mark.epoch < epoch && mark.replid == view.replid
}

/// The holder has led in this epoch, and names the replication id that this node has.
fn holder_confirms(peers: &[Peer], known: &LeaseKnown, view: &ReplicationView) -> bool {
    let Some(holder) = &known.record.holder else { return false };
    let peer = peers.iter().find(|peer| peer.member.node == holder.node);
    match peer.map(|peer| &peer.answer) {
        Some(Observation::Known { value, at }) => {
            *at >= known.epoch_seen_at
                && value.data_epoch >= known.record.epoch
                && value.replication.as_ref().is_some_and(|theirs| {
                    theirs.role == Role::Primary && theirs.replid == view.replid
                })
        }
        _ => false,
    }
}

/// Whether the lease has probably changed since it was seen, though no notice of that came: a peer
/// knows of a newer epoch, or the own server is in sync with a primary that gives no mark in this
/// view. The agent then looks at the lease soon (at most four times in `renew_every`) and not only
/// once in `renew_every`: a complete copy counts for nothing until it is marked.
pub fn view_looks_old(local: &Local, peers: &[Peer], lease: &LeaseView) -> bool {
    let epoch = lease.last().map_or(0, |known| known.record.epoch);
    let told = peers.iter().any(|peer| {
        matches!(&peer.answer, Observation::Known { value, .. } if value.lease_epoch > epoch)
    });
    let server = &local.server;
    let in_sync = server.state == ServerState::Serving
        && server
            .replication
            .as_ref()
            .is_some_and(|view| view.role == Role::Replica && view.link_up && !view.syncing);
    // A replica of the new primary may have got its replication id without anybody having told it.
    let replid = server.replication.as_ref().map(|view| &view.replid);
    let marked = local.synced.as_ref().is_some_and(|mark| {
        mark.epoch == epoch
            && server.run_id.as_ref() == Some(&mark.run_id)
            && replid == Some(&mark.replid)
    });
    told || (in_sync && !marked)
}

/// What this node tells its peers.
pub fn peer_report(local: &Local, lease: &LeaseView) -> PeerReport {
    PeerReport {
        node: local.me.node.clone(),
        state: local.server.state,
        run_id: local.server.run_id.clone(),
        replication: local.server.replication.clone(),
        volume: local.volume,
        data_epoch: local.data_epoch,
        synced: local.synced.clone(),
        lease_epoch: lease.last().map_or(0, |known| known.record.epoch),
    }
}

/// Everything a decision looks at, in one hand.
pub(crate) struct Context<'a> {
    pub(crate) rules: &'a Rules,
    pub(crate) local: &'a Local,
    pub(crate) peers: &'a [Peer],
    pub(crate) lease: &'a LeaseView,
    pub(crate) policy: &'a ElectionPolicy,
    pub(crate) now: Timestamp,
    pub(crate) wall: Timestamp,
}

impl Context<'_> {
    pub(crate) fn is_me(&self, node: &NodeId) -> bool {
        *node == self.local.me.node
    }

    pub(crate) fn peer(&self, node: &NodeId) -> Option<&Peer> {
        self.peers.iter().find(|p| p.member.node == *node)
    }

    /// What the peer said in answer to a question sent at or after `since`.
    pub(crate) fn fresh<'p>(&self, peer: &'p Peer, since: Timestamp) -> Option<&'p PeerReport> {
        match &peer.answer {
            Observation::Known { value, at } if *at >= since => Some(value),
            _ => None,
        }
    }

    pub(crate) fn all_answered(&self, since: Timestamp) -> bool {
        self.peers.iter().all(|peer| self.fresh(peer, since).is_some())
    }

    /// No peer is configured and none is connected: nobody else could ever take the lease.
    pub(crate) fn is_alone(&self) -> bool {
        self.peers.is_empty()
            && self.local.server.replication.as_ref().is_none_or(|r| r.replicas.is_empty())
    }
}
