//! What there is of an instance, from six lists by label or from memory, and what it means.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::ObjectMeta;
use larder_cluster::{BackendObserved, ClusterError};
use larder_model::kube::{
    ANNOTATION_GENERATION, ANNOTATION_SETTINGS, LABEL_ENDPOINT, LABEL_NODE, SERVER_PORT,
    UNSCHEDULED,
};
use larder_model::{
    Address, BackendNode, EndpointKind, EndpointStatus, Exposed, InstanceId, NodeId, WorkerName,
};

use crate::apply;
use crate::expose::{Outside, Place, endpoint_place, exposed, is_at_a_worker, is_outer};
use crate::hindrance::{Told, waits_for_other_settings};
use crate::objects;
use crate::options::KubeOptions;
use crate::shared::{Parts, is_whole};

/// Where the scheduler puts a pod before it runs, and where its volume was bound.
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Everything of an instance as the API server shows it.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) sets: Vec<Arc<StatefulSet>>,
    pub(crate) services: Vec<Arc<Service>>,
    pub(crate) claims: Vec<Arc<PersistentVolumeClaim>>,
    /// The secrets' metadata: their content is nobody's business here.
    pub(crate) secrets: Vec<ObjectMeta>,
    pub(crate) pods: Vec<Arc<Pod>>,
    pub(crate) slices: Vec<Arc<EndpointSlice>>,
    /// What events say of the nodes' objects; from memory only, and only where that may be read.
    pub(crate) told: BTreeMap<NodeId, Vec<Arc<Told>>>,
    /// What nodes share, of the whole binding, as far as that is known.
    pub(crate) shared: Arc<Parts>,
}

impl apply::Place {
    /// Asks the API server itself: before something is removed, and when the watches are behind.
    pub(crate) async fn see(&self, instance: &InstanceId) -> Result<Seen, ClusterError> {
        let selector = objects::selector(&self.options, Some(instance));
        let (sets, services, claims, secrets, pods, slices) = tokio::try_join!(
            self.list(&selector),
            self.list(&selector),
            self.list(&selector),
            self.metadata::<Secret>(&selector),
            self.list(&selector),
            self.list(&selector),
        )?;
        Ok(Seen {
            sets: shared(sets),
            services: shared(services),
            claims: shared(claims),
            secrets,
            pods: shared(pods),
            slices: shared(slices),
            told: BTreeMap::new(),
            shared: self.shared.known(),
        })
    }
}

fn shared<K>(all: Vec<K>) -> Vec<Arc<K>> {
    all.into_iter().map(Arc::new).collect()
}

impl Seen {
    /// In the words of backends.
    pub(crate) fn observed(&self, outside: &Outside<'_>) -> BackendObserved {
        let nodes = self.node_ids().into_iter().map(|id| {
            let node = self.node(&id, outside.address);
            (id, node)
        });
        BackendObserved {
            hindrances: self.hindrances(),
            nodes: nodes.collect(),
            endpoints: self.services.iter().filter_map(|s| self.endpoint(s, outside)).collect(),
        }
    }

    /// Every node of which anything is there, its pod included.
    pub(crate) fn node_ids(&self) -> BTreeSet<NodeId> {
        let all = (self.sets.iter().map(|o| &o.metadata))
            .chain(self.services.iter().map(|o| &o.metadata))
            .chain(self.claims.iter().map(|o| &o.metadata))
            .chain(&self.secrets)
            .chain(self.pods.iter().map(|o| &o.metadata));
        all.filter_map(node_of).collect()
    }

