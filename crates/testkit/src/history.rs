//! A writing client without retries of its own, whose whole history is checked.
//!
//! Each write has a key of its own, so that nothing later hides a loss. A write that was not
//! answered with OK is never sent again: the next one has the next key.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::instance::Endpoint;
use crate::resp::{Connection, Reply};

/// How one write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The server said OK.
    Acked,
    /// The server said no, or there was no connection: it was not done.
    Refused,
    /// Sent, and never answered: it may have been done.
    Unknown,
}

/// One write. Times are since the writer's start.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    pub number: u64,
    pub sent: Duration,
    pub done: Duration,
    pub outcome: Outcome,
}

/// What the client writes to, and how fast.
#[derive(Clone, Debug)]
pub struct WriterOptions {
    /// Tried in turn. One for an endpoint; all nodes for a cluster, whose `MOVED` and `ASK` are
    /// followed.
    pub endpoints: Vec<Endpoint>,
    pub password: String,
    /// Begins every key. A hash tag such as `{t7}` keeps all keys in one slot.
    pub prefix: String,
    /// Pause between writes: the resolution of the gap.
    pub interval: Duration,
    /// How long a connection attempt and a write may take.
    pub deadline: Duration,
    /// The client ends by itself after so many writes …
    pub max_writes: u64,
    /// … or after this time.
    pub max_time: Duration,
}

