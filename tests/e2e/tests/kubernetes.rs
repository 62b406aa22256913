//! Stories on a real Kubernetes: the one that `LARDER_TEST_KUBECONFIG` names, with the image of
//! `LARDER_TEST_IMAGE`. `LARDER_TEST_BED` is the command of its test bed (`testbed --dir DIR`):
//! clients run in its network, and its workers are switched off. `make test-kubernetes` sets them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use larder_e2e::writing::{LOST_WORKER, Writing};
use larder_testkit::kubernetes::{bed_does, bound, kubectl, kubectl_in};
use larder_testkit::{Larder, eventually};
use serde_json::Value;

/// A client in the cluster's network that has begun to write into `shop`.
async fn writing(larder: &Larder) -> Result<Writing> {
    let shop = larder.get("shop").await?;
    Writing::to(env!("CARGO_BIN_EXE_writer"), shop.endpoint("write")?).await
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

    let client = writing(&larder).await?;
    // What is lost is looked for in what was written until then.
    tokio::time::sleep(Duration::from_secs(3)).await;
    bed_does(&["worker", "off", &worker]).await?;
    let gap = client.gap(2 * Duration::from_millis(LOST_WORKER)).await;
    bed_does(&["worker", "on", &worker]).await?;
    let gap = gap?;
    // It was the primary's worker that went, and somebody took over.
    ensure!((1_000..=LOST_WORKER).contains(&gap), "the gap is {gap} ms");

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
async fn only_a_worker_that_is_gone_can_be_confirmed_lost_and_its_node_is_replaced() -> Result<()> {
    let larder = bound("story-lost").await?;
    larder.create("shop", &["--architecture", "read-write", "--container-cluster", "east"]).await?;
    let nodes = async || {
        let shop = larder.json(&["instance", "get", "shop"]).await?;
        shop["nodes"].as_array().cloned().context("no nodes")
    };
    let text = |node: &Value, key: &str| node[key].as_str().unwrap_or_default().to_owned();
    let before = nodes().await?;
    let primary = before.iter().find(|node| node["role"] == "primary").context("no primary")?;
    let (lost, worker) = (text(primary, "id"), text(primary, "worker"));
    let confirm = ["container-cluster", "confirm-lost", "east", &worker, "--yes"];
    let refused = larder.run(&confirm).await?;
    ensure!(refused.code == 1 && refused.stderr.contains("worker-not-lost"), "{refused:?}");
    let state_is = async |state: &str| {
        let all = larder.json(&["container-cluster", "workers", "east"]).await?;
        let all = all.as_array().context("no array")?.clone();
        let found = all.into_iter().find(|one| one["name"] == worker.as_str());
        Ok::<_, anyhow::Error>((found.context("no such worker")?["state"] == state).then_some(()))
    };
    let minute = Duration::from_secs(60);
    bed_does(&["worker", "off", &worker]).await?;
    let confirmed = async {
        eventually("the worker is unreachable", minute, async || state_is("unreachable").await)
            .await?;
        larder.cli(&confirm).await?;
        eventually("the worker is lost", minute, async || state_is("lost").await).await?;
        // Once more is no harm.
        larder.cli(&confirm).await?;
        let records = larder.json(&["record", "list"]).await?.to_string();
        ensure!(records.contains("container-cluster-confirm-lost"), "{records}");
        // Long before anything is given up without a person's word, and where there is a worker.
        eventually("its node is replaced", Duration::from_secs(120), async || {
            let now = nodes().await?;
            let is_well = |node: &Value| {
                node["state"] == "serving"
                    && text(node, "id") != lost
                    && text(node, "worker") != worker
            };
            ensure!(now.len() == before.len() && now.iter().all(is_well), "{now:?}");
            Ok(Some(()))
        })
        .await
    }
    .await;
    bed_does(&["worker", "on", &worker]).await?;
    let taint = "node.kubernetes.io/out-of-service:NoExecute-";
    kubectl(&["taint", "node", &worker, taint]).await?;
    confirmed?;
    eventually("the worker is ready", minute, async || state_is("ready").await).await?;
    larder.cli(&["instance", "delete", "shop", "--permanent", "--yes", "--wait"]).await?;

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

/// Agents may not make slices, and who looks at the Service alone sees nothing wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slices_that_somebody_deletes_are_made_again_and_lead_where_they_led() -> Result<()> {
    let larder = bound("story-slice").await?;
    let instance = read_write_of_two(&larder).await?;
    let id = instance["id"].as_str().context("no id")?.to_owned();
    let slices = [format!("{id}-write"), format!("{id}-read")];
    for slice in &slices {
        kubectl_in("story-slice", &["delete", "endpointslice", slice]).await?;
    }
    for slice in &slices {
        eventually(&format!("{slice} leads somewhere"), Duration::from_secs(30), async || {
            let get = ["get", "endpointslice", slice, "--output", "json"];
            let Ok(text) = kubectl_in("story-slice", &get).await else { return Ok(None) };
            let found: Value = serde_json::from_str(&text)?;
            Ok(found["endpoints"].as_array().is_some_and(|all| !all.is_empty()).then_some(()))
        })
        .await?;
    }
    larder.wait_state("shop", "running", Duration::from_secs(60)).await?;
    writing(&larder).await?.gap(Duration::from_secs(3)).await?;
    // It led, and nobody took over.
    let after = larder.json(&["instance", "get", "shop"]).await?;
    ensure!(primary_of(&after) == primary_of(&instance), "another one leads: {after}");
    end(larder).await
}

/// The lease with everything in it; agents may not make another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_somebody_deletes_is_made_again_and_nothing_is_lost() -> Result<()> {
    let larder = bound("story-lease").await?;
    larder.expect_faults();
    let instance = read_write_of_two(&larder).await?;
    let id = instance["id"].as_str().context("no id")?.to_owned();
    let epoch = epoch_of("story-lease", &id).await?;
    let client = writing(&larder).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    kubectl_in("story-lease", &["delete", "lease", &id]).await?;
    let gap = client.gap(Duration::from_secs(20)).await?;
    ensure!(gap <= LOST_WORKER, "the gap is {gap} ms");
    larder.wait_state("shop", "running", Duration::from_secs(60)).await?;
    // Above every epoch that anybody has seen, and one leads.
    let now = epoch_of("story-lease", &id).await?;
    ensure!(now > epoch, "epoch {now} after {epoch}");
    let after = larder.json(&["instance", "get", "shop"]).await?;
    primary_of(&after).context("nobody leads")?;
    end(larder).await
}

