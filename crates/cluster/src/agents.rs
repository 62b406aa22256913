//! How `serve` speaks to agents, whatever carries the bytes.

use async_trait::async_trait;
use larder_model::agent::{AgentStatus, Fence, Order};
use larder_model::{InstanceId, NodeId, Refusal};

/// Why an agent did not answer as hoped.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AgentError {
    /// No answer: the node's state is unknown, not bad.
    #[error("the agent of node {node} does not answer: {reason}")]
    Silent { node: NodeId, reason: String },
    /// The order is older than what the agent has seen.
    #[error("the agent of node {node} has seen a newer order: {seen:?}")]
    Stale { node: NodeId, seen: Fence },
    /// The agent understood and will not.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Every call has its own deadline; a silent agent delays nobody else.
#[async_trait]
pub trait Agents: Send + Sync {
    /// What the agent says now.
    async fn status(&self, instance: &InstanceId, node: &NodeId)
    -> Result<AgentStatus, AgentError>;

    /// Waits until the agent has news after `(agent_run, version)`, at most about 4 s, then
    /// answers what it says. Cancel-safe.
    async fn next_status(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        agent_run: &str,
        version: u64,
    ) -> Result<AgentStatus, AgentError>;

    /// Gives an order. `Ok` means that it was accepted, not that it had its effect.
    async fn order(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        fence: Fence,
        order: &Order,
    ) -> Result<(), AgentError>;
}
