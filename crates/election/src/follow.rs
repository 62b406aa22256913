//! The entry of a decision, and what a node does that is not the holder.

use larder_model::agent::{Member, Role, ServerState, VolumeState};
use larder_model::lease::ReleaseReason;
use larder_model::{Millis, NodeId};

use crate::action::{
    Action, Decision, KillReason, OrderOutcome, Situation, StartAs, WhyNoPrimary, WhyParked,
};
use crate::world::{Context, LeaseKnown, LeaseView, OrderKind, is_old_link, lineage};
use crate::{chain, holder, vacancy};

/// How soon to look again when the server is on its way to another state by itself.
const SOON: Millis = Millis(100);

pub(crate) fn decide(c: &Context<'_>) -> Decision {
    // Rule: hung is as dead. What does not answer may still take writes, so it is killed before
    // anything else is decided; the lease is not renewed meanwhile.
    if c.local.server.state == ServerState::Hung {
        return Decision {
            actions: vec![Action::KillServer { reason: KillReason::Hung }],
            wake_at: Some(c.now + Millis(1000)),
            situation: Situation::ServerLost,
        };
    }
    match c.lease {
        LeaseView::Unreachable { last, .. } => unreachable(c, last.as_ref()),
        LeaseView::Absent => vacancy::without_lease(c),
        LeaseView::Known(known) => with_lease(c, known),
    }
}

fn with_lease(c: &Context<'_>, known: &LeaseKnown) -> Decision {
    match &known.record.holder {
        Some(holder) if c.is_me(&holder.node) => holder::decide(c, known, &holder.run_id),
        Some(holder) => {
            let runs_until = expires_at(c, known);
            if let Some(decision) = vacancy::take_by_order(c, known, c.now >= runs_until) {
                return decision;
            }
            if c.now >= runs_until {
                vacancy::decide(c, known, runs_until)
            } else {
                let mut decision = follow(c, known, &holder.node);
                let wake = decision.wake_at.map_or(runs_until, |at| at.min(runs_until));
                decision.wake_at = Some(wake);
                decision
            }
        }
        None => vacancy::take_by_order(c, known, true)
            .unwrap_or_else(|| vacancy::decide(c, known, known.seen_at)),
    }
}

/// When a lease that somebody else holds has surely run out: rule "wait for expiry". The holder
/// counts from when it sent its renewal, this node from when it saw it, which is later.
fn expires_at(c: &Context<'_>, known: &LeaseKnown) -> larder_model::Timestamp {
    if c.rules.wait_for_expiry {
        known.seen_at + c.policy.lease_ttl + c.policy.clock_drift
    } else {
        known.seen_at + c.policy.renew_every + c.policy.clock_drift
    }
}

/// The lease cannot be read or written.
fn unreachable(c: &Context<'_>, last: Option<&LeaseKnown>) -> Decision {
    let server = &c.local.server;
    if let Some(known) = last
        && let Some(holder) = &known.record.holder
        && c.is_me(&holder.node)
        && server.role() == Some(Role::Primary)
        && server.run_id.as_ref() == Some(&holder.run_id)
    {
        return holder::lead(c, known);
    }
    if let Some(known) = last
        && let Some(holder) = &known.record.holder
        && c.is_me(&holder.node)
        && server.role().is_none()
        && !server.is_down()
        && server.run_id.as_ref().is_none_or(|run_id| *run_id == holder.run_id)
    {
        return holder::silent_without_lease(c, known);
    }
    if let Some(decision) = alone_without_lease(c, last) {
        return decision;
    }
    let mut actions = Vec::new();
    let mut situation = Situation::NoPrimary(WhyNoPrimary::LeaseUnreachable);
    if server.role() == Some(Role::Primary) {
        actions.push(Action::Park);
        situation = Situation::Parked(WhyParked::CannotRenew);
    } else if server.is_down() {
        let holder = last.and_then(|k| k.record.holder.as_ref()).and_then(|h| c.peer(&h.node));
        match holder {
            Some(peer) => actions.extend(start(c, Some(&peer.member))),
            None => actions.extend(start(c, None)),
        }
    } else if let Some(known) = last
        && let Some(holder) = known.record.holder.as_ref().filter(|h| !c.is_me(&h.node))
    {
        situation = Situation::Following {
            holder: holder.node.clone(),
            synced: is_synced(c, known.record.epoch),
        };
    }
    Decision { actions, wake_at: Some(c.now + c.policy.gather), situation }
}

