//! Nobody holds the lease: who takes it, and who waits for whom.

use larder_model::agent::{Role, ServerState, VolumeState};
use larder_model::lease::{LeaseHolder, LeaseRecord, Previous, ReleaseReason};
use larder_model::{Millis, NodeId, Timestamp};

use crate::action::{Action, Decision, OrderOutcome, Situation, StartAs, WhyNoPrimary, WhyParked};
use crate::candidate::{by_lineage, candidates, has_data, is_behind, is_candidate, own_report};
use crate::promise::bound_until;
use crate::world::{Context, LeaseKnown, OrderKind, PeerReport, former_holder, lineage};
use crate::{follow, route};

/// Whether automatic failovers of the shard are on hold (rule: failover limit). By wall clock,
/// because the list outlives boots; a time far in the future is a clock that was wrong. A lease
/// that was let go because a person asked for that is no automatic failover: if its successor
/// refused it, the former holder would take it back, hand it over again, and so on without end.
pub(crate) fn on_hold(c: &Context<'_>, record: &LeaseRecord) -> bool {
    let asked_for = record.holder.is_none()
        && record.previous.as_ref().is_some_and(|previous| !previous.reason.is_automatic());
    c.rules.failover_limit
        && !asked_for
        && recent_failovers(c, record).count() >= c.policy.max_failovers as usize
}

fn recent_failovers<'r>(
    c: &Context<'_>,
    record: &'r LeaseRecord,
) -> impl Iterator<Item = Timestamp> + 'r {
    let (wall, policy) = (c.wall, *c.policy);
    record.failovers.iter().copied().filter(move |at| policy.counts_failover(*at, wall))
}

/// The lease is free since `since` (by this node's clock).
pub(crate) fn decide(c: &Context<'_>, known: &LeaseKnown, since: Timestamp) -> Decision {
    if c.is_alone() && c.rules.alone_goes_on {
        return alone(c, known);
    }
    let version = Some(known.version);
    compete(c, &known.record, version, since)
}

/// There has never been a lease, or it is gone.
pub(crate) fn without_lease(c: &Context<'_>) -> Decision {
    let local = c.local;
    let server = &local.server;
    // Rule "bootstrap only once".
    let new = !local.initialized && local.data_epoch == 0 && local.volume != VolumeState::Lost;
    if local.bootstrap && (new || !c.rules.bootstrap_only_once) {
        let none = LeaseRecord { epoch: 0, holder: None, previous: None, failovers: Vec::new() };
        return claim_or_get_ready(c, &none, None, true);
    }
    if local.data_epoch == 0 {
        let why = WhyNoPrimary::NotBootstrapped;
        return Decision { actions: vec![], wake_at: None, situation: Situation::NoPrimary(why) };
    }
    // The shard has a past and its lease is gone. Epochs go on above all that anybody has seen,
    // so everybody has to answer, and nobody may still take writes.
    let since = c.now - c.policy.renew_every;
    let leads = |report: &PeerReport| {
        report.replication.as_ref().is_some_and(|view| view.role == Role::Primary)
    };
    let somebody_leads = c.peers.iter().filter_map(|p| c.fresh(p, since)).any(leads);
    if !c.all_answered(since) || somebody_leads {
        let mut actions = Vec::new();
        if server.role() == Some(Role::Primary) {
            actions.push(Action::Park);
        }
        if server.is_down() {
            actions.extend(follow::start(c, None));
        }
        actions.extend(ask(c, c.now - c.policy.gather));
        let wake_at = Some(c.now + Millis(c.policy.gather.0 / 2));
        let situation = Situation::NoPrimary(WhyNoPrimary::LeaseUnreachable);
        return Decision { actions, wake_at, situation };
    }
    let seen = c.peers.iter().filter_map(|peer| c.fresh(peer, since));
    let epoch = seen.map(|r| r.data_epoch.max(r.lease_epoch)).fold(local.data_epoch, u64::max);
    let record = LeaseRecord { epoch, holder: None, previous: None, failovers: Vec::new() };
    compete(c, &record, None, since)
}

/// The only node of its shard: nobody could take over, it leads from its own file at once.
pub(crate) fn alone(c: &Context<'_>, known: &LeaseKnown) -> Decision {
    let record = &known.record;
    let mine = former_holder(record).is_some_and(|node| c.is_me(node));
    let unborn = is_unborn(c, record);
    if !has_data(c, &own_report(c)) && !unborn {
        return nothing_to_lead_with(c);
    }
    let mut decision = claim_or_get_ready(c, record, Some(known.version), false);
    // It takes writes before the lease says so: renewing needs no room on a full disk, a new
    // record does, and there is nobody to race with.
    let server = &c.local.server;
    if mine && server.state == ServerState::Serving && server.run_id.is_some() && !unborn {
        let mut first = Vec::new();
        if server.role() == Some(Role::Replica) {
            first.push(Action::Promote { epoch: record.epoch });
        }
        first.extend(route::publish(c, route::leading(c, record.epoch, false)));
        first.append(&mut decision.actions);
        decision.actions = first;
    }
    decision
}

