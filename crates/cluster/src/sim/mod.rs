//! The simulator: a whole fleet in memory, under faults, driven by a seed.
//!
//! Time is virtual and goes in ticks of 10 ms, only inside of [`Sim::step_until`]. Agents run the
//! real `larder-election`; servers, leases, networks and keepers are as unkind as real ones.
//! [`Sim`] is the fleet's [`crate::Agents`], [`SimCluster`] one of its container clusters. The same
//! seed and the same calls give the same run, to the last detail.

mod agent;
mod backend;
mod check;
mod clients;
mod cluster_bus;
mod drive;
mod fault;
mod inject;
mod lease;
mod rng;
mod server;
mod slot_moves;
mod world;

pub use backend::SimCluster;
pub use check::Violation;
pub use fault::{Fault, Profile};
pub use larder_election::Rules;
pub use lease::LeaseTrouble;
pub use rng::Rng;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use larder_election::{OrderKind, PendingOrder};
use larder_model::agent::{Member, NodeConfig, Order};
use larder_model::{
    Address, ByteSize, ElectionPolicy, EngineName, InstanceId, InstanceName, Millis, NodeId,
    NodeMode, WorkerName, ZoneName,
};

use world::{SimNode, SimWorker, TICK, World};

/// What a fleet is made of. Lengths are virtual milliseconds.
#[derive(Clone, Debug)]
pub struct SimConfig {
    pub workers: Vec<WorkerConfig>,
    /// Clients that write, per shard of a leased instance.
    pub clients: usize,
    /// A replica gets a write at most this much later.
    pub lag_ms: i64,
    /// A call of the lease store takes at most this long, when nothing is wrong.
    pub lease_ms: i64,
    /// A full sync takes this long.
    pub sync_ms: i64,
    /// Loading the file at a server's start takes this long.
    pub load_ms: i64,
    /// Agents can kill each other's servers, as on one machine.
    pub kill_peers: bool,
    /// They reach them for that by the network only: worse than any real place, so that it is the
    /// other rules that have to keep the promise.
    pub kill_by_network: bool,
}

/// One worker of one container cluster.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    pub cluster: String,
    pub name: WorkerName,
    pub zone: Option<ZoneName>,
    pub allocatable: ByteSize,
}

impl Default for SimConfig {
    /// One container cluster, `local`, of three zones with two workers each.
    fn default() -> Self {
        let workers = (0..6).map(|i| WorkerConfig {
            cluster: "local".to_owned(),
            name: WorkerName::new(format!("w{i}")).expect("a short slug"),
            zone: Some(ZoneName::new(format!("z{}", i % 3)).expect("a short slug")),
            allocatable: ByteSize::gib(64),
        });
        Self {
            workers: workers.collect(),
            clients: 3,
            lag_ms: 30,
            lease_ms: 10,
            sync_ms: 200,
            load_ms: 100,
            kill_peers: true,
            kill_by_network: false,
        }
    }
}

/// A simulated fleet. Clones are handles of the same one.
#[derive(Clone, Debug)]
pub struct Sim(Arc<Mutex<World>>);

impl Sim {
    pub fn new(seed: u64, config: SimConfig) -> Self {
        let workers = config
            .workers
            .iter()
            .map(|w| {
                let worker = SimWorker {
                    cluster: w.cluster.clone(),
                    zone: w.zone.clone(),
                    allocatable: w.allocatable,
                    cordoned: false,
                    down_until: 0,
                    keeper_stopped_until: 0,
                };
                (w.name.clone(), worker)
            })
            .collect();
        let sync_ms = config.sync_ms;
        Self(Arc::new(Mutex::new(World::new(seed, config, workers, sync_ms))))
    }

