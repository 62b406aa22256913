//! What the planner answers: steps to take, things it waits for, and a report for people.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::agent::ClusterFailoverMode;
use crate::architecture::EndpointKind;
use crate::error::Refusal;
use crate::hindrance::Hindrance;
use crate::ids::{InstanceId, NodeId, WorkerName, ZoneName};
use crate::operation::{OperationKind, OperationStep};
use crate::size::ByteSize;
use crate::slots::{SlotRange, SlotSet};
use crate::state::{Condition, InstanceState};
use crate::time::{Millis, Timestamp};

/// One thing to do. Idempotent: done twice it is as done once. Whether it worked is observed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// Write the node's record; nothing of the node exists yet.
    RecordNode {
        node: NodeId,
        shard: u32,
        worker: WorkerName,
        zone: Option<ZoneName>,
        bootstrap: bool,
    },
    /// Take an address for the node and write it into its record.
    ReserveAddress {
        node: NodeId,
    },
    /// Open a way from outside to the node, and write its address into the record.
    ExposeNode {
        node: NodeId,
    },
    /// Make the container cluster hold the node: folder, volume, agent.
    EnsureNode {
        node: NodeId,
    },
    /// Hand the living agent its newer configuration.
    ConfigureNode {
        node: NodeId,
    },
    EnsureEndpoint {
        endpoint: EndpointKind,
    },
    /// From now on nothing of the instance starts empty by itself.
    MarkInitialized,
    /// Let `node` meet the others over the cluster bus.
    MeetNodes {
        node: NodeId,
        peers: Vec<NodeId>,
    },
    AssignSlots {
        node: NodeId,
        ranges: Vec<SlotRange>,
        config_epoch: u64,
    },
    /// `primary_id` is the id that the servers know the primary by.
    ReplicateNode {
        node: NodeId,
        primary: NodeId,
        primary_id: String,
    },
    /// Let `node` forget servers that are no more, by the ids that the servers know.
    ForgetNodes {
        node: NodeId,
        ids: Vec<String>,
    },
    /// Let primary `node` give slots to primary `to`, which the servers know by `to_id`.
    MoveSlots {
        node: NodeId,
        to: NodeId,
        to_id: String,
        slots: SlotSet,
        /// Replicas of `to` that have to be in sync before a slot is opened.
        copies: u32,
    },
    /// Let `node` begin no more slots of what it was told to move.
    StopMovingSlots {
        node: NodeId,
    },
    /// Let `node` take back the mark of slots that are not on their way any more.
    CloseSlots {
        node: NodeId,
        slots: SlotSet,
    },
    /// A node whose volume is gone may start empty: another copy of its shard serves.
    StartEmpty {
        node: NodeId,
    },
    HandOver {
        holder: NodeId,
        to: Option<NodeId>,
    },
    TakeLease {
        node: NodeId,
    },
    FailOverShard {
        node: NodeId,
        mode: ClusterFailoverMode,
    },
    RestartServer {
        node: NodeId,
        run_id: String,
    },
    /// Tell the node's servers of the tenant's users as they are wanted now.
    SetUsers {
        node: NodeId,
        revision: u64,
    },
    /// The grace of a former password is over: it is valid no longer.
    DropFormerPassword,
    /// Remember in the operation what its steps will be measured against.
    UpdateOperation {
        kind: OperationKind,
    },
    /// Write in the record what the node gets of memory from now on, in place.
    ResizeNode {
        node: NodeId,
        memory: ByteSize,
    },
    /// Write in the record where the node stands in the order of a chain.
    PlaceInLine {
        node: NodeId,
        since: Timestamp,
    },
    /// Write in the record that the node is on its way out.
    RetireNode {
        node: NodeId,
    },
    /// Remove node, volume and address reservation from the container cluster.
    RemoveNode {
        node: NodeId,
    },
    RemoveEndpoint {
        endpoint: EndpointKind,
    },
    /// Delete the record of a node of which nothing is left.
    ForgetRecord {
        node: NodeId,
    },
    /// Delete the instance's records: nothing of it is left.
    PurgeInstance,
}

