//! Bringing an instance back to what it was: empty starts beside a living copy, replacement of
//! nodes that are lost for good, and the way out for those that were replaced.
//!
//! Nothing here is decided from how many nodes are seen. Who goes is a record that is marked as
//! leaving, and a record is marked only while every other node of its shard is seen to be well.

use larder_model::plan::{Step, Wait};
use larder_model::{IdSource, Millis, NodeRecord, Observation, OperationKind};

use crate::draft::Draft;
use crate::drift;
use crate::ensure;
use crate::half_way;
use crate::placement::Placer;
use crate::renew;
use crate::view::View;

/// A node that does not serve after so long has not come to be.
const COMES_TO_BE: Millis = Millis::secs(60);

pub(crate) fn heal(view: &View<'_>, draft: &mut Draft<'_>, ids: &mut dyn IdSource) {
    start_empty(view, draft);
    for shard in view.shards() {
        if view.data_is_lost(shard) {
            draft.wait(Wait::DataLost { shard });
        }
    }
    // A restart or failover changes one node after another itself.
    let busy = view.operation().is_some_and(|operation| {
        matches!(operation.kind, OperationKind::Restart { .. } | OperationKind::Failover { .. })
    });
    if view.desired.initialized && !busy {
        for shard in view.shards() {
            if view.is_surplus(shard) {
                retire_shard(view, draft, shard);
            } else {
                replace(view, draft, shard, ids);
                retire(view, draft, shard);
            }
            remove_leaving(view, draft, shard);
        }
        renew::renew(view, draft, ids);
    }
}

/// A node whose volume is gone may copy from the copy that serves. Without one nothing is
/// started: an empty server would be mistaken for the data.
fn start_empty(view: &View<'_>, draft: &mut Draft<'_>) {
    for record in view.wanted.iter().filter(|record| view.volume_is_lost(&record.id)) {
        let Some(primary) = view.primary(record.shard) else {
            if view.is_empty_shard(record.shard) {
                let reason = "its volume is gone, and its shard has no data";
                draft.step(Step::StartEmpty { node: record.id.clone() }, reason);
            }
            continue;
        };
        if primary.id != record.id {
            draft.step(
                Step::StartEmpty { node: record.id.clone() },
                format!("its volume is gone; node {} has the data", primary.id),
            );
        }
    }
}

/// Records a node for a lost one, on another worker, while another copy serves. One at a time.
fn replace(view: &View<'_>, draft: &mut Draft<'_>, shard: u32, ids: &mut dyn IdSource) {
    for record in view.wanted_of(shard).filter(|record| view.worker_is_away(record)) {
        let unknown = view.agent(&record.id).is_none();
        if unknown && !view.is_lost(record) {
            let after = view.desired.policy.replace_lost_after;
            let left = Millis(after.0.saturating_sub(view.silent_for(&record.id).0));
            draft.wait(Wait::ReplacementDelay { node: record.id.clone(), left });
        }
    }
    let Some(lost) = view.wanted_of(shard).find(|record| view.is_lost(record)) else { return };
    let recorded = view.wanted_of(shard).count();
    if recorded > view.desired.spec.replicas as usize {
        return; // Its replacement is on the way.
    }
    if view.primary(shard).is_none_or(|primary| primary.id == lost.id) {
        return; // No copy to fill a new node from.
    }
    let mut placer = Placer::new(view.desired, view.observed);
    match placer.place(shard, false, std::slice::from_ref(&lost.worker)) {
        Some(placement) => draft.step(
            Step::RecordNode {
                node: ensure::fresh_id(view, ids),
                shard,
                worker: placement.worker,
                zone: placement.zone,
                bootstrap: false,
            },
            format!("node {} is lost with worker {}", lost.id, lost.worker),
        ),
        None => draft.wait(ensure::no_room(view, shard)),
    }
}

