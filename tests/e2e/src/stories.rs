//! The whole story of one fault: an instance that is written to, what is done to it, and how it must
//! look afterwards.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_testkit::{Endpoint, History, Larder, eventually};

use crate::world::Tested;
use crate::{Fault, check_tidy, cluster_is_whole, replication_is_whole};

const SOON: Duration = Duration::from_secs(40);

/// The whole story of one fault of a read-write instance's primary.
///
/// # Errors
/// What went wrong.
pub async fn read_write_fault(fault: Fault, serve_down: bool) -> Result<()> {
    let larder = Larder::started().await?;
    larder.expect_faults();
    let mut tested = Tested::read_write(larder, 1, "redis-7.0").await?;
    let before = tested.instance.primary(0)?.id.clone();
    if serve_down {
        tested.larder.kill_serve().await?;
    }
    let at = tested.writers[0].now();
    fault.strike(&tested.larder, &tested.instance, 0).await?;
    let written = tested.writes_again(fault.allowed_gap()).await;
    fault.mend(&tested.larder, &tested.instance, &before).await?;
    written.context("writes after the fault")?;
    let primary = replication_is_whole(&tested.instance, Duration::from_secs(40)).await?;
    if fault.moves_the_primary() {
        ensure!(primary != before, "{before} still leads after {fault:?}");
    }
    if serve_down {
        tested.larder.start_serve().await?;
    }
    let name = tested.instance.name.clone();
    let shown =
        tested.larder.wait_for(&name, "running, with that primary", Duration::from_secs(30), |i| {
            i.state == "running" && i.primary(0).is_ok_and(|p| p.id == primary)
        });
    let shown = shown.await?;
    ensure!(shown.nodes.len() == 2, "not the configured count: {:?}", shown.nodes);
    ensure!(shown.endpoints == tested.instance.endpoints, "an endpoint moved");
    let told = fault.told_as();
    eventually(&format!("events tell of {fault:?} as {told:?}"), SOON, async || {
        let reasons = tested.larder.event_reasons(&name).await?;
        ensure!(told.iter().all(|word| reasons.iter().any(|r| r == word)), "they say {reasons:?}");
        Ok(Some(()))
    })
    .await?;
    let (larder, instance, seen) = tested.stop().await?;
    check_history(&seen.histories[0], &seen.control, instance.endpoint("write")?, fault, at)
        .await?;
    larder.finish().await
}

/// Gap and losses of one history.
///
/// # Errors
/// Too long, or too much.
pub async fn check_history(
    history: &History,
    control: &History,
    endpoint: &Endpoint,
    fault: Fault,
    at: Duration,
) -> Result<()> {
    let (_, gap_began) = history.worst_gap();
    match fault {
        Fault::Planned | Fault::PodDeleted => history.check_nothing_lost(endpoint).await?,
        // The server's last moment is the begin of the gap: a stopped agent's comes later.
        _ => {
            let faults = [at, gap_began + Duration::from_millis(100)];
            history.check_lost_only_before(endpoint, &faults, Duration::from_secs(2)).await?;
        }
    }
    // The control may have been on the same worker.
    let gap = match fault {
        Fault::WorkerLost => history.worst_gap().0,
        _ => history.gap(control),
    };
    ensure!(gap <= fault.allowed_gap(), "{fault:?} kept writes away for {gap:?}");
    Ok(())
}

/// The whole story of one fault of shard 0's primary.
///
/// # Errors
/// What went wrong.
pub async fn cluster_fault(fault: Fault, serve_down: bool) -> Result<()> {
    let larder = Larder::started().await?;
    larder.expect_faults();
    let mut tested = Tested::cluster(larder, 2, "redis-7.0").await?;
    let before = tested.instance.primary(0)?.clone();
    if serve_down {
        tested.larder.kill_serve().await?;
    }
    let at = tested.writers[0].now();
    fault.strike(&tested.larder, &tested.instance, 0).await?;
    let written = tested.writes_again(fault.allowed_gap().max(SOON)).await;
    fault.mend(&tested.larder, &tested.instance, &before.id).await?;
    written.context("writes after the fault")?;
    // A node with a new volume joins under a new id, and its old entry is forgotten, by the
    // reconciler: everything else gets along without `serve`.
    if fault == Fault::VolumeLost && serve_down {
        tested.larder.start_serve().await?;
    }
    cluster_is_whole(&tested.instance, SOON).await?;
    if serve_down && fault != Fault::VolumeLost {
        tested.larder.start_serve().await?;
    }
    let moved = fault.moves_the_primary();
    let shown = tested
        .larder
        .wait_for("shards", "running, as configured", SOON, |i| {
            i.state == "running"
                && i.nodes.len() == 6
                && (0..3).all(|s| i.primary(s).is_ok() && i.replicas(s).len() == 1)
                // What a `serve` that was just started shows first is what it has seen before.
                && !(moved && i.primary(0).is_ok_and(|p| p.id == before.id))
        })
        .await?;
    ensure!(shown.endpoints == tested.instance.endpoints, "the endpoint moved");
    check_tidy(&tested.larder).await?;
    let (larder, instance, seen) = tested.stop().await?;
    let discovery = instance.endpoint("discovery")?;
    // Without its agent's help a shard waits for the cluster's own node timeout.
    check_history(&seen.histories[0], &seen.control, discovery, fault, at).await?;
    if moved && fault != Fault::WorkerLost {
        for other in &seen.histories[1..] {
            let gap = other.gap(&seen.control);
            ensure!(gap < Duration::from_secs(6), "another shard's writes stood for {gap:?}");
            other.check_nothing_lost(discovery).await?;
        }
    }
    larder.finish().await
}
