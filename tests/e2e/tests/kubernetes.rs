//! Stories on a real Kubernetes: the one that `LARDER_TEST_KUBECONFIG` names, with the image of
//! `LARDER_TEST_IMAGE`. `LARDER_TEST_BED` is the command of its test bed (`testbed --dir DIR`):
//! clients run in its network, and its workers are switched off. `make test-kubernetes` sets them.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use larder_testkit::kubernetes::{bed, bed_does, bound, kubectl};
use larder_testkit::{Larder, PASSWORD, eventually};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Child;

/// Design: a lost worker costs a lease (4 s), an election and a change of the route; kube-proxy
/// may rest for a second, and the machine may be busy.
const LOST_WORKER: u64 = 8_000;

/// A client in the cluster's network that has begun to write.
async fn write_to(
    instance: &Value,
    seconds: u64,
) -> Result<(Child, BufReader<tokio::process::ChildStdout>)> {
    let write = &instance["endpoints"]["write"];
    let host = write["host"].as_str().context("no write endpoint")?;
    let (port, seconds) = (write["port"].to_string(), seconds.to_string());
    let mut command = bed(&["exec", "--", env!("CARGO_BIN_EXE_writer"), host, &port, &seconds])?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    stdin.write_all(format!("{PASSWORD}\n").as_bytes()).await?;
    drop(stdin);
    let mut lines = BufReader::new(child.stdout.take().context("no standard output")?);
    let mut line = String::new();
    lines.read_line(&mut line).await?;
    ensure!(line.trim() == "writing", "the client says `{line}`");
    Ok((child, lines))
}

