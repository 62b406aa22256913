//! All container clusters: this machine, and the bound ones. Which one an instance is on is in
//! its spec and never changes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use larder_api::{Capacity, ContainerClusterInfo};
use larder_cluster::{
    AgentError, Agents, BackendObserved, Cluster, ClusterError, EndpointSpec, NodeExposure,
};
use larder_cluster_k8s::KubeCluster;
use larder_cluster_local::LocalCluster;
use larder_model::agent::{AgentStatus, Fence, NodeConfig, Order};
use larder_model::local::NodeSecrets;
use larder_model::{
    Address, EndpointKind, InstanceId, InstanceSpec, NodeId, OuterAddress, Refusal,
    STANDARD_STORAGE_CLASS, Worker,
};
use larder_reconcile::Clusters;
use larder_store::Store;
use std::collections::BTreeSet;

use crate::parts::LocalCapacity;

/// A container cluster that has not said what it has by then is shown as out of reach.
const LOOK: Duration = Duration::from_secs(3);

/// This machine and the bound container clusters, by name.
pub(crate) struct Fleet {
    /// `None`: this machine runs the control plane alone.
    local: Option<Arc<LocalCluster>>,
    /// Of those that cannot be entered, why.
    bound: RwLock<BTreeMap<String, Result<KubeCluster, String>>>,
    store: Store,
    /// Where instances are, once it was asked for.
    places: RwLock<HashMap<InstanceId, String>>,
}

impl Fleet {
    pub(crate) fn new(local: Option<Arc<LocalCluster>>, store: Store) -> Self {
        Self { local, bound: RwLock::default(), store, places: RwLock::default() }
    }

    /// Uses a container cluster from now on, instead of the one that had its name.
    pub(crate) fn insert(&self, cluster: KubeCluster) {
        let name = cluster.name().to_owned();
        self.bound.write().unwrap_or_else(PoisonError::into_inner).insert(name, Ok(cluster));
    }

    /// The store has this binding, and it cannot be entered: everything there is unknown from now
    /// on.
    pub(crate) fn shut(&self, name: &str, reason: String) {
        let mut bound = self.bound.write().unwrap_or_else(PoisonError::into_inner);
        bound.insert(name.to_owned(), Err(reason));
    }