    fn node(&self, id: &NodeId, outer_address: Option<&str>) -> BackendNode {
        let is_of = |metadata: &ObjectMeta| node_of(metadata).as_ref() == Some(id);
        let set = self.sets.iter().find(|o| is_of(&o.metadata));
        let mut services = self.services.iter().filter(|o| is_of(&o.metadata));
        let service = services.clone().find(|o| !is_outer(&o.metadata));
        let outer = services.find(|o| is_outer(&o.metadata) && stays(&o.metadata));
        let claim = self.claims.iter().find(|o| is_of(&o.metadata));
        let secret = self.secrets.iter().find(|metadata| is_of(metadata));
        let pod = self.pods.iter().find(|o| is_of(&o.metadata));
        let worker = pod
            .and_then(|pod| pod.spec.as_ref()?.node_name.clone())
            .or_else(|| claim.and_then(|claim| claim.annotations().get(SELECTED_NODE).cloned()));
        BackendNode {
            worker: worker.map_or_else(unscheduled, worker_name),
            address: service.and_then(|service| cluster_address(service)),
            realised: set.is_some_and(|o| stays(&o.metadata) && is_whole(o, &self.shared))
                && service.is_some_and(|o| stays(&o.metadata))
                && claim.is_some_and(|o| stays(&o.metadata))
                && secret.is_some_and(stays),
            volume: claim.is_some_and(|o| stays(&o.metadata)),
            exposed: outer.map_or(Exposed::No, |service| exposed(service, outer_address)),
            generation: set.map_or(0, |set| generation(&set.metadata)),
            // What the binding says is not in here.
            outdated: false,
        }
    }

    /// The node's StatefulSet says that it was rendered from other settings of the binding, or was
    /// before, and its pod still waits for what those ask for.
    pub(crate) fn is_outdated(&self, id: &NodeId, options: &KubeOptions) -> bool {
        let set = self.sets.iter().find(|o| node_of(&o.metadata).as_ref() == Some(id));
        let pod = self.pods.iter().find(|o| node_of(&o.metadata).as_ref() == Some(id));
        set.is_some_and(|set| {
            set.annotations().get(ANNOTATION_SETTINGS) != Some(&options.settings())
                || pod.is_some_and(|pod| waits_for_other_settings(set, pod))
        })
    }

    fn endpoint(
        &self,
        service: &Service,
        outside: &Outside<'_>,
    ) -> Option<(EndpointKind, EndpointStatus)> {
        let kind = kind_of(&service.metadata)?;
        let place = endpoint_place(service, cluster_address(service)?, outside);
        let name = service.name_any();
        let slices =
            self.slices.iter().filter(|slice| slice.labels().get(SERVICE_NAME) == Some(&name));
        // The holder writes this one, and may not make it.
        let is_led_by =
            |slice: &&Arc<EndpointSlice>| stays(&slice.metadata) && slice.name_any() == name;
        let whole = !objects::is_led(kind) || slices.clone().any(|slice| is_led_by(&slice));
        let mut leads_to = Vec::new();
        let mut answers = false;
        for endpoint in slices.flat_map(|slice| &slice.endpoints) {
            let said = endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
            let Some(pod) = endpoint.target_ref.as_ref().and_then(|target| target.name.as_ref())
            else {
                continue;
            };
            let Some(pod) = self.pods.iter().find(|o| o.name_any() == *pod) else { continue };
            let Some(node) = node_of(&pod.metadata).filter(|_| said) else { continue };
            // The pod is where the slice says, and its agent says that the server serves.
            let ip = pod.status.as_ref().and_then(|status| status.pod_ip.as_ref());
            let is_there = ip.is_some_and(|ip| endpoint.addresses.contains(ip));
            answers |= is_there && is_ready(pod);
            leads_to.push(node);
        }
        leads_to.sort();
        // Nobody comes here before it has its address.
        let answers = answers && !place.pending;
        let Place { address, inner, pending } = place;
        Some((kind, EndpointStatus { address, inner, pending, answers, leads_to, whole }))
    }

    /// An endpoint is reached at a worker's address.
    pub(crate) fn is_at_workers(&self) -> bool {
        self.services.iter().any(|o| kind_of(&o.metadata).is_some() && is_at_a_worker(o))
    }

    /// What is left of endpoints.
    pub(crate) fn has_endpoints(&self) -> bool {
        let services = self.services.iter().map(|o| &o.metadata);
        services.filter_map(kind_of).next().is_some()
    }

    pub(crate) fn has_nodes(&self) -> bool {
        !self.node_ids().is_empty()
    }
}

