//! What to do next for one instance, as a pure function of what is wanted and what is seen.
//!
//! [`plan`] is asked again after every step and every piece of news; it has no memory. Whatever
//! must be remembered is in the records (`NodeRecord`, `Operation`), so a plan made twice is the
//! same plan, and a plan for an instance that is as it should be is empty.
//!
//! What callers must keep to:
//!
//! - `Desired::generation` rises whenever the spec, a node record, an address or `initialized`
//!   changes. Nodes whose backend or agent shows an older generation are configured again.
//! - `Observed::nodes` has an entry for every record and for everything that the container
//!   cluster holds; `Observed::endpoints` one for every endpoint of the architecture. What was
//!   looked for and not found is `Absent`; a missing entry is taken as unknown.
//! - Agents show what roles are decided from. Leased nodes: `lease` (with its epoch and holder)
//!   and `replication`; the primary is who holds the lease by its own word, with the role
//!   `Primary`, on a server that serves. Clustered nodes: `cluster` (their own line included)
//!   and, for replicas, `replication`. Views that a server gave before it died may stay.
//! - What a plan's own steps change in the records does not make its other steps stale, though
//!   the generation rises.
//! - Steps about one node are done in the order of the plan, others as the caller likes. A step
//!   that failed or whose effect is not seen yet is simply planned again.
//! - After `PurgeInstance` there is nothing left to plan for: who has done it finishes the
//!   deletion's operation.
//! - `Desired::operation` is the unfinished operation that holds the instance. An instance that
//!   was never initialized, has no operation and is not being deleted is a failed creation: it is
//!   left alone until it is deleted.

mod chain;
mod change;
mod cluster;
mod cluster_repair;
mod delete;
mod draft;
mod drift;
mod ensure;
mod failover;
mod gather;
mod half_way;
mod heal;
mod lint;
mod majority;
mod op_steps;
mod parameters;
mod placement;
mod refused;
mod render;
mod renew;
mod report;
mod restart;
mod slot_plan;
mod slots;
mod users;
mod view;

use larder_model::plan::{OperationOutcome, OperationReport, Plan};
use larder_model::{
    Code, Desired, IdSource, Observed, Operation, OperationKind, Refusal, Timestamp,
};

pub use lint::{Violation, lint};
pub use placement::{Placement, check_room, place, rules_of_cluster};
pub use refused::ended_by_refusal;
pub use render::{RENDERER, config_generation, endpoint_members, members, node_config};
pub use report::{conditions, instance_state};

use draft::Draft;
use view::View;

/// Decides what to do now, what is waited for, and what to tell people.
///
/// `now` is wall-clock time, comparable with the times in `desired` and `observed`. `ids` is
/// asked only for the ids of new nodes.
pub fn plan(
    desired: &Desired,
    observed: &Observed,
    now: Timestamp,
    ids: &mut dyn IdSource,
) -> Plan {
    let view = View::new(desired, observed, now);
    let mut draft = Draft::new(desired);
    let operation = decide(&view, &mut draft, ids);
    let report = report::report(&view, operation);
    let (steps, waits) = draft.finish();
    Plan { instance: desired.spec.id.clone(), generation: desired.generation, steps, waits, report }
}

/// Fills the draft and tells how the operation that holds the instance, if any, is getting on.
fn decide(
    view: &View<'_>,
    draft: &mut Draft<'_>,
    ids: &mut dyn IdSource,
) -> Option<OperationReport> {
    let operation = view.operation();
    if view.desired.deletion.is_some() {
        delete::remove_everything(view, draft);
        return operation.map(|_| delete::report(view, draft));
    }
    if view.creation_failed() {
        return operation.map(|operation| OperationReport {
            steps: operation.steps.clone(),
            outcome: OperationOutcome::Failed(Refusal::new(
                Code::InstanceNotReady,
                "the creation of the instance went wrong: delete it and create it anew",
            )),
        });
    }
    let timed_out = operation.filter(|operation| has_timed_out(view, operation));
    if let Some(operation) = timed_out.filter(|o| o.kind == OperationKind::Create) {
        return Some(op_steps::timed_out(view, operation));
    }
    if let Some(refusal) = ensure::creation_is_hopeless(view) {
        return operation.map(|operation| op_steps::broke(operation, refusal));
    }
    ensure::records(view, draft, ids);
    ensure::addresses(view, draft);
    ensure::exposed(view, draft);
    ensure::endpoints(view, draft);
    ensure::nodes(view, draft);
    ensure::servers(view, draft);
    users::users(view, draft);
    if view.is_cluster() {
        cluster::form(view, draft);
        cluster_repair::repair(view, draft);
    }
    ensure::initialized(view, draft);
    chain::keep_in_line(view, draft);
    heal::heal(view, draft, ids);
    if view.is_cluster() {
        slots::slots(view, draft);
    }
    drift::repair(view, draft, ids);
    let operation = operation?;
    if timed_out.is_some() {
        return Some(op_steps::timed_out(view, operation));
    }
    match &operation.kind {
        OperationKind::Create => Some(ensure::creation_report(view, draft)),
        // Deletion is wanted by the spec, not by the operation; without the wish nothing goes.
        OperationKind::Delete => Some(delete::report(view, draft)),
        OperationKind::Restart { node, run_ids } => {
            Some(restart::advance(view, draft, node.as_ref(), run_ids))
        }
        OperationKind::Failover { shard, to, accept_data_loss, from, without_primary } => {
            let change = operation.steps.iter().find(|step| step.name == failover::CHANGE);
            let wish = failover::Wish {
                shard: *shard,
                to: to.as_ref(),
                accept_data_loss: *accept_data_loss,
                from: from.as_ref(),
                without_primary: *without_primary,
                begun_at: change.and_then(|s| s.started_at).unwrap_or(operation.created_at),
            };
            Some(failover::advance(view, draft, &wish))
        }
        OperationKind::Renew { .. }
        | OperationKind::Resize { .. }
        | OperationKind::Scale { .. }
        | OperationKind::Upgrade { .. } => Some(change::advance(view, draft, operation)),
        OperationKind::SetParameters { .. } => Some(parameters::report(view, draft, operation)),
        OperationKind::SetChained { .. } => Some(chain::report(view, draft)),
        OperationKind::Rebalance { .. } => Some(slots::rebalance(view, draft, operation)),
        OperationKind::SetPassword { .. } => {
            Some(users::report(view, draft, "servers know the new password"))
        }
        OperationKind::ChangeAccount { .. } => {
            Some(users::report(view, draft, "servers know the accounts"))
        }
    }
}

fn has_timed_out(view: &View<'_>, operation: &Operation) -> bool {
    // Who pauses it takes the time that it takes.
    !operation.kind.is_paused()
        && view.now.since(operation.created_at) > view.desired.policy.operation_timeout
}
