//! The state of an instance, computed from what is observed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Spec row B12; the states that this version can be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceState {
    Creating,
    /// Every node serves with its link up, and every endpoint answers.
    Running,
    /// An operation changes it.
    Updating,
    /// An operation changes the number of its nodes.
    Scaling,
    /// It serves, but something is missing: a node, a link, a copy.
    Degraded,
    /// Writes do not get through somewhere.
    Unavailable,
    /// It serves as before a change of its parameters, which a server has refused.
    UpdateFailed,
    Deleting,
    /// Its creation went wrong.
    Failed,
}

impl InstanceState {
    pub const ALL: [Self; 9] = [
        Self::Creating,
        Self::Running,
        Self::Updating,
        Self::Scaling,
        Self::Degraded,
        Self::Unavailable,
        Self::UpdateFailed,
        Self::Deleting,
        Self::Failed,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Updating => "updating",
            Self::Scaling => "scaling",
            Self::Degraded => "degraded",
            Self::Unavailable => "unavailable",
            Self::UpdateFailed => "update-failed",
            Self::Deleting => "deleting",
            Self::Failed => "failed",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == text)
    }
}

impl fmt::Display for InstanceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One aspect of an instance's health, in the manner of Kubernetes conditions. `since` is kept
/// by who records it, from one observation to the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// `ready`, `available`, `redundant`, `data-lost`, `failover-on-hold` …
    #[serde(rename = "type")]
    pub kind: String,
    pub status: bool,
    /// A stable word, kebab-case.
    pub reason: String,
    pub message: String,
}
