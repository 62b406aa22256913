//! The real planner, reconciler and election together, on a simulated fleet under faults.
//!
//! `LARDER_SIM_SEEDS` sets how many seeds are tried (100 unless set), `LARDER_SIM_SEED` runs a
//! single one and prints its trace.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic and print")]

use std::collections::BTreeMap;
use std::sync::Arc;

use larder_cluster::Cluster as _;
use larder_cluster::sim::{Profile, Rng, Sim, SimConfig};
use larder_model::{
    Architecture, ByteSize, DeletePolicy, Desired, ElectionPolicy, EngineName, IdSource as _,
    InstanceId, InstanceName, InstanceSpec, InstanceState, Millis, Operation, OperationKind,
    OperationState, PlannerPolicy, ProjectName, SeededIds, Timestamp,
};
use larder_reconcile::{Clock, DirectStatuses, MemoryBook, Reconciler, TickOutcome};

/// Virtual time between two rounds of the control plane.
const ROUND: i64 = 250;
/// Everything has to be whole again this long after the last fault.
const HEALED_WITHIN: i64 = 60_000;

struct SimClock(Sim);

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        Timestamp(1_800_000_000_000 + self.0.now())
    }
}

/// A fleet with its control plane.
struct World {
    seed: u64,
    sim: Sim,
    book: Arc<MemoryBook>,
    reconciler: Reconciler,
    controller_epoch: u64,
    ids: SeededIds,
    instances: Vec<InstanceId>,
}

impl World {
    fn new(seed: u64) -> Self {
        let sim = Sim::new(seed, SimConfig::default());
        let book = Arc::new(MemoryBook::default());
        let reconciler = control_plane(&sim, &book, seed, 1);
        let ids = SeededIds(seed ^ 0xf1ee7);
        Self { seed, sim, book, reconciler, controller_epoch: 1, ids, instances: Vec::new() }
    }

    fn create(&mut self, architecture: Architecture, shards: u32, replicas: u32) -> InstanceId {
        let id = self.ids.instance_id();
        let now = SimClock(self.sim.clone()).now();
        let name = InstanceName::new(format!("x{}", self.instances.len())).unwrap();
        // A hold of failovers would be seen as an outage here; it has its own tests.
        let election = ElectionPolicy { max_failovers: 1000, ..ElectionPolicy::default() };
        self.book.put(Desired {
            spec: InstanceSpec {
                id: id.clone(),
                name,
                project: ProjectName::new("default").unwrap(),
                description: String::new(),
                tags: BTreeMap::new(),
                architecture,
                engine: EngineName::new("redis-7.0").unwrap(),
                memory: ByteSize::mib(128),
                shards,
                replicas,
                container_cluster: "local".to_owned(),
            },
            generation: 1,
            created_at: now,
            deletion: None,
            nodes: Vec::new(),
            initialized: false,
            operation: None,
            policy: PlannerPolicy {
                election,
                replace_lost_after: Millis::secs(3600),
                ..PlannerPolicy::default()
            },
        });
        self.begin(&id, OperationKind::Create);
        self.instances.push(id.clone());
        id
    }

    /// Asks for an operation, as the API does: refused while another one is under way.
    fn begin(&mut self, instance: &InstanceId, kind: OperationKind) {
        let operation = Operation {
            id: self.ids.operation_id(),
            instance: instance.clone(),
            instance_name: instance.to_string(),
            kind,
            state: OperationState::Queued,
            steps: Vec::new(),
            requested_by: "test".to_owned(),
            requested_from: "test".to_owned(),
            created_at: SimClock(self.sim.clone()).now(),
            finished_at: None,
            error: None,
        };
        self.book.change(instance, |desired| {
            if operation.kind == OperationKind::Delete {
                desired.deletion = Some(DeletePolicy::Permanent);
                desired.operation = Some(operation);
            } else if desired.operation.is_none() && desired.deletion.is_none() {
                desired.operation = Some(operation);
            }
        });
    }

    /// Kills the control plane and starts it again: only the book survives.
    fn restart_control_plane(&mut self) {
        self.controller_epoch += 1;
        self.reconciler =
            control_plane(&self.sim, &self.book, self.ids.next_u64(), self.controller_epoch);
    }

    async fn round(&self) {
        for instance in &self.instances {
            let outcome = self.reconciler.tick(instance).await;
            // A conflict in the book is looked at again in the next round.
            if let Ok(outcome) = outcome {
                assert_ne!(outcome, TickOutcome::Superseded, "seed {}", self.seed);
            }
        }
    }

    async fn run_for(&self, length: i64) {
        let end = self.sim.now() + length;
        while self.sim.now() < end {
            self.round().await;
            self.sim.step_until(self.sim.now() + ROUND);
            if let Err(violation) = self.sim.check() {
                self.fail(&violation.to_string());
            }
        }
    }

    fn state(&self, instance: &InstanceId) -> Option<InstanceState> {
        self.book.observation(instance).map(|observation| observation.state)
    }

