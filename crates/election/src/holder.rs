//! What the holder of the lease does: take over, lead, renew, stop in time, let go.

use larder_model::agent::{Role, ServerState, VolumeState};
use larder_model::lease::{LeaseHolder, LeaseRecord, Previous, ReleaseReason};
use larder_model::{Millis, Timestamp};

use crate::action::{Action, Decision, OrderOutcome, Situation, WhyNoPrimary, WhyParked};
use crate::candidate::candidates;
use crate::promise::{bound_until, static_until};
use crate::world::{Context, LeaseKnown, OrderKind};
use crate::{follow, hand_over, route, vacancy};

/// This node holds the lease; `run_id` is the server that took it.
pub(crate) fn decide(c: &Context<'_>, known: &LeaseKnown, run_id: &str) -> Decision {
    let server = &c.local.server;
    if server.is_down() {
        if !c.rules.restarted_server_steps_back {
            let mut decision = renew_only(c, known);
            decision.actions.extend(follow::start(c, None));
            return decision;
        }
        return server_lost(c, known);
    }
    match &server.run_id {
        Some(own) if own == run_id => {}
        // A server in a long script answers nothing, not even who it is. It is the process that
        // took the lease: another one would have been started by this agent, and known.
        None if server.state == ServerState::Busy => return renew_only(c, known),
        // Rule "restarted server": another process than the one that took the lease.
        Some(own) if !c.rules.restarted_server_steps_back => {
            let mut record = known.record.clone();
            record.epoch += 1;
            record.holder =
                Some(LeaseHolder { node: c.local.me.node.clone(), run_id: own.clone() });
            let after_version = Some(known.version);
            let ready = server.state == ServerState::Serving;
            return Decision {
                actions: ready
                    .then_some(Action::AcquireLease { record, after_version })
                    .into_iter()
                    .collect(),
                wake_at: Some(c.now + c.policy.gather),
                situation: Situation::TakingOver,
            };
        }
        Some(_) | None => return server_lost(c, known),
    }
    match server.role() {
        Some(Role::Primary) => lead(c, known),
        Some(Role::Replica) => take_over(c, known),
        None => renew_only(c, known),
    }
}

fn renew_due(c: &Context<'_>) -> bool {
    c.local.renewed_at.is_none_or(|at| c.now >= at + c.policy.renew_every)
}

/// Until when this node may take writes without another renewal; `None`: for ever, because nobody
/// else could lead. Also, until when by the promises of its replicas alone.
fn may_lead_until(c: &Context<'_>, known: &LeaseKnown) -> (Option<Timestamp>, Option<Timestamp>) {
    let policy = c.policy;
    let reachable = matches!(c.lease, crate::LeaseView::Known(_));
    let alone = c.is_alone() && c.rules.alone_goes_on;
    // Rule "stop before expiry". After a start of the agent nothing is known of the last renewal:
    // one attempt, and the first failure stops the writes (the keeper or the liveness probe has
    // watched the lease meanwhile).
    let stop_at = match c.local.renewed_at {
        Some(at) => at + policy.lease_ttl - policy.fence_margin,
        None if reachable => known.seen_at + policy.fence_margin,
        None => c.now,
    };
    let by_promise = static_until(c, known.record.epoch).map(|until| until - policy.fence_margin);
    let until = by_promise.map_or(stop_at, |until| until.max(stop_at));
    ((!alone && c.rules.stop_before_expiry).then_some(until), by_promise)
}

/// Takes no writes any more: the lease could not be renewed in time.
fn stop_in_time(c: &Context<'_>) -> Decision {
    let mut actions = hand_over::abandon(c);
    actions.push(Action::Park);
    Decision {
        actions,
        wake_at: Some(c.now + c.policy.gather),
        situation: Situation::Parked(WhyParked::CannotRenew),
    }
}

/// The lease is out of reach and the server that took it says nothing, not even what it is: it
/// may take writes, so it is stopped in time like one that does.
pub(crate) fn silent_without_lease(c: &Context<'_>, known: &LeaseKnown) -> Decision {
    match may_lead_until(c, known).0 {
        Some(until) if c.now >= until => stop_in_time(c),
        until => {
            let mut decision = renew_only(c, known);
            decision.wake_at = decision.wake_at.min(until.or(decision.wake_at));
            decision
        }
    }
}

/// Holds the lease with a server that cannot be asked just now (a long script, loading).
fn renew_only(c: &Context<'_>, known: &LeaseKnown) -> Decision {
    let mut actions = Vec::new();
    if renew_due(c) {
        actions.push(Action::RenewLease { after_version: known.version });
    }
    let wake_at = Some(next_renewal(c));
    Decision { actions, wake_at, situation: Situation::TakingOver }
}

