//! The objects of an instance, as pure functions of what is wished.
//!
//! They are JSON, because server-side apply owns exactly the fields that are sent: a typed
//! object would send defaults as well. The API server checks them strictly, and the snapshots
//! of the tests show them whole.

mod endpoint;
mod instance;
mod node;
mod outer;

pub(crate) use endpoint::{Kept, endpoint_service, endpoint_slice, is_led};
pub(crate) use instance::{
    disruption_budget, lease, network_policy, role, role_binding, service_account,
};
pub(crate) use node::{claim, inner_port, node_service, secret, stateful_set};
pub(crate) use outer::{announces_only_addresses, outer_service};

use larder_model::kube::{LABEL_INSTANCE, LABEL_MANAGED, LABEL_NODE, LABEL_OWNER, MANAGED_BY};
use larder_model::{InstanceId, NodeId};
use serde_json::{Map, Value, json};

use crate::options::KubeOptions;

/// Labels of everything of an instance.
pub(crate) fn labels(options: &KubeOptions, instance: &InstanceId) -> Map<String, Value> {
    let pairs = [
        (LABEL_MANAGED, MANAGED_BY),
        (LABEL_OWNER, options.owner.as_str()),
        (LABEL_INSTANCE, instance.as_str()),
    ];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), json!(value))).collect()
}

/// Labels of everything of a node.
pub(crate) fn node_labels(
    options: &KubeOptions,
    instance: &InstanceId,
    node: &NodeId,
) -> Map<String, Value> {
    let mut labels = labels(options, instance);
    labels.insert(LABEL_NODE.to_owned(), json!(node.as_str()));
    labels
}

/// The selector of everything of a binding, or of one instance of it.
pub(crate) fn selector(options: &KubeOptions, instance: Option<&InstanceId>) -> String {
    let mut text = format!("{LABEL_MANAGED}={MANAGED_BY},{LABEL_OWNER}={}", options.owner);
    if let Some(instance) = instance {
        text.push_str(&format!(",{LABEL_INSTANCE}={instance}"));
    }
    text
}

#[cfg(test)]
mod tests;
