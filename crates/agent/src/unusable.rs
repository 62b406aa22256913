//! A node whose server cannot load its own files: what it does instead of trying for ever.
//!
//! With another node in its shard it stands back: its data count as lost, stay untouched, and are
//! kept aside when it copies from whoever leads. Alone it stays down and says which files; a
//! change of the files has them tried again. `nodes.conf` is put back from the last good one.

use std::io;
use std::path::PathBuf;

use larder_model::agent::{Problem, ProblemCode};
use larder_model::{Millis, NodeMode, Severity};

use crate::core::{Core, problem};
use crate::damage::Damage;
use crate::files;
use crate::memory::Unusable;
use crate::process::Exit;
use crate::volume::CLUSTER_FILE;

/// This often in a row a server has to say that it cannot load a file.
const TRIES: u32 = 3;

/// Until a server that stands alone tries its unreadable files once more.
const TRY_AGAIN: Millis = Millis(60_000);

/// Starts that failed for one reason.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    count: u32,
    /// When the files last changed, once they are given up.
    given_up: Option<i64>,
}

impl Core {
    /// Notes that the server has ended before it served, because of its own files. Answers what is
    /// wrong with the node when these are given up.
    pub(crate) fn failed_to_load(&mut self, damage: Damage, exit: &Exit) -> Option<Problem> {
        self.failures.count += 1;
        if self.failures.count < TRIES {
            return None;
        }
        if damage == Damage::ClusterFile && self.restore_cluster_file() {
            self.failures = Failures::default();
            self.server.supervisor.forget_deaths();
            return None;
        }
        // What a server left that copied onto a lost volume is nothing to keep.
        if self.memory.get().rebuilding {
            if !self.volume.has_marker() {
                if let Err(error) = self.volume.drop_partial_copy() {
                    tracing::warn!(%error, "partial copy not removed");
                }
                self.failures = Failures::default();
            }
            return None;
        }
        let changed = self.volume.last_change().unwrap_or(i64::MIN);
        let path = self.volume.path().display();
        let words = words(&exit.last_words);
        let stands_alone = self.shard_peers().next().is_none();
        let message = if stands_alone {
            format!(
                "the server cannot load its own files in {path}: {words}. Nothing is changed or \
                 deleted; repair them (redis-check-aof --fix) or put a copy there: they are tried \
                 again as soon as they change"
            )
        } else {
            format!(
                "the server cannot load its own files in {path}: {words}. The node will copy the \
                 data from another one; until then these files stay, in the folder aside once \
                 the copy begins"
            )
        };
        if self.failures.given_up.replace(changed) != Some(changed) {
            self.memory.event(Severity::Critical, "data-unusable", message.clone());
        }
        if stands_alone {
            self.hold_start(TRY_AGAIN);
        } else {
            self.memory.change(|memory| {
                memory.rebuilding = true;
                memory.unusable = Some(Unusable { words, changed });
                memory.synced = None;
            });
            self.failures = Failures::default();
        }
        self.memory.save();
        Some(problem(ProblemCode::ServerWillNotStart, message))
    }

    /// The server serves, or was ended by somebody: its files are not what is wrong.
    pub(crate) fn loads(&mut self) {
        self.failures = Failures::default();
    }

    /// Whether further starts and ends of the server are the same news again.
    pub(crate) fn is_old_news(&self) -> bool {
        self.failures.given_up.is_some() || self.server.supervisor.short_lives() > TRIES
    }

    /// Somebody has changed files that the server could not load.
    pub(crate) fn look_at_given_up_files(&mut self) {
        let Some(given_up) = self.failures.given_up else { return };
        if self.volume.is_back(Some(given_up)) {
            self.failures = Failures::default();
            self.start_now();
        }
    }

    /// Keeps a copy of the cluster's file as the living server wrote it last. Without its file a
    /// node would come back as another one, with an id that nobody knows, and without its slots.
    pub(crate) fn keep_cluster_file(&mut self) {
        if self.config.mode != NodeMode::Clustered {
            return;
        }
        let Ok(text) = std::fs::read(self.volume.path().join(CLUSTER_FILE)) else { return };
        if !is_whole(&text) {
            return;
        }
        if let Err(error) = files::write_if_different(&self.kept_cluster_file(), &text) {
            tracing::debug!(%error, "cluster file not kept");
        }
    }

