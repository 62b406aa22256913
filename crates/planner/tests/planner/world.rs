//! A small pure world: a container cluster, agents and servers that do at once what they are
//! told, and break when they are told to. What it shows is what the planner sees.

use std::collections::{BTreeMap, BTreeSet};

use larder_model::agent::{
    AgentStatus, ClusterFailoverMode, ClusterPeer, ClusterView, LeaseSummary, Problem, ReplicaSeen,
    ReplicationView, Role, ServerState, ServerStatus, VolumeState,
};
use larder_model::plan::{OperationOutcome, Plan, PlannedStep, Step};
use larder_model::{
    Address, Architecture, BackendNode, ByteSize, Desired, EndpointKind, EndpointStatus,
    EngineName, Exposed, Hindered, IdSource, InstanceId, InstanceName, InstanceSpec, Millis,
    NodeId, NodeMode, NodePhase, NodeRecord, Observation, Observed, ObservedNode, OpenSlot,
    Operation, OperationId, OperationKind, OperationState, OuterAddress, PlannerPolicy,
    ProjectName, Refusal, SlotMoveStatus, SlotRange, SlotSet, Timestamp, Worker, WorkerName,
    WorkerState, ZoneName,
};
use larder_planner::{lint, node_config, plan};

use crate::parameters::Parameters;

/// Node ids `n1`, `n2` …, so that texts can speak of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Counter(u64);

impl IdSource for Counter {
    fn next_u64(&mut self) -> u64 {
        self.0 += 1;
        self.0
    }

    fn node_id(&mut self) -> NodeId {
        let n = self.next_u64();
        NodeId::new(format!("n{n}")).expect("a valid id")
    }
}

/// What the container cluster and the node itself hold of one node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SimNode {
    pub(crate) worker: WorkerName,
    pub(crate) address: Address,
    pub(crate) realised: bool,
    pub(crate) generation: u64,
    pub(crate) agent_generation: u64,
    pub(crate) maxmemory: Option<ByteSize>,
    pub(crate) users_revision: u64,
    pub(crate) used_memory: ByteSize,
    pub(crate) state: ServerState,
    pub(crate) volume: VolumeState,
    /// Counts starts of the server.
    pub(crate) run: u32,
    /// Since when nothing can be heard of the agent.
    pub(crate) silent: Option<Timestamp>,
    pub(crate) link_up: bool,
    /// Since when the living server does not answer.
    pub(crate) stuck: Option<Timestamp>,
    /// The id on the cluster bus.
    pub(crate) id: String,
    pub(crate) knows: BTreeSet<String>,
    pub(crate) slots: SlotSet,
    pub(crate) epoch: u64,
    pub(crate) follows: Option<String>,
    pub(crate) exposed: Exposed,
    pub(crate) hindered: Option<Hindered>,
    /// What the agent says is wrong.
    pub(crate) problem: Option<Problem>,
    pub(crate) outdated: bool,
    /// Restarted as a replica, and not in sync since.
    pub(crate) behind: bool,
    /// Whom it was told to copy from in a chain, and whom it has left for the primary.
    pub(crate) upstream: Option<NodeId>,
    pub(crate) left_upstream: Option<NodeId>,
    /// What it was told to move, and where that is getting on.
    pub(crate) moving: Option<SlotMoveStatus>,
    pub(crate) open: Vec<OpenSlot>,
    pub(crate) parameters: Parameters,
}

/// A server that is no more, as the others remember it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ghost {
    address: Address,
    pub(crate) slots: SlotSet,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct World {
    pub(crate) desired: Desired,
    pub(crate) workers: Vec<Worker>,
    pub(crate) nodes: BTreeMap<NodeId, SimNode>,
    pub(crate) endpoints: BTreeMap<EndpointKind, bool>,
    /// Of which somebody has deleted a part.
    pub(crate) torn: BTreeSet<EndpointKind>,
    pub(crate) now: Timestamp,
    pub(crate) ids: Counter,
    pub(crate) backend_unknown: bool,
    /// Why, in the container cluster's words.
    pub(crate) trouble: Option<String>,
    pub(crate) purged: bool,
    pub(crate) failure: Option<Refusal>,
    /// Nothing moves by itself while this is set: no election, no start, no sync.
    pub(crate) frozen: bool,
    /// Their links are up, and their primary does not stream to them yet.
    pub(crate) unstreamed: BTreeSet<NodeId>,
    lease_epoch: u64,
    holder: Option<NodeId>,
    /// Servers that are no more, by the id that others may remember.
    pub(crate) ghosts: BTreeMap<String, Ghost>,
    next_port: u16,
    next_id: u32,
    pub(crate) last_epoch: u64,
}

