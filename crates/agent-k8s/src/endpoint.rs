//! Where clients are led: the EndpointSlices of the instance's write and read Services.
//!
//! Only the lease's holder writes them, by compare-and-set and never over a newer epoch. Labels
//! and readiness of pods do not count: a dead worker's pod keeps both for most of a minute.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::{join_all, try_join_all};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::PostParams;
use kube::{Api, Client};
use larder_agent::{Endpoint, LeaseError};
use larder_model::kube::{endpoint_name, pod_name};
use larder_model::lease::Route;
use larder_model::{EndpointKind, InstanceId, NodeId};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::error::said;
use crate::slices::{endpoints, route_of, targets, updated};

/// For all calls of one publication together. The loop has a lease to renew each second.
const DEADLINE: Duration = Duration::from_millis(700);
/// How often the holder looks whether its slices still are what it wrote.
const LOOK: Duration = Duration::from_secs(10);
/// Other holders and people may write in between; then it is looked at again.
const TRIES: usize = 4;

const KINDS: [EndpointKind; 2] = [EndpointKind::Write, EndpointKind::Read];

/// The endpoints of one instance, as one of its nodes sees them.
pub struct KubeEndpoint {
    inner: Arc<Mutex<Inner>>,
    keeper: JoinHandle<()>,
}

struct Inner {
    slices: Api<EndpointSlice>,
    pods: Api<Pod>,
    instance: InstanceId,
    /// This node and its pod.
    own: (NodeId, IpAddr),
    /// The slices as they were last seen. An instance has those that its architecture needs.
    known: Option<BTreeMap<EndpointKind, EndpointSlice>>,
    /// Addresses of the other pods, kept for when the API server does not say.
    addresses: BTreeMap<NodeId, IpAddr>,
    /// What this node has published and nobody has replaced.
    published: Option<Route>,
}

impl KubeEndpoint {
    /// The endpoints of `instance` in `namespace`, for the node whose pod has the address `ip`.
    /// Must be called within a runtime.
    pub fn new(
        client: Client,
        namespace: &str,
        instance: InstanceId,
        node: NodeId,
        ip: IpAddr,
    ) -> Self {
        let inner = Arc::new(Mutex::new(Inner {
            slices: Api::namespaced(client.clone(), namespace),
            pods: Api::namespaced(client, namespace),
            instance,
            own: (node, ip),
            known: None,
            addresses: BTreeMap::new(),
            published: None,
        }));
        let keeper = tokio::spawn(keep(Arc::clone(&inner)));
        Self { inner, keeper }
    }
}

impl Drop for KubeEndpoint {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

#[async_trait]
impl Endpoint for KubeEndpoint {
    async fn read(&mut self) -> Result<Option<Route>, LeaseError> {
        const DOING: &str = "reading the endpoint slices";
        let mut inner = self.inner.lock().await;
        let read = tokio::time::timeout(DEADLINE, inner.refresh(DOING)).await;
        read.map_err(|_| late(DOING))??;
        Ok(inner.route())
    }

    async fn publish(&mut self, route: &Route) -> Result<Option<Route>, LeaseError> {
        // A hand-over pauses writes at the primary. Slices that lead elsewhere, or nowhere, would
        // refuse new connections instead of letting them wait, and a change now would delay the
        // one that counts: kube-proxy waits between two.
        if route.hold {
            return Ok(None);
        }
        let mut inner = self.inner.lock().await;
        inner.publish_in_time(route).await
    }
}

impl Inner {
    async fn refresh(&mut self, doing: &'static str) -> Result<(), LeaseError> {
        self.known = None;
        let get = |kind: EndpointKind| {
            let (slices, name) = (self.slices.clone(), endpoint_name(&self.instance, kind));
            async move {
                let slice = slices.get_opt(&name).await.map_err(|error| said(doing, &error))?;
                Ok::<_, LeaseError>(slice.map(|slice| (kind, slice)))
            }
        };
        let known = try_join_all(KINDS.map(get)).await?;
        self.known = Some(known.into_iter().flatten().collect());
        Ok(())
    }

