//! Ways from outside to the nodes of a cluster instance.

use larder_model::plan::{Step, Wait};
use larder_model::{Architecture, Expose, Exposed, OuterAddress};
use larder_planner::node_config;

use crate::world::World;

fn exposed(way: Expose) -> World {
    let mut world = World::new(Architecture::Cluster, 3, 2, &["w1", "w2", "w3"]);
    world.desired.spec.expose = Some(way);
    world
}

#[test]
fn an_exposed_cluster_is_created_and_then_nothing_is_left_to_do() {
    for way in Expose::ALL {
        let mut world = exposed(way);
        world.settle();
        assert!(world.desired.operation.is_none(), "not created: {}", world.plan());
        let plan = world.plan();
        assert!(plan.is_settled(), "{plan}");
        for record in &world.desired.nodes {
            assert_eq!(record.outer.is_some(), way.is_outside(), "{record:?}");
        }
    }
}

#[test]
fn no_node_is_built_before_every_one_has_its_way_from_outside() {
    let mut world = exposed(Expose::LoadBalancer);
    world.pass();
    let _ = world.round();
    // The load balancer takes its time with one of them.
    let slow = world.desired.nodes[3].id.clone();
    world.nodes.get_mut(&slow).expect("reserved").exposed = Exposed::Pending;
    let _ = world.round();
    for record in &world.desired.nodes {
        assert_eq!(record.outer.is_some(), record.id != slow);
        assert_eq!(node_config(&world.desired, record), None, "{}", record.id);
    }
    let plan = world.plan();
    assert!(plan.waits.contains(&Wait::NodeNotExposed { node: slow.clone() }), "{plan}");
    assert!(plan.steps.iter().all(|p| !matches!(p.step, Step::EnsureNode { .. })), "{plan}");
    let outer = OuterAddress { host: Some("10.102.0.9".into()), port: 6379, bus_port: None };
    world.nodes.get_mut(&slow).expect("reserved").exposed = Exposed::Yes(outer.clone());
    let _ = world.round();
    let record = world.desired.nodes.iter().find(|record| record.id == slow).expect("recorded");
    assert_eq!(record.outer.as_ref(), Some(&outer));
    let config = node_config(&world.desired, record).expect("everybody has an address");
    assert_eq!(config.outer.as_ref(), Some(&outer));
    assert!(config.members.iter().all(|member| member.outer.is_some()));
}

#[test]
fn another_address_outside_is_written_down_and_announced() {
    let mut world = exposed(Expose::LoadBalancer);
    world.settle();
    let node = world.desired.nodes[0].id.clone();
    let outer = OuterAddress { host: Some("10.102.0.9".into()), port: 6379, bus_port: None };
    world.nodes.get_mut(&node).expect("there").exposed = Exposed::Yes(outer.clone());
    let before = world.desired.generation;
    let plan = world.plan();
    assert_eq!(plan.steps.len(), 1, "{plan}");
    assert_eq!(plan.steps[0].step, Step::ExposeNode { node: node.clone() });
    world.settle();
    assert!(world.desired.generation > before, "every agent is told");
    assert!(world.nodes.values().all(|sim| sim.agent_generation == world.desired.generation));
    assert!(world.plan().is_settled(), "{}", world.plan());
}

#[test]
fn a_way_that_somebody_has_closed_is_opened_again() {
    let mut world = exposed(Expose::NodePort);
    world.settle();
    let node = world.desired.nodes[0].id.clone();
    world.nodes.get_mut(&node).expect("there").exposed = Exposed::No;
    let plan = world.plan();
    assert!(plan.steps.iter().any(|p| p.step == Step::ExposeNode { node: node.clone() }), "{plan}");
    world.settle();
    assert!(world.plan().is_settled(), "{}", world.plan());
    // What nobody can look at is left alone.
    world.backend_unknown = true;
    let plan = world.plan();
    assert!(plan.steps.iter().all(|p| !matches!(p.step, Step::ExposeNode { .. })), "{plan}");
}

#[test]
fn only_cluster_instances_need_a_way_to_each_node() {
    let mut world = World::new(Architecture::ReadWrite, 1, 3, &["w1", "w2", "w3"]);
    world.desired.spec.expose = Some(Expose::NodePort);
    world.settle();
    assert!(world.desired.operation.is_none(), "not created: {}", world.plan());
    assert!(world.desired.nodes.iter().all(|record| record.outer.is_none()));
}
