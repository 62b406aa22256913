//! Healing of leased instances, and what must not be taken for a reason to act.

use larder_model::agent::{ServerState, VolumeState};
use larder_model::plan::{Plan, PlannedStep, Step, Wait};
use larder_model::{Architecture, EndpointKind, InstanceState, Millis, NodePhase, WorkerState};

use crate::world::World;

fn removes_or_adds(plan: &Plan) -> bool {
    plan.steps.iter().any(|planned| {
        matches!(
            planned.step,
            Step::RecordNode { .. }
                | Step::RetireNode { .. }
                | Step::RemoveNode { .. }
                | Step::ForgetRecord { .. }
        )
    })
}

/// A Service that is there and leads nowhere, for good: its slice was deleted by hand.
#[test]
fn an_endpoint_of_which_a_part_was_deleted_is_made_again() {
    let mut world = World::running(Architecture::ReadWrite, 1, 2, &["w1", "w2"]);
    world.torn.insert(EndpointKind::Write);
    let plan = world.round();
    let ensures = |planned: &PlannedStep| {
        planned.step == Step::EnsureEndpoint { endpoint: EndpointKind::Write }
    };
    assert!(plan.steps.len() == 1 && ensures(&plan.steps[0]), "{plan}");
    let _ = world.round();
    let plan = world.plan();
    assert!(plan.steps.is_empty(), "{plan}");
    assert_eq!(plan.report.state, InstanceState::Running);
}

/// Pain 7: a crash is read as "scale down".
#[test]
fn a_crashed_node_is_not_a_surplus_node() {
    for (architecture, shards, replicas) in
        [(Architecture::ReadWrite, 1, 3), (Architecture::Cluster, 3, 2)]
    {
        let mut world = World::running(architecture, shards, replicas, &["w1", "w2"]);
        world.node("n1").state = ServerState::Dead;
        for _ in 0..20 {
            assert!(!removes_or_adds(&world.round()), "{}", world.plan());
        }
        assert_eq!(world.desired.nodes.len(), (shards * replicas) as usize);
        assert_eq!(world.plan().report.state, InstanceState::Degraded);
    }
}

/// Redis says that the link is up up to a second before the primary's writes flow: who loses the
/// primary in between loses what was acknowledged.
#[test]
fn a_replica_that_is_not_streamed_to_is_not_in_sync() {
    for (architecture, shards, replicas) in
        [(Architecture::ReadWrite, 1, 2), (Architecture::Cluster, 3, 2)]
    {
        let mut world = World::running(architecture, shards, replicas, &["w1", "w2"]);
        let replica = (world.desired.nodes.iter().map(|record| record.id.clone()))
            .find(|id| (0..shards).all(|shard| world.primary(shard).as_ref() != Some(id)))
            .expect("a replica");
        world.unstreamed.insert(replica.clone());
        let plan = world.plan();
        assert_eq!(plan.report.state, InstanceState::Degraded, "{plan}");
        let awaited = Wait::ReplicaSyncing { node: replica.clone() };
        assert!(plan.steps.is_empty() && plan.waits == [awaited], "{plan}");
        world.unstreamed.clear();
        assert_eq!(world.plan().report.state, InstanceState::Running);
    }
}

#[test]
fn silence_alone_changes_nothing() {
    for (architecture, shards, replicas) in [
        (Architecture::Standalone, 1, 1),
        (Architecture::ReadWrite, 1, 3),
        (Architecture::Cluster, 3, 2),
    ] {
        let mut world = World::running(architecture, shards, replicas, &["w1", "w2"]);
        let now = world.now;
        for sim in world.nodes.values_mut() {
            sim.silent = Some(now);
        }
        world.now = world.now + Millis::secs(86_400);
        let plan = world.plan();
        assert!(plan.steps.is_empty(), "{plan}");
        assert_eq!(plan.report.state, InstanceState::Degraded);
        world.backend_unknown = true;
        let plan = world.plan();
        assert!(plan.steps.is_empty(), "{plan}");
    }
}

#[test]
fn a_replica_that_copies_says_that_its_silent_primary_lives() {
    let mut world = World::running(Architecture::ReadWrite, 1, 2, &["w1"]);
    let now = world.now;
    world.node("n1").silent = Some(now);
    assert_eq!(world.plan().report.state, InstanceState::Degraded);
    world.node("n2").link_up = false;
    assert_eq!(world.plan().report.state, InstanceState::Unavailable);
}

