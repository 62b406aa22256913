//! Binding against an API server of our own making: what is kept of a binding, and when it is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{RawQuery, Request, State};
use axum::http::Method;
use axum::{Json, Router};
use larder_api::{Binder as _, Bindings, By, Capacity as _, How};
use larder_api_types::{BindContainerCluster, ContainerCluster};
use larder_model::local::NodeSecrets;
use larder_model::{
    Architecture, ByteSize, Code, EngineName, InstanceId, InstanceName, InstanceSpec, Operation,
    OperationId, OperationKind, OperationState, ProjectName, Refusal, Secret, Timestamp,
};
use larder_reconcile::{Clusters as _, SystemClock};
use larder_store::{ContainerClusterRow, EngineRow, Record, RecordOutcome, Store};
use serde_json::{Value, json};

use crate::bind::KubeBinder;
use crate::fleet::{Fleet, FleetCapacity};

/// An API server that allows everything and holds the records of some instances.
#[derive(Clone, Default)]
struct ApiServer {
    /// Owner and instance.
    held: Arc<Mutex<BTreeSet<(String, InstanceId)>>>,
    tokens: Arc<Mutex<Vec<String>>>,
}

async fn answer(
    State(server): State<ApiServer>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Json<Value> {
    let path = request.uri().path().to_owned();
    let token = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    let mut tokens = server.tokens.lock().unwrap_or_else(PoisonError::into_inner);
    tokens.push(token.unwrap_or_default().trim_start_matches("Bearer ").to_owned());
    drop(tokens);
    if path == "/version" {
        return Json(json!({ "gitVersion": "v1.34.0" }));
    }
    if path.ends_with("selfsubjectaccessreviews") {
        return Json(json!({ "metadata": {}, "spec": {}, "status": { "allowed": true } }));
    }
    if request.method() == Method::POST {
        return Json(json!({ "metadata": { "name": "made" } }));
    }
    let class = |name: &str, default: bool| {
        let key = "storageclass.kubernetes.io/is-default-class";
        json!({
            "metadata": { "name": name, "annotations": { key: default.to_string() } },
            "provisioner": "p",
        })
    };
    let items = if path.ends_with("storageclasses") {
        vec![class("plain", true), class("fast", false)]
    } else if path.ends_with("configmaps") {
        let query = query.unwrap_or_default();
        let held = server.held.lock().unwrap_or_else(PoisonError::into_inner);
        let held = held.iter().filter(|(owner, _)| query.contains(&format!("owner%3D{owner}")));
        held.map(|(_, instance)| {
            json!({ "metadata": { "name": instance, "labels": { "larder.io/instance": instance } } })
        })
        .collect()
    } else {
        Vec::new()
    };
    Json(json!({ "metadata": { "resourceVersion": "1" }, "items": items }))
}

impl ApiServer {
    /// Serves until the test ends; answers the kubeconfig.
    async fn serve(&self, token: &str) -> Secret {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let name = |name: &str| {
            format!("{{name: {name}, context: {{cluster: a, user: {name}, namespace: x}}}}")
        };
        let user = |name: &str| format!("{{name: {name}, user: {{token: {token}-{name}}}}}");
        Secret::new(format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\n\
             clusters: [{{name: a, cluster: {{server: 'http://{address}'}}}}]\n\
             contexts: [{}, {}]\nusers: [{}, {}]\n",
            name("a"),
            name("b"),
            user("a"),
            user("b"),
        ))
    }

    fn hold(&self, owner: &str, instance: &InstanceId) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.insert((owner.to_owned(), instance.clone()));
    }

    /// The token that was shown last.
    fn shown(&self) -> String {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.last().cloned().unwrap_or_default()
    }
}

struct World {
    _folder: tempfile::TempDir,
    store: Store,
    fleet: Arc<Fleet>,
    bindings: Bindings,
    binder: Arc<KubeBinder>,
}

fn by() -> By {
    By { user: "admin".to_owned(), from: "here".to_owned() }
}

