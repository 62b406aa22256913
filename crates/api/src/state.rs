//! What the routes work with, and the traits behind which the rest of the system stands.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use larder_api_types::{Advice, BindContainerCluster, ContainerCluster, SetContainerCluster};
use larder_model::{
    Desired, EngineName, Expose, InstanceId, InstanceSpec, PlannerPolicy, Refusal, Timestamp,
    Worker,
};
use larder_store::{ContainerClusterRow, EngineRow, Store, StoreError};
use tokio::sync::watch;

use crate::bindings::{Bindings, How};
use crate::password_hash::Hasher;
use crate::throttle::Throttle;

/// Says "look again" to the reconciler. Must return at once; carries no payload on purpose.
pub type Activate = Arc<dyn Fn(&InstanceId) + Send + Sync>;
/// Called after a user's password was changed by a person, with the user's name.
pub type PasswordChanged = Arc<dyn Fn(&str) + Send + Sync>;
/// Whether the server may take requests; the sentence says what is missing.
pub type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// A container cluster, as far as creation needs to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerClusterInfo {
    /// `local` is this machine.
    pub name: String,
    /// It answered just now; otherwise `workers` is empty or old.
    pub reachable: bool,
    pub workers: Vec<Worker>,
    /// Names of what volumes can be made of; the first is the default.
    pub storage_classes: Vec<String>,
    /// What instances can run on there. `None`: the engines of the catalogue.
    pub engines: Option<Vec<EngineName>>,
    /// How instances are exposed that do not say; `None` where there is no such choice.
    pub expose: Option<Expose>,
    /// Whether nodes of a shard have to be on workers of their own there; `None` where there is no
    /// such choice.
    pub spreads_strictly: Option<bool>,
    /// A running node can be given another memory.
    pub resizes_in_place: bool,
}

impl ContainerClusterInfo {
    /// Lets the container cluster's own rules count for an instance on it.
    pub(crate) fn rule(&self, desired: &mut Desired) {
        larder_planner::rules_of_cluster(desired, self.spreads_strictly, self.resizes_in_place);
    }
}

/// What is free: asked before anything of a new instance is written.
#[async_trait]
pub trait Capacity: Send + Sync {
    /// Every container cluster that instances can be created on.
    async fn container_clusters(&self) -> Vec<ContainerClusterInfo>;

    /// Whether the instance has room: disk, ports, memory, a living engine binary.
    ///
    /// # Errors
    /// `disk-full`, `no-free-port`, `capacity-exceeded`, `engine-unusable` …; nothing is
    /// reserved, so a later creation may still find the room taken.
    async fn check(&self, spec: &InstanceSpec) -> Result<(), Refusal>;
}

/// Questions that only running servers can answer.
#[async_trait]
pub trait Live: Send + Sync {
    /// Whether the instance's engine takes these rules of a user; nothing is changed. Cancel-safe.
    ///
    /// # Errors
    /// `rules-refused` with the engine's words; `instance-not-ready` when no server of the instance
    /// answers.
    async fn check_rules(&self, instance: &InstanceId, rules: &str) -> Result<(), Refusal>;
}

/// Finds out what a server binary is.
#[async_trait]
pub trait EngineProbe: Send + Sync {
    /// Runs the binary and answers what it is and can do, with `builtin: false`.
    ///
    /// # Errors
    /// `engine-unusable` with the reason.
    async fn probe(&self, path: &Path) -> Result<EngineRow, Refusal>;

    /// The catalogue has the engine now. A probe alone does not mean that: the name may be
    /// another binary's, and then the engine is refused. Takes entries of the same binary under
    /// former names out of the catalogue and answers which.
    ///
    /// # Errors
    /// When the catalogue cannot be read or written; the engine itself is in it.
    async fn added(&self, _engine: &EngineRow) -> Result<Vec<EngineName>, StoreError> {
        Ok(Vec::new())
    }

    /// The catalogue has the engine no longer.
    fn removed(&self, _engine: &EngineName) {}
}

