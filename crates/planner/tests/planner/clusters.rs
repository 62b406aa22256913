//! Cluster instances: forming, meeting again, forgetting, takeover.

use larder_model::agent::{ClusterFailoverMode, ServerState, VolumeState};
use larder_model::plan::{Plan, Step, Wait};
use larder_model::{
    Architecture, InstanceState, NodeId, OperationKind, SlotSet, WorkerState, even_slots,
};

use crate::world::{World, everything};

fn cluster(shards: u32, replicas: u32) -> World {
    World::running(Architecture::Cluster, shards, replicas, &["w1", "w2", "w3"])
}

fn takeovers(plan: &Plan) -> usize {
    let takes = |step: &Step| {
        matches!(step, Step::FailOverShard { mode: ClusterFailoverMode::Takeover, .. })
    };
    plan.steps.iter().filter(|planned| takes(&planned.step)).count()
}

#[test]
fn slots_are_shared_evenly_and_all_are_served() {
    let world = cluster(5, 2);
    assert_eq!(world.served_slots(), SlotSet::full());
    for record in world.desired.nodes.iter().filter(|record| record.bootstrap) {
        let expected: SlotSet = [even_slots(record.shard, 5)].into_iter().collect();
        assert_eq!(world.nodes[&record.id].slots, expected);
        assert_eq!(world.nodes[&record.id].epoch, u64::from(record.shard) + 1);
    }
}

#[test]
fn slots_come_before_meetings_and_all_at_once() {
    let mut world = World::new(Architecture::Cluster, 3, 2, &["w1"]);
    let plans = world.settle();
    let first = |test: fn(&Step) -> bool| {
        plans.iter().position(|plan| plan.steps.iter().any(|p| test(&p.step)))
    };
    let slots = first(|step| matches!(step, Step::AssignSlots { .. })).expect("assigned");
    let meets: Vec<usize> = plans
        .iter()
        .enumerate()
        .filter(|(_, plan)| {
            plan.steps.iter().any(|p| {
                world.desired.nodes.iter().any(|r| r.bootstrap && p.step.node() == Some(&r.id))
                    && matches!(p.step, Step::MeetNodes { .. })
            })
        })
        .map(|(i, _)| i)
        .collect();
    assert!(meets.iter().all(|meet| *meet > slots), "{meets:?} after {slots}");
    let all = plans[slots].steps.iter().filter(|p| matches!(p.step, Step::AssignSlots { .. }));
    assert_eq!(all.count(), 3);
}

#[test]
fn slots_are_never_assigned_again() {
    let mut world = cluster(3, 1);
    world.node("n1").slots = SlotSet::default();
    for _ in 0..5 {
        let plan = world.round();
        assert!(!plan.steps.iter().any(|p| matches!(p.step, Step::AssignSlots { .. })), "{plan}");
    }
    assert_eq!(world.plan().report.state, InstanceState::Unavailable);
}

#[test]
fn slots_that_somebody_holds_are_assigned_to_nobody() {
    let mut world = World::new(Architecture::Cluster, 3, 1, &["w1"]);
    world.frozen = false;
    while !world.plan().steps.iter().any(|p| matches!(p.step, Step::AssignSlots { .. })) {
        world.pass();
    }
    world.node("n1").slots = [everything()].into_iter().collect();
    let plan = world.plan();
    assert!(!plan.steps.iter().any(|p| matches!(p.step, Step::AssignSlots { .. })), "{plan}");
}

/// Pain 1: a full restart loses the cluster.
#[test]
fn servers_that_have_forgotten_each_other_meet_again() {
    let mut world = cluster(3, 2);
    for sim in world.nodes.values_mut() {
        sim.knows = [sim.id.clone()].into();
    }
    let plan = world.plan();
    assert!(plan.steps.iter().any(|p| matches!(p.step, Step::MeetNodes { .. })), "{plan}");
    assert_eq!(plan.report.state, InstanceState::Unavailable);
    world.settle();
    let plan = world.plan();
    assert!(plan.is_settled(), "{plan}");
    assert_eq!(plan.report.state, InstanceState::Running);
}

#[test]
fn a_primary_that_lost_its_volume_comes_back_as_a_replica_and_its_old_id_is_forgotten() {
    let mut world = cluster(3, 2);
    let old = world.node("n1").id.clone();
    world.node("n1").state = ServerState::Dead;
    world.node("n1").volume = VolumeState::Lost;
    let plans = world.settle();
    assert_ne!(world.primary(0), NodeId::new("n1").ok());
    let has =
        |test: fn(&Step) -> bool| plans.iter().any(|plan| plan.steps.iter().any(|p| test(&p.step)));
    assert!(has(|step| matches!(step, Step::StartEmpty { .. })));
    assert!(has(|step| matches!(step, Step::ForgetNodes { .. })));
    assert!(has(|step| matches!(step, Step::ReplicateNode { .. })));
    assert!(world.nodes.values().all(|sim| !sim.knows.contains(&old)));
    let plan = world.plan();
    assert!(plan.is_settled(), "{plan}");
    assert_eq!(world.served_slots(), SlotSet::full());
}

