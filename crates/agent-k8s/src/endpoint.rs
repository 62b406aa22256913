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
use tokio::time::Instant;

use crate::error::said;
use crate::slices::{endpoints, route_of, targets, updated};

/// For all calls of one publication together. The loop has a lease to renew each second.
const DEADLINE: Duration = Duration::from_millis(700);
/// How often the holder looks whether its slices still are what it wrote.
const LOOK: Duration = Duration::from_secs(10);
/// And how often while one of them is not there. Only `serve` may make it.
const LOOK_FOR_MISSING: Duration = Duration::from_secs(1);
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
    /// A slice that has to be written was looked for in vain.
    missing: Option<Missing>,
}

/// The route that could not be published whole, which slice was not there or not to be written, and when.
struct Missing {
    route: Route,
    kind: EndpointKind,
    why: String,
    at: Instant,
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
            inner.refresh(DOING).await?;
            Ok(inner.route())
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
            self.inner.lock().await.publish(route, DOING).await
        });
        published.await.map_err(|_| late(DOING))?
    }
}

impl Inner {
    async fn refresh(&mut self, doing: &'static str) -> Result<(), LeaseError> {
        self.known = None;
        self.known = Some(self.ask(doing).await?);
        Ok(())
    }

    /// The slices that are there. One for reads that cannot be asked for is none: it must not hold up
    /// the one for writes.
    async fn ask(
        &self,
        doing: &'static str,
    ) -> Result<BTreeMap<EndpointKind, EndpointSlice>, LeaseError> {
        let get = |kind: EndpointKind| {
            let (slices, name) = (self.slices.clone(), endpoint_name(&self.instance, kind));
            async move {
                let slice = match slices.get_opt(&name).await {
                    Err(error) if kind == EndpointKind::Write => return Err(said(doing, &error)),
                    Err(error) => {
                        tracing::debug!(slice = name, %error, "not read");
                        None
                    }
                    Ok(slice) => slice,
                };
                Ok::<_, LeaseError>(slice.map(|slice| (kind, slice)))
            }
        };
        let known = try_join_all(KINDS.map(get)).await?;
        Ok(known.into_iter().flatten().collect())
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

    /// Publishes, and remembers what is published. Cancelled at any point it has published nothing
    /// that it knows of, and looks at the slices anew the next time.
    async fn publish(
        &mut self,
        route: &Route,
        doing: &'static str,
    ) -> Result<Option<Route>, LeaseError> {
        self.published = None;
        if let Some(missing) = &self.missing
            && missing.kind == EndpointKind::Write
            && missing.route == *route
            && missing.at.elapsed() < LOOK_FOR_MISSING
        {
            return Err(missing.error(doing));
        }
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
        for _ in 0..TRIES {
            let mut known = match seen.take() {
                Some(known) => known,
                None => self.ask(doing).await?,
            };
            let newest = known.values().filter_map(route_of).max_by_key(|there| there.epoch);
            if let Some(newer) = newest.filter(|there| there.epoch > route.epoch) {
                self.known = Some(known);
                return Ok(Some(newer));
            }
            let mut pods = self.addresses.clone();
            pods.insert(self.own.0.clone(), self.own.1);
            let mut conflict = false;
            let mut refused = None;
            // Writes first: kube-proxy takes the first change up at once and rests for a second
            // before the next.
            for kind in KINDS {
                let Some(slice) = known.get(&kind) else { continue };
                let Some(wanted) = updated(slice, route, endpoints(targets(route, kind), &pods))
                else {
                    continue;
                };
                let name = endpoint_name(&self.instance, kind);
                match self.slices.replace(&name, &PostParams::default(), &wanted).await {
                    Ok(slice) => {
                        known.insert(kind, slice);
                    }
                    Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                        conflict = true;
                        break;
                    }
                    Err(error) if kind == EndpointKind::Write => return Err(said(doing, &error)),
                    Err(error) => refused = Some(said(doing, &error).to_string()),
                }
            }
            if conflict {
                continue;
            }
            // What is there leads right; what is not leads nobody. For writes that is no success; a
            // way for reads that is gone, or cannot be written, must not hold up the one for writes.
            let former = self.missing.take();
            self.missing = self.missing_slice(route, &known, refused);
            if let Some(missing) = &self.missing {
                if missing.kind == EndpointKind::Write {
                    return Err(missing.error(doing));
                }
                if former.is_none_or(|former| former.why != missing.why) {
                    tracing::warn!(error = %missing.error(doing), "reads are led nowhere new");
                }
            }
            self.known = Some(known);
            return Ok(None);
        }
        Err(LeaseError::Conflict)
    }

