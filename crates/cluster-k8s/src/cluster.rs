//! The backend as the rest of Larder sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use larder_cluster::{BackendObserved, Cluster, ClusterError, EndpointSpec, NodeExposure};
use larder_model::agent::{Fence, NodeConfig};
use larder_model::kube::{LABEL_ENDPOINT, LABEL_NODE, VolumeIds, pod_name};
use larder_model::local::NodeSecrets;
use larder_model::{Address, Code, EndpointKind, Expose, InstanceId, NodeId, OuterAddress, Worker};

use crate::agents::KeptAgents;
use crate::apply::Place;
use crate::connect::{Check, check};
use crate::error::refused;
use crate::expose::{self, Outside};
use crate::hindrance::waits_for_other_settings;
use crate::mirror::{Mirror, Wake};
use crate::objects;
use crate::observe::{cluster_address, generation};
use crate::options::KubeOptions;
use crate::pulse::Health;

/// One namespace of one Kubernetes cluster. Cheap to clone.
#[derive(Clone)]
pub struct KubeCluster {
    pub(crate) place: Arc<Place>,
    pub(crate) agents: Arc<KeptAgents>,
    /// Begun with the first look; ends with the last clone.
    mirror: Arc<OnceLock<Mirror>>,
    wake: Arc<OnceLock<Wake>>,
}

impl std::fmt::Debug for KubeCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubeCluster").field("options", &self.place.options).finish_non_exhaustive()
    }
}

impl KubeCluster {
    /// A backend over the API server that `client` speaks to. Asks nothing yet; with the first
    /// look, which has to be on a tokio runtime, it begins to watch, until its last clone is
    /// dropped.
    pub fn new(client: Client, options: KubeOptions) -> Self {
        let place = Arc::new(Place::new(client, options));
        Self { place, agents: Arc::default(), mirror: Arc::default(), wake: Arc::default() }
    }

    /// Says `wake` of each instance of which the API server has news. It must return at once.
    /// Counts once, and before the first look.
    #[must_use]
    pub fn waking(self, wake: Wake) -> Self {
        let _ = self.wake.set(wake);
        self
    }

    /// What is in memory of the cluster; begins to watch when that has not begun.
    pub(crate) fn mirror(&self) -> &Mirror {
        self.mirror.get_or_init(|| Mirror::start(self.place.clone(), self.wake.clone()))
    }

    /// Whether the cluster answers, and what it is, from memory. When nothing is known yet, waits
    /// for the first answer, `within` at most. Cancel-safe.
    pub async fn health(&self, within: Duration) -> Health {
        self.mirror().health(within).await
    }

    /// The workers as they were seen last, also while the cluster does not answer. Empty when they
    /// never were.
    pub fn last_workers(&self) -> Vec<Worker> {
        self.mirror().last_workers()
    }

    /// A person's word that the worker will not come back as it was: the taint by which Kubernetes
    /// gives up its pods and detaches its volumes. Does nothing when it is there.
    ///
    /// # Errors
    /// `not-found`; `worker-not-lost` when the worker is ready; `container-cluster-unusable` with
    /// what is to be granted when the binding's credentials may not change workers;
    /// [`ClusterError::Unreachable`].
    pub async fn confirm_lost(&self, worker: &str) -> Result<(), ClusterError> {
        self.place.confirm_lost(worker).await
    }

    /// How often this backend has asked what of the API server, by verb and resource as in a Role.
    pub fn requests(&self) -> BTreeMap<String, u64> {
        self.place.requests.by_kind()
    }

    /// What the binding says.
    pub fn options(&self) -> &KubeOptions {
        &self.place.options
    }

