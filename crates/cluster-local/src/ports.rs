//! Who has which port. One small file per port; a released port rests before it is used again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use larder_cluster::ClusterError;
use larder_keeper::{clock, files};
use larder_model::local::DataDir;
use larder_model::{Code, EndpointKind, InstanceId, NodeId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::options::LocalOptions;
use crate::{error, readable};

/// What a port is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Owner {
    Node(NodeId),
    Endpoint(EndpointKind),
}

/// Content of `ports/<port>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PortFile {
    instance: InstanceId,
    owner: Owner,
    taken_at: Timestamp,
    /// Set when the owner is gone: the port rests.
    released_at: Option<Timestamp>,
    /// It was the port of a cluster-mode node.
    clustered: bool,
}

/// The ports of a data directory.
#[derive(Debug)]
pub(crate) struct Ports {
    dir: PathBuf,
    data: DataDir,
    options: LocalOptions,
    /// One taker at a time in this process; `serve.lock` keeps other processes away. The
    /// `link` below is the second line of defence.
    taking: Mutex<()>,
}

impl Ports {
    pub(crate) fn new(options: &LocalOptions) -> Self {
        let data = DataDir(options.data.clone());
        Self { dir: data.ports(), data, options: options.clone(), taking: Mutex::new(()) }
    }

    /// The port of this owner: the one that it has, else the first free one.
    ///
    /// # Errors
    /// `no-free-port` when every port of the range is taken, rests, or is used by others.
    pub(crate) fn take(&self, instance: &InstanceId, owner: &Owner) -> Result<u16, ClusterError> {
        let _guard = self.lock();
        let known = self.read_all()?;
        if let Some(port) = held_by(&known, instance, owner) {
            return Ok(port);
        }
        let now = clock::wall();
        // First what nobody can remember; then what has rested long enough though peers of its
        // former owner still live.
        for also_remembered in [false, true] {
            for port in self.options.port_range.clone() {
                let may_take = match known.get(&port) {
                    None => !also_remembered,
                    Some(Some(file)) => self.has_rested(file, now, also_remembered),
                    // Unreadable: whoever has it, it is not free.
                    Some(None) => false,
                };
                if may_take && self.is_free(port)? && self.write_claim(port, instance, owner)? {
                    return Ok(port);
                }
            }
        }
        let (first, last) = (self.options.port_range.start(), self.options.port_range.end());
        Err(error::refused(
            Code::NoFreePort,
            format!(
                "no port of {first}-{last} is free together with its bus port (10000 above): \
                 delete instances, wait until released ports have rested, or widen the range"
            ),
        ))
    }

    /// Checks that `needed` more ports could be taken just now; takes none.
    ///
    /// # Errors
    /// `no-free-port` with what there is.
    pub(crate) fn check(&self, needed: usize) -> Result<(), ClusterError> {
        let known = self.read_all()?;
        let now = clock::wall();
        let mut free = 0;
        for port in self.options.port_range.clone() {
            if free >= needed {
                return Ok(());
            }
            let may_take = match known.get(&port) {
                None => true,
                Some(Some(file)) => [false, true].iter().any(|&r| self.has_rested(file, now, r)),
                Some(None) => false,
            };
            if may_take && self.is_free(port)? {
                free += 1;
            }
        }
        if free >= needed {
            return Ok(());
        }
        let (first, last) = (self.options.port_range.start(), self.options.port_range.end());
        Err(error::refused(
            Code::NoFreePort,
            format!(
                "{needed} ports are needed, {free} of {first}-{last} are free together with their \
                 bus ports (10000 above): delete instances, wait until released ports have \
                 rested, or widen the range"
            ),
        ))
    }

    /// Makes sure that the owner has exactly this port, also when its file was lost.
    ///
    /// # Errors
    /// `no-free-port` when somebody else has it.
    pub(crate) fn hold(
        &self,
        port: u16,
        instance: &InstanceId,
        owner: &Owner,
    ) -> Result<(), ClusterError> {
        let _guard = self.lock();
        let path = self.path(port);
        // Damaged, it says of nobody that he has the port; who holds it has it in its own files.
        let file: Option<PortFile> = readable::read(&path)?;
        match file {
            Some(file)
                if file.instance == *instance
                    && file.owner == *owner
                    && file.released_at.is_none() =>
            {
                Ok(())
            }
            None if self.write_claim(port, instance, owner)? => Ok(()),
            Some(_) | None => Err(error::refused(
                Code::NoFreePort,
                format!("port {port} belongs to somebody else"),
            )),
        }
    }

    /// Lets the owner's port rest. `clustered`: other servers may remember it.
    pub(crate) fn release(
        &self,
        instance: &InstanceId,
        owner: &Owner,
        clustered: bool,
    ) -> Result<(), ClusterError> {
        self.release_where(clustered, |file| file.instance == *instance && file.owner == *owner)
    }

