//! Processes of one data folder, as `/proc` shows them; killing them by their own pid.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// What a process of Larder is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Keeper,
    Serve,
    Agent,
    Relay,
    /// A Redis or Valkey server.
    Server,
    /// A server's child that writes a snapshot or an append-only file and ends.
    Saver,
    /// A short-lived command or something unknown.
    Other,
}

/// A living process that belongs to a data folder.
#[derive(Clone, Debug)]
pub struct Process {
    pub pid: u32,
    pub kind: Kind,
    pub argv: Vec<String>,
    pub cwd: Option<PathBuf>,
}

/// Every living process with a path of `data` in its arguments, or its working folder there
/// (servers rewrite their arguments, but work in their volume).
pub fn all_of(data: &Path) -> Vec<Process> {
    let text = data.to_string_lossy().into_owned();
    let own = std::process::id();
    let is_there = |p: &Process| {
        p.argv.iter().any(|arg| arg.contains(&text))
            || p.cwd.as_ref().is_some_and(|cwd| cwd.starts_with(&text))
    };
    pids().into_iter().filter(|pid| *pid != own).filter_map(read).filter(is_there).collect()
}

/// Every living process in the container of a pod of this name, on a test bed of this machine: the
/// one that was started with the name, and those in its process namespace.
pub fn all_of_pod(pod: &str) -> Vec<Process> {
    let named = format!("HOSTNAME={pod}");
    let began = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|b| *b == 0).any(|entry| entry == named.as_bytes())
    };
    let namespace = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let all = pids();
    let of_pod: Vec<PathBuf> =
        all.iter().filter(|p| began(p)).filter_map(|p| namespace(*p)).collect();
    let is_in = |pid: &u32| namespace(*pid).is_some_and(|own| of_pod.contains(&own));
    all.iter().copied().filter(is_in).filter_map(read).collect()
}

fn pids() -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let number = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    entries.filter_map(Result::ok).filter_map(number).collect()
}

fn read(pid: u32) -> Option<Process> {
    let argv = argv(pid)?;
    let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).ok();
    if !is_alive(pid) {
        return None;
    }
    let program = program_of(&argv);
    let role = |word: &str| argv.get(1).is_some_and(|arg| arg == word);
    let kind = if is_server(program) {
        if is_saver(pid, program) { Kind::Saver } else { Kind::Server }
    } else if role("serve") {
        Kind::Serve
    } else if role("keeper") {
        Kind::Keeper
    } else if role("agent") {
        Kind::Agent
    } else if role("proxy") {
        Kind::Relay
    } else {
        Kind::Other
    };
    Some(Process { pid, kind, argv, cwd })
}

fn argv(pid: u32) -> Option<Vec<String>> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let parts = line.split(|b| *b == 0).filter(|part| !part.is_empty());
    Some(parts.map(|part| String::from_utf8_lossy(part).into_owned()).collect())
}

fn program_of(argv: &[String]) -> &str {
    // A server's title is one argument: `/opt/redis-server 127.0.0.1:6379 [cluster]`.
    let path = argv.first().and_then(|title| title.split(' ').next()).unwrap_or_default();
    path.rsplit('/').next().unwrap_or(path)
}

/// In images every server has the same name.
fn is_server(program: &str) -> bool {
    program.starts_with("redis") || program.starts_with("valkey") || program == "server"
}

/// A saver has a title of its own (`redis-aof-rewrite`, `valkey-rdb-bgsave`, `redis-rdb-to-slaves`),
/// but that of its server in the first moment after the fork.
fn is_saver(pid: u32, program: &str) -> bool {
    let title = program.contains("-aof-") || program.contains("-rdb-");
    let of_server = || parent(pid).and_then(argv).is_some_and(|argv| is_server(program_of(&argv)));
    title || of_server()
}

fn stat_fields(pid: u32) -> Option<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything; what follows the last one is regular.
    let rest = stat.rsplit_once(") ")?.1;
    Some(rest.split_ascii_whitespace().map(str::to_owned).collect())
}

/// The letter of the process's state (`R`, `S`, `D`, `T`, `Z`), `None` when there is no process.
pub fn state(pid: u32) -> Option<char> {
    stat_fields(pid)?.first()?.chars().next()
}

/// The process that started it, or that took it over.
pub fn parent(pid: u32) -> Option<u32> {
    stat_fields(pid)?.get(1)?.parse().ok()
}

/// Alive, though it may be stopped.
pub fn is_alive(pid: u32) -> bool {
    state(pid).is_some_and(|s| s != 'Z' && s != 'X')
}

/// Clock ticks since boot at which the process started (field 22 of `/proc/<pid>/stat`).
pub fn start_ticks(pid: u32) -> Option<u64> {
    stat_fields(pid)?.get(19)?.parse().ok()
}

/// CPU time spent so far, user and system (fields 14 and 15), in clock ticks of 10 ms.
pub fn cpu_ticks(pid: u32) -> Option<u64> {
    let fields = stat_fields(pid)?;
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// `(Rss, Pss)` in bytes from `/proc/<pid>/smaps_rollup`.
pub fn memory(pid: u32) -> Option<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    Some((field("Rss:")?, field("Pss:")?))
}

fn send(pid: u32, signal: Signal) -> Result<()> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).context("not a pid")?;
    kill_process(raw, signal).with_context(|| format!("sending {signal:?} to {pid}"))
}

/// # Errors
/// There is no such process.
pub fn kill9(pid: u32) -> Result<()> {
    send(pid, Signal::KILL)
}

/// `kill -9` of several: one may die of another's death.
///
/// # Errors
/// One is not killed.
pub fn kill9_each(pids: &[u32]) -> Result<()> {
    for pid in pids {
        if let Err(error) = kill9(*pid)
            && is_alive(*pid)
        {
            return Err(error);
        }
    }
    Ok(())
}

/// # Errors
/// There is no such process.
pub fn terminate(pid: u32) -> Result<()> {
    send(pid, Signal::TERM)
}

/// # Errors
/// There is no such process.
pub fn sigstop(pid: u32) -> Result<()> {
    send(pid, Signal::STOP)
}

/// # Errors
/// There is no such process.
pub fn sigcont(pid: u32) -> Result<()> {
    send(pid, Signal::CONT)
}

/// Kills everything that belongs to `data`: those that start others first.
///
/// # Errors
/// Something is still there after 10 s.
pub fn kill_all_of(data: &Path) -> Result<()> {
    let began = Instant::now();
    let mut quiet = 0;
    loop {
        let mut found = all_of(data);
        found.sort_by_key(|p| p.kind);
        if found.is_empty() {
            quiet += 1;
            // Twice: one may have been between fork and exec.
            if quiet == 2 {
                return Ok(());
            }
        } else {
            quiet = 0;
        }
        for process in &found {
            // It may be gone already.
            let _ = kill9(process.pid);
        }
        if began.elapsed() > Duration::from_secs(10) {
            bail!("still there after 10 s of killing: {found:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
