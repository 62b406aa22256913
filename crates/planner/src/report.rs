//! What the observation means to people: the state of the instance and its conditions.

use larder_model::agent::Role;
use larder_model::plan::{OperationReport, Report};
use larder_model::{
    Condition, Desired, EndpointKind, HindranceKind, InstanceState, NodeRecord, Observation,
    Observed, OperationKind, Timestamp,
};

use crate::drift;
use crate::majority::{self, Majority};
use crate::view::View;

/// How well the instance serves, whatever is being done with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    /// Running, degraded or unavailable.
    pub(crate) state: InstanceState,
    /// What keeps it from running, worst first; empty when it runs.
    pub(crate) complaints: Vec<Complaint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Complaint {
    /// Writes do not get through somewhere.
    pub(crate) blocks_writes: bool,
    /// A stable word, kebab-case.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// The state of the instance (spec row B12), from what is seen and from the operation that holds
/// it.
pub fn instance_state(desired: &Desired, observed: &Observed, now: Timestamp) -> InstanceState {
    let view = View::new(desired, observed, now);
    state(&view, &health(&view))
}

/// The conditions of the instance: `ready`, `available`, `redundant` always; `data-lost`,
/// `failover-on-hold`, `container-cluster-unreachable`, `node-blocked`, `volume-leaving`,
/// `node-problem`, `drifted`, `majority-on-one-worker` only while they are so.
pub fn conditions(desired: &Desired, observed: &Observed, now: Timestamp) -> Vec<Condition> {
    let view = View::new(desired, observed, now);
    all_conditions(&view, &health(&view))
}

pub(crate) fn report(view: &View<'_>, operation: Option<OperationReport>) -> Report {
    let health = health(view);
    Report { state: state(view, &health), conditions: all_conditions(view, &health), operation }
}

fn state(view: &View<'_>, health: &Health) -> InstanceState {
    if view.desired.deletion.is_some() {
        return InstanceState::Deleting;
    }
    if view.creation_failed() {
        return InstanceState::Failed;
    }
    match view.operation().map(|operation| &operation.kind) {
        Some(OperationKind::Create) => InstanceState::Creating,
        Some(OperationKind::Delete) => InstanceState::Deleting,
        Some(OperationKind::Scale { .. } | OperationKind::Rebalance { .. }) => {
            InstanceState::Scaling
        }
        Some(
            OperationKind::Restart { .. }
            | OperationKind::Failover { .. }
            | OperationKind::Renew { .. }
            | OperationKind::Resize { .. }
            | OperationKind::SetPassword { .. }
            | OperationKind::SetParameters { .. }
            | OperationKind::SetChained { .. }
            | OperationKind::ChangeAccount { .. }
            | OperationKind::Upgrade { .. },
        ) => InstanceState::Updating,
        // As long as it serves as it should; else that is the news.
        None if health.state == InstanceState::Running
            && view.desired.spec.parameters_refused.is_some() =>
        {
            InstanceState::UpdateFailed
        }
        None => health.state,
    }
}

/// `Running` means: every wanted node is there and well, every endpoint answers, and a cluster
/// is whole in every node's own eyes.
pub(crate) fn health(view: &View<'_>) -> Health {
    let mut complaints = Vec::new();
    for shard in view.shards() {
        shard_complaints(view, shard, &mut complaints);
    }
    if view.is_cluster() {
        cluster_complaints(view, &mut complaints);
    }
    endpoint_complaints(view, &mut complaints);
    complaints.sort_by_key(|complaint| !complaint.blocks_writes);
    let state = match complaints.first() {
        None => InstanceState::Running,
        Some(worst) if worst.blocks_writes => InstanceState::Unavailable,
        Some(_) => InstanceState::Degraded,
    };
    Health { state, complaints }
}

fn shard_complaints(view: &View<'_>, shard: u32, complaints: &mut Vec<Complaint>) {
    let mut complain = |blocks_writes: bool, reason: &'static str, message: String| {
        complaints.push(Complaint { blocks_writes, reason, message });
    };
    if view.data_is_lost(shard) {
        complain(true, "data-lost", format!("no copy of shard {shard} is left"));
        return;
    }
    if view.is_surplus(shard) {
        complain(false, "surplus-shard", format!("shard {shard} is on its way out"));
    }
    if view.primary(shard).is_none() && view.is_empty_shard(shard) {
        complain(false, "no-primary", format!("shard {shard}, which has no slots, is not led"));
    } else if view.primary(shard).is_none() {
        if may_be_led(view, shard) {
            let message = format!("the primary of shard {shard} is not heard of");
            complain(false, "primary-silent", message);
        } else {
            complain(true, "no-primary", format!("shard {shard} has no serving primary"));
        }
    }
    let missing =
        (view.desired.spec.replicas as usize).saturating_sub(view.wanted_of(shard).count());
    if missing > 0 && !view.is_surplus(shard) {
        complain(false, "node-missing", format!("shard {shard} lacks {missing} nodes"));
    }
    for record in view.wanted_of(shard).filter(|record| !view.is_well(record)) {
        let (reason, what) = ailment(view, record);
        complain(false, reason, format!("node {} {what}", record.id));
    }
    for record in view.wanted_of(shard).filter(|record| view.volume_is_leaving(&record.id)) {
        let message = format!("the volume of node {} is being deleted", record.id);
        complain(false, HindranceKind::VolumeLeaving.as_str(), message);
    }
}