impl World {
    async fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let store =
            Store::open(&folder.path().join("db"), &folder.path().join("key")).await.unwrap();
        Self::over(folder, store)
    }

    fn over(folder: tempfile::TempDir, store: Store) -> Self {
        let fleet = Arc::new(Fleet::new(None, store.clone()));
        let wake = Arc::new(|_: &InstanceId| {});
        let binder = Arc::new(KubeBinder::new(fleet.clone(), Arc::new(SystemClock), wake));
        let bindings = Bindings::new(store.clone(), binder.clone());
        Self { _folder: folder, store, fleet, bindings, binder }
    }

    /// The next start of the same control plane.
    async fn restarted(self) -> Self {
        let next = Self::over(self._folder, self.store);
        next.binder.take_up(&next.store.container_cluster_list().await.unwrap()).await;
        next
    }

    async fn bind(&self, asked: &BindContainerCluster, how: How) -> Result<bool, Refusal> {
        self.bindings.bind(asked, how, &by()).await.map_err(|error| error.refusal)
    }

    async fn kept(&self) -> ContainerClusterRow {
        self.store.container_cluster_list().await.unwrap().remove(0)
    }

    async fn shown(&self) -> ContainerCluster {
        self.binder.look("east").await.expect("it is bound")
    }

    /// An instance on `east`, which has served if it is initialized.
    async fn instance(&self, id: &str, initialized: bool) -> InstanceId {
        let engine = EngineName::new("redis-7.0").unwrap();
        let row = EngineRow {
            name: engine.clone(),
            version: "7.0.15".to_owned(),
            flavour: "redis".to_owned(),
            path: "/usr/bin/redis-server".into(),
            sha256: None,
            capabilities: json!({}),
            added_at: Timestamp(1),
            builtin: true,
        };
        self.store.engine_upsert(&row).await.unwrap();
        let spec = InstanceSpec {
            parameters: std::collections::BTreeMap::new(),
            parameters_revision: 0,
            parameters_refused: None,
            revision: 0,
            id: InstanceId::new(id).unwrap(),
            name: InstanceName::new(id).unwrap(),
            project: ProjectName::new("default").unwrap(),
            description: String::new(),
            tags: BTreeMap::new(),
            architecture: Architecture::Standalone,
            engine,
            memory: ByteSize::mib(128),
            shards: 1,
            replicas: 1,
            chained: false,
            container_cluster: "east".to_owned(),
            storage_class: "plain".to_owned(),
            expose: None,
        };
        let operation = Operation {
            id: OperationId::new(format!("o-{id}")).unwrap(),
            instance: spec.id.clone(),
            instance_name: id.to_owned(),
            kind: OperationKind::Create,
            state: OperationState::Queued,
            steps: Vec::new(),
            requested_by: "admin".to_owned(),
            requested_from: "here".to_owned(),
            created_at: Timestamp(1),
            finished_at: None,
            error: None,
        };
        let record = Record {
            at: Timestamp(1),
            user: "admin".to_owned(),
            from: "here".to_owned(),
            action: "instance-create".to_owned(),
            object: id.to_owned(),
            instance: None,
            detail: json!({}),
            outcome: RecordOutcome::Accepted,
        };
        let secrets = NodeSecrets::new(Secret::new("s"), Secret::new("d"), Secret::new("a"));
        self.store.instance_create(&spec, &secrets, &operation, &record).await.unwrap();
        if initialized {
            self.store.instance_mark_initialized(&spec.id, 1).await.unwrap();
        }
        spec.id
    }
}

fn asked(kubeconfig: Option<&Secret>) -> BindContainerCluster {
    BindContainerCluster {
        name: "east".to_owned(),
        kubeconfig: kubeconfig.cloned(),
        ..BindContainerCluster::default()
    }
}

fn with_everything(kubeconfig: &Secret) -> BindContainerCluster {
    BindContainerCluster {
        namespace: Some("redis".to_owned()),
        expose: Some("node-port".to_owned()),
        outer_address: Some("redis.example".to_owned()),
        image: Some("registry.example/{engine}:1".to_owned()),
        engines: Some(vec!["redis-7.0".to_owned()]),
        storage_class: Some("fast".to_owned()),
        volume_bytes: Some(1 << 30),
        ..asked(Some(kubeconfig))
    }
}

