//! The plan while it is being made: steps and waits, each once.

use std::collections::BTreeSet;

use larder_model::Desired;
use larder_model::NodeId;
use larder_model::plan::{PlannedStep, Step, Wait};

pub(crate) struct Draft<'a> {
    desired: &'a Desired,
    steps: Vec<PlannedStep>,
    waits: Vec<Wait>,
    /// Shards that begin to give or get no slots now: their primary is to change.
    at_rest: BTreeSet<u32>,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(desired: &'a Desired) -> Self {
        Self { desired, steps: Vec::new(), waits: Vec::new(), at_rest: BTreeSet::new() }
    }

    /// Adds a step, unless the very same one is there already.
    pub(crate) fn step(&mut self, step: Step, reason: impl Into<String>) {
        if self.steps.iter().any(|planned| planned.step == step) {
            return;
        }
        self.steps.push(PlannedStep {
            instance: self.desired.spec.id.clone(),
            generation: self.desired.generation,
            reason: reason.into(),
            step,
        });
    }

    pub(crate) fn wait(&mut self, wait: Wait) {
        if !self.waits.contains(&wait) {
            self.waits.push(wait);
        }
    }

    pub(crate) fn has_steps(&self) -> bool {
        !self.steps.is_empty()
    }

    /// Whether something already planned changes who serves on one of these nodes.
    pub(crate) fn disturbs<'n>(&self, mut nodes: impl Iterator<Item = &'n NodeId>) -> bool {
        nodes.any(|id| {
            self.steps
                .iter()
                .any(|planned| planned.step.node() == Some(id) && is_disturbing(&planned.step))
        })
    }

    pub(crate) fn rest(&mut self, shard: u32) {
        self.at_rest.insert(shard);
    }

    pub(crate) fn at_rest(&self) -> &BTreeSet<u32> {
        &self.at_rest
    }

    pub(crate) fn waits(&self) -> &[Wait] {
        &self.waits
    }

    pub(crate) fn finish(self) -> (Vec<PlannedStep>, Vec<Wait>) {
        (self.steps, self.waits)
    }
}

/// Steps after which a shard has, for a moment or for ever, one serving node less, or another
/// primary. Never two of them in one shard at once.
pub(crate) fn is_disturbing(step: &Step) -> bool {
    match step {
        Step::HandOver { .. }
        | Step::TakeLease { .. }
        | Step::FailOverShard { .. }
        | Step::RestartServer { .. }
        | Step::RetireNode { .. }
        | Step::RemoveNode { .. } => true,
        Step::RecordNode { .. }
        | Step::ReserveAddress { .. }
        | Step::ExposeNode { .. }
        | Step::EnsureNode { .. }
        | Step::ConfigureNode { .. }
        | Step::EnsureEndpoint { .. }
        | Step::MarkInitialized
        | Step::MeetNodes { .. }
        | Step::AssignSlots { .. }
        | Step::ReplicateNode { .. }
        | Step::ForgetNodes { .. }
        | Step::MoveSlots { .. }
        | Step::StopMovingSlots { .. }
        | Step::CloseSlots { .. }
        | Step::StartEmpty { .. }
        | Step::UpdateOperation { .. }
        | Step::ResizeNode { .. }
        | Step::PlaceInLine { .. }
        | Step::SetUsers { .. }
        | Step::DropFormerPassword
        | Step::RemoveEndpoint { .. }
        | Step::ForgetRecord { .. }
        | Step::PurgeInstance => false,
    }
}