async fn told(client: (Child, BufReader<tokio::process::ChildStdout>)) -> Result<Value> {
    let (mut child, mut lines) = client;
    let mut line = String::new();
    lines.read_line(&mut line).await?;
    child.wait().await?;
    serde_json::from_str(&line).with_context(|| format!("the client says `{line}`"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_write_instance_survives_the_loss_of_its_primarys_worker() -> Result<()> {
    let larder = bound("story-worker").await?;
    let args = [
        "--architecture",
        "read-write",
        "--replicas",
        "3",
        "--read-only-nodes",
        "2",
        "--memory",
        "128MiB",
        "--container-cluster",
        "east",
    ];
    larder.create("shop", &args).await?;
    let instance = larder.json(&["instance", "get", "shop"]).await?;
    let nodes = instance["nodes"].as_array().context("no nodes")?;
    let primary = nodes.iter().find(|node| node["role"] == "primary").context("no primary")?;
    let workers = larder.json(&["container-cluster", "workers", "east"]).await?;
    ensure!(workers.as_array().is_some_and(|all| all.len() >= 3), "{workers}");
    let worker = primary["worker"].as_str().context("the primary has no worker")?.to_owned();

    let client = write_to(&instance, 20).await?;
    // What is lost is looked for in what was written until then.
    tokio::time::sleep(Duration::from_secs(3)).await;
    bed_does(&["worker", "off", &worker]).await?;
    let told = told(client).await?;
    ensure!(told["lost"] == 0, "acknowledged writes are lost: {told}");
    let gap = told["worst_gap_ms"].as_u64().context("no gap")?;
    // It was the primary's worker that went, and somebody took over.
    ensure!((1_000..=LOST_WORKER).contains(&gap), "the gap is {gap} ms: {told}");

    bed_does(&["worker", "on", &worker]).await?;
    larder.wait_state("shop", "running", Duration::from_secs(90)).await?;
    larder.cli(&["instance", "delete", "shop", "--permanent", "--yes", "--wait"]).await?;
    larder.cli(&["container-cluster", "unbind", "east"]).await?;
    larder.finish().await
}

/// Everything about it is unknown, and nothing of it is touched; this machine does not notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_an_api_server_disturbs_nothing_else() -> Result<()> {
    let larder = bound("story-silent").await?;
    larder.expect_faults();
    larder
        .create("there", &["--architecture", "standalone", "--container-cluster", "east"])
        .await?;
    let before = larder.json(&["instance", "get", "there"]).await?;
    let seen = larder.json(&["container-cluster", "get", "east"]).await?;
    ensure!(seen["reachable"] == true && seen["since"].is_string(), "{seen}");
    ensure!(seen["problem"].is_null() && seen["version"].is_string(), "{seen}");

    bed_does(&["pause", "apiserver"]).await?;
    let told = while_it_is_silent(&larder).await;
    bed_does(&["resume", "apiserver"]).await?;
    told?;

    eventually("east answers again", Duration::from_secs(60), async || {
        let seen = larder.json(&["container-cluster", "get", "east"]).await?;
        Ok((seen["reachable"] == true && seen["problem"].is_null()).then_some(()))
    })
    .await?;
    larder.wait_state("there", "running", Duration::from_secs(60)).await?;
    let after = larder.json(&["instance", "get", "there"]).await?;
    let ids = |instance: &Value| instance["nodes"][0]["id"].clone();
    ensure!(ids(&after) == ids(&before), "the node was made anew: {after}");
    let reasons = larder.event_reasons("there").await?;
    ensure!(!reasons.iter().any(|reason| reason.contains("refused")), "{reasons:?}");
    larder.cli(&["instance", "delete", "there", "--permanent", "--yes", "--wait"]).await?;
    larder.cli(&["container-cluster", "unbind", "east"]).await?;
    larder.finish().await
}

async fn while_it_is_silent(larder: &Larder) -> Result<()> {
    let begin = Instant::now();
    larder.create("here", &["--architecture", "standalone"]).await?;
    ensure!(begin.elapsed() < Duration::from_secs(15), "the creation took {:?}", begin.elapsed());
    let seen = eventually("east is out of reach", Duration::from_secs(40), async || {
        let begin = Instant::now();
        let seen = larder.json(&["container-cluster", "get", "east"]).await?;
        // From memory: a silent API server holds nobody up.
        ensure!(begin.elapsed() < Duration::from_secs(8), "looking took {:?}", begin.elapsed());
        Ok((seen["reachable"] == false).then_some(seen))
    })
    .await?;
    let problem = seen["problem"].as_str().unwrap_or_default();
    ensure!(problem.contains("no answer") && seen["workers_ready"] == 0, "{seen}");
    let there = eventually("what is unknown is shown so", Duration::from_secs(40), async || {
        let there = larder.json(&["instance", "get", "there"]).await?;
        Ok((there["state"] == "degraded").then_some(there))
    })
    .await?;
    ensure!(there["nodes"].as_array().is_some_and(|nodes| nodes.len() == 1), "{there}");
    let plan = larder.json(&["instance", "plan", "there"]).await?;
    ensure!(plan["steps"].as_array().is_some_and(Vec::is_empty), "{plan}");
    larder.wait_state("here", "running", Duration::from_secs(5)).await?;
    larder.cli(&["instance", "delete", "here", "--permanent", "--yes", "--wait"]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_worker_that_is_gone_can_be_confirmed_lost() -> Result<()> {
    let larder = bound("story-lost").await?;
    let confirm = ["container-cluster", "confirm-lost", "east", "worker-3", "--yes"];
    let refused = larder.run(&confirm).await?;
    ensure!(refused.code == 1 && refused.stderr.contains("worker-not-lost"), "{refused:?}");
    let state_is = async |state: &str| {
        let all = larder.json(&["container-cluster", "workers", "east"]).await?;
        let all = all.as_array().context("no array")?.clone();
        let worker = all.into_iter().find(|worker| worker["name"] == "worker-3");
        let worker = worker.context("no worker-3")?;
        Ok::<_, anyhow::Error>((worker["state"] == state).then_some(()))
    };
    let minute = Duration::from_secs(60);
    bed_does(&["worker", "off", "worker-3"]).await?;
    let confirmed = async {
        eventually("worker-3 is unreachable", minute, async || state_is("unreachable").await)
            .await?;
        larder.cli(&confirm).await?;
        eventually("worker-3 is lost", minute, async || state_is("lost").await).await?;
        // Once more is no harm.
        larder.cli(&confirm).await?;
        let records = larder.json(&["record", "list"]).await?.to_string();
        ensure!(records.contains("container-cluster-confirm-lost"), "{records}");
        anyhow::Ok(())
    }
    .await;
    bed_does(&["worker", "on", "worker-3"]).await?;
    let taint = "node.kubernetes.io/out-of-service:NoExecute-";
    kubectl(&["taint", "node", "worker-3", taint]).await?;
    confirmed?;
    eventually("worker-3 is ready", minute, async || state_is("ready").await).await?;

    let six = ["--architecture", "cluster", "--container-cluster", "east", "--engine", "redis-7.0"];
    let create: Vec<&str> =
        ["instance", "create", "wide", "--dry-run"].into_iter().chain(six).collect();
    let workers = larder.json(&["container-cluster", "workers", "east"]).await?;
    if workers.as_array().is_none_or(|all| all.len() < 6) {
        let refused = larder.run(&create).await?;
        ensure!(refused.code == 1 && refused.stderr.contains("--spread preferred"), "{refused:?}");
        larder.cli(&["container-cluster", "set", "east", "--spread", "preferred"]).await?;
    }
    larder.cli(&create).await?;
    larder.cli(&["container-cluster", "unbind", "east"]).await?;
    larder.finish().await
}
