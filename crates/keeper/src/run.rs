//! The keeper's loop: reads the wishes, hands each to its supervisor, watches over logs and lock.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};
use larder_model::local::ProcessSpec;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::desired::DesiredFolder;
use crate::error::KeeperError;
use crate::fence::{FenceThread, Fenced, Guards};
use crate::paths::KeeperPaths;
use crate::start::Lock;
use crate::state::StateFile;
use crate::supervise::Supervisor;
use crate::{files, log_file, orphans, process, run_dir};

/// Repairs what an event missed.
const RESCAN_EVERY: Duration = Duration::from_secs(3);
/// Logs are looked at with every so many rescans.
const RESCANS_PER_LOG_LOOK: u32 = 5;

/// Looks after the processes of the data directory until `SIGTERM` or `SIGINT`, which end the
/// keeper alone: its processes go on, and the next keeper adopts them.
///
/// # Errors
/// [`KeeperError::AlreadyRunning`] when another keeper does so; [`KeeperError::DataReplaced`]
/// when the folder is removed under it; [`KeeperError::Io`] when its files cannot be made.
pub async fn run(data: &Path) -> Result<(), KeeperError> {
    let paths = KeeperPaths::new(data);
    for folder in [paths.root().to_owned(), paths.desired_dir(), paths.state_dir()] {
        files::make_private_dir(&folder).map_err(KeeperError::io("make", &folder))?;
    }
    let lock = Lock::take(data)?;
    // Without a terminal nothing that happens to one reaches us. Fails where we lead a group
    // already: then a person, or a service manager, has started us in a way of their own.
    let _ = rustix::process::setsid();
    raise_file_limit();
    tracing::info!(data = %data.display(), pid = std::process::id(), "keeper runs");

    let mut keeper = Keeper {
        data: data.to_owned(),
        folder: DesiredFolder::default(),
        supervised: HashMap::new(),
        guards: Guards::default(),
        paths,
    };
    let fence = FenceThread::start(keeper.guards.clone())
        .map_err(KeeperError::io("start a thread in", data))?;
    keeper.serve(&lock, fence).await
}

/// Servers and relays inherit the limit of open files; the default of many systems is 1024.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::info!(%error, "limit of open files stays as it is");
    }
}

struct Keeper {
    data: PathBuf,
    paths: KeeperPaths,
    folder: DesiredFolder,
    supervised: HashMap<String, Supervised>,
    guards: Guards,
}

struct Supervised {
    wish: watch::Sender<Arc<ProcessSpec>>,
    task: JoinHandle<()>,
    /// The desired file vanished without `removed`: reported once.
    is_unwished: bool,
}

