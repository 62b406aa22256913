//! Things that happened, for people.

use serde::{Deserialize, Serialize};

use crate::ids::{InstanceId, NodeId};
use crate::time::Timestamp;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    Info,
    Warning,
    Critical,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Info, Self::Warning, Self::Critical].into_iter().find(|s| s.as_str() == text)
    }
}

/// Who saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// The control plane did or noticed it.
    Control,
    /// A node's agent did or noticed it.
    Node,
}

/// One event. The store numbers it; the number is the event's place in the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub at: Timestamp,
    pub kind: EventKind,
    pub severity: Severity,
    pub instance: Option<InstanceId>,
    pub node: Option<NodeId>,
    /// A stable word, kebab-case: `failover`, `node-restarted`, `volume-lost`.
    pub reason: String,
    pub message: String,
}
