//! One node: a StatefulSet of one pod, and what is the node's own for its whole life: volume,
//! address, configuration.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use larder_model::agent::NodeConfig;
use larder_model::kube::VolumeIds;
use larder_model::kube::{
    AGENT_PORT, ANNOTATION_GENERATION, BUS_PORT, CONFIG_DIR, DATA_DIR, ENV_POD_IP, ENV_WORKER_IP,
    LABEL_INSTANCE, LABEL_NODE, LABEL_SHARD, LARDER_BINARY, PROBE_PORT, SERVER_BINARY, SERVER_DIR,
    SERVER_PORT, STATE_DIR, instance_name, node_name,
};
use larder_model::local::{AgentBoot, NodeSecrets};
use larder_model::{ByteSize, InstanceId, NodeId, NodeMode, OuterAddress, WorkerName};
use serde_json::{Value, json};

use super::{RENDERER, node_labels};
use crate::options::KubeOptions;

/// Nobody in particular: the image has no such user, and needs none.
const USER: u32 = 65_532;
/// More than a hand-over (10 s) and the server's end take.
const GRACE_SECONDS: u32 = 30;

/// The node's address for its whole life. It leads to the pod also before that is ready: gossip
/// and replication run through it, and a full restart would wait for itself.
///
/// `address` is the one that the node has had: a Service that somebody has deleted gets it again.
/// `announced` is a second port of the server, see [`inner_port`].
pub(crate) fn node_service(
    options: &KubeOptions,
    instance: &InstanceId,
    node: &NodeId,
    address: Option<&str>,
    announced: Option<u16>,
) -> Value {
    let port = |name: &str, port: u16| json!({ "name": name, "protocol": "TCP", "port": port, "targetPort": port });
    let mut service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": node_name(node),
            "labels": node_labels(options, instance, node),
        },
        "spec": {
            "type": "ClusterIP",
            "publishNotReadyAddresses": true,
            "selector": { LABEL_INSTANCE: instance.as_str(), LABEL_NODE: node.as_str() },
            "ports": [
                port("redis", SERVER_PORT),
                port("bus", BUS_PORT),
                port("agent", AGENT_PORT),
            ],
        },
    });
    if let Some(address) = address {
        service["spec"]["clusterIP"] = json!(address);
    }
    if let (Some(announced), Some(ports)) = (announced, service["spec"]["ports"].as_array_mut()) {
        ports.push(json!({
            "name": "announced", "protocol": "TCP", "port": announced, "targetPort": SERVER_PORT,
        }));
    }
    service
}

/// A server announces one port to clients and to the other servers. Where clients outside use a
/// node port the node's own address has to have the same.
pub(crate) fn inner_port(outer: Option<&OuterAddress>) -> Option<u16> {
    // With the bus outside nobody looks for the server inside.
    let outer = outer.filter(|outer| outer.bus_port.is_none())?;
    (outer.port != SERVER_PORT).then_some(outer.port)
}

/// What the agent starts from, mounted as files.
pub(crate) fn secret(
    options: &KubeOptions,
    config: &NodeConfig,
    secrets: &NodeSecrets,
    volume: &VolumeIds,
) -> Result<Value, serde_json::Error> {
    let boot = AgentBoot {
        config: config.clone(),
        bind_host: Some("0.0.0.0".to_owned()),
        server_binary: SERVER_BINARY.into(),
        volume: SERVER_DIR.into(),
        run_dir: STATE_DIR.into(),
        lease_dir: STATE_DIR.into(),
        route_dir: STATE_DIR.into(),
    };
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": node_name(&config.node),
            "labels": node_labels(options, &config.instance, &config.node),
        },
        "type": "Opaque",
        "data": {
            "agent.json": BASE64.encode(serde_json::to_vec(&boot)?),
            "volume.json": BASE64.encode(serde_json::to_vec(volume)?),
            "secrets.json": BASE64.encode(serde_json::to_vec(secrets)?),
        },
    }))
}

/// The node's volume. Made when it is missing and never applied: it is deleted with the node
/// alone, and what an administrator has made of it stays.
pub(crate) fn claim(options: &KubeOptions, config: &NodeConfig) -> Value {
    let mut claim = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": node_name(&config.node),
            "labels": node_labels(options, &config.instance, &config.node),
        },
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": { "requests": { "storage": options.volume_size.bytes().to_string() } },
        },
    });
    if let Some(class) = config.storage_class.as_ref().or(options.storage_class.as_ref()) {
        claim["spec"]["storageClassName"] = json!(class);
    }
    claim
}

/// What the pod may use at most: a fork that copies everything while the node is full, and 96 MiB
/// for buffers and the agent.
fn memory_limit(memory: ByteSize) -> u64 {
    memory.bytes().saturating_mul(2).saturating_add(ByteSize::mib(96).bytes())
}

/// The process of the node. A change takes effect when the pod is next made: nothing restarts
/// because Larder was upgraded or a member was added.
pub(crate) fn stateful_set(options: &KubeOptions, config: &NodeConfig) -> Value {
    let (instance, node) = (&config.instance, &config.node);
    let mut labels = node_labels(options, instance, node);
    labels.insert(LABEL_SHARD.to_owned(), json!(config.shard.to_string()));
    json!({
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {
            "name": node_name(node),
            "labels": labels,
            "annotations": {
                ANNOTATION_GENERATION: config.generation.to_string(),
                "larder.io/renderer": RENDERER.to_string(),
            },
        },
        "spec": {
            "replicas": 1,
            "serviceName": node_name(node),
            "podManagementPolicy": "Parallel",
            "updateStrategy": { "type": "OnDelete" },
            "selector": {
                "matchLabels": { LABEL_INSTANCE: instance.as_str(), LABEL_NODE: node.as_str() },
            },
            "template": { "metadata": { "labels": labels }, "spec": pod(options, config) },
        },
    })
}