/// The generation that a StatefulSet was made for; 0 when it does not say.
pub(crate) fn generation(set: &ObjectMeta) -> u64 {
    let text = set.annotations.as_ref().and_then(|all| all.get(ANNOTATION_GENERATION));
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn stays(metadata: &ObjectMeta) -> bool {
    metadata.deletion_timestamp.is_none()
}

fn label<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a String> {
    metadata.labels.as_ref()?.get(key)
}

pub(crate) fn node_of(metadata: &ObjectMeta) -> Option<NodeId> {
    NodeId::new(label(metadata, LABEL_NODE)?.as_str()).ok()
}

fn kind_of(metadata: &ObjectMeta) -> Option<EndpointKind> {
    let text = label(metadata, LABEL_ENDPOINT)?;
    [EndpointKind::Write, EndpointKind::Read, EndpointKind::Discovery]
        .into_iter()
        .find(|kind| kind.as_str() == text)
}

/// The Service's address inside of the cluster.
pub(crate) fn cluster_address(service: &Service) -> Option<Address> {
    let ip = service.spec.as_ref()?.cluster_ip.as_ref()?;
    (!ip.is_empty() && ip != "None").then(|| Address::new(ip, SERVER_PORT))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    pod.metadata.deletion_timestamp.is_none()
        && conditions
            .is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

/// Names of workers are longer on Kubernetes than ours: what is too long keeps its beginning.
pub(crate) fn worker_name(name: String) -> WorkerName {
    let short: String = name.chars().take(63).collect();
    WorkerName::new(short).unwrap_or_else(|_| unscheduled())
}

/// A pod that has no worker yet.
fn unscheduled() -> WorkerName {
    WorkerName::new(UNSCHEDULED).expect("follows the rules of worker names")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::options::KubeOptions;

    fn object<K: serde::de::DeserializeOwned>(value: Value) -> Arc<K> {
        Arc::new(serde_json::from_value(value).expect("of its kind"))
    }

    fn write_endpoint(slice: Option<Value>) -> EndpointStatus {
        let labels = json!({ LABEL_ENDPOINT: "write" });
        let service = object(json!({
            "metadata": { "name": "i-1-write", "labels": labels },
            "spec": { "clusterIP": "10.101.0.7", "type": "ClusterIP" },
        }));
        let slices = slice.into_iter().map(object).collect();
        let seen = Seen { services: vec![service], slices, ..Seen::default() };
        let outside = Outside { workers: &[], address: None };
        let mut endpoints = seen.observed(&outside).endpoints;
        endpoints.remove(&EndpointKind::Write).expect("it is seen, whatever it lacks")
    }

    #[test]
    fn an_endpoint_without_the_slice_that_the_holder_writes_is_not_whole() {
        let options = KubeOptions::new("east", "larder", "b-1");
        let instance = InstanceId::new("i-1").expect("valid");
        let slice = objects::endpoint_slice(&options, &instance, EndpointKind::Write);
        assert!(write_endpoint(Some(slice.clone())).whole);
        assert!(!write_endpoint(None).whole);
        let mut other = slice.clone();
        other["metadata"]["name"] = json!("i-1-write-x7k2p");
        assert!(!write_endpoint(Some(other)).whole, "the holder does not write this one");
        let mut leaving = slice;
        leaving["metadata"]["deletionTimestamp"] = json!("2026-11-22T10:00:00Z");
        assert!(!write_endpoint(Some(leaving)).whole);
    }

    #[test]
    fn a_node_that_lacks_what_it_shares_is_not_realised() {
        let labels = json!({ LABEL_NODE: "n-1", "larder.io/instance": "i-1" });
        let metadata = json!({ "name": "n-1", "labels": labels });
        let seen = |shared: Parts| Seen {
            sets: vec![object(json!({ "metadata": metadata }))],
            services: vec![object(json!({ "metadata": metadata }))],
            claims: vec![object(json!({ "metadata": metadata }))],
            secrets: vec![serde_json::from_value(metadata.clone()).expect("metadata")],
            shared: Arc::new(shared),
            ..Seen::default()
        };
        let realised = |shared| {
            let outside = Outside { workers: &[], address: None };
            let nodes = seen(shared).observed(&outside).nodes;
            nodes.values().next().expect("a node").realised
        };
        assert!(realised(Parts::default()), "unknown is not absent");
        assert!(!realised(Parts::without_any()));
    }
}
