//! Properties: whatever is seen, plans are sound, the same twice, and move nothing on silence
//! alone; random faults heal.

use std::collections::BTreeMap;

use larder_model::agent::{ClusterFailoverMode, Role, ServerState, VolumeState};
use larder_model::plan::{Plan, Step};
use larder_model::{
    Architecture, InstanceState, Millis, NodeId, NodePhase, Observation, Observed, OperationKind,
    Timestamp, WorkerState,
};
use larder_planner::{lint, plan};
use proptest::prelude::*;

use crate::world::World;

/// What is done to one node's observation.
#[derive(Clone, Debug)]
struct Twist {
    backend: u8,
    agent: u8,
    server: u8,
    volume: u8,
    link_up: bool,
    role: u8,
    generation: u8,
    slots: u8,
    leaving: u8,
    knows: u8,
}

fn twist() -> impl Strategy<Value = Twist> {
    (
        (0..8_u8, 0..8_u8, 0..10_u8, 0..6_u8, any::<bool>()),
        (0..6_u8, 0..4_u8, 0..6_u8, 0..8_u8, 0..6_u8),
    )
        .prop_map(|((backend, agent, server, volume, link_up), rest)| Twist {
            backend,
            agent,
            server,
            volume,
            link_up,
            role: rest.0,
            generation: rest.1,
            slots: rest.2,
            leaving: rest.3,
            knows: rest.4,
        })
}

fn shape() -> impl Strategy<Value = World> {
    let architecture = prop_oneof![
        Just((Architecture::Standalone, 1, 1)),
        Just((Architecture::ReadWrite, 1, 2)),
        Just((Architecture::ReadWrite, 1, 3)),
        Just((Architecture::Cluster, 3, 1)),
        Just((Architecture::Cluster, 3, 2)),
    ];
    (architecture, 0..14_usize).prop_map(|((architecture, shards, replicas), rounds)| {
        let mut world = World::new(architecture, shards, replicas, &["w1/a", "w2/b", "w3/b"]);
        for _ in 0..rounds {
            world.pass();
        }
        world
    })
}

fn operation() -> impl Strategy<Value = Option<(u8, u8, bool, bool)>> {
    prop::option::of((0..4_u8, 0..7_u8, any::<bool>(), any::<bool>()))
}

fn hold(world: &mut World, chosen: Option<(u8, u8, bool, bool)>) {
    let Some((kind, node, flag, begun)) = chosen else { return };
    let node = NodeId::new(format!("n{node}")).expect("a valid id");
    match kind {
        0 => world.begin(OperationKind::Restart {
            node: flag.then_some(node.clone()),
            run_ids: if begun {
                BTreeMap::from([(node.clone(), format!("run-{node}-1"))])
            } else {
                BTreeMap::new()
            },
        }),
        1 => world.begin(OperationKind::Failover {
            shard: 0,
            to: flag.then_some(node.clone()),
            accept_data_loss: node.as_str() > "n3",
            from: begun.then(|| NodeId::new("n1").expect("a valid id")),
            without_primary: begun && flag,
        }),
        2 => world.desired.operation = None,
        _ => world.delete(),
    }
}

fn states(n: u8) -> Option<ServerState> {
    use ServerState::{Absent, Busy, Dead, Hung, Loading, Starting};
    [Absent, Starting, Loading, Busy, Hung, Dead].get(usize::from(n)).copied()
}

