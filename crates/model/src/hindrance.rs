//! Why a node does not come to be, as its container cluster says.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::Code;
use crate::time::{Millis, Timestamp};

/// What keeps a node from being there. The words are stable: they are the `reason` of the condition
/// `node-blocked`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HindranceKind {
    /// The image cannot be had: its name, the registry, or the right to it is wrong.
    ImageMissing,
    /// A quota of the namespace does not allow it.
    QuotaExceeded,
    /// An admission rule or webhook does not allow it.
    AdmissionDenied,
    /// No worker takes it.
    Unschedulable,
    /// Its storage class gives no volume, or the volume cannot be attached.
    VolumeUnbound,
    /// Something that its container needs is missing.
    ContainerNotCreated,
    /// Its container ends again and again.
    ContainerCrashes,
    /// Its volume is marked for deletion, and goes when its pod ends. It serves until then.
    VolumeLeaving,
    /// The place for all of the binding's objects is gone.
    NamespaceMissing,
    /// The container cluster refuses it for another reason.
    Refused,
}

impl HindranceKind {
    pub const ALL: [Self; 10] = [
        Self::ImageMissing,
        Self::QuotaExceeded,
        Self::AdmissionDenied,
        Self::Unschedulable,
        Self::VolumeUnbound,
        Self::ContainerNotCreated,
        Self::ContainerCrashes,
        Self::VolumeLeaving,
        Self::NamespaceMissing,
        Self::Refused,
    ];

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::ImageMissing => "image-missing",
            Self::QuotaExceeded => "quota-exceeded",
            Self::AdmissionDenied => "admission-denied",
            Self::Unschedulable => "unschedulable",
            Self::VolumeUnbound => "volume-unbound",
            Self::ContainerNotCreated => "container-not-created",
            Self::ContainerCrashes => "container-crashes",
            Self::VolumeLeaving => "volume-leaving",
            Self::NamespaceMissing => "namespace-missing",
            Self::Refused => "refused",
        }
    }

    /// What a refusal of the container cluster means for the node that it was about.
    pub fn of_refusal(code: Code) -> Self {
        match code {
            Code::CapacityExceeded => Self::QuotaExceeded,
            Code::NotAllowed => Self::AdmissionDenied,
            Code::ContainerClusterUnusable => Self::NamespaceMissing,
            _ => Self::Refused,
        }
    }

    /// What a person can do about it.
    pub fn next_move(self) -> &'static str {
        match self {
            Self::ImageMissing => {
                "put the image there, or `larder container-cluster rebind` with another `--image`"
            }
            Self::QuotaExceeded => "raise the quota of the namespace, or delete what is not needed",
            Self::AdmissionDenied => "change the admission rule, or make an exception for it",
            Self::Unschedulable => {
                "add a worker, or make room on one; a smaller node (`--memory`) needs less"
            }
            Self::VolumeUnbound => {
                "look at the storage class and its provisioner, or choose another class \
                 (`--storage-class`)"
            }
            Self::ContainerNotCreated => "what is missing has to come back",
            Self::ContainerCrashes => "look at the container's log",
            Self::VolumeLeaving => {
                "while another copy is in sync, delete its pod, and it is rebuilt from there; where \
                 it is the only copy, take its data elsewhere first: they go with the pod"
            }
            Self::NamespaceMissing => {
                "make the namespace again; what was on its volumes is gone unless somebody has a copy"
            }
            Self::Refused => "see what the container cluster says",
        }
    }
}

impl fmt::Display for HindranceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One reason, in words that follow `node n-…`: "waits for its image …: not found". Without times and
/// counts: what is recorded would otherwise be so anew with every look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hindrance {
    pub kind: HindranceKind,
    pub message: String,
}

impl Hindrance {
    pub fn new(kind: HindranceKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// Longer than a node that comes to be in the ordinary way is without a worker, or a volume.
const ORDINARY: Millis = Millis::secs(5);

/// A hindrance, and since when it has been seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hindered {
    pub by: Hindrance,
    pub since: Timestamp,
}

impl Hindered {
    /// One that was there before anybody now remembers.
    pub fn lasting(by: Hindrance, now: Timestamp) -> Self {
        Self { by, since: now - ORDINARY }
    }

    /// It lasts: not merely a moment in the life of a node that comes to be.
    pub fn lasts(&self, now: Timestamp) -> bool {
        now.since(self.since) >= ORDINARY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_no_hindrance() {
        let by = Hindrance::new(HindranceKind::Unschedulable, "has no worker");
        let hindered = Hindered { by, since: Timestamp(1_000) };
        assert!(!hindered.lasts(Timestamp(1_000)) && !hindered.lasts(Timestamp(5_999)));
        assert!(hindered.lasts(Timestamp(6_000)));
    }

    #[test]
    fn refusals_of_quota_and_admission_are_told_apart() {
        let kind = |code| HindranceKind::of_refusal(code).as_str();
        assert_eq!(kind(Code::CapacityExceeded), "quota-exceeded");
        assert_eq!(kind(Code::NotAllowed), "admission-denied");
        assert_eq!(kind(Code::ContainerClusterUnusable), "namespace-missing");
        assert_eq!(kind(Code::NoFreePort), "refused");
    }
}
