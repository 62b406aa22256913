//! The server's folder: whose it is, whether it was lost, and older data kept aside.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use larder_model::{InstanceId, NodeId};
use serde::{Deserialize, Serialize};

use crate::files;

/// Name of the file that says whose volume it is.
const MARKER: &str = ".larder";
/// Folder for data that may hold writes which nobody else has.
const ASIDE: &str = "aside";
/// Folder for data that the server could not load, or that were incomplete.
const UNREADABLE: &str = "unreadable";
/// So long they stay there for a person to look at.
pub(crate) const KEEP_UNREADABLE: Duration = Duration::from_secs(7 * 24 * 3600);
/// The server's data as Redis names them: `appendonlydir` is 7.0 and later, the others older.
const DATA: [&str; 3] = ["appendonlydir", "appendonly.aof", "dump.rdb"];

/// The append-only file in parts (aof.c of Redis 7.0): a manifest names them.
const PARTS: &str = "appendonlydir";
const MANIFEST: &str = "appendonly.aof.manifest";
/// The append-only file in one piece.
const ONE_PIECE: &str = "appendonly.aof";
/// The servers' own file of a cluster.
pub(crate) const CLUSTER_FILE: &str = "nodes.conf";

/// A folder that is being copied changes all the time.
const AT_REST: Duration = Duration::from_secs(5);

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    node: NodeId,
    instance: InstanceId,
}

/// What is found in the folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// No folder, or nothing in it.
    Nothing,
    /// The node's marker is there.
    Own,
    /// There is something that this node has not put there.
    Foreign,
    /// The disk does not say. Unknown is not absent.
    Unreadable,
}

/// One node's volume.
#[derive(Clone, Debug)]
pub(crate) struct Volume {
    path: PathBuf,
    node: NodeId,
    instance: InstanceId,
}

