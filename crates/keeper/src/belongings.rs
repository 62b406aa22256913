//! Every process of a data directory, found by all there is: wishes, states, marks, and what
//! `/proc` shows. For stopping them all, also after files or whole folders were deleted.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use larder_model::local::{DataDir, Guard, ProcessMark};
use rustix::process::geteuid;

use crate::paths::KeeperPaths;
use crate::{desired, files, process, state};

/// What runs for a data directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Belongings {
    /// Whatever keeps the others alive.
    pub keepers: Vec<ProcessMark>,
    /// Agents and relays.
    pub supervised: Vec<ProcessMark>,
    pub servers: Vec<ProcessMark>,
}

impl Belongings {
    /// Looks at files and processes; takes some milliseconds. `data` is an absolute path without
    /// links. Processes of other users are never in the answer; nor are those that merely work in
    /// one of the folders, as a person's shell does.
    ///
    /// # Errors
    /// When `/proc`, or one of the keeper's folders, cannot be listed.
    pub fn find(data: &Path) -> io::Result<Self> {
        let paths = KeeperPaths::new(data);
        let states = state::all(&paths)?;
        let mut found = Self::default();
        // Damaged wishes are passed over: what they were for is found in another way.
        let mut wishes = match desired::wishes(&paths) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other?,
        };
        for (_, state) in states {
            found.supervised.push(state.mark);
            wishes.extend(state.spec);
        }
        let guards: BTreeMap<PathBuf, Guard> = (wishes.into_iter())
            .filter_map(|wish| wish.guard)
            .map(|guard| (guard.server_file.clone(), guard))
            .collect();
        for guard in guards.values() {
            let mark: Option<ProcessMark> =
                files::read_json(&guard.server_file).unwrap_or_default();
            found.servers.extend(mark);
        }
        let lock: Option<ProcessMark> = files::read_json(&paths.lock()).unwrap_or_default();
        found.keepers.extend(lock.filter(|_| crate::is_running(data).unwrap_or(true)));
        found.search(data)?;
        found.tidy();
        Ok(found)
    }

    /// Whether nothing runs.
    pub fn is_empty(&self) -> bool {
        self.keepers.is_empty() && self.supervised.is_empty() && self.servers.is_empty()
    }

    /// The last net: everything of our user that `/proc` says to be of this folder.
    fn search(&mut self, data: &Path) -> io::Result<()> {
        let nodes = DataDir(data.to_owned()).instances();
        let (own, mut supervised) = (geteuid().as_raw(), HashSet::new());
        let mut others = Vec::new();
        for pid in process::pids()? {
            if fs::metadata(format!("/proc/{pid}")).map(|of| of.uid()).ok() != Some(own) {
                continue;
            }
            // The mark first: if the number is another process's by the time it is used, the mark fits
            // nobody any more.
            let Some(mark) = process::mark_of(pid)? else { continue };
            if !is_same_place(pid, data) {
                continue;
            }
            match role(&process::arguments(pid), data, &nodes) {
                Some(Role::Keeper) => self.keepers.push(mark),
                Some(Role::Supervised) => {
                    supervised.insert(pid);
                    self.supervised.push(mark);
                }
                None => others.push(mark),
            }
        }
        for mark in others {
            let pid = mark.pid;
            let is_child = process::stat(pid).is_some_and(|stat| supervised.contains(&stat.parent));
            if (is_child || is_server(pid)) && works_in(pid, &nodes) {
                self.servers.push(mark);
            }
        }
        Ok(())
    }

    /// Each living process once.
    fn tidy(&mut self) {
        for marks in [&mut self.keepers, &mut self.supervised, &mut self.servers] {
            let mut seen = HashSet::new();
            marks.retain(|mark| seen.insert(mark.pid) && process::is_alive(mark));
        }
    }
}

/// Whether the path, or the nearest folder above it that is still there, is the same for the process
/// as for us. In a container it may be another folder, and what runs there is not ours.
pub(crate) fn is_same_place(pid: u32, path: &Path) -> bool {
    let place = |of: fs::Metadata| (of.dev(), of.ino());
    let nearest = path.ancestors().find_map(|path| Some((path, fs::metadata(path).ok()?)));
    nearest.is_some_and(|(path, ours)| {
        fs::metadata(format!("/proc/{pid}/root{}", path.display()))
            .is_ok_and(|theirs| place(theirs) == place(ours))
    })
}

enum Role {
    Keeper,
    Supervised,
}

/// By the last words of a command line, whatever program or interpreter they were given to.
fn role(arguments: &[String], data: &Path, nodes: &Path) -> Option<Role> {
    let [.., role, flag, folder] = arguments else { return None };
    let folder = Path::new(folder);
    match (role.as_str(), flag.as_str()) {
        ("keeper", "--data") if folder == data => Some(Role::Keeper),
        ("agent" | "proxy", "--dir") if folder.starts_with(nodes) => Some(Role::Supervised),
        _ => None,
    }
}

/// Whether it works in a node's folder, be it deleted.
fn works_in(pid: u32, nodes: &Path) -> bool {
    link(pid, "cwd").is_some_and(|folder| folder.starts_with(nodes))
}

/// Whether it is a program that Larder runs as a server: not by its folder alone, where a person
/// may be at work too.
pub(crate) fn is_server(pid: u32) -> bool {
    let is_named = |name: &str| name.contains("redis-server") || name.contains("valkey-server");
    // The name that it was called by, because Debian's redis-server is a link to redis-check-rdb.
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| is_named(&name))
        || link(pid, "exe")
            .and_then(|program| Some(program.file_name()?.to_string_lossy().into_owned()))
            .is_some_and(|name| is_named(&name))
        // Its own log is what an agent gives a server for its output, whatever it is called.
        || link(pid, "fd/1").is_some_and(|log| log.ends_with("server.log"))
}

/// Where a link of the process leads; the kernel marks what was deleted meanwhile.
pub(crate) fn link(pid: u32, name: &str) -> Option<PathBuf> {
    let target = fs::read_link(format!("/proc/{pid}/{name}")).ok()?;
    Some(match target.to_str().and_then(|text| text.strip_suffix(" (deleted)")) {
        Some(former) => PathBuf::from(former),
        None => target,
    })
}