/// Nobody is seen to lead the shard, but a node that nothing is heard of may: not contradicted by
/// a replica whose link is down.
fn may_be_led(view: &View<'_>, shard: u32) -> bool {
    let silent = view.all_of(shard).any(|record| view.is_silent(&record.id));
    let links: Vec<bool> = view
        .all_of(shard)
        .filter(|record| view.serves(&record.id))
        .filter_map(|record| view.replication(&record.id))
        .filter(|replication| replication.role == Role::Replica)
        .map(|replication| replication.link_up)
        .collect();
    view.desired.initialized && silent && (links.is_empty() || links.contains(&true))
}

/// Why a node is not well, in words that follow its id.
fn ailment(view: &View<'_>, record: &NodeRecord) -> (&'static str, String) {
    use larder_model::agent::ServerState::{Absent, Busy, Dead, Hung, Loading, Serving, Starting};
    if view.agent(&record.id).is_none() {
        if let Some(by) = view.hindrance(&record.id) {
            return (by.kind.as_str(), by.message.clone());
        }
        if view.backend(&record.id).is_absent() {
            return ("node-absent", "does not exist".to_owned());
        }
        // Without the time: conditions are recorded, and would be anew with every second.
        return ("node-silent", "is not heard of".to_owned());
    }
    match view.server(&record.id) {
        Some(Absent) | None => ("server-down", "has no server running".to_owned()),
        Some(Starting) => ("server-starting", "is starting".to_owned()),
        Some(Loading) => ("server-loading", "is loading its data".to_owned()),
        Some(Busy) => ("server-busy", "is busy in a long command".to_owned()),
        Some(Hung) => ("server-hung", "hangs".to_owned()),
        Some(Dead) => ("server-down", "is down".to_owned()),
        Some(Serving) if view.primary(record.shard).is_none() => {
            ("no-primary", "has no primary to follow".to_owned())
        }
        Some(Serving) => ("not-in-sync", "is not in sync with its primary".to_owned()),
    }
}

fn cluster_complaints(view: &View<'_>, complaints: &mut Vec<Complaint>) {
    let led = view.shards().all(|s| view.primary(s).is_some() || view.is_empty_shard(s));
    let held = view.held_slots().count();
    if led && !view.all_slots_are_held() {
        complaints.push(Complaint {
            blocks_writes: true,
            reason: "slots-uncovered",
            message: format!("{held} of {} slots are served", larder_model::SLOT_COUNT),
        });
    }
    let views: Vec<_> =
        view.views().filter(|(r, _)| view.wanted.iter().any(|w| w.id == r.id)).collect();
    let down: Vec<&NodeRecord> =
        views.iter().filter(|(_, cluster)| !cluster.state_ok).map(|(record, _)| *record).collect();
    if down.is_empty() {
        return;
    }
    let everywhere = down.len() == views.len();
    for record in down {
        complaints.push(Complaint {
            blocks_writes: everywhere,
            reason: "cluster-down",
            message: format!("node {} sees the cluster as down", record.id),
        });
    }
}

