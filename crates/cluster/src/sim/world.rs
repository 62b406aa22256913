//! The fleet and its time: workers, nodes, shards, and what happens in each tick.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use larder_election::Rules;
use larder_model::agent::{NodeConfig, Role};
use larder_model::lease::Route;
use larder_model::{
    Address, ByteSize, EndpointKind, InstanceId, NodeId, NodeMode, OuterAddress, WorkerName,
    ZoneName,
};

use super::SimConfig;
use super::agent::SimAgent;
use super::check::Violation;
use super::clients::Client;
use super::drive::Message;
use super::lease::{LeaseTrouble, SimLease};
use super::rng::Rng;
use super::server::{Disk, Link, LinkPeer, Phase, Piece, Process, WriteId};

/// Length of a tick in virtual milliseconds.
pub(super) const TICK: i64 = 10;
/// A replica's link that carries nothing for this long is given up.
const LINK_TIMEOUT: i64 = 3000;
/// How many lines of the trace are kept unless somebody wants more.
const TRACE_LINES: usize = 400;

#[derive(Clone, Debug)]
pub(super) struct SimWorker {
    pub(super) cluster: String,
    pub(super) zone: Option<ZoneName>,
    pub(super) allocatable: ByteSize,
    pub(super) cordoned: bool,
    /// Without power until then.
    pub(super) down_until: i64,
    pub(super) keeper_stopped_until: i64,
}

#[derive(Clone, Debug)]
pub(super) struct SimNode {
    pub(super) config: NodeConfig,
    /// What its server has been told of the tenant's users.
    pub(super) users_revision: u64,
    /// Which of the container clusters' settings it is held by.
    pub(super) settings: u64,
    pub(super) worker: WorkerName,
    pub(super) agent: SimAgent,
    pub(super) process: Option<Process>,
    pub(super) disk: Disk,
    /// What the keeper has seen of the lease: version, and since when.
    pub(super) keeper_saw: Option<(u64, i64)>,
    /// Nothing that it shares with others was deleted since it was ensured.
    pub(super) whole: bool,
    pub(super) removing_at: Option<i64>,
    /// Since when nothing has been wrong with the node (for the checks).
    pub(super) well_since: i64,
    pub(super) replication_cut_until: i64,
    /// The server may be started again at this time.
    pub(super) start_not_before: i64,
    /// The version of the agent's report was raised for this summary.
    pub(super) reported: Option<super::backend::Reported>,
}

/// What the nodes of one shard share.
#[derive(Clone, Debug, Default)]
pub(super) struct SimShard {
    pub(super) lease: SimLease,
    pub(super) route: Option<Route>,
    pub(super) clients: Vec<Client>,
    /// Acknowledged writes: how many, and when the last one was.
    pub(super) acked: u64,
    /// Their ids.
    pub(super) acked_ids: Vec<WriteId>,
    pub(super) last_ack: i64,
    pub(super) longest_gap: (i64, i64),
    /// What the old primary had when a planned hand-over demoted it.
    pub(super) planned: Option<Vec<WriteId>>,
    pub(super) failovers: Vec<i64>,
    pub(super) last_primary: Option<NodeId>,
}

pub(super) type ShardKey = (InstanceId, u32);