    /// Runs until every living instance is running, and fails when that takes too long.
    async fn run_until_whole(&self, limit: i64) {
        let end = self.sim.now() + limit;
        loop {
            self.run_for(ROUND).await;
            let living = self.living().await;
            let waiting: Vec<_> =
                living.iter().filter(|i| self.state(i) != Some(InstanceState::Running)).collect();
            if waiting.is_empty() {
                return;
            }
            if self.sim.now() >= end {
                for instance in waiting {
                    println!("{}", self.book.observation(instance).unwrap().plan);
                }
                self.fail("not whole in time");
            }
        }
    }

    async fn living(&self) -> Vec<InstanceId> {
        larder_reconcile::Book::instances(&*self.book).await.unwrap()
    }

    fn fail(&self, why: &str) -> ! {
        println!("{}", self.sim.events().join("\n"));
        panic!("seed {}: {why}", self.seed);
    }
}

fn control_plane(sim: &Sim, book: &Arc<MemoryBook>, seed: u64, epoch: u64) -> Reconciler {
    let clock: Arc<dyn Clock> = Arc::new(SimClock(sim.clone()));
    let agents = Arc::new(sim.clone());
    Reconciler::new(
        book.clone(),
        Arc::new(sim.cluster("local")),
        agents.clone(),
        Arc::new(DirectStatuses::new(agents, clock.clone())),
        clock,
        Box::new(SeededIds(seed)),
        epoch,
    )
}

async fn random_run(seed: u64) {
    let mut rng = Rng::new(seed);
    let mut world = World::new(seed);
    world.create(Architecture::Standalone, 1, 1);
    let read_write = world.create(Architecture::ReadWrite, 1, 2 + rng.below(2) as u32);
    let cluster = world.create(Architecture::Cluster, 3, 2);
    world.run_until_whole(60_000).await;

    // Volumes are not deleted at random here: with the only copy gone nothing would heal, as it
    // should be. That story is told by name below and in the election's own runs.
    let profile = Profile { lost_volumes: 0, control_plane: true, faults: 6, within_ms: 30_000 };
    world.sim.random_faults(seed, &profile);
    let end = world.sim.now() + profile.within_ms + 8000;
    while world.sim.now() < end {
        match rng.below(12) {
            0 => world.restart_control_plane(),
            1 => world.sim.step_until(world.sim.now() + rng.below(5000)),
            2 => world.begin(
                &read_write,
                OperationKind::Failover { shard: 0, to: None, accept_data_loss: false, from: None },
            ),
            3 => world
                .begin(&cluster, OperationKind::Restart { node: None, run_ids: BTreeMap::new() }),
            4 if world.instances.len() < 5 => {
                world.create(Architecture::ReadWrite, 1, 2);
            }
            5 if world.instances.len() > 3 && rng.chance(50) => {
                let last = world.instances[3].clone();
                world.begin(&last, OperationKind::Delete);
            }
            _ => {}
        }
        world.run_for(1000).await;
    }
    let faults_end = world.sim.faults_end();
    if faults_end > world.sim.now() {
        world.run_for(faults_end - world.sim.now()).await;
    }
    world.run_until_whole(HEALED_WITHIN).await;

    // What was asked for is there, and nothing else.
    let living = world.living().await;
    let held = world.sim.cluster("local").instances().await.unwrap();
    assert_eq!(held.into_iter().collect::<Vec<_>>(), living, "seed {seed}");
    for instance in &living {
        let nodes = world.book.observation(instance).unwrap().nodes.len();
        let desired = larder_reconcile::Book::desired(&*world.book, instance).await.unwrap();
        assert_eq!(nodes as u32, desired.unwrap().spec.node_count(), "seed {seed}");
    }
    // And it can all be deleted.
    for instance in living {
        world.begin(&instance, OperationKind::Delete);
    }
    world.run_for(10_000).await;
    assert!(world.living().await.is_empty(), "seed {seed}");
    assert!(world.sim.cluster("local").instances().await.unwrap().is_empty(), "seed {seed}");
    if std::env::var("LARDER_SIM_SEED").is_ok() {
        println!("{}", world.sim.events().join("\n"));
    }
}

fn run(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future);
}

#[test]
fn planner_and_election_converge_under_random_faults() {
    let seeds = match std::env::var("LARDER_SIM_SEED") {
        Ok(seed) => {
            let seed: u64 = seed.parse().expect("LARDER_SIM_SEED is a number");
            seed..seed + 1
        }
        Err(_) => {
            let count = std::env::var("LARDER_SIM_SEEDS").ok().and_then(|n| n.parse().ok());
            0..count.unwrap_or(100)
        }
    };
    for seed in seeds {
        run(random_run(seed));
    }
}

#[test]
fn a_converged_fleet_is_left_alone() {
    run(async {
        let mut world = World::new(3);
        for (architecture, shards, replicas) in [
            (Architecture::Standalone, 1, 1),
            (Architecture::ReadWrite, 1, 3),
            (Architecture::Cluster, 3, 2),
        ] {
            world.create(architecture, shards, replicas);
        }
        world.run_until_whole(60_000).await;
        world.run_for(2000).await;
        for instance in &world.instances {
            let outcome = world.reconciler.tick(instance).await.unwrap();
            assert_eq!(outcome, TickOutcome::Settled);
            let plan = world.book.observation(instance).unwrap().plan;
            assert!(plan.is_settled(), "{plan}");
        }
    });
}
