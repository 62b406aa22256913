//! Shards come and go under clients that write and check: every slot stays served, every key stays
//! readable, and nobody is left over.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_e2e::dice::Dice;
use larder_e2e::world::{Tested, connect};
use larder_e2e::{check_tidy, cluster_is_whole};
use larder_testkit::engines::engine;
use larder_testkit::process::kill9;
use larder_testkit::resp::{slot, tag_in};
use larder_testkit::{
    Connection, Endpoint, Instance, Larder, PASSWORD, Writer, WriterOptions, eventually,
};

const SOON: Duration = Duration::from_secs(60);
/// Valkey 8 has every replica acknowledge each mark of each slot before it sets it: 8,192 slots take minutes
/// where the stories of a test run share two cores.
const MOVED: Duration = Duration::from_secs(420);
/// Slots change hands one by one, and none is away for long.
const GAP: Duration = Duration::from_secs(2);

/// Keys that are there before, in all slots.
const KEYS: u32 = 20_000;

fn key(n: u32) -> String {
    format!("load:{n}")
}

/// The primary that has the slot.
fn holder(instance: &Instance, slot: u16) -> Result<Endpoint> {
    let has = |range: &String| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        first.parse().is_ok_and(|first: u16| first <= slot)
            && last.parse().is_ok_and(|last: u16| slot <= last)
    };
    let node = instance.nodes.iter().find(|node| node.slots.iter().any(has));
    node.with_context(|| format!("nobody has slot {slot}"))?.address()
}

/// Sets, or checks, every key at the primary that has it.
async fn each_key(instance: &Instance, check: bool) -> Result<()> {
    let mut by_primary = std::collections::BTreeMap::<String, (Endpoint, Vec<u32>)>::new();
    for n in 0..KEYS {
        let at = holder(instance, slot(&key(n)))?;
        by_primary.entry(at.to_string()).or_insert_with(|| (at, Vec::new())).1.push(n);
    }
    for (at, keys) in by_primary.into_values() {
        let mut client = connect(&at).await?;
        for some in keys.chunks(1_000) {
            let names: Vec<String> = some.iter().map(|n| key(*n)).collect();
            let commands: Vec<Vec<&str>> = names
                .iter()
                .map(|name| if check { vec!["GET", name] } else { vec!["SET", name, name] })
                .collect();
            let commands: Vec<&[&str]> = commands.iter().map(Vec::as_slice).collect();
            for (name, reply) in names.iter().zip(client.pipeline(&commands).await?) {
                let good = if check { reply.text() == *name } else { reply.is_ok() };
                ensure!(good, "{name} at {at}: {reply:?}");
            }
        }
    }
    Ok(())
}

/// Three shards under clients that write to slots that will move and to slots that will not.
async fn loaded(larder: Larder, replicas: u32, engine: &str) -> Result<Tested> {
    let mut tested = Tested::cluster(larder, replicas, engine).await?;
    each_key(&tested.instance, false).await?;
    for shard in 0..3 {
        let (first, _) = tested.instance.primary(shard)?.first_range().context("slots")?;
        let prefix = format!("{{{}}}m", tag_in(first, first + 1_000));
        let mut options =
            WriterOptions::new(tested.instance.endpoint("discovery")?, PASSWORD, &prefix);
        for node in &tested.instance.nodes {
            options.endpoints.push(node.address()?);
        }
        tested.writers.push(Writer::started(options).await?);
    }
    Ok(tested)
}

async fn scaled(tested: &Tested, shards: &str) -> Result<Instance> {
    let begun = tested.larder.json(&["instance", "scale", "shards", "--shards", shards]).await?;
    let id = begun["id"].as_str().context("an operation has an id")?;
    let ended = eventually("the change of shards ends", MOVED, async || {
        let operation = tested.larder.json(&["operation", "get", id]).await?;
        let is_over = !operation["finished_at"].is_null();
        ensure!(is_over, "it goes on: {}", operation["steps"]);
        Ok(Some(operation))
    })
    .await?;
    ensure!(ended["state"] == "succeeded", "{ended}");
    let instance = tested.larder.get("shards").await?;
    ensure!(instance.shards.to_string() == shards, "{instance:?}");
    ensure!(instance.nodes.len() as u32 == instance.shards * instance.replicas, "{instance:?}");
    Ok(instance)
}

/// Ends the clients and judges.
async fn nothing_lost(tested: Tested, gap_allowed: Duration) -> Result<()> {
    let (larder, instance, seen) = tested.stop().await?;
    let now = larder.get(&instance.name).await?;
    cluster_is_whole(&now, SOON).await?;
    each_key(&now, true).await?;
    for history in &seen.histories {
        history.check_nothing_lost(now.endpoint("discovery")?).await?;
        let gap = history.gap(&seen.control);
        ensure!(gap <= gap_allowed, "writes were away for {gap:?}");
    }
    check_tidy(&larder).await?;
    larder.finish().await
}