#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) config: SimConfig,
    pub(super) rules: Rules,
    pub(super) t: i64,
    pub(super) rng: Rng,
    pub(super) workers: BTreeMap<WorkerName, SimWorker>,
    pub(super) nodes: BTreeMap<NodeId, SimNode>,
    pub(super) addresses: BTreeMap<Address, NodeId>,
    pub(super) reserved: BTreeMap<NodeId, (InstanceId, Address)>,
    /// Ways from outside.
    pub(super) exposed: BTreeMap<NodeId, OuterAddress>,
    pub(super) next_port: u16,
    pub(super) shards: BTreeMap<ShardKey, SimShard>,
    /// Where tests want nodes to be made.
    pub(super) placed: BTreeMap<NodeId, WorkerName>,
    /// Counts the changes of the container clusters' own settings.
    pub(super) settings: u64,
    pub(super) endpoints: BTreeMap<(InstanceId, EndpointKind), super::backend::SimEndpoint>,
    pub(super) fences: BTreeMap<(String, InstanceId), larder_model::agent::Fence>,
    pub(super) messages: BTreeMap<(i64, u64), Message>,
    pub(super) next_id: u64,
    pub(super) next_write: WriteId,
    pub(super) isolated: Vec<(WorkerName, i64)>,
    /// Stopped servers: when they go on, and which life of them.
    pub(super) resumes: Vec<(i64, NodeId, Option<String>)>,
    pub(super) lease_trouble: Vec<(Option<WorkerName>, LeaseTrouble, i64)>,
    pub(super) sync_ms: i64,
    pub(super) cluster_unreachable_until: i64,
    pub(super) replies_lost_until: i64,
    pub(super) last_fault: i64,
    pub(super) lease_well_since: i64,
    /// When the others last voted for a replica of this server, by its id on the cluster bus.
    pub(super) voted_at: BTreeMap<String, i64>,
    pub(super) pending_faults: VecDeque<(i64, super::Fault)>,
    pub(super) trace: VecDeque<String>,
    pub(super) trace_lines: usize,
    pub(super) violation: Option<Violation>,
}

