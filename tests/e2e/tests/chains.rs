//! Chained replication: replicas copy from each other in a row, under clients that write and check.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_e2e::check_tidy;
use larder_e2e::world::{Tested, connect};
use larder_testkit::engines::engine;
use larder_testkit::process::{kill9, kill9_each, sigcont, sigstop};
use larder_testkit::{Instance, Larder, eventually};

const SOON: Duration = Duration::from_secs(40);
/// Planned changes, on a busy machine.
const GAP: Duration = Duration::from_secs(2);
/// Asynchronous replication through five nodes: so young a write may be lost with the primary.
const ON_ITS_WAY: Duration = Duration::from_secs(1);

/// The ids along the links as the servers themselves have them, from the primary downwards.
async fn row(instance: &Instance) -> Result<Vec<String>> {
    let mut above = Vec::new();
    for node in &instance.nodes {
        let reply = connect(&node.address()?).await?.call(&["ROLE"]).await?;
        let said: Vec<String> = reply.items().iter().map(|item| item.text()).collect();
        let up = said.first().is_some_and(|role| role == "master")
            || said.get(3).is_some_and(|link| link == "connected");
        ensure!(up, "node {} has no link: {said:?}", node.id);
        let port = (said[0] == "slave").then(|| said[2].clone());
        above.push((node.id.clone(), node.port.context("a port")?.to_string(), port));
    }
    let mut row = Vec::new();
    let mut next: Vec<_> = above.iter().filter(|(.., from)| from.is_none()).collect();
    while let [(id, port, _)] = next[..] {
        row.push(id.clone());
        next = above.iter().filter(|(.., from)| from.as_ref() == Some(port)).collect();
    }
    ensure!(next.is_empty(), "{above:?} is no row");
    ensure!(row.len() == instance.nodes.len(), "{above:?} has loose ends");
    Ok(row)
}

/// Waits until all nodes stand in one row, and Larder says that the instance runs.
async fn in_a_row(tested: &Tested) -> Result<Vec<String>> {
    let name = &tested.instance.name;
    let found = eventually("all nodes stand in one row", SOON, async || {
        let instance = tested.larder.get(name).await?;
        ensure!(instance.state == "running", "it is {}", instance.state);
        Ok(Some(row(&instance).await?))
    })
    .await?;
    // Every node shows its lag and whom it copies from.
    let shown = tested.larder.json(&["instance", "get", name]).await?;
    let nodes = shown["nodes"].as_array().context("nodes")?;
    let of = |id: &str| nodes.iter().find(|node| node["id"] == *id).context("shown");
    for pair in found.windows(2) {
        let node = of(&pair[1])?;
        ensure!(node["replica_of"] == *pair[0] && node["lag_bytes"].is_u64(), "{node}");
    }
    Ok(found)
}

async fn set_chained(tested: &Tested, to: &str) -> Result<()> {
    let args = ["instance", "set-chained", &tested.instance.name, to, "--wait", "--timeout", "1m"];
    tested.larder.cli(&args).await.map(drop)
}

/// Ends the clients: nothing is lost but what was on its way when the primary was killed.
async fn judged(tested: Tested, killed_at: &[Duration]) -> Result<()> {
    let (larder, instance, seen) = tested.stop().await?;
    let write = instance.endpoint("write")?;
    for history in &seen.histories {
        history.check_lost_only_before(write, killed_at, ON_ITS_WAY).await?;
        if killed_at.is_empty() {
            history.check_nothing_lost(write).await?;
            let gap = history.gap(&seen.control);
            ensure!(gap <= GAP, "writes were away for {gap:?}");
        }
    }
    check_tidy(&larder).await?;
    larder.finish().await
}

/// The primary feeds one replica only.
async fn fed_by_primary(instance: &Instance) -> Result<usize> {
    let reply = connect(instance.endpoint("write")?).await?.call(&["ROLE"]).await?;
    Ok(reply.items().get(2).context("a primary's ROLE names its replicas")?.items().len())
}

async fn chain_of_five(engine: &str) -> Result<()> {
    let larder = Larder::started().await?;
    larder.expect_faults();
    let tested = Tested::chained(larder, 4, engine).await?;
    let created = in_a_row(&tested).await?;
    ensure!(fed_by_primary(&tested.instance).await? == 1);
    reads_lead_to_all(&tested.instance).await?;

    // The middle, the tail, and the first replica: those behind are linked around it, it comes back as
    // the last one.
    for place in [2, 4, 1] {
        let before = in_a_row(&tested).await?;
        let id = &before[place];
        let instance = tested.larder.get(&tested.instance.name).await?;
        let keeper = tested.larder.keeper_pid()?;
        sigstop(keeper)?;
        let pids = [tested.larder.agent_pid(id)?, tested.larder.server_pid(&instance, id)?];
        kill9_each(&pids)?;
        let around = match before.get(place + 1) {
            Some(next) => copies_from(&instance, next, &before[place - 1]).await,
            None => Ok(()),
        };
        sigcont(keeper)?;
        around?;
        let mut expected = before.clone();
        expected.remove(place);
        expected.push(id.clone());
        eventually("who was killed stands last", SOON, async || {
            let now = in_a_row(&tested).await?;
            ensure!(now == expected, "{now:?}, not {expected:?}");
            Ok(Some(()))
        })
        .await?;
    }
    // One that is back in a moment keeps its place: nobody has gone around it yet.
    let before = in_a_row(&tested).await?;
    let instance = tested.larder.get(&tested.instance.name).await?;
    kill9(tested.larder.server_pid(&instance, &before[2])?)?;
    eventually("all are in a row again", SOON, async || {
        let now = in_a_row(&tested).await?;
        ensure!(now.iter().collect::<BTreeSet<_>>() == before.iter().collect(), "{now:?}");
        Ok(Some(()))
    })
    .await?;
    ensure!(in_a_row(&tested).await?[0] == created[0], "the primary is still the same");
    judged(tested, &[]).await
}

