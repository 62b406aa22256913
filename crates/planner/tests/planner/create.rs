//! Creation, placement, rendering.

use larder_model::agent::{Problem, ProblemCode};
use larder_model::plan::{OperationOutcome, Plan, Step, Wait};
use larder_model::{Architecture, Code, InstanceState, Millis, NodeId, Observation, StepState};
use larder_planner::{check_room, node_config, place, rules_of_cluster};

use crate::world::World;

const SHAPES: [(Architecture, u32, u32); 5] = [
    (Architecture::Standalone, 1, 1),
    (Architecture::ReadWrite, 1, 2),
    (Architecture::ReadWrite, 1, 11),
    (Architecture::Cluster, 3, 1),
    (Architecture::Cluster, 10, 3),
];

#[test]
fn every_architecture_is_created_and_then_nothing_is_left_to_do() {
    for (architecture, shards, replicas) in SHAPES {
        for workers in [&["w1"][..], &["w1/a", "w2/a", "w3/b", "w4/b", "w5/c", "w6/c"]] {
            let world = World::running(architecture, shards, replicas, workers);
            let plan = world.plan();
            assert!(plan.is_settled(), "{plan}");
            assert_eq!(plan.report.state, InstanceState::Running, "{plan}");
            assert_eq!(world.nodes.len(), (shards * replicas) as usize);
            assert!(world.desired.initialized);
        }
    }
}

#[test]
fn creation_takes_few_rounds() {
    for (architecture, shards, replicas) in SHAPES {
        let mut world = World::new(architecture, shards, replicas, &["w1"]);
        let rounds = world.settle().iter().filter(|plan| !plan.steps.is_empty()).count();
        assert!(rounds <= 8, "{architecture}: {rounds} rounds");
    }
}

#[test]
fn endpoints_are_ensured_in_the_first_plan() {
    let plan = World::new(Architecture::ReadWrite, 1, 2, &["w1"]).plan();
    let endpoints =
        plan.steps.iter().filter(|p| matches!(p.step, Step::EnsureEndpoint { .. })).count();
    assert_eq!(endpoints, 2, "{plan}");
}

#[test]
fn each_step_done_twice_is_as_done_once() {
    for (architecture, shards, replicas) in SHAPES {
        let mut world = World::new(architecture, shards, replicas, &["w1", "w2"]);
        for _ in 0..12 {
            let plan = world.plan();
            for step in &plan.steps {
                world.apply(step);
                let once = world.clone();
                if !matches!(step.step, Step::AssignSlots { .. } | Step::StartEmpty { .. }) {
                    world.apply(step);
                    assert_eq!(world, once, "{step}");
                }
            }
            world.record(&plan);
            world.tick();
        }
        assert!(world.desired.operation.is_none(), "{}", world.plan());
    }
}

#[test]
fn no_node_is_built_before_all_have_addresses() {
    let mut world = World::new(Architecture::ReadWrite, 1, 3, &["w1"]);
    world.pass();
    for record in world.desired.nodes.clone() {
        assert_eq!(node_config(&world.desired, &record), None);
    }
    let plan = world.round();
    assert!(plan.steps.iter().any(|p| matches!(p.step, Step::ReserveAddress { .. })), "{plan}");
    let plan = world.plan();
    let built = plan.steps.iter().filter(|p| matches!(p.step, Step::EnsureNode { .. })).count();
    assert_eq!(built, 3, "{plan}");
    for record in &world.desired.nodes {
        let config = node_config(&world.desired, record).expect("all have addresses");
        assert_eq!(config.members.len(), 3);
        assert!(config.members.is_sorted_by_key(|member| &member.node));
        assert_eq!(config.generation, world.desired.generation);
    }
}

#[test]
fn only_the_first_node_of_a_shard_may_begin_without_a_past() {
    let world = World::running(Architecture::Cluster, 3, 3, &["w1"]);
    for shard in 0..3 {
        let first = world.desired.nodes.iter().filter(|r| r.shard == shard && r.bootstrap).count();
        assert_eq!(first, 1);
    }
}