    /// Lets every port of the instance rest.
    pub(crate) fn release_all(&self, instance: &InstanceId) -> Result<(), ClusterError> {
        self.release_where(false, |file| file.instance == *instance)
    }

    /// Instances that have ports.
    pub(crate) fn instances(&self) -> Result<BTreeSet<InstanceId>, ClusterError> {
        Ok(self
            .read_all()?
            .into_values()
            .flatten()
            .filter(|file| file.released_at.is_none())
            .map(|file| file.instance)
            .collect())
    }

    /// Nodes of the instance that have a port.
    pub(crate) fn nodes(
        &self,
        instance: &InstanceId,
    ) -> Result<BTreeMap<NodeId, u16>, ClusterError> {
        let files = self.read_all()?.into_iter();
        Ok(files
            .filter_map(|(port, file)| Some((port, file?)))
            .filter(|(_, file)| file.released_at.is_none() && file.instance == *instance)
            .filter_map(|(port, file)| match file.owner {
                Owner::Node(node) => Some((node, port)),
                Owner::Endpoint(_) => None,
            })
            .collect())
    }

    fn release_where(
        &self,
        clustered: bool,
        is_meant: impl Fn(&PortFile) -> bool,
    ) -> Result<(), ClusterError> {
        let _guard = self.lock();
        for (port, file) in self.read_all()? {
            let Some(mut file) = file else { continue };
            if file.released_at.is_none() && is_meant(&file) {
                file.released_at = Some(clock::wall());
                file.clustered = clustered;
                let path = self.path(port);
                files::write_json(&path, &file).map_err(error::io("write", &path))?;
            }
        }
        Ok(())
    }

    fn has_rested(&self, file: &PortFile, now: Timestamp, also_remembered: bool) -> bool {
        let Some(released_at) = file.released_at else { return false };
        let rested = |length: std::time::Duration| now.since(released_at).duration() >= length;
        let is_remembered =
            file.clustered && self.data.instance(&file.instance).join("nodes").is_dir();
        if is_remembered {
            also_remembered && rested(self.options.clustered_port_rest)
        } else {
            !also_remembered && rested(self.options.port_rest)
        }
    }

    /// Whether nobody listens on the port and on its bus port.
    fn is_free(&self, port: u16) -> Result<bool, ClusterError> {
        let host = self.options.bind_host.as_str();
        let listen = |port: u16| match TcpListener::bind((host, port)) {
            Ok(listener) => Ok(Some(listener)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied
                ) =>
            {
                Ok(None)
            }
            Err(error) => {
                Err(error::unreachable(format!("cannot listen on {host} port {port}: {error}")))
            }
        };
        // Both at once, so that neither test frees what the other one looks at.
        let client = listen(port)?;
        let bus = listen(port + 10_000)?;
        Ok(client.is_some() && bus.is_some())
    }

    /// Takes the port by linking a complete file to its name. Answers false when somebody else
    /// was faster.
    fn write_claim(
        &self,
        port: u16,
        instance: &InstanceId,
        owner: &Owner,
    ) -> Result<bool, ClusterError> {
        let file = PortFile {
            instance: instance.clone(),
            owner: owner.clone(),
            taken_at: clock::wall(),
            released_at: None,
            clustered: false,
        };
        files::make_private_dir(&self.dir).map_err(error::io("make", &self.dir))?;
        let path = self.path(port);
        let claim = self.dir.join(".claim");
        files::write_json(&claim, &file).map_err(error::io("write", &claim))?;
        // What is there has rested, or the caller would not be here.
        files::remove_if_exists(&path).map_err(error::io("remove", &path))?;
        let linked = fs::hard_link(&claim, &path);
        files::remove_if_exists(&claim).map_err(error::io("remove", &claim))?;
        match linked {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error::io("write", &path)(error)),
        }
    }

    /// Every port file by its port; `None` for one that cannot be understood.
    fn read_all(&self) -> Result<BTreeMap<u16, Option<PortFile>>, ClusterError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(error::io("list", &self.dir)(error)),
        };
        let mut ports = BTreeMap::new();
        for entry in entries {
            let entry = entry.map_err(error::io("list", &self.dir))?;
            let Some(port) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            match files::read_json(&entry.path()) {
                Ok(Some(file)) => {
                    ports.insert(port, Some(file));
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(port, %error, "port file cannot be read, port is not used");
                    ports.insert(port, None);
                }
            }
        }
        Ok(ports)
    }

    fn path(&self, port: u16) -> PathBuf {
        self.dir.join(port.to_string())
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.taking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn held_by(
    known: &BTreeMap<u16, Option<PortFile>>,
    instance: &InstanceId,
    owner: &Owner,
) -> Option<u16> {
    known.iter().find_map(|(port, file)| {
        let file = file.as_ref()?;
        (file.released_at.is_none() && file.instance == *instance && file.owner == *owner)
            .then_some(*port)
    })
}

#[cfg(test)]
#[path = "ports_tests.rs"]
mod tests;
