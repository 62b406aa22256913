//! The simulator as a [`Cluster`] and as [`Agents`]: what the control plane sees of the fleet, with
//! its own faults: a container cluster out of reach, answers that get lost.

use std::collections::BTreeSet;

use async_trait::async_trait;
use larder_election::{OrderKind, PendingOrder, Situation, WhyNoPrimary};
use larder_model::agent::{
    AgentStatus, ClusterFailoverMode, ClusterView, Fence, LeaseSummary, Member, NodeConfig, Order,
    ParametersState, Problem, ProblemCode, ReplicaSeen, ReplicationView, Role, ServerState,
    ServerStatus, VolumeState,
};
use larder_model::local::NodeSecrets;
use larder_model::{
    Address, BackendNode, ByteSize, Code, EndpointKind, EndpointStatus, Exposed, InstanceId,
    NodeId, NodeMode, OuterAddress, Refusal, SlotMoveStatus, Timestamp, Worker, WorkerName,
    WorkerState,
};

use super::Sim;
use super::agent::SimAgent;
use super::server::Disk;
use super::world::{SimNode, World};
use crate::{
    AgentError, Agents, BackendObserved, Cluster, ClusterError, EndpointSpec, NodeExposure,
};

/// How long a removal takes.
const REMOVAL_MS: i64 = 200;

/// An endpoint as the container cluster holds it.
#[derive(Clone, Debug)]
pub(super) struct SimEndpoint {
    pub(super) cluster: String,
    pub(super) address: Address,
    pub(super) members: Vec<Member>,
    /// Nothing of it was deleted since it was ensured.
    pub(super) whole: bool,
}

/// What of an agent's report is news when it changes: all but the offsets, which always do.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Reported {
    state: ServerState,
    run_id: Option<String>,
    volume: VolumeState,
    replication: Option<ReplicationView>,
    cluster: Option<ClusterView>,
    lease: Option<LeaseSummary>,
    moving: Option<SlotMoveStatus>,
    left: Option<NodeId>,
    generation: u64,
}

fn without_offsets(view: ReplicationView) -> ReplicationView {
    let replicas = view.replicas.into_iter().map(|r| ReplicaSeen { offset: 0, ..r }).collect();
    ReplicationView { offset: 0, replid: String::new(), replicas, ..view }
}

/// One container cluster of a simulated fleet.
#[derive(Clone, Debug)]
pub struct SimCluster {
    pub(super) sim: Sim,
    pub(super) name: String,
}

impl World {
    fn next_address(&mut self) -> Address {
        self.next_port += 1;
        Address::new("10.0.0.1", self.next_port)
    }

    /// The worker for a node: as the test said, else the least loaded one of its zone.
    fn worker_for(&self, cluster: &str, config: &NodeConfig) -> Option<WorkerName> {
        if let Some(worker) = self.placed.get(&config.node) {
            return Some(worker.clone());
        }
        let load = |name: &WorkerName| {
            let nodes = self.nodes.values().filter(|n| n.worker == *name);
            let same = nodes.clone().filter(|n| n.config.instance == config.instance).count();
            (same, nodes.count())
        };
        self.workers
            .iter()
            .filter(|(_, w)| w.cluster == cluster && w.down_until <= self.t && !w.cordoned)
            .filter(|(_, w)| config.zone.is_none() || w.zone == config.zone)
            .map(|(name, _)| name)
            .min_by_key(|name| load(name))
            .cloned()
    }

    pub(super) fn create_node(&mut self, worker: WorkerName, config: NodeConfig) {
        let (offset, ppm) = (self.rng.below(1_000_000), self.rng.below(24_000) - 12_000);
        let t = self.t;
        let mut agent = SimAgent::new(offset, ppm);
        // Wished for on a worker without power: it begins when the worker is back.
        let down_until = self.workers.get(&worker).map_or(0, |w| w.down_until);
        agent.up = down_until <= t;
        agent.back_at = down_until;
        let key = (config.instance.clone(), config.shard);
        let clients = self.config.clients;
        if config.mode == NodeMode::Leased {
            self.shards.entry(key).or_insert_with(|| super::world::SimShard {
                clients: vec![super::clients::Client::default(); clients],
                ..Default::default()
            });
        }
        self.addresses.insert(config.address.clone(), config.node.clone());
        let node = SimNode {
            worker,
            agent,
            process: None,
            disk: Disk::default(),
            keeper_saw: None,
            removing_at: None,
            whole: true,
            well_since: t,
            replication_cut_until: 0,
            start_not_before: 0,
            reported: None,
            settings: self.settings,
            users_revision: 0,
            config,
        };
        self.nodes.insert(node.config.node.clone(), node);
    }