impl Step {
    /// The node that the step is about, if it is about one.
    pub fn node(&self) -> Option<&NodeId> {
        match self {
            Self::RecordNode { node, .. }
            | Self::ReserveAddress { node }
            | Self::ExposeNode { node }
            | Self::EnsureNode { node }
            | Self::ConfigureNode { node }
            | Self::MeetNodes { node, .. }
            | Self::AssignSlots { node, .. }
            | Self::ReplicateNode { node, .. }
            | Self::ForgetNodes { node, .. }
            | Self::MoveSlots { node, .. }
            | Self::StopMovingSlots { node }
            | Self::CloseSlots { node, .. }
            | Self::StartEmpty { node }
            | Self::TakeLease { node }
            | Self::FailOverShard { node, .. }
            | Self::RestartServer { node, .. }
            | Self::SetUsers { node, .. }
            | Self::ResizeNode { node, .. }
            | Self::PlaceInLine { node, .. }
            | Self::RetireNode { node }
            | Self::RemoveNode { node }
            | Self::ForgetRecord { node }
            | Self::HandOver { holder: node, .. } => Some(node),
            Self::EnsureEndpoint { .. }
            | Self::MarkInitialized
            | Self::DropFormerPassword
            | Self::UpdateOperation { .. }
            | Self::RemoveEndpoint { .. }
            | Self::PurgeInstance => None,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RecordNode { node, shard, worker, zone, bootstrap } => {
                write!(f, "record node {node} of shard {shard} on worker {worker}")?;
                if let Some(zone) = zone {
                    write!(f, " in zone {zone}")?;
                }
                if *bootstrap {
                    f.write_str(", first primary")?;
                }
                Ok(())
            }
            Self::ReserveAddress { node } => write!(f, "reserve an address for node {node}"),
            Self::ExposeNode { node } => write!(f, "expose node {node} to clients outside"),
            Self::EnsureNode { node } => write!(f, "ensure node {node}"),
            Self::ConfigureNode { node } => write!(f, "configure node {node}"),
            Self::EnsureEndpoint { endpoint } => write!(f, "ensure {endpoint} endpoint"),
            Self::MarkInitialized => f.write_str("mark the instance as initialized"),
            Self::MeetNodes { node, peers } => {
                write!(f, "let node {node} meet")?;
                for peer in peers {
                    write!(f, " {peer}")?;
                }
                Ok(())
            }
            Self::AssignSlots { node, ranges, config_epoch } => {
                write!(f, "assign slots")?;
                for range in ranges {
                    write!(f, " {range}")?;
                }
                write!(f, " to node {node} (config epoch {config_epoch})")
            }
            Self::ReplicateNode { node, primary, .. } => {
                write!(f, "make node {node} a replica of node {primary}")
            }
            Self::ForgetNodes { node, ids } => {
                write!(f, "let node {node} forget {}", ids.join(" "))
            }
            Self::MoveSlots { node, to, slots, .. } => {
                write!(f, "move {} slots ({slots}) from node {node} to node {to}", slots.count())
            }
            Self::StopMovingSlots { node } => write!(f, "stop moving slots from node {node}"),
            Self::CloseSlots { node, slots } => {
                write!(f, "close slots {slots} of node {node}")
            }
            Self::StartEmpty { node } => write!(f, "start node {node} empty"),
            Self::HandOver { holder, to: Some(to) } => {
                write!(f, "hand over from node {holder} to node {to}")
            }
            Self::HandOver { holder, to: None } => {
                write!(f, "hand over from node {holder} to the most advanced replica")
            }
            Self::TakeLease { node } => {
                write!(f, "let node {node} take the lease, accepting data loss")
            }
            Self::FailOverShard { node, mode } => {
                let how = match mode {
                    ClusterFailoverMode::Coordinated => "coordinated",
                    ClusterFailoverMode::Force => "forced",
                    ClusterFailoverMode::Takeover => "by takeover",
                };
                write!(f, "fail over to node {node}, {how}")
            }
            Self::RestartServer { node, .. } => write!(f, "restart the server of node {node}"),
            Self::SetUsers { node, revision } => {
                write!(f, "tell node {node} of its users, revision {revision}")
            }
            Self::DropFormerPassword => f.write_str("end the former password"),
            Self::UpdateOperation { kind } => {
                write!(f, "note the starting point of the {}", kind.as_str())
            }
            Self::PlaceInLine { node, .. } => write!(f, "give node {node} another place in line"),
            Self::ResizeNode { node, memory } => write!(f, "give node {node} {memory} of memory"),
            Self::RetireNode { node } => write!(f, "retire node {node}"),
            Self::RemoveNode { node } => write!(f, "remove node {node} with its volume"),
            Self::RemoveEndpoint { endpoint } => write!(f, "remove {endpoint} endpoint"),
            Self::ForgetRecord { node } => write!(f, "delete the record of node {node}"),
            Self::PurgeInstance => f.write_str("delete the instance's records"),
        }
    }
}