    /// Publishes once more, over what was made of it.
    async fn look(&mut self, route: &Route, doing: &'static str) {
        self.known = None;
        let former = self.missing.take();
        match tokio::time::timeout(DEADLINE, self.publish(route, doing)).await {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => tracing::info!(%error, "endpoint slices not looked at"),
            Err(_) => tracing::info!(error = %late(doing), "endpoint slices not looked at"),
        }
        // It is this node's all the same, and silence brings back nothing.
        self.published = Some(route.clone());
        self.missing = self.missing.take().or(former);
    }

    /// Every instance with a lease leads writes; only one with replicas has another way for reads.
    fn missing_slice(
        &self,
        route: &Route,
        known: &BTreeMap<EndpointKind, EndpointSlice>,
        refused: Option<String>,
    ) -> Option<Missing> {
        let is_needed = |kind: &EndpointKind| match kind {
            EndpointKind::Write => true,
            _ => !route.read.is_empty(),
        };
        let gone = KINDS.into_iter().filter(is_needed).find(|kind| !known.contains_key(kind));
        let (kind, why) = match (gone, refused) {
            (Some(kind), _) => {
                let slice = endpoint_name(&self.instance, kind);
                (kind, format!("EndpointSlice {slice} is not there; `serve` makes it again"))
            }
            (None, Some(why)) => (EndpointKind::Read, why),
            (None, None) => return None,
        };
        Some(Missing { route: route.clone(), kind, why, at: Instant::now() })
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
        LeaseError::Unreachable { doing, reason: self.why.clone() }
    }
}

/// Puts back what somebody else has changed, for as long as this node's route is the newest.
async fn keep(inner: Arc<Mutex<Inner>>) {
    const DOING: &str = "looking at the endpoint slices";
    let mut looked_at = Instant::now();
    loop {
        tokio::time::sleep(LOOK_FOR_MISSING).await;
        let mut inner = inner.lock().await;
        let Some(route) = inner.published.clone() else {
            // The first look comes a while after the publication, which has looked itself.
            looked_at = Instant::now();
            continue;
        };
        if inner.missing.is_some() || looked_at.elapsed() >= LOOK {
            inner.look(&route, DOING).await;
            looked_at = Instant::now();
        }
    }
}

fn late(doing: &'static str) -> LeaseError {
    LeaseError::Unreachable { doing, reason: format!("no end within {} ms", DEADLINE.as_millis()) }
}

#[cfg(test)]
mod tests {
    use larder_model::Address;
    use larder_model::lease::RouteTarget;
    use serde_json::{Value, json};

    use super::*;
    use crate::fake::{Fake, touch};

    const WRITE: &str = "endpointslices/i-1-write";
    const READ: &str = "endpointslices/i-1-read";

    fn node(id: &str) -> NodeId {
        NodeId::new(id).expect("valid")
    }

    fn target(id: &str) -> RouteTarget {
        RouteTarget { node: node(id), address: Address::new("10.0.0.1", 6379) }
    }

    fn route(epoch: u64) -> Route {
        let (write, read) = (Some(target("n-1")), vec![target("n-2")]);
        Route { epoch, write, read, hold: false }
    }

    fn empty() -> Value {
        json!({ "addressType": "IPv4", "endpoints": [] })
    }

    /// Two empty slices, and a replica in a pod.
    fn fake() -> Fake {
        let fake = Fake::default();
        fake.put(WRITE, empty());
        fake.put(READ, empty());
        fake.put("pods/n-2-0", json!({ "status": { "podIP": "10.1.0.2" } }));
        fake
    }

    fn endpoint(fake: &Fake) -> KubeEndpoint {
        let ip = "10.1.0.1".parse().expect("ip");
        let instance = InstanceId::new("i-1").expect("valid");
        KubeEndpoint::new(fake.client(), "larder", instance, node("n-1"), ip)
    }

    fn leads_to(fake: &Fake, slice: &str) -> Vec<String> {
        let all = fake.get(slice)["endpoints"].as_array().cloned().unwrap_or_default();
        let address = |one: &Value| one["addresses"][0].as_str().map(str::to_owned);
        all.iter().filter_map(address).collect()
    }