    /// Refuses a fence older than what this instance has seen.
    fn check_fence(
        &mut self,
        cluster: &str,
        instance: &InstanceId,
        fence: Fence,
    ) -> Result<(), ClusterError> {
        if self.t < self.cluster_unreachable_until {
            let reason = "simulated fault".to_owned();
            return Err(ClusterError::Unreachable { cluster: cluster.to_owned(), reason });
        }
        let seen = self.fences.entry((cluster.to_owned(), instance.clone())).or_insert(fence);
        if *seen > fence {
            return Err(ClusterError::Stale { seen: *seen });
        }
        *seen = fence;
        Ok(())
    }

    /// An answer that is lost after the call took effect.
    fn reply<T>(&mut self, cluster: &str, value: T) -> Result<T, ClusterError> {
        if self.t < self.replies_lost_until && self.rng.chance(50) {
            let reason = "the answer was lost".to_owned();
            return Err(ClusterError::Unreachable { cluster: cluster.to_owned(), reason });
        }
        Ok(value)
    }

    fn cluster_up(&self, cluster: &str) -> Result<(), ClusterError> {
        if self.t < self.cluster_unreachable_until {
            let reason = "simulated fault".to_owned();
            return Err(ClusterError::Unreachable { cluster: cluster.to_owned(), reason });
        }
        Ok(())
    }

    fn exposure_of(&self, node: &NodeId) -> Exposed {
        self.exposed.get(node).cloned().map_or(Exposed::No, Exposed::Yes)
    }

    fn in_cluster(&self, node: &SimNode, cluster: &str) -> bool {
        self.workers.get(&node.worker).is_some_and(|w| w.cluster == cluster)
    }

    fn answers(&self, node: &NodeId) -> bool {
        self.server_state(node) == ServerState::Serving
            && self.nodes.get(node).is_some_and(|n| self.worker_up(&n.worker))
    }

    fn endpoint_status(
        &self,
        instance: &InstanceId,
        kind: EndpointKind,
        endpoint: &SimEndpoint,
    ) -> EndpointStatus {
        let route = self.shards.get(&(instance.clone(), 0)).and_then(|s| s.route.as_ref());
        let write: Vec<NodeId> =
            route.iter().filter_map(|r| r.write.as_ref()).map(|t| t.node.clone()).collect();
        let leads_to = match kind {
            EndpointKind::Write => write,
            EndpointKind::Read => {
                let read: Vec<NodeId> = route
                    .iter()
                    .flat_map(|r| &r.read)
                    .map(|t| t.node.clone())
                    .filter(|node| self.answers(node))
                    .collect();
                if read.is_empty() { write } else { read }
            }
            EndpointKind::Discovery => endpoint
                .members
                .iter()
                .map(|m| m.node.clone())
                .filter(|node| self.answers(node))
                .collect(),
        };
        let leads_to = if endpoint.whole { leads_to } else { Vec::new() };
        let answers = leads_to.iter().any(|node| self.answers(node));
        EndpointStatus {
            inner: None,
            pending: false,
            address: endpoint.address.clone(),
            answers,
            leads_to,
            whole: endpoint.whole,
        }
    }

    fn status(&mut self, node: &NodeId) -> Option<AgentStatus> {
        let t = self.t;
        let server = ServerStatus {
            state: self.server_state(node),
            unanswering_since: None,
            pid: None,
            run_id: self.run_id_of(node),
            engine_version: Some("7.0.15".to_owned()),
            started_at: None,
            used_memory: Some(ByteSize::mib(10)),
            maxmemory: None,
            users_revision: self.nodes.get(node).map(|found| found.users_revision),
            parameters: self.nodes.get(node).map(|found| ParametersState {
                revision: found.config.parameters_revision,
                refused: None,
                stale: false,
            }),
            connected_clients: None,
        };
        let volume = self.volume_state(node);
        let replication = self.replication_of(node);
        let cluster = self.cluster_view(node);
        let found = self.nodes.get_mut(node)?;
        let agent = &mut found.agent;
        let on_hold = agent.situation == Some(Situation::NoPrimary(WhyNoPrimary::OnHold));
        let lease = agent.known.as_ref().map(|known| LeaseSummary {
            epoch: known.record.epoch,
            holder: known.record.holder.as_ref().map(|h| h.node.clone()),
            failover_on_hold: on_hold,
        });
        let problem = (volume == VolumeState::Lost).then(|| Problem {
            code: ProblemCode::VolumeLost,
            message: "the node has a past and its volume is empty".to_owned(),
        });
        let news = Reported {
            state: server.state,
            run_id: server.run_id.clone(),
            volume,
            replication: replication.clone().map(without_offsets),
            cluster: cluster.clone(),
            lease: lease.clone(),
            moving: agent.moving.clone(),
            left: agent.left.clone(),
            generation: found.config.generation,
        };
        if found.reported.as_ref() != Some(&news) {
            found.reported = Some(news);
            agent.version += 1;
        }
        Some(AgentStatus {
            node: node.clone(),
            instance: found.config.instance.clone(),
            agent_run: format!("{node}-{}", agent.life),
            version: agent.version,
            generation: found.config.generation,
            at: Timestamp(1_800_000_000_000 + t),
            server,
            volume,
            replication,
            cluster,
            behind: false,
            slot_move: agent.moving.clone(),
            left_upstream: agent.left.clone(),
            lease,
            problem,
            events: Vec::new(),
        })
    }