impl Keeper {
    async fn serve(&mut self, lock: &Lock, mut fence: FenceThread) -> Result<(), KeeperError> {
        let mut terminate = signal(SignalKind::terminate())
            .map_err(KeeperError::io("listen to signals of", Path::new("the keeper")))?;
        let mut interrupt = signal(SignalKind::interrupt())
            .map_err(KeeperError::io("listen to signals of", Path::new("the keeper")))?;
        // Watch first, then read: what is written in between shows up twice, not never.
        let mut changes = watch_folder(&self.paths.desired_dir())
            .inspect_err(|error| tracing::warn!(%error, "no notice of changes, rescans only"))
            .ok();
        self.ensure_run_dir();
        self.adopt_all();
        let mut rescan = interval_at(Instant::now() + RESCAN_EVERY, RESCAN_EVERY);
        rescan.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut rescans = 0_u32;
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                () = next_change(&mut changes) => {}
                _ = rescan.tick() => {
                    if !lock.is_in_place(&self.data) {
                        return Err(KeeperError::DataReplaced { data: self.data.clone() });
                    }
                    lock.beat();
                    self.ensure_run_dir();
                    if !fence.is_alive() {
                        tracing::error!("the thread that watches leases has died, starting another");
                        fence = FenceThread::start(self.guards.clone())
                            .map_err(KeeperError::io("start a thread in", &self.data))?;
                    }
                    rescans = rescans.wrapping_add(1);
                    if rescans.is_multiple_of(RESCANS_PER_LOG_LOOK) {
                        self.rotate_logs();
                    }
                }
            }
            self.read_wishes(None);
        }
        tracing::info!("keeper ends, its processes go on");
        Ok(())
    }

    /// The first reading: what an earlier keeper started is found again.
    fn adopt_all(&mut self) {
        let machine = orphans::Running::scan().unwrap_or_else(|error| {
            tracing::error!(%error, "processes cannot be listed");
            orphans::Running::default()
        });
        self.read_wishes(Some(&Arc::new(machine)));
        self.tidy_states();
    }

    fn read_wishes(&mut self, machine: Option<&Arc<orphans::Running>>) {
        let paths = &self.paths;
        let remembered = |name: &str| {
            let state: Option<StateFile> = files::read_json(&paths.state(name)).ok()?;
            state?.spec
        };
        let wishes = match self.folder.read(&paths.desired_dir(), remembered) {
            Ok(wishes) => wishes,
            Err(error) => {
                tracing::error!(%error, "desired processes cannot be listed");
                return;
            }
        };
        self.set_guards(&wishes);
        for (name, supervised) in &mut self.supervised {
            let is_unwished = !wishes.contains_key(name) && !supervised.task.is_finished();
            if is_unwished && !supervised.is_unwished && !supervised.wish.borrow().removed {
                // Removal is said, never inferred from a file that is not there.
                tracing::warn!(name, "desired file vanished, its process is kept");
            }
            supervised.is_unwished = is_unwished;
        }
        self.supervised.retain(|_, supervised| !supervised.task.is_finished());
        for (name, spec) in wishes {
            match self.supervised.get(&name) {
                Some(supervised) => {
                    supervised.wish.send_if_modified(|wish| {
                        let changed = **wish != *spec;
                        if changed {
                            *wish = spec;
                        }
                        changed
                    });
                }
                None => {
                    let (wish, receiver) = watch::channel(spec);
                    let supervisor = Supervisor::new(self.paths.clone(), name.clone(), receiver);
                    let task = tokio::spawn(supervisor.run(machine.cloned()));
                    self.supervised.insert(name, Supervised { wish, task, is_unwished: false });
                }
            }
        }
    }

    fn set_guards(&self, wishes: &HashMap<String, Arc<ProcessSpec>>) {
        // A process whose wish vanished is kept, and so is the guard over its server.
        let unwished = self.supervised.iter().filter(|(name, supervised)| {
            !wishes.contains_key(*name) && !supervised.task.is_finished()
        });
        let unwished: Vec<_> =
            unwished.map(|(_, supervised)| Arc::clone(&supervised.wish.borrow())).collect();
        let guards = wishes
            .values()
            .chain(&unwished)
            .filter(|spec| !spec.removed)
            .filter_map(|spec| {
                let guard = spec.guard.clone()?;
                let lease = guard.lease.clone()?;
                Some(Fenced { instance: spec.instance.clone(), guard, lease })
            })
            .collect();
        self.guards.set(guards);
    }

    /// Marks of processes that nobody wishes for and that are dead mean nothing any more.
    fn tidy_states(&self) {
        let Ok(entries) = std::fs::read_dir(self.paths.state_dir()) else { return };
        for entry in entries.flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().trim_end_matches(".json").to_owned();
            if name.starts_with('.') || self.supervised.contains_key(&name) {
                continue;
            }
            let state: Option<StateFile> = files::read_json(&path).unwrap_or_default();
            if state.is_some_and(|state| process::is_alive(&state.mark)) {
                tracing::warn!(name, "process runs without a wish, it is left alone");
            } else if let Err(error) = files::remove_if_exists(&path) {
                tracing::warn!(name, %error, "old mark cannot be removed");
            }
        }
    }

    /// The folder of sockets is gone after a reboot, and `serve` may not be there to make it.
    fn ensure_run_dir(&self) {
        if let Err(error) = run_dir::ensure(&self.data) {
            tracing::error!(%error, "folder of sockets cannot be made");
        }
    }

    fn rotate_logs(&self) {
        let mut logs: HashSet<PathBuf> =
            self.supervised.values().map(|s| s.wish.borrow().log.clone()).collect();
        logs.insert(self.paths.log());
        for log in logs {
            if let Err(error) = log_file::rotate(&log, log_file::LARGEST_LOG) {
                tracing::warn!(log = %log.display(), %error, "log cannot be moved aside");
            }
        }
    }
}

type Changes = EventStream<Vec<u8>>;

fn watch_folder(folder: &Path) -> io::Result<Changes> {
    let inotify = Inotify::init()?;
    let mask = WatchMask::MOVED_TO | WatchMask::CLOSE_WRITE | WatchMask::DELETE;
    inotify.watches().add(folder, mask)?;
    inotify.into_event_stream(vec![0; 4096])
}

/// The next change of the folder; never, when it cannot be watched. Cancel-safe.
async fn next_change(changes: &mut Option<Changes>) {
    match changes {
        Some(stream) => match stream.next().await {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => *changes = None,
        },
        None => std::future::pending().await,
    }
}
