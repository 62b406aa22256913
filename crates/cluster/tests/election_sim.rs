//! The real election on simulated fleets: long random runs in which nothing may ever go wrong.
//!
//! `LARDER_SIM_SEEDS` sets how many seeds are tried (150 unless set), `LARDER_SIM_SEED` runs a
//! single one and prints its trace.

use std::io::Write as _;

use larder_cluster::sim::{Fault, Profile, Rng, Sim, SimConfig, Violation};
use larder_model::agent::Order;
use larder_model::{ElectionPolicy, NodeId};

fn seeds() -> std::ops::Range<u64> {
    if let Ok(seed) = std::env::var("LARDER_SIM_SEED") {
        let seed: u64 = seed.parse().expect("LARDER_SIM_SEED is a number");
        return seed..seed + 1;
    }
    let count = std::env::var("LARDER_SIM_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(150);
    0..count
}

/// No limit of automatic failovers: its hold would be seen as an outage here.
fn unlimited() -> ElectionPolicy {
    ElectionPolicy { max_failovers: 1000, ..ElectionPolicy::default() }
}

fn started(seed: u64, nodes: usize, chained: bool) -> Result<Sim, Violation> {
    let sim = Sim::new(seed, SimConfig::default());
    sim.add_leased("i-a", nodes, unlimited());
    if chained {
        sim.chain("i-a");
    }
    // Some instances die in the middle of their birth.
    if seed.is_multiple_of(3) {
        sim.step_until((seed as i64 * 37) % 600);
        let node = NodeId::new("i-a-n0").expect("valid");
        sim.inject(Fault::KillNode { node });
    }
    sim.step_while_not(15_000, |sim| sim.is_whole("i-a").is_ok());
    sim.check()?;
    sim.is_whole("i-a")?;
    sim.mark_initialized("i-a");
    Ok(sim)
}

fn run(seed: u64, chained: bool) -> Result<Sim, (Sim, Violation)> {
    let mut rng = Rng::new(seed);
    let least = if chained { 2 } else { 1 };
    let nodes = least + rng.below(4) as usize;
    let sim =
        started(seed, nodes, chained).map_err(|v| (Sim::new(seed, SimConfig::default()), v))?;
    let fail = |violation| (sim.clone(), violation);
    // The only copy of a single node is not deleted: nothing could come back.
    let lost_volumes = u32::from(nodes > 1);
    let profile = Profile { lost_volumes, ..Profile::default() };
    sim.random_faults(seed, &profile);
    let end = sim.now() + profile.within_ms + 8000;
    while sim.now() < end {
        sim.step_until(sim.now() + 1000);
        sim.check().map_err(fail)?;
        // Now and then somebody asks for a hand-over in the middle of it.
        if rng.chance(5)
            && let Some(holder) = sim.primary("i-a")
        {
            sim.order(&holder, &Order::HandOver { to: None });
        }
    }
    let faults_end = sim.faults_end();
    sim.step_until(faults_end);
    // An eligible replica, or the own file, is found in time.
    sim.step_while_not(30_000, |sim| sim.is_whole("i-a").is_ok());
    sim.check().map_err(fail)?;
    sim.is_whole("i-a").map_err(fail)?;
    let before = sim.acknowledged("i-a");
    sim.step_until(sim.now() + 3000);
    sim.check().map_err(fail)?;
    if sim.acknowledged("i-a") <= before {
        let instance = larder_model::InstanceId::new("i-a").expect("valid");
        let at = sim.now();
        return Err(fail(Violation::NoPrimary { at, instance, after: at - faults_end }));
    }
    Ok(sim)
}

#[test]
fn random_faults_never_break_a_promise() {
    never_broken(false);
}

#[test]
fn random_faults_never_break_a_promise_where_replicas_copy_from_each_other() {
    never_broken(true);
}

fn never_broken(chained: bool) {
    for seed in seeds() {
        let (sim, broken) = match run(seed, chained) {
            Ok(sim) => (sim, None),
            Err((sim, violation)) => (sim, Some(violation)),
        };
        if broken.is_some() || std::env::var("LARDER_SIM_SEED").is_ok() {
            let trace = sim.events().join("\n") + "\n";
            std::io::stdout().write_all(trace.as_bytes()).expect("printed");
        }
        if let Some(violation) = broken {
            panic!("seed {seed}: {violation}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let trace = |seed| run(seed, false).map(|sim| sim.events()).map_err(|(_, v)| v);
    assert_eq!(trace(7), trace(7));
}