/// Enters container clusters, looks at them, and lets instances use them.
#[async_trait]
pub trait Binder: Send + Sync {
    /// Enters the container cluster, checks that it can be used and makes ready what instances
    /// need there. Answers the binding to be kept; `known` is the one that is replaced. [`How`]
    /// says what becomes of what is left out. Cancel-safe.
    ///
    /// # Errors
    /// `container-cluster-unusable` with what is wrong or missing, `invalid-request`.
    async fn prepare(
        &self,
        asked: &BindContainerCluster,
        known: Option<&ContainerClusterRow>,
        how: How,
    ) -> Result<ContainerClusterRow, Refusal>;

    /// The store has the binding now.
    async fn bound(&self, row: &ContainerClusterRow);

    /// The store has the binding no longer.
    fn unbound(&self, name: &str);

    /// Whether the binding that the store has of this name is used: one that could not be entered
    /// is not.
    fn is_in_use(&self, name: &str) -> bool;

    /// The engines of each bound container cluster, by its name. Asks nobody.
    fn engines(&self) -> Vec<(String, Vec<EngineName>)>;

    /// What is known of the container cluster; `None` when there is no such. One that cannot be
    /// entered is shown as out of reach, with the reason. Asks nobody; waits a few seconds for one
    /// of which nothing was heard yet.
    async fn look(&self, name: &str) -> Option<ContainerCluster>;

    /// Answers the binding with other options, to be kept. Asks the container cluster for what
    /// they name there. Cancel-safe.
    ///
    /// # Errors
    /// `invalid-request`; `container-cluster-unusable` with what is not there.
    async fn change(
        &self,
        asked: &SetContainerCluster,
        known: &ContainerClusterRow,
    ) -> Result<ContainerClusterRow, Refusal>;

    /// A person's word that the worker will not come back as it was: Kubernetes gives up its pods
    /// and volumes. Does nothing when that was said before.
    ///
    /// # Errors
    /// `not-found`, `worker-not-lost` when it answers, `container-cluster-unusable`.
    async fn confirm_lost(&self, name: &str, worker: &str) -> Result<(), Refusal>;
}

/// Everything that [`ApiState`] is made from.
pub struct ApiParts {
    pub store: Store,
    pub activate: Activate,
    pub capacity: Arc<dyn Capacity>,
    pub live: Arc<dyn Live>,
    /// Looks at the machine's settings; asked at each status.
    pub advice: Arc<dyn Fn() -> Vec<Advice> + Send + Sync>,
    pub engine_probe: Arc<dyn EngineProbe>,
    pub bindings: Bindings,
    /// Where instances are created that name no container cluster.
    pub default_container_cluster: String,
    /// Whether instances can live on this machine, as the container cluster `local`.
    pub has_local: bool,
    /// For plans that are made without an instance (`dry_run`).
    pub policy: PlannerPolicy,
    /// Larder's own version.
    pub version: String,
    pub started_at: Timestamp,
    pub password_changed: PasswordChanged,
    pub ready: Ready,
    /// Turns `true` when the server stops: event streams end then, so that a graceful stop does
    /// not wait for them.
    pub stopping: watch::Receiver<bool>,
    /// Send the login cookie over HTTPS only.
    pub secure_cookies: bool,
}

/// Shared by all routes. Cheap to clone.
#[derive(Clone)]
pub struct ApiState {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) parts: ApiParts,
    pub(crate) hasher: Hasher,
    pub(crate) throttle: Throttle,
}

impl ApiState {
    pub fn new(parts: ApiParts) -> Self {
        Self {
            inner: Arc::new(Inner {
                parts,
                hasher: Hasher::default(),
                throttle: Throttle::default(),
            }),
        }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.inner.parts.store
    }

    pub(crate) fn parts(&self) -> &ApiParts {
        &self.inner.parts
    }

    pub(crate) fn bindings(&self) -> &Bindings {
        &self.inner.parts.bindings
    }

    /// Whether instances can live on this machine.
    pub(crate) fn has_local(&self) -> bool {
        self.inner.parts.has_local
    }

    pub(crate) fn hasher(&self) -> &Hasher {
        &self.inner.hasher
    }

    pub(crate) fn throttle(&self) -> &Throttle {
        &self.inner.throttle
    }
}

impl fmt::Debug for ApiState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiState").field("version", &self.parts().version).finish_non_exhaustive()
    }
}