/// The bootstrap node of a new instance, that took the first lease and died before it led: nobody
/// ever wrote anything, and its volume has been there all along.
fn is_unborn(c: &Context<'_>, record: &LeaseRecord) -> bool {
    c.local.bootstrap
        && !c.local.initialized
        && c.local.data_epoch == 0
        && c.local.volume == VolumeState::Data
        && former_holder(record).is_some_and(|node| c.is_me(node))
}

fn nothing_to_lead_with(c: &Context<'_>) -> Decision {
    let mut actions = Vec::new();
    if c.local.server.role() == Some(Role::Primary) {
        actions.push(Action::Park);
    }
    let why = WhyNoPrimary::NotEligible;
    Decision { actions, wake_at: None, situation: Situation::NoPrimary(why) }
}

/// Takes the lease when the own server is ready for it, else gets it ready.
fn claim_or_get_ready(
    c: &Context<'_>,
    record: &LeaseRecord,
    after_version: Option<u64>,
    first: bool,
) -> Decision {
    let server = &c.local.server;
    let waiting = |actions| Decision {
        actions,
        wake_at: Some(c.now + Millis(200)),
        situation: Situation::NoPrimary(WhyNoPrimary::ServerNotReady),
    };
    if server.is_down() {
        if !server.may_start {
            return Decision { actions: vec![], wake_at: None, situation: Situation::Down };
        }
        let forced = !c.rules.lost_volume_never_leads || first;
        let actions = if forced {
            vec![Action::StartServer { start_as: StartAs::Parked }]
        } else {
            follow::start(c, None)
        };
        return waiting(actions);
    }
    let (ServerState::Serving, Some(run_id)) = (server.state, &server.run_id) else {
        return waiting(vec![]);
    };
    claim(c, record, after_version, run_id.clone(), true)
}

fn claim(
    c: &Context<'_>,
    record: &LeaseRecord,
    after_version: Option<u64>,
    run_id: String,
    automatic: bool,
) -> Decision {
    let previous = match &record.holder {
        Some(holder) => Some(Previous {
            node: holder.node.clone(),
            epoch: record.epoch,
            reason: ReleaseReason::Expired,
            successor: None,
        }),
        None => record.previous.clone(),
    };
    let mut failovers: Vec<Timestamp> = recent_failovers(c, record).collect();
    let moved = previous.as_ref().is_some_and(|p| !c.is_me(&p.node) && p.reason.is_automatic());
    if moved && automatic {
        failovers.push(c.wall);
    }
    let record = LeaseRecord {
        epoch: record.epoch + 1,
        holder: Some(LeaseHolder { node: c.local.me.node.clone(), run_id }),
        previous,
        failovers,
    };
    Decision {
        actions: vec![Action::AcquireLease { record, after_version }],
        wake_at: Some(c.now + Millis(200)),
        situation: Situation::TakingOver,
    }
}

/// Asks the peers who have not answered since `since`, not more often than twice per gathering.
pub(crate) fn ask(c: &Context<'_>, since: Timestamp) -> Option<Action> {
    let pause = Millis(c.policy.gather.0 / 2);
    c.peers
        .iter()
        .any(|peer| {
            c.fresh(peer, since).is_none()
                && peer.asked_at.is_none_or(|at| at < since || c.now >= at + pause)
        })
        .then_some(Action::AskPeers)
}

