//! Nodes: a folder, a port, and the wish for an agent.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use larder_cluster::ClusterError;
use larder_keeper::{files, process};
use larder_model::agent::{Fence, NodeConfig};
use larder_model::local::{AgentBoot, Guard, LeaseGuard, NodeSecrets, ProcessMark, ProcessSpec};
use larder_model::{Address, BackendNode, ByteSize, Code, InstanceId, NodeId, NodeMode};

use crate::place::Place;
use crate::ports::Owner;
use crate::{error, fences, readable};

/// Says that a folder is on its way out. Written first and deleted last, so that a removal that
/// was cut short goes on.
pub(crate) const REMOVED: &str = "removed";

/// Names in a node's folder.
struct NodeDir(PathBuf);

impl NodeDir {
    fn boot(&self) -> PathBuf {
        self.0.join("agent.json")
    }

    fn secrets(&self) -> PathBuf {
        self.0.join("secrets.json")
    }

    /// The reserved address, for as long as there is no `agent.json`.
    fn address(&self) -> PathBuf {
        self.0.join("address.json")
    }

    fn server(&self) -> PathBuf {
        self.0.join("server.json")
    }

    /// Whether the server of an agent that nobody looks after runs on.
    fn server_runs(&self) -> bool {
        let mark: Option<ProcessMark> = files::read_json(&self.server()).unwrap_or_default();
        mark.is_some_and(|mark| process::is_alive(&mark))
    }

    fn volume(&self) -> PathBuf {
        self.0.join("volume")
    }

    fn removed(&self) -> PathBuf {
        self.0.join(REMOVED)
    }

    /// The configuration that is there; one that cannot be understood counts as missing and is
    /// written anew.
    fn read_boot(&self) -> Result<Option<AgentBoot>, ClusterError> {
        readable::read(&self.boot())
    }

    /// Whether the secrets are there and can be used.
    fn has_secrets(&self) -> Result<bool, ClusterError> {
        let secrets: Option<NodeSecrets> = readable::read(&self.secrets())?;
        Ok(secrets.is_some_and(|secrets| secrets.is_usable()))
    }
}

impl Place {
    fn node_dir(&self, instance: &InstanceId, node: &NodeId) -> NodeDir {
        NodeDir(self.data.node(instance, node))
    }

    pub(crate) fn reserve_address(
        &self,
        fence: Fence,
        instance: &InstanceId,
        node: &NodeId,
    ) -> Result<Address, ClusterError> {
        let dir = self.node_dir(instance, node);
        refuse_when_leaving(&dir, node)?;
        let instance_dir = self.data.instance(instance);
        fences::check(&instance_dir, fence)?;
        let owner = Owner::Node(node.clone());
        let path = dir.address();
        let present: Option<Address> = readable::read(&path)?;
        if let Some(address) = present {
            self.ports.hold(address.port, instance, &owner)?;
            return Ok(address);
        }
        // The folder first: a node that has a port is always seen.
        files::make_private_dir(&dir.0).map_err(error::io("make", &dir.0))?;
        let port = match self.ports.take(instance, &owner) {
            Ok(port) => port,
            Err(error) => {
                self.remove_empty_folders(instance, &dir.0);
                return Err(error);
            }
        };
        let address = self.options.address(port);
        files::write_json(&path, &address).map_err(error::io("write", &path))?;
        // The folder exists from here on, also for a fence that could not be kept before.
        fences::check(&instance_dir, fence)?;
        Ok(address)
    }

    /// A refused reservation leaves no trace. Folders with something in them stay.
    fn remove_empty_folders(&self, instance: &InstanceId, node_dir: &Path) {
        let instance_dir = self.data.instance(instance);
        for folder in [node_dir, &instance_dir.join("nodes"), &instance_dir] {
            if fs::remove_dir(folder).is_err() {
                return;
            }
        }
    }

