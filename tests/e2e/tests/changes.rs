//! Changes of serving instances, under clients that write and check: size, number of nodes, engine,
//! new servers. Nothing that was acknowledged is lost, endpoints stay, and what failed or was
//! cancelled leaves the instance as it was.

use std::convert::Infallible;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_e2e::world::{Tested, connect};
use larder_e2e::{check_tidy, cluster_is_whole, replication_is_whole};
use larder_testkit::engines::engine;
use larder_testkit::process::kill9;
use larder_testkit::{Connection, Instance, Larder, Node, PASSWORD, eventually};

const SOON: Duration = Duration::from_secs(30);

/// Planned changes may keep writes away for this long (figures: 300 ms at worst on one machine, when
/// nothing else runs on it).
const GAP: Duration = Duration::from_secs(2);

/// Runs the command with `--wait`, and gives the instance as it is then.
async fn changed(tested: &Tested, args: &[&str]) -> Result<Instance> {
    let args = [args, &["--wait", "--timeout", "2m"]].concat();
    tested.larder.cli(&args).await?;
    tested.larder.get(&tested.instance.name).await
}

/// Two versions that follow each other, of which one is this; an upgrade from this one if there is a
/// newer one.
fn upgrade_of(engine: &str) -> (&'static str, &'static str) {
    match engine {
        "redis-6.2" => ("redis-6.2", "redis-7.0"),
        "redis-7.0" => ("redis-7.0", "valkey-8.0"),
        _ => ("valkey-8.0", "valkey-9.1"),
    }
}

/// Ends the clients and judges: nothing is lost, and writes were never away for long.
async fn nothing_lost(tested: Tested) -> Result<()> {
    let kind = if tested.instance.architecture == "cluster" { "discovery" } else { "write" };
    let (larder, instance, seen) = tested.stop().await?;
    let now = larder.get(&instance.name).await?;
    ensure!(now.endpoint(kind)? == instance.endpoint(kind)?, "the {kind} endpoint has moved");
    for history in &seen.histories {
        history.check_nothing_lost(now.endpoint(kind)?).await?;
        let gap = history.gap(&seen.control);
        ensure!(gap <= GAP, "writes were away for {gap:?}");
    }
    check_tidy(&larder).await?;
    larder.finish().await
}

async fn maxmemory(instance: &Instance) -> Result<Vec<u64>> {
    let mut all = Vec::new();
    for node in &instance.nodes {
        let info = connect(&node.address()?).await?.call(&["INFO", "memory"]).await?.text();
        let line = info.lines().find_map(|line| line.strip_prefix("maxmemory:"));
        all.push(line.context("INFO has no maxmemory")?.trim().parse()?);
    }
    Ok(all)
}

/// Sizes of the volumes that the instance's nodes have in a Kubernetes, in bytes.
async fn volumes(tested: &Tested) -> Result<Vec<u64>> {
    let Some(namespace) = tested.larder.namespace() else { return Ok(Vec::new()) };
    let label = format!("larder.io/instance={}", tested.instance.id);
    let sizes = "jsonpath={.items[*].spec.resources.requests.storage}";
    let text = namespace.kubectl(&["get", "pvc", "-l", &label, "-o", sizes]).await?;
    text.split_whitespace()
        .map(|size| {
            let (number, unit) = size.split_at(size.trim_end_matches(char::is_alphabetic).len());
            let unit = match unit {
                "" => 1,
                "Ki" => 1 << 10,
                "Mi" => 1 << 20,
                "Gi" => 1 << 30,
                other => anyhow::bail!("{size} has the unit {other}"),
            };
            Ok(number.parse::<u64>()? * unit)
        })
        .collect()
}

