//! A real store in a temporary folder behind the router, and what the tests ask of it.

// Each test file uses its own part of this.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use larder_api::{
    ApiParts, ApiState, Asked, Binder, Bindings, Capacity, ContainerClusterInfo, EngineProbe, How,
    Live, ensure_admin, router,
};
use larder_api_types::{BindContainerCluster, ContainerCluster, SetContainerCluster};
use larder_model::agent::Role;
use larder_model::local::DataDir;
use larder_model::plan::{Plan, Report};
use larder_model::{
    Address, ByteSize, Code, Condition, EndpointKind, EngineName, IdSource as _, InstanceId,
    InstanceSpec, InstanceState, NodeRecord, OperationState, PlannerPolicy, Refusal, Secret,
    SeededIds, SlotSet, Timestamp, Worker, WorkerName, WorkerState,
};
use larder_store::{
    ConditionSince, ContainerClusterRow, EngineRow, InstanceObservation, InstanceRow, NodeState,
    NodeView, OperationFilter, Store,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;
use tower::ServiceExt as _;

pub const ADMIN_PASSWORD: &str = "Hunter2-admin";
/// For a container cluster to say what it is.
pub const PATIENCE: Duration = Duration::from_secs(4);
pub const TENANT_PASSWORD: &str = "Hunter2-tenant";

pub struct World {
    pub folder: TempDir,
    pub store: Store,
    pub router: Router,
    pub token: String,
    pub capacity: Arc<FakeCapacity>,
    pub binder: Arc<FakeBinder>,
    pub activated: Arc<Mutex<Vec<InstanceId>>>,
    pub changed: Arc<Mutex<Vec<String>>>,
    pub stop: watch::Sender<bool>,
}

#[derive(Default)]
pub struct FakeCapacity {
    pub refuse: Mutex<Option<Refusal>>,
    /// `standard` alone unless set.
    pub storage_classes: Mutex<Option<Vec<String>>>,
}

#[async_trait]
impl Capacity for FakeCapacity {
    async fn container_clusters(&self) -> Vec<ContainerClusterInfo> {
        vec![ContainerClusterInfo {
            name: "local".into(),
            reachable: true,
            workers: vec![Worker {
                address: None,
                name: WorkerName::new("here").unwrap(),
                zone: None,
                state: WorkerState::Ready,
                allocatable: ByteSize::gib(8),
                requested: ByteSize::mib(256),
            }],
            storage_classes: self
                .storage_classes
                .lock()
                .unwrap()
                .clone()
                .unwrap_or_else(|| vec!["standard".into()]),
            ..ContainerClusterInfo::default()
        }]
    }

    async fn check(&self, _: &InstanceSpec) -> Result<(), Refusal> {
        self.refuse.lock().unwrap().clone().map_or(Ok(()), Err)
    }
}

/// Binds whatever is not called `broken`, with an owner that nobody else gets; shows what was bound,
/// and `local`.
#[derive(Default)]
pub struct FakeBinder {
    /// What is used, by its name.
    pub used: Mutex<BTreeMap<String, ContainerClusterRow>>,
    prepared: AtomicU32,
    /// What comes of preparing and of taking up is waited for as long as somebody holds these.
    pub preparing: tokio::sync::Mutex<()>,
    pub binding: tokio::sync::Mutex<()>,
}

impl FakeBinder {
    /// How often somebody has asked for a binding.
    pub fn prepared(&self) -> u32 {
        self.prepared.load(Ordering::SeqCst)
    }

    /// The owner by which the container cluster is used.
    pub fn owner(&self, name: &str) -> Option<String> {
        self.used.lock().unwrap().get(name).map(|row| row.owner.clone())
    }
}

#[async_trait]
impl Binder for FakeBinder {
    async fn prepare(
        &self,
        asked: &BindContainerCluster,
        known: Option<&ContainerClusterRow>,
        _: How,
    ) -> Result<ContainerClusterRow, Refusal> {
        let count = self.prepared.fetch_add(1, Ordering::SeqCst) + 1;
        let _held = self.preparing.lock().await;
        if asked.name == "broken" {
            return Err(Refusal::new(Code::ContainerClusterUnusable, "it does not answer"));
        }
        let mut options = known.map_or_else(|| serde_json::json!({}), |row| row.options.clone());
        if let Some(image) = &asked.image {
            options["image"] = image.as_str().into();
        }
        Ok(ContainerClusterRow {
            name: asked.name.clone(),
            owner: known.map_or_else(|| format!("b-{count}"), |row| row.owner.clone()),
            options,
            credentials: asked.kubeconfig.clone().unwrap_or_else(|| Secret::new("")),
            bound_at: Timestamp(1_000),
        })
    }

    async fn bound(&self, row: &ContainerClusterRow) {
        let _held = self.binding.lock().await;
        self.used.lock().unwrap().insert(row.name.clone(), row.clone());
    }

    fn unbound(&self, name: &str) {
        self.used.lock().unwrap().remove(name);
    }

    fn is_in_use(&self, name: &str) -> bool {
        self.used.lock().unwrap().contains_key(name)
    }

    fn engines(&self) -> Vec<(String, Vec<EngineName>)> {
        let names = ["redis-7.0", "valkey-8.0"].map(|name| EngineName::new(name).unwrap());
        vec![("east".to_owned(), names.to_vec())]
    }

    async fn look(&self, name: &str) -> Option<ContainerCluster> {
        let kind = if name == "local" { "local" } else { "kubernetes" };
        (name == "local" || self.is_in_use(name)).then(|| ContainerCluster {
            name: name.to_owned(),
            kind: kind.to_owned(),
            reachable: true,
            ..ContainerCluster::default()
        })
    }

    async fn change(
        &self,
        asked: &SetContainerCluster,
        known: &ContainerClusterRow,
    ) -> Result<ContainerClusterRow, Refusal> {
        let mut row = known.clone();
        row.options["spread"] = serde_json::json!(asked.spread);
        if let Some(names) = &asked.pull_secrets {
            row.options["pull_secrets"] = serde_json::json!(names);
        }
        Ok(row)
    }

    async fn confirm_lost(&self, _: &str, worker: &str) -> Result<(), Refusal> {
        if worker == "alive" {
            return Err(Refusal::new(Code::WorkerNotLost, "worker `alive` is ready"));
        }
        Ok(())
    }
}

/// A server that knows every command but `nonsense`.
struct FakeLive;

#[async_trait]
impl Live for FakeLive {
    async fn check_rules(&self, _: &InstanceId, rules: &str) -> Result<(), Refusal> {
        if rules.contains("nonsense") {
            return Err(Refusal::new(Code::RulesRefused, "the engine says: Unknown command"));
        }
        Ok(())
    }
}

struct FakeProbe;

#[async_trait]
impl EngineProbe for FakeProbe {
    async fn probe(&self, path: &Path) -> Result<EngineRow, Refusal> {
        if path.ends_with("panic") {
            panic!("Hunter2-panic");
        }
        if !path.ends_with("redis-server") {
            return Err(Refusal::new(Code::EngineUnusable, "it is no server"));
        }
        Ok(engine("redis-6.2", "6.2.5", path))
    }
}

fn engine(name: &str, version: &str, path: &Path) -> EngineRow {
    EngineRow {
        name: EngineName::new(name).unwrap(),
        version: version.into(),
        flavour: "redis".into(),
        path: path.to_owned(),
        sha256: None,
        capabilities: serde_json::json!({ "acl": true }),
        added_at: Timestamp(1_000),
        builtin: false,
    }
}

impl World {
    /// A server with an engine, after its first start and the administrator's login.
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir(folder.path().to_owned());
        let store = Store::open(&data.database(), &data.key_file()).await.unwrap();
        store
            .engine_upsert(&engine("redis-7.0", "7.0.15", Path::new("/usr/bin/redis")))
            .await
            .unwrap();
        ensure_admin(&store, Some(Secret::new(ADMIN_PASSWORD)), &data).await.unwrap();
        let activated: Arc<Mutex<Vec<InstanceId>>> = Arc::default();
        let changed: Arc<Mutex<Vec<String>>> = Arc::default();
        let capacity = Arc::new(FakeCapacity::default());
        let binder = Arc::new(FakeBinder::default());
        let (stop, stopping) = watch::channel(false);
        let router = router(ApiState::new(ApiParts {
            store: store.clone(),
            activate: {
                let activated = Arc::clone(&activated);
                Arc::new(move |id| activated.lock().unwrap().push(id.clone()))
            },
            capacity: capacity.clone(),
            live: Arc::new(FakeLive),
            advice: Arc::new(Vec::new),
            engine_probe: Arc::new(FakeProbe),
            bindings: Bindings::new(store.clone(), binder.clone()).with_patience(PATIENCE),
            default_container_cluster: "local".into(),
            has_local: true,
            policy: PlannerPolicy::default(),
            version: "0.0.1".into(),
            started_at: Timestamp(1_700_000_000_000),
            password_changed: {
                let changed = Arc::clone(&changed);
                Arc::new(move |user| changed.lock().unwrap().push(user.to_owned()))
            },
            ready: Arc::new(|| Ok(())),
            stopping,
            secure_cookies: false,
        }));
        let mut world = Self {
            folder,
            store,
            router,
            token: String::new(),
            capacity,
            binder,
            activated,
            changed,
            stop,
        };
        let login = serde_json::json!({ "user": "admin", "password": ADMIN_PASSWORD });
        let answer = world.anonymous(Method::POST, "/api/v1/sessions", Some(login)).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.json);
        world.token = answer.json["token"].as_str().unwrap().to_owned();
        world
    }

    pub fn database(&self) -> PathBuf {
        DataDir(self.folder.path().to_owned()).database()
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        Answer::of(response).await
    }

    pub fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        token: Option<&str>,
    ) -> Request<Body> {
        let mut builder = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            builder = builder.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        match body {
            None => builder.body(Body::empty()),
            Some(body) => builder
                .header(header::CONTENT_TYPE, "application/json")
                .body(Body::from(body.to_string())),
        }
        .unwrap()
    }

    pub async fn anonymous(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        self.send(self.request(method, path, body, None)).await
    }

    /// As the administrator.
    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        self.send(self.request(method, path, body, Some(&self.token))).await
    }

    pub async fn get(&self, path: &str) -> Value {
        let answer = self.call(Method::GET, path, None).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.json);
        answer.json
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(Method::POST, path, Some(body)).await
    }

    /// The code of the refusal, which also has to be a whole problem.
    pub async fn refusal(&self, method: Method, path: &str, body: Option<Value>) -> (Code, Value) {
        self.call(method, path, body).await.problem()
    }

    /// Creates an instance and does what the reconciler would: nodes, observation, end of the
    /// operation.
    pub async fn running(&self, name: &str, architecture: &str) -> InstanceRow {
        let body = create_body(name, architecture);
        let answer = self.post("/api/v1/instances", body).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.json);
        let id = InstanceId::new(answer.json["instance_id"].as_str().unwrap()).unwrap();
        self.serve(&id).await;
        self.store.instance_get(&id).await.unwrap()
    }

    async fn serve(&self, id: &InstanceId) {
        let row = self.store.instance_get(id).await.unwrap();
        let seed = id
            .as_str()
            .bytes()
            .fold(7, |hash: u64, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let mut ids = SeededIds(seed);
        let mut views = Vec::new();
        for number in 0..row.spec.node_count() {
            let generation = self.store.instance_get(id).await.unwrap().generation;
            let address = Address::new("127.0.0.1", 21_000 + u16::try_from(number).unwrap());
            let mut record = NodeRecord::new(
                ids.node_id(),
                number / row.spec.replicas,
                WorkerName::new("here").unwrap(),
                None,
                number % row.spec.replicas == 0,
                &row.spec,
                row.created_at,
            );
            record.address = Some(address.clone());
            self.store.node_insert(id, &record, generation).await.unwrap();
            let primary = record.bootstrap;
            views.push(NodeView {
                outside: None,
                id: record.id.clone(),
                shard: record.shard,
                role: Some(if primary { Role::Primary } else { Role::Replica }),
                state: NodeState::Serving,
                address: Some(address),
                pid: Some(4242),
                zone: None,
                worker: record.worker.clone(),
                replica_of: None,
                link_up: (!primary).then_some(true),
                offset: Some(1234),
                lag_bytes: (!primary).then_some(0),
                used_memory: Some(ByteSize::mib(2)),
                slots: if primary { SlotSet::full() } else { SlotSet::default() },
                engine_version: Some("7.0.15".into()),
                last_seen_at: Some(row.created_at),
            });
        }
        let generation = self.store.instance_get(id).await.unwrap().generation;
        let generation = self.store.instance_mark_initialized(id, generation).await.unwrap();
        let ready = Condition {
            kind: "ready".into(),
            status: true,
            reason: "all-serving".into(),
            message: "every node serves".into(),
        };
        let report = Report {
            state: InstanceState::Running,
            conditions: vec![ready.clone()],
            operation: None,
        };
        let endpoints: Vec<EndpointKind> = row.spec.architecture.endpoints().to_vec();
        let observation = InstanceObservation {
            inner_endpoints: std::collections::BTreeMap::new(),
            at: row.created_at,
            state: InstanceState::Running,
            conditions: ConditionSince::carry(&[], vec![ready], row.created_at),
            endpoints: endpoints
                .into_iter()
                .zip(22_000..)
                .map(|(kind, port)| (kind, Address::new("127.0.0.1", port)))
                .collect(),
            nodes: views,
            plan: Plan { instance: id.clone(), generation, steps: vec![], waits: vec![], report },
            generation,
        };
        self.store.instance_observation_set(id, &observation).await.unwrap();
        let filter = OperationFilter { instance: Some(id.to_string()), ..Default::default() };
        for operation in self.store.operation_list(&filter).await.unwrap() {
            self.store
                .operation_report(&operation.id, vec![], OperationState::Succeeded, None)
                .await
                .unwrap();
        }
    }
}

