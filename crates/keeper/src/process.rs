//! Processes by their mark: a pid alone is reused, pid + start time + boot id are not.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use larder_model::local::ProcessMark;
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Fields of `/proc/<pid>/stat` (proc(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// `R`, `S`, `D`, `T` (stopped by a signal), `Z` …
    pub state: char,
    /// Field 4: the pid of its parent.
    pub parent: u32,
    /// Field 22: clock ticks since boot.
    pub start_ticks: u64,
}

impl Stat {
    /// Gone in all but name: it runs no code and holds no file.
    pub fn is_dead(self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }

    /// Held by a signal, until another one lets it go on.
    pub fn is_stopped(self) -> bool {
        self.state == 'T'
    }
}

/// `None` when there is no such process.
pub fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name of the program stands in brackets and may hold spaces and brackets itself.
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    // The one after it is number 5.
    let start_ticks = fields.nth(22 - 5)?.parse().ok()?;
    Some(Stat { state, parent, start_ticks })
}

/// Differs from boot to boot, and from machine to machine.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn boot_id() -> io::Result<&'static str> {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    if let Some(id) = BOOT_ID.get() {
        return Ok(id);
    }
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    Ok(BOOT_ID.get_or_init(|| id))
}

/// The mark of a process that runs now; `None` when there is none (any more).
///
/// # Errors
/// When `/proc` cannot be read.
pub fn mark_of(pid: u32) -> io::Result<Option<ProcessMark>> {
    let boot_id = boot_id()?.to_owned();
    Ok(stat(pid).filter(|stat| !stat.is_dead()).map(|stat| ProcessMark {
        pid,
        start_ticks: stat.start_ticks,
        boot_id,
    }))
}

/// Whether the marked process still runs. A zombie does not.
pub fn is_alive(mark: &ProcessMark) -> bool {
    boot_id().is_ok_and(|id| id == mark.boot_id)
        && stat(mark.pid).is_some_and(|s| s.start_ticks == mark.start_ticks && !s.is_dead())
}

/// The arguments that a process runs with; empty for one that is gone.
pub fn arguments(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut arguments: Vec<String> =
        bytes.split(|b| *b == 0).map(|a| String::from_utf8_lossy(a).into_owned()).collect();
    // Each argument is followed by a zero byte.
    arguments.pop();
    arguments
}

/// All pids of this machine, except this process' own.
pub fn pids() -> io::Result<impl Iterator<Item = u32>> {
    let own = std::process::id();
    Ok(fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(move |pid| *pid != own))
}

/// A process that is held by a pidfd: it is signalled or waited for, never its successor by pid.
#[derive(Debug)]
pub struct Handle {
    mark: ProcessMark,
    pidfd: OwnedFd,
}

impl Handle {
    /// `None` when the marked process is gone.
    ///
    /// # Errors
    /// When the system has no room for another descriptor.
    pub fn open(mark: &ProcessMark) -> io::Result<Option<Self>> {
        if boot_id()? != mark.boot_id {
            return Ok(None);
        }
        let Some(pid) = i32::try_from(mark.pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(Errno::SRCH | Errno::INVAL) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // First the descriptor, then the check: what has the marked start time now had the pid
        // already when the descriptor was opened.
        Ok(is_alive(mark).then(|| Self { mark: mark.clone(), pidfd }))
    }

    /// Holds a child that nobody has waited for yet; also one that has ended already.
    pub fn of_child(child: &std::process::Child) -> io::Result<Self> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, "the process is gone");
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        let start_ticks = stat(child.id()).ok_or_else(gone)?.start_ticks;
        let mark = ProcessMark { pid: child.id(), start_ticks, boot_id: boot_id()?.to_owned() };
        Ok(Self { mark, pidfd })
    }

    pub fn mark(&self) -> &ProcessMark {
        &self.mark
    }

    /// Sends a signal; to a process that has ended meanwhile it is no error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// For waiting in the current tokio runtime.
    // `with_interest` is deprecated for descriptors that can change under it; an `OwnedFd` is one
    // descriptor for all its life. Its successors are `unsafe`.
    #[allow(deprecated)]
    pub fn into_async(self) -> io::Result<AsyncHandle> {
        let Self { mark, pidfd } = self;
        Ok(AsyncHandle { mark, pidfd: AsyncFd::with_interest(pidfd, Interest::READABLE)? })
    }
}

/// A [`Handle`] that can be waited for.
#[derive(Debug)]
pub struct AsyncHandle {
    mark: ProcessMark,
    pidfd: AsyncFd<OwnedFd>,
}

impl AsyncHandle {
    pub fn mark(&self) -> &ProcessMark {
        &self.mark
    }

    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(self.pidfd.get_ref(), signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the process has ended, whoever's child it is, and reaps it when it is ours.
    /// Cancel-safe.
    pub async fn exited(&self) -> End {
        // A pidfd becomes readable when its process ends and stays so (pidfd_open(2)).
        let _ = self.pidfd.readable().await;
        reap(&self.pidfd)
    }
}

/// How a process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with this code.
    Exited(i32),
    /// By this signal.
    Killed(i32),
    /// It was not our child, or somebody else has reaped it.
    Unknown,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit code {code}"),
            Self::Killed(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

fn reap(pidfd: &AsyncFd<OwnedFd>) -> End {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    match waitid(WaitId::PidFd(pidfd.get_ref().as_fd()), options) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => End::Exited(code),
            (None, Some(signal)) => End::Killed(signal),
            (None, None) => End::Unknown,
        },
        // Not our child: whoever it belongs to reaps it.
        Ok(None) | Err(_) => End::Unknown,
    }
}

/// Kills the marked process at once (`SIGKILL`). Answers whether there was one to kill.
///
/// # Errors
/// When it runs and may not be killed.
pub fn kill(mark: &ProcessMark) -> io::Result<bool> {
    match Handle::open(mark)? {
        Some(handle) => handle.signal(Signal::KILL).map(|()| true),
        None => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_brackets_and_spaces_is_no_trap() {
        let line = "17 (a) b) (c) T 1 17 17 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 2 3";
        assert_eq!(parse_stat(line), Some(Stat { state: 'T', parent: 1, start_ticks: 4242 }));
    }

    #[test]
    fn own_process_is_alive_and_another_start_time_is_another_process() {
        let mark = mark_of(std::process::id()).expect("proc").expect("alive");
        assert!(is_alive(&mark));
        let reused = ProcessMark { start_ticks: mark.start_ticks + 1, ..mark.clone() };
        assert!(!is_alive(&reused));
        assert!(Handle::open(&reused).expect("open").is_none());
        let other_boot = ProcessMark { boot_id: "other".to_owned(), ..mark };
        assert!(!is_alive(&other_boot));
    }

    #[test]
    fn a_zombie_is_not_alive() {
        let mut child = std::process::Command::new("true").spawn().expect("spawn");
        let ended = || stat(child.id()).is_none_or(Stat::is_dead);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while !ended() && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert_eq!(mark_of(child.id()).expect("proc"), None);
        child.wait().expect("reap");
    }
}
