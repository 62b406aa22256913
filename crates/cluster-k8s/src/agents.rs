//! The agents in their pods, over TLS with the instance's key, each by a stream that stays open.
//!
//! A new stream through the API server is a request of it, and takes sixty times as long as a
//! question on one that is open. So a pod that is known not to run is not asked, and one that was
//! silent is left alone for a while, unless something of it has changed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Pod, Secret};
use larder_agent::wire::{Dial, InstanceKey, TcpDial};
use larder_agent::{AgentClient, ClientError};
use larder_cluster::{AgentError, Agents};
use larder_model::agent::{AgentStatus, Fence, Order, ProblemCode};
use larder_model::kube::{AGENT_PORT, node_name, pod_name};
use larder_model::local::NodeSecrets;
use larder_model::{Address, InstanceId, NodeId, Secret as Password};
use tokio::time::Instant;

use crate::cluster::KubeCluster;
use crate::forward::ForwardDial;
use crate::options::Reach;

/// For the password of an instance, before the call itself.
const KEY_DEADLINE: Duration = Duration::from_secs(2);
/// First and longest rest of an agent that was silent.
const REST: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// The ways to the agents that were spoken to.
#[derive(Default)]
pub(crate) struct KeptAgents {
    kept: Mutex<HashMap<NodeId, Kept>>,
}

struct Kept {
    instance: InstanceId,
    client: AgentClient,
    /// What the client's key is made of.
    password: Password,
    /// The newest version of the Secret that is known to hold this password.
    secret: Option<String>,
    rest: Option<Rest>,
}

/// Of an agent that was silent.
struct Rest {
    times: u32,
    until: Instant,
    /// The version of its pod then.
    pod: Option<String>,
    reason: String,
}

impl KeptAgents {
    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the streams to the agent of a node.
    pub(crate) fn forget_node(&self, node: &NodeId) {
        self.lock().remove(node);
    }

    /// Closes the streams to an instance's agents.
    pub(crate) fn forget(&self, instance: &InstanceId) {
        self.lock().retain(|_, kept| kept.instance != *instance);
    }

    /// The way to the agent, if there is one with the key in this Secret; or why it rests.
    fn get(
        &self,
        node: &NodeId,
        secret: Option<&str>,
        pod: Option<&str>,
        now: Instant,
    ) -> Result<Option<AgentClient>, String> {
        let mut all = self.lock();
        let Some(kept) = all.get_mut(node) else { return Ok(None) };
        if let Some(rest) = &kept.rest
            && now < rest.until
            && rest.pod.as_deref() == pod
        {
            return Err(rest.reason.clone());
        }
        let same = secret.is_none() || kept.secret.as_deref() == secret;
        Ok(same.then(|| kept.client.clone()))
    }

    /// The way to the agent, if it has the key of this password: the Secret holds more than that,
    /// and changes with every configuration.
    fn of_password(
        &self,
        node: &NodeId,
        password: &Password,
        secret: Option<&str>,
    ) -> Option<AgentClient> {
        let mut all = self.lock();
        let kept = all.get_mut(node).filter(|kept| kept.password == *password)?;
        kept.secret = secret.map(str::to_owned);
        Some(kept.client.clone())
    }

    fn keep(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        client: &AgentClient,
        password: Password,
        secret: Option<String>,
    ) {
        let mut all = self.lock();
        let rest = all.remove(node).and_then(|kept| kept.rest);
        let (instance, client) = (instance.clone(), client.clone());
        all.insert(node.clone(), Kept { instance, client, password, secret, rest });
    }

    fn spoke(&self, node: &NodeId) {
        if let Some(kept) = self.lock().get_mut(node) {
            kept.rest = None;
        }
    }

    fn was_silent(&self, node: &NodeId, pod: Option<String>, reason: &str) {
        let mut all = self.lock();
        let Some(kept) = all.get_mut(node) else { return };
        let times = kept.rest.as_ref().filter(|rest| rest.pod == pod).map_or(0, |rest| rest.times);
        let pause = REST.0.saturating_mul(1 << times.min(10)).min(REST.1);
        let until = Instant::now() + pause;
        kept.rest = Some(Rest { times: times + 1, until, pod, reason: reason.to_owned() });
    }
}

impl KubeCluster {
    async fn agent(&self, instance: &InstanceId, node: &NodeId) -> Result<AgentClient, AgentError> {
        let silent = |reason: String| AgentError::Silent { node: node.clone(), reason };
        let mirror = self.mirror();
        let (pod, name) = (pod_name(node), node_name(node));
        if self.place.options.reach == Reach::PortForward {
            // The way leads through the API server: there is none while that is silent.
            mirror.answers().map_err(silent)?;
        }
        let seen = mirror.pod(&pod);
        let pod_version = seen.as_ref().and_then(|pod| pod.metadata.resource_version.clone());
        let secret = mirror.secret_version(&name);
        if mirror.knows_pods()
            && let Some(why) = not_running(seen.as_deref())
        {
            if seen.is_none() {
                self.agents.forget_node(node);
            }
            return Err(silent(format!("pod {pod} {why}")));
        }
        let kept = self.agents.get(node, secret.as_deref(), pod_version.as_deref(), Instant::now());
        if let Some(client) = kept.map_err(silent)? {
            return Ok(client);
        }
        let password = self.key_secret(node).await?;
        if let Some(client) = self.agents.of_password(node, &password, secret.as_deref()) {
            return Ok(client);
        }
        let dial: Arc<dyn Dial> = match self.place.options.reach {
            // The name of the node's Service; it leads to the pod also before that is ready.
            Reach::Inside => {
                let host = format!("{name}.{}.svc", self.place.options.namespace);
                Arc::new(TcpDial(Address::new(host, AGENT_PORT)))
            }
            Reach::PortForward => {
                Arc::new(ForwardDial { pods: self.place.api(), pod, port: AGENT_PORT })
            }
        };
        let client = AgentClient::kept(dial, InstanceKey::derive(&password));
        self.agents.keep(instance, node, &client, password, secret);
        Ok(client)
    }

