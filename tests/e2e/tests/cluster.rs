//! A cluster instance: the cluster protocol for clients, native failover, repair.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_e2e::stories::{check_history, cluster_fault};
use larder_e2e::world::{Tested, connect};
use larder_e2e::{Fault, check_tidy, cluster_is_whole};
use larder_testkit::process::kill9;
use larder_testkit::{Larder, LarderOptions, PASSWORD};

const SOON: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_clients_use_it_through_discovery() -> Result<()> {
    let larder = Larder::started().await?;
    let args = ["--architecture", "cluster", "--shards", "3", "--replicas", "2"];
    let instance = larder.create("shards", &args).await?;
    ensure!(instance.nodes.len() == 6);
    cluster_is_whole(&instance, SOON).await?;
    let mut slots = 0;
    for shard in 0..3 {
        let (first, last) = instance.primary(shard)?.first_range().context("no slots")?;
        slots += u32::from(last - first) + 1;
        ensure!(instance.replicas(shard).len() == 1);
    }
    ensure!(slots == 16384, "{slots} slots");

    let discovery = instance.endpoint("discovery")?;
    let url = format!("redis://:{PASSWORD}@{}:{}", discovery.host, discovery.port);
    let client = redis::cluster::ClusterClientBuilder::new(vec![url]).retries(2).build()?;
    let mut connection = client.get_async_connection().await?;
    for n in 0..300 {
        let () = redis::cmd("SET").arg(format!("k{n}")).arg(n).query_async(&mut connection).await?;
    }
    for n in 0..300 {
        let value: i32 =
            redis::cmd("GET").arg(format!("k{n}")).query_async(&mut connection).await?;
        ensure!(value == n);
    }
    let mut sizes = 0;
    for shard in 0..3 {
        let primary = instance.primary(shard)?.address()?;
        let reply = connect(&primary).await?.call(&["DBSIZE"]).await?;
        let larder_testkit::Reply::Integer(size) = reply else { anyhow::bail!("{reply:?}") };
        ensure!(size > 0, "a shard without keys");
        sizes += size;
    }
    ensure!(sizes == 300);
    larder.cli(&["instance", "delete", "shards", "--permanent", "--yes", "--wait"]).await?;
    check_tidy(&larder).await?;
    larder.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planned_failover_of_a_shard_loses_nothing() -> Result<()> {
    cluster_fault(Fault::Planned, false).await
}

/// Who has won an election a moment ago and is a replica again must not win by the same votes, and
/// who was a primary a moment ago must have what it was sent since.
async fn killed_after_there_and_back(engine: &str) -> Result<()> {
    let larder = Larder::started().await?;
    larder.expect_faults();
    let tested = Tested::cluster(larder, 2, engine).await?;
    let first = tested.instance.primary(0)?.clone();
    let other = tested.instance.replicas(0).first().context("no replica")?.id.clone();
    for to in [&other, &first.id] {
        let args = ["instance", "failover", "shards", "--shard", "0", "--to", to, "--wait"];
        tested.larder.cli(&args).await?;
    }
    let at = tested.writers[0].now();
    kill9(tested.larder.server_pid(&tested.instance, &first.id)?)?;
    tested.writes_again(SOON).await?;
    cluster_is_whole(&tested.instance, SOON).await?;
    tested
        .larder
        .wait_for("shards", "running under the other", SOON, |i| {
            i.state == "running" && i.primary(0).is_ok_and(|primary| primary.id == other)
        })
        .await?;
    let (larder, instance, seen) = tested.stop().await?;
    let discovery = instance.endpoint("discovery")?;
    check_history(&seen.histories[0], &seen.control, discovery, Fault::ServerKilled, at).await?;
    larder.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_right_after_there_and_back_the_other_keeps_the_slots() -> Result<()> {
    killed_after_there_and_back("redis-7.0").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_right_after_there_and_back_the_other_has_the_data_on_redis_6_2_too() -> Result<()> {
    killed_after_there_and_back("redis-6.2").await
}

/// A replica begins no election within four node timeouts of its last one, and voters do not vote
/// twice in a row either; a failover that ran into that would hold back the shard's writes for
/// seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planned_failovers_in_a_row_hold_back_no_write() -> Result<()> {
    let config = "[policy]\ncluster_node_timeout = 2000\n".to_owned();
    let options = LarderOptions { config, ..LarderOptions::default() };
    let larder = Larder::start(options).await?;
    let tested = Tested::cluster(larder, 2, "redis-7.0").await?;
    for _ in 0..3 {
        tested.larder.cli(&["instance", "failover", "shards", "--shard", "0", "--wait"]).await?;
    }
    let (larder, instance, seen) = tested.stop().await?;
    let history = &seen.histories[0];
    history.check_nothing_lost(instance.endpoint("discovery")?).await?;
    let gap = history.gap(&seen.control);
    ensure!(gap < Duration::from_secs(2), "writes were held back for {gap:?}");
    larder.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_primary_is_succeeded_at_once_by_its_agents_help_while_serve_is_down() -> Result<()>
{
    cluster_fault(Fault::ServerKilled, true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn primary_killed_with_its_agent_is_succeeded() -> Result<()> {
    cluster_fault(Fault::ServerAndAgentKilled, false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_killed_at_once_form_the_same_cluster_again_while_serve_is_down() -> Result<()> {
    cluster_fault(Fault::AllNodesKilled, true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_volume_is_healed_and_its_stale_entry_forgotten() -> Result<()> {
    cluster_fault(Fault::VolumeLost, false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_primary_is_succeeded_while_serve_is_down() -> Result<()> {
    cluster_fault(Fault::ServerStopped, true).await
}
