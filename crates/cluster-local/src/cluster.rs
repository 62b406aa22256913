//! The backend as the rest of Larder sees it: async calls over blocking file work.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use larder_cluster::{BackendObserved, Cluster, ClusterError, EndpointSpec, NodeExposure};
use larder_keeper::http;
use larder_model::agent::{Fence, NodeConfig};
use larder_model::local::{NodeSecrets, RelayStatus, RunDir};
use larder_model::{
    Address, ByteSize, Code, EndpointKind, EndpointStatus, InstanceId, NodeId, OuterAddress,
    Worker, WorkerState,
};

use crate::options::{EngineLookup, LocalOptions};
use crate::place::Place;
use crate::{error, machine};

/// A relay that does not say how it is within this time is not well.
const RELAY_DEADLINE: Duration = Duration::from_millis(300);
/// The sum of all promised memory is counted at most this often; own changes count at once.
const MEMORY_KEPT: Duration = Duration::from_secs(2);

/// One machine as a container cluster. Cheap to clone.
#[derive(Clone)]
pub struct LocalCluster {
    place: Arc<Place>,
    /// One change of an instance at a time.
    locks: Arc<Mutex<HashMap<InstanceId, Arc<Mutex<()>>>>>,
    promised: Arc<Mutex<Option<(Instant, ByteSize)>>>,
}

impl std::fmt::Debug for LocalCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalCluster").field("options", &self.place.options).finish_non_exhaustive()
    }
}

impl LocalCluster {
    /// A backend over the data directory, which is made with its folders when it is missing.
    /// Blocks for some milliseconds.
    ///
    /// # Errors
    /// `invalid-request` for a port range that cannot work, `disk-full`, or
    /// [`ClusterError::Unreachable`] when files cannot be made.
    pub fn new(
        mut options: LocalOptions,
        engines: Arc<dyn EngineLookup>,
    ) -> Result<Self, ClusterError> {
        if let Some(problem) = options.port_range_problem() {
            return Err(error::refused(Code::InvalidRequest, problem));
        }
        larder_keeper::files::make_private_dir(&options.data)
            .map_err(error::io("make", &options.data))?;
        // Processes are started with these paths from other working directories.
        options.data =
            std::fs::canonicalize(&options.data).map_err(error::io("find", &options.data))?;
        options.larder_binary = std::path::absolute(&options.larder_binary)
            .map_err(error::io("find", &options.larder_binary))?;
        let place = Place::new(options, engines, machine::worker_name())?;
        Ok(Self { place: Arc::new(place), locks: Arc::default(), promised: Arc::default() })
    }

    /// The short folder of sockets.
    pub fn run_dir(&self) -> &RunDir {
        self.place.sockets()
    }

    /// The data directory, as an absolute path without links.
    pub fn data(&self) -> PathBuf {
        self.place.options.data.clone()
    }

    /// Checks that the disk of the data directory has at least `min_free` for us.
    ///
    /// # Errors
    /// `disk-full` with what is free; [`ClusterError::Unreachable`] when that cannot be told.
    pub fn check_room(&self, min_free: ByteSize) -> Result<(), ClusterError> {
        let data = &self.place.options.data;
        let space = rustix::fs::statvfs(data.as_path())
            .map_err(|errno| error::io("look at the disk of", data)(errno.into()))?;
        let free = ByteSize(space.f_bavail.saturating_mul(space.f_frsize));
        if free < min_free {
            return Err(error::refused(
                Code::DiskFull,
                format!("the disk of this machine has {free} free, {min_free} are needed"),
            ));
        }
        Ok(())
    }

    /// Checks that `needed` more ports for nodes and endpoints could be taken. Binds each of them
    /// for an instant.
    ///
    /// # Errors
    /// `no-free-port` with what there is.
    pub fn check_ports(&self, needed: usize) -> Result<(), ClusterError> {
        self.place.ports.check(needed)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Place) -> Result<T, ClusterError> + Send + 'static,
    ) -> Result<T, ClusterError> {
        let place = Arc::clone(&self.place);
        tokio::task::spawn_blocking(move || work(&place))
            .await
            .unwrap_or_else(|error| Err(error::unreachable(format!("file work ended: {error}"))))
    }

    /// Like [`Self::blocking`], and alone with the instance. Once begun it runs to its end, also
    /// when its caller is cancelled.
    async fn alone<T: Send + 'static>(
        &self,
        instance: &InstanceId,
        work: impl FnOnce(&Place) -> Result<T, ClusterError> + Send + 'static,
    ) -> Result<T, ClusterError> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that nobody else holds are of instances that are long gone, or are made anew.
            if locks.len() > 1024 {
                locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            }
            Arc::clone(locks.entry(instance.clone()).or_default())
        };
        self.blocking(move |place| {
            let _alone = lock.lock().unwrap_or_else(PoisonError::into_inner);
            work(place)
        })
        .await
    }

    fn forget_promised(&self) {
        *self.promised.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn promised(&self) -> Result<ByteSize, ClusterError> {
        let kept = *self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, bytes)) = kept
            && at.elapsed() < MEMORY_KEPT
        {
            return Ok(bytes);
        }
        let at = Instant::now();
        let bytes = self.blocking(Place::promised_memory).await?;
        *self.promised.lock().unwrap_or_else(PoisonError::into_inner) = Some((at, bytes));
        Ok(bytes)
    }

    async fn relay_status(&self, instance: &InstanceId) -> Option<RelayStatus> {
        let socket = self.place.sockets().relay_socket(instance);
        let answer = http::get(&socket, "/v1/status", RELAY_DEADLINE).await.ok()?;
        if answer.status != 200 {
            return None;
        }
        serde_json::from_slice(&answer.body).ok()
    }
}