/// A shard that is to go does so once neither it nor any other that is to go has slots, in anybody's
/// eyes: up to then there is a way back. Its replicas go first. One that still has slots keeps its
/// copies, but gets no new ones.
fn retire_shard(view: &View<'_>, draft: &mut Draft<'_>, shard: u32) {
    let all_are_emptied =
        view.shards().filter(|shard| view.is_surplus(*shard)).all(|shard| view.is_emptied(shard));
    if view.is_empty_shard(shard) && !all_are_emptied {
        let what = format!("every server sees that shard {shard} has no slots any more");
        draft.wait(Wait::Effect { what });
    }
    if !all_are_emptied || draft.disturbs(view.all_of(shard).map(|record| &record.id)) {
        return;
    }
    let last = view
        .wanted_of(shard)
        .max_by_key(|record| (!view.is_primary(record), record.created_at, record.id.clone()));
    if let Some(record) = last {
        let reason = format!("shard {shard} is to go, and has no slots any more");
        draft.step(Step::RetireNode { node: record.id.clone() }, reason);
    }
}

/// The node goes with its whole shard, which has no data any more.
pub(crate) fn goes_with_shard(view: &View<'_>, record: &NodeRecord) -> bool {
    view.is_surplus(record.shard) && view.is_emptied(record.shard)
}

/// More nodes are recorded than the spec asks for: a replacement has come, or fewer are asked for.
/// The lost node goes, then one that is outdated, then one that is not well; if all are as they
/// should be one that shares its worker, or else the youngest replica. Where only the primary is
/// outdated it hands over first.
fn retire(view: &View<'_>, draft: &mut Draft<'_>, shard: u32) {
    let recorded: Vec<&NodeRecord> = view.wanted_of(shard).collect();
    let surplus = recorded.len() > view.desired.spec.replicas as usize;
    let one_is_going = view.leaving.iter().any(|record| record.shard == shard);
    if !surplus || one_is_going || draft.disturbs(view.all_of(shard).map(|record| &record.id)) {
        return;
    }
    let Some((goes, reason)) = surplus_node(view, shard) else {
        renew::hand_over_from_outdated(view, draft, shard);
        return;
    };
    // Every other node must do without it, among them as many as the spec asks for.
    if may_go(view, goes, true) {
        draft.step(Step::RetireNode { node: goes.id.clone() }, reason);
    }
}

/// Which node of a shard that has too many goes, and why; `None` while that is its primary.
fn surplus_node<'a>(view: &View<'a>, shard: u32) -> Option<(&'a NodeRecord, &'static str)> {
    let others = || view.wanted_of(shard).filter(|record| !view.is_primary(record));
    let oldest = |record: &&NodeRecord| (record.created_at, record.id.clone());
    if let Some(lost) = others().find(|record| view.is_lost(record)) {
        return Some((lost, "it is lost, and its replacement is in sync"));
    }
    if let Some(old) = others().filter(|record| view.is_outdated(record)).min_by_key(oldest) {
        return Some((old, "a new node has come in its place"));
    }
    if view.wanted_of(shard).any(|record| view.is_outdated(record)) {
        return None;
    }
    let scaled = view.operation().is_some_and(|o| matches!(o.kind, OperationKind::Scale { .. }));
    // One that only has to copy its data yet is what the surplus is for.
    let in_vain = |record: &NodeRecord| {
        !view.serves(&record.id) && view.now.since(record.created_at) >= COMES_TO_BE
    };
    let ails = |record: &&NodeRecord| !view.is_well(record) && (scaled || in_vain(record));
    if let Some(ailing) = others().filter(ails).max_by_key(oldest) {
        return Some((ailing, "one node fewer is wanted, and it is not well"));
    }
    if let Some(crowded) = drift::goes_first(view, shard) {
        return Some((crowded, "it shares its worker with another node of its shard"));
    }
    let reason =
        if scaled { "fewer nodes are wanted" } else { "the node it stands in for is back" };
    Some((others().max_by_key(oldest)?, reason))
}

