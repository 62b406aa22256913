//! What an agent is told to do, and how things stand, for status and events.

use larder_model::agent::Member;
use larder_model::lease::{LeaseRecord, Route};
use larder_model::{Millis, NodeId, Timestamp};

/// The answer of [`crate::decide`].
#[must_use = "a decision does nothing by itself"]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// To be executed in order, up to the first that fails.
    pub actions: Vec<Action>,
    /// Decide again no later than this (monotonic). `None`: only when something changes.
    pub wake_at: Option<Timestamp>,
    pub situation: Situation,
}

/// One thing to do; idempotent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Compare-and-set of the lease: write `record` if the version is still `after_version`
    /// (`None`: there is no lease yet). On success `renewed_at` is when it was sent.
    AcquireLease { record: LeaseRecord, after_version: Option<u64> },
    /// Keep the record, make a new version.
    RenewLease { after_version: u64 },
    /// Let go. Like [`Action::AcquireLease`], but clears `renewed_at`.
    ReleaseLease { record: LeaseRecord, after_version: u64 },
    /// Start the server process, always read-only: leading is a [`Action::Promote`] of its own.
    StartServer { start_as: StartAs },
    /// Kill the process (SIGKILL) and wait until it is gone; fails when it is still there after a
    /// second.
    KillServer { reason: KillReason },
    /// Make what the server has written of its data survive a power cut (fsync of its append-only
    /// files). Best effort, at most a second, never a failure: a disk that takes longer must not
    /// cost the shard its primary.
    SyncData,
    /// Persist `data_epoch := epoch`, then `REPLICAOF NO ONE`. Done when the server says that it
    /// is a primary.
    Promote { epoch: u64 },
    /// `REPLICAOF` this member; it stops writes as well.
    Follow(Member),
    /// `REPLICAOF` this member, from a link that is well: in a chain, from the primary to another
    /// replica. The server's offset must not be ahead of that replica's, or all data would be copied
    /// anew: the driver lets go of the former link first, and waits until the member has as much.
    Join(Member),
    /// The upstream brings nothing: set [`crate::Chain::left`].
    LeaveUpstream(NodeId),
    /// Stop writes: replica of nobody (`REPLICAOF 127.0.0.1 1`). When the server does not do so
    /// within `fence_margin / 2`, kill it.
    Park,
    /// `CLIENT PAUSE <for> WRITE`.
    PauseWrites { for_: Millis },
    /// `CLIENT UNPAUSE`.
    ResumeWrites,
    /// Close ordinary and pub/sub clients, not Larder's own and not replicas.
    CloseClients,
    /// Best effort, at most 300 ms, never a failure: ask the old primary's agent to demote
    /// (`POST /v1/peer/demote`), or demote or kill its server by whatever other way there is.
    FenceOldPrimary { old: Member, epoch: u64 },
    /// Ask all peers for a [`crate::PeerReport`] now, at once, at most 300 ms. Silence is no failure.
    AskPeers,
    /// Ask all peers for a promise (`POST /v1/peer/promise`). Refusal and silence are no failure. A
    /// given promise is kept in [`crate::Peer::promise`] with `until` = time of *sending* + `for_`.
    AskPromises { epoch: u64, for_: Millis },
    /// Publish unless a route of a newer epoch is there.
    PublishRoute(Route),
    /// Keep hard links of the present data files until the node has synced: they may hold writes
    /// that nobody else has.
    KeepDataAside,
    /// The node has synced: what was kept aside goes.
    DropDataAside,
    /// A hand-over has begun: set [`crate::Local::hand_over`].
    BeginHandOver { to: NodeId },
    /// The hand-over is over: clear [`crate::Local::hand_over`].
    EndHandOver,
    /// The pending order is finished: clear [`crate::Local::order`] and say so in an event.
    FinishOrder(OrderOutcome),
}

/// How a server process is started. There is no "as primary": see [`Action::StartServer`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartAs {
    /// With `replicaof` the holder.
    ReplicaOf(Member),
    /// With `replicaof 127.0.0.1 1`: read-only, copies from nobody, lets nobody copy.
    Parked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillReason {
    /// Stopped or without an answer for longer than is normal.
    Hung,
}

/// How an order ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderOutcome {
    #[error("done")]
    Done,
    #[error("this node does not hold the lease: give the order to the holder's agent")]
    NotHolder,
    #[error("node {0} is not a replica that could take over: it has to be synced and answer")]
    NoSuchCandidate(NodeId),
    #[error("no replica is synced and answers")]
    NoCandidate,
    #[error("the replica did not catch up in time; writes go on here")]
    TooSlow,
    #[error("the server of this node stopped serving during the hand-over")]
    ServerLost,
    #[error("this node has no data to lead with")]
    NoData,
    #[error("taking the lease here would lose data; that has to be accepted")]
    WouldLoseData,
}

/// How things stand for this node, typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Situation {
    /// Holds the lease and takes writes.
    Leading,
    /// Takes writes though the lease cannot be renewed: alone, or every replica has promised.
    FailStatic { since: Timestamp },
    /// Holds the lease and is on its way to take writes.
    TakingOver,
    /// A planned hand-over is under way.
    HandingOver { to: NodeId },
    /// Let go, or is about to: its server died, hung or restarted.
    ServerLost,
    /// Takes no writes by precaution.
    Parked(WhyParked),
    /// Replica of the holder. `synced`: it may take over.
    Following { holder: NodeId, synced: bool },
    /// Nobody leads.
    NoPrimary(WhyNoPrimary),
    /// The server is held back or cannot start; nothing to decide.
    Down,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WhyParked {
    /// The lease cannot be reached or renewed and a replica might take it.
    #[error("its lease cannot be renewed, and another node might take it")]
    CannotRenew,
    /// Has promised the holder not to take over.
    #[error("this node has promised the last primary not to take over yet")]
    Promised,
    /// A forced take-over waits until the old lease has surely run out.
    #[error("the former primary's lease has to run out first")]
    OldLeaseRuns,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WhyNoPrimary {
    /// Candidates tell each other their offsets.
    #[error("the nodes are telling each other how far their copies are")]
    Gathering,
    /// Another candidate has more; it is its turn.
    #[error("node {0} has the better copy and is to take over")]
    BetterCandidate(NodeId),
    /// Waits for a lease that may still be held.
    #[error("the former primary's lease may still hold")]
    LeaseRuns,
    /// The lease cannot be read.
    #[error("the lease cannot be read")]
    LeaseUnreachable,
    /// Too many automatic failovers; candidates hold.
    #[error("too many automatic failovers in a short time")]
    OnHold,
    /// Nobody may take it yet: waits for the former holder to start from its own file.
    #[error(
        "node {0}, the last primary, is waited for: it may have the newest data; to go on without \
         them choose a node: `larder instance failover INSTANCE --to NODE --accept-data-loss`"
    )]
    WaitsForFormerHolder(NodeId),
    /// This node has nothing to lead with, or others have more.
    #[error("this node has no data to lead with, or others may have newer ones")]
    NotEligible,
    /// Its server has to load first.
    #[error("the server of this node has to start and load first")]
    ServerNotReady,
    /// A new instance whose first primary has not started yet.
    #[error("the first primary of the instance has not started yet")]
    NotBootstrapped,
}
