//! The agent's HTTP API on its unix socket; routes and shapes in `docs/design/0002`.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use larder_model::agent::AgentStatus;
use larder_model::{Code, Refusal};
use serde::Deserialize;
use tokio::net::UnixListener;
use tokio::net::unix::UCred;
use tokio::sync::{mpsc, oneshot, watch};

use crate::beat::Beat;
use crate::client::OrderRequest;
use crate::command::{Command, DemoteRequest, FailOverRequest, OrderError, PromiseRequest};
use crate::error::AgentError;

/// How long a long-poll is held back without news.
const POLL: Duration = Duration::from_secs(20);

/// How long a command may wait for the loop: less than the shortest deadline of a caller that
/// would otherwise hear nothing.
const LOOP: Duration = Duration::from_millis(1_800);

/// How often the socket's file is checked: cleaners of temporary folders remove old sockets.
const SOCKET_CHECK: Duration = Duration::from_secs(5);

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct ApiState {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) status: watch::Receiver<Arc<AgentStatus>>,
    pub(crate) metrics: watch::Receiver<Arc<String>>,
    pub(crate) beat: Beat,
}

/// Who is at the other end of the socket, as the kernel says (`SO_PEERCRED`, unix(7)).
#[derive(Clone, Copy, Debug)]
struct Caller(Option<UCred>);

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(stream.io().peer_cred().ok())
    }
}

/// Opens the agent's socket. The node's lock is held, so a file that is there is a leftover.
///
/// # Errors
/// [`AgentError::Socket`].
pub(crate) fn bind(path: &Path) -> Result<UnixListener, AgentError> {
    let failed = |source| AgentError::Socket { path: path.to_owned(), source };
    if let Some(folder) = path.parent()
        && !folder.exists()
    {
        std::fs::create_dir_all(folder).map_err(failed)?;
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Serves the API until the agent ends; opens the socket anew when its file has vanished.
pub(crate) async fn serve(path: PathBuf, mut listener: UnixListener, state: ApiState) {
    loop {
        let inode = inode(&path);
        let app = router(state.clone()).layer(middleware::from_fn(own_user_only));
        let app = app.into_make_service_with_connect_info::<Caller>();
        tokio::select! {
            ended = axum::serve(listener, app).into_future() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "api ended");
                }
            }
            () = vanished(&path, inode) => {
                tracing::warn!(path = %path.display(), "socket file vanished, opening it anew");
            }
        }
        listener = loop {
            match bind(&path) {
                Ok(listener) => break listener,
                Err(error) => {
                    tracing::error!(%error, "socket not opened");
                    tokio::time::sleep(SOCKET_CHECK).await;
                }
            }
        };
    }
}

fn inode(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|meta| meta.ino())
}

async fn vanished(path: &Path, known: Option<u64>) {
    loop {
        tokio::time::sleep(SOCKET_CHECK).await;
        if inode(path) != known {
            return;
        }
    }
}

/// The routes, whoever may call them.
pub(crate) fn router(state: ApiState) -> Router {
    Router::new()
        .route("/v1/ping", get(ping))
        .route("/v1/status", get(status))
        .route("/v1/order", post(order))
        .route("/v1/metrics", get(metrics))
        .route("/v1/peer", get(peer))
        .route("/v1/peer/promise", post(promise))
        .route("/v1/peer/demote", post(demote))
        .route("/v1/peer/fail-over", post(fail_over))
        .layer(DefaultBodyLimit::max(1 << 20))
        .with_state(state)
}

/// The socket's folder is private already; this holds when somebody has loosened it.
async fn own_user_only(
    ConnectInfo(caller): ConnectInfo<Caller>,
    request: Request,
    next: Next,
) -> Response {
    let own = rustix::process::geteuid().as_raw();
    match caller.0 {
        Some(cred) if cred.uid() == own || cred.uid() == 0 => next.run(request).await,
        _ => refusal(
            StatusCode::FORBIDDEN,
            &Refusal::new(Code::NotAllowed, "only the agent's own user may speak to it"),
        ),
    }
}

fn refusal(status: StatusCode, refusal: &Refusal) -> Response {
    (status, Json(refusal)).into_response()
}

fn refused(error: &Refusal) -> Response {
    refusal(StatusCode::UNPROCESSABLE_ENTITY, error)
}

