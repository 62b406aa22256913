//! A worker whose primaries the others cannot outvote: a cluster elects nobody without most of its
//! primaries, so the loss of that worker would stop all of it until the worker is back.

use larder_model::{NodeRecord, WorkerName};

use crate::view::View;

/// Too many primaries on one worker, and a change of one shard's primary that would help.
pub(crate) struct Majority<'a> {
    pub(crate) worker: &'a WorkerName,
    pub(crate) primaries: usize,
    pub(crate) to: &'a NodeRecord,
}

/// Only what can be changed is told: with few workers some of them has to hold that many.
pub(crate) fn majority<'a>(view: &View<'a>) -> Option<Majority<'a>> {
    if !view.is_cluster() {
        return None;
    }
    let voters = || view.shards().filter(|shard| view.has_slots(*shard));
    let primaries: Vec<&NodeRecord> = voters().filter_map(|shard| view.primary(shard)).collect();
    let led_on = |worker: &WorkerName| primaries.iter().filter(|p| p.worker == *worker).count();
    let shards = voters().count();
    // The quorum is of all primaries with slots, whether they live or not (cluster.c, size / 2 + 1).
    let stops_all = |led: usize| shards.saturating_sub(led) < shards / 2 + 1;
    primaries.iter().filter(|p| stops_all(led_on(&p.worker))).find_map(|primary| {
        let to = view
            .linked_of(primary.shard)
            .filter(|to| to.worker != primary.worker && !stops_all(led_on(&to.worker) + 1))
            .min_by_key(|to| (led_on(&to.worker), &to.id))?;
        Some(Majority { worker: &primary.worker, primaries: led_on(&primary.worker), to })
    })
}
