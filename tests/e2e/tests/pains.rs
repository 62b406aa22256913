//! What goes wrong in systems of this kind, one named test each.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_e2e::stories::read_write_fault;
use larder_e2e::world::{Tested, connect, roles, settled};
use larder_e2e::{Fault, check_tidy, cluster_is_whole, replication_is_whole, tidy};
use larder_testkit::process::{self, Kind, kill9, sigcont, sigstop};
use larder_testkit::{Connection, Larder, PASSWORD, Reply, eventually};

const SOON: Duration = Duration::from_secs(40);
/// `serve` puts another keeper in the place of one that is stopped for ten seconds.
const WHILE_KEEPER_IS_HELD: Duration = Duration::from_secs(8);

/// A full restart loses the cluster: addresses are stable, so the same cluster is there again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pain_01_cluster_survives_a_full_restart_of_the_machine() -> Result<()> {
    let mut larder = Larder::started().await?;
    larder.expect_faults();
    let instance = larder.create("shards", &["--architecture", "cluster"]).await?;
    let mut ids = Vec::new();
    for shard in 0..3 {
        let primary = instance.primary(shard)?;
        let mut connection = connect(&primary.address()?).await?;
        let (first, last) = primary.first_range().context("no slots")?;
        let key = format!("{{{}}}", larder_testkit::resp::tag_in(first, last));
        ensure!(connection.call(&["SET", &key, "v"]).await?.is_ok());
        ids.push((key, connection.call(&["CLUSTER", "MYID"]).await?.text()));
    }
    larder.kill_serve().await?;
    process::kill_all_of(larder.data())?;
    larder.start_serve().await?;
    cluster_is_whole(&instance, SOON).await?;
    let after = larder.wait_state("shards", "running", SOON).await?;
    for (key, id) in ids {
        let owner = eventually("the key is read", SOON, async || {
            for node in &after.nodes {
                let mut connection = connect(&node.address()?).await?;
                if connection.call(&["GET", &key]).await? == Reply::Bulk(b"v".to_vec()) {
                    return Ok(Some(node.clone()));
                }
            }
            Ok(None)
        })
        .await?;
        let nodes = connect(&owner.address()?).await?.call(&["CLUSTER", "NODES"]).await?.text();
        ensure!(nodes.contains(&id), "{id} is not in the cluster any more: {nodes}");
    }
    check_tidy(&larder).await?;
    larder.finish().await
}

/// Clusters merge after an address is used again: a released port rests, and a foreign primary
/// refuses Larder's own user of another instance.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pain_02_instances_never_meet_through_a_reused_address_or_a_shared_password() -> Result<()>
{
    let larder = Larder::started().await?;
    let cluster = ["--architecture", "cluster", "--replicas", "1"];
    let first = larder.create("first", &cluster).await?;
    let kept = larder.create("kept", &cluster).await?;
    let ports: Vec<Option<u16>> = first.nodes.iter().map(|n| n.port).collect();
    larder.cli(&["instance", "delete", "first", "--permanent", "--yes", "--wait"]).await?;
    let second = larder.create("second", &cluster).await?;
    ensure!(
        second.nodes.iter().all(|n| !ports.contains(&n.port)),
        "ports of the deleted instance are used again at once: {ports:?}"
    );
    cluster_is_whole(&kept, SOON).await?;
    cluster_is_whole(&second, SOON).await?;

    let system = |instance: &larder_testkit::Instance| {
        larder.system_password(instance, &instance.nodes[0].id)
    };
    let foreign = system(&kept)?;
    ensure!(foreign != system(&second)?);
    let mut connection = Connection::open(&second.nodes[0].address()?, None, SOON).await?;
    let refused = connection.call(&["AUTH", "larder", &foreign]).await?.text();
    ensure!(refused.starts_with("WRONGPASS"), "{refused}");
    larder.finish().await
}

/// The primary comes back empty and wipes its replicas.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pain_03_primary_with_an_empty_volume_never_wipes_its_replicas() -> Result<()> {
    read_write_fault(Fault::VolumeLost, true).await
}

/// Two primaries: the keeper, the agent and the server of the primary are stopped, so that nothing
/// on that side can let go by itself, and go on later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pain_04_primary_that_was_frozen_with_its_agent_takes_no_write_when_it_thaws() -> Result<()>
{
    let larder = Larder::started().await?;
    larder.expect_faults();
    // A lease, a look and an election may take longer than `serve` waits before it says so.
    larder.expect_log("is stopped: what ends stays down");
    let tested = Tested::read_write(larder, 1, "redis-7.0").await?;
    let before = replication_is_whole(&tested.instance, SOON).await?;
    let larder = &tested.larder;
    let frozen = [
        larder.keeper_pid()?,
        larder.agent_pid(&before)?,
        larder.server_pid(&tested.instance, &before)?,
    ];
    let at = tested.writers[0].now();
    for pid in frozen {
        sigstop(pid)?;
    }
    let moved = tested.writes_again(SOON).await;
    for pid in frozen {
        // The successor may have killed the old server.
        if process::is_alive(pid) {
            sigcont(pid)?;
        }
    }
    moved?;
    let after = replication_is_whole(&tested.instance, SOON).await?;
    ensure!(after != before);
    tested.larder.wait_state("rw", "running", SOON).await?;
    let (larder, instance, seen) = tested.stop().await?;
    let window = Duration::from_secs(2);
    seen.histories[0].check_lost_only_before(instance.endpoint("write")?, &[at], window).await?;
    larder.finish().await
}