pub(crate) fn worker(text: &str) -> Worker {
    let mut parts = text.split('/');
    let name = parts.next().expect("a name");
    let zone = parts.next().filter(|zone| !zone.is_empty());
    let size = parts.next().unwrap_or("64GiB");
    Worker {
        address: None,
        name: WorkerName::new(name).expect("a valid worker name"),
        zone: zone.map(|zone| ZoneName::new(zone).expect("a valid zone name")),
        state: WorkerState::Ready,
        allocatable: size.parse().expect("a size"),
        requested: ByteSize(0),
    }
}

impl World {
    pub(crate) fn new(
        architecture: Architecture,
        shards: u32,
        replicas: u32,
        workers: &[&str],
    ) -> Self {
        let spec = InstanceSpec {
            parameters: std::collections::BTreeMap::new(),
            parameters_revision: 0,
            parameters_refused: None,
            revision: 0,
            expose: None,
            id: InstanceId::new("i-1").expect("valid"),
            name: InstanceName::new("one").expect("valid"),
            project: ProjectName::new("default").expect("valid"),
            description: String::new(),
            tags: BTreeMap::new(),
            architecture,
            engine: EngineName::new("redis-7.0").expect("valid"),
            memory: ByteSize::mib(128),
            shards,
            replicas,
            chained: false,
            container_cluster: "local".into(),
            storage_class: larder_model::STANDARD_STORAGE_CLASS.into(),
        };
        let mut world = Self {
            desired: Desired {
                spec,
                generation: 1,
                created_at: Timestamp(0),
                deletion: None,
                nodes: Vec::new(),
                initialized: false,
                operation: None,
                users_revision: 0,
                former_password_until: None,
                policy: PlannerPolicy { drain: Millis(0), ..PlannerPolicy::default() },
            },
            workers: workers.iter().map(|text| worker(text)).collect(),
            nodes: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            torn: BTreeSet::new(),
            now: Timestamp(1_000_000),
            ids: Counter::default(),
            backend_unknown: false,
            purged: false,
            failure: None,
            frozen: false,
            unstreamed: BTreeSet::new(),
            trouble: None,
            lease_epoch: 0,
            holder: None,
            ghosts: BTreeMap::new(),
            next_port: 17_000,
            next_id: 0,
            last_epoch: 0,
        };
        world.begin(OperationKind::Create);
        world
    }

    /// A world whose instance is created and settled.
    pub(crate) fn running(
        architecture: Architecture,
        shards: u32,
        replicas: u32,
        workers: &[&str],
    ) -> Self {
        let mut world = Self::new(architecture, shards, replicas, workers);
        world.settle();
        assert!(world.desired.operation.is_none(), "not created: {}", world.plan());
        world
    }

    pub(crate) fn begin(&mut self, kind: OperationKind) {
        self.failure = None;
        self.desired.operation = Some(Operation {
            id: OperationId::new("o-1").expect("valid"),
            instance: self.desired.spec.id.clone(),
            instance_name: self.desired.spec.name.to_string(),
            kind,
            state: OperationState::Running,
            steps: Vec::new(),
            requested_by: "admin".into(),
            requested_from: "127.0.0.1".into(),
            created_at: self.now,
            finished_at: None,
            error: None,
        });
    }

    pub(crate) fn delete(&mut self) {
        self.desired.deletion = Some(larder_model::DeletePolicy::Permanent);
        self.desired.generation += 1;
        self.begin(OperationKind::Delete);
    }

    fn clustered(&self) -> bool {
        self.desired.spec.architecture.node_mode() == NodeMode::Clustered
    }

    /// The plan for what is now; every plan is linted, and planning has no memory.
    pub(crate) fn plan(&self) -> Plan {
        let observed = self.observe();
        let planned = plan(&self.desired, &observed, self.now, &mut self.ids.clone());
        let violations = lint(&self.desired, &observed, &planned);
        assert!(violations.is_empty(), "{violations:#?}\n{planned}");
        let again = plan(&self.desired, &observed, self.now, &mut self.ids.clone());
        assert_eq!(planned, again, "planning twice is not the same");
        planned
    }

