//! What agents say: asked anew each time, or watched in the background.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use larder_cluster::Agents;
use larder_model::agent::AgentStatus;
use larder_model::{InstanceId, NodeId, Observation};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::tick::Clock;

/// Where a tick gets the agents' words from.
#[async_trait]
pub trait Statuses: Send + Sync {
    /// What is known of each node, in the order asked for. Never blocks for longer than one
    /// agent's deadline.
    async fn statuses(
        &self,
        instance: &InstanceId,
        nodes: &[NodeId],
    ) -> Vec<Observation<AgentStatus>>;

    /// Forgets all nodes of `instance` except `nodes`.
    fn retain(&self, instance: &InstanceId, nodes: &[NodeId]);
}

/// Asks every agent in every tick. For the simulator, where asking costs nothing.
pub struct DirectStatuses {
    agents: Arc<dyn Agents>,
    clock: Arc<dyn Clock>,
    silent_since: Mutex<HashMap<NodeId, larder_model::Timestamp>>,
}

impl DirectStatuses {
    pub fn new(agents: Arc<dyn Agents>, clock: Arc<dyn Clock>) -> Self {
        Self { agents, clock, silent_since: Mutex::default() }
    }
}

#[async_trait]
impl Statuses for DirectStatuses {
    async fn statuses(
        &self,
        instance: &InstanceId,
        nodes: &[NodeId],
    ) -> Vec<Observation<AgentStatus>> {
        let answers = join_all(nodes.iter().map(|node| self.agents.status(instance, node))).await;
        let now = self.clock.now();
        let mut silent_since = self.silent_since.lock().unwrap_or_else(PoisonError::into_inner);
        nodes
            .iter()
            .zip(answers)
            .map(|(node, answer)| match answer {
                Ok(value) => {
                    silent_since.remove(node);
                    Observation::Known { value, at: now }
                }
                Err(_) => {
                    let since = *silent_since.entry(node.clone()).or_insert(now);
                    Observation::Unknown { since }
                }
            })
            .collect()
    }

    fn retain(&self, _instance: &InstanceId, _nodes: &[NodeId]) {}
}

/// How long one watcher waits for an answer that comes within 4 s also without news, before it
/// asks on another way.
const REFRESH: Duration = Duration::from_secs(6);
/// The first pause after an agent did not answer; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A watcher that has just been started gets this long for its agent's first word, so that the
/// first round after a start of `serve` sees what is and not that nothing was asked yet.
const FIRST_WORD: Duration = Duration::from_millis(500);

/// What is known of each node, and who waits for it.
#[derive(Default)]
struct Known {
    statuses: Mutex<HashMap<NodeId, Observation<AgentStatus>>>,
    changed: Notify,
}

impl Known {
    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Observation<AgentStatus>>> {
        self.statuses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps one long poll open to every agent; news activates the instance at once.
pub struct WatchedStatuses {
    agents: Arc<dyn Agents>,
    clock: Arc<dyn Clock>,
    known: Arc<Known>,
    watchers: Mutex<HashMap<NodeId, (InstanceId, JoinHandle<()>)>>,
    activate: Arc<dyn Fn(&InstanceId) + Send + Sync>,
}

impl WatchedStatuses {
    pub fn new(
        agents: Arc<dyn Agents>,
        clock: Arc<dyn Clock>,
        activate: Arc<dyn Fn(&InstanceId) + Send + Sync>,
    ) -> Self {
        Self { agents, clock, known: Arc::default(), watchers: Mutex::default(), activate }
    }

    fn ensure_watcher(&self, instance: &InstanceId, node: &NodeId) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        if watchers.contains_key(node) {
            return;
        }
        let watcher = Watcher {
            agents: self.agents.clone(),
            clock: self.clock.clone(),
            known: self.known.clone(),
            activate: self.activate.clone(),
            instance: instance.clone(),
            node: node.clone(),
        };
        watchers.insert(node.clone(), (instance.clone(), tokio::spawn(watcher.run())));
    }
}

#[async_trait]
impl Statuses for WatchedStatuses {
    async fn statuses(
        &self,
        instance: &InstanceId,
        nodes: &[NodeId],
    ) -> Vec<Observation<AgentStatus>> {
        for node in nodes {
            self.ensure_watcher(instance, node);
        }
        let all_known = async {
            loop {
                // Listening before looking: what comes in between wakes us again.
                let changed = self.known.changed.notified();
                let mut changed = std::pin::pin!(changed);
                changed.as_mut().enable();
                if nodes.iter().all(|node| self.known.lock().contains_key(node)) {
                    return;
                }
                changed.await;
            }
        };
        // Who has not said a word by then is not known yet.
        let _ = tokio::time::timeout(FIRST_WORD, all_known).await;
        let known = self.known.lock();
        nodes
            .iter()
            .map(|node| known.get(node).cloned().unwrap_or(Observation::UnknownYet))
            .collect()
    }

    fn retain(&self, instance: &InstanceId, nodes: &[NodeId]) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = self.known.lock();
        watchers.retain(|node, (of, task)| {
            let keep = of != instance || nodes.contains(node);
            if !keep {
                task.abort();
                known.remove(node);
            }
            keep
        });
    }
}

impl Drop for WatchedStatuses {
    fn drop(&mut self) {
        let watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, task) in watchers.values() {
            task.abort();
        }
    }
}

struct Watcher {
    agents: Arc<dyn Agents>,
    clock: Arc<dyn Clock>,
    known: Arc<Known>,
    activate: Arc<dyn Fn(&InstanceId) + Send + Sync>,
    instance: InstanceId,
    node: NodeId,
}

impl Watcher {
    async fn run(self) {
        let mut last: Option<(String, u64)> = None;
        let mut pause = FIRST_PAUSE;
        loop {
            let answer = match &last {
                None => self.agents.status(&self.instance, &self.node).await,
                Some((agent_run, version)) => {
                    let news =
                        self.agents.next_status(&self.instance, &self.node, agent_run, *version);
                    match tokio::time::timeout(REFRESH, news).await {
                        Ok(answer) => answer,
                        Err(_) => self.agents.status(&self.instance, &self.node).await,
                    }
                }
            };
            match answer {
                Ok(status) => {
                    pause = FIRST_PAUSE;
                    let stamp = (status.agent_run.clone(), status.version);
                    let is_news = last.as_ref() != Some(&stamp);
                    last = Some(stamp);
                    let at = self.clock.now();
                    self.set(Observation::Known { value: status, at });
                    if is_news {
                        (self.activate)(&self.instance);
                    }
                }
                Err(error) => {
                    tracing::debug!(node = %self.node, %error, "agent silent");
                    let was_known = last.take().is_some();
                    self.set_unknown();
                    if was_known {
                        (self.activate)(&self.instance);
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    fn set(&self, observation: Observation<AgentStatus>) {
        let mut known = self.known.lock();
        known.insert(self.node.clone(), observation);
        drop(known);
        self.known.changed.notify_waiters();
    }

    /// Keeps the time since when nothing was heard.
    fn set_unknown(&self) {
        let mut known = self.known.lock();
        let entry = known.entry(self.node.clone()).or_default();
        if !matches!(entry, Observation::Unknown { .. }) {
            *entry = Observation::Unknown { since: self.clock.now() };
        }
        drop(known);
        self.known.changed.notify_waiters();
    }
}
