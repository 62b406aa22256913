//! What agents are told and what they say: the words of the agent's small API.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::address::Address;
use crate::architecture::NodeMode;
use crate::event::Severity;
use crate::exposure::OuterAddress;
use crate::ids::{EngineName, InstanceId, InstanceName, NodeId, WorkerName, ZoneName};
use crate::policy::ElectionPolicy;
use crate::size::ByteSize;
use crate::slot_move::{OpenSlot, SlotJob, SlotMoveStatus};
use crate::slots::{SlotRange, SlotSet};
use crate::time::{Millis, Timestamp};
use crate::users::Users;

/// How many events an agent keeps and tells again and again; older ones have long been read by
/// `serve`. The store must know as many of a living node, or it would take them for new ones.
pub const EVENTS_KEPT: usize = 64;

/// Everything an agent needs to run its node, without secrets. Kept on the node's disk, so that
/// agents and keeper go on while `serve` is down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeConfig {
    /// Version of the renderer that made it: a newer Larder does not re-render old instances.
    pub renderer: u32,
    pub node: NodeId,
    pub instance: InstanceId,
    pub instance_name: InstanceName,
    pub shard: u32,
    pub zone: Option<ZoneName>,
    pub mode: NodeMode,
    pub engine: EngineName,
    /// Where the server listens and what it announces.
    pub address: Address,
    /// What it announces to clients outside, in cluster mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outer: Option<OuterAddress>,
    pub memory: ByteSize,
    pub maxmemory: ByteSize,
    pub cluster_node_timeout: Millis,
    /// May take the very first lease, or serve slots, without a past.
    pub bootstrap: bool,
    /// The instance has served before: nothing starts empty by itself.
    pub initialized: bool,
    /// All nodes of the instance, this one included, sorted by id.
    pub members: Vec<Member>,
    pub election: ElectionPolicy,
    /// Where it is; before it is anywhere, where the planner wants it, though the backend's scheduler
    /// has the last word. Of no concern to the agent itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerName>,
    /// What its volume is made of; `None` is the container cluster's default. Of no concern to
    /// the agent itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// The instance has an endpoint for reads, which a standalone one has not, however many nodes it
    /// may have for a while.
    #[serde(default = "yes")]
    pub has_read_endpoint: bool,
    /// What is set of the server's parameters, and which change of them that was.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    #[serde(default)]
    pub parameters_revision: u64,
    /// Replicas copy from each other in a row, and only the first one from the primary.
    #[serde(default)]
    pub chained: bool,
    /// In a chain, whom this node is to copy from while it is a replica; `None`: the primary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<NodeId>,
    /// Spec generation this was rendered from.
    pub generation: u64,
}

fn yes() -> bool {
    true
}

/// One node as its peers know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub node: NodeId,
    pub shard: u32,
    pub zone: Option<ZoneName>,
    pub address: Address,
    /// What its server announces to clients outside, in cluster mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outer: Option<OuterAddress>,
}

impl Member {
    /// Whether this member's server can be what another server knows at `seen`.
    pub fn is_at(&self, seen: &Address) -> bool {
        self.address == *seen
            || (self.outer.as_ref())
                .is_some_and(|outer| outer.is_seen_at(Some(&self.address), seen))
    }
}

/// Stamps every order: the controller's epoch first, then the spec's generation. An agent
/// refuses an order that is older than what it has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Fence {
    pub controller_epoch: u64,
    pub generation: u64,
}

