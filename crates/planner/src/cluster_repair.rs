//! Repairs of a cluster that its servers cannot make themselves: forgetting servers that are no
//! more, and giving a shard a primary when there is no majority left to vote.

use larder_model::agent::{ClusterFailoverMode, ClusterPeer, ClusterView, Role};
use larder_model::plan::{Step, Wait};
use larder_model::{NodeRecord, OperationKind};

use crate::draft::Draft;
use crate::view::View;

pub(crate) fn repair(view: &View<'_>, draft: &mut Draft<'_>) {
    let taking_over = take_over(view, draft);
    // A takeover changes who is whose replica: forget only what is settled.
    if !taking_over {
        forget(view, draft);
    }
}

/// Lets every server forget those that are no more. The bus spreads what a single one still
/// remembers, so each that knows such an id is told in the same plan.
fn forget(view: &View<'_>, draft: &mut Draft<'_>) {
    for (record, cluster) in view.views() {
        let ids: Vec<String> = cluster
            .nodes
            .iter()
            .filter(|peer| is_forgettable(view, cluster, peer))
            .map(|peer| peer.id.clone())
            .collect();
        if !ids.is_empty() {
            draft.step(
                Step::ForgetNodes { node: record.id.clone(), ids },
                "they belong to no node any more",
            );
        }
    }
}

/// Out of reach, without slots in anybody's eyes, without a replica that lives, and not the
/// server of any node that is recorded.
pub(crate) fn is_forgettable(view: &View<'_>, cluster: &ClusterView, peer: &ClusterPeer) -> bool {
    let is_me = peer.id == cluster.my_id;
    let in_touch = peer.handshake || (peer.linked && !peer.failed);
    if is_me || in_touch {
        return false;
    }
    // The server of a recorded node: by its own word, or by its address while it says nothing.
    let is_recorded = view.desired.nodes.iter().any(|record| match view.server_id(&record.id) {
        Some(id) => id == peer.id,
        None => record.is_at(&peer.address),
    });
    if is_recorded {
        return false;
    }
    let has_slots = view.views().any(|(_, other)| {
        other.nodes.iter().any(|seen| seen.id == peer.id && !seen.slots.is_empty())
    });
    let has_replica = view.views().any(|(_, other)| {
        other.me().and_then(|me| me.primary.as_deref()) == Some(peer.id.as_str())
    });
    !has_slots && !has_replica
}

/// `CLUSTER FAILOVER TAKEOVER` for shards whose primary is known to be dead while too few
/// primaries live to vote. Where there is a majority, agents and bus do it. Tells whether one is
/// under way.
fn take_over(view: &View<'_>, draft: &mut Draft<'_>) -> bool {
    if !view.desired.initialized {
        return false;
    }
    let votes = majority_may_live(view);
    // A person's failover or a restart decides for its shard itself.
    let held = match view.operation().map(|operation| &operation.kind) {
        Some(OperationKind::Restart { .. }) => return false,
        Some(OperationKind::Failover { shard, .. }) => Some(*shard),
        _ => None,
    };
    let mut any = false;
    for shard in view.shards() {
        // Nobody votes for a shard without slots (clusterHandleSlaveFailover, cluster.c).
        let elects = votes && !view.is_empty_shard(shard);
        if view.primary(shard).is_some() || held == Some(shard) || elects {
            continue;
        }
        let Some(candidate) = heir(view, shard) else { continue };
        let Some(old) = former_primary(view, candidate) else { continue };
        if process_is_gone(view, old) {
            draft.step(
                Step::FailOverShard {
                    node: candidate.id.clone(),
                    mode: ClusterFailoverMode::Takeover,
                },
                format!("node {} is dead, and there is nobody to vote", old.id),
            );
            any = true;
        } else {
            draft.wait(Wait::Election { shard });
        }
    }
    any
}

/// A vote could still go through: more than half of the shards have a primary that serves, or
/// one of which nobody can say that it does not.
fn majority_may_live(view: &View<'_>) -> bool {
    let may_be_led = |shard: u32| {
        if view.primary(shard).is_some() {
            return true;
        }
        let primary_is_gone = heir(view, shard)
            .and_then(|replica| former_primary(view, replica))
            .is_some_and(|old| process_is_gone(view, old));
        let somebody_is_silent = view
            .all_of(shard)
            .any(|record| view.is_silent(&record.id) && !view.worker_is_lost(record));
        somebody_is_silent && !primary_is_gone
    };
    let voters = || view.shards().filter(|&shard| view.has_slots(shard));
    voters().filter(|&shard| may_be_led(shard)).count() * 2 > voters().count()
}

fn is_replica(view: &View<'_>, record: &NodeRecord) -> bool {
    view.serves(&record.id) && view.me(&record.id).is_some_and(|me| me.role == Role::Replica)
}

/// The most advanced serving replica of a shard without a primary. One that has restarted and not
/// been in sync since is none: its primary may have acknowledged more.
pub(crate) fn heir<'a>(view: &View<'a>, shard: u32) -> Option<&'a NodeRecord> {
    view.wanted_of(shard)
        .filter(|record| is_replica(view, record) && !view.is_behind(&record.id))
        .max_by(|a, b| (view.offset(&a.id), &b.id).cmp(&(view.offset(&b.id), &a.id)))
}

/// The node whose server the replica follows in its own eyes.
pub(crate) fn former_primary<'a>(view: &View<'a>, replica: &NodeRecord) -> Option<&'a NodeRecord> {
    let cluster = view.cluster(&replica.id)?;
    let id = cluster.me()?.primary.as_deref()?;
    let peer = cluster.nodes.iter().find(|peer| peer.id == id)?;
    view.all_of(replica.shard).find(|record| {
        record.id != replica.id
            && (view.server_id(&record.id) == Some(id) || record.is_at(&peer.address))
    })
}

/// Seen to be dead, never merely unseen: its agent says so, or its worker is away and the container
/// cluster holds it no longer, or an administrator has given its worker up. One that is absent from
/// a worker that lives is on its way back with its data.
pub(crate) fn process_is_gone(view: &View<'_>, record: &NodeRecord) -> bool {
    if view.agent(&record.id).is_some() {
        return view.is_down(&record.id);
    }
    let is_gone = view.backend(&record.id).is_absent() && view.worker_is_away(record);
    is_gone || view.worker_is_lost(record)
}