fn compete(
    c: &Context<'_>,
    record: &LeaseRecord,
    version: Option<u64>,
    since: Timestamp,
) -> Decision {
    let server = &c.local.server;
    let gather = c.policy.gather;
    let mut actions = Vec::new();
    if server.writes_paused {
        actions.push(Action::ResumeWrites);
    }
    actions.extend(end_hand_over(c, record));
    // Nobody leads, so this node does not either.
    if server.role() == Some(Role::Primary) {
        actions.push(Action::Park);
        let situation = Situation::NoPrimary(WhyNoPrimary::Gathering);
        return Decision { actions, wake_at: Some(c.now), situation };
    }
    let list = candidates(c, record, since);
    if server.is_down() {
        // With a candidate at hand the server soon starts as its replica, without loading a file
        // that it would have to give up.
        if list.is_empty() || c.now >= since + gather + gather {
            actions.extend(follow::start(c, None));
        }
    }
    let mut decision = Decision {
        actions,
        wake_at: Some(c.now + Millis(gather.0 / 2)),
        situation: Situation::NoPrimary(WhyNoPrimary::Gathering),
    };
    if let Some(until) = bound_until(c, record) {
        decision.wake_at = Some(until);
        decision.situation = Situation::Parked(WhyParked::Promised);
        return decision;
    }
    let verdict = verdict(c, record, &list, since);
    match verdict {
        Verdict::Take => {
            if let Some(run_id) = server.run_id.clone()
                && server.state == ServerState::Serving
            {
                let mut claim = claim(c, record, version, run_id, true);
                decision.actions.append(&mut claim.actions);
                return Decision { actions: decision.actions, ..claim };
            }
            decision.situation = Situation::NoPrimary(WhyNoPrimary::ServerNotReady);
        }
        Verdict::Wait(why, until) => {
            // Who waits for others has to notice when they fail too.
            decision.actions.extend(ask(c, since.max(c.now - c.policy.renew_every)));
            if let Some(until) = until {
                let soon = decision.wake_at.map_or(until, |at| at.min(until));
                decision.wake_at = Some(soon);
            }
            decision.situation = Situation::NoPrimary(why);
        }
    }
    decision
}

/// A hand-over that ended in a vacancy: the release got through, the successor is on its way.
fn end_hand_over(c: &Context<'_>, record: &LeaseRecord) -> Vec<Action> {
    let mut actions = Vec::new();
    if c.local.hand_over.is_some() {
        actions.push(Action::EndHandOver);
    }
    if let Some(order) = &c.local.order
        && matches!(order.kind, OrderKind::HandOver { .. })
    {
        let planned = record
            .previous
            .as_ref()
            .is_some_and(|p| c.is_me(&p.node) && p.reason == ReleaseReason::Planned);
        let outcome = if planned { OrderOutcome::Done } else { OrderOutcome::ServerLost };
        actions.push(Action::FinishOrder(outcome));
    }
    actions
}

enum Verdict {
    Take,
    Wait(WhyNoPrimary, Option<Timestamp>),
}

/// Each further place in the order waits this much longer for those before it.
fn turn(c: &Context<'_>, place: usize) -> Millis {
    Millis(c.policy.gather.0 * 2 * place as u64)
}

fn verdict(
    c: &Context<'_>,
    record: &LeaseRecord,
    list: &[crate::candidate::Claimant],
    since: Timestamp,
) -> Verdict {
    let gather = c.policy.gather;
    let own = own_report(c);
    let answered = c.all_answered(since);
    let held = on_hold(c, record);
    let own_file_at = since + c.policy.own_file_after;
    if is_candidate(c, &own, record) && !held {
        // Named by a holder that let go; the name is stale once somebody has held it since.
        let let_go = record.previous.as_ref().filter(|_| record.holder.is_none());
        let successor = let_go.and_then(|previous| previous.successor.as_ref());
        if successor.is_some_and(|node| c.is_me(node)) {
            return Verdict::Take;
        }
        // Rule "highest offset": best first, each waits for those before it.
        let place = list.iter().position(|claimant| c.is_me(&claimant.node)).unwrap_or(list.len());
        // Who hears few of the others may be the one that was cut off, and behind: each silent peer
        // costs as much as a better candidate. The former holder's silence is no news.
        let former = former_holder(record);
        let silent: Vec<_> = c
            .peers
            .iter()
            .filter(|p| former != Some(&p.member.node) && c.fresh(p, since).is_none())
            .collect();
        let mut at = if answered && place == 0 {
            since
        } else {
            since + gather + turn(c, place + silent.len())
        };
        // One with more writes may have begun to watch the lease later: an agent that its keeper
        // started again within a second waits a whole lease, and then gathers. Losing nothing is worth
        // that time.
        if let (Some(best), Some(own)) = (list.first(), list.get(place))
            && c.rules.highest_offset
            && is_behind(own, best)
        {
            at = at + c.policy.lease_ttl + c.policy.clock_drift + Millis(gather.0 * 3);
        }
        if successor.is_some() {
            at = at.max(since + gather + turn(c, 1));
        }
        // Asked once more when its turn came, in case the network has healed meanwhile.
        let asked = silent.iter().all(|peer| peer.asked_at.is_some_and(|asked| asked >= at));
        return if c.now >= at && asked {
            Verdict::Take
        } else {
            let at = if c.now >= at { c.now + Millis(50) } else { at };
            let better = list.first().filter(|best| !c.is_me(&best.node));
            let why = better.map_or(WhyNoPrimary::Gathering, |best| {
                WhyNoPrimary::BetterCandidate(best.node.clone())
            });
            Verdict::Wait(why, Some(at))
        };
    }
    if held && !former_holder(record).is_some_and(|node| c.is_me(node)) {
        return Verdict::Wait(WhyNoPrimary::OnHold, None);
    }
    // Rule "restarted server": while a synced replica answers, it is the one to take over.
    if let Some(best) = list.first()
        && c.now < own_file_at
        && !held
    {
        return Verdict::Wait(WhyNoPrimary::BetterCandidate(best.node.clone()), Some(own_file_at));
    }
    if !has_data(c, &own) && !is_unborn(c, record) {
        return Verdict::Wait(WhyNoPrimary::NotEligible, None);
    }
    // Somebody silent may be a candidate: wait for them, but not for ever.
    let nobody_better = answered || c.now >= own_file_at || held;
    match former_holder(record) {
        Some(former) if c.is_me(former) => {
            // Rule "own file": all killed at once must come back.
            if !c.rules.own_file {
                Verdict::Wait(WhyNoPrimary::NotEligible, None)
            } else if nobody_better {
                Verdict::Take
            } else {
                Verdict::Wait(WhyNoPrimary::Gathering, Some(own_file_at))
            }
        }
        former => newest_lineage(c, record, former, since),
    }
}

