//! Restart and failover on request.

use std::collections::BTreeMap;

use larder_model::agent::{Role, ServerState, VolumeState};
use larder_model::plan::{OperationOutcome, Plan, Step, Wait};
use larder_model::{
    Architecture, Code, InstanceState, Millis, NodeId, Observation, OperationKind, OperationStep,
    StepState, Timestamp,
};

use crate::world::World;

fn id(name: &str) -> NodeId {
    NodeId::new(name).expect("a valid id")
}

fn restart(node: Option<&str>) -> OperationKind {
    OperationKind::Restart { node: node.map(id), run_ids: BTreeMap::new() }
}

fn failover(shard: u32, to: Option<&str>, accept_data_loss: bool) -> OperationKind {
    OperationKind::Failover {
        shard,
        to: to.map(id),
        accept_data_loss,
        from: None,
        without_primary: false,
    }
}

fn restarted(plans: &[Plan]) -> Vec<String> {
    let mut nodes: Vec<String> = plans
        .iter()
        .flat_map(|plan| &plan.steps)
        .filter(|planned| matches!(planned.step, Step::RestartServer { .. }))
        .filter_map(|planned| planned.step.node().map(ToString::to_string))
        .collect();
    nodes.dedup();
    nodes
}

fn refused(mut world: World, kind: OperationKind) -> Code {
    world.begin(kind);
    let plans = world.settle();
    let changing =
        |plan: &Plan| plan.steps.iter().any(|p| !matches!(p.step, Step::UpdateOperation { .. }));
    assert!(!plans.iter().any(changing), "a refusal changes nothing");
    world.failure.expect("it is refused").code
}

/// Pain 9: an update takes down the primary and its replica together.
#[test]
fn a_restart_takes_one_node_at_a_time_and_the_primary_last_after_handing_over() {
    for (architecture, shards, replicas) in
        [(Architecture::ReadWrite, 1, 3), (Architecture::Cluster, 3, 2)]
    {
        let mut world = World::running(architecture, shards, replicas, &["w1", "w2"]);
        let primaries: Vec<_> = (0..shards).filter_map(|shard| world.primary(shard)).collect();
        let runs: Vec<u32> = world.nodes.values().map(|sim| sim.run).collect();
        world.begin(restart(None));
        let mut plans = Vec::new();
        while world.desired.operation.is_some() {
            plans.push(world.round());
            assert!(plans.len() < 200, "{}", world.plan());
            let down = world.nodes.values().filter(|sim| sim.state != ServerState::Serving).count();
            assert!(down <= 1, "{down} down at once");
        }
        assert_eq!(world.failure, None);
        let order = restarted(&plans);
        assert_eq!(order.len(), (shards * replicas) as usize);
        for (i, node) in order.iter().enumerate() {
            let was_primary = primaries.iter().any(|primary| primary.as_str() == node);
            assert_eq!(was_primary, i >= order.len() - shards as usize, "{order:?}");
        }
        for (sim, before) in world.nodes.values().zip(runs) {
            assert_eq!(sim.run, before + 1);
        }
        assert!(world.plan().is_settled(), "{}", world.plan());
    }
}

#[test]
fn a_standalone_is_restarted_in_place_once() {
    let mut world = World::running(Architecture::Standalone, 1, 1, &["w1"]);
    world.begin(restart(None));
    assert_eq!(world.plan().report.state, InstanceState::Updating);
    let plans = world.settle();
    assert_eq!(restarted(&plans), ["n1"]);
    assert_eq!(world.node("n1").run, 2);
    assert!(world.desired.operation.is_none() && world.failure.is_none());
}

#[test]
fn a_restart_of_one_node_leaves_the_others_alone() {
    let mut world = World::running(Architecture::ReadWrite, 1, 3, &["w1"]);
    world.begin(restart(Some("n3")));
    assert_eq!(restarted(&world.settle()), ["n3"]);
    assert_eq!(world.failure, None);
}