impl World {
    pub(super) fn new(
        seed: u64,
        config: SimConfig,
        workers: BTreeMap<WorkerName, SimWorker>,
        sync_ms: i64,
    ) -> Self {
        Self {
            config,
            rules: Rules::ALL,
            t: 0,
            rng: Rng::new(seed),
            workers,
            nodes: BTreeMap::new(),
            addresses: BTreeMap::new(),
            reserved: BTreeMap::new(),
            exposed: BTreeMap::new(),
            next_port: 20_000,
            shards: BTreeMap::new(),
            placed: BTreeMap::new(),
            settings: 0,
            endpoints: BTreeMap::new(),
            fences: BTreeMap::new(),
            messages: BTreeMap::new(),
            next_id: 0,
            next_write: 0,
            isolated: Vec::new(),
            resumes: Vec::new(),
            lease_trouble: Vec::new(),
            sync_ms,
            cluster_unreachable_until: 0,
            replies_lost_until: 0,
            last_fault: 0,
            lease_well_since: 0,
            voted_at: BTreeMap::new(),
            pending_faults: VecDeque::new(),
            trace: VecDeque::new(),
            trace_lines: TRACE_LINES,
            violation: None,
        }
    }

    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        let t = self.t;
        if self.trace.len() >= self.trace_lines {
            self.trace.pop_front();
        }
        self.trace.push_back(format!("{t:>7} {}", line()));
    }

    pub(super) fn broken(&mut self, violation: Violation) {
        self.note(|| format!("VIOLATION {violation}"));
        if self.violation.is_none() {
            self.violation = Some(violation);
        }
    }

    pub(super) fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(super) fn send(&mut self, delay: i64, message: Message) {
        let id = self.id();
        self.messages.insert((self.t + delay.max(1), id), message);
    }

    pub(super) fn shard_of(&self, node: &NodeId) -> Option<ShardKey> {
        self.nodes.get(node).map(|n| (n.config.instance.clone(), n.config.shard))
    }

    pub(super) fn worker_up(&self, worker: &WorkerName) -> bool {
        self.workers.get(worker).is_some_and(|w| w.down_until <= self.t)
    }

    fn isolated(&self, worker: &WorkerName) -> bool {
        self.isolated.iter().any(|(name, until)| name == worker && *until > self.t)
    }

    /// Whether the nodes' workers reach each other.
    pub(super) fn reach(&self, a: &NodeId, b: &NodeId) -> bool {
        let (Some(a), Some(b)) = (self.nodes.get(a), self.nodes.get(b)) else { return false };
        self.worker_up(&a.worker)
            && self.worker_up(&b.worker)
            && (a.worker == b.worker || !(self.isolated(&a.worker) || self.isolated(&b.worker)))
    }

    pub(super) fn trouble_for(&self, worker: &WorkerName) -> Option<LeaseTrouble> {
        self.lease_trouble
            .iter()
            .find(|(who, _, until)| *until > self.t && who.as_ref().is_none_or(|w| w == worker))
            .map(|(_, trouble, _)| *trouble)
    }

    /// Everything that happens in the next tick.
    pub(super) fn step(&mut self) {
        self.t += TICK;
        while self.pending_faults.front().is_some_and(|(at, _)| *at <= self.t) {
            if let Some((_, fault)) = self.pending_faults.pop_front() {
                self.apply(fault);
            }
        }
        self.resume_stopped();
        self.deliver();
        self.finish_removals();
        let nodes: Vec<NodeId> = self.nodes.keys().cloned().collect();
        for node in &nodes {
            self.step_process(node);
        }
        for node in &nodes {
            self.step_replication(node);
        }
        if self.t % 100 == 0 {
            self.step_buses();
            for node in &nodes {
                self.step_keeper(node);
            }
        }
        for node in &nodes {
            self.step_agent(node);
        }
        self.step_clients();
        self.check_primaries();
    }

    fn step_process(&mut self, node: &NodeId) {
        let t = self.t;
        let load = self.config.load_ms;
        let Some(process) = self.nodes.get_mut(node).and_then(|n| n.process.as_mut()) else {
            return;
        };
        match process.phase {
            Phase::Starting { until } if until <= t => {
                process.phase = Phase::Loading { until: t + load };
            }
            Phase::Loading { until } if until <= t => process.phase = Phase::Serving,
            Phase::Starting { .. } | Phase::Loading { .. } | Phase::Serving => {}
        }
        if t % 1000 == 0 && process.stopped_since.is_none() {
            process.durable = process.log.len();
        }
    }

    /// The process is gone. `power`: so is what it had not fsynced.
    pub(super) fn kill_process(&mut self, node: &NodeId, power: bool) -> bool {
        let Some(found) = self.nodes.get_mut(node) else { return false };
        let Some(mut process) = found.process.take() else { return false };
        if power {
            process.log.truncate(process.durable);
        }
        found.disk.log = if found.disk.gone { Vec::new() } else { process.log };
        found.disk.bus = if found.disk.gone { None } else { process.bus };
        found.agent.dirty = true;
        true
    }

    pub(super) fn start_process(&mut self, node: &NodeId, upstream: Address) {
        let run_id = self.rng.hex_id();
        let replid = self.rng.hex_id();
        let starts_at = self.t + 20 + self.rng.below(60);
        let t = self.t;
        if let Some(found) = self.nodes.get_mut(node)
            && found.process.is_none()
        {
            found.disk.born = true;
            let mut process =
                Process::start(run_id.clone(), replid, upstream, &found.disk, t, starts_at);
            if found.config.mode == NodeMode::Clustered {
                process.bus = Some(found.disk.bus.clone().unwrap_or_default());
                process.role = Role::Primary;
            }
            found.process = Some(process);
            self.note(|| format!("{node} server starts as {}", &run_id[..8]));
        }
    }

    fn step_replication(&mut self, node: &NodeId) {
        let t = self.t;
        let Some(found) = self.nodes.get(node) else { return };
        let Some(process) = &found.process else { return };
        if process.role == Role::Primary || !process.serving() {
            return;
        }
        let cut = found.replication_cut_until > t;
        if self.stream_on(node, cut) {
            return;
        }
        let Some(process) = self.nodes.get(node).and_then(|n| n.process.as_ref()) else { return };
        let Some(upstream) = self.addresses.get(&process.upstream).cloned() else { return };
        let reachable = self.reach(node, &upstream) && !cut;
        let source = self.nodes.get(&upstream).and_then(|n| n.process.as_ref());
        // A sub-replica gets nothing from a server whose own link is down (NOMASTERLINK).
        let gives = source.filter(|s| s.serving() && (s.role == Role::Primary || s.link_up()));
        match process.link.clone() {
            Link::Down { retry_at } if retry_at <= t => {
                let (Some(source), true) = (gives, reachable) else {
                    let retry = t + 200;
                    self.with_process(node, |p| p.link = Link::Down { retry_at: retry });
                    return;
                };
                let peer = LinkPeer {
                    node: upstream.clone(),
                    run_id: source.run_id.clone(),
                    generation: source.generation,
                    silent_since: None,
                };
                let continues = source.can_continue(&process.replid, process.offset());
                let replid = source.replid.clone();
                let until = t + self.sync_ms;
                self.with_process(node, |p| {
                    if continues {
                        if p.replid != replid {
                            p.replid_since = t;
                        }
                        p.replid = replid;
                        p.sent_upto = p.offset();
                        p.link = Link::Streaming { peer };
                    } else {
                        p.link = Link::Syncing { peer, until };
                    }
                });
            }
            Link::Down { .. } => {}
            Link::Syncing { peer, until } => {
                if !reachable || !same_life(gives, &peer) {
                    self.with_process(node, |p| p.break_link(t));
                } else if until <= t
                    && let Some(source) = gives
                {
                    let (log, base) = (source.log.clone(), source.base);
                    let replid = source.replid.clone();
                    self.with_process(node, |p| {
                        p.durable = log.len();
                        p.log = log;
                        p.base = base;
                        p.replid = replid;
                        p.replid2 = None;
                        p.in_flight.clear();
                        p.sent_upto = p.offset();
                        p.link = Link::Streaming { peer };
                    });
                    if let Some(found) = self.nodes.get_mut(node) {
                        found.disk.gone = false;
                        found.agent.dirty = true;
                    }
                    self.note(|| format!("{node} full sync from {upstream} done"));
                }
            }
            Link::Streaming { mut peer } => {
                if reachable && !same_life(gives, &peer) {
                    self.with_process(node, |p| p.break_link(t));
                    return;
                }
                if !reachable {
                    // Half open: the server notices only after a while.
                    let since = *peer.silent_since.get_or_insert(t);
                    self.with_process(node, |p| {
                        if t - since >= LINK_TIMEOUT {
                            p.break_link(t);
                        } else {
                            p.link = Link::Streaming { peer };
                        }
                    });
                    return;
                }
                // Packets were lost; the connection did not survive it.
                self.with_process(node, |p| p.break_link(t));
            }
        }
    }

    /// The usual tick of a replica, when nothing is wrong with its link: what is new is put on its
    /// way, what is due arrives. `false`: something is wrong.
    fn stream_on(&mut self, node: &NodeId, cut: bool) -> bool {
        let t = self.t;
        let Some(process) = self.nodes.get(node).and_then(|n| n.process.as_ref()) else {
            return false;
        };
        let Link::Streaming { peer } = &process.link else { return false };
        let Some(upstream) = self.addresses.get(&process.upstream) else { return false };
        let source = self.nodes.get(upstream).and_then(|n| n.process.as_ref());
        let gives = source.filter(|s| s.serving() && (s.role == Role::Primary || s.link_up()));
        let well = !cut
            && peer.silent_since.is_none()
            && self.reach(node, upstream)
            && same_life(gives, peer);
        let Some(source) = gives.filter(|_| well) else { return false };
        let (sent, upto) = (process.sent_upto, source.offset());
        let news = (upto > sent).then(|| source.stream_after(sent));
        let arrives = t + 1 + self.rng.below(self.config.lag_ms.max(1));
        self.with_process(node, |p| {
            if let Some(writes) = news {
                p.sent_upto = upto;
                let arrives = p.in_flight.back().map_or(arrives, |b| b.arrives.max(arrives));
                p.in_flight.push_back(Piece { arrives, upto, writes });
            }
            while p.in_flight.front().is_some_and(|piece| piece.arrives <= t) {
                if let Some(piece) = p.in_flight.pop_front() {
                    p.log.extend(piece.writes);
                    p.base = piece.upto - i64::try_from(p.log.len()).unwrap_or(0);
                }
            }
        });
        true
    }

    /// The node's server streams from the primary's: in a chain, perhaps through others.
    pub(super) fn copies_from(&self, node: &NodeId, primary: &NodeId) -> bool {
        let mut at = node;
        for _ in &self.nodes {
            let Some(found) = self.nodes.get(at) else { return false };
            let Some(process) = found.process.as_ref() else { return false };
            let above = self.addresses.get(&process.upstream);
            let Some(above) = above.filter(|_| process.serving() && process.link_up()) else {
                return false;
            };
            if above == primary {
                return true;
            }
            if !found.config.chained {
                return false;
            }
            at = above;
        }
        false
    }

    pub(super) fn with_process(&mut self, node: &NodeId, change: impl FnOnce(&mut Process)) {
        if let Some(process) = self.nodes.get_mut(node).and_then(|n| n.process.as_mut()) {
            change(process);
        }
    }

    /// The keeper of the node's worker: restarts a dead agent; kills the server of a holder whose
    /// lease is about to run out.
    fn step_keeper(&mut self, node: &NodeId) {
        let t = self.t;
        let Some(found) = self.nodes.get(node) else { return };
        let worker = found.worker.clone();
        let on = self.worker_up(&worker)
            && self.workers.get(&worker).is_some_and(|w| w.keeper_stopped_until <= t);
        if !on {
            return;
        }
        if !found.agent.up && found.agent.back_at <= t && found.removing_at.is_none() {
            if let Some(found) = self.nodes.get_mut(node) {
                found.agent.restart();
            }
            self.note(|| format!("{node} agent starts"));
        }
        let Some(found) = self.nodes.get(node) else { return };
        if found.config.mode != NodeMode::Leased || found.config.members.len() < 2 {
            return;
        }
        let limit = {
            let policy = &found.config.election;
            i64::try_from(policy.lease_ttl.0 - policy.fence_margin.0).unwrap_or(i64::MAX)
        };
        if matches!(self.trouble_for(&worker), Some(LeaseTrouble::Fails)) {
            // Nobody is killed for what cannot be seen. A pod's liveness probe asks the agent
            // itself, which needs no lease store.
            let old = found.keeper_saw.is_some_and(|(_, since)| t - since >= limit);
            let probed = !self.config.kill_peers && !found.agent.runs(t) && old;
            if probed && self.kill_process(node, false) {
                self.note(|| format!("{node} fails its liveness probe: server killed"));
            }
            return;
        }
        let key = (found.config.instance.clone(), found.config.shard);
        let value = self.shards.get(&key).and_then(|s| s.lease.value.as_ref());
        let held = value.and_then(|(record, version)| {
            record.holder.as_ref().filter(|h| h.node == *node).map(|_| *version)
        });
        let limit = {
            let policy = &found.config.election;
            i64::try_from(policy.lease_ttl.0 - policy.fence_margin.0).unwrap_or(i64::MAX)
        };
        let saw = found.keeper_saw;
        let now_saw = match (held, saw) {
            (None, _) => None,
            (Some(version), Some((old, since))) if old == version => Some((old, since)),
            (Some(version), _) => Some((version, t)),
        };
        let kill = now_saw.is_some_and(|(_, since)| t - since >= limit);
        if let Some(found) = self.nodes.get_mut(node) {
            found.keeper_saw = now_saw;
        }
        if kill && self.kill_process(node, false) {
            self.note(|| format!("{node} keeper kills the server: the lease lapses"));
        }
    }

    fn finish_removals(&mut self) {
        let t = self.t;
        let done: Vec<NodeId> = self
            .nodes
            .iter()
            // A worker without power removes nothing before it is back.
            .filter(|(_, n)| n.removing_at.is_some_and(|at| at <= t) && self.worker_up(&n.worker))
            .map(|(id, _)| id.clone())
            .collect();
        for node in done {
            if let Some(found) = self.nodes.remove(&node) {
                self.addresses.remove(&found.config.address);
            }
            self.reserved.remove(&node);
            self.exposed.remove(&node);
            self.note(|| format!("{node} removed"));
        }
    }

    /// Never two servers of a leased shard that would answer a write with OK at the same instant;
    /// stricter than what clients could notice, as it asks for no client.
    fn check_primaries(&mut self) {
        let t = self.t;
        let mut first: Vec<(&InstanceId, u32, &NodeId)> = Vec::new();
        let mut found = None;
        for (id, node) in &self.nodes {
            if node.config.mode != NodeMode::Leased
                || !node.process.as_ref().is_some_and(|p| p.takes_writes(t))
                || !self.worker_up(&node.worker)
            {
                continue;
            }
            let (instance, shard) = (&node.config.instance, node.config.shard);
            let other = first.iter().find(|(of, s, _)| *of == instance && *s == shard);
            if let Some((_, _, other)) = other {
                found = Some(Violation::TwoPrimaries {
                    at: t,
                    instance: instance.clone(),
                    first: (*other).clone(),
                    second: id.clone(),
                });
            }
            first.push((instance, shard, id));
        }
        if let Some(violation) = found {
            self.broken(violation);
        }
    }

    /// Called when a server of a leased shard has just become a primary.
    pub(super) fn check_promotion(&mut self, node: &NodeId, first_time: bool) {
        let t = self.t;
        let Some(key) = self.shard_of(node) else { return };
        let Some(found) = self.nodes.get(node) else { return };
        let Some(process) = &found.process else { return };
        let instance = key.0.clone();
        // A power cut takes what was not fsynced, which in the first seconds is everything.
        let had_data = self.shards.get(&key).is_some_and(|s| s.acked > 1000);
        let have: BTreeSet<WriteId> = process.log.iter().copied().collect();
        let mut violation = None;
        if had_data && (process.log.is_empty() || found.disk.gone) {
            violation = Some(Violation::EmptyPrimary {
                at: t,
                instance: instance.clone(),
                node: node.clone(),
            });
        }
        // Cut off until a moment ago it could not know of others; the lease alone is no quorum.
        let was_cut =
            self.isolated.iter().any(|(name, until)| *name == found.worker && *until + 1000 > t);
        // A healthy copy that has all of it and more should have been chosen.
        for (other_id, other) in &self.nodes {
            let same = other.config.instance == key.0 && other.config.shard == key.1;
            let Some(copy) = other.process.as_ref().filter(|_| same && other_id != node) else {
                continue;
            };
            let quiet = 3000;
            // A server that restarted is no candidate, whatever it has.
            let same_run =
                (other.agent.memory.synced.as_ref()).is_some_and(|mark| mark.run_id == copy.run_id);
            let well = same_run
                && other.well_since + quiet <= t
                && copy.started_at + quiet <= t
                // Its agent has had the time to see which history it goes on with.
                && copy.replid_since + 1000 <= t
                && self.lease_well_since + quiet <= t
                && copy.serving()
                && !other.disk.gone
                && !matches!(copy.link, Link::Syncing { .. })
                && self.reach(node, other_id);
            let more = copy.log.len().saturating_sub(process.log.len());
            let prefix = more > 0 && copy.log.starts_with(&process.log);
            if well && prefix && first_time && !was_cut && violation.is_none() {
                violation = Some(Violation::NewerCopyIgnored {
                    at: t,
                    instance: instance.clone(),
                    node: node.clone(),
                    better: other_id.clone(),
                    more,
                });
            }
        }
        let mut lost = 0;
        if let Some(shard) = self.shards.get_mut(&key) {
            let named = shard.lease.value.as_ref().is_some_and(|(record, _)| {
                let successor = record.previous.as_ref().and_then(|p| p.successor.as_ref());
                successor == Some(node)
            });
            if let Some(log) = shard.planned.take().filter(|_| named) {
                lost = log.iter().filter(|id| !have.contains(id)).count();
            }
            if shard.last_primary.as_ref().is_some_and(|last| last != node) {
                shard.failovers.push(t);
            }
            shard.last_primary = Some(node.clone());
        }
        if lost > 0 && violation.is_none() {
            violation = Some(Violation::PlannedLoss { at: t, instance, node: node.clone(), lost });
        }
        if let Some(violation) = violation {
            self.broken(violation);
        }
    }
}

fn same_life(source: Option<&Process>, peer: &LinkPeer) -> bool {
    source.is_some_and(|s| s.run_id == peer.run_id && s.generation == peer.generation)
}