    pub(crate) fn remove(&self, name: &str) {
        self.bound.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// The bound container cluster of this name; of one that cannot be entered, why.
    pub(crate) fn binding(&self, name: &str) -> Option<Result<KubeCluster, String>> {
        self.bound.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// The bound container cluster of this name, if it can be entered.
    pub(crate) fn bound(&self, name: &str) -> Option<KubeCluster> {
        self.binding(name)?.ok()
    }

    /// Those that can be entered.
    pub(crate) fn bindings(&self) -> Vec<KubeCluster> {
        let bound = self.bound.read().unwrap_or_else(PoisonError::into_inner);
        bound.values().flatten().cloned().collect()
    }

    /// This machine, where `name` is its name and it is used.
    pub(crate) fn local(&self, name: &str) -> Option<&Arc<LocalCluster>> {
        self.local.as_ref().filter(|local| local.name() == name)
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    #[cfg(test)]
    pub(crate) fn remembered(&self) -> usize {
        self.places.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Who speaks to the agents of an instance.
    async fn agents_of(
        &self,
        instance: &InstanceId,
        node: &NodeId,
    ) -> Result<Arc<dyn Agents>, AgentError> {
        let silent = |reason: String| AgentError::Silent { node: node.clone(), reason };
        let known = {
            let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
            places.get(instance).cloned()
        };
        let name = match known {
            Some(name) => name,
            None => {
                let row = self.store.instance_get(instance).await;
                let name = row
                    .map_err(|error| silent(format!("finding its container cluster: {error}")))?
                    .spec
                    .container_cluster;
                let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
                places.insert(instance.clone(), name.clone());
                name
            }
        };
        if let Some(local) = self.local(&name) {
            return Ok(local.clone());
        }
        match self.binding(&name) {
            Some(Ok(cluster)) => Ok(Arc::new(cluster)),
            Some(Err(reason)) => {
                Err(silent(format!("container cluster `{name}` cannot be entered: {reason}")))
            }
            None => Err(silent(format!("container cluster `{name}` is not bound"))),
        }
    }
}

impl Clusters for Fleet {
    fn get(&self, name: &str) -> Arc<dyn Cluster> {
        if let Some(local) = self.local(name) {
            return local.clone();
        }
        match self.binding(name) {
            Some(Ok(cluster)) => Arc::new(cluster),
            Some(Err(reason)) => Arc::new(Unbound { name: name.to_owned(), reason: Some(reason) }),
            None => Arc::new(Unbound { name: name.to_owned(), reason: None }),
        }
    }

    fn all(&self) -> Vec<Arc<dyn Cluster>> {
        let bound = self.bound.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<Arc<dyn Cluster>> = Vec::new();
        all.extend(self.local.clone().map(|local| local as Arc<dyn Cluster>));
        all.extend(bound.iter().map(|(name, bound)| match bound {
            Ok(cluster) => Arc::new(cluster.clone()) as Arc<dyn Cluster>,
            Err(reason) => {
                Arc::new(Unbound { name: name.clone(), reason: Some(reason.clone()) }) as _
            }
        }));
        all
    }

    fn forget(&self, instance: &InstanceId) {
        self.places.write().unwrap_or_else(PoisonError::into_inner).remove(instance);
    }
}

#[async_trait]
impl Agents for Fleet {
    async fn status(
        &self,
        instance: &InstanceId,
        node: &NodeId,
    ) -> Result<AgentStatus, AgentError> {
        self.agents_of(instance, node).await?.status(instance, node).await
    }

    async fn next_status(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        agent_run: &str,
        version: u64,
    ) -> Result<AgentStatus, AgentError> {
        let agents = self.agents_of(instance, node).await?;
        agents.next_status(instance, node, agent_run, version).await
    }

    async fn order(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        fence: Fence,
        order: &Order,
    ) -> Result<(), AgentError> {
        self.agents_of(instance, node).await?.order(instance, node, fence, order).await
    }
}

/// What is free, wherever it is.
pub(crate) struct FleetCapacity {
    fleet: Arc<Fleet>,
    local: Option<LocalCapacity>,
}

impl FleetCapacity {
    pub(crate) fn new(fleet: Arc<Fleet>, local: Option<LocalCapacity>) -> Self {
        Self { fleet, local }
    }
}

#[async_trait]
impl Capacity for FleetCapacity {
    async fn container_clusters(&self) -> Vec<ContainerClusterInfo> {
        let looks = self.fleet.all().into_iter().map(|cluster| async move {
            let workers = tokio::time::timeout(LOOK, cluster.workers()).await;
            let name = cluster.name().to_owned();
            let bound = self.fleet.bound(&name);
            let options = bound.as_ref().map(KubeCluster::options);
            let local = self.fleet.local(&name).map(|_| vec![STANDARD_STORAGE_CLASS.to_owned()]);
            ContainerClusterInfo {
                reachable: matches!(workers, Ok(Ok(_))),
                workers: workers.map(Result::unwrap_or_default).unwrap_or_default(),
                storage_classes: (options.map(|options| options.storage_classes.clone()))
                    .or(local)
                    .unwrap_or_default(),
                engines: options.map(|options| options.engines.clone()),
                spreads_strictly: cluster.spreads_strictly(),
                resizes_in_place: cluster.resizes_in_place(),
                expose: options.map(|options| options.expose),
                name,
            }
        });
        join_all(looks).await
    }

    async fn check(&self, spec: &InstanceSpec) -> Result<(), Refusal> {
        // Memory is the planner's to count. Ports, the disk and the binary matter where servers
        // run on this machine.
        if self.fleet.local(&spec.container_cluster).is_some() {
            return match &self.local {
                Some(local) => local.check(spec).await,
                None => Ok(()),
            };
        }
        match self.fleet.bound(&spec.container_cluster) {
            Some(bound) => bound.check_node_ports(spec).await,
            None => Ok(()),
        }
    }
}

/// A name that nobody has bound, or that cannot be entered: it never answers.
struct Unbound {
    name: String,
    /// Why it cannot be entered, where somebody has bound it.
    reason: Option<String>,
}

impl Unbound {
    fn silence<T>(&self) -> Result<T, ClusterError> {
        let reason = match &self.reason {
            Some(reason) => unusable_binding(&self.name, reason),
            None => {
                "it is not bound: bind it again with `larder container-cluster bind`".to_owned()
            }
        };
        Err(ClusterError::Unreachable { cluster: self.name.clone(), reason })
    }
}

/// What is shown of a binding that cannot be entered.
pub(crate) fn unusable_binding(name: &str, reason: &str) -> String {
    format!("{reason}: bind it anew with `larder container-cluster rebind {name}`")
}

#[async_trait]
impl Cluster for Unbound {
    fn name(&self) -> &str {
        &self.name
    }

    async fn workers(&self) -> Result<Vec<Worker>, ClusterError> {
        self.silence()
    }

    fn spreads_strictly(&self) -> Option<bool> {
        None
    }

    fn resizes_in_place(&self) -> bool {
        false
    }

    async fn observe(&self, _: &InstanceId) -> Result<BackendObserved, ClusterError> {
        self.silence()
    }

    async fn instances(&self) -> Result<BTreeSet<InstanceId>, ClusterError> {
        self.silence()
    }

    async fn reserve_address(
        &self,
        _: Fence,
        _: &InstanceId,
        _: &NodeId,
    ) -> Result<Address, ClusterError> {
        self.silence()
    }

    async fn expose_node(
        &self,
        _: Fence,
        _: &NodeExposure,
    ) -> Result<Option<OuterAddress>, ClusterError> {
        self.silence()
    }

    async fn ensure_node(
        &self,
        _: Fence,
        _: &NodeConfig,
        _: &NodeSecrets,
    ) -> Result<(), ClusterError> {
        self.silence()
    }

    async fn remove_node(&self, _: Fence, _: &InstanceId, _: &NodeId) -> Result<(), ClusterError> {
        self.silence()
    }

    async fn ensure_endpoint(&self, _: Fence, _: &EndpointSpec) -> Result<(), ClusterError> {
        self.silence()
    }

    async fn remove_endpoint(
        &self,
        _: Fence,
        _: &InstanceId,
        _: EndpointKind,
    ) -> Result<(), ClusterError> {
        self.silence()
    }

    async fn remove_instance(&self, _: Fence, _: &InstanceId) -> Result<(), ClusterError> {
        self.silence()
    }
}
