//! What every part of the backend needs: settings, names of files, engines, ports.

use std::path::PathBuf;
use std::sync::Arc;

use larder_cluster::ClusterError;
use larder_keeper::{KeeperPaths, files, run_dir};
use larder_model::local::{DataDir, ProcessSpec, RunDir};
use larder_model::{InstanceId, NodeId, WorkerName};

use crate::options::{EngineLookup, LocalOptions};
use crate::ports::Ports;
use crate::{error, readable};

/// One machine with one data directory. All methods block.
pub(crate) struct Place {
    pub(crate) options: LocalOptions,
    pub(crate) data: DataDir,
    pub(crate) keeper: KeeperPaths,
    pub(crate) engines: Arc<dyn EngineLookup>,
    pub(crate) ports: Ports,
    pub(crate) worker: WorkerName,
    run_dir: RunDir,
}

impl Place {
    pub(crate) fn new(
        options: LocalOptions,
        engines: Arc<dyn EngineLookup>,
        worker: WorkerName,
    ) -> Result<Self, ClusterError> {
        let data = DataDir(options.data.clone());
        let keeper = KeeperPaths::new(&options.data);
        for folder in [data.instances(), data.ports(), keeper.desired_dir(), keeper.state_dir()] {
            files::make_private_dir(&folder).map_err(error::io("make", &folder))?;
        }
        let run_dir = run_dir::ensure(&options.data)
            .map_err(error::io("make the folder of sockets of", &options.data))?;
        let ports = Ports::new(&options);
        Ok(Self { options, data, keeper, engines, ports, worker, run_dir })
    }

    /// The folder of sockets, made again when it vanished.
    pub(crate) fn run_dir(&self) -> Result<&RunDir, ClusterError> {
        if !self.run_dir.0.is_dir() {
            run_dir::ensure(&self.options.data)
                .map_err(error::io("make the folder of sockets of", &self.options.data))?;
        }
        Ok(&self.run_dir)
    }

    /// The folder of sockets, without a look whether it is there.
    pub(crate) fn sockets(&self) -> &RunDir {
        &self.run_dir
    }

    pub(crate) fn agent_name(node: &NodeId) -> String {
        format!("agent-{node}")
    }

    pub(crate) fn relay_name(instance: &InstanceId) -> String {
        format!("relay-{instance}")
    }

    /// The wish for a process; `None` when there is none, also because the keeper has removed it.
    /// One that cannot be understood counts as missing and is written anew.
    pub(crate) fn wish(&self, name: &str) -> Result<Option<ProcessSpec>, ClusterError> {
        let wish: Option<ProcessSpec> = readable::read(&self.keeper.desired(name))?;
        // The keeper does not obey the others either.
        Ok(wish.filter(|wish| wish.name == name && !wish.argv.is_empty()))
    }

    /// Writes the wish for a process when it is not that already.
    pub(crate) fn set_wish(&self, spec: &ProcessSpec) -> Result<(), ClusterError> {
        let path = self.keeper.desired(&spec.name);
        files::write_json_if_changed(&path, spec).map(drop).map_err(error::io("write", &path))
    }

    /// Whether the keeper has, or may have, a process of this name.
    pub(crate) fn has_process(&self, name: &str) -> bool {
        self.keeper.desired(name).exists() || self.keeper.state(name).exists()
    }

    /// The command line of a process. A living one keeps the program that it was made with while
    /// that exists, because a restart of every agent is not what an upgrade is for.
    pub(crate) fn argv(
        &self,
        present: Option<&ProcessSpec>,
        role: &str,
        dir: &std::path::Path,
    ) -> Vec<String> {
        let program = present
            .and_then(|spec| spec.argv.first())
            .map(PathBuf::from)
            .filter(|program| program.exists())
            .unwrap_or_else(|| self.options.larder_binary.clone());
        vec![
            program.display().to_string(),
            role.to_owned(),
            "--dir".to_owned(),
            dir.display().to_string(),
        ]
    }
}
