//! The lease of a shard and the route that its holder publishes.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::address::Address;
use crate::ids::NodeId;
use crate::time::Timestamp;

/// One version of a lease. Kept by a `Lease` store with compare-and-set; who reads it measures
/// its age by their own clock from the moment they first saw that version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// Rises by one with each change of holder; fences everything older.
    pub epoch: u64,
    pub holder: Option<LeaseHolder>,
    /// The node that held it before, with the reason it let go; tells the others whom to wait for.
    pub previous: Option<Previous>,
    /// Wall-clock times of the automatic failovers still within the window.
    #[serde(default)]
    pub failovers: Vec<Timestamp>,
}

/// Who holds the lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseHolder {
    pub node: NodeId,
    /// Run id of the holder's server when it took the lease; a restarted server has another one.
    pub run_id: String,
}

/// How the former holder went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    pub node: NodeId,
    pub epoch: u64,
    pub reason: ReleaseReason,
    /// A planned hand-over names who shall take it.
    pub successor: Option<NodeId>,
}

/// Why a holder let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReleaseReason {
    /// A person or an operation asked for it; writes were paused and offsets equal.
    Planned,
    /// Its server died, hung or restarted.
    ServerLost,
    /// Its volume is gone.
    VolumeLost,
    /// It did not let go: the lease ran out.
    Expired,
    /// A person chose the successor and accepted the loss of data.
    Forced,
}

/// Completes "it let go because …", for people.
impl fmt::Display for ReleaseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Planned => "that was asked for",
            Self::ServerLost => "its server died, hung or restarted",
            Self::VolumeLost => "its data are gone",
            Self::Expired => "it did not renew its lease in time",
            Self::Forced => "a person chose another node",
        })
    }
}

impl ReleaseReason {
    /// Counts against the limit of automatic failovers.
    pub fn is_automatic(self) -> bool {
        match self {
            Self::ServerLost | Self::VolumeLost | Self::Expired => true,
            Self::Planned | Self::Forced => false,
        }
    }
}

/// Where an endpoint leads. Written by the lease holder, followed by relays (on one machine) and
/// by EndpointSlices (on Kubernetes). A route of an older epoch never replaces a newer one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub epoch: u64,
    /// The primary; `None` while there is none.
    pub write: Option<RouteTarget>,
    /// Healthy, linked replicas. Empty means that reads go to the primary.
    pub read: Vec<RouteTarget>,
    /// New traffic waits a moment: a hand-over is under way.
    pub hold: bool,
}

/// One server behind an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTarget {
    pub node: NodeId,
    pub address: Address,
}
