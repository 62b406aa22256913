//! The workers, and what of their memory is promised.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod, ResourceRequirements, Taint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
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
    async fn nodes(&self) -> Result<Vec<Node>, ClusterError> {
        let api: Api<Node> = Api::all(self.client.clone());
        let all = ListParams::default();
        Ok(self.ask("listing the workers", Box::pin(api.list(&all))).await?.items)
    }

    /// The workers' addresses, as the API server itself says.
    pub(crate) async fn worker_addresses(&self) -> Result<Vec<String>, ClusterError> {
        let mut addresses: Vec<_> = self.nodes().await?.iter().filter_map(address).collect();
        // The same wish is the same object, in whatever order they are listed.
        addresses.sort();
        Ok(addresses)
    }

    /// Marks a worker that is not ready as out of service.
    pub(crate) async fn confirm_lost(&self, worker: &str) -> Result<(), ClusterError> {
        let api: Api<Node> = Api::all(self.client.clone());
        // Live, and compared and set: it must not be marked when it has just come back.
        let nodes = self.nodes().await?;
        let found = nodes.iter().find(|node| {
            node.name_any() == worker || worker_name(node.name_any()).as_str() == worker
        });
        let Some(node) = found else {
            let all: Vec<_> = nodes.iter().map(ResourceExt::name_any).collect();
            let text = format!(
                "container cluster `{}` has no worker `{worker}`, only: {}",
                self.options.name,
                all.join(", ")
            );
            return Err(refused(Code::NotFound, text));
        };
        // First: who lacks the right should not wait for Kubernetes to miss the worker to be told so.
        if !self.may_also(&CONFIRM_LOST).await? {
            let detail = format!(
                "{}; or say it to Kubernetes yourself: `kubectl taint node {} \
                 {OUT_OF_SERVICE}=nodeshutdown:NoExecute`",
                CONFIRM_LOST.missing(self.options.reach),
                node.name_any()
            );
            return Err(refused(Code::ContainerClusterUnusable, detail));
        }
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

/// Requested memory, counted as the scheduler does: the containers and the sidecars together, or an
/// init container with the sidecars that were started before it; what is requested for the pod as a
/// whole instead, and on top what the pod's runtime costs.
pub(crate) fn used(pod: Pod) -> Use {
    let Some(spec) = pod.spec else { return Use::default() };
    let mut running: u64 = spec.containers.iter().map(|c| memory(c.resources.as_ref())).sum();
    let (mut sidecars, mut starting) = (0, 0);
    for container in spec.init_containers.iter().flatten() {
        let memory = memory(container.resources.as_ref());
        if container.restart_policy.as_deref() == Some("Always") {
            running += memory;
            sidecars += memory;
            starting = sidecars.max(starting);
        } else {
            starting = starting.max(sidecars + memory);
        }
    }
    let whole =
        spec.resources.as_ref().and_then(|resources| memory_of(resources.requests.as_ref()));
    let overhead = memory_of(spec.overhead.as_ref()).unwrap_or(0);
    let memory = whole.unwrap_or_else(|| running.max(starting)) + overhead;
    Use { worker: spec.node_name, memory }
}

fn memory(resources: Option<&ResourceRequirements>) -> u64 {
    memory_of(resources.and_then(|resources| resources.requests.as_ref())).unwrap_or(0)
}

fn memory_of(quantities: Option<&BTreeMap<String, Quantity>>) -> Option<u64> {
    quantity::bytes(&quantities?.get("memory")?.0)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn requested(spec: Value) -> u64 {
        let pod = serde_json::from_value(json!({ "metadata": {}, "spec": spec })).expect("a Pod");
        used(pod).memory >> 20
    }

    fn container(mebibytes: u32) -> Value {
        let requests = json!({ "memory": format!("{mebibytes}Mi") });
        json!({ "name": "c", "resources": { "requests": requests } })
    }

    fn sidecar(mebibytes: u32) -> Value {
        let mut container = container(mebibytes);
        container["restartPolicy"] = json!("Always");
        container
    }

    #[test]
    fn memory_is_counted_as_the_scheduler_does() {
        let containers = [container(100), container(50)];
        assert_eq!(requested(json!({ "containers": containers })), 150);
        for (init, sum) in [
            (vec![container(120)], 150),
            (vec![container(200)], 200),
            // Sidecars go on beside the containers, and beside the init containers after them.
            (vec![sidecar(30)], 180),
            (vec![sidecar(30), container(160)], 190),
            (vec![container(160), sidecar(30)], 180),
        ] {
            let spec = json!({ "containers": containers, "initContainers": init });
            assert_eq!(requested(spec), sum, "{init:?}");
        }
        let spec = json!({
            "containers": containers,
            "resources": { "requests": { "memory": "400Mi" } },
            "overhead": { "memory": "20Mi" },
        });
        assert_eq!(requested(spec), 420);
    }
}