    /// What the cluster is and what may be done there, as at its binding.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn check(&self) -> Result<Check, ClusterError> {
        check(self.place.client.clone(), &self.place.options).await
    }

    fn node_selector(&self, instance: &InstanceId, node: &NodeId) -> String {
        format!("{},{LABEL_NODE}={node}", objects::selector(&self.place.options, Some(instance)))
    }

    /// Makes the node's volume when it is missing. A node that has had another one before is told
    /// so: it must not take an empty volume for a fresh start.
    async fn ensure_volume(
        &self,
        config: &NodeConfig,
        secrets: &NodeSecrets,
    ) -> Result<VolumeIds, ClusterError> {
        let instance = &config.instance;
        let (place, key) = (&*self.place, volume_key(&config.node));
        let mut notes = place.notes(instance).await?;
        let noted = notes.remove(&key);
        let is_noted = noted.is_some();
        // `None`: it has had no volume yet.
        let first = noted
            .or_else(|| is_forgotten(&notes, config.initialized).then(|| FORGOTTEN.to_owned()));
        let claim = objects::claim(&place.options, config);
        let found = match first {
            Some(_) => place.find::<PersistentVolumeClaim>(&claim).await?,
            None => None,
        };
        if let (Some(first), None) = (&first, &found) {
            // A pod that waits for the claim starts with it at once, maybe before anything more is
            // written here: never with a file that calls the new volume the first one.
            let replaced = VolumeIds { first: first.clone(), now: String::new() };
            self.write_secret(config, secrets, &replaced).await?;
        }
        let claim = match found {
            Some(claim) => claim,
            None => place.make::<PersistentVolumeClaim>(&claim).await?,
        };
        let now = claim.uid.unwrap_or_default();
        let first = first.unwrap_or_else(|| now.clone());
        if !is_noted {
            place.note(instance, &key, Some(&first)).await?;
        }
        Ok(VolumeIds { first, now })
    }

    /// A pod that cannot start as it was once asked for would wait for ever: its StatefulSet does not
    /// replace it. It has never run, so nothing ends with it. Where the StatefulSet's controller has
    /// not looked at what is asked for now, the pod is left for the next time.
    async fn leave_what_waits(&self, set: &StatefulSet, node: &NodeId) -> Result<(), ClusterError> {
        let place = &self.place;
        let (name, pods) = (pod_name(node), place.api::<Pod>());
        let pod = place.ask(&format!("reading Pod {name}"), pods.get_opt(&name)).await?;
        match pod {
            Some(pod) if waits_for_other_settings(set, &pod) => {
                place.delete_this::<Pod>(&pod.metadata).await
            }
            _ => Ok(()),
        }
    }

    async fn write_secret(
        &self,
        config: &NodeConfig,
        secrets: &NodeSecrets,
        volume: &VolumeIds,
    ) -> Result<(), ClusterError> {
        let secret = objects::secret(&self.place.options, config, secrets, volume);
        let secret = secret.map_err(|error| {
            refused(Code::Internal, format!("node {} cannot be written down: {error}", config.node))
        })?;
        self.place.apply::<Secret>(&secret).await.map(drop)
    }

    /// Answers the generation that the node's StatefulSet was made for; 0 without one.
    pub(crate) async fn refuse_when_leaving(
        &self,
        instance: &InstanceId,
        node: &NodeId,
    ) -> Result<u64, ClusterError> {
        let (place, all) = (&*self.place, self.node_selector(instance, node));
        let (sets, claims, services) = tokio::try_join!(
            place.metadata::<StatefulSet>(&all),
            place.metadata::<PersistentVolumeClaim>(&all),
            place.metadata::<Service>(&all),
        )?;
        // The way from outside may be closed and opened again while the node lives.
        let services = services.iter().filter(|metadata| !expose::is_outer(metadata));
        let mut all = sets.iter().chain(&claims).chain(services);
        if all.any(|metadata| metadata.deletion_timestamp.is_some()) {
            let text = format!("node {node}, or something of it, is being removed");
            return Err(refused(Code::InstanceBusy, text));
        }
        Ok(sets.first().map_or(0, generation))
    }
}

#[async_trait]
impl Cluster for KubeCluster {
    fn name(&self) -> &str {
        &self.place.options.name
    }

    async fn workers(&self) -> Result<Vec<Worker>, ClusterError> {
        self.mirror().workers().await
    }

