//! One desired process: started, watched, started again, removed. One task each.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use larder_model::local::ProcessSpec;
use rustix::process::Signal;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::backoff::Backoff;
use crate::paths::KeeperPaths;
use crate::process::{self, AsyncHandle, End, Handle};
use crate::state::{LastEnd, StateFile};
use crate::{clock, fence, files, health, log_file, orphans, session};

/// A process whose command line changed has this long to end by itself.
const TERM_GRACE: Duration = Duration::from_secs(2);
/// A killed process in uninterruptible sleep can take a while.
const KILL_DEADLINE: Duration = Duration::from_secs(5);
/// `/proc` counts in ticks of 1/100 s on every architecture that Larder is built for.
const TICKS_PER_SECOND: u64 = 100;
/// From this wait on a process is plainly failing, and somebody should look.
const FAILING: Duration = Duration::from_millis(800);

/// A living process.
#[derive(Debug)]
pub(crate) struct Running {
    handle: AsyncHandle,
    argv: Vec<String>,
}

/// Keeps one process as its wish says.
#[derive(Debug)]
pub(crate) struct Supervisor {
    paths: KeeperPaths,
    name: String,
    wish: watch::Receiver<Arc<ProcessSpec>>,
    backoff: Backoff,
    /// How often it was started again, and why last.
    restarts: u64,
    last_end: Option<LastEnd>,
}

impl Supervisor {
    pub(crate) fn new(
        paths: KeeperPaths,
        name: String,
        wish: watch::Receiver<Arc<ProcessSpec>>,
    ) -> Self {
        Self { paths, name, wish, backoff: Backoff::default(), restarts: 0, last_end: None }
    }

