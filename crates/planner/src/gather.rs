//! A shard whose slots two of its servers own goes back to one.
//!
//! A primary that dies while it is given slots may have taken some of which nobody has heard yet. Its
//! successor leads the shard without them, and once the old primary is back the bus gives it these
//! few for good: each has its slots under an epoch of its own, and neither follows the other.

use larder_model::agent::Role;
use larder_model::plan::Wait;
use larder_model::{NodeRecord, SlotSet};

use crate::draft::Draft;
use crate::slots::{self, BATCH};
use crate::view::View;

/// Has every server but a shard's primary give its slots to that one. Answers the shards of which it
/// is so: they neither give nor get others meanwhile.
pub(crate) fn gather(view: &View<'_>, draft: &mut Draft<'_>) -> Vec<u32> {
    let mut shards = Vec::new();
    for record in &view.desired.nodes {
        let apart = held_apart(view, record);
        let Some(primary) = view.primary(record.shard).filter(|_| !apart.is_empty()) else {
            continue;
        };
        shards.push(record.shard);
        match slots::under_way(view, record) {
            Some(moving) => draft.wait(Wait::SlotsMoving {
                node: record.id.clone(),
                to: primary.id.clone(),
                left: apart.count(),
                problem: moving.problem.clone(),
            }),
            None => {
                let reason = "another server leads their shard";
                slots::order(view, draft, (record, primary), apart.first(BATCH), 0, reason);
            }
        }
    }
    shards
}

/// Slots that the server owns although another one leads its shard, and that one agrees. While their
/// claims are at odds the bus has not settled yet who has what.
pub(crate) fn held_apart(view: &View<'_>, record: &NodeRecord) -> SlotSet {
    let none = SlotSet::default();
    if !view.is_cluster() || view.is_primary(record) || !view.serves(&record.id) {
        return none;
    }
    let Some(me) = view.me(&record.id).filter(|me| me.role == Role::Primary) else { return none };
    let leader = view.primary(record.shard).and_then(|primary| view.cluster(&primary.id));
    let seen = leader.and_then(|leader| {
        let id = view.server_id(&record.id);
        leader.nodes.iter().find(|peer| Some(peer.id.as_str()) == id)
    });
    match seen {
        Some(peer) if peer.linked && !peer.failed => peer.slots.intersection(&me.slots),
        _ => none,
    }
}
