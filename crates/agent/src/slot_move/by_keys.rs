//! Slots whose keys go by `MIGRATE`: some slots are opened at a time, their keys go in batches, and
//! then the slots change hands, and the target says so to everybody.
//!
//! Between opening and closing the keys of a slot are at both ends, and clients are sent after them
//! (`ASK`). The order matters: the target takes a slot before the source gives it up, so that
//! somebody has it at any time (Redis documentation of CLUSTER SETSLOT).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use larder_model::agent::ClusterView;
use larder_model::{ByteSize, SlotJob, SlotSet};
use larder_node::{Connection, MigrateTo, NodeError, SlotMark};

use super::batches::Waiting;
use super::contest::{Contest, settle};
use super::marks::Marks;
use super::pace::Pace;
use super::there::There;
use super::{Ends, QUESTION, Shared, Trouble, Went, check_copies, check_target, left_of};
use crate::render::SYSTEM_USER;

/// One transfer; the servers give up earlier.
const TRANSFER: Duration = Duration::from_secs(30);
/// In the servers' eyes, for each of its steps: a source answers nobody while it waits for a target that
/// hangs.
const TRANSFER_STEP: Duration = Duration::from_secs(1);
/// A server takes in this much within a second, on a slow machine.
const TAKEN_IN: u64 = 8 << 20;
/// Of a slot with more keys only so many are looked at before it is opened: the list of all would
/// take too long to make.
const LOOKED_AT: u64 = 20_000;
/// So long replicas of the target are waited for.
const COPIED: Duration = Duration::from_millis(500);
/// Length of a key in a message.
const SHOWN: usize = 64;

pub(super) struct ByKeys<'a> {
    job: &'a SlotJob,
    ends: &'a Ends,
    pace: Pace,
    marks: Marks<'a>,
    source: Option<Source>,
    target: Option<Connection>,
    /// Slots with keys that are too large, each with what to say of it.
    refused: BTreeMap<u16, String>,
    /// Opened and not closed yet, by this job or a former one.
    open: SlotSet,
    /// What the target knows, asked since it was connected to.
    there: Option<There>,
    /// Open slots of which the target has keys that this server has not sent; whether the slot was
    /// half-way.
    contested: BTreeMap<u16, bool>,
}

/// The connection to the own server, and which one that is.
struct Source {
    line: Connection,
    run_id: String,
    up_since: Instant,
}

/// The connections to both ends, while they are used.
struct Lines<'c> {
    source: &'c mut Connection,
    target: &'c mut Connection,
}

impl<'a> ByKeys<'a> {
    pub(super) fn new(job: &'a SlotJob, ends: &'a Ends) -> Self {
        Self {
            job,
            ends,
            pace: Pace::new(job.limits.pace),
            marks: Marks::new(ends),
            source: None,
            target: None,
            refused: BTreeMap::new(),
            open: SlotSet::default(),
            there: None,
            contested: BTreeMap::new(),
        }
    }

    /// Slots are open, and their keys at both ends.
    pub(super) fn is_half_way(&self) -> bool {
        !self.open.is_empty()
    }

    /// What to say of slots that are left where they are.
    pub(super) fn refused(&self) -> Option<String> {
        self.refused.values().next().cloned()
    }

    /// Moves some slots whole.
    pub(super) async fn step(&mut self, shared: &Shared) -> Result<Went, Trouble> {
        let mut source = match self.source.take() {
            Some(source) if !source.line.is_closed() => source,
            _ => self.connect_source().await?,
        };
        source.line.set_timeout(QUESTION);
        let view = source.line.cluster_view().await?;
        let Some(left) = left_of(self.job, &view) else {
            self.open = SlotSet::default();
            return Ok(Went::Done);
        };
        if let Some(me) = view.me() {
            self.ends.reign.seen(&source.run_id, me.config_epoch, &me.slots);
        }
        drop_old_marks(&mut source.line, &view).await?;
        // What a former move has opened comes first.
        let marked: SlotSet = view
            .me()
            .into_iter()
            .flat_map(|me| &me.open)
            .filter(|open| open.leaves && left.contains(open.slot))
            .map(|open| open.slot)
            .collect();
        marked.ranges().iter().for_each(|range| self.open.insert(*range));
        self.open = self.open.intersection(&left);
        let refused: SlotSet = self.refused.keys().copied().collect();
        let fit = if marked.is_empty() { left.difference(&refused) } else { marked.clone() };
        let group: Vec<u16> =
            fit.first(self.pace.slots(self.ends.marks_are_acknowledged)).iter().collect();
        if group.is_empty() && left.is_empty() {
            return Ok(Went::Done);
        }
        if shared.is_stopping() && self.open.is_empty() {
            return Ok(Went::Done);
        }
        if group.is_empty() {
            // Somebody may delete the large keys.
            self.source = Some(source);
            let words = self.refused().unwrap_or_default();
            self.refused.clear();
            return Err(Trouble::Words(words));
        }
        if let Err(trouble) = check_target(self.job, &view) {
            self.source = Some(source);
            if shared.is_stopping() {
                // Who plans says where what is open goes now.
                self.open = SlotSet::default();
                return Ok(Went::Done);
            }
            return Err(trouble);
        }
        let mut target = match self.target.take() {
            Some(target) if !target.is_closed() => target,
            _ => {
                self.there = None;
                self.ends.connect(&self.job.to).await?
            }
        };
        target.set_timeout(QUESTION);
        let up_since = source.up_since;
        let lines = Lines { source: &mut source.line, target: &mut target };
        let moved = self.group(lines, &view, up_since, (group, &marked), shared).await;
        if moved.is_err() {
            self.there = None;
        }
        self.source = Some(source);
        self.target = Some(target);
        moved?;
        Ok(Went::On)
    }