    fn obey(&mut self, node: &NodeId, order: &Order) -> Result<(), AgentError> {
        let t = self.t;
        let Some(found) = self.nodes.get_mut(node) else { return Ok(()) };
        let since = found.agent.clock(t);
        found.agent.dirty = true;
        match order {
            Order::Configure { config } => {
                if config.generation >= found.config.generation {
                    found.config = (**config).clone();
                }
            }
            Order::HandOver { to } => {
                let kind = OrderKind::HandOver { to: to.clone() };
                found.agent.order.get_or_insert(PendingOrder { kind, since });
            }
            Order::TakeLease { accept_data_loss } => {
                let kind = OrderKind::TakeLease { accept_data_loss: *accept_data_loss };
                found.agent.order.get_or_insert(PendingOrder { kind, since });
            }
            Order::RestartServer { run_id } => {
                if self.run_id_of(node).as_ref() == Some(run_id) {
                    self.kill_process(node, false);
                }
            }
            Order::StopServer => {
                found.agent.held_back = true;
                self.kill_process(node, false);
            }
            Order::CheckRules { .. } => {}
            Order::SetUsers { users } => {
                found.users_revision = found.users_revision.max(users.revision);
            }
            Order::StartEmpty => found.agent.memory.start_empty = true,
            Order::ClusterMeet { peers } => {
                self.with_bus(node, |bus| {
                    for peer in peers {
                        let known = bus.known.values().any(|p| p.address == *peer);
                        if !known && !bus.meeting.contains(peer) {
                            bus.meeting.push(peer.clone());
                        }
                    }
                });
            }
            Order::ClusterAddSlots { ranges, config_epoch } => {
                self.bus_add_slots(node, ranges, *config_epoch);
            }
            Order::ClusterReplicate { primary } => {
                if !self.bus_replicate(node, primary) {
                    let detail = format!("node {node} cannot become a replica of {primary}");
                    return Err(Refusal::new(Code::InstanceNotReady, detail).into());
                }
            }
            Order::ClusterForget { ids } => self.bus_forget(node, ids),
            Order::ClusterFailover { mode } => self.bus_fail_over(node, *mode),
            Order::MoveSlots { job } => self.told_to_move(node, job),
            Order::StopMovingSlots => self.told_to_stop_moving(node),
            // Marks are not modelled.
            Order::CloseSlots { .. } => {}
        }
        Ok(())
    }

    fn bus_fail_over(&mut self, node: &NodeId, mode: ClusterFailoverMode) {
        let linked = self
            .nodes
            .get(node)
            .and_then(|n| n.process.as_ref())
            .is_some_and(super::server::Process::link_up);
        // Coordinated needs the primary; the simulator lets it succeed when the copy is linked.
        if mode != ClusterFailoverMode::Coordinated || linked {
            self.take_slots(node);
        }
    }
}

#[async_trait]
impl Cluster for SimCluster {
    fn name(&self) -> &str {
        &self.name
    }

    async fn workers(&self) -> Result<Vec<Worker>, ClusterError> {
        let world = self.sim.world();
        world.cluster_up(&self.name)?;
        let workers = world.workers.iter().filter(|(_, w)| w.cluster == self.name);
        Ok(workers
            .map(|(name, w)| Worker {
                address: None,
                name: name.clone(),
                zone: w.zone.clone(),
                state: if w.down_until > world.t {
                    WorkerState::Unreachable
                } else if w.cordoned {
                    WorkerState::Cordoned
                } else {
                    WorkerState::Ready
                },
                allocatable: w.allocatable,
                requested: ByteSize(
                    world
                        .nodes
                        .values()
                        .filter(|n| n.worker == *name)
                        .map(|n| n.config.memory.bytes())
                        .sum(),
                ),
            })
            .collect())
    }