    /// What is planned when this was seen.
    pub(crate) fn plan_of(&self, observed: &Observed) -> Plan {
        plan(&self.desired, observed, self.now, &mut self.ids.clone())
    }

    /// One round: plan, do it, record what the plan says of the operation, let agents act.
    pub(crate) fn round(&mut self) -> Plan {
        let planned = self.plan();
        for step in &planned.steps {
            self.apply(step);
        }
        self.record(&planned);
        self.tick();
        planned
    }

    /// A round whose plan is not looked at.
    pub(crate) fn pass(&mut self) {
        drop(self.round());
    }

    /// Rounds until there is nothing to do any more. Panics when that does not come to pass.
    pub(crate) fn settle(&mut self) -> Vec<Plan> {
        let mut plans = Vec::new();
        for _ in 0..200 {
            if self.purged {
                return plans;
            }
            let mut before = self.clone();
            plans.push(self.round());
            before.now = self.now;
            if *self == before {
                return plans;
            }
        }
        panic!("it never settles: {}", self.plan());
    }

    pub(crate) fn record(&mut self, planned: &Plan) {
        let Some(report) = &planned.report.operation else { return };
        let Some(operation) = &mut self.desired.operation else { return };
        operation.steps.clone_from(&report.steps);
        match &report.outcome {
            OperationOutcome::Running | OperationOutcome::Waiting => {}
            OperationOutcome::Succeeded => self.desired.operation = None,
            OperationOutcome::Failed(refusal) => {
                self.failure = Some(refusal.clone());
                self.end_operation();
            }
        }
    }

    /// The operation ends without having got there: what it has wished for is taken back.
    pub(crate) fn end_operation(&mut self) {
        let Some(operation) = self.desired.operation.take() else { return };
        if operation.kind.undo(&mut self.desired.spec, self.failure.as_ref()) {
            self.desired.generation += 1;
        }
    }

    /// Another wish, with the operation that makes it so.
    pub(crate) fn change(&mut self, kind: OperationKind, wish: impl FnOnce(&mut InstanceSpec)) {
        wish(&mut self.desired.spec);
        self.desired.generation += 1;
        self.begin(kind);
    }

    fn record_of(&self, node: &NodeId) -> &NodeRecord {
        self.desired.nodes.iter().find(|record| record.id == *node).expect("a record")
    }

    fn record_mut(&mut self, node: &NodeId) -> Option<&mut NodeRecord> {
        self.desired.nodes.iter_mut().find(|record| record.id == *node)
    }

    pub(crate) fn node(&mut self, name: &str) -> &mut SimNode {
        let id = NodeId::new(name).expect("a valid id");
        self.nodes.get_mut(&id).expect("a node of that name")
    }

    pub(crate) fn primary(&self, shard: u32) -> Option<NodeId> {
        self.desired.nodes.iter().filter(|r| r.shard == shard).map(|r| r.id.clone()).find(|id| {
            let Some(node) = self.nodes.get(id) else { return false };
            let leads = if self.clustered() {
                !node.slots.is_empty()
            } else {
                self.holder.as_ref() == Some(id)
            };
            leads && node.state == ServerState::Serving
        })
    }

