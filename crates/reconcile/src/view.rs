//! What was seen, in the shape that is stored and shown.

use larder_model::agent::{AgentStatus, Role, ServerState, VolumeState};
use larder_model::plan::{Plan, Wait};
use larder_model::{
    Address, Desired, EndpointKind, EndpointStatus, Millis, NodeId, NodePhase, NodeRecord,
    Observation, Observed, ObservedNode, SlotSet, Timestamp, WorkerState,
};
use larder_store::{ConditionSince, InstanceObservation, NodeState, NodeView};

/// Renders one round. Conditions are dated `now`; the store keeps the older date of a condition
/// that has not changed.
pub fn observation(
    desired: &Desired,
    observed: &Observed,
    plan: &Plan,
    now: Timestamp,
) -> InstanceObservation {
    let mut nodes: Vec<NodeView> =
        desired.nodes.iter().map(|record| node_view(desired, observed, record)).collect();
    for index in 0..nodes.len() {
        nodes[index].lag_bytes = lag(&nodes[index], &nodes);
    }
    nodes.sort_by(|a, b| {
        let primary_first = |node: &NodeView| node.role != Some(Role::Primary);
        (a.shard, primary_first(a), &a.id).cmp(&(b.shard, primary_first(b), &b.id))
    });
    InstanceObservation {
        at: now,
        state: plan.report.state,
        conditions: ConditionSince::carry(&[], plan.report.conditions.clone(), now),
        endpoints: shown(desired, observed).map(|(kind, seen)| (kind, seen.address)).collect(),
        inner_endpoints: shown(desired, observed)
            .filter_map(|(kind, seen)| Some((kind, seen.inner?)))
            .collect(),
        nodes,
        plan: plan.clone(),
        generation: desired.generation,
    }
}

/// Endpoints that clients can be told of: they have their address, and have answered.
fn shown(
    desired: &Desired,
    observed: &Observed,
) -> impl Iterator<Item = (EndpointKind, EndpointStatus)> {
    let has_answered = |seen: &EndpointStatus| seen.answers || desired.initialized;
    (observed.endpoints.iter())
        .filter_map(|(kind, seen)| Some((*kind, seen.known()?.clone())))
        .filter(|(_, seen)| !seen.pending && has_answered(seen))
        .collect::<Vec<_>>()
        .into_iter()
}

/// Where clients outside reach a node, by what it announces.
fn outside(observed: &Observed, record: &NodeRecord) -> Option<Address> {
    let outer = record.outer.as_ref()?;
    let of_worker = || {
        let worker = observed.workers.iter().find(|worker| worker.name == record.worker)?;
        worker.address.clone()
    };
    Some(Address::new(outer.host.clone().or_else(of_worker)?, outer.port))
}

fn node_view(desired: &Desired, observed: &Observed, record: &NodeRecord) -> NodeView {
    let nothing = ObservedNode::default();
    let seen = observed.nodes.get(&record.id).unwrap_or(&nothing);
    let status = seen.agent.known();
    let replication = status.and_then(|s| s.replication.as_ref());
    let is_up = status.is_some_and(|s| s.server.state.is_alive());
    let role = replication.filter(|_| is_up).map(|r| r.role);
    let replica_of = replication
        .filter(|r| is_up && r.role == Role::Replica)
        .and_then(|r| node_at(&desired.nodes, r.primary.as_ref()?));
    NodeView {
        id: record.id.clone(),
        shard: record.shard,
        role,
        state: node_state(observed, record, seen),
        address: record.address.clone(),
        outside: outside(observed, record),
        pid: status.filter(|_| is_up).and_then(|s| s.server.pid),
        zone: record.zone.clone(),
        worker: record.worker.clone(),
        replica_of,
        link_up: replication.filter(|_| role == Some(Role::Replica)).map(|r| r.link_up),
        offset: replication.map(|r| r.offset),
        lag_bytes: None,
        used_memory: status.and_then(|s| s.server.used_memory),
        slots: status.and_then(own_slots).unwrap_or_default(),
        engine_version: status.and_then(|s| s.server.engine_version.clone()),
        last_seen_at: match &seen.agent {
            Observation::Known { value, .. } => Some(value.at),
            Observation::Unknown { since } => Some(*since),
            Observation::Absent | Observation::UnknownYet => None,
        },
    }
}

/// The node whose server another server knows at `address`.
fn node_at(records: &[NodeRecord], address: &Address) -> Option<NodeId> {
    records.iter().find(|record| record.is_at(address)).map(|record| record.id.clone())
}

fn own_slots(status: &AgentStatus) -> Option<SlotSet> {
    let me = status.cluster.as_ref()?.me()?;
    (me.role == Role::Primary).then(|| me.slots.clone())
}

fn node_state(observed: &Observed, record: &NodeRecord, seen: &ObservedNode) -> NodeState {
    let worker = observed.workers.iter().find(|w| w.name == record.worker);
    if worker.is_some_and(|w| w.state == WorkerState::Lost) {
        return NodeState::Lost;
    }
    if record.phase == NodePhase::Leaving {
        return NodeState::Draining;
    }
    let Some(status) = seen.agent.known() else {
        return match (&seen.agent, &seen.backend) {
            (Observation::Unknown { .. }, _) => NodeState::Unknown,
            (_, Observation::Known { value, .. }) if value.realised => NodeState::Joining,
            _ => NodeState::Planned,
        };
    };
    match status.server.state {
        _ if status.volume == VolumeState::Lost && !status.server.state.is_alive() => {
            NodeState::Lost
        }
        ServerState::Dead | ServerState::Hung => NodeState::Down,
        ServerState::Absent | ServerState::Starting | ServerState::Loading => NodeState::Joining,
        ServerState::Serving | ServerState::Busy => {
            let replica = status.replication.as_ref().filter(|r| r.role == Role::Replica);
            match replica {
                Some(replica) if replica.syncing || !replica.link_up => NodeState::Joining,
                _ => NodeState::Serving,
            }
        }
    }
}