    async fn connect_source(&self) -> Result<Source, Trouble> {
        let mut line = self.ends.connect(&self.ends.own).await?;
        let info = line.info().await?;
        let up_since = Instant::now().checked_sub(info.uptime).unwrap_or_else(Instant::now);
        Ok(Source { line, run_id: info.run_id, up_since })
    }

    async fn group(
        &mut self,
        mut lines: Lines<'_>,
        view: &ClusterView,
        up_since: Instant,
        (mut slots, marked): (Vec<u16>, &SlotSet),
        shared: &Shared,
    ) -> Result<(), Trouble> {
        if marked.is_empty() {
            check_copies(self.job, lines.target).await?;
        }
        // Before anything of a slot has gone: none that cannot go whole.
        let mut waiting = self.prepare(&mut lines, &mut slots, shared).await?;
        if slots.is_empty() {
            return Ok(());
        }
        self.look_there(&mut lines, view, &slots, marked).await?;
        let contest = self.contest(&mut lines, up_since, &slots).await?;
        self.open_slots(&mut lines, view, &slots).await?;
        loop {
            self.send(&mut lines, waiting, contest, shared).await?;
            // What was written between looking and opening, and what a larger slot has left.
            waiting = self.left_in(&mut lines, &slots, shared).await?;
            if waiting.is_empty() {
                break;
            }
        }
        self.close_slots(&mut lines, &slots).await?;
        shared.status().slots_done += u32::try_from(slots.len()).unwrap_or(u32::MAX);
        Ok(())
    }

    /// What the target has of the slots before they are opened.
    async fn look_there(
        &mut self,
        lines: &mut Lines<'_>,
        view: &ClusterView,
        slots: &[u16],
        marked: &SlotSet,
    ) -> Result<(), Trouble> {
        let mut known = match self.there.take() {
            Some(known) => known,
            None => There::ask(lines.target).await?,
        };
        known.give_orphans(lines.target, &view.my_id, slots).await?;
        let there = lines.target.count_keys_in_slots(slots).await?;
        for (slot, keys) in slots.iter().zip(there) {
            if self.ends.reign.covers(*slot) {
                continue;
            }
            if keys == 0 {
                self.ends.reign.begins(*slot);
            } else {
                let half_way = marked.contains(*slot) || known.expected.contains(*slot);
                self.contested.entry(*slot).or_insert(half_way);
            }
        }
        self.there = Some(known);
        Ok(())
    }

    /// What to judge contested slots by, when there is one.
    async fn contest(
        &self,
        lines: &mut Lines<'_>,
        up_since: Instant,
        slots: &[u16],
    ) -> Result<Option<Contest>, Trouble> {
        if !slots.iter().any(|slot| self.contested.contains_key(slot)) {
            return Ok(None);
        }
        let uptime_there = lines.target.info().await?.uptime;
        Ok(Some(Contest { uptime_here: up_since.elapsed(), uptime_there, half_way: true }))
    }