    pub(crate) fn apply(&mut self, planned: &PlannedStep) {
        match &planned.step {
            Step::RecordNode { node, shard, worker, zone, bootstrap } => {
                if self.record_mut(node).is_none() {
                    self.ids.next_u64();
                    self.desired.nodes.push(NodeRecord::new(
                        node.clone(),
                        *shard,
                        worker.clone(),
                        zone.clone(),
                        *bootstrap,
                        &self.desired.spec,
                        self.now,
                    ));
                    self.desired.generation += 1;
                }
            }
            Step::ReserveAddress { node } => self.reserve(node),
            Step::ExposeNode { node } => self.expose(node),
            Step::EnsureNode { node } => self.ensure(node),
            Step::ConfigureNode { node } => {
                let generation = self.desired.generation;
                let config = node_config(&self.desired, self.record_of(node));
                self.told(node, |sim| {
                    sim.agent_generation = generation;
                    let upstream = config.as_ref().and_then(|config| config.upstream.clone());
                    if sim.upstream != upstream {
                        sim.left_upstream = None;
                    }
                    sim.upstream = upstream;
                    sim.parameters.hear(config.as_ref());
                    sim.maxmemory = config.map(|config| config.maxmemory);
                });
            }
            Step::EnsureEndpoint { endpoint } => {
                self.endpoints.entry(*endpoint).or_insert(false);
                self.torn.remove(endpoint);
            }
            Step::MarkInitialized => {
                if !self.desired.initialized {
                    self.desired.initialized = true;
                    self.desired.generation += 1;
                }
            }
            Step::MeetNodes { node, peers } => {
                let Some(me) = self.nodes.get(node).map(|sim| sim.id.clone()) else { return };
                let theirs: Vec<String> =
                    peers.iter().filter_map(|p| Some(self.nodes.get(p)?.id.clone())).collect();
                self.told(node, |sim| sim.knows.extend(theirs));
                for peer in peers {
                    let me = me.clone();
                    self.told(peer, |sim| {
                        sim.knows.insert(me);
                    });
                }
            }
            Step::AssignSlots { node, ranges, config_epoch } => {
                let alone = self.nodes.get(node).is_some_and(|sim| sim.knows.len() <= 1);
                assert!(alone, "a config epoch can be set only at a server that knows no others");
                self.last_epoch = self.last_epoch.max(*config_epoch);
                let slots: SlotSet = ranges.iter().copied().collect::<SlotSet>();
                self.told(node, |sim| {
                    sim.slots = slots;
                    sim.epoch = *config_epoch;
                });
            }
            Step::ReplicateNode { node, primary_id, .. } => {
                self.told(node, |sim| {
                    sim.follows = Some(primary_id.clone());
                    sim.link_up = false;
                });
            }
            Step::ForgetNodes { node, ids } => self.told(node, |sim| {
                sim.knows.retain(|id| !ids.contains(id));
            }),
            Step::MoveSlots { node, to_id, slots, .. } => {
                self.told(node, |sim| sim.told_to_move(to_id, slots));
            }
            Step::StopMovingSlots { node } => self.told(node, |sim| {
                sim.moving.iter_mut().for_each(|moving| moving.done = true);
            }),
            Step::CloseSlots { node, slots } => self.told(node, |sim| {
                sim.open.retain(|open| !slots.contains(open.slot));
            }),
            Step::StartEmpty { node } => {
                let id = self.fresh_server_id();
                self.remember(self.nodes[node].clone());
                self.told(node, |sim| {
                    sim.volume = VolumeState::Fresh;
                    sim.knows = [id.clone()].into();
                    sim.id = id;
                    sim.slots = SlotSet::default();
                    sim.follows = None;
                    sim.run += 1;
                    sim.state = ServerState::Starting;
                });
            }
            Step::HandOver { to, .. } => {
                let to = to.clone().expect("the planner names the successor");
                self.lead(&to);
            }
            Step::TakeLease { node } => self.lead(&node.clone()),
            Step::FailOverShard { node, mode } => {
                let needs_vote = *mode != ClusterFailoverMode::Takeover;
                self.promote(&node.clone(), needs_vote);
            }
            Step::RestartServer { node, run_id } => {
                let name = node.to_string();
                self.told(node, |sim| {
                    if run_of(&name, sim.run) == *run_id {
                        sim.stuck = None;
                        sim.run += 1;
                        sim.state = ServerState::Loading;
                        sim.link_up = false;
                    }
                });
            }
            Step::SetUsers { node, .. } => {
                let revision = self.desired.users_revision;
                self.told(node, |sim| sim.users_revision = revision);
            }
            Step::DropFormerPassword => {
                self.desired.former_password_until = None;
                self.desired.users_revision += 1;
                self.desired.generation += 1;
            }
            Step::UpdateOperation { kind } => {
                if let Some(operation) = &mut self.desired.operation {
                    operation.kind = kind.clone();
                }
            }
            Step::ResizeNode { node, memory } => {
                if let Some(record) = self.record_mut(node) {
                    record.memory = *memory;
                    self.desired.generation += 1;
                }
            }
            Step::PlaceInLine { node, since } => {
                if let Some(record) = self.record_mut(node) {
                    record.in_line_since = *since;
                    self.desired.generation += 1;
                }
            }
            Step::RetireNode { node } => {
                let now = self.now;
                if let Some(record) = self.record_mut(node)
                    && record.phase != NodePhase::Leaving
                {
                    record.phase = NodePhase::Leaving;
                    record.leaving_since = Some(now);
                    self.desired.generation += 1;
                }
            }
            Step::RemoveNode { node } => {
                self.vanish(node);
            }
            Step::RemoveEndpoint { endpoint } => {
                self.endpoints.remove(endpoint);
            }
            Step::ForgetRecord { node } => {
                let before = self.desired.nodes.len();
                self.desired.nodes.retain(|record| record.id != *node);
                if self.desired.nodes.len() != before {
                    self.desired.generation += 1;
                }
            }
            Step::PurgeInstance => self.purged = true,
        }
    }

