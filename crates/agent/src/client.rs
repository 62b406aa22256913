//! A client of an agent's API, for `serve` and for other agents: over its unix socket on one
//! machine, over TLS with the instance's key elsewhere.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use larder_model::agent::{AgentStatus, Fence, Order};
use larder_model::local::RunDir;
use larder_model::{NodeId, Refusal};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::wire::{Dial, InstanceKey, Stream};

/// An answer is never larger than this: a status has at most `EVENTS_KEPT` events and 40 nodes.
const MAX_ANSWER: usize = 4 << 20;

/// How long a short call may take.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// How long an agent is asked to hold a long-poll back: then it answers with newer offsets.
const HOLD: Duration = Duration::from_secs(4);

/// How long an agent may hold a long-poll back, with room for the answer. One of an older version
/// holds it for 20 s whatever it is asked.
pub const POLL_TIMEOUT: Duration = Duration::from_secs(25);

/// Streams that wait for their next question: one that polls, and one for orders.
const IDLE: usize = 2;

/// Body of `POST /v1/order`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OrderRequest {
    pub fence: Fence,
    pub order: Order,
}

/// Why a call to an agent did not succeed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// No answer, or one that cannot be read: the node's state is unknown.
    #[error("no answer on {target}: {reason}")]
    Silent { target: String, reason: String },
    /// The order is older than what the agent has seen.
    #[error(
        "the agent has seen a newer order: generation {} of controller epoch {}",
        seen.generation, seen.controller_epoch
    )]
    Stale { seen: Fence },
    /// The agent understood and will not.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Speaks to one agent. Cheap; each call opens its own connection, so a dead agent is noticed at
/// once and nothing has to be kept alive, unless it was made by [`AgentClient::kept`].
#[derive(Clone)]
pub struct AgentClient {
    way: Way,
}

#[derive(Clone)]
enum Way {
    Socket(PathBuf),
    Network { dial: Arc<dyn Dial>, key: InstanceKey },
    Kept(Arc<Streams>),
}

/// A way where opening a stream is dear.
struct Streams {
    dial: Arc<dyn Dial>,
    key: InstanceKey,
    idle: Mutex<Vec<Open>>,
}

impl Streams {
    fn take(&self) -> Option<Open> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|open| !open.sender.is_closed());
        // The one used last: it is the likeliest to be alive.
        idle.pop()
    }

    fn put_back(&self, open: Open) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE && !open.sender.is_closed() {
            idle.push(open);
        }
    }

    fn close_all(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// A stream and the task that carries its bytes: they end together.
struct Open {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "{}", path.display()),
            Self::Network { dial, .. } => f.write_str(&dial.target()),
            Self::Kept(streams) => f.write_str(&streams.dial.target()),
        }
    }
}

impl fmt::Debug for AgentClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgentClient({})", self.way)
    }
}

