//! The server's folder: whose it is, whether it was lost, and older data kept aside.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use larder_model::{InstanceId, NodeId};
use serde::{Deserialize, Serialize};

use crate::files;

/// Name of the file that says whose volume it is.
const MARKER: &str = ".larder";
/// Folder for data that may hold writes which nobody else has.
const ASIDE: &str = "aside";
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
        let folder = self.path.join("appendonlydir");
        let inside = match fs::read_dir(&folder) {
            Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?,
            Err(error) if is_absence(&error) => Vec::new(),
            Err(error) => return Err(error),
        };
        for file in inside.into_iter().chain([self.path.join("appendonly.aof")]) {
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
        let folder = self.path.join(PARTS);
        let manifest = folder.join(MANIFEST);
        let text = match fs::read_to_string(&manifest) {
            Ok(text) => text,
            Err(error) if is_absence(&error) => {
                let one_piece = is_absent(&self.path.join(ONE_PIECE));
                return one_piece.then_some(if is_absent(&folder) { folder } else { manifest });
            }
            Err(_) => return None,
        };
        // `file appendonly.aof.1.base.rdb seq 1 type b`; history (`h`) is on its way out.
        for line in text.lines() {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let ["file", name, "seq", _, "type", kind @ ("b" | "i")] = words[..] else { continue };
            let file = folder.join(name);
            match fs::metadata(&file) {
                // Even a snapshot of nothing has a header and a checksum.
                Ok(meta) if kind == "b" && name.ends_with(".rdb") && meta.len() == 0 => {
                    return Some(file);
                }
                // A server that was ended in the middle of its upgrade has it beside the folder.
                Err(error) if is_absence(&error) && is_absent(&self.path.join(name)) => {
                    return Some(file);
                }
                _ => {}
            }
        }
        None
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

    fn has_server_data(&self) -> bool {
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
    pub(crate) fn clear(&self) -> io::Result<()> {
        for name in DATA.iter().chain(["nodes.conf", MARKER].iter()) {
            remove(&self.path.join(name))?;
        }
        Ok(())
    }

    /// Takes the data out of the server's way without touching them, and the marker with them:
    /// what a server writes from now on is not what the node had. What is aside already stays.
    ///
    /// # Errors
    /// When a file cannot be renamed; done again it goes on where it stopped.
    pub(crate) fn move_aside(&self) -> io::Result<()> {
        let mut aside = self.path.join(ASIDE);
        let mut number = 0;
        while DATA.iter().any(|name| aside.join(name).exists()) {
            number += 1;
            aside = self.path.join(ASIDE).join(format!("newer-{number}"));
        }
        for name in DATA {
            let from = self.path.join(name);
            if fs::symlink_metadata(&from).is_ok() {
                fs::create_dir_all(&aside)?;
                fs::rename(&from, aside.join(name))?;
            }
        }
        remove(&self.path.join(MARKER))
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
        assert_eq!(kept("aside/appendonly.aof"), "one");
        assert_eq!(kept("aside/newer-1/appendonly.aof"), "two");
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
