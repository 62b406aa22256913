//! Chained replication: who copies from whom, whatever dies and comes back.

use larder_model::agent::ServerState;
use larder_model::plan::Step;
use larder_model::{Architecture, InstanceState, Millis, NodeId, OperationKind};

use crate::world::World;

fn id(name: &str) -> NodeId {
    NodeId::new(name).expect("a valid id")
}

/// A chain of a primary and four replicas.
fn chain() -> World {
    let mut world = World::running(Architecture::ReadWrite, 1, 5, &["w1", "w2", "w3"]);
    switch(&mut world, true);
    world
}

fn switch(world: &mut World, chained: bool) {
    let former = world.desired.spec.chained;
    world.change(OperationKind::SetChained { former }, |spec| spec.chained = chained);
    world.settle();
    assert!(world.desired.operation.is_none(), "{}", world.plan());
    assert_eq!(world.failure, None);
}

/// From the primary downwards, along the links as the servers show them.
fn links(world: &World) -> Vec<String> {
    let mut at = world.primary(0);
    let mut names = Vec::new();
    let serves = |node: &NodeId| world.nodes[node].state == ServerState::Serving;
    while let Some(node) = at {
        names.push(node.to_string());
        let below: Vec<_> = world
            .nodes
            .keys()
            .filter(|other| serves(other) && world.above(other) == Some(&node))
            .collect();
        assert!(below.len() <= 1, "node {node} feeds {below:?}");
        at = below.first().map(|&node| node.clone());
    }
    names
}

fn is_settled(world: &World) {
    assert!(world.plan().is_settled(), "{}", world.plan());
    assert_eq!(world.plan().report.state, InstanceState::Running);
}

#[test]
fn a_chain_is_switched_on_and_off_and_the_primary_feeds_one_replica_only() {
    let mut world = chain();
    assert_eq!(links(&world), ["n1", "n2", "n3", "n4", "n5"]);
    is_settled(&world);
    switch(&mut world, false);
    let primary = world.primary(0).expect("led");
    let fed = world.nodes.keys().filter(|node| world.above(node) == Some(&primary)).count();
    assert_eq!(fed, 4);
    is_settled(&world);
}

#[test]
fn who_dies_in_the_middle_is_linked_around_and_comes_back_at_the_tail() {
    let mut world = chain();
    world.node("n3").state = ServerState::Dead;
    world.settle();
    assert_eq!(links(&world), ["n1", "n2", "n4", "n5"]);
    world.node("n3").state = ServerState::Serving;
    world.settle();
    assert_eq!(links(&world), ["n1", "n2", "n4", "n5", "n3"]);
    is_settled(&world);
}

#[test]
fn nobody_is_moved_for_two_that_are_gone_at_the_tail() {
    let mut world = chain();
    for name in ["n4", "n5"] {
        world.node(name).silent = Some(world.now);
    }
    world.now = world.now + Millis::secs(60);
    let plan = world.plan();
    assert!(!plan.steps.iter().any(|p| matches!(p.step, Step::PlaceInLine { .. })), "{plan}");
}

#[test]
fn a_former_primary_stands_last_and_the_new_one_first() {
    let mut world = chain();
    let to = Some(id("n4"));
    world.begin(OperationKind::Failover {
        shard: 0,
        to,
        accept_data_loss: false,
        from: None,
        without_primary: false,
    });
    world.settle();
    assert_eq!(world.failure, None);
    assert_eq!(links(&world), ["n4", "n2", "n3", "n5", "n1"]);
    is_settled(&world);
    world.node("n4").state = ServerState::Dead;
    world.settle();
    assert_eq!(links(&world).len(), 4);
    world.node("n4").state = ServerState::Serving;
    world.settle();
    assert_eq!(links(&world).len(), 5);
    assert_eq!(links(&world).last().map(String::as_str), Some("n4"));
    is_settled(&world);
}

#[test]
fn whom_a_replica_has_left_goes_to_the_tail() {
    let mut world = chain();
    world.node("n3").left_upstream = Some(id("n2"));
    world.settle();
    assert_eq!(links(&world), ["n1", "n3", "n4", "n5", "n2"]);
    is_settled(&world);
}

#[test]
fn nodes_come_and_go_at_the_tail_and_new_servers_take_over_along_the_chain() {
    let mut world = chain();
    let kind = OperationKind::Scale {
        former_shards: 1,
        former_replicas: 5,
        share_slots: false,
        paused: false,
    };
    world.change(kind, |spec| spec.replicas = 6);
    world.settle();
    assert_eq!(links(&world), ["n1", "n2", "n3", "n4", "n5", "n6"]);
    let kind = OperationKind::Renew { former: world.desired.spec.revision };
    world.change(kind, |spec| spec.revision += 1);
    world.settle();
    assert_eq!(world.failure, None);
    assert_eq!(links(&world).len(), 6);
    assert!(links(&world).iter().all(|name| name.as_str() > "n6" || name.len() > 2));
    is_settled(&world);
}