/// A step with the stamps that make it safe to do late or twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStep {
    pub instance: InstanceId,
    pub generation: u64,
    /// Why, in a few words, for the log and for `instance plan`.
    pub reason: String,
    #[serde(flatten)]
    pub step: Step,
}

impl fmt::Display for PlannedStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} — {}", self.step, self.reason)
    }
}

/// Why the planner does not do more just now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "wait", rename_all = "kebab-case")]
pub enum Wait {
    /// The container cluster cannot be asked.
    BackendUnreachable,
    /// Nothing is heard of the node's agent.
    AgentSilent { node: NodeId, unknown_for: Millis },
    /// The container cluster cannot make the node, or start it.
    NodeBlocked { node: NodeId, by: Hindrance },
    /// The server is starting or loading its data.
    ServerStarting { node: NodeId },
    /// The node's server is down; its agent restarts it or hands over.
    ServerDown { node: NodeId },
    /// No node of the shard is its primary; the agents are electing one.
    Election { shard: u32 },
    /// The replica copies its primary's data.
    ReplicaSyncing { node: NodeId },
    /// The servers have not all heard of each other.
    Gossip { node: NodeId },
    /// The cluster says of itself that it is down.
    ClusterDown { node: NodeId },
    /// The endpoint leads to no server that answers.
    EndpointSilent { endpoint: EndpointKind },
    /// The container cluster has not given the node an address for clients outside.
    NodeNotExposed { node: NodeId },
    /// The same for an endpoint.
    EndpointNotExposed { endpoint: EndpointKind },
    /// A lost node is not replaced before this much more time has passed.
    ReplacementDelay { node: NodeId, left: Millis },
    /// No worker has room.
    NoRoom { shard: u32, needed_bytes: u64 },
    /// No copy of the shard is left; a person decides.
    DataLost { shard: u32 },
    /// An order was given and its effect is awaited.
    Effect { what: String },
    /// Something still exists that is being removed.
    Removal { what: String },
    /// Slots are on their way from one node to another; why not, if they do not get on.
    SlotsMoving { node: NodeId, to: NodeId, left: u32, problem: Option<String> },
    /// Moving slots is paused by a person's word.
    Paused,
    /// Clients of a node on its way out get this much more time to leave it.
    Draining { node: NodeId, left: Millis },
    /// A node holds more data than the memory it is to get.
    DataTooLarge { node: NodeId, used: ByteSize, limit: ByteSize },
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BackendUnreachable => f.write_str("the container cluster does not answer"),
            Self::AgentSilent { node, unknown_for } => {
                write!(f, "nothing heard of node {node} for {unknown_for}")
            }
            Self::NodeBlocked { node, by } => {
                write!(f, "node {node} {}; {}", by.message, by.kind.next_move())
            }
            Self::ServerStarting { node } => write!(f, "the server of node {node} is starting"),
            Self::ServerDown { node } => write!(f, "the server of node {node} is down"),
            Self::Election { shard } => write!(f, "shard {shard} has no primary yet"),
            Self::ReplicaSyncing { node } => write!(f, "node {node} is copying its primary's data"),
            Self::Gossip { node } => write!(f, "node {node} has not met every other node yet"),
            Self::ClusterDown { node } => write!(f, "node {node} sees the cluster as down"),
            Self::EndpointSilent { endpoint } => {
                write!(f, "the {endpoint} endpoint does not answer yet")
            }
            Self::NodeNotExposed { node } => {
                write!(f, "node {node} has no address for clients outside yet")
            }
            Self::EndpointNotExposed { endpoint } => {
                write!(f, "the {endpoint} endpoint has no address for clients outside yet")
            }
            Self::ReplacementDelay { node, left } => {
                write!(f, "node {node} is replaced when it stays away for {left} more")
            }
            Self::NoRoom { shard, needed_bytes } => write!(
                f,
                "no worker has room for a node of shard {shard} ({})",
                ByteSize(*needed_bytes)
            ),
            Self::DataLost { shard } => {
                write!(
                    f,
                    "no copy of shard {shard} is left: put the volume of one of its nodes back, or \
                     delete the instance"
                )
            }
            Self::Effect { what } => write!(f, "waiting to see that {what}"),
            Self::Removal { what } => write!(f, "waiting until {what} is gone"),
            Self::SlotsMoving { node, to, left, problem } => {
                write!(f, "{left} slots are on their way from node {node} to node {to}")?;
                match problem {
                    Some(problem) => write!(f, "; {problem}"),
                    None => Ok(()),
                }
            }
            Self::Paused => f.write_str("paused; it goes on with `--resume`"),
            Self::Draining { node, left } => {
                write!(f, "clients of node {node} have {left} to leave it")
            }
            Self::DataTooLarge { node, used, limit } => {
                write!(f, "node {node} holds {used}, more than the {limit} of data it is to have")
            }
        }
    }
}