    fn spreads_strictly(&self) -> Option<bool> {
        None
    }

    fn resizes_in_place(&self) -> bool {
        false
    }

    async fn observe(&self, instance: &InstanceId) -> Result<BackendObserved, ClusterError> {
        let world = self.sim.world();
        world.cluster_up(&self.name)?;
        let mut seen = BackendObserved::default();
        for (node, (of, address)) in &world.reserved {
            if of == instance && !world.nodes.contains_key(node) {
                let first = world.workers.iter().find(|(_, w)| w.cluster == self.name);
                let Some((worker, _)) = first else { continue };
                let bare = BackendNode {
                    exposed: world.exposure_of(node),
                    outdated: false,
                    worker: world.placed.get(node).unwrap_or(worker).clone(),
                    address: Some(address.clone()),
                    realised: false,
                    volume: false,
                    generation: 0,
                };
                seen.nodes.insert(node.clone(), bare);
            }
        }
        for (id, node) in &world.nodes {
            if node.config.instance == *instance && world.in_cluster(node, &self.name) {
                let there = BackendNode {
                    exposed: world.exposure_of(id),
                    outdated: node.settings != world.settings,
                    worker: node.worker.clone(),
                    address: Some(node.config.address.clone()),
                    realised: node.removing_at.is_none() && node.whole,
                    volume: !node.disk.gone,
                    generation: node.config.generation,
                };
                seen.nodes.insert(id.clone(), there);
            }
        }
        for ((of, kind), endpoint) in &world.endpoints {
            if of == instance && endpoint.cluster == self.name {
                seen.endpoints.insert(*kind, world.endpoint_status(of, *kind, endpoint));
            }
        }
        Ok(seen)
    }

    async fn instances(&self) -> Result<BTreeSet<InstanceId>, ClusterError> {
        let world = self.sim.world();
        world.cluster_up(&self.name)?;
        let nodes = world
            .nodes
            .values()
            .filter(|n| world.in_cluster(n, &self.name))
            .map(|n| n.config.instance.clone());
        let endpoints = world
            .endpoints
            .iter()
            .filter(|(_, e)| e.cluster == self.name)
            .map(|((instance, _), _)| instance.clone());
        let reserved = world.reserved.values().map(|(instance, _)| instance.clone());
        let shards = world.shards.keys().map(|(instance, _)| instance.clone());
        Ok(nodes.chain(endpoints).chain(reserved).chain(shards).collect())
    }

    async fn reserve_address(
        &self,
        fence: Fence,
        instance: &InstanceId,
        node: &NodeId,
    ) -> Result<Address, ClusterError> {
        let mut world = self.sim.world();
        world.check_fence(&self.name, instance, fence)?;
        let address = match world.reserved.get(node) {
            Some((_, address)) => address.clone(),
            None => {
                let address = world.next_address();
                world.reserved.insert(node.clone(), (instance.clone(), address.clone()));
                address
            }
        };
        world.reply(&self.name, address)
    }

    async fn expose_node(
        &self,
        fence: Fence,
        wish: &NodeExposure,
    ) -> Result<Option<OuterAddress>, ClusterError> {
        let mut world = self.sim.world();
        world.check_fence(&self.name, &wish.instance, fence)?;
        let outer = match world.exposed.get(&wish.node) {
            Some(outer) => outer.clone(),
            None => {
                let port = world.next_address().port;
                let outer = OuterAddress { host: Some("outside".to_owned()), port, bus_port: None };
                world.exposed.insert(wish.node.clone(), outer.clone());
                outer
            }
        };
        world.reply(&self.name, Some(outer))
    }

    async fn ensure_node(
        &self,
        fence: Fence,
        config: &NodeConfig,
        secrets: &NodeSecrets,
    ) -> Result<(), ClusterError> {
        let mut world = self.sim.world();
        world.check_fence(&self.name, &config.instance, fence)?;
        let settings = world.settings;
        match world.nodes.get_mut(&config.node) {
            Some(node) if node.removing_at.is_some() => {
                let reason = format!("node {} is being removed", config.node);
                let cluster = self.name.clone();
                return Err(ClusterError::Unreachable { cluster, reason });
            }
            Some(node) => {
                node.whole = true;
                if config.generation >= node.config.generation {
                    node.config = config.clone();
                    node.settings = settings;
                    node.agent.dirty = true;
                }
            }
            None => {
                let Some(worker) = world.worker_for(&self.name, config) else {
                    let detail = format!("no worker has room for node {}", config.node);
                    return Err(Refusal::new(Code::CapacityExceeded, detail).into());
                };
                world.create_node(worker, config.clone());
                if let Some(node) = world.nodes.get_mut(&config.node) {
                    node.users_revision = secrets.users_revision;
                }
            }
        }
        world.reply(&self.name, ())
    }

