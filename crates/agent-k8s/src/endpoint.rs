//! Where clients are led: the EndpointSlices of the instance's write and read Services.
//!
//! Only the lease's holder writes them, by compare-and-set and never over a newer epoch. Labels
//! and readiness of pods do not count: a dead worker's pod keeps both for most of a minute.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::{join, join_all};
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
use tokio::time::Instant;

use crate::error::said;
use crate::slices::{endpoints, route_of, targets, updated};

/// For all calls of one publication together. The loop has a lease to renew each second.
const DEADLINE: Duration = Duration::from_millis(700);
/// How often the holder looks whether its slices still are what it wrote.
const LOOK: Duration = Duration::from_secs(10);
/// And how often while one of them is not there, which only `serve` may make, or the one for reads
/// cannot be read or written.
const LOOK_FOR_MISSING: Duration = Duration::from_secs(1);
/// Other holders and people may write in between; then it is looked at again.
const TRIES: usize = 4;

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
    has_reads: bool,
    /// The slices as they were last seen. An instance has those that its architecture needs.
    known: Option<BTreeMap<EndpointKind, EndpointSlice>>,
    /// Addresses of the other pods, kept for when the API server does not say.
    addresses: BTreeMap<NodeId, IpAddr>,
    /// `known` is what the API server said since this was made false.
    has_asked: bool,
    /// What this node has published and nobody has replaced.
    published: Option<Route>,
    /// A slice that has to be written was looked for in vain, or does not let itself be written.
    missing: Option<Missing>,
}

/// The route that could not be published whole, for want of which slice, why, and since when.
struct Missing {
    route: Route,
    kind: EndpointKind,
    reason: String,
    at: Instant,
}

/// The slices that are there, as far as that is known.
struct Answer {
    known: BTreeMap<EndpointKind, EndpointSlice>,
    /// Why that for reads is not known.
    read: Option<LeaseError>,
}

