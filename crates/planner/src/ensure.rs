//! Making what the spec asks for exist: records, addresses, nodes, endpoints. Creation is nothing
//! but this, from an empty beginning.

use larder_model::agent::{ProblemCode, ServerState};
use larder_model::plan::{OperationReport, Step, Wait};
use larder_model::{
    Code, EndpointKind, Exposed, IdSource, InstanceState, Millis, NodeRecord, Observation,
    OperationKind, Refusal,
};

use crate::draft::Draft;
use crate::op_steps::{self, Phase};
use crate::parameters;
use crate::placement::Placer;
use crate::render;
use crate::report;
use crate::view::View;

/// Records for nodes that the spec asks for and that nobody has recorded yet. What is counted
/// are records, never what is seen of nodes: a node that crashed is still wanted.
pub(crate) fn records(view: &View<'_>, draft: &mut Draft<'_>, ids: &mut dyn IdSource) {
    let missing = missing_nodes(view);
    if missing.is_empty() {
        return;
    }
    if view.observed.workers.is_empty() {
        draft.wait(Wait::BackendUnreachable);
        return;
    }
    let mut placer = Placer::new(view.desired, view.observed);
    for (shard, bootstrap) in missing {
        match placer.place(shard, bootstrap, &[]) {
            Some(placement) => draft.step(
                Step::RecordNode {
                    node: fresh_id(view, ids),
                    shard,
                    worker: placement.worker,
                    zone: placement.zone,
                    bootstrap,
                },
                "the spec asks for it",
            ),
            None => draft.wait(no_room(view, shard)),
        }
    }
}

/// An id that no record has; chance gives the same one twice only in tests.
pub(crate) fn fresh_id(view: &View<'_>, ids: &mut dyn IdSource) -> larder_model::NodeId {
    loop {
        let id = ids.node_id();
        if view.record(&id).is_none() && !view.observed.nodes.contains_key(&id) {
            return id;
        }
    }
}

pub(crate) fn no_room(view: &View<'_>, shard: u32) -> Wait {
    Wait::NoRoom { shard, needed_bytes: view.desired.spec.memory.bytes() }
}

/// Shard and whether it is the shard's first primary. All first primaries come first, so that
/// they are spread before anything else takes room; then replicas, shard after shard.
pub(crate) fn missing_nodes(view: &View<'_>) -> Vec<(u32, bool)> {
    let mut first = Vec::new();
    let mut others = Vec::new();
    for shard in view.wanted_shards() {
        let recorded = u32::try_from(view.wanted_of(shard).count()).unwrap_or(u32::MAX);
        let mut missing = view.desired.spec.replicas.saturating_sub(recorded);
        let bootstrap = !view.desired.initialized
            && missing > 0
            && !view.wanted_of(shard).any(|record| record.bootstrap);
        if bootstrap {
            first.push((shard, true));
            missing -= 1;
        }
        others.extend((0..missing).map(|k| (k, shard)));
    }
    others.sort_unstable();
    first.extend(others.into_iter().map(|(_, shard)| (shard, false)));
    first
}

pub(crate) fn addresses(view: &View<'_>, draft: &mut Draft<'_>) {
    for record in view.wanted.iter().filter(|record| record.address.is_none()) {
        match view.backend(&record.id) {
            Observation::Absent | Observation::Known { .. } => draft.step(
                Step::ReserveAddress { node: record.id.clone() },
                "it is kept for the node's whole life",
            ),
            Observation::UnknownYet | Observation::Unknown { .. } => {
                draft.wait(Wait::BackendUnreachable);
            }
        }
    }
}

/// Cluster mode sends clients to single nodes, so those outside need a way to each of them. What
/// the container cluster has given is written down and announced; when it gives another one (a
/// load balancer that was made anew), that is.
pub(crate) fn exposed(view: &View<'_>, draft: &mut Draft<'_>) {
    if view.desired.spec.exposes_nodes().is_none() {
        return;
    }
    for record in view.wanted.iter().filter(|record| record.address.is_some()) {
        let node = record.id.clone();
        let held = match view.backend(&record.id) {
            Observation::Absent => &Exposed::No,
            Observation::Known { value, .. } => &value.exposed,
            Observation::UnknownYet | Observation::Unknown { .. } => continue,
        };
        match (held, &record.outer) {
            (Exposed::Yes(given), Some(known)) if given == known => {}
            (Exposed::Yes(_), Some(_)) => {
                draft.step(Step::ExposeNode { node }, "its address outside has changed");
            }
            (Exposed::Yes(_), None) => {
                draft.step(Step::ExposeNode { node }, "it has an address outside now");
            }
            (Exposed::Pending, _) => draft.wait(Wait::NodeNotExposed { node }),
            (Exposed::No, _) => {
                draft.step(Step::ExposeNode { node }, "clients outside have to reach it");
            }
        }
    }
}