    /// The container cluster holds the node no longer; nothing of it is left.
    pub(crate) fn vanish(&mut self, node: &NodeId) {
        if let Some(gone) = self.nodes.remove(node) {
            self.remember(gone);
        }
    }

    fn remember(&mut self, gone: SimNode) {
        self.ghosts.insert(gone.id, Ghost { address: gone.address, slots: gone.slots });
    }

    /// Orders reach only agents that can be reached.
    fn told(&mut self, node: &NodeId, order: impl FnOnce(&mut SimNode)) {
        if let Some(sim) = self.nodes.get_mut(node)
            && sim.silent.is_none()
        {
            order(sim);
        }
    }

    fn fresh_server_id(&mut self) -> String {
        self.next_id += 1;
        format!("s{}", self.next_id)
    }

    fn reserve(&mut self, node: &NodeId) {
        if !self.nodes.contains_key(node) {
            let id = self.fresh_server_id();
            self.next_port += 1;
            let sim = SimNode {
                worker: self.record_of(node).worker.clone(),
                address: Address::new("127.0.0.1", self.next_port),
                realised: false,
                generation: 0,
                agent_generation: 0,
                maxmemory: None,
                users_revision: 0,
                used_memory: ByteSize::mib(10),
                state: ServerState::Absent,
                volume: VolumeState::Fresh,
                run: 0,
                silent: None,
                link_up: false,
                stuck: None,
                knows: [id.clone()].into(),
                id,
                slots: SlotSet::default(),
                epoch: 0,
                follows: None,
                problem: None,
                exposed: Exposed::No,
                hindered: None,
                outdated: false,
                behind: false,
                upstream: None,
                left_upstream: None,
                moving: None,
                open: Vec::new(),
                parameters: Parameters::default(),
            };
            self.nodes.insert(node.clone(), sim);
        }
        let address = self.nodes[node].address.clone();
        if let Some(record) = self.record_mut(node)
            && record.address.is_none()
        {
            record.address = Some(address);
            self.desired.generation += 1;
        }
    }

    /// The way from outside, at a port of all workers that is the node's alone.
    fn expose(&mut self, node: &NodeId) {
        self.reserve(node);
        let sim = self.nodes.get_mut(node).expect("reserved above");
        if sim.exposed == Exposed::No {
            let port = sim.address.port + 10_000;
            sim.exposed = Exposed::Yes(OuterAddress { host: None, port, bus_port: None });
        }
        let Exposed::Yes(outer) = sim.exposed.clone() else { return };
        if let Some(record) = self.record_mut(node)
            && record.outer.as_ref() != Some(&outer)
        {
            record.outer = Some(outer);
            self.desired.generation += 1;
        }
    }

    fn ensure(&mut self, node: &NodeId) {
        let record = self.record_of(node).clone();
        let config = node_config(&self.desired, &record).expect("planned only when it renders");
        if !self.nodes.contains_key(node) {
            // The container cluster lost it: a folder without its volume is made again.
            self.reserve(node);
            let address = record.address.clone().expect("rendered, so it has one");
            let sim = self.nodes.get_mut(node).expect("reserved above");
            sim.address = address;
            sim.volume =
                if self.desired.initialized { VolumeState::Lost } else { VolumeState::Fresh };
        }
        let sim = self.nodes.get_mut(node).expect("reserved above");
        sim.realised = true;
        sim.outdated = false;
        sim.generation = config.generation;
        if sim.agent_generation == 0 {
            sim.parameters.start_with(&config);
            sim.agent_generation = config.generation;
            sim.upstream.clone_from(&config.upstream);
            sim.maxmemory = Some(config.maxmemory);
        }
    }

