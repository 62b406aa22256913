//! Real servers whose files are gone or broken while the rest of the node is there: nothing starts
//! empty, and what another node has heals it.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use larder_model::NodeMode;
use larder_model::agent::{AgentStatus, ProblemCode, Role, ServerState, VolumeState};
use larder_resp::Frame;
use support::{World, events, leader};

const START: Duration = Duration::from_secs(20);
const HEALED: Duration = Duration::from_secs(40);
const KEYS: usize = 50;

/// A shard of so many nodes that holds [`KEYS`], each on the disk and in the notes of every node;
/// and which of them leads.
async fn with_keys(world: &mut World) -> usize {
    world.start_all();
    let leads = world.settled(START).await;
    let mut tenant = world.tenant(leads).await;
    for key in 0..KEYS {
        tenant.call(&["SET", &format!("k{key}"), "value"]).await.expect("written");
    }
    let copies = world.nodes.len() - 1;
    let held = tenant.call(&["WAIT", &copies.to_string(), "10000"]).await.expect("copied");
    assert_eq!(held, Frame::Integer(i64::try_from(copies).expect("few")));
    let until = Instant::now() + START;
    for node in 0..world.nodes.len() {
        while !is_on_disk(world, node).await {
            assert!(Instant::now() < until, "not on the disk of node {node}\n{}", world.logs());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    leads
}

/// The server has nothing that its append-only file lacks, and the agent has noted so.
async fn is_on_disk(world: &World, node: usize) -> bool {
    let info = world.tenant(node).await.call(&["INFO", "persistence"]).await.expect("answered");
    let info = String::from_utf8_lossy(info.as_bytes().expect("text")).into_owned();
    let notes = fs::read(world.nodes[node].dir.join("state.json")).expect("notes");
    let notes: serde_json::Value = serde_json::from_slice(&notes).expect("JSON");
    ["aof_rewrite_in_progress:0", "aof_rewrite_scheduled:0", "aof_buffer_length:0"]
        .iter()
        .all(|line| info.lines().any(|found| found == *line))
        && notes["data_epoch"].as_u64() > Some(0)
        && notes["files_seen"] == true
        && !notes["written_by"].is_null()
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
    with_keys(&mut world).await;
    world.kill_all();
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
        let first = with_keys(&mut world).await;
        world.kill_all();
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
    with_keys(&mut world).await;
    world.kill_all();
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
    let first = with_keys(&mut world).await;
    let second = 1 - first;
    world.kill_node(second);
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
    let first = with_keys(&mut world).await;
    world.kill_all();
    let part = break_data(&volume(&world, first));
    let broken = fs::read(&part).expect("read");
    world.start_all();
    world.wait("another leads", HEALED, |all| leader(all).is_some_and(|node| node != first)).await;
    world
        .wait("healed", HEALED, |all| all.iter().all(|status| is(status, VolumeState::Data)))
        .await;
    assert_ne!(world.settled(START).await, first);
    for node in 0..3 {
        assert_eq!(keys(&world, node).await, KEYS, "node {node}");
    }
    // The broken files are kept beyond that.
    let name = part.file_name().expect("is");
    let kept = volume(&world, first).join("unreadable/1/appendonlydir").join(name);
    assert_eq!(fs::read(kept).expect("kept"), broken);
}

#[tokio::test]
async fn a_standalone_file_that_cannot_be_loaded_is_told_once_and_tried_again_when_it_changes() {
    let mut world = World::new(NodeMode::Leased, 1, 1);
    with_keys(&mut world).await;
    world.kill_all();
    let part = newest_part(&volume(&world, 0));
    let good = fs::read(&part).expect("read");
    break_data(&volume(&world, 0));
    let broken = fs::read(&part).expect("read");
    world.start(0);
    world
        .wait("told", HEALED, |all| all[0].as_ref().is_some_and(|s| told(s, "data-unusable") == 1))
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
    let status = world.client(0).status().await.expect("answers");
    assert!(events(&status).contains(&"server-started"), "{:?}", events(&status));
}

/// A script in the place of the server: of that version, and unable to load anything.
fn wrong_binary(binary: &Path, version: &str) {
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'Redis server v={version} sha=0'; exit; fi\n\
         echo '1:M # Bad file format reading the append only file appendonly.aof.1.base.rdb'\nexit 1\n"
    );
    put_in_place(binary, |new| fs::write(new, script).expect("written"));
}

/// Another file at the same path, as an upgrade does it.
fn put_in_place(binary: &Path, write: impl FnOnce(&Path)) {
    let new = binary.with_extension("new");
    write(&new);
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("made executable");
    fs::rename(new, binary).expect("put in place");
}

fn right_binary(binary: &Path) {
    put_in_place(binary, |new| {
        fs::copy("/usr/bin/redis-server", new).expect("copied");
    });
}

/// A shard with keys whose server binary, in the folder, was replaced while all were down.
async fn with_wrong_binary(version: &str) -> (World, PathBuf, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("temp dir");
    let binary = folder.path().join("redis-server");
    right_binary(&binary);
    let mut world = World::with_binary(NodeMode::Leased, 1, 2, &binary);
    with_keys(&mut world).await;
    world.kill_all();
    wrong_binary(&binary, version);
    world.start_all();
    (world, binary, folder)
}

#[tokio::test]
async fn data_that_an_older_binary_cannot_load_are_not_lost_and_served_once_the_right_one_is_back()
{
    let (world, binary, _folder) = with_wrong_binary("6.2.5").await;
    world
        .wait("told", HEALED, |all| {
            all.iter().all(|s| s.as_ref().is_some_and(|s| told(s, "other-engine") == 1))
        })
        .await;
    let until = Instant::now() + Duration::from_secs(15);
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let all = world.statuses().await;
        assert!(all.iter().all(|status| is(status, VolumeState::Data)), "{all:#?}");
    }
    right_binary(&binary);
    let leader = world.settled(HEALED).await;
    assert_eq!(keys(&world, leader).await, KEYS);
}