/// What happened to the operation that holds the instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperationReport {
    pub steps: Vec<OperationStep>,
    pub outcome: OperationOutcome,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OperationOutcome {
    Running,
    Waiting,
    Succeeded,
    Failed(Refusal),
}

/// What the plan means to people. An unread report is not actionable: show it.
#[must_use = "an unread report is not actionable"]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub state: InstanceState,
    pub conditions: Vec<Condition>,
    pub operation: Option<OperationReport>,
}

/// The whole answer for one instance at one moment.
#[must_use = "a plan does nothing by itself"]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub instance: InstanceId,
    pub generation: u64,
    pub steps: Vec<PlannedStep>,
    pub waits: Vec<Wait>,
    pub report: Report,
}

impl Plan {
    /// Nothing to do and nothing waited for.
    pub fn is_settled(&self) -> bool {
        self.steps.is_empty() && self.waits.is_empty()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "instance {} generation {}: {}",
            self.instance, self.generation, self.report.state
        )?;
        if self.is_settled() {
            writeln!(f, "  nothing to do")?;
        }
        for step in &self.steps {
            writeln!(f, "  do   {step}")?;
        }
        for wait in &self.waits {
            writeln!(f, "  wait {wait}")?;
        }
        for condition in &self.report.conditions {
            let sign = if condition.status { '+' } else { '-' };
            writeln!(
                f,
                "  {sign} {} ({}): {}",
                condition.kind, condition.reason, condition.message
            )?;
        }
        if let Some(operation) = &self.report.operation {
            for step in &operation.steps {
                writeln!(f, "  step {} {:?}: {}", step.name, step.state, step.message)?;
            }
        }
        Ok(())
    }
}