    /// `id` becomes the lease's holder. A former one that hangs is killed by it.
    fn lead(&mut self, id: &NodeId) {
        if self.holder.as_ref() != Some(id) {
            self.lease_epoch += 1;
            let old = self.holder.replace(id.clone());
            if let Some(sim) = old.and_then(|old| self.nodes.get_mut(&old))
                && sim.stuck.take().is_some()
            {
                sim.state = ServerState::Absent;
            }
        }
    }

    /// The holder has let go of the lease, and nobody says any more who it was.
    pub(crate) fn vacate(&mut self) {
        self.holder = None;
    }

    /// The server is in an endless script: it lives and answers nothing.
    pub(crate) fn hang(&mut self, name: &str) {
        let now = self.now;
        let sim = self.node(name);
        sim.state = ServerState::Busy;
        sim.stuck = Some(now);
    }

    fn majority(&self) -> bool {
        let slotted = |sim: &&SimNode| !sim.slots.is_empty();
        let alive = |sim: &&SimNode| sim.state == ServerState::Serving;
        let dead = self.ghosts.values().filter(|ghost| !ghost.slots.is_empty()).count();
        let all = self.nodes.values().filter(slotted).count() + dead;
        self.nodes.values().filter(slotted).filter(alive).count() * 2 > all
    }

    /// A replica of a shard takes its primary's slots.
    pub(crate) fn promote(&mut self, id: &NodeId, needs_vote: bool) {
        let Some(old) = self.nodes.get(id).and_then(|sim| sim.follows.clone()) else { return };
        if needs_vote && !self.majority() {
            return;
        }
        let new_id = self.nodes[id].id.clone();
        self.last_epoch += 1;
        let mut slots = self
            .ghosts
            .get_mut(&old)
            .map(|ghost| std::mem::take(&mut ghost.slots))
            .unwrap_or_default();
        for sim in self.nodes.values_mut() {
            if sim.id == old {
                slots = std::mem::take(&mut sim.slots);
                if sim.state.is_alive() {
                    sim.follows = Some(new_id.clone());
                    sim.link_up = false;
                }
            } else if sim.follows.as_ref() == Some(&old) && sim.id != new_id {
                sim.open.clear();
                sim.follows = Some(new_id.clone());
                sim.link_up = false;
            }
        }
        let sim = self.nodes.get_mut(id).expect("it was there a moment ago");
        sim.slots = slots;
        sim.epoch = self.last_epoch;
        sim.follows = None;
    }

    /// What agents and servers do by themselves.
    pub(crate) fn tick(&mut self) {
        self.now = self.now + Millis(100);
        if self.frozen {
            return;
        }
        for sim in self.nodes.values_mut() {
            if !sim.realised || sim.volume == VolumeState::Lost {
                continue;
            }
            sim.state = match sim.state {
                ServerState::Absent => {
                    sim.run += 1;
                    ServerState::Starting
                }
                ServerState::Starting | ServerState::Loading => {
                    sim.volume = VolumeState::Data;
                    ServerState::Serving
                }
                other => other,
            };
        }
        if self.clustered() {
            self.bus();
            self.move_slots();
        } else {
            self.elect()
        }
        for (kind, answers) in &mut self.endpoints {
            *answers = !self.torn.contains(kind);
        }
    }

    fn elect(&mut self) {
        let holder_serves =
            self.holder.as_ref().and_then(|id| self.nodes.get(id)).is_some_and(|sim| {
                // A server that hangs keeps its lease: its agent renews it.
                let answers = sim.state == ServerState::Serving || sim.stuck.is_some();
                answers && sim.volume == VolumeState::Data
            });
        if !holder_serves {
            let alone = self.desired.spec.replicas == 1;
            let next = self
                .desired
                .nodes
                .iter()
                .filter(|record| {
                    let Some(sim) = self.nodes.get(&record.id) else { return false };
                    let first = !self.desired.initialized && record.bootstrap;
                    sim.state == ServerState::Serving && (first || alone || sim.link_up)
                })
                .map(|record| record.id.clone())
                .next();
            if let Some(next) = next {
                self.lead(&next);
            }
        }
        let led = self.primary(0);
        for (id, sim) in &mut self.nodes {
            let replica = led.as_ref().is_some_and(|primary| primary != id);
            if sim.state == ServerState::Serving && led.is_some() {
                sim.link_up = replica;
            }
        }
    }

