//! Wishes that the checks ask backends for.

use larder_model::agent::{Fence, Member, NodeConfig};
use larder_model::local::NodeSecrets;
use larder_model::{
    Address, ByteSize, ElectionPolicy, EndpointKind, EngineName, Expose, InstanceId, InstanceName,
    Millis, NodeId, NodeMode, Secret,
};

use super::Failure;
use crate::{EndpointSpec, NodeExposure};

pub(super) fn fence(controller_epoch: u64, generation: u64) -> Fence {
    Fence { controller_epoch, generation }
}

pub(super) fn instance(text: &str) -> Result<InstanceId, Failure> {
    InstanceId::new(text).map_err(|error| error.to_string())
}

pub(super) fn node(text: &str) -> Result<NodeId, Failure> {
    NodeId::new(text).map_err(|error| error.to_string())
}

/// A node of a cluster-mode instance: the mode whose addresses are remembered by others.
pub(super) fn config(
    instance: &InstanceId,
    node: &NodeId,
    address: &Address,
    engine: &EngineName,
    generation: u64,
) -> Result<NodeConfig, Failure> {
    let member =
        Member { outer: None, node: node.clone(), shard: 0, zone: None, address: address.clone() };
    Ok(NodeConfig {
        outer: None,
        renderer: 1,
        node: node.clone(),
        instance: instance.clone(),
        instance_name: InstanceName::new("conformance").map_err(|error| error.to_string())?,
        shard: 0,
        zone: None,
        mode: NodeMode::Clustered,
        engine: engine.clone(),
        address: address.clone(),
        memory: ByteSize::mib(128),
        maxmemory: ByteSize::mib(102),
        cluster_node_timeout: Millis(5000),
        bootstrap: true,
        initialized: false,
        members: vec![member],
        worker: None,
        storage_class: None,
        parameters: std::collections::BTreeMap::new(),
        parameters_revision: 0,
        chained: false,
        upstream: None,
        has_read_endpoint: true,
        election: ElectionPolicy::default(),
        generation,
    })
}

pub(super) fn secrets() -> NodeSecrets {
    NodeSecrets::new(
        Secret::new("conformance-system-password"),
        Secret::new("0".repeat(64)),
        Secret::new("conformance-agents"),
    )
}

pub(super) fn endpoint(
    instance: &InstanceId,
    kind: EndpointKind,
    members: Vec<Member>,
    generation: u64,
) -> EndpointSpec {
    EndpointSpec { expose: None, instance: instance.clone(), kind, members, generation }
}

/// A way from outside that every container cluster with an outside has.
pub(super) fn exposure(
    instance: &InstanceId,
    node: &NodeId,
    address: &Address,
    engine: &EngineName,
) -> NodeExposure {
    NodeExposure {
        instance: instance.clone(),
        node: node.clone(),
        address: address.clone(),
        way: Expose::NodePort,
        engine: engine.clone(),
        known: None,
    }
}