#[test]
fn a_dead_standalone_is_unavailable_until_its_agent_has_restarted_it() {
    let mut world = World::running(Architecture::Standalone, 1, 1, &["w1"]);
    world.node("n1").state = ServerState::Dead;
    let plan = world.plan();
    assert!(plan.steps.is_empty(), "{plan}");
    assert_eq!(plan.report.state, InstanceState::Unavailable);
    world.node("n1").state = ServerState::Starting;
    world.settle();
    assert_eq!(world.plan().report.state, InstanceState::Running);
}

#[test]
fn a_node_that_the_container_cluster_lost_is_made_again_and_joins_as_a_replica() {
    let mut world = World::running(Architecture::ReadWrite, 1, 2, &["w1"]);
    let primary = world.primary(0).expect("it runs");
    let gone = world.nodes.keys().find(|id| **id != primary).expect("a replica").clone();
    world.vanish(&gone);
    let plan = world.round();
    assert!(matches!(plan.steps[0].step, Step::EnsureNode { .. }), "{plan}");
    let plan = world.round();
    assert!(matches!(plan.steps[0].step, Step::StartEmpty { .. }), "{plan}");
    world.settle();
    assert_eq!(world.plan().report.state, InstanceState::Running);
}

/// Pain 3: the primary comes back empty and wipes its replicas.
#[test]
fn a_primary_that_lost_its_volume_never_starts_empty_by_itself() {
    let mut world = World::running(Architecture::Standalone, 1, 1, &["w1"]);
    world.node("n1").state = ServerState::Dead;
    world.node("n1").volume = VolumeState::Lost;
    for _ in 0..5 {
        let plan = world.round();
        assert!(plan.steps.is_empty(), "{plan}");
        assert!(plan.waits.contains(&Wait::DataLost { shard: 0 }), "{plan}");
        assert_eq!(plan.report.state, InstanceState::Unavailable);
        assert!(plan.report.conditions.iter().any(|c| c.kind == "data-lost" && c.status));
    }
}

#[test]
fn a_lost_volume_that_was_put_back_is_lost_no_more() {
    let mut world = World::running(Architecture::Standalone, 1, 1, &["w1"]);
    world.node("n1").state = ServerState::Dead;
    world.node("n1").volume = VolumeState::Lost;
    assert!(world.round().waits.contains(&Wait::DataLost { shard: 0 }));
    world.node("n1").volume = VolumeState::Data;
    let plan = world.round();
    assert!(!plan.waits.contains(&Wait::DataLost { shard: 0 }), "{plan}");
    assert!(!plan.report.conditions.iter().any(|c| c.kind == "data-lost"), "{plan}");
    world.node("n1").state = ServerState::Serving;
    world.settle();
    assert_eq!(world.plan().report.state, InstanceState::Running);
}

#[test]
fn a_replica_whose_volume_is_gone_waits_while_nobody_serves() {
    let mut world = World::running(Architecture::ReadWrite, 1, 2, &["w1"]);
    world.frozen = true;
    for sim in world.nodes.values_mut() {
        sim.state = ServerState::Dead;
    }
    world.node("n2").volume = VolumeState::Lost;
    let plan = world.plan();
    assert!(plan.steps.is_empty(), "{plan}");
    assert!(!plan.report.conditions.iter().any(|c| c.kind == "data-lost"), "n1 has its file");
}

#[test]
fn an_empty_server_that_waits_for_a_lost_primary_is_no_copy() {
    let mut world = World::running(Architecture::ReadWrite, 1, 2, &["w1"]);
    world.frozen = true;
    for node in ["n1", "n2"] {
        world.node(node).volume = VolumeState::Lost;
    }
    world.node("n1").state = ServerState::Dead;
    world.node("n2").link_up = false;
    let plan = world.plan();
    assert!(plan.waits.contains(&Wait::DataLost { shard: 0 }), "{plan}");
    world.node("n2").link_up = true;
    let plan = world.plan();
    assert!(!plan.waits.contains(&Wait::DataLost { shard: 0 }), "it copies from somebody: {plan}");
}