fn endpoint_complaints(view: &View<'_>, complaints: &mut Vec<Complaint>) {
    for &kind in view.desired.spec.architecture.endpoints() {
        let (blocks_writes, what) = match view.endpoint(kind) {
            Observation::Known { value, .. } if value.answers => continue,
            Observation::Known { .. } => (kind == EndpointKind::Write, "does not answer"),
            Observation::Absent => (kind == EndpointKind::Write, "does not exist"),
            Observation::UnknownYet | Observation::Unknown { .. } => (false, "cannot be asked"),
        };
        complaints.push(Complaint {
            blocks_writes,
            reason: "endpoint-down",
            message: format!("the {kind} endpoint {what}"),
        });
    }
}

fn all_conditions(view: &View<'_>, health: &Health) -> Vec<Condition> {
    let state = state(view, health);
    let all: Vec<&str> = health.complaints.iter().map(|c| c.message.as_str()).collect();
    let mut conditions = vec![
        match health.complaints.first() {
            // What was refused has been taken back: nothing is missing.
            None if matches!(state, InstanceState::Running | InstanceState::UpdateFailed) => {
                condition("ready", true, "running", READY)
            }
            None => condition("ready", false, state.as_str(), "an operation is under way"),
            Some(worst) => condition("ready", false, worst.reason, &all.join("; ")),
        },
        match health.complaints.first().filter(|worst| worst.blocks_writes) {
            None => presumably_available(view),
            Some(worst) => condition("available", false, worst.reason, &worst.message),
        },
        redundancy(view),
    ];
    let lost: Vec<String> =
        view.shards().filter(|s| view.data_is_lost(*s)).map(|s| s.to_string()).collect();
    if !lost.is_empty() {
        conditions.push(condition(
            "data-lost",
            true,
            "no-copy-left",
            &format!(
                "no copy is left of shard {}, and nothing is started empty in its place: a person \
                 has to decide, and can delete the instance",
                lost.join(", ")
            ),
        ));
    }
    if let Some(why) = &view.desired.spec.parameters_refused {
        conditions.push(condition("update-failed", true, "refused", why));
    }
    conditions.extend(unreachable(view));
    conditions.extend(blocked(view));
    conditions.extend(volume_leaving(view));
    let agents = || view.wanted.iter().filter_map(|r| Some((*r, view.agent(&r.id)?)));
    let on_hold: Vec<String> = agents()
        .filter(|(_, status)| status.lease.as_ref().is_some_and(|lease| lease.failover_on_hold))
        .map(|(record, _)| record.shard.to_string())
        .collect();
    if let Some(shard) = on_hold.first() {
        conditions.push(condition(
            "failover-on-hold",
            true,
            "too-many-failovers",
            &format!(
                "shard {shard} has failed over too often in a short time; it fails over by a \
                 person's word only until the hold ends"
            ),
        ));
    }
    let drifted: Vec<String> = (view.shards())
        .filter_map(|shard| {
            let worker = drift::crowded_worker(view, shard)?;
            Some(format!("several nodes of shard {shard} are on worker {worker}"))
        })
        .collect();
    if !drifted.is_empty() {
        conditions.push(condition(
            "drifted",
            true,
            "shared-worker",
            &format!(
                "{}; while all nodes are well and another worker has room, one is copied there",
                drifted.join("; ")
            ),
        ));
    }
    if let Some(found) = majority::majority(view) {
        let Majority { worker, primaries, to } = found;
        conditions.push(condition(
            "majority-on-one-worker",
            true,
            "shared-worker",
            &format!(
                "worker {worker} holds the primaries of {primaries} of {} shards: without it \
                 nobody could be elected, and no shard would take writes until it is back or \
                 confirmed lost; move one by `larder instance failover {} --shard {} --to {}`",
                view.desired.spec.shards, view.desired.spec.name, to.shard, to.id
            ),
        ));
    }
    let problems: Vec<String> = agents()
        .filter_map(|(record, status)| {
            let problem = status.problem.as_ref()?;
            Some(format!("node {}: {}", record.id, problem.message))
        })
        .collect();
    if !problems.is_empty() {
        conditions.push(condition("node-problem", true, "reported", &problems.join("; ")));
    }
    conditions
}