    /// What the instance's key is made of, from the Secret of its node.
    async fn key_secret(&self, node: &NodeId) -> Result<Password, AgentError> {
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
        Ok(parsed.of_agents().clone())
    }

    /// A lease that an agent cannot reach may have been deleted.
    fn heed(&self, instance: &InstanceId, status: &AgentStatus) {
        let code = status.problem.as_ref().map(|problem| problem.code);
        if code == Some(ProblemCode::LeaseUnreachable) {
            self.place.shared.is_missed(instance);
        }
    }

    /// What an agent's answer means, and whether it is left alone now.
    fn said<T>(&self, node: &NodeId, answer: Result<T, ClientError>) -> Result<T, AgentError> {
        answer.inspect(|_| self.agents.spoke(node)).map_err(|error| match error {
            ClientError::Silent { reason, .. } => {
                let pod = self.mirror().pod(&pod_name(node));
                let version = pod.and_then(|pod| pod.metadata.resource_version.clone());
                self.agents.was_silent(node, version, &reason);
                AgentError::Silent { node: node.clone(), reason }
            }
            ClientError::Stale { seen } => AgentError::Stale { node: node.clone(), seen },
            ClientError::Refused(refusal) => AgentError::Refused(refusal),
        })
    }
}

/// Why the pod cannot be spoken to, as far as is seen.
fn not_running(pod: Option<&Pod>) -> Option<String> {
    let Some(pod) = pod else { return Some("is not there".to_owned()) };
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
    if phase != "Running" {
        return Some(format!("is {phase}"));
    }
    status.is_none_or(|status| status.pod_ip.is_none()).then(|| "has no address".to_owned())
}

#[async_trait]
impl Agents for KubeCluster {
    async fn status(
        &self,
        instance: &InstanceId,
        node: &NodeId,
    ) -> Result<AgentStatus, AgentError> {
        let agent = self.agent(instance, node).await?;
        self.said(node, agent.status().await).inspect(|status| self.heed(instance, status))
    }

    async fn next_status(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        agent_run: &str,
        version: u64,
    ) -> Result<AgentStatus, AgentError> {
        let agent = self.agent(instance, node).await?;
        let next = agent.next_status(agent_run, version).await;
        self.said(node, next).inspect(|status| self.heed(instance, status))
    }

    async fn order(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        fence: Fence,
        order: &Order,
    ) -> Result<(), AgentError> {
        let agent = self.agent(instance, node).await?;
        self.said(node, agent.order(fence, order).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> (KeptAgents, NodeId) {
        let agents = KeptAgents::default();
        let (instance, node) = (InstanceId::new("i-1").unwrap(), NodeId::new("n-1").unwrap());
        let key = InstanceKey::derive(&Password::new("p"));
        let client = AgentClient::kept(Arc::new(TcpDial(Address::new("127.0.0.1", 1))), key);
        agents.keep(&instance, &node, &client, Password::new("p"), Some("5".to_owned()));
        (agents, node)
    }

    #[test]
    fn a_silent_agent_is_left_alone_until_its_pod_changes() {
        let (agents, node) = kept();
        let pod = |version: &str| Some(version.to_owned());
        let now = Instant::now();
        assert!(agents.get(&node, Some("5"), Some("1"), now).unwrap().is_some());
        for _ in 0..9 {
            agents.was_silent(&node, pod("1"), "no answer");
        }
        let soon = now + REST.1 - Duration::from_millis(100);
        let rests = agents.get(&node, Some("5"), Some("1"), soon);
        assert_eq!(rests.err().as_deref(), Some("no answer"));
        assert!(agents.get(&node, Some("5"), Some("2"), soon).unwrap().is_some(), "another pod");
        let later = Instant::now() + REST.1;
        assert!(agents.get(&node, Some("5"), Some("1"), later).unwrap().is_some(), "rested");
        agents.was_silent(&node, pod("1"), "no answer");
        agents.spoke(&node);
        assert!(agents.get(&node, Some("5"), Some("1"), now).unwrap().is_some(), "it has spoken");
    }

    #[test]
    fn a_new_configuration_beside_the_same_password_closes_no_stream() {
        let (agents, node) = kept();
        let now = Instant::now();
        assert!(agents.get(&node, Some("6"), None, now).unwrap().is_none(), "to be looked at");
        assert!(agents.of_password(&node, &Password::new("another"), Some("6")).is_none());
        assert!(agents.of_password(&node, &Password::new("p"), Some("6")).is_some());
        assert!(agents.get(&node, Some("6"), None, now).unwrap().is_some(), "it was looked at");
    }

    #[test]
    fn a_removed_node_is_forgotten() {
        let (agents, node) = kept();
        agents.forget_node(&NodeId::new("n-2").unwrap());
        assert!(!agents.lock().is_empty());
        agents.forget_node(&node);
        assert!(agents.lock().is_empty());
    }

    #[test]
    fn another_secret_is_looked_at() {
        let (agents, node) = kept();
        let now = Instant::now();
        assert!(agents.get(&node, Some("6"), None, now).unwrap().is_none());
        assert!(agents.get(&node, None, None, now).unwrap().is_some(), "unknown is not another");
        agents.forget(&InstanceId::new("i-1").unwrap());
        assert!(agents.get(&node, Some("5"), None, now).unwrap().is_none());
    }
}
