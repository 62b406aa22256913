//! The one server process: started, adopted, waited for and killed.
//!
//! The server survives its agent: it runs in a session of its own with its output in a file, and
//! the next agent adopts it by its [`ProcessMark`]. Waiting is done through a pidfd, which works
//! for children and adopted processes alike.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use larder_model::Timestamp;
use larder_model::local::ProcessMark;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;

use crate::damage::{self, Damage};
use crate::proc::{self, RunState};
use crate::{clock, files};

/// A server that lives for less than this has not started properly.
const SHORT_LIFE_MS: u64 = 3_000;
const BACKOFF_FIRST_MS: u64 = 200;
const BACKOFF_LAST_MS: u64 = 10_000;
/// Ticks per second in `/proc/<pid>/stat`: a constant of Linux' interface on x86-64 and Arm
/// (include/asm-generic/param.h), whatever the kernel's own timer does.
const USER_HZ: u64 = 100;
/// How much of what a server wrote is looked at for the reason of its end: the report on a broken
/// snapshot is long.
const JUDGED: u64 = 64 << 10;
/// `server.log` is cut when it has grown beyond this.
const LOG_BYTES: u64 = 8 << 20;

/// A living server process.
pub(crate) struct Running {
    pub(crate) mark: ProcessMark,
    pub(crate) since: Timestamp,
    pub(crate) started_wall: Timestamp,
    child: Option<Child>,
    pidfd: AsyncFd<OwnedFd>,
    /// Length of the log when it was started: its own words come after.
    log_start: u64,
}

/// How a server process ended.
#[derive(Clone, Debug)]
pub(crate) struct Exit {
    pub(crate) mark: ProcessMark,
    /// `signal 9`, `exit code 1`, or `unknown` for an adopted process.
    pub(crate) how: String,
    pub(crate) lived: larder_model::Millis,
    /// The last lines that it wrote, joined; empty when it wrote none.
    pub(crate) last_words: String,
    /// What of its own files it could not load, by its own word.
    pub(crate) damage: Option<Damage>,
}

/// Supervises the process of one node.
pub(crate) struct Supervisor {
    mark_file: PathBuf,
    log: PathBuf,
    running: Option<Running>,
    /// Deaths at once in a row.
    short_lives: u32,
    not_before: Timestamp,
}

impl Supervisor {
    pub(crate) fn new(mark_file: PathBuf, log: PathBuf) -> Self {
        Self { mark_file, log, running: None, short_lives: 0, not_before: Timestamp(0) }
    }