pub fn create_body(name: &str, architecture: &str) -> Value {
    serde_json::json!({
        "name": name,
        "architecture": architecture,
        "engine": "redis-7.0",
        "password": TENANT_PASSWORD,
    })
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: axum::http::HeaderMap,
    pub asked: Option<Asked>,
    pub text: String,
    /// Null when the body is not JSON.
    pub json: Value,
}

impl Answer {
    async fn of(response: Response<Body>) -> Self {
        let (parts, body) = response.into_parts();
        let is_stream = parts
            .headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        // A stream has no end to wait for.
        let bytes =
            if is_stream { Default::default() } else { body.collect().await.unwrap().to_bytes() };
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        Self {
            status: parts.status,
            headers: parts.headers,
            asked: parts.extensions.get::<Asked>().cloned(),
            json: serde_json::from_str(&text).unwrap_or(Value::Null),
            text,
        }
    }

    pub fn problem(&self) -> (Code, Value) {
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/problem+json", "{}", self.text);
        let code = Code::parse(self.json["code"].as_str().unwrap()).unwrap();
        assert_eq!(self.status.as_u16(), code.status());
        assert_eq!(self.json["status"], code.status());
        assert_eq!(self.json["title"], code.title());
        assert_eq!(self.json["type"], format!("/api/v1/errors/{code}"));
        assert!(!self.json["detail"].as_str().unwrap().is_empty());
        assert!(self.json.as_object().unwrap().contains_key("field"));
        assert!(!self.text.contains("Hunter2"), "{}", self.text);
        (code, self.json["field"].clone())
    }
}
