//! Stops everything of a data directory without removing anything.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use larder_keeper::process::{Handle, is_alive, mark_of};
use larder_keeper::{KeeperPaths, files};
use larder_model::local::{DataDir, ProcessMark, ProcessSpec};
use rustix::process::Signal;

/// Servers write what they still hold before they end; then they are killed.
const GRACE: Duration = Duration::from_secs(15);

/// What `larder keeper --stop` does: the same, when nobody would undo it.
///
/// # Errors
/// When the folder is not Larder's, or a running control plane would start everything again.
pub(crate) fn by_hand(data: &Path) -> anyhow::Result<()> {
    // A misspelt folder must not look like a job done.
    anyhow::ensure!(
        KeeperPaths::new(data).desired_dir().is_dir(),
        "{} is no data folder of Larder",
        data.display()
    );
    let _lock = crate::serve::lock(data)?;
    stop_all(data)
}

/// The keeper first, so that it starts nothing again; then agents and relays, so that nobody
/// takes a stopped server for a lost one; then the servers.
///
/// # Errors
/// When the keeper's files cannot be read. What could be stopped is stopped.
pub(crate) fn stop_all(data: &Path) -> anyhow::Result<()> {
    let paths = KeeperPaths::new(data);
    if let Some(pid) = larder_keeper::running_pid(data)? {
        end(mark_of(pid).ok().flatten().into_iter().collect());
    }
    let mut processes = Vec::new();
    let mut servers = Vec::new();
    let desired = match std::fs::read_dir(paths.desired_dir()) {
        Ok(listing) => listing.collect::<Result<Vec<_>, _>>()?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).context("listing the keeper's desired processes"),
    };
    for entry in desired {
        let Some(spec) = files::read_json::<ProcessSpec>(&entry.path()).unwrap_or_default() else {
            continue;
        };
        processes.extend(mark(&paths.state(&spec.name)));
        servers.extend(spec.guard.and_then(|guard| mark(&guard.server_file)));
    }
    end(processes);
    end(servers);
    remove_sockets(data);
    Ok(())
}

/// The folder of sockets is outside of the data directory; the next keeper makes it again.
fn remove_sockets(data: &Path) {
    let named = std::fs::read_to_string(DataDir(data.to_owned()).run_dir_file());
    let folder = named.map(|named| PathBuf::from(named.trim())).unwrap_or_default();
    let ours = folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("larder-"));
    if ours {
        // Sockets without a listener are harmless where this fails.
        let _ = std::fs::remove_dir_all(folder);
    }
}

fn mark(file: &Path) -> Option<ProcessMark> {
    files::read_json(file).ok().flatten()
}

/// Asks all of them to end, waits, kills who has not.
fn end(marks: Vec<ProcessMark>) {
    let marks: Vec<_> = marks.into_iter().filter(is_alive).collect();
    let signal_all = |signal| {
        for mark in marks.iter().filter(|mark| is_alive(mark)) {
            if let Ok(Some(process)) = Handle::open(mark) {
                // A process that ended meanwhile is what was asked for.
                let _ = process.signal(signal);
            }
        }
    };
    signal_all(Signal::TERM);
    let deadline = Instant::now() + GRACE;
    while marks.iter().any(is_alive) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    signal_all(Signal::KILL);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_larders_is_not_reported_as_stopped() {
        assert!(by_hand(Path::new("/nonexistent/larder-data")).is_err());
    }
}
