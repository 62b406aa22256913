//! The shapes an instance can have.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The shape of an instance (spec rows A1, A2, A4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Architecture {
    /// One primary, no replica.
    Standalone,
    /// One primary and 1 to 10 replicas behind a write and a read endpoint.
    ReadWrite,
    /// Shards that speak the Redis Cluster protocol.
    Cluster,
}

impl Architecture {
    pub const ALL: [Self; 3] = [Self::Standalone, Self::ReadWrite, Self::Cluster];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Standalone => "standalone",
            Self::ReadWrite => "read-write",
            Self::Cluster => "cluster",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.as_str() == text)
    }

    /// How the nodes of this architecture find their primary.
    pub fn node_mode(self) -> NodeMode {
        match self {
            Self::Standalone | Self::ReadWrite => NodeMode::Leased,
            Self::Cluster => NodeMode::Clustered,
        }
    }

    /// The endpoints that an instance of this architecture has, in the order they are shown.
    pub fn endpoints(self) -> &'static [EndpointKind] {
        match self {
            Self::Standalone => &[EndpointKind::Write],
            Self::ReadWrite => &[EndpointKind::Write, EndpointKind::Read],
            Self::Cluster => &[EndpointKind::Discovery],
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who decides which node of a shard is the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeMode {
    /// The agents, under a lease (`larder-election`).
    Leased,
    /// The cluster bus of the servers themselves, helped by the agents.
    Clustered,
}

/// What an endpoint leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndpointKind {
    /// Always the primary.
    Write,
    /// A healthy, linked replica; the primary only when there is none.
    Read,
    /// Any healthy node of a cluster instance.
    Discovery,
}

impl EndpointKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Read => "read",
            Self::Discovery => "discovery",
        }
    }
}

impl fmt::Display for EndpointKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