#[test]
fn a_shard_is_spread_over_workers_and_zones() {
    let workers = ["w1/a", "w2/a", "w3/b", "w4/b", "w5/c", "w6/c"];
    let world = World::running(Architecture::Cluster, 3, 3, &workers);
    for shard in 0..3 {
        let of_shard = || world.desired.nodes.iter().filter(move |r| r.shard == shard);
        let mut names: Vec<_> = of_shard().map(|r| r.worker.clone()).collect();
        let mut zones: Vec<_> = of_shard().filter_map(|r| r.zone.clone()).collect();
        names.sort();
        names.dedup();
        zones.sort();
        zones.dedup();
        assert_eq!((names.len(), zones.len()), (3, 3), "shard {shard}");
    }
    let mut primaries: Vec<_> =
        world.desired.nodes.iter().filter(|r| r.bootstrap).map(|r| r.worker.clone()).collect();
    primaries.sort();
    primaries.dedup();
    assert_eq!(primaries.len(), 3);
}

/// Pain 18: a primary and its own replica on one host.
#[test]
fn pain_18_a_shard_never_sits_on_one_worker_when_there_are_two() {
    let mut world = World::new(Architecture::ReadWrite, 1, 2, &["w1//1GiB", "w2//64MiB"]);
    world.pass();
    let plan = world.plan();
    assert!(
        plan.waits.iter().any(|wait| matches!(wait, Wait::NoRoom { shard: 0, .. })),
        "w2 has no room and w1 has the other node: {plan}"
    );
    assert_eq!(world.desired.nodes.len(), 1);
}

#[test]
fn eleven_nodes_fit_on_three_workers_evenly() {
    let world = World::running(Architecture::ReadWrite, 1, 11, &["w1", "w2", "w3"]);
    for name in ["w1", "w2", "w3"] {
        let here = world.desired.nodes.iter().filter(|r| r.worker.as_str() == name).count();
        assert!((3..=4).contains(&here), "{here} on {name}");
    }
}

#[test]
fn a_full_machine_is_waited_for() {
    let mut world = World::new(Architecture::Standalone, 1, 1, &["w1//64MiB"]);
    assert_eq!(place(&world.desired, &world.observe(), 0, true), None);
    world.pass();
    let plan = world.plan();
    assert_eq!(plan.waits, [Wait::NoRoom { shard: 0, needed_bytes: 128 << 20 },]);
    let report = plan.report.operation.expect("a creation");
    assert_eq!(report.outcome, OperationOutcome::Waiting);
    assert_eq!(report.steps[0].state, StepState::Waiting);
}

#[test]
fn a_creation_without_room_for_all_its_nodes_can_be_refused_beforehand() {
    let room = |workers: &[&str]| {
        let world = World::new(Architecture::Cluster, 3, 2, workers);
        check_room(&world.desired, &world.observe()).map_err(|refusal| refusal.code)
    };
    assert_eq!(room(&["w1//768MiB"]), Ok(()));
    assert_eq!(room(&["w1//767MiB"]), Err(Code::CapacityExceeded));
    assert_eq!(room(&["w1//384MiB", "w2//384MiB"]), Ok(()));
    assert_eq!(room(&["w1//64GiB", "w2//256MiB"]), Err(Code::CapacityExceeded));
}

#[test]
fn too_few_workers_for_the_policy_place_nothing() {
    let mut world = World::new(Architecture::Cluster, 3, 2, &["w1", "w2"]);
    let least = |world: &World| world.desired.policy.cluster_min_workers;
    rules_of_cluster(&mut world.desired, None, false);
    assert_eq!(least(&world), 0, "no choice is no rule");
    rules_of_cluster(&mut world.desired, Some(true), false);
    assert_eq!(least(&world), 6);
    let plan = world.plan();
    assert!(!plan.steps.iter().any(|p| matches!(p.step, Step::RecordNode { .. })), "{plan}");
    let refusal = check_room(&world.desired, &world.observe()).expect_err("too few");
    assert!(refusal.detail.contains("6 workers") && refusal.detail.contains("--spread preferred"));
}