/// What `serve` may ask of an agent. Idempotent; an accepted order proves nothing, its effect is
/// observed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "kebab-case")]
pub enum Order {
    /// New configuration (members, policy). Nothing restarts.
    Configure {
        config: Box<NodeConfig>,
    },
    /// To the holder's agent: hand the primary's part over, coordinated, nothing lost.
    HandOver {
        to: Option<NodeId>,
    },
    /// To the chosen node's agent: take the lease though data may be lost (a person's word).
    TakeLease {
        accept_data_loss: bool,
    },
    /// Restart the server, if its run id is still this one.
    RestartServer {
        run_id: String,
    },
    /// Stop the server for good, before the node is removed. Nothing is saved.
    StopServer,
    /// A node whose volume is gone may start empty, because another copy of its shard serves.
    StartEmpty,
    /// Other users or passwords of the tenant, from now on. Who is connected stays so.
    SetUsers {
        users: Users,
    },
    /// Whether a server takes these rules of an account; it is as before afterwards. Changes nothing, so
    /// its stamp may be any.
    CheckRules {
        rules: String,
    },
    ClusterMeet {
        peers: Vec<Address>,
    },
    /// Give the slots to this node (new instances only).
    ClusterAddSlots {
        ranges: Vec<SlotRange>,
        config_epoch: u64,
    },
    ClusterReplicate {
        primary: String,
    },
    ClusterForget {
        ids: Vec<String>,
    },
    ClusterFailover {
        mode: ClusterFailoverMode,
    },
    /// To the agent of a primary: give these slots to another one.
    MoveSlots {
        job: SlotJob,
    },
    /// Slots that are on their way arrive; no more are begun.
    StopMovingSlots,
    /// Of slots that are marked as on their way, though nobody at the other end knows of it, the
    /// mark goes.
    CloseSlots {
        slots: SlotSet,
    },
}

impl Order {
    /// A word for logs and events.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Configure { .. } => "configure",
            Self::HandOver { .. } => "hand-over",
            Self::TakeLease { .. } => "take-lease",
            Self::RestartServer { .. } => "restart-server",
            Self::StopServer => "stop-server",
            Self::StartEmpty => "start-empty",
            Self::SetUsers { .. } => "set-users",
            Self::CheckRules { .. } => "check-rules",
            Self::ClusterMeet { .. } => "cluster-meet",
            Self::ClusterAddSlots { .. } => "cluster-add-slots",
            Self::ClusterReplicate { .. } => "cluster-replicate",
            Self::ClusterForget { .. } => "cluster-forget",
            Self::ClusterFailover { .. } => "cluster-failover",
            Self::MoveSlots { .. } => "move-slots",
            Self::StopMovingSlots => "stop-moving-slots",
            Self::CloseSlots { .. } => "close-slots",
        }
    }
}

/// How a replica of a cluster shard is made its primary (Redis `CLUSTER FAILOVER`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClusterFailoverMode {
    /// Writes paused at the primary, offsets equal, then the vote.
    Coordinated,
    /// Without the primary's consent, by the vote of the other primaries.
    Force,
    /// Without a vote. Only by who knows that the primary's process is dead.
    Takeover,
}

/// What an agent reports. `version` rises with every change that matters to a planner (not with
/// offsets or memory), so that a reader can wait for news.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentStatus {
    pub node: NodeId,
    pub instance: InstanceId,
    /// Random for each life of the agent; `version` starts anew with it.
    pub agent_run: String,
    pub version: u64,
    /// Generation of the configuration that the agent works with.
    pub generation: u64,
    /// Wall clock of this report.
    pub at: Timestamp,
    pub server: ServerStatus,
    pub volume: VolumeState,
    pub replication: Option<ReplicationView>,
    pub cluster: Option<ClusterView>,
    /// Cluster mode: the server came back as a replica and has not been in sync since, so it may
    /// lack what its primary acknowledged meanwhile.
    #[serde(default)]
    pub behind: bool,
    /// The move of slots that this node was last told of.
    #[serde(default)]
    pub slot_move: Option<SlotMoveStatus>,
    /// In a chain, the upstream that this node has left for the primary, because nothing came from
    /// there any more. Until it is told another one.
    #[serde(default)]
    pub left_upstream: Option<NodeId>,
    pub lease: Option<LeaseSummary>,
    /// Why the node is not serving, when it is not; or what is wrong though it serves.
    pub problem: Option<Problem>,
    /// The newest events, oldest first.
    pub events: Vec<AgentEvent>,
}

/// The server process as its agent sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    pub state: ServerState,
    /// Wall clock since when a living server is `Busy` or `Hung`; `None` in every other state.
    #[serde(default)]
    pub unanswering_since: Option<Timestamp>,
    pub pid: Option<u32>,
    /// The server's own run id (`INFO server`), new with every start.
    pub run_id: Option<String>,
    /// As the server reports it (`redis_version`, or `valkey_version` where there is one).
    pub engine_version: Option<String>,
    pub started_at: Option<Timestamp>,
    pub used_memory: Option<ByteSize>,
    /// As the server has it now; zero: no limit.
    #[serde(default)]
    pub maxmemory: Option<ByteSize>,
    /// Revision of the tenant's users that the running server has; `None` while that is not known.
    #[serde(default)]
    pub users_revision: Option<u64>,
    /// How far the running server has the parameters that are wanted; `None` while that is not known.
    #[serde(default)]
    pub parameters: Option<ParametersState>,
    pub connected_clients: Option<u64>,
}