fn next_renewal(c: &Context<'_>) -> Timestamp {
    let due = c.local.renewed_at.map_or(c.now, |at| at + c.policy.renew_every);
    // An overdue renewal is under way or has just failed: not in a hot loop.
    if due > c.now { due } else { c.now + Millis(c.policy.renew_every.0 / 4) }
}

/// The server takes writes.
pub(crate) fn lead(c: &Context<'_>, known: &LeaseKnown) -> Decision {
    let policy = c.policy;
    let epoch = known.record.epoch;
    let (may_until, by_promise) = may_lead_until(c, known);
    if may_until.is_some_and(|until| c.now >= until) {
        return stop_in_time(c);
    }
    let mut actions = Vec::new();
    let late = c.local.renewed_at.is_none_or(|at| c.now >= at + Millis(policy.renew_every.0 * 2));
    let promise_ends = by_promise.is_none_or(|until| until < c.now + Millis(policy.promise.0 / 2));
    if late && promise_ends && !c.peers.is_empty() && c.local.renewed_at.is_some() {
        actions.push(Action::AskPromises { epoch, for_: policy.promise });
    }
    if renew_due(c) {
        actions.push(Action::RenewLease { after_version: known.version });
        // Replicas that copy from others say themselves how they are.
        if c.local.chain.is_some() {
            actions.push(Action::AskPeers);
        }
    }
    let mut wake_at = next_renewal(c);
    if let Some(until) = may_until {
        wake_at = wake_at.min(until);
    }
    let mut decision = Decision { actions, wake_at: Some(wake_at), situation: Situation::Leading };
    if late && c.local.renewed_at.is_some() {
        let since = c.local.renewed_at.map_or(c.now, |at| at + policy.renew_every);
        decision.situation = Situation::FailStatic { since };
        decision.actions.extend(hand_over::abandon(c));
    } else if hand_over::go_on(c, known, &mut decision) {
        return decision;
    }
    if c.local.data_aside {
        decision.actions.push(Action::DropDataAside);
    }
    if matches!(c.local.order.as_ref().map(|o| &o.kind), Some(OrderKind::TakeLease { .. })) {
        decision.actions.push(Action::FinishOrder(OrderOutcome::Done));
    }
    if c.local.server.writes_paused {
        decision.actions.push(Action::ResumeWrites);
    }
    decision.actions.extend(route::publish(c, route::leading(c, epoch, false)));
    decision
}

/// The lease is this node's, its server is still read-only.
fn take_over(c: &Context<'_>, known: &LeaseKnown) -> Decision {
    let record = &known.record;
    let server = &c.local.server;
    // Rule "lost volume never leads".
    if c.local.volume == VolumeState::Lost && c.rules.lost_volume_never_leads {
        return let_go(c, known, ReleaseReason::VolumeLost);
    }
    if let Some(decision) = hand_over::after_demotion(c, known) {
        return decision;
    }
    if let Some(until) = bound_until(c, record) {
        let mut decision = renew_only(c, known);
        decision.wake_at = decision.wake_at.map(|at| at.min(until));
        decision.situation = Situation::Parked(WhyParked::Promised);
        return decision;
    }
    if let Some(decision) = wait_for_old_lease(c, known) {
        return decision;
    }
    if server.state != ServerState::Serving {
        let mut decision = renew_only(c, known);
        decision.situation = Situation::NoPrimary(WhyNoPrimary::ServerNotReady);
        return decision;
    }
    let mut actions = Vec::new();
    let first_time = c.local.data_epoch < record.epoch;
    // Rule "fence the old primary": one that did not let go may still think that it leads.
    if first_time
        && c.rules.fence_old_primary
        && let Some(previous) = &record.previous
        && matches!(previous.reason, ReleaseReason::Expired | ReleaseReason::Forced)
        && let Some(old) = c.peer(&previous.node)
    {
        actions.push(Action::FenceOldPrimary { old: old.member.clone(), epoch: record.epoch });
    }
    // Rule "data on disk first": before the renewal, as it may take a while. The replicas are no
    // candidates before they have synced in this epoch, so until then the own file has to have it
    // all.
    if first_time && c.rules.data_on_disk_first {
        actions.push(Action::SyncData);
    }
    // Rule "renew before promote": a release of this node that was never answered may still be on
    // its way; after this write it can no longer succeed.
    if c.rules.renew_before_promote {
        actions.push(Action::RenewLease { after_version: known.version });
    }
    actions.push(Action::Promote { epoch: record.epoch });
    if server.writes_paused {
        actions.push(Action::ResumeWrites);
    }
    actions.extend(route::publish(c, route::leading(c, record.epoch, false)));
    Decision { actions, wake_at: Some(c.now + Millis(200)), situation: Situation::TakingOver }
}

