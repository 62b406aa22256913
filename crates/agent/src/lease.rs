//! Where a shard's lease and route are kept: two traits, and their one-machine versions on link
//! logs.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use larder_linklog::{AppendError, Entry, LinkLog, Watch};
use larder_model::lease::{LeaseRecord, Route};
use tokio::task::JoinHandle;

/// No call of a lease or endpoint takes longer: at most half of the election's fence margin.
const CALL_DEADLINE: Duration = Duration::from_millis(300);

/// How often the spares of a link log are looked after: a take-over uses up two at most.
const RESERVE_EVERY: Duration = Duration::from_secs(10);

/// Why a lease or an endpoint was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Somebody else wrote first. Nothing was written; read again and decide again.
    #[error("another version was written first")]
    Conflict,
    /// It cannot be reached. A write may or may not have had its effect.
    #[error("{doing}: {reason}")]
    Unreachable { doing: &'static str, reason: String },
}

/// A record with compare-and-set. Versions rise; every call takes 300 ms at most.
#[async_trait]
pub trait Lease: Send {
    /// The newest version and its record; `None` when there never was one.
    ///
    /// # Errors
    /// [`LeaseError::Unreachable`].
    async fn read(&mut self) -> Result<Option<(u64, LeaseRecord)>, LeaseError>;

    /// Writes `record` provided that the newest version is `after` (`None`: there is none yet).
    /// Durable when it answers.
    ///
    /// # Errors
    /// [`LeaseError::Conflict`]; after [`LeaseError::Unreachable`] the write may still have had,
    /// or have yet, its effect.
    async fn write(&mut self, after: Option<u64>, record: &LeaseRecord) -> Result<u64, LeaseError>;

    /// Makes a new version of the same record, provided that the newest version is `after`.
    ///
    /// # Errors
    /// As [`Lease::write`].
    async fn renew(&mut self, after: u64) -> Result<u64, LeaseError>;

    /// Waits until there may be a new version. Cancel-safe.
    async fn changed(&mut self);

    /// Sees to it, in the background, that records can be written while the disk is full. To be
    /// called now and then; does nothing where there is no disk.
    fn keep_reserve(&mut self) {}
}

/// Where clients are led.
#[async_trait]
pub trait Endpoint: Send {
    /// What is published now.
    ///
    /// # Errors
    /// [`LeaseError::Unreachable`].
    async fn read(&mut self) -> Result<Option<Route>, LeaseError>;

    /// Publishes `route`, unless one of a newer epoch is there: then it answers that one and
    /// leaves it. Publishing what is there already writes nothing.
    ///
    /// # Errors
    /// [`LeaseError::Unreachable`].
    async fn publish(&mut self, route: &Route) -> Result<Option<Route>, LeaseError>;

    /// As [`Lease::keep_reserve`], for routes.
    fn keep_reserve(&mut self) {}
}

/// The spares of a link log, looked after beside the loop.
#[derive(Default)]
struct Reserve {
    looking: Option<JoinHandle<()>>,
    looked_at: Option<Instant>,
}

impl Reserve {
    fn keep(&mut self, log: &LinkLog) {
        // On a disk that hangs one thread waits, not one more each time.
        let busy = self.looking.as_ref().is_some_and(|task| !task.is_finished());
        if busy || self.looked_at.is_some_and(|at| at.elapsed() < RESERVE_EVERY) {
            return;
        }
        self.looked_at = Some(Instant::now());
        let log = log.clone();
        self.looking = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = log.reserve() {
                tracing::debug!(dir = %log.dir().display(), %error, "spares not filled up");
            }
        }));
    }
}

/// A lease in a folder of this machine (`docs/design/0001`).
pub struct LinkLease {
    log: LinkLog,
    watch: Option<Watch>,
    reserve: Reserve,
}

impl LinkLease {
    /// Opens the folder, which is made when it is missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(dir: &Path) -> io::Result<Self> {
        Ok(Self { log: LinkLog::open(dir)?, watch: None, reserve: Reserve::default() })
    }
}