/// The old primary returns and its old data overrides the new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pain_05_returning_primary_takes_over_the_newer_data() -> Result<()> {
    let larder = Larder::started().await?;
    larder.expect_faults();
    let instance = larder.create("rw", &["--architecture", "read-write"]).await?;
    let write = instance.endpoint("write")?;
    ensure!(connect(write).await?.call(&["SET", "k", "old"]).await?.is_ok());
    let old = instance.primary(0)?.clone();
    // `serve` would put another keeper in the place of one that is stopped for ten seconds, and
    // that one would start the old primary again.
    let (serve, keeper) = (larder.serve_pid()?, larder.keeper_pid()?);
    sigstop(serve)?;
    sigstop(keeper)?;
    kill9(larder.agent_pid(&old.id)?)?;
    kill9(larder.server_pid(&instance, &old.id)?)?;
    let written = eventually("the successor takes writes", SOON, async || {
        Ok(connect(write).await?.call(&["SET", "k", "new"]).await?.is_ok().then_some(()))
    })
    .await;
    sigcont(keeper)?;
    sigcont(serve)?;
    written?;
    let now = replication_is_whole(&instance, SOON).await?;
    ensure!(now != old.id, "the old primary leads again");
    for node in &instance.nodes {
        let mut connection = connect(&node.address()?).await?;
        let value = connection.call(&["GET", "k"]).await?;
        ensure!(value == Reply::Bulk(b"new".to_vec()), "{} has {value:?}", node.id);
    }
    larder.wait_state("rw", "running", SOON).await?;
    larder.finish().await
}

/// A crash is read as "scale down": intent is never inferred from counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pain_07_dead_nodes_are_brought_back_and_never_removed() -> Result<()> {
    let mut larder = Larder::started().await?;
    larder.expect_faults();
    let args = ["--architecture", "read-write", "--read-only-nodes", "2"];
    let instance = larder.create("rw", &args).await?;
    // `serve` starts into a world where two of three nodes are dead and nobody restarts them.
    larder.kill_serve().await?;
    let keeper = larder.keeper_pid()?;
    sigstop(keeper)?;
    for node in instance.replicas(0) {
        kill9(larder.agent_pid(&node.id)?)?;
        kill9(larder.server_pid(&instance, &node.id)?)?;
    }
    larder.start_serve().await?;
    let shown = larder.wait_state("rw", "degraded", WHILE_KEEPER_IS_HELD).await;
    sigcont(keeper)?;
    ensure!(shown?.nodes.len() == 3, "dead nodes are not shown any more");
    let after = larder.wait_state("rw", "running", SOON).await?;
    let ids = |i: &larder_testkit::Instance| {
        let mut ids: Vec<String> = i.nodes.iter().map(|n| n.id.clone()).collect();
        ids.sort();
        ids
    };
    ensure!(ids(&after) == ids(&instance), "{:?} became {:?}", ids(&instance), ids(&after));
    ensure!(after.generation == instance.generation, "somebody changed the wish");
    check_tidy(&larder).await?;
    larder.finish().await
}

/// Stale roles: the write endpoint never leads to a replica for longer than a moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pain_08_write_endpoint_never_leads_new_clients_to_a_replica() -> Result<()> {
    let larder = Larder::started().await?;
    larder.expect_faults();
    let instance = larder.create("rw", &["--architecture", "read-write"]).await?;
    let write = instance.endpoint("write")?;
    for fault in [Fault::Planned, Fault::ServerKilled] {
        let now = settled(&larder, &instance, SOON).await?;
        let before = now.primary(0)?.id.clone();
        fault.strike(&larder, &now, 0).await?;
        let after = replication_is_whole(&instance, SOON).await?;
        ensure!(after != before);
        // From now on each new connection is with the primary, though `serve` may not know yet.
        for _ in 0..50 {
            let role = connect(write).await?.call(&["ROLE"]).await?;
            ensure!(role.items().first().is_some_and(|r| r.text() == "master"), "{role:?}");
        }
        let shown = larder
            .wait_for("rw", "the new roles are shown", SOON, |i| {
                i.primary(0).is_ok_and(|p| p.id == after)
            })
            .await?;
        ensure!(shown.nodes.iter().filter(|n| n.role == "primary").count() == 1);
    }
    larder.finish().await
}