/// Rule "newest lineage": the former holder is silent, or its volume is gone.
fn newest_lineage(
    c: &Context<'_>,
    record: &LeaseRecord,
    former: Option<&NodeId>,
    since: Timestamp,
) -> Verdict {
    let own_file_at = since + c.policy.own_file_after;
    let answer = former.and_then(|node| c.peer(node)).and_then(|peer| c.fresh(peer, since));
    if let (Some(node), Some(report)) = (former, answer)
        && has_data(c, report)
    {
        return Verdict::Wait(WhyNoPrimary::WaitsForFormerHolder(node.clone()), None);
    }
    if !c.rules.newest_lineage {
        return Verdict::Wait(WhyNoPrimary::NotEligible, None);
    }
    let answered = c.all_answered(since);
    if !answered && c.now < own_file_at {
        let why = former.map_or(WhyNoPrimary::Gathering, |node| {
            WhyNoPrimary::WaitsForFormerHolder(node.clone())
        });
        return Verdict::Wait(why, Some(own_file_at));
    }
    // Data of an older epoch may lead only when nobody who is silent could have newer ones.
    let others_known = c
        .peers
        .iter()
        .filter(|peer| former != Some(&peer.member.node))
        .all(|peer| c.fresh(peer, since).is_some());
    if c.local.data_epoch < lineage(record) && !others_known {
        return Verdict::Wait(WhyNoPrimary::NotEligible, None);
    }
    let list = by_lineage(c, record, since);
    let place = list.iter().position(|claimant| c.is_me(&claimant.node)).unwrap_or(list.len());
    let from = if answered { since } else { own_file_at };
    let at = from + turn(c, place);
    if c.now >= at {
        Verdict::Take
    } else {
        let why = list.first().map_or(WhyNoPrimary::NotEligible, |best| {
            WhyNoPrimary::BetterCandidate(best.node.clone())
        });
        Verdict::Wait(why, Some(at))
    }
}

/// A person's word: take the lease here. `free`: it has run out or was let go.
pub(crate) fn take_by_order(c: &Context<'_>, known: &LeaseKnown, free: bool) -> Option<Decision> {
    let order = c.local.order.as_ref()?;
    let OrderKind::TakeLease { accept_data_loss } = &order.kind else { return None };
    let own = own_report(c);
    let refuse = |outcome| {
        Some(Decision {
            actions: vec![Action::FinishOrder(outcome)],
            wake_at: Some(c.now),
            situation: Situation::NoPrimary(WhyNoPrimary::NotEligible),
        })
    };
    // Rule "lost volume never leads": no word of a person makes an empty node hold data.
    if !has_data(c, &own) {
        return refuse(OrderOutcome::NoData);
    }
    let (ServerState::Serving, Some(run_id)) = (c.local.server.state, &c.local.server.run_id)
    else {
        return None;
    };
    if !accept_data_loss && !is_candidate(c, &own, &known.record) {
        return refuse(OrderOutcome::WouldLoseData);
    }
    if bound_until(c, &known.record).is_some() || (!free && !accept_data_loss) {
        return None;
    }
    if c.local.server.role() == Some(Role::Primary) {
        return None;
    }
    let mut decision = claim(c, &known.record, Some(known.version), run_id.clone(), false);
    if !free {
        // Taken from a living holder: its lease has to run out before this node takes writes.
        for action in &mut decision.actions {
            if let Action::AcquireLease { record, .. } = action
                && let Some(previous) = &mut record.previous
            {
                previous.reason = ReleaseReason::Forced;
            }
        }
    }
    Some(decision)
}
