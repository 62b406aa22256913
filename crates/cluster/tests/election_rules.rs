//! What each rule of the election is for: with all rules on, a scenario never breaks a promise of
//! the product; with that one rule off, some seed does.

use larder_cluster::sim::{Fault, LeaseTrouble, Rules, Sim, SimConfig, Violation};
use larder_model::agent::Order;
use larder_model::{ElectionPolicy, InstanceId, Millis, NodeId};

/// So many seeds are tried before a rule counts as useless.
const BOUND: u64 = 60;

fn instance() -> InstanceId {
    InstanceId::new("i-a").expect("valid")
}

fn node(index: usize) -> NodeId {
    NodeId::new(format!("i-a-n{index}")).expect("valid")
}

/// A running, initialised instance of `nodes` nodes whose primary is node 0.
fn by_network() -> SimConfig {
    SimConfig { kill_by_network: true, ..SimConfig::default() }
}

fn fleet(seed: u64, nodes: usize, config: SimConfig, policy: ElectionPolicy) -> Sim {
    let sim = Sim::new(seed, config);
    sim.add_leased("i-a", nodes, policy);
    sim.step_while_not(15_000, |sim| sim.is_whole("i-a").is_ok());
    sim.is_whole("i-a").expect("the instance starts");
    sim.mark_initialized("i-a");
    // Not always at the same point of renewals and reads; long enough for data to matter.
    sim.step_until(sim.now() + 10_000 + (seed as i64 * 130) % 2000);
    sim.reset_gaps();
    sim
}

fn unlimited() -> ElectionPolicy {
    ElectionPolicy { max_failovers: 1000, ..ElectionPolicy::default() }
}

fn usual(seed: u64, nodes: usize) -> Sim {
    fleet(seed, nodes, by_network(), unlimited())
}

fn for_ms(sim: &Sim, length: i64) -> Result<(), Violation> {
    sim.step_until(sim.now() + length);
    sim.check()
}

fn whole_within(sim: &Sim, limit: i64) -> Result<(), Violation> {
    sim.step_while_not(limit, |sim| sim.is_whole("i-a").is_ok());
    sim.check()?;
    sim.is_whole("i-a")
}

fn gap_at_most(sim: &Sim, allowed: i64) -> Result<(), Violation> {
    let gap = sim.longest_gap("i-a");
    let at = sim.now();
    if gap > allowed {
        return Err(Violation::GapTooLong { at, instance: instance(), gap, allowed });
    }
    Ok(())
}

fn lost_at_most(sim: &Sim, allowed: usize) -> Result<(), Violation> {
    let lost = sim.lost_writes("i-a");
    let at = sim.now();
    if lost > allowed {
        return Err(Violation::WritesLost { at, instance: instance(), lost, allowed });
    }
    Ok(())
}

/// The scenario holds with every rule, and breaks for some seed without the rule.
fn rule_matters(without: Rules, scenario: impl Fn(u64, Rules) -> Result<(), Violation>) {
    let mut broken = None;
    for seed in 0..BOUND {
        if let Err(violation) = scenario(seed, Rules::ALL) {
            panic!("seed {seed} breaks with every rule on: {violation}");
        }
        if broken.is_none() {
            broken = scenario(seed, without).err();
        }
        if broken.is_some() && seed >= 4 {
            break;
        }
    }
    assert!(broken.is_some(), "the rule makes no difference within {BOUND} seeds");
}

#[test]
fn without_waiting_for_expiry_two_nodes_lead() {
    rule_matters(Rules { wait_for_expiry: false, ..Rules::ALL }, |seed, rules| {
        let sim = usual(seed, 2);
        sim.set_rules(rules);
        let holder = Some(node(0));
        // The replica hears nothing of the primary, which would tell it to wait.
        sim.inject(Fault::Isolate { node: node(1), length: 8000 });
        sim.inject(Fault::Lease { node: holder, trouble: LeaseTrouble::Slow(2500), length: 8000 });
        for_ms(&sim, 12_000)
    });
}

#[test]
fn without_stopping_before_expiry_two_nodes_lead() {
    rule_matters(Rules { stop_before_expiry: false, ..Rules::ALL }, |seed, rules| {
        let sim = usual(seed, 2);
        sim.set_rules(rules);
        // The replica cannot be asked for a promise either.
        sim.inject(Fault::Isolate { node: node(1), length: 9000 });
        let trouble = LeaseTrouble::Fails;
        sim.inject(Fault::Lease { node: Some(node(0)), trouble, length: 9000 });
        for_ms(&sim, 12_000)
    });
}

#[test]
fn with_the_promise_of_a_majority_only_two_nodes_lead() {
    rule_matters(Rules { every_replica_promises: false, ..Rules::ALL }, |seed, rules| {
        let sim = usual(seed, 3);
        sim.set_rules(rules);
        sim.inject(Fault::Isolate { node: node(2), length: 9000 });
        let trouble = LeaseTrouble::Fails;
        sim.inject(Fault::Lease { node: Some(node(0)), trouble, length: 9000 });
        for_ms(&sim, 12_000)
    });
}