#[async_trait]
impl Lease for LinkLease {
    async fn read(&mut self) -> Result<Option<(u64, LeaseRecord)>, LeaseError> {
        let Some(entry) = read_entry(&self.log, "reading the lease").await? else {
            // Its folder may have been deleted, and then the watch is one of nothing.
            self.watch = None;
            return Ok(None);
        };
        let record = parse(&entry, "reading the lease")?;
        Ok(Some((entry.seq, record)))
    }

    async fn write(&mut self, after: Option<u64>, record: &LeaseRecord) -> Result<u64, LeaseError> {
        let bytes = encode(record, "writing the lease")?;
        if after.is_none() {
            make_folder(&self.log, "making the lease's folder").await?;
        }
        append(&self.log, after, bytes, "writing the lease").await
    }

    async fn renew(&mut self, after: u64) -> Result<u64, LeaseError> {
        let log = self.log.clone();
        bounded("renewing the lease", move || Ok(log.renew(after))).await?.map_err(refused)
    }

    async fn changed(&mut self) {
        if self.watch.is_none() {
            match self.log.watch() {
                Ok(watch) => self.watch = Some(watch),
                // Without inotify the loop's own timer is what looks again.
                Err(error) => tracing::debug!(%error, "lease not watched"),
            }
        }
        match &mut self.watch {
            Some(watch) => watch.changed().await,
            None => std::future::pending().await,
        }
    }

    fn keep_reserve(&mut self) {
        self.reserve.keep(&self.log);
    }
}

/// A route in a folder of this machine, followed by the instance's relay.
pub struct LinkEndpoint {
    log: LinkLog,
    reserve: Reserve,
}

impl LinkEndpoint {
    /// Opens the folder, which is made when it is missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(dir: &Path) -> io::Result<Self> {
        Ok(Self { log: LinkLog::open(dir)?, reserve: Reserve::default() })
    }
}

#[async_trait]
impl Endpoint for LinkEndpoint {
    async fn read(&mut self) -> Result<Option<Route>, LeaseError> {
        match read_entry(&self.log, "reading the route").await? {
            Some(entry) => parse(&entry, "reading the route").map(Some),
            None => Ok(None),
        }
    }

    async fn publish(&mut self, route: &Route) -> Result<Option<Route>, LeaseError> {
        const DOING: &str = "publishing the route";
        // A conflict means that another holder wrote: look at it again, a bounded number of times.
        for _ in 0..4 {
            let entry = read_entry(&self.log, DOING).await?;
            let after = entry.as_ref().map(|entry| entry.seq);
            if let Some(entry) = &entry {
                // An unreadable route is replaced: it leads nowhere.
                if let Ok(there) = parse::<Route>(entry, DOING) {
                    if there.epoch > route.epoch {
                        return Ok(Some(there));
                    }
                    if there == *route {
                        return Ok(None);
                    }
                }
            }
            if after.is_none() {
                make_folder(&self.log, DOING).await?;
            }
            let (log, bytes) = (self.log.clone(), encode(route, DOING)?);
            // Not durable: after a loss of power the holder publishes anew, and a sync of the disk
            // here would be a gap in writes.
            let written = bounded(DOING, move || Ok(log.append_volatile(after, &bytes))).await?;
            match written.map_err(refused) {
                Ok(_) => return Ok(None),
                Err(LeaseError::Conflict) => {}
                Err(error) => return Err(error),
            }
        }
        Err(LeaseError::Conflict)
    }

    fn keep_reserve(&mut self) {
        self.reserve.keep(&self.log);
    }
}

/// The folder of a log that has no version may be gone since it was opened.
async fn make_folder(log: &LinkLog, doing: &'static str) -> Result<(), LeaseError> {
    let log = log.clone();
    bounded(doing, move || LinkLog::open(log.dir()).map(drop)).await
}

async fn read_entry(log: &LinkLog, doing: &'static str) -> Result<Option<Entry>, LeaseError> {
    let log = log.clone();
    bounded(doing, move || log.read()).await
}