async fn copies_from(instance: &Instance, node: &str, above: &str) -> Result<()> {
    let (node, above) = (instance.node(node)?.address()?, instance.node(above)?.address()?);
    eventually("the link leads around", SOON, async || {
        let role = connect(&node).await?.call(&["ROLE"]).await?;
        let from = role.items().get(2).context("a replica's ROLE")?.text();
        ensure!(from == above.port.to_string(), "it copies from {from}");
        Ok(Some(()))
    })
    .await
}

async fn reads_lead_to_all(instance: &Instance) -> Result<()> {
    let read = instance.endpoint("read")?;
    let replicas: BTreeSet<u16> = instance.replicas(0).iter().filter_map(|n| n.port).collect();
    eventually("reads lead to every replica", SOON, async || {
        let mut ports = BTreeSet::new();
        for _ in 0..40 {
            let info = connect(read).await?.call(&["INFO", "server"]).await?.text();
            let port = info.lines().find_map(|line| line.strip_prefix("tcp_port:"));
            ports.insert(port.context("INFO has no tcp_port")?.trim().parse()?);
        }
        ensure!(ports == replicas, "they lead to {ports:?}");
        Ok(Some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_of_five_is_linked_around_who_dies_in_it() -> Result<()> {
    chain_of_five(&engine()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_of_five_is_linked_around_who_dies_in_it_on_valkey() -> Result<()> {
    chain_of_five("valkey-9.1").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_head_of_a_chain_is_killed_and_comes_back_as_its_tail() -> Result<()> {
    let larder = Larder::started().await?;
    larder.expect_faults();
    let tested = Tested::chained(larder, 4, &engine()).await?;
    let before = in_a_row(&tested).await?;
    let instance = tested.larder.get(&tested.instance.name).await?;
    let killed_at = tested.writers[0].now();
    kill9(tested.larder.server_pid(&instance, &before[0])?)?;
    eventually("another one leads, and the former primary stands last", SOON, async || {
        let now = in_a_row(&tested).await?;
        ensure!(now[0] != before[0] && now[4] == before[0], "{now:?} after {before:?}");
        Ok(Some(()))
    })
    .await?;
    judged(tested, &[killed_at]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_is_switched_off_and_on_and_hands_over_to_its_tail_without_a_loss() -> Result<()> {
    let tested = Tested::chained(Larder::started().await?, 3, "redis-6.2").await?;
    in_a_row(&tested).await?;
    set_chained(&tested, "off").await?;
    ensure!(fed_by_primary(&tested.instance).await? == 3);
    set_chained(&tested, "on").await?;
    let row = in_a_row(&tested).await?;
    ensure!(fed_by_primary(&tested.instance).await? == 1);
    let (name, tail) = (tested.instance.name.clone(), row[3].clone());
    tested
        .larder
        .cli(&["instance", "failover", &name, "--to", &tail, "--wait", "--timeout", "1m"])
        .await?;
    let now = in_a_row(&tested).await?;
    ensure!(now[0] == tail && now[3] == row[0], "{now:?} after {row:?}");
    // Nodes come and go, servers are renewed: at the end all stand in a row again.
    let scale = ["instance", "scale", &name, "--read-only-nodes", "4", "--wait", "--timeout", "1m"];
    tested.larder.cli(&scale).await?;
    ensure!(in_a_row(&tested).await?.len() == 5);
    let restart = ["instance", "restart", &name, "--wait", "--timeout", "2m"];
    tested.larder.cli(&restart).await?;
    ensure!(in_a_row(&tested).await?.len() == 5);
    let refused = tested.larder.run(&["instance", "set-chained", &name, "on"]).await?;
    ensure!(refused.code == 1 && refused.stderr.contains("is chained already"), "{refused:?}");
    judged(tested, &[]).await
}

/// Its replicas still say that their link is up: judged by the primary's offset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_hangs_in_the_middle_of_a_chain_is_left_while_serve_is_down() -> Result<()> {
    let mut tested = Tested::chained(Larder::started().await?, 3, "valkey-8.0").await?;
    tested.larder.expect_faults();
    let before = in_a_row(&tested).await?;
    let instance = tested.larder.get(&tested.instance.name).await?;
    tested.larder.kill_serve().await?;
    // The agent, too: it would kill a server that hangs.
    let middle =
        [tested.larder.agent_pid(&before[1])?, tested.larder.server_pid(&instance, &before[1])?];
    let keeper = tested.larder.keeper_pid()?;
    sigstop(keeper)?;
    middle.iter().try_for_each(|pid| sigstop(*pid))?;
    let left = copies_from(&instance, &before[2], &before[0]).await;
    middle.iter().try_for_each(|pid| sigcont(*pid))?;
    sigcont(keeper)?;
    left?;
    tested.larder.start_serve().await?;
    eventually("who was left stands last", SOON, async || {
        let now = in_a_row(&tested).await?;
        ensure!(now[0] == before[0] && now[3] == before[1], "{now:?} after {before:?}");
        Ok(Some(()))
    })
    .await?;
    judged(tested, &[]).await
}