/// Bends what is seen of the world, and marks records as leaving.
fn bend(world: &mut World, twists: &[Twist], workers: &[u8], endpoints: u8) -> Observed {
    let mut observed = world.observe();
    for ((id, seen), twist) in observed.nodes.iter_mut().zip(twists) {
        match twist.backend {
            0 => seen.backend = Observation::Absent,
            1 => seen.backend = Observation::UnknownYet,
            2 => seen.backend = Observation::Unknown { since: Timestamp(1) },
            _ => {}
        }
        match twist.agent {
            0 => seen.agent = Observation::Absent,
            1 => seen.agent = Observation::UnknownYet,
            2 => seen.agent = Observation::Unknown { since: Timestamp(1) },
            _ => {}
        }
        if twist.leaving == 0
            && let Some(record) = world.desired.nodes.iter_mut().find(|r| r.id == *id)
        {
            record.phase = NodePhase::Leaving;
        }
        let Observation::Known { value: status, .. } = &mut seen.agent else { continue };
        status.server.state = states(twist.server).unwrap_or(status.server.state);
        match twist.volume {
            0 => status.volume = VolumeState::Lost,
            1 => status.volume = VolumeState::Fresh,
            _ => {}
        }
        status.generation = status.generation.saturating_sub(u64::from(twist.generation / 2));
        if let Some(replication) = &mut status.replication {
            replication.link_up = twist.link_up;
            match twist.role {
                0 => replication.role = Role::Primary,
                1 => replication.role = Role::Replica,
                _ => {}
            }
        }
        if let Some(lease) = &mut status.lease
            && twist.role == 2
        {
            lease.holder = Some(id.clone());
        }
        if let Some(cluster) = &mut status.cluster {
            let mine = cluster.my_id.clone();
            for (i, peer) in cluster.nodes.iter_mut().enumerate() {
                let hit = i % 3 == usize::from(twist.knows % 3);
                match (twist.slots, hit) {
                    (0, true) => peer.slots = larder_model::SlotSet::default(),
                    (1, true) => peer.linked = false,
                    (2, true) => {
                        peer.id = format!("ghost-{i}");
                        peer.failed = true;
                    }
                    (3, true) if peer.id == mine => peer.role = Role::Primary,
                    _ => {}
                }
            }
        }
    }
    for (worker, state) in observed.workers.iter_mut().zip(workers) {
        worker.state = match state {
            0 => WorkerState::Lost,
            1 => WorkerState::Unreachable,
            2 => WorkerState::Cordoned,
            _ => WorkerState::Ready,
        };
    }
    match endpoints {
        0 => observed.endpoints.clear(),
        1 => observed.endpoints.values_mut().for_each(|seen| *seen = Observation::Absent),
        2 => observed.workers.clear(),
        _ => {}
    }
    observed
}

fn may_lose(step: &Step) -> bool {
    match step {
        Step::EnsureNode { .. }
        | Step::RetireNode { .. }
        | Step::RemoveNode { .. }
        | Step::RemoveEndpoint { .. }
        | Step::ForgetRecord { .. }
        | Step::PurgeInstance
        | Step::StartEmpty { .. }
        | Step::HandOver { .. }
        | Step::TakeLease { .. }
        | Step::RestartServer { .. }
        | Step::ForgetNodes { .. } => true,
        Step::FailOverShard { mode, .. } => *mode != ClusterFailoverMode::Force,
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_plan_is_sound_whatever_is_seen(
        mut world in shape(),
        twists in prop::collection::vec(twist(), 9),
        workers in prop::collection::vec(0..8_u8, 3),
        endpoints in 0..8_u8,
        chosen in operation(),
    ) {
        hold(&mut world, chosen);
        let observed = bend(&mut world, &twists, &workers, endpoints);
        for later in [0, 600, 8000] {
            let now = world.now + Millis::secs(later);
            let planned = plan(&world.desired, &observed, now, &mut world.ids.clone());
            let violations = lint(&world.desired, &observed, &planned);
            prop_assert!(violations.is_empty(), "{violations:#?}\n{planned}");
            let again = plan(&world.desired, &observed, now, &mut world.ids.clone());
            prop_assert_eq!(planned, again);
        }
    }

    #[test]
    fn nothing_seen_moves_nothing(mut world in shape(), chosen in operation(), hours in 0..100_u64) {
        hold(&mut world, chosen);
        // A person's word to lose data is the one exception; its own tests cover it.
        if let Some(OperationKind::Failover { accept_data_loss, .. }) =
            world.desired.operation.as_mut().map(|o| &mut o.kind)
        {
            *accept_data_loss = false;
        }
        let mut observed = world.observe();
        for seen in observed.nodes.values_mut() {
            seen.backend = Observation::Unknown { since: Timestamp(0) };
            seen.agent = Observation::Unknown { since: Timestamp(0) };
        }
        for seen in observed.endpoints.values_mut() {
            *seen = Observation::Unknown { since: Timestamp(0) };
        }
        let now = world.now + Millis::secs(hours * 3600);
        let planned: Plan = plan(&world.desired, &observed, now, &mut world.ids.clone());
        prop_assert!(!planned.steps.iter().any(|p| may_lose(&p.step)) || world.desired.nodes.is_empty(), "{planned}");
    }
}

/// A fault that heals by itself, or that the planner can heal.
#[derive(Clone, Debug)]
enum Fault {
    Kill(usize),
    Wipe(usize),
    Silence(usize),
    Vanish(usize),
    Backend,
    Generation,
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        (0..9_usize).prop_map(Fault::Kill),
        (0..9_usize).prop_map(Fault::Wipe),
        (0..9_usize).prop_map(Fault::Silence),
        (0..9_usize).prop_map(Fault::Vanish),
        Just(Fault::Backend),
        Just(Fault::Generation),
    ]
}