    /// Looks at the keys, and takes slots with one that is too large from `slots`.
    async fn prepare(
        &mut self,
        lines: &mut Lines<'_>,
        slots: &mut Vec<u16>,
        shared: &Shared,
    ) -> Result<Waiting, Trouble> {
        let mut waiting = Waiting::default();
        let counts = lines.source.count_keys_in_slots(slots).await?;
        let mut kept = Vec::with_capacity(slots.len());
        let mut counted: Vec<(u16, u64)> = slots.iter().copied().zip(counts).collect();
        counted.truncate(at_once(&counted, self.pace.keys_at_once()));
        kept.extend(counted.iter().filter(|(_, count)| *count == 0).map(|(slot, _)| *slot));
        let filled: Vec<(u16, u64)> = counted.into_iter().filter(|(_, count)| *count > 0).collect();
        for some in lists(&filled, self.pace.questions() as u64) {
            let names: Vec<u16> = some.iter().map(|(slot, _)| *slot).collect();
            let longest = some.iter().map(|(_, count)| *count).max().unwrap_or(1);
            let keys = lines.source.keys_in_slots(&names, longest.min(LOOKED_AT)).await?;
            let lengths: Vec<usize> = keys.iter().map(Vec::len).collect();
            let keys: Vec<Vec<u8>> = keys.into_iter().flatten().collect();
            let mut keys = self.with_sizes(lines.source, keys, shared).await?.into_iter();
            for (slot, length) in names.into_iter().zip(lengths) {
                let keys: Vec<(Vec<u8>, u64)> = keys.by_ref().take(length).collect();
                match self.too_large_of(slot, &keys) {
                    Some(words) => {
                        if self.refused.insert(slot, words).is_none() {
                            tracing::info!(slot, "left where it is: a key is too large");
                        }
                    }
                    None => {
                        kept.push(slot);
                        waiting.add(slot, keys);
                    }
                }
            }
        }
        *slots = kept;
        Ok(waiting)
    }

    /// What keeps the slot where it is, unless its keys are on their way already.
    fn too_large_of(&self, slot: u16, keys: &[(Vec<u8>, u64)]) -> Option<String> {
        let limit = self.job.limits.largest_key;
        let large = |(_, bytes): &&(Vec<u8>, u64)| *bytes > limit.bytes();
        let (key, bytes) = keys.iter().find(large).filter(|_| !self.open.contains(slot))?;
        Some(too_large(slot, key, ByteSize(*bytes), limit))
    }

    async fn with_sizes(
        &self,
        source: &mut Connection,
        keys: Vec<Vec<u8>>,
        shared: &Shared,
    ) -> Result<Vec<(Vec<u8>, u64)>, Trouble> {
        let mut sized = Vec::with_capacity(keys.len());
        for some in keys.chunks(self.pace.questions()) {
            let began = Instant::now();
            let sizes = source.memory_usage(some).await?;
            let sizes = sizes.into_iter().map(|bytes| bytes.unwrap_or(0));
            sized.extend(some.iter().cloned().zip(sizes));
            self.rest(shared, began.elapsed()).await;
        }
        Ok(sized)
    }

    async fn rest(&self, shared: &Shared, busy: Duration) {
        let rest = self.pace.rest_after(busy);
        if !rest.is_zero() {
            shared.rest(rest).await;
        }
    }

    async fn left_in(
        &self,
        lines: &mut Lines<'_>,
        slots: &[u16],
        shared: &Shared,
    ) -> Result<Waiting, Trouble> {
        let mut waiting = Waiting::default();
        let some = u64::try_from(self.pace.questions()).unwrap_or(1024);
        let keys = lines.source.keys_in_slots(slots, some).await?;
        for (slot, keys) in slots.iter().zip(keys) {
            if !keys.is_empty() {
                waiting.add(*slot, self.with_sizes(lines.source, keys, shared).await?);
            }
        }
        Ok(waiting)
    }

    /// The target expects the slots before the source sends anybody there.
    async fn open_slots(
        &mut self,
        lines: &mut Lines<'_>,
        view: &ClusterView,
        slots: &[u16],
    ) -> Result<(), Trouble> {
        let expected = SlotMark::Importing(&view.my_id);
        let expected = self.marks.set(lines.target, &self.job.to, slots, expected).await?;
        for (slot, result) in slots.iter().zip(expected) {
            // "I'm already the owner of hash slot 7": it has arrived before, and this server has not
            // heard of it yet.
            result.or_else(|error| if is_owner(&error) { Ok(()) } else { Err(error) })?;
            self.open.insert(larder_model::SlotRange { first: *slot, last: *slot });
        }
        let to = SlotMark::Migrating(&self.job.to_id);
        for result in self.marks.set(lines.source, &self.ends.own, slots, to).await? {
            result?;
        }
        Ok(())
    }

