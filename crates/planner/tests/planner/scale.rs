//! Shards come and go, and slots with them.

use std::collections::BTreeSet;

use larder_model::agent::ServerState;
use larder_model::plan::{OperationOutcome, Plan, PlannedStep, Step, Wait};
use larder_model::{
    Architecture, ByteSize, InstanceState, NodeId, Observation, OpenSlot, OperationKind, SlotSet,
    WorkerState,
};

use crate::world::{SimNode, World};

const WORKERS: [&str; 4] = ["w1", "w2", "w3", "w4"];

fn cluster(shards: u32) -> World {
    World::running(Architecture::Cluster, shards, 2, &WORKERS)
}

fn scale(world: &mut World, shards: u32) {
    let former_shards = world.desired.spec.shards;
    let kind = OperationKind::Scale {
        former_shards,
        former_replicas: 2,
        share_slots: true,
        paused: false,
    };
    world.change(kind, |spec| spec.shards = shards);
}

fn counts(world: &World) -> Vec<u32> {
    let of = |shard| world.primary(shard).map_or(0, |node| world.nodes[&node].slots.count());
    (0..world.desired.spec.shards).map(of).collect()
}

fn moved(plans: &[Plan]) -> u32 {
    // An order is repeated until its effect is seen.
    let mut orders: Vec<(NodeId, SlotSet)> = Vec::new();
    for planned in plans.iter().flat_map(|plan| &plan.steps) {
        if let Step::MoveSlots { node, slots, .. } = &planned.step
            && !orders.contains(&(node.clone(), slots.clone()))
        {
            orders.push((node.clone(), slots.clone()));
        }
    }
    orders.iter().map(|(_, slots)| slots.count()).sum()
}

fn is_whole(world: &World) {
    assert!(world.desired.operation.is_none(), "{}", world.plan());
    assert_eq!(world.failure, None);
    assert_eq!(world.served_slots(), SlotSet::full());
    assert!(world.plan().is_settled(), "{}", world.plan());
    assert_eq!(world.plan().report.state, InstanceState::Running);
    let nodes = world.desired.spec.node_count() as usize;
    assert_eq!((world.desired.nodes.len(), world.nodes.len()), (nodes, nodes));
    let alive: BTreeSet<&String> = world.nodes.values().map(|sim| &sim.id).collect();
    for sim in world.nodes.values() {
        assert_eq!(sim.knows.iter().collect::<BTreeSet<_>>(), alive, "nobody else is known");
        assert!(sim.open.is_empty() || sim.follows.is_some());
    }
}

#[test]
fn three_shards_become_six_and_three_again_with_as_few_slots_moved_as_can_be() {
    let mut world = cluster(3);
    scale(&mut world, 6);
    assert_eq!(world.plan().report.state, InstanceState::Scaling);
    let plans = world.settle();
    is_whole(&world);
    assert_eq!(counts(&world), [2730, 2731, 2731, 2730, 2731, 2731]);
    assert_eq!(moved(&plans), 8_192);
    let first_move = plans.iter().position(|plan| moved(std::slice::from_ref(plan)) > 0);
    let last_node = plans
        .iter()
        .rposition(|plan| plan.steps.iter().any(|p| matches!(p.step, Step::ReplicateNode { .. })));
    assert!(last_node < first_move, "nodes first, then slots");

    scale(&mut world, 3);
    let plans = world.settle();
    is_whole(&world);
    assert_eq!(moved(&plans), 8_192);
    let retired = plans
        .iter()
        .position(|plan| plan.steps.iter().any(|p| matches!(p.step, Step::RetireNode { .. })));
    let last_move = plans.iter().rposition(|plan| moved(std::slice::from_ref(plan)) > 0);
    assert!(last_move < retired, "slots first, then nodes");
}

