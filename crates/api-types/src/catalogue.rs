//! What an installation has: engines, projects, container clusters.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A server that instances can run on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Engine {
    /// `redis-7.0`, `valkey-8.0`.
    pub name: String,
    /// As the binary says, `7.0.15`. Of an engine that only bound container clusters have it is
    /// what its name says, `7.0`.
    pub version: String,
    /// `redis` or `valkey`.
    pub flavour: String,
    /// The container clusters that have it; `local` is the machine where Larder runs.
    pub container_clusters: Vec<String>,
    /// The server binary on the machine where Larder runs, if it has one.
    pub path: Option<String>,
    /// Found by Larder, not added by a person.
    pub builtin: bool,
    /// RFC 3339; when the binary was added.
    pub added_at: Option<String>,
    /// What was probed of the binary, never assumed; null without one.
    pub capabilities: serde_json::Value,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddEngine {
    /// Absolute path of a server binary on the machine where Larder runs.
    pub path: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Project {
    pub name: String,
}

/// The installation at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Larder's own.
    pub version: String,
    /// RFC 3339.
    pub started_at: String,
    /// Number of instances in each state.
    pub instances: BTreeMap<String, u64>,
    pub engines: u64,
    pub container_clusters: Vec<ContainerClusterStatus>,
    /// Settings of this machine that should be otherwise; empty when all is well, or no instances run on
    /// it.
    #[serde(default)]
    pub advice: Vec<Advice>,
}

/// A setting of a machine that should be otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Advice {
    pub setting: String,
    /// As it is.
    pub value: String,
    /// As it should be, in words.
    pub wanted: String,
    pub why: String,
    /// What to do.
    pub how: String,
}

/// A place where nodes run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ContainerClusterStatus {
    pub name: String,
    /// It answered when it was last asked.
    pub reachable: bool,
    pub workers: u32,
    /// Names of what volumes can be made of; the first is the default.
    pub storage_classes: Vec<String>,
    /// Memory that nodes may use in all.
    pub memory_bytes: u64,
    /// Memory that is promised to nodes.
    pub requested_memory_bytes: u64,
}

/// Whether the server lives or is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok` or what is missing.
    pub status: String,
}