/// The container cluster does not answer: what is shown is older than it looks.
fn unreachable(view: &View<'_>) -> Option<Condition> {
    let trouble = view.observed.trouble.as_ref()?;
    let text = format!(
        "{trouble}; until it answers nothing of the instance is known from there, and nothing is \
         changed"
    );
    Some(condition("container-cluster-unreachable", true, "no-answer", &text))
}

/// Volumes that somebody has deleted under nodes that still serve.
fn volume_leaving(view: &View<'_>) -> Option<Condition> {
    let kind = HindranceKind::VolumeLeaving;
    let all: Vec<String> = (view.wanted.iter())
        .filter(|record| view.volume_is_leaving(&record.id))
        .map(|record| format!("the volume of node {} goes when its pod ends", record.id))
        .collect();
    (!all.is_empty()).then(|| {
        let text = format!("{}; {}", all.join("; "), kind.next_move());
        condition(kind.as_str(), true, "deleted-by-hand", &text)
    })
}

/// Nodes that cannot come to be, with what the container cluster says and what a person can do.
fn blocked(view: &View<'_>) -> Option<Condition> {
    let all: Vec<_> =
        view.wanted.iter().filter_map(|r| Some((*r, view.hindrance(&r.id)?))).collect();
    let (_, first) = all.first()?;
    let mut words: Vec<String> =
        all.iter().map(|(record, by)| format!("node {} {}", record.id, by.message)).collect();
    let mut kinds: Vec<_> = all.iter().map(|(_, by)| by.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    words.extend(kinds.into_iter().map(|kind| kind.next_move().to_owned()));
    Some(condition("node-blocked", true, first.kind.as_str(), &words.join("; ")))
}

/// Nothing says that a shard takes no writes; that is not always the same as knowing that it does.
fn presumably_available(view: &View<'_>) -> Condition {
    let unled = |shard: &u32| view.primary(*shard).is_none() && !view.is_empty_shard(*shard);
    match view.shards().find(unled) {
        None => condition("available", true, "writes-served", "every shard takes writes"),
        Some(shard) => condition(
            "available",
            true,
            "presumed",
            &format!("the primary of shard {shard} is not heard of; nothing says that it is down"),
        ),
    }
}

const READY: &str = "every node serves with its link up and every endpoint answers";

/// Every shard has all the copies that the spec asks for, and more than one.
fn redundancy(view: &View<'_>) -> Condition {
    let spec = &view.desired.spec;
    if spec.replicas < 2 {
        return condition("redundant", false, "one-copy", "the instance has no replicas by design");
    }
    let thin: Vec<String> = view
        .wanted_shards()
        .filter(|&shard| {
            let replicas = view.linked_of(shard).count() + 1;
            view.primary(shard).is_none() || replicas < spec.replicas as usize
        })
        .map(|shard| shard.to_string())
        .collect();
    if thin.is_empty() {
        return condition("redundant", true, "in-sync", "every replica is in sync");
    }
    condition(
        "redundant",
        false,
        "replica-missing",
        &format!("not every copy is in sync in shard {}", thin.join(", ")),
    )
}

fn condition(kind: &str, status: bool, reason: &str, message: &str) -> Condition {
    Condition {
        kind: kind.to_owned(),
        status,
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}
