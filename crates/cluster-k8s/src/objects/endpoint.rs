//! Where clients connect.

use larder_model::kube::{
    LABEL_ENDPOINT, LABEL_INSTANCE, LABEL_MANAGED, LABEL_OWNER, MANAGED_BY, SERVER_PORT,
    endpoint_name,
};
use larder_model::{EndpointKind, Expose, InstanceId};
use serde_json::{Map, Value, json};

use super::labels;
use crate::options::KubeOptions;

/// The endpoints whose slices the lease's holder writes have no selector.
pub(crate) fn is_led(kind: EndpointKind) -> bool {
    matches!(kind, EndpointKind::Write | EndpointKind::Read)
}

fn endpoint_labels(
    options: &KubeOptions,
    instance: &InstanceId,
    kind: EndpointKind,
) -> Map<String, Value> {
    let mut labels = labels(options, instance);
    labels.insert(LABEL_ENDPOINT.to_owned(), json!(kind.as_str()));
    labels
}

/// What an endpoint's Service has had: it never changes.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) address: Option<String>,
    pub(crate) node_port: Option<u16>,
}

/// The Service of an endpoint.
pub(crate) fn endpoint_service(
    options: &KubeOptions,
    instance: &InstanceId,
    kind: EndpointKind,
    way: Expose,
    kept: &Kept,
) -> Value {
    let service_type = match way {
        Expose::ClusterIp => "ClusterIP",
        Expose::NodePort => "NodePort",
        Expose::LoadBalancer => "LoadBalancer",
    };
    let mut service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": endpoint_name(instance, kind),
            "labels": endpoint_labels(options, instance, kind),
        },
        "spec": {
            "type": service_type,
            "ports": [
                { "name": "redis", "protocol": "TCP", "port": SERVER_PORT,
                  "targetPort": SERVER_PORT },
            ],
        },
    });
    if let Some(node_port) = kept.node_port.filter(|_| way == Expose::NodePort) {
        service["spec"]["ports"][0]["nodePort"] = json!(node_port);
    }
    if let Some(address) = &kept.address {
        service["spec"]["clusterIP"] = json!(address);
    }
    if !is_led(kind) {
        service["spec"]["selector"] = json!({
            LABEL_MANAGED: MANAGED_BY,
            LABEL_OWNER: options.owner,
            LABEL_INSTANCE: instance.as_str(),
        });
    }
    service
}

/// An empty slice for a Service without selector. Its content is the holder's; it is made when
/// it is missing and never applied.
pub(crate) fn endpoint_slice(
    options: &KubeOptions,
    instance: &InstanceId,
    kind: EndpointKind,
) -> Value {
    let mut labels = endpoint_labels(options, instance, kind);
    let name = endpoint_name(instance, kind);
    labels.insert("kubernetes.io/service-name".to_owned(), json!(name));
    labels.insert("endpointslice.kubernetes.io/managed-by".to_owned(), json!("larder.io"));
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": { "name": name, "labels": labels },
        "addressType": "IPv4",
        "endpoints": [],
        "ports": [{ "name": "redis", "protocol": "TCP", "port": SERVER_PORT }],
    })
}