/// Who waits for the change asks next who has a slot: somebody does.
#[test]
fn a_change_of_shards_ends_when_each_slot_is_claimed_by_whoever_has_it() {
    let outcome = |plan: &Plan| plan.report.operation.as_ref().map(|o| o.outcome.clone());
    let mut world = cluster(3);
    scale(&mut world, 4);
    for _ in 0..100 {
        if outcome(&world.plan()) == Some(OperationOutcome::Succeeded) {
            break;
        }
        world.pass();
    }
    assert_eq!(outcome(&world.plan()), Some(OperationOutcome::Succeeded));
    // Its former owner sees that a slot has arrived; its new one has not said so yet.
    let target = world.primary(3).expect("leads");
    let mut observed = world.observe();
    let node = observed.nodes.get_mut(&target).expect("seen");
    let Observation::Known { value: status, .. } = &mut node.agent else { panic!("silent") };
    let cluster = status.cluster.as_mut().expect("clustered");
    let me = cluster.nodes.iter_mut().find(|peer| peer.id == cluster.my_id).expect("itself");
    let last = me.slots.ranges().last().expect("has slots").last;
    me.slots = me.slots.iter().filter(|slot| *slot != last).collect();
    let plan = world.plan_of(&observed);
    assert_eq!(outcome(&plan), Some(OperationOutcome::Running), "{plan}");
}

#[test]
fn one_shard_becomes_two_and_twenty_become_one() {
    let mut world = cluster(1);
    scale(&mut world, 2);
    world.settle();
    is_whole(&world);
    let mut world = cluster(20);
    scale(&mut world, 1);
    world.settle();
    is_whole(&world);
    assert_eq!(counts(&world), [16_384]);
}

/// Pain 6: data go to a shard that has only one copy of them.
#[test]
fn no_slot_moves_before_every_replica_of_its_new_shard_is_in_sync() {
    let mut world = cluster(3);
    scale(&mut world, 4);
    for _ in 0..60 {
        let replicas: Vec<NodeId> = world
            .desired
            .nodes
            .iter()
            .filter(|record| record.shard == 3)
            .map(|record| record.id.clone())
            .collect();
        world.unstreamed.extend(replicas);
        let plan = world.round();
        assert_eq!(moved(&[plan]), 0);
    }
    assert!(world.plan().waits.iter().any(|wait| matches!(wait, Wait::ReplicaSyncing { .. })));
    world.unstreamed.clear();
    world.settle();
    is_whole(&world);
}

/// Valkey 8 tells replicas of slots on their way; one that was down when they arrived is not told of that.
#[test]
fn a_replica_with_marks_of_slots_that_have_long_gone_does_not_keep_its_shard() {
    let mut world = cluster(4);
    let target = world.primary(0).expect("leads");
    let peer = world.nodes[&target].id.clone();
    scale(&mut world, 3);
    let of_shard = world.desired.nodes.iter().filter(|record| record.shard == 3);
    let replica = of_shard
        .map(|record| record.id.clone())
        .find(|id| world.nodes[id].follows.is_some())
        .expect("has a replica");
    let sim = world.nodes.get_mut(&replica).expect("runs");
    sim.open.push(OpenSlot { slot: 15_000, leaves: true, peer });
    world.settle();
    is_whole(&world);
}

fn until_half_moved(world: &mut World) {
    for _ in 0..100 {
        world.pass();
        let moved: u32 = (world.desired.nodes.iter())
            .filter(|record| record.shard >= 3)
            .map(|record| world.nodes.get(&record.id).map_or(0, |sim| sim.slots.count()))
            .sum();
        if moved > 1_000 {
            return;
        }
    }
    panic!("nothing moves: {}", world.plan());
}

fn pause(world: &mut World, pause: bool) {
    let operation = world.desired.operation.as_mut().expect("it runs");
    operation.kind = operation.kind.with_pause(pause).expect("it can be paused");
}