/// How far a replica is behind the primary of its shard, by the offsets last seen of both.
fn lag(node: &NodeView, all: &[NodeView]) -> Option<u64> {
    if node.role != Some(Role::Replica) {
        return None;
    }
    let primary = all.iter().find(|n| n.shard == node.shard && n.role == Some(Role::Primary))?;
    Some(primary.offset?.saturating_sub(node.offset?))
}

/// The figures of an observation, which move all the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Figures(Vec<(NodeId, u64, u64)>);

impl Figures {
    pub(crate) fn of(observation: &InstanceObservation) -> Self {
        let nodes = observation.nodes.iter().map(|node| {
            // A server's own small change is no news.
            let memory = node.used_memory.map_or(0, |memory| memory.bytes() >> 16);
            (node.id.clone(), node.offset.unwrap_or(0), memory)
        });
        Self(nodes.collect())
    }

    /// How long the record with the `written` figures may stay while nothing else changes. Every
    /// record costs a flush to disk: where clients write it is kept fresh, an idle instance
    /// (whose replicas are pinged every 10 s) costs next to nothing.
    pub(crate) fn keep(&self, written: &Self) -> Millis {
        const PINGS: u64 = 1024;
        if self == written {
            return Millis::secs(120);
        }
        let is_small = self.0.len() == written.0.len()
            && self.0.iter().zip(&written.0).all(|((node, offset, memory), last)| {
                *node == last.0 && offset.abs_diff(last.1) <= PINGS && *memory == last.2
            });
        Millis::secs(if is_small { 60 } else { 10 })
    }
}

/// What of an observation has to be written at once when it changes; offsets and memory do not.
pub(crate) fn digest(observation: &InstanceObservation) -> String {
    use std::fmt::Write as _;
    let mut text = format!("{} {}", observation.generation, observation.state);
    for (kind, address) in observation.endpoints.iter().chain(&observation.inner_endpoints) {
        let _ = write!(text, " {kind}={address}");
    }
    for node in &observation.nodes {
        let _ = write!(
            text,
            " {}:{:?}:{:?}:{}:{:?}:{:?}:{:?}:{}",
            node.id,
            node.outside,
            node.role,
            node.state.as_str(),
            node.pid,
            node.replica_of,
            node.link_up,
            node.slots
        );
    }
    for step in &observation.plan.steps {
        let _ = write!(text, " +{step}");
    }
    for wait in &observation.plan.waits {
        // Two waits carry a time that runs; it is no news.
        let _ = match wait {
            Wait::AgentSilent { node, .. } => write!(text, " ?silent {node}"),
            Wait::ReplacementDelay { node, .. } => write!(text, " ?replace {node}"),
            wait => write!(text, " ?{wait}"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use larder_model::{ByteSize, EngineName, OuterAddress, WorkerName};

    use super::*;

    #[test]
    fn a_replica_of_a_node_that_announces_a_node_port_is_shown_as_its_replica() {
        let record = |id: &str, host: &str, outer| NodeRecord {
            id: NodeId::new(id).unwrap(),
            shard: 0,
            worker: WorkerName::new("w1").unwrap(),
            zone: None,
            address: Some(Address::new(host, 6379)),
            outer,
            bootstrap: false,
            phase: NodePhase::Wanted,
            created_at: Timestamp(0),
            engine: EngineName::new("redis-7.0").unwrap(),
            memory: ByteSize::mib(128),
            revision: 0,
            in_line_since: Timestamp(0),
            leaving_since: None,
            overruled: false,
        };
        let outer = |port, bus_port| Some(OuterAddress { host: None, port, bus_port });
        let records = [
            record("n-1", "10.96.0.1", None),
            record("n-2", "10.96.0.2", outer(30_002, None)),
            // Redis 6.2: the worker's address with a port of all workers.
            record("n-3", "10.96.0.3", outer(30_003, Some(30_103))),
        ];
        let at = |host: &str, port| {
            node_at(&records, &Address::new(host, port)).map(|node| node.to_string())
        };
        assert_eq!(at("10.96.0.1", 6379).as_deref(), Some("n-1"));
        assert_eq!(at("10.96.0.2", 30_002).as_deref(), Some("n-2"));
        assert_eq!(at("192.168.0.7", 30_003).as_deref(), Some("n-3"));
        assert_eq!(at("10.96.0.1", 30_002), None);
    }

    #[test]
    fn records_of_idle_instances_stay_longer_than_those_of_busy_ones() {
        let node = NodeId::new("n-1").unwrap();
        let figures = |offset, memory| Figures(vec![(node.clone(), offset, memory)]);
        let idle = figures(100, 5);
        assert_eq!(figures(100, 5).keep(&idle), Millis::secs(120));
        assert_eq!(figures(142, 5).keep(&idle), Millis::secs(60), "pings");
        assert_eq!(figures(9000, 5).keep(&idle), Millis::secs(10), "writes");
        assert_eq!(figures(100, 6).keep(&idle), Millis::secs(10), "memory");
        assert_eq!(Figures(Vec::new()).keep(&idle), Millis::secs(10), "another node");
    }
}
