//! Small worlds, exhaustively: every sequence of a few events on two and three nodes, up to a depth,
//! each followed by the end of all faults. Nothing may break on the way, and all is whole after.
//!
//! `LARDER_SIM_DEPTH` adds to the depths: one more costs ten to twenty times as long.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use larder_cluster::sim::{Fault, LeaseTrouble, Rules, Sim, SimConfig, Violation};
use larder_model::agent::Order;
use larder_model::{ElectionPolicy, NodeId};

/// Between two events: long enough for a message or two, short enough to be in the middle of it.
const BETWEEN: i64 = 30;
/// Lasts until it is healed.
const LONG: i64 = 60_000;
/// All is whole again this long after everything has been healed: a restarted server waits 10 s for
/// a better one, then leases and links follow.
const HEALED_WITHIN: i64 = 30_000;

/// What may happen. Nodes are numbered; the first one leads in the beginning.
#[derive(Clone, Copy, Debug)]
enum Happening {
    KillServer(usize),
    KillAgent(usize),
    StopAgent(usize),
    /// The network of the node's worker is cut, and that of no other.
    Partition(usize),
    Heal,
    /// Whoever leads is told to hand over.
    HandOver,
    /// Calls of the first node to the lease store fail.
    LeaseFails,
    /// They take effect and their answers are lost.
    AnswersLost,
    /// They take effect late, maybe after it has given up.
    LeaseSlow,
    /// Time enough for a few messages and decisions.
    Moment,
    /// Time enough for a lease to run out that the others have seen renewed up to a look later.
    Expire,
}

fn alphabet(nodes: usize, one_machine: bool) -> Vec<Happening> {
    use Happening::{
        AnswersLost, Expire, HandOver, Heal, KillAgent, KillServer, LeaseFails, LeaseSlow, Moment,
        Partition, StopAgent,
    };
    let mut letters: Vec<Happening> =
        (0..nodes).flat_map(|n| [KillServer(n), KillAgent(n)]).collect();
    // One machine has no network in between. Cutting one of two nodes off is cutting the other off.
    if !one_machine {
        letters.extend((0..nodes - 1).map(Partition));
    }
    letters.extend([StopAgent(0), Heal, HandOver, LeaseFails, AnswersLost, LeaseSlow]);
    letters.extend([Moment, Expire]);
    letters
}

fn node(index: usize) -> NodeId {
    NodeId::new(format!("i-a-n{index}")).expect("valid")
}

fn happen(sim: &Sim, happening: Happening) -> Result<(), Violation> {
    let lease = |trouble| Fault::Lease { node: Some(node(0)), trouble, length: LONG };
    let mut time = BETWEEN;
    match happening {
        Happening::KillServer(n) => sim.inject(Fault::KillServer { node: node(n) }),
        Happening::KillAgent(n) => sim.inject(Fault::KillAgent { node: node(n) }),
        Happening::StopAgent(n) => sim.inject(Fault::StopAgent { node: node(n), length: LONG }),
        Happening::Partition(n) => sim.inject(Fault::Isolate { node: node(n), length: LONG }),
        Happening::Heal => sim.heal(),
        Happening::HandOver => {
            if let Some(holder) = sim.primary("i-a") {
                sim.order(&holder, &Order::HandOver { to: None });
            }
        }
        Happening::LeaseFails => sim.inject(lease(LeaseTrouble::Fails)),
        Happening::AnswersLost => sim.inject(lease(LeaseTrouble::AnswersLost)),
        Happening::LeaseSlow => sim.inject(lease(LeaseTrouble::Slow(2000))),
        Happening::Moment => time = 400,
        Happening::Expire => time = 6500,
    }
    sim.step_until(sim.now() + time);
    sim.check()
}

/// Nothing was killed or cut off: not even asynchronous replication explains a loss.
fn is_gentle(path: &[Happening]) -> bool {
    use Happening::{Expire, HandOver, Heal, Moment};
    path.iter().all(|h| matches!(h, HandOver | Moment | Expire | Heal))
}

fn settle(sim: &Sim, path: &[Happening]) -> Result<(), Violation> {
    sim.heal();
    // A hand-over that has begun goes on; nothing counts that was not so for a while.
    let end = sim.now() + HEALED_WITHIN;
    let mut served = false;
    while !served && sim.now() < end {
        let (whole, before) = (sim.is_whole("i-a").is_ok(), sim.acknowledged("i-a"));
        sim.step_until(sim.now() + 500);
        sim.check()?;
        served = whole && sim.is_whole("i-a").is_ok() && sim.acknowledged("i-a") > before + 5;
    }
    sim.is_whole("i-a")?;
    let (at, instance) = (sim.now(), larder_model::InstanceId::new("i-a").expect("valid"));
    if !served {
        return Err(Violation::NoPrimary { at, instance, after: HEALED_WITHIN });
    }
    let lost = sim.lost_writes("i-a");
    if lost > 0 && is_gentle(path) {
        return Err(Violation::WritesLost { at, instance, lost, allowed: 0 });
    }
    Ok(())
}