    fn spreads_strictly(&self) -> Option<bool> {
        Some(self.place.options.spread_strictly)
    }

    fn resizes_in_place(&self) -> bool {
        false
    }

    async fn observe(&self, instance: &InstanceId) -> Result<BackendObserved, ClusterError> {
        let seen = self.mirror().see(instance).await?;
        let address = self.place.options.outer_address.as_deref();
        let workers = if address.is_none() && seen.is_at_workers() {
            self.workers().await?
        } else {
            Vec::new()
        };
        let mut observed = seen.observed(&Outside { workers: &workers, address });
        for (id, node) in &mut observed.nodes {
            node.outdated = seen.is_outdated(id, &self.place.options);
        }
        Ok(observed)
    }

    async fn instances(&self) -> Result<BTreeSet<InstanceId>, ClusterError> {
        self.mirror().instances().await
    }

    async fn reserve_address(
        &self,
        fence: Fence,
        instance: &InstanceId,
        node: &NodeId,
    ) -> Result<Address, ClusterError> {
        self.refuse_when_leaving(instance, node).await?;
        // A node that lives has a Service with more in it than is applied here.
        self.place.fence(instance, fence, true).await?;
        let wish = objects::node_service(&self.place.options, instance, node, None, None);
        let service: Service = self.place.apply(&wish).await?;
        cluster_address(&service).ok_or_else(|| ClusterError::Unreachable {
            cluster: self.place.options.name.clone(),
            reason: format!("the Service of node {node} has no address yet"),
        })
    }

    async fn expose_node(
        &self,
        fence: Fence,
        wish: &NodeExposure,
    ) -> Result<Option<OuterAddress>, ClusterError> {
        self.open_node(fence, wish).await
    }

    async fn ensure_node(
        &self,
        fence: Fence,
        config: &NodeConfig,
        secrets: &NodeSecrets,
    ) -> Result<(), ClusterError> {
        let (place, options) = (&*self.place, &self.place.options);
        let (instance, node) = (&config.instance, &config.node);
        let present = self.refuse_when_leaving(instance, node).await?;
        place.fence(instance, fence, true).await?;
        if present > config.generation {
            return Err(ClusterError::Stale { seen: Fence { generation: present, ..fence } });
        }
        place.ensure_shared(config).await?;
        let address = Some(config.address.host.as_str());
        let port = objects::inner_port(config.outer.as_ref());
        let service = objects::node_service(options, instance, node, address, port);
        place.apply::<Service>(&service).await?;
        let volume = self.ensure_volume(config, secrets).await?;
        self.write_secret(config, secrets, &volume).await?;
        // Last: by it the node is realised, and at this generation.
        let set = place.apply::<StatefulSet>(&objects::stateful_set(options, config)).await?;
        // Nothing waits of what was not there.
        if present > 0 { self.leave_what_waits(&set, node).await } else { Ok(()) }
    }

    async fn remove_node(
        &self,
        fence: Fence,
        instance: &InstanceId,
        node: &NodeId,
    ) -> Result<(), ClusterError> {
        let place = &*self.place;
        place.fence(instance, fence, false).await?;
        let all = self.node_selector(instance, node);
        place.delete_all::<StatefulSet>(&all).await?;
        // A pod that somebody has orphaned; the others go with their StatefulSet.
        place.delete_all::<Pod>(&all).await?;
        // The volume goes once its pod has ended: Kubernetes protects it until then.
        place.delete_all::<PersistentVolumeClaim>(&all).await?;
        place.delete_all::<Secret>(&all).await?;
        place.note(instance, &volume_key(node), None).await?;
        place.delete_all::<Service>(&all).await?;
        self.agents.forget_node(node);
        Ok(())
    }

