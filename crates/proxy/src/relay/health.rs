//! Whether the servers behind the relay answer: for its status, and so that new connections avoid
//! a server that accepts and does nothing.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use larder_model::{Address, EndpointKind};
use larder_node::{Connection, NodeError};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::view::View;

/// Between two rounds.
const EVERY: Duration = Duration::from_secs(2);
/// Between two rounds while a server does not answer: it may be on its way up.
const EVERY_WHILE_BAD: Duration = Duration::from_millis(500);
/// A server that takes longer is avoided.
const DEADLINE: Duration = Duration::from_secs(1);
/// An answer counts for two rounds and the deadline.
const FRESH: Duration = Duration::from_secs(5);

/// The outcome of the last rounds, by address.
#[derive(Debug, Default)]
pub(crate) struct Health {
    seen: Mutex<HashMap<Address, Seen>>,
    noted: Notify,
}

#[derive(Debug, Default)]
struct Seen {
    answered: Option<Instant>,
    bad: bool,
}

impl Health {
    /// The last PING was not answered. A server that was never asked is not bad.
    pub(crate) fn is_bad(&self, address: &Address) -> bool {
        self.with(|seen| seen.get(address).is_some_and(|s| s.bad))
    }

    /// A PING was answered within the last seconds, and none failed since.
    pub(crate) fn answers(&self, address: &Address) -> bool {
        self.with(|seen| {
            seen.get(address)
                .is_some_and(|s| !s.bad && s.answered.is_some_and(|at| at.elapsed() < FRESH))
        })
    }

    /// Waits until each of these was asked at least once since it has been wanted. Cancel-safe.
    pub(crate) async fn knows(&self, addresses: &HashSet<Address>) {
        loop {
            let noted = self.noted.notified();
            if self.with(|seen| addresses.iter().all(|address| seen.contains_key(address))) {
                return;
            }
            noted.await;
        }
    }

    fn any_bad(&self) -> bool {
        self.with(|seen| seen.values().any(|s| s.bad))
    }

    fn note(&self, address: Address, answered: bool) {
        self.with(|seen| {
            let entry = seen.entry(address).or_default();
            entry.bad = !answered;
            if answered {
                entry.answered = Some(Instant::now());
            }
        });
        self.noted.notify_waiters();
    }

    fn keep_only(&self, addresses: &HashSet<Address>) {
        self.with(|seen| seen.retain(|address, _| addresses.contains(address)));
    }

    fn with<T>(&self, work: impl FnOnce(&mut HashMap<Address, Seen>) -> T) -> T {
        // Each change is one assignment: a panic elsewhere leaves nothing half done.
        work(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Asks every server behind the listeners, every two seconds and at once when the view changes.
/// Keeps one connection per server: an idle relay costs one small exchange per server and round.
/// The servers' passwords are not known here, and not needed: `NOAUTH` is an answer.
pub(crate) async fn watch_health(
    health: Arc<Health>,
    mut view: watch::Receiver<Arc<View>>,
    mut kinds: watch::Receiver<Vec<EndpointKind>>,
) {
    let mut connections: HashMap<Address, Connection> = HashMap::new();
    loop {
        let wanted = behind(&view.borrow_and_update(), &kinds.borrow_and_update());
        connections.retain(|address, _| wanted.contains(address));
        health.keep_only(&wanted);
        let mut pings = JoinSet::new();
        for address in wanted {
            let connection = connections.remove(&address);
            pings.spawn(async move {
                let (connection, answered) = ping(&address, connection).await;
                (address, connection, answered)
            });
        }
        let mut changed = false;
        loop {
            tokio::select! {
                biased;
                done = pings.join_next() => match done {
                    None => break,
                    Some(Ok((address, connection, answered))) => {
                        connections.extend(connection.map(|c| (address.clone(), c)));
                        health.note(address, answered);
                    }
                    // Only a panic or the end of the runtime: the next round asks again.
                    Some(Err(_)) => {}
                },
                // Somebody new is asked at once, though another takes its time.
                news = view.changed() => {
                    if news.is_err() {
                        return;
                    }
                    changed = true;
                    break;
                }
            }
        }
        if changed {
            continue;
        }
        let every = if health.any_bad() { EVERY_WHILE_BAD } else { EVERY };
        tokio::select! {
            () = sleep(every) => {}
            news = view.changed() => if news.is_err() { return },
            news = kinds.changed() => if news.is_err() { return },
        }
    }
}

/// Every server that the listeners lead to, or would where nobody else is left.
pub(super) fn behind(view: &View, kinds: &[EndpointKind]) -> HashSet<Address> {
    let mut found: HashSet<Address> = kinds
        .iter()
        .flat_map(|kind| view.behind(*kind))
        .map(|target| target.address.clone())
        .collect();
    if kinds.contains(&EndpointKind::Read) {
        found.extend(view.primary().map(|target| target.address.clone()));
    }
    found
}

/// Answers the connection to use next time, and whether anything came back.
async fn ping(address: &Address, connection: Option<Connection>) -> (Option<Connection>, bool) {
    // A connection that was kept may have been closed by the server (`timeout`, `CLIENT KILL`,
    // a restart): that alone says nothing, a new one tells.
    if let Some(mut connection) = connection {
        match connection.ping().await {
            Ok(()) => return (Some(connection), true),
            Err(error) if error.is_alive() => return (Some(connection), true),
            Err(NodeError::Timeout { .. }) => return (None, false),
            Err(_) => {}
        }
    }
    let Ok(mut connection) = Connection::connect(address, DEADLINE).await else {
        return (None, false);
    };
    match connection.ping().await {
        Ok(()) => (Some(connection), true),
        // It said something and closed: full, or protected. An answer, not a connection.
        Err(error) => {
            let answered = error.is_alive();
            (Some(connection).filter(|c| answered && !c.is_closed()), answered)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_that_was_never_asked_is_waited_for_and_one_that_failed_is_not() {
        let health = Arc::new(Health::default());
        let (one, other) = (Address::new("127.0.0.1", 1), Address::new("127.0.0.1", 2));
        health.note(one.clone(), false);
        health.knows(&HashSet::from([one.clone()])).await;
        let waits = tokio::spawn({
            let (health, both) = (health.clone(), HashSet::from([one, other.clone()]));
            async move { health.knows(&both).await }
        });
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        health.note(other, true);
        waits.await.expect("no panic");
    }
}