/// Walks all continuations of `path`; the world after each step is shared by all that follow it.
fn walk(
    sim: &Sim,
    letters: &[Happening],
    depth: usize,
    path: &mut Vec<Happening>,
    ends: &AtomicUsize,
) -> Result<(), String> {
    let told = |sim: &Sim, path: &[Happening], violation: Violation| {
        format!("{}\n{path:?}: {violation}", sim.events().join("\n"))
    };
    if depth == 0 {
        ends.fetch_add(1, Ordering::Relaxed);
        return settle(sim, path).map_err(|violation| told(sim, path, violation));
    }
    for letter in letters {
        let next = sim.fork();
        path.push(*letter);
        happen(&next, *letter).map_err(|violation| told(&next, path, violation))?;
        walk(&next, letters, depth - 1, path, ends)?;
        path.pop();
    }
    Ok(())
}

/// Tries them all, and tells of the first that breaks something.
fn every_sequence(
    nodes: usize,
    depth: usize,
    rules: Rules,
    kill_peers: bool,
) -> Result<(), String> {
    let more = std::env::var("LARDER_SIM_DEPTH").ok().and_then(|n| n.parse().ok());
    let depth = depth + more.unwrap_or(0);
    // No limit of automatic failovers: its hold would be seen as an outage here.
    let policy = ElectionPolicy { max_failovers: 1000, ..ElectionPolicy::default() };
    let config = SimConfig { clients: 1, kill_peers, ..SimConfig::default() };
    let start = Sim::new(nodes as u64, config);
    start.add_leased("i-a", nodes, policy);
    start.step_while_not(15_000, |sim| sim.is_whole("i-a").is_ok());
    start.is_whole("i-a").expect("the instance starts");
    start.mark_initialized("i-a");
    start.set_rules(rules);
    start.step_until(start.now() + 3000);
    assert_eq!(start.primary("i-a"), Some(node(0)));

    let letters = alphabet(nodes, kill_peers);
    let (next, ends) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let broken: Mutex<Option<String>> = Mutex::default();
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(letter) = letters.get(index) else { return };
            let sim = start.fork();
            let mut path = vec![*letter];
            let outcome = happen(&sim, *letter)
                .map_err(|violation| format!("{path:?}: {violation}"))
                .and_then(|()| walk(&sim, &letters, depth - 1, &mut path, &ends));
            if let Err(why) = outcome {
                next.store(letters.len(), Ordering::Relaxed);
                broken.lock().expect("nobody panics with it").get_or_insert(why);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    match broken.into_inner().expect("nobody panics with it") {
        Some(why) => Err(why),
        None => {
            assert_eq!(ends.into_inner(), letters.len().pow(depth as u32));
            Ok(())
        }
    }
}

fn holds(outcome: Result<(), String>) {
    if let Err(why) = outcome {
        panic!("{why}");
    }
}

#[test]
fn every_sequence_of_three_events_on_two_nodes_of_one_machine() {
    holds(every_sequence(2, 3, Rules::ALL, true));
}

/// In a container cluster, where no agent reaches another's processes and networks break.
#[test]
fn every_sequence_of_three_events_on_two_workers() {
    holds(every_sequence(2, 3, Rules::ALL, false));
}

#[test]
fn every_sequence_of_three_events_on_three_workers() {
    holds(every_sequence(3, 3, Rules::ALL, false));
}

/// The small worlds are not too small to show what rules are for.
#[test]
fn a_missing_rule_is_noticed_in_a_small_world() {
    let rules = [
        ("wait for expiry", Rules { wait_for_expiry: false, ..Rules::ALL }),
        ("stop before expiry", Rules { stop_before_expiry: false, ..Rules::ALL }),
        ("own file", Rules { own_file: false, ..Rules::ALL }),
        ("equal offsets", Rules { equal_offsets: false, ..Rules::ALL }),
        ("older epoch follows", Rules { older_epoch_follows: false, ..Rules::ALL }),
    ];
    let unseen: Vec<&str> = rules
        .into_iter()
        .filter(|(_, rules)| every_sequence(2, 3, *rules, false).is_ok())
        .map(|(name, _)| name)
        .collect();
    assert!(unseen.is_empty(), "{unseen:?}");
}