    async fn ensure_endpoint(&self, fence: Fence, spec: &EndpointSpec) -> Result<(), ClusterError> {
        let (place, options) = (&*self.place, &self.place.options);
        place.fence(&spec.instance, fence, true).await?;
        if objects::is_led(spec.kind) {
            let slice = objects::endpoint_slice(options, &spec.instance, spec.kind);
            place.make::<EndpointSlice>(&slice).await?;
        }
        let (key, port_key) = (endpoint_key(spec.kind), node_port_key(spec.kind));
        let node_port = place.noted(&spec.instance, &port_key).await?;
        let kept = objects::Kept {
            address: place.noted(&spec.instance, &key).await?,
            node_port: node_port.and_then(|text| text.parse().ok()),
        };
        let way = spec.expose.unwrap_or(options.expose);
        let service = objects::endpoint_service(options, &spec.instance, spec.kind, way, &kept);
        let service: Service = place.foreseen(place.apply(&service).await).await?;
        if let (Some(address), None) = (cluster_address(&service), &kept.address) {
            place.note(&spec.instance, &key, Some(&address.host)).await?;
        }
        match expose::node_port(&service, "redis").filter(|_| way == Expose::NodePort) {
            Some(port) if kept.node_port.is_none() => {
                place.note(&spec.instance, &port_key, Some(&port.to_string())).await
            }
            _ => Ok(()),
        }
    }

    async fn remove_endpoint(
        &self,
        fence: Fence,
        instance: &InstanceId,
        kind: EndpointKind,
    ) -> Result<(), ClusterError> {
        let place = &*self.place;
        place.fence(instance, fence, false).await?;
        let all = objects::selector(&place.options, Some(instance));
        let all = format!("{all},{LABEL_ENDPOINT}={kind}");
        // By the Service the endpoint is still seen, so it goes last.
        place.delete_all::<EndpointSlice>(&all).await?;
        place.note(instance, &endpoint_key(kind), None).await?;
        place.note(instance, &node_port_key(kind), None).await?;
        place.delete_all::<Service>(&all).await
    }

    async fn remove_instance(
        &self,
        fence: Fence,
        instance: &InstanceId,
    ) -> Result<(), ClusterError> {
        self.agents.forget(instance);
        self.place.remove_instance(fence, instance).await
    }
}

/// Where the record of the instance has the UID of the node's first volume.
fn volume_key(node: &NodeId) -> String {
    format!("{VOLUME}{node}")
}

const VOLUME: &str = "volume-";
/// In place of the UID: nobody knows any more which volume the node was made with.
const FORGOTTEN: &str = "forgotten";

/// Whether a node of which nothing is noted may have had a volume before. The record of an instance that has served has
/// notes of its nodes, so where there are none somebody has deleted it, with the namespace perhaps:
/// what looks like a new node's first volume is then not taken for one.
fn is_forgotten(notes: &BTreeMap<String, String>, has_served: bool) -> bool {
    let mut others = notes.iter().filter(|(key, _)| key.starts_with(VOLUME)).map(|(_, uid)| uid);
    let knows = others.clone().next().is_some() && !others.any(|uid| uid == FORGOTTEN);
    has_served && !knows
}

/// Where the record of the instance has the endpoint's node port.
fn node_port_key(kind: EndpointKind) -> String {
    format!("node-port-{kind}")
}