    pub(crate) fn observe(&self) -> Observed {
        let mut observed = Observed {
            workers: self.seen_workers(),
            trouble: self.trouble.clone(),
            ..Observed::default()
        };
        for record in &self.desired.nodes {
            let absent = ObservedNode {
                backend: Observation::Absent,
                agent: Observation::Absent,
                hindered: None,
            };
            let unknown = ObservedNode {
                hindered: None,
                backend: Observation::Unknown { since: self.now },
                agent: Observation::Unknown { since: self.now },
            };
            let seen = if self.backend_unknown { unknown } else { absent };
            observed.nodes.insert(record.id.clone(), seen);
        }
        for (id, sim) in &self.nodes {
            observed.nodes.insert(id.clone(), self.observe_node(id, sim));
        }
        for &kind in self.desired.spec.architecture.endpoints() {
            let seen = match self.endpoints.get(&kind) {
                _ if self.backend_unknown => Observation::Unknown { since: self.now },
                None => Observation::Absent,
                Some(answers) => Observation::Known {
                    value: EndpointStatus {
                        inner: None,
                        pending: false,
                        address: Address::new("127.0.0.1", 16_000),
                        answers: *answers,
                        leads_to: Vec::new(),
                        whole: !self.torn.contains(&kind),
                    },
                    at: self.now,
                },
            };
            observed.endpoints.insert(kind, seen);
        }
        observed
    }

    fn seen_workers(&self) -> Vec<Worker> {
        if self.backend_unknown {
            return Vec::new();
        }
        let memory = self.desired.spec.memory.bytes();
        let mut workers = self.workers.clone();
        for worker in &mut workers {
            let held = self.nodes.values().filter(|sim| sim.worker == worker.name).count() as u64;
            worker.requested = ByteSize(worker.requested.bytes() + held * memory);
        }
        workers
    }

    fn observe_node(&self, id: &NodeId, sim: &SimNode) -> ObservedNode {
        let backend = if self.backend_unknown {
            Observation::Unknown { since: self.now }
        } else {
            Observation::Known {
                value: BackendNode {
                    exposed: sim.exposed.clone(),
                    outdated: sim.outdated,
                    worker: sim.worker.clone(),
                    address: Some(sim.address.clone()),
                    realised: sim.realised,
                    volume: sim.realised,
                    generation: sim.generation,
                },
                at: self.now,
            }
        };
        let agent = match sim.silent {
            Some(since) => Observation::Unknown { since },
            None if !sim.realised => Observation::UnknownYet,
            None => Observation::Known { value: self.status(id, sim), at: self.now },
        };
        ObservedNode { backend, agent, hindered: sim.hindered.clone() }
    }

    fn status(&self, id: &NodeId, sim: &SimNode) -> AgentStatus {
        let answers = sim.state == ServerState::Serving;
        let leads = self.holder.as_ref() == Some(id);
        let replica = if self.clustered() { sim.follows.is_some() } else { !leads };
        let followed = if self.clustered() {
            self.nodes.values().find(|other| Some(&other.id) == sim.follows.as_ref())
        } else {
            self.above(id).and_then(|above| self.nodes.get(above))
        };
        AgentStatus {
            node: id.clone(),
            instance: self.desired.spec.id.clone(),
            agent_run: "a".into(),
            version: 1,
            generation: sim.agent_generation,
            at: self.now,
            server: ServerStatus {
                state: sim.state,
                unanswering_since: sim.stuck,
                pid: Some(4711),
                run_id: (sim.run > 0).then(|| run_of(id.as_str(), sim.run)),
                engine_version: Some("7.0.15".into()),
                started_at: None,
                used_memory: Some(sim.used_memory),
                maxmemory: sim.maxmemory,
                users_revision: Some(sim.users_revision),
                parameters: Some(self.parameters_of(sim)),
                connected_clients: None,
            },
            volume: sim.volume,
            replication: answers.then(|| ReplicationView {
                role: if replica { Role::Replica } else { Role::Primary },
                primary: replica.then(|| followed.map(|f| f.address.clone())).flatten(),
                link_up: replica && sim.link_up,
                syncing: false,
                replid: "r".into(),
                offset: 100,
                replicas: self.copies_of(id, replica),
            }),
            cluster: (self.clustered() && answers).then(|| self.cluster_view(sim)),
            behind: sim.behind,
            slot_move: sim.moving.clone(),
            left_upstream: sim.left_upstream.clone(),
            lease: (!self.clustered()).then(|| LeaseSummary {
                epoch: self.lease_epoch,
                holder: self.holder.clone(),
                failover_on_hold: false,
            }),
            problem: sim.problem.clone(),
            events: Vec::new(),
        }
    }