async fn append(
    log: &LinkLog,
    after: Option<u64>,
    bytes: Vec<u8>,
    doing: &'static str,
) -> Result<u64, LeaseError> {
    let log = log.clone();
    bounded(doing, move || Ok(log.append(after, &bytes))).await?.map_err(refused)
}

/// Runs file work beside the loop and gives up waiting after [`CALL_DEADLINE`]: a disk that hangs
/// must not hang the agent, which has a server to stop in time.
async fn bounded<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, LeaseError> {
    let unreachable = |reason: String| LeaseError::Unreachable { doing, reason };
    match tokio::time::timeout(CALL_DEADLINE, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(Ok(value))) => Ok(value),
        Ok(Ok(Err(error))) => Err(unreachable(error.to_string())),
        Ok(Err(error)) => Err(unreachable(error.to_string())),
        Err(_) => Err(unreachable(format!("no end within {} ms", CALL_DEADLINE.as_millis()))),
    }
}

fn refused(error: AppendError) -> LeaseError {
    match error {
        AppendError::Conflict => LeaseError::Conflict,
        AppendError::Io { .. } => {
            LeaseError::Unreachable { doing: "writing a link log", reason: error.to_string() }
        }
    }
}

fn parse<T: serde::de::DeserializeOwned>(
    entry: &Entry,
    doing: &'static str,
) -> Result<T, LeaseError> {
    serde_json::from_slice(&entry.bytes)
        .map_err(|error| LeaseError::Unreachable { doing, reason: error.to_string() })
}

fn encode<T: serde::Serialize>(value: &T, doing: &'static str) -> Result<Vec<u8>, LeaseError> {
    serde_json::to_vec(value)
        .map_err(|error| LeaseError::Unreachable { doing, reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::NodeId;
    use larder_model::lease::LeaseHolder;

    fn record(epoch: u64) -> LeaseRecord {
        LeaseRecord {
            epoch,
            holder: Some(LeaseHolder {
                node: NodeId::new("n-1").expect("valid"),
                run_id: "r".into(),
            }),
            previous: None,
            failovers: Vec::new(),
        }
    }

    #[tokio::test]
    async fn one_of_two_writers_wins() {
        let folder = tempfile::tempdir().expect("temp dir");
        let mut one = LinkLease::open(folder.path()).expect("open");
        let mut two = LinkLease::open(folder.path()).expect("open");
        let version = one.write(None, &record(1)).await.expect("first");
        assert!(matches!(two.write(None, &record(1)).await, Err(LeaseError::Conflict)));
        let renewed = one.renew(version).await.expect("renewed");
        assert!(matches!(two.write(Some(version), &record(2)).await, Err(LeaseError::Conflict)));
        assert_eq!(two.read().await.expect("read"), Some((renewed, record(1))));
    }

    #[tokio::test]
    async fn a_deleted_folder_is_made_anew_by_the_first_writer() {
        let folder = tempfile::tempdir().expect("temp dir");
        let dir = folder.path().join("lease");
        let mut lease = LinkLease::open(&dir).expect("open");
        lease.write(None, &record(1)).await.expect("first");
        std::fs::remove_dir_all(&dir).expect("removed");
        assert_eq!(lease.read().await.expect("read"), None);
        let version = lease.write(None, &record(2)).await.expect("again");
        assert_eq!(lease.read().await.expect("read"), Some((version, record(2))));
    }

    #[tokio::test]
    async fn an_older_route_never_replaces_a_newer_one() {
        let folder = tempfile::tempdir().expect("temp dir");
        let mut endpoint = LinkEndpoint::open(folder.path()).expect("open");
        let route = |epoch, hold| Route { epoch, write: None, read: Vec::new(), hold };
        assert_eq!(endpoint.publish(&route(2, false)).await.expect("published"), None);
        let there = endpoint.publish(&route(1, true)).await.expect("refused");
        assert_eq!(there, Some(route(2, false)));
        assert_eq!(endpoint.publish(&route(2, true)).await.expect("same epoch"), None);
        assert_eq!(endpoint.read().await.expect("read"), Some(route(2, true)));
    }
}
