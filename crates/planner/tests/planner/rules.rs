//! The linter itself: each rule is broken on purpose.

use larder_model::agent::{ClusterFailoverMode, ServerState, VolumeState};
use larder_model::plan::{Plan, PlannedStep, Step};
use larder_model::{Architecture, EndpointKind, NodeId, OperationKind, even_slots};
use larder_planner::lint;

use crate::world::World;

fn id(name: &str) -> NodeId {
    NodeId::new(name).expect("a valid id")
}

fn with(world: &World, steps: Vec<Step>) -> Plan {
    let mut plan = world.plan();
    plan.steps = steps
        .into_iter()
        .map(|step| PlannedStep {
            instance: plan.instance.clone(),
            generation: plan.generation,
            reason: "on purpose".into(),
            step,
        })
        .collect();
    plan
}

#[track_caller]
fn breaks(world: &World, rule: &str, steps: Vec<Step>) {
    let found = lint(&world.desired, &world.observe(), &with(world, steps));
    assert!(found.iter().any(|violation| violation.rule == rule), "{rule} not in {found:#?}");
}

#[test]
fn every_rule_catches_its_breach() {
    let world = World::running(Architecture::ReadWrite, 1, 3, &["w1"]);
    let n = |name: &str| id(name);
    breaks(&world, "only-leaving-nodes-are-removed", vec![Step::RemoveNode { node: n("n2") }]);
    breaks(&world, "the-last-good-copy-stays", vec![Step::RemoveNode { node: n("n1") }]);
    breaks(&world, "the-last-good-copy-stays", vec![Step::RetireNode { node: n("n1") }]);
    breaks(&world, "a-crashed-node-is-no-surplus", vec![Step::RetireNode { node: n("n2") }]);
    breaks(&world, "only-a-lost-volume-starts-empty", vec![Step::StartEmpty { node: n("n2") }]);
    breaks(&world, "unknown-recreates-nothing", vec![Step::EnsureNode { node: n("n2") }]);
    breaks(&world, "an-address-is-kept", vec![Step::ReserveAddress { node: n("n2") }]);
    breaks(&world, "records-outlive-nodes", vec![Step::ForgetRecord { node: n("n2") }]);
    breaks(&world, "only-a-deleted-instance-is-purged", vec![Step::PurgeInstance]);
    breaks(&world, "data-is-lost-by-a-persons-word-only", vec![Step::TakeLease { node: n("n2") }]);
    breaks(
        &world,
        "endpoints-stay-until-deletion",
        vec![Step::RemoveEndpoint { endpoint: EndpointKind::Read }],
    );
    breaks(
        &world,
        "only-a-primary-hands-over",
        vec![Step::HandOver { holder: n("n2"), to: Some(n("n3")) }],
    );
    breaks(
        &world,
        "only-a-linked-replica-takes-over",
        vec![Step::HandOver { holder: n("n1"), to: Some(n("n1")) }],
    );
    let restart = |name: &str| Step::RestartServer { node: n(name), run_id: "another".into() };
    breaks(&world, "the-noted-server-is-restarted", vec![restart("n2")]);
    breaks(&world, "restarts-are-asked-for", vec![restart("n2")]);
    breaks(&world, "a-primary-with-a-replica-hands-over-first", vec![restart("n1")]);
    breaks(&world, "one-change-of-a-shard-at-a-time", vec![restart("n2"), restart("n3")]);
    breaks(&world, "steps-are-planned-once", vec![Step::MarkInitialized, Step::MarkInitialized]);
    breaks(
        &world,
        "an-operation-keeps-its-kind",
        vec![Step::UpdateOperation { kind: OperationKind::Create }],
    );
    breaks(
        &world,
        "nothing-bootstraps-twice",
        vec![Step::RecordNode {
            node: n("n9"),
            shard: 0,
            worker: world.workers[0].name.clone(),
            zone: None,
            bootstrap: true,
        }],
    );
    let mut late = with(&world, vec![Step::MarkInitialized]);
    late.steps[0].generation -= 1;
    let found = lint(&world.desired, &world.observe(), &late);
    assert!(found.iter().any(|violation| violation.rule == "steps-carry-the-fence"));
}

#[test]
fn rules_of_clusters_catch_their_breaches() {
    let mut world = World::running(Architecture::Cluster, 3, 2, &["w1"]);
    let ids =
        |world: &World| -> Vec<String> { world.nodes.values().map(|sim| sim.id.clone()).collect() };
    breaks(
        &world,
        "no-living-node-is-forgotten",
        vec![Step::ForgetNodes { node: id("n2"), ids: ids(&world)[..1].to_vec() }],
    );
    breaks(
        &world,
        "slots-are-assigned-at-creation-only",
        vec![Step::AssignSlots { node: id("n1"), ranges: vec![even_slots(0, 3)], config_epoch: 1 }],
    );
    let assign = |node: &str| Step::AssignSlots {
        node: id(node),
        ranges: vec![even_slots(0, 3)],
        config_epoch: 1,
    };
    breaks(&world, "a-slot-is-assigned-once", vec![assign("n1"), assign("n2")]);
    let primary_id = world.nodes[&id("n2")].id.clone();
    let attach = Step::ReplicateNode { node: id("n1"), primary: id("n2"), primary_id };
    breaks(&world, "a-holder-of-slots-follows-nobody", vec![attach.clone()]);
    breaks(&world, "a-replica-stays-in-its-shard", vec![attach]);
    let now = world.now;
    world.node("n1").silent = Some(now);
    let heir = world.desired.nodes.iter().find(|r| r.shard == 0 && !r.bootstrap);
    let heir = heir.expect("a replica").id.clone();
    breaks(
        &world,
        "unknown-promotes-nobody",
        vec![Step::FailOverShard { node: heir, mode: ClusterFailoverMode::Takeover }],
    );
}

#[test]
fn rules_about_silence_and_deletion_catch_their_breaches() {
    let mut world = World::running(Architecture::ReadWrite, 1, 2, &["w1"]);
    world.backend_unknown = true;
    breaks(&world, "unknown-removes-nothing", vec![Step::RemoveNode { node: id("n2") }]);
    breaks(&world, "unknown-recreates-nothing", vec![Step::EnsureNode { node: id("n2") }]);
    world.backend_unknown = false;
    for sim in world.nodes.values_mut() {
        sim.state = ServerState::Dead;
        sim.volume = VolumeState::Lost;
    }
    let start = vec![Step::StartEmpty { node: id("n2") }];
    breaks(&world, "nothing-starts-empty-without-a-copy", start);
    world.delete();
    breaks(&world, "deletion-supersedes-everything", vec![Step::MarkInitialized]);
    breaks(&world, "nothing-is-left-behind", vec![Step::PurgeInstance]);
}
