//! Clients outside of a Kubernetes: by node ports and by load balancers, before and after the
//! loss of a worker. Environment as in `kubernetes.rs`; the client runs in the network of the test
//! bed's control plane, which is outside of the workers and of the pods' and Services' networks.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use larder_testkit::kubernetes::{self, bed, bed_does};
use larder_testkit::{Larder, PASSWORD, eventually};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

/// All that tell servers apart here: 6.2 announces one address for everything, Redis and Valkey
/// from 7.0 on an address and a name.
const ENGINES: [&str; 3] = ["redis-6.2", "redis-7.0", "valkey-8.0"];
const KEYS: u64 = 48;
const NODES: usize = 6;
/// A worker's loss: the node timeout (5 s), the vote, and the test bed's 6 s until Kubernetes
/// says so; the machine may be busy.
const AFTER_LOSS: Duration = Duration::from_secs(45);

async fn bound(namespace: &str) -> Result<Larder> {
    let larder = kubernetes::bound(namespace).await?;
    kubernetes::spread_over_few(&larder).await?;
    Ok(larder)
}

/// What a program outside says, given the password.
async fn outside(program: &str, args: &[&str]) -> Result<String> {
    let mut words = vec!["exec", "--", program];
    words.extend(args);
    let mut command = bed(&words)?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    stdin.write_all(format!("{PASSWORD}\n").as_bytes()).await?;
    drop(stdin);
    let output = child.wait_with_output().await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{args:?}: {said}");
    Ok(String::from_utf8(output.stdout)?)
}

fn place(instance: &Value, kind: &str) -> Result<(String, String)> {
    let endpoint = &instance["endpoints"][kind];
    let host = endpoint["host"].as_str().with_context(|| format!("no {kind}: {instance}"))?;
    Ok((host.to_owned(), endpoint["port"].to_string()))
}

/// What a cluster client outside reaches by the discovery endpoint that is shown just now.
async fn reached(larder: &Larder, name: &str, what: &str) -> Result<Value> {
    let instance = larder.json(&["instance", "get", name]).await?;
    let (host, port) = place(&instance, "discovery")?;
    let text = outside(env!("CARGO_BIN_EXE_outside"), &[what, &host, &port]).await?;
    serde_json::from_str(&text).with_context(|| format!("the client says `{text}`"))
}