/// A lease that was taken from a living holder by a person's word: the old holder learns of it
/// when it renews, so it may take writes until its lease has run out.
fn wait_for_old_lease(c: &Context<'_>, known: &LeaseKnown) -> Option<Decision> {
    let previous = known.record.previous.as_ref()?;
    if previous.reason != ReleaseReason::Forced || c.local.data_epoch >= known.record.epoch {
        return None;
    }
    let runs_until = known.epoch_seen_at + c.policy.lease_ttl + c.policy.clock_drift;
    let old = c.peer(&previous.node)?;
    let gave_way = c.fresh(old, known.epoch_seen_at).is_some_and(|report| {
        report.lease_epoch >= known.record.epoch
            && report.replication.as_ref().is_some_and(|view| view.role == Role::Replica)
    });
    if c.now >= runs_until || gave_way {
        return None;
    }
    let mut decision = renew_only(c, known);
    let asked = old.asked_at.is_some_and(|at| c.now < at + c.policy.gather);
    if !asked {
        let epoch = known.record.epoch;
        decision.actions.push(Action::FenceOldPrimary { old: old.member.clone(), epoch });
        decision.actions.push(Action::AskPeers);
    }
    let wake = c.now + c.policy.gather;
    decision.wake_at = Some(wake.min(runs_until));
    decision.situation = Situation::Parked(WhyParked::OldLeaseRuns);
    Some(decision)
}

/// The server that took the lease is gone. Rule "hand over a dead server at once".
fn server_lost(c: &Context<'_>, known: &LeaseKnown) -> Decision {
    let server = &c.local.server;
    let mut park = Vec::new();
    if server.role() == Some(Role::Primary) {
        park.push(Action::Park);
    }
    if c.is_alone() && c.rules.alone_goes_on {
        return vacancy::alone(c, known);
    }
    if !c.rules.hand_over_dead_server {
        let mut actions = park;
        if server.is_down() {
            actions.extend(follow::start(c, None));
        }
        let wake_at = Some(c.now + c.policy.gather);
        return Decision { actions, wake_at, situation: Situation::ServerLost };
    }
    // Once every peer was asked, answered or not, there is nothing more to wait for here.
    let since = server.down_since.unwrap_or(c.now - c.policy.gather);
    if !c.peers.iter().all(|peer| peer.asked_at.is_some_and(|at| at >= since)) {
        let mut actions = park;
        actions.push(Action::AskPeers);
        let wake_at = Some(c.now + Millis(50));
        return Decision { actions, wake_at, situation: Situation::ServerLost };
    }
    let reason = if c.local.volume == VolumeState::Lost {
        ReleaseReason::VolumeLost
    } else {
        ReleaseReason::ServerLost
    };
    let mut decision = let_go(c, known, reason);
    park.append(&mut decision.actions);
    decision.actions = park;
    decision
}

/// Releases the lease; names the successor when every peer has answered.
fn let_go(c: &Context<'_>, known: &LeaseKnown, reason: ReleaseReason) -> Decision {
    let since = c.local.server.down_since.unwrap_or(c.now - c.policy.gather);
    let released = released_record(c, known, reason, None);
    let successor = if c.all_answered(since) && !vacancy::on_hold(c, &known.record) {
        candidates(c, &released, since)
            .into_iter()
            .find(|claimant| !c.is_me(&claimant.node))
            .map(|claimant| claimant.node)
    } else {
        None
    };
    let record = match &released.previous {
        Some(previous) => LeaseRecord {
            previous: Some(Previous { successor, ..previous.clone() }),
            ..released.clone()
        },
        None => released,
    };
    let mut actions = vec![Action::ReleaseLease { record, after_version: known.version }];
    actions.extend(route::publish(c, route::vacant(c, known.record.epoch)));
    Decision { actions, wake_at: Some(c.now + c.policy.gather), situation: Situation::ServerLost }
}

/// The lease without a holder. A holder that never led in its epoch leaves `previous` as it was:
/// the last primary is still the one before.
pub(crate) fn released_record(
    c: &Context<'_>,
    known: &LeaseKnown,
    reason: ReleaseReason,
    successor: Option<larder_model::NodeId>,
) -> LeaseRecord {
    let led = c.local.data_epoch >= known.record.epoch;
    let previous = if led || known.record.previous.is_none() {
        Previous { node: c.local.me.node.clone(), epoch: known.record.epoch, reason, successor }
    } else {
        let old = known.record.previous.clone();
        let old = old.expect("the branch above took the case without one");
        Previous { successor, ..old }
    };
    LeaseRecord {
        epoch: known.record.epoch,
        holder: None,
        previous: Some(previous),
        failovers: known.record.failovers.clone(),
    }
}
