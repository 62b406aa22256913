//! A node whose server cannot load its own files: what it does instead of trying for ever.
//!
//! With another node in its shard it stands back: its data count as lost, stay untouched, and are
//! set aside when it copies from whoever leads. Alone it stays down and says which files. A change
//! of the files or of the server binary has them tried again, and so has a minute without anybody
//! to copy from. `nodes.conf` is put back from the last good one.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use larder_model::agent::{Problem, ProblemCode};
use larder_model::{Millis, NodeMode, Severity, Timestamp};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use crate::core::{Core, changed_at, problem};
use crate::damage::Damage;
use crate::engine::Engine;
use crate::memory::Unusable;
use crate::process::Exit;
use crate::volume::{CLUSTER_FILE, Found};
use crate::{clock, files};

/// This often in a row a server has to say that it cannot load a file.
const TRIES: u32 = 3;

/// Between these tries: an error of the disk or the network below it may pass.
const PAUSES: [Millis; 2] = [Millis(2_000), Millis(8_000)];

/// Until unreadable files that nobody has a copy of are tried once more.
const TRY_AGAIN: Millis = Millis(60_000);

/// Until files are tried once more that the disk does not let be read.
const DISK_AGAIN: Millis = Millis(10_000);

/// How often data are looked for that were set aside long enough; the limit is days.
const SEE_TO_OLD: Millis = Millis(3_600_000);

/// Starts that failed for one reason.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    count: u32,
    /// As the files and the server binary were when they were given up: told, and not again.
    given_up: Option<Tried>,
    /// When files that were given up are tried once more (monotonic).
    again_at: Timestamp,
    /// The files are being read before they are given up.
    reading: Option<Reading>,
    /// What was said last of another engine or a sick disk.
    told: Option<String>,
    /// A start that was old news, in case it is the one that finally serves.
    pub(crate) untold_start: Option<String>,
}

/// What a try was made with.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tried {
    /// When the files last changed.
    changed: i64,
    binary: Option<String>,
}

#[derive(Debug)]
struct Reading {
    damage: Damage,
    words: String,
    result: oneshot::Receiver<io::Result<()>>,
}

impl Core {
    /// Notes that the server has ended before it served, because of its own files. Answers what is
    /// wrong with the node as far as it is known.
    pub(crate) fn failed_to_load(&mut self, damage: Damage, exit: &Exit) -> Option<Problem> {
        let words = words(&exit.last_words);
        // A partial copy is this very server's own.
        let partial = self.memory.get().rebuilding && !self.volume.has_marker();
        if !partial && let Some(problem) = self.made_by_another_engine(&words) {
            return Some(problem);
        }
        self.failures.count += 1;
        if let Some(pause) = PAUSES.get(self.failures.count as usize - 1) {
            self.hold_start(*pause);
        }
        // What it gets instead is its own, and the broken one stays beside it.
        if damage == Damage::ClusterFile && self.failures.count > 1 && self.restore_cluster_file() {
            self.failures = Failures::default();
            self.start_now();
            return None;
        }
        if self.failures.count < TRIES {
            return None;
        }
        // What a server left that copied onto a lost volume is nothing to keep.
        if partial {
            if let Err(error) = self.volume.drop_partial_copy() {
                tracing::warn!(%error, "partial copy not removed");
            }
            self.failures = Failures::default();
        }
        if self.memory.get().rebuilding {
            return None;
        }
        self.read_before_giving_up(damage, words.clone());
        let path = self.volume.path().display();
        let message = format!("the server cannot load its own files in {path}: {words}");
        Some(problem(ProblemCode::ServerWillNotStart, message))
    }

    /// An older engine, or one of another family, cannot read what the one before has written.
    /// That says nothing of the files.
    fn made_by_another_engine(&mut self, words: &str) -> Option<Problem> {
        let writer = self.memory.get().written_by?;
        let engine = *self.engine.as_ref().ok()?;
        if engine.is_to_read(writer) {
            return None;
        }
        let message = format!(
            "{engine} cannot load the files in {} that {writer} has written: {words}. Nothing is \
             changed or deleted; put the server binary of {writer} back: it is tried again all the \
             time",
            self.volume.path().display()
        );
        self.tell_once("other-engine", &message);
        Some(problem(ProblemCode::ServerWillNotStart, message))
    }

    fn tell_once(&mut self, reason: &str, message: &str) {
        if self.failures.told.as_deref() != Some(message) {
            self.memory.event(Severity::Critical, reason, message.to_owned());
            self.failures.told = Some(message.to_owned());
            self.memory.save();
        }
    }

