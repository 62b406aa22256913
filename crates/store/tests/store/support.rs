//! A store in a temporary folder, and things to put in it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use larder_model::local::NodeSecrets;
use larder_model::plan::{Plan, Report};
use larder_model::{
    Architecture, ByteSize, Code, EngineName, InstanceId, InstanceName, InstanceSpec,
    InstanceState, NodeId, NodePhase, NodeRecord, Operation, OperationId, OperationKind,
    OperationState, OperationStep, ProjectName, Refusal, Secret, StepState, Timestamp, WorkerName,
};
use larder_store::{
    EngineRow, InstanceObservation, Record, RecordOutcome, Result, Store, StoreError,
};
use tempfile::TempDir;

pub(crate) const AGENT_KEY: &str = "agent-key-4712";
pub(crate) const SYSTEM_PASSWORD: &str = "system-password-4711";
pub(crate) const DEFAULT_SHA256: &str =
    "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8";

pub(crate) struct Folder {
    dir: TempDir,
}

impl Folder {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("folder") }
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        self.dir.path()
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.dir.path().join("larder.db")
    }

    pub(crate) fn key(&self) -> PathBuf {
        self.dir.path().join("secret.key")
    }

    pub(crate) async fn open(&self) -> Result<Store> {
        Store::open(&self.database(), &self.key()).await
    }

    /// Opened, with engine `redis-7.0` in the catalogue.
    pub(crate) async fn store(&self) -> Store {
        let store = self.open().await.expect("open");
        store.engine_upsert(&engine("redis-7.0")).await.expect("engine");
        store
    }
}

pub(crate) fn engine(name: &str) -> EngineRow {
    EngineRow {
        name: EngineName::new(name).expect("valid"),
        version: "7.0.15".into(),
        flavour: "redis".into(),
        path: "/usr/bin/redis-server".into(),
        sha256: None,
        capabilities: serde_json::json!({ "cluster-port": true }),
        added_at: Timestamp(1_000),
        builtin: true,
    }
}

pub(crate) fn instance_id(n: u32) -> InstanceId {
    InstanceId::new(format!("i-{n}")).expect("valid")
}

pub(crate) fn operation_id(n: u32) -> OperationId {
    OperationId::new(format!("o-{n}")).expect("valid")
}

pub(crate) fn node_id(n: u32) -> NodeId {
    NodeId::new(format!("n-{n}")).expect("valid")
}

pub(crate) fn project() -> ProjectName {
    ProjectName::new("default").expect("valid")
}

pub(crate) fn spec(n: u32, name: &str) -> InstanceSpec {
    InstanceSpec {
        parameters: std::collections::BTreeMap::new(),
        parameters_revision: 0,
        parameters_refused: None,
        revision: 0,
        expose: None,
        id: instance_id(n),
        name: InstanceName::new(name).expect("valid"),
        project: project(),
        description: String::new(),
        tags: BTreeMap::new(),
        architecture: Architecture::Standalone,
        engine: EngineName::new("redis-7.0").expect("valid"),
        memory: ByteSize::mib(128),
        shards: 1,
        replicas: 1,
        chained: false,
        container_cluster: "local".into(),
        storage_class: larder_model::STANDARD_STORAGE_CLASS.into(),
    }
}

pub(crate) fn secrets() -> NodeSecrets {
    NodeSecrets::new(
        Secret::new(SYSTEM_PASSWORD),
        Secret::new(DEFAULT_SHA256),
        Secret::new(AGENT_KEY),
    )
}

pub(crate) fn operation(n: u32, spec: &InstanceSpec, kind: OperationKind) -> Operation {
    Operation {
        id: operation_id(n),
        instance: spec.id.clone(),
        instance_name: spec.name.to_string(),
        kind,
        state: OperationState::Queued,
        steps: Vec::new(),
        requested_by: "admin".into(),
        requested_from: "127.0.0.1".into(),
        created_at: Timestamp(1_700_000_000_000 + i64::from(n)),
        finished_at: None,
        error: None,
    }
}

pub(crate) fn restart() -> OperationKind {
    OperationKind::Restart { node: None, run_ids: BTreeMap::new() }
}

pub(crate) fn record(action: &str, spec: &InstanceSpec) -> Record {
    Record {
        at: Timestamp(1_700_000_000_000),
        user: "admin".into(),
        from: "127.0.0.1".into(),
        action: action.into(),
        object: format!("instance {}", spec.name),
        instance: Some(spec.name.to_string()),
        detail: serde_json::json!({ "memory_bytes": spec.memory }),
        outcome: RecordOutcome::Accepted,
    }
}

pub(crate) fn node(n: u32, shard: u32) -> NodeRecord {
    NodeRecord {
        outer: None,
        id: node_id(n),
        shard,
        worker: WorkerName::new("local").expect("valid"),
        zone: None,
        address: None,
        bootstrap: n == 1,
        phase: NodePhase::Wanted,
        created_at: Timestamp(5_000),
        engine: EngineName::new("redis-7.0").expect("valid"),
        memory: ByteSize::mib(128),
        revision: 0,
        in_line_since: Timestamp(0),
        leaving_since: None,
        overruled: false,
    }
}

pub(crate) fn step(name: &str, state: StepState) -> OperationStep {
    OperationStep {
        name: name.into(),
        state,
        progress: None,
        message: String::new(),
        started_at: None,
        finished_at: None,
    }
}

pub(crate) fn observation(
    id: &InstanceId,
    state: InstanceState,
    generation: u64,
) -> InstanceObservation {
    InstanceObservation {
        inner_endpoints: BTreeMap::new(),
        at: Timestamp(9_000),
        state,
        conditions: Vec::new(),
        endpoints: BTreeMap::new(),
        nodes: Vec::new(),
        plan: Plan {
            instance: id.clone(),
            generation,
            steps: Vec::new(),
            waits: Vec::new(),
            report: Report { state, conditions: Vec::new(), operation: None },
        },
        generation,
    }
}

/// Creates instance `i-<n>` by operation `o-<n>`.
pub(crate) async fn create(store: &Store, n: u32, name: &str) -> Result<InstanceSpec> {
    let spec = spec(n, name);
    let operation = operation(n, &spec, OperationKind::Create);
    store.instance_create(&spec, &secrets(), &operation, &record("instance-create", &spec)).await?;
    Ok(spec)
}

/// The same, and its operation is through.
pub(crate) async fn created(store: &Store, n: u32, name: &str) -> InstanceSpec {
    let spec = create(store, n, name).await.expect("create");
    store
        .operation_report(&operation_id(n), Vec::new(), OperationState::Succeeded, None)
        .await
        .expect("report");
    spec
}

/// The refusal that a call must have ended in.
#[track_caller]
pub(crate) fn refusal<T: std::fmt::Debug>(result: Result<T>) -> Refusal {
    match result {
        Err(StoreError::Conflict(refusal)) => refusal,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T>) -> Code {
    refusal(result).code
}

#[track_caller]
pub(crate) fn assert_not_found<T: std::fmt::Debug>(result: Result<T>) {
    match result {
        Err(StoreError::NotFound { .. }) => {}
        other => panic!("expected not found, got {other:?}"),
    }
}