    /// Runs until the process was removed, or the sender of wishes is gone (the keeper ends, the
    /// process goes on). `machine` is what runs on this machine, when that is worth a look.
    pub(crate) async fn run(mut self, machine: Option<Arc<orphans::Running>>) {
        let mut running = self.adopt(machine.as_deref());
        let mut not_before = Instant::now();
        loop {
            let spec = Arc::clone(&self.wish.borrow_and_update());
            if spec.removed {
                self.remove(&spec, running).await;
                return;
            }
            let Some(process) = running.take() else {
                tokio::select! {
                    () = sleep_until(not_before) => {}
                    changed = self.wish.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        if self.wish.borrow().argv != spec.argv {
                            not_before = Instant::now();
                        }
                        continue;
                    }
                }
                match self.start(&spec) {
                    Ok(process) => running = Some(process),
                    Err(error) => {
                        let wait = self.backoff.ended_after(Duration::ZERO);
                        tracing::error!(
                            name = self.name, program = spec.argv[0], %error,
                            "process cannot be started"
                        );
                        not_before = Instant::now() + wait;
                    }
                }
                continue;
            };
            if process.argv != spec.argv {
                tracing::info!(name = self.name, "command line changed, process restarts");
                stop(&process).await;
                not_before = Instant::now();
                continue;
            }
            let pid = process.handle.mark().pid;
            tokio::select! {
                end = process.handle.exited() => {
                    not_before = Instant::now() + self.ended(&process, end);
                }
                changed = self.wish.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // The next keeper may have nothing else to go by.
                    self.write_mark(&process);
                    running = Some(process);
                }
                stuck = health::until_stuck(pid, spec.ping_socket.as_deref()) => {
                    tracing::warn!(name = self.name, pid, reason = %stuck, "process killed");
                    if kill(&process).await {
                        self.note_end(format!("it was killed, because it {stuck}"));
                        not_before = Instant::now();
                    } else {
                        running = Some(process);
                    }
                }
            }
        }
    }

    /// The process of an earlier keeper: by its mark, else by its command line, because a keeper
    /// can be killed between starting a process and writing its mark.
    fn adopt(&mut self, machine: Option<&orphans::Running>) -> Option<Running> {
        let path = self.paths.state(&self.name);
        let state: Option<StateFile> = files::read_json(&path).unwrap_or_else(|error| {
            tracing::warn!(name = self.name, %error, "mark cannot be read");
            None
        });
        let spec = Arc::clone(&self.wish.borrow());
        if let Some(state) = &state {
            self.restarts = state.restarts;
            self.last_end.clone_from(&state.last_end);
        }
        // With the machine everything ends; that is no news of one process.
        let had_died = state.as_ref().is_some_and(|state| {
            process::boot_id().is_ok_and(|boot| boot == state.mark.boot_id)
                && !process::is_alive(&state.mark)
        });
        let (mark, argv) = match state.filter(|state| process::is_alive(&state.mark)) {
            Some(state) => (state.mark, state.argv),
            None => match machine.and_then(|machine| machine.find(&spec.argv)) {
                Some(mark) => (mark, spec.argv.clone()),
                None => {
                    if had_died && !spec.removed {
                        self.note_end("it had ended while no keeper ran".to_owned());
                    }
                    return None;
                }
            },
        };
        let handle = Handle::open(&mark).and_then(|h| h.map(Handle::into_async).transpose());
        match handle {
            Ok(handle) => {
                let running = Running { handle: handle?, argv };
                tracing::info!(name = self.name, pid = mark.pid, "process adopted");
                self.write_mark(&running);
                Some(running)
            }
            Err(error) => {
                tracing::error!(name = self.name, pid = mark.pid, %error, "cannot adopt process");
                None
            }
        }
    }

    fn start(&self, spec: &ProcessSpec) -> io::Result<Running> {
        let log = log_file::open(&spec.log)
            .inspect_err(|error| {
                tracing::warn!(name = self.name, log = %spec.log.display(), %error,
                    "log cannot be opened, output is dropped");
            })
            .ok();
        let mut child = session::command(&spec.argv, log)?.spawn()?;
        let handle = Handle::of_child(&child).and_then(Handle::into_async);
        let handle = match handle {
            Ok(handle) => handle,
            Err(error) => {
                // Nobody could watch it, so it must not run.
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        let running = Running { handle, argv: spec.argv.clone() };
        self.write_mark(&running);
        tracing::info!(name = self.name, pid = running.handle.mark().pid, "process started");
        Ok(running)
    }

    /// A mark that cannot be written (full disk) does not keep the process from running: the next
    /// keeper finds it by its command line.
    fn write_mark(&self, running: &Running) {
        let state = StateFile {
            mark: running.handle.mark().clone(),
            argv: running.argv.clone(),
            spec: Some((**self.wish.borrow()).clone()),
            restarts: self.restarts,
            last_end: self.last_end.clone(),
        };
        if let Err(error) = files::write_json_volatile(&self.paths.state(&self.name), &state) {
            tracing::warn!(name = self.name, %error, "mark cannot be written");
        }
    }

    /// Remembers why the next start is one more; the next mark tells it to who wants to know.
    fn note_end(&mut self, how: String) {
        self.restarts += 1;
        self.last_end = Some(LastEnd { at: clock::wall(), how });
    }

    /// Takes note of an end; answers how long to wait before the next start.
    fn ended(&mut self, process: &Running, end: End) -> Duration {
        let mark = process.handle.mark().clone();
        self.note_end(in_words(end));
        let started = Duration::from_millis(mark.start_ticks * (1000 / TICKS_PER_SECOND));
        let life = fence::since_boot().saturating_sub(started);
        let wait = self.backoff.ended_after(life);
        let life_ms = u64::try_from(life.as_millis()).unwrap_or(u64::MAX);
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        if wait >= FAILING {
            tracing::warn!(
                name = self.name,
                pid = mark.pid,
                status = %end,
                life_ms,
                wait_ms,
                "process keeps ending"
            );
        } else {
            tracing::info!(name = self.name, pid = mark.pid, status = %end, life_ms, wait_ms, "ended");
        }
        wait
    }

    /// Tries until everything is gone; then nothing of the process is left, files included.
    async fn remove(&self, spec: &ProcessSpec, mut running: Option<Running>) {
        loop {
            match self.try_remove(spec, &mut running).await {
                Ok(()) => {
                    tracing::info!(name = self.name, "process removed");
                    return;
                }
                Err(error) => {
                    tracing::error!(name = self.name, %error, "process cannot be removed yet");
                    sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    async fn try_remove(
        &self,
        spec: &ProcessSpec,
        running: &mut Option<Running>,
    ) -> io::Result<()> {
        // The agent first, because it would start its server again.
        if let Some(process) = running {
            if !kill(process).await {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "killed, and does not end"));
            }
            *running = None;
        }
        let deadline = Instant::now() + KILL_DEADLINE;
        loop {
            let remains = orphans::remains(&spec.argv, spec.guard.as_ref())?;
            if remains.is_empty() {
                break;
            }
            if Instant::now() >= deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "its server does not end"));
            }
            for mark in &remains {
                let Some(handle) = Handle::open(mark)? else { continue };
                let handle = handle.into_async()?;
                handle.signal(Signal::KILL)?;
                let _ = timeout(KILL_DEADLINE, handle.exited()).await;
            }
        }
        if let Some(socket) = &spec.ping_socket {
            files::remove_if_exists(socket)?;
        }
        files::remove_if_exists(&self.paths.state(&self.name))?;
        // Somebody may have wished for a successor of the same name meanwhile.
        let desired = self.paths.desired(&self.name);
        match files::read_json::<ProcessSpec>(&desired) {
            Ok(Some(successor)) if !successor.removed => Ok(()),
            _ => files::remove_if_exists(&desired),
        }
    }
}

fn in_words(end: End) -> String {
    match end {
        End::Killed(signal) => format!("it was killed by signal {signal}"),
        End::Exited(_) => format!("it had ended with {end}"),
        End::Unknown => "it had ended".to_owned(),
    }
}

/// Asks a process to end, and makes it end.
async fn stop(process: &Running) {
    if process.handle.signal(Signal::TERM).is_ok()
        && timeout(TERM_GRACE, process.handle.exited()).await.is_ok()
    {
        return;
    }
    kill(process).await;
}

/// Kills a process; answers whether it has ended.
async fn kill(process: &Running) -> bool {
    if let Err(error) = process.handle.signal(Signal::KILL) {
        tracing::error!(pid = process.handle.mark().pid, %error, "process cannot be killed");
        return false;
    }
    timeout(KILL_DEADLINE, process.handle.exited()).await.is_ok()
}
