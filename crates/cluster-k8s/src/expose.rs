//! Ways from outside: what a Service offers to clients outside, and how many node ports are left.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use kube::api::{ListParams, ObjectMeta};
use kube::{Api, ResourceExt};
use larder_cluster::{ClusterError, NodeExposure};
use larder_model::agent::Fence;
use larder_model::kube::{BUS_PORT, LABEL_OUTER, SERVER_PORT};
use larder_model::{
    Address, Architecture, Code, Expose, Exposed, InstanceSpec, OuterAddress, Refusal, Worker,
    WorkerState,
};

use crate::apply;
use crate::cluster::KubeCluster;
use crate::connect::COUNT_NODE_PORTS;
use crate::error::refused;
use crate::objects;

/// Kubernetes' own default (`--service-node-port-range`); the API does not say another one.
const NODE_PORTS: RangeInclusive<u32> = 30_000..=32_767;

/// What is known of the outside when endpoints are looked at.
pub(crate) struct Outside<'a> {
    pub(crate) workers: &'a [Worker],
    /// What leads to every worker, if somebody has said so.
    pub(crate) address: Option<&'a str>,
}

/// Where clients connect, by what the Service says.
pub(crate) struct Place {
    pub(crate) address: Address,
    pub(crate) inner: Option<Address>,
    pub(crate) pending: bool,
}

impl KubeCluster {
    /// See [`larder_cluster::Cluster::expose_node`].
    pub(crate) async fn open_node(
        &self,
        fence: Fence,
        wish: &NodeExposure,
    ) -> Result<Option<OuterAddress>, ClusterError> {
        let (place, options) = (&*self.place, &self.place.options);
        self.refuse_when_leaving(&wish.instance, &wish.node).await?;
        place.fence(&wish.instance, fence, true).await?;
        let service = place.apply(&objects::outer_service(options, wish)).await;
        let service: Service = place.foreseen(service).await?;
        let Exposed::Yes(outer) = exposed(&service, options.outer_address.as_deref()) else {
            return Ok(None);
        };
        if let (Some(host), Some(_)) = (&outer.host, outer.bus_port)
            && host.parse::<IpAddr>().is_err()
        {
            let detail = format!(
                "the load balancer gives node {} the name {host}, and a server of {} can announce \
                 nothing but IP addresses: use an engine of 7.0 or later, or node-port",
                wish.node, wish.engine
            );
            return Err(refused(Code::InvalidRequest, detail));
        }
        // What it announces to clients it announces to the others as well: it has to hold inside.
        let port = objects::inner_port(Some(&outer));
        let address = Some(wish.address.host.as_str());
        let service = objects::node_service(options, &wish.instance, &wish.node, address, port);
        place.apply::<Service>(&service).await?;
        Ok(Some(outer))
    }

    /// Whether the node ports that the instance needs are left. Nobody reserves them.
    ///
    /// # Errors
    /// `no-free-port`, with the numbers. A cluster that does not say how many are taken is not
    /// known to be full.
    pub async fn check_node_ports(&self, spec: &InstanceSpec) -> Result<(), Refusal> {
        let needed = node_ports(spec, self.place.options.expose);
        if needed == 0 {
            return Ok(());
        }
        let (everywhere, services) = match self.place.countable_services().await {
            Ok(counted) => counted,
            Err(error) => {
                tracing::warn!(%error, "node ports not counted");
                return Ok(());
            }
        };
        let range = NODE_PORTS.count();
        let free = range.saturating_sub(services.iter().map(taken).sum());
        if needed <= free {
            return Ok(());
        }
        let mut detail = format!(
            "the instance needs {needed} node ports, and {free} of the {range} of container \
             cluster `{}` are free: create it with `--expose cluster-ip`, or remove what is not \
             used any more",
            self.place.options.name
        );
        if !everywhere {
            let why = COUNT_NODE_PORTS.missing(self.place.options.reach);
            detail.push_str(&format!(" (others' were not counted: {why})"));
        }
        Err(Refusal::new(Code::NoFreePort, detail).field("expose"))
    }
}

impl apply::Place {
    /// The Services whose node ports can be counted, and whether they are those of all namespaces.
    async fn countable_services(&self) -> Result<(bool, Vec<Service>), ClusterError> {
        let everywhere = self.may_also(&COUNT_NODE_PORTS).await?;
        let api: Api<Service> = match everywhere {
            true => Api::all(self.client.clone()),
            // Our own are better than nothing.
            false => self.api(),
        };
        let all = ListParams::default();
        let list = self.ask("counting node ports", api.list(&all)).await?;
        Ok((everywhere, list.items))
    }

