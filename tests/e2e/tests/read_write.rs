//! A read-write instance: endpoints that follow, faults it gets over by itself, one primary.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_e2e::stories::read_write_fault;
use larder_e2e::world::{Tested, connect, roles, settled};
use larder_e2e::{Fault, check_tidy, replication_is_whole};
use larder_testkit::process::{kill9, sigcont, sigstop};
use larder_testkit::{Larder, eventually};

const SOON: Duration = Duration::from_secs(30);

/// The ports of the servers behind an endpoint, asked over and over on new connections.
async fn behind(endpoint: &larder_testkit::Endpoint, times: usize) -> Result<BTreeSet<u16>> {
    let mut ports = BTreeSet::new();
    for _ in 0..times {
        let info = connect(endpoint).await?.call(&["INFO", "server"]).await?.text();
        let port = info.lines().find_map(|line| line.strip_prefix("tcp_port:"));
        ports.insert(port.context("INFO has no tcp_port")?.trim().parse()?);
    }
    Ok(ports)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_endpoint_is_the_primary_and_reads_are_balanced_over_replicas() -> Result<()> {
    let larder = Larder::started().await?;
    larder.expect_faults();
    let args = ["--architecture", "read-write", "--read-only-nodes", "2"];
    let instance = larder.create("rw", &args).await?;
    ensure!(instance.replicas == 3 && instance.read_only_nodes == 2 && instance.nodes.len() == 3);
    let (write, read) = (instance.endpoint("write")?, instance.endpoint("read")?);
    let primary = instance.primary(0)?.clone();
    let replicas: BTreeSet<u16> = instance.replicas(0).iter().filter_map(|n| n.port).collect();
    ensure!(replicas.len() == 2, "{:?}", instance.nodes);
    for replica in instance.replicas(0) {
        ensure!(
            replica.replica_of.as_ref() == Some(&primary.id)
                && replica.link.as_deref() == Some("up")
        );
    }
    ensure!(behind(write, 5).await? == BTreeSet::from_iter(primary.port));
    // The primary's agent looks ten times in a second while a replica is missing in the route.
    eventually("reads are balanced over all replicas", Duration::from_secs(5), async || {
        let behind = behind(read, 20).await?;
        ensure!(behind == replicas, "reads lead to {behind:?}, not to {replicas:?}");
        Ok(Some(()))
    })
    .await?;
    let refused = connect(read).await?.call(&["SET", "k", "v"]).await?.text();
    ensure!(refused.starts_with("READONLY"), "{refused}");

    // Only when no replica is left, reads go to the primary.
    // `serve` would put another keeper in the place of one that is stopped for ten seconds.
    let (serve, keeper) = (larder.serve_pid()?, larder.keeper_pid()?);
    sigstop(serve)?;
    sigstop(keeper)?;
    for replica in instance.replicas(0) {
        kill9(larder.agent_pid(&replica.id)?)?;
        kill9(larder.server_pid(&instance, &replica.id)?)?;
    }
    let last = eventually("reads go to the primary", SOON, async || {
        Ok((behind(read, 3).await? == BTreeSet::from_iter(primary.port)).then_some(()))
    })
    .await;
    sigcont(keeper)?;
    sigcont(serve)?;
    last?;
    eventually("reads go to the replicas again", SOON, async || {
        Ok((behind(read, 10).await? == replicas).then_some(()))
    })
    .await?;
    larder.wait_state("rw", "running", SOON).await?;
    check_tidy(&larder).await?;
    larder.finish().await
}

/// A replica's link is up up to a second before its primary's writes flow, so several are tried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_as_soon_as_it_runs_outlives_the_primarys_server() -> Result<()> {
    let larder = Larder::started().await?;
    larder.expect_faults();
    let lives = async |name: String| -> Result<()> {
        let args = ["--architecture", "read-write", "--read-only-nodes", "1"];
        let instance = larder.create(&name, &args).await?;
        let write = instance.endpoint("write")?;
        connect(write).await?.call(&["SET", "jam", "apricot"]).await?;
        kill9(larder.server_pid(&instance, &instance.primary(0)?.id)?)?;
        let asked = eventually("somebody leads", SOON, async || {
            Ok(connect(write).await?.call(&["GET", "jam"]).await.ok())
        });
        let found = asked.await?.text();
        ensure!(found == "apricot", "`{name}` has lost what was acknowledged: {found:?}");
        larder.wait_state(&name, "running", SOON).await.map(drop)
    };
    let all = (0..6).map(|at| lives(format!("early-{at}")));
    futures::future::try_join_all(all).await?;
    check_tidy(&larder).await?;
    larder.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planned_failover_loses_nothing() -> Result<()> {
    read_write_fault(Fault::Planned, false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_primary_is_succeeded() -> Result<()> {
    read_write_fault(Fault::ServerKilled, false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_primary_is_succeeded_while_serve_is_down() -> Result<()> {
    read_write_fault(Fault::ServerKilled, true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn primary_killed_with_its_agent_is_succeeded() -> Result<()> {
    read_write_fault(Fault::ServerAndAgentKilled, false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn primary_killed_with_its_agent_is_succeeded_while_serve_is_down() -> Result<()> {
    read_write_fault(Fault::ServerAndAgentKilled, true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_primary_is_succeeded_while_serve_is_down() -> Result<()> {
    read_write_fault(Fault::ServerStopped, true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_agent_of_the_primary_is_replaced_or_fenced() -> Result<()> {
    read_write_fault(Fault::AgentStopped, false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_killed_at_once_come_back_while_serve_is_down() -> Result<()> {
    read_write_fault(Fault::AllNodesKilled, true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn primary_without_its_volume_comes_back_as_a_replica() -> Result<()> {
    read_write_fault(Fault::VolumeLost, false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fourth_failover_in_five_minutes_is_held_and_told() -> Result<()> {
    let larder = Larder::started().await?;
    larder.expect_faults();
    let tested = Tested::read_write(larder, 1, "redis-7.0").await?;
    let mut primary = replication_is_whole(&tested.instance, SOON).await?;
    for n in 1..=3 {
        kill9(tested.larder.server_pid(&tested.instance, &primary)?)?;
        tested.writes_again(SOON).await.with_context(|| format!("failover {n}"))?;
        let next = replication_is_whole(&tested.instance, SOON).await?;
        ensure!(next != primary, "the dead primary of failover {n} leads again");
        settled(&tested.larder, &tested.instance, SOON).await?;
        primary = next;
    }
    kill9(tested.larder.server_pid(&tested.instance, &primary)?)?;
    let held = |i: &larder_testkit::Instance| {
        i.conditions.iter().any(|c| c.kind == "failover-on-hold" && c.status)
    };
    tested.larder.wait_for("rw", "automatic failover is shown as on hold", SOON, held).await?;
    let until = tokio::time::Instant::now() + Duration::from_secs(6);
    while tokio::time::Instant::now() < until {
        if let Ok(now) = roles(&tested.instance).await {
            let other = now.iter().find(|(id, role, _)| *id != primary && role == "master");
            ensure!(other.is_none(), "a fourth failover: {now:?}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (larder, ..) = tested.stop().await?;
    larder.finish().await
}
