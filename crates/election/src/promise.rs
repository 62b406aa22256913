//! Promises: what lets a holder go on that cannot renew its lease.

use larder_model::agent::Role;
use larder_model::lease::{LeaseRecord, ReleaseReason};
use larder_model::{ElectionPolicy, Timestamp};

use crate::world::{Context, LeaseView, Local, Peer};

/// Whether this node may promise the holder of `epoch` not to take over. The promise forbids
/// promotion too, so it may be given while an acquisition of this node is still under way
/// somewhere: should that win, the node waits the promise out before it takes writes.
pub fn may_promise(local: &Local, lease: &LeaseView, epoch: u64) -> bool {
    let newer_epoch = lease.last().is_some_and(|known| {
        known.record.epoch > epoch
            || known.record.holder.as_ref().is_some_and(|h| h.node == local.me.node)
    });
    let leads = local.server.role() == Some(Role::Primary);
    !newer_epoch && !leads
}

/// Until when every peer has promised the holder, which is this node, not to take over: for whoever
/// watches the lease from outside and would stop this node's server when it is not renewed.
pub fn promised_until(
    local: &Local,
    peers: &[Peer],
    lease: &LeaseView,
    policy: &ElectionPolicy,
    now: Timestamp,
) -> Option<(u64, Timestamp)> {
    let record = &lease.last()?.record;
    let rules = &crate::Rules::ALL;
    let context = Context { rules, local, peers, lease, policy, now, wall: now };
    record.holder.as_ref().filter(|holder| context.is_me(&holder.node))?;
    Some((record.epoch, static_until(&context, record.epoch)?))
}

/// Until when a promise of this node forbids it to take over from the state in `record`. A holder
/// that let go needs no promise any more.
pub(crate) fn bound_until(c: &Context<'_>, record: &LeaseRecord) -> Option<Timestamp> {
    let promise = c.local.promise.filter(|_| c.rules.keep_promise)?;
    let let_go = record.previous.as_ref().is_some_and(|previous| {
        previous.epoch >= promise.epoch
            && !matches!(previous.reason, ReleaseReason::Expired | ReleaseReason::Forced)
    });
    (promise.until > c.now && !let_go).then_some(promise.until)
}

/// Until when the promises that this holder got let it go on without its lease (rule: every
/// replica promises). `None`: they do not.
pub(crate) fn static_until(c: &Context<'_>, epoch: u64) -> Option<Timestamp> {
    // A replica that no member stands for (its record is on its way here) could win the lease.
    let strangers = c.local.server.replication.as_ref().is_some_and(|view| {
        view.replicas.iter().any(|r| c.peers.iter().all(|p| p.member.address != r.address))
    });
    if strangers && c.rules.every_replica_promises {
        return None;
    }
    let mut untils: Vec<Timestamp> = c
        .peers
        .iter()
        .filter_map(|peer| peer.promise.filter(|promise| promise.epoch == epoch))
        .map(|promise| promise.until - c.policy.clock_drift)
        .filter(|until| *until > c.now)
        .collect();
    untils.sort();
    let needed = if c.rules.every_replica_promises {
        c.peers.len()
    } else {
        // A majority of the shard, this node counted in.
        c.peers.len().div_ceil(2)
    };
    if untils.len() < needed || needed == 0 { None } else { Some(untils[untils.len() - needed]) }
}
