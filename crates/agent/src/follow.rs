//! A cluster server becomes a replica by order, also one that has keys of its own left.

use larder_model::agent::{ClusterPeer, ClusterView, Role};
use larder_model::{Refusal, Severity};
use larder_node::NodeError;

use crate::clustered::not_ready;
use crate::core::Core;

/// Has the server copy from the primary with this id.
///
/// A primary without slots refuses (`cluster.c`, `CLUSTER REPLICATE`) while it has keys. It has
/// some when it died as the target of a slot move and another node of its shard took over: keys of
/// slots that were still on their way to it are of nobody now, and stay. They are what any failover
/// leaves behind: who leads the shard now has what counts, so they go.
pub(crate) async fn follow(core: &mut Core, primary: &str) -> Result<(), Refusal> {
    let me = core.server.cluster().and_then(ClusterView::me);
    if me.is_some_and(|me| me.role == Role::Replica && me.primary.as_deref() == Some(primary)) {
        return Ok(());
    }
    let hands = core.server.hands().await.map_err(|e| not_ready(&e))?;
    let refused = match hands.cluster_replicate(primary).await {
        Err(refused) if has_keys_left(&refused) => refused,
        other => return other.map_err(|e| not_ready(&e)),
    };
    let view = hands.cluster_view().await.map_err(|e| not_ready(&e))?;
    if !may_be_emptied(&view, primary) {
        return Err(not_ready(&refused));
    }
    let keys = hands.key_count().await.map_err(|e| not_ready(&e))?;
    hands.drop_all_keys().await.map_err(|e| not_ready(&e))?;
    let followed = hands.cluster_replicate(primary).await;
    let message = format!(
        "{keys} keys of slots that are not this server's were dropped: they are left from slot \
         moves before another node took its shard over, which it copies now"
    );
    core.memory.event(Severity::Warning, "stray-keys-dropped", message);
    followed.map_err(|e| not_ready(&e))
}

/// The primary that this server is to follow though nobody orders it: another node of its shard has
/// taken over, and this one is a primary without slots. A server becomes its successor's replica by
/// itself only if that one took all that it had left at one time (`cluster.c`,
/// `clusterUpdateSlotsConfigWith`); while slots move others may have taken some of them, and a server
/// that starts with keys of a slot that it knows no owner of takes that slot for its own.
pub(crate) fn successor(core: &Core) -> Option<String> {
    let view = core.server.cluster()?;
    let me = view.me()?;
    if me.role != Role::Primary || !me.slots.is_empty() {
        return None;
    }
    let leads = |peer: &&ClusterPeer| {
        peer.role == Role::Primary && !peer.slots.is_empty() && peer.linked && !peer.failed
    };
    let of_shard = |peer: &&ClusterPeer| core.shard_peers().any(|m| m.is_at(&peer.address));
    let mut leaders = view.nodes.iter().filter(leads).filter(of_shard);
    let leader = leaders.next()?;
    leaders.next().is_none().then(|| leader.id.clone())
}

fn has_keys_left(error: &NodeError) -> bool {
    matches!(error, NodeError::Reply { error, .. } if error.text().contains("must be empty"))
}

/// Whether nothing can be lost with this server's keys: it owns no slot, and a primary that it is
/// in touch with owns the shard's.
fn may_be_emptied(view: &ClusterView, primary: &str) -> bool {
    let leader = view.nodes.iter().find(|node| node.id == primary);
    let leads = leader.is_some_and(|l| !l.slots.is_empty() && l.linked && !l.failed);
    leads && view.me().is_some_and(|me| me.slots.is_empty())
}
