//! Slots go where they are wanted: to new shards, off shards that are to go, and to where the data
//! are to be. What is under way is not remembered here: who holds a slot says so, and so does an
//! agent that is moving some.
//!
//! A move is finished in the direction it was begun in, whoever died meanwhile: keys of a slot that
//! is half-moved are at both ends.

use std::collections::{BTreeMap, BTreeSet};

use larder_model::agent::AgentStatus;
use larder_model::plan::{OperationReport, Step, Wait};
use larder_model::{NodeRecord, Operation, OperationKind, SlotMoveStatus, SlotSet};

use crate::draft::Draft;
use crate::gather::gather;
use crate::op_steps::{self, Phase};
use crate::slot_plan::{self, counts_by_bytes, even_counts};
use crate::view::View;

/// No more slots at a time from one shard to another: what is planned is looked at again in between.
pub(crate) const BATCH: u32 = 1024;

pub(crate) fn slots(view: &View<'_>, draft: &mut Draft<'_>) {
    if !view.desired.initialized {
        return;
    }
    let gathering = gather(view, draft);
    let mut sources = finish_open(view, draft);
    // A restart or failover changes one node after another itself.
    let busy = view.operation().is_some_and(|operation| {
        matches!(operation.kind, OperationKind::Restart { .. } | OperationKind::Failover { .. })
    });
    if busy {
        return;
    }
    let at_rest = draft.at_rest().iter().chain(&gathering).copied();
    sources.extend(at_rest.clone());
    let targets = at_rest.collect();
    balance(view, draft, &mut sources, targets);
}

/// The move that a primary's agent has under way.
pub(crate) fn under_way<'a>(view: &View<'a>, record: &NodeRecord) -> Option<&'a SlotMoveStatus> {
    let status: &AgentStatus = view.agent(&record.id)?;
    status.slot_move.as_ref().filter(|moving| !moving.done)
}

/// Who has which slots, each slot once. Of two that claim one the newer epoch has the last word;
/// one that its former owner already sees at another primary is that one's.
fn holders(view: &View<'_>) -> BTreeMap<u32, SlotSet> {
    let mut primaries: Vec<_> = view
        .shards()
        .filter_map(|shard| Some((shard, view.primary(shard)?)))
        .filter_map(|(shard, record)| Some((shard, record, view.cluster(&record.id)?)))
        .filter_map(|(shard, record, cluster)| Some((shard, record, cluster, cluster.me()?)))
        .collect();
    primaries.sort_by_key(|(shard, _, _, me)| (std::cmp::Reverse(me.config_epoch), *shard));
    let mut taken = SlotSet::default();
    let mut held: BTreeMap<u32, SlotSet> = BTreeMap::new();
    let mut give = |shard: u32, slots: &SlotSet| {
        let new = slots.difference(&taken);
        let all = held.entry(shard).or_default();
        for range in new.ranges() {
            taken.insert(*range);
            all.insert(*range);
        }
    };
    for (shard, _, _, me) in &primaries {
        give(*shard, &me.slots);
    }
    for (_, _, cluster, _) in &primaries {
        for (shard, other, ..) in &primaries {
            let id = view.server_id(&other.id);
            let seen = cluster.nodes.iter().find(|peer| Some(peer.id.as_str()) == id);
            if let Some(peer) = seen {
                give(*shard, &peer.slots);
            }
        }
    }
    held
}

/// How many slots each shard is to have, where that is not what it has; a shard that is not named is
/// to have none.
fn wanted_counts(view: &View<'_>, held: &BTreeMap<u32, SlotSet>) -> Option<BTreeMap<u32, u32>> {
    let shards = view.desired.spec.shards;
    let evenly = || Some((0..).zip(even_counts(shards)).collect());
    match view.operation().map(|operation| &operation.kind) {
        Some(OperationKind::Scale { share_slots: true, .. }) => return evenly(),
        Some(OperationKind::Rebalance { counts, .. }) if counts.len() == shards as usize => {
            return Some((0..).zip(counts.iter().copied()).collect());
        }
        _ => {}
    }
    // What an operation has left behind that failed or was cancelled.
    let count_of = |shard: u32| held.get(&shard).map_or(0, SlotSet::count);
    if (0..shards).any(|shard| !view.has_slots(shard)) {
        return evenly();
    }
    let mut left: u32 = held.range(shards..).map(|(_, slots)| slots.count()).sum();
    if left == 0 {
        return None;
    }
    let mut counts: BTreeMap<u32, u32> = (0..shards).map(|s| (s, count_of(s))).collect();
    while left > 0 {
        // In runs rather than slot by slot: whoever has fewest gets up to what the next has.
        let least = counts.values().min().copied().unwrap_or(0);
        let next = counts.values().filter(|count| **count > least).min().copied();
        let lowest: Vec<u32> =
            counts.iter().filter(|(_, c)| **c == least).map(|(shard, _)| *shard).collect();
        let among = u32::try_from(lowest.len()).unwrap_or(1).max(1);
        let step = next.map_or(left, |next| next - least).min(left.div_ceil(among));
        for shard in lowest {
            let gets = step.min(left);
            *counts.entry(shard).or_default() += gets;
            left -= gets;
        }
    }
    Some(counts)
}

