//! What a creation would do: the real planner on an instance that exists only here.

use larder_api_types::PlanView;
use larder_model::plan::{Plan, Step};
use larder_model::{
    Address, Desired, InstanceSpec, NodeRecord, Observation, Observed, ObservedNode, Operation,
    OperationKind, OperationState, OuterAddress, Timestamp,
};

use crate::clock::now;
use crate::error::ApiError;
use crate::ids::RandomIds;
use crate::state::ApiState;

/// More rounds than it takes to have written down everything that needs no observation.
const ROUNDS: u16 = 8;

/// Plans, does on paper what only changes records, and plans again: shows everything up to the
/// point from which on things have to be observed.
pub(crate) async fn plan(state: &ApiState, spec: InstanceSpec) -> Result<PlanView, ApiError> {
    let clusters = state.parts().capacity.container_clusters().await;
    let cluster = clusters.into_iter().find(|cluster| cluster.name == spec.container_cluster);
    let endpoints = spec.architecture.endpoints().iter();
    let endpoints = endpoints.map(|kind| (*kind, Observation::Absent)).collect();
    let now = now();
    let name = spec.name.to_string();
    let mut desired = desired(state, spec, now);
    if let Some(cluster) = &cluster {
        cluster.rule(&mut desired);
    }
    let workers = cluster.map(|cluster| cluster.workers).unwrap_or_default();
    let observed = Observed { workers, endpoints, ..Observed::default() };
    Ok(view(&name, on_paper(desired, observed, now)))
}

/// The instance as it would be just after its creation was accepted.
pub(crate) fn desired(state: &ApiState, spec: InstanceSpec, now: Timestamp) -> Desired {
    use larder_model::IdSource as _;
    let operation = Operation {
        id: RandomIds.operation_id(),
        instance: spec.id.clone(),
        instance_name: spec.name.to_string(),
        kind: OperationKind::Create,
        state: OperationState::Queued,
        steps: Vec::new(),
        requested_by: String::new(),
        requested_from: String::new(),
        created_at: now,
        finished_at: None,
        error: None,
    };
    Desired {
        spec,
        generation: 1,
        created_at: now,
        deletion: None,
        nodes: Vec::new(),
        initialized: false,
        operation: Some(operation),
        users_revision: 0,
        former_password_until: None,
        policy: state.parts().policy,
    }
}

/// The last plan, with the steps of all rounds.
fn on_paper(mut desired: Desired, mut observed: Observed, now: Timestamp) -> Plan {
    let mut ids = RandomIds;
    let mut steps: Vec<larder_model::plan::PlannedStep> = Vec::new();
    let mut last = larder_planner::plan(&desired, &observed, now, &mut ids);
    for round in 0..ROUNDS {
        let mut changed = false;
        for planned in &last.steps {
            if steps.iter().any(|done| done.step == planned.step) {
                continue;
            }
            changed |= write_down(&mut desired, &mut observed, &planned.step, round, now);
            steps.push(planned.clone());
        }
        if !changed {
            break;
        }
        last = larder_planner::plan(&desired, &observed, now, &mut ids);
    }
    last.steps = steps;
    last
}

/// Whether the step changes records only, and so could be done on paper.
fn write_down(
    desired: &mut Desired,
    observed: &mut Observed,
    step: &Step,
    round: u16,
    now: Timestamp,
) -> bool {
    match step {
        Step::RecordNode { node, shard, worker, zone, bootstrap } => {
            desired.nodes.push(NodeRecord::new(
                node.clone(),
                *shard,
                worker.clone(),
                zone.clone(),
                *bootstrap,
                &desired.spec,
                now,
            ));
            let absent = ObservedNode {
                backend: Observation::Absent,
                agent: Observation::Absent,
                hindered: None,
            };
            observed.nodes.insert(node.clone(), absent);
            true
        }
        Step::ReserveAddress { node } => {
            let number = u16::try_from(desired.nodes.len()).unwrap_or(u16::MAX);
            for record in desired.nodes.iter_mut().filter(|record| record.id == *node) {
                // Any address will do: it is not shown.
                record.address = Some(Address::new("to-be-reserved", number + round));
            }
            true
        }
        Step::ExposeNode { node } => {
            for record in desired.nodes.iter_mut().filter(|record| record.id == *node) {
                record.outer = Some(OuterAddress { host: None, port: 0, bus_port: None });
            }
            true
        }
        _ => false,
    }
}

/// Conditions and progress are left out of the text: nothing exists yet that could have any.
fn view(name: &str, plan: Plan) -> PlanView {
    let mut text = format!(
        "dry run: nothing is started\ncreating {name} would begin with (ids are examples):\n"
    );
    for step in &plan.steps {
        text.push_str(&format!("  do   {step}\n"));
    }
    for wait in &plan.waits {
        text.push_str(&format!("  wait {wait}\n"));
    }
    PlanView {
        instance: None,
        generation: plan.generation,
        state: plan.report.state.to_string(),
        steps: plan.steps.iter().map(ToString::to_string).collect(),
        waits: plan.waits.iter().map(ToString::to_string).collect(),
        text,
        planned_at: None,
    }
}
