//! The agent of a simulated node: it runs the real election and carries its decisions out, one
//! action at a time, with calls that take time and answers that get lost.

use std::collections::{BTreeMap, VecDeque};

use larder_election::{
    Action, HandOverProgress, LeaseKnown, LeaseView, Local, Peer, PeerPromise, PeerReport,
    PendingOrder, Promise, Situation, Stall, SyncMark, sync_mark,
};
use larder_model::agent::Fence;
use larder_model::lease::LeaseRecord;
use larder_model::{ElectionPolicy, Millis, NodeId, Observation, Timestamp};

/// How long an agent waits for its peers, in its own milliseconds.
pub(super) const PEER_DEADLINE: i64 = 300;
/// How long it waits for the lease: at most half of the fence margin.
pub(super) const LEASE_DEADLINE: i64 = 300;
/// How often it samples its server when nothing happens.
pub(super) const SAMPLE_EVERY: i64 = 250;
/// The least time between a failed action and the next decision.
pub(super) const BACK_OFF: i64 = 50;

/// What survives the agent (its `state.json`).
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    pub(super) data_epoch: u64,
    pub(super) data_aside: bool,
    pub(super) synced: Option<SyncMark>,
    pub(super) promise: Option<Promise>,
    pub(super) fence: Option<Fence>,
    /// The order "start empty" was given.
    pub(super) start_empty: bool,
}

/// What one agent last heard of a peer.
#[derive(Clone, Debug, Default)]
pub(super) struct PeerHeard {
    pub(super) asked_at: Option<Timestamp>,
    pub(super) answer: Observation<PeerReport>,
    pub(super) promise: Option<PeerPromise>,
}

/// What an agent waits for before its next action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Waiting {
    Lease { call: u64, sent: Timestamp, deadline: Timestamp, release: bool },
    Peers { ask: u64, deadline: Timestamp, open: usize },
}

#[derive(Clone, Debug)]
pub(super) struct SimAgent {
    pub(super) up: bool,
    /// When the keeper starts it again, while it is down.
    pub(super) back_at: i64,
    pub(super) stopped_until: i64,
    /// Own monotonic clock: `offset + t + t * ppm / 1e6`.
    pub(super) offset: i64,
    pub(super) ppm: i64,
    /// Rises with each life; answers to an older life are dropped.
    pub(super) life: u64,
    pub(super) version: u64,
    pub(super) memory: Memory,
    pub(super) renewed_at: Option<Timestamp>,
    pub(super) order: Option<PendingOrder>,
    pub(super) hand_over: Option<HandOverProgress>,
    pub(super) writes_paused: bool,
    pub(super) down_since: Option<Timestamp>,
    /// Stopped for good by an order.
    pub(super) held_back: bool,
    pub(super) known: Option<LeaseKnown>,
    /// `None`: never read; the lease may be absent only after a read said so.
    pub(super) readable: Option<bool>,
    pub(super) unreachable_since: Timestamp,
    pub(super) reading: Option<(u64, Timestamp)>,
    pub(super) read_at: Timestamp,
    /// When the last look was sent.
    pub(super) looked_at: Timestamp,
    pub(super) peers: BTreeMap<NodeId, PeerHeard>,
    pub(super) plan: VecDeque<Action>,
    pub(super) waiting: Option<Waiting>,
    pub(super) not_before: Timestamp,
    pub(super) wake_at: Timestamp,
    pub(super) dirty: bool,
    pub(super) situation: Option<Situation>,
    pub(super) moving: Option<larder_model::SlotMoveStatus>,
    /// The place in a chain: the upstream told last, the one left, the stall.
    pub(super) told: Option<NodeId>,
    pub(super) left: Option<NodeId>,
    pub(super) stall: Option<Stall>,
}

