//! Stops everything of a data directory without removing anything.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use larder_keeper::process::{Handle, is_alive};
use larder_keeper::{Belongings, KeeperPaths, run_dir};
use larder_model::local::ProcessMark;
use rustix::process::Signal;

/// Servers write what they still hold before they end; then they are killed.
const GRACE: Duration = Duration::from_secs(15);
/// What was just being started while the others ended is found by the next look.
const PASSES: usize = 3;
/// A killed process in uninterruptible sleep can take a while.
const KILLED: Duration = Duration::from_secs(5);

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
    // As processes were told it, and as the system names their folders.
    stop_all(&data.canonicalize().context("finding the data folder")?)
}

/// The keeper first, so that it starts nothing again; then agents and relays, so that nobody
/// takes a stopped server for a lost one; then the servers. `data` is an absolute path without
/// links.
///
/// # Errors
/// When processes cannot be listed, or some do not end. What could be stopped is stopped.
pub(crate) fn stop_all(data: &Path) -> anyhow::Result<()> {
    let find = || Belongings::find(data).context("looking for the processes of the data folder");
    for _ in 0..PASSES {
        end(find()?.keepers);
        // Which servers are an agent's can be told for as long as the agent lives.
        let found = find()?;
        end(found.supervised);
        let late = find()?;
        end(found.servers.into_iter().chain(late.servers).collect());
        if find()?.is_empty() {
            larder_keeper::forget_ended(data).context("tidying the keeper's folder")?;
            // Outside of the data directory; sockets without a listener are harmless.
            if let Err(error) = run_dir::remove(data) {
                tracing::info!(%error, "the folder of sockets stays");
            }
            return Ok(());
        }
    }
    let left = find()?;
    let pids: Vec<String> = (left.keepers.iter().chain(&left.supervised).chain(&left.servers))
        .map(|mark| mark.pid.to_string())
        .collect();
    anyhow::ensure!(pids.is_empty(), "these processes do not end: {}", pids.join(", "));
    Ok(())
}

/// Asks all of them to end, waits, kills who has not.
fn end(marks: Vec<ProcessMark>) {
    let marks: Vec<_> = marks.into_iter().filter(is_alive).collect();
    let signal_all = |signal| {
        for mark in marks.iter().filter(|mark| is_alive(mark)) {
            if let Ok(Some(process)) = Handle::open(mark) {
                // A process that ended meanwhile is what was asked for.
                let _ = process.signal(signal);
                // One that is stopped hears of nothing else.
                let _ = process.signal(Signal::CONT);
            }
        }
    };
    signal_all(Signal::TERM);
    let deadline = Instant::now() + GRACE;
    while marks.iter().any(is_alive) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    signal_all(Signal::KILL);
    let deadline = Instant::now() + KILLED;
    while marks.iter().any(is_alive) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_larders_is_not_reported_as_stopped() {
        assert!(by_hand(Path::new("/nonexistent/larder-data")).is_err());
    }
}
