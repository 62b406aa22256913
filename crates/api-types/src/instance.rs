//! Instances: what is asked and what is shown.

use std::collections::BTreeMap;

use larder_model::Secret;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One instance, as it was last observed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Instance {
    pub id: String,
    /// Unique in the project.
    pub name: String,
    pub project: String,
    pub description: String,
    pub tags: BTreeMap<String, String>,
    /// `creating`, `running`, `updating`, `scaling`, `degraded`, `unavailable`, `deleting` or
    /// `failed`.
    pub state: String,
    /// Rises with every accepted change.
    pub generation: u64,
    /// The generation that the last observation was made for.
    pub observed_generation: u64,
    /// RFC 3339.
    pub created_at: String,
    /// `standalone`, `read-write` or `cluster`.
    pub architecture: String,
    /// As `engine list` names it: `redis-7.0`.
    pub engine: String,
    /// What the servers say of themselves, or what the catalogue says until they do.
    pub engine_version: Option<String>,
    /// Memory of each node.
    pub memory_bytes: u64,
    pub shards: u32,
    /// Nodes per shard, the primary counted in.
    pub replicas: u32,
    /// 0 unless the architecture is `read-write`; there `replicas` - 1.
    pub read_only_nodes: u32,
    /// Replicas copy from each other in a row, and only the first one from the primary.
    pub chained: bool,
    pub read_from_replicas: bool,
    pub container_cluster: String,
    /// What the nodes' volumes are made of.
    pub storage_class: String,
    /// How clients outside of the container cluster reach it: `load-balancer`, `node-port` or
    /// `cluster-ip` (not at all); null where there is no such choice, as on `local`.
    #[serde(default)]
    pub expose: Option<String>,
    pub endpoints: Endpoints,
    pub nodes: Vec<Node>,
    pub conditions: Vec<Condition>,
    /// When what is shown here was seen (RFC 3339); null before the first observation.
    pub observed_at: Option<String>,
}

/// Where clients connect. Only the endpoints that the architecture has are there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Endpoints {
    /// Always the primary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub write: Option<Endpoint>,
    /// Healthy replicas; the primary only when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub read: Option<Endpoint>,
    /// Any healthy node of a cluster instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub discovery: Option<Endpoint>,
}

