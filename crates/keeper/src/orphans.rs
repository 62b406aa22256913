//! Finding processes that no mark names: whoever started them was killed before writing it.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use larder_model::local::{AgentBoot, Guard, ProcessMark};

use crate::{belongings, files, process, session};

/// Every process of this machine by its arguments, for finding what an earlier keeper started.
#[derive(Debug, Default)]
pub(crate) struct Running(HashMap<u32, Vec<String>>);

impl Running {
    pub(crate) fn scan() -> io::Result<Self> {
        Ok(Self(process::pids()?.map(|pid| (pid, process::arguments(pid))).collect()))
    }

    /// The oldest process that runs `argv`.
    pub(crate) fn find(&self, argv: &[String]) -> Option<ProcessMark> {
        self.0
            .iter()
            .filter(|(_, arguments)| session::runs(arguments, argv))
            .filter_map(|(pid, _)| process::mark_of(*pid).ok()?)
            .filter(|mark| is_ours(mark, argv))
            .min_by_key(|mark| mark.start_ticks)
    }
}

/// Whether the process of the mark runs `argv`, on this machine's files. Asked after the mark was
/// taken: a number that became another process's meanwhile has a mark that fits nobody.
fn is_ours(mark: &ProcessMark, argv: &[String]) -> bool {
    session::runs(&process::arguments(mark.pid), argv)
        && argv
            .last()
            .map(Path::new)
            .filter(|path| path.is_absolute())
            .is_none_or(|path| belongings::is_same_place(mark.pid, path))
}

/// Everything that still runs for a desired process that shall go: the process itself, however
/// often it was started, and the server of its guard with its children (background saves).
pub(crate) fn remains(argv: &[String], guard: Option<&Guard>) -> io::Result<Vec<ProcessMark>> {
    let mut remains: Vec<ProcessMark> = process::pids()?
        .filter_map(|pid| process::mark_of(pid).ok()?)
        .filter(|mark| is_ours(mark, argv))
        .collect();
    if let Some(guard) = guard {
        remains.extend(servers(guard)?);
    }
    Ok(remains)
}

/// The living server processes of a guard: the one in its mark, and those that run the node's
/// server binary with the node's folder as argument or working directory.
pub(crate) fn servers(guard: &Guard) -> io::Result<Vec<ProcessMark>> {
    let mut servers: Vec<ProcessMark> = match files::read_json(&guard.server_file) {
        Ok(mark) => mark.into_iter().filter(process::is_alive).collect(),
        // An unreadable mark must not keep the search from finding the server.
        Err(_) => Vec::new(),
    };
    let Some(folder) = guard.server_file.parent() else { return Ok(servers) };
    let binary = server_binary(folder);
    let runs = |pid| match &binary {
        Some(binary) => runs_binary(pid, binary),
        // The folder was deleted under the server, and its configuration with it.
        None => belongings::is_server(pid),
    };
    for pid in process::pids()? {
        if let Ok(Some(mark)) = process::mark_of(pid)
            && runs(pid)
            && belongs_to(pid, folder)
            && belongings::is_same_place(pid, folder)
            && !servers.contains(&mark)
        {
            servers.push(mark);
        }
    }
    Ok(servers)
}

fn server_binary(folder: &Path) -> Option<PathBuf> {
    let boot: AgentBoot = files::read_json(&folder.join("agent.json")).ok()??;
    Some(fs::canonicalize(&boot.server_binary).unwrap_or(boot.server_binary))
}

fn runs_binary(pid: u32, binary: &Path) -> bool {
    // Also when the file was replaced meanwhile, by an upgrade for example.
    belongings::link(pid, "exe").is_some_and(|exe| exe == binary)
}

fn belongs_to(pid: u32, folder: &Path) -> bool {
    let in_folder = |path: &Path| path.starts_with(folder);
    // Servers overwrite their arguments after they have changed to their folder, so that at any
    // time one of the two names the node.
    fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| in_folder(&cwd))
        || process::arguments(pid).iter().any(|argument| in_folder(Path::new(argument)))
}