/// What only matters when something happens is missed by nobody until then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_nodes_of_an_instance_share_is_made_again() -> Result<()> {
    let larder = bound("story-shared").await?;
    larder.expect_faults();
    let instance = read_write_of_two(&larder).await?;
    let id = instance["id"].as_str().context("no id")?.to_owned();
    let budget = format!("{id}-s0");
    for (kind, name) in [
        ("networkpolicy", &id),
        ("poddisruptionbudget", &budget),
        ("rolebinding", &id),
        ("role", &id),
        ("serviceaccount", &id),
    ] {
        kubectl_in("story-shared", &["delete", kind, name]).await?;
        eventually(&format!("the {kind} is there again"), Duration::from_secs(40), async || {
            Ok(kubectl_in("story-shared", &["get", kind, name]).await.is_ok().then_some(()))
        })
        .await?;
    }
    larder.wait_state("shop", "running", Duration::from_secs(60)).await?;
    end(larder).await
}

async fn read_write_of_two(larder: &Larder) -> Result<Value> {
    let args = ["--architecture", "read-write", "--replicas", "2", "--memory", "128MiB"];
    larder.create("shop", &[&args[..], &["--container-cluster", "east"]].concat()).await?;
    larder.json(&["instance", "get", "shop"]).await
}

fn primary_of(instance: &Value) -> Option<&Value> {
    let nodes = instance["nodes"].as_array()?;
    nodes.iter().find(|node| node["role"] == "primary").map(|node| &node["id"])
}

async fn end(larder: Larder) -> Result<()> {
    larder.cli(&["instance", "delete", "shop", "--permanent", "--yes", "--wait"]).await?;
    larder.cli(&["container-cluster", "unbind", "east"]).await?;
    larder.finish().await
}

/// The epoch in the instance's lease.
async fn epoch_of(story: &str, id: &str) -> Result<u64> {
    let text = kubectl_in(story, &["get", "lease", id, "--output", "json"]).await?;
    let lease: Value = serde_json::from_str(&text)?;
    let record = lease["metadata"]["annotations"]["larder.io/record"].as_str();
    let record: Value = serde_json::from_str(record.context("the lease has no record")?)?;
    record["epoch"].as_u64().context("the record has no epoch")
}