fn ids(instance: &Instance) -> Vec<String> {
    let mut ids: Vec<String> = instance.nodes.iter().map(|node| node.id.clone()).collect();
    ids.sort();
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pain_14_and_20_the_limit_and_the_volume_follow_every_resize_while_clients_go_on()
-> Result<()> {
    let larder = Larder::started().await?;
    // A pod keeps its memory: nodes there are made anew.
    let in_place = larder.namespace().is_none();
    let tested = Tested::read_write(larder, 1, &engine()).await?;
    let before = ids(&tested.instance);
    let volumes_before = volumes(&tested).await?;
    let pids: Vec<_> = tested.instance.nodes.iter().map(|node| node.pid).collect();
    let grown = changed(&tested, &["instance", "resize", "rw", "--memory", "256MiB"]).await?;
    ensure!(maxmemory(&grown).await?.iter().all(|bytes| *bytes == (256 << 20) / 5 * 4));
    let larger = volumes(&tested).await?;
    let shrunk = changed(&tested, &["instance", "resize", "rw", "--memory", "128MiB"]).await?;
    ensure!(maxmemory(&shrunk).await?.iter().all(|bytes| *bytes == (128 << 20) / 5 * 4));
    ensure!(
        in_place || larger.iter().min() > volumes_before.iter().max(),
        "volumes had {volumes_before:?} and then {larger:?} bytes"
    );
    let anew = ids(&shrunk).iter().filter(|id| !before.contains(id)).count();
    ensure!(anew == if in_place { 0 } else { before.len() }, "{anew} nodes were made anew");
    let same = shrunk.nodes.iter().map(|node| node.pid).collect::<Vec<_>>() == pids;
    ensure!(same == in_place, "servers were restarted: {}", !same);
    nothing_lost(tested).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn less_memory_than_the_data_need_is_refused_with_both_numbers() -> Result<()> {
    let larder = Larder::started().await?;
    let tested = Tested::standalone(larder).await?;
    changed(&tested, &["instance", "resize", "one", "--memory", "512MiB"]).await?;
    let mut client = connect(tested.instance.endpoint("write")?).await?;
    let value = "v".repeat(1 << 20);
    for n in 0..150 {
        ensure!(client.call(&["SET", &format!("big{n}"), &value]).await?.is_ok());
    }
    // Refused by what is shown, or by the planner, which knows better, in the next moment.
    let less = ["instance", "resize", "one", "--memory", "128MiB", "--wait"];
    let output = tested.larder.run(&less).await?;
    ensure!(output.code == 1 && output.stderr.contains("data-too-large"), "{output:?}");
    ensure!(output.stderr.contains("102"), "the limit is named: {output:?}");
    let as_before = |i: &Instance| i.memory_bytes == 512 << 20 && i.state == "running";
    tested.larder.wait_for("one", "as it was", SOON, as_before).await?;
    nothing_lost(tested).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_nodes_come_and_go() -> Result<()> {
    let larder = Larder::started().await?;
    let tested = Tested::read_write(larder, 1, &engine()).await?;
    let more = changed(&tested, &["instance", "scale", "rw", "--read-only-nodes", "3"]).await?;
    ensure!(more.nodes.len() == 4 && more.read_only_nodes == 3, "{:?}", more.nodes);
    replication_is_whole(&more, SOON).await?;
    let fewer = changed(&tested, &["instance", "scale", "rw", "--read-only-nodes", "1"]).await?;
    ensure!(fewer.nodes.len() == 2 && fewer.read_only_nodes == 1, "{:?}", fewer.nodes);
    replication_is_whole(&fewer, SOON).await?;
    nothing_lost(tested).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_of_every_shard_come_and_go() -> Result<()> {
    let larder = Larder::started().await?;
    let tested = Tested::cluster(larder, 1, &engine()).await?;
    let more = changed(&tested, &["instance", "scale", "shards", "--replicas", "2"]).await?;
    ensure!(more.nodes.len() == 6, "{:?}", more.nodes);
    cluster_is_whole(&more, SOON).await?;
    let fewer = changed(&tested, &["instance", "scale", "shards", "--replicas", "1"]).await?;
    ensure!(fewer.nodes.len() == 3, "{:?}", fewer.nodes);
    cluster_is_whole(&fewer, SOON).await?;
    nothing_lost(tested).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_node_is_restarted_by_a_new_one_that_takes_over_first() -> Result<()> {
    let larder = Larder::started().await?;
    let tested = Tested::standalone(larder).await?;
    let before = ids(&tested.instance);
    let after = changed(&tested, &["instance", "restart", "one"]).await?;
    ensure!(after.nodes.len() == 1 && ids(&after) != before, "{:?}", after.nodes);
    nothing_lost(tested).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_write_instance_becomes_another_version() -> Result<()> {
    let (old, new) = match engine().as_str() {
        "redis-7.0" => ("redis-6.2", "redis-7.0"),
        other => upgrade_of(other),
    };
    let larder = Larder::started().await?;
    let tested = Tested::read_write(larder, 1, old).await?;
    let newer = changed(&tested, &["instance", "upgrade", "rw", "--engine", new]).await?;
    ensure!(newer.engine == new && newer.nodes.len() == 2, "{newer:?}");
    let version = new.replace('-', "_version:");
    for node in &newer.nodes {
        let info = connect(&node.address()?).await?.call(&["INFO", "server"]).await?.text();
        ensure!(info.contains(&version), "{info}");
    }
    let output = tested.larder.run(&["instance", "upgrade", "rw", "--engine", old]).await?;
    ensure!(output.code == 1 && output.stderr.contains("older version"), "{output:?}");
    nothing_lost(tested).await
}

/// Every shard has a serving primary and a replica that serves, at each look.
async fn never_without_both(larder: &Larder, name: &str) -> Result<Infallible> {
    loop {
        let instance = larder.get(name).await?;
        for shard in 0..instance.shards {
            let serve = |node: &&Node| node.shard == shard && node.state == "serving";
            let serving = instance.nodes.iter().filter(serve).count();
            ensure!(serving >= 2, "{serving} nodes of shard {shard} serve: {:?}", instance.nodes);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pain_09_an_upgrade_of_a_cluster_never_takes_a_primary_and_its_replica() -> Result<()> {
    let engine = engine();
    let (old, new) = upgrade_of(&engine);
    let larder = Larder::started().await?;
    let tested = Tested::cluster(larder, 2, old).await?;
    let upgrade = ["instance", "upgrade", "shards", "--engine", new];
    let newer = tokio::select! {
        newer = changed(&tested, &upgrade) => newer?,
        watched = never_without_both(&tested.larder, "shards") => match watched? {},
    };
    ensure!(newer.engine == new && newer.nodes.len() == 6, "{newer:?}");
    cluster_is_whole(&newer, SOON).await?;
    nothing_lost(tested).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_is_cancelled_is_undone() -> Result<()> {
    let larder = Larder::started().await?;
    let tested = Tested::read_write(larder, 1, &engine()).await?;
    let larder = &tested.larder;
    let begun = larder.json(&["instance", "scale", "rw", "--read-only-nodes", "3"]).await?;
    let id = begun["id"].as_str().context("an operation has an id")?;
    let output = larder.run(&["instance", "restart", "rw"]).await?;
    ensure!(output.code == 1 && output.stderr.contains("instance-busy"), "{output:?}");
    larder.cli(&["operation", "cancel", id]).await?;
    let two = |i: &Instance| i.nodes.len() == 2 && i.state == "running" && i.read_only_nodes == 1;
    larder.wait_for("rw", "as it was", SOON, two).await?;
    nothing_lost(tested).await
}

/// What every server of the instance says of a setting.
async fn setting(instance: &Instance, name: &str) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for node in &instance.nodes {
        // By what a tenant may ask: settings themselves are not among it.
        let info = connect(&node.address()?).await?.call(&["INFO", "everything"]).await?.text();
        let start = format!("{name}:");
        let line = info.lines().find_map(|line| line.strip_prefix(&start));
        all.push(line.with_context(|| format!("INFO has no {name}"))?.trim().to_owned());
    }
    Ok(all)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pain_19_parameters_change_at_once_or_by_new_servers_and_a_refused_one_leaves_the_former()
-> Result<()> {
    let larder = Larder::started().await?;
    let tested = Tested::read_write(larder, 1, &engine()).await?;
    let pids: Vec<_> = tested.instance.nodes.iter().map(|node| node.pid).collect();
    let set = ["parameter", "set", "rw", "hz=33", "maxmemory-policy=allkeys-lru"];
    let after = changed(&tested, &set).await?;
    ensure!(after.nodes.iter().map(|node| node.pid).collect::<Vec<_>>() == pids, "restarted");
    ensure!(setting(&after, "configured_hz").await?.iter().all(|hz| hz == "33"));
    ensure!(setting(&after, "maxmemory_policy").await?.iter().all(|it| it == "allkeys-lru"));
    let lacks_defragmentation = ["redis-7.0", "valkey-8.0"].contains(&engine().as_str());
    if lacks_defragmentation {
        // In range, and not in this build.
        let wrong = ["parameter", "set", "rw", "hz=44", "activedefrag=yes", "--wait"];
        let output = tested.larder.run(&wrong).await?;
        ensure!(output.code == 1 && output.stderr.contains("update-failed"), "{output:?}");
        ensure!(output.stderr.contains("activedefrag"), "it is named: {output:?}");
        let failed = |i: &Instance| i.state == "update-failed";
        let failed = tested.larder.wait_for("rw", "update-failed", SOON, failed).await?;
        eventually("the former values serve", SOON, async || {
            ensure!(setting(&failed, "configured_hz").await?.iter().all(|hz| hz == "33"));
            Ok(Some(()))
        })
        .await?;
    }
    let anew = changed(&tested, &["parameter", "set", "rw", "databases=40"]).await?;
    ensure!(anew.nodes.iter().all(|node| !pids.contains(&node.pid)), "the same servers");
    for node in &anew.nodes {
        let reply = connect(&node.address()?).await?.call(&["SELECT", "39"]).await?;
        ensure!(reply.is_ok(), "{reply:?}");
    }
    ensure!(setting(&anew, "configured_hz").await?.iter().all(|hz| hz == "33"));
    let reset = changed(&tested, &["parameter", "reset", "rw"]).await?;
    ensure!(setting(&reset, "configured_hz").await?.iter().all(|hz| hz == "10"));
    let history = tested.larder.json(&["parameter", "history", "rw"]).await?;
    let states: Vec<&str> = history
        .as_array()
        .context("a list")?
        .iter()
        .filter_map(|it| it["state"].as_str())
        .collect();
    let expected = match lacks_defragmentation {
        true => &["succeeded", "succeeded", "failed", "succeeded"][..],
        false => &["succeeded"; 3],
    };
    ensure!(states == expected, "{history}");
    nothing_lost(tested).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_created_with_parameters_and_has_them_in_every_server() -> Result<()> {
    let larder = Larder::started().await?;
    let args = ["--architecture", "cluster", "--replicas", "1", "--parameter", "hz=21"];
    let instance = larder.create("shards", &args).await?;
    ensure!(setting(&instance, "configured_hz").await?.iter().all(|hz| hz == "21"));
    for node in &instance.nodes {
        kill9(larder.server_pid(&instance, &node.id)?)?;
    }
    larder.expect_faults();
    let all = |i: &Instance| i.state == "running";
    tokio::time::sleep(Duration::from_secs(1)).await;
    let instance = larder.wait_for("shards", "running", SOON, all).await?;
    ensure!(setting(&instance, "configured_hz").await?.iter().all(|hz| hz == "21"));
    larder.finish().await
}

/// Whether the write endpoint lets the password in.
async fn lets_in(instance: &Instance, password: &str) -> Result<bool> {
    let endpoint = instance.endpoint("write")?;
    let opened = Connection::open(endpoint, Some(password), Duration::from_secs(2)).await;
    match opened {
        Ok(mut connection) => Ok(connection.call(&["PING"]).await?.text() == "PONG"),
        Err(error) if error.to_string().contains("WRONGPASS") => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pain_11_both_passwords_are_valid_for_the_grace_and_nobody_is_disconnected() -> Result<()> {
    let larder = Larder::started().await?;
    let tested = Tested::read_write(larder, 1, &engine()).await?;
    let links = async |instance: &Instance| -> Result<Vec<String>> {
        let mut client = connect(instance.endpoint("write")?).await?;
        let text = client.call(&["INFO", "stats"]).await?.text();
        Ok(text.lines().filter(|line| line.starts_with("sync_")).map(str::to_owned).collect())
    };
    let before = links(&tested.instance).await?;
    let new = "Newer-Pantry-2027";
    let args = ["instance", "set-password", "rw", "--password-stdin", "--grace", "5s", "--wait"];
    let output = tested.larder.cli_with_input(&args, &format!("{new}\n")).await?;
    ensure!(output.code == 0, "{output:?}");
    let instance = &tested.instance;
    ensure!(lets_in(instance, new).await?, "the new password does not work");
    ensure!(lets_in(instance, PASSWORD).await?, "the former one has no grace");
    ensure!(links(instance).await? == before, "a replica was cut off");
    // Noticed at the next look at the instance, which is half a minute away at most.
    eventually("the former password is valid no longer", Duration::from_secs(60), async || {
        ensure!(!lets_in(instance, PASSWORD).await?, "it is");
        Ok(Some(()))
    })
    .await?;
    // Also after a restart of everything, from the files.
    for node in &instance.nodes {
        kill9(tested.larder.server_pid(instance, &node.id)?)?;
    }
    eventually("the new password works after a restart", SOON, async || {
        ensure!(lets_in(instance, new).await?);
        Ok(Some(()))
    })
    .await?;
    ensure!(!lets_in(instance, PASSWORD).await?, "the former password is back");
    let (larder, ..) = tested.stop().await?;
    larder.expect_faults();
    larder.finish().await
}