#[tokio::test]
async fn what_a_configuration_leaves_out_is_taken_back() {
    let world = World::new().await;
    let kubeconfig = ApiServer::default().serve("t").await;
    world.bind(&with_everything(&kubeconfig), How::AsConfigured).await.unwrap();
    let before = world.kept().await;
    let mut plain = asked(Some(&kubeconfig));
    assert_eq!(world.bind(&plain, How::AsConfigured).await, Ok(true));
    let after = world.kept().await;
    assert_eq!(after.owner, before.owner, "it marks what is there");
    assert_eq!(after.options["namespace"], "redis", "what is there cannot move");
    for key in ["outer_address", "storage_class"] {
        assert!(before.options[key].is_string() && after.options[key].is_null(), "{key}");
    }
    assert_eq!(after.options["expose"], "cluster-ip");
    assert_eq!(after.options["volume_bytes"], 64_u64 << 30);
    assert_eq!(after.options["storage_classes"], json!(["plain", "fast"]));
    for key in ["image", "engines"] {
        assert_ne!(after.options[key], before.options[key], "{key}");
    }
    assert_eq!(world.bind(&plain, How::AsConfigured).await, Ok(false), "nothing is new");
    plain.image = Some("other".to_owned());
    assert_eq!(world.bind(&plain, How::AsConfigured).await, Ok(true));
}

#[tokio::test]
async fn what_a_person_leaves_out_at_a_rebind_stays_credentials_included() {
    let world = World::new().await;
    let server = ApiServer::default();
    let kubeconfig = server.serve("old").await;
    let refusal = world.bind(&asked(None), How::First).await.unwrap_err();
    assert_eq!(
        (refusal.code, refusal.field.as_deref()),
        (Code::InvalidRequest, Some("kubeconfig"))
    );
    world.bind(&with_everything(&kubeconfig), How::First).await.unwrap();
    let before = world.kept().await;
    world.bind(&asked(None), How::Again).await.unwrap();
    assert_eq!(world.kept().await, before);
    assert_eq!(server.shown(), "old-a");
    // Another context of the same kubeconfig, and what can be taken back.
    let other = BindContainerCluster {
        context: Some("b".to_owned()),
        storage_class: Some(String::new()),
        outer_address: Some(String::new()),
        ..asked(None)
    };
    world.bind(&other, How::Again).await.unwrap();
    assert_eq!(server.shown(), "old-b");
    let after = world.kept().await;
    assert_eq!(after.options["image"], before.options["image"]);
    assert!(after.options["storage_class"].is_null() && after.options["outer_address"].is_null());
    world.bind(&asked(None), How::Again).await.unwrap();
    assert_eq!(server.shown(), "old-b", "the context stays, too");
    let both = BindContainerCluster { in_cluster: true, ..asked(Some(&kubeconfig)) };
    let refusal = world.bind(&both, How::Again).await.unwrap_err();
    assert_eq!(refusal.code, Code::InvalidRequest);
}

#[tokio::test]
async fn a_rebind_that_leads_to_another_cluster_is_refused_while_instances_live_there() {
    let world = World::new().await;
    let right = ApiServer::default();
    world.bind(&asked(Some(&right.serve("t").await)), How::First).await.unwrap();
    let before = world.kept().await;
    let wish = world.instance("i-wish", false).await;
    let wrong = ApiServer::default();
    wrong.hold("b-somebody-else", &wish);
    let elsewhere = wrong.serve("t").await;
    // Nothing has lived there yet.
    world.bind(&asked(Some(&elsewhere)), How::Again).await.unwrap();
    world.bind(&asked(Some(&right.serve("t").await)), How::Again).await.unwrap();
    let lives = world.instance("i-lives", true).await;
    let refusal = world.bind(&asked(Some(&elsewhere)), How::Again).await.unwrap_err();
    assert_eq!(refusal.code, Code::ContainerClusterUnusable);
    assert!(refusal.detail.contains("another Kubernetes cluster"), "{refusal}");
    let refusal = world.bind(&asked(Some(&elsewhere)), How::AsConfigured).await.unwrap_err();
    assert_eq!(refusal.code, Code::ContainerClusterUnusable);
    // The same one by another address, where the instance is.
    right.hold(&before.owner, &lives);
    let moved = right.serve("t").await;
    world.bind(&asked(Some(&moved)), How::Again).await.unwrap();
    // And by the same address also when somebody has deleted everything there.
    right.held.lock().unwrap().clear();
    world.bind(&asked(Some(&moved)), How::Again).await.unwrap();
}

