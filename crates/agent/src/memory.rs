//! What an agent remembers over its own death: `state.json`.

use std::collections::VecDeque;
use std::path::PathBuf;

use larder_election::SyncMark;
use larder_model::agent::{AgentEvent, EVENTS_KEPT, Fence, NodeConfig};
use larder_model::{Millis, Severity, Timestamp};
use serde::{Deserialize, Serialize};

use crate::engine::Engine;
use crate::{clock, files};

/// An event that comes again sooner than this is no news; later it is something new.
const REPEATED: Millis = Millis::secs(300);

/// What the memory without events may grow by while the disk is full: a promise, a sync, failovers.
const ROOM_TO_GROW: usize = 2048;

/// The content of `state.json`. Every field has a default, so that a newer agent reads an older
/// one's memory.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct AgentMemory {
    /// The server has been started on this node's volume at least once: from then on an empty
    /// volume is a lost one.
    pub(crate) born: bool,
    /// The newest configuration by order; `agent.json` wins when its generation is higher.
    pub(crate) config: Option<NodeConfig>,
    /// The newest stamp of an order seen.
    pub(crate) fence: Option<Fence>,
    /// Number of the next event.
    pub(crate) next_event: u64,
    pub(crate) events: VecDeque<AgentEvent>,
    /// Which server process completed a sync with which primary.
    pub(crate) synced: Option<SyncMark>,
    /// Lease epoch under which the data on the volume was last led or fully copied; 0 before.
    pub(crate) data_epoch: u64,
    /// The volume was found lost and the server runs on a new one that is not synced yet.
    pub(crate) rebuilding: bool,
    /// Cluster mode: the server began with nothing, and has neither copied its primary's data nor
    /// been given slots of its own since: it must not take any over by itself.
    pub(crate) blank: bool,
    /// Cluster mode, while `rebuilding` or `blank`: run id of the server that has copied all its
    /// primary has, if only in its memory so far.
    pub(crate) copied: Option<String>,
    /// Cluster mode: the server was started as a replica and has not been in sync since. Its
    /// primary may have acknowledged writes meanwhile that it does not have: it leads by nobody's
    /// vote.
    pub(crate) behind: bool,
    /// The server has served on this volume, so it has written files that are to be there.
    pub(crate) files_seen: bool,
    /// The engine that last served on this volume, and so has written what is there.
    pub(crate) written_by: Option<Engine>,
    /// While `rebuilding`: the data are there, but the server cannot load them.
    pub(crate) unusable: Option<Unusable>,
    /// A word given to a lease holder; see [`PromiseGiven`].
    pub(crate) promise: Option<PromiseGiven>,
    /// The node is on its way out: the server stays down.
    pub(crate) stopped: bool,
    /// Cluster mode: wall-clock times of the shard's failovers by order of agents, as far as this
    /// node was told; each new primary gets the list from the one before.
    pub(crate) failovers: Vec<Timestamp>,
    /// Cluster mode: the server's id in the cluster.
    pub(crate) cluster_id: Option<String>,
    /// Cluster mode: the server was a primary with slots when it was last seen.
    pub(crate) owned_slots: bool,
}

/// Data that a server cannot load.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unusable {
    /// What the server said of them.
    pub(crate) words: String,
    /// When the files had last changed (wall clock, milliseconds): as they are, they are not tried
    /// again by the same server binary while somebody has data to copy.
    pub(crate) changed: i64,
    /// The server binary that could not, by [`larder_node::probe::fingerprint`].
    #[serde(default)]
    pub(crate) binary: Option<String>,
}

/// Not to take the lease of `epoch` before `until_ms` of this boot's monotonic clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PromiseGiven {
    pub(crate) epoch: u64,
    pub(crate) until_ms: Timestamp,
    /// The promise is void after a reboot: then the holder's server is gone as well.
    pub(crate) boot_id: String,
}