#[test]
fn a_restart_waits_while_another_node_of_the_shard_is_not_well() {
    let mut world = World::running(Architecture::ReadWrite, 1, 3, &["w1"]);
    let now = world.now;
    world.node("n2").silent = Some(now);
    world.begin(restart(Some("n3")));
    let plans = world.settle();
    assert!(restarted(&plans).is_empty());
    assert!(world.desired.operation.is_some());
    world.node("n2").silent = None;
    assert_eq!(restarted(&world.settle()), ["n3"]);
}

#[test]
fn a_restart_of_an_unknown_node_is_refused() {
    let world = World::running(Architecture::ReadWrite, 1, 2, &["w1"]);
    assert_eq!(refused(world, restart(Some("n9"))), Code::NodeNotFound);
}

#[test]
fn a_server_that_dies_during_a_restart_is_not_restarted_twice() {
    let mut world = World::running(Architecture::ReadWrite, 1, 2, &["w1"]);
    world.begin(restart(Some("n2")));
    world.pass();
    // It died by itself and its agent has started it: the noted server is gone.
    world.node("n2").run += 1;
    assert!(restarted(&world.settle()).is_empty());
    assert!(world.desired.operation.is_none() && world.failure.is_none());
}

#[test]
fn a_failover_goes_to_the_chosen_replica() {
    for (architecture, shards, replicas) in
        [(Architecture::ReadWrite, 1, 3), (Architecture::Cluster, 3, 3)]
    {
        let mut world = World::running(architecture, shards, replicas, &["w1", "w2", "w3"]);
        let old = world.primary(0);
        let to = world.desired.nodes.iter().rfind(|r| r.shard == 0 && Some(&r.id) != old.as_ref());
        let to = to.expect("a replica").id.clone();
        world.begin(failover(0, Some(to.as_str()), false));
        world.settle();
        assert_eq!(world.failure, None);
        assert!(world.desired.operation.is_none());
        assert_eq!(world.primary(0), Some(to));
        assert!(world.plan().is_settled(), "{}", world.plan());
    }
}

#[test]
fn a_failover_without_a_choice_goes_to_a_linked_replica() {
    let mut world = World::running(Architecture::ReadWrite, 1, 2, &["w1"]);
    let old = world.primary(0);
    world.begin(failover(0, None, false));
    world.settle();
    assert_ne!(world.primary(0), old);
    assert!(world.desired.operation.is_none() && world.failure.is_none());
}

#[test]
fn failovers_that_cannot_work_are_refused_with_their_reason() {
    let standalone = World::running(Architecture::Standalone, 1, 1, &["w1"]);
    assert_eq!(refused(standalone, failover(0, None, false)), Code::NoEligibleReplica);
    let world = World::running(Architecture::ReadWrite, 1, 2, &["w1"]);
    let primary = world.primary(0).expect("it runs");
    assert_eq!(
        refused(world.clone(), failover(0, Some(primary.as_str()), false)),
        Code::NoEligibleReplica
    );
    assert_eq!(refused(world.clone(), failover(0, Some("n9"), false)), Code::NodeNotFound);
    assert_eq!(refused(world.clone(), failover(1, None, false)), Code::InvalidRequest);
    let mut unlinked = world.clone();
    unlinked.frozen = true;
    unlinked.node("n2").link_up = false;
    assert_eq!(refused(unlinked, failover(0, Some("n2"), false)), Code::NoEligibleReplica);
    let mut dead = world;
    dead.frozen = true;
    dead.node(primary.as_str()).state = ServerState::Dead;
    assert_eq!(refused(dead, failover(0, Some("n2"), false)), Code::DataLossNotAccepted);
}

