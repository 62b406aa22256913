//! What it means for an operation that one of its steps was refused.

use larder_model::plan::{OperationReport, Step};
use larder_model::{Code, Desired, OperationKind, Refusal};

use crate::op_steps;

/// The report of the operation when the refusal ends it, with the step at work as the one that
/// failed; `None` when the step is to be tried again.
///
/// `report` is what the plan said of the operation that the step is from. `from_cluster`: the
/// container cluster refused the step, not an agent.
pub fn ended_by_refusal(
    desired: &Desired,
    report: &OperationReport,
    step: &Step,
    refusal: &Refusal,
    from_cluster: bool,
) -> Option<OperationReport> {
    let operation = desired.operation.as_ref()?;
    let refusal = match (&operation.kind, step) {
        // What the container cluster cannot do it cannot do later by itself: no port, no room, no
        // engine. What an agent refuses may pass: its server is only starting.
        (OperationKind::Create, _) if from_cluster && desired.deletion.is_none() => refusal.clone(),
        // A node that has no data to lead with says so: ordering it again changes nothing.
        (OperationKind::Failover { .. }, Step::TakeLease { node })
            if refusal.code == Code::NoEligibleReplica =>
        {
            let detail = format!("node {node} cannot take over: {}", refusal.detail);
            Refusal { detail, ..refusal.clone() }
        }
        _ => return None,
    };
    Some(op_steps::stopped(report.steps.clone(), refusal))
}
