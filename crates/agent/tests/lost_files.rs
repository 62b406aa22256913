//! Real servers whose files are gone or broken while the rest of the node is there: nothing starts
//! empty, and what another node has heals it.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use larder_model::NodeMode;
use larder_model::agent::{AgentStatus, ProblemCode, Role, ServerState, VolumeState};
use support::{World, events, leader};

const START: Duration = Duration::from_secs(20);
const HEALED: Duration = Duration::from_secs(40);
const KEYS: usize = 50;

async fn write_keys(world: &World, node: usize, copies: usize) {
    let mut tenant = world.tenant(node).await;
    for key in 0..KEYS {
        tenant.call(&["SET", &format!("k{key}"), "value"]).await.expect("written");
    }
    if copies > 0 {
        let copies = copies.to_string();
        tenant.call(&["WAIT", &copies, "1000"]).await.expect("copied");
    }
    // Within a second it is in the file too, and a copy in the notes of its node.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
}

/// How many of the keys the node has.
async fn keys(world: &World, node: usize) -> usize {
    let mut tenant = world.tenant(node).await;
    let mut there = 0;
    for key in 0..KEYS {
        let value = tenant.call(&["GET", &format!("k{key}")]).await.expect("answered");
        there += usize::from(value.as_bytes() == Some(b"value"));
    }
    there
}

fn kill_all(world: &mut World) {
    for node in 0..world.nodes.len() {
        world.kill_agent(node);
    }
    for node in 0..world.nodes.len() {
        world.signal_server(node, "-9");
    }
}

fn volume(world: &World, node: usize) -> PathBuf {
    world.nodes[node].dir.join("volume")
}

/// The newest part of the append-only file.
fn newest_part(volume: &Path) -> PathBuf {
    let mut parts: Vec<PathBuf> = fs::read_dir(volume.join("appendonlydir"))
        .expect("folder")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.to_string_lossy().ends_with(".incr.aof"))
        .collect();
    parts.sort();
    parts.pop().expect("one")
}

/// Garbage in the middle, so that no end can be cut off to make it right.
fn break_data(volume: &Path) -> PathBuf {
    let part = newest_part(volume);
    let mut bytes = fs::read(&part).expect("read");
    let middle = bytes.len() / 2;
    bytes.splice(middle..middle, *b"\x00\xffnothing that a server understands\x00");
    fs::write(&part, bytes).expect("written");
    part
}

fn is(status: &Option<AgentStatus>, volume: VolumeState) -> bool {
    status.as_ref().is_some_and(|status| status.volume == volume)
}

fn told(status: &AgentStatus, reason: &str) -> usize {
    events(status).iter().filter(|event| **event == reason).count()
}

#[tokio::test]
async fn a_standalone_volume_that_has_only_its_marker_left_is_lost_and_not_led_from() {
    let mut world = World::new(NodeMode::Leased, 1, 1);
    world.start_all();
    world.settled(START).await;
    write_keys(&world, 0, 0).await;
    kill_all(&mut world);
    let (data, away) = (volume(&world, 0).join("appendonlydir"), world.nodes[0].dir.join("away"));
    fs::rename(&data, &away).expect("moved");
    world.start(0);
    world
        .wait("lost", START, |all| {
            is(&all[0], VolumeState::Lost)
                && all[0].as_ref().is_some_and(|s| {
                    s.server.state == ServerState::Dead
                        && s.problem.as_ref().map(|p| p.code) == Some(ProblemCode::VolumeLost)
                })
        })
        .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let status = world.client(0).status().await.expect("answers");
    assert_eq!(status.server.pid, None, "nothing was started");
    assert!(!data.exists());
    // A person puts them back.
    fs::rename(&away, &data).expect("moved back");
    world.settled(START).await;
    assert_eq!(keys(&world, 0).await, KEYS);
}

#[tokio::test]
async fn a_primary_that_has_only_its_marker_left_does_not_wipe_its_replicas() {
    for part in ["appendonlydir", "appendonlydir/appendonly.aof.manifest"] {
        let mut world = World::new(NodeMode::Leased, 1, 2);
        world.start_all();
        let first = world.settled(START).await;
        write_keys(&world, first, 1).await;
        kill_all(&mut world);
        let lost = volume(&world, first).join(part);
        if lost.is_dir() { fs::remove_dir_all(lost) } else { fs::remove_file(lost) }
            .expect("removed");
        world.start_all();
        world.wait("other leads", HEALED, |all| leader(all) == Some(1 - first)).await;
        world
            .wait("rebuilt", HEALED, |all| all.iter().all(|status| is(status, VolumeState::Data)))
            .await;
        assert_eq!(world.settled(START).await, 1 - first);
        for node in [0, 1] {
            assert_eq!(keys(&world, node).await, KEYS, "node {node}, without {part}");
        }
    }
}