/// The loop has not answered in time.
struct Busy;

impl IntoResponse for Busy {
    fn into_response(self) -> Response {
        let why = Refusal::new(Code::NotReady, "the agent is busy; ask again");
        refusal(StatusCode::SERVICE_UNAVAILABLE, &why)
    }
}

/// Hands a command to the loop and waits for its reply.
async fn ask<T>(
    state: &ApiState,
    command: impl FnOnce(oneshot::Sender<T>) -> Command,
) -> Result<T, Busy> {
    let (reply, answer) = oneshot::channel();
    let exchange = async {
        state.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    };
    match tokio::time::timeout(LOOP, exchange).await {
        Ok(Some(answer)) => Ok(answer),
        _ => Err(Busy),
    }
}

async fn ping(State(state): State<ApiState>) -> Response {
    match ask(&state, Command::Ping).await {
        Ok(()) => Json(serde_json::json!({})).into_response(),
        Err(busy) => busy.into_response(),
    }
}

/// Where the reader of a long-poll stands.
#[derive(Debug, Deserialize)]
struct Known {
    agent_run: Option<String>,
    version: Option<u64>,
    /// For how long it wants to wait.
    hold_ms: Option<u64>,
}

async fn status(State(mut state): State<ApiState>, Query(known): Query<Known>) -> Response {
    if let (Some(run), Some(version)) = (known.agent_run, known.version) {
        let news = state.status.wait_for(|now| now.agent_run != run || now.version > version);
        // No news within the time is an answer too: the same status, with newer offsets.
        let hold = known.hold_ms.map_or(POLL, |ms| Duration::from_millis(ms).min(POLL));
        let _ = tokio::time::timeout(hold, news).await.map(|result| result.map(drop));
    }
    // A new agent has nothing to say before it has looked.
    let first = state.status.wait_for(|now| now.version > 0);
    if tokio::time::timeout(LOOP, first).await.is_err() {
        return refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            &Refusal::new(Code::NotReady, "the agent has just started; ask again"),
        );
    }
    let now = Arc::clone(&state.status.borrow());
    Json(&*now).into_response()
}

async fn order(State(state): State<ApiState>, Json(request): Json<OrderRequest>) -> Response {
    let OrderRequest { fence, order } = request;
    let order = Box::new(order);
    match ask(&state, |reply| Command::Order { fence, order, reply }).await {
        Ok(Ok(())) => StatusCode::ACCEPTED.into_response(),
        Ok(Err(OrderError::Stale(seen))) => (StatusCode::CONFLICT, Json(seen)).into_response(),
        Ok(Err(OrderError::Refused(error))) => refused(&error),
        Err(busy) => busy.into_response(),
    }
}

async fn metrics(State(state): State<ApiState>) -> Response {
    let text = Arc::clone(&state.metrics.borrow());
    ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], text.as_str().to_owned())
        .into_response()
}

async fn peer(State(state): State<ApiState>) -> Response {
    match ask(&state, Command::Report).await {
        Ok(report) => Json(report).into_response(),
        Err(busy) => busy.into_response(),
    }
}

async fn promise(State(state): State<ApiState>, Json(request): Json<PromiseRequest>) -> Response {
    match ask(&state, |reply| Command::Promise { request, reply }).await {
        Ok(Some(answer)) => Json(answer).into_response(),
        Ok(None) => refusal(
            StatusCode::CONFLICT,
            &Refusal::new(Code::NotAllowed, "this node does not promise for that epoch"),
        ),
        Err(busy) => busy.into_response(),
    }
}

async fn demote(State(state): State<ApiState>, Json(request): Json<DemoteRequest>) -> Response {
    match ask(&state, |reply| Command::Demote { request, reply }).await {
        Ok(Ok(())) => Json(serde_json::json!({})).into_response(),
        Ok(Err(error)) => refused(&error),
        Err(busy) => busy.into_response(),
    }
}

async fn fail_over(
    State(state): State<ApiState>,
    Json(request): Json<FailOverRequest>,
) -> Response {
    match ask(&state, |reply| Command::FailOver { request, reply }).await {
        Ok(Ok(())) => StatusCode::ACCEPTED.into_response(),
        Ok(Err(error)) => refused(&error),
        Err(busy) => busy.into_response(),
    }
}