#[tokio::test]
async fn a_binding_that_cannot_be_entered_is_shown_with_the_reason_until_it_is_bound_anew() {
    let world = World::new().await;
    let kubeconfig = ApiServer::default().serve("t").await;
    world.bind(&asked(Some(&kubeconfig)), How::First).await.unwrap();
    assert!(world.shown().await.reachable);
    let right = world.kept().await;
    let broken = ContainerClusterRow {
        credentials: Secret::new(r#"{"kind":"kubeconfig","text":"no: kubeconfig","context":null}"#),
        ..right.clone()
    };
    let record = Record {
        at: Timestamp(1),
        user: "admin".to_owned(),
        from: "here".to_owned(),
        action: "bind".to_owned(),
        object: "east".to_owned(),
        instance: None,
        detail: json!({}),
        outcome: RecordOutcome::Accepted,
    };
    world.store.container_cluster_bind(&broken, &record).await.unwrap();
    let world = world.restarted().await;
    let shown = world.shown().await;
    let problem = shown.problem.unwrap();
    assert!(!shown.reachable && problem.contains("rebind east"), "{problem}");
    assert!(!world.bindings.is_in_use("east"));
    let all = FleetCapacity::new(world.fleet.clone(), None).container_clusters().await;
    assert_eq!(
        all.iter().map(|one| (one.name.as_str(), one.reachable)).collect::<Vec<_>>(),
        [("east", false)]
    );
    let silence = world.fleet.get("east").workers().await.unwrap_err().to_string();
    assert!(silence.contains("kubeconfig") && silence.contains("rebind east"), "{silence}");
    let refusal = world.binder.confirm_lost("east", "w1").await.unwrap_err();
    assert_eq!(refusal.code, Code::ContainerClusterUnusable);
    world.bind(&asked(Some(&kubeconfig)), How::Again).await.unwrap();
    assert!(world.shown().await.reachable && world.bindings.is_in_use("east"));
}

#[tokio::test]
async fn a_binding_as_configured_that_was_not_taken_up_is_taken_up_by_the_next_try() {
    let world = World::new().await;
    let kubeconfig = ApiServer::default().serve("t").await;
    world.bind(&asked(Some(&kubeconfig)), How::AsConfigured).await.unwrap();
    let world = world.restarted().await;
    assert_eq!(world.bind(&asked(Some(&kubeconfig)), How::AsConfigured).await, Ok(false));
    world.fleet.shut("east", "it was not there yet".to_owned());
    assert_eq!(world.bind(&asked(Some(&kubeconfig)), How::AsConfigured).await, Ok(true));
    assert!(world.bindings.is_in_use("east"));
}

#[tokio::test]
async fn where_an_instance_is_is_forgotten_with_the_instance() {
    use larder_cluster::Agents as _;
    let world = World::new().await;
    let kubeconfig = ApiServer::default().serve("t").await;
    world.bind(&asked(Some(&kubeconfig)), How::First).await.unwrap();
    let one = world.instance("i-1", true).await;
    let node = larder_model::NodeId::new("n-1").unwrap();
    world.fleet.status(&one, &node).await.unwrap_err();
    assert_eq!(world.fleet.remembered(), 1);
    world.fleet.forget(&one);
    assert_eq!(world.fleet.remembered(), 0);
}
