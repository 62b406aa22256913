//! The agents of this machine, over their unix sockets.

use async_trait::async_trait;
use larder_agent::client::{AgentClient, ClientError};
use larder_cluster::{AgentError, Agents};
use larder_model::agent::{AgentStatus, Fence, Order};
use larder_model::{InstanceId, NodeId};

use crate::cluster::LocalCluster;

impl LocalCluster {
    fn agent(&self, node: &NodeId) -> AgentClient {
        AgentClient::new(self.run_dir().agent_socket(node))
    }
}

#[async_trait]
impl Agents for LocalCluster {
    async fn status(
        &self,
        _instance: &InstanceId,
        node: &NodeId,
    ) -> Result<AgentStatus, AgentError> {
        self.agent(node).status().await.map_err(|error| said(node, error))
    }

    async fn next_status(
        &self,
        _instance: &InstanceId,
        node: &NodeId,
        agent_run: &str,
        version: u64,
    ) -> Result<AgentStatus, AgentError> {
        self.agent(node).next_status(agent_run, version).await.map_err(|error| said(node, error))
    }

    async fn order(
        &self,
        _instance: &InstanceId,
        node: &NodeId,
        fence: Fence,
        order: &Order,
    ) -> Result<(), AgentError> {
        self.agent(node).order(fence, order).await.map_err(|error| said(node, error))
    }
}

fn said(node: &NodeId, error: ClientError) -> AgentError {
    match error {
        ClientError::Silent { reason, .. } => AgentError::Silent { node: node.clone(), reason },
        ClientError::Stale { seen } => AgentError::Stale { node: node.clone(), seen },
        ClientError::Refused(refusal) => AgentError::Refused(refusal),
    }
}
