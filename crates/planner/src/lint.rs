//! The plan linter: rules that no plan may break, checked apart from how plans are made.
//!
//! Run in every test of planner and reconciler. A violation is a bug in the planner, never a state
//! of the world.

use std::collections::BTreeSet;
use std::fmt;

use larder_model::agent::{ClusterFailoverMode, Role};
use larder_model::plan::{Plan, PlannedStep, Step};
use larder_model::{
    Desired, InstanceSpec, NodeId, NodeRecord, Observed, OperationKind, SlotSet, Timestamp,
    WorkerState,
};

use crate::cluster_repair::{former_primary, is_forgettable, process_is_gone};
use crate::draft::is_disturbing;
use crate::gather;
use crate::half_way;
use crate::heal::{goes_with_shard, may_go};
use crate::render;
use crate::slots;
use crate::view::View;

/// A rule that a plan breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// A stable word, kebab-case.
    pub rule: &'static str,
    /// The step or wait at fault.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.detail)
    }
}

/// Every rule that `plan`, made from `desired` and `observed`, breaks. Empty for a sound plan.
pub fn lint(desired: &Desired, observed: &Observed, plan: &Plan) -> Vec<Violation> {
    // Rules speak of what is known, not of how long something has been unknown.
    let view = View::new(desired, observed, Timestamp(i64::MAX));
    let mut found = Vec::new();
    whole_plan(&view, plan, &mut found);
    for planned in &plan.steps {
        for rule in broken_by(&view, &planned.step) {
            found.push(Violation { rule, detail: planned.to_string() });
        }
    }
    found
}

/// Rules about steps together.
fn whole_plan(view: &View<'_>, plan: &Plan, found: &mut Vec<Violation>) {
    let mut broken = |rule: &'static str, detail: String| found.push(Violation { rule, detail });
    let desired = view.desired;
    for planned in &plan.steps {
        if planned.instance != desired.spec.id || planned.generation != desired.generation {
            broken("steps-carry-the-fence", planned.to_string());
        }
    }
    for (i, planned) in plan.steps.iter().enumerate() {
        if plan.steps[..i].iter().any(|before| before.step == planned.step) {
            broken("steps-are-planned-once", planned.to_string());
        }
    }
    if view.creation_failed() && !plan.steps.is_empty() {
        broken("a-failed-creation-is-left-alone", plan.to_string());
    }
    if desired.deletion.is_none() {
        for shard in view.shards() {
            let touched: Vec<&PlannedStep> = plan
                .steps
                .iter()
                .filter(|planned| is_disturbing(&planned.step))
                .filter(|planned| {
                    planned
                        .step
                        .node()
                        .and_then(|node| view.record(node))
                        .is_some_and(|record| record.shard == shard)
                })
                .collect();
            if let [_, second, ..] = touched.as_slice() {
                broken("one-change-of-a-shard-at-a-time", second.to_string());
            }
        }
    }
    let mut assigned = SlotSet::default();
    for planned in &plan.steps {
        if let Step::AssignSlots { ranges, .. } = &planned.step {
            let before = assigned.count();
            let mut total = 0;
            for range in ranges {
                assigned.insert(*range);
                total += u32::from(range.len());
            }
            if assigned.count() != before + total {
                broken("a-slot-is-assigned-once", planned.to_string());
            }
        }
    }
}