#[test]
fn a_person_may_accept_the_loss_of_data_when_the_primary_is_dead() {
    for (architecture, shards) in [(Architecture::ReadWrite, 1), (Architecture::Cluster, 3)] {
        let mut world = World::running(architecture, shards, 2, &["w1"]);
        let old = world.primary(0).expect("it runs");
        let to = world.desired.nodes.iter().find(|r| r.shard == 0 && r.id != old);
        let to = to.expect("a replica").id.clone();
        world.frozen = true;
        world.node(old.as_str()).state = ServerState::Dead;
        world.begin(failover(0, Some(to.as_str()), true));
        world.settle();
        assert_eq!(world.failure, None);
        assert_eq!(world.primary(0), Some(to));
        assert!(world.desired.operation.is_none(), "{}", world.plan());
    }
}

#[test]
fn no_word_of_a_person_makes_a_node_without_data_lead() {
    let mut world = World::running(Architecture::ReadWrite, 1, 3, &["w1"]);
    world.frozen = true;
    world.vacate();
    for name in ["n1", "n2", "n3"] {
        world.node(name).volume = VolumeState::Lost;
    }
    world.begin(failover(0, Some("n2"), true));
    let plans = world.settle();
    let ordered = plans.iter().any(|p| p.steps.iter().any(|s| s.step.node().is_some()));
    assert!(!ordered && world.desired.operation.is_none());
    let refusal = world.failure.expect("it fails");
    assert_eq!(refusal.code, Code::NoEligibleReplica);
    assert!(refusal.detail.contains("no data to lead with"), "{refusal}");
}

/// A command that takes a second is no reason to kill a primary that could hand over.
#[test]
fn a_primary_that_pauses_for_a_moment_is_neither_killed_nor_overthrown() {
    for kind in [restart(None), failover(0, Some("n2"), true)] {
        let mut world = World::running(Architecture::ReadWrite, 1, 2, &["w1"]);
        world.begin(kind);
        world.pass();
        world.hang("n1");
        let since = world.now;
        while world.now.since(since) < Millis(4_900) {
            let plan = world.round();
            let harmless = |step: &Step| matches!(step, Step::UpdateOperation { .. });
            assert!(plan.steps.iter().all(|planned| harmless(&planned.step)), "{plan}");
        }
        world.node("n1").stuck = None;
        world.node("n1").state = ServerState::Serving;
        let plans = world.settle();
        let handed_over = |plan: &Plan| {
            plan.steps.iter().any(|planned| matches!(planned.step, Step::HandOver { .. }))
        };
        assert!(plans.iter().any(handed_over) && world.desired.operation.is_none());
    }
}

/// Found on a real machine: the replica was restarted first, and could not copy from a primary
/// that had begun to hang meanwhile.
#[test]
fn a_primary_that_hangs_in_the_middle_of_a_restart_is_restarted_next() {
    for (architecture, shards) in [(Architecture::ReadWrite, 1), (Architecture::Cluster, 3)] {
        let mut world = World::running(architecture, shards, 2, &["w1"]);
        let primary = world.primary(0).expect("it runs").to_string();
        world.begin(restart(None));
        while world.nodes.values().all(|sim| sim.run == 1) {
            world.pass();
        }
        world.frozen = true;
        world.hang(&primary);
        let now = world.now;
        for sim in world.nodes.values_mut().filter(|sim| sim.state == ServerState::Loading) {
            sim.state = ServerState::Serving;
        }
        world.now = now + Millis::secs(5);
        let plans: Vec<Plan> = (0..2).map(|_| world.round()).collect();
        assert_eq!(restarted(&plans), [primary]);
        world.frozen = false;
        world.settle();
        assert!(world.desired.operation.is_none() && world.failure.is_none());
    }
}

#[test]
fn a_primary_that_hangs_in_the_middle_of_a_failover_is_waited_for_no_longer_than_it_may_take() {
    let mut world = World::running(Architecture::ReadWrite, 1, 3, &["w1"]);
    world.begin(failover(0, Some("n3"), true));
    world.pass();
    world.hang("n1");
    while world.desired.operation.is_some() {
        assert!(world.now.since(Timestamp(1_000_000)) < Millis::secs(30), "{}", world.plan());
        world.pass();
    }
    assert_eq!((world.primary(0), world.failure.clone()), (Some(id("n3")), None));
}

