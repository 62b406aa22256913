//! The status socket: `GET /v1/ping` and `GET /v1/status` over a unix socket.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use larder_model::InstanceId;
use larder_model::local::{RelayListenerStatus, RelayStatus, RunDir};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::health::{Health, behind};
use super::listener::ListenerState;
use super::view::View;

/// Pause before another attempt to make the socket.
const BIND_PAUSE: Duration = Duration::from_secs(1);
/// How often the socket's file is looked after.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// So long a status waits for the first answer of a server; who asks for it waits 300 ms.
const UNKNOWN_FOR: Duration = Duration::from_millis(150);
/// A client that takes longer to send its request is cut off.
const HEADER_DEADLINE: Duration = Duration::from_secs(5);
/// Status connections at a time.
const MOST_CLIENTS: usize = 16;

/// What the status is made of.
pub(crate) struct StatusSource {
    pub(crate) instance: InstanceId,
    pub(crate) view: watch::Receiver<Arc<View>>,
    pub(crate) health: Arc<Health>,
    /// The generation of `relay.json` and the listeners it asked for.
    pub(crate) listeners: Mutex<(u64, Vec<Arc<ListenerState>>)>,
}

impl StatusSource {
    pub(crate) fn set_listeners(&self, generation: u64, listeners: Vec<Arc<ListenerState>>) {
        *self.listeners.lock().unwrap_or_else(PoisonError::into_inner) = (generation, listeners);
    }

    /// As [`StatusSource::status`], a moment later where the route has just led to a server that was
    /// never asked: that one is unknown, and would be told as one that does not answer.
    async fn known_status(&self) -> RelayStatus {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner).1.clone();
        let kinds: Vec<_> = listeners.iter().map(|state| state.config.kind).collect();
        let known = async {
            loop {
                let view = Arc::clone(&self.view.borrow());
                self.health.knows(&behind(&view, &kinds)).await;
                // It may lead elsewhere by now.
                if Arc::ptr_eq(&view, &self.view.borrow()) {
                    return;
                }
            }
        };
        let _ = timeout(UNKNOWN_FOR, known).await;
        self.status()
    }

    pub(crate) fn status(&self) -> RelayStatus {
        let (generation, listeners) =
            self.listeners.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let view = Arc::clone(&self.view.borrow());
        RelayStatus {
            instance: self.instance.clone(),
            generation,
            route_epoch: view.route.as_ref().map(|route| route.epoch),
            listeners: listeners.iter().map(|state| self.listener(&view, state)).collect(),
        }
    }

    fn listener(&self, view: &View, state: &ListenerState) -> RelayListenerStatus {
        let kind = state.config.kind;
        let answers =
            |target: &&larder_model::lease::RouteTarget| self.health.answers(&target.address);
        let mut leads_to: Vec<_> = view.behind(kind).iter().collect();
        if kind != larder_model::EndpointKind::Write {
            leads_to.retain(|target| !self.health.is_bad(&target.address));
        }
        if leads_to.is_empty() {
            leads_to.extend(view.fallback(kind));
        }
        RelayListenerStatus {
            kind,
            address: state.config.address.clone(),
            answers: state.bound.load(Ordering::Relaxed) && leads_to.iter().any(answers),
            leads_to: leads_to.into_iter().map(|target| target.node.clone()).collect(),
            connections: state.connections.load(Ordering::Relaxed),
        }
    }
}

/// Serves the status until it is dropped. The data path does not depend on it: a socket that
/// cannot be made is tried again.
pub(crate) async fn serve_status(run_dir: PathBuf, source: Arc<StatusSource>) {
    let path = RunDir(run_dir).relay_socket(&source.instance);
    let (mut listener, mut file) = make(&path).await;
    let permits = Arc::new(Semaphore::new(MOST_CLIENTS));
    let mut tasks = JoinSet::new();
    let mut look = interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &permits) => accepted,
            Some(_) = tasks.join_next() => continue,
            _ = look.tick() => {
                if !file.is_in_place() {
                    tracing::warn!(socket = %path.display(), "status socket vanished, making it anew");
                    (listener, file) = make(&path).await;
                }
                continue;
            }
        };
        match accepted {
            Ok((stream, permit)) if is_friend(&stream) => {
                let source = Arc::clone(&source);
                tasks.spawn(async move {
                    converse(stream, source).await;
                    drop(permit);
                });
            }
            Ok(_) => tracing::warn!(socket = %path.display(), "another user was turned away"),
            Err(error) => {
                tracing::warn!(socket = %path.display(), %error, "accept failed");
                sleep(BIND_PAUSE).await;
            }
        }
    }
}

/// The next client and its place among the [`MOST_CLIENTS`]. Cancel-safe.
async fn accept(
    listener: &UnixListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(UnixStream, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

/// Makes the socket, however often it takes. Cancel-safe.
async fn make(path: &Path) -> (UnixListener, SocketFile) {
    loop {
        match bind(path) {
            Ok(bound) => return bound,
            Err(error) => {
                tracing::warn!(socket = %path.display(), %error, "status socket cannot be made");
                sleep(BIND_PAUSE).await;
            }
        }
    }
}

/// Makes the socket under another name and renames it: the place of a former relay is taken
/// without a moment in which there is none.
fn bind(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&temporary)?;
    std::fs::rename(&temporary, path)?;
    let inode = std::fs::metadata(path)?.ino();
    Ok((listener, SocketFile { path: path.to_owned(), inode }))
}

/// Removes the socket's file, unless a successor has put its own there.
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl SocketFile {
    /// Cleaners of temporary folders remove what has been there for long.
    fn is_in_place(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_in_place() {
            std::fs::remove_file(&self.path).ok();
        }
    }
}

/// The relay's own user, or root.
fn is_friend(stream: &UnixStream) -> bool {
    let own = rustix::process::getuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

async fn converse(stream: UnixStream, source: Arc<StatusSource>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let source = Arc::clone(&source);
        async move { Ok::<_, Infallible>(answer(&request, &source).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "status connection ended");
    }
}

async fn answer(request: &Request<Incoming>, source: &StatusSource) -> Response<Full<Bytes>> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/v1/ping") => (StatusCode::OK, Bytes::from_static(b"{}")),
        (&Method::GET, "/v1/status") => match serde_json::to_vec(&source.known_status().await) {
            Ok(body) => (StatusCode::OK, Bytes::from(body)),
            Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, Bytes::from_static(b"{}")),
        },
        (_, "/v1/ping" | "/v1/status") => {
            (StatusCode::METHOD_NOT_ALLOWED, Bytes::from_static(b"{}"))
        }
        _ => (StatusCode::NOT_FOUND, Bytes::from_static(b"{}")),
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