#[async_trait]
impl Cluster for LocalCluster {
    fn name(&self) -> &str {
        &self.place.options.name
    }

    async fn workers(&self) -> Result<Vec<Worker>, ClusterError> {
        let requested = self.promised().await?;
        let total = machine::total_memory()
            .ok_or_else(|| error::unreachable("the machine's memory cannot be read".to_owned()))?;
        let reserve = self.place.options.reserve_memory;
        Ok(vec![Worker {
            address: None,
            name: self.place.worker.clone(),
            zone: None,
            state: WorkerState::Ready,
            allocatable: ByteSize(total.bytes().saturating_sub(reserve.bytes())),
            requested,
        }])
    }

    fn spreads_strictly(&self) -> Option<bool> {
        None
    }

    fn resizes_in_place(&self) -> bool {
        true
    }

    async fn observe(&self, instance: &InstanceId) -> Result<BackendObserved, ClusterError> {
        let id = instance.clone();
        let (nodes, listeners) = self
            .alone(instance, move |place| {
                Ok((place.observe_nodes(&id)?, place.observe_relay(&id)?))
            })
            .await?;
        let status = if listeners.is_empty() { None } else { self.relay_status(instance).await };
        let endpoints = listeners.into_iter().map(|listener| {
            let said = status.as_ref().and_then(|status| {
                status
                    .listeners
                    .iter()
                    .find(|said| said.kind == listener.kind && said.address == listener.address)
            });
            let shown = EndpointStatus {
                inner: None,
                pending: false,
                answers: said.is_some_and(|said| said.answers),
                leads_to: said.map(|said| said.leads_to.clone()).unwrap_or_default(),
                address: listener.address,
                whole: true,
            };
            (listener.kind, shown)
        });
        Ok(BackendObserved {
            hindrances: BTreeMap::new(),
            endpoints: endpoints.collect::<BTreeMap<_, _>>(),
            nodes: nodes.into_iter().collect(),
        })
    }

    async fn instances(&self) -> Result<BTreeSet<InstanceId>, ClusterError> {
        self.blocking(Place::instances).await
    }

    async fn reserve_address(
        &self,
        fence: Fence,
        instance: &InstanceId,
        node: &NodeId,
    ) -> Result<Address, ClusterError> {
        let (id, node) = (instance.clone(), node.clone());
        self.alone(instance, move |place| place.reserve_address(fence, &id, &node)).await
    }

    async fn expose_node(
        &self,
        _: Fence,
        wish: &NodeExposure,
    ) -> Result<Option<OuterAddress>, ClusterError> {
        Err(ClusterError::nothing_outside(self.name(), &wish.node))
    }

    async fn ensure_node(
        &self,
        fence: Fence,
        config: &NodeConfig,
        secrets: &NodeSecrets,
    ) -> Result<(), ClusterError> {
        let (wish, secrets) = (config.clone(), secrets.clone());
        let done = self
            .alone(&config.instance, move |place| place.ensure_node(fence, &wish, &secrets))
            .await;
        self.forget_promised();
        done
    }

    async fn remove_node(
        &self,
        fence: Fence,
        instance: &InstanceId,
        node: &NodeId,
    ) -> Result<(), ClusterError> {
        let (id, node) = (instance.clone(), node.clone());
        let done = self.alone(instance, move |place| place.remove_node(fence, &id, &node)).await;
        self.forget_promised();
        done
    }

    async fn ensure_endpoint(&self, fence: Fence, spec: &EndpointSpec) -> Result<(), ClusterError> {
        let wish = spec.clone();
        self.alone(&spec.instance, move |place| place.ensure_endpoint(fence, &wish)).await
    }

    async fn remove_endpoint(
        &self,
        fence: Fence,
        instance: &InstanceId,
        kind: EndpointKind,
    ) -> Result<(), ClusterError> {
        let id = instance.clone();
        self.alone(instance, move |place| place.remove_endpoint(fence, &id, kind)).await
    }

    async fn remove_instance(
        &self,
        fence: Fence,
        instance: &InstanceId,
    ) -> Result<(), ClusterError> {
        let id = instance.clone();
        self.alone(instance, move |place| place.remove_instance(fence, &id)).await
    }
}
