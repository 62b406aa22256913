//! Deletion: everything goes, from any half-made state, and only what is seen to be gone is
//! forgotten. Supersedes all else.

use larder_model::plan::{OperationReport, Step, Wait};
use larder_model::{EndpointKind, Observation};

use crate::draft::Draft;
use crate::op_steps::{self, Phase};
use crate::view::View;

pub(crate) fn remove_everything(view: &View<'_>, draft: &mut Draft<'_>) {
    endpoints(view, draft);
    nodes(view, draft);
    if nothing_is_left(view) {
        draft.step(Step::PurgeInstance, "nothing of it is left");
    }
}

/// All kinds are looked at, not only those of the architecture: what exists has to go.
fn kinds<'a>(view: &'a View<'_>) -> impl Iterator<Item = EndpointKind> + 'a {
    let wanted = view.desired.spec.architecture.endpoints();
    let others = view.observed.endpoints.keys().copied().filter(|kind| !wanted.contains(kind));
    wanted.iter().copied().chain(others)
}

fn endpoints(view: &View<'_>, draft: &mut Draft<'_>) {
    for kind in kinds(view) {
        match view.endpoint(kind) {
            Observation::Absent => {}
            Observation::Known { .. } => {
                draft.step(Step::RemoveEndpoint { endpoint: kind }, "the instance is deleted");
            }
            Observation::UnknownYet | Observation::Unknown { .. } => {
                draft.wait(Wait::BackendUnreachable);
            }
        }
    }
}

fn nodes(view: &View<'_>, draft: &mut Draft<'_>) {
    for record in view.wanted.iter().chain(&view.leaving) {
        let node = record.id.clone();
        match view.backend(&record.id) {
            Observation::Absent => {
                draft.step(Step::ForgetRecord { node }, "nothing of it is left");
            }
            Observation::Known { .. } => {
                draft.step(Step::RemoveNode { node }, "the instance is deleted");
            }
            Observation::UnknownYet | Observation::Unknown { .. } => {
                if view.worker_is_lost(record) {
                    draft.step(Step::ForgetRecord { node }, "its worker is lost for good");
                } else {
                    draft.wait(Wait::BackendUnreachable);
                    draft.wait(Wait::Removal { what: format!("node {node}") });
                }
            }
        }
    }
    // What the container cluster holds without a record: left over from a crash in between.
    for (id, seen) in &view.observed.nodes {
        if view.record(id).is_none() && seen.backend.known().is_some() {
            draft.step(Step::RemoveNode { node: id.clone() }, "it has no record");
        }
    }
}

fn nothing_is_left(view: &View<'_>) -> bool {
    view.desired.nodes.is_empty()
        && view.observed.nodes.values().all(|seen| seen.backend.is_absent())
        && kinds(view).all(|kind| view.endpoint(kind).is_absent())
}

/// How a deletion is getting on. It is never reported as done: who purges the records of the
/// instance ends the operation with them.
pub(crate) fn report(view: &View<'_>, draft: &Draft<'_>) -> OperationReport {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let kinds: Vec<EndpointKind> = kinds(view).collect();
    let gone = count(kinds.iter().filter(|kind| view.endpoint(**kind).is_absent()).count());
    let held = count(view.observed.nodes.values().filter(|seen| !seen.backend.is_absent()).count());
    let left = count(view.desired.nodes.len()).max(held);
    let all = view.desired.spec.node_count().max(left);
    let phases = vec![
        Phase::counted("remove-endpoints", gone, count(kinds.len()), "endpoints are removed"),
        Phase::counted("remove-nodes", all - left, all, "nodes are removed"),
        Phase::new("purge", false, "the records of the instance go last"),
    ];
    op_steps::report(phases, false, draft)
}
