//! Names on Kubernetes that both ends have to agree on: the control plane, which makes the
//! objects, and the agents in their pods. See `docs/design/0003-kubernetes.md`.

use serde::{Deserialize, Serialize};

use crate::architecture::EndpointKind;
use crate::ids::{InstanceId, NodeId};

/// Where every server listens in its pod, and what its node's Service has.
pub const SERVER_PORT: u16 = 6379;
/// The server's cluster bus (see [`crate::Address::bus_port`]).
pub const BUS_PORT: u16 = 16_379;
/// Where every agent's API listens, with TLS by the instance's key.
pub const AGENT_PORT: u16 = 7310;
/// Where the kubelet asks, without TLS: `/livez` and `/readyz`.
pub const PROBE_PORT: u16 = 7311;

/// Mounted from the node's Secret: `agent.json` and `secrets.json`.
pub const CONFIG_DIR: &str = "/etc/larder";
/// The node's volume.
pub const DATA_DIR: &str = "/data";
/// What the agent keeps on the volume, beside the server's own folder.
pub const STATE_DIR: &str = "/data/node";
/// The server's own folder.
pub const SERVER_DIR: &str = "/data/node/volume";
/// The server of the image's engine, in every image.
pub const SERVER_BINARY: &str = "/opt/larder/bin/server";
/// `larder`, in every image.
pub const LARDER_BINARY: &str = "/opt/larder/bin/larder";

/// Environment of the agent's container, from the downward API: the pod's own address.
pub const ENV_POD_IP: &str = "LARDER_POD_IP";
/// The same: the address of the worker that the pod runs on.
pub const ENV_WORKER_IP: &str = "LARDER_WORKER_IP";

/// The worker of a node that the scheduler has not put anywhere yet.
pub const UNSCHEDULED: &str = "unscheduled";

/// Labels of everything that Larder makes.
pub const LABEL_MANAGED: &str = "app.kubernetes.io/managed-by";
pub const MANAGED_BY: &str = "larder";
/// Which control plane's binding it belongs to: another one's objects are never touched.
pub const LABEL_OWNER: &str = "larder.io/owner";
pub const LABEL_INSTANCE: &str = "larder.io/instance";
pub const LABEL_NODE: &str = "larder.io/node";
pub const LABEL_SHARD: &str = "larder.io/shard";
pub const LABEL_ENDPOINT: &str = "larder.io/endpoint";
/// On the Service by which clients outside reach one node.
pub const LABEL_OUTER: &str = "larder.io/outer";

/// On a StatefulSet: the generation of the node's configuration.
pub const ANNOTATION_GENERATION: &str = "larder.io/generation";
/// On a StatefulSet: what of the container cluster's own settings it was rendered from.
pub const ANNOTATION_SETTINGS: &str = "larder.io/settings";
/// On a Lease: the `LeaseRecord` as JSON.
pub const ANNOTATION_RECORD: &str = "larder.io/record";
/// On a Lease: a number that rises by one with each write of an agent.
pub const ANNOTATION_SEQUENCE: &str = "larder.io/sequence";
/// On the EndpointSlices that agents write: the `Route` as JSON.
pub const ANNOTATION_ROUTE: &str = "larder.io/route";

/// Mounted beside `agent.json`: a [`VolumeIds`].
pub const VOLUME_FILE: &str = "volume.json";

/// Tells a new node's empty volume from one whose data are gone: the agent's own memory is on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeIds {
    /// UID of the claim that the node was made with.
    pub first: String,
    /// UID of the claim that it has.
    pub now: String,
}

impl VolumeIds {
    /// The node has had another volume before.
    pub fn is_replaced(&self) -> bool {
        self.first != self.now
    }
}

/// The PodDisruptionBudget of a shard.
pub fn budget_name(instance: &InstanceId, shard: u32) -> String {
    format!("{instance}-s{shard}")
}

/// The instance's Lease, ServiceAccount, Role, RoleBinding, NetworkPolicy and ConfigMap.
pub fn instance_name(instance: &InstanceId) -> String {
    instance.to_string()
}

/// The Service of an endpoint, and the EndpointSlice that the holder's agent writes for it.
pub fn endpoint_name(instance: &InstanceId, kind: EndpointKind) -> String {
    format!("{instance}-{kind}")
}

/// The node's StatefulSet, Service, Secret and PersistentVolumeClaim.
pub fn node_name(node: &NodeId) -> String {
    node.to_string()
}

/// The Service by which clients outside reach a node.
pub fn outer_name(node: &NodeId) -> String {
    format!("{node}-outer")
}

/// The only pod of a node's StatefulSet.
pub fn pod_name(node: &NodeId) -> String {
    format!("{node}-0")
}
