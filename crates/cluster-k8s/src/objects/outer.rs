//! The way from outside to one node of a cluster instance, beside the node's own Service: that one
//! has the ports of the bus and of the agent, which are nobody's business outside.

use larder_cluster::NodeExposure;
use larder_model::kube::{
    BUS_PORT, LABEL_INSTANCE, LABEL_NODE, LABEL_OUTER, SERVER_PORT, outer_name,
};
use larder_model::{EngineName, Expose};
use serde_json::{Value, json};

use super::node_labels;
use crate::options::KubeOptions;

/// Redis 6.2 announces one address to clients and to the other servers; the pair of address and
/// name came with 7.0, and Valkey began after that.
pub(crate) fn announces_only_addresses(engine: &EngineName) -> bool {
    let version = engine.as_str().rsplit('-').next().unwrap_or_default();
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    major.is_some_and(|major| major < 7)
}

/// The Service by which clients outside reach the node, also before its pod is ready: an old
/// server's gossip goes through it as well.
pub(crate) fn outer_service(options: &KubeOptions, wish: &NodeExposure) -> Value {
    let (instance, node) = (&wish.instance, &wish.node);
    let has_bus = announces_only_addresses(&wish.engine);
    // Ports that it has had: a Service that somebody has deleted gets them again.
    let known = wish.known.as_ref().filter(|_| wish.way == Expose::NodePort);
    let mut ports = vec![port("redis", SERVER_PORT, known.map(|known| known.port))];
    if has_bus {
        ports.push(port("bus", BUS_PORT, known.and_then(|known| known.bus_port)));
    }
    let through_any_worker =
        wish.way == Expose::NodePort && options.outer_address.is_some() && !has_bus;
    let mut labels = node_labels(options, instance, node);
    labels.insert(LABEL_OUTER.to_owned(), json!("true"));
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": outer_name(node), "labels": labels },
        "spec": {
            "type": if wish.way == Expose::LoadBalancer { "LoadBalancer" } else { "NodePort" },
            // To the node's own worker without a detour, and with the caller's address kept: by
            // that the instance's own pods are told from everybody else at the bus.
            "externalTrafficPolicy": if through_any_worker { "Cluster" } else { "Local" },
            "publishNotReadyAddresses": true,
            "selector": { LABEL_INSTANCE: instance.as_str(), LABEL_NODE: node.as_str() },
            "ports": ports,
        },
    })
}

fn port(name: &str, port: u16, node_port: Option<u16>) -> Value {
    let mut value = json!({ "name": name, "protocol": "TCP", "port": port, "targetPort": port });
    if let Some(node_port) = node_port {
        value["nodePort"] = json!(node_port);
    }
    value
}
