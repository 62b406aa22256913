//! What the API asks of the agent's loop.

use larder_model::agent::{ClusterFailoverMode, Fence, Order};
use larder_model::{NodeId, Refusal, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::peers::{Heard, PeerAnswer};

/// Body of `POST /v1/peer/promise`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct PromiseRequest {
    pub(crate) epoch: u64,
    pub(crate) for_ms: u64,
}

/// Answer to a promise that was given; by the giver's monotonic clock.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct PromiseAnswer {
    pub(crate) until_ms: Timestamp,
}

/// Body of `POST /v1/peer/demote`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DemoteRequest {
    pub(crate) epoch: u64,
    pub(crate) holder: NodeId,
}

/// Body of `POST /v1/peer/fail-over`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FailOverRequest {
    pub(crate) mode: ClusterFailoverMode,
    /// Wall-clock times of the shard's failovers so far, for the node that may order the next.
    #[serde(default)]
    pub(crate) failovers: Vec<Timestamp>,
    /// Do not take over: the shard has failed over too often. Until the window has passed the
    /// server does not ask for votes by itself, either.
    #[serde(default)]
    pub(crate) hold: bool,
    /// Nothing is to be done: the failover is through and this node leads, `failovers` is for it
    /// to know.
    #[serde(default)]
    pub(crate) done: bool,
}

/// Why an order was not accepted.
#[derive(Debug)]
pub(crate) enum OrderError {
    Stale(Fence),
    Refused(Refusal),
}

type Reply<T> = oneshot::Sender<T>;

/// One thing for the loop to do. A reply that nobody waits for any more is dropped.
#[derive(Debug)]
pub(crate) enum Command {
    Ping(Reply<()>),
    Order {
        fence: Fence,
        order: Box<Order>,
        reply: Reply<Result<(), OrderError>>,
    },
    Promise {
        request: PromiseRequest,
        reply: Reply<Option<PromiseAnswer>>,
    },
    Demote {
        request: DemoteRequest,
        reply: Reply<Result<(), Refusal>>,
    },
    FailOver {
        request: FailOverRequest,
        reply: Reply<Result<(), Refusal>>,
    },
    /// The agent's own view for a peer, with a sample taken now.
    Report(Reply<PeerAnswer>),
    /// Answers of a round of questions to the peers.
    Heard(Vec<Heard>),
    /// Cluster mode: answers of the shard's other nodes to one round of questions.
    ShardHeard(Vec<(NodeId, Option<PeerAnswer>)>),
    /// Something has changed that the next status should show.
    Look,
}