#[test]
fn a_pause_lets_the_slots_arrive_that_are_on_their_way_and_begins_no_more() {
    let mut world = cluster(3);
    scale(&mut world, 6);
    until_half_moved(&mut world);
    pause(&mut world, true);
    let plan = world.round();
    assert!(plan.steps.iter().any(|p| matches!(p.step, Step::StopMovingSlots { .. })), "{plan}");
    world.settle();
    let before = counts(&world);
    let plan = world.plan();
    assert!(plan.waits.contains(&Wait::Paused), "{plan}");
    assert_eq!(moved(&world.settle()), 0);
    assert_eq!(counts(&world), before);
    assert_eq!(world.served_slots(), SlotSet::full());
    // For as long as it takes.
    world.now = world.now + larder_model::Millis::secs(100_000);
    assert!(world.plan().waits.contains(&Wait::Paused));
    world.desired.operation.as_mut().expect("it runs").created_at = world.now;
    pause(&mut world, false);
    world.settle();
    is_whole(&world);
}

#[test]
fn a_change_that_is_cancelled_half_way_gives_the_slots_back_and_takes_its_shards_away() {
    let mut world = cluster(3);
    scale(&mut world, 6);
    until_half_moved(&mut world);
    world.end_operation();
    world.settle();
    is_whole(&world);
    assert_eq!(world.desired.nodes.len(), 6);

    scale(&mut world, 6);
    world.settle();
    scale(&mut world, 3);
    for _ in 0..8 {
        world.pass();
    }
    world.end_operation();
    world.settle();
    is_whole(&world);
    assert!(counts(&world).iter().all(|count| *count > 0), "{:?}", counts(&world));
}

#[test]
fn a_failover_at_either_end_is_followed_and_what_was_half_moved_arrives() {
    for end in [0, 3] {
        let mut world = cluster(3);
        scale(&mut world, 6);
        until_half_moved(&mut world);
        let dead = world.primary(end).expect("it leads");
        world.node(dead.as_str()).state = ServerState::Dead;
        world.pass();
        let new = world.primary(end).expect("its replica has taken over");
        assert_ne!(new, dead);
        let back = world.node(dead.as_str());
        back.state = ServerState::Starting;
        back.follows = None;
        back.open.clear();
        back.moving = None;
        world.settle();
        is_whole(&world);
    }
}

/// Pain: who comes after a primary knows nothing of slots that are half-way, and answers that keys
/// which have gone on do not exist.
#[test]
fn a_primary_hands_over_only_once_no_slot_of_its_shard_is_half_way() {
    for end in [0, 3] {
        let mut world = cluster(3);
        scale(&mut world, 6);
        until_half_moved(&mut world);
        let old = world.primary(end).expect("it leads");
        let (generation, instance) = (world.desired.generation, world.desired.spec.id.clone());
        let reason = "its worker is to be emptied".to_owned();
        let step = Step::RetireNode { node: old.clone() };
        world.apply(&PlannedStep { instance, generation, step, reason });
        let plans = world.settle();
        is_whole(&world);
        assert_ne!(world.primary(end), Some(old));
        let first = |wanted: fn(&Step) -> bool| {
            plans.iter().position(|plan| plan.steps.iter().any(|p| wanted(&p.step)))
        };
        let stopped = first(|step| matches!(step, Step::StopMovingSlots { .. }));
        let changed = first(|step| matches!(step, Step::FailOverShard { .. }));
        assert!(stopped.is_some() && stopped < changed, "{stopped:?} {changed:?}");
    }
}

#[test]
fn a_failover_that_is_asked_for_waits_for_slots_that_are_half_way() {
    let mut world = cluster(3);
    let (from, to) = (world.primary(0).expect("leads"), world.primary(1).expect("leads"));
    let to_id = world.nodes[&to].id.clone();
    world.node(from.as_str()).open.push(OpenSlot { slot: 7, leaves: true, peer: to_id });
    world.begin(OperationKind::Failover {
        shard: 0,
        to: None,
        accept_data_loss: false,
        from: None,
        without_primary: false,
    });
    world.settle();
    is_whole(&world);
    assert_ne!(world.primary(0), Some(from));
    assert!(world.nodes[&to].slots.contains(7), "it was moved to its end first");
}

