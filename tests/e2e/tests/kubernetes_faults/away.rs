//! A worker that comes back late, and an API server that is away or slow: who leads goes on, or
//! somebody else does, and never both.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use larder_e2e::writing::LOST_WORKER;
use larder_testkit::kubernetes::bed_does;

use super::*;

/// Nothing fails for clients: what a busy machine costs.
const NOTHING: u64 = 3_000;
/// In which a client would notice what comes late.
const A_MOMENT: Duration = Duration::from_secs(3);

/// One command at a server, from the worker that it is on.
async fn redis_at(worker: &str, host: &str, args: &[&str]) -> Result<String> {
    let head = ["exec", "--worker", worker, "--", "timeout", "3", "redis-cli", "--no-auth-warning"];
    let mut command = bed(&head)?;
    command.args(["-h", host]).args(args).env("REDISCLI_AUTH", PASSWORD);
    // The way there works: silence is the server's.
    bed_does(&["exec", "--worker", worker, "--", "redis-cli", "--version"]).await?;
    let output = command.output().await?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Its worker's cable is pulled, so that it goes on alone; its pod is deleted meanwhile; then it is
/// back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_returns_late_brings_no_second_primary() -> Result<()> {
    let namespace = "story-late";
    let larder = story(namespace).await?;
    let shop = larder.create("shop", &READ_WRITE).await?;
    put(&shop, "kept").await?;
    let before = claims(namespace, &shop).await?;
    let old = shop.primary(0)?.clone();
    let pod = format!("{}-0", old.id);
    let place = ["get", "pod", &pod, "-o", "jsonpath={.spec.nodeName} {.status.podIP}"];
    let place = kubectl_in(namespace, &place).await?;
    let (worker, ip) = place.split_once(' ').context("the pod is nowhere")?;
    let client = writing(&shop).await?;
    bed_does(&["worker", "cut", worker]).await?;
    let alone = async {
        let other = |i: &Instance| i.primary(0).is_ok_and(|now| now.id != old.id);
        larder.wait_for("shop", "another node leads", MINUTE, other).await?;
        let taken = redis_at(worker, ip, &["SET", "alone", "1"]).await?;
        ensure!(taken != "OK", "the one that is cut off takes writes");
        // Kubernetes gives the pod up only when somebody says so; here somebody does.
        kubectl_in(namespace, &["delete", "pod", &pod, "--grace-period=0", "--force"]).await?;
        let gap = client.gap(A_MOMENT).await?;
        ensure!(gap <= LOST_WORKER, "the gap is {gap} ms");
        anyhow::Ok(())
    }
    .await;
    bed_does(&["worker", "join", worker]).await?;
    alone?;
    let took_writes = AtomicBool::new(false);
    let now = eventually("it is back as a replica", PATIENCE, async || {
        let direct = redis(old.host.as_deref().unwrap_or_default(), &["SET", "late", "1"]).await;
        if direct.is_ok_and(|answer| answer == "OK") {
            took_writes.store(true, Ordering::Relaxed);
        }
        let now = larder.get("shop").await?;
        Ok((now.state == "running").then_some(now))
    })
    .await?;
    ensure!(!took_writes.into_inner(), "there were two primaries");
    ensure!(now.node(&old.id)?.role == "replica", "{now:?}");
    check_data(&now, "kept", MINUTE).await?;
    ensure!(claims(namespace, &shop).await? == before, "there are other volumes");
    end(larder, namespace, &["shop"]).await
}

/// The short form of ten minutes: longer than every lease, promise and probe.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_is_away_for_a_minute_costs_clients_nothing() -> Result<()> {
    let namespace = "story-away";
    let larder = story(namespace).await?;
    let shop = larder.create("shop", &READ_WRITE).await?;
    let before = claims(namespace, &shop).await?;
    let client = writing(&shop).await?;
    bed_does(&["kill", "apiserver"]).await?;
    let away = async {
        let kind = "container-cluster-unreachable";
        let seen = is_told(&larder, "shop", kind, "no-answer", &["east"]).await?;
        ensure!(seen.state == "degraded" && seen.nodes.len() == 2, "{seen:?}");
        // Time is what is tested here.
        tokio::time::sleep(Duration::from_secs(45)).await;
        let plan = larder.json(&["instance", "plan", "shop"]).await?;
        ensure!(plan["steps"].as_array().is_some_and(Vec::is_empty), "{plan}");
        anyhow::Ok(())
    }
    .await;
    bed_does(&["start", "apiserver"]).await?;
    away?;
    let gap = client.gap(A_MOMENT).await?;
    ensure!(gap <= NOTHING, "the gap is {gap} ms");
    let now = is_over(&larder, "shop", "container-cluster-unreachable").await?;
    ensure!(now.primary(0)?.id == shop.primary(0)?.id, "somebody else leads: {now:?}");
    ensure!(claims(namespace, &shop).await? == before, "there are other volumes");
    bed_does(&["ready"]).await?;
    end(larder, namespace, &["shop"]).await
}

/// Every write of the API server waits for it: the leases of agents, and what is being created.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_etcd_costs_clients_nothing_and_a_creation_only_time() -> Result<()> {
    let namespace = "story-slow";
    let larder = story(namespace).await?;
    let shop = larder.create("shop", &READ_WRITE).await?;
    let client = writing(&shop).await?;
    ask_for(&larder, "more", &READ_WRITE).await?;
    for _ in 0..3 {
        bed_does(&["pause", "etcd"]).await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        bed_does(&["resume", "etcd"]).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let gap = client.gap(A_MOMENT).await?;
    ensure!(gap <= NOTHING, "the gap is {gap} ms");
    let more = larder.wait_state("more", "running", PATIENCE).await?;
    put(&more, "1").await?;
    let now = larder.wait_state("shop", "running", MINUTE).await?;
    ensure!(now.primary(0)?.id == shop.primary(0)?.id, "somebody else leads: {now:?}");
    end(larder, namespace, &["shop", "more"]).await
}