/// Has half-moved slots moved to their end, whatever else is wanted. Answers which shards have
/// something of it under way.
fn finish_open(view: &View<'_>, draft: &mut Draft<'_>) -> BTreeSet<u32> {
    let mut jobs: BTreeMap<(u32, u32), SlotSet> = BTreeMap::new();
    let mut stale: BTreeMap<u32, SlotSet> = BTreeMap::new();
    let held = holders(view);
    let owner = |slot: u16| held.iter().find(|(_, slots)| slots.contains(slot)).map(|(s, _)| *s);
    for shard in view.shards() {
        let Some(primary) = view.primary(shard) else { continue };
        let Some(me) = view.me(&primary.id) else { continue };
        for open in &me.open {
            let one: SlotSet = std::iter::once(open.slot).collect();
            let holder = owner(open.slot);
            let (from, to) = match (open.leaves, holder) {
                // The mark of a slot that has long arrived, or come, is of no use any more.
                (true, Some(holder)) if holder != shard => (None, None),
                (false, Some(holder)) if holder == shard => (None, None),
                (true, _) => (Some(shard), view.shard_of_server(&open.peer)),
                (false, holder) => (holder, Some(shard)),
            };
            let (Some(from), Some(to)) = (from, to) else {
                // Of whoever is not heard of just now more may be known later.
                let is_known = view.desired.nodes.iter().all(|r| view.server_id(&r.id).is_some());
                if holder.is_some() && is_known {
                    merge(stale.entry(shard).or_default(), &one);
                }
                continue;
            };
            let covered = view.primary(from).and_then(|source| under_way(view, source));
            if from != to && covered.is_none_or(|moving| !moving.slots.contains(open.slot)) {
                merge(jobs.entry((from, to)).or_default(), &one);
            }
        }
    }
    for (shard, slots) in stale {
        if let Some(primary) = view.primary(shard) {
            draft.step(
                Step::CloseSlots { node: primary.id.clone(), slots },
                "they are not on their way any more",
            );
        }
    }
    let mut sources = BTreeSet::new();
    for ((from, to), slots) in jobs {
        let (Some(source), Some(target)) = (view.primary(from), view.primary(to)) else { continue };
        let idle = under_way(view, source).is_none();
        if idle && sources.insert(from) {
            let reason = "their move was broken off half-way";
            order(view, draft, (source, target), slots, 0, reason);
        }
    }
    sources
}

fn merge(all: &mut SlotSet, more: &SlotSet) {
    more.ranges().iter().for_each(|range| all.insert(*range));
}