    pub(crate) fn ensure_node(
        &self,
        fence: Fence,
        config: &NodeConfig,
        secrets: &NodeSecrets,
    ) -> Result<(), ClusterError> {
        let (instance, node) = (&config.instance, &config.node);
        let dir = self.node_dir(instance, node);
        refuse_when_leaving(&dir, node)?;
        let instance_dir = self.data.instance(instance);
        fences::check(&instance_dir, fence)?;
        let present = dir.read_boot()?;
        if let Some(present) = &present
            && present.config.generation > config.generation
        {
            let generation = present.config.generation;
            return Err(ClusterError::Stale { seen: Fence { generation, ..fence } });
        }
        let server_binary = match self.engines.server_binary(&config.engine) {
            Some(binary) => binary,
            // Its binary may be gone for a while; the node's configuration is kept up all the same.
            None => match &present {
                Some(present) if present.config.engine == config.engine => {
                    present.server_binary.clone()
                }
                Some(_) | None => {
                    return Err(error::refused(
                        Code::EngineNotFound,
                        format!("engine `{}` is not installed on this machine", config.engine),
                    ));
                }
            },
        };
        let run_dir = self.run_dir()?.clone();
        let (lease_dir, route_dir) = (self.data.lease(instance), self.data.route(instance));
        for folder in [&dir.0, &lease_dir, &route_dir] {
            files::make_private_dir(folder).map_err(error::io("make", folder))?;
        }
        // The folder exists from here on, also for a fence that could not be kept before.
        fences::check(&instance_dir, fence)?;
        self.ports.hold(config.address.port, instance, &Owner::Node(node.clone()))?;

        let boot = AgentBoot {
            config: config.clone(),
            bind_host: self.options.bind_apart(),
            server_binary,
            volume: dir.volume(),
            run_dir: run_dir.0.clone(),
            lease_dir: lease_dir.clone(),
            route_dir,
        };
        write(&dir.address(), &config.address)?;
        write(&dir.secrets(), secrets)?;
        write(&dir.boot(), &boot)?;

        let name = Self::agent_name(node);
        let wish = self.wish(&name)?;
        if wish.as_ref().is_some_and(|wish| wish.removed) {
            return Err(leaving(node));
        }
        let lease =
            (config.mode == NodeMode::Leased && config.members.len() > 1).then_some(LeaseGuard {
                lease_dir,
                lease_ttl: config.election.lease_ttl,
                fence_margin: config.election.fence_margin,
            });
        self.set_wish(&ProcessSpec {
            argv: self.argv(wish.as_ref(), "agent", &dir.0),
            name,
            instance: instance.clone(),
            log: dir.0.join("agent.log"),
            ping_socket: Some(run_dir.agent_socket(node)),
            guard: Some(Guard { node: node.clone(), server_file: dir.server(), lease }),
            removed: false,
        })
    }

    pub(crate) fn remove_node(
        &self,
        fence: Fence,
        instance: &InstanceId,
        node: &NodeId,
    ) -> Result<(), ClusterError> {
        fences::check(&self.data.instance(instance), fence)?;
        let dir = self.node_dir(instance, node);
        let name = Self::agent_name(node);
        if dir.0.is_dir() {
            let path = dir.removed();
            files::write_text(&path, "").map_err(error::io("write", &path))?;
        }
        let wish = self.wish(&name)?;
        if wish.is_some() || self.has_process(&name) || dir.server_runs() {
            let present = wish.unwrap_or_else(|| ProcessSpec {
                name,
                instance: instance.clone(),
                argv: self.argv(None, "agent", &dir.0),
                log: dir.0.join("agent.log"),
                ping_socket: Some(self.sockets().agent_socket(node)),
                guard: Some(Guard { node: node.clone(), server_file: dir.server(), lease: None }),
                removed: true,
            });
            self.set_wish(&ProcessSpec { removed: true, ..present })?;
        }
        self.finish_node(instance, node).map(drop)
    }

    /// Deletes what is left of a node once the keeper has removed its processes. Answers whether
    /// nothing is left.
    fn finish_node(&self, instance: &InstanceId, node: &NodeId) -> Result<bool, ClusterError> {
        if self.has_process(&Self::agent_name(node)) {
            return Ok(false);
        }
        let dir = self.node_dir(instance, node);
        let boot = dir.boot();
        // Data first. `agent.json` goes after the port, because it says how long that has to
        // rest.
        empty_folder(&dir.0, &[&boot, &dir.removed()])?;
        let clustered =
            dir.read_boot()?.is_some_and(|boot| boot.config.mode == NodeMode::Clustered);
        let socket = self.sockets().agent_socket(node);
        files::remove_if_exists(&socket).map_err(error::io("remove", &socket))?;
        self.ports.release(instance, &Owner::Node(node.clone()), clustered)?;
        remove_folder(&dir.0)?;
        Ok(true)
    }