    #[tokio::test]
    async fn a_route_leads_to_pods_and_is_written_once() {
        let fake = fake();
        let mut endpoint = endpoint(&fake);
        assert_eq!(endpoint.publish(&route(3)).await.expect("published"), None);
        assert_eq!(leads_to(&fake, WRITE), ["10.1.0.1"]);
        assert_eq!(leads_to(&fake, READ), ["10.1.0.2"]);
        fake.asked();
        assert_eq!(endpoint.publish(&route(3)).await.expect("published"), None);
        assert!(!fake.asked().iter().any(|asked| asked.starts_with("PUT")));
        assert_eq!(endpoint.read().await.expect("read"), Some(route(3)));
    }

    #[tokio::test]
    async fn a_newer_epoch_is_never_written_over() {
        let fake = fake();
        let (mut old, mut new) = (endpoint(&fake), endpoint(&fake));
        old.publish(&route(3)).await.expect("published");
        new.publish(&route(4)).await.expect("published");
        let alone = Route { read: Vec::new(), ..route(3) };
        assert_eq!(old.publish(&alone).await.expect("told"), Some(route(4)));
        // And when it comes between a look and the write.
        let newer = fake.get(WRITE);
        fake.put(WRITE, empty());
        fake.put(READ, empty());
        fake.meddles(move |all| {
            let slice = all.get_mut(WRITE).expect("there");
            *slice = newer;
            slice["metadata"]["resourceVersion"] = json!("9");
        });
        let mut late = endpoint(&fake);
        assert_eq!(late.publish(&route(3)).await.expect("told"), Some(route(4)));
        assert_eq!(fake.get(WRITE)["metadata"]["resourceVersion"], "9");
    }

    #[tokio::test]
    async fn what_somebody_else_touches_is_read_again_and_written() {
        let fake = fake();
        let mut endpoint = endpoint(&fake);
        endpoint.publish(&route(3)).await.expect("published");
        fake.meddles(|all| touch(all.get_mut(WRITE).expect("there")));
        endpoint.publish(&route(4)).await.expect("published");
        assert_eq!(endpoint.read().await.expect("read"), Some(route(4)));
    }

    #[tokio::test]
    async fn the_holder_puts_back_what_was_made_of_its_slices() {
        let fake = fake();
        let mut endpoint = endpoint(&fake);
        endpoint.publish(&route(3)).await.expect("published");
        fake.put(WRITE, empty());
        let mut inner = endpoint.inner.lock().await;
        inner.look(&route(3), "looking").await;
        assert_eq!(leads_to(&fake, WRITE), ["10.1.0.1"]);
        assert_eq!(inner.published, Some(route(3)));
        fake.fails("GET endpointslices", 500);
        inner.look(&route(3), "looking").await;
        assert_eq!(inner.published, Some(route(3)), "silence takes nothing away");
    }

    #[tokio::test]
    async fn a_route_without_its_slice_is_not_published() {
        let fake = fake();
        let mut endpoint = endpoint(&fake);
        fake.delete(WRITE);
        let error = endpoint.publish(&route(3)).await.expect_err("it leads nowhere");
        assert!(error.to_string().contains("i-1-write is not there"), "{error}");
        fake.asked();
        assert!(endpoint.publish(&route(3)).await.is_err());
        assert!(fake.asked().is_empty(), "it is not asked for ten times a second");
        fake.put(WRITE, empty());
        tokio::time::sleep(LOOK_FOR_MISSING).await;
        assert_eq!(endpoint.publish(&route(3)).await.expect("published"), None);
        assert_eq!(leads_to(&fake, WRITE), ["10.1.0.1"]);
        // One that goes later is looked for more often, until it is there again.
        fake.delete(READ);
        let mut inner = endpoint.inner.lock().await;
        inner.look(&route(3), "looking").await;
        assert!(inner.missing.is_some());
        fake.fails("GET endpointslices", 500);
        inner.look(&route(3), "looking").await;
        assert!(inner.missing.is_some(), "silence brings back nothing");
        fake.put(READ, empty());
        inner.look(&route(3), "looking").await;
        assert!(inner.missing.is_none());
        assert_eq!(leads_to(&fake, READ), ["10.1.0.2"]);
    }