impl AgentClient {
    /// The agent behind a unix socket of this machine.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { way: Way::Socket(socket.into()) }
    }

    /// The agent that `dial` leads to, provided that it has the instance's key.
    pub fn over(dial: Arc<dyn Dial>, key: InstanceKey) -> Self {
        Self { way: Way::Network { dial, key } }
    }

    /// As [`AgentClient::over`], for a way on which opening a stream is dear: streams stay open
    /// between calls, as long as this client or a clone of it lives. One that has died meanwhile
    /// is opened again within the call. To be used on a tokio runtime.
    pub fn kept(dial: Arc<dyn Dial>, key: InstanceKey) -> Self {
        Self { way: Way::Kept(Arc::new(Streams { dial, key, idle: Mutex::default() })) }
    }

    /// Whether the agent's loop turns. Takes 2 s at most. Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::Silent`].
    pub async fn ping(&self) -> Result<(), ClientError> {
        self.call(Method::GET, "/v1/ping", None, CALL_TIMEOUT).await.map(drop)
    }

    /// What the agent says now, from its last sample. Takes 2 s at most. Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::Silent`].
    pub async fn status(&self) -> Result<AgentStatus, ClientError> {
        let body = self.call(Method::GET, "/v1/status", None, CALL_TIMEOUT).await?;
        self.parse(&body)
    }

    /// Waits until there is news after `(agent_run, version)`, about 4 s at most, then answers
    /// as [`AgentClient::status`]. Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::Silent`].
    pub async fn next_status(
        &self,
        agent_run: &str,
        version: u64,
    ) -> Result<AgentStatus, ClientError> {
        let hold = HOLD.as_millis();
        let path = format!("/v1/status?agent_run={agent_run}&version={version}&hold_ms={hold}");
        let body = self.call(Method::GET, &path, None, POLL_TIMEOUT).await?;
        self.parse(&body)
    }

    /// Gives an order. `Ok` means that it was accepted; its effect is observed. Not cancel-safe
    /// in the sense that a cancelled call may have been accepted: orders are idempotent.
    ///
    /// # Errors
    /// [`ClientError::Stale`], [`ClientError::Refused`], or [`ClientError::Silent`].
    pub async fn order(&self, fence: Fence, order: &Order) -> Result<(), ClientError> {
        let request = OrderRequest { fence, order: order.clone() };
        self.post("/v1/order", &request, CALL_TIMEOUT).await.map(drop)
    }

    /// Prometheus text. Takes 2 s at most. Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::Silent`].
    pub async fn metrics(&self) -> Result<String, ClientError> {
        let body = self.call(Method::GET, "/v1/metrics", None, CALL_TIMEOUT).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// A `GET` that answers JSON, within `timeout`.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        timeout: Duration,
    ) -> Result<T, ClientError> {
        let body = self.call(Method::GET, path, None, timeout).await?;
        self.parse(&body)
    }

    /// A `POST` of JSON, within `timeout`.
    pub(crate) async fn post<B: Serialize>(
        &self,
        path: &str,
        body: &B,
        timeout: Duration,
    ) -> Result<Bytes, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| self.silent(error))?;
        self.call(Method::POST, path, Some(body), timeout).await
    }

    pub(crate) fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|error| self.silent(error))
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        timeout: Duration,
    ) -> Result<Bytes, ClientError> {
        let answer = tokio::time::timeout(timeout, self.exchange(method, path, body)).await;
        let answer = answer.unwrap_or_else(|_| {
            Err(self.silent(format_args!("nothing within {} ms", timeout.as_millis())))
        });
        if let (Err(_), Way::Kept(streams)) = (&answer, &self.way) {
            // What is silent on one stream is not asked on another that may be as dead.
            streams.close_all();
        }
        let (status, body) = answer?;
        match status {
            status if status.is_success() => Ok(body),
            StatusCode::CONFLICT => match self.parse::<Fence>(&body) {
                Ok(seen) => Err(ClientError::Stale { seen }),
                Err(_) => Err(self.parse::<Refusal>(&body).map_or_else(|e| e, ClientError::from)),
            },
            _ => Err(self.parse::<Refusal>(&body).map_or_else(
                |_| self.silent(format_args!("it answers {status}")),
                ClientError::from,
            )),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "agent")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|e| self.silent(e))?;
        if let Way::Kept(streams) = &self.way {
            return self.exchange_on(streams, request).await;
        }
        let stream = self.open().await.map_err(|e| self.silent(e))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.silent(e))?;
        // The connection is driven beside the request and dies with this call.
        let answer = self.ask(&mut sender, request);
        tokio::pin!(connection);
        tokio::pin!(answer);
        let mut open = true;
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return answer,
                _ = &mut connection, if open => open = false,
            }
        }
    }

    /// Over a stream that is open, or over a new one. A stream that this call does not bring to
    /// its end, because it failed or was dropped, is closed.
    async fn exchange_on(
        &self,
        streams: &Streams,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        while let Some(mut open) = streams.take() {
            // Closed at the other end since: orders are idempotent, so another stream may be tried.
            if let Ok(answer) = self.ask(&mut open.sender, request.clone()).await {
                streams.put_back(open);
                return Ok(answer);
            }
        }
        let stream = self.open().await.map_err(|e| self.silent(e))?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.silent(e))?;
        let driver = tokio::spawn(async move {
            // An error is told to whoever waits for the answer.
            let _ = connection.await;
        });
        let mut open = Open { sender, driver };
        let answer = self.ask(&mut open.sender, request).await?;
        streams.put_back(open);
        Ok(answer)
    }

    async fn ask(
        &self,
        sender: &mut SendRequest<Full<Bytes>>,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        sender.ready().await.map_err(|e| self.silent(e))?;
        let response = sender.send_request(request).await.map_err(|e| self.silent(e))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|e| self.silent(e))?;
        Ok((status, body.to_bytes()))
    }

    async fn open(&self) -> std::io::Result<Box<dyn Stream>> {
        let (dial, key) = match &self.way {
            Way::Socket(path) => return Ok(Box::new(UnixStream::connect(path).await?)),
            Way::Network { dial, key } => (dial, key),
            Way::Kept(streams) => (&streams.dial, &streams.key),
        };
        Ok(Box::new(key.connect(dial.dial().await?).await?))
    }

    fn silent(&self, reason: impl fmt::Display) -> ClientError {
        ClientError::Silent { target: self.way.to_string(), reason: reason.to_string() }
    }
}

