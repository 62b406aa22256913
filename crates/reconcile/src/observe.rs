//! Gathers what is, for the planner: three values, never a guess.

use std::collections::BTreeMap;
use std::time::Duration;

use larder_cluster::{Cluster, ClusterError};
use larder_model::kube::UNSCHEDULED;
use larder_model::{
    Desired, Hindrance, NodeId, Observation, Observed, ObservedNode, Timestamp, Worker,
};

use crate::statuses::Statuses;

/// A container cluster that has not answered by then is unknown for this tick.
const BACKEND_DEADLINE: Duration = Duration::from_secs(10);

/// What was seen, and what went wrong with the container cluster, if anything did.
pub(crate) struct Seen {
    pub(crate) observed: Observed,
    pub(crate) trouble: Option<ClusterError>,
    /// What keeps nodes from coming to be, as the container cluster shows it.
    pub(crate) hindrances: BTreeMap<NodeId, Hindrance>,
}

/// Observes one instance. `unknown_since` is when the container cluster last answered.
pub(crate) async fn observe(
    cluster: &dyn Cluster,
    statuses: &dyn Statuses,
    desired: &Desired,
    now: Timestamp,
    unknown_since: Timestamp,
) -> Seen {
    let instance = &desired.spec.id;
    let backend = within_deadline(cluster, async {
        let workers = cluster.workers().await?;
        Ok((workers, cluster.observe(instance).await?))
    });
    let recorded: Vec<NodeId> = desired.nodes.iter().map(|n| n.id.clone()).collect();
    let (backend, agents) = tokio::join!(backend, statuses.statuses(instance, &recorded));
    statuses.retain(instance, &recorded);

    let mut nodes: BTreeMap<NodeId, ObservedNode> = recorded
        .into_iter()
        .zip(agents)
        .map(|(node, agent)| {
            (node, ObservedNode { backend: Observation::UnknownYet, agent, hindered: None })
        })
        .collect();
    match backend {
        Ok((workers, seen)) => {
            let mut endpoints: BTreeMap<_, _> = (desired.spec.architecture.endpoints().iter())
                .map(|kind| (*kind, Observation::Absent))
                .collect();
            for (kind, value) in seen.endpoints {
                endpoints.insert(kind, Observation::Known { value, at: now });
            }
            for node in nodes.values_mut() {
                node.backend = Observation::Absent;
            }
            for (id, value) in seen.nodes {
                nodes.entry(id).or_default().backend = Observation::Known { value, at: now };
            }
            // No node, no agent: silence is explained.
            for node in nodes.values_mut() {
                if node.backend.is_absent() && node.agent.known().is_none() {
                    node.agent = Observation::Absent;
                }
            }
            Seen {
                observed: Observed { workers: sorted(workers), nodes, endpoints, trouble: None },
                trouble: None,
                hindrances: seen.hindrances,
            }
        }
        Err(trouble) => {
            for node in nodes.values_mut() {
                node.backend = Observation::Unknown { since: unknown_since };
            }
            let endpoints = (desired.spec.architecture.endpoints().iter())
                .map(|kind| (*kind, Observation::Unknown { since: unknown_since }))
                .collect();
            Seen {
                observed: Observed {
                    workers: Vec::new(),
                    nodes,
                    endpoints,
                    trouble: Some(trouble.to_string()),
                },
                trouble: Some(trouble),
                hindrances: BTreeMap::new(),
            }
        }
    }
}

/// Nodes are where their container cluster says: on Kubernetes the scheduler has the last word on
/// where a node runs, and it may move when its volume can.
pub(crate) fn correct_places(desired: &mut Desired, observed: &Observed) {
    for record in &mut desired.nodes {
        let backend = observed.nodes.get(&record.id).and_then(|node| node.backend.known());
        let Some(place) = backend.map(|backend| &backend.worker) else { continue };
        if *place == record.worker || place.as_str() == UNSCHEDULED {
            continue;
        }
        record.worker = place.clone();
        let worker = observed.workers.iter().find(|worker| worker.name == *place);
        if let Some(worker) = worker {
            record.zone.clone_from(&worker.zone);
        }
    }
}

fn sorted(mut workers: Vec<Worker>) -> Vec<Worker> {
    workers.sort_by(|a, b| a.name.cmp(&b.name));
    workers
}

async fn within_deadline<T>(
    cluster: &dyn Cluster,
    work: impl Future<Output = Result<T, ClusterError>>,
) -> Result<T, ClusterError> {
    match tokio::time::timeout(BACKEND_DEADLINE, work).await {
        Ok(answer) => answer,
        Err(_) => Err(ClusterError::Unreachable {
            cluster: cluster.name().to_owned(),
            reason: format!("no answer within {BACKEND_DEADLINE:?}"),
        }),
    }
}