impl KubeEndpoint {
    /// The endpoints of `instance` in `namespace`, for the node whose pod has the address `ip`;
    /// `has_reads`: there is one for reads.
    /// Must be called within a runtime.
    pub fn new(
        client: Client,
        namespace: &str,
        instance: InstanceId,
        node: NodeId,
        ip: IpAddr,
        has_reads: bool,
    ) -> Self {
        let inner = Arc::new(Mutex::new(Inner {
            slices: Api::namespaced(client.clone(), namespace),
            pods: Api::namespaced(client, namespace),
            instance,
            own: (node, ip),
            has_reads,
            known: None,
            addresses: BTreeMap::new(),
            has_asked: false,
            published: None,
            missing: None,
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
        let read = tokio::time::timeout(DEADLINE, async {
            // The one that keeps the slices may hold it, for as long as an API server is slow.
            let mut inner = self.inner.lock().await;
            inner.read(DOING).await
        });
        read.await.map_err(|_| late(DOING))?
    }

    async fn publish(&mut self, route: &Route) -> Result<Option<Route>, LeaseError> {
        // A hand-over pauses writes at the primary. Slices that lead elsewhere, or nowhere, would
        // refuse new connections instead of letting them wait, and a change now would delay the
        // one that counts: kube-proxy waits between two.
        if route.hold {
            return Ok(None);
        }
        const DOING: &str = "publishing the route";
        let published = tokio::time::timeout(DEADLINE, async {
            let mut inner = self.inner.lock().await;
            inner.refuse_too_soon(route, DOING)?;
            inner.publish(route, DOING).await
        });
        published.await.map_err(|_| late(DOING))?
    }
}

impl Inner {
    async fn read(&mut self, doing: &'static str) -> Result<Option<Route>, LeaseError> {
        self.known = None;
        let answer = self.ask(doing).await?;
        let route = self.route(&answer);
        // What is half known is asked for again.
        self.known = answer.read.is_none().then_some(answer.known);
        Ok(route)
    }

    /// The slices that are there. That for writes has to be known; a way for reads that cannot be
    /// looked at must not hold it up.
    async fn ask(&mut self, doing: &'static str) -> Result<Answer, LeaseError> {
        let get = |kind: EndpointKind| {
            let (slices, name) = (self.slices.clone(), endpoint_name(&self.instance, kind));
            async move { slices.get_opt(&name).await.map_err(|error| said(doing, &error)) }
        };
        let (write, read) = join(get(EndpointKind::Write), get(EndpointKind::Read)).await;
        let mut known = BTreeMap::new();
        known.extend(write?.map(|slice| (EndpointKind::Write, slice)));
        self.has_asked = true;
        let read = match read {
            Ok(slice) => {
                known.extend(slice.map(|slice| (EndpointKind::Read, slice)));
                None
            }
            Err(error) => Some(error),
        };
        Ok(Answer { known, read })
    }

    /// The newest route in the slices, unless they do not lead where it says.
    fn route(&self, answer: &Answer) -> Option<Route> {
        let known = &answer.known;
        let route = known.values().filter_map(route_of).max_by_key(|route| route.epoch)?;
        let mut pods = self.addresses.clone();
        pods.insert(self.own.0.clone(), self.own.1);
        let leads_to_me = route.write.as_ref().is_some_and(|target| target.node == self.own.0);
        let is_right = answer.read.is_none()
            && known.iter().all(|(kind, slice)| {
                *kind != EndpointKind::Write
                    || updated(slice, &route, endpoints(targets(&route, *kind), &pods)).is_none()
            });
        // This pod had another address when it was written, or nobody knows where reads go: it has to
        // be written again.
        if leads_to_me && !is_right { None } else { Some(route) }
    }

    /// A slice that only `serve` can make is not looked for ten times a second.
    fn refuse_too_soon(&mut self, route: &Route, doing: &'static str) -> Result<(), LeaseError> {
        match &self.missing {
            Some(missing)
                if missing.kind == EndpointKind::Write
                    && missing.route == *route
                    && missing.at.elapsed() < LOOK_FOR_MISSING =>
            {
                self.published = None;
                Err(missing.error(doing))
            }
            _ => Ok(()),
        }
    }

    /// Publishes, and remembers what is published. Cancelled at any point it has published nothing
    /// that it knows of, and looks at the slices anew the next time.
    async fn publish(
        &mut self,
        route: &Route,
        doing: &'static str,
    ) -> Result<Option<Route>, LeaseError> {
        self.published = None;
        self.learn_addresses(route).await;
        let known = self.known.take();
        let done = self.write_slices(route, known, doing).await?;
        if done.is_none() {
            self.published = Some(route.clone());
        }
        Ok(done)
    }

    async fn write_slices(
        &mut self,
        route: &Route,
        mut seen: Option<BTreeMap<EndpointKind, EndpointSlice>>,
        doing: &'static str,
    ) -> Result<Option<Route>, LeaseError> {
        for tries_left in (0..TRIES).rev() {
            let Answer { mut known, mut read } = match seen.take() {
                Some(known) => Answer { known, read: None },
                None => self.ask(doing).await?,
            };
            // What is half known is asked for again.
            let mut is_known = read.is_none();
            let newest = known.values().filter_map(route_of).max_by_key(|there| there.epoch);
            if let Some(newer) = newest.filter(|there| there.epoch > route.epoch) {
                self.known = is_known.then_some(known);
                return Ok(Some(newer));
            }
            let mut conflict = false;
            for (kind, written) in self.written(route, &known).await {
                let is_write = kind == EndpointKind::Write;
                match written {
                    Ok(slice) => {
                        known.insert(kind, slice);
                    }
                    Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                        conflict |= is_write || tries_left > 0;
                        is_known = false;
                        read = Some(LeaseError::Conflict);
                    }
                    Err(error) if is_write => return Err(said(doing, &error)),
                    Err(error) => read = Some(said(doing, &error)),
                }
            }
            if conflict {
                continue;
            }
            // What is there leads right; what is not leads nobody. For writes that is no success; a
            // way for reads that is gone, or cannot be written, must not hold up the one for writes.
            let is_news = self.missing.as_ref().is_none_or(|m| m.kind == EndpointKind::Write);
            let was_missing = self.missing.is_some();
            self.missing = self.missing_slice(route, &known, read);
            match &self.missing {
                Some(missing) if missing.kind == EndpointKind::Write => {
                    return Err(missing.error(doing));
                }
                Some(missing) if is_news => {
                    let error = missing.error(doing);
                    tracing::warn!(%error, "reads do not lead where they should, tried each second");
                }
                None if was_missing => tracing::info!("every endpoint leads where it should again"),
                _ => {}
            }
            self.known = is_known.then_some(known);
            return Ok(None);
        }
        Err(LeaseError::Conflict)
    }

    /// Writes the slices that are not as the route wants them: that for writes first, and the other
    /// one only once that leads. kube-proxy takes the first change up at once and rests for a
    /// second before the next.
    async fn written(
        &self,
        route: &Route,
        known: &BTreeMap<EndpointKind, EndpointSlice>,
    ) -> Vec<(EndpointKind, Result<EndpointSlice, kube::Error>)> {
        let mut pods = self.addresses.clone();
        pods.insert(self.own.0.clone(), self.own.1);
        let mut all = Vec::new();
        for kind in [EndpointKind::Write, EndpointKind::Read] {
            let wanted = known
                .get(&kind)
                .and_then(|slice| updated(slice, route, endpoints(targets(route, kind), &pods)));
            let Some(wanted) = wanted else { continue };
            let name = endpoint_name(&self.instance, kind);
            let written = self.slices.replace(&name, &PostParams::default(), &wanted).await;
            let leads = written.is_ok();
            all.push((kind, written));
            if !leads {
                break;
            }
        }
        all
    }

    /// Publishes once more, over what was made of it.
    async fn look(&mut self, route: &Route, doing: &'static str) {
        let former = self.known.take();
        self.has_asked = false;
        match tokio::time::timeout(DEADLINE, self.publish(route, doing)).await {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => tracing::info!(%error, "endpoint slices not looked at"),
            Err(_) => tracing::info!(error = %late(doing), "endpoint slices not looked at"),
        }
        // It is this node's all the same, and silence brings back nothing. Nor does it make unknown
        // what was known: the next publication need not ask, and is refused where that is old.
        self.published = Some(route.clone());
        if !self.has_asked {
            self.known = former;
        }
    }

    /// Every instance with a lease leads writes; not every one has another way for reads.
    /// `read`: why that one is not what it should be.
    fn missing_slice(
        &self,
        route: &Route,
        known: &BTreeMap<EndpointKind, EndpointSlice>,
        read: Option<LeaseError>,
    ) -> Option<Missing> {
        let missing = |kind: EndpointKind, reason: String| {
            Some(Missing { route: route.clone(), kind, reason, at: Instant::now() })
        };
        let is_gone = |kind: EndpointKind| {
            let slice = endpoint_name(&self.instance, kind);
            missing(kind, format!("EndpointSlice {slice} is not there; `serve` makes it again"))
        };
        if !known.contains_key(&EndpointKind::Write) {
            return is_gone(EndpointKind::Write);
        }
        match read {
            Some(error) => {
                let slice = endpoint_name(&self.instance, EndpointKind::Read);
                missing(EndpointKind::Read, format!("EndpointSlice {slice}: {error}"))
            }
            None if self.has_reads
                && !route.read.is_empty()
                && !known.contains_key(&EndpointKind::Read) =>
            {
                is_gone(EndpointKind::Read)
            }
            None => None,
        }
    }

    /// Asks for the addresses of the pods that the route leads to.
    async fn learn_addresses(&mut self, route: &Route) {
        let others = (route.read.iter().chain(route.write.as_ref()))
            .map(|target| target.node.clone())
            .filter(|node| *node != self.own.0);
        let questions = others.map(|node| {
            let pods = self.pods.clone();
            async move {
                let pod = pods.get_opt(&pod_name(&node)).await;
                (node, pod)
            }
        });
        for (node, pod) in join_all(questions).await {
            // A pod that is not there has no address; one that cannot be asked for keeps its own.
            let ip = pod.map(|pod| pod.and_then(|pod| pod.status?.pod_ip));
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

impl Missing {
    fn error(&self, doing: &'static str) -> LeaseError {
        LeaseError::Unreachable { doing, reason: self.reason.clone() }
    }
}

/// When the slices were looked at last.
struct Looked(Instant);

impl Looked {
    /// Whether they are to be looked at now. What is published is looked at by that.
    fn is_due(&mut self, is_published: bool, is_missing: bool, now: Instant) -> bool {
        if !is_published {
            self.0 = now;
        }
        is_published && (is_missing || now.duration_since(self.0) >= LOOK)
    }
}

/// Puts back what somebody else has changed, for as long as this node's route is the newest.
async fn keep(inner: Arc<Mutex<Inner>>) {
    const DOING: &str = "looking at the endpoint slices";
    let mut looked = Looked(Instant::now());
    loop {
        tokio::time::sleep(LOOK_FOR_MISSING).await;
        let mut inner = inner.lock().await;
        let route = inner.published.clone();
        let is_due = looked.is_due(route.is_some(), inner.missing.is_some(), Instant::now());
        if let Some(route) = route.filter(|_| is_due) {
            inner.look(&route, DOING).await;
            looked = Looked(Instant::now());
        }
    }
}

fn late(doing: &'static str) -> LeaseError {
    LeaseError::Unreachable { doing, reason: format!("no end within {} ms", DEADLINE.as_millis()) }
}

#[cfg(test)]
mod tests;
