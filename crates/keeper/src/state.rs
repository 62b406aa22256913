//! `keeper/state`: what the keeper knows of its children from itself, beside the wishes.

use std::fs;
use std::io;
use std::path::Path;

use larder_model::local::{ProcessMark, ProcessSpec};
use larder_model::{InstanceId, NodeId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::paths::KeeperPaths;
use crate::{files, process};

/// `keeper/state/<name>.json`: the mark, and what it was started with, to notice a change of the
/// command line that happened while no keeper ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StateFile {
    #[serde(flatten)]
    pub(crate) mark: ProcessMark,
    pub(crate) argv: Vec<String>,
    /// The last good wish, for when its file is damaged or gone. `None` in files of older keepers.
    #[serde(default)]
    pub(crate) spec: Option<ProcessSpec>,
    /// How often it was started again.
    #[serde(default)]
    pub(crate) restarts: u64,
    /// Why it was last started again.
    #[serde(default)]
    pub(crate) last_end: Option<LastEnd>,
}

/// The end of a process that was started again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LastEnd {
    pub(crate) at: Timestamp,
    /// Half a sentence for people: `it was killed by signal 9`.
    pub(crate) how: String,
}

/// A process that the keeper has started again, for the events of its instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restarted {
    /// `relay-<instance>` or `agent-<node>`.
    pub name: String,
    pub instance: InstanceId,
    /// Whose agent it is; `None` for a relay.
    pub node: Option<NodeId>,
    /// How often so far.
    pub restarts: u64,
    /// When the process before it had ended, by the clock of the machine.
    pub ended_at: Timestamp,
    /// Half a sentence for people: `it was killed by signal 9`.
    pub how: String,
}

/// Every process of the data directory that was started again at some time, as its last restart
/// went. Files that cannot be read are passed over.
///
/// # Errors
/// When the folder of states cannot be listed.
pub fn restarted(data: &Path) -> io::Result<Vec<Restarted>> {
    let all = all(&KeeperPaths::new(data))?.into_iter();
    Ok(all
        .filter_map(|(name, state)| {
            let (spec, end) = (state.spec?, state.last_end?);
            Some(Restarted {
                name,
                instance: spec.instance,
                node: spec.guard.map(|guard| guard.node),
                restarts: state.restarts,
                ended_at: end.at,
                how: end.how,
            })
        })
        .collect())
}

/// Removes the states of processes that have ended, so that the next keeper starts them without a
/// word. For who has stopped them on purpose, while no keeper runs.
///
/// # Errors
/// When the folder cannot be listed or a file cannot be removed.
pub fn forget_ended(data: &Path) -> io::Result<()> {
    let paths = KeeperPaths::new(data);
    for (name, state) in all(&paths)? {
        if !process::is_alive(&state.mark) {
            files::remove_if_exists(&paths.state(&name))?;
        }
    }
    Ok(())
}

/// Every state that can be read, by the name of its process.
pub(crate) fn all(paths: &KeeperPaths) -> io::Result<Vec<(String, StateFile)>> {
    let entries = match fs::read_dir(paths.state_dir()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut states = Vec::new();
    for entry in entries {
        let entry = entry?;
        let file_name = entry.file_name();
        let name = file_name.to_str().and_then(|name| name.strip_suffix(".json"));
        let Some(name) = name.filter(|name| !name.starts_with('.')) else { continue };
        // One that is damaged names no process; the search by command line finds it.
        let state: Option<StateFile> = files::read_json(&entry.path()).unwrap_or_default();
        states.extend(state.map(|state| (name.to_owned(), state)));
    }
    Ok(states)
}
