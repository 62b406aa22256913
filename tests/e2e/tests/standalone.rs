//! A standalone instance: created, used, killed in every way, deleted without a trace.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_e2e::world::{Tested, connect};
use larder_e2e::{check_tidy, tidy};
use larder_testkit::process::{self, Kind, kill9_each};
use larder_testkit::{Connection, Instance, Larder, PASSWORD, Reply, eventually};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn create_with_wait_prints_an_instance_that_runs() -> Result<()> {
    let larder = Larder::started().await?;
    for architecture in ["standalone", "read-write", "cluster"] {
        let args = [
            "instance",
            "create",
            architecture,
            "--engine",
            "redis-7.0",
            "--architecture",
            architecture,
            "--password-stdin",
            "--wait",
            "-o",
            "json",
        ];
        let output = larder.cli_with_input(&args, &format!("{PASSWORD}\n")).await?;
        ensure!(output.code == 0, "{output:?}");
        let printed: Instance = serde_json::from_str(&output.stdout)?;
        ensure!(printed.state == "running", "{printed:?}");
    }
    larder.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_client_uses_it_through_its_endpoint() -> Result<()> {
    let larder = Larder::started().await?;
    let instance = larder
        .create("one", &["--architecture", "standalone", "--memory", "128MiB", "--tag", "team=a"])
        .await?;
    ensure!(instance.nodes.len() == 1 && instance.shards == 1 && instance.replicas == 1);
    ensure!(instance.engine_version.as_deref().is_some_and(|v| v.starts_with("7.0.")));
    ensure!(instance.generation == instance.observed_generation, "{instance:?}");
    let kinds: Vec<&String> = instance.endpoints.keys().collect();
    ensure!(kinds == ["write"], "endpoints {kinds:?}");
    let write = instance.endpoint("write")?;
    ensure!(Some(write) != instance.nodes[0].address().ok().as_ref(), "reached past its relay");

    let url = format!("redis://:{PASSWORD}@{}:{}", write.host, write.port);
    let mut client = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    let () = redis::cmd("SET").arg("greeting").arg("hello").query_async(&mut client).await?;
    let value: String = redis::cmd("GET").arg("greeting").query_async(&mut client).await?;
    ensure!(value == "hello");
    let info: String = redis::cmd("INFO").arg("memory").query_async(&mut client).await?;
    let maxmemory = format!("maxmemory:{}", 128 * 1024 * 1024 / 5 * 4);
    ensure!(info.contains(&maxmemory), "not {maxmemory}: {info}");

    let mut nobody = Connection::open(write, None, SOON).await?;
    ensure!(nobody.call(&["GET", "greeting"]).await?.text().starts_with("NOAUTH"));
    let wrong = Connection::open(write, Some("Wrong-Pa55word"), SOON).await;
    ensure!(wrong.is_err(), "a wrong password is let in");
    larder.finish().await
}

/// Each process and all of them, with `serve` there or not: back with the data, at the same address.
async fn killed_processes(serve_down: bool) -> Result<()> {
    let larder = Larder::started().await?;
    larder.expect_faults();
    let mut tested = Tested::standalone(larder).await?;
    let instance = tested.instance.clone();
    let node = instance.nodes[0].id.clone();
    if serve_down {
        tested.larder.kill_serve().await?;
    }
    let mut faults = Vec::new();
    // In a pod the agent's end is the container's, and there is neither relay nor keeper.
    let steps: &[&str] = match tested.larder.namespace() {
        Some(_) => &["server", "both", "all"],
        None => &["server", "agent", "both", "relay", "keeper", "all"],
    };
    for &step in steps {
        let larder = &tested.larder;
        let victims = match step {
            "server" => vec![larder.server_pid(&instance, &node)?],
            "agent" => vec![larder.agent_pid(&node)?],
            "both" => vec![larder.agent_pid(&node)?, larder.server_pid(&instance, &node)?],
            "relay" => vec![larder.relay_pid(&instance)?],
            "keeper" => vec![larder.keeper_pid()?],
            _ => larder.pids_of(&instance, &[Kind::Agent, Kind::Server, Kind::Relay]),
        };
        let untouched = match step {
            "agent" | "relay" | "keeper" => Some(larder.server_pid(&instance, &node)?),
            _ => None,
        };
        faults.push(tested.writers[0].now());
        kill9_each(&victims)?;
        eventually("the victims are dead", SOON, async || {
            Ok(victims.iter().all(|pid| !process::is_alive(*pid)).then_some(()))
        })
        .await?;
        if step == "keeper" && serve_down {
            // Nobody but `serve` starts a keeper: this is what its start is for.
            tested.larder.start_serve().await?;
            tested.larder.kill_serve().await?;
        }
        tested.writes_again(SOON).await.with_context(|| format!("after the death of {step}"))?;
        if let Some(server) = untouched {
            let now = tested.larder.server_pid(&instance, &node)?;
            ensure!(now == server, "the death of {step} cost the server its life");
        }
        let larder = &tested.larder;
        eventually(&format!("everything runs once, after the death of {step}"), SOON, async || {
            larder.agent_pid(&node)?;
            if larder.namespace().is_none() {
                larder.relay_pid(&instance)?;
                larder.keeper_pid()?;
            }
            larder.server_pid(&instance, &node).map(Some)
        })
        .await?;
    }
    if serve_down {
        tested.larder.start_serve().await?;
    }
    let shown = tested.larder.wait_state("one", "running", SOON).await?;
    ensure!(shown.endpoints == instance.endpoints, "the endpoint moved");
    ensure!(shown.nodes[0].id == node && shown.nodes[0].port == instance.nodes[0].port);
    check_tidy(&tested.larder).await?;
    let (larder, instance, seen) = tested.stop().await?;
    let endpoint = instance.endpoint("write")?;
    seen.histories[0].check_lost_only_before(endpoint, &faults, Duration::from_secs(2)).await?;
    larder.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_killed_process_comes_back_with_the_data() -> Result<()> {
    killed_processes(false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_killed_process_comes_back_with_the_data_while_serve_is_down() -> Result<()> {
    killed_processes(true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_killed_at_once_comes_back_with_serve() -> Result<()> {
    let mut larder = Larder::started().await?;
    larder.expect_faults();
    let instance = larder.create("one", &["--architecture", "standalone"]).await?;
    let write = instance.endpoint("write")?.clone();
    ensure!(connect(&write).await?.call(&["SET", "k", "v"]).await?.is_ok());
    larder.kill_serve().await?;
    process::kill_all_of(larder.data())?;
    larder.start_serve().await?;
    larder.wait_state("one", "running", SOON).await?;
    ensure!(connect(&write).await?.call(&["GET", "k"]).await? == Reply::Bulk(b"v".to_vec()));
    check_tidy(&larder).await?;
    larder.finish().await
}

/// A standalone instance `one` that holds `k`, whose volume is about to be in trouble.
async fn with_a_key() -> Result<(Larder, Instance)> {
    let larder = Larder::started().await?;
    larder.expect_faults();
    larder.expect_log("volume");
    let instance = larder.create("one", &["--architecture", "standalone"]).await?;
    let write = instance.endpoint("write")?;
    ensure!(connect(write).await?.call(&["SET", "k", "v"]).await?.is_ok());
    Ok((larder, instance))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volume_lost_without_a_copy_is_shown_as_lost_and_never_empty() -> Result<()> {
    let (larder, instance) = with_a_key().await?;
    let (write, node) = (instance.endpoint("write")?.clone(), instance.nodes[0].clone());
    let volume = larder.volume(&instance, &node.id);
    larder
        .kill_node(&instance, &node, || {
            std::fs::remove_dir_all(&volume).context("deleting the volume")
        })
        .await?;
    let shown = larder
        .wait_for("one", "the node is shown as lost", SOON, |i| {
            i.nodes.iter().any(|n| n.state == "lost")
        })
        .await?;
    ensure!(shown.state == "unavailable", "shown as {}", shown.state);
    ensure!(
        shown.conditions.iter().any(|c| c.kind == "data-lost" && c.status),
        "{:?}",
        shown.conditions
    );
    // For longer than any restart or hand-over takes, nobody may be given an empty database.
    let until = tokio::time::Instant::now() + Duration::from_secs(12);
    while tokio::time::Instant::now() < until {
        for endpoint in [write.clone(), node.address()?] {
            let patience = Duration::from_millis(300);
            if let Ok(mut connection) = Connection::open(&endpoint, Some(PASSWORD), patience).await
                && let Ok(reply) = connection.call(&["DBSIZE"]).await
            {
                ensure!(!matches!(reply, Reply::Integer(_)), "{endpoint} answers {reply:?}");
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    larder.cli(&["instance", "delete", "one", "--permanent", "--yes", "--wait"]).await?;
    check_tidy(&larder).await?;
    larder.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volume_that_was_moved_away_and_put_back_serves_again_by_itself() -> Result<()> {
    let (larder, instance) = with_a_key().await?;
    let (write, node) = (instance.endpoint("write")?.clone(), instance.nodes[0].clone());
    let volume = larder.volume(&instance, &node.id);
    let away = volume.with_extension("away");
    larder
        .kill_node(&instance, &node, || std::fs::rename(&volume, &away).context("moving it away"))
        .await?;
    larder
        .wait_for("one", "the node is shown as lost", SOON, |i| {
            i.nodes.iter().any(|n| n.state == "lost")
        })
        .await?;
    std::fs::rename(&away, &volume).context("putting the volume back")?;
    let shown = larder.wait_for("one", "it runs again", SOON, |i| i.state == "running").await?;
    ensure!(!shown.conditions.iter().any(|c| c.kind == "data-lost"), "{:?}", shown.conditions);
    let value = connect(&write).await?.call(&["GET", "k"]).await?;
    ensure!(value == Reply::Bulk(b"v".to_vec()), "{value:?}");
    larder.cli(&["instance", "delete", "one", "--permanent", "--yes", "--wait"]).await?;
    check_tidy(&larder).await?;
    larder.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_instance_leaves_nothing() -> Result<()> {
    let larder = Larder::started().await?;
    let kept = larder.create("kept", &["--architecture", "standalone"]).await?;
    let gone = larder.create("gone", &["--architecture", "standalone"]).await?;
    check_tidy(&larder).await?;
    let refused = larder.run(&["instance", "delete", "gone", "--permanent"]).await?;
    ensure!(refused.code != 0, "deleted without --yes where nobody can be asked");
    larder.cli(&["instance", "delete", "gone", "--permanent", "--yes", "--wait"]).await?;
    check_tidy(&larder).await?;
    let listed = tidy::listed(&larder).await?;
    ensure!(listed.len() == 1 && listed[0].id == kept.id, "{listed:?}");
    ensure!(!larder.instance_folder(&gone).exists());
    let output = larder.run(&["instance", "get", "gone"]).await?;
    ensure!(output.code == 1 && output.stderr.contains("not-found"), "{output:?}");
    ensure!(connect(kept.endpoint("write")?).await?.call(&["PING"]).await?.text() == "PONG");
    // The name is free again, and what comes under it is new and empty.
    let again = larder.create("gone", &["--architecture", "standalone"]).await?;
    ensure!(again.id != gone.id);
    ensure!(connect(again.endpoint("write")?).await?.call(&["DBSIZE"]).await? == Reply::Integer(0));
    larder.finish().await
}