#[test]
fn a_replica_of_the_wrong_shard_and_an_orphan_are_attached_again() {
    let mut world = cluster(3, 2);
    let foreign = world.primary(1).expect("it runs");
    let foreign = world.nodes[&foreign].id.clone();
    let replica_of = |world: &World, shard: u32| {
        let primary = world.primary(shard);
        let found = world
            .desired
            .nodes
            .iter()
            .find(|r| r.shard == shard && Some(&r.id) != primary.as_ref());
        found.expect("a replica").id.to_string()
    };
    let (wrong, orphan) = (replica_of(&world, 0), replica_of(&world, 2));
    world.node(&wrong).follows = Some(foreign);
    world.node(&orphan).follows = None;
    assert_eq!(world.plan().report.state, InstanceState::Degraded);
    let plan = world.round();
    let attached = plan.steps.iter().filter(|p| matches!(p.step, Step::ReplicateNode { .. }));
    assert_eq!(attached.count(), 2, "{plan}");
    world.settle();
    assert!(world.plan().is_settled(), "{}", world.plan());
}

#[test]
fn a_shard_without_a_vote_is_taken_over_when_its_primary_is_known_dead() {
    let mut world = cluster(3, 2);
    let dead: Vec<NodeId> = (0..2).filter_map(|shard| world.primary(shard)).collect();
    for id in &dead {
        world.node(id.as_str()).state = ServerState::Dead;
    }
    let plan = world.plan();
    assert_eq!(takeovers(&plan), 2, "{plan}");
    world.settle();
    assert_eq!(world.served_slots(), SlotSet::full());
}

#[test]
fn a_shard_is_never_taken_over_because_its_primary_is_silent() {
    let mut world = cluster(3, 2);
    let now = world.now;
    for shard in 0..2 {
        let id = world.primary(shard).expect("it runs");
        world.node(id.as_str()).silent = Some(now);
    }
    world.frozen = true;
    let plan = world.plan();
    assert_eq!(takeovers(&plan), 0, "{plan}");
    for worker in &mut world.workers {
        worker.state = WorkerState::Unreachable;
    }
    let plan = world.plan();
    assert_eq!(takeovers(&plan), 0, "{plan}");
    // An administrator's word that the workers are lost is knowledge.
    for worker in &mut world.workers {
        worker.state = WorkerState::Lost;
    }
    let plan = world.plan();
    assert_eq!(takeovers(&plan), 2, "{plan}");
}

/// Its data are where they were, and it is on its way back: what it acknowledged last may be nowhere
/// else.
#[test]
fn no_shard_is_taken_over_from_a_node_that_is_absent_from_a_worker_that_lives() {
    let mut world = cluster(3, 2);
    world.frozen = true;
    for shard in 0..2 {
        let id = world.primary(shard).expect("it runs");
        world.vanish(&id);
    }
    let plan = world.plan();
    assert_eq!(takeovers(&plan), 0, "{plan}");
    assert!(plan.waits.contains(&Wait::Election { shard: 0 }), "{plan}");
    for worker in &mut world.workers {
        worker.state = WorkerState::Unreachable;
    }
    let plan = world.plan();
    assert_eq!(takeovers(&plan), 2, "{plan}");
}

#[test]
fn no_shard_is_taken_over_by_a_replica_that_has_restarted_and_is_behind() {
    let mut world = cluster(3, 2);
    world.frozen = true;
    for shard in 0..2 {
        let id = world.primary(shard).expect("it runs");
        world.node(id.as_str()).state = ServerState::Dead;
        for record in world.desired.nodes.clone().iter().filter(|r| r.shard == shard) {
            world.node(record.id.as_str()).behind = true;
        }
    }
    let plan = world.plan();
    assert_eq!(takeovers(&plan), 0, "{plan}");
    for sim in world.nodes.values_mut() {
        sim.behind = false;
    }
    let plan = world.plan();
    assert_eq!(takeovers(&plan), 2, "{plan}");
}

