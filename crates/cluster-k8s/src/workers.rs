//! The workers, and what of their memory is promised.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod, ResourceRequirements};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use larder_cluster::ClusterError;
use larder_model::{ByteSize, Worker, WorkerState, ZoneName};

use crate::apply::Place;
use crate::observe::worker_name;
use crate::quantity;

/// An administrator's word that a worker will not come back as it was.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
const ZONE: &str = "topology.kubernetes.io/zone";

impl Place {
    /// The workers, sorted by name, with what all pods of the cluster request of them.
    pub(crate) async fn workers(&self) -> Result<Vec<Worker>, ClusterError> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let pods: Api<Pod> = Api::all(self.client.clone());
        // Finished pods hold nothing any more.
        let living = ListParams::default().fields("status.phase!=Succeeded,status.phase!=Failed");
        let all = ListParams::default();
        let (nodes, pods) = tokio::try_join!(
            self.ask("listing the workers", nodes.list(&all)),
            self.ask("listing what runs on the workers", pods.list(&living)),
        )?;
        let requested = requested(&pods.items);
        let mut workers: Vec<Worker> =
            nodes.items.iter().map(|node| worker(node, &requested)).collect();
        workers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(workers)
    }
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

/// Requested memory by worker, counted as the scheduler does: the containers together, or the
/// largest init container.
fn requested(pods: &[Pod]) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for pod in pods {
        let Some(spec) = &pod.spec else { continue };
        let Some(worker) = &spec.node_name else { continue };
        let containers: u64 = spec.containers.iter().map(|c| memory(c.resources.as_ref())).sum();
        let init = (spec.init_containers.iter().flatten())
            .map(|c| memory(c.resources.as_ref()))
            .max()
            .unwrap_or(0);
        *sums.entry(worker.clone()).or_insert(0_u64) += containers.max(init);
    }
    sums
}

fn memory(resources: Option<&ResourceRequirements>) -> u64 {
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    requests.and_then(|requests| quantity::bytes(&requests.get("memory")?.0)).unwrap_or(0)
}