#[test]
fn what_an_agent_forgets_at_its_restart_is_told_again() {
    let mut world = cluster(3);
    scale(&mut world, 6);
    until_half_moved(&mut world);
    for sim in world.nodes.values_mut() {
        sim.moving = None;
    }
    let plan = world.round();
    assert!(moved(&[plan]) > 0);
    world.settle();
    is_whole(&world);
}

#[test]
fn a_mark_that_a_broken_move_has_left_is_taken_back_or_the_move_is_finished() {
    let mut world = cluster(3);
    let (from, to) = (world.primary(0).expect("leads"), world.primary(1).expect("leads"));
    let (from_id, to_id) = (world.nodes[&from].id.clone(), world.nodes[&to].id.clone());
    // On its way in, in the eyes of the target alone: the source has changed since.
    world.node(to.as_str()).open.push(OpenSlot { slot: 7, leaves: false, peer: from_id });
    world.settle();
    is_whole(&world);
    assert!(world.nodes[&to].slots.contains(7));
    // It has long arrived, and on its way to nobody.
    let mark = |slot, peer: &str| OpenSlot { slot, leaves: true, peer: peer.to_owned() };
    world.node(from.as_str()).open.extend([mark(7, &to_id), mark(8, "gone")]);
    let plan = world.round();
    assert_eq!(moved(&[plan]), 0);
    world.settle();
    is_whole(&world);
    assert!(world.nodes[&from].slots.contains(8));
}

#[test]
fn slots_are_shared_anew_by_what_the_shards_hold() {
    let mut world = cluster(3);
    for (shard, gib) in [(0, 9), (1, 1), (2, 2)] {
        let node = world.primary(shard).expect("leads");
        world.node(node.as_str()).used_memory = ByteSize::gib(gib);
    }
    let before = counts(&world);
    world.begin(OperationKind::Rebalance { counts: Vec::new(), paused: false });
    world.settle();
    is_whole(&world);
    let after = counts(&world);
    assert!(after[0] < before[0] && after[1] > before[1] && after[2] > before[2], "{after:?}");
    assert!(world.settle().iter().all(|plan| moved(std::slice::from_ref(plan)) == 0));
}

/// Servers vote for no shard without slots.
#[test]
fn a_new_shard_whose_first_node_is_lost_is_led_by_another() {
    let mut world = cluster(3);
    scale(&mut world, 4);
    world.unstreamed = (1..20).map(|n| NodeId::new(format!("n{n}")).expect("valid")).collect();
    for _ in 0..20 {
        world.pass();
    }
    let followed: BTreeSet<String> =
        world.nodes.values().filter_map(|sim| sim.follows.clone()).collect();
    let leader = world
        .desired
        .nodes
        .iter()
        .find(|record| record.shard == 3 && followed.contains(&world.nodes[&record.id].id))
        .expect("a leader")
        .clone();
    world.lose_worker(leader.worker.as_str(), WorkerState::Lost);
    world.unstreamed.clear();
    world.settle();
    assert_eq!(world.served_slots(), SlotSet::full());
    assert!(world.desired.operation.is_none(), "{}", world.plan());
    assert!(counts(&world).iter().all(|count| *count == 4096), "{:?}", counts(&world));
}

/// An agent that is not heard of may hold any slots.
#[test]
fn a_shard_of_which_nothing_is_heard_is_not_taken_for_an_empty_one() {
    let mut world = cluster(3);
    let now = world.now;
    for sim in world.nodes.values_mut() {
        sim.silent = Some(now);
    }
    world.frozen = true;
    let plan = world.plan();
    assert!(plan.steps.is_empty(), "{plan}");
    assert_eq!(plan.report.state, InstanceState::Degraded);
}

