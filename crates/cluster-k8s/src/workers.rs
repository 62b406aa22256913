//! The workers, and what of their memory is promised.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod, ResourceRequirements, Taint};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use larder_cluster::ClusterError;
use larder_model::{ByteSize, Code, Worker, WorkerState, ZoneName};
use serde_json::json;

use crate::apply::Place;
use crate::connect::CONFIRM_LOST;
use crate::error::refused;
use crate::observe::worker_name;
use crate::quantity;

/// An administrator's word that a worker will not come back as it was.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
const ZONE: &str = "topology.kubernetes.io/zone";

/// Of fields: finished pods hold nothing any more.
pub(crate) const LIVING: &str = "status.phase!=Succeeded,status.phase!=Failed";

impl Place {
    /// The workers, as the API server itself says.
    pub(crate) async fn workers(&self) -> Result<Vec<Worker>, ClusterError> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let pods: Api<Pod> = Api::all(self.client.clone());
        let living = ListParams::default().fields(LIVING);
        let all = ListParams::default();
        let (nodes, pods) = tokio::try_join!(
            self.ask("listing the workers", nodes.list(&all)),
            self.ask("listing what runs on the workers", pods.list(&living)),
        )?;
        let uses: Vec<Use> = pods.items.into_iter().map(used).collect();
        Ok(workers(nodes.items.iter(), uses.iter()))
    }
}

impl Place {
    /// Marks a worker that is not ready as out of service.
    pub(crate) async fn confirm_lost(&self, worker: &str) -> Result<(), ClusterError> {
        // First: who lacks the right should not wait for Kubernetes to miss the worker to be told.
        if !self.may_also(&CONFIRM_LOST).await? {
            let detail = format!(
                "{}; or say it to Kubernetes yourself: `kubectl taint node {worker} \
                 {OUT_OF_SERVICE}=nodeshutdown:NoExecute`",
                CONFIRM_LOST.missing(self.options.reach)
            );
            return Err(refused(Code::ContainerClusterUnusable, detail));
        }
        let api: Api<Node> = Api::all(self.client.clone());
        // Live, and compared and set: it must not be marked when it has just come back.
        let nodes = self.ask("listing the workers", api.list(&ListParams::default())).await?;
        let found = (nodes.items.iter()).find(|node| {
            node.name_any() == worker || worker_name(node.name_any()).as_str() == worker
        });
        let Some(node) = found else {
            let all: Vec<_> = nodes.items.iter().map(ResourceExt::name_any).collect();
            let text = format!(
                "container cluster `{}` has no worker `{worker}`, only: {}",
                self.options.name,
                all.join(", ")
            );
            return Err(refused(Code::NotFound, text));
        };
        match state(node) {
            WorkerState::Lost => return Ok(()),
            WorkerState::Unreachable => {}
            WorkerState::Ready | WorkerState::Cordoned => {
                let text = format!("worker `{worker}` answers Kubernetes: drain it instead");
                return Err(refused(Code::WorkerNotLost, text));
            }
        }
        let mut taints = node.spec.clone().unwrap_or_default().taints.unwrap_or_default();
        taints.push(Taint {
            key: OUT_OF_SERVICE.to_owned(),
            value: Some("nodeshutdown".to_owned()),
            effect: "NoExecute".to_owned(),
            time_added: None,
        });
        let patch = Patch::Merge(json!({
            "metadata": { "resourceVersion": node.metadata.resource_version },
            "spec": { "taints": taints },
        }));
        let (name, params) = (node.name_any(), PatchParams::default());
        self.ask(&format!("marking worker {name} as out of service"), async {
            api.patch(&name, &params, &patch).await
        })
        .await
        .map(drop)
    }
}

/// The workers, sorted by name, with what all pods of the cluster request of them.
pub(crate) fn workers<'a>(
    nodes: impl Iterator<Item = &'a Node>,
    uses: impl Iterator<Item = &'a Use>,
) -> Vec<Worker> {
    let mut requested = BTreeMap::new();
    for used in uses {
        if let Some(worker) = &used.worker {
            *requested.entry(worker.clone()).or_insert(0_u64) += used.memory;
        }
    }
    let mut workers: Vec<Worker> = nodes.map(|node| worker(node, &requested)).collect();
    workers.sort_by(|a, b| a.name.cmp(&b.name));
    workers
}

/// What a pod requests of its worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Use {
    /// `None` until it has one.
    worker: Option<String>,
    /// In bytes.
    memory: u64,
}

fn worker(node: &Node, requested: &BTreeMap<String, u64>) -> Worker {
    let name = node.name_any();
    let allocatable = (node.status.as_ref())
        .and_then(|status| status.allocatable.as_ref()?.get("memory"))
        .and_then(|quantity| quantity::bytes(&quantity.0));
    Worker {
        address: address(node),
        zone: node.labels().get(ZONE).and_then(|zone| ZoneName::new(zone.as_str()).ok()),
        state: state(node),
        allocatable: ByteSize(allocatable.unwrap_or(0)),
        requested: ByteSize(requested.get(&name).copied().unwrap_or(0)),
        name: worker_name(name),
    }
}

/// Where its node ports are reached: what its pods are told as their worker's address, too.
fn address(node: &Node) -> Option<String> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    addresses.iter().find(|one| one.type_ == "InternalIP").map(|one| one.address.clone())
}

fn state(node: &Node) -> WorkerState {
    let spec = node.spec.clone().unwrap_or_default();
    let taints = spec.taints.unwrap_or_default();
    if taints.iter().any(|taint| taint.key == OUT_OF_SERVICE) {
        return WorkerState::Lost;
    }
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready =
        conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
    if !ready {
        return WorkerState::Unreachable;
    }
    let closed = spec.unschedulable == Some(true)
        || taints.iter().any(|t| t.effect == "NoSchedule" || t.effect == "NoExecute");
    if closed { WorkerState::Cordoned } else { WorkerState::Ready }
}

/// Requested memory, counted as the scheduler does: the containers together, or the largest init
/// container.
pub(crate) fn used(pod: Pod) -> Use {
    let Some(spec) = pod.spec else { return Use::default() };
    let containers: u64 = spec.containers.iter().map(|c| memory(c.resources.as_ref())).sum();
    let init = (spec.init_containers.iter().flatten())
        .map(|c| memory(c.resources.as_ref()))
        .max()
        .unwrap_or(0);
    Use { worker: spec.node_name, memory: containers.max(init) }
}

fn memory(resources: Option<&ResourceRequirements>) -> u64 {
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    requests.and_then(|requests| quantity::bytes(&requests.get("memory")?.0)).unwrap_or(0)
}