    /// The newest route in the slices, unless they do not lead where it says.
    fn route(&self) -> Option<Route> {
        let known = self.known.as_ref()?;
        let route = known.values().filter_map(route_of).max_by_key(|route| route.epoch)?;
        let mut pods = self.addresses.clone();
        pods.insert(self.own.0.clone(), self.own.1);
        let leads_to_me = route.write.as_ref().is_some_and(|target| target.node == self.own.0);
        let is_right = known.iter().all(|(kind, slice)| {
            *kind != EndpointKind::Write
                || updated(slice, &route, endpoints(targets(&route, *kind), &pods)).is_none()
        });
        // This pod had another address when it was written: it has to be written again.
        if leads_to_me && !is_right { None } else { Some(route) }
    }

    async fn publish_in_time(&mut self, route: &Route) -> Result<Option<Route>, LeaseError> {
        const DOING: &str = "publishing the route";
        match tokio::time::timeout(DEADLINE, self.publish(route, DOING)).await {
            Ok(done) => {
                let is_there = matches!(done, Ok(None));
                self.published = is_there.then(|| route.clone());
                done
            }
            Err(_) => {
                self.known = None;
                Err(late(DOING))
            }
        }
    }

    async fn publish(
        &mut self,
        route: &Route,
        doing: &'static str,
    ) -> Result<Option<Route>, LeaseError> {
        self.learn_addresses(route).await;
        for _ in 0..TRIES {
            if self.known.is_none() {
                self.refresh(doing).await?;
            }
            let Some(known) = &self.known else { break };
            let newest = known.values().filter_map(route_of).max_by_key(|there| there.epoch);
            if let Some(newer) = newest.filter(|there| there.epoch > route.epoch) {
                return Ok(Some(newer));
            }
            let mut pods = self.addresses.clone();
            pods.insert(self.own.0.clone(), self.own.1);
            // Both at once: kube-proxy takes up together what comes together.
            let writes =
                known.iter().filter_map(|(kind, slice)| {
                    let wanted = updated(slice, route, endpoints(targets(route, *kind), &pods))?;
                    let (slices, kind) = (self.slices.clone(), *kind);
                    let name = endpoint_name(&self.instance, kind);
                    Some(async move {
                        (kind, slices.replace(&name, &PostParams::default(), &wanted).await)
                    })
                });
            let mut conflict = false;
            for (kind, written) in join_all(writes).await {
                match written {
                    Ok(slice) => {
                        self.known.get_or_insert_default().insert(kind, slice);
                    }
                    Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                        conflict = true;
                    }
                    Err(error) => {
                        self.known = None;
                        return Err(said(doing, &error));
                    }
                }
            }
            if !conflict {
                return Ok(None);
            }
            self.known = None;
        }
        Err(LeaseError::Conflict)
    }

    /// Asks for the addresses of the pods that the route leads to.
    async fn learn_addresses(&mut self, route: &Route) {
        let others = (route.read.iter().chain(route.write.as_ref()))
            .map(|target| target.node.clone())
            .filter(|node| *node != self.own.0);
        let questions = others.map(|node| {
            let pods = self.pods.clone();
            async move {
                let pod = pods.get(&pod_name(&node)).await;
                (node, pod)
            }
        });
        for (node, pod) in join_all(questions).await {
            let ip = pod.map(|pod| pod.status.and_then(|status| status.pod_ip));
            match ip.map(|ip| ip.and_then(|ip| ip.parse().ok())) {
                Ok(Some(ip)) => {
                    self.addresses.insert(node, ip);
                }
                Ok(None) => {
                    self.addresses.remove(&node);
                }
                Err(error) => tracing::info!(%node, %error, "address of a pod not known"),
            }
        }
    }
}

/// Puts back what somebody else has changed, for as long as this node's route is the newest.
async fn keep(inner: Arc<Mutex<Inner>>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let mut inner = inner.lock().await;
        let Some(route) = inner.published.clone() else { continue };
        inner.known = None;
        match inner.publish_in_time(&route).await {
            Ok(_) => {}
            Err(error) => {
                tracing::info!(%error, "endpoint slices not looked at");
                inner.published = Some(route);
            }
        }
    }
}

fn late(doing: &'static str) -> LeaseError {
    LeaseError::Unreachable { doing, reason: format!("no end within {} ms", DEADLINE.as_millis()) }
}
