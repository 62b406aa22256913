//! Files that are gone or broken below a node that is otherwise there: no copy is wiped, and what
//! another node has heals it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_e2e::world::{Tested, connect};
use larder_e2e::{cluster_is_whole, replication_is_whole};
use larder_testkit::process::{Kind, kill9, sigcont, sigstop};
use larder_testkit::{Instance, Larder, Node, Reply, eventually};

const SOON: Duration = Duration::from_secs(60);
const KEYS: i64 = 200;

/// Kills every agent and server of the instance, and does something to its files before the
/// keeper may start them again.
fn strike(
    larder: &Larder,
    instance: &Instance,
    to_files: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let keeper = larder.keeper_pid()?;
    sigstop(keeper)?;
    let done = larder
        .pids_of(instance, &[Kind::Agent, Kind::Server])
        .into_iter()
        .try_for_each(kill9)
        .and_then(|()| to_files());
    sigcont(keeper)?;
    done
}

/// Garbage before what is there: a server may cut off a broken end and go on.
fn break_file(file: &Path) -> Result<()> {
    let mut bytes = std::fs::read(file)?;
    bytes.splice(..0, *b"\x00\xffnothing that a server understands\r\n");
    std::fs::write(file, bytes).with_context(|| format!("writing {}", file.display()))
}

fn newest_part(volume: &Path) -> Result<PathBuf> {
    let parts = std::fs::read_dir(volume.join("appendonlydir"))?;
    let paths = parts.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let parts = paths.into_iter().filter(|path| path.to_string_lossy().ends_with(".incr.aof"));
    parts.max().context("no append-only file")
}

async fn filled(larder: &Larder, replicas: &str) -> Result<Instance> {
    let instance = if replicas == "0" {
        larder.create("one", &["--architecture", "standalone"]).await?
    } else {
        let args = ["--architecture", "read-write", "--read-only-nodes", replicas];
        larder.create("one", &args).await?
    };
    let mut client = connect(instance.endpoint("write")?).await?;
    for key in 0..KEYS {
        ensure!(client.call(&["SET", &format!("k{key}"), "v"]).await?.is_ok());
    }
    let held = client.call(&["WAIT", replicas, "10000"]).await?.text();
    ensure!(held == replicas, "{held} of {replicas} replicas have it");
    for node in &instance.nodes {
        on_disk(larder, &instance, node).await?;
    }
    Ok(instance)
}

/// Waits until the server has nothing that its append-only file lacks, and its agent has noted so.
async fn on_disk(larder: &Larder, instance: &Instance, node: &Node) -> Result<()> {
    let notes = larder.volume(instance, &node.id).with_file_name("state.json");
    let address = node.address()?;
    eventually("data and notes are on the disk", SOON, async || {
        let info = connect(&address).await?.call(&["INFO", "persistence"]).await?.text();
        let written =
            ["aof_rewrite_in_progress:0", "aof_rewrite_scheduled:0", "aof_buffer_length:0"]
                .iter()
                .all(|line| info.lines().any(|found| found == *line));
        let notes: serde_json::Value = serde_json::from_slice(&std::fs::read(&notes)?)?;
        let noted = notes["data_epoch"].as_u64() > Some(0) && notes["files_seen"] == true;
        Ok((written && noted).then_some(()))
    })
    .await
}

/// Waits until another node than `before` leads, and the instance is whole with all keys.
async fn succeeded_with_all_keys(larder: &Larder, instance: &Instance, before: &str) -> Result<()> {
    larder
        .wait_for("one", "running, with another primary", SOON, |i| {
            i.state == "running" && i.primary(0).is_ok_and(|primary| primary.id != before)
        })
        .await?;
    replication_is_whole(instance, SOON).await?;
    let size = keys(instance).await?;
    ensure!(size == Reply::Integer(KEYS), "{size:?}");
    Ok(())
}

