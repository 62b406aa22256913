//! How a change of size, shape or version is getting on. What is done for it is not here: the wish
//! is in the spec, and the rest of the planner makes the instance so.

use larder_model::agent::ProblemCode;
use larder_model::plan::{OperationReport, Wait};
use larder_model::{
    Code, InstanceSpec, InstanceState, Millis, NodeRecord, Operation, OperationKind, Refusal,
};

use crate::draft::Draft;
use crate::op_steps::{self, Phase};
use crate::report;
use crate::slots;
use crate::view::View;

/// New nodes get this long to come to be. Nothing of the instance suffers while they are tried, but
/// the person who asked had better hear that it does not work.
const PATIENCE: Millis = Millis::secs(60);

pub(crate) fn advance(
    view: &View<'_>,
    draft: &mut Draft<'_>,
    operation: &Operation,
) -> OperationReport {
    let phases = phases(view, operation);
    if let Some(refusal) = hopeless(view, draft, operation) {
        return op_steps::failed(phases, refusal);
    }
    let done = phases.iter().all(|phase| phase.done)
        && !draft.has_steps()
        && report::health(view).state == InstanceState::Running;
    op_steps::report(phases, done, draft)
}

pub(crate) fn phases(view: &View<'_>, operation: &Operation) -> Vec<Phase> {
    let spec = &view.desired.spec;
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let of_shards = || view.wanted.iter().filter(|record| record.shard < spec.shards);
    let fresh = |record: &&&NodeRecord| !view.is_outdated(record);
    let all = spec.node_count();
    let in_place = matches!(operation.kind, OperationKind::Resize { .. })
        && view.desired.policy.resizes_in_place;
    if in_place {
        let sized = view.wanted.iter().filter(|record| has_its_memory(view, record)).count();
        return vec![Phase::counted(
            "resize-nodes",
            count(sized),
            count(view.wanted.len()),
            "nodes have their new memory",
        )];
    }
    let serving = of_shards().filter(fresh).filter(|record| view.serves(&record.id)).count();
    let well = of_shards().filter(fresh).filter(|record| view.is_well(record)).count();
    let led = view
        .wanted_shards()
        .filter(|shard| view.primary(*shard).is_some_and(|p| !view.is_outdated(p)))
        .count();
    let recorded = view.desired.nodes.len();
    let surplus = count(recorded).saturating_sub(all);
    let mut removal = Phase::new(
        "remove-nodes",
        surplus == 0 && of_shards().all(|record| !view.is_outdated(record)),
        match surplus {
            0 => "no node is left over".to_owned(),
            1 => "1 node is still to go".to_owned(),
            n => format!("{n} nodes are still to go"),
        },
    );
    removal.done &= view.leaving.is_empty();
    let mut phases = vec![
        Phase::counted("start-nodes", count(serving), all, "nodes are as they are wanted"),
        Phase::counted("sync-replicas", count(well), all, "of them are in sync"),
    ];
    phases.extend(slots::phase(view, operation));
    phases.push(Phase::counted(
        "change-primaries",
        count(led),
        spec.shards,
        "shards are led by one of them",
    ));
    phases.push(removal);
    phases
}

/// The server says so itself: that a configuration was handed over proves nothing.
fn has_its_memory(view: &View<'_>, record: &NodeRecord) -> bool {
    let limit = InstanceSpec::maxmemory_of(view.desired.spec.memory);
    record.memory == view.desired.spec.memory
        && view.agent(&record.id).is_some_and(|status| status.server.maxmemory == Some(limit))
}

/// Why the change will not get there, while there is a way back: a new node that does not come to
/// be, with the words of who knows why.
pub(crate) fn hopeless(
    view: &View<'_>,
    draft: &Draft<'_>,
    operation: &Operation,
) -> Option<Refusal> {
    // Said at once: data do not become fewer by waiting.
    if let Some(wait) = draft.waits().iter().find(|w| matches!(w, Wait::DataTooLarge { .. })) {
        return Some(Refusal::new(Code::DataTooLarge, wait.to_string()));
    }
    let too_late = operation.kind == OperationKind::Upgrade { former: None };
    if too_late || view.now.since(operation.created_at) < PATIENCE {
        return None;
    }
    let is_new = |record: &&&NodeRecord| {
        record.created_at >= operation.created_at
            && view.now.since(record.created_at) >= PATIENCE
            && !view.serves(&record.id)
    };
    let not_started = view.wanted.iter().filter(is_new).find_map(|record| {
        let problem = view.agent(&record.id)?.problem.as_ref()?;
        let code = match problem.code {
            ProblemCode::ServerWillNotStart => Code::InstanceNotReady,
            ProblemCode::EngineMissing => Code::EngineUnusable,
            ProblemCode::PortTaken => Code::NoFreePort,
            ProblemCode::DiskFull => Code::DiskFull,
            ProblemCode::VolumeLost
            | ProblemCode::NoPrimary
            | ProblemCode::FailoverOnHold
            | ProblemCode::LeaseUnreachable => return None,
        };
        let detail = format!("new node {} does not start: {}", record.id, problem.message);
        Some(Refusal::new(code, detail))
    });
    let blocked = || {
        view.wanted.iter().filter(is_new).find_map(|record| {
            let by = view.hindrance(&record.id)?;
            let detail = format!("new node {} {}; {}", record.id, by.message, by.kind.next_move());
            Some(Refusal::new(Code::CapacityExceeded, detail))
        })
    };
    let no_room = || {
        let wait = draft.waits().iter().find(|wait| matches!(wait, Wait::NoRoom { .. }))?;
        Some(Refusal::new(Code::CapacityExceeded, wait.to_string()))
    };
    not_started.or_else(blocked).or_else(no_room)
}