/// The node is back with slots that it took just before it died: its successor, which leads the
/// shard, has not got them.
fn comes_back_with(world: &mut World, shard: u32, count: u32) -> (NodeId, NodeId) {
    let old = world.primary(shard).expect("leads");
    let old_id = world.nodes[&old].id.clone();
    let follows = |sim: &SimNode| sim.follows.as_ref() == Some(&old_id);
    let new = world.nodes.iter().find(|(_, sim)| follows(sim)).expect("a replica").0.clone();
    let slots = world.nodes[&old].slots.clone();
    let few = slots.first(count);
    world.last_epoch += 1;
    let epoch = world.last_epoch;
    let leader = world.nodes.get_mut(&new).expect("there");
    (leader.follows, leader.epoch) = (None, epoch);
    leader.slots = slots.difference(&few);
    world.nodes.get_mut(&old).expect("there").slots = few;
    (old, new)
}

/// A primary died as the target of a slot move; nobody had heard of the last slots that it took.
#[test]
fn slots_that_a_former_primary_comes_back_with_go_to_its_successor() {
    for busy in [false, true] {
        let mut world = cluster(3);
        if busy {
            scale(&mut world, 6);
            (0..8).for_each(|_| world.pass());
        }
        let (old, new) = comes_back_with(&mut world, 1, 4);
        let plans = world.settle();
        let id = world.nodes[&new].id.clone();
        assert_eq!(world.nodes[&old].follows.as_ref(), Some(&id), "{}", world.plan());
        if !busy {
            assert_eq!(moved(&plans), 4);
        }
        is_whole(&world);
    }
}

#[test]
fn slots_are_not_gathered_while_the_bus_has_not_settled_whose_they_are() {
    let mut world = cluster(3);
    let (old, new) = comes_back_with(&mut world, 1, 4);
    // The successor has not heard of them.
    let mut observed = world.observe();
    let node = observed.nodes.get_mut(&new).expect("seen");
    let Observation::Known { value: status, .. } = &mut node.agent else { panic!("silent") };
    let cluster = status.cluster.as_mut().expect("clustered");
    let id = &world.nodes[&old].id;
    cluster.nodes.iter_mut().find(|peer| peer.id == *id).expect("known").slots = SlotSet::default();
    let plan = world.plan_of(&observed);
    assert_eq!(moved(std::slice::from_ref(&plan)), 0, "{plan}");
}

/// A small generator, so that a failing run is named by its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}

#[test]
fn whatever_dies_between_three_and_six_and_three_shards_every_slot_and_no_node_too_many_is_left() {
    for seed in 0..200 {
        let mut dice = Dice(seed);
        let mut world = cluster(3);
        for shards in [6, 3] {
            scale(&mut world, shards);
            for _ in 0..60 {
                world.pass();
                let names: Vec<NodeId> = world.nodes.keys().cloned().collect();
                let victim = names[dice.roll(names.len())].clone();
                let all_serve = world.nodes.values().all(|sim| sim.state == ServerState::Serving);
                match dice.roll(6) {
                    // Its server, one at a time.
                    0 if all_serve => world.node(victim.as_str()).state = ServerState::Dead,
                    // Its agent, with what it was told.
                    1 => world.node(victim.as_str()).moving = None,
                    2 => {
                        for sim in world.nodes.values_mut() {
                            if sim.state == ServerState::Dead {
                                sim.state = ServerState::Starting;
                                sim.open.clear();
                            }
                        }
                    }
                    _ => {}
                }
            }
            for sim in world.nodes.values_mut().filter(|sim| sim.state == ServerState::Dead) {
                sim.state = ServerState::Starting;
            }
            world.settle();
            assert_eq!(counts(&world).len(), shards as usize, "seed {seed}");
            is_whole(&world);
        }
    }
}
