//! A shard whose primary is to change has no slots half-way meanwhile.

use larder_model::NodeRecord;
use larder_model::plan::Wait;

use crate::draft::Draft;
use crate::slots;
use crate::view::View;

/// Has the shard neither give nor get slots any more, so that its primary may change: who comes after
/// it is not told of slots that are half-way, at either end (not before Valkey 8), and would answer
/// that keys which have gone on do not exist. Answers whether it is so.
pub(crate) fn come_to_rest(view: &View<'_>, draft: &mut Draft<'_>, shard: u32) -> bool {
    draft.rest(shard);
    let mut rests = true;
    for of in view.shards() {
        let Some(source) = view.primary(of) else { continue };
        let Some(moving) = slots::under_way(view, source) else { continue };
        let to = view.shard_of_server(&moving.to_id);
        if of != shard && to != Some(shard) {
            continue;
        }
        rests = false;
        slots::stop(draft, source, "a primary is to hand over first");
        let target = to.and_then(|to| view.primary(to)).unwrap_or(source);
        let here = view.me(&source.id).map(|me| me.slots.intersection(&moving.slots));
        draft.wait(Wait::SlotsMoving {
            node: source.id.clone(),
            to: target.id.clone(),
            left: here.unwrap_or_default().count(),
            problem: moving.problem.clone(),
        });
    }
    if rests && let Some(record) = half_way(view, shard).next() {
        rests = false;
        draft.wait(Wait::Effect {
            what: format!("half-moved slots of node {} have arrived", record.id),
        });
    }
    rests
}

/// Primaries with marks of slots that leave the shard or come to it.
pub(crate) fn half_way<'v, 'a: 'v>(
    view: &'v View<'a>,
    shard: u32,
) -> impl Iterator<Item = &'a NodeRecord> + 'v {
    view.shards().filter_map(move |of| {
        let primary = view.primary(of)?;
        let concerns = |peer: &str| of == shard || view.shard_of_server(peer) == Some(shard);
        let me = view.me(&primary.id)?;
        me.open.iter().any(|open| concerns(&open.peer)).then_some(primary)
    })
}
