//! What people are told of, once and in time, whatever becomes of the control plane meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};

use larder_cluster::Cluster as _;
use larder_cluster::sim::Fault;
use larder_model::{Architecture, InstanceId};
use larder_reconcile::Book as _;

use crate::fleet::{Fleet, Run, no_limit_of_failovers};
use crate::{HEALED_WITHIN, or_panic, run};

#[test]
fn what_somebody_has_deleted_of_an_instance_is_made_again() {
    or_panic(run(async {
        let mut fleet = Fleet::new(12);
        let policy = no_limit_of_failovers();
        fleet.create(Architecture::ReadWrite, 1, 2, &policy);
        fleet.create(Architecture::Cluster, 3, 2, &policy);
        fleet.run_until_whole(60_000).await?;
        for instance in fleet.instances.clone() {
            let desired = fleet.book.desired(&instance).await.unwrap().unwrap();
            fleet.sim.inject(Fault::LoseParts { node: desired.nodes[0].id.clone() });
            fleet.run_for(5000).await?;
            let seen = fleet.sim.cluster("local").observe(&instance).await.unwrap();
            assert!(seen.nodes.values().all(|node| node.realised), "{seen:?}");
            assert!(seen.endpoints.values().all(|one| one.whole && one.answers), "{seen:?}");
        }
        // Everything of an instance was deleted at once: one event tells of it.
        let told = made_again(&fleet);
        assert_eq!(told.len(), fleet.instances.len(), "{told:?}");
        for instance in fleet.instances.clone() {
            for part in parts(&fleet, &instance).await {
                assert_eq!(told.iter().filter(|text| text.contains(&part)).count(), 1, "{told:?}");
            }
            // To change what is there is not to make it again.
            fleet.book.change(&instance, |_| {});
        }
        fleet.run_for(5000).await?;
        assert_eq!(made_again(&fleet), told);
        fleet.holds_what_is_recorded().await
    }));
}

/// What the events tell of things that were made again.
fn made_again(fleet: &Fleet) -> Vec<String> {
    let events = fleet.book.events().into_iter();
    events.filter(|event| event.reason == "made-again").map(|event| event.message).collect()
}

/// What can be deleted of an instance, in the words of events.
async fn parts(fleet: &Fleet, instance: &InstanceId) -> Vec<String> {
    let desired = fleet.book.desired(instance).await.unwrap().unwrap();
    let nodes = desired.nodes.iter().map(|record| format!("node {}", record.id));
    let endpoints = desired.spec.architecture.endpoints().iter();
    nodes.chain(endpoints.map(|kind| format!("the {kind} endpoint"))).collect()
}

#[test]
fn what_is_made_again_is_told_once_and_in_time_when_the_answers_are_lost() {
    or_panic(run(async {
        let mut fleet = Fleet::new(17);
        let instance = fleet.create(Architecture::Cluster, 3, 2, &no_limit_of_failovers());
        fleet.run_until_whole(60_000).await?;
        let desired = fleet.book.desired(&instance).await.unwrap().unwrap();
        fleet.sim.inject(Fault::LoseReplies { length: 5000 });
        fleet.sim.inject(Fault::LoseParts { node: desired.nodes[0].id.clone() });
        fleet.run_for(6000).await?;
        let told = made_again(&fleet);
        for part in parts(&fleet, &instance).await {
            assert_eq!(told.iter().filter(|text| text.contains(&part)).count(), 1, "{told:?}");
        }
        fleet.book.change(&instance, |_| {});
        fleet.run_for(5000).await?;
        assert_eq!(made_again(&fleet), told);
        Ok(())
    }));
}

fn told(fleet: &Fleet, reason: &str) -> usize {
    fleet.book.events().iter().filter(|event| event.reason == reason).count()
}

/// Two restarts of the control plane: while the container cluster does not answer, and while it
/// does.
async fn silence_and_restarts(fleet: &mut Fleet) -> Run {
    fleet.sim.inject(Fault::ClusterUnreachable { length: 8_000 });
    fleet.run_for(4_000).await?;
    fleet.restart_control_plane();
    fleet.run_for(8_000).await?;
    for reason in ["container-cluster-unreachable", "container-cluster-reachable"] {
        assert_eq!(told(fleet, reason), 1, "{:?}", fleet.book.events());
    }
    fleet.restart_control_plane();
    fleet.run_for(10_000).await
}

