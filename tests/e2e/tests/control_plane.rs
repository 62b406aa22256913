//! `serve` and the keeper killed at any moment: the work goes on, nothing doubled, nothing orphaned.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_e2e::world::connect;
use larder_e2e::{check_tidy, replication_is_whole, tidy};
use larder_testkit::process::{self, Kind, kill9};
use larder_testkit::{Instance, Larder, PASSWORD, Reply, eventually};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(40);

/// Moments, in ms after the request, at which `serve` is killed: from "just answered" to "almost
/// done".
const MOMENTS: [u64; 5] = [0, 60, 200, 500, 1100];

/// Asks for `args` (printing the operation), kills `serve` after `ms`, starts it again, and waits
/// for the operation's end.
async fn killed_after(larder: &mut Larder, args: &[&str], input: &str, ms: u64) -> Result<Value> {
    let json: Vec<&str> = args.iter().copied().chain(["-o", "json"]).collect();
    let output = larder.cli_with_input(&json, input).await?;
    ensure!(output.code == 0, "{args:?}: {output:?}");
    let operation: Value = serde_json::from_str(&output.stdout)?;
    let id =
        operation["id"].as_str().with_context(|| format!("no operation: {operation}"))?.to_owned();
    tokio::time::sleep(Duration::from_millis(ms)).await;
    larder.kill_serve().await?;
    larder.start_serve().await?;
    let larder = &*larder;
    eventually(&format!("{args:?} ends after a kill at {ms} ms"), SOON, async || {
        let now = larder.json(&["operation", "get", &id]).await?;
        let state = now["state"].as_str().unwrap_or_default();
        ensure!(!["failed", "cancelled"].contains(&state), "{now}");
        Ok((state == "succeeded").then_some(now.clone()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_killed_during_create_and_delete_doubles_and_orphans_nothing() -> Result<()> {
    let mut larder = Larder::started().await?;
    let input = format!("{PASSWORD}\n");
    for ms in MOMENTS {
        let name = format!("rw{ms}");
        let create = [
            "instance",
            "create",
            &name,
            "--engine",
            "redis-7.0",
            "--architecture",
            "read-write",
            "--password-stdin",
        ];
        killed_after(&mut larder, &create, &input, ms).await?;
        larder.wait_state(&name, "running", SOON).await?;
        check_tidy(&larder).await.with_context(|| format!("created, killed at {ms} ms"))?;
        let delete = ["instance", "delete", &name, "--permanent", "--yes"];
        killed_after(&mut larder, &delete, "", ms).await?;
        ensure!(tidy::listed(&larder).await?.is_empty());
        check_tidy(&larder).await.with_context(|| format!("deleted, killed at {ms} ms"))?;
    }
    larder.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_killed_during_restart_and_failover_ends_them_and_keeps_the_data() -> Result<()> {
    let mut larder = Larder::started().await?;
    larder.expect_faults();
    let instance = larder.create("rw", &["--architecture", "read-write"]).await?;
    let write = instance.endpoint("write")?.clone();
    ensure!(connect(&write).await?.call(&["SET", "k", "v"]).await?.is_ok());
    for ms in [0, 150, 700] {
        killed_after(&mut larder, &["instance", "restart", "rw"], "", ms).await?;
        replication_is_whole(&instance, SOON).await?;
        let before = larder.wait_state("rw", "running", SOON).await?.primary(0)?.id.clone();
        killed_after(&mut larder, &["instance", "failover", "rw"], "", ms).await?;
        let after = replication_is_whole(&instance, SOON).await?;
        ensure!(after != before, "killed at {ms} ms: no failover, or two");
        larder.wait_state("rw", "running", SOON).await?;
        ensure!(connect(&write).await?.call(&["GET", "k"]).await? == Reply::Bulk(b"v".to_vec()));
        check_tidy(&larder).await?;
    }
    larder.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_replaces_each_server_once_and_keeps_the_data() -> Result<()> {
    let larder = Larder::started().await?;
    let instance = larder.create("rw", &["--architecture", "read-write"]).await?;
    let write = instance.endpoint("write")?.clone();
    ensure!(connect(&write).await?.call(&["SET", "k", "v"]).await?.is_ok());
    let pids = |i: &Instance| i.nodes.iter().filter_map(|n| n.pid).collect::<Vec<u32>>();
    let one = instance.replicas(0).first().context("no replica")?.id.clone();
    larder.cli(&["instance", "restart", "rw", "--node", &one, "--wait"]).await?;
    let after = larder.wait_state("rw", "running", SOON).await?;
    ensure!(after.node(&one)?.pid != instance.node(&one)?.pid, "{one} was not restarted");
    ensure!(after.primary(0)?.pid == instance.primary(0)?.pid, "more than {one} was restarted");
    larder.cli(&["instance", "restart", "rw", "--wait"]).await?;
    let all = larder.wait_state("rw", "running", SOON).await?;
    ensure!(pids(&all).iter().all(|pid| !pids(&after).contains(pid)), "{all:?}");
    ensure!(connect(&write).await?.call(&["GET", "k"]).await? == Reply::Bulk(b"v".to_vec()));
    larder.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeper_killed_or_stopped_serve_cost_no_instance_its_processes() -> Result<()> {
    let mut larder = Larder::started().await?;
    let instance = larder.create("rw", &["--architecture", "read-write"]).await?;
    let mine = [Kind::Agent, Kind::Server, Kind::Relay];
    let before: std::collections::BTreeSet<u32> =
        larder.pids_of(&instance, &mine).into_iter().collect();
    ensure!(before.len() == 5, "{before:?}");

    let keeper = larder.keeper_pid()?;
    kill9(keeper)?;
    eventually("serve starts a keeper again", SOON, async || {
        Ok(Some(larder.keeper_pid()?).filter(|pid| *pid != keeper))
    })
    .await?;
    larder.stop_serve().await?;
    ensure!(larder.keeper_pid().is_ok(), "the keeper ended with serve");
    // An upgrade: another serve on the same folder.
    larder.start_serve().await?;
    larder.wait_state("rw", "running", SOON).await?;
    let after: std::collections::BTreeSet<u32> =
        larder.pids_of(&instance, &mine).into_iter().collect();
    ensure!(before == after, "{before:?} became {after:?}");
    check_tidy(&larder).await?;
    larder.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_serve_on_the_same_folder_is_refused() -> Result<()> {
    let larder = Larder::started().await?;
    let mut second = tokio::process::Command::new(larder.binary());
    second.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(larder.data());
    let output = tokio::time::timeout(SOON, second.kill_on_drop(true).output())
        .await
        .context("a second serve runs on")??;
    ensure!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(said.contains("already") && said.contains("serve"), "{said}");
    ensure!(process::is_alive(larder.serve_pid()?));
    larder.cli(&["status"]).await?;
    larder.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instance_that_is_held_by_an_operation_refuses_a_second_one() -> Result<()> {
    let larder = Larder::started().await?;
    larder.create("rw", &["--architecture", "read-write"]).await?;
    larder.cli(&["instance", "restart", "rw"]).await?;
    let second = larder.run(&["instance", "failover", "rw"]).await?;
    ensure!(second.code == 1 && second.stderr.contains("instance-busy"), "{second:?}");
    let operations = larder.json(&["operation", "list", "--instance", "rw"]).await?;
    ensure!(operations.as_array().is_some_and(|list| list.len() == 2), "{operations}");
    larder.wait_state("rw", "running", SOON).await?;
    let records = larder.json(&["record", "list", "--instance", "rw"]).await?;
    let outcomes: Vec<&str> = records
        .as_array()
        .context("no array")?
        .iter()
        .filter_map(|r| r["outcome"].as_str())
        .collect();
    ensure!(outcomes.contains(&"accepted") && outcomes.contains(&"instance-busy"), "{records}");
    let csv = larder.cli(&["record", "list", "--instance", "rw", "--csv"]).await?;
    ensure!(csv.lines().count() == outcomes.len() + 1, "{csv}");
    larder.finish().await
}