/// Pain 24: a dead host.
#[test]
fn a_node_lost_with_its_worker_is_replaced_elsewhere_and_only_then_removed() {
    for state in [WorkerState::Unreachable, WorkerState::Lost] {
        let mut world = World::running(Architecture::ReadWrite, 1, 2, &["w1", "w2", "w3"]);
        world.lose_worker("w1", state);
        let old = world.desired.nodes.iter().find(|r| r.worker.as_str() == "w1").expect("placed");
        let old = old.id.clone();
        world.tick();
        if state == WorkerState::Unreachable {
            world.settle();
            let plan = world.plan();
            assert!(
                plan.waits.iter().any(|w| matches!(w, Wait::ReplacementDelay { .. })),
                "{plan}"
            );
            world.now = world.now + Millis::secs(301);
        }
        let plan = world.plan();
        let recorded = |plan: &Plan| {
            plan.steps.iter().any(
                |p| matches!(&p.step, Step::RecordNode { worker, .. } if worker.as_str() == "w3"),
            )
        };
        assert!(recorded(&plan), "{plan}");
        assert!(!plan.steps.iter().any(|p| matches!(p.step, Step::RetireNode { .. })), "{plan}");
        world.settle();
        assert!(world.desired.nodes.iter().all(|r| r.id != old), "{}", world.plan());
        assert_eq!(world.desired.nodes.len(), 2);
        assert_eq!(world.plan().report.state, InstanceState::Running, "{}", world.plan());
    }
}

#[test]
fn a_lost_node_is_kept_while_no_other_worker_has_room() {
    let mut world = World::running(Architecture::ReadWrite, 1, 2, &["w1", "w2"]);
    world.lose_worker("w1", WorkerState::Lost);
    world.settle();
    let plan = world.plan();
    assert!(plan.waits.iter().any(|wait| matches!(wait, Wait::NoRoom { .. })), "{plan}");
    assert_eq!(world.desired.nodes.len(), 2);
}

#[test]
fn a_node_that_comes_back_while_it_is_being_replaced_stays() {
    let mut world = World::running(Architecture::ReadWrite, 1, 2, &["w1", "w2", "w3"]);
    world.lose_worker("w2", WorkerState::Unreachable);
    world.now = world.now + Millis::secs(301);
    world.pass();
    assert_eq!(world.desired.nodes.len(), 3);
    world.workers[1].state = WorkerState::Ready;
    for sim in world.nodes.values_mut() {
        sim.silent = None;
        sim.state = ServerState::Serving;
    }
    world.settle();
    assert_eq!(world.desired.nodes.len(), 2);
    assert!(world.desired.nodes.iter().all(|r| r.phase == NodePhase::Wanted));
    assert!(world.desired.nodes.iter().all(|r| r.id.as_str() != "n3"), "the youngest goes");
    assert_eq!(world.plan().report.state, InstanceState::Running);
}

#[test]
fn a_shard_whose_workers_are_all_lost_is_lost_and_nothing_is_recreated() {
    let mut world = World::running(Architecture::ReadWrite, 1, 2, &["w1", "w2", "w3"]);
    world.lose_worker("w1", WorkerState::Lost);
    world.lose_worker("w2", WorkerState::Lost);
    let plan = world.plan();
    assert!(!removes_or_adds(&plan), "{plan}");
    assert!(plan.waits.contains(&Wait::DataLost { shard: 0 }), "{plan}");
    assert_eq!(plan.report.state, InstanceState::Unavailable);
}

#[test]
fn a_configuration_that_lags_behind_is_handed_out_again() {
    let mut world = World::running(Architecture::ReadWrite, 1, 2, &["w1"]);
    world.desired.generation += 1;
    let plan = world.plan();
    let count = |test: fn(&Step) -> bool| plan.steps.iter().filter(|p| test(&p.step)).count();
    assert_eq!(count(|s| matches!(s, Step::EnsureNode { .. })), 2, "{plan}");
    assert_eq!(count(|s| matches!(s, Step::ConfigureNode { .. })), 2, "{plan}");
    assert_eq!(plan.report.state, InstanceState::Running);
    world.settle();
    assert!(world.plan().is_settled());
}