fn nodes_with(told: &Value, error: bool) -> Vec<&Value> {
    let nodes = told["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    nodes.iter().filter(|node| node["error"].is_string() == error).collect()
}

/// Every node answers where it is said to be, and every key is right.
fn is_whole(told: &Value) -> bool {
    nodes_with(told, false).len() == NODES && told["keys"].as_u64() == Some(KEYS)
}

async fn until(
    within: Duration,
    larder: &Larder,
    name: &str,
    what: &str,
    is_good: impl Fn(&Value) -> bool,
) -> Result<(Value, Duration)> {
    let began = Instant::now();
    let told = eventually(&format!("`{what}` reaches {name}"), within, async || {
        let told = reached(larder, name, what).await?;
        ensure!(is_good(&told), "the client says {told}");
        Ok(Some(told))
    })
    .await?;
    Ok((told, began.elapsed()))
}

/// The workers, as they are in the binding's memory: an instance was made there, so they are known.
async fn workers(larder: &Larder) -> Result<Value> {
    let workers = larder.json(&["container-cluster", "workers", "east"]).await?;
    ensure!(workers.as_array().is_some_and(|all| !all.is_empty()), "no workers are shown");
    Ok(workers)
}

/// The name of a cluster instance of an engine: `redis-6-2`.
fn name_of(engine: &str) -> String {
    engine.replace('.', "-")
}

/// Has the worker lead one shard of the instance and no other, where it has any node of it.
async fn lead_one_on(larder: &Larder, name: &str, worker: &str) -> Result<()> {
    let instance = larder.json(&["instance", "get", name]).await?;
    let nodes = instance["nodes"].as_array().context("no nodes")?;
    let here = |role| nodes.iter().filter(move |n| n["role"] == role && n["worker"] == worker);
    for led in here("primary").skip(1) {
        let shard = led["shard"].to_string();
        larder.cli(&["instance", "failover", name, "--shard", &shard, "--wait"]).await?;
    }
    if let (None, Some(replica)) = (here("primary").next(), here("replica").next()) {
        let (shard, node) = (replica["shard"].to_string(), replica["id"].as_str());
        let node = node.context("a node has an id")?;
        let args = ["instance", "failover", name, "--shard", &shard, "--to", node, "--wait"];
        larder.cli(&args).await?;
    }
    Ok(())
}

/// The worker with nodes of most of the instances.
async fn busiest(larder: &Larder) -> Result<String> {
    let mut present: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for engine in ENGINES {
        let instance = larder.json(&["instance", "get", &name_of(engine)]).await?;
        for node in instance["nodes"].as_array().context("no nodes")? {
            let worker = node["worker"].as_str().context("a node has a worker")?;
            present.entry(worker.to_owned()).or_default().insert(engine);
        }
    }
    let most = present.into_iter().max_by_key(|(_, engines)| engines.len());
    most.map(|(worker, _)| worker).context("no worker has any node")
}

async fn clusters_are_reached_by(way: &str) -> Result<()> {
    let larder = bound(&format!("outside-{way}")).await?;
    for engine in ENGINES {
        let name = name_of(engine);
        let mut args = vec!["--architecture", "cluster", "--engine", engine, "--expose", way];
        args.extend(["--container-cluster", "east"]);
        larder.create(&name, &args).await?;
        let instance = larder.json(&["instance", "get", &name]).await?;
        ensure!(instance["expose"] == way, "{instance}");
        ensure!(instance["endpoints"]["discovery"]["inside"]["host"].is_string(), "{instance}");
        let ten = Duration::from_secs(10);
        let (told, _) = until(ten, &larder, &name, "write", is_whole).await?;
        // What the servers say is what Larder shows.
        let shown = instance["nodes"].as_array().context("no nodes")?;
        for node in nodes_with(&told, false) {
            let is_it = |shown: &&Value| {
                shown["outside"]["host"] == node["host"] && shown["outside"]["port"] == node["port"]
            };
            ensure!(shown.iter().any(|shown| is_it(&shown)), "{node} is not in {instance}");
        }
    }

    // A worker that leads something of as many as can be, and no majority of anything.
    let workers = workers(&larder).await?;
    let worker = busiest(&larder).await?;
    for engine in ENGINES {
        lead_one_on(&larder, &name_of(engine), &worker).await?;
    }
    bed_does(&["worker", "off", &worker]).await?;
    for engine in ENGINES {
        let name = name_of(engine);
        let all_keys = |told: &Value| {
            let primaries = nodes_with(told, false).into_iter().filter(|n| n["primary"] == true);
            primaries.count() == 3 && told["keys"].as_u64() == Some(KEYS)
        };
        let (told, took) = until(AFTER_LOSS, &larder, &name, "read", all_keys).await?;
        let (_, wrote) = until(AFTER_LOSS, &larder, &name, "write", all_keys).await?;
        #[expect(clippy::print_stderr, reason = "a figure that the test run shows")]
        {
            eprintln!("{way} {engine}: reads after {took:?}, writes {wrote:?} later: {told}");
        }
    }
    bed_does(&["worker", "on", &worker]).await?;
    for engine in ENGINES {
        let name = name_of(engine);
        larder.wait_state(&name, "running", Duration::from_secs(120)).await?;
        until(Duration::from_secs(30), &larder, &name, "read", is_whole).await?;
    }
    if way == "node-port" {
        a_configured_address_is_announced(&larder, &workers[1]["address"]).await?;
    }
    for engine in ENGINES {
        let name = name_of(engine);
        larder.cli(&["instance", "delete", &name, "--permanent", "--yes", "--wait"]).await?;
    }
    larder.cli(&["container-cluster", "unbind", "east"]).await?;
    larder.finish().await
}

/// Bound anew with an address that leads to every worker (any worker's does), living servers
/// announce it; those of 6.2 cannot, and stay where they are.
async fn a_configured_address_is_announced(larder: &Larder, address: &Value) -> Result<()> {
    let host = address.as_str().context("a worker has an address")?;
    let kubeconfig = kubernetes::variable("LARDER_TEST_KUBECONFIG")?;
    let mut args = vec!["container-cluster", "rebind", "east", "--kubeconfig", &kubeconfig];
    args.extend(["--outer-address", host]);
    larder.cli(&args).await?;
    for engine in ENGINES {
        let is_announced = |told: &Value| {
            let nodes = nodes_with(told, false);
            let all_there = nodes.iter().all(|node| node["host"] == host);
            is_whole(told) && all_there != (engine == "redis-6.2")
        };
        let thirty = Duration::from_secs(30);
        until(thirty, larder, &name_of(engine), "read", is_announced).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_clients_outside_reach_every_node_by_node_port() -> Result<()> {
    clusters_are_reached_by("node-port").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_clients_outside_reach_every_node_by_load_balancer() -> Result<()> {
    clusters_are_reached_by("load-balancer").await
}

/// Writes for a second at the endpoint that is shown; nothing acknowledged may be lost.
async fn writes_arrive(instance: &Value) -> Result<()> {
    let (host, port) = place(instance, "write")?;
    let text = outside(env!("CARGO_BIN_EXE_writer"), &[&host, &port, "1"]).await?;
    let told = text.lines().last().context("the client says nothing")?;
    let told: Value = serde_json::from_str(told).with_context(|| format!("it says `{text}`"))?;
    ensure!(told["lost"] == 0 && told["acked"].as_u64() > Some(0), "{told}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_are_shown_where_clients_outside_reach_them() -> Result<()> {
    let larder = bound("outside-endpoints").await?;
    for (name, architecture, way) in [
        ("ports", "read-write", "node-port"),
        ("balanced", "read-write", "load-balancer"),
        ("alone", "standalone", "node-port"),
    ] {
        let mut args = vec!["--architecture", architecture, "--expose", way];
        args.extend(["--container-cluster", "east"]);
        larder.create(name, &args).await?;
        let instance = larder.json(&["instance", "get", name]).await?;
        writes_arrive(&instance).await?;
        let write = &instance["endpoints"]["write"];
        ensure!(write["host"] != write["inside"]["host"], "{instance}");
        if way == "load-balancer" {
            continue;
        }
        // The worker whose address is shown goes: another one's is shown, with the same port.
        let (host, port) = place(&instance, "write")?;
        let workers = workers(&larder).await?;
        let all = workers.as_array().context("no workers")?;
        let worker = all.iter().find(|worker| worker["address"] == host.as_str());
        let worker = worker.with_context(|| format!("whose is {host}? {workers}"))?;
        let worker = worker["name"].as_str().context("a worker has a name")?;
        if architecture == "read-write" {
            bed_does(&["worker", "off", worker]).await?;
            let began = Instant::now();
            let moved = eventually("writes arrive elsewhere", AFTER_LOSS, async || {
                let instance = larder.json(&["instance", "get", name]).await?;
                let now = place(&instance, "write")?;
                ensure!(now.0 != host, "still there: {instance}");
                writes_arrive(&instance).await?;
                Ok(Some(now))
            })
            .await?;
            eprintln!("{name}: writes arrive elsewhere after {:?}", began.elapsed());
            ensure!(moved.1 == port, "the port has changed from {port}: {moved:?}");
            bed_does(&["worker", "on", worker]).await?;
            larder.wait_state(name, "running", Duration::from_secs(120)).await?;
        }
        larder.cli(&["instance", "delete", name, "--permanent", "--yes", "--wait"]).await?;
    }
    larder.cli(&["instance", "delete", "balanced", "--permanent", "--yes", "--wait"]).await?;
    larder.cli(&["container-cluster", "unbind", "east"]).await?;
    larder.finish().await
}