fn pod(options: &KubeOptions, config: &NodeConfig) -> Value {
    let user = json!({
        "runAsNonRoot": true,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": { "type": "RuntimeDefault" },
    });
    let mut pod = json!({
        "serviceAccountName": instance_name(&config.instance),
        // Cluster mode decides over the cluster bus and needs no API server.
        "automountServiceAccountToken": config.mode == NodeMode::Leased,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": user,
        "topologySpreadConstraints": spread(options, config),
        "containers": [container(options, config)],
        "volumes": [
            { "name": "config", "secret": {
                "secretName": node_name(&config.node), "defaultMode": 0o440,
            } },
            { "name": "data", "persistentVolumeClaim": { "claimName": node_name(&config.node) } },
            { "name": "tmp", "emptyDir": { "sizeLimit": "16Mi" } },
        ],
    });
    if !options.pull_secrets.is_empty() {
        let named: Vec<_> =
            options.pull_secrets.iter().map(|name| json!({ "name": name })).collect();
        pod["imagePullSecrets"] = json!(named);
    }
    if let Some(worker) = &config.worker {
        pod["affinity"] = json!({ "nodeAffinity": prefer(worker) });
    }
    pod
}

/// The worker that the planner chose, which keeps first primaries apart from each other, if it can
/// be: the scheduler knows what else is there.
fn prefer(worker: &WorkerName) -> Value {
    let field = json!({ "key": "metadata.name", "operator": "In", "values": [worker.as_str()] });
    json!({ "preferredDuringSchedulingIgnoredDuringExecution": [
        { "weight": 100, "preference": { "matchFields": [field] } },
    ] })
}

/// The nodes of a shard on different workers while there are enough, and in different zones as
/// far as possible. A worker with a taint that the pod does not tolerate is no place: counted as
/// an empty one it would keep a replacement from starting.
fn spread(options: &KubeOptions, config: &NodeConfig) -> Value {
    let constraint = |key: &str, when: &str| {
        json!({
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": when,
            "nodeTaintsPolicy": "Honor",
            "labelSelector": { "matchLabels": {
                LABEL_INSTANCE: config.instance.as_str(),
                LABEL_SHARD: config.shard.to_string(),
            } },
        })
    };
    let workers = if options.spread_strictly { "DoNotSchedule" } else { "ScheduleAnyway" };
    json!([
        constraint("kubernetes.io/hostname", workers),
        constraint("topology.kubernetes.io/zone", "ScheduleAnyway"),
    ])
}

fn container(options: &KubeOptions, config: &NodeConfig) -> Value {
    let probe = |path: &str| json!({ "path": path, "port": PROBE_PORT });
    let port =
        |name: &str, port: u16| json!({ "name": name, "containerPort": port, "protocol": "TCP" });
    json!({
        "name": "node",
        "image": options.image_of(&config.engine),
        "command": [LARDER_BINARY, "agent", "--pod"],
        "env": environment(config),
        "ports": [
            port("redis", SERVER_PORT),
            port("bus", BUS_PORT),
            port("agent", AGENT_PORT),
            port("probe", PROBE_PORT),
        ],
        "resources": {
            "requests": { "cpu": "50m", "memory": config.memory.bytes().to_string() },
            "limits": { "memory": memory_limit(config.memory).to_string() },
        },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        },
        "startupProbe": {
            "httpGet": probe("/livez"), "periodSeconds": 1, "timeoutSeconds": 1,
            "failureThreshold": 60,
        },
        "livenessProbe": liveness(config),
        "readinessProbe": {
            "httpGet": probe("/readyz"), "periodSeconds": 2, "timeoutSeconds": 1,
            "failureThreshold": 1,
        },
        "volumeMounts": [
            { "name": "config", "mountPath": CONFIG_DIR, "readOnly": true },
            { "name": "data", "mountPath": DATA_DIR },
            { "name": "tmp", "mountPath": "/tmp" },
        ],
    })
}

fn environment(config: &NodeConfig) -> Value {
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let mut all = vec![field(ENV_POD_IP, "status.podIP")];
    if config.outer.is_some() {
        all.push(field(ENV_WORKER_IP, "status.hostIP"));
    }
    json!(all)
}

/// An agent that is silent is killed with its server before its lease has run out, where somebody
/// else could take that: one second to the question, one for the answer, one of grace. Where
/// nobody could, there is no hurry.
fn liveness(config: &NodeConfig) -> Value {
    let contended = config.mode == NodeMode::Leased && config.members.len() > 1;
    let (failures, grace) = if contended { (1, 1) } else { (5, GRACE_SECONDS) };
    json!({
        "httpGet": { "path": "/livez", "port": PROBE_PORT },
        "periodSeconds": 1,
        "timeoutSeconds": 1,
        "failureThreshold": failures,
        "terminationGracePeriodSeconds": grace,
    })
}