/// Plans moves towards what is wanted, and ends those that are not wanted any more. `sources` are
/// shards that are not asked for more just now, `targets` those that are not given more.
fn balance(
    view: &View<'_>,
    draft: &mut Draft<'_>,
    sources: &mut BTreeSet<u32>,
    mut targets: BTreeSet<u32>,
) {
    let is_paused = view.operation().is_some_and(|operation| operation.kind.is_paused());
    let present = holders(view);
    let mut held = present.clone();
    let wanted = wanted_counts(view, &held);
    for shard in view.shards() {
        let Some(source) = view.primary(shard) else { continue };
        let Some(moving) = under_way(view, source) else { continue };
        sources.insert(shard);
        let to = view.shard_of_server(&moving.to_id).filter(|to| {
            // Its replica has taken over: the keys are there, under another id.
            let leads = view.primary(*to).and_then(|primary| view.server_id(&primary.id));
            leads == Some(moving.to_id.as_str())
        });
        let on_their_way =
            held.get(&shard).map(|h| h.intersection(&moving.slots)).unwrap_or_default();
        let still_wanted = |to: u32| {
            let (Some(wanted), false) = (&wanted, is_paused) else { return false };
            let count = |shard: u32| held.get(&shard).map_or(0, SlotSet::count);
            let want = |shard: u32| wanted.get(&shard).copied().unwrap_or(0);
            let moved = on_their_way.count();
            count(to) + moved <= want(to) && count(shard) >= want(shard) + moved
        };
        let Some((to, target)) = to.and_then(|to| Some((to, view.primary(to)?))) else {
            stop(draft, source, "who was to get the slots does not lead its shard any more");
            continue;
        };
        targets.insert(to);
        if !still_wanted(to) && !is_finishing(view, source, &on_their_way) {
            stop(
                draft,
                source,
                if is_paused { "a person has paused it" } else { "it is not wanted any more" },
            );
        }
        if let Some(slots) = held.get_mut(&shard) {
            *slots = slots.difference(&on_their_way);
        }
        merge(held.entry(to).or_default(), &on_their_way);
        draft.wait(Wait::SlotsMoving {
            node: source.id.clone(),
            to: target.id.clone(),
            left: on_their_way.count(),
            problem: moving.problem.clone(),
        });
    }
    let Some(wanted) = wanted else { return };
    // What is on its way does not go on from where it is not yet.
    let planned: Vec<_> = slot_plan::moves(&held, &wanted)
        .into_iter()
        .map(|step| {
            let there = present.get(&step.from).map(|held| held.intersection(&step.slots));
            slot_plan::SlotMove { slots: there.unwrap_or_default(), ..step }
        })
        .filter(|step| !step.slots.is_empty())
        .collect();
    if is_paused && !planned.is_empty() {
        // Not before what was half-way has arrived.
        if targets.is_empty() {
            draft.wait(Wait::Paused);
        }
        return;
    }
    if !planned.is_empty() && !view.all_slots_are_held() {
        draft.wait(Wait::Effect { what: "every slot is served".to_owned() });
        return;
    }
    for step in planned {
        let (Some(source), Some(target)) = (view.primary(step.from), view.primary(step.to)) else {
            draft.wait(Wait::Effect { what: format!("shard {} is there", step.to) });
            continue;
        };
        let waits = !is_ready(view, draft, step.to, source, target);
        if waits || sources.contains(&step.from) || targets.contains(&step.to) {
            continue;
        }
        sources.insert(step.from);
        targets.insert(step.to);
        let reason = match view.is_surplus(step.from) {
            true => format!("shard {} is to go", step.from),
            false => format!("shard {} is to have them", step.to),
        };
        let copies = view.desired.spec.replicas.saturating_sub(1);
        order(view, draft, (source, target), step.slots.first(BATCH), copies, reason);
    }
}

/// What it moves is open already, whatever is wanted now.
fn is_finishing(view: &View<'_>, source: &NodeRecord, slots: &SlotSet) -> bool {
    let open: SlotSet =
        view.me(&source.id).into_iter().flat_map(|me| &me.open).map(|open| open.slot).collect();
    slots.difference(&open).is_empty()
}

pub(crate) fn stop(draft: &mut Draft<'_>, source: &NodeRecord, reason: &str) {
    draft.step(Step::StopMovingSlots { node: source.id.clone() }, reason);
}

/// `copies`: what replicas of the target have to be in sync before a slot is opened. None for slots
/// that are half-way already.
pub(crate) fn order(
    view: &View<'_>,
    draft: &mut Draft<'_>,
    (source, target): (&NodeRecord, &NodeRecord),
    slots: SlotSet,
    copies: u32,
    reason: impl Into<String>,
) {
    let both = [&source.id, &target.id];
    let Some(to_id) = view.server_id(&target.id).map(str::to_owned) else { return };
    if !draft.disturbs(both.into_iter()) {
        let (node, to) = (source.id.clone(), target.id.clone());
        draft.step(Step::MoveSlots { node, to, to_id, slots, copies }, reason);
    }
}