    /// kube-proxy takes the first change up at once and rests for a second before the next.
    #[tokio::test]
    async fn reads_are_led_once_writes_are() {
        let fake = fake();
        let mut endpoint = endpoint(&fake);
        let puts = || fake.asked().into_iter().filter(|asked| asked.starts_with("PUT"));
        let (write, read) = (format!("PUT {WRITE}"), format!("PUT {READ}"));
        // Not answered in time.
        fake.fails(&write, 0);
        assert!(endpoint.publish(&route(3)).await.is_err());
        assert_eq!(puts().collect::<Vec<_>>(), [write.as_str()]);
        endpoint.publish(&route(3)).await.expect("published");
        assert_eq!(puts().collect::<Vec<_>>(), [write, read]);
    }

    #[tokio::test]
    async fn a_way_for_reads_that_cannot_be_read_or_written_holds_up_nothing() {
        for (call, code) in [("PUT", 422), ("GET", 403)] {
            let fake = fake();
            let mut endpoint = endpoint(&fake);
            fake.fails(&format!("{call} {READ}"), code);
            assert_eq!(endpoint.publish(&route(3)).await.expect("published"), None);
            assert_eq!(leads_to(&fake, WRITE), ["10.1.0.1"], "{call} {code}");
            let mut inner = endpoint.inner.lock().await;
            assert_eq!(inner.published, Some(route(3)), "it is defended");
            assert!(inner.missing.is_some(), "it is tried again each second");
            inner.look(&route(3), "looking").await;
            assert!(inner.missing.is_none(), "{call} {code}");
            assert_eq!(leads_to(&fake, READ), ["10.1.0.2"]);
        }
    }

    /// Only `serve` makes slices, and a failover waits for no `serve`.
    #[tokio::test]
    async fn a_way_for_reads_that_is_gone_does_not_hold_up_the_one_for_writes() {
        let fake = fake();
        let mut endpoint = endpoint(&fake);
        fake.delete(READ);
        assert_eq!(endpoint.publish(&route(3)).await.expect("published"), None);
        assert_eq!(leads_to(&fake, WRITE), ["10.1.0.1"]);
        assert_eq!(endpoint.inner.lock().await.published, Some(route(3)), "it is defended");
        // The keeper looks for what is missing, and not only every ten seconds.
        fake.put(READ, empty());
        let deadline = Instant::now() + LOOK / 2;
        while leads_to(&fake, READ).is_empty() {
            assert!(Instant::now() < deadline, "reads lead nowhere");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn nobody_is_led_to_a_pod_that_is_gone_and_unknown_is_not_gone() {
        let fake = fake();
        let mut endpoint = endpoint(&fake);
        endpoint.publish(&route(3)).await.expect("published");
        fake.fails("GET pods", 500);
        endpoint.publish(&route(4)).await.expect("published");
        assert_eq!(leads_to(&fake, READ), ["10.1.0.2"], "nobody said that it is gone");
        fake.delete("pods/n-2-0");
        endpoint.publish(&route(5)).await.expect("published");
        assert!(leads_to(&fake, READ).is_empty(), "{:?}", fake.get(READ));
    }

    #[tokio::test]
    async fn a_publication_waits_for_nobody_longer_than_for_itself() {
        let fake = fake();
        let mut endpoint = endpoint(&fake);
        let inner = Arc::clone(&endpoint.inner);
        let _held = inner.lock().await;
        let begin = Instant::now();
        assert!(endpoint.publish(&route(3)).await.is_err());
        assert!(endpoint.read().await.is_err());
        let took = begin.elapsed();
        // Else for as long as it is held.
        assert!(took < 2 * DEADLINE + Duration::from_secs(5), "it took {took:?}");
    }

    #[tokio::test]
    async fn a_publication_that_ran_out_of_time_looks_again() {
        let fake = fake();
        let mut endpoint = endpoint(&fake);
        endpoint.publish(&route(3)).await.expect("published");
        fake.fails("PUT", 0);
        assert!(endpoint.publish(&route(4)).await.is_err());
        fake.asked();
        endpoint.publish(&route(4)).await.expect("published");
        assert!(fake.asked().contains(&format!("GET {WRITE}")));
        assert_eq!(endpoint.read().await.expect("read"), Some(route(4)));
    }
}