/// A node that is gone and does not come back for as long as `obstacle` stands in its way.
async fn is_told_once(seed: u64, obstacle: impl Fn(&Fleet) -> &AtomicBool) -> Run {
    let mut fleet = Fleet::new(seed);
    let instance = fleet.create(Architecture::ReadWrite, 1, 2, &no_limit_of_failovers());
    fleet.run_until_whole(60_000).await?;
    let node = fleet.book.desired(&instance).await.unwrap().unwrap().nodes[0].id.clone();
    fleet.sim.inject(Fault::StopKeeper { node: node.clone(), length: 60_000 });
    fleet.sim.inject(Fault::KillNode { node: node.clone() });
    fleet.sim.inject(Fault::LoseParts { node });
    obstacle(&fleet).store(true, Ordering::Relaxed);
    fleet.run_for(12_000).await?;
    assert_eq!(told(&fleet, "node-blocked"), 1, "{:?}", fleet.book.events());
    silence_and_restarts(&mut fleet).await?;
    assert_eq!(told(&fleet, "node-unblocked"), 0, "{:?}", fleet.book.events());
    assert_eq!(told(&fleet, "node-blocked"), 1, "{:?}", fleet.book.events());
    obstacle(&fleet).store(false, Ordering::Relaxed);
    // What is refused is tried again every ten seconds.
    fleet.run_for(11_000).await?;
    assert_eq!(told(&fleet, "node-unblocked"), 1, "{:?}", fleet.book.events());
    fleet.run_for(40_000).await?;
    fleet.run_until_whole(HEALED_WITHIN).await?;
    assert_eq!(told(&fleet, "node-blocked"), 1, "{:?}", fleet.book.events());
    Ok(())
}

#[test]
fn what_stands_in_the_way_is_told_once_through_silence_and_restarts_of_the_control_plane() {
    or_panic(run(is_told_once(13, |fleet| &fleet.obstacles.unschedulable)));
}

#[test]
fn a_refused_step_is_told_once_through_silence_and_restarts_of_the_control_plane() {
    or_panic(run(is_told_once(14, |fleet| &fleet.obstacles.no_room)));
}

#[test]
fn a_volume_that_leaves_is_told_once_through_silence_and_restarts_of_the_control_plane() {
    or_panic(run(async {
        let mut fleet = Fleet::new(15);
        fleet.create(Architecture::ReadWrite, 1, 2, &no_limit_of_failovers());
        fleet.run_until_whole(60_000).await?;
        fleet.obstacles.volume_leaving.store(true, Ordering::Relaxed);
        fleet.run_for(1_000).await?;
        silence_and_restarts(&mut fleet).await?;
        assert_eq!(told(&fleet, "volume-left"), 0, "{:?}", fleet.book.events());
        assert_eq!(told(&fleet, "volume-leaving"), 1, "{:?}", fleet.book.events());
        fleet.obstacles.volume_leaving.store(false, Ordering::Relaxed);
        fleet.run_for(1_000).await?;
        assert_eq!(told(&fleet, "volume-left"), 1, "{:?}", fleet.book.events());
        Ok(())
    }));
}

#[test]
fn what_ends_while_no_control_plane_looks_is_told_as_over() {
    or_panic(run(async {
        let mut fleet = Fleet::new(16);
        let instance = fleet.create(Architecture::ReadWrite, 1, 2, &no_limit_of_failovers());
        fleet.run_until_whole(60_000).await?;
        let node = fleet.book.desired(&instance).await.unwrap().unwrap().nodes[0].id.clone();
        fleet.sim.inject(Fault::StopKeeper { node: node.clone(), length: 60_000 });
        fleet.sim.inject(Fault::KillNode { node: node.clone() });
        fleet.obstacles.unschedulable.store(true, Ordering::Relaxed);
        fleet.run_for(12_000).await?;
        assert_eq!(told(&fleet, "node-blocked"), 1, "{:?}", fleet.book.events());
        fleet.obstacles.unschedulable.store(false, Ordering::Relaxed);
        fleet.restart_control_plane();
        fleet.run_for(1_000).await?;
        assert_eq!(told(&fleet, "node-unblocked"), 1, "{:?}", fleet.book.events());
        Ok(())
    }));
}
