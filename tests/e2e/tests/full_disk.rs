//! A full disk: no failover, no loss, nothing started; and everything goes on when there is room.

use std::time::Duration;

use anyhow::{Result, ensure};
use larder_e2e::world::{Tested, connect};
use larder_e2e::{check_tidy, replication_is_whole};
use larder_testkit::disk::{SmallDisk, skipped};
use larder_testkit::{Larder, LarderOptions, PASSWORD, eventually};

const SOON: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disk_stops_no_lease_moves_no_primary_and_loses_nothing() -> Result<()> {
    if skipped("full_disk") {
        return Ok(());
    }
    let disk = SmallDisk::mount(256)?;
    let options =
        LarderOptions { data: Some(disk.path().join("data")), ..LarderOptions::default() };
    let larder = Larder::start(options).await?;
    larder.expect_faults();
    for part in ["disk", "space", "No space", "write", "store", "full"] {
        larder.expect_log(part);
    }
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