    async fn send(
        &mut self,
        lines: &mut Lines<'_>,
        mut waiting: Waiting,
        contest: Option<Contest>,
        shared: &Shared,
    ) -> Result<(), Trouble> {
        let mut to = MigrateTo {
            address: &self.job.to,
            user: SYSTEM_USER,
            password: &self.ends.password,
            timeout: TRANSFER_STEP,
        };
        // What the target's replicas have to have before the flight after the next.
        let mut copies = 0;
        while !waiting.is_empty() {
            let flight = waiting.flight(&self.pace);
            let mut sent: Vec<Cow<'_, [Vec<u8>]>> = Vec::with_capacity(flight.len());
            for batch in &flight {
                sent.push(match (contest, self.contested.get(&batch.slot)) {
                    (Some(contest), Some(half_way)) => {
                        let contest = Contest { half_way: *half_way, ..contest };
                        let keys = batch.keys.clone();
                        settle(lines.source, lines.target, keys, contest).await?.into()
                    }
                    _ => batch.keys.as_slice().into(),
                });
            }
            let keys: Vec<&[Vec<u8>]> =
                sent.iter().filter(|keys| !keys.is_empty()).map(AsRef::as_ref).collect();
            to.timeout = step_for(flight.iter().map(|batch| batch.bytes).max());
            lines.source.set_timeout(TRANSFER);
            let (busy, copied) = {
                let began = Instant::now();
                let migrated = async {
                    for result in lines.source.migrate(&keys, &to).await? {
                        result?;
                    }
                    let busy = began.elapsed();
                    Ok::<_, NodeError>(busy)
                };
                // Of the flight before: a target that dies takes two of them with it at most that its
                // replicas have not got.
                tokio::join!(migrated, wait_for(lines.target, copies))
            };
            let busy = busy?;
            lines.source.set_timeout(QUESTION);
            // Without a replica what is open goes on all the same: nobody is to be left half-way.
            copies = if copied? { self.job.copies } else { 0 };
            {
                let mut status = shared.status();
                status.keys_moved +=
                    flight.iter().map(|batch| batch.keys.len() as u64).sum::<u64>();
                status.bytes_moved += flight.iter().map(|batch| batch.bytes).sum::<u64>();
            }
            let full = flight.iter().any(|batch| batch.keys.len() >= self.pace.keys());
            let rest = self.pace.took(flight.len(), full, busy);
            // Also while it is told to stop: what is open has to arrive, and clients have to live.
            if !rest.is_zero() {
                tokio::time::sleep(rest).await;
            }
        }
        Ok(())
    }

    async fn close_slots(&mut self, lines: &mut Lines<'_>, slots: &[u16]) -> Result<(), Trouble> {
        // The target tells all others at once, over the bus (cluster.c, clusterBroadcastPong).
        let now = SlotMark::Node(&self.job.to_id);
        for result in self.marks.set(lines.target, &self.job.to, slots, now).await? {
            result?;
        }
        for result in self.marks.set(lines.source, &self.ends.own, slots, now).await? {
            // It refuses while it has keys of a slot: one has come back by a failover.
            result?;
        }
        self.open = self.open.difference(&slots.iter().copied().collect());
        self.contested.retain(|slot, _| !slots.contains(slot));
        Ok(())
    }
}

/// How many slots are open at a time whose keys together are not more than `most`: at least one.
fn at_once(slots: &[(u16, u64)], most: u64) -> usize {
    let mut keys = 0;
    let fit = slots.iter().take_while(|(_, count)| {
        keys += count;
        keys <= most
    });
    fit.count().max(1)
}

/// Slots whose keys are listed with one question: about `most` keys, or one slot with more.
fn lists(slots: &[(u16, u64)], most: u64) -> Vec<&[(u16, u64)]> {
    let mut all = Vec::new();
    let mut rest = slots;
    while !rest.is_empty() {
        let (these, others) = rest.split_at(at_once(rest, most));
        all.push(these);
        rest = others;
    }
    all
}

/// Slots that have gone, and that this server heard of over the bus alone: it keeps their marks.
async fn drop_old_marks(source: &mut Connection, view: &ClusterView) -> Result<(), Trouble> {
    let Some(me) = view.me() else { return Ok(()) };
    let gone = me.open.iter().filter(|open| open.leaves && !me.slots.contains(open.slot));
    let gone: Vec<u16> = gone.map(|open| open.slot).collect();
    for result in source.set_slots(&gone, SlotMark::Stable).await? {
        result?;
    }
    Ok(())
}

/// Whether so many replicas of the target have what it has. Not waited for for long.
async fn wait_for(target: &mut Connection, copies: u32) -> Result<bool, NodeError> {
    Ok(copies == 0 || target.wait_for_replicas(copies, COPIED).await? >= copies)
}

fn step_for(largest: Option<u64>) -> Duration {
    let seconds = largest.unwrap_or_default() as f64 / TAKEN_IN as f64;
    TRANSFER_STEP + Duration::from_secs_f64(seconds)
}

fn is_owner(error: &NodeError) -> bool {
    error.reply().is_some_and(|reply| reply.text().contains("already the owner"))
}

fn too_large(slot: u16, key: &[u8], bytes: ByteSize, limit: ByteSize) -> String {
    let text = String::from_utf8_lossy(key);
    let shown: String = text.chars().take(SHOWN).collect();
    let dots = if shown.len() < text.len() { "…" } else { "" };
    format!(
        "slot {slot} stays where it is: its key `{}{dots}` takes {bytes}, and both servers would \
         stand still while it moves (the limit is {limit}); delete or split it, or cancel",
        shown.escape_debug()
    )
}
