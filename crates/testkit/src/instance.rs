//! What `larder instance get NAME -o json` answers, read independently of the product's own types.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;

/// Where clients connect.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
pub struct Endpoint {
    pub host: String,
    pub port: u16,
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[derive(Clone, Debug, Deserialize)]
pub struct Instance {
    pub id: String,
    pub name: String,
    pub project: String,
    pub state: String,
    pub generation: u64,
    pub observed_generation: u64,
    pub architecture: String,
    pub engine: String,
    pub engine_version: Option<String>,
    pub memory_bytes: u64,
    pub shards: u32,
    pub replicas: u32,
    pub read_only_nodes: u32,
    pub endpoints: BTreeMap<String, Endpoint>,
    pub nodes: Vec<Node>,
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Node {
    pub id: String,
    pub shard: u32,
    pub role: String,
    pub state: String,
    pub host: Option<String>,
    pub port: Option<u16>,
    pub pid: Option<u32>,
    pub replica_of: Option<String>,
    pub link: Option<String>,
    pub slots: Vec<String>,
    pub last_seen_at: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: bool,
    pub reason: String,
    pub message: String,
}

impl Instance {
    /// # Errors
    /// The instance has no such endpoint.
    pub fn endpoint(&self, kind: &str) -> Result<&Endpoint> {
        self.endpoints.get(kind).with_context(|| format!("{} has no {kind} endpoint", self.name))
    }

    /// # Errors
    /// Nobody is shown as this shard's primary.
    pub fn primary(&self, shard: u32) -> Result<&Node> {
        self.nodes.iter().find(|n| n.shard == shard && n.role == "primary").with_context(|| {
            format!("shard {shard} of {} shows no primary: {:?}", self.name, self.nodes)
        })
    }

    /// The nodes shown as replicas of this shard.
    pub fn replicas(&self, shard: u32) -> Vec<&Node> {
        self.nodes.iter().filter(|n| n.shard == shard && n.role == "replica").collect()
    }

    /// # Errors
    /// The instance has no such node.
    pub fn node(&self, id: &str) -> Result<&Node> {
        self.nodes
            .iter()
            .find(|n| n.id == id)
            .with_context(|| format!("{} has no node {id}", self.name))
    }

    /// The condition of this kind, when it is shown.
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|c| c.kind == kind)
    }
}

impl Node {
    /// The server's own address.
    ///
    /// # Errors
    /// None is shown.
    pub fn address(&self) -> Result<Endpoint> {
        Ok(Endpoint {
            host: self.host.clone().with_context(|| format!("node {} shows no host", self.id))?,
            port: self.port.with_context(|| format!("node {} shows no port", self.id))?,
        })
    }

    /// # Errors
    /// The server's process is not shown.
    pub fn pid(&self) -> Result<u32> {
        self.pid.with_context(|| format!("node {} shows no process", self.id))
    }

    /// First and last slot of the node's first range.
    pub fn first_range(&self) -> Option<(u16, u16)> {
        let range = self.slots.first()?;
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}