    /// Reads the files, which may take long, on a thread of its own: a disk that hangs must hold
    /// up neither the loop nor the end of this process.
    fn read_before_giving_up(&mut self, damage: Damage, words: String) {
        let (sender, result) = oneshot::channel();
        let volume = self.volume.clone();
        let thread = std::thread::Builder::new()
            .name("read-through".to_owned())
            .spawn(move || drop(sender.send(volume.read_through())));
        match thread {
            // When the answer is due, look_at_given_up_files sees it.
            Ok(_) => {
                self.failures.reading = Some(Reading { damage, words, result });
                self.hold_start(TRY_AGAIN);
            }
            Err(error) => {
                tracing::warn!(%error, "files not read before they are given up");
                self.failures.count = TRIES - 1;
                self.hold_start(DISK_AGAIN);
            }
        }
    }

    /// Once a second while the server does not serve: what has become of files that it could not
    /// load.
    pub(crate) fn look_at_given_up_files(&mut self) {
        if let Some(mut reading) = self.failures.reading.take() {
            let read = match reading.result.try_recv() {
                Ok(read) => read,
                Err(TryRecvError::Empty) => {
                    self.failures.reading = Some(reading);
                    return self.hold_start(TRY_AGAIN);
                }
                Err(TryRecvError::Closed) => Err(io::Error::other("the reader has failed")),
            };
            match read {
                Ok(()) => self.give_up(reading.damage, reading.words),
                Err(error) => {
                    let path = self.volume.path().display();
                    let message = format!(
                        "the disk does not let the files in {path} be read: {error}; they are \
                         tried again"
                    );
                    self.tell_once("disk-unreadable", &message);
                    let code = ProblemCode::ServerWillNotStart;
                    self.set_start_problem(Some(problem(code, message)));
                    self.failures.count = TRIES - 1;
                    self.hold_start(DISK_AGAIN);
                }
            }
            return;
        }
        if self.memory.get().rebuilding {
            return;
        }
        let Some(given_up) = &self.failures.given_up else { return };
        let other_binary = self.present_binary() != given_up.binary;
        if self.volume.is_back((!other_binary).then_some(given_up.changed)) {
            self.failures = Failures::default();
            self.start_now();
        }
    }

    /// The files are there, can be read, and are nothing that the server can load.
    fn give_up(&mut self, damage: Damage, words: String) {
        let changed = self.volume.last_change().unwrap_or(i64::MIN);
        let tried = Tried { changed, binary: self.present_binary() };
        let stands_alone = self.shard_peers().next().is_none();
        let (reason, message, is_lost) = match damage {
            Damage::Data => ("data-unusable", self.unusable_data(&words), !stands_alone),
            Damage::ClusterFile => {
                // Slots that another node has by now are served from its data; this node can only
                // join anew.
                let replaced = !stands_alone && !self.memory.get().owned_slots;
                ("cluster-file-unusable", self.unusable_cluster_file(&words, replaced), replaced)
            }
        };
        if self.failures.given_up.as_ref() != Some(&tried) {
            self.memory.event(Severity::Critical, reason, message.clone());
        }
        if is_lost {
            let binary = tried.binary.clone();
            self.memory.change(|memory| {
                memory.rebuilding = true;
                memory.unusable = Some(Unusable { words, changed, binary });
                memory.synced = None;
            });
            self.failures.count = 0;
            self.hold_start(Millis(0));
            self.set_start_problem(None);
        } else {
            self.hold_start(TRY_AGAIN);
            let code = ProblemCode::ServerWillNotStart;
            self.set_start_problem(Some(problem(code, message)));
        }
        self.failures.given_up = Some(tried);
        self.failures.again_at = clock::monotonic() + TRY_AGAIN;
        self.memory.save();
    }

    /// What to say of data that the server cannot load, to a person who may have to repair them.
    pub(crate) fn unusable_data(&self, words: &str) -> String {
        let path = self.volume.path().display();
        let what = format!("the server cannot load its own files in {path}: {words}");
        let repair = "repair them (redis-check-aof --fix), put a copy there, or put the server \
                      binary back that wrote them: they are tried again as soon as they or the \
                      binary change, and once a minute";
        if self.shard_peers().next().is_none() {
            return format!("{what}. Nothing is changed or deleted; {repair}");
        }
        let copies = "The node copies the data from another one as soon as one leads with data; \
                      until then these files stay as they are, from then on for 7 days in the \
                      folder unreadable";
        if self.peer_has_data {
            return format!("{what}. {copies}");
        }
        format!("{what}. {copies}. If no other node has data, {repair}")
    }

    fn unusable_cluster_file(&self, words: &str, replaced: bool) -> String {
        let path = self.volume.path().join(CLUSTER_FILE);
        let what = format!(
            "the server cannot read {}, of which there is no good copy: {words}. The data beside \
             it are not what is wrong",
            path.display()
        );
        if replaced {
            return format!(
                "{what}, but another node has the slots: this one joins anew, and its data stay \
                 for 7 days in the folder unreadable"
            );
        }
        format!(
            "{what}, and stay as they are; put a whole nodes.conf of this node there: it is tried \
             again as soon as it changes, and once a minute"
        )
    }