pub(crate) fn endpoints(view: &View<'_>, draft: &mut Draft<'_>) {
    for &kind in view.desired.spec.architecture.endpoints() {
        match view.endpoint(kind) {
            Observation::Absent => {
                if kind != EndpointKind::Discovery || members_are_known(view) {
                    draft.step(Step::EnsureEndpoint { endpoint: kind }, "it does not exist yet");
                }
            }
            Observation::Known { value, .. } => {
                if !value.whole {
                    draft.step(Step::EnsureEndpoint { endpoint: kind }, "a part of it is missing");
                // An endpoint does not show which members it knows; it is told when nodes are.
                } else if kind == EndpointKind::Discovery && nodes_lag_behind(view) {
                    draft.step(
                        Step::EnsureEndpoint { endpoint: kind },
                        "the nodes behind it may have changed",
                    );
                }
                if value.pending {
                    draft.wait(Wait::EndpointNotExposed { endpoint: kind });
                } else if !value.answers {
                    draft.wait(Wait::EndpointSilent { endpoint: kind });
                }
            }
            Observation::UnknownYet | Observation::Unknown { .. } => {
                draft.wait(Wait::BackendUnreachable);
            }
        }
    }
}

/// A discovery endpoint is told its members; before all have addresses there is little to tell.
fn members_are_known(view: &View<'_>) -> bool {
    view.desired.initialized || render::everybody_has_an_address(view.desired)
}

fn nodes_lag_behind(view: &View<'_>) -> bool {
    let generation = render::config_generation(view.desired);
    view.desired.initialized
        && view.wanted.iter().filter(|record| !view.worker_is_away(record)).any(|record| {
            view.backend(&record.id).known().is_some_and(|held| held.generation < generation)
        })
}

/// Nodes that the container cluster lacks, or holds in an older form.
pub(crate) fn nodes(view: &View<'_>, draft: &mut Draft<'_>) {
    let generation = render::config_generation(view.desired);
    for record in &view.wanted {
        if render::node_config(view.desired, record).is_none() {
            continue;
        }
        let node = record.id.clone();
        let held = match view.backend(&record.id) {
            Observation::Absent => {
                if view.worker_lives(record) {
                    let reason = if view.desired.initialized {
                        "the container cluster does not hold it"
                    } else {
                        "it does not exist yet"
                    };
                    draft.step(Step::EnsureNode { node }, reason);
                } else if view.observed.workers.is_empty() {
                    draft.wait(Wait::BackendUnreachable);
                } else {
                    draft
                        .wait(Wait::AgentSilent { node, unknown_for: view.silent_for(&record.id) });
                }
                continue;
            }
            Observation::UnknownYet | Observation::Unknown { .. } => {
                draft.wait(Wait::BackendUnreachable);
                continue;
            }
            Observation::Known { value, .. } => value,
        };
        if view.worker_is_away(record) {
            continue; // Nobody is there to tell.
        }
        if held.realised && parameters::waits_for_trial(view, record) {
            let what = "another server has tried the new parameters".to_owned();
            draft.wait(Wait::Effect { what });
            continue;
        }
        if !held.realised && view.volume_is_leaving(&record.id) {
            // It can be made anew only once that is gone, which its pod decides.
            draft.wait(Wait::Removal { what: format!("the deleted volume of node {node}") });
            continue;
        }
        if !held.realised {
            let reason =
                if held.volume { "a part of it is missing" } else { "only its address exists" };
            draft.step(Step::EnsureNode { node }, reason);
            continue;
        }
        if held.generation < generation {
            draft
                .step(Step::EnsureNode { node: node.clone() }, behind(held.generation, generation));
        } else if held.outdated {
            draft.step(
                Step::EnsureNode { node: node.clone() },
                "the container cluster's settings have changed since it was made",
            );
        }
        if let Some(status) = view.agent(&record.id)
            && status.generation < generation
        {
            draft.step(Step::ConfigureNode { node }, behind(status.generation, generation));
        }
    }
}

fn behind(has: u64, wanted: u64) -> String {
    format!("it has generation {has}, generation {wanted} is wanted")
}

/// What agents and servers are not ready for yet. Only waiting: agents start servers and elect
/// by themselves.
pub(crate) fn servers(view: &View<'_>, draft: &mut Draft<'_>) {
    for record in &view.wanted {
        let realised = view.backend(&record.id).known().is_some_and(|held| held.realised);
        let node = record.id.clone();
        match (view.server(&record.id), view.hindrance(&record.id)) {
            (None, Some(by)) => draft.wait(Wait::NodeBlocked { node, by: by.clone() }),
            (None, None) if realised => {
                draft.wait(Wait::AgentSilent { node, unknown_for: view.silent_for(&record.id) });
            }
            (None, None) => {}
            (Some(ServerState::Starting | ServerState::Loading), _) => {
                draft.wait(Wait::ServerStarting { node });
            }
            (Some(ServerState::Absent), _) if !view.desired.initialized => {
                draft.wait(Wait::ServerStarting { node });
            }
            (Some(ServerState::Absent | ServerState::Dead | ServerState::Hung), _) => {
                draft.wait(Wait::ServerDown { node });
            }
            (Some(ServerState::Serving | ServerState::Busy), _) => replica(view, draft, record),
        }
    }
    if !view.is_cluster() {
        elections(view, draft);
    }
}

