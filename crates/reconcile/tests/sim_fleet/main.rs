//! The real planner, reconciler and election together, on a simulated fleet under faults.
//!
//! `LARDER_SIM_SEEDS` sets how many seeds are tried (500 unless set), `LARDER_SIM_FROM` the first
//! one, `LARDER_SIM_SEED` runs a single one and prints its trace.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic and print")]

mod changes;
mod fleet;
mod placing;
mod told;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use larder_cluster::sim::{Fault, Profile, Rng};
use larder_model::{
    Architecture, Code, ElectionPolicy, InstanceId, Millis, OperationKind, OperationState,
    PlannerPolicy, StepState,
};
use larder_reconcile::{Book as _, TickOutcome};

use fleet::{Broken, Fleet, Run, no_limit_of_failovers};

/// Everything has to be whole again this long after the last fault.
const HEALED_WITHIN: i64 = 60_000;

fn failover() -> OperationKind {
    OperationKind::Failover {
        shard: 0,
        to: None,
        accept_data_loss: false,
        from: None,
        without_primary: false,
    }
}

fn restart() -> OperationKind {
    OperationKind::Restart { node: None, run_ids: BTreeMap::new() }
}

/// What one run has besides its random faults.
struct Story {
    policy: PlannerPolicy,
    profile: Profile,
    poison: bool,
}

impl Story {
    fn draw(rng: &mut Rng) -> Self {
        let mut policy = no_limit_of_failovers();
        // In half of the runs what is gone for some seconds is given up and replaced elsewhere;
        // most of it returns in the middle of that, or after.
        let soon = Millis::secs(3 + rng.below(9) as u64);
        policy.replace_lost_after = if rng.chance(50) { soon } else { Millis::secs(3600) };
        let mut sometimes = |percent, least: i64, most: i64| {
            i64::from(rng.chance(percent)) * (least + rng.below(most))
        };
        let profile = Profile {
            faults: 6,
            within_ms: 30_000,
            lost_volumes: 1,
            control_plane: true,
            long_crash_ms: sometimes(40, 10_000, 25_000),
            slow_lease_ms: sometimes(20, 100, 1000),
            lost_replies: sometimes(20, 1, 1) > 0,
        };
        Self { policy, profile, poison: rng.chance(12) }
    }
}

async fn random_run(seed: u64) -> Run {
    let mut rng = Rng::new(seed);
    let story = Story::draw(&mut rng);
    let mut fleet = Fleet::new(seed);
    fleet.create(Architecture::Standalone, 1, 1, &story.policy);
    let replicas = 2 + rng.below(2) as u32;
    let read_write = fleet.create(Architecture::ReadWrite, 1, replicas, &story.policy);
    let cluster = fleet.create(Architecture::Cluster, 3, 2, &story.policy);
    fleet.run_until_whole(60_000).await?;
    // Nothing is drawn for it: the seeds' stories stay what they were.
    if seed.is_multiple_of(3) {
        fleet.sim.change_settings();
    }
    let kind = if rng.chance(50) { failover() } else { restart() };
    planned_change(&mut fleet, &read_write, kind).await?;

    fleet.sim.random_faults(seed, &story.profile);
    let end = fleet.sim.now() + story.profile.within_ms + 8000;
    while fleet.sim.now() < end {
        match rng.below(12) {
            0 => fleet.restart_control_plane(),
            1 => fleet.sim.step_until(fleet.sim.now() + rng.below(5000)),
            2 => fleet.begin(&read_write, failover()),
            3 => fleet.begin(&cluster, restart()),
            4 if fleet.instances.len() < 5 => {
                fleet.create(Architecture::ReadWrite, 1, 2, &story.policy);
            }
            5 if fleet.instances.len() > 3 && rng.chance(50) => {
                let last = fleet.instances[3].clone();
                fleet.begin(&last, OperationKind::Delete);
            }
            _ => {}
        }
        fleet.run_for(1000).await?;
    }
    let faults_end = fleet.sim.faults_end();
    if faults_end > fleet.sim.now() {
        fleet.run_for(faults_end - fleet.sim.now()).await?;
    }
    fleet.run_until_whole(HEALED_WITHIN).await?;
    fleet.holds_what_is_recorded().await?;
    if story.poison {
        poison(&mut fleet).await?;
        fleet.holds_what_is_recorded().await?;
    }
    // And it can all be deleted.
    for instance in fleet.living().await {
        fleet.begin(&instance, OperationKind::Delete);
    }
    fleet.run_for(5000).await?;
    if !fleet.living().await.is_empty() {
        return Err(fleet.broken("not everything could be deleted"));
    }
    fleet.holds_what_is_recorded().await?;
    if std::env::var("LARDER_SIM_SEED").is_ok() {
        println!("{}", fleet.sim.events().join("\n"));
    }
    Ok(())
}