#[test]
fn without_kept_promises_two_nodes_lead() {
    rule_matters(Rules { keep_promise: false, ..Rules::ALL }, |seed, rules| {
        let sim = usual(seed, 3);
        sim.set_rules(rules);
        let trouble = LeaseTrouble::Fails;
        sim.inject(Fault::Lease { node: Some(node(0)), trouble, length: 12_000 });
        // It has its promises, then nobody can reach it to fence it.
        for_ms(&sim, 3000)?;
        sim.inject(Fault::Isolate { node: node(0), length: 9000 });
        for_ms(&sim, 21_000)
    });
}

#[test]
fn a_node_without_peers_would_stop_without_its_lease() {
    rule_matters(Rules { alone_goes_on: false, ..Rules::ALL }, |seed, rules| {
        let sim = usual(seed, 1);
        sim.set_rules(rules);
        let trouble = LeaseTrouble::Fails;
        sim.inject(Fault::Lease { node: None, trouble, length: 9000 });
        for_ms(&sim, 2000)?;
        sim.inject(Fault::KillServer { node: node(0) });
        for_ms(&sim, 9000)?;
        gap_at_most(&sim, 1000)
    });
}

#[test]
fn a_dead_server_would_cost_a_whole_lease() {
    rule_matters(Rules { hand_over_dead_server: false, ..Rules::ALL }, |seed, rules| {
        let sim = usual(seed, 3);
        sim.set_rules(rules);
        sim.inject(Fault::KillServer { node: node(0) });
        for_ms(&sim, 12_000)?;
        gap_at_most(&sim, 600)
    });
}

#[test]
fn a_restarted_server_would_lead_with_an_older_file() {
    rule_matters(Rules { restarted_server_steps_back: false, ..Rules::ALL }, |seed, rules| {
        let sim = usual(seed, 2);
        sim.set_rules(rules);
        sim.inject(Fault::CrashWorker { node: node(0), length: 300 });
        for_ms(&sim, 10_000)?;
        // What was on its way to the replica may go, not what the file had missed.
        lost_at_most(&sim, 15)
    });
}

/// The replica restarts, cannot copy, and has an old file; then the primary's server dies, whose
/// own file has everything.
fn stale_replica(seed: u64, rules: Rules) -> Result<(), Violation> {
    let sim = usual(seed, 2);
    sim.set_rules(rules);
    sim.inject(Fault::CutReplication { node: node(1), length: 12_000 });
    sim.inject(Fault::KillServer { node: node(1) });
    for_ms(&sim, 4000)?;
    sim.inject(Fault::KillServer { node: node(0) });
    for_ms(&sim, 6000)?;
    lost_at_most(&sim, 0)
}

#[test]
fn a_replica_that_never_synced_would_lead() {
    rule_matters(Rules { only_synced: false, ..Rules::ALL }, stale_replica);
}

#[test]
fn a_replica_that_restarted_would_lead_with_its_old_file() {
    rule_matters(Rules { own_restart_disqualifies: false, ..Rules::ALL }, stale_replica);
}

#[test]
fn lagging_replica_would_be_promoted() {
    rule_matters(Rules { highest_offset: false, ..Rules::ALL }, |seed, rules| {
        let sim = usual(seed, 3);
        sim.set_rules(rules);
        sim.inject(Fault::CutReplication { node: node(1), length: 12_000 });
        for_ms(&sim, 4000)?;
        sim.inject(Fault::KillServer { node: node(0) });
        for_ms(&sim, 6000)?;
        lost_at_most(&sim, 15)
    });
}

#[test]
fn all_killed_at_once_would_not_come_back() {
    rule_matters(Rules { own_file: false, ..Rules::ALL }, |seed, rules| {
        let sim = usual(seed, 3);
        sim.set_rules(rules);
        for index in 0..3 {
            sim.inject(Fault::KillNode { node: node(index) });
        }
        whole_within(&sim, 15_000)?;
        lost_at_most(&sim, 0)
    });
}

#[test]
fn a_lost_volume_of_the_primary_would_stop_the_shard() {
    rule_matters(Rules { newest_lineage: false, ..Rules::ALL }, |seed, rules| {
        let sim = usual(seed, 3);
        sim.set_rules(rules);
        for index in 0..3 {
            sim.inject(Fault::KillNode { node: node(index) });
        }
        sim.inject(Fault::DeleteVolume { node: node(0) });
        whole_within(&sim, 20_000)?;
        lost_at_most(&sim, 15)
    });
}

#[test]
fn an_empty_node_would_lead() {
    rule_matters(Rules { lost_volume_never_leads: false, ..Rules::ALL }, |seed, rules| {
        let sim = usual(seed, 2);
        sim.set_rules(rules);
        sim.inject(Fault::KillNode { node: node(1) });
        sim.inject(Fault::KillNode { node: node(0) });
        sim.inject(Fault::DeleteVolume { node: node(0) });
        for_ms(&sim, 20_000)
    });
}

