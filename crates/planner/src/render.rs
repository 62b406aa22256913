//! What an agent is told about its node.

use crate::chain;
use larder_model::agent::{Member, NodeConfig};
use larder_model::{Desired, EndpointKind, InstanceSpec, Millis, NodePhase, NodeRecord};

/// Version of this renderer, stamped on what it makes. It rises when the same wish would be
/// rendered differently.
pub const RENDERER: u32 = 1;

/// The generation that nodes are measured against. Callers let `desired.generation` rise with
/// every change of the spec, of a node record, of an address and of `initialized`, so it is
/// simply that.
pub fn config_generation(desired: &Desired) -> u64 {
    desired.generation
}

/// The nodes that their peers have to know, sorted by id: the wanted ones, and those on their way
/// out for as long as they have a record. Nodes without an address are left out.
pub fn members(desired: &Desired) -> Vec<Member> {
    members_of(desired.nodes.iter())
}

/// The nodes that an endpoint may lead to, sorted by id: the wanted ones that have an address,
/// which is not to say that they exist yet.
pub fn endpoint_members(desired: &Desired) -> Vec<Member> {
    members_of(desired.nodes.iter().filter(|record| record.phase == NodePhase::Wanted))
}

fn members_of<'a>(records: impl Iterator<Item = &'a NodeRecord>) -> Vec<Member> {
    let mut members: Vec<Member> = records
        .filter_map(|record| {
            Some(Member {
                node: record.id.clone(),
                shard: record.shard,
                zone: record.zone.clone(),
                address: record.address.clone()?,
                outer: record.outer.clone(),
            })
        })
        .collect();
    members.sort_by(|a, b| a.node.cmp(&b.node));
    members
}

/// The configuration of one node.
///
/// `None` while the node has no address, or none for clients outside who have to reach it; before the instance has served for the first time also
/// while any wanted node is missing or has none, so that every agent knows all its peers from
/// its first moment and the first election is between all of them.
pub fn node_config(desired: &Desired, record: &NodeRecord) -> Option<NodeConfig> {
    let address = record.address.clone()?;
    if !can_be_reached(desired, record) {
        return None;
    }
    if !desired.initialized && !everybody_has_an_address(desired) {
        return None;
    }
    let spec = &desired.spec;
    Some(NodeConfig {
        renderer: RENDERER,
        node: record.id.clone(),
        instance: spec.id.clone(),
        instance_name: spec.name.clone(),
        shard: record.shard,
        zone: record.zone.clone(),
        mode: spec.architecture.node_mode(),
        engine: record.engine.clone(),
        address,
        outer: record.outer.clone(),
        memory: record.memory,
        maxmemory: InstanceSpec::maxmemory_of(record.memory),
        cluster_node_timeout: node_timeout(desired),
        parameters: spec.parameters.clone(),
        parameters_revision: spec.parameters_revision,
        chained: spec.chained,
        upstream: chain::upstream(desired, record),
        bootstrap: record.bootstrap,
        initialized: desired.initialized,
        members: members(desired),
        election: desired.policy.election,
        worker: Some(record.worker.clone()),
        storage_class: Some(spec.storage_class.clone()),
        has_read_endpoint: spec.architecture.endpoints().contains(&EndpointKind::Read),
        generation: config_generation(desired),
    })
}

/// A parameter of the servers, and a measure of Larder's own failover.
fn node_timeout(desired: &Desired) -> Millis {
    let set = desired.spec.parameters.get("cluster-node-timeout");
    let set = set.and_then(|value| value.parse().ok()).map(Millis);
    set.unwrap_or(desired.policy.cluster_node_timeout)
}

/// The node has every address that it announces.
pub(crate) fn can_be_reached(desired: &Desired, record: &NodeRecord) -> bool {
    record.address.is_some() && (desired.spec.exposes_nodes().is_none() || record.outer.is_some())
}

/// Every node that the spec asks for has a record with its addresses.
pub(crate) fn everybody_has_an_address(desired: &Desired) -> bool {
    let mut wanted = 0;
    for record in desired.nodes.iter().filter(|record| record.phase == NodePhase::Wanted) {
        if !can_be_reached(desired, record) {
            return false;
        }
        wanted += 1;
    }
    wanted >= desired.spec.node_count()
}