fn replica(view: &View<'_>, draft: &mut Draft<'_>, record: &NodeRecord) {
    let has_primary = view.primary(record.shard).is_some();
    if has_primary && !view.is_primary(record) && !view.is_linked(record) {
        draft.wait(Wait::ReplicaSyncing { node: record.id.clone() });
    }
}

fn elections(view: &View<'_>, draft: &mut Draft<'_>) {
    for shard in view.shards() {
        let anybody = view.wanted_of(shard).any(|record| view.serves(&record.id));
        if anybody && view.primary(shard).is_none() {
            draft.wait(Wait::Election { shard });
        }
    }
}

/// Once every shard can take writes the instance has a past: nothing of it starts empty again.
pub(crate) fn initialized(view: &View<'_>, draft: &mut Draft<'_>) {
    if !view.desired.initialized && every_shard_takes_writes(view) {
        draft.step(Step::MarkInitialized, "every shard has a serving primary");
    }
}

fn every_shard_takes_writes(view: &View<'_>) -> bool {
    let led = view.shards().all(|shard| match view.primary(shard) {
        Some(primary) if view.is_cluster() => {
            view.cluster(&primary.id).is_some_and(|cluster| cluster.state_ok)
        }
        Some(_) => true,
        None => false,
    });
    led && (!view.is_cluster() || view.all_slots_are_held())
}

/// Servers that do not start get this long in a creation: many attempts, and a moment of trouble
/// of the machine passes.
const CREATION_PATIENCE: Millis = Millis::secs(30);

/// Why a creation will not get there, in the words of the node that keeps it. Nobody uses the
/// instance yet, so it had better end with the reason than be tried for hours.
pub(crate) fn creation_is_hopeless(view: &View<'_>) -> Option<Refusal> {
    let operation = view.operation().filter(|o| o.kind == OperationKind::Create)?;
    if view.desired.initialized || view.now.since(operation.created_at) < CREATION_PATIENCE {
        return None;
    }
    view.wanted.iter().find_map(|record| {
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
        let detail = format!("node {} does not start: {}", record.id, problem.message);
        Some(Refusal::new(code, detail))
    })
}

/// How a creation is getting on; done when the instance is running and nothing is left to do.
pub(crate) fn creation_report(view: &View<'_>, draft: &Draft<'_>) -> OperationReport {
    let spec = &view.desired.spec;
    let all = spec.node_count();
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let placed =
        count(view.wanted.iter().filter(|r| render::can_be_reached(view.desired, r)).count());
    let serving = count(view.wanted.iter().filter(|r| view.serves(&r.id)).count());
    let kinds = spec.architecture.endpoints();
    let answering = count(
        kinds
            .iter()
            .filter(|kind| view.endpoint(**kind).known().is_some_and(|e| e.answers))
            .count(),
    );
    let mut phases = vec![
        Phase::counted("place-nodes", placed, all, "nodes have a place and an address"),
        Phase::counted("start-nodes", serving, all, "servers answer"),
    ];
    if view.is_cluster() {
        let held = view.held_slots().count();
        let slots = u32::from(larder_model::SLOT_COUNT);
        let formed = every_shard_takes_writes(view);
        let mut phase = Phase::counted("form-cluster", held, slots, "slots are served");
        phase.done = formed;
        phases.push(phase);
    } else {
        phases.push(match view.primary(0) {
            Some(primary) => {
                Phase::new("elect-primary", true, format!("node {} is the primary", primary.id))
            }
            None => Phase::new("elect-primary", false, "no primary yet"),
        });
    }
    if spec.replicas > 1 {
        let linked = count(view.wanted.iter().filter(|r| view.is_linked(r)).count());
        let replicas = spec.shards * (spec.replicas - 1);
        phases.push(Phase::counted("sync-replicas", linked, replicas, "replicas are in sync"));
    }
    phases.push(Phase::counted(
        "publish-endpoints",
        answering,
        count(kinds.len()),
        "endpoints answer",
    ));
    // Agents must have heard that the instance has a past before its creation may be called done.
    let done = view.desired.initialized
        && !draft.has_steps()
        && report::health(view).state == InstanceState::Running
        && phases.iter().all(|phase| phase.done);
    op_steps::report(phases, done, draft)
}
