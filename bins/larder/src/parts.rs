//! What the API and the local container cluster need from this machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use larder_api::EngineProbe;
use larder_cluster::ClusterError;
use larder_cluster_local::{EngineLookup, LocalCluster};
use larder_model::{ByteSize, Code, EngineName, InstanceSpec, Refusal};
use larder_reconcile::Clock;
use larder_store::{EngineRow, Store, StoreError};

/// The catalogue in memory: engine name to binary.
pub(crate) struct Engines {
    binaries: RwLock<BTreeMap<EngineName, PathBuf>>,
}

impl Engines {
    pub(crate) async fn load(store: &Store) -> anyhow::Result<Self> {
        let rows = store.engine_list().await?;
        let binaries = rows.into_iter().map(|row| (row.name, row.path)).collect();
        Ok(Self { binaries: RwLock::new(binaries) })
    }

    fn insert(&self, row: &EngineRow) {
        let mut binaries = self.binaries.write().unwrap_or_else(PoisonError::into_inner);
        binaries.insert(row.name.clone(), row.path.clone());
    }

    fn remove(&self, engine: &EngineName) {
        self.binaries.write().unwrap_or_else(PoisonError::into_inner).remove(engine);
    }
}

impl EngineLookup for Engines {
    fn server_binary(&self, engine: &EngineName) -> Option<PathBuf> {
        let binaries = self.binaries.read().unwrap_or_else(PoisonError::into_inner);
        binaries.get(engine).cloned()
    }
}

/// Probes binaries that a person adds, and lets instances use them at once.
pub(crate) struct Prober {
    engines: Arc<Engines>,
    store: Store,
    clock: Arc<dyn Clock>,
}

impl Prober {
    pub(crate) fn new(engines: Arc<Engines>, store: Store, clock: Arc<dyn Clock>) -> Self {
        Self { engines, store, clock }
    }
}

#[async_trait]
impl EngineProbe for Prober {
    async fn probe(&self, path: &Path) -> Result<EngineRow, Refusal> {
        crate::engines::probe_for_catalogue(path, self.clock.now()).await
    }

    async fn added(&self, engine: &EngineRow) -> Result<Vec<EngineName>, StoreError> {
        self.engines.insert(engine);
        let former = crate::engines::renamed(&self.store, engine).await?;
        former.iter().for_each(|name| self.engines.remove(name));
        Ok(former)
    }

    fn removed(&self, engine: &EngineName) {
        self.engines.remove(engine);
    }
}

/// An instance is refused when its disk has less than this free: enough for logs, an empty
/// append-only file per node and the next renewals.
const LEAST_FREE: ByteSize = ByteSize::mib(64);

/// What is free on this machine.
pub(crate) struct LocalCapacity {
    cluster: Arc<LocalCluster>,
    engines: Arc<Engines>,
}

impl LocalCapacity {
    pub(crate) fn new(cluster: Arc<LocalCluster>, engines: Arc<Engines>) -> Self {
        Self { cluster, engines }
    }
}

impl LocalCapacity {
    /// Whether this machine has room for the instance.
    ///
    /// # Errors
    /// `engine-unusable`, `disk-full` or `no-free-port`.
    pub(crate) async fn check(&self, spec: &InstanceSpec) -> Result<(), Refusal> {
        let binary = self.engines.server_binary(&spec.engine);
        if !binary.as_ref().is_some_and(|binary| binary.is_file()) {
            return Err(Refusal::new(
                Code::EngineUnusable,
                format!(
                    "the server binary of engine {} is not there any more: add it again with `larder engine add`",
                    spec.engine
                ),
            )
            .field("engine"));
        }
        let ports = spec.node_count() as usize + spec.architecture.endpoints().len();
        self.cluster.check_room(LEAST_FREE).and_then(|()| self.cluster.check_ports(ports)).map_err(
            |error| match error {
                ClusterError::Refused(refusal) => refusal,
                other => Refusal::new(Code::Internal, other.to_string()),
            },
        )
    }
}
