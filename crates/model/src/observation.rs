//! What is seen of the world. Three values: absent, unknown, known. Unknown alone never removes,
//! recreates or promotes anything.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::address::Address;
use crate::agent::AgentStatus;
use crate::architecture::EndpointKind;
use crate::exposure::Exposed;
use crate::hindrance::Hindered;
use crate::ids::{NodeId, WorkerName, ZoneName};
use crate::size::ByteSize;
use crate::time::{Millis, Timestamp};

/// One thing as it was last seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Observation<T> {
    /// It was looked for and is not there.
    Absent,
    /// Nobody could tell, since this time.
    #[default]
    UnknownYet,
    Unknown {
        since: Timestamp,
    },
    Known {
        value: T,
        at: Timestamp,
    },
}

impl<T> Observation<T> {
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known { value, .. } => Some(value),
            Self::Absent | Self::UnknownYet | Self::Unknown { .. } => None,
        }
    }

    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }

    /// For how long nobody could tell; `None` when somebody can, or nobody has tried.
    pub fn unknown_for(&self, now: Timestamp) -> Option<Millis> {
        match self {
            Self::Unknown { since } => Some(now.since(*since)),
            Self::Absent | Self::UnknownYet | Self::Known { .. } => None,
        }
    }
}

/// Everything the planner may know of what is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// Workers of the container cluster, sorted by name. Empty: it could not be asked.
    pub workers: Vec<Worker>,
    /// Every node that has a record or that the container cluster holds for this instance.
    pub nodes: BTreeMap<NodeId, ObservedNode>,
    pub endpoints: BTreeMap<EndpointKind, Observation<EndpointStatus>>,
    /// Why the container cluster could not be asked, in its words; `None`: it could. Without times:
    /// it is recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// A worker of a container cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    pub name: WorkerName,
    pub zone: Option<ZoneName>,
    /// Where its node ports are reached; `None` when nobody says, or there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    pub state: WorkerState,
    /// Memory that nodes may use in all.
    pub allocatable: ByteSize,
    /// Memory already promised to nodes, of all instances.
    pub requested: ByteSize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkerState {
    Ready,
    /// Runs what it has, takes nothing new.
    Cordoned,
    /// Not heard of.
    Unreachable,
    /// An administrator's word: it will not come back as it was.
    Lost,
}

/// One node as backend and agent show it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ObservedNode {
    /// What the container cluster says.
    pub backend: Observation<BackendNode>,
    /// What the node's agent says; `Absent` when there is no agent because there is no node.
    pub agent: Observation<AgentStatus>,
    /// What keeps it from coming to be, if the container cluster says that something does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hindered: Option<Hindered>,
}

/// A node as its container cluster holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendNode {
    pub worker: WorkerName,
    pub address: Option<Address>,
    /// Realised: folder, volume and desired process (or StatefulSet, PVC, Service) exist.
    pub realised: bool,
    /// The volume exists (not: that it has data).
    pub volume: bool,
    /// Generation of the desired node that the backend holds.
    pub generation: u64,
    /// The way to it from outside of the container cluster.
    #[serde(default)]
    pub exposed: Exposed,
}

/// An endpoint as it was last seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointStatus {
    /// Where clients connect: from outside, if the instance is exposed.
    pub address: Address,
    /// Its address inside of the container cluster, when `address` is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inner: Option<Address>,
    /// The address from outside is asked for and not known yet; `address` is the inner one.
    #[serde(default)]
    pub pending: bool,
    /// A connection through it reached a server that answered.
    pub answers: bool,
    /// Where it leads, for people.
    pub leads_to: Vec<NodeId>,
}
