//! One story of each architecture on each engine that is not the system's own.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_e2e::world::{Tested, connect, settled};
use larder_e2e::{Fault, check_tidy, cluster_is_whole, replication_is_whole};
use larder_testkit::process::kill9;
use larder_testkit::{Larder, Reply};

const SOON: Duration = Duration::from_secs(40);

async fn every_architecture(engine: &str, version: &str) -> Result<()> {
    let larder = Larder::started().await?;
    larder.expect_faults();
    let engines = larder.json(&["engine", "list"]).await?;
    let listed = engines.as_array().context("no array")?.iter().find(|e| e["name"] == engine);
    let listed = listed.with_context(|| format!("{engine} is not found: {engines}"))?;
    ensure!(listed["version"].as_str().is_some_and(|v| v.starts_with(version)), "{listed}");

    let one = larder.create("one", &["--architecture", "standalone", "--engine", engine]).await?;
    ensure!(one.engine_version.as_deref().is_some_and(|v| v.starts_with(version)), "{one:?}");
    let write = one.endpoint("write")?;
    ensure!(connect(write).await?.call(&["SET", "k", "v"]).await?.is_ok());
    let info = connect(write).await?.call(&["INFO", "server"]).await?.text();
    ensure!(info.contains(&format!("_version:{version}")), "{info}");
    let server = larder.server_pid(&one, &one.nodes[0].id)?;
    kill9(server)?;
    larder
        .wait_for("one", "another server runs", SOON, |i| {
            i.state == "running" && i.nodes[0].pid.is_some_and(|pid| pid != server)
        })
        .await?;
    ensure!(connect(write).await?.call(&["GET", "k"]).await? == Reply::Bulk(b"v".to_vec()));
    larder.cli(&["instance", "delete", "one", "--permanent", "--yes", "--wait"]).await?;

    let tested = Tested::read_write(larder, 1, engine).await?;
    for fault in [Fault::Planned, Fault::ServerKilled] {
        let instance = settled(&tested.larder, &tested.instance, SOON).await?;
        let before = instance.primary(0)?.id.clone();
        fault.strike(&tested.larder, &instance, 0).await?;
        tested.writes_again(SOON).await?;
        let after = replication_is_whole(&instance, SOON).await?;
        ensure!(after != before, "{engine}: {fault:?} moved nothing");
    }
    let (larder, rw, seen) = tested.stop().await?;
    let window = Duration::from_secs(2);
    let gap_began = seen.histories[0].worst_gap().1 + Duration::from_millis(100);
    seen.histories[0].check_lost_only_before(rw.endpoint("write")?, &[gap_began], window).await?;
    larder.cli(&["instance", "delete", "rw", "--permanent", "--yes", "--wait"]).await?;

    let tested = Tested::cluster(larder_without_control(larder).await?, 2, engine).await?;
    for fault in [Fault::Planned, Fault::ServerKilled] {
        let instance = tested.larder.wait_state("shards", "running", SOON).await?;
        let before = instance.primary(0)?.id.clone();
        fault.strike(&tested.larder, &instance, 0).await?;
        tested.writes_again(SOON).await?;
        cluster_is_whole(&instance, SOON).await?;
        let moved = |i: &larder_testkit::Instance| {
            i.state == "running" && i.primary(0).is_ok_and(|p| p.id != before)
        };
        tested.larder.wait_for("shards", "another primary", SOON, moved).await?;
    }
    check_tidy(&tested.larder).await?;
    let (larder, ..) = tested.stop().await?;
    larder.finish().await
}

/// The next story brings its own control instance.
async fn larder_without_control(larder: Larder) -> Result<Larder> {
    larder.cli(&["instance", "delete", "control", "--permanent", "--yes", "--wait"]).await?;
    Ok(larder)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_6_2_runs_every_architecture() -> Result<()> {
    every_architecture("redis-6.2", "6.2.5").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn valkey_8_0_runs_every_architecture() -> Result<()> {
    every_architecture("valkey-8.0", "8.0.").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn valkey_9_1_runs_every_architecture() -> Result<()> {
    every_architecture("valkey-9.1", "9.1.2").await
}
