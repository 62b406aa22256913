//! The server's folder: whose it is, whether it was lost, and older data kept aside.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use larder_model::{InstanceId, NodeId};
use serde::{Deserialize, Serialize};

use crate::files;

/// Name of the file that says whose volume it is.
const MARKER: &str = ".larder";
/// Folder for data that may hold writes which nobody else has.
const ASIDE: &str = "aside";
/// The server's data as Redis names them: `appendonlydir` is 7.0 and later, the others older.
const DATA: [&str; 3] = ["appendonlydir", "appendonly.aof", "dump.rdb"];

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

/// Nothing is there, as opposed to: it cannot be read (no descriptors, no permission, a sick
/// disk).
fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
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