async fn keys(instance: &Instance) -> Result<Reply> {
    Ok(connect(instance.endpoint("write")?).await?.call(&["DBSIZE"]).await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn primary_that_has_only_its_marker_left_wipes_no_replica() -> Result<()> {
    let larder = Larder::started().await?;
    larder.expect_faults();
    let instance = filled(&larder, "1").await?;
    let before = instance.primary(0)?.id.clone();
    let volume = larder.volume(&instance, &before);
    strike(&larder, &instance, || Ok(std::fs::remove_dir_all(volume.join("appendonlydir"))?))?;
    succeeded_with_all_keys(&larder, &instance, &before).await?;
    larder.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standalone_that_has_only_its_marker_left_is_shown_as_lost() -> Result<()> {
    let larder = Larder::started().await?;
    larder.expect_faults();
    let instance = filled(&larder, "0").await?;
    let volume = larder.volume(&instance, &instance.nodes[0].id);
    strike(&larder, &instance, || Ok(std::fs::remove_dir_all(volume.join("appendonlydir"))?))?;
    let lost = |i: &Instance| i.condition("data-lost").is_some_and(|c| c.status);
    larder.wait_for("one", "lost", SOON, lost).await?;
    larder.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_write_all_of_whose_volumes_are_gone_is_shown_as_lost() -> Result<()> {
    let larder = Larder::started().await?;
    larder.expect_faults();
    let instance = filled(&larder, "1").await?;
    strike(&larder, &instance, || {
        let volumes = instance.nodes.iter().map(|node| larder.volume(&instance, &node.id));
        volumes.into_iter().try_for_each(|volume| Ok(std::fs::remove_dir_all(volume)?))
    })?;
    let lost = |i: &Instance| i.condition("data-lost").is_some_and(|c| c.status);
    larder.wait_for("one", "lost", SOON, lost).await?;
    larder.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn last_primary_whose_file_is_broken_is_succeeded_and_copies_anew() -> Result<()> {
    let larder = Larder::started().await?;
    larder.expect_faults();
    let instance = filled(&larder, "1").await?;
    let before = instance.primary(0)?.id.clone();
    let volume = larder.volume(&instance, &before);
    strike(&larder, &instance, || break_file(&newest_part(&volume)?))?;
    succeeded_with_all_keys(&larder, &instance, &before).await?;
    let reasons = larder.event_reasons("one").await?;
    ensure!(reasons.iter().filter(|reason| *reason == "data-unusable").count() == 1, "{reasons:?}");
    larder.finish().await
}

/// A replica of a cluster shard with a broken `nodes.conf`, another one with broken data.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_nodes_with_broken_files_heal() -> Result<()> {
    let larder = Larder::started().await?;
    larder.expect_faults();
    let tested = Tested::cluster(larder, 2, "redis-7.0").await?;
    let (larder, instance) = (&tested.larder, &tested.instance);
    let volume = |shard: u32| -> Result<(String, PathBuf)> {
        let node = instance.replicas(shard).first().context("no replica")?.id.clone();
        let volume = larder.volume(instance, &node);
        Ok((node, volume))
    };
    let (named, nodes_conf) = volume(0)?;
    let (full, data) = volume(1)?;
    let keeper = larder.keeper_pid()?;
    sigstop(keeper)?;
    for node in [&named, &full] {
        kill9(larder.agent_pid(node)?)?;
        kill9(larder.server_pid(instance, node)?)?;
    }
    let broken = std::fs::write(nodes_conf.join("nodes.conf"), "no such thing")
        .context("breaking nodes.conf")
        .and_then(|()| break_file(&newest_part(&data)?));
    sigcont(keeper)?;
    broken?;
    cluster_is_whole(instance, SOON).await?;
    larder.wait_state("shards", "running", SOON).await?;
    let reasons = larder.event_reasons("shards").await?;
    for reason in ["cluster-file-restored", "data-unusable"] {
        ensure!(reasons.iter().any(|r| r == reason), "no {reason}: {reasons:?}");
    }
    let (larder, ..) = tested.stop().await?;
    larder.finish().await
}

/// Its own cluster file calls it a primary, so it begins anew beside its successor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_primary_with_broken_data_is_succeeded_and_joins_anew() -> Result<()> {
    let larder = Larder::started().await?;
    larder.expect_faults();
    let tested = Tested::cluster(larder, 2, "redis-7.0").await?;
    let (larder, instance) = (&tested.larder, &tested.instance);
    let primary = instance.primary(0)?;
    let volume = larder.volume(instance, &primary.id);
    larder.kill_node(instance, primary, || break_file(&newest_part(&volume)?)).await?;
    tested.writes_again(SOON).await?;
    larder
        .wait_for("shards", "running, with another primary", SOON, |i| {
            i.state == "running" && i.primary(0).is_ok_and(|now| now.id != primary.id)
        })
        .await?;
    cluster_is_whole(instance, SOON).await?;
    let (larder, ..) = tested.stop().await?;
    larder.finish().await
}