/// Rule "alone goes on": without peers there is nobody who could take over, so a lease out of reach
/// stops nothing; also a restarted server goes on from its own file.
fn alone_without_lease(c: &Context<'_>, last: Option<&LeaseKnown>) -> Option<Decision> {
    let server = &c.local.server;
    if !c.is_alone() || !c.rules.alone_goes_on || c.local.volume == VolumeState::Lost {
        return None;
    }
    // Data that this node led with; without any, only a lease can say who begins.
    if c.local.data_epoch == 0 {
        return None;
    }
    let epoch = last.map_or(c.local.data_epoch, |known| known.record.epoch);
    let mut actions = Vec::new();
    if server.is_down() {
        actions.extend(start(c, None));
    } else if server.state == ServerState::Serving && server.role() == Some(Role::Replica) {
        actions.push(Action::Promote { epoch });
        actions.extend(crate::route::publish(c, crate::route::leading(c, epoch, false)));
    }
    let since = match c.lease {
        LeaseView::Unreachable { since, .. } => *since,
        _ => c.now,
    };
    Some(Decision {
        actions,
        wake_at: Some(c.now + c.policy.renew_every),
        situation: Situation::FailStatic { since },
    })
}

/// Somebody else holds the lease and it has not run out: copy from them.
fn follow(c: &Context<'_>, known: &LeaseKnown, holder: &NodeId) -> Decision {
    let server = &c.local.server;
    let epoch = known.record.epoch;
    let synced = is_synced(c, epoch);
    let mut actions = Vec::new();
    let mut wake_at = None;
    finish_as_follower(c, known, holder, &mut actions);
    if server.writes_paused {
        actions.push(Action::ResumeWrites);
    }
    let Some(peer) = c.peer(holder) else {
        // The holder is newer than this node's configuration: wait for that, take no writes.
        if server.role() == Some(Role::Primary) {
            actions.push(Action::Park);
        }
        let situation = Situation::Following { holder: holder.clone(), synced: false };
        return Decision { actions, wake_at: None, situation };
    };
    // Rule "older epoch follows": whatever this node was, it can only become a replica.
    let stays = !c.rules.older_epoch_follows && c.local.data_epoch < epoch;
    let source = chain::source(c, known, peer);
    let from = &source.peer.member;
    if source.asks {
        actions.push(Action::AskPeers);
    }
    if let Some(upstream) = source.leaves {
        actions.push(Action::LeaveUpstream(upstream.clone()));
    }
    if c.local.chain.is_some() {
        let share = if synced { 1 } else { 4 };
        wake_at = Some(c.now + Millis(c.policy.renew_every.0 / share));
    }
    if source.waits {
        wake_at = Some(c.now + SOON);
    } else if server.is_down() {
        actions.extend(start_from(c, &peer.member, from));
        if !server.may_start {
            return Decision { actions, wake_at, situation: Situation::Down };
        }
        if waits_for_data(c, &peer.member) {
            wake_at = Some(c.now + c.policy.gather);
        }
    } else if let Some(view) = &server.replication
        && !stays
    {
        let right = view.role == Role::Replica && view.primary.as_ref() == Some(&from.address);
        // Copying is under way, or done, from the primary itself: that is not broken off half-way.
        let is_fed =
            view.role == Role::Replica && view.primary.as_ref() == Some(&peer.member.address);
        if !right && is_fed && view.syncing {
            wake_at = Some(c.now + c.policy.gather);
        } else if !right && is_fed && view.link_up && server.state == ServerState::Serving {
            actions.push(Action::Join(from.clone()));
        } else if !right && server.state == ServerState::Serving {
            actions.extend(keep_aside(c, epoch));
            actions.push(Action::Follow(from.clone()));
        } else if !right {
            wake_at = Some(c.now + SOON);
        } else if synced && c.local.data_aside {
            actions.push(Action::DropDataAside);
        } else if !synced
            && view.link_up
            && c.local.synced.as_ref().is_some_and(|mark| is_old_link(mark, epoch, view))
        {
            // Only the holder can say whether this link is of its epoch.
            let again = peer.asked_at.map_or(c.now, |at| at + c.policy.renew_every);
            if c.now >= again && !source.asks {
                actions.push(Action::AskPeers);
            }
            wake_at = Some(again.max(c.now + SOON));
        }
    } else {
        wake_at = Some(c.now + SOON);
    }
    Decision {
        actions,
        wake_at,
        situation: Situation::Following { holder: holder.clone(), synced },
    }
}

