//! A simulated fleet with its control plane.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use larder_cluster::Cluster as _;
use larder_cluster::sim::{Sim, SimConfig};
use larder_model::{
    Architecture, ByteSize, DeletePolicy, Desired, ElectionPolicy, EngineName, IdSource as _,
    InstanceId, InstanceName, InstanceSpec, InstanceState, Operation, OperationKind,
    OperationState, PlannerPolicy, ProjectName, SeededIds, Timestamp,
};
use larder_reconcile::{
    Book as _, Clock, DirectStatuses, MemoryBook, OnlyCluster, Reconciler, TickOutcome,
};

use crate::placing::{Obstacles, Placing};

/// Virtual time between two rounds of the control plane.
const ROUND: i64 = 250;

/// Why a run went wrong, with all that is needed to look into it.
#[derive(Debug)]
pub(crate) struct Broken(pub(crate) String);

pub(crate) type Run<T = ()> = Result<T, Broken>;

struct SimClock(Sim);

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        Timestamp(1_800_000_000_000 + self.0.now())
    }
}

pub(crate) struct Fleet {
    seed: u64,
    pub(crate) sim: Sim,
    pub(crate) book: Arc<MemoryBook>,
    pub(crate) reconciler: Reconciler,
    pub(crate) obstacles: Arc<Obstacles>,
    controller_epoch: u64,
    ids: SeededIds,
    pub(crate) instances: Vec<InstanceId>,
}

impl Fleet {
    pub(crate) fn new(seed: u64) -> Self {
        let sim = Sim::new(seed, SimConfig::default());
        if std::env::var("LARDER_SIM_SEED").is_ok() {
            sim.keep_all_events();
        }
        let book = Arc::new(MemoryBook::default());
        let obstacles = Arc::<Obstacles>::default();
        let reconciler = control_plane(&sim, &book, &obstacles, seed, 1);
        let ids = SeededIds(seed ^ 0xf1ee7);
        Self {
            seed,
            sim,
            book,
            reconciler,
            obstacles,
            controller_epoch: 1,
            ids,
            instances: Vec::new(),
        }
    }

    pub(crate) fn create(
        &mut self,
        architecture: Architecture,
        shards: u32,
        replicas: u32,
        policy: &PlannerPolicy,
    ) -> InstanceId {
        let id = self.ids.instance_id();
        let name = InstanceName::new(format!("x{}", self.instances.len())).unwrap();
        self.book.put(Desired {
            spec: InstanceSpec {
                parameters: std::collections::BTreeMap::new(),
                parameters_revision: 0,
                parameters_refused: None,
                revision: 0,
                expose: None,
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
                chained: false,
                container_cluster: "local".to_owned(),
                storage_class: larder_model::STANDARD_STORAGE_CLASS.into(),
            },
            generation: 1,
            created_at: self.now(),
            deletion: None,
            nodes: Vec::new(),
            initialized: false,
            operation: None,
            users_revision: 0,
            former_password_until: None,
            policy: *policy,
        });
        self.begin(&id, OperationKind::Create);
        self.instances.push(id.clone());
        id
    }

    fn now(&self) -> Timestamp {
        SimClock(self.sim.clone()).now()
    }