    /// A refusal for want of node ports says why nobody saw it coming.
    pub(crate) async fn foreseen<T>(
        &self,
        result: Result<T, ClusterError>,
    ) -> Result<T, ClusterError> {
        match result {
            Err(ClusterError::Refused(mut refusal)) if refusal.code == Code::NoFreePort => {
                if let Ok(false) = self.may_also(&COUNT_NODE_PORTS).await {
                    let why = COUNT_NODE_PORTS.missing(self.options.reach);
                    refusal.detail.push_str(&format!(" (they were not counted before: {why})"));
                }
                Err(ClusterError::Refused(refusal))
            }
            other => other,
        }
    }
}

/// How many node ports the Services of an instance take.
fn node_ports(spec: &InstanceSpec, by_itself: Expose) -> usize {
    let way = spec.expose.unwrap_or(by_itself);
    let endpoints = spec.architecture.endpoints().len();
    let nodes = match spec.architecture {
        Architecture::Cluster => spec.node_count() as usize,
        Architecture::Standalone | Architecture::ReadWrite => 0,
    };
    let ports = if objects::announces_only_addresses(&spec.engine) { 2 } else { 1 };
    match way {
        Expose::ClusterIp => 0,
        Expose::NodePort => endpoints + nodes * ports,
        // Kubernetes gives each of a load balancer's ports a node port, and one for the
        // balancer's question where the pod is.
        Expose::LoadBalancer => endpoints + nodes * (ports + 1),
    }
}

fn taken(service: &Service) -> usize {
    let Some(spec) = &service.spec else { return 0 };
    let ports = spec.ports.iter().flatten().filter(|port| port.node_port.is_some_and(|p| p > 0));
    let health = usize::from(spec.health_check_node_port.is_some_and(|port| port > 0));
    ports.count() + health
}

/// The Service is a node's way from outside, not its own address.
pub(crate) fn is_outer(service: &ObjectMeta) -> bool {
    service.labels.as_ref().is_some_and(|labels| labels.contains_key(LABEL_OUTER))
}

/// The node's way from outside as the Service has it.
pub(crate) fn exposed(service: &Service, outer_address: Option<&str>) -> Exposed {
    let has_bus = port(service, "bus").is_some();
    let outer = match way(service) {
        Expose::ClusterIp => return Exposed::No,
        Expose::NodePort => node_port(service, "redis").map(|port| OuterAddress {
            // An old server cannot announce a name, nor gossip through any worker.
            host: outer_address.filter(|_| !has_bus).map(str::to_owned),
            port,
            bus_port: node_port(service, "bus"),
        }),
        Expose::LoadBalancer => ingress(service).map(|host| OuterAddress {
            host: Some(host),
            port: SERVER_PORT,
            bus_port: has_bus.then_some(BUS_PORT),
        }),
    };
    outer.map_or(Exposed::Pending, Exposed::Yes)
}

/// Where clients reach the Service of an endpoint, and where those inside do.
pub(crate) fn endpoint_place(service: &Service, inner: Address, outside: &Outside<'_>) -> Place {
    let outer = match way(service) {
        Expose::ClusterIp => return Place { address: inner, inner: None, pending: false },
        Expose::NodePort => node_port(service, "redis").and_then(|port| {
            let name = service.name_any();
            let host = match outside.address {
                Some(host) => host,
                None => worker_for(&name, outside.workers)?.address.as_deref()?,
            };
            Some(Address::new(host, port))
        }),
        Expose::LoadBalancer => ingress(service).map(|host| Address::new(host, SERVER_PORT)),
    };
    match outer {
        Some(address) => Place { address, inner: Some(inner), pending: false },
        None => Place { address: inner, inner: None, pending: true },
    }
}

/// The Service's node port.
pub(crate) fn node_port(service: &Service, name: &str) -> Option<u16> {
    u16::try_from(port(service, name)?.node_port?).ok()
}

/// An endpoint whose clients are told a worker's own address.
pub(crate) fn is_at_a_worker(service: &Service) -> bool {
    way(service) == Expose::NodePort
}

/// The worker whose address stands for the Service: the same one as long as it is well, others
/// for other Services (rendezvous hashing, so that a worker's loss moves only what was there).
fn worker_for<'a>(name: &str, workers: &'a [Worker]) -> Option<&'a Worker> {
    let of = |state: WorkerState| {
        workers
            .iter()
            .filter(|worker| worker.state == state && worker.address.is_some())
            .max_by_key(|worker| (weight(name, worker.name.as_str()), worker.name.as_str()))
    };
    of(WorkerState::Ready).or_else(|| of(WorkerState::Cordoned))
}