/// A hand-over that went through ends here, at the former holder; orders for a holder are refused.
fn finish_as_follower(
    c: &Context<'_>,
    known: &LeaseKnown,
    holder: &NodeId,
    actions: &mut Vec<Action>,
) {
    let handed_to = c.local.hand_over.as_ref().map(|progress| &progress.to);
    if handed_to.is_some() {
        actions.push(Action::EndHandOver);
    }
    if let Some(order) = &c.local.order
        && matches!(order.kind, OrderKind::HandOver { .. })
    {
        let done = handed_to == Some(holder)
            || known
                .record
                .previous
                .as_ref()
                .is_some_and(|p| c.is_me(&p.node) && handed_to.is_some());
        let outcome = if done { OrderOutcome::Done } else { OrderOutcome::NotHolder };
        actions.push(Action::FinishOrder(outcome));
    }
}

/// The own server completed a sync in this epoch and has not restarted since.
pub(crate) fn is_synced(c: &Context<'_>, epoch: u64) -> bool {
    let run_id = c.local.server.run_id.as_ref();
    c.local.synced.as_ref().is_some_and(|m| m.epoch == epoch && Some(&m.run_id) == run_id)
}

/// Starts the server, always read-only. A lost volume starts only as a replica of a holder: by
/// itself it would be an empty node that looks like one with data.
pub(crate) fn start(c: &Context<'_>, holder: Option<&Member>) -> Vec<Action> {
    if !c.local.server.may_start {
        return Vec::new();
    }
    match holder {
        Some(holder) => start_from(c, holder, holder),
        None if c.local.volume == VolumeState::Lost && c.rules.lost_volume_never_leads => {
            Vec::new()
        }
        None => vec![Action::StartServer { start_as: StartAs::Parked }],
    }
}

/// Starts the server as a replica of `from`, which is the holder or copies from it.
fn start_from(c: &Context<'_>, holder: &Member, from: &Member) -> Vec<Action> {
    if !c.local.server.may_start {
        return Vec::new();
    }
    if waits_for_data(c, holder) {
        return vacancy::ask(c, c.now - c.policy.gather).into_iter().collect();
    }
    let epoch = c.lease.last().map_or(0, |known| known.record.epoch);
    let mut actions: Vec<Action> = keep_aside(c, epoch).into_iter().collect();
    actions.push(Action::StartServer { start_as: StartAs::ReplicaOf(from.clone()) });
    actions
}

/// Rule "lost volume never leads", for what it may copy: a start takes the remains of the volume out
/// of the server's way. A holder may be dead with a lease that has not run out yet, and whoever
/// repairs the remains meanwhile has to find them in their place.
fn waits_for_data(c: &Context<'_>, holder: &Member) -> bool {
    let lost = c.local.volume == VolumeState::Lost && c.rules.lost_volume_never_leads;
    let since = c.now - Millis(c.policy.gather.0 * 2);
    let leads = c.peer(&holder.node).and_then(|peer| c.fresh(peer, since)).is_some_and(|report| {
        report.volume == VolumeState::Data
            && report.replication.as_ref().is_some_and(|view| view.role == Role::Primary)
    });
    lost && !leads
}

/// Rule "data aside": data of an older epoch may hold writes that nobody else has. A replica that
/// was in sync up to now has nothing of its own to lose.
fn keep_aside(c: &Context<'_>, epoch: u64) -> Option<Action> {
    let local = c.local;
    if local.data_aside || local.data_epoch == 0 || local.volume != VolumeState::Data {
        return None;
    }
    let last_lineage = c.lease.last().map_or(0, |known| {
        known.record.previous.as_ref().map_or_else(|| lineage(&known.record), |p| p.epoch)
    });
    let previous = c.lease.last().and_then(|known| known.record.previous.as_ref());
    // A planned hand-over left nothing behind; any other may have.
    let led = previous.is_some_and(|p| c.is_me(&p.node) && p.reason != ReleaseReason::Planned);
    let in_step = !led
        && local.server.role() != Some(Role::Primary)
        && local.synced.as_ref().is_some_and(|mark| {
            mark.epoch >= last_lineage && Some(&mark.run_id) == local.server.run_id.as_ref()
        });
    (local.data_epoch < epoch && !in_step).then_some(Action::KeepDataAside)
}
