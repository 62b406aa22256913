//! The agents in their pods, over TLS with the instance's key.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Secret;
use larder_agent::wire::{Dial, InstanceKey, TcpDial};
use larder_agent::{AgentClient, ClientError};
use larder_cluster::{AgentError, Agents};
use larder_model::agent::{AgentStatus, Fence, Order};
use larder_model::kube::{AGENT_PORT, node_name, pod_name};
use larder_model::local::NodeSecrets;
use larder_model::{Address, InstanceId, NodeId};

use crate::cluster::KubeCluster;
use crate::forward::ForwardDial;
use crate::options::Reach;

/// For the key of an instance, before the call itself.
const KEY_DEADLINE: Duration = Duration::from_secs(2);

impl KubeCluster {
    async fn agent(&self, instance: &InstanceId, node: &NodeId) -> Result<AgentClient, AgentError> {
        let key = self.key(instance, node).await?;
        let dial: Arc<dyn Dial> = match self.place.options.reach {
            // The name of the node's Service; it leads to the pod also before that is ready.
            Reach::Inside => {
                let host = format!("{}.{}.svc", node_name(node), self.place.options.namespace);
                Arc::new(TcpDial(Address::new(host, AGENT_PORT)))
            }
            Reach::PortForward => Arc::new(ForwardDial {
                pods: self.place.api(),
                pod: pod_name(node),
                port: AGENT_PORT,
            }),
        };
        Ok(AgentClient::over(dial, key))
    }

    /// The instance's key, from the Secret of one of its nodes.
    async fn key(&self, instance: &InstanceId, node: &NodeId) -> Result<InstanceKey, AgentError> {
        let kept = self.keys.lock().unwrap_or_else(PoisonError::into_inner).get(instance).cloned();
        if let Some(key) = kept {
            return Ok(key);
        }
        let silent = |reason: String| AgentError::Silent { node: node.clone(), reason };
        let secrets = self.place.api::<Secret>();
        let name = node_name(node);
        let secret = tokio::time::timeout(KEY_DEADLINE, secrets.get(&name))
            .await
            .map_err(|_| silent(format!("reading Secret {name}: no answer in time")))?
            .map_err(|error| silent(format!("reading Secret {name}: {error}")))?;
        let data = secret.data.unwrap_or_default();
        let bytes = data.get("secrets.json").map(|bytes| bytes.0.as_slice()).unwrap_or_default();
        let parsed: NodeSecrets = serde_json::from_slice(bytes)
            .map_err(|_| silent(format!("Secret {name} does not hold what an agent needs")))?;
        let key = InstanceKey::derive(&parsed.system_password);
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.insert(instance.clone(), key.clone());
        Ok(key)
    }

    fn said(&self, instance: &InstanceId, node: &NodeId, error: ClientError) -> AgentError {
        match error {
            ClientError::Silent { reason, .. } => {
                // The key may be another one by now; it costs little to look.
                self.keys.lock().unwrap_or_else(PoisonError::into_inner).remove(instance);
                AgentError::Silent { node: node.clone(), reason }
            }
            ClientError::Stale { seen } => AgentError::Stale { node: node.clone(), seen },
            ClientError::Refused(refusal) => AgentError::Refused(refusal),
        }
    }
}

#[async_trait]
impl Agents for KubeCluster {
    async fn status(
        &self,
        instance: &InstanceId,
        node: &NodeId,
    ) -> Result<AgentStatus, AgentError> {
        let agent = self.agent(instance, node).await?;
        agent.status().await.map_err(|error| self.said(instance, node, error))
    }

    async fn next_status(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        agent_run: &str,
        version: u64,
    ) -> Result<AgentStatus, AgentError> {
        let agent = self.agent(instance, node).await?;
        let news = agent.next_status(agent_run, version).await;
        news.map_err(|error| self.said(instance, node, error))
    }

    async fn order(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        fence: Fence,
        order: &Order,
    ) -> Result<(), AgentError> {
        let agent = self.agent(instance, node).await?;
        agent.order(fence, order).await.map_err(|error| self.said(instance, node, error))
    }
}
