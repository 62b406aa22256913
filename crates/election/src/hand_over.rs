//! The planned hand-over: ordered from the holder's agent, nothing acknowledged is lost.

use larder_model::agent::ReplicationView;
use larder_model::lease::ReleaseReason;
use larder_model::{Millis, NodeId, Observation};

use crate::action::{Action, Decision, OrderOutcome, Situation};
use crate::candidate::{candidates, is_candidate};
use crate::holder::released_record;
use crate::world::{Context, HandOverProgress, LeaseKnown, OrderKind, Peer, PendingOrder};
use crate::{chain, route};

/// How often offsets are compared while writes are paused.
const COMPARE_EVERY: Millis = Millis(10);
/// How often a successor is asked that this primary does not hear of itself.
const ASK_EVERY: Millis = Millis(50);
/// How long a replica that is connected may take until its primary streams to it: replicas acknowledge
/// once a second, and the primary's agent hears of it by the second.
const STREAM_BEGINS: Millis = Millis(3000);

/// Goes on with a hand-over, or begins one, while this node leads. `true`: the decision is made.
pub(crate) fn go_on(c: &Context<'_>, known: &LeaseKnown, decision: &mut Decision) -> bool {
    if let Some(progress) = &c.local.hand_over {
        wait_for_offsets(c, known, progress, decision);
        return true;
    }
    match &c.local.order {
        Some(order) => match &order.kind {
            OrderKind::HandOver { to } => begin(c, known, order, to.as_ref(), decision),
            OrderKind::TakeLease { .. } => false,
        },
        None => false,
    }
}

fn begin(
    c: &Context<'_>,
    known: &LeaseKnown,
    order: &PendingOrder,
    to: Option<&NodeId>,
    decision: &mut Decision,
) -> bool {
    let refuse = |decision: &mut Decision, outcome| {
        decision.actions.push(Action::FinishOrder(outcome));
        decision.wake_at = Some(c.now);
        true
    };
    if to.is_some_and(|node| c.is_me(node)) {
        return refuse(decision, OrderOutcome::Done);
    }
    if !c.peers.iter().all(|peer| peer.asked_at.is_some_and(|at| at >= order.since)) {
        decision.actions.push(Action::AskPeers);
        decision.wake_at = Some(c.now + Millis(50));
        return true;
    }
    // Who was asked gets the time to answer before it counts as silent.
    let still_silent = |peer: &Peer| {
        let given_up =
            matches!(&peer.answer, Observation::Unknown { since } if *since >= order.since);
        c.fresh(peer, order.since).is_none() && !given_up
    };
    let waited_for = |peer: &&Peer| to.is_none_or(|node| peer.member.node == *node);
    if c.now < order.since + c.policy.gather && c.peers.iter().filter(waited_for).any(still_silent)
    {
        decision.wake_at = Some(c.now + Millis(50));
        return true;
    }
    // Synced, answering, and online in this primary's own eyes; one that comes is waited for.
    let seen = |node: &NodeId| {
        let address = c.peer(node).map(|peer| &peer.member.address);
        let mut replicas = c.local.server.replication.iter().flat_map(|view| &view.replicas);
        replicas.find(|replica| Some(&replica.address) == address)
    };
    let online = |node: &NodeId| seen(node).is_some_and(|replica| replica.online);
    let waits = c.now < order.since + STREAM_BEGINS;
    let comes = |node: &NodeId| waits && seen(node).is_some();
    let below = |node: &NodeId| chain::copies_through_others(c, known, node, order.since);
    let target = match to {
        Some(node) => {
            let fit = c
                .peer(node)
                .and_then(|peer| c.fresh(peer, order.since))
                .is_some_and(|report| is_candidate(c, report, &known.record));
            if fit && !online(node) && comes(node) {
                decision.wake_at = Some(c.now + Millis(50));
                return true;
            }
            if !fit || !(online(node) || below(node)) {
                return refuse(decision, OrderOutcome::NoSuchCandidate(node.clone()));
            }
            node.clone()
        }
        None => {
            let others: Vec<NodeId> = candidates(c, &known.record, order.since)
                .into_iter()
                .map(|claimant| claimant.node)
                .filter(|node| !c.is_me(node))
                .collect();
            match others.iter().find(|node| online(node)) {
                Some(node) => node.clone(),
                None if others.iter().any(comes) => {
                    decision.wake_at = Some(c.now + Millis(50));
                    return true;
                }
                None => match others.iter().find(|node| below(node)) {
                    Some(node) => node.clone(),
                    None => return refuse(decision, OrderOutcome::NoCandidate),
                },
            }
        }
    };
    decision.actions.push(Action::BeginHandOver { to: target.clone() });
    let held = route::leading(c, known.record.epoch, true);
    decision.actions.extend(route::publish(c, held));
    // Longer than the hand-over may last: writes must not come back between the last comparison
    // and the demotion.
    let for_ = Millis(c.policy.hand_over_timeout.0 + c.policy.lease_ttl.0);
    if c.rules.equal_offsets {
        decision.actions.push(Action::PauseWrites { for_ });
    }
    decision.wake_at = Some(c.now);
    decision.situation = Situation::HandingOver { to: target };
    true
}

