//! Finds a server for a new connection, within a bounded time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use larder_model::EndpointKind;
use larder_model::lease::RouteTarget;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::balance::Balancer;
use super::health::Health;
use super::view::View;

/// How long a new connection waits for a server: longer than a planned hand-over takes, about as
/// long as a failover.
pub(crate) const WAIT: Duration = Duration::from_secs(5);
/// How long one server may take to accept.
const CONNECT: Duration = Duration::from_secs(1);
/// Between two rounds over servers that all refuse.
const PAUSE: Duration = Duration::from_millis(50);

/// A connection to a server, counted while it lives.
pub(crate) struct Upstream {
    pub(crate) stream: TcpStream,
    pub(crate) target: RouteTarget,
    /// It was chosen because no other took it.
    pub(crate) fallback: bool,
    _counted: Counted,
}

struct Counted {
    balancer: Arc<Mutex<Balancer>>,
    target: RouteTarget,
}

impl Drop for Counted {
    fn drop(&mut self) {
        lock(&self.balancer).closed(&self.target.address);
    }
}

/// A balancer has no state that a panic could leave half changed.
fn lock(balancer: &Mutex<Balancer>) -> std::sync::MutexGuard<'_, Balancer> {
    balancer.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is needed to find a server.
#[derive(Clone)]
pub(crate) struct Finder {
    pub(crate) kind: EndpointKind,
    pub(crate) view: watch::Receiver<Arc<View>>,
    pub(crate) balancer: Arc<Mutex<Balancer>>,
    pub(crate) health: Arc<Health>,
}

impl Finder {
    /// Connects to one of the servers that the view names, waiting up to [`WAIT`] for one. `None`
    /// when there was none in time, or when the client left.
    pub(crate) async fn find(&mut self, client: &TcpStream) -> Option<Upstream> {
        let deadline = Instant::now() + WAIT;
        loop {
            let view = Arc::clone(&self.view.borrow_and_update());
            let candidates = self.candidates(&view);
            for (target, fallback) in &candidates {
                if let Some(stream) = connect(target, deadline).await {
                    lock(&self.balancer).opened(&target.address);
                    return Some(Upstream {
                        stream,
                        target: target.clone(),
                        fallback: *fallback,
                        _counted: Counted {
                            balancer: Arc::clone(&self.balancer),
                            target: target.clone(),
                        },
                    });
                }
                lock(&self.balancer).failed(&target.address, Instant::now());
                if self.view.has_changed().unwrap_or(false) {
                    break;
                }
            }
            let again = if view.behind(self.kind).is_empty() {
                // Nothing to try until the view changes.
                deadline
            } else {
                (Instant::now() + PAUSE).min(deadline)
            };
            tokio::select! {
                changed = self.view.changed() => changed.ok()?,
                () = sleep_until(again) => {
                    if Instant::now() >= deadline {
                        return None;
                    }
                }
                () = hung_up(client) => return None,
            }
        }
    }

    fn candidates(&self, view: &View) -> Vec<(RouteTarget, bool)> {
        let open = view.open(self.kind);
        if self.kind == EndpointKind::Write {
            // There is no choice: it is tried whatever its health was said to be.
            return open.iter().map(|target| (target.clone(), false)).collect();
        }
        let now = Instant::now();
        let order = lock(&self.balancer).order(open, now, |address| !self.health.is_bad(address));
        let fallback = view.fallback(self.kind).map(|target| (target.clone(), true));
        order.into_iter().map(|target| (target, false)).chain(fallback).collect()
    }
}

async fn connect(target: &RouteTarget, deadline: Instant) -> Option<TcpStream> {
    let until = (Instant::now() + CONNECT).min(deadline);
    let connecting = TcpStream::connect((target.address.host.as_str(), target.address.port));
    let stream = timeout_at(until, connecting).await.ok()?.ok()?;
    // A failure costs latency, not correctness.
    stream.set_nodelay(true).ok();
    Some(stream)
}

/// Completes when the client has closed and sent nothing.
async fn hung_up(client: &TcpStream) {
    match client.peek(&mut [0]).await {
        Ok(0) | Err(_) => {}
        // It waits with a command sent: whether it is still there only writing would tell.
        Ok(_) => std::future::pending().await,
    }
}