#[test]
fn a_silent_endpoint_keeps_the_instance_from_running() {
    let mut world = World::running(Architecture::ReadWrite, 1, 2, &["w1"]);
    world.endpoints.insert(larder_model::EndpointKind::Read, false);
    assert_eq!(world.plan().report.state, InstanceState::Degraded);
    world.endpoints.insert(larder_model::EndpointKind::Write, false);
    assert_eq!(world.plan().report.state, InstanceState::Unavailable);
}

/// Drift: what a lost worker leaves behind is put right, without a copy less at any time.
#[test]
fn nodes_that_share_a_worker_are_spread_again_by_create_before_destroy() {
    for (architecture, shards) in [(Architecture::ReadWrite, 1), (Architecture::Cluster, 3)] {
        let mut world = World::running(architecture, shards, 2, &["w1", "w2"]);
        let primary = world.primary(0).expect("it runs");
        let other = (world.desired.nodes.iter())
            .find(|record| record.shard == 0 && record.id != primary)
            .map(|record| record.id.clone())
            .expect("a replica");
        let here = world.nodes[&primary].worker.clone();
        // As after a time in which there was only one worker.
        world.nodes.get_mut(&other).expect("it is there").worker = here.clone();
        for record in world.desired.nodes.iter_mut().filter(|record| record.id == other) {
            record.worker = here.clone();
        }
        let drifted = |plan: &Plan| plan.report.conditions.iter().any(|c| c.kind == "drifted");
        let plan = world.plan();
        assert!(drifted(&plan) && !removes_or_adds(&plan), "it rests first: {plan}");
        assert_eq!(plan.report.state, InstanceState::Running);
        world.now = world.now + Millis::secs(600);
        let plans = world.settle();
        let copies = |plan: &Plan| {
            plan.steps.iter().filter(|p| matches!(p.step, Step::RecordNode { .. })).count()
        };
        assert_eq!(plans.iter().map(copies).sum::<usize>(), 1, "one node moves");
        let least = plans.iter().flat_map(|plan| &plan.report.conditions);
        assert!(least.filter(|c| c.kind == "redundant").all(|c| c.status), "no copy less");
        let plan = world.plan();
        assert!(!drifted(&plan) && plan.steps.is_empty(), "{plan}");
        assert_eq!(world.primary(0), Some(primary), "the primary stays");
        assert!(!world.nodes.contains_key(&other), "the one that shared its worker is gone");
    }
}

/// The scheduler has its reasons; to copy the shard every ten minutes does not change them.
#[test]
fn a_move_that_the_scheduler_overrules_is_not_repeated_before_a_day_has_passed() {
    let mut world = World::running(Architecture::ReadWrite, 1, 2, &["w1", "w2"]);
    let primary = world.primary(0).expect("it runs");
    let here = world.nodes[&primary].worker.clone();
    let overrule = |world: &mut World| {
        for record in world.desired.nodes.iter_mut().filter(|record| record.worker != here) {
            (record.worker, record.overruled) = (here.clone(), true);
        }
        world.nodes.values_mut().for_each(|node| node.worker = here.clone());
    };
    let copies = |plans: &[Plan]| {
        let steps = plans.iter().flat_map(|plan| &plan.steps);
        steps.filter(|planned| matches!(planned.step, Step::RecordNode { .. })).count()
    };
    // The first placement was the scheduler's as well, while there was only one worker.
    overrule(&mut world);
    world.desired.nodes.iter_mut().for_each(|record| record.overruled = false);
    let mut made = 0;
    for _ in 0..20 {
        world.now = world.now + Millis::secs(600);
        made += copies(&world.settle());
        overrule(&mut world);
        let plan = world.plan();
        assert!(plan.report.conditions.iter().any(|c| c.kind == "drifted"), "{plan}");
    }
    assert_eq!(made, 1, "one try");
    world.now = world.now + Millis::secs(86_400);
    assert_eq!(copies(&world.settle()), 1, "and another one a day later");
}

#[test]
fn more_nodes_than_workers_is_no_drift() {
    let mut world = World::running(Architecture::ReadWrite, 1, 3, &["w1", "w2"]);
    world.now = world.now + Millis::secs(86_400);
    let plan = world.plan();
    assert!(plan.steps.is_empty(), "{plan}");
    assert!(!plan.report.conditions.iter().any(|c| c.kind == "drifted"), "{plan}");
}