/// Where the record of the instance has the endpoint's address.
fn endpoint_key(kind: EndpointKind) -> String {
    format!("address-{kind}")
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use hyper::{Method, Request, Response, StatusCode};
    use kube::client::Body;
    use larder_model::{
        ByteSize, ElectionPolicy, EngineName, InstanceName, Millis, NodeMode, Secret as Password,
    };
    use serde_json::{Value, json};

    use super::*;

    fn config() -> NodeConfig {
        NodeConfig {
            outer: None,
            renderer: 1,
            node: NodeId::new("n-1").expect("valid"),
            instance: InstanceId::new("i-1").expect("valid"),
            instance_name: InstanceName::new("one").expect("valid"),
            shard: 0,
            zone: None,
            mode: NodeMode::Leased,
            engine: EngineName::new("redis-7.0").expect("valid"),
            address: Address::new("10.0.0.1", 6379),
            memory: ByteSize::mib(128),
            maxmemory: ByteSize::mib(102),
            cluster_node_timeout: Millis(5000),
            bootstrap: true,
            initialized: true,
            members: Vec::new(),
            worker: None,
            storage_class: None,
            parameters: std::collections::BTreeMap::new(),
            parameters_revision: 0,
            chained: false,
            upstream: None,
            has_read_endpoint: true,
            election: ElectionPolicy::default(),
            generation: 1,
        }
    }

    /// `serve` may end between any two writes, and the pod that waits for the claim starts.
    #[tokio::test]
    async fn a_second_volume_is_called_one_before_it_can_be_mounted() {
        called_replaced_before_it_is_made(json!({ "volume-n-1": "u-1" }), "u-1").await;
        // The instance's record was deleted with the claim: it may be the second one.
        called_replaced_before_it_is_made(json!({}), FORGOTTEN).await;
    }

    async fn called_replaced_before_it_is_made(notes: Value, first: &str) {
        let asked: Arc<Mutex<Vec<(Method, String, Value)>>> = Arc::default();
        let log = asked.clone();
        let server = tower::service_fn(move |request: Request<Body>| {
            let (log, notes) = (log.clone(), notes.clone());
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect_bytes().await.expect("a body");
                let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                let path = head.uri.path().to_owned();
                let kind = path.split('/').nth_back(usize::from(head.method != Method::POST));
                let metadata = json!({ "name": "n-1", "uid": "u-2", "resourceVersion": "7" });
                let (status, answer) = match (&head.method, kind.unwrap_or_default()) {
                    (&Method::GET, "configmaps") => {
                        (200, json!({ "metadata": { "name": "i-1" }, "data": notes }))
                    }
                    (&Method::GET, _) => (
                        404,
                        json!({ "kind": "Status", "status": "Failure", "reason": "NotFound",
                            "message": "not found", "code": 404, "metadata": {} }),
                    ),
                    _ => (200, json!({ "metadata": metadata })),
                };
                let line = (head.method, kind.unwrap_or_default().to_owned(), body);
                log.lock().expect("no panic").push(line);
                let mut response = Response::new(Body::from(answer.to_string().into_bytes()));
                *response.status_mut() = StatusCode::from_u16(status).expect("a status");
                Ok::<_, std::io::Error>(response)
            }
        });
        let options = KubeOptions::new("east", "redis", "b-1");
        let cluster = KubeCluster::new(Client::new(server, "redis"), options);
        let secrets = NodeSecrets::new(
            Password::new("system"),
            Password::new("0".repeat(64)),
            Password::new("agents"),
        );
        let ids = cluster.ensure_volume(&config(), &secrets).await.expect("made");
        assert_eq!(ids, VolumeIds { first: first.to_owned(), now: "u-2".to_owned() });
        let asked = asked.lock().expect("no panic");
        let at = |method: &Method, kind: &str| {
            asked.iter().position(|(m, k, _)| m == method && k == kind).expect("asked for")
        };
        let secret = at(&Method::PATCH, "secrets");
        assert!(secret < at(&Method::POST, "persistentvolumeclaims"), "{asked:?}");
        let told = VolumeIds { first: first.to_owned(), now: String::new() };
        let wish = objects::secret(&cluster.place.options, &config(), &secrets, &told);
        let written = &asked[secret].2["data"]["volume.json"];
        assert_eq!(*written, wish.expect("plain data")["data"]["volume.json"]);
        assert!(told.is_replaced());
    }

    #[test]
    fn a_volume_is_a_nodes_first_unless_the_instances_record_was_lost() {
        let notes = |all: &[(&str, &str)]| {
            all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let forgotten = |all: &[(&str, &str)], has_served| is_forgotten(&notes(all), has_served);
        assert!(!forgotten(&[("fence", "{}")], false), "the first node of a new instance");
        assert!(!forgotten(&[("fence", "{}"), ("volume-n-1", "u-1")], true), "one more node");
        assert!(forgotten(&[("fence", "{}")], true));
        assert!(forgotten(&[("volume-n-1", FORGOTTEN)], true));
    }
}
