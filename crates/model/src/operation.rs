//! Long pieces of work on an instance, kept as records.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::Refusal;
use crate::ids::{EngineName, InstanceId, NodeId, OperationId};
use crate::size::ByteSize;
use crate::spec::InstanceSpec;
use crate::time::Timestamp;

/// What is being done, with what the work needs to remember.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum OperationKind {
    Create,
    Delete,
    /// Restart of all nodes or of one. `run_ids` holds the servers to be replaced, filled when
    /// the work begins: a node is done when its server has another run id.
    Restart {
        node: Option<NodeId>,
        run_ids: BTreeMap<NodeId, String>,
    },
    /// Planned or forced change of a shard's primary. `from` is the primary when it began, or the
    /// last one that is known of.
    Failover {
        shard: u32,
        to: Option<NodeId>,
        accept_data_loss: bool,
        from: Option<NodeId>,
        /// The work has begun, and nobody led the shard then: no hand-over is under way that could
        /// be disturbed. `from` is empty when nobody knows who led last.
        #[serde(default)]
        without_primary: bool,
    },
    /// New servers in place of all there are, with the same data: a restart where a shard has only
    /// one copy. `former` is the spec's revision before.
    Renew {
        former: u64,
    },
    /// Another memory for every node. `former` is what each had before.
    Resize {
        former: ByteSize,
    },
    /// Other numbers of shards, or of nodes per shard. What they were before.
    Scale {
        former_shards: u32,
        former_replicas: u32,
        /// There are or were to be other shards, so the slots are shared evenly.
        #[serde(default)]
        share_slots: bool,
        /// No slots are moved for now, by a person's word.
        #[serde(default)]
        paused: bool,
    },
    /// Other shares of the slots for the shards, by what these hold. `counts` is how many each is
    /// to have, filled when the work begins.
    Rebalance {
        counts: Vec<u32>,
        #[serde(default)]
        paused: bool,
    },
    /// Another password of the tenant, which is revision `revision` of the users. The former one is
    /// valid beside it for a while; that it ends is not the operation's.
    SetPassword {
        revision: u64,
    },
    /// Replicas copy from each other from now on, or from the primary again. What it was before.
    SetChained {
        former: bool,
    },
    /// An account comes, changes or goes, which is revision `revision` of the users.
    ChangeAccount {
        name: String,
        change: AccountChange,
        revision: u64,
    },
    /// Other values of the servers' parameters.
    SetParameters {
        changes: Vec<ParameterChange>,
    },
    /// Another version of the engine. `former` is the one before, as long as there is a way back
    /// to it: none once a server of the new version leads, whose data the old one may not read.
    Upgrade {
        former: Option<EngineName>,
    },
}

/// What becomes of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AccountChange {
    Create,
    Update,
    Delete,
}

/// One parameter's change; `None` is its default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParameterChange {
    pub name: String,
    pub from: Option<String>,
    pub to: Option<String>,
}

