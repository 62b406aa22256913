//! What a route is as EndpointSlices: pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use kube::ResourceExt;
use larder_model::kube::{ANNOTATION_ROUTE, pod_name};
use larder_model::lease::{Route, RouteTarget};
use larder_model::{EndpointKind, NodeId};

/// The route that a slice was written for; `None` when there is none, or nothing that can be
/// understood: such a slice is replaced.
pub(crate) fn route_of(slice: &EndpointSlice) -> Option<Route> {
    let text = slice.annotations().get(ANNOTATION_ROUTE)?;
    serde_json::from_str(text).ok()
}

/// The servers behind an endpoint of this kind. Without replicas reads go to the primary.
pub(crate) fn targets(route: &Route, kind: EndpointKind) -> &[RouteTarget] {
    match kind {
        EndpointKind::Read if !route.read.is_empty() => &route.read,
        EndpointKind::Read | EndpointKind::Write => route.write.as_slice(),
        // Other endpoints have selectors; nobody writes their slices.
        _ => &[],
    }
}

/// The endpoints of a slice. A server whose pod has no address just now is left out.
pub(crate) fn endpoints(targets: &[RouteTarget], pods: &BTreeMap<NodeId, IpAddr>) -> Vec<Endpoint> {
    let endpoint = |target: &RouteTarget| {
        let ip = pods.get(&target.node)?;
        Some(Endpoint {
            addresses: vec![ip.to_string()],
            conditions: Some(EndpointConditions { ready: Some(true), ..Default::default() }),
            target_ref: Some(ObjectReference {
                kind: Some("Pod".to_owned()),
                name: Some(pod_name(&target.node)),
                ..ObjectReference::default()
            }),
            ..Endpoint::default()
        })
    };
    targets.iter().filter_map(endpoint).collect()
}

/// The slice as the route wants it; `None` when it is that already.
pub(crate) fn updated(
    slice: &EndpointSlice,
    route: &Route,
    endpoints: Vec<Endpoint>,
) -> Option<EndpointSlice> {
    let leads = |endpoints: &[Endpoint]| -> Vec<_> {
        endpoints
            .iter()
            .map(|e| (e.addresses.clone(), e.target_ref.as_ref().and_then(|r| r.name.clone())))
            .collect()
    };
    if route_of(slice).as_ref() == Some(route) && leads(&slice.endpoints) == leads(&endpoints) {
        return None;
    }
    let text = serde_json::to_string(route).expect("a route is plain data");
    let mut slice = slice.clone();
    slice.annotations_mut().insert(ANNOTATION_ROUTE.to_owned(), text);
    slice.endpoints = endpoints;
    Some(slice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::Address;

    fn node(id: &str) -> NodeId {
        NodeId::new(id).expect("valid")
    }

    fn target(id: &str) -> RouteTarget {
        RouteTarget { node: node(id), address: Address::new("10.0.0.1", 6379) }
    }

    fn route(read: &[&str]) -> Route {
        Route {
            epoch: 3,
            write: Some(target("n-1")),
            read: read.iter().map(|id| target(id)).collect(),
            hold: false,
        }
    }

    fn pods() -> BTreeMap<NodeId, IpAddr> {
        let ip = |text: &str| text.parse().expect("ip");
        BTreeMap::from([(node("n-1"), ip("10.1.0.1")), (node("n-2"), ip("10.1.0.2"))])
    }

    fn addresses(endpoints: &[Endpoint]) -> Vec<&str> {
        endpoints.iter().flat_map(|e| e.addresses.iter().map(String::as_str)).collect()
    }

    #[test]
    fn endpoints_are_pods_and_not_the_addresses_of_services() {
        let route = route(&["n-2"]);
        let write = endpoints(targets(&route, EndpointKind::Write), &pods());
        assert_eq!(addresses(&write), ["10.1.0.1"]);
        let read = endpoints(targets(&route, EndpointKind::Read), &pods());
        assert_eq!(addresses(&read), ["10.1.0.2"]);
    }

    #[test]
    fn reads_go_to_the_primary_when_there_is_no_replica() {
        let route = route(&[]);
        let read = endpoints(targets(&route, EndpointKind::Read), &pods());
        assert_eq!(addresses(&read), ["10.1.0.1"]);
    }

    #[test]
    fn a_server_without_a_pod_address_is_left_out() {
        let route = route(&["n-2", "n-3"]);
        let read = endpoints(targets(&route, EndpointKind::Read), &pods());
        assert_eq!(addresses(&read), ["10.1.0.2"]);
    }

    #[test]
    fn a_slice_that_is_right_is_not_written_and_one_with_another_pod_is() {
        let route = route(&["n-2"]);
        let wanted = || endpoints(targets(&route, EndpointKind::Write), &pods());
        let slice = updated(&EndpointSlice::default(), &route, wanted()).expect("changed");
        assert_eq!(route_of(&slice).as_ref(), Some(&route));
        assert!(updated(&slice, &route, wanted()).is_none());
        let mut moved = pods();
        moved.insert(node("n-1"), "10.1.9.9".parse().expect("ip"));
        let wanted = endpoints(targets(&route, EndpointKind::Write), &moved);
        assert!(updated(&slice, &route, wanted).is_some());
    }
}
