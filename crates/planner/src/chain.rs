//! Chained replication: in which order the nodes of a shard copy from each other.
//!
//! The order is in the records, so that it outlives everything: who is longest in line comes first, and
//! each node copies from the one before it. Whoever leads is the head, wherever it stands: agents know
//! the primary themselves, so an order that is a moment old still hangs every node below it.

use larder_model::plan::{OperationReport, Step};
use larder_model::{Desired, Millis, NodeId, NodePhase, NodeRecord, Timestamp};

use crate::draft::Draft;
use crate::op_steps::{self, Phase};
use crate::report;
use crate::view::View;

/// A node of which nothing is heard for so long does not hold up those behind it.
const SILENT: Millis = Millis::secs(5);

/// The wanted nodes of a shard in their order.
fn line(desired: &Desired, shard: u32) -> Vec<&NodeRecord> {
    let mut line: Vec<&NodeRecord> = desired
        .nodes
        .iter()
        .filter(|record| record.shard == shard && record.phase == NodePhase::Wanted)
        .collect();
    line.sort_by_key(|record| (record.in_line_since, &record.id));
    line
}

/// Whom the node copies from while it is a replica; `None`: the primary. A node on its way out stands
/// behind all others.
pub(crate) fn upstream(desired: &Desired, record: &NodeRecord) -> Option<NodeId> {
    if !desired.spec.chained {
        return None;
    }
    let line = line(desired, record.shard);
    let place = line.iter().position(|other| other.id == record.id).unwrap_or(line.len());
    line[..place].last().map(|before| before.id.clone())
}

/// Keeps the order such that the primary stands first, and nobody sound behind a node that is not. Who
/// was first, or is not sound, goes to the end: back there it disturbs nobody.
pub(crate) fn keep_in_line(view: &View<'_>, draft: &mut Draft<'_>) {
    if !view.desired.spec.chained || !view.desired.initialized {
        return;
    }
    for shard in view.wanted_shards() {
        let line = line(view.desired, shard);
        let (Some(first), Some(last)) = (line.first(), line.last()) else { continue };
        let end = Timestamp(view.now.0.max(last.in_line_since.0 + 1));
        if let Some(primary) = view.primary(shard)
            && primary.phase == NodePhase::Wanted
            && primary.id != first.id
        {
            let before = Timestamp(first.in_line_since.0 - 1);
            place(draft, primary, before, "it leads");
            place(draft, first, end, "it leads no longer");
            continue;
        }
        let sound = |record: &NodeRecord| !is_in_the_way(view, record);
        let followed = |place: usize| line[place + 1..].iter().any(|other| sound(other));
        let out = (1..line.len()).find(|&place| !sound(line[place]) && followed(place));
        if let Some(out) = out {
            place(draft, line[out], end, "those behind it would wait for it");
        }
    }
}

fn place(draft: &mut Draft<'_>, record: &NodeRecord, since: Timestamp, reason: &str) {
    draft.step(Step::PlaceInLine { node: record.id.clone(), since }, reason);
}

/// Nothing would come from it: it is down, or not heard of, or one that copied from it says so.
fn is_in_the_way(view: &View<'_>, record: &NodeRecord) -> bool {
    let was_left = view.all_of(record.shard).any(|other| {
        view.agent(&other.id).is_some_and(|it| it.left_upstream.as_ref() == Some(&record.id))
    });
    was_left
        || view.is_down(&record.id)
        || view.is_stuck(&record.id)
        || (view.is_silent(&record.id) && view.silent_for(&record.id) >= SILENT)
}

/// The replica is linked, and to the one that it is to copy from.
fn is_in_place(view: &View<'_>, record: &NodeRecord) -> bool {
    let Some(primary) = view.primary(record.shard) else { return false };
    let wanted = upstream(view.desired, record).and_then(|node| view.record(&node));
    let wanted = wanted.unwrap_or(primary);
    let linked_to = view.replication(&record.id).and_then(|view| view.primary.as_ref());
    view.is_linked(record) && linked_to == wanted.address.as_ref()
}

/// How a switch of the chain is getting on.
pub(crate) fn report(view: &View<'_>, draft: &Draft<'_>) -> OperationReport {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let replicas = || view.wanted.iter().filter(|record| !view.is_primary(record));
    let told = |record: &&&NodeRecord| {
        view.agent(&record.id).is_some_and(|it| it.generation >= view.desired.generation)
    };
    let all = count(view.wanted.len());
    let in_place = count(replicas().filter(|record| is_in_place(view, record)).count());
    let what = if view.desired.spec.chained {
        "replicas copy from the one before them"
    } else {
        "replicas copy from the primary"
    };
    let phases = vec![
        Phase::counted(
            "configure-nodes",
            count(view.wanted.iter().filter(told).count()),
            all,
            "nodes know their place",
        ),
        Phase::counted("link-replicas", in_place, count(replicas().count()), what),
    ];
    let done = phases.iter().all(|phase| phase.done)
        && !draft.has_steps()
        && report::health(view).state == larder_model::InstanceState::Running;
    op_steps::report(phases, done, draft)
}