    pub(crate) fn running(&self) -> Option<&Running> {
        self.running.as_ref()
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.mark.pid)
    }

    /// What the scheduler says of the server; `None` when there is none.
    pub(crate) fn run_state(&self) -> Option<RunState> {
        let running = self.running.as_ref()?;
        Some(proc::stat(running.mark.pid).map_or(RunState::Exited, |stat| stat.state))
    }

    /// Takes over a server that a former agent has started. Answers whether there was one.
    pub(crate) fn adopt(&mut self) -> io::Result<bool> {
        let marked = fs::read(&self.mark_file)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<ProcessMark>(&bytes).ok())
            .filter(proc::is_alive);
        let mark = match marked {
            Some(mark) => mark,
            None => match proc::writer_of(&self.log).map(proc::mark) {
                Some(Ok(mark)) => {
                    self.write_mark(&mark);
                    mark
                }
                // It has ended meanwhile.
                Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                Some(Err(error)) => return Err(error),
                None => return Ok(false),
            },
        };
        let pidfd = open_pidfd(mark.pid)?;
        // Between reading the mark and opening the pidfd the pid may have gone to another process.
        if !proc::is_alive(&mark) {
            return Ok(false);
        }
        let log_start = fs::metadata(&self.log).map_or(0, |meta| meta.len());
        let age = age_ms(mark.start_ticks);
        self.running = Some(Running {
            mark,
            since: clock::monotonic() - larder_model::Millis(age),
            started_wall: clock::wall() - larder_model::Millis(age),
            child: None,
            pidfd,
            log_start,
        });
        Ok(true)
    }

    /// When a start is allowed again after deaths at once.
    pub(crate) fn not_before(&self) -> Timestamp {
        self.not_before
    }

    /// Forgets earlier deaths: a person or an order wants a start now.
    pub(crate) fn forget_deaths(&mut self) {
        self.short_lives = 0;
        self.not_before = Timestamp(0);
    }

    pub(crate) fn short_lives(&self) -> u32 {
        self.short_lives
    }

    /// Starts the server. The caller has seen to it that none runs.
    ///
    /// # Errors
    /// When the log cannot be opened or the binary cannot be run.
    pub(crate) fn start(&mut self, binary: &Path, args: &[String], dir: &Path) -> io::Result<u32> {
        let log = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.log)?;
        let log_start = log.metadata()?.len();
        let mut command = own_session(binary);
        command
            .args(args)
            .current_dir(dir)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut child = command.spawn()?;
        let pid = child.id();
        let opened = open_pidfd(pid).and_then(|pidfd| Ok((pidfd, proc::mark(pid)?)));
        let (pidfd, mark) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                // Without a pidfd it could not be supervised; our own child cannot be another's.
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        self.write_mark(&mark);
        self.running = Some(Running {
            mark,
            since: clock::monotonic(),
            started_wall: clock::wall(),
            child: Some(child),
            pidfd,
            log_start,
        });
        Ok(pid)
    }

    /// Waits until the server has exited; never completes while there is none. Cancel-safe.
    pub(crate) async fn wait(&mut self) -> Exit {
        let Some(running) = &self.running else { return std::future::pending().await };
        // A pidfd becomes readable when its process has exited (pidfd_open(2)); an error of the
        // reactor is no exit, so look at the process itself.
        loop {
            match running.pidfd.readable().await {
                Ok(mut guard) => {
                    if !proc::is_alive(&running.mark) {
                        break;
                    }
                    guard.clear_ready();
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
        self.reap()
    }

    /// Kills the server and waits for its end, two seconds at most: a process in an
    /// uninterruptible wait goes only when the kernel lets it. Answers `None` when it is still
    /// there or there was none.
    pub(crate) async fn kill(&mut self) -> Option<Exit> {
        let running = self.running.as_ref()?;
        if let Err(error) = pidfd_send_signal(running.pidfd.get_ref(), Signal::KILL) {
            tracing::debug!(pid = running.mark.pid, %error, "kill");
        }
        tokio::time::timeout(Duration::from_secs(2), self.wait()).await.ok()
    }

    fn reap(&mut self) -> Exit {
        let Some(mut running) = self.running.take() else {
            unreachable!("reap is called by wait, which has seen a running process")
        };
        let how = match running.child.as_mut().map(Child::wait) {
            Some(Ok(status)) => describe(status),
            _ => "unknown".to_owned(),
        };
        let now = clock::monotonic();
        let lived = now.since(running.since);
        if lived.0 < SHORT_LIFE_MS {
            let delay = (BACKOFF_FIRST_MS << self.short_lives.min(10)).min(BACKOFF_LAST_MS);
            self.short_lives += 1;
            // The first early death may be an accident (a kill in a test of somebody's patience).
            if self.short_lives > 1 {
                self.not_before = now + larder_model::Millis(delay);
            }
        } else {
            self.short_lives = 0;
        }
        // The mark stays: it names a dead process, which everybody checks, and on a full disk the
        // next one is written where it is.
        Exit {
            mark: running.mark,
            how,
            lived,
            last_words: last_words(&self.log, running.log_start),
            damage: damage::judge(&written(&self.log, running.log_start, JUDGED)),
        }
    }

    fn write_mark(&self, mark: &ProcessMark) {
        let Ok(bytes) = serde_json::to_vec(mark) else { return };
        let bytes = files::with_room(bytes, 0);
        if let Err(error) = files::write_or_overwrite(&self.mark_file, &bytes) {
            // An agent that comes after us finds the server by its output file instead.
            tracing::warn!(path = %self.mark_file.display(), %error, "server mark not written");
        }
    }

    /// Keeps `server.log` bounded: the newest part goes to `server.log.1` and the file is cut in
    /// place, because the server holds it open for appending.
    pub(crate) fn trim_log(&mut self) {
        let Ok(meta) = fs::metadata(&self.log) else { return };
        if meta.len() <= LOG_BYTES {
            return;
        }
        let mut old = self.log.clone().into_os_string();
        old.push(".1");
        let _ = fs::copy(&self.log, old);
        if let Ok(file) = OpenOptions::new().write(true).open(&self.log) {
            let _ = file.set_len(0);
        }
        if let Some(running) = &mut self.running {
            running.log_start = 0;
        }
    }
}

/// A command in a session of its own. Safe Rust cannot call `setsid` between fork and exec, so
/// `setsid(1)` of util-linux does it: it does not fork when it is no group leader, so the pid
/// stays. Without it a process group of its own has to do.
fn own_session(binary: &Path) -> Command {
    for setsid in ["/usr/bin/setsid", "/bin/setsid"] {
        if Path::new(setsid).exists() {
            let mut command = Command::new(setsid);
            command.arg(binary);
            return command;
        }
    }
    let mut command = Command::new(binary);
    command.process_group(0);
    command
}

fn open_pidfd(pid: u32) -> io::Result<AsyncFd<OwnedFd>> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a pid"))?;
    let fd =
        pidfd_open(pid, PidfdFlags::NONBLOCK).or_else(|_| pidfd_open(pid, PidfdFlags::empty()))?;
    #[expect(
        deprecated,
        reason = "deprecated for types whose descriptor may change under it; an OwnedFd's cannot, \
                  and the replacement is unsafe to call"
    )]
    AsyncFd::with_interest(fd, tokio::io::Interest::READABLE)
}

