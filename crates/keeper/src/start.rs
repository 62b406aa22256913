//! Starting a keeper when there is none, and telling whether there is one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use larder_model::local::ProcessMark;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::KeeperError;
use crate::paths::KeeperPaths;
use crate::{files, log_file, process, session};

/// A keeper has its lock within milliseconds; this is for a machine that is very busy.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// What [`ensure_running`] found or did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    AlreadyRunning,
    Started { pid: u32 },
}

/// Starts `larder_binary keeper --data DATA` in a session of its own when nobody holds the
/// keeper's lock, and waits until it has the lock. Blocks for some milliseconds. Two callers at
/// once are harmless: the second keeper finds the lock taken and ends.
///
/// # Errors
/// When the files cannot be made, or the keeper ends at once; trying again is harmless.
pub fn ensure_running(data: &Path, larder_binary: &Path) -> Result<Start, KeeperError> {
    let paths = KeeperPaths::new(data);
    files::make_private_dir(paths.root()).map_err(KeeperError::io("make", paths.root()))?;
    if is_running(data)? {
        return Ok(Start::AlreadyRunning);
    }
    let log = log_file::open(&paths.log()).map_err(KeeperError::io("open", &paths.log()))?;
    let argv = [
        larder_binary.display().to_string(),
        "keeper".to_owned(),
        "--data".to_owned(),
        data.display().to_string(),
    ];
    let mut child = session::command(&argv, Some(log))
        .and_then(|mut command| command.spawn())
        .map_err(KeeperError::io("start", larder_binary))?;
    let pid = child.id();
    let deadline = Instant::now() + START_DEADLINE;
    loop {
        if is_running(data)? {
            break;
        }
        let ended = child.try_wait().map_err(KeeperError::io("wait for", larder_binary))?;
        if ended.is_some() || Instant::now() >= deadline {
            // The other keeper of two that were started at once holds the lock now.
            if is_running(data)? {
                return Ok(Start::AlreadyRunning);
            }
            let status = ended.map_or("no lock in time".to_owned(), |status| status.to_string());
            return Err(KeeperError::DidNotStart { status, log: paths.log() });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // The keeper is our child while we live; somebody has to reap it when it ends first.
    let reaper = std::thread::Builder::new().name("keeper-reaper".to_owned());
    reaper
        .stack_size(64 << 10)
        .spawn(move || child.wait())
        .map_err(KeeperError::io("watch", larder_binary))?;
    Ok(Start::Started { pid })
}

/// Whether a keeper looks after this data directory.
///
/// # Errors
/// When the lock file cannot be read.
pub fn is_running(data: &Path) -> Result<bool, KeeperError> {
    let path = KeeperPaths::new(data).lock();
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(KeeperError::io("open", &path)(error)),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(KeeperError::io("lock", &path)(error.into())),
    }
}

/// The pid of the keeper that holds the lock; `None` when there is none.
///
/// # Errors
/// As [`is_running`].
pub fn running_pid(data: &Path) -> Result<Option<u32>, KeeperError> {
    if !is_running(data)? {
        return Ok(None);
    }
    let path = KeeperPaths::new(data).lock();
    // Just started, it may not have written its mark yet.
    let mark: Option<ProcessMark> = files::read_json(&path).unwrap_or_default();
    Ok(mark.map(|mark| mark.pid))
}

/// A sign of life: another one whenever the keeper's loop has turned, which it does every few
/// seconds. Says nothing by itself; two looks are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Who holds the lock.
    pub keeper: ProcessMark,
    /// When its loop has turned last; `None` when the lock file does not say.
    pub turned_at: Option<SystemTime>,
}

/// The keeper's last sign of life; `None` when none runs, or when it has just been started.
///
/// # Errors
/// As [`is_running`].
pub fn beat(data: &Path) -> Result<Option<Beat>, KeeperError> {
    if !is_running(data)? {
        return Ok(None);
    }
    let path = KeeperPaths::new(data).lock();
    let mark: Option<ProcessMark> = files::read_json(&path).unwrap_or_default();
    let turned_at = std::fs::metadata(&path).and_then(|metadata| metadata.modified()).ok();
    Ok(mark.filter(process::is_alive).map(|keeper| Beat { keeper, turned_at }))
}

/// The keeper's lock, held until it is dropped or the process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock. Tries for a while: [`is_running`] of another process holds it for an
    /// instant.
    pub(crate) fn take(data: &Path) -> Result<Self, KeeperError> {
        use std::io::Write;
        let path = KeeperPaths::new(data).lock();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(KeeperError::io("open", &path))?;
        let deadline = Instant::now() + Duration::from_millis(300);
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(Errno::WOULDBLOCK) => {
                    return Err(KeeperError::AlreadyRunning { data: data.to_owned() });
                }
                Err(error) => return Err(KeeperError::io("lock", &path)(error.into())),
            }
        }
        let mark = process::mark_of(std::process::id())
            .map_err(KeeperError::io("read", Path::new("/proc")))?;
        // For people and `running_pid`; the lock itself does not need it, nor does a full disk
        // keep the keeper from working.
        let bytes = serde_json::to_vec(&mark).unwrap_or_default();
        if let Err(error) = file.set_len(0).and_then(|()| file.write_all(&bytes)) {
            tracing::warn!(%error, "own mark cannot be written");
        }
        Ok(Self { file })
    }

    /// Shows that the keeper's loop turns; see [`beat`].
    pub(crate) fn beat(&self) {
        if let Err(error) = self.file.set_modified(SystemTime::now()) {
            tracing::debug!(%error, "no sign of life can be left at the lock");
        }
    }

    /// Whether the locked file is still the one at its path. When not, somebody removed or
    /// replaced the data directory, and another keeper may be at work there.
    pub(crate) fn is_in_place(&self, data: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        match (self.file.metadata(), std::fs::metadata(KeeperPaths::new(data).lock())) {
            (Ok(held), Ok(there)) => (held.dev(), held.ino()) == (there.dev(), there.ino()),
            (_, Err(error)) => error.kind() != io::ErrorKind::NotFound,
            (Err(_), Ok(_)) => true,
        }
    }
}
