//! What `/proc` tells of a process: whether it is the one that is meant, and its state.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use larder_model::local::ProcessMark;
use rustix::process::{Pid, WaitOptions, waitpid};

/// What the scheduler says of a process (`/proc/<pid>/stat`, field 3; proc_pid_stat(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunState {
    /// Running, or asleep until something happens.
    Normal,
    /// `D`: in the kernel, usually waiting for the disk.
    Disk,
    /// `T` or `t`: stopped by a signal or a debugger.
    Stopped,
    /// `Z` or `X`: exited, not waited for.
    Exited,
}

/// State, parent and start time of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) state: RunState,
    pub(crate) parent: u32,
    pub(crate) start_ticks: u64,
}

/// Reads `/proc/<pid>/stat`.
///
/// # Errors
/// `NotFound` when there is no such process.
pub(crate) fn stat(pid: u32) -> io::Result<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a stat line"))
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The command's name is in parentheses and may itself hold spaces and parentheses.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = match fields.next()? {
        "D" => RunState::Disk,
        "T" | "t" => RunState::Stopped,
        "Z" | "X" | "x" => RunState::Exited,
        _ => RunState::Normal,
    };
    let parent = fields.next()?.parse().ok()?;
    // Field 22; the state was field 3 and the parent field 4.
    let start_ticks = fields.nth(17)?.parse().ok()?;
    Some(Stat { state, parent, start_ticks })
}

/// The id of this boot, new with each start of the machine.
///
/// # Errors
/// When `/proc` is not there.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// The mark of a living process.
///
/// # Errors
/// When it is gone already.
pub(crate) fn mark(pid: u32) -> io::Result<ProcessMark> {
    Ok(ProcessMark { pid, start_ticks: stat(pid)?.start_ticks, boot_id: boot_id()? })
}

/// Whether the process of `mark` is still there and has not exited.
pub(crate) fn is_alive(mark: &ProcessMark) -> bool {
    boot_id().is_ok_and(|id| id == mark.boot_id)
        && stat(mark.pid)
            .is_ok_and(|s| s.start_ticks == mark.start_ticks && s.state != RunState::Exited)
}

/// The process whose standard output is `log` and which no other such process has started: a
/// server whose agent was killed between starting it and writing its mark. Children that the
/// server forked have the same output and are passed over.
pub(crate) fn writer_of(log: &Path) -> Option<u32> {
    let log = fs::canonicalize(log).ok()?;
    let own = std::process::id();
    let writers: Vec<u32> = fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != own && output(*pid).is_some_and(|path| path == log))
        .collect();
    writers.iter().copied().find(|pid| {
        stat(*pid).is_ok_and(|s| s.state != RunState::Exited && !writers.contains(&s.parent))
    })
}

fn output(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/fd/1")).ok()
}

/// Waits for exited children that nobody else here waits for: in a pod the agent is the first
/// process and inherits what its server leaves behind. `kept` is waited for by its owner.
pub(crate) fn reap_orphans(kept: Option<u32>) {
    let own = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else { return };
    let pids = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| Some(*pid) != kept);
    for pid in pids {
        let is_ours = stat(pid).is_ok_and(|s| s.parent == own && s.state == RunState::Exited);
        if is_ours && let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            // Somebody was faster: it is gone, which is what was wanted.
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_command_names_do_not_confuse_the_parser() {
        let line = "42 (a) b) R) T 7 42 42 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 9876 1 1";
        let stat = parse_stat(line).expect("parsed");
        assert_eq!(stat, Stat { state: RunState::Stopped, parent: 7, start_ticks: 9876 });
    }

    #[test]
    fn a_mark_names_this_life_of_the_pid_only() {
        let mut mark = mark(std::process::id()).expect("own process");
        assert!(is_alive(&mark));
        mark.start_ticks += 1;
        assert!(!is_alive(&mark));
    }
}