    /// Whom a leased node copies from: in a chain its upstream while that one serves, else the holder.
    pub(crate) fn above(&self, node: &NodeId) -> Option<&NodeId> {
        let holder = self.holder.as_ref().filter(|holder| *holder != node)?;
        let upstream = self.nodes.get(node).and_then(|sim| {
            let upstream =
                sim.upstream.as_ref().filter(|it| sim.left_upstream.as_ref() != Some(it))?;
            let above = self.nodes.get(upstream)?;
            (above.state == ServerState::Serving && above.link_up).then_some(upstream)
        });
        Some(upstream.unwrap_or(holder))
    }

    /// The replicas in a primary's eyes.
    fn copies_of(&self, primary: &NodeId, is_replica: bool) -> Vec<ReplicaSeen> {
        let server = self.nodes.get(primary).map(|sim| &sim.id);
        let copies = |node: &NodeId, other: &SimNode| {
            let follows = match self.clustered() {
                true => other.follows.as_ref() == server,
                false => self.above(node) == Some(primary),
            };
            follows && other.link_up && other.state == ServerState::Serving
        };
        let feeds = !is_replica || !self.clustered();
        let seen = self.nodes.iter().filter(|(node, other)| feeds && copies(node, other));
        seen.map(|(node, other)| ReplicaSeen {
            address: other.address.clone(),
            online: !self.unstreamed.contains(node),
            offset: 100,
        })
        .collect()
    }

    fn cluster_view(&self, sim: &SimNode) -> ClusterView {
        let mut nodes: Vec<ClusterPeer> = sim
            .knows
            .iter()
            .filter_map(|id| {
                let found = self.nodes.values().find(|other| other.id == *id);
                let ghost = self.ghosts.get(id);
                let mut address = found.map(|f| &f.address).or(ghost.map(|g| &g.address))?.clone();
                if let Some(Exposed::Yes(outer)) = found.map(|f| &f.exposed) {
                    // One port for clients and servers.
                    address.port = outer.port;
                }
                let slots = found.map(|f| &f.slots).or(ghost.map(|g| &g.slots));
                let alive = found.is_some_and(|f| f.state == ServerState::Serving);
                let follows = found.and_then(|f| f.follows.clone());
                Some(ClusterPeer {
                    id: id.clone(),
                    address,
                    role: if follows.is_some() { Role::Replica } else { Role::Primary },
                    primary: follows,
                    failed: !alive,
                    suspected: !alive,
                    handshake: false,
                    linked: alive,
                    config_epoch: found.map_or(0, |f| f.epoch),
                    slots: slots.cloned().unwrap_or_default(),
                    open: if *id == sim.id { sim.open.clone() } else { Vec::new() },
                })
            })
            .collect();
        nodes.sort_by(|a, b| a.id.cmp(&b.id));
        let served: SlotSet = nodes
            .iter()
            .filter(|peer| peer.linked)
            .flat_map(|peer| peer.slots.ranges().iter().copied())
            .collect();
        ClusterView {
            my_id: sim.id.clone(),
            state_ok: served == SlotSet::full(),
            current_epoch: self.last_epoch,
            nodes,
        }
    }

    /// The slots of all serving servers, for assertions.
    pub(crate) fn served_slots(&self) -> SlotSet {
        self.nodes
            .values()
            .filter(|sim| sim.state == ServerState::Serving)
            .flat_map(|sim| sim.slots.ranges().to_vec())
            .collect::<SlotSet>()
    }

    /// A worker goes away, with everything on it.
    pub(crate) fn lose_worker(&mut self, name: &str, state: WorkerState) {
        for worker in self.workers.iter_mut().filter(|worker| worker.name.as_str() == name) {
            worker.state = state;
        }
        let now = self.now;
        for sim in self.nodes.values_mut().filter(|sim| sim.worker.as_str() == name) {
            sim.silent = Some(now);
            sim.state = ServerState::Dead;
        }
    }
}

pub(crate) fn run_of(node: &str, run: u32) -> String {
    format!("run-{node}-{run}")
}

/// A range that covers everything, for tests that give all slots to one.
pub(crate) fn everything() -> SlotRange {
    SlotSet::full().ranges()[0]
}