#[test]
fn a_creation_shows_its_steps() {
    let mut world = World::new(Architecture::ReadWrite, 1, 2, &["w1"]);
    let names = |world: &World| {
        let report = world.plan().report.operation.expect("a creation");
        report.steps.into_iter().map(|step| step.name).collect::<Vec<_>>()
    };
    let expected =
        ["place-nodes", "start-nodes", "elect-primary", "sync-replicas", "publish-endpoints"];
    assert_eq!(names(&world), expected);
    world.pass();
    world.pass();
    let report = world.plan().report.operation.expect("a creation");
    assert_eq!(report.steps[0].state, StepState::Succeeded);
    assert_eq!(report.steps[0].message, "2 of 2 nodes have a place and an address");
    assert_eq!(report.steps[1].progress, Some(0.0));
    let cluster = World::new(Architecture::Cluster, 3, 1, &["w1"]);
    assert_eq!(names(&cluster)[2], "form-cluster");
}

#[test]
fn a_creation_whose_server_never_starts_fails_soon_with_its_last_words() {
    let mut world = World::new(Architecture::ReadWrite, 1, 2, &["w1"]);
    while world.desired.nodes.iter().any(|node| node.address.is_none())
        || world.desired.nodes.is_empty()
    {
        world.pass();
    }
    world.pass();
    let plan_with_trouble = |world: &World| {
        let mut observed = world.observe();
        for node in observed.nodes.values_mut() {
            if let Observation::Known { value, .. } = &mut node.agent {
                let message = "ended after 9 ms; its last words: no such option".to_owned();
                value.problem = Some(Problem { code: ProblemCode::ServerWillNotStart, message });
            }
        }
        larder_planner::plan(&world.desired, &observed, world.now, &mut world.ids.clone())
    };
    let outcome = |plan: Plan| plan.report.operation.expect("an operation").outcome;
    let soon = outcome(plan_with_trouble(&world));
    assert!(!matches!(soon, OperationOutcome::Failed(_)), "{soon:?}");
    world.now = world.now + Millis::secs(31);
    let late = plan_with_trouble(&world);
    assert!(late.steps.is_empty(), "{late}");
    let OperationOutcome::Failed(refusal) = outcome(late) else { panic!("still trying") };
    assert!(refusal.detail.contains("no such option"), "{refusal}");

    // With a past it is not given up.
    world.desired.initialized = true;
    let later = outcome(plan_with_trouble(&world));
    assert!(!matches!(later, OperationOutcome::Failed(_)), "{later:?}");
}

#[test]
fn a_creation_that_takes_too_long_fails_and_is_then_left_alone() {
    let mut world = World::new(Architecture::ReadWrite, 1, 2, &["w1"]);
    world.frozen = true;
    for _ in 0..4 {
        world.pass();
    }
    world.now = world.now + Millis::secs(7300);
    let plan = world.round();
    assert!(plan.steps.is_empty(), "{plan}");
    assert_eq!(world.failure.as_ref().map(|refusal| refusal.code), Some(Code::Timeout));
    world.frozen = false;
    let plan = world.plan();
    assert_eq!(plan.report.state, InstanceState::Failed);
    assert!(plan.is_settled(), "{plan}");
}

#[test]
fn an_answer_in_another_nodes_name_is_no_answer() {
    let world = World::running(Architecture::Standalone, 1, 1, &["w1"]);
    let mut observed = world.observe();
    let id = NodeId::new("n1").expect("valid");
    let seen = observed.nodes.get_mut(&id).expect("n1 is there");
    if let larder_model::Observation::Known { value, .. } = &mut seen.agent {
        value.instance = larder_model::InstanceId::new("i-2").expect("valid");
    }
    let state = larder_planner::instance_state(&world.desired, &observed, world.now);
    assert_eq!(state, InstanceState::Degraded);
}
