//! The steps of an operation as people see them.

use larder_model::plan::{OperationOutcome, OperationReport, Wait};
use larder_model::{Code, Operation, OperationStep, Refusal, StepState};

use crate::draft::Draft;
use crate::view::View;

/// One step of an operation as it is now.
#[derive(Clone, Debug)]
pub(crate) struct Phase {
    pub(crate) name: &'static str,
    pub(crate) done: bool,
    /// 0 to 1, where it can be measured.
    pub(crate) progress: Option<f64>,
    pub(crate) message: String,
}

impl Phase {
    pub(crate) fn new(name: &'static str, done: bool, message: impl Into<String>) -> Self {
        Self { name, done, progress: None, message: message.into() }
    }

    /// `done` of `all`, with what is counted: "nodes are removed".
    pub(crate) fn counted(name: &'static str, done: u32, all: u32, what: &str) -> Self {
        let progress = if all == 0 { 1.0 } else { f64::from(done.min(all)) / f64::from(all) };
        Self {
            name,
            done: done >= all,
            progress: Some(progress),
            message: format!("{} of {all} {what}", done.min(all)),
        }
    }
}

/// The report of an operation that goes on, or is done.
pub(crate) fn report(phases: Vec<Phase>, done: bool, draft: &Draft<'_>) -> OperationReport {
    let blocked = if draft.has_steps() { None } else { draft.waits().iter().find(|w| blocks(w)) };
    let outcome = match (done, blocked) {
        (true, _) => OperationOutcome::Succeeded,
        (false, Some(_)) => OperationOutcome::Waiting,
        (false, None) => OperationOutcome::Running,
    };
    let waits_for = blocked.or_else(|| draft.waits().first()).map(in_words);
    OperationReport { steps: steps(phases, done, waits_for, blocked.is_some()), outcome }
}

/// What is waited for, without times: steps are recorded, and would be anew with every second.
fn in_words(wait: &Wait) -> String {
    match wait {
        Wait::AgentSilent { node, .. } => format!("nothing is heard of node {node}"),
        Wait::ReplacementDelay { node, .. } => {
            format!("node {node} is replaced when it stays away")
        }
        Wait::Draining { node, .. } => format!("clients of node {node} get time to leave it"),
        // The step itself counts them.
        Wait::SlotsMoving { node, to, problem: None, .. } => {
            format!("slots are on their way from node {node} to node {to}")
        }
        other => other.to_string(),
    }
}

/// The report of an operation that is refused or cannot be ended.
pub(crate) fn failed(phases: Vec<Phase>, refusal: Refusal) -> OperationReport {
    stopped(steps(phases, false, None, false), refusal)
}

/// The report of an operation that cannot get there: its steps as they were last recorded.
pub(crate) fn broke(operation: &Operation, refusal: Refusal) -> OperationReport {
    stopped(operation.steps.clone(), refusal)
}

/// The report of an operation that ends here: the step at work is the one that failed.
pub(crate) fn stopped(mut steps: Vec<OperationStep>, refusal: Refusal) -> OperationReport {
    if let Some(step) = steps.iter_mut().find(|step| step.state != StepState::Succeeded) {
        step.state = StepState::Failed;
        step.message.clone_from(&refusal.detail);
    }
    OperationReport { steps, outcome: OperationOutcome::Failed(refusal) }
}

/// The report of an operation that has used up its time: its steps as they were last recorded.
pub(crate) fn timed_out(view: &View<'_>, operation: &Operation) -> OperationReport {
    let after = view.desired.policy.operation_timeout;
    let stuck = operation.steps.iter().find(|step| step.state != StepState::Succeeded);
    let at =
        stuck.map_or(String::new(), |step| format!(" in step `{}`: {}", step.name, step.message));
    let refusal = Refusal::new(
        Code::Timeout,
        format!("the {} did not get there within {after}{at}", operation.kind.as_str()),
    );
    broke(operation, refusal)
}

/// The first step that is not done is the one at work; those after it may have begun.
fn steps(
    phases: Vec<Phase>,
    all_done: bool,
    waits_for: Option<String>,
    blocked: bool,
) -> Vec<OperationStep> {
    let mut current_seen = false;
    phases
        .into_iter()
        .map(|phase| {
            let done = phase.done || all_done;
            let current = !done && !current_seen;
            current_seen |= current;
            let begun = phase.progress.is_some_and(|progress| progress > 0.0);
            let state = match (done, current) {
                (true, _) => StepState::Succeeded,
                (false, true) if blocked => StepState::Waiting,
                (false, true) => StepState::Running,
                (false, false) if begun => StepState::Running,
                (false, false) => StepState::Pending,
            };
            let message = match &waits_for {
                Some(reason) if current => format!("{}; {reason}", phase.message),
                _ => phase.message,
            };
            OperationStep {
                name: phase.name.to_owned(),
                state,
                progress: if done { Some(1.0) } else { phase.progress },
                message,
                started_at: None,
                finished_at: None,
            }
        })
        .collect()
}

/// Waits that only somebody else can end.
fn blocks(wait: &Wait) -> bool {
    match wait {
        Wait::BackendUnreachable
        | Wait::AgentSilent { .. }
        | Wait::NodeBlocked { .. }
        | Wait::ReplacementDelay { .. }
        | Wait::NoRoom { .. }
        | Wait::NodeNotExposed { .. }
        | Wait::EndpointNotExposed { .. }
        | Wait::DataTooLarge { .. }
        | Wait::Paused
        | Wait::SlotsMoving { problem: Some(_), .. }
        | Wait::DataLost { .. } => true,
        Wait::ServerStarting { .. }
        | Wait::ServerDown { .. }
        | Wait::Election { .. }
        | Wait::ReplicaSyncing { .. }
        | Wait::Gossip { .. }
        | Wait::ClusterDown { .. }
        | Wait::EndpointSilent { .. }
        | Wait::Effect { .. }
        | Wait::Draining { .. }
        | Wait::SlotsMoving { problem: None, .. }
        | Wait::Removal { .. } => false,
    }
}