    /// A lost volume whose folder somebody has put back: the node's marker is there, which a server
    /// that started without it never writes, and the data. What it was before counts again; other
    /// nodes judge it by its old lineage. So do data that could not be loaded, when they or the
    /// server binary have changed; and while no node has data to copy, once a minute.
    pub(crate) fn volume_put_back(&mut self) {
        let lost = self.memory.get().rebuilding && self.server.supervisor.running().is_none();
        if !lost || self.volume.find() != Found::Own {
            return;
        }
        let unusable = self.memory.get().unusable.as_ref();
        let other_binary = unusable.is_some_and(|u| u.binary != self.present_binary());
        let changed = unusable.filter(|_| !other_binary).map(|unusable| unusable.changed);
        let path = self.volume.path().display();
        // A copy that is still under way would be taken for the whole.
        let message = if self.volume.is_back(changed) {
            self.failures = Failures::default();
            Some(if other_binary {
                format!("the server binary is another one: the data in {path} are tried again")
            } else {
                format!("the data of this node are back in {path}, and are used again")
            })
        } else {
            let due = clock::monotonic() >= self.failures.again_at && !self.peer_has_data;
            if unusable.is_none() || !due || self.volume.missing_data().is_some() {
                return;
            }
            self.failures.count = TRIES - 1;
            None
        };
        self.memory.change(|memory| {
            memory.rebuilding = false;
            memory.unusable = None;
        });
        self.start_now();
        if let Some(message) = message {
            self.memory.event(Severity::Warning, "volume-back", message);
        }
        self.memory.save();
    }

    /// The server was ended by somebody, or for a reason of its own: its files are not what is
    /// wrong.
    pub(crate) fn loads(&mut self) {
        self.failures.count = 0;
        self.failures.reading = None;
    }

    /// The server serves.
    pub(crate) fn serves(&mut self) {
        if let Some(message) = std::mem::take(&mut self.failures).untold_start {
            self.memory.event(Severity::Info, "server-started", message);
        }
        let engine = self.server.info().and_then(Engine::of);
        if engine.is_some() && engine != self.memory.get().written_by {
            self.memory.change(|memory| memory.written_by = engine);
        }
    }

    /// Whether further starts and ends of the server are the same news again.
    pub(crate) fn is_old_news(&self) -> bool {
        let told = self.failures.given_up.is_some() || self.failures.told.is_some();
        told || self.server.supervisor.short_lives() > TRIES
    }

    /// A copy takes the place of what could not be used.
    pub(crate) fn note_moved_aside(&mut self) {
        let message = format!(
            "the files in {} that could not be used make room for a copy; they stay for 7 days in \
             its folder unreadable",
            self.volume.path().display()
        );
        self.memory.event(Severity::Warning, "data-set-aside", message);
    }

    /// Once the node serves from good data, the others do not stay for ever.
    pub(crate) fn drop_old_unreadable(&mut self) {
        let now = clock::monotonic();
        let is_seen_to = self.unreadable_seen_to.is_some_and(|at| now.since(at) < SEE_TO_OLD);
        if is_seen_to || self.memory.get().rebuilding {
            return;
        }
        self.unreadable_seen_to = Some(now);
        match self.volume.drop_old_unreadable(SystemTime::now()) {
            Ok(dropped) => {
                for path in dropped {
                    let path = path.display();
                    let message = format!("{path} was set aside 7 days ago and is removed");
                    self.memory.event(Severity::Info, "unreadable-removed", message);
                }
            }
            Err(error) => tracing::debug!(%error, "old unreadable data not removed"),
        }
    }

    /// Keeps a copy of the cluster's file as the living server wrote it last. Without its file a
    /// node would come back as another one, with an id that nobody knows, and without its slots.
    pub(crate) fn keep_cluster_file(&mut self) {
        if self.config.mode != NodeMode::Clustered {
            return;
        }
        let file = self.volume.path().join(CLUSTER_FILE);
        // Before the reading: what is written meanwhile is another change.
        let changed = changed_at(&file);
        if changed == self.cluster_file_kept_of && self.kept_cluster_file().exists() {
            return;
        }
        let Ok(text) = std::fs::read(file) else { return };
        if !is_whole(&text) {
            return;
        }
        match files::write_if_different(&self.kept_cluster_file(), &text) {
            // A file that was written this moment may be written again within its clock's tick.
            Ok(_) => self.cluster_file_kept_of = changed.filter(|at| is_past(*at)),
            Err(error) => tracing::debug!(%error, "cluster file not kept"),
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

fn is_past(at: SystemTime) -> bool {
    at.elapsed().is_ok_and(|age| age > Duration::from_secs(1))
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
