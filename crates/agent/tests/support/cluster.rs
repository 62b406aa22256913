//! A cluster of three shards, formed by orders.

use std::path::Path;
use std::time::Duration;

use larder_model::agent::{AgentStatus, ClusterView, Order, Role};
use larder_model::{NodeMode, SlotRange, even_slots};

use super::World;

pub(crate) const SHARDS: u32 = 3;

/// Node `shard * 2` gets the slots, the next one becomes its replica.
pub(crate) async fn formed() -> World {
    formed_of(Path::new("/usr/bin/redis-server")).await
}

/// Likewise, of servers of this binary.
pub(crate) async fn formed_of(binary: &Path) -> World {
    formed_with(binary, SHARDS).await
}

/// Likewise, of so many shards.
pub(crate) async fn formed_with(binary: &Path, shards: u32) -> World {
    let mut world = World::with_binary(NodeMode::Clustered, shards, 2, binary);
    world.start_all();
    world
        .wait("all serve", Duration::from_secs(20), |all| {
            all.iter().all(|status| view(status).is_some())
        })
        .await;
    for shard in 0..shards {
        let ranges: Vec<SlotRange> = vec![even_slots(shard, shards)];
        let config_epoch = u64::from(shard) + 1;
        world.order(shard as usize * 2, Order::ClusterAddSlots { ranges, config_epoch }).await;
    }
    let peers = world.nodes.iter().skip(1).map(|node| node.address.clone()).collect();
    world.order(0, Order::ClusterMeet { peers }).await;
    world
        .wait("all know all", Duration::from_secs(30), |all| {
            all.iter().all(|status| {
                view(status).is_some_and(|v| {
                    v.nodes.len() == shards as usize * 2
                        && v.nodes.iter().all(|n| !n.handshake && n.linked)
                })
            })
        })
        .await;
    for shard in 0..shards as usize {
        let status = world.client(shard * 2).status().await.expect("status");
        let primary = status.cluster.expect("cluster").my_id;
        world.order(shard * 2 + 1, Order::ClusterReplicate { primary }).await;
    }
    world
        .wait("whole", Duration::from_secs(30), |all| {
            // Every node knows who is a replica: voters refuse one that they take for a primary.
            all.iter().all(|status| {
                view(status).is_some_and(|v| {
                    let replicas = v.nodes.iter().filter(|n| n.role == Role::Replica);
                    v.state_ok && replicas.count() == shards as usize
                })
            }) && all.iter().skip(1).step_by(2).all(is_linked_replica)
        })
        .await;
    world
}

pub(crate) fn view(status: &Option<AgentStatus>) -> Option<&ClusterView> {
    status.as_ref().and_then(|status| status.cluster.as_ref())
}

pub(crate) fn is_linked_replica(status: &Option<AgentStatus>) -> bool {
    let replica = view(status).and_then(ClusterView::me).is_some_and(|me| me.role == Role::Replica);
    replica
        && status
            .as_ref()
            .and_then(|s| s.replication.as_ref())
            .is_some_and(|view| view.link_up && !view.syncing)
}

pub(crate) fn owns_slots(status: &Option<AgentStatus>) -> bool {
    view(status)
        .and_then(ClusterView::me)
        .is_some_and(|me| me.role == Role::Primary && !me.slots.is_empty())
}