impl WriterOptions {
    /// For one endpoint: a write each 5 ms, 1 s of patience, at most five minutes.
    pub fn new(endpoint: &Endpoint, password: &str, prefix: &str) -> Self {
        Self {
            endpoints: vec![endpoint.clone()],
            password: password.to_owned(),
            prefix: prefix.to_owned(),
            interval: Duration::from_millis(5),
            deadline: Duration::from_secs(1),
            max_writes: 200_000,
            max_time: Duration::from_secs(300),
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    writes: Vec<Write>,
    last_error: Option<String>,
}

/// A client that writes until it is told to stop.
#[derive(Debug)]
pub struct Writer {
    began: Instant,
    options: WriterOptions,
    shared: Arc<Mutex<Shared>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Writer {
    /// Starts writing on a task of the current runtime.
    pub fn start(options: WriterOptions) -> Self {
        let began = Instant::now();
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(write(options.clone(), began, Arc::clone(&shared), stopped));
        Self { began, options, shared, stop, task }
    }

    /// Starts writing and waits for the first OK.
    ///
    /// # Errors
    /// None within 15 s.
    pub async fn started(options: WriterOptions) -> Result<Self> {
        let writer = Self::start(options);
        writer.next_ok(Duration::from_secs(15)).await.context("before the first write")?;
        Ok(writer)
    }

    /// Now, on the clock of this history.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Waits for a write that is sent from now on and acknowledged.
    ///
    /// # Errors
    /// None within the given time; with the last error that the client saw.
    pub async fn next_ok(&self, within: Duration) -> Result<Duration> {
        let from = self.now();
        loop {
            {
                let shared = self.shared.lock().expect("no holder of this lock panics");
                let ok = |w: &&Write| w.outcome == Outcome::Acked && w.sent >= from;
                if let Some(write) =
                    shared.writes.iter().rev().take_while(|w| w.done >= from).filter(ok).last()
                {
                    return Ok(write.done);
                }
                if self.now() > from + within {
                    bail!(
                        "no write through {:?} was acknowledged for {within:?}; last error: {:?}",
                        self.options.endpoints,
                        shared.last_error
                    );
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Stops writing and gives the history.
    ///
    /// # Errors
    /// The writing task panicked.
    pub async fn stop(self) -> Result<History> {
        // The task may have ended by itself.
        let _ = self.stop.send(true);
        self.task.await.context("the writing client")?;
        let shared = self.shared.lock().expect("the only other holder has ended");
        Ok(History { options: self.options, writes: shared.writes.clone() })
    }
}

async fn write(
    options: WriterOptions,
    began: Instant,
    shared: Arc<Mutex<Shared>>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut endpoints = options.endpoints.clone();
    let mut connection: Option<Connection> = None;
    let mut number = 0;
    while number < options.max_writes && began.elapsed() < options.max_time && !*stopped.borrow() {
        let sent = began.elapsed();
        let key = format!("{}:{number}", options.prefix);
        let (outcome, error) = one_write(&mut connection, &mut endpoints, &options, &key).await;
        {
            let mut shared = shared.lock().expect("no holder of this lock panics");
            shared.writes.push(Write { number, sent, done: began.elapsed(), outcome });
            if error.is_some() {
                shared.last_error = error;
            }
        }
        number += 1;
        let pause = tokio::time::sleep(options.interval);
        tokio::select! {
            () = pause => {}
            _ = stopped.changed() => return,
        }
    }
}

/// One write and no second try. `endpoints` is turned, and `connection` dropped, when the next
/// write should go elsewhere.
async fn one_write(
    connection: &mut Option<Connection>,
    endpoints: &mut [Endpoint],
    options: &WriterOptions,
    key: &str,
) -> (Outcome, Option<String>) {
    let mut live = match connection.take() {
        Some(live) => live,
        None => {
            match Connection::open(&endpoints[0], Some(&options.password), options.deadline).await {
                Ok(live) => live,
                Err(error) => {
                    let text = format!("{}: {error}", endpoints[0]);
                    endpoints.rotate_left(1);
                    return (Outcome::Refused, Some(text));
                }
            }
        }
    };
    match live.call(&["SET", key, key]).await {
        Ok(reply) if reply.is_ok() => {
            *connection = Some(live);
            (Outcome::Acked, None)
        }
        Ok(reply) => {
            let text = reply.text();
            if let Some(target) = redirection(&text, "MOVED") {
                // A redirection is part of the protocol and the write was not done: follow it,
                // as every cluster client does, within the same write.
                if let Ok(mut there) =
                    Connection::open(&target, Some(&options.password), options.deadline).await
                    && let Ok(reply) = there.call(&["SET", key, key]).await
                    && reply.is_ok()
                {
                    *connection = Some(there);
                    return (Outcome::Acked, None);
                }
                endpoints.rotate_left(1);
                return (Outcome::Unknown, Some(text));
            }
            if let Some(target) = redirection(&text, "ASK") {
                if let Ok(mut there) =
                    Connection::open(&target, Some(&options.password), options.deadline).await
                    && let Ok(replies) =
                        there.pipeline(&[&["ASKING"][..], &["SET", key, key][..]]).await
                    && replies.last().is_some_and(Reply::is_ok)
                {
                    *connection = Some(live);
                    return (Outcome::Acked, None);
                }
                return (Outcome::Unknown, Some(text));
            }
            // The connection leads to a server that does not take writes: a client would look
            // for another one.
            endpoints.rotate_left(1);
            (Outcome::Refused, Some(text))
        }
        Err(error) => {
            let text = format!("{}: {error}", endpoints[0]);
            endpoints.rotate_left(1);
            (Outcome::Unknown, Some(text))
        }
    }
}

/// `MOVED 3999 127.0.0.1:6381`
fn redirection(text: &str, word: &str) -> Option<Endpoint> {
    let mut words = text.split(' ');
    if words.next()? != word {
        return None;
    }
    let (host, port) = words.nth(1)?.rsplit_once(':')?;
    Some(Endpoint { host: host.to_owned(), port: port.parse().ok()? })
}

/// Everything that a writer did.
#[derive(Clone, Debug)]
pub struct History {
    options: WriterOptions,
    pub writes: Vec<Write>,
}

impl History {
    pub fn acked(&self) -> impl Iterator<Item = &Write> {
        self.writes.iter().filter(|w| w.outcome == Outcome::Acked)
    }

    /// The longest time between two acknowledgements that follow each other, and when it began. The
    /// time from the last one to the end of the last try counts, too: writes may never have come back.
    pub fn worst_gap(&self) -> (Duration, Duration) {
        self.worst_gap_between(Duration::ZERO, Duration::MAX)
    }

    /// As [`History::worst_gap`], of gaps that began within the given times.
    pub fn worst_gap_between(&self, from: Duration, to: Duration) -> (Duration, Duration) {
        let mut times: Vec<Duration> = self.acked().map(|w| w.done).collect();
        times.extend(self.writes.last().filter(|w| w.outcome != Outcome::Acked).map(|w| w.done));
        let gaps = times.windows(2).map(|pair| (pair[1] - pair[0], pair[0]));
        // A gap counts when any of it lies after `from`.
        gaps.filter(|(gap, at)| *at + *gap >= from && *at <= to).max().unwrap_or_default()
    }

    /// The write gap as the design defines it: the worst time between two OKs, less the worst of
    /// a client on an untouched instance in the same run.
    pub fn gap(&self, control: &History) -> Duration {
        self.worst_gap().0.saturating_sub(control.worst_gap().0)
    }

    /// Reads every acknowledged key back through `endpoint` (any node of a cluster) and lists the
    /// writes that are not there.
    ///
    /// # Errors
    /// They cannot be read.
    pub async fn lost(&self, endpoint: &Endpoint) -> Result<Vec<Write>> {
        let patience = Duration::from_secs(10);
        let mut connection =
            Connection::open(endpoint, Some(&self.options.password), patience).await?;
        let acked: Vec<Write> = self.acked().copied().collect();
        let mut lost = Vec::new();
        for part in acked.chunks(500) {
            let keys: Vec<String> =
                part.iter().map(|w| format!("{}:{}", self.options.prefix, w.number)).collect();
            let commands: Vec<[&str; 2]> = keys.iter().map(|k| ["GET", k.as_str()]).collect();
            let mut replies = connection.pipeline(&commands).await?;
            if let Some(target) = replies.first().and_then(|r| redirection(&r.text(), "MOVED")) {
                connection =
                    Connection::open(&target, Some(&self.options.password), patience).await?;
                replies = connection.pipeline(&commands).await?;
            }
            for ((write, key), reply) in part.iter().zip(&keys).zip(replies) {
                match reply {
                    Reply::Bulk(value) if value == key.as_bytes() => {}
                    Reply::Nil => lost.push(*write),
                    other => bail!("reading {key} through {endpoint}: {other:?}"),
                }
            }
        }
        Ok(lost)
    }

    /// # Errors
    /// An acknowledged write is not there.
    pub async fn check_nothing_lost(&self, endpoint: &Endpoint) -> Result<()> {
        let lost = self.lost(endpoint).await?;
        if !lost.is_empty() {
            bail!(
                "{} of {} acknowledged writes lost: {:?} …",
                lost.len(),
                self.acked().count(),
                &lost[..lost.len().min(5)]
            );
        }
        Ok(())
    }

    /// Asynchronous replication and `appendfsync everysec` may lose what was acknowledged in the
    /// last moment before a crash, and nothing older.
    ///
    /// # Errors
    /// A write is lost that was acknowledged more than `window` before one of the `faults`, or
    /// after it.
    pub async fn check_lost_only_before(
        &self,
        endpoint: &Endpoint,
        faults: &[Duration],
        window: Duration,
    ) -> Result<()> {
        let excused = |w: &Write| faults.iter().any(|f| w.sent <= *f && w.done + window >= *f);
        let lost = self.lost(endpoint).await?;
        let unexcused: Vec<&Write> = lost.iter().filter(|w| !excused(w)).collect();
        if !unexcused.is_empty() {
            bail!(
                "{} acknowledged writes lost ({} of them not just before a fault at {faults:?}): {:?} …",
                lost.len(),
                unexcused.len(),
                &unexcused[..unexcused.len().min(5)]
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(dones: &[u64]) -> History {
        let endpoint = Endpoint { host: "127.0.0.1".into(), port: 1 };
        let writes = dones
            .iter()
            .enumerate()
            .map(|(n, ms)| Write {
                number: n as u64,
                sent: Duration::from_millis(ms.saturating_sub(1)),
                done: Duration::from_millis(*ms),
                outcome: if *ms % 2 == 0 { Outcome::Acked } else { Outcome::Unknown },
            })
            .collect();
        History { options: WriterOptions::new(&endpoint, "", "k"), writes }
    }

    #[test]
    fn gap_is_between_acknowledgements_less_that_of_the_control() {
        let tested = history(&[10, 20, 31, 120, 130]);
        let control = history(&[10, 40, 60]);
        assert_eq!(tested.worst_gap(), (Duration::from_millis(100), Duration::from_millis(20)));
        assert_eq!(tested.gap(&control), Duration::from_millis(70));
    }

    #[test]
    fn redirections_name_their_target() {
        let target = redirection("MOVED 3999 127.0.0.1:6381", "MOVED").unwrap();
        assert_eq!((target.host.as_str(), target.port), ("127.0.0.1", 6381));
        assert_eq!(redirection("ERR MOVED", "MOVED"), None);
    }
}