/// Rules about one step by itself.
fn broken_by(view: &View<'_>, step: &Step) -> Vec<&'static str> {
    let mut broken = Vec::new();
    let mut rule = |name: &'static str, holds: bool| {
        if !holds {
            broken.push(name);
        }
    };
    let deleting = view.desired.deletion.is_some();
    let removes = matches!(
        step,
        Step::RemoveEndpoint { .. }
            | Step::RemoveNode { .. }
            | Step::ForgetRecord { .. }
            | Step::PurgeInstance
    );
    rule("deletion-supersedes-everything", !deleting || removes);
    let record = step.node().and_then(|node| view.record(node));
    match step {
        Step::RecordNode { node, worker, bootstrap, .. } => {
            rule("ids-are-fresh", view.record(node).is_none());
            rule(
                "nodes-go-to-ready-workers",
                view.observed
                    .workers
                    .iter()
                    .any(|w| w.name == *worker && w.state == WorkerState::Ready),
            );
            rule("nothing-bootstraps-twice", !(*bootstrap && view.desired.initialized));
        }
        Step::ReserveAddress { .. } => {
            rule("an-address-is-kept", record.is_some_and(|record| record.address.is_none()));
        }
        Step::ExposeNode { node } => {
            let wanted = view.desired.spec.exposes_nodes().is_some();
            let has_address = record.is_some_and(|record| record.address.is_some());
            rule("only-what-is-asked-for-is-exposed", wanted && has_address);
            let unknown = view.backend(node).known().is_none() && !view.backend(node).is_absent();
            rule("unknown-recreates-nothing", !unknown);
        }
        Step::EnsureNode { node } => {
            let behind = match view.backend(node) {
                larder_model::Observation::Absent => true,
                larder_model::Observation::Known { value, .. } => {
                    !value.realised
                        || value.outdated
                        || value.generation < render::config_generation(view.desired)
                }
                _ => false,
            };
            rule("unknown-recreates-nothing", behind);
            rule(
                "peers-have-addresses",
                record.is_some_and(|record| render::node_config(view.desired, record).is_some()),
            );
        }
        Step::ConfigureNode { node } => rule(
            "unknown-is-not-configured",
            view.agent(node)
                .is_some_and(|agent| agent.generation < render::config_generation(view.desired)),
        ),
        Step::EnsureEndpoint { endpoint } => {
            let unknown =
                view.endpoint(*endpoint).known().is_none() && !view.endpoint(*endpoint).is_absent();
            rule("unknown-recreates-nothing", !unknown);
        }
        Step::MarkInitialized => rule(
            "initialized-means-served",
            view.shards().all(|shard| view.primary(shard).is_some()),
        ),
        Step::MeetNodes { node, peers } => {
            rule("orders-go-to-servers", view.serves(node));
            rule(
                "peers-are-known-by-id",
                peers.iter().all(|peer| peer != node && view.server_id(peer).is_some()),
            );
        }
        Step::AssignSlots { node, .. } => {
            rule("slots-are-assigned-at-creation-only", !view.desired.initialized);
            rule("orders-go-to-servers", view.serves(node));
        }
        Step::ReplicateNode { node, primary, primary_id } => {
            rule("orders-go-to-servers", view.serves(node));
            rule("a-holder-of-slots-follows-nobody", record.is_some_and(|r| !view.holds_slots(r)));
            rule("a-server-is-known-by-id", view.server_id(primary) == Some(primary_id.as_str()));
            let same = record.zip(view.record(primary)).is_some_and(|(a, b)| a.shard == b.shard);
            rule("a-replica-stays-in-its-shard", same);
        }
        Step::ForgetNodes { node, ids } => {
            let sound = view.cluster(node).is_some_and(|cluster| {
                ids.iter().all(|id| {
                    cluster
                        .nodes
                        .iter()
                        .any(|peer| peer.id == *id && is_forgettable(view, cluster, peer))
                })
            });
            rule("only-ghosts-are-forgotten", sound);
            let own: BTreeSet<&str> =
                view.desired.nodes.iter().filter_map(|r| view.server_id(&r.id)).collect();
            rule("no-living-node-is-forgotten", ids.iter().all(|id| !own.contains(id.as_str())));
        }
        Step::MoveSlots { node, to, to_id, slots, .. } => {
            let leads = |node: &NodeId| view.record(node).is_some_and(|r| view.is_primary(r));
            // Another server of the shard leads it, and is to have the rest.
            let gathers = record.is_some_and(|record| {
                let apart = gather::held_apart(view, record);
                let same = view.primary(record.shard).is_some_and(|primary| primary.id == *to);
                same && slots.difference(&apart).is_empty()
            });
            let gives = leads(node) || gathers;
            rule("slots-move-between-primaries", gives && leads(to) && node != to);
            rule("a-server-is-known-by-id", view.server_id(to) == Some(to_id.as_str()));
            rule("batches-are-bounded", (1..=slots::BATCH).contains(&slots.count()));
            let open: SlotSet = view
                .shards()
                .filter_map(|shard| view.me(&view.primary(shard)?.id))
                .flat_map(|me| me.open.iter().map(|open| open.slot))
                .collect();
            let finishes = gathers || slots.difference(&open).is_empty();
            let has = view.me(node).is_some_and(|me| slots.difference(&me.slots).is_empty());
            rule("who-gives-slots-has-them", has || finishes);
            let paused = view.operation().is_some_and(|o| o.kind.is_paused());
            rule("nothing-is-begun-while-paused", !paused || finishes);
            let whole = view.record(to).is_some_and(|record| {
                let well = view.wanted_of(record.shard).filter(|r| view.is_well(r)).count();
                !view.is_surplus(record.shard) && well >= view.desired.spec.replicas as usize
            });
            rule("slots-go-to-whole-shards", whole || finishes);
        }
        Step::StopMovingSlots { node } => {
            let moves = record.is_some_and(|record| slots::under_way(view, record).is_some());
            rule("only-what-moves-is-stopped", moves && view.agent(node).is_some());
        }
        Step::CloseSlots { node, .. } => rule("orders-go-to-servers", view.serves(node)),
        Step::StartEmpty { node } => {
            rule("only-a-lost-volume-starts-empty", view.volume_is_lost(node));
            let empty = |record: &NodeRecord| view.is_empty_shard(record.shard);
            rule(
                "nothing-starts-empty-without-a-copy",
                record.is_some_and(|record| another_serves(view, record) || empty(record)),
            );
        }
        Step::HandOver { holder, to } => {
            rule("only-a-primary-hands-over", record.is_some_and(|r| view.is_primary(r)));
            let linked = to.as_ref().is_some_and(|to| is_linked_replica(view, to));
            rule("only-a-linked-replica-takes-over", to.as_ref() != Some(holder) && linked);
        }
        Step::TakeLease { .. } => {
            rule("data-is-lost-by-a-persons-word-only", loss_is_accepted(view));
        }
        Step::FailOverShard { node, mode: ClusterFailoverMode::Coordinated } => {
            rule("only-a-linked-replica-takes-over", is_linked_replica(view, node));
            let rests = record.is_none_or(|r| half_way::half_way(view, r.shard).next().is_none());
            rule("no-primary-changes-while-its-slots-are-half-way", rests);
        }
        Step::FailOverShard { node, mode: _ } => {
            let replica = view.me(node).is_some_and(|me| me.role == Role::Replica);
            let old_is_gone = record.is_some_and(|record| {
                view.primary(record.shard).is_none()
                    && former_primary(view, record).is_some_and(|old| process_is_gone(view, old))
            });
            rule("unknown-promotes-nobody", loss_is_accepted(view) || (replica && old_is_gone));
        }
        Step::RestartServer { node, run_id } => {
            let noted = view.agent(node).and_then(|agent| agent.server.run_id.as_ref());
            rule("the-noted-server-is-restarted", noted == Some(run_id));
            let asked = matches!(
                view.operation().map(|operation| &operation.kind),
                Some(OperationKind::Restart { .. })
            );
            // A person who accepts the loss of data does not wait for a server that hangs.
            let in_the_way = loss_is_accepted(view) && view.is_stuck(node);
            rule("restarts-are-asked-for", asked || in_the_way);
            let replicated = record.is_some_and(|record| {
                view.is_primary(record) && view.linked_of(record.shard).next().is_some()
            });
            rule("a-primary-with-a-replica-hands-over-first", !replicated);
        }
        Step::UpdateOperation { kind } => {
            let same = view
                .operation()
                .is_some_and(|o| std::mem::discriminant(&o.kind) == std::mem::discriminant(kind));
            rule("an-operation-keeps-its-kind", same);
        }
        Step::SetUsers { node, .. } => rule("orders-go-to-servers", view.serves(node)),
        Step::DropFormerPassword => {
            rule("there-is-a-former-password", view.desired.former_password_until.is_some());
        }
        Step::ResizeNode { node, memory } => {
            rule("only-what-can-is-resized-in-place", view.desired.policy.resizes_in_place);
            let limit = InstanceSpec::maxmemory_of(*memory);
            let used = view.agent(node).and_then(|status| status.server.used_memory);
            let grows = record.is_some_and(|record| record.memory < *memory);
            rule("data-fit-their-memory", grows || used.is_some_and(|used| used <= limit));
        }
        Step::PlaceInLine { .. } => {
            rule("only-chains-have-an-order", view.desired.spec.chained);
        }
        Step::RetireNode { .. } => {
            let with_shard = record.is_some_and(|record| goes_with_shard(view, record));
            let may_go = record.is_some_and(|record| may_go(view, record, true));
            rule("the-last-good-copy-stays", with_shard || may_go);
            let too_many = record.is_some_and(|record| {
                view.wanted_of(record.shard).count() > view.desired.spec.replicas as usize
            });
            rule("a-crashed-node-is-no-surplus", with_shard || too_many);
        }
        Step::RemoveNode { node } => {
            rule("unknown-removes-nothing", view.backend_is_known(node));
            if !deleting {
                let leaving = view.leaving.iter().any(|record| record.id == *node);
                rule("only-leaving-nodes-are-removed", leaving);
                let may_go = |record: &NodeRecord| {
                    may_go(view, record, false) || goes_with_shard(view, record)
                };
                rule("the-last-good-copy-stays", record.is_some_and(may_go));
                rule("leaving-nodes-have-no-slots", record.is_some_and(|r| !view.holds_slots(r)));
            }
        }
        Step::RemoveEndpoint { endpoint } => {
            rule("endpoints-stay-until-deletion", deleting);
            rule("unknown-removes-nothing", view.endpoint(*endpoint).known().is_some());
        }
        Step::ForgetRecord { node } => {
            let gone = view.backend(node).is_absent()
                || record.is_some_and(|record| {
                    view.worker_is_lost(record) && !view.backend_is_known(node)
                });
            rule("records-outlive-nodes", gone);
            let leaving = view.leaving.iter().any(|record| record.id == *node);
            rule("only-leaving-nodes-are-removed", deleting || leaving);
        }
        Step::PurgeInstance => {
            rule("only-a-deleted-instance-is-purged", deleting);
            let nothing_left = view.desired.nodes.is_empty()
                && view.observed.nodes.values().all(|seen| seen.backend.is_absent())
                && view.observed.endpoints.values().all(|seen| seen.is_absent());
            rule("nothing-is-left-behind", nothing_left);
        }
    }
    broken
}

fn another_serves(view: &View<'_>, record: &NodeRecord) -> bool {
    view.primary(record.shard).is_some_and(|primary| primary.id != record.id)
}

fn is_linked_replica(view: &View<'_>, node: &NodeId) -> bool {
    view.record(node).is_some_and(|record| view.is_linked(record))
}

fn loss_is_accepted(view: &View<'_>) -> bool {
    matches!(
        view.operation().map(|operation| &operation.kind),
        Some(OperationKind::Failover { accept_data_loss: true, .. })
    )
}