    /// Asks for an operation, as the API does: refused while another one is under way.
    pub(crate) fn begin(&mut self, instance: &InstanceId, kind: OperationKind) {
        let operation = Operation {
            id: self.ids.operation_id(),
            instance: instance.clone(),
            instance_name: instance.to_string(),
            kind,
            state: OperationState::Queued,
            steps: Vec::new(),
            requested_by: "test".to_owned(),
            requested_from: "test".to_owned(),
            created_at: self.now(),
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

    /// Asks for another wish, as the API does: refused while another operation is under way.
    pub(crate) fn change(
        &mut self,
        instance: &InstanceId,
        kind: OperationKind,
        spec: InstanceSpec,
    ) {
        let free = |desired: &Desired| desired.operation.is_none() && desired.initialized;
        let is_free = self.book.desired_now(instance).is_some_and(|desired| free(&desired));
        if is_free {
            let password = matches!(kind, OperationKind::SetPassword { .. });
            self.book.change(instance, |desired| {
                desired.spec = spec;
                desired.users_revision += u64::from(password);
            });
            self.begin(instance, kind);
        }
    }

    /// Cancels what holds the instance, as the API does.
    pub(crate) fn cancel(&mut self, instance: &InstanceId) {
        self.book.change(instance, |desired| {
            let cancellable = |operation: &mut Operation| match operation.kind {
                OperationKind::Create
                | OperationKind::Delete
                | OperationKind::SetPassword { .. } => false,
                OperationKind::Upgrade { ref former } => former.is_some(),
                _ => true,
            };
            if let Some(operation) = desired.operation.take_if(cancellable) {
                operation.kind.undo(&mut desired.spec, None);
            }
        });
    }

    /// Kills the control plane and starts it again: only the book survives.
    pub(crate) fn restart_control_plane(&mut self) {
        self.controller_epoch += 1;
        let seed = self.ids.next_u64();
        self.reconciler =
            control_plane(&self.sim, &self.book, &self.obstacles, seed, self.controller_epoch);
    }

    async fn round(&self) -> Run {
        for instance in &self.instances {
            // A conflict in the book is looked at again in the next round.
            if let Ok(TickOutcome::Superseded) = self.reconciler.tick(instance).await {
                return Err(self.broken("a control plane that nobody followed was superseded"));
            }
        }
        Ok(())
    }

    pub(crate) async fn run_for(&self, length: i64) -> Run {
        let end = self.sim.now() + length;
        while self.sim.now() < end {
            self.round().await?;
            self.sim.step_until(self.sim.now() + ROUND);
            self.sim.check().map_err(|violation| self.broken(&violation.to_string()))?;
        }
        Ok(())
    }

    /// Running, with as many nodes as were asked for and none on its way out.
    pub(crate) async fn is_whole(&self, instance: &InstanceId) -> bool {
        let Ok(Some(desired)) = self.book.desired(instance).await else { return false };
        let seen = self.book.observation(instance);
        seen.is_some_and(|seen| seen.state == InstanceState::Running)
            && desired.nodes.len() == desired.spec.node_count() as usize
    }

    /// Runs until every living instance is whole, and fails when that takes too long.
    pub(crate) async fn run_until_whole(&self, limit: i64) -> Run {
        let end = self.sim.now() + limit;
        loop {
            self.run_for(ROUND).await?;
            let mut whole = true;
            for instance in self.living().await {
                whole &= self.is_whole(&instance).await;
            }
            if whole {
                return Ok(());
            }
            if self.sim.now() >= end {
                return Err(self.broken("not whole in time"));
            }
        }
    }

    pub(crate) async fn living(&self) -> Vec<InstanceId> {
        self.book.instances().await.unwrap()
    }

    /// What was asked for is there, where it was placed, and nothing else.
    pub(crate) async fn holds_what_is_recorded(&self) -> Run {
        let cluster = self.sim.cluster("local");
        let living = self.living().await;
        let held: Vec<_> = cluster.instances().await.unwrap().into_iter().collect();
        if held != living {
            return Err(self.broken(&format!("{held:?} is held, {living:?} is recorded")));
        }
        for instance in &living {
            let desired = self.book.desired(instance).await.unwrap().unwrap();
            let seen = cluster.observe(instance).await.unwrap();
            let recorded: BTreeSet<_> =
                desired.nodes.iter().map(|r| (r.id.clone(), r.worker.clone())).collect();
            let held: BTreeSet<_> =
                seen.nodes.iter().map(|(id, node)| (id.clone(), node.worker.clone())).collect();
            if held != recorded || recorded.len() != desired.spec.node_count() as usize {
                let why = format!("{instance}: {held:?} is held, {recorded:?} is recorded");
                return Err(self.broken(&why));
            }
            let wanted: BTreeSet<_> =
                desired.spec.architecture.endpoints().iter().copied().collect();
            if seen.endpoints.keys().copied().collect::<BTreeSet<_>>() != wanted {
                return Err(self.broken(&format!("{instance}: endpoints {:?}", seen.endpoints)));
            }
        }
        Ok(())
    }

    /// No acknowledged write of the instance is missing at its primary.
    pub(crate) fn lost_nothing(&self, instance: &InstanceId) -> Run {
        match self.sim.lost_writes(instance.as_str()) {
            0 => Ok(()),
            lost => Err(self.broken(&format!("{instance} lost {lost} acknowledged writes"))),
        }
    }

    /// Seed, plans and trace.
    pub(crate) fn broken(&self, why: &str) -> Broken {
        let mut text = self.sim.events().join("\n");
        for instance in &self.instances {
            if let Some(seen) = self.book.observation(instance) {
                let _ = write!(text, "\n{instance} {}\n{}", seen.state, seen.plan);
            }
        }
        let _ = write!(text, "\nseed {} at {} ms: {why}", self.seed, self.sim.now());
        Broken(text)
    }
}

/// A hold of failovers would be seen as an outage in random runs; it has its own story.
pub(crate) fn no_limit_of_failovers() -> PlannerPolicy {
    let election = ElectionPolicy { max_failovers: 1000, ..ElectionPolicy::default() };
    PlannerPolicy { election, ..PlannerPolicy::default() }
}

fn control_plane(
    sim: &Sim,
    book: &Arc<MemoryBook>,
    obstacles: &Arc<Obstacles>,
    seed: u64,
    epoch: u64,
) -> Reconciler {
    let clock: Arc<dyn Clock> = Arc::new(SimClock(sim.clone()));
    let agents = Arc::new(sim.clone());
    Reconciler::new(
        book.clone(),
        Arc::new(OnlyCluster(Arc::new(Placing::new(
            sim,
            "local",
            book.clone(),
            obstacles.clone(),
        )))),
        agents.clone(),
        Arc::new(DirectStatuses::new(agents, clock.clone())),
        clock,
        Box::new(SeededIds(seed)),
        epoch,
    )
}