fn strike(world: &mut World, fault: &Fault) {
    let ids: Vec<NodeId> = world.nodes.keys().cloned().collect();
    let pick = |n: &usize| ids.get(n % ids.len().max(1)).cloned();
    // Data is harmed only where another copy is well: the rest is the tests' of lost data.
    let spare = |world: &World, id: &NodeId| {
        let state = world.plan().report.state;
        state == InstanceState::Running
            && world.desired.spec.replicas > 1
            && world.desired.nodes.iter().any(|r| r.id == *id)
    };
    match fault {
        Fault::Kill(n) => {
            if let Some(id) = pick(n) {
                world.node(id.as_str()).state = ServerState::Dead;
            }
        }
        Fault::Wipe(n) => {
            if let Some(id) = pick(n).filter(|id| spare(world, id)) {
                let sim = world.node(id.as_str());
                sim.state = ServerState::Dead;
                sim.volume = VolumeState::Lost;
            }
        }
        Fault::Silence(n) => {
            let now = world.now;
            if let Some(id) = pick(n) {
                world.node(id.as_str()).silent = Some(now);
            }
        }
        Fault::Vanish(n) => {
            if let Some(id) = pick(n).filter(|id| spare(world, id)) {
                world.vanish(&id);
            }
        }
        Fault::Backend => world.backend_unknown = true,
        Fault::Generation => world.desired.generation += 1,
    }
}

/// Agents restart servers, networks heal.
fn calm(world: &mut World) {
    world.backend_unknown = false;
    for sim in world.nodes.values_mut() {
        sim.silent = None;
        if sim.state == ServerState::Dead && sim.volume != VolumeState::Lost {
            sim.state = ServerState::Absent;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_faults_heal(
        shape in prop_oneof![
            Just((Architecture::Standalone, 1, 1)),
            Just((Architecture::ReadWrite, 1, 3)),
            Just((Architecture::Cluster, 3, 2)),
        ],
        faults in prop::collection::vec((fault(), 0..4_usize, any::<bool>()), 1..8),
    ) {
        let (architecture, shards, replicas) = shape;
        let mut world = World::running(architecture, shards, replicas, &["w1", "w2", "w3"]);
        for (fault, rounds, calmed) in &faults {
            strike(&mut world, fault);
            for _ in 0..*rounds {
                world.pass();
            }
            if *calmed {
                calm(&mut world);
                world.settle();
            }
        }
        calm(&mut world);
        world.settle();
        let planned = world.plan();
        prop_assert!(planned.is_settled(), "{planned}");
        prop_assert_eq!(planned.report.state, InstanceState::Running);
        prop_assert_eq!(world.desired.nodes.len(), (shards * replicas) as usize);
    }
}
