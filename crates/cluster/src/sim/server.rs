//! A server as unkind as a real one: asynchronous replication, full syncs that take time, data that
//! a crashed machine loses, new run ids.
//!
//! The data of a server is the list of the writes it has; `offset` counts the replication stream as
//! Redis does, so it begins anew when a server starts from its file.

use std::collections::VecDeque;

use larder_model::agent::{ReplicaSeen, ReplicationView, Role};
use larder_model::{Address, NodeId};

use super::cluster_bus::BusState;

/// A write that some client made, unique in the whole run.
pub(super) type WriteId = u64;

/// Where a parked server "copies" from: nobody.
pub(super) fn nobody() -> Address {
    Address::new("127.0.0.1", 1)
}

/// What is on the node's volume, and what its agent keeps beside it.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    /// The server has been started on this volume.
    pub(super) born: bool,
    /// The volume's content was deleted and not synced again since.
    pub(super) gone: bool,
    /// What a server would load.
    pub(super) log: Vec<WriteId>,
    /// `nodes.conf`.
    pub(super) bus: Option<BusState>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Starting { until: i64 },
    Loading { until: i64 },
    Serving,
}

/// The state of a replica's link to its primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// Tries again at this time.
    Down {
        retry_at: i64,
    },
    /// A full sync; what the primary had when it began, and its stream since then.
    Syncing {
        peer: LinkPeer,
        until: i64,
    },
    Streaming {
        peer: LinkPeer,
    },
}

/// Which life of which server a link leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LinkPeer {
    pub(super) node: NodeId,
    pub(super) run_id: String,
    /// Rises when the primary closes its replicas' connections (role changes).
    pub(super) generation: u32,
    /// Nothing came through since then.
    pub(super) silent_since: Option<i64>,
}

/// A piece of the stream on its way.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) arrives: i64,
    pub(super) upto: i64,
    pub(super) writes: Vec<WriteId>,
}

/// A running server process.
#[derive(Clone, Debug)]
pub(super) struct Process {
    pub(super) run_id: String,
    pub(super) started_at: i64,
    pub(super) phase: Phase,
    /// SIGSTOP since then.
    pub(super) stopped_since: Option<i64>,
    pub(super) role: Role,
    pub(super) upstream: Address,
    pub(super) link: Link,
    pub(super) replid: String,
    /// Since when it has this id by a link that went on under a new one.
    pub(super) replid_since: i64,
    /// The id it had before, valid up to an offset (`master_replid2`, `second_repl_offset`).
    pub(super) replid2: Option<(String, i64)>,
    pub(super) log: Vec<WriteId>,
    /// `offset = base + log.len()`.
    pub(super) base: i64,
    pub(super) in_flight: VecDeque<Piece>,
    /// Up to where the stream has been put on its way to here.
    pub(super) sent_upto: i64,
    pub(super) paused_until: i64,
    /// The end of the part of the log that has been fsynced.
    pub(super) durable: usize,
    pub(super) generation: u32,
    /// Cluster mode.
    pub(super) bus: Option<BusState>,
}

impl Process {
    pub(super) fn start(
        run_id: String,
        replid: String,
        upstream: Address,
        disk: &Disk,
        now: i64,
        starts_at: i64,
    ) -> Self {
        let log = if disk.gone { Vec::new() } else { disk.log.clone() };
        let base = -i64::try_from(log.len()).unwrap_or(i64::MAX);
        Self {
            run_id,
            started_at: now,
            phase: Phase::Starting { until: starts_at },
            stopped_since: None,
            role: Role::Replica,
            upstream,
            link: Link::Down { retry_at: 0 },
            replid,
            replid_since: now,
            replid2: None,
            durable: log.len(),
            log,
            base,
            in_flight: VecDeque::new(),
            sent_upto: 0,
            paused_until: 0,
            generation: 0,
            bus: None,
        }
    }

    pub(super) fn offset(&self) -> i64 {
        self.base + i64::try_from(self.log.len()).unwrap_or(i64::MAX)
    }

    pub(super) fn serving(&self) -> bool {
        self.phase == Phase::Serving && self.stopped_since.is_none()
    }

    /// Would answer a write with OK at this moment.
    pub(super) fn takes_writes(&self, now: i64) -> bool {
        self.serving() && self.role == Role::Primary && self.paused_until <= now
    }

    pub(super) fn link_up(&self) -> bool {
        matches!(self.link, Link::Streaming { .. })
    }

    /// `REPLICAOF <upstream>`.
    pub(super) fn follow(&mut self, upstream: Address, now: i64) {
        if self.role == Role::Primary {
            self.role = Role::Replica;
            self.generation += 1;
        } else if self.upstream == upstream {
            return;
        }
        self.upstream = upstream;
        self.break_link(now);
        self.link = Link::Down { retry_at: now };
    }

    /// `REPLICAOF NO ONE`: a new replication id, the old one kept as the second.
    pub(super) fn promote(&mut self, new_replid: String) {
        if self.role == Role::Primary {
            return;
        }
        self.in_flight.clear();
        self.link = Link::Down { retry_at: i64::MAX };
        self.role = Role::Primary;
        self.generation += 1;
        let old = std::mem::replace(&mut self.replid, new_replid);
        self.replid2 = Some((old, self.offset()));
    }

    /// The link is cut: what was on its way is lost with it.
    pub(super) fn break_link(&mut self, now: i64) {
        self.in_flight.clear();
        self.sent_upto = self.offset();
        self.link = Link::Down { retry_at: now + 100 };
    }

    /// Whether a replica with this id and offset may go on without a full sync.
    pub(super) fn can_continue(&self, replid: &str, offset: i64) -> bool {
        let within = offset >= self.base && offset <= self.offset();
        let second =
            self.replid2.as_ref().is_some_and(|(id, upto)| id == replid && offset <= *upto);
        within && (self.replid == replid || second)
    }

    /// The writes after `offset`.
    pub(super) fn stream_after(&self, offset: i64) -> Vec<WriteId> {
        let from = usize::try_from(offset - self.base).unwrap_or(0).min(self.log.len());
        self.log[from..].to_vec()
    }

    /// `INFO replication`, but for the list of replicas.
    pub(super) fn view(&self, replicas: Vec<ReplicaSeen>) -> ReplicationView {
        let replica = self.role == Role::Replica;
        ReplicationView {
            role: self.role,
            primary: replica.then(|| self.upstream.clone()),
            link_up: replica && self.link_up(),
            syncing: replica && matches!(self.link, Link::Syncing { .. }),
            replid: self.replid.clone(),
            offset: u64::try_from(self.offset()).unwrap_or(0),
            replicas,
        }
    }
}