/// A graceful failover is not awaited: `--wait` returns when the roles have changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pain_10_failover_command_returns_when_the_failover_is_done() -> Result<()> {
    let larder = Larder::started().await?;
    let rw = larder.create("rw", &["--architecture", "read-write"]).await?;
    for _ in 0..2 {
        let before = replication_is_whole(&rw, SOON).await?;
        let to = rw.nodes.iter().find(|n| n.id != before).context("no replica")?.id.clone();
        larder.cli(&["instance", "failover", "rw", "--to", &to, "--wait"]).await?;
        let now = roles(&rw).await?;
        let master: Vec<&String> =
            now.iter().filter(|(_, role, _)| role == "master").map(|(id, ..)| id).collect();
        ensure!(master == [&to], "after --wait: {now:?}");
        let shown = larder.get("rw").await?;
        ensure!(shown.primary(0)?.id == to, "{shown:?}");
        larder.wait_state("rw", "running", SOON).await?;
    }
    let shards = larder.create("shards", &["--architecture", "cluster"]).await?;
    let to = shards.replicas(1).first().context("no replica")?.id.clone();
    larder.cli(&["instance", "failover", "shards", "--shard", "1", "--to", &to, "--wait"]).await?;
    let mut connection = connect(&shards.node(&to)?.address()?).await?;
    let role = connection.call(&["ROLE"]).await?;
    ensure!(role.items().first().is_some_and(|r| r.text() == "master"), "{role:?}");
    let nobody = larder.run(&["instance", "failover", "rw", "--to", "n-nobody"]).await?;
    ensure!(nobody.code == 1 && nobody.stderr.contains("node-not-found"), "{nobody:?}");
    larder.finish().await
}

/// Killed while loading, or ready while loading.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pain_23_loading_server_is_neither_killed_nor_shown_as_serving() -> Result<()> {
    let larder = Larder::started().await?;
    larder.expect_faults();
    let args = ["--architecture", "standalone", "--memory", "512MiB"];
    let instance = larder.create("one", &args).await?;
    let write = instance.endpoint("write")?;
    let node = instance.nodes[0].id.clone();
    // Enough commands in the append-only file to keep the server loading for a while.
    let mut connection = Connection::open(write, Some(PASSWORD), SOON).await?;
    let script = "for i = 1, 50000 do redis.call('SET', KEYS[1] .. i, i) end return 1";
    for n in 0..20 {
        let filled = connection.call(&["EVAL", script, "1", &format!("k{n}:")]).await?;
        ensure!(filled == Reply::Integer(1), "{filled:?}");
    }
    ensure!(connection.call(&["SET", "last", "v"]).await?.is_ok());
    // A server that waits for the disk holds back what it has acknowledged, for up to two seconds.
    eventually("everything is in the file", SOON, async || {
        let info = connect(write).await?.call(&["INFO", "persistence"]).await?.text();
        let written = ["aof_buffer_length:0", "aof_pending_bio_fsync:0"];
        Ok(written.iter().all(|field| info.contains(field)).then_some(()))
    })
    .await?;
    let first = larder.server_pid(&instance, &node)?;
    kill9(first)?;
    let second = eventually("the server is started again", SOON, async || {
        Ok(Some(larder.server_pid(&instance, &node)?).filter(|pid| *pid != first))
    })
    .await?;
    eventually("everything is loaded", SOON, async || {
        let answer = connect(write).await?.call(&["GET", "last"]).await?;
        Ok((answer == Reply::Bulk(b"v".to_vec())).then_some(()))
    })
    .await?;
    ensure!(larder.server_pid(&instance, &node)? == second, "it was killed while it was loading");
    let size = connect(write).await?.call(&["DBSIZE"]).await?;
    ensure!(size == Reply::Integer(1_000_001), "{size:?}");
    larder.wait_state("one", "running", SOON).await?;
    larder.finish().await
}

/// Leaderless for minutes: whatever dies, somebody leads within seconds, without `serve`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pain_25_nobody_is_leaderless_for_long() -> Result<()> {
    let mut larder = Larder::started().await?;
    larder.expect_faults();
    let args = ["--architecture", "read-write", "--read-only-nodes", "2"];
    let instance = larder.create("rw", &args).await?;
    let write = instance.endpoint("write")?;
    larder.kill_serve().await?;
    for step in ["primary", "everything"] {
        let primary = replication_is_whole(&instance, SOON).await?;
        let pids = match step {
            "primary" => vec![larder.agent_pid(&primary)?, larder.server_pid(&instance, &primary)?],
            _ => larder.pids_of(&instance, &[Kind::Agent, Kind::Server]),
        };
        for pid in pids {
            kill9(pid)?;
        }
        eventually(
            &format!("somebody leads after the death of {step}"),
            Duration::from_secs(20),
            async || {
                let mut connection =
                    Connection::open(write, Some(PASSWORD), Duration::from_millis(500)).await?;
                Ok(connection.call(&["SET", step, "1"]).await?.is_ok().then_some(()))
            },
        )
        .await?;
    }
    larder.start_serve().await?;
    larder.wait_state("rw", "running", SOON).await?;
    ensure!(tidy::listed(&larder).await?.len() == 1);
    check_tidy(&larder).await?;
    larder.finish().await
}
