//! Questions to the agents of other nodes: all at once, each with its own deadline.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use larder_election::PeerReport;
use larder_model::agent::{ClusterView, Member};
use larder_model::local::RunDir;
use larder_model::{Address, Millis, NodeId, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::client::{AgentClient, ClientError};
use crate::clock;
use crate::command::{Command, DemoteRequest, FailOverRequest, PromiseAnswer, PromiseRequest};
use crate::wire::{InstanceKey, TcpDial};

/// No peer is waited for longer than this.
pub(crate) const DEADLINE: Duration = Duration::from_millis(300);

/// What became of one question.
#[derive(Debug)]
pub(crate) enum Heard {
    Report { node: NodeId, sent: Timestamp, report: Option<Box<PeerReport>> },
    Promise { node: NodeId, sent: Timestamp, epoch: u64, for_: Millis, given: bool },
}

/// A peer's answer to `GET /v1/peer`: the election's report, and in cluster mode what its server
/// says of the cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PeerAnswer {
    #[serde(flatten)]
    pub(crate) report: PeerReport,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cluster: Option<ClusterView>,
    /// Cluster mode: for how long its server process has been running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) up_for: Option<Millis>,
    /// Cluster mode: it was started as a replica and has not been in sync since.
    #[serde(default)]
    pub(crate) behind: bool,
}

/// Speaks to the other agents of the instance.
#[derive(Clone, Debug)]
pub(crate) struct Peers {
    reach: Reach,
    /// Where the members' servers are, for those whose agents are beside them.
    members: Arc<RwLock<BTreeMap<NodeId, Address>>>,
}

/// How the agents of the instance reach each other.
#[derive(Clone, Debug)]
pub(crate) enum Reach {
    /// Unix sockets of one machine.
    Sockets(RunDir),
    /// The hosts of the nodes' addresses, at one port, with the instance's key.
    Network { port: u16, key: InstanceKey },
}

impl Peers {
    pub(crate) fn new(reach: Reach) -> Self {
        Self { reach, members: Arc::default() }
    }

    /// The members are these now.
    pub(crate) fn learn(&self, members: &[Member]) {
        let known = members.iter().map(|m| (m.node.clone(), m.address.clone())).collect();
        *self.members.write().unwrap_or_else(PoisonError::into_inner) = known;
    }

    /// # Errors
    /// [`ClientError::Silent`] for a node that is no member any more: nobody looks for it.
    fn client(&self, node: &NodeId) -> Result<AgentClient, ClientError> {
        match &self.reach {
            Reach::Sockets(run_dir) => Ok(AgentClient::new(run_dir.agent_socket(node))),
            Reach::Network { port, key } => {
                let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
                let Some(address) = members.get(node) else {
                    let reason = "it is no member of the instance any more".to_owned();
                    return Err(ClientError::Silent { target: node.to_string(), reason });
                };
                let dial = TcpDial(Address::new(address.host.clone(), *port));
                Ok(AgentClient::over(Arc::new(dial), key.clone()))
            }
        }
    }

    async fn post<T: Serialize + Sync>(
        &self,
        node: &NodeId,
        path: &str,
        body: &T,
    ) -> Result<(), ClientError> {
        self.client(node)?.post(path, body, DEADLINE).await.map(drop)
    }

    /// Asks for a report. Never takes longer than [`DEADLINE`].
    pub(crate) async fn report(&self, node: &NodeId) -> Option<PeerAnswer> {
        let answer = match self.client(node) {
            Ok(client) => client.get::<PeerAnswer>("/v1/peer", DEADLINE).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(answer) if answer.report.node == *node => Some(answer),
            Ok(answer) => {
                tracing::warn!(%node, claims = %answer.report.node, "peer answers as another node");
                None
            }
            Err(error) => {
                tracing::debug!(%node, %error, "peer silent");
                None
            }
        }
    }

    /// Asks all of `members`; answers go to `loop_` one by one as they come.
    pub(crate) fn ask_reports(&self, members: &[Member], loop_: &mpsc::Sender<Command>) {
        for member in members {
            let (peers, node, loop_) = (self.clone(), member.node.clone(), loop_.clone());
            let sent = clock::monotonic();
            tokio::spawn(async move {
                let report = peers.report(&node).await.map(|answer| Box::new(answer.report));
                let _ =
                    loop_.send(Command::Heard(vec![Heard::Report { node, sent, report }])).await;
            });
        }
    }

    /// Asks all of `members` to promise; answers go to `loop_`.
    pub(crate) fn ask_promises(
        &self,
        members: &[Member],
        epoch: u64,
        for_: Millis,
        loop_: &mpsc::Sender<Command>,
    ) {
        for member in members {
            let (peers, node, loop_) = (self.clone(), member.node.clone(), loop_.clone());
            let sent = clock::monotonic();
            tokio::spawn(async move {
                let request = PromiseRequest { epoch, for_ms: for_.0 };
                let asked = async {
                    let client = peers.client(&node)?;
                    let body = client.post("/v1/peer/promise", &request, DEADLINE).await?;
                    client.parse::<PromiseAnswer>(&body)
                };
                let given = asked.await.is_ok();
                let heard = Heard::Promise { node, sent, epoch, for_, given };
                let _ = loop_.send(Command::Heard(vec![heard])).await;
            });
        }
    }

    /// Tells the agent of a former primary that its server shall take no more writes.
    pub(crate) async fn demote(
        &self,
        old: &NodeId,
        request: &DemoteRequest,
    ) -> Result<(), ClientError> {
        self.post(old, "/v1/peer/demote", request).await
    }

    /// Asks all of `members` at once; the answers go to `loop_` together, within [`DEADLINE`].
    pub(crate) fn ask_shard(&self, members: &[Member], loop_: &mpsc::Sender<Command>) {
        let (peers, loop_) = (self.clone(), loop_.clone());
        let nodes: Vec<NodeId> = members.iter().map(|member| member.node.clone()).collect();
        tokio::spawn(async move {
            let questions = nodes.into_iter().map(|node| {
                let peers = peers.clone();
                async move {
                    let answer = peers.report(&node).await;
                    (node, answer)
                }
            });
            let answers = futures::future::join_all(questions).await;
            let _ = loop_.send(Command::ShardHeard(answers)).await;
        });
    }

    /// Tells the agent of a cluster replica to take its dead primary's part, or to hold.
    pub(crate) async fn fail_over(
        &self,
        node: &NodeId,
        request: &FailOverRequest,
    ) -> Result<(), ClientError> {
        self.post(node, "/v1/peer/fail-over", request).await
    }
}

#[cfg(test)]
mod tests {
    use larder_model::Secret;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_node_that_is_no_member_any_more_is_not_dialled() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("free port");
        let port = listener.local_addr().expect("bound").port();
        let key = InstanceKey::derive(&Secret::new("system-password"));
        let peers = Peers::new(Reach::Network { port, key });
        // As where a node's id is the name of its Service: it leads to whoever has it.
        let node = NodeId::new("localhost").expect("valid");
        let called = tokio::time::timeout(DEADLINE * 2, listener.accept());
        let (called, answer) = tokio::join!(called, peers.report(&node));
        assert!(called.is_err() && answer.is_none(), "{called:?}");
        let request = DemoteRequest { epoch: 1, holder: node.clone() };
        let refused = peers.demote(&node, &request).await;
        assert!(matches!(refused, Err(ClientError::Silent { .. })), "{refused:?}");
    }
}