#[tokio::test]
async fn a_shard_all_of_whose_volumes_are_gone_says_so_for_each_of_its_nodes() {
    let mut world = World::new(NodeMode::Leased, 1, 3);
    world.start_all();
    let first = world.settled(START).await;
    write_keys(&world, first, 2).await;
    kill_all(&mut world);
    for node in 0..3 {
        fs::remove_dir_all(volume(&world, node)).expect("removed");
    }
    world.start_all();
    world
        .wait("lost", START, |all| {
            // One may have been started to copy from a primary whose lease had not run out yet.
            all.iter().all(|status| {
                is(status, VolumeState::Lost)
                    && !status
                        .as_ref()
                        .and_then(|s| s.replication.as_ref())
                        .is_some_and(|r| r.role == Role::Primary || r.link_up)
            })
        })
        .await;
}

#[tokio::test]
async fn a_replica_that_cannot_load_its_file_copies_the_data_anew() {
    let mut world = World::new(NodeMode::Leased, 1, 2);
    world.start_all();
    let first = world.settled(START).await;
    let second = 1 - first;
    write_keys(&world, first, 1).await;
    world.kill_agent(second);
    world.signal_server(second, "-9");
    break_data(&volume(&world, second));
    world.start(second);
    world
        .wait("healed", HEALED, |all| {
            is(&all[second], VolumeState::Data)
                && all[second].as_ref().is_some_and(|s| {
                    told(s, "data-unusable") == 1 && s.server.state == ServerState::Serving
                })
        })
        .await;
    assert_eq!(world.settled(START).await, first);
    assert_eq!(keys(&world, second).await, KEYS);
}

#[tokio::test]
async fn a_last_primary_that_cannot_load_its_file_is_not_waited_for() {
    let mut world = World::new(NodeMode::Leased, 1, 3);
    world.start_all();
    let first = world.settled(START).await;
    write_keys(&world, first, 2).await;
    kill_all(&mut world);
    let part = break_data(&volume(&world, first));
    let broken = fs::read(&part).expect("read");
    world.start_all();
    world.wait("another leads", HEALED, |all| leader(all).is_some_and(|node| node != first)).await;
    // Until the copy is whole the broken files are kept.
    let aside =
        volume(&world, first).join("aside/appendonlydir").join(part.file_name().expect("is"));
    let kept = fs::read(&aside).or_else(|_| fs::read(&part));
    if is(&world.statuses().await[first], VolumeState::Lost) {
        assert_eq!(kept.expect("kept"), broken);
    }
    world
        .wait("healed", HEALED, |all| all.iter().all(|status| is(status, VolumeState::Data)))
        .await;
    assert_ne!(world.settled(START).await, first);
    for node in 0..3 {
        assert_eq!(keys(&world, node).await, KEYS, "node {node}");
    }
}

#[tokio::test]
async fn a_standalone_file_that_cannot_be_loaded_is_told_once_and_tried_again_when_it_changes() {
    let mut world = World::new(NodeMode::Leased, 1, 1);
    world.start_all();
    world.settled(START).await;
    write_keys(&world, 0, 0).await;
    kill_all(&mut world);
    let part = newest_part(&volume(&world, 0));
    let good = fs::read(&part).expect("read");
    break_data(&volume(&world, 0));
    let broken = fs::read(&part).expect("read");
    world.start(0);
    world
        .wait("told", START, |all| all[0].as_ref().is_some_and(|s| told(s, "data-unusable") == 1))
        .await;
    let before = world.client(0).status().await.expect("answers");
    let problem = before.problem.clone().expect("told");
    assert!(problem.message.contains("append only file"), "{problem:?}");
    // It is quiet from then on, and touches nothing.
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = world.client(0).status().await.expect("answers");
        assert_eq!(events(&now).len(), events(&before).len(), "{:?}", events(&now));
    }
    assert_eq!(fs::read(&part).expect("there"), broken);
    // A person repairs it.
    fs::write(&part, good).expect("written");
    world.settled(START).await;
    assert_eq!(keys(&world, 0).await, KEYS);
}

#[tokio::test]
async fn a_shard_whose_lease_is_deleted_makes_a_new_one_by_itself() {
    let mut world = World::new(NodeMode::Leased, 1, 3);
    world.start_all();
    let first = world.settled(START).await;
    write_keys(&world, first, 2).await;
    let epoch = world.lease().expect("held").epoch;
    fs::remove_dir_all(world.lease_dir()).expect("removed");
    world
        .wait("led again", START, |all| {
            leader(all).is_some() && world.lease().is_some_and(|lease| lease.epoch > epoch)
        })
        .await;
    let leader = world.settled(START).await;
    assert_eq!(keys(&world, leader).await, KEYS);
    world.tenant(leader).await.call(&["SET", "after", "value"]).await.expect("takes writes");
}