#[test]
fn where_most_primaries_are_dead_the_silent_one_still_keeps_its_shard() {
    let mut world = cluster(5, 2);
    world.frozen = true;
    let now = world.now;
    let primaries: Vec<NodeId> = (0..4).filter_map(|shard| world.primary(shard)).collect();
    for id in &primaries[..3] {
        world.node(id.as_str()).state = ServerState::Dead;
    }
    world.node(primaries[3].as_str()).silent = Some(now);
    let plan = world.plan();
    assert_eq!(takeovers(&plan), 3, "{plan}");
    let of_silent = |step: &Step| {
        let shard = |id: &NodeId| world.desired.nodes.iter().find(|r| r.id == *id).map(|r| r.shard);
        step.node().and_then(shard) == Some(3)
    };
    assert!(!plan.steps.iter().any(|planned| of_silent(&planned.step)), "{plan}");
    assert!(plan.waits.contains(&Wait::Election { shard: 3 }), "{plan}");
}

#[test]
fn a_vote_that_can_still_go_through_is_left_to_the_servers() {
    let mut world = cluster(3, 2);
    let dead = world.primary(0).expect("it runs");
    world.node(dead.as_str()).state = ServerState::Dead;
    let plan = world.plan();
    assert_eq!(takeovers(&plan), 0, "{plan}");
    assert_eq!(plan.report.state, InstanceState::Unavailable);
}

/// Pain 6: nodes are forgotten or removed while they matter.
#[test]
fn a_dead_node_with_slots_or_a_living_replica_is_never_forgotten() {
    let mut world = cluster(3, 2);
    world.frozen = true;
    let dead = world.primary(0).expect("it runs");
    world.node(dead.as_str()).state = ServerState::Dead;
    // Not even when it has no record any more.
    world.desired.nodes.retain(|record| record.id != dead);
    let plan = world.plan();
    assert!(!plan.steps.iter().any(|p| matches!(p.step, Step::ForgetNodes { .. })), "{plan}");
}

#[test]
fn a_cluster_node_lost_with_its_worker_is_replaced_and_forgotten() {
    let workers = ["w1", "w2", "w3", "w4"];
    let mut world = World::running(Architecture::Cluster, 3, 2, &workers);
    world.lose_worker("w1", WorkerState::Lost);
    let lost: Vec<NodeId> = world
        .desired
        .nodes
        .iter()
        .filter(|record| record.worker.as_str() == "w1")
        .map(|record| record.id.clone())
        .collect();
    assert!(!lost.is_empty());
    world.settle();
    let plan = world.plan();
    assert_eq!(plan.report.state, InstanceState::Running, "{plan}");
    assert_eq!(world.desired.nodes.len(), 6);
    assert!(world.desired.nodes.iter().all(|record| !lost.contains(&record.id)));
    for sim in world.nodes.values() {
        assert_eq!(sim.knows.len(), 6, "somebody remembers a ghost");
    }
}

#[test]
fn a_shard_of_a_cluster_without_a_copy_is_shown_as_lost() {
    let mut world = cluster(3, 1);
    world.node("n2").state = ServerState::Dead;
    world.node("n2").volume = VolumeState::Lost;
    let plan = world.plan();
    assert!(plan.waits.iter().any(|wait| matches!(wait, Wait::DataLost { .. })), "{plan}");
    assert!(plan.steps.is_empty(), "{plan}");
}

fn fail_over(world: &mut World, shard: u32, to: &NodeId) {
    world.begin(OperationKind::Failover {
        shard,
        to: Some(to.clone()),
        accept_data_loss: false,
        from: None,
        without_primary: false,
    });
    world.settle();
    assert_eq!(world.primary(shard).as_ref(), Some(to));
}

/// What a person moves stays where it was moved to; what that may cost is said, with a way out.
#[test]
fn a_worker_that_holds_most_primaries_is_told_with_the_change_that_helps() {
    let told = |world: &World| {
        let conditions = world.plan().report.conditions;
        conditions.into_iter().find(|c| c.kind == "majority-on-one-worker").map(|c| c.message)
    };
    let mut world = World::running(Architecture::Cluster, 3, 2, &["w1", "w2", "w3"]);
    assert_eq!(told(&world), None, "first primaries are apart from each other");
    let (before, to) = {
        let primary = world.primary(0).expect("it runs");
        let of_shard = |r: &&larder_model::NodeRecord| r.shard == 0 && r.id != primary;
        let to = world.desired.nodes.iter().find(of_shard).expect("a replica").id.clone();
        (primary, to)
    };
    fail_over(&mut world, 0, &to);
    let message = told(&world).expect("two primaries share a worker now");
    let worker = world.nodes[&to].worker.clone();
    assert!(
        message.contains(&format!("worker {worker} holds the primaries of 2 of 3")),
        "{message}"
    );
    assert!(message.contains(&format!("--shard 0 --to {before}")), "{message}");
    assert!(world.plan().steps.is_empty(), "nobody undoes what a person asked for");
    fail_over(&mut world, 0, &before);
    assert_eq!(told(&world), None);

    let few = World::running(Architecture::Cluster, 3, 2, &["w1", "w2"]);
    assert_eq!(told(&few), None, "two workers cannot share three primaries better");
}