/// [`AgentMemory`] with its file. Changes are made in memory and written by [`Memory::save`];
/// a full disk leaves them in memory until a later attempt succeeds.
#[derive(Debug)]
pub(crate) struct Memory {
    path: PathBuf,
    content: AgentMemory,
    dirty: bool,
    /// When something last happened (monotonic), told or not.
    last_event: Option<Timestamp>,
    /// The last attempt to write failed with this text.
    failure: Option<String>,
    disk_full: bool,
    /// What is on disk instead of the whole, since it was full.
    essence: Option<Vec<u8>>,
}

impl Memory {
    /// Reads the memory; a missing or unreadable file is an agent without a past, and the
    /// volume's own marker then still tells that there was one.
    pub(crate) fn load(path: PathBuf) -> Self {
        let (content, damage) = match std::fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(content) => (content, None),
                Err(error) => (AgentMemory::default(), Some(error)),
            },
            Err(_) => (AgentMemory::default(), None),
        };
        let mut memory = Self {
            path,
            content,
            dirty: false,
            last_event: None,
            failure: None,
            disk_full: false,
            essence: None,
        };
        if let Some(error) = damage {
            memory.number_events_anew();
            let path = memory.path.display();
            let message = format!("the notes of this node in {path} cannot be read: {error}");
            memory.event(Severity::Critical, "notes-unreadable", message);
        }
        memory
    }

    /// Without its notes the node does not know which numbers it has used; the readers of its
    /// events drop those they have seen. The time is above all of them.
    pub(crate) fn number_events_anew(&mut self) {
        let now = u64::try_from(clock::wall().0).unwrap_or(0);
        self.change(|memory| memory.next_event = memory.next_event.max(now));
    }

    pub(crate) fn get(&self) -> &AgentMemory {
        &self.content
    }

    /// Whether the server of this run id (`None`: one that is just being started) may have less
    /// than its shard: it runs on a lost or new volume and has not copied its primary's data.
    pub(crate) fn lacks_copy(&self, run_id: Option<&str>) -> bool {
        let content = &self.content;
        let has_copied = run_id.is_some() && content.copied.as_deref() == run_id;
        (content.rebuilding || content.blank) && !has_copied
    }

    /// Changes the memory; nothing is written before [`Memory::save`].
    pub(crate) fn change<T>(&mut self, change: impl FnOnce(&mut AgentMemory) -> T) -> T {
        self.dirty = true;
        change(&mut self.content)
    }

    /// Records an event. The same one over and over, with nothing else in between, is told once.
    pub(crate) fn event(&mut self, severity: Severity, reason: &str, message: String) {
        let again = self.content.events.back().is_some_and(|last| {
            last.severity == severity && last.reason == reason && last.message == message
        });
        let before = self.last_event.replace(clock::monotonic());
        if again && before.is_some_and(|at| clock::monotonic().since(at) < REPEATED) {
            tracing::debug!(reason, text = message, "event again");
            return;
        }
        tracing::info!(reason, text = message, "event");
        self.change(|memory| {
            memory.next_event += 1;
            memory.events.push_back(AgentEvent {
                seq: memory.next_event,
                at: clock::wall(),
                severity,
                reason: reason.to_owned(),
                message,
            });
            while memory.events.len() > EVENTS_KEPT {
                memory.events.pop_front();
            }
        });
    }

    /// Writes what has changed, durably. Answers `false` when nothing of it is on disk; it is kept
    /// and tried again at the next call. On a full disk it answers `true` when all but the events
    /// could be written.
    pub(crate) fn save(&mut self) -> bool {
        if !self.dirty {
            return true;
        }
        match self.write_whole() {
            Ok(()) => {
                self.dirty = false;
                self.failure = None;
                self.disk_full = false;
                self.essence = None;
                true
            }
            Err(error) => {
                if self.failure.is_none() {
                    tracing::warn!(path = %self.path.display(), %error, "memory not written");
                }
                self.disk_full = files::is_disk_full(&error);
                self.failure = Some(format!("writing {}: {error}", self.path.display()));
                // Elections need some of it on disk. Without events it fits where there is room
                // already; the rest follows when there is more.
                self.disk_full && self.write_essence().is_ok()
            }
        }
    }

    fn write_whole(&self) -> std::io::Result<()> {
        let bytes = serde_json::to_vec(&self.content)?;
        files::write(&self.path, &files::with_room(bytes, ROOM_TO_GROW), true)?;
        let reserve = self.essence()?.len() + ROOM_TO_GROW;
        if let Err(error) = files::keep_reserve(&self.path, reserve) {
            // What matters now is on disk.
            tracing::warn!(path = %self.path.display(), %error, "no reserve for a full disk");
        }
        Ok(())
    }

    fn write_essence(&mut self) -> std::io::Result<()> {
        let essence = self.essence()?;
        // This is tried in every round while the disk is full: the same need not be synced again.
        if self.essence.as_ref() == Some(&essence) {
            return Ok(());
        }
        self.essence = None;
        if let Err(error) = files::write_into_reserve(&self.path, &essence) {
            tracing::debug!(%error, "no reserve, overwriting in place");
            files::overwrite(&self.path, &essence)?;
        }
        self.essence = Some(essence);
        Ok(())
    }

    /// The memory without its events.
    fn essence(&self) -> std::io::Result<Vec<u8>> {
        let essence = AgentMemory { events: VecDeque::new(), ..self.content.clone() };
        Ok(serde_json::to_vec(&essence)?)
    }

    /// Why the last write failed, while it has not succeeded since.
    pub(crate) fn failure(&self) -> Option<(&str, bool)> {
        self.failure.as_deref().map(|text| (text, self.disk_full))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_run_that_has_copied_counts_as_a_copy_until_the_disk_has_it_too() {
        let folder = tempfile::tempdir().expect("temp dir");
        let mut memory = Memory::load(folder.path().join("state.json"));
        assert!(!memory.lacks_copy(None), "nothing was lost");
        for lost in [true, false] {
            memory.change(|memory| (memory.rebuilding, memory.blank) = (lost, !lost));
            memory.change(|memory| memory.copied = None);
            assert!(memory.lacks_copy(None) && memory.lacks_copy(Some("run")));
            memory.change(|memory| memory.copied = Some("run".into()));
            assert!(!memory.lacks_copy(Some("run")));
            assert!(memory.lacks_copy(Some("next run")) && memory.lacks_copy(None));
        }
    }

    #[test]
    fn events_keep_their_numbers_over_restarts_and_stay_bounded() {
        let folder = tempfile::tempdir().expect("temp dir");
        let path = folder.path().join("state.json");
        let mut memory = Memory::load(path.clone());
        for n in 0..100 {
            memory.event(Severity::Info, "test", format!("event {n}"));
        }
        assert!(memory.save());
        let mut again = Memory::load(path);
        again.event(Severity::Info, "test", "one more".into());
        assert_eq!(again.get().events.len(), EVENTS_KEPT);
        assert_eq!(again.get().events.back().map(|e| e.seq), Some(101));
    }

    #[test]
    fn the_same_event_over_and_over_is_told_once() {
        let folder = tempfile::tempdir().expect("temp dir");
        let mut memory = Memory::load(folder.path().join("state.json"));
        for text in ["no", "no", "no", "yes", "no"] {
            memory.event(Severity::Warning, "refused", text.to_owned());
        }
        let told: Vec<_> = memory.get().events.iter().map(|e| e.message.as_str()).collect();
        assert_eq!(told, ["no", "yes", "no"]);
    }

    #[test]
    fn a_failed_write_is_kept_and_tried_again() {
        let folder = tempfile::tempdir().expect("temp dir");
        let inner = folder.path().join("not-there-yet");
        let mut memory = Memory::load(inner.join("state.json"));
        memory.change(|m| m.born = true);
        assert!(!memory.save());
        assert!(memory.failure().is_some());
        std::fs::create_dir(&inner).expect("mkdir");
        assert!(memory.save());
        assert!(memory.failure().is_none());
        assert!(Memory::load(inner.join("state.json")).get().born);
    }
}