impl Endpoints {
    /// Name and address of each endpoint that is there, in the order they are shown.
    pub fn named(&self) -> Vec<(&'static str, &Endpoint)> {
        [("write", &self.write), ("read", &self.read), ("discovery", &self.discovery)]
            .into_iter()
            .filter_map(|(name, endpoint)| endpoint.as_ref().map(|endpoint| (name, endpoint)))
            .collect()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Endpoint {
    pub host: String,
    pub port: u16,
    /// The same endpoint for clients inside of the container cluster, where it has another address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub inside: Option<HostPort>,
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostPort {
    pub host: String,
    pub port: u16,
}

/// One node, as it was last observed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    pub id: String,
    /// Counted from 0.
    pub shard: u32,
    /// `primary`, `replica` or `unknown`.
    pub role: String,
    /// `serving`, `joining`, `draining`, `lost` …
    pub state: String,
    pub host: Option<String>,
    pub port: Option<u16>,
    /// Where clients outside of the container cluster reach it: what its server tells them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub outside: Option<HostPort>,
    /// Of the server process.
    pub pid: Option<u32>,
    pub zone: Option<String>,
    pub worker: Option<String>,
    /// Id of the node that a replica copies from.
    pub replica_of: Option<String>,
    /// `up` or `down`; null where there is no link: at a primary, or when nothing is known.
    pub link: Option<String>,
    /// Replication offset.
    pub offset: Option<u64>,
    /// Bytes behind the primary.
    pub lag_bytes: Option<u64>,
    pub used_memory_bytes: Option<u64>,
    /// Ranges such as `0-5460`; empty without the cluster protocol.
    pub slots: Vec<String>,
    /// RFC 3339.
    pub last_seen_at: Option<String>,
}

/// One aspect of an instance's health.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Condition {
    /// `ready`, `available`, `redundant` …
    #[serde(rename = "type")]
    pub kind: String,
    pub status: bool,
    /// A stable word.
    pub reason: String,
    pub message: String,
    /// RFC 3339: since when the status is as it is.
    pub since: String,
}

/// A new instance. What is left out has the default of its architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateInstance {
    /// Lower-case letters, digits and inner hyphens, at most 63 characters; unique in the project.
    pub name: String,
    /// `default` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// `standalone`, `read-write` or `cluster`.
    pub architecture: String,
    /// As `engine list` names it.
    pub engine: String,
    /// Memory of each node, 128 MiB to 64 GiB; 128 MiB when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// 3 to 10, 3 when left out; 1 for anything but a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards: Option<u32>,
    /// Nodes per shard, the primary counted in: 1 to 3, 2 when left out, for a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
    /// 1 to 10, 1 when left out, for read-write; `replicas` - 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only_nodes: Option<u32>,
    /// `local` (this machine) when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_cluster: Option<String>,
    /// One of the container cluster's, as `status` lists them. When left out the first of
    /// them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// How clients outside reach it: `load-balancer`, `node-port` or `cluster-ip`; what the
    /// container cluster was bound with when left out. Not on `local`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expose: Option<String>,
    /// Replicas of a read-write instance copy from each other in a row.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub chained: bool,
    /// Of the servers, by name; all others are at their defaults.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, String>,
    /// 8 to 32 characters of three of: upper case, lower case, digit, special. Not needed with
    /// `dry_run`.
    #[serde(
        default,
        with = "crate::secret_in_body::option",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<String>, format = Password)]
    pub password: Option<Secret>,
}

/// A change of what describes an instance. What is left out stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateInstance {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Replaces all tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
    /// Refuse the change when the instance has another generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

/// Gives a shard another primary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FailoverInstance {
    /// 0 when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard: Option<u32>,
    /// The node that shall be primary; the most advanced replica when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Take over even when the old primary cannot hand over: acknowledged writes may be lost.
    /// Needs `to`.
    pub accept_data_loss: bool,
}

/// Restarts servers, replicas first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RestartInstance {
    /// All nodes, one after the other, when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// Lets replicas copy from each other in a row, or all from the primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetChained {
    pub chained: bool,
}

/// Gives every node another memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResizeInstance {
    /// Of each node, 128 MiB to 64 GiB.
    pub memory_bytes: u64,
}

/// Changes how many nodes an instance has. What is left out stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScaleInstance {
    /// For cluster. New shards get their share of the slots once all their nodes are in sync; those
    /// that are to go give theirs away first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shards: Option<u32>,
    /// Nodes per shard, the primary counted in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
    /// For read-write; `replicas` - 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only_nodes: Option<u32>,
    /// Alone: `true` pauses the move of slots that is under way, `false` lets it go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
}

/// Runs an instance on another engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpgradeInstance {
    /// As `engine list` names it.
    pub engine: String,
}

/// Gives the instance another password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetInstancePassword {
    /// 8 to 32 characters of three of: upper case, lower case, digit, special.
    #[serde(with = "crate::secret_in_body")]
    #[schema(value_type = String, format = Password)]
    pub password: Secret,
    /// For so long the former password is valid too: 600 when left out, a week at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_seconds: Option<u64>,
}

/// What the planner would do now, and what it waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanView {
    /// Null for an instance that does not exist yet (`dry_run`).
    pub instance: Option<String>,
    pub generation: u64,
    /// What the instance's state is called with this plan.
    pub state: String,
    /// What would be done, in words.
    pub steps: Vec<String>,
    /// What has to happen first, in words.
    pub waits: Vec<String>,
    /// The whole plan as text for people.
    pub text: String,
    /// When it was made (RFC 3339); null when nobody has planned yet.
    pub planned_at: Option<String>,
}