/// With no fault about, a change by order succeeds and loses nothing that was acknowledged.
async fn planned_change(fleet: &mut Fleet, instance: &InstanceId, kind: OperationKind) -> Run {
    let before = fleet.book.finished().len();
    fleet.begin(instance, kind);
    let end = fleet.sim.now() + 30_000;
    while fleet.book.finished().len() == before && fleet.sim.now() < end {
        fleet.run_for(250).await?;
    }
    let finished = fleet.book.finished();
    if finished.get(before).map(|operation| operation.state) != Some(OperationState::Succeeded) {
        return Err(fleet.broken(&format!("{instance}: {:?}", finished.get(before))));
    }
    fleet.run_until_whole(10_000).await?;
    fleet.lost_nothing(instance)
}

/// A command that kills whatever executes it does not walk through all copies: the fourth failover
/// is held, and the instance is whole once nobody sends it any more.
async fn poison(fleet: &mut Fleet) -> Run {
    let allowed = ElectionPolicy::default().max_failovers as usize;
    let instance = fleet.create(Architecture::ReadWrite, 1, 3, &PlannerPolicy::default());
    fleet.run_until_whole(60_000).await?;
    for _ in 0..allowed + 3 {
        if let Some(node) = fleet.sim.primary(instance.as_str()) {
            fleet.sim.inject(Fault::KillServer { node });
        }
        fleet.run_for(5000).await?;
    }
    let count = fleet.sim.failovers(instance.as_str()).len();
    if count > allowed {
        return Err(fleet.broken(&format!("{instance} failed over {count} times by itself")));
    }
    fleet.run_until_whole(HEALED_WITHIN).await
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

fn or_panic(result: Run) {
    if let Err(Broken(text)) = result {
        panic!("{text}");
    }
}

fn variable(name: &str) -> Option<u64> {
    Some(std::env::var(name).ok()?.parse().expect("the seeds are numbers"))
}

#[test]
fn planner_and_election_converge_under_random_faults() {
    if let Some(seed) = variable("LARDER_SIM_SEED") {
        or_panic(run(random_run(seed)));
        return;
    }
    let count = variable("LARDER_SIM_SEEDS").unwrap_or(500);
    let first = variable("LARDER_SIM_FROM").unwrap_or(0);
    let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let broken: Mutex<Option<Broken>> = Mutex::default();
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            if let Err(why) = run(random_run(first + index)) {
                // Nobody begins another one.
                next.store(count, Ordering::Relaxed);
                broken.lock().unwrap().get_or_insert(why);
                return;
            }
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            if done.is_multiple_of(1000) {
                println!("{done} of {count} seeds");
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    or_panic(broken.into_inner().unwrap().map_or(Ok(()), Err));
}

#[test]
fn a_converged_fleet_is_left_alone() {
    or_panic(run(async {
        let mut fleet = Fleet::new(3);
        for (architecture, shards, replicas) in [
            (Architecture::Standalone, 1, 1),
            (Architecture::ReadWrite, 1, 3),
            (Architecture::Cluster, 3, 2),
        ] {
            fleet.create(architecture, shards, replicas, &no_limit_of_failovers());
        }
        fleet.run_until_whole(60_000).await?;
        fleet.run_for(2000).await?;
        for instance in &fleet.instances {
            let outcome = fleet.reconciler.tick(instance).await.unwrap();
            assert_eq!(outcome, TickOutcome::Settled);
            let plan = fleet.book.observation(instance).unwrap().plan;
            assert!(plan.is_settled(), "{plan}");
        }
        Ok(())
    }));
}

#[test]
fn new_settings_of_a_container_cluster_reach_every_node_and_restart_none() {
    or_panic(run(async {
        let mut fleet = Fleet::new(5);
        let one = fleet.create(Architecture::ReadWrite, 1, 3, &no_limit_of_failovers());
        let two = fleet.create(Architecture::Cluster, 3, 2, &no_limit_of_failovers());
        fleet.run_until_whole(60_000).await?;
        fleet.run_for(2000).await?;
        let led = fleet.sim.primary(one.as_str());
        fleet.sim.change_settings();
        assert_eq!(fleet.sim.outdated(), 9);
        fleet.run_for(5000).await?;
        assert_eq!(fleet.sim.outdated(), 0);
        assert_eq!(fleet.sim.primary(one.as_str()), led);
        for instance in [&one, &two] {
            fleet.lost_nothing(instance)?;
            let plan = fleet.book.observation(instance).unwrap().plan;
            assert!(plan.is_settled(), "{plan}");
        }
        Ok(())
    }));
}

#[test]
fn a_creation_that_finds_no_room_ends_at_the_step_that_failed() {
    or_panic(run(async {
        let mut fleet = Fleet::new(4);
        fleet.obstacles.no_room.store(true, Ordering::Relaxed);
        fleet.create(Architecture::ReadWrite, 1, 2, &no_limit_of_failovers());
        fleet.run_for(5000).await?;
        let finished = fleet.book.finished();
        let [creation] = finished.as_slice() else { panic!("{finished:?}") };
        assert_eq!(creation.state, OperationState::Failed);
        assert_eq!(creation.error.as_ref().unwrap().code, Code::CapacityExceeded);
        let failed: Vec<_> =
            creation.steps.iter().filter(|step| step.state == StepState::Failed).collect();
        assert_eq!(failed.len(), 1, "{:?}", creation.steps);
        assert_eq!(failed[0].message, "no room is left");
        Ok(())
    }));
}

#[test]
fn a_poison_command_is_held_at_the_fourth_failover() {
    or_panic(run(async { poison(&mut Fleet::new(5)).await }));
}

#[test]
fn a_node_lost_with_its_worker_is_replaced_elsewhere_and_removed_when_it_is_back() {
    or_panic(run(async {
        let mut fleet = Fleet::new(9);
        let policy =
            PlannerPolicy { replace_lost_after: Millis::secs(6), ..no_limit_of_failovers() };
        let instances = [
            fleet.create(Architecture::ReadWrite, 1, 2, &policy),
            fleet.create(Architecture::Cluster, 3, 2, &policy),
        ];
        fleet.run_until_whole(60_000).await?;
        let records = fleet.book.desired(&instances[1]).await.unwrap().unwrap().nodes;
        let (node, worker) = (records[0].id.clone(), records[0].worker.clone());
        fleet.sim.inject(Fault::CrashWorker { node: node.clone(), length: 60_000 });
        fleet.run_for(40_000).await?;
        for instance in &instances {
            let desired = fleet.book.desired(instance).await.unwrap().unwrap();
            let wanted: Vec<_> = (desired.nodes.iter())
                .filter(|record| record.phase == larder_model::NodePhase::Wanted)
                .collect();
            assert_eq!(wanted.len() as u32, desired.spec.node_count(), "{wanted:?}");
            assert!(wanted.iter().all(|record| record.worker != worker), "{wanted:?}");
        }
        fleet.run_for(20_000).await?;
        fleet.run_until_whole(HEALED_WITHIN).await?;
        assert_eq!(fleet.sim.worker_of(&node), None);
        fleet.holds_what_is_recorded().await
    }));
}

#[test]
fn a_node_whose_volume_was_deleted_copies_from_the_one_that_leads() {
    or_panic(run(async {
        let mut fleet = Fleet::new(11);
        let policy = no_limit_of_failovers();
        let read_write = fleet.create(Architecture::ReadWrite, 1, 2, &policy);
        fleet.create(Architecture::Cluster, 3, 2, &policy);
        fleet.run_until_whole(60_000).await?;
        // Long enough for data to matter.
        fleet.run_for(10_000).await?;
        for instance in fleet.instances.clone() {
            for record in fleet.book.desired(&instance).await.unwrap().unwrap().nodes {
                fleet.sim.inject(Fault::DeleteVolume { node: record.id });
                fleet.run_for(1000).await?;
                fleet.run_until_whole(HEALED_WITHIN).await?;
            }
        }
        // Asynchronous replication may lose the last moment before each of the two.
        let lost = fleet.sim.lost_writes(read_write.as_str());
        assert!(lost <= 30, "{lost} writes are lost");
        fleet.holds_what_is_recorded().await
    }));
}
