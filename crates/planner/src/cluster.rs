//! Forming a cluster, and keeping it one: slots first, then every server meets every other.

use std::collections::BTreeSet;

use larder_model::agent::{ClusterView, Role};
use larder_model::plan::{Step, Wait};
use larder_model::{NodeRecord, even_slots};

use crate::draft::Draft;
use crate::view::View;

pub(crate) fn form(view: &View<'_>, draft: &mut Draft<'_>) {
    if !view.desired.initialized {
        assign_slots(view, draft);
    }
    meet(view, draft);
    replicate(view, draft);
    for (record, cluster) in view.views() {
        if !cluster.state_ok {
            draft.wait(Wait::ClusterDown { node: record.id.clone() });
        }
    }
}

/// The first primary of each shard gets the shard's share, once, and only slots that nobody has.
/// Epochs are distinct from the start: a configuration epoch can be set only at a server that
/// knows no others (Redis `CLUSTER SET-CONFIG-EPOCH`), and equal ones cost a round of conflicts.
fn assign_slots(view: &View<'_>, draft: &mut Draft<'_>) {
    for record in view.wanted.iter().filter(|record| record.bootstrap) {
        if record.shard >= view.desired.spec.shards || !view.serves(&record.id) {
            continue;
        }
        let Some(me) = view.me(&record.id) else { continue };
        let range = even_slots(record.shard, view.desired.spec.shards);
        let taken = view.views().any(|(_, cluster)| {
            cluster.nodes.iter().any(|peer| {
                peer.slots
                    .ranges()
                    .iter()
                    .any(|held| held.first <= range.last && range.first <= held.last)
            })
        });
        if !taken && me.role == Role::Primary {
            draft.step(
                Step::AssignSlots {
                    node: record.id.clone(),
                    ranges: vec![range],
                    config_epoch: u64::from(record.shard) + 1,
                },
                "nobody holds these slots yet",
            );
        }
    }
}

/// Servers are told of each other by those that lead a shard; gossip does the rest. A server is
/// known by its id, never by its address alone: whoever answers at an address may be another.
fn meet(view: &View<'_>, draft: &mut Draft<'_>) {
    let hubs = hubs(view);
    for (record, cluster) in view.views().filter(|(record, _)| may_meet(view, record)) {
        let missing: Vec<&NodeRecord> = view
            .wanted
            .iter()
            .copied()
            .filter(|peer| peer.id != record.id && may_meet(view, peer))
            .filter(|peer| is_missing(view, cluster, peer))
            .collect();
        if missing.is_empty() {
            continue;
        }
        let peers: Vec<_> = missing
            .iter()
            .filter(|peer| !is_shaking_hands(cluster, peer))
            .map(|peer| peer.id.clone())
            .collect();
        // A later server that knows nobody introduces itself too: others may still believe that
        // it knows them.
        let alone = view.desired.initialized && cluster.nodes.len() <= 1;
        if (hubs.contains(&record.id) || alone) && !peers.is_empty() {
            draft.step(
                Step::MeetNodes { node: record.id.clone(), peers },
                "it does not know them, or knows them at another address",
            );
        } else {
            draft.wait(Wait::Gossip { node: record.id.clone() });
        }
    }
}

/// Who introduces: the serving primary of each shard; of a shard that has none its first
/// primary while the cluster is being formed, later all its nodes.
fn hubs<'a>(view: &View<'a>) -> BTreeSet<&'a larder_model::NodeId> {
    view.shards()
        .flat_map(|shard| match view.primary(shard) {
            Some(primary) => vec![&primary.id],
            None => view
                .wanted_of(shard)
                .filter(|record| view.desired.initialized || record.bootstrap)
                .map(|record| &record.id)
                .collect(),
        })
        .collect()
}

/// Serves, and is past the moment in which its configuration epoch could be set.
fn may_meet(view: &View<'_>, record: &NodeRecord) -> bool {
    if record.address.is_none() || !view.serves(&record.id) {
        return false;
    }
    let Some(cluster) = view.cluster(&record.id) else { return false };
    let settled = || cluster.nodes.len() > 1 || cluster.me().is_some_and(|me| !me.slots.is_empty());
    view.desired.initialized || !record.bootstrap || settled()
}

/// Not known by its id, or known at an address where it is not.
fn is_missing(view: &View<'_>, cluster: &ClusterView, peer: &NodeRecord) -> bool {
    let Some(id) = view.server_id(&peer.id) else { return false };
    match cluster.nodes.iter().find(|known| known.id == id) {
        Some(known) => known.handshake || (!known.linked && !peer.is_at(&known.address)),
        None => true,
    }
}

fn is_shaking_hands(cluster: &ClusterView, peer: &NodeRecord) -> bool {
    cluster.nodes.iter().any(|known| known.handshake && peer.is_at(&known.address))
}

/// Every serving node of a shard that does not lead it follows the one that does. Covers new
/// nodes, orphans, and replicas that follow another shard's primary or a mere replica.
fn replicate(view: &View<'_>, draft: &mut Draft<'_>) {
    for record in &view.wanted {
        let Some(primary) = view.primary(record.shard) else { continue };
        if primary.id == record.id || !view.serves(&record.id) {
            continue;
        }
        let (Some(cluster), Some(primary_id)) =
            (view.cluster(&record.id), view.server_id(&primary.id))
        else {
            continue;
        };
        let Some(me) = cluster.me() else { continue };
        if me.role == Role::Replica && me.primary.as_deref() == Some(primary_id) {
            continue;
        }
        if view.holds_slots(record) {
            // An old primary that has not heard of its successor; the bus tells it.
            draft.wait(Wait::Gossip { node: record.id.clone() });
            continue;
        }
        let knows = cluster.nodes.iter().any(|peer| peer.id == primary_id && !peer.handshake);
        if knows {
            let reason = match (me.role, &me.primary) {
                (Role::Primary, _) => "it is to copy its shard's primary",
                (Role::Replica, None) => "it follows nobody",
                (Role::Replica, Some(_)) => "it follows another than its shard's primary",
            };
            draft.step(
                Step::ReplicateNode {
                    node: record.id.clone(),
                    primary: primary.id.clone(),
                    primary_id: primary_id.to_owned(),
                },
                reason,
            );
        } else {
            draft.wait(Wait::Gossip { node: record.id.clone() });
        }
    }
}