impl OperationKind {
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Delete => "delete",
            Self::Restart { .. } => "restart",
            Self::Failover { .. } => "failover",
            Self::Renew { .. } => "restart",
            Self::Resize { .. } => "resize",
            Self::Scale { .. } => "scale",
            Self::Rebalance { .. } => "rebalance",
            Self::Upgrade { .. } => "upgrade",
            Self::SetPassword { .. } => "set-password",
            Self::ChangeAccount { change, .. } => match change {
                AccountChange::Create => "create-account",
                AccountChange::Update => "update-account",
                AccountChange::Delete => "delete-account",
            },
            Self::SetParameters { .. } => "set-parameters",
            Self::SetChained { .. } => "set-chained",
        }
    }

    /// Takes back from the wish what the operation has added to it: when it fails or is cancelled,
    /// the instance goes on as it was. `refusal`: why it has failed. Answers whether that changes
    /// anything.
    pub fn undo(&self, spec: &mut InstanceSpec, refusal: Option<&Refusal>) -> bool {
        let before = spec.clone();
        match self {
            Self::Renew { former } => spec.revision = *former,
            Self::Resize { former } => spec.memory = *former,
            Self::Scale { former_shards, former_replicas, .. } => {
                spec.shards = *former_shards;
                spec.replicas = *former_replicas;
            }
            Self::SetParameters { changes } => {
                for change in changes {
                    match &change.from {
                        Some(value) => spec.parameters.insert(change.name.clone(), value.clone()),
                        None => spec.parameters.remove(&change.name),
                    };
                }
                // Servers have the values that are taken back: to take them back is a change again.
                spec.parameters_revision += 1;
                spec.parameters_refused = refusal.map(|refusal| refusal.detail.clone());
            }
            Self::SetChained { former } => spec.chained = *former,
            Self::Upgrade { former } => {
                if let Some(former) = former {
                    spec.engine = former.clone();
                }
            }
            Self::Create
            | Self::Delete
            | Self::Restart { .. }
            | Self::Failover { .. }
            | Self::Rebalance { .. }
            | Self::SetPassword { .. }
            | Self::ChangeAccount { .. } => {}
        }
        before != *spec
    }

    /// The operation that goes on in place of the unfinished `held` one, when this one may take
    /// over from it: a wish for the same thing, in another measure. It goes back, if it must, to
    /// where the first one began.
    pub fn in_place_of(&self, held: &Self) -> Option<Self> {
        match (self, held) {
            (Self::Resize { .. }, Self::Resize { .. }) => Some(held.clone()),
            (
                Self::Scale { share_slots: more, .. },
                Self::Scale { former_shards, former_replicas, share_slots, .. },
            ) => Some(Self::Scale {
                former_shards: *former_shards,
                former_replicas: *former_replicas,
                share_slots: *share_slots || *more,
                paused: false,
            }),
            _ => None,
        }
    }

    /// Its slots are not to be moved just now.
    pub fn is_paused(&self) -> bool {
        matches!(self, Self::Scale { paused: true, .. } | Self::Rebalance { paused: true, .. })
    }

    /// The same work, paused or going on; `None` for work that cannot be paused.
    pub fn with_pause(&self, pause: bool) -> Option<Self> {
        let mut kind = self.clone();
        match &mut kind {
            Self::Scale { paused, .. } | Self::Rebalance { paused, .. } => *paused = pause,
            _ => return None,
        }
        Some(kind)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OperationState {
    Queued,
    Running,
    /// Cannot go on just now; the step's message says what it waits for.
    Waiting,
    Succeeded,
    Failed,
    Cancelled,
}

impl OperationState {
    pub const ALL: [Self; 6] = [
        Self::Queued,
        Self::Running,
        Self::Waiting,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == text)
    }

    pub fn is_finished(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// One operation. At most one unfinished operation holds an instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    pub id: OperationId,
    pub instance: InstanceId,
    /// The instance's name when the operation was asked for; it outlives the instance.
    pub instance_name: String,
    pub kind: OperationKind,
    pub state: OperationState,
    pub steps: Vec<OperationStep>,
    pub requested_by: String,
    /// Address the request came from.
    pub requested_from: String,
    pub created_at: Timestamp,
    pub finished_at: Option<Timestamp>,
    pub error: Option<Refusal>,
}

impl Operation {
    /// Finished share, 0 to 1, each step counting alike.
    pub fn progress(&self) -> f64 {
        if self.state == OperationState::Succeeded {
            return 1.0;
        }
        if self.steps.is_empty() {
            return 0.0;
        }
        let done: f64 = self
            .steps
            .iter()
            .map(|step| match step.state {
                StepState::Succeeded => 1.0,
                StepState::Running | StepState::Waiting => step.progress.unwrap_or(0.0),
                StepState::Pending | StepState::Failed => 0.0,
            })
            .sum();
        done / self.steps.len() as f64
    }
}

/// One step of an operation as people see it. Times are filled in by who records it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperationStep {
    /// A stable word, kebab-case: `start-nodes`.
    pub name: String,
    pub state: StepState,
    /// 0 to 1, where it can be measured.
    pub progress: Option<f64>,
    pub message: String,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    Pending,
    Running,
    Waiting,
    Succeeded,
    Failed,
}