#[test]
fn nobody_takes_a_lease_in_the_middle_of_a_hand_over() {
    let mut world = World::running(Architecture::ReadWrite, 1, 2, &["w1"]);
    let old = world.primary(0).expect("it runs");
    world.begin(OperationKind::Failover {
        shard: 0,
        to: Some(id("n2")),
        accept_data_loss: true,
        from: Some(old),
        without_primary: false,
    });
    // Asked for long ago, and begun only now: `serve` was down, or somebody was waited for.
    let begun = world.now;
    let operation = world.desired.operation.as_mut().expect("begun");
    operation.created_at = Timestamp(begun.0 - 60_000);
    operation.steps = vec![OperationStep {
        name: "change-primary".to_owned(),
        state: StepState::Running,
        progress: None,
        message: String::new(),
        started_at: Some(begun),
        finished_at: None,
    }];
    // Demoted and alive, nobody leads for a moment.
    let plan = |world: &mut World| {
        let mut observed = world.observe();
        for seen in observed.nodes.values_mut() {
            if let Observation::Known { value, .. } = &mut seen.agent {
                value.lease.as_mut().expect("leased").holder = None;
            }
        }
        larder_planner::plan(&world.desired, &observed, world.now, &mut world.ids)
    };
    world.now = begun + Millis::secs(14);
    let early = plan(&mut world);
    assert!(early.steps.is_empty(), "{early}");
    world.now = begun + Millis::secs(15);
    let late = plan(&mut world);
    assert!(late.steps.iter().any(|p| matches!(p.step, Step::TakeLease { .. })), "{late}");
}

/// Right after a start of `serve` nothing is known of any agent: that is no reason to refuse.
#[test]
fn a_failover_waits_for_agents_that_were_not_heard_yet() {
    let mut world = World::running(Architecture::ReadWrite, 1, 2, &["w1"]);
    world.begin(failover(0, None, false));
    let mut observed = world.observe();
    for node in observed.nodes.values_mut() {
        node.agent = Observation::UnknownYet;
    }
    let plan = larder_planner::plan(&world.desired, &observed, world.now, &mut world.ids.clone());
    assert!(plan.steps.is_empty(), "{plan}");
    let outcome = plan.report.operation.expect("an operation").outcome;
    assert!(!matches!(outcome, OperationOutcome::Failed(_)), "{outcome:?}");
    world.settle();
    assert_eq!(world.failure, None);
}

/// A voter that takes the replica for a primary would deny its vote, and the primary's clients
/// would be paused for four node timeouts.
#[test]
fn a_coordinated_failover_waits_until_every_voter_knows_the_replica() {
    let mut world = World::running(Architecture::Cluster, 3, 2, &["w1"]);
    world.begin(failover(0, None, false));
    while !world.plan().steps.iter().any(|p| matches!(p.step, Step::FailOverShard { .. })) {
        world.pass();
    }
    let voter = world.primary(1).expect("a primary");
    let mut observed = world.observe();
    let agent = &mut observed.nodes.get_mut(&voter).expect("the voter").agent;
    let Observation::Known { value, .. } = agent else { panic!("the voter is heard") };
    for peer in &mut value.cluster.as_mut().expect("a cluster node").nodes {
        if peer.role == Role::Replica {
            peer.role = Role::Primary;
            peer.primary = None;
        }
    }
    let plan = larder_planner::plan(&world.desired, &observed, world.now, &mut world.ids.clone());
    let ordered = plan.steps.iter().any(|p| matches!(p.step, Step::FailOverShard { .. }));
    assert!(!ordered && plan.waits.contains(&Wait::Gossip { node: voter }), "{plan}");
    world.settle();
    assert_eq!(world.failure, None);
}