/// How long ago a process started, from its ticks since boot.
fn age_ms(start_ticks: u64) -> u64 {
    let started = start_ticks * (1000 / USER_HZ);
    u64::try_from(clock::monotonic().0).unwrap_or(0).saturating_sub(started)
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".to_owned(),
    }
}

/// What the server wrote to the log since `start`, the last `limit` bytes at most.
fn written(log: &Path, start: u64, limit: u64) -> String {
    let Ok(mut file) = fs::File::open(log) else { return String::new() };
    let length = file.metadata().map_or(0, |meta| meta.len());
    let from = start.max(length.saturating_sub(limit)).min(length);
    let mut bytes = Vec::new();
    if file.seek(SeekFrom::Start(from)).and_then(|_| file.read_to_end(&mut bytes)).is_err() {
        return String::new();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The last lines of the log that are not decoration, three at most and 600 bytes.
fn last_words(log: &Path, start: u64) -> String {
    let text = written(log, start, 4096);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut words = lines[lines.len().saturating_sub(3)..].join(" | ");
    while words.len() > 600 {
        let _ = words.remove(0);
    }
    words
}

/// Whether a TCP port can be listened on now.
pub(crate) fn port_is_free(host: &str, port: u16) -> bool {
    match std::net::TcpListener::bind((host, port)) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::AddrInUse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supervisor(folder: &Path) -> Supervisor {
        Supervisor::new(folder.join("server.json"), folder.join("server.log"))
    }

    fn shell(script: &str) -> Vec<String> {
        vec!["-c".to_owned(), script.to_owned()]
    }

    #[tokio::test]
    async fn exit_code_and_last_words_are_told() {
        let folder = tempfile::tempdir().expect("temp dir");
        let mut server = supervisor(folder.path());
        let script = shell("echo one; echo '*** FATAL two' >&2; exit 3");
        server.start(Path::new("/bin/sh"), &script, folder.path()).expect("started");
        let exit = tokio::time::timeout(Duration::from_secs(5), server.wait()).await.expect("exit");
        assert_eq!(exit.how, "exit code 3");
        assert_eq!(exit.last_words, "one | *** FATAL two");
        assert!(server.running().is_none());
    }

    #[tokio::test]
    async fn a_living_server_is_adopted_even_without_its_mark() {
        let folder = tempfile::tempdir().expect("temp dir");
        let mut first = supervisor(folder.path());
        let pid = first
            .start(Path::new("/bin/sleep"), &["60".to_owned()], folder.path())
            .expect("started");
        fs::remove_file(folder.path().join("server.json")).expect("mark");
        let mut second = supervisor(folder.path());
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while !second.adopt().expect("adopt") {
            assert!(std::time::Instant::now() < deadline, "not adopted");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(second.pid(), Some(pid));
        let exit = first.kill().await.expect("killed");
        assert_eq!(exit.how, "signal 9");
        tokio::time::timeout(Duration::from_secs(5), second.wait()).await.expect("seen by both");
    }

    #[tokio::test]
    async fn a_server_that_dies_at_once_is_not_started_in_a_busy_loop() {
        let folder = tempfile::tempdir().expect("temp dir");
        let mut server = supervisor(folder.path());
        for _ in 0..4 {
            server.start(Path::new("/bin/sh"), &shell("exit 1"), folder.path()).expect("started");
            server.wait().await;
        }
        let delay = server.not_before().since(clock::monotonic());
        assert!(delay.0 > 1000, "{delay}");
    }
}
