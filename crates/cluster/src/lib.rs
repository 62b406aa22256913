//! What a container cluster must be able to do, whatever it is made of: one machine, Kubernetes,
//! or the simulator.
//!
//! A backend realises nodes and endpoints and says what it holds. It decides nothing: placement,
//! order and timing are the planner's. Every call is idempotent and safe to repeat after a crash
//! of the caller at any point.

mod agents;
pub mod conformance;
pub mod sim;

pub use agents::{AgentError, Agents};

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use larder_model::agent::{Fence, Member, NodeConfig};
use larder_model::local::NodeSecrets;
use larder_model::{
    Address, BackendNode, Code, EndpointKind, EndpointStatus, EngineName, Expose, Hindrance,
    InstanceId, NodeId, OuterAddress, Refusal, Worker,
};

/// Why a backend did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClusterError {
    /// The container cluster cannot be asked just now. Everything about it is unknown.
    #[error("the container cluster `{cluster}` does not answer: {reason}")]
    Unreachable { cluster: String, reason: String },
    /// It was asked and cannot: no port, no room, no engine. Trying again helps only after
    /// somebody has changed something.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A newer controller or generation has been here.
    #[error("a newer order has been seen: {seen:?}")]
    Stale { seen: Fence },
}

impl ClusterError {
    /// Whether the same call may succeed later without anybody's help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// The answer of a container cluster that has no outside to [`Cluster::expose_node`].
    pub fn nothing_outside(cluster: &str, node: &NodeId) -> Self {
        Self::Refused(Refusal::new(
            Code::InvalidRequest,
            format!("container cluster `{cluster}` has no way to expose node {node}"),
        ))
    }
}

/// Everything a backend holds of one instance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BackendObserved {
    pub nodes: BTreeMap<NodeId, BackendNode>,
    pub endpoints: BTreeMap<EndpointKind, EndpointStatus>,
    /// What keeps nodes from coming to be, where the container cluster says so.
    pub hindrances: BTreeMap<NodeId, Hindrance>,
}

/// The wish for the endpoints of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSpec {
    pub instance: InstanceId,
    pub kind: EndpointKind,
    /// All nodes of the instance.
    pub members: Vec<Member>,
    /// How clients outside reach it; `None`: as the container cluster does by itself.
    pub expose: Option<Expose>,
    pub generation: u64,
}

/// The wish that clients outside of the container cluster reach one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeExposure {
    pub instance: InstanceId,
    pub node: NodeId,
    /// Its address inside, as it was reserved.
    pub address: Address,
    pub way: Expose,
    /// What its server can announce depends on it.
    pub engine: EngineName,
    /// What it has announced so far: kept where that can be.
    pub known: Option<OuterAddress>,
}

/// A place where nodes run.
#[async_trait]
pub trait Cluster: Send + Sync {
    /// The name users know it by.
    fn name(&self) -> &str;

    /// The workers, sorted by name.
    async fn workers(&self) -> Result<Vec<Worker>, ClusterError>;

    /// Whether nodes of a shard that share a worker are rather not placed at all; `None` where
    /// there is no such choice.
    fn spreads_strictly(&self) -> Option<bool>;

    /// Whether [`Cluster::ensure_node`] gives a node another memory while its server runs. Where it
    /// does not, a node of another memory is a new node.
    fn resizes_in_place(&self) -> bool;

    /// What is there of `instance`. A node or endpoint that is missing in the answer is absent.
    async fn observe(&self, instance: &InstanceId) -> Result<BackendObserved, ClusterError>;

    /// Every instance of which anything is there, to find what has no record.
    async fn instances(&self) -> Result<BTreeSet<InstanceId>, ClusterError>;

    /// Takes an address for the node, for as long as the node has a life. Asked again it answers
    /// the same address.
    async fn reserve_address(
        &self,
        fence: Fence,
        instance: &InstanceId,
        node: &NodeId,
    ) -> Result<Address, ClusterError>;

    /// Opens a way from outside to the node, beside its own address. Answers what its server is
    /// to announce; `None` while the container cluster has not given it an address. Removed with
    /// the node.
    ///
    /// # Errors
    /// A refusal where nothing is outside, and where the engine cannot announce it.
    async fn expose_node(
        &self,
        fence: Fence,
        wish: &NodeExposure,
    ) -> Result<Option<OuterAddress>, ClusterError>;

    /// Makes the node exist and its agent run; a node that exists is brought to `config` without
    /// a restart of its server. A lost volume is *not* made anew with data in it: the agent
    /// sees the loss and says so.
    async fn ensure_node(
        &self,
        fence: Fence,
        config: &NodeConfig,
        secrets: &NodeSecrets,
    ) -> Result<(), ClusterError>;

    /// Removes the node for good: its server, agent, volume and address. Answers before it is
    /// done; [`Cluster::observe`] tells when it is.
    async fn remove_node(
        &self,
        fence: Fence,
        instance: &InstanceId,
        node: &NodeId,
    ) -> Result<(), ClusterError>;

    /// Makes the endpoint exist. Its address never changes while the instance lives.
    async fn ensure_endpoint(&self, fence: Fence, spec: &EndpointSpec) -> Result<(), ClusterError>;

    /// Removes the endpoint and frees its address.
    async fn remove_endpoint(
        &self,
        fence: Fence,
        instance: &InstanceId,
        kind: EndpointKind,
    ) -> Result<(), ClusterError>;

    /// Removes what the nodes of the instance shared: lease, route, folders. Called when no node
    /// and no endpoint is left; also for instances without a record.
    async fn remove_instance(
        &self,
        fence: Fence,
        instance: &InstanceId,
    ) -> Result<(), ClusterError>;
}
