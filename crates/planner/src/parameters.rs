//! Parameters of running servers: tried by one replica first, then by all; and what a server refuses
//! ends the change with its words.

use larder_model::agent::ParametersState;
use larder_model::plan::OperationReport;
use larder_model::{Code, InstanceState, NodeRecord, Operation, OperationKind, Refusal};

use crate::change;
use crate::draft::Draft;
use crate::op_steps::{self, Phase};
use crate::report;
use crate::view::View;

/// What the node's server has of the parameters that are wanted now.
fn told<'a>(view: &View<'a>, record: &NodeRecord) -> Option<&'a ParametersState> {
    let state = view.agent(&record.id)?.server.parameters.as_ref()?;
    (state.revision >= view.desired.spec.parameters_revision).then_some(state)
}

/// The node is not to hear of new values yet: somebody else tries them first. A primary tries them only
/// where there is no replica.
pub(crate) fn waits_for_trial(view: &View<'_>, record: &NodeRecord) -> bool {
    let changes = view
        .operation()
        .is_some_and(|operation| matches!(operation.kind, OperationKind::SetParameters { .. }));
    if !changes || !view.serves(&record.id) {
        return false;
    }
    let serving = || view.wanted.iter().filter(|other| view.serves(&other.id));
    let tried = serving().any(|other| told(view, other).is_some_and(|it| it.refused.is_none()));
    let first = serving().min_by_key(|other| (view.is_primary(other), &other.id));
    !tried && first.is_none_or(|first| first.id != record.id)
}

/// The server was started with other values of what holds from the start only.
pub(crate) fn is_stale(view: &View<'_>, record: &NodeRecord) -> bool {
    told(view, record).is_some_and(|state| state.stale)
}

pub(crate) fn report(
    view: &View<'_>,
    draft: &mut Draft<'_>,
    operation: &Operation,
) -> OperationReport {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let serving = || view.wanted.iter().filter(|record| view.serves(&record.id));
    let all = count(view.wanted.len());
    let taken = count(serving().filter(|record| told(view, record).is_some()).count());
    let mut phases =
        vec![Phase::counted("apply-parameters", taken, all, "servers have the new values")];
    let refused = serving().find_map(|record| {
        let refused = told(view, record)?.refused.as_ref()?;
        Some(
            Refusal::new(
                Code::UpdateFailed,
                format!(
                    "the server of node {} refuses `{}`: {}; the former values serve",
                    record.id, refused.name, refused.words
                ),
            )
            .field(refused.name.clone()),
        )
    });
    if let Some(refusal) = refused {
        return op_steps::failed(phases, refusal);
    }
    let renews = serving().any(|record| is_stale(view, record))
        || view.wanted.len() > view.desired.spec.node_count() as usize
        || !view.leaving.is_empty();
    if renews {
        phases.extend(change::phases(view, operation));
        if let Some(refusal) = change::hopeless(view, draft, operation) {
            let text = format!("{}; the former values serve", refusal.detail);
            return op_steps::failed(phases, Refusal::new(Code::UpdateFailed, text));
        }
    }
    let done = phases.iter().all(|phase| phase.done)
        && !draft.has_steps()
        && report::health(view).state == InstanceState::Running;
    op_steps::report(phases, done, draft)
}