    fn kept_cluster_file(&self) -> PathBuf {
        self.dir.kept_cluster_file()
    }

    /// A node that begins anew has another name in the cluster.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub(crate) fn forget_cluster_file(&self) -> io::Result<()> {
        match std::fs::remove_file(self.kept_cluster_file()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Puts the kept copy in the place of a broken or missing `nodes.conf`, which stays beside it
    /// as `nodes.conf.broken`. Answers whether there was a copy.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn put_back_cluster_file(&self) -> io::Result<bool> {
        let Ok(good) = std::fs::read(self.kept_cluster_file()) else { return Ok(false) };
        if !is_whole(&good) {
            return Ok(false);
        }
        let file = self.volume.path().join(CLUSTER_FILE);
        let broken = self.volume.path().join("nodes.conf.broken");
        match std::fs::read(&file) {
            // As it was already: then that is not what keeps the server from starting.
            Ok(text) if text == good => return Ok(false),
            Ok(text) if !text.is_empty() => std::fs::rename(&file, &broken)?,
            _ => {}
        }
        files::write(&file, &good, true)?;
        Ok(true)
    }

    fn restore_cluster_file(&mut self) -> bool {
        match self.put_back_cluster_file() {
            Ok(true) => {
                let message = "the server could not read nodes.conf: it gets the last one that was \
                               whole, the broken one is kept as nodes.conf.broken";
                self.memory.event(Severity::Warning, "cluster-file-restored", message.to_owned());
                true
            }
            Ok(false) => false,
            Err(error) => {
                tracing::warn!(%error, "nodes.conf not restored");
                false
            }
        }
    }

    /// The server would come back as a replica by the cluster's own file and copy everything from
    /// its primary, so it needs none of its data.
    pub(crate) fn copies_by_cluster_file(&self) -> bool {
        self.config.mode == NodeMode::Clustered
            && std::fs::read_to_string(self.volume.path().join(CLUSTER_FILE))
                .is_ok_and(|text| is_replica(&text))
    }
}

/// The last line of a `nodes.conf` is written last (`clusterSaveConfig`, cluster.c).
fn is_whole(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    text.lines().any(|line| line.contains("myself"))
        && text.lines().last().is_some_and(|line| line.starts_with("vars currentEpoch "))
}

/// `<id> <address> myself,slave <primary's id> …`
fn is_replica(text: &str) -> bool {
    text.lines().filter(|line| !line.starts_with("vars")).any(|line| {
        let mut words = line.split_ascii_whitespace().skip(2);
        let flags = words.next().unwrap_or_default();
        flags.contains("myself") && flags.contains("slave") && words.next() != Some("-")
    })
}

/// The words that say what is wrong, without the process and the time before them.
fn words(last: &str) -> String {
    let line = last.rsplit(" | ").find(|line| !line.trim().is_empty()).unwrap_or(last);
    line.rsplit_once(" # ").map_or(line, |(_, words)| words).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_cluster_file_is_kept_and_a_replicas_told_from_a_primarys() {
        let replica = "b 127.0.0.1:2@12 myself,slave a 0 0 1 connected\n\
                       a 127.0.0.1:1@11 master - 0 0 1 connected 0-16383\n\
                       vars currentEpoch 1 lastVoteEpoch 0\n";
        assert!(is_whole(replica.as_bytes()) && is_replica(replica));
        assert!(!is_whole(&replica.as_bytes()[..60]));
        let primary = "a 127.0.0.1:1@11 myself,master - 0 0 1 connected 0-16383\n\
                       b 127.0.0.1:2@12 slave a 0 0 1 connected\n\
                       vars currentEpoch 1 lastVoteEpoch 0\n";
        assert!(is_whole(primary.as_bytes()) && !is_replica(primary));
    }

    #[test]
    fn what_is_wrong_is_told_without_the_servers_decoration() {
        let last = "1:S 22 Nov 2026 16:33:21.548 * DB loaded | 1:S 22 Nov 2026 16:33:21.549 # Bad \
                    file format reading the append only file a";
        assert_eq!(words(last), "Bad file format reading the append only file a");
    }
}
