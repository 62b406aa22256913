//! The relay's main loop: everything that can change it is on one screen.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder_linklog::LinkLog;
use larder_model::EndpointKind;
use larder_model::local::{RelayBoot, RelayListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval};

use super::boot::{BootError, FolderWatch, read_boot, read_route};
use super::health::{Health, watch_health};
use super::limits::connection_permits;
use super::listener::{ListenerState, Shared, listen};
use super::status::{StatusSource, serve_status};
use super::view::{Stale, View};

/// Files are looked at this often even if nothing was reported: a lost notice costs no more.
const TICK: Duration = Duration::from_secs(2);

/// The relay cannot start.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error("starting the relay: {0}")]
    Boot(#[from] BootError),
    #[error("starting the relay: signals cannot be handled: {0}")]
    Signals(io::Error),
}

/// Runs the relay whose folder is `dir` until SIGTERM or SIGINT. Wants a runtime of one thread with
/// IO and time; leaves neither task nor socket behind when it is dropped.
///
/// # Errors
/// [`RelayError`] when `relay.json` is missing or wrong. Once it runs nothing ends it: ports that
/// are taken are tried again, files that become unreadable leave it with what it knows.
pub async fn run(dir: &Path) -> Result<(), RelayError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RelayError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RelayError::Signals)?;
    // Watched before it is read, so that no change falls between.
    let mut boot_watch = FolderWatch::new(dir);
    let mut relay = Relay::start(dir, read_boot(dir)?);
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = relay.route_watch.changed() => {
                relay.follow_route();
            }
            () = boot_watch.changed() => relay.follow_boot(),
            _ = tick.tick() => {
                relay.follow_boot();
                let missed = relay.follow_route();
                if missed || !relay.route_watch.is_watching() {
                    relay.route_watch.renew();
                    relay.follow_route();
                }
                if !boot_watch.is_watching() {
                    boot_watch.renew();
                }
            }
        }
    }
    tracing::info!(instance = %relay.boot.instance, "relay ends");
    Ok(())
}

struct Relay {
    dir: PathBuf,
    boot: RelayBoot,
    log: LinkLog,
    route_watch: FolderWatch,
    view: watch::Sender<Arc<View>>,
    kinds: watch::Sender<Vec<EndpointKind>>,
    shared: Shared,
    source: Arc<StatusSource>,
    listeners: Vec<(Arc<ListenerState>, Task)>,
    _health: Task,
    status: Task,
    /// The oldest refused route that was reported, so that it is reported once.
    reported_stale: Option<Stale>,
}

impl Relay {
    fn start(dir: &Path, boot: RelayBoot) -> Self {
        let (log, route_watch) = open_route(&boot.route_dir);
        let (view, view_seen) = watch::channel(Arc::new(View::default()));
        let (kinds, kinds_seen) = watch::channel(Vec::new());
        let health = Arc::new(Health::default());
        let shared = Shared {
            view: view_seen.clone(),
            health: Arc::clone(&health),
            permits: connection_permits(),
        };
        let source = Arc::new(StatusSource {
            instance: boot.instance.clone(),
            view: view_seen.clone(),
            health: Arc::clone(&health),
            listeners: Mutex::new((boot.generation, Vec::new())),
        });
        let status = Task::spawn(serve_status(boot.run_dir.clone(), Arc::clone(&source)));
        let mut relay = Self {
            dir: dir.to_owned(),
            log,
            route_watch,
            view,
            kinds,
            shared,
            source,
            listeners: Vec::new(),
            _health: Task::spawn(watch_health(health, view_seen, kinds_seen)),
            status,
            reported_stale: None,
            boot,
        };
        // Before the first client is accepted.
        relay.follow_route();
        relay.apply_boot();
        tracing::info!(instance = %relay.boot.instance, generation = relay.boot.generation, "relay runs");
        relay
    }

    /// Takes a newer route; false when there is none.
    fn follow_route(&mut self) -> bool {
        let Some((seq, route)) = read_route(&self.log) else { return false };
        let next = self.view.borrow().with_route(seq, route);
        match next {
            // Only its number is new: nobody has to be woken for that.
            Ok(next) if next.route == self.view.borrow().route => {
                self.view.send_if_modified(|view| {
                    *view = Arc::new(next);
                    false
                });
                true
            }
            Ok(next) => {
                if let Some(route) = &next.route {
                    tracing::info!(
                        instance = %self.boot.instance,
                        epoch = route.epoch,
                        write = route.write.as_ref().map(|t| t.node.as_str()),
                        read = route.read.len(),
                        hold = route.hold,
                        "route followed"
                    );
                }
                self.view.send_replace(Arc::new(next));
                true
            }
            Err(Stale::Known) => false,
            Err(stale @ Stale::OlderEpoch { known, offered }) => {
                if self.reported_stale != Some(stale) {
                    tracing::warn!(instance = %self.boot.instance, known, offered, "older route ignored");
                    self.reported_stale = Some(stale);
                }
                false
            }
        }
    }

    /// Reads `relay.json` again, when it has become another one.
    fn follow_boot(&mut self) {
        let boot = match read_boot(&self.dir) {
            Ok(boot) => boot,
            Err(error) => {
                tracing::warn!(instance = %self.boot.instance, %error, "going on with the former file");
                return;
            }
        };
        if boot == self.boot {
            return;
        }
        if boot.instance != self.boot.instance || boot.generation < self.boot.generation {
            tracing::warn!(
                instance = %self.boot.instance,
                generation = self.boot.generation,
                offered_instance = %boot.instance,
                offered_generation = boot.generation,
                "relay.json of another instance or an older generation ignored"
            );
            return;
        }
        if boot.route_dir != self.boot.route_dir {
            (self.log, self.route_watch) = open_route(&boot.route_dir);
        }
        if boot.run_dir != self.boot.run_dir {
            self.status = Task::spawn(serve_status(boot.run_dir.clone(), Arc::clone(&self.source)));
        }
        self.boot = boot;
        self.apply_boot();
        self.follow_route();
    }

    fn apply_boot(&mut self) {
        let members = self.view.borrow().with_members(&self.boot.members);
        if **self.view.borrow() != members {
            self.view.send_replace(Arc::new(members));
        }
        let wanted = &self.boot.listeners;
        self.listeners.retain(|(state, _)| wanted.contains(&state.config));
        let missing: Vec<RelayListener> = wanted
            .iter()
            .filter(|config| self.listeners.iter().all(|(state, _)| state.config != **config))
            .cloned()
            .collect();
        for config in missing {
            let state = Arc::new(ListenerState::new(config));
            let task = Task::spawn(listen(Arc::clone(&state), self.shared.clone()));
            self.listeners.push((state, task));
        }
        self.kinds.send_replace(self.boot.listeners.iter().map(|l| l.kind).collect());
        let states = self.listeners.iter().map(|(state, _)| Arc::clone(state)).collect();
        self.source.set_listeners(self.boot.generation, states);
    }
}

fn open_route(dir: &Path) -> (LinkLog, FolderWatch) {
    // Made when it is missing, so that the first route is noticed at once.
    let log = LinkLog::open(dir).unwrap_or_else(|error| {
        tracing::warn!(dir = %dir.display(), %error, "route folder cannot be made");
        LinkLog::at(dir)
    });
    let watch = FolderWatch::new(dir);
    (log, watch)
}

/// A task that ends when this is dropped.
struct Task(AbortHandle);

impl Task {
    fn spawn(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(work).abort_handle())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