/// The agents of this machine, by the short folder of their sockets.
#[derive(Clone, Debug)]
pub struct LocalAgents {
    pub run_dir: RunDir,
}

impl LocalAgents {
    pub fn new(run_dir: RunDir) -> Self {
        Self { run_dir }
    }

    pub fn agent(&self, node: &NodeId) -> AgentClient {
        AgentClient::new(self.run_dir.agent_socket(node))
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use hyper::service::service_fn;
    use hyper::{Response, body::Incoming};
    use larder_model::Secret;

    use super::*;

    /// An agent behind a way that counts its streams. Each stream ends after `answers` answers;
    /// with `hangs` it never answers.
    struct Counted {
        streams: AtomicUsize,
        answers: usize,
        hangs: bool,
        key: InstanceKey,
    }

    impl Counted {
        fn new(answers: usize, hangs: bool) -> (Arc<Self>, AgentClient) {
            let key = InstanceKey::derive(&Secret::new("p"));
            let way = Arc::new(Self { streams: AtomicUsize::new(0), answers, hangs, key });
            let client = AgentClient::kept(way.clone(), way.key.clone());
            (way, client)
        }

        fn streams(&self) -> usize {
            self.streams.load(Ordering::SeqCst)
        }
    }

    #[async_trait]
    impl Dial for Counted {
        async fn dial(&self) -> io::Result<Box<dyn Stream>> {
            self.streams.fetch_add(1, Ordering::SeqCst);
            let (here, there) = tokio::io::duplex(64 << 10);
            let (key, left, hangs) = (self.key.clone(), AtomicUsize::new(self.answers), self.hangs);
            tokio::spawn(async move {
                let stream = key.accept(there).await?;
                let left = &left;
                let service = service_fn(async |_: Request<Incoming>| {
                    if hangs {
                        std::future::pending::<()>().await;
                    }
                    let mut answer = Response::new(Full::new(Bytes::from_static(b"{}")));
                    if left.fetch_sub(1, Ordering::SeqCst) == 1 {
                        let close = hyper::header::HeaderValue::from_static("close");
                        answer.headers_mut().insert("connection", close);
                    }
                    Ok::<_, io::Error>(answer)
                });
                let served = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
                served.map_err(io::Error::other)
            });
            Ok(Box::new(here))
        }

        fn target(&self) -> String {
            "a counted way".to_owned()
        }
    }

    #[tokio::test]
    async fn a_kept_stream_serves_call_after_call() {
        let (way, client) = Counted::new(100, false);
        for _ in 0..5 {
            client.ping().await.expect("an answer");
        }
        assert_eq!(way.streams(), 1);
        let (first, second, third) = tokio::join!(client.ping(), client.ping(), client.ping());
        assert!(first.is_ok() && second.is_ok() && third.is_ok());
        assert_eq!(way.streams(), 3, "calls at the same time have streams of their own");
        client.clone().ping().await.expect("an answer");
        assert_eq!(way.streams(), 3);
    }

    #[tokio::test]
    async fn a_stream_that_was_closed_meanwhile_is_opened_again_within_the_call() {
        let (way, client) = Counted::new(2, false);
        for _ in 0..6 {
            client.ping().await.expect("an answer");
        }
        assert_eq!(way.streams(), 3);
    }

    #[tokio::test]
    async fn a_stream_on_which_nothing_was_answered_is_not_used_again() {
        let (way, client) = Counted::new(100, true);
        let timeout = Duration::from_millis(30);
        for streams in 1..=3 {
            let answer = client.call(Method::GET, "/v1/ping", None, timeout).await;
            assert!(matches!(answer, Err(ClientError::Silent { .. })), "{answer:?}");
            assert_eq!(way.streams(), streams);
        }
    }
}
