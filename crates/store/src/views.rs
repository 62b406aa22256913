//! What was last seen of an instance, in the shape that API pages are rendered from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use larder_model::agent::Role;
use larder_model::plan::Plan;
use larder_model::{
    Address, ByteSize, Condition, EndpointKind, InstanceState, NodeId, SlotSet, Timestamp,
    WorkerName, ZoneName,
};

/// Everything that was last seen and concluded of one instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceObservation {
    /// When it was looked at.
    pub at: Timestamp,
    pub state: InstanceState,
    pub conditions: Vec<ConditionSince>,
    pub endpoints: BTreeMap<EndpointKind, Address>,
    /// Their addresses inside of the container cluster, where those are others.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inner_endpoints: BTreeMap<EndpointKind, Address>,
    /// Sorted as people want to see them: by shard, primaries first.
    pub nodes: Vec<NodeView>,
    /// What the planner said: what it does, and what it waits for.
    pub plan: Plan,
    /// The spec's generation that was looked at.
    pub generation: u64,
}

/// A condition and since when it has had its status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConditionSince {
    #[serde(flatten)]
    pub condition: Condition,
    pub since: Timestamp,
}

impl ConditionSince {
    /// Dates `conditions`: the time of a former condition of the same type is kept while its
    /// status stays, whatever its reason and message say.
    pub fn carry(former: &[Self], conditions: Vec<Condition>, now: Timestamp) -> Vec<Self> {
        conditions
            .into_iter()
            .map(|condition| {
                let since = former
                    .iter()
                    .find(|f| {
                        f.condition.kind == condition.kind && f.condition.status == condition.status
                    })
                    .map_or(now, |f| f.since);
                Self { condition, since }
            })
            .collect()
    }
}

/// One node as it was last seen: a row of `larder instance nodes`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    pub id: NodeId,
    pub shard: u32,
    /// `None`: unknown.
    pub role: Option<Role>,
    pub state: NodeState,
    /// `None` until one was reserved.
    pub address: Option<Address>,
    /// Where clients outside reach it, in a cluster instance that is exposed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<Address>,
    /// Process id of the server.
    pub pid: Option<u32>,
    pub zone: Option<ZoneName>,
    pub worker: WorkerName,
    /// The node that a replica copies from, when it is one of the instance's.
    pub replica_of: Option<NodeId>,
    /// A replica's link to its primary; `None` for primaries and when unknown.
    pub link_up: Option<bool>,
    /// Replication offset in bytes.
    pub offset: Option<u64>,
    /// How far a replica is behind its primary.
    pub lag_bytes: Option<u64>,
    pub used_memory: Option<ByteSize>,
    /// Slots that the node serves; empty for replicas and outside of cluster instances.
    pub slots: SlotSet,
    /// As the server reports it.
    pub engine_version: Option<String>,
    /// When the node's agent was last heard; `None`: never.
    pub last_seen_at: Option<Timestamp>,
}

/// How a node is doing, in one word for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// Recorded; nothing of it runs yet.
    Planned,
    /// Its server is starting, loading or copying.
    Joining,
    Serving,
    /// On its way out.
    Draining,
    /// Its server is dead or hung.
    Down,
    /// Nothing is heard of its agent.
    Unknown,
    /// Its volume or its worker is gone.
    Lost,
}

impl NodeState {
    pub const ALL: [Self; 7] = [
        Self::Planned,
        Self::Joining,
        Self::Serving,
        Self::Draining,
        Self::Down,
        Self::Unknown,
        Self::Lost,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Joining => "joining",
            Self::Serving => "serving",
            Self::Draining => "draining",
            Self::Down => "down",
            Self::Unknown => "unknown",
            Self::Lost => "lost",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(kind: &str, status: bool, message: &str) -> Condition {
        Condition { kind: kind.into(), status, reason: "because".into(), message: message.into() }
    }

    #[test]
    fn a_condition_keeps_its_date_while_its_status_stays() {
        let first = ConditionSince::carry(
            &[],
            vec![condition("ready", false, "1 of 3"), condition("available", true, "")],
            Timestamp(10),
        );
        let second = ConditionSince::carry(
            &first,
            vec![condition("ready", false, "2 of 3"), condition("available", false, "")],
            Timestamp(20),
        );
        assert_eq!(second.iter().map(|c| c.since.0).collect::<Vec<_>>(), [10, 20]);
        assert_eq!(second[0].condition.message, "2 of 3");
    }

    #[test]
    fn node_states_are_written_as_they_are_shown() {
        for state in NodeState::ALL {
            let json = serde_json::to_string(&state).expect("json");
            assert_eq!(json, format!("\"{}\"", state.as_str()));
        }
    }
}