/// Data go only where every copy that is wanted of them will be, and to servers that all know.
fn is_ready(
    view: &View<'_>,
    draft: &mut Draft<'_>,
    to: u32,
    source: &NodeRecord,
    target: &NodeRecord,
) -> bool {
    let lagging = view
        .wanted_of(to)
        .find(|record| !view.is_well(record))
        .map(|record| Wait::ReplicaSyncing { node: record.id.clone() });
    let missing = view.wanted_of(to).count() < view.desired.spec.replicas as usize;
    let id = view.server_id(&target.id);
    let knows = |record: &NodeRecord| {
        let peers = view.cluster(&record.id).map(|cluster| cluster.nodes.as_slice());
        let peer = peers.unwrap_or_default().iter().find(|peer| Some(peer.id.as_str()) == id);
        peer.is_some_and(|peer| peer.linked && !peer.handshake && !peer.failed)
    };
    let wait = if let Some(wait) = lagging {
        wait
    } else if missing {
        Wait::Effect { what: format!("every node of shard {to} is there") }
    } else if !knows(source) {
        Wait::Gossip { node: source.id.clone() }
    } else {
        return true;
    };
    draft.wait(wait);
    false
}

/// How far the slots are on their way to where an operation wants them; `None` when it moves none.
pub(crate) fn phase(view: &View<'_>, operation: &Operation) -> Option<Phase> {
    let shards = view.desired.spec.shards;
    let all = match &operation.kind {
        OperationKind::Scale { former_shards, share_slots: true, .. } => {
            let former = even_counts(*former_shards);
            (0_usize..).zip(even_counts(shards)).fold(0, |all, (shard, count)| {
                all + count.saturating_sub(former.get(shard).copied().unwrap_or(0))
            })
        }
        OperationKind::Rebalance { .. } => u32::from(larder_model::SLOT_COUNT),
        _ => return None,
    };
    if !view.is_cluster() {
        return None;
    }
    let held = holders(view);
    let left: u32 = wanted_counts(view, &held)
        .map(|wanted| slot_plan::moves(&held, &wanted).iter().map(|m| m.slots.count()).sum())
        .unwrap_or(0);
    // A wish that was changed on the way may have more to move than the first one.
    let all = all.max(left);
    let moving = || view.shards().filter_map(|s| under_way(view, view.primary(s)?));
    let what = match operation.kind {
        OperationKind::Rebalance { .. } => "slots are where they are wanted",
        _ => "slots have moved",
    };
    let mut phase = Phase::counted("move-slots", all.saturating_sub(left), all, what);
    // Also none of the slots that are wanted there already may be half-way.
    let open = || {
        view.shards().filter_map(|s| view.me(&view.primary(s)?.id)).any(|me| !me.open.is_empty())
    };
    phase.done =
        left == 0 && moving().next().is_none() && !open() && view.each_slot_is_claimed_once();
    let keys: u64 = moving().map(|moving| moving.keys_moved).sum();
    if moving().next().is_some() {
        let bytes = larder_model::ByteSize(moving().map(|moving| moving.bytes_moved).sum());
        phase.message = format!("{}; {keys} keys ({bytes}) of those under way", phase.message);
    }
    if let Some(problem) = moving().find_map(|moving| moving.problem.as_ref()) {
        phase.message = format!("{}; {problem}", phase.message);
    }
    Some(phase)
}

/// Other shares of the slots, by what the shards hold.
pub(crate) fn rebalance(
    view: &View<'_>,
    draft: &mut Draft<'_>,
    operation: &Operation,
) -> OperationReport {
    let shards = view.desired.spec.shards;
    let phases: Vec<Phase> = phase(view, operation).into_iter().collect();
    let OperationKind::Rebalance { counts, paused } = &operation.kind else {
        return op_steps::report(phases, false, draft);
    };
    if counts.len() != shards as usize {
        let phases = vec![Phase::new("move-slots", false, "what each shard holds is looked at")];
        let held = holders(view);
        let sizes: Option<Vec<_>> = (0..shards)
            .map(|shard| {
                let used = view.agent(&view.primary(shard)?.id)?.server.used_memory?;
                Some((held.get(&shard).map_or(0, SlotSet::count), used))
            })
            .collect();
        match sizes.filter(|_| view.all_slots_are_held()) {
            Some(sizes) => {
                let kind =
                    OperationKind::Rebalance { counts: counts_by_bytes(&sizes), paused: *paused };
                draft.step(Step::UpdateOperation { kind }, "by what each shard holds now");
            }
            None => draft.wait(Wait::Effect { what: "every shard says what it holds".to_owned() }),
        }
        return op_steps::report(phases, false, draft);
    }
    let done = phases.iter().all(|phase| phase.done) && !draft.has_steps();
    op_steps::report(phases, done, draft)
}