impl Volume {
    pub(crate) fn new(path: PathBuf, node: NodeId, instance: InstanceId) -> Self {
        Self { path, node, instance }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn find(&self) -> Found {
        match fs::read(self.path.join(MARKER)) {
            Ok(bytes) => match serde_json::from_slice::<Marker>(&bytes) {
                Ok(marker) if marker.node == self.node => Found::Own,
                _ => Found::Foreign,
            },
            Err(error) if !is_absence(&error) => Found::Unreadable,
            Err(_) if self.has_server_data() => Found::Foreign,
            Err(_) => Found::Nothing,
        }
    }

    /// Another node of this machine whose volume this is by its marker: mounts may be swapped.
    pub(crate) fn other_owner(&self) -> Option<NodeId> {
        let bytes = fs::read(self.path.join(MARKER)).ok()?;
        let marker: Marker = serde_json::from_slice(&bytes).ok()?;
        (marker.node != self.node).then_some(marker.node)
    }

    fn refuse_other_owner(&self) -> io::Result<()> {
        match self.other_owner() {
            Some(node) => Err(io::Error::other(format!("the volume is node {node}'s"))),
            None => Ok(()),
        }
    }

    /// There is a marker, whoever's it is.
    pub(crate) fn has_marker(&self) -> bool {
        !is_absent(&self.path.join(MARKER))
    }

    /// Puts what has been written to the append-only files on the disk itself. May take as long as
    /// the disk does.
    ///
    /// # Errors
    /// When a file can be read but not synced; one that the server removed meanwhile is none.
    pub(crate) fn sync_data(&self) -> io::Result<()> {
        let folder = self.path.join(PARTS);
        let inside = match fs::read_dir(&folder) {
            Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?,
            Err(error) if is_absence(&error) => Vec::new(),
            Err(error) => return Err(error),
        };
        for file in inside.into_iter().chain([self.path.join(ONE_PIECE)]) {
            match fs::File::open(&file).and_then(|file| file.sync_data()) {
                Err(error) if !is_absence(&error) => return Err(error),
                _ => {}
            }
        }
        match fs::File::open(folder).and_then(|folder| folder.sync_all()) {
            Err(error) if !is_absence(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// What a server that has served on this volume would not find any more: it would start
    /// without a word, and empty. A snapshot beside the append-only file is never loaded. `None`
    /// also when the disk does not say: unknown is not absent.
    pub(crate) fn missing_data(&self) -> Option<PathBuf> {
        loop {
            let manifest = self.read_manifest().ok()?;
            let missing = self.missing_of(manifest.as_deref())?;
            // A living server may have replaced the manifest and removed old files in between.
            if self.read_manifest().ok()? == manifest {
                return Some(missing);
            }
        }
    }

    /// `None` when there is none.
    fn read_manifest(&self) -> io::Result<Option<String>> {
        match fs::read_to_string(self.path.join(PARTS).join(MANIFEST)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if is_absence(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn missing_of(&self, manifest: Option<&str>) -> Option<PathBuf> {
        let folder = self.path.join(PARTS);
        let Some(text) = manifest else {
            let one_piece = is_absent(&self.path.join(ONE_PIECE));
            let missing = if is_absent(&folder) { folder } else { folder.join(MANIFEST) };
            return one_piece.then_some(missing);
        };
        text.lines().filter_map(part).find_map(|(name, is_base)| {
            let file = folder.join(name);
            let missing = match fs::metadata(&file) {
                // Even a snapshot of nothing has a header and a checksum.
                Ok(meta) => is_base && name.ends_with(".rdb") && meta.len() == 0,
                // A server that was ended in the middle of its upgrade has it beside the folder.
                Err(error) => is_absence(&error) && is_absent(&self.path.join(name)),
            };
            missing.then_some(file)
        })
    }

    /// Reads all that a server would load, to the end: an error of reading says that nothing is
    /// known of the files. Takes as long as the disk does.
    ///
    /// # Errors
    /// The first file that cannot be read; one that is not there is none.
    pub(crate) fn read_through(&self) -> io::Result<()> {
        let folder = self.path.join(PARTS);
        let manifest = self.read_manifest()?.unwrap_or_default();
        let parts = manifest.lines().filter_map(part).map(|(name, _)| folder.join(name));
        for file in parts.chain([self.path.join(ONE_PIECE), self.path.join(CLUSTER_FILE)]) {
            let read =
                fs::File::open(&file).and_then(|mut file| io::copy(&mut file, &mut io::sink()));
            match read {
                Err(error) if !is_absence(&error) => {
                    let name = file.strip_prefix(&self.path).unwrap_or(&file).display();
                    return Err(io::Error::new(error.kind(), format!("{name}: {error}")));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Nothing that a server would load is missing, and nobody has changed anything in the folder
    /// for [`AT_REST`], but since `changed`.
    pub(crate) fn is_back(&self, changed: Option<i64>) -> bool {
        self.missing_data().is_none()
            && self.last_change().is_ok_and(|at| {
                // The clock may have been set back since.
                let now = crate::clock::wall().0;
                Duration::from_millis(now.abs_diff(at)) >= AT_REST && changed != Some(at)
            })
    }

    /// When anything in the folder last changed, in milliseconds of the wall clock.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn last_change(&self) -> io::Result<i64> {
        [PARTS, ONE_PIECE, CLUSTER_FILE, MARKER]
            .iter()
            .map(|name| match last_change(&self.path.join(name), 1) {
                Err(error) if is_absence(&error) => Ok(i64::MIN),
                other => other,
            })
            .try_fold(i64::MIN, |newest, at| Ok(newest.max(at?)))
    }

    pub(crate) fn has_server_data(&self) -> bool {
        DATA.iter().chain(["nodes.conf"].iter()).any(|name| self.path.join(name).exists())
    }

    /// Makes the folder, private.
    pub(crate) fn create(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.path)
    }

    /// Says whose the volume is, durably.
    pub(crate) fn write_marker(&self) -> io::Result<()> {
        if self.find() == Found::Own {
            return Ok(());
        }
        let marker = Marker { node: self.node.clone(), instance: self.instance.clone() };
        files::write(&self.path.join(MARKER), &serde_json::to_vec(&marker)?, true)
    }

    /// Removes the server's files, for a node that a person or the planner lets start empty.
    ///
    /// # Errors
    /// When one cannot be removed, or the volume is another node's.
    pub(crate) fn clear(&self) -> io::Result<()> {
        self.refuse_other_owner()?;
        for name in DATA.iter().chain(["nodes.conf", MARKER].iter()) {
            remove(&self.path.join(name))?;
        }
        Ok(())
    }

    /// Takes the data out of the server's way without touching them, and the marker with them:
    /// what a server writes from now on is not what the node had.
    ///
    /// # Errors
    /// When a file cannot be renamed (done again it goes on with the others), or the volume is
    /// another node's.
    pub(crate) fn move_aside(&self) -> io::Result<()> {
        self.refuse_other_owner()?;
        let mut number = 1;
        let mut kept = self.path.join(UNREADABLE).join("1");
        while DATA.iter().any(|name| kept.join(name).exists()) {
            number += 1;
            kept = self.path.join(UNREADABLE).join(number.to_string());
        }
        for name in DATA {
            let from = self.path.join(name);
            if fs::symlink_metadata(&from).is_ok() {
                fs::create_dir_all(&kept)?;
                fs::rename(&from, kept.join(name))?;
            }
        }
        remove(&self.path.join(MARKER))
    }

    /// Removes what was moved aside longer than [`KEEP_UNREADABLE`] before `now`, and answers what.
    ///
    /// # Errors
    /// When it cannot be listed or removed.
    pub(crate) fn drop_old_unreadable(&self, now: SystemTime) -> io::Result<Vec<PathBuf>> {
        let folder = self.path.join(UNREADABLE);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if is_absence(&error) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut dropped = Vec::new();
        for entry in entries {
            let entry = entry?;
            // The folder itself last changed when the data came into it.
            let since = entry.metadata()?.modified()?;
            if now.duration_since(since).is_ok_and(|age| age > KEEP_UNREADABLE) {
                remove(&entry.path())?;
                dropped.push(entry.path());
            }
        }
        Ok(dropped)
    }

    /// Removes what a server has left that was ended before its first copy was whole.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub(crate) fn drop_partial_copy(&self) -> io::Result<()> {
        DATA.iter().try_for_each(|name| remove(&self.path.join(name)))
    }

    pub(crate) fn has_aside(&self) -> bool {
        self.path.join(ASIDE).exists()
    }

    /// Keeps hard links of the present data in `aside/`: a full sync replaces the files and
    /// leaves the links alone. What is there already is older and stays: it is what nobody has
    /// copied yet.
    pub(crate) fn keep_aside(&self) -> io::Result<()> {
        if self.has_aside() {
            return Ok(());
        }
        let building = self.path.join("aside.new");
        remove(&building)?;
        fs::create_dir(&building)?;
        for name in DATA {
            link_all(&self.path.join(name), &building.join(name))?;
        }
        fs::rename(&building, self.path.join(ASIDE))
    }

    pub(crate) fn drop_aside(&self) -> io::Result<()> {
        remove(&self.path.join(ASIDE))
    }
}

/// Name of a file that a line of a manifest names for loading, and whether it is the base: `file
/// appendonly.aof.1.base.rdb seq 1 type b`, in pairs, to which later versions add (aof.c). History
/// (`h`) is on its way out.
fn part(line: &str) -> Option<(&str, bool)> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let value = |key: &str| words.chunks_exact(2).find(|pair| pair[0] == key).map(|pair| pair[1]);
    let kind = value("type").filter(|kind| matches!(*kind, "b" | "i"))?;
    Some((value("file")?, kind == "b"))
}

/// When a name, the owner or the content of a file below `path` last changed, in milliseconds of
/// the wall clock. The times that copying tools carry over do not count.
fn last_change(path: &Path, depth: u32) -> io::Result<i64> {
    let meta = fs::symlink_metadata(path)?;
    let mut newest = meta.ctime() * 1000 + meta.ctime_nsec() / 1_000_000;
    if meta.is_dir() && depth > 0 {
        for entry in fs::read_dir(path)? {
            newest = newest.max(last_change(&entry?.path(), depth - 1)?);
        }
    }
    Ok(newest)
}

/// Nothing is there, as opposed to: it cannot be read (no descriptors, no permission, a sick
/// disk).
fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn is_absent(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| is_absence(&error))
}

fn link_all(from: &Path, to: &Path) -> io::Result<()> {
    let meta = match fs::symlink_metadata(from) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !meta.is_dir() {
        return fs::hard_link(from, to);
    }
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        // The server removes temporary files at any time; a vanished one is no data.
        match fs::hard_link(entry.path(), to.join(entry.file_name())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(path: &Path, node: &str) -> Volume {
        Volume::new(
            path.join("volume"),
            NodeId::new(node).expect("valid"),
            InstanceId::new("i-1").expect("valid"),
        )
    }

    #[test]
    fn only_the_own_marker_makes_a_volume_ones_own() {
        let folder = tempfile::tempdir().expect("temp dir");
        let own = volume(folder.path(), "n-1");
        assert_eq!(own.find(), Found::Nothing);
        own.create().expect("created");
        assert_eq!(own.find(), Found::Nothing);
        own.write_marker().expect("marked");
        assert_eq!(own.find(), Found::Own);
        assert_eq!(volume(folder.path(), "n-2").find(), Found::Foreign);
    }

    #[test]
    fn a_volume_that_cannot_be_read_is_not_a_lost_one() {
        let folder = tempfile::tempdir().expect("temp dir");
        let own = volume(folder.path(), "n-1");
        // A marker that is a folder gives an error of reading other than "not found", also to root.
        fs::create_dir_all(own.path().join(MARKER)).expect("dirs");
        assert_eq!(own.find(), Found::Unreadable);
    }

    #[test]
    fn a_volume_misses_data_when_a_file_of_the_manifest_is_gone() {
        let folder = tempfile::tempdir().expect("temp dir");
        let own = volume(folder.path(), "n-1");
        let aof = own.path().join(PARTS);
        assert_eq!(own.missing_data(), Some(aof.clone()));
        fs::create_dir_all(&aof).expect("dirs");
        assert_eq!(own.missing_data(), Some(aof.join(MANIFEST)));
        let (base, incr) = ("appendonly.aof.1.base.rdb", "appendonly.aof.1.incr.aof");
        let manifest = format!(
            "file {base} seq 1 type b\nfile appendonly.aof.0.incr.aof seq 0 type h\n\
             file {incr} seq 1 type i\n"
        );
        fs::write(aof.join(MANIFEST), manifest).expect("written");
        fs::write(aof.join(base), "REDIS").expect("written");
        assert_eq!(own.missing_data(), Some(aof.join(incr)));
        fs::write(aof.join(incr), "").expect("written");
        assert_eq!(own.missing_data(), None, "no write since the last rewrite");
        fs::write(aof.join(base), "").expect("cut");
        assert_eq!(own.missing_data(), Some(aof.join(base)));
        fs::remove_dir_all(&aof).expect("removed");
        fs::write(own.path().join(ONE_PIECE), "").expect("written");
        assert_eq!(own.missing_data(), None, "a server of 6.2 that nobody has written to");
    }

    #[test]
    fn data_moved_aside_twice_are_both_kept() {
        let folder = tempfile::tempdir().expect("temp dir");
        let own = volume(folder.path(), "n-1");
        own.create().expect("created");
        for text in ["one", "two"] {
            own.write_marker().expect("marked");
            fs::write(own.path().join(ONE_PIECE), text).expect("written");
            own.move_aside().expect("moved");
            assert_eq!(own.find(), Found::Nothing);
        }
        let kept = |name: &str| fs::read_to_string(own.path().join(name)).expect("kept");
        assert_eq!(kept("unreadable/1/appendonly.aof"), "one");
        assert_eq!(kept("unreadable/2/appendonly.aof"), "two");
    }

    #[test]
    fn data_moved_aside_go_after_a_week_and_not_before() {
        let folder = tempfile::tempdir().expect("temp dir");
        let own = volume(folder.path(), "n-1");
        own.create().expect("created");
        own.write_marker().expect("marked");
        fs::write(own.path().join(ONE_PIECE), "one").expect("written");
        own.move_aside().expect("moved");
        let kept = own.path().join("unreadable/1");
        let day = Duration::from_secs(24 * 3600);
        assert!(own.drop_old_unreadable(SystemTime::now() + 6 * day).expect("read").is_empty());
        assert!(kept.join(ONE_PIECE).exists());
        let dropped = own.drop_old_unreadable(SystemTime::now() + 8 * day).expect("removed");
        assert_eq!(dropped, std::slice::from_ref(&kept));
        assert!(!kept.exists());
    }

    #[test]
    fn a_volume_of_another_node_is_neither_cleared_nor_moved() {
        let folder = tempfile::tempdir().expect("temp dir");
        let own = volume(folder.path(), "n-1");
        own.create().expect("created");
        own.write_marker().expect("marked");
        fs::write(own.path().join(ONE_PIECE), "one").expect("written");
        let other = volume(folder.path(), "n-2");
        assert_eq!(other.other_owner().as_ref().map(NodeId::as_str), Some("n-1"));
        assert_eq!(own.other_owner(), None);
        assert!(other.move_aside().is_err() && other.clear().is_err());
        assert!(own.path().join(ONE_PIECE).exists() && own.find() == Found::Own);
    }

    #[test]
    fn manifests_of_later_versions_are_understood() {
        assert_eq!(part("file a.1.base.rdb seq 1 type b"), Some(("a.1.base.rdb", true)));
        assert_eq!(
            part("file a.2.incr.aof seq 2 type i startoffset 1 endoffset 9"),
            Some(("a.2.incr.aof", false))
        );
        assert_eq!(part("file a.1.incr.aof seq 1 type h"), None);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_told_from_a_missing_one() {
        let folder = tempfile::tempdir().expect("temp dir");
        let own = volume(folder.path(), "n-1");
        let aof = own.path().join(PARTS);
        fs::create_dir_all(&aof).expect("dirs");
        fs::write(aof.join(MANIFEST), "file a seq 1 type i\n").expect("written");
        assert!(own.read_through().is_ok());
        // A folder in the place of a file gives an error of reading, also to root.
        fs::create_dir(aof.join("a")).expect("made");
        assert!(own.read_through().is_err());
    }

    #[test]
    fn data_kept_aside_outlive_their_replacement() {
        let folder = tempfile::tempdir().expect("temp dir");
        let own = volume(folder.path(), "n-1");
        let aof = own.path().join("appendonlydir");
        fs::create_dir_all(&aof).expect("dirs");
        fs::write(aof.join("incr.1"), "old").expect("written");
        own.keep_aside().expect("kept");
        own.keep_aside().expect("twice is once");
        fs::remove_dir_all(&aof).expect("replaced");
        let kept = own.path().join(ASIDE).join("appendonlydir/incr.1");
        assert_eq!(fs::read_to_string(kept).expect("there"), "old");
        own.drop_aside().expect("dropped");
        assert!(!own.has_aside());
    }
}
