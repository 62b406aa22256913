//! What the routes work with, and the traits behind which the rest of the system stands.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use larder_api_types::{BindContainerCluster, ContainerCluster};
use larder_model::{
    EngineName, Expose, InstanceId, InstanceSpec, PlannerPolicy, Refusal, Timestamp, Worker,
};
use larder_store::{ContainerClusterRow, EngineRow, Store};
use tokio::sync::watch;

use crate::password_hash::Hasher;
use crate::throttle::Throttle;

/// Says "look again" to the reconciler. Must return at once; carries no payload on purpose.
pub type Activate = Arc<dyn Fn(&InstanceId) + Send + Sync>;
/// Called after a user's password was changed by a person, with the user's name.
pub type PasswordChanged = Arc<dyn Fn(&str) + Send + Sync>;
/// Whether the server may take requests; the sentence says what is missing.
pub type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// A container cluster, as far as creation needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerClusterInfo {
    /// `local` is this machine.
    pub name: String,
    /// It answered just now; otherwise `workers` is empty or old.
    pub reachable: bool,
    pub workers: Vec<Worker>,
    /// Names of what volumes can be made of; the first is the default.
    pub storage_classes: Vec<String>,
    /// How instances are exposed that do not say; `None` where there is no such choice.
    pub expose: Option<Expose>,
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

/// Finds out what a server binary is.
#[async_trait]
pub trait EngineProbe: Send + Sync {
    /// Runs the binary and answers what it is and can do, with `builtin: false`.
    ///
    /// # Errors
    /// `engine-unusable` with the reason.
    async fn probe(&self, path: &Path) -> Result<EngineRow, Refusal>;

    /// The catalogue has the engine now. A probe alone does not mean that: the name may be
    /// another binary's, and then the engine is refused.
    fn added(&self, _engine: &EngineRow) {}

    /// The catalogue has the engine no longer.
    fn removed(&self, _engine: &EngineName) {}
}

/// Enters container clusters, looks at them, and lets instances use them.
#[async_trait]
pub trait Binder: Send + Sync {
    /// Enters the container cluster, checks that it can be used and makes ready what instances
    /// need there. Answers the binding to be kept; `known` is the one that is replaced.
    ///
    /// # Errors
    /// `container-cluster-unusable` with what is wrong or missing, `invalid-request`.
    async fn prepare(
        &self,
        asked: &BindContainerCluster,
        known: Option<&ContainerClusterRow>,
    ) -> Result<ContainerClusterRow, Refusal>;

    /// The store has the binding now.
    async fn bound(&self, row: &ContainerClusterRow);

    /// The store has the binding no longer.
    fn unbound(&self, name: &str);

    /// What the container cluster says of itself just now; `None` when there is no such.
    async fn look(&self, name: &str) -> Option<ContainerCluster>;
}

/// Everything that [`ApiState`] is made from.
pub struct ApiParts {
    pub store: Store,
    pub activate: Activate,
    pub capacity: Arc<dyn Capacity>,
    pub engine_probe: Arc<dyn EngineProbe>,
    pub binder: Arc<dyn Binder>,
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
