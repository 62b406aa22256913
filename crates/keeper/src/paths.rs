//! Names in the keeper's folder.

use std::path::{Path, PathBuf};

use larder_model::local::DataDir;

/// `DATA/keeper` and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeeperPaths {
    root: PathBuf,
}

impl KeeperPaths {
    pub fn new(data: &Path) -> Self {
        Self { root: DataDir(data.to_owned()).keeper() }
    }

    /// `keeper/`
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// One `ProcessSpec` per file.
    pub fn desired_dir(&self) -> PathBuf {
        self.root.join("desired")
    }

    pub fn desired(&self, name: &str) -> PathBuf {
        self.desired_dir().join(format!("{name}.json"))
    }

    /// One mark per running process.
    pub fn state_dir(&self) -> PathBuf {
        self.root.join("state")
    }

    pub fn state(&self, name: &str) -> PathBuf {
        self.state_dir().join(format!("{name}.json"))
    }

    /// Held by `flock` while a keeper runs; holds its `ProcessMark`.
    pub fn lock(&self) -> PathBuf {
        self.root.join("keeper.lock")
    }

    pub fn log(&self) -> PathBuf {
        self.root.join("keeper.log")
    }
}
