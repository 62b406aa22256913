//! Stories on a real Kubernetes: the one that `LARDER_TEST_KUBECONFIG` names, with the image of
//! `LARDER_TEST_IMAGE`. `LARDER_TEST_BED` is the command of its test bed (`testbed --dir DIR`):
//! clients run in its network, and its workers are switched off. `make test-kubernetes` sets them.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_testkit::{Larder, PASSWORD};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

/// Design: a lost worker costs a lease (4 s), an election and a change of the route; kube-proxy
/// may rest for a second, and the machine may be busy.
const LOST_WORKER: u64 = 8_000;
const IMAGE: &str = "localhost/larder-{engine}:testbed";

fn variable(name: &str) -> Result<String> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty());
    value.with_context(|| format!("{name} is not set: `make test-kubernetes` sets it"))
}

/// A command of the test bed.
fn bed(args: &[&str]) -> Result<Command> {
    let bed = variable("LARDER_TEST_BED")?;
    let mut words = bed.split_whitespace();
    let mut command = Command::new(words.next().context("LARDER_TEST_BED is empty")?);
    command.args(words).args(args).kill_on_drop(true);
    Ok(command)
}

async fn bed_does(args: &[&str]) -> Result<()> {
    let output = bed(args)?.output().await?;
    ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A Larder with the Kubernetes cluster bound, in a namespace of its own.
async fn bound(kubeconfig: &str, namespace: &str) -> Result<Larder> {
    let larder = Larder::started().await?;
    let image = variable("LARDER_TEST_IMAGE").unwrap_or_else(|_| IMAGE.to_owned());
    larder
        .cli(&[
            "container-cluster",
            "bind",
            "east",
            "--kubeconfig",
            kubeconfig,
            "--namespace",
            namespace,
            "--image",
            &image,
            "--volume-size",
            "1GiB",
        ])
        .await?;
    Ok(larder)
}

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
    let kubeconfig = variable("LARDER_TEST_KUBECONFIG")?;
    let larder = bound(&kubeconfig, "story-worker").await?;
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
