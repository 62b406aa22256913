//! Changes of serving instances: size, number of nodes, engine, new servers. Without faults nothing
//! that was acknowledged is lost; with faults everything is whole in the end, as it was wished or as
//! it was before.

use larder_cluster::sim::{Profile, Rng};
use larder_model::{
    Architecture, ByteSize, EngineName, InstanceId, InstanceSpec, Millis, OperationKind,
    OperationState, ParameterChange, PlannerPolicy,
};
use larder_reconcile::Book as _;

use crate::fleet::{Fleet, Run, no_limit_of_failovers};
use crate::{HEALED_WITHIN, or_panic, run, variable};

fn policy() -> PlannerPolicy {
    PlannerPolicy { drain: Millis(500), ..no_limit_of_failovers() }
}

/// A wish that an API would take, with the operation that makes it so. `least` nodes in each shard of
/// a cluster.
fn wish(spec: &InstanceSpec, least: u32, rng: &mut Rng) -> (OperationKind, InstanceSpec) {
    let mut next = spec.clone();
    let kind = match rng.below(8) {
        0 => {
            let mib = 128 + 64 * rng.below(4) as u64;
            next.memory = ByteSize::mib(mib);
            OperationKind::Resize { former: spec.memory }
        }
        1 => {
            next.revision += 1;
            OperationKind::Renew { former: spec.revision }
        }
        2 if spec.architecture != Architecture::Standalone => {
            let clustered = spec.architecture == Architecture::Cluster;
            let range = if clustered { least..=3 } else { 2..=5 };
            next.replicas =
                range.start() + rng.below(i64::from(range.end() - range.start()) + 1) as u32;
            OperationKind::Scale {
                former_shards: spec.shards,
                former_replicas: spec.replicas,
                share_slots: false,
                paused: false,
            }
        }
        // From three to six, and back: what is not a cluster has another wish.
        3 if spec.architecture == Architecture::Cluster => {
            next.shards = 3 + rng.below(4) as u32;
            OperationKind::Scale {
                former_shards: spec.shards,
                former_replicas: spec.replicas,
                share_slots: true,
                paused: false,
            }
        }
        4 if spec.architecture == Architecture::ReadWrite => {
            next.chained = !spec.chained;
            OperationKind::SetChained { former: spec.chained }
        }
        5 => {
            let (name, from) = ("hz", spec.parameters.get("hz").cloned());
            let to = (10 + rng.below(40)).to_string();
            next.parameters.insert(name.to_owned(), to.clone());
            next.parameters_revision += 1;
            let change = ParameterChange { name: name.to_owned(), from, to: Some(to) };
            OperationKind::SetParameters { changes: vec![change] }
        }
        6 => OperationKind::SetPassword { revision: 0 },
        _ => {
            let minor = spec.engine.as_str().rsplit('.').next().unwrap().parse::<u32>().unwrap();
            next.engine = EngineName::new(format!("redis-7.{}", minor + 1)).unwrap();
            OperationKind::Upgrade { former: Some(spec.engine.clone()) }
        }
    };
    (kind, next)
}

/// One change after the other, each succeeding, and nothing lost.
async fn quiet_run(seed: u64) -> Run {
    let mut rng = Rng::new(seed);
    let mut fleet = Fleet::new(seed);
    let instances = [
        fleet.create(Architecture::Standalone, 1, 1, &policy()),
        fleet.create(Architecture::ReadWrite, 1, 2, &policy()),
        fleet.create(Architecture::Cluster, 3, 2, &policy()),
    ];
    fleet.run_until_whole(60_000).await?;
    for _ in 0..6 {
        let instance = &instances[rng.below(3) as usize];
        succeeds(&mut fleet, instance, &mut rng).await?;
        if rng.chance(30) {
            fleet.restart_control_plane();
        }
    }
    fleet.holds_what_is_recorded().await
}

