//! What an agent starts from: `agent.json`, `secrets.json`, and the lock that keeps it single.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use larder_model::Address;
use larder_model::local::{AgentBoot, NodeSecrets, PROMISED, RunDir};
use rustix::fs::{FlockOperation, flock};
use serde::de::DeserializeOwned;

use crate::error::AgentError;

/// Names in the node's folder (docs/design/0002).
#[derive(Clone, Debug)]
pub(crate) struct NodeDir {
    state: PathBuf,
    /// What the control plane writes; the same folder on one machine, a mounted one in a pod.
    config: PathBuf,
}

impl NodeDir {
    pub(crate) fn boot(&self) -> PathBuf {
        self.config.join("agent.json")
    }

    pub(crate) fn secrets(&self) -> PathBuf {
        self.config.join("secrets.json")
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.state.join("agent.lock")
    }

    pub(crate) fn memory(&self) -> PathBuf {
        self.state.join("state.json")
    }

    pub(crate) fn server_mark(&self) -> PathBuf {
        self.state.join("server.json")
    }

    pub(crate) fn kept_cluster_file(&self) -> PathBuf {
        self.state.join("nodes.conf.kept")
    }

    pub(crate) fn server_log(&self) -> PathBuf {
        self.state.join("server.log")
    }

    pub(crate) fn promised(&self) -> PathBuf {
        self.state.join(PROMISED)
    }

    pub(crate) fn server_config(&self) -> PathBuf {
        self.state.join("redis.conf")
    }

    pub(crate) fn users(&self) -> PathBuf {
        self.state.join("users.acl")
    }
}

/// Everything read at the agent's start, with the lock held for its life.
#[derive(Debug)]
pub(crate) struct Boot {
    pub(crate) dir: NodeDir,
    pub(crate) boot: AgentBoot,
    pub(crate) secrets: NodeSecrets,
    pub(crate) run_dir: RunDir,
    /// The agent is the first process of a pod.
    pub(crate) in_pod: bool,
    /// The node has had another volume before, and what the agent remembers was on that.
    pub(crate) volume_replaced: bool,
    /// Where the pod's worker is reached.
    pub(crate) worker: Option<String>,
    /// Held until the process ends, however it ends.
    _lock: File,
}

impl Boot {
    /// Reads the node's folder and takes its lock.
    ///
    /// # Errors
    /// [`AgentError::AlreadyRunning`] when another agent holds the lock; otherwise the file that
    /// cannot be read or used.
    pub(crate) fn load(path: &Path) -> Result<Self, AgentError> {
        Self::load_apart(path, path)
    }

    /// As [`Boot::load`], with what the control plane writes in a folder of its own.
    pub(crate) fn load_apart(config: &Path, state: &Path) -> Result<Self, AgentError> {
        // Absolute: the server's working folder is another one.
        let absolute = |path: &Path| {
            fs::canonicalize(path)
                .map_err(|source| AgentError::Read { path: path.to_owned(), source })
        };
        let dir = NodeDir { state: absolute(state)?, config: absolute(config)? };
        let lock = take_lock(&dir.lock())?;
        let boot: AgentBoot = read_json(&dir.boot())?;
        let secrets: NodeSecrets = read_json(&dir.secrets())?;
        if !secrets.is_usable() {
            return Err(AgentError::Secrets { path: dir.secrets() });
        }
        let run_dir = RunDir(boot.run_dir.clone());
        Ok(Self {
            dir,
            boot,
            secrets,
            run_dir,
            in_pod: false,
            volume_replaced: false,
            worker: None,
            _lock: lock,
        })
    }
}

impl Boot {
    /// Where the agent reaches its own server: the host that others are told may lead there only
    /// from outside.
    pub(crate) fn own_address(&self) -> Address {
        let host = match self.boot.listen_host() {
            "0.0.0.0" => "127.0.0.1",
            "::" => "::1",
            host => host,
        };
        Address::new(host, self.boot.config.address.port)
    }
}

/// Reads a JSON file.
///
/// # Errors
/// [`AgentError::Read`] or [`AgentError::Malformed`], with the path.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, AgentError> {
    let bytes =
        fs::read(path).map_err(|source| AgentError::Read { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes)
        .map_err(|source| AgentError::Malformed { path: path.to_owned(), source })
}

fn take_lock(path: &Path) -> Result<File, AgentError> {
    let failed = |source| AgentError::Lock { path: path.to_owned(), source };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(AgentError::AlreadyRunning { path: path.to_owned() })
        }
        Err(error) => Err(failed(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_refused_while_the_first_lives() {
        let folder = tempfile::tempdir().expect("temp dir");
        let path = folder.path().join("agent.lock");
        let first = take_lock(&path).expect("first");
        assert!(matches!(take_lock(&path), Err(AgentError::AlreadyRunning { .. })));
        drop(first);
        take_lock(&path).expect("free again");
    }
}