/// FNV-1a: the same in every version of Larder.
fn weight(name: &str, worker: &str) -> u64 {
    let bytes = name.bytes().chain([0]).chain(worker.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn way(service: &Service) -> Expose {
    match service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) {
        Some("NodePort") => Expose::NodePort,
        Some("LoadBalancer") => Expose::LoadBalancer,
        _ => Expose::ClusterIp,
    }
}

fn port<'a>(service: &'a Service, name: &str) -> Option<&'a ServicePort> {
    let ports = service.spec.as_ref()?.ports.as_ref()?;
    ports.iter().find(|port| port.name.as_deref() == Some(name))
}

fn ingress(service: &Service) -> Option<String> {
    let ingress = service.status.as_ref()?.load_balancer.as_ref()?.ingress.as_ref()?.first()?;
    ingress.ip.clone().or_else(|| ingress.hostname.clone())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use hyper::{Request, Response};
    use kube::Client;
    use kube::client::Body;
    use larder_model::{
        ByteSize, EngineName, InstanceId, InstanceName, ProjectName, STANDARD_STORAGE_CLASS,
        WorkerName,
    };
    use serde_json::json;

    use super::*;
    use crate::options::KubeOptions;

    /// What is asked for, by the answer to whether Services of all namespaces may be listed.
    async fn services_asked_for(allowed: Option<bool>) -> (Vec<String>, Option<bool>) {
        let asked = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let heard = asked.clone();
        let server = tower::service_fn(move |request: Request<Body>| {
            let path = request.uri().path().to_owned();
            let (code, body) = match (path.contains("accessreviews"), allowed) {
                (false, _) => (200, json!({ "metadata": {}, "items": [] })),
                (true, Some(allowed)) => {
                    (201, json!({ "metadata": {}, "spec": {}, "status": { "allowed": allowed } }))
                }
                (true, None) => (500, json!({ "status": "Failure", "code": 500, "message": "no" })),
            };
            heard.lock().expect("no panic").push(path);
            let mut response = Response::new(Body::from(body.to_string().into_bytes()));
            *response.status_mut() = hyper::StatusCode::from_u16(code).expect("a status");
            std::future::ready(Ok::<_, std::io::Error>(response))
        });
        let options = KubeOptions::new("east", "larder", "b-1");
        let place = crate::apply::Place::new(Client::new(server, "larder"), options);
        let counted = place.countable_services().await.ok().map(|(everywhere, _)| everywhere);
        let asked = asked.lock().expect("no panic").clone();
        (asked, counted)
    }

    #[tokio::test]
    async fn only_a_missing_right_is_a_reason_to_look_at_our_own_services_alone() {
        let (asked, counted) = services_asked_for(Some(true)).await;
        assert_eq!(
            (asked[1..].to_vec(), counted),
            (vec!["/api/v1/services".to_owned()], Some(true))
        );
        let (asked, counted) = services_asked_for(Some(false)).await;
        assert_eq!(asked[1..], ["/api/v1/namespaces/larder/services"]);
        assert_eq!(counted, Some(false));
        let (asked, counted) = services_asked_for(None).await;
        assert_eq!((asked.len(), counted), (1, None), "a busy API server is not asked for more");
    }

    fn service(spec: serde_json::Value, status: serde_json::Value) -> Service {
        let metadata = json!({ "name": "i-shop-write" });
        serde_json::from_value(json!({ "metadata": metadata, "spec": spec, "status": status }))
            .expect("a Service")
    }

    fn worker(name: &str, state: WorkerState) -> Worker {
        Worker {
            name: WorkerName::new(name).expect("valid"),
            zone: None,
            address: Some(format!("address-of-{name}")),
            state,
            allocatable: ByteSize::gib(1),
            requested: ByteSize(0),
        }
    }

    fn node_port_service() -> Service {
        let ports = json!([{ "name": "redis", "port": 6379, "nodePort": 31_000 }]);
        service(json!({ "type": "NodePort", "ports": ports }), json!({}))
    }

    #[test]
    fn an_endpoint_at_a_worker_leaves_it_only_with_the_workers_health() {
        let mut workers: Vec<_> =
            ["w1", "w2", "w3"].map(|name| worker(name, WorkerState::Ready)).into();
        let inner = Address::new("10.101.0.7", 6379);
        let host = |workers: &[Worker]| {
            let outside = Outside { workers, address: None };
            endpoint_place(&node_port_service(), inner.clone(), &outside).address.host
        };
        let first = host(&workers);
        let chosen = workers.iter().position(|w| w.address.as_ref() == Some(&first));
        let chosen = chosen.expect("one of them");
        workers[chosen].state = WorkerState::Unreachable;
        let second = host(&workers);
        assert_ne!(second, first);
        workers.reverse();
        assert_eq!(host(&workers), second, "whatever their order");
        workers.iter_mut().for_each(|w| w.state = WorkerState::Ready);
        assert_eq!(host(&workers), first);
        let outside = Outside { workers: &[], address: None };
        assert!(endpoint_place(&node_port_service(), inner.clone(), &outside).pending);
        let outside = Outside { workers: &[], address: Some("redis.example") };
        let place = endpoint_place(&node_port_service(), inner.clone(), &outside);
        assert_eq!(place.address, Address::new("redis.example", 31_000));
        assert_eq!(place.inner, Some(inner));
    }

    #[test]
    fn a_load_balancer_without_an_address_is_pending() {
        let ports = json!([{ "name": "redis", "port": 6379 }, { "name": "bus", "port": 16_379 }]);
        let spec = json!({ "type": "LoadBalancer", "ports": ports });
        assert_eq!(exposed(&service(spec.clone(), json!({})), None), Exposed::Pending);
        let status = json!({ "loadBalancer": { "ingress": [{ "ip": "10.102.0.3" }] } });
        let outer = OuterAddress {
            host: Some("10.102.0.3".to_owned()),
            port: 6379,
            bus_port: Some(16_379),
        };
        assert_eq!(exposed(&service(spec, status), None), Exposed::Yes(outer));
    }

    #[test]
    fn only_servers_that_keep_gossip_inside_announce_a_configured_address() {
        let at = |bus: bool| {
            let mut ports = vec![json!({ "name": "redis", "port": 6379, "nodePort": 31_000 })];
            if bus {
                ports.push(json!({ "name": "bus", "port": 16_379, "nodePort": 31_001 }));
            }
            let service = service(json!({ "type": "NodePort", "ports": ports }), json!({}));
            exposed(&service, Some("redis.example"))
        };
        let host = Some("redis.example".to_owned());
        let new = OuterAddress { host, port: 31_000, bus_port: None };
        assert_eq!(at(false), Exposed::Yes(new));
        let old = OuterAddress { host: None, port: 31_000, bus_port: Some(31_001) };
        assert_eq!(at(true), Exposed::Yes(old));
    }

    #[test]
    fn node_ports_are_counted_as_kubernetes_takes_them() {
        let spec = |engine: &str, architecture, shards, replicas, expose| InstanceSpec {
            parameters: std::collections::BTreeMap::new(),
            parameters_revision: 0,
            parameters_refused: None,
            revision: 0,
            id: InstanceId::new("i-1").expect("valid"),
            name: InstanceName::new("one").expect("valid"),
            project: ProjectName::new("default").expect("valid"),
            description: String::new(),
            tags: BTreeMap::new(),
            architecture,
            engine: EngineName::new(engine).expect("valid"),
            memory: ByteSize::mib(128),
            shards,
            replicas,
            chained: false,
            container_cluster: "east".to_owned(),
            storage_class: STANDARD_STORAGE_CLASS.to_owned(),
            expose,
        };
        use Architecture::{Cluster, ReadWrite};
        for (engine, architecture, shards, replicas, expose, ports) in [
            ("redis-7.0", ReadWrite, 1, 2, Some(Expose::ClusterIp), 0),
            ("redis-7.0", ReadWrite, 1, 2, None, 2),
            ("redis-7.0", Cluster, 3, 2, Some(Expose::NodePort), 7),
            ("redis-6.2", Cluster, 3, 2, Some(Expose::NodePort), 13),
            ("valkey-8.0", Cluster, 3, 2, Some(Expose::LoadBalancer), 13),
        ] {
            let spec = spec(engine, architecture, shards, replicas, expose);
            assert_eq!(node_ports(&spec, Expose::NodePort), ports, "{engine} {architecture}");
        }
        let ports = json!([{ "name": "redis", "port": 6379, "nodePort": 31_000 }]);
        let spec = json!({ "type": "LoadBalancer", "ports": ports, "healthCheckNodePort": 31_001 });
        assert_eq!(taken(&service(spec, json!({}))), 2);
    }
}