fn wait_for_offsets(
    c: &Context<'_>,
    known: &LeaseKnown,
    progress: &HandOverProgress,
    decision: &mut Decision,
) {
    decision.situation = Situation::HandingOver { to: progress.to.clone() };
    let view = c.local.server.replication.as_ref();
    let address = c.peer(&progress.to).map(|peer| &peer.member.address);
    let replica =
        view.and_then(|v| v.replicas.iter().find(|r| r.online && Some(&r.address) == address));
    let equal = match (view, replica) {
        (Some(view), Some(replica)) => replica.offset >= view.offset,
        (Some(view), None) => told_offset(c, progress, view).is_some_and(|it| it >= view.offset),
        (None, _) => false,
    };
    if c.now >= progress.since + c.policy.hand_over_timeout {
        call_off(c, known, decision);
    } else if (equal && c.local.server.writes_paused) || !c.rules.equal_offsets {
        let record = released_record(c, known, ReleaseReason::Planned, Some(progress.to.clone()));
        // Clients first: a paused write that is still queued would be answered with READONLY.
        decision.actions.push(Action::CloseClients);
        decision.actions.push(Action::Park);
        decision.actions.push(Action::ResumeWrites);
        // A renewal of this same decision has made a new version, so this one is for the next
        // round: letting go always starts from a version that was read.
        let renews = decision.actions.iter().any(|a| matches!(a, Action::RenewLease { .. }));
        if !renews {
            decision.actions.push(Action::ReleaseLease { record, after_version: known.version });
            decision.actions.push(Action::EndHandOver);
            decision.actions.push(Action::FinishOrder(OrderOutcome::Done));
        }
        decision.wake_at = Some(c.now);
    } else {
        if !c.local.server.writes_paused {
            let for_ = Millis(c.policy.hand_over_timeout.0 + c.policy.lease_ttl.0);
            decision.actions.push(Action::PauseWrites { for_ });
        }
        let asked = c.peer(&progress.to).and_then(|peer| peer.asked_at);
        if replica.is_none() && asked.is_none_or(|at| c.now >= at + ASK_EVERY) {
            decision.actions.push(Action::AskPeers);
        }
        decision.wake_at = Some(c.now + COMPARE_EVERY);
    }
}

/// The offset of a successor that copies through others, as it has said itself since the hand-over began.
fn told_offset(c: &Context<'_>, progress: &HandOverProgress, own: &ReplicationView) -> Option<u64> {
    let report = c.peer(&progress.to).and_then(|peer| c.fresh(peer, progress.since))?;
    let theirs = report.replication.as_ref()?;
    (theirs.link_up && theirs.replid == own.replid).then_some(theirs.offset)
}

/// Writes go on here as if nothing had been asked.
fn call_off(c: &Context<'_>, known: &LeaseKnown, decision: &mut Decision) {
    decision.actions.push(Action::ResumeWrites);
    decision.actions.push(Action::EndHandOver);
    decision.actions.extend(route::publish(c, route::leading(c, known.record.epoch, false)));
    decision.actions.push(Action::FinishOrder(OrderOutcome::TooSlow));
    decision.situation = Situation::Leading;
}

/// The lease cannot be renewed, so it cannot be let go in order either: writes go on, or stop by
/// precaution, and neither is a demotion at equal offsets. Left standing, the hand-over would later
/// be taken for one, and name a successor that lacks what was acknowledged since.
pub(crate) fn abandon(c: &Context<'_>) -> Vec<Action> {
    match &c.local.hand_over {
        Some(_) => vec![Action::EndHandOver, Action::FinishOrder(OrderOutcome::TooSlow)],
        None => Vec::new(),
    }
}

/// Demoted, but the lease is still this node's: the release was not answered. Try again, then take
/// the shard back.
pub(crate) fn after_demotion(c: &Context<'_>, known: &LeaseKnown) -> Option<Decision> {
    let progress = c.local.hand_over.as_ref()?;
    let mut actions = Vec::new();
    if c.local.server.writes_paused {
        actions.push(Action::ResumeWrites);
    }
    if c.now < progress.since + c.policy.hand_over_timeout {
        let to = Some(progress.to.clone());
        let record = released_record(c, known, ReleaseReason::Planned, to);
        actions.push(Action::ReleaseLease { record, after_version: known.version });
        actions.push(Action::EndHandOver);
        actions.push(Action::FinishOrder(OrderOutcome::Done));
    } else {
        actions.push(Action::EndHandOver);
        actions.push(Action::FinishOrder(OrderOutcome::TooSlow));
    }
    Some(Decision {
        actions,
        wake_at: Some(c.now + Millis(50)),
        situation: Situation::HandingOver { to: progress.to.clone() },
    })
}