#[test]
fn a_bootstrap_node_would_begin_anew_beside_the_primary() {
    rule_matters(Rules { bootstrap_only_once: false, ..Rules::ALL }, |seed, rules| {
        let sim = usual(seed, 2);
        sim.order(&node(0), &Order::HandOver { to: Some(node(1)) });
        for_ms(&sim, 3000)?;
        sim.set_rules(rules);
        // Whoever leads does not look for a moment, and goes on.
        sim.inject(Fault::StopAgent { node: node(1), length: 1000 });
        sim.inject(Fault::LoseLease { node: node(0) });
        for_ms(&sim, 6000)?;
        whole_within(&sim, 6000)
    });
}

#[test]
fn an_old_primary_that_nobody_watches_would_go_on() {
    rule_matters(Rules { fence_old_primary: false, ..Rules::ALL }, |seed, rules| {
        let sim = usual(seed, 2);
        sim.set_rules(rules);
        sim.inject(Fault::StopKeeper { node: node(0), length: 12_000 });
        sim.inject(Fault::StopAgent { node: node(0), length: 12_000 });
        for_ms(&sim, 15_000)
    });
}

#[test]
fn a_returning_node_would_not_become_a_replica() {
    rule_matters(Rules { older_epoch_follows: false, ..Rules::ALL }, |seed, rules| {
        let sim = usual(seed, 2);
        sim.set_rules(rules);
        sim.inject(Fault::KillServer { node: node(0) });
        for_ms(&sim, 3000)?;
        whole_within(&sim, 8000)
    });
}

#[test]
fn a_poison_command_would_walk_through_all_copies() {
    rule_matters(Rules { failover_limit: false, ..Rules::ALL }, |seed, rules| {
        let sim = fleet(seed, 3, by_network(), ElectionPolicy::default());
        sim.set_rules(rules);
        for _ in 0..7 {
            if let Some(primary) = sim.primary("i-a") {
                sim.inject(Fault::KillServer { node: primary });
            }
            for_ms(&sim, 5000)?;
        }
        whole_within(&sim, 15_000)?;
        let count = sim.failovers("i-a").len();
        let at = sim.now();
        if count > 3 {
            return Err(Violation::TooManyFailovers {
                at,
                instance: instance(),
                count,
                allowed: 3,
            });
        }
        Ok(())
    });
}

#[test]
fn a_planned_hand_over_would_lose_writes() {
    rule_matters(Rules { equal_offsets: false, ..Rules::ALL }, |seed, rules| {
        let config = SimConfig { lag_ms: 200, ..by_network() };
        let sim = fleet(seed, 2, config, unlimited());
        sim.set_rules(rules);
        sim.order(&node(0), &Order::HandOver { to: None });
        for_ms(&sim, 8000)?;
        lost_at_most(&sim, 0)?;
        gap_at_most(&sim, 2500)?;
        assert_eq!(sim.primary("i-a"), Some(node(1)), "seed {seed}");
        Ok(())
    });
}

#[test]
fn a_late_release_would_make_two_nodes_lead() {
    rule_matters(Rules { renew_before_promote: false, ..Rules::ALL }, |seed, rules| {
        // Called off while the lease still holds: later the rule to stop in time would help too.
        let policy = ElectionPolicy { hand_over_timeout: Millis(1000), ..unlimited() };
        let sim = fleet(seed, 2, by_network(), policy);
        sim.set_rules(rules);
        sim.order(&node(0), &Order::HandOver { to: None });
        // The hand-over has begun when the store gets slow.
        for_ms(&sim, 30 + (seed as i64 * 10) % 60)?;
        let trouble = LeaseTrouble::Slow(4000);
        sim.inject(Fault::Lease { node: Some(node(0)), trouble, length: 5200 });
        for_ms(&sim, 14_000)
    });
}

#[test]
fn a_new_primary_that_loses_power_would_lead_without_what_it_was_handed() {
    rule_matters(Rules { data_on_disk_first: false, ..Rules::ALL }, |seed, rules| {
        let sim = usual(seed, 3);
        sim.set_rules(rules);
        sim.order(&node(0), &Order::HandOver { to: Some(node(1)) });
        sim.step_while_not(3000, |sim| sim.primary("i-a") == Some(node(1)));
        assert_eq!(sim.primary("i-a"), Some(node(1)), "seed {seed}");
        // No replica has copied from it yet.
        sim.step_until(sim.now() + 10 + (seed as i64 * 10) % 40);
        sim.inject(Fault::CrashWorker { node: node(1), length: 300 });
        for_ms(&sim, 10_000)?;
        // What it acknowledged itself in these milliseconds may go, nothing older.
        lost_at_most(&sim, 15)
    });
}

/// A replica of a replica says that its link is up though nothing comes from above.
#[test]
fn a_replica_below_one_that_is_cut_off_would_be_as_old() {
    rule_matters(Rules { leave_stalled_upstream: false, ..Rules::ALL }, |seed, rules| {
        let sim = usual(seed, 3);
        sim.chain("i-a");
        for_ms(&sim, 4000)?;
        sim.set_rules(rules);
        sim.inject(Fault::CutReplication { node: node(1), length: 9000 });
        for_ms(&sim, 8000)?;
        sim.inject(Fault::KillNode { node: node(0) });
        for_ms(&sim, 8000)?;
        lost_at_most(&sim, 40)
    });
}