    /// A fleet of its own that is in all like this one, to see what would become of it.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self(Arc::new(Mutex::new(self.world().clone())))
    }

    /// Ends the faults that last: cut networks, a bad lease store, stopped processes.
    pub fn heal(&self) {
        self.world().heal();
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of the container clusters of the fleet.
    pub fn cluster(&self, name: &str) -> SimCluster {
        SimCluster { sim: self.clone(), name: name.to_owned() }
    }

    /// Switches rules of the election, for all agents.
    pub fn set_rules(&self, rules: Rules) {
        self.world().rules = rules;
    }

    /// Changes the container clusters' own settings: what they hold was rendered by others.
    pub fn change_settings(&self) {
        self.world().settings += 1;
    }

    /// How many nodes are held as former settings were.
    pub fn outdated(&self) -> usize {
        let world = self.world();
        world.nodes.values().filter(|node| node.settings != world.settings).count()
    }

    /// On which worker a node shall be made; without a word the least loaded one of its zone.
    pub fn place(&self, node: &NodeId, worker: &WorkerName) {
        self.world().placed.insert(node.clone(), worker.clone());
    }

    /// Cordons a worker, or lets it take nodes again.
    pub fn cordon(&self, worker: &WorkerName, cordoned: bool) {
        if let Some(worker) = self.world().workers.get_mut(worker) {
            worker.cordoned = cordoned;
        }
    }

    /// Makes a leased instance of `count` nodes without a control plane; the first bootstraps.
    pub fn add_leased(&self, name: &str, count: usize, policy: ElectionPolicy) -> Vec<NodeId> {
        let mut world = self.world();
        let instance = InstanceId::new(name).expect("test names are ids");
        let workers: Vec<(WorkerName, Option<ZoneName>)> =
            world.workers.iter().map(|(n, w)| (n.clone(), w.zone.clone())).collect();
        let members: Vec<Member> = (0..count)
            .map(|i| {
                world.next_port += 1;
                Member {
                    outer: None,
                    node: NodeId::new(format!("{name}-n{i}")).expect("test names are ids"),
                    shard: 0,
                    zone: workers[i % workers.len()].1.clone(),
                    address: Address::new("10.0.0.1", world.next_port),
                }
            })
            .collect();
        for (i, member) in members.iter().enumerate() {
            let config = NodeConfig {
                outer: None,
                renderer: 1,
                node: member.node.clone(),
                instance: instance.clone(),
                instance_name: InstanceName::new(name).expect("test names are slugs"),
                shard: 0,
                zone: member.zone.clone(),
                mode: NodeMode::Leased,
                engine: EngineName::new("redis-7.0").expect("a short slug"),
                address: member.address.clone(),
                memory: ByteSize::mib(128),
                maxmemory: ByteSize::mib(102),
                cluster_node_timeout: Millis(5000),
                bootstrap: i == 0,
                initialized: false,
                members: members.clone(),
                worker: None,
                storage_class: None,
                parameters: std::collections::BTreeMap::new(),
                parameters_revision: 0,
                chained: false,
                upstream: None,
                has_read_endpoint: true,
                election: policy,
                generation: 1,
            };
            let worker = workers[i % workers.len()].0.clone();
            world.create_node(worker, config);
        }
        members.into_iter().map(|m| m.node).collect()
    }

    /// Lets the nodes of a leased instance copy from each other in the order of their names, as the
    /// control plane does, but once and for all.
    pub fn chain(&self, instance: &str) {
        let mut world = self.world();
        let mut before = None;
        let is_its = |node: &&mut SimNode| node.config.instance.as_str() == instance;
        for node in world.nodes.values_mut().filter(is_its) {
            node.config.chained = true;
            node.config.upstream = before.replace(node.config.node.clone());
            node.agent.dirty = true;
        }
    }

    /// As the control plane does once an instance has served.
    pub fn mark_initialized(&self, instance: &str) {
        let mut world = self.world();
        for node in world.nodes.values_mut().filter(|n| n.config.instance.as_str() == instance) {
            node.config.initialized = true;
        }
    }

    /// Virtual milliseconds since the start.
    pub fn now(&self) -> i64 {
        self.world().t
    }

    /// Lets virtual time pass until `t`, or until something that must never happen does.
    pub fn step_until(&self, t: i64) {
        let mut world = self.world();
        while world.t + TICK <= t && world.violation.is_none() {
            world.step();
        }
    }

    /// Steps until `done` says so; `false` when it did not within `limit` milliseconds.
    pub fn step_while_not(&self, limit: i64, done: impl Fn(&Self) -> bool) -> bool {
        let until = self.now() + limit;
        while self.now() < until && self.check().is_ok() {
            if done(self) {
                return true;
            }
            self.step_until(self.now() + TICK);
        }
        done(self)
    }

    /// Makes a fault happen now.
    pub fn inject(&self, fault: Fault) {
        self.world().apply(fault);
    }

    /// Draws faults of the profile from the seed, for the time to come.
    pub fn random_faults(&self, seed: u64, profile: &Profile) {
        let mut world = self.world();
        let crowd: Vec<NodeId> = world.nodes.keys().cloned().collect();
        let of = |id: &NodeId| world.shard_of(id);
        let copied: Vec<NodeId> = crowd
            .iter()
            .filter(|id| crowd.iter().any(|other| other != *id && of(other) == of(id)))
            .cloned()
            .collect();
        let from = world.t;
        let faults = fault::draw(&mut Rng::new(seed), profile, from, &crowd, &copied);
        world.pending_faults.extend(faults);
    }

    /// When the last fault so far was, or is, over. Faults still to come do not count.
    pub fn faults_end(&self) -> i64 {
        let world = self.world();
        let to_come = world.pending_faults.back().map_or(0, |(at, _)| *at + 10_000);
        world.last_fault.max(to_come)
    }

    /// On which worker the node is.
    pub fn worker_of(&self, node: &NodeId) -> Option<WorkerName> {
        self.world().nodes.get(node).map(|n| n.worker.clone())
    }

    /// Gives an order to a node's agent, as the control plane would.
    pub fn order(&self, node: &NodeId, order: &Order) {
        let mut world = self.world();
        let t = world.t;
        let kind = match order {
            Order::HandOver { to } => OrderKind::HandOver { to: to.clone() },
            Order::TakeLease { accept_data_loss } => {
                OrderKind::TakeLease { accept_data_loss: *accept_data_loss }
            }
            _ => return,
        };
        if let Some(found) = world.nodes.get_mut(node)
            && found.agent.runs(t)
        {
            let since = found.agent.clock(t);
            found.agent.order = Some(PendingOrder { kind, since });
            found.agent.dirty = true;
        }
    }

    /// The node that takes writes.
    pub fn primary(&self, instance: &str) -> Option<NodeId> {
        let world = self.world();
        let mut nodes = world.nodes.iter().filter(|(_, n)| n.config.instance.as_str() == instance);
        nodes.find(|(id, _)| world.leads(id)).map(|(id, _)| id.clone())
    }

    /// Writes acknowledged to clients of the instance.
    pub fn acknowledged(&self, instance: &str) -> u64 {
        let world = self.world();
        let shards = world.shards.iter().filter(|((of, _), _)| of.as_str() == instance);
        shards.map(|(_, shard)| shard.acked).sum()
    }

    /// How many acknowledged writes the present primary does not have. Replication is
    /// asynchronous: a few of them are no mistake when a primary dies.
    pub fn lost_writes(&self, instance: &str) -> usize {
        let world = self.world();
        let primary = world
            .nodes
            .iter()
            .find(|(id, n)| n.config.instance.as_str() == instance && world.leads(id));
        let Some(process) = primary.and_then(|(_, n)| n.process.as_ref()) else { return 0 };
        let have: BTreeSet<u64> = process.log.iter().copied().collect();
        let shards = world.shards.iter().filter(|((of, _), _)| of.as_str() == instance);
        shards.flat_map(|(_, s)| &s.acked_ids).filter(|id| !have.contains(id)).count()
    }

    /// The longest time between two acknowledged writes, up to now.
    pub fn longest_gap(&self, instance: &str) -> i64 {
        let world = self.world();
        let shards = world.shards.iter().filter(|((of, _), _)| of.as_str() == instance);
        shards
            .map(
                |(_, s)| {
                    if s.acked == 0 { world.t } else { s.longest_gap.0.max(world.t - s.last_ack) }
                },
            )
            .max()
            .unwrap_or(0)
    }

    /// Forgets the gaps up to now.
    pub fn reset_gaps(&self) {
        let mut world = self.world();
        let t = world.t;
        for shard in world.shards.values_mut() {
            shard.longest_gap = (0, t);
            shard.last_ack = t;
        }
    }

    /// When a leased instance got another primary than before.
    pub fn failovers(&self, instance: &str) -> Vec<i64> {
        let world = self.world();
        let shards = world.shards.iter().filter(|((of, _), _)| of.as_str() == instance);
        shards.flat_map(|(_, shard)| shard.failovers.clone()).collect()
    }

    /// Every node of the instance serves, one leads, the others are synced with it.
    pub fn is_whole(&self, instance: &str) -> Result<(), Violation> {
        let world = self.world();
        let (at, after) = (world.t, world.t - world.last_fault);
        let id = InstanceId::new(instance).expect("test names are ids");
        let nodes: Vec<NodeId> = world
            .nodes
            .iter()
            .filter(|(_, n)| n.config.instance == id)
            .map(|(node, _)| node.clone())
            .collect();
        let Some(primary) = nodes.iter().find(|node| world.leads(node)) else {
            return Err(Violation::NoPrimary { at, instance: id, after });
        };
        for node in nodes.iter().filter(|node| *node != primary) {
            if !world.copies_from(node, primary) {
                let node = node.clone();
                return Err(Violation::NotConverged { at, instance: id, node, after });
            }
        }
        Ok(())
    }

    /// Every server feeds one other at most.
    pub fn is_one_row(&self, instance: &str) -> bool {
        let world = self.world();
        let its = world.nodes.values().filter(|node| node.config.instance.as_str() == instance);
        let processes = its.filter_map(|node| node.process.as_ref());
        let mut fed = BTreeSet::new();
        processes
            .filter(|process| process.link_up())
            .all(|process| fed.insert(process.upstream.clone()))
    }

    /// # Errors
    /// The first thing that must never happen, and did.
    pub fn check(&self) -> Result<(), Violation> {
        self.world().violation.clone().map_or(Ok(()), Err)
    }

    /// Keeps everything that happens from now on.
    pub fn keep_all_events(&self) {
        self.world().trace_lines = usize::MAX;
    }

    /// The last lines of what happened.
    pub fn events(&self) -> Vec<String> {
        self.world().trace.iter().cloned().collect()
    }
}