    /// The instance's nodes. Goes on with removals on the way.
    pub(crate) fn observe_nodes(
        &self,
        instance: &InstanceId,
    ) -> Result<Vec<(NodeId, BackendNode)>, ClusterError> {
        let mut nodes = Vec::new();
        for node in self.node_folders(instance)? {
            let dir = self.node_dir(instance, &node);
            let leaving = dir.removed().exists();
            if leaving && self.finish_node(instance, &node)? {
                continue;
            }
            let boot = dir.read_boot()?;
            let address = match &boot {
                Some(boot) => Some(boot.config.address.clone()),
                None => readable::read(&dir.address())?,
            };
            let realised = !leaving
                && boot.is_some()
                && dir.has_secrets()?
                && self.wish(&Self::agent_name(&node))?.is_some_and(|wish| !wish.removed);
            let shown = BackendNode {
                exposed: larder_model::Exposed::No,
                outdated: false,
                worker: self.worker.clone(),
                generation: boot.as_ref().map_or(0, |boot| boot.config.generation),
                address,
                realised,
                volume: dir.volume().is_dir(),
            };
            nodes.push((node, shown));
        }
        if nodes.is_empty() && !self.data.instance(instance).is_dir() {
            return self.traces(instance);
        }
        Ok(nodes)
    }

    /// Nodes of an instance whose folder somebody has deleted: ports and processes may be left.
    fn traces(&self, instance: &InstanceId) -> Result<Vec<(NodeId, BackendNode)>, ClusterError> {
        let mut traces = Vec::new();
        let mut add = |node: NodeId, address| {
            let shown = BackendNode {
                exposed: larder_model::Exposed::No,
                outdated: false,
                worker: self.worker.clone(),
                address,
                realised: false,
                volume: false,
                generation: 0,
            };
            traces.push((node, shown));
        };
        let ports = self.ports.nodes(instance)?;
        for spec in self.wishes()? {
            if let Some(guard) = spec.guard.filter(|_| spec.instance == *instance)
                && !ports.contains_key(&guard.node)
            {
                add(guard.node, None);
            }
        }
        for (node, port) in ports {
            add(node, Some(self.options.address(port)));
        }
        traces.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(traces)
    }

    /// Every wish that the keeper has.
    pub(crate) fn wishes(&self) -> Result<Vec<ProcessSpec>, ClusterError> {
        larder_keeper::wishes(&self.keeper).map_err(error::io("list", &self.keeper.desired_dir()))
    }

    pub(crate) fn node_folders(&self, instance: &InstanceId) -> Result<Vec<NodeId>, ClusterError> {
        let dir = self.data.instance(instance).join("nodes");
        let mut nodes: Vec<NodeId> =
            folder_names(&dir)?.into_iter().filter_map(|name| NodeId::new(name).ok()).collect();
        nodes.sort();
        Ok(nodes)
    }

    /// Memory promised to all nodes on this machine.
    pub(crate) fn promised_memory(&self) -> Result<ByteSize, ClusterError> {
        let mut bytes = 0_u64;
        for instance in self.instance_folders()? {
            for node in self.node_folders(&instance)? {
                let boot = self.node_dir(&instance, &node).read_boot()?;
                bytes = bytes.saturating_add(boot.map_or(0, |boot| boot.config.memory.bytes()));
            }
        }
        Ok(ByteSize(bytes))
    }
}

fn refuse_when_leaving(dir: &NodeDir, node: &NodeId) -> Result<(), ClusterError> {
    if dir.removed().exists() { Err(leaving(node)) } else { Ok(()) }
}

fn leaving(node: &NodeId) -> ClusterError {
    error::refused(Code::InstanceBusy, format!("node {node} is being removed"))
}

pub(crate) fn write<T: serde::Serialize>(path: &Path, value: &T) -> Result<(), ClusterError> {
    files::write_json_if_changed(path, value).map(drop).map_err(error::io("write", path))
}

/// Names of the folders in `dir`; none when it does not exist.
pub(crate) fn folder_names(dir: &Path) -> Result<Vec<String>, ClusterError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error::io("list", dir)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(error::io("list", dir))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names.extend(entry.file_name().into_string().ok());
        }
    }
    Ok(names)
}

/// Deletes what is in a folder except for some files.
pub(crate) fn empty_folder(dir: &Path, keep: &[&Path]) -> Result<(), ClusterError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error::io("list", dir)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(error::io("list", dir))?;
        let path = entry.path();
        if keep.contains(&path.as_path()) {
            continue;
        }
        let is_dir = entry.file_type().map_err(error::io("look at", &path))?.is_dir();
        let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(error::io("remove", &path))?,
        }
    }
    Ok(())
}

/// Deletes a folder, the file that says so last.
pub(crate) fn remove_folder(dir: &Path) -> Result<(), ClusterError> {
    empty_folder(dir, &[&dir.join(REMOVED)])?;
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(error::io("remove", dir)),
    }
}
