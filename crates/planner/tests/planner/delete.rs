//! Deletion from every state on the way.

use larder_model::plan::{Step, Wait};
use larder_model::{Architecture, InstanceState};

use crate::world::World;

#[test]
fn deletion_from_every_prefix_of_creation_leaves_nothing() {
    for (architecture, shards, replicas) in [
        (Architecture::Standalone, 1, 1),
        (Architecture::ReadWrite, 1, 3),
        (Architecture::Cluster, 3, 2),
    ] {
        // Every plan, and within it every prefix of its steps.
        let mut world = World::new(architecture, shards, replicas, &["w1", "w2"]);
        for _ in 0..10 {
            let plan = world.plan();
            for done in 0..=plan.steps.len() {
                let mut half = world.clone();
                for step in &plan.steps[..done] {
                    half.apply(step);
                }
                half.tick();
                is_deleted_without_a_trace(half);
            }
            world.pass();
        }
    }
}

fn is_deleted_without_a_trace(mut world: World) {
    world.delete();
    let plans = world.settle();
    assert!(world.purged, "{}", world.plan());
    assert!(world.nodes.is_empty() && world.endpoints.is_empty());
    assert!(world.desired.nodes.is_empty());
    assert!(plans.iter().all(|plan| plan.report.state == InstanceState::Deleting));
}

#[test]
fn a_failed_creation_can_be_deleted() {
    let mut world = World::new(Architecture::Cluster, 3, 2, &["w1"]);
    world.pass();
    world.pass();
    world.desired.operation = None;
    assert_eq!(world.plan().report.state, InstanceState::Failed);
    is_deleted_without_a_trace(world);
}

#[test]
fn deletion_waits_for_a_container_cluster_that_does_not_answer() {
    let mut world = World::running(Architecture::ReadWrite, 1, 2, &["w1"]);
    world.delete();
    world.backend_unknown = true;
    let plan = world.plan();
    assert!(plan.steps.is_empty(), "{plan}");
    assert!(plan.waits.contains(&Wait::BackendUnreachable), "{plan}");
    world.backend_unknown = false;
    world.settle();
    assert!(world.purged);
}

#[test]
fn a_node_without_a_record_is_removed_with_the_instance() {
    let mut world = World::running(Architecture::ReadWrite, 1, 2, &["w1"]);
    world.desired.nodes.pop();
    is_deleted_without_a_trace(world);
}

#[test]
fn a_record_outlives_its_node() {
    let mut world = World::running(Architecture::Standalone, 1, 1, &["w1"]);
    world.delete();
    let plan = world.plan();
    assert!(!plan.steps.iter().any(|p| matches!(p.step, Step::ForgetRecord { .. })), "{plan}");
}
