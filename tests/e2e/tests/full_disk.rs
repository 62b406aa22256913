//! A full disk: no failover without need, no loss, nothing started; who dies on it is replaced all
//! the same; and everything goes on when there is room.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_e2e::world::{Tested, connect};
use larder_e2e::{Fault, check_tidy, replication_is_whole};
use larder_testkit::disk::{SmallDisk, skipped};
use larder_testkit::{Instance, Larder, LarderOptions, PASSWORD, eventually};

const SOON: Duration = Duration::from_secs(40);

/// A Larder with all its files on `disk`.
async fn larder_on(disk: &SmallDisk) -> Result<Larder> {
    let options =
        LarderOptions { data: Some(disk.path().join("data")), ..LarderOptions::default() };
    let larder = Larder::start(options).await?;
    larder.expect_faults();
    for part in ["disk", "space", "No space", "write", "store", "full"] {
        larder.expect_log(part);
    }
    Ok(larder)
}

/// What a server behind the write endpoint says: that it is the primary, its run id, and the value
/// of `key`.
async fn read_at(instance: &Instance, key: &str) -> Result<(String, String)> {
    let mut connection = connect(instance.endpoint("write")?).await?;
    let role = connection.call(&["ROLE"]).await?;
    ensure!(role.items().first().is_some_and(|r| r.text() == "master"), "{role:?}");
    let info = connection.call(&["INFO", "server"]).await?.text();
    let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:"));
    let value = connection.call(&["GET", key]).await?.text();
    Ok((run_id.context("no run id")?.to_owned(), value))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disk_stops_no_lease_moves_no_primary_and_loses_nothing() -> Result<()> {
    if skipped("full_disk") {
        return Ok(());
    }
    let disk = SmallDisk::mount(256)?;
    let larder = larder_on(&disk).await?;
    let tested = Tested::read_write(larder, 1, "redis-7.0").await?;
    let before = replication_is_whole(&tested.instance, SOON).await?;
    let began = tested.writers[0].now();
    let filler = disk.fill(0)?;

    let create = [
        "instance",
        "create",
        "more",
        "--engine",
        "redis-7.0",
        "--architecture",
        "standalone",
        "--password-stdin",
    ];
    let refused = tested.larder.cli_with_input(&create, &format!("{PASSWORD}\n")).await?;
    ensure!(refused.code == 1 && refused.stderr.contains("disk-full"), "{refused:?}");

    // For several lifetimes of a lease: reads go on, the primary stays.
    let until = tokio::time::Instant::now() + Duration::from_secs(12);
    while tokio::time::Instant::now() < until {
        let mut connection = connect(tested.instance.endpoint("write")?).await?;
        let role = connection.call(&["ROLE"]).await?;
        ensure!(role.items().first().is_some_and(|r| r.text() == "master"), "{role:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    ensure!(
        replication_is_whole(&tested.instance, SOON).await? == before,
        "a full disk moved the primary"
    );

    std::fs::remove_file(&filler)?;
    tested.writes_again(SOON).await?;
    eventually("an instance can be created again", SOON, async || {
        tested.larder.create("more", &["--architecture", "standalone"]).await.map(Some)
    })
    .await?;
    tested.larder.wait_state("rw", "running", SOON).await?;
    check_tidy(&tested.larder).await?;
    let ended = tested.writers[0].now();
    let (larder, instance, seen) = tested.stop().await?;
    // Nothing died, so nothing may be lost; but what the full disk refused was never acknowledged.
    ensure!(ended > began);
    seen.histories[0].check_nothing_lost(instance.endpoint("write")?).await?;
    larder.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_dies_on_a_full_disk_is_replaced_and_the_other_returns_when_there_is_room()
-> Result<()> {
    if skipped("full_disk") {
        return Ok(());
    }
    let disk = SmallDisk::mount(256)?;
    let larder = larder_on(&disk).await?;
    let tested = Tested::read_write(larder, 1, "redis-7.0").await?;
    let control = tested.larder.get("control").await?;
    for instance in [&tested.instance, &control] {
        let mut connection = connect(instance.endpoint("write")?).await?;
        let reply = connection.call(&["SET", "told", &instance.name]).await?;
        ensure!(reply.text() == "OK", "{reply:?}");
        // A replica that has just been linked may get the stream of writes some moments later.
        let copies = instance.replicas(0).len().to_string();
        let reply = connection.call(&["WAIT", &copies, "10000"]).await?;
        ensure!(reply.text() == copies, "{reply:?} of {copies} replicas have it");
    }
    let before = replication_is_whole(&tested.instance, SOON).await?;
    let (old_server, _) = read_at(&tested.instance, "told").await?;
    let (old_control, _) = read_at(&control, "told").await?;
    let filler = disk.fill(0)?;
    eventually("the disk is full for the servers", SOON, async || {
        let mut connection = connect(tested.instance.endpoint("write")?).await?;
        let reply = connection.call(&["SET", "more", "x"]).await?;
        Ok(reply.text().contains("MISCONF").then_some(()))
    })
    .await?;

    // Both at once: one hands over to its replica, one has only its own file.
    let at = tested.writers[0].now();
    Fault::ServerKilled.strike(&tested.larder, &tested.instance, 0).await?;
    Fault::ServerKilled.strike(&tested.larder, &control, 0).await?;
    for (instance, old) in [(&tested.instance, &old_server), (&control, &old_control)] {
        let what = format!("{} is read from a new server", instance.name);
        eventually(&what, Fault::ServerKilled.allowed_gap(), async || {
            let (run_id, value) = read_at(instance, "told").await?;
            ensure!(run_id != *old && value == instance.name, "{run_id} says {value:?}");
            Ok(Some(()))
        })
        .await?;
    }
    let moved = tested.writers[0].now() - at;
    ensure!(disk_is_full(&disk), "there was room");
    println!("read again {moved:?} after the servers were killed");

    // It stays like that for several lifetimes of a lease.
    let (leading, _) = read_at(&tested.instance, "told").await?;
    let until = tokio::time::Instant::now() + Duration::from_secs(10);
    while tokio::time::Instant::now() < until {
        let (run_id, _) = read_at(&tested.instance, "told").await?;
        ensure!(run_id == leading, "another server leads: {run_id}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    std::fs::remove_file(&filler)?;
    tested.writes_again(SOON).await?;
    let primary = replication_is_whole(&tested.instance, SOON).await?;
    ensure!(primary != before, "{before} leads again");
    let shown = tested
        .larder
        .wait_for("rw", "running, with that primary", SOON, |i| {
            i.state == "running" && i.primary(0).is_ok_and(|p| p.id == primary)
        })
        .await?;
    ensure!(shown.nodes.len() == 2, "not the configured count: {:?}", shown.nodes);
    tested.larder.wait_state("control", "running", SOON).await?;
    check_tidy(&tested.larder).await?;
    let (larder, instance, seen) = tested.stop().await?;
    let window = Duration::from_secs(2);
    seen.histories[0].check_lost_only_before(instance.endpoint("write")?, &[at], window).await?;
    larder.finish().await
}

/// Not even a page is left.
fn disk_is_full(disk: &SmallDisk) -> bool {
    let probe = disk.path().join("probe");
    let full = std::fs::write(&probe, [0; 4096]).is_err();
    let _ = std::fs::remove_file(probe);
    full
}
