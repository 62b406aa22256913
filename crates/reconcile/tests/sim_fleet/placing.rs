//! A simulated container cluster that makes nodes where the planner placed them.
//!
//! What an agent is told of its node names no worker; a real backend of many workers reads it from
//! the record, and so does this one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use larder_cluster::sim::{Sim, SimCluster};
use larder_cluster::{BackendObserved, Cluster, ClusterError, EndpointSpec, NodeExposure};
use larder_model::agent::{Fence, NodeConfig};
use larder_model::local::NodeSecrets;
use larder_model::{
    Address, Code, EndpointKind, Hindrance, HindranceKind, InstanceId, NodeId, OuterAddress,
    Refusal, Worker,
};
use larder_reconcile::{Book as _, MemoryBook};

/// What the container cluster says of its own.
#[derive(Default)]
pub(crate) struct Obstacles {
    /// It refuses to make nodes.
    pub(crate) no_room: AtomicBool,
    /// It says of every node that it has no worker for it.
    pub(crate) unschedulable: AtomicBool,
    /// It says of every node that its volume is being deleted.
    pub(crate) volume_leaving: AtomicBool,
}

pub(crate) struct Placing {
    sim: Sim,
    inner: SimCluster,
    book: Arc<MemoryBook>,
    obstacles: Arc<Obstacles>,
}

impl Placing {
    pub(crate) fn new(
        sim: &Sim,
        name: &str,
        book: Arc<MemoryBook>,
        obstacles: Arc<Obstacles>,
    ) -> Self {
        Self { sim: sim.clone(), inner: sim.cluster(name), book, obstacles }
    }

    async fn place(&self, instance: &InstanceId, node: &NodeId) {
        let Ok(Some(desired)) = self.book.desired(instance).await else { return };
        if let Some(record) = desired.nodes.iter().find(|record| record.id == *node) {
            self.sim.place(node, &record.worker);
        }
    }
}

#[async_trait]
impl Cluster for Placing {
    fn name(&self) -> &str {
        self.inner.name()
    }

    async fn workers(&self) -> Result<Vec<Worker>, ClusterError> {
        self.inner.workers().await
    }

    fn spreads_strictly(&self) -> Option<bool> {
        self.inner.spreads_strictly()
    }

    fn resizes_in_place(&self) -> bool {
        self.inner.resizes_in_place()
    }

    async fn observe(&self, instance: &InstanceId) -> Result<BackendObserved, ClusterError> {
        let mut seen = self.inner.observe(instance).await?;
        let mut say_of_all = |obstacle: &AtomicBool, kind, words: &str| {
            if obstacle.load(Ordering::Relaxed) {
                let by = Hindrance::new(kind, words);
                seen.hindrances.extend(seen.nodes.keys().map(|node| (node.clone(), by.clone())));
            }
        };
        let Obstacles { unschedulable, volume_leaving, .. } = &*self.obstacles;
        say_of_all(unschedulable, HindranceKind::Unschedulable, "0 of 3 workers have room");
        say_of_all(volume_leaving, HindranceKind::VolumeLeaving, "its volume is being deleted");
        Ok(seen)
    }

    async fn instances(&self) -> Result<BTreeSet<InstanceId>, ClusterError> {
        self.inner.instances().await
    }

    async fn reserve_address(
        &self,
        fence: Fence,
        instance: &InstanceId,
        node: &NodeId,
    ) -> Result<Address, ClusterError> {
        self.place(instance, node).await;
        self.inner.reserve_address(fence, instance, node).await
    }

    async fn expose_node(
        &self,
        fence: Fence,
        wish: &NodeExposure,
    ) -> Result<Option<OuterAddress>, ClusterError> {
        self.inner.expose_node(fence, wish).await
    }

    async fn ensure_node(
        &self,
        fence: Fence,
        config: &NodeConfig,
        secrets: &NodeSecrets,
    ) -> Result<(), ClusterError> {
        if self.obstacles.no_room.load(Ordering::Relaxed) {
            return Err(Refusal::new(Code::CapacityExceeded, "no room is left").into());
        }
        self.place(&config.instance, &config.node).await;
        self.inner.ensure_node(fence, config, secrets).await
    }

    async fn remove_node(
        &self,
        fence: Fence,
        instance: &InstanceId,
        node: &NodeId,
    ) -> Result<(), ClusterError> {
        self.inner.remove_node(fence, instance, node).await
    }

    async fn ensure_endpoint(&self, fence: Fence, spec: &EndpointSpec) -> Result<(), ClusterError> {
        self.inner.ensure_endpoint(fence, spec).await
    }

    async fn remove_endpoint(
        &self,
        fence: Fence,
        instance: &InstanceId,
        kind: EndpointKind,
    ) -> Result<(), ClusterError> {
        self.inner.remove_endpoint(fence, instance, kind).await
    }

    async fn remove_instance(
        &self,
        fence: Fence,
        instance: &InstanceId,
    ) -> Result<(), ClusterError> {
        self.inner.remove_instance(fence, instance).await
    }
}