#[tokio::test]
async fn data_that_a_broken_binary_could_not_load_anywhere_are_tried_again_by_another_one() {
    let (world, binary, _folder) = with_wrong_binary("7.0.15").await;
    world
        .wait("given up", HEALED, |all| {
            all.iter().all(|status| {
                is(status, VolumeState::Lost)
                    && status.as_ref().is_some_and(|s| {
                        let problem = s.problem.as_ref().map_or("", |p| p.message.as_str());
                        problem.contains("put the server binary back")
                    })
            })
        })
        .await;
    right_binary(&binary);
    let leader = world.settled(HEALED).await;
    assert_eq!(keys(&world, leader).await, KEYS);
    for node in [0, 1] {
        assert!(!volume(&world, node).join("unreadable").exists(), "nothing was set aside");
    }
}

#[tokio::test]
async fn data_that_the_disk_does_not_let_be_read_are_never_given_up() {
    let mut world = World::new(NodeMode::Leased, 1, 2);
    let first = with_keys(&mut world).await;
    let second = 1 - first;
    world.kill_node(second);
    // A folder in the place of a file gives an error of reading, as a sick disk does.
    let part = newest_part(&volume(&world, second));
    let away = world.nodes[second].dir.join("away");
    fs::rename(&part, &away).expect("moved");
    fs::create_dir(&part).expect("made");
    world.start(second);
    world
        .wait("told", HEALED, |all| {
            all[second].as_ref().is_some_and(|s| told(s, "disk-unreadable") == 1)
        })
        .await;
    let status = world.client(second).status().await.expect("answers");
    assert_eq!((status.volume, told(&status, "data-unusable")), (VolumeState::Data, 0));
    fs::remove_dir(&part).expect("removed");
    fs::rename(&away, &part).expect("moved back");
    assert_eq!(world.settled(HEALED).await, first);
    assert_eq!(keys(&world, second).await, KEYS);
}

#[tokio::test]
async fn remains_stay_in_their_place_while_the_holder_of_the_lease_is_dead() {
    let mut world = World::new(NodeMode::Leased, 1, 2);
    let first = with_keys(&mut world).await;
    let second = 1 - first;
    world.kill_all();
    let folder = volume(&world, second).join("appendonlydir");
    let manifest = folder.join("appendonly.aof.manifest");
    let away = world.nodes[second].dir.join("away");
    fs::rename(&manifest, &away).expect("moved");
    world.start(second);
    world.wait("lost", START, |all| is(&all[second], VolumeState::Lost)).await;
    // Longer than the dead holder's lease.
    let until = Instant::now() + Duration::from_secs(6);
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let status = world.client(second).status().await.expect("answers");
        assert_eq!(status.server.pid, None, "nothing to copy from");
        assert!(newest_part(&volume(&world, second)).exists());
    }
    fs::rename(&away, &manifest).expect("moved back");
    world.wait("back", START, |all| is(&all[second], VolumeState::Data)).await;
    world.start(first);
    let leader = world.settled(HEALED).await;
    assert_eq!(keys(&world, leader).await, KEYS);
}

#[tokio::test]
async fn a_volume_of_another_node_is_left_alone() {
    let mut world = World::new(NodeMode::Leased, 1, 1);
    with_keys(&mut world).await;
    world.kill_all();
    let marker = volume(&world, 0).join(".larder");
    let own = fs::read_to_string(&marker).expect("read");
    fs::write(&marker, own.replace("n-00", "n-99")).expect("written");
    world.start(0);
    world
        .wait("told", START, |all| {
            all[0].as_ref().and_then(|s| s.problem.as_ref()).is_some_and(|problem| {
                problem.code == ProblemCode::VolumeLost && problem.message.contains("n-99")
            })
        })
        .await;
    assert!(newest_part(&volume(&world, 0)).exists());
    fs::write(&marker, own).expect("written");
    world.settled(START).await;
    assert_eq!(keys(&world, 0).await, KEYS);
}

#[tokio::test]
async fn a_shard_whose_lease_is_deleted_makes_a_new_one_by_itself() {
    let mut world = World::new(NodeMode::Leased, 1, 3);
    with_keys(&mut world).await;
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

#[tokio::test]
async fn a_broken_cluster_file_without_a_good_copy_does_not_make_good_data_lost() {
    let mut world = World::new(NodeMode::Clustered, 1, 1);
    world.start_all();
    let serves = |all: &[Option<AgentStatus>]| {
        all[0].as_ref().is_some_and(|s| s.server.state == ServerState::Serving)
    };
    world.wait("serves", START, serves).await;
    let kept = world.nodes[0].dir.join("nodes.conf.kept");
    let deadline = Instant::now() + START;
    while !kept.exists() {
        assert!(Instant::now() < deadline, "no copy of nodes.conf was kept");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.kill_all();
    let file = volume(&world, 0).join("nodes.conf");
    let good = fs::read(&file).expect("read");
    fs::write(&file, "no such thing").expect("written");
    fs::remove_file(&kept).expect("removed");
    world.start(0);
    world
        .wait("told", HEALED, |all| {
            all[0].as_ref().is_some_and(|s| told(s, "cluster-file-unusable") == 1)
        })
        .await;
    let status = world.client(0).status().await.expect("answers");
    assert_eq!((status.volume, told(&status, "data-unusable")), (VolumeState::Data, 0));
    let problem = status.problem.expect("told");
    assert!(problem.message.contains("nodes.conf"), "{problem:?}");
    fs::write(&file, good).expect("written");
    world.wait("serves again", START, serves).await;
}