async fn succeeds(fleet: &mut Fleet, instance: &InstanceId, rng: &mut Rng) -> Run {
    let before = fleet.book.finished().len();
    let spec = fleet.book.desired(instance).await.unwrap().unwrap().spec;
    let (kind, next) = wish(&spec, 1, rng);
    let what =
        format!("{instance}: {kind:?} to {} x {} of {}", next.shards, next.replicas, next.memory);
    let chained = next.chained;
    if next == spec && !matches!(kind, OperationKind::SetPassword { .. }) {
        return Ok(());
    }
    fleet.change(instance, kind, next.clone());
    let end = fleet.sim.now() + 120_000;
    while fleet.book.finished().len() == before && fleet.sim.now() < end {
        fleet.run_for(500).await?;
    }
    let finished = fleet.book.finished();
    if finished.get(before).map(|operation| operation.state) != Some(OperationState::Succeeded) {
        return Err(fleet.broken(&format!("{what}: {:?}", finished.get(before))));
    }
    fleet.run_until_whole(10_000).await?;
    let desired = fleet.book.desired(instance).await.unwrap().unwrap();
    let as_wished = desired.nodes.iter().all(|node| {
        node.engine == next.engine && node.memory == next.memory && node.revision >= next.revision
    });
    if !as_wished || desired.nodes.len() as u32 != next.node_count() {
        return Err(fleet.broken(&format!("{what}: nodes are {:?}", desired.nodes)));
    }
    let end = fleet.sim.now() + 10_000;
    while chained && !fleet.sim.is_one_row(instance.as_str()) && fleet.sim.now() < end {
        fleet.run_for(500).await?;
    }
    if chained && !fleet.sim.is_one_row(instance.as_str()) {
        return Err(fleet.broken(&format!("{what}: a primary feeds more than one replica")));
    }
    fleet.lost_nothing(instance)
}

/// Changes, cancelled ones among them, while things break. A volume is lost too, so that no shard may
/// be without a copy.
async fn faulty_run(seed: u64) -> Run {
    let mut rng = Rng::new(seed ^ 0xc4a96e);
    let mut fleet = Fleet::new(seed);
    let mut policy = policy();
    if rng.chance(50) {
        policy.replace_lost_after = Millis::secs(3 + rng.below(9) as u64);
    }
    let instances = [
        fleet.create(Architecture::ReadWrite, 1, 2 + rng.below(2) as u32, &policy),
        fleet.create(Architecture::Cluster, 3, 2, &policy),
    ];
    fleet.run_until_whole(60_000).await?;
    let profile = Profile {
        faults: 5,
        within_ms: 30_000,
        lost_volumes: 1,
        control_plane: true,
        lost_replies: rng.chance(20),
        ..Profile::default()
    };
    fleet.sim.random_faults(seed, &profile);
    let end = fleet.sim.now() + profile.within_ms + 8000;
    while fleet.sim.now() < end {
        let instance = instances[rng.below(2) as usize].clone();
        match rng.below(8) {
            0 => fleet.restart_control_plane(),
            1 => fleet.cancel(&instance),
            2 | 3 => {
                let spec = fleet.book.desired(&instance).await.unwrap().unwrap().spec;
                let (kind, next) = wish(&spec, 2, &mut rng);
                fleet.change(&instance, kind, next);
            }
            _ => {}
        }
        fleet.run_for(1000).await?;
    }
    let faults_end = fleet.sim.faults_end();
    if faults_end > fleet.sim.now() {
        fleet.run_for(faults_end - fleet.sim.now()).await?;
    }
    // Whatever was begun is carried through, one node after the other.
    fleet.run_until_whole(4 * HEALED_WITHIN).await?;
    fleet.holds_what_is_recorded().await
}

fn seeds() -> std::ops::Range<u64> {
    if let Some(seed) = variable("LARDER_SIM_SEED") {
        return seed..seed + 1;
    }
    let from = variable("LARDER_SIM_FROM").unwrap_or(0);
    // A tenth of what the whole suite tries: each has several changes.
    from..from + variable("LARDER_SIM_SEEDS").unwrap_or(500).div_ceil(10)
}

#[test]
fn changes_of_serving_instances_succeed_and_lose_nothing() {
    for seed in seeds() {
        or_panic(run(quiet_run(seed)));
    }
}

#[test]
fn changes_under_faults_end_as_wished_or_as_before() {
    for seed in seeds() {
        or_panic(run(faulty_run(seed)));
    }
}
