//! One address of the relay: accepts, finds a server, relays.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder_model::EndpointKind;
use larder_model::local::RelayListener;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::balance::Balancer;
use super::connect::Finder;
use super::health::Health;
use super::pipe;
use super::view::View;

/// Pauses between attempts to bind: a former relay may still be on its way out.
const FIRST_BIND_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_BIND_PAUSE: Duration = Duration::from_secs(2);
/// After an error of `accept` (out of files, of memory).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Finds clients that vanished, as Redis does itself (`tcp-keepalive 300`).
const KEEPALIVE_IDLE: Duration = Duration::from_secs(300);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(100);
const KEEPALIVE_COUNT: u32 = 3;

/// What others may know of a listener.
#[derive(Debug)]
pub(crate) struct ListenerState {
    pub(crate) config: RelayListener,
    pub(crate) bound: AtomicBool,
    pub(crate) connections: AtomicU64,
}

impl ListenerState {
    pub(crate) fn new(config: RelayListener) -> Self {
        Self { config, bound: AtomicBool::new(false), connections: AtomicU64::new(0) }
    }
}

/// What all listeners share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) view: watch::Receiver<Arc<View>>,
    pub(crate) health: Arc<Health>,
    pub(crate) permits: Arc<Semaphore>,
}

/// Runs a listener until it is dropped, which closes its connections too.
pub(crate) async fn listen(state: Arc<ListenerState>, shared: Shared) {
    let listener = bind(&state.config).await;
    state.bound.store(true, Ordering::Relaxed);
    let kind = state.config.kind;
    let finder = Finder {
        kind,
        view: shared.view.clone(),
        balancer: Arc::new(Mutex::new(Balancer::default())),
        health: Arc::clone(&shared.health),
    };
    let mut tasks = JoinSet::new();
    loop {
        // What is over is swept while waiting for a permit and for a client.
        let permit = tokio::select! {
            permit = Arc::clone(&shared.permits).acquire_owned() => match permit {
                Ok(permit) => permit,
                Err(_) => return,
            },
            Some(_) = tasks.join_next() => continue,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = tasks.join_next() => continue,
        };
        match accepted {
            Ok((client, _)) => {
                prepare(&client);
                let connected = Connected::new(&state);
                let finder = finder.clone();
                tasks.spawn(async move {
                    serve(client, finder, kind).await;
                    drop((connected, permit));
                });
            }
            Err(error) => {
                tracing::warn!(listener = %state.config.address, %error, "accept failed");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn bind(config: &RelayListener) -> TcpListener {
    let mut pause = FIRST_BIND_PAUSE;
    loop {
        match TcpListener::bind((config.listen_host(), config.address.port)).await {
            Ok(listener) => {
                tracing::info!(listener = %config.address, kind = %config.kind, "listening");
                return listener;
            }
            Err(error) => {
                tracing::warn!(listener = %config.address, %error, "cannot listen yet");
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_BIND_PAUSE);
            }
        }
    }
}

/// Failures cost latency or leave dead clients for longer; they are no reason to turn one away.
fn prepare(client: &TcpStream) {
    client.set_nodelay(true).ok();
    if sockopt::set_socket_keepalive(client, true).is_ok() {
        sockopt::set_tcp_keepidle(client, KEEPALIVE_IDLE).ok();
        sockopt::set_tcp_keepintvl(client, KEEPALIVE_INTERVAL).ok();
        sockopt::set_tcp_keepcnt(client, KEEPALIVE_COUNT).ok();
    }
}

async fn serve(mut client: TcpStream, mut finder: Finder, kind: EndpointKind) {
    let Some(mut upstream) = finder.find(&client).await else { return };
    let mut view = finder.view;
    tokio::select! {
        biased;
        // First, and looked at before the first byte: the route may have changed since.
        () = no_longer_leads(&mut view, kind, &upstream.target, upstream.fallback) => {}
        () = pipe::relay(&mut client, &mut upstream.stream) => {}
    }
}

async fn no_longer_leads(
    view: &mut watch::Receiver<Arc<View>>,
    kind: EndpointKind,
    target: &larder_model::lease::RouteTarget,
    fallback: bool,
) {
    while view.borrow_and_update().keeps(kind, target, fallback) {
        if view.changed().await.is_err() {
            return;
        }
    }
}

/// Counts a connection while it lives.
struct Connected(Arc<ListenerState>);

impl Connected {
    fn new(state: &Arc<ListenerState>) -> Self {
        state.connections.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(state))
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
