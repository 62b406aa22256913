//! What the nodes of an instance share.

use larder_model::agent::Member;
use larder_model::kube::{
    AGENT_PORT, BUS_PORT, LABEL_INSTANCE, LABEL_SHARD, PROBE_PORT, SERVER_PORT, budget_name,
    endpoint_name, instance_name, pod_name,
};
use larder_model::{EndpointKind, InstanceId};
use serde_json::{Value, json};

use super::labels;
use crate::options::KubeOptions;

/// Pods of a control plane inside of the cluster: they may speak to agents.
const SERVE_LABELS: (&str, &str) = ("app.kubernetes.io/name", "larder-serve");

pub(crate) fn service_account(options: &KubeOptions, instance: &InstanceId) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": { "name": instance_name(instance), "labels": labels(options, instance) },
        "automountServiceAccountToken": false,
    })
}

/// What the agents of an instance may do: its lease, its two slices, the addresses of its pods.
pub(crate) fn role(options: &KubeOptions, instance: &InstanceId, members: &[Member]) -> Value {
    let pods: Vec<_> = members.iter().map(|member| pod_name(&member.node)).collect();
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": { "name": instance_name(instance), "labels": labels(options, instance) },
        "rules": [
            {
                "apiGroups": ["coordination.k8s.io"],
                "resources": ["leases"],
                "resourceNames": [instance_name(instance)],
                "verbs": ["get", "update", "watch"],
            },
            {
                "apiGroups": ["discovery.k8s.io"],
                "resources": ["endpointslices"],
                "resourceNames": [
                    endpoint_name(instance, EndpointKind::Write),
                    endpoint_name(instance, EndpointKind::Read),
                ],
                "verbs": ["get", "update"],
            },
            {
                "apiGroups": [""],
                "resources": ["pods"],
                "resourceNames": pods,
                "verbs": ["get"],
            },
        ],
    })
}

pub(crate) fn role_binding(options: &KubeOptions, instance: &InstanceId) -> Value {
    let name = instance_name(instance);
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": { "name": name, "labels": labels(options, instance) },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name },
        "subjects": [
            { "kind": "ServiceAccount", "name": name, "namespace": options.namespace },
        ],
    })
}

/// An empty lease. Its content is the agents'; it is made when it is missing and never applied.
pub(crate) fn lease(options: &KubeOptions, instance: &InstanceId) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": { "name": instance_name(instance), "labels": labels(options, instance) },
        "spec": {},
    })
}

/// One worker at a time may be drained of a shard's pods.
pub(crate) fn disruption_budget(options: &KubeOptions, instance: &InstanceId, shard: u32) -> Value {
    json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {
            "name": budget_name(instance, shard),
            "labels": labels(options, instance),
        },
        "spec": {
            "maxUnavailable": 1,
            "selector": { "matchLabels": {
                LABEL_INSTANCE: instance.as_str(),
                LABEL_SHARD: shard.to_string(),
            } },
        },
    })
}

/// Clients reach the servers; the bus and the agents only the instance's own pods and a control
/// plane; the probes whoever the kubelet is.
///
/// `bus_callers`: addresses of workers, where gossip leaves a worker with its address instead of
/// the pod's (many networks do that on the way to another worker's node port).
pub(crate) fn network_policy(
    options: &KubeOptions,
    instance: &InstanceId,
    bus_callers: &[String],
) -> Value {
    let own_pods = json!({ "podSelector": { "matchLabels": {
        LABEL_INSTANCE: instance.as_str(),
    } } });
    let serve = json!({
        "namespaceSelector": {},
        "podSelector": { "matchLabels": { SERVE_LABELS.0: SERVE_LABELS.1 } },
    });
    let port = |port: u16| json!({ "protocol": "TCP", "port": port });
    let mut bus = vec![own_pods.clone()];
    bus.extend(bus_callers.iter().map(|address| {
        let bits = if address.contains(':') { 128 } else { 32 };
        json!({ "ipBlock": { "cidr": format!("{address}/{bits}") } })
    }));
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "name": instance_name(instance), "labels": labels(options, instance) },
        "spec": {
            "podSelector": { "matchLabels": { LABEL_INSTANCE: instance.as_str() } },
            "policyTypes": ["Ingress"],
            "ingress": [
                { "ports": [port(SERVER_PORT), port(PROBE_PORT)] },
                { "ports": [port(BUS_PORT)], "from": bus },
                { "ports": [port(AGENT_PORT)], "from": [own_pods, serve] },
            ],
        },
    })
}