    async fn remove_node(
        &self,
        fence: Fence,
        instance: &InstanceId,
        node: &NodeId,
    ) -> Result<(), ClusterError> {
        let mut world = self.sim.world();
        world.check_fence(&self.name, instance, fence)?;
        let at = world.t + REMOVAL_MS;
        match world.nodes.get_mut(node) {
            Some(found) => {
                found.removing_at.get_or_insert(at);
                found.agent.up = false;
                found.agent.back_at = i64::MAX;
                world.kill_process(node, false);
            }
            None => {
                world.reserved.remove(node);
                world.exposed.remove(node);
            }
        }
        world.reply(&self.name, ())
    }

    async fn ensure_endpoint(&self, fence: Fence, spec: &EndpointSpec) -> Result<(), ClusterError> {
        let mut world = self.sim.world();
        world.check_fence(&self.name, &spec.instance, fence)?;
        let key = (spec.instance.clone(), spec.kind);
        let address = match world.endpoints.get(&key) {
            Some(there) => there.address.clone(),
            None => world.next_address(),
        };
        let (cluster, members) = (self.name.clone(), spec.members.clone());
        world.endpoints.insert(key, SimEndpoint { cluster, address, members, whole: true });
        world.reply(&self.name, ())
    }

    async fn remove_endpoint(
        &self,
        fence: Fence,
        instance: &InstanceId,
        kind: EndpointKind,
    ) -> Result<(), ClusterError> {
        let mut world = self.sim.world();
        world.check_fence(&self.name, instance, fence)?;
        world.endpoints.remove(&(instance.clone(), kind));
        world.reply(&self.name, ())
    }

    async fn remove_instance(
        &self,
        fence: Fence,
        instance: &InstanceId,
    ) -> Result<(), ClusterError> {
        let mut world = self.sim.world();
        world.check_fence(&self.name, instance, fence)?;
        world.shards.retain(|(of, _), _| of != instance);
        world.reply(&self.name, ())
    }
}

#[async_trait]
impl Agents for Sim {
    async fn status(
        &self,
        instance: &InstanceId,
        node: &NodeId,
    ) -> Result<AgentStatus, AgentError> {
        let mut world = self.world();
        world.agent_answers(instance, node)?;
        let silent =
            || AgentError::Silent { node: node.clone(), reason: "no such node".to_owned() };
        world.status(node).ok_or_else(silent)
    }

    /// Virtual time passes only in [`Sim::step_until`], so this answers at once, news or not.
    async fn next_status(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        _agent_run: &str,
        _version: u64,
    ) -> Result<AgentStatus, AgentError> {
        Agents::status(self, instance, node).await
    }

    async fn order(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        fence: Fence,
        order: &Order,
    ) -> Result<(), AgentError> {
        let mut world = self.world();
        world.agent_answers(instance, node)?;
        if let Some(found) = world.nodes.get_mut(node) {
            if let Some(seen) = found.agent.memory.fence.filter(|seen| *seen > fence) {
                return Err(AgentError::Stale { node: node.clone(), seen });
            }
            found.agent.memory.fence = Some(fence);
        }
        world.note(|| format!("{node} order {}", order.name()));
        world.obey(node, order)?;
        if world.t < world.replies_lost_until && world.rng.chance(50) {
            let reason = "the answer was lost".to_owned();
            return Err(AgentError::Silent { node: node.clone(), reason });
        }
        Ok(())
    }
}

impl World {
    fn agent_answers(&self, instance: &InstanceId, node: &NodeId) -> Result<(), AgentError> {
        let found = self.nodes.get(node).filter(|n| n.config.instance == *instance);
        let answers = found.is_some_and(|n| n.agent.runs(self.t) && self.worker_up(&n.worker));
        if answers {
            Ok(())
        } else {
            let reason = "simulated silence".to_owned();
            Err(AgentError::Silent { node: node.clone(), reason })
        }
    }

    /// Whether the node's server is a primary that takes writes.
    pub(super) fn leads(&self, node: &NodeId) -> bool {
        self.nodes
            .get(node)
            .and_then(|n| n.process.as_ref())
            .is_some_and(|p| p.serving() && p.role == Role::Primary)
    }
}