/// Whether the shard is whole without the node: another one leads, and the wanted others (all
/// of them when `strict`, else at least as many as the spec asks for) are well.
pub(crate) fn may_go(view: &View<'_>, record: &NodeRecord, strict: bool) -> bool {
    let others: Vec<&NodeRecord> =
        view.wanted_of(record.shard).filter(|other| other.id != record.id).collect();
    let well = others.iter().filter(|other| view.is_well(other)).count();
    let led = view.primary(record.shard).is_some_and(|primary| primary.id != record.id);
    let enough = well >= view.desired.spec.replicas as usize;
    led && enough && (!strict || well == others.len())
}

/// Takes nodes that are on their way out from the topology, then away.
fn remove_leaving(view: &View<'_>, draft: &mut Draft<'_>, shard: u32) {
    for record in view.leaving.iter().filter(|record| record.shard == shard) {
        let node = record.id.clone();
        if view.backend(&node).is_absent() {
            draft.step(Step::ForgetRecord { node }, "nothing of it is left");
            continue;
        }
        if draft.disturbs(view.all_of(shard).map(|record| &record.id)) {
            continue;
        }
        let with_shard = goes_with_shard(view, record);
        if view.is_primary(record) && !with_shard {
            hand_over_from(view, draft, record);
            continue;
        }
        if view.holds_slots(record) {
            draft.wait(Wait::Effect { what: format!("node {node} holds no slots") });
            continue;
        }
        if !with_shard && !may_go(view, record, false) {
            draft
                .wait(Wait::Effect { what: format!("shard {shard} is whole without node {node}") });
            continue;
        }
        // Nobody is to be waited for at a node that serves nobody.
        let gone_for = record.leaving_since.map_or(Millis(u64::MAX), |at| view.now.since(at));
        let drain = view.desired.policy.drain;
        if view.is_well(record) && gone_for < drain {
            let left = Millis(drain.0 - gone_for.0);
            draft.wait(Wait::Draining { node, left });
            continue;
        }
        match view.backend(&node) {
            Observation::Known { .. } => {
                draft.step(Step::RemoveNode { node }, "its shard is whole without it");
            }
            _ if view.worker_is_lost(record) => {
                draft.step(Step::ForgetRecord { node }, "its worker is lost for good");
            }
            _ => draft.wait(Wait::Removal { what: format!("node {node}") }),
        }
    }
}

fn hand_over_from(view: &View<'_>, draft: &mut Draft<'_>, holder: &NodeRecord) {
    match view.successor(holder.shard) {
        Some(successor) => {
            let reason = format!("node {} is on its way out", holder.id);
            coordinated_change(view, draft, holder, successor, reason);
        }
        None => draft.wait(Wait::Effect {
            what: format!("a replica may take over from node {}", holder.id),
        }),
    }
}

/// Makes `to` the primary in place of `holder` without losing a write, once it can succeed.
pub(crate) fn coordinated_change(
    view: &View<'_>,
    draft: &mut Draft<'_>,
    holder: &NodeRecord,
    to: &NodeRecord,
    reason: impl Into<String>,
) {
    if !view.is_cluster() {
        let step = Step::HandOver { holder: holder.id.clone(), to: Some(to.id.clone()) };
        draft.step(step, reason);
        return;
    }
    // The other primaries vote. One that has not heard yet that `to` is a replica denies its vote,
    // and a replica that was denied asks again only after four node timeouts, its primary's
    // clients waiting meanwhile (cluster.c, clusterSendFailoverAuthIfNeeded).
    let voters = view.shards().filter(|shard| *shard != holder.shard);
    let ignorant = voters
        .filter_map(|shard| view.primary(shard))
        .find(|voter| !view.knows_as_replica(voter, to, holder));
    if let Some(voter) = ignorant {
        draft.wait(Wait::Gossip { node: voter.id.clone() });
        return;
    }
    if !half_way::come_to_rest(view, draft, holder.shard) {
        return;
    }
    let mode = larder_model::agent::ClusterFailoverMode::Coordinated;
    draft.step(Step::FailOverShard { node: to.id.clone(), mode }, reason);
}
