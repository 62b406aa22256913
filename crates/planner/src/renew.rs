//! New nodes in place of those that are not as they are wanted any more: of another engine, another
//! memory, or an older revision. Create before destroy: a node more comes, copies, takes over if it
//! has to, and only then the old one goes. One node at a time in the whole instance, so that it
//! never needs more than one node's room, and never has fewer copies than before.
//!
//! Where the container cluster can give a running node another memory nothing is made anew.

use larder_model::plan::{Step, Wait};
use larder_model::{IdSource, InstanceSpec, NodeRecord, OperationKind};

use crate::draft::Draft;
use crate::ensure;
use crate::heal::coordinated_change;
use crate::parameters;
use crate::placement::Placer;
use crate::view::View;

pub(crate) fn renew(view: &View<'_>, draft: &mut Draft<'_>, ids: &mut dyn IdSource) {
    if view.desired.policy.resizes_in_place {
        resize(view, draft);
    }
    let has_surplus = |shard| view.wanted_of(shard).count() > view.desired.spec.replicas as usize;
    if view.shards().any(has_surplus) {
        return;
    }
    let Some(old) = next_outdated(view) else { return };
    let Some(primary) = view.primary(old.shard) else {
        return; // No copy to fill a new node from.
    };
    // What has to be copied is what the primary holds.
    if let Some(wait) = hindered_by_data(view, primary) {
        draft.wait(wait);
        return;
    }
    let mut placer = Placer::new(view.desired, view.observed);
    // On its own worker rather than on one that another node of its shard is on.
    match placer.place(old.shard, false, &[]) {
        Some(placement) => draft.step(
            Step::RecordNode {
                node: ensure::fresh_id(view, ids),
                shard: old.shard,
                worker: placement.worker,
                zone: placement.zone,
                bootstrap: false,
            },
            format!("in place of node {}, which {}", old.id, difference(view, old)),
        ),
        None => draft.wait(ensure::no_room(view, old.shard)),
    }
}

/// Every shard gets a first new node before any gets its second: if the new ones do not work at
/// all, that shows while every old one is still there.
fn next_outdated<'a>(view: &View<'a>) -> Option<&'a NodeRecord> {
    let renewed = |shard| view.wanted_of(shard).filter(|r| !view.is_outdated(r)).count();
    view.wanted
        .iter()
        .copied()
        .filter(|record| record.shard < view.desired.spec.shards && view.is_outdated(record))
        .min_by_key(|record| (renewed(record.shard), record.shard, view.is_primary(record)))
}

fn difference(view: &View<'_>, record: &NodeRecord) -> String {
    let spec = &view.desired.spec;
    if record.engine != spec.engine {
        format!("is of engine {}", record.engine)
    } else if record.memory != spec.memory {
        format!("has {} of memory", record.memory)
    } else if parameters::is_stale(view, record) {
        "was started with other parameters".to_owned()
    } else {
        "is to be new".to_owned()
    }
}

/// Gives running nodes the memory that is wanted. A server that has to hold less than it does would
/// refuse writes or evict, so it keeps what it has until its data fit.
fn resize(view: &View<'_>, draft: &mut Draft<'_>) {
    let memory = view.desired.spec.memory;
    for record in view.wanted.iter().filter(|record| record.memory != memory) {
        match hindered_by_data(view, record) {
            Some(wait) => draft.wait(wait),
            None => draft.step(
                Step::ResizeNode { node: record.id.clone(), memory },
                format!("it has {}", record.memory),
            ),
        }
    }
}

/// Why the node's data may not get the memory that is wanted, as far as is known.
fn hindered_by_data(view: &View<'_>, record: &NodeRecord) -> Option<Wait> {
    let memory = view.desired.spec.memory;
    if memory >= record.memory {
        return None;
    }
    let (node, limit) = (record.id.clone(), InstanceSpec::maxmemory_of(memory));
    let Some(status) = view.agent(&record.id) else {
        let unknown_for = view.silent_for(&record.id);
        return Some(Wait::AgentSilent { node, unknown_for });
    };
    // Figures are no news to an agent: what it said before the wish may be older than the data.
    let wished_at = view.operation().map(|operation| operation.created_at);
    let is_fresh = wished_at.is_none_or(|at| status.at >= at);
    match status.server.used_memory.filter(|_| is_fresh) {
        Some(used) if used > limit => Some(Wait::DataTooLarge { node, used, limit }),
        Some(_) => None,
        None => Some(Wait::Effect { what: format!("node {node} says what it holds now") }),
    }
}

/// A shard of which only the primary is outdated, and every other node is well: one of those leads
/// from now on.
pub(crate) fn hand_over_from_outdated(view: &View<'_>, draft: &mut Draft<'_>, shard: u32) {
    let Some(primary) = view.primary(shard).filter(|primary| view.is_outdated(primary)) else {
        return;
    };
    let well = view.wanted_of(shard).all(|record| view.is_well(record));
    let heir = view.successor(shard).filter(|heir| !view.is_outdated(heir));
    let (true, Some(heir)) = (well, heir) else { return };
    // Servers of an older version may not read what a newer one has written: no way back.
    if let Some(OperationKind::Upgrade { former: Some(_) }) =
        view.operation().map(|operation| &operation.kind)
        && primary.engine != heir.engine
    {
        draft.step(
            Step::UpdateOperation { kind: OperationKind::Upgrade { former: None } },
            "from here on there is no way back",
        );
        return;
    }
    let reason = format!("node {} {}", primary.id, difference(view, primary));
    coordinated_change(view, draft, primary, heir, reason);
}
