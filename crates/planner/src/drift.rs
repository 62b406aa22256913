//! Nodes of a shard that share a worker although another one has none of them: what is left after
//! a worker was lost and came back, or after room was scarce. Repaired by create before destroy.

use larder_model::plan::Step;
use larder_model::{IdSource, Millis, NodeRecord, WorkerName, WorkerState};

use crate::draft::Draft;
use crate::ensure;
use crate::placement::Placer;
use crate::view::View;

/// A shard rests this long after one of its nodes was made. What is chosen here is not always
/// what a scheduler does: without a rest a shard might be copied for ever.
const REST: Millis = Millis::secs(600);
/// Where the last move was overruled by a scheduler, which put the new node on the crowded worker
/// again: it has its reasons, and they seldom end soon.
const REST_IN_VAIN: Millis = Millis::secs(86_400);

/// A worker with several nodes of the shard, while a ready one has none.
pub(crate) fn crowded_worker<'a>(view: &View<'a>, shard: u32) -> Option<&'a WorkerName> {
    let on = |worker: &WorkerName| view.wanted_of(shard).filter(|r| r.worker == *worker).count();
    let free = (view.observed.workers.iter())
        .any(|worker| worker.state == WorkerState::Ready && on(&worker.name) == 0);
    let crowded = view.wanted_of(shard).map(|record| &record.worker).find(|name| on(name) > 1);
    crowded.filter(|_| free)
}

/// The node that goes when there is one too many and one worker has several: never the primary,
/// and of the others the oldest, which has waited longest to go.
pub(crate) fn goes_first<'a>(view: &View<'a>, shard: u32) -> Option<&'a NodeRecord> {
    let on = |worker: &WorkerName| view.wanted_of(shard).filter(|r| r.worker == *worker).count();
    view.wanted_of(shard)
        .filter(|record| on(&record.worker) > 1 && !view.is_primary(record))
        .min_by_key(|record| (record.created_at, &record.id))
}

/// Records a node more, on a worker that has none of its shard: one shard at a time, and only
/// while the whole instance is well and nothing else is done with it.
pub(crate) fn repair(view: &View<'_>, draft: &mut Draft<'_>, ids: &mut dyn IdSource) {
    let as_many = |shard| view.wanted_of(shard).count() == view.desired.spec.replicas as usize;
    let is_quiet = view.desired.initialized
        && view.operation().is_none()
        && view.leaving.is_empty()
        && !draft.has_steps()
        && view.shards().all(as_many)
        && view.wanted.iter().all(|record| view.is_well(record));
    if !is_quiet {
        return;
    }
    for shard in view.shards() {
        let Some(crowded) = crowded_worker(view, shard) else { continue };
        let youngest = view.wanted_of(shard).max_by_key(|record| (record.created_at, &record.id));
        let in_vain = youngest.is_some_and(|node| node.overruled && node.worker == *crowded);
        let rest = if in_vain { REST_IN_VAIN } else { REST };
        let rested = youngest.is_some_and(|node| view.now.since(node.created_at) >= rest);
        let taken: Vec<WorkerName> = view.wanted_of(shard).map(|r| r.worker.clone()).collect();
        let mut placer = Placer::new(view.desired, view.observed);
        let Some(place) = placer.place(shard, false, &taken).filter(|_| rested) else { continue };
        draft.step(
            Step::RecordNode {
                node: ensure::fresh_id(view, ids),
                shard,
                worker: place.worker,
                zone: place.zone,
                bootstrap: false,
            },
            format!("several nodes of shard {shard} are on worker {crowded}"),
        );
        return;
    }
}