/// What a running server has of the parameters that are wanted of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParametersState {
    /// The change that it was last told of.
    pub revision: u64,
    /// A value that it did not take, and what it said.
    pub refused: Option<RefusedParameter>,
    /// Some hold from a server's start only, and this one was started with others.
    pub stale: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedParameter {
    pub name: String,
    pub words: String,
}

/// Alive, hung or dead by definition, not by feeling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerState {
    /// Not started yet, or held back; `problem` says why.
    Absent,
    /// The process runs and has not answered yet.
    Starting,
    /// Alive and reading its data (`LOADING`).
    Loading,
    /// Answers.
    Serving,
    /// Alive and in a long script or command (`BUSY`).
    Busy,
    /// Stopped (T), or without an answer for longer than is normal.
    Hung,
    /// The process has exited.
    Dead,
}

impl ServerState {
    /// The process is there and well, though it may not answer just now.
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Starting | Self::Loading | Self::Serving | Self::Busy)
    }
}

/// What is on the node's volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// The node has never run: an empty volume is as it should be.
    Fresh,
    /// The node's own data, written by the node.
    Data,
    /// The node has a past and its data is gone.
    Lost,
}

/// Replication as the server reports it (`INFO replication`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicationView {
    pub role: Role,
    /// Where a replica copies from.
    pub primary: Option<Address>,
    pub link_up: bool,
    /// A full sync is under way.
    pub syncing: bool,
    pub replid: String,
    pub offset: u64,
    /// What a primary says of its replicas.
    pub replicas: Vec<ReplicaSeen>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Primary,
    Replica,
}

/// A replica in its primary's eyes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaSeen {
    pub address: Address,
    /// It has its full sync behind it and, in an agent's report, the primary is known to stream to
    /// it: a server says `state=online` up to a second before it does.
    pub online: bool,
    pub offset: u64,
}

/// The cluster in one server's own eyes (`CLUSTER NODES`, `CLUSTER INFO`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    pub my_id: String,
    pub state_ok: bool,
    pub current_epoch: u64,
    pub nodes: Vec<ClusterPeer>,
}

impl ClusterView {
    pub fn me(&self) -> Option<&ClusterPeer> {
        self.nodes.iter().find(|n| n.id == self.my_id)
    }
}

/// One line of `CLUSTER NODES`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterPeer {
    pub id: String,
    pub address: Address,
    pub role: Role,
    /// The id of its primary, for a replica that has one.
    pub primary: Option<String>,
    /// `fail`: the majority agrees that it is gone.
    pub failed: bool,
    /// `fail?`: only this server thinks so.
    pub suspected: bool,
    pub handshake: bool,
    pub linked: bool,
    pub config_epoch: u64,
    pub slots: SlotSet,
    /// Slots on their way in or out. A server shows only its own.
    #[serde(default)]
    pub open: Vec<OpenSlot>,
}

/// What an agent knows of its shard's lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseSummary {
    pub epoch: u64,
    pub holder: Option<NodeId>,
    /// Automatic failover is on hold: too many in too short a time.
    pub failover_on_hold: bool,
}

/// Something a person should know of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub code: ProblemCode,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemCode {
    /// A past, and an empty volume: it waits to join as a replica, or for a person.
    VolumeLost,
    /// The server will not start or exits at once; the message has its last words.
    ServerWillNotStart,
    /// Another process listens on the node's port.
    PortTaken,
    DiskFull,
    /// The server binary is missing or is not what it was.
    EngineMissing,
    /// Nobody may take the lease.
    NoPrimary,
    /// Too many automatic failovers; waiting.
    FailoverOnHold,
    /// The lease cannot be reached; writes go on only by the replicas' promise, or are stopped.
    LeaseUnreachable,
}

/// Something that happened at a node. `seq` rises over the node's whole life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentEvent {
    pub seq: u64,
    pub at: Timestamp,
    pub severity: Severity,
    /// A stable word, kebab-case.
    pub reason: String,
    pub message: String,
}