async fn three_six_three(engine: &str) -> Result<()> {
    let tested = loaded(Larder::started().await?, 2, engine).await?;
    let six = scaled(&tested, "6").await?;
    cluster_is_whole(&six, SOON).await?;
    each_key(&six, true).await?;
    for shard in 0..6 {
        let slots = six.primary(shard)?.slots.len();
        ensure!(slots > 0, "shard {shard} has no slots");
    }
    let three = scaled(&tested, "3").await?;
    ensure!(three.nodes.len() == 6, "{:?}", three.nodes);
    nothing_lost(tested, GAP).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pain_06_three_shards_become_six_and_three_again_under_clients() -> Result<()> {
    three_six_three(&engine()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_moves_slots_by_itself_does_so() -> Result<()> {
    three_six_three("valkey-9.1").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_shards_is_paused_goes_on_and_is_cancelled() -> Result<()> {
    let tested = loaded(Larder::started().await?, 1, &engine()).await?;
    let larder = &tested.larder;
    let begun = larder.json(&["instance", "scale", "shards", "--shards", "5"]).await?;
    let id = begun["id"].as_str().context("an operation has an id")?.to_owned();
    let has_some = |i: &Instance| i.nodes.iter().any(|n| n.shard >= 3 && !n.slots.is_empty());
    larder.wait_for("shards", "some slots have moved", SOON, has_some).await?;
    larder.cli(&["instance", "scale", "shards", "--pause"]).await?;
    let paused = async || -> Result<bool> {
        let operation = larder.json(&["operation", "get", &id]).await?;
        Ok(operation["state"] == "waiting" && operation.to_string().contains("--resume"))
    };
    eventually("it is paused", SOON, async || {
        ensure!(paused().await?, "it is not");
        Ok(Some(()))
    })
    .await?;
    let slots =
        |i: &Instance| -> Vec<Vec<String>> { i.nodes.iter().map(|n| n.slots.clone()).collect() };
    // Of the servers that have got slots less is heard of than of those that have given them.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = slots(&larder.get("shards").await?);
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(slots(&larder.get("shards").await?) == before, "slots move while it is paused");
    larder.cli(&["instance", "scale", "shards", "--resume"]).await?;
    larder.cli(&["operation", "cancel", &id]).await?;
    let back = |i: &Instance| i.nodes.len() == 3 && i.state == "running" && i.shards == 3;
    larder.wait_for("shards", "as it was", SOON, back).await?;
    nothing_lost(tested, GAP).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_is_refused_with_numbers() -> Result<()> {
    let tested = loaded(Larder::started().await?, 1, &engine()).await?;
    for (args, words) in [
        (&["--shards", "3"][..], "3 shards of 1 nodes already"),
        (&["--shards", "14"], "3 to 10"),
        (&["--shards", "8", "--replicas", "2"], "13 nodes more"),
        (&["--read-only-nodes", "2"], "no read-only nodes"),
        (&["--pause"], "no change of its shards under way"),
    ] {
        let output = tested.larder.run(&[&["instance", "scale", "shards"], args].concat()).await?;
        ensure!(output.code == 1 && output.stderr.contains(words), "{args:?}: {output:?}");
    }
    let output = tested.larder.run(&["instance", "scale", "control", "--shards", "2"]).await?;
    ensure!(output.code == 1 && output.stderr.contains("one shard"), "{output:?}");
    nothing_lost(tested, GAP).await
}

/// Seconds between two kills: time for the one before to be healed, mostly.
const BETWEEN: Duration = Duration::from_secs(4);

/// Kills a server, an agent or `serve` every few seconds until the operation has ended.
async fn carried_through(larder: &mut Larder, id: &str, dice: &mut Dice) -> Result<()> {
    let began = std::time::Instant::now();
    loop {
        ensure!(began.elapsed() < Duration::from_secs(240), "not carried through in time");
        let state = larder.json(&["operation", "get", id]).await?;
        match state["state"].as_str().unwrap_or_default() {
            "succeeded" => return Ok(()),
            "failed" | "cancelled" => anyhow::bail!("it has ended: {state}"),
            _ => {}
        }
        let instance = larder.get("shards").await?;
        let node = dice.of_these(&instance.nodes).context("no nodes")?;
        match dice.below(5) {
            0 => {
                larder.kill_serve().await?;
                larder.start_serve().await?;
            }
            1 | 2 => drop(larder.agent_pid(&node.id).map(kill9)),
            // It may be on its way up or out.
            _ => drop(larder.server_pid(&instance, &node.id).map(kill9)),
        }
        tokio::time::sleep(BETWEEN).await;
    }
}

async fn killed_all_the_way(engine: &str) -> Result<()> {
    let mut dice = Dice::thrown()?;
    let mut larder = Larder::started().await?;
    larder.expect_faults();
    let args =
        ["--architecture", "cluster", "--shards", "3", "--replicas", "2", "--engine", engine];
    let instance = larder.create("shards", &args).await?;
    each_key(&instance, false).await?;
    // What is killed from here on has everything.
    for shard in 0..3 {
        let mut client = connect(&instance.primary(shard)?.address()?).await?;
        client.call(&["WAIT", "1", "5000"]).await?;
    }
    for shards in ["6", "3"] {
        let begun = larder.json(&["instance", "scale", "shards", "--shards", shards]).await?;
        let id = begun["id"].as_str().context("an operation has an id")?.to_owned();
        carried_through(&mut larder, &id, &mut dice).await?;
        let is_whole = |i: &Instance| i.state == "running" && i.shards.to_string() == shards;
        let instance = larder.wait_for("shards", "running", SOON, is_whole).await?;
        ensure!(instance.nodes.len() as u32 == 2 * instance.shards, "{:?}", instance.nodes);
        cluster_is_whole(&instance, SOON).await?;
        each_key(&instance, true).await?;
    }
    check_tidy(&larder).await?;
    larder.finish().await
}

/// As Larder itself at one of its servers.
async fn system(larder: &Larder, instance: &Instance, node: &str) -> Result<Connection> {
    let password = larder.system_password(instance, node)?;
    let record = instance.nodes.iter().find(|known| known.id == node).context("a node")?;
    let mut client = Connection::open(&record.address()?, None, SOON).await?;
    let reply = client.call(&["AUTH", "larder", &password]).await?;
    ensure!(reply.is_ok(), "{reply:?}");
    Ok(client)
}

/// Makes the replica a primary that has some of its shard's slots, with their keys: what a primary
/// comes back with that took them over just before it died, unheard.
async fn comes_back_with(client: &mut Connection, slots: &[u16]) -> Result<()> {
    let taken: Vec<String> = slots.iter().map(u16::to_string).collect();
    let mut take = vec!["CLUSTER", "ADDSLOTS"];
    take.extend(taken.iter().map(String::as_str));
    for command in [
        &["CLUSTER", "RESET", "SOFT"][..],
        &take,
        // Its claim is later than anything that it has heard of.
        &["CLUSTER", "BUMPEPOCH"],
        // It takes writes before it has heard of anybody.
        &["CONFIG", "SET", "cluster-require-full-coverage", "no"],
    ] {
        let reply = client.call(command).await?;
        let done = ["OK", "BUMPED", "STILL"];
        let is_done = done.iter().any(|word| reply.text().starts_with(word));
        ensure!(is_done, "{command:?}: {reply:?}");
    }
    for name in (0..KEYS).map(key).filter(|name| slots.contains(&slot(name))) {
        eventually("it takes writes", SOON, async || {
            let reply = client.call(&["SET", &name, &name]).await?;
            ensure!(reply.is_ok(), "{reply:?}");
            Ok(Some(()))
        })
        .await?;
    }
    let reply = client.call(&["CONFIG", "SET", "cluster-require-full-coverage", "yes"]).await?;
    ensure!(reply.is_ok(), "{reply:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_a_former_primary_comes_back_with_go_to_its_successor() -> Result<()> {
    let mut larder = Larder::started().await?;
    larder.expect_faults();
    let engine = engine();
    let args =
        ["--architecture", "cluster", "--shards", "3", "--replicas", "2", "--engine", &engine];
    let instance = larder.create("shards", &args).await?;
    each_key(&instance, false).await?;
    larder.stop_serve().await?;
    let leader = instance.primary(0)?.id.clone();
    let old = instance.nodes.iter().find(|node| node.shard == 0 && node.id != leader);
    let old = old.context("a replica")?.clone();
    let mut client = system(&larder, &instance, &old.id).await?;
    let taken: Vec<u16> = (5..9).collect();
    comes_back_with(&mut client, &taken).await?;
    let mut client = system(&larder, &instance, &leader).await?;
    eventually("its successor hears of it", SOON, async || {
        let nodes = client.call(&["CLUSTER", "NODES"]).await?.text();
        let mine = nodes.lines().find(|line| line.contains("myself"));
        Ok(mine.is_some_and(|line| line.ends_with(" 0-4 9-5460")).then_some(()))
    })
    .await?;
    // A successor has been elected later than anything that its predecessor has claimed.
    let bumped = client.call(&["CLUSTER", "BUMPEPOCH"]).await?.text();
    ensure!(bumped.starts_with("BUMPED"), "{bumped}");
    larder.start_serve().await?;
    // Until all agents have answered an instance is shown as it was before `serve` ended.
    eventually("its successor has them", SOON, async || {
        let nodes = client.call(&["CLUSTER", "NODES"]).await?.text();
        let mine = nodes.lines().find(|line| line.contains("myself"));
        Ok(mine.is_some_and(|line| line.ends_with(" 0-5460")).then_some(()))
    })
    .await?;
    let follows = |now: &Instance| {
        let node = now.nodes.iter().find(|node| node.id == old.id);
        let leads = now.primary(0).is_ok_and(|node| node.id == leader);
        now.state == "running" && leads && node.is_some_and(|node| node.role == "replica")
    };
    let instance = larder.wait_for("shards", "one leads the shard again", SOON, follows).await?;
    cluster_is_whole(&instance, SOON).await?;
    each_key(&instance, true).await?;
    check_tidy(&larder).await?;
    larder.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_killed_between_three_and_six_and_three_shards_every_key_is_there() -> Result<()>
{
    killed_all_the_way(&engine()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_killed_while_the_engine_moves_slots_every_key_is_there() -> Result<()> {
    killed_all_the_way("valkey-9.1").await
}