impl SimAgent {
    pub(super) fn new(offset: i64, ppm: i64) -> Self {
        Self {
            up: true,
            back_at: 0,
            stopped_until: 0,
            offset,
            ppm,
            life: 1,
            version: 1,
            memory: Memory::default(),
            renewed_at: None,
            order: None,
            hand_over: None,
            writes_paused: false,
            down_since: None,
            held_back: false,
            known: None,
            readable: None,
            unreachable_since: Timestamp(0),
            reading: None,
            read_at: Timestamp(0),
            looked_at: Timestamp(0),
            peers: BTreeMap::new(),
            plan: VecDeque::new(),
            waiting: None,
            not_before: Timestamp(0),
            wake_at: Timestamp(0),
            dirty: true,
            situation: None,
            moving: None,
            told: None,
            left: None,
            stall: None,
        }
    }

    /// A new life with nothing but what was on disk.
    pub(super) fn restart(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        let fresh = Self {
            life: self.life + 1,
            memory,
            held_back: self.held_back,
            ..Self::new(self.offset, self.ppm)
        };
        *self = fresh;
    }

    pub(super) fn clock(&self, t: i64) -> Timestamp {
        Timestamp(self.offset + t + t * self.ppm / 1_000_000)
    }

    pub(super) fn runs(&self, t: i64) -> bool {
        self.up && self.stopped_until <= t
    }

    pub(super) fn lease_view(&self) -> LeaseView {
        match (self.readable, &self.known) {
            (Some(true), None) => LeaseView::Absent,
            (Some(true), Some(known)) => LeaseView::Known(known.clone()),
            (Some(false) | None, known) => {
                LeaseView::Unreachable { since: self.unreachable_since, last: known.clone() }
            }
        }
    }

    /// Keeps the mark of a completed sync, and with it the lineage of the data.
    pub(super) fn note_sync(&mut self, local: &mut Local, peers: &[Peer]) {
        let mark = sync_mark(local, peers, &self.lease_view());
        if mark == local.synced {
            return;
        }
        local.synced.clone_from(&mark);
        self.memory.synced.clone_from(&mark);
        if let Some(mark) = &mark {
            self.memory.data_epoch = self.memory.data_epoch.max(mark.epoch);
            local.data_epoch = self.memory.data_epoch;
        }
    }

    /// When `me` looks at the lease again after a look that was sent at `sent`, if nobody tells it of
    /// a change: as seldom as real agents do.
    pub(super) fn next_look(
        &self,
        me: &NodeId,
        policy: &ElectionPolicy,
        sent: Timestamp,
    ) -> Timestamp {
        let every = policy.renew_every;
        match self.lease_view() {
            LeaseView::Unreachable { .. } => sent + Millis(every.0 / 4),
            LeaseView::Absent => sent + every,
            LeaseView::Known(known) => {
                let holder = known.record.holder.as_ref();
                if holder.is_some_and(|holder| holder.node == *me) {
                    return sent + every + every;
                }
                let runs_out = known.seen_at + policy.lease_ttl;
                let next = sent + every;
                if sent < runs_out { next.min(runs_out) } else { next }
            }
        }
    }

    /// Takes in what the store said; older versions than the known one are late answers.
    pub(super) fn learn(&mut self, value: Option<(LeaseRecord, u64)>, now: Timestamp) {
        self.readable = Some(true);
        let Some((record, version)) = value else {
            if self.known.is_none() {
                self.dirty = true;
            }
            return;
        };
        match &mut self.known {
            Some(known) if known.version > version => {}
            Some(known) if known.version == version => {}
            Some(known) => {
                self.dirty |= known.record != record;
                if known.record.epoch != record.epoch {
                    known.epoch_seen_at = now;
                }
                known.record = record;
                known.version = version;
                known.seen_at = now;
            }
            None => {
                self.known = Some(LeaseKnown { record, version, seen_at: now, epoch_seen_at: now });
                self.dirty = true;
            }
        }
    }

    pub(super) fn lose_lease_view(&mut self, now: Timestamp) {
        if self.readable != Some(false) {
            self.unreachable_since = now;
        }
        self.readable = Some(false);
        self.dirty = true;
        self.read_at = now;
    }

    /// The rest of the plan rests on what has just failed.
    pub(super) fn fail(&mut self, now: Timestamp) {
        self.plan.clear();
        self.waiting = None;
        self.dirty = true;
        self.not_before = Timestamp(now.0 + BACK_OFF);
    }
}
