//! What somebody deletes by hand: it is made again with its data, or shown as lost; nothing of it
//! begins empty.

use anyhow::{Result, ensure};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_deleted_by_hand_are_made_again_with_their_data_and_addresses() -> Result<()> {
    let namespace = "story-deleted";
    let larder = story(namespace).await?;
    let shop = larder.create("shop", &READ_WRITE).await?;
    put(&shop, "kept").await?;
    let before = claims(namespace, &shop).await?;
    let primary = shop.primary(0)?.id.clone();
    let replica = shop.replicas(0).first().context("no replica")?.id.clone();
    let write = format!("{}-write", shop.id);
    let pod = pod_of(&primary);
    for (kind, name, is_told) in [
        ("secret", replica.as_str(), true),
        ("service", replica.as_str(), true),
        ("service", write.as_str(), true),
        ("statefulset", primary.as_str(), true),
        ("pod", pod.as_str(), false),
        ("lease", shop.id.as_str(), true),
    ] {
        let uid = ["get", kind, name, "-o", "jsonpath={.metadata.uid}"];
        let former = kubectl_in(namespace, &uid).await?;
        let told = async || {
            let reasons = larder.event_reasons("shop").await?;
            Ok::<_, anyhow::Error>(reasons.iter().filter(|r| *r == "made-again").count())
        };
        let told_before = told().await?;
        let mut args = vec!["delete", kind, name, "--wait=false"];
        if kind == "pod" {
            args.extend(["--grace-period=0", "--force"]);
        }
        kubectl_in(namespace, &args).await?;
        eventually(&format!("{kind} {name} is there again"), MINUTE, async || {
            let now = kubectl_in(namespace, &uid).await?;
            Ok((!now.is_empty() && now != former).then_some(()))
        })
        .await?;
        let now = larder.wait_state("shop", "running", MINUTE).await?;
        ensure!(now.endpoints == shop.endpoints, "{kind}: the endpoints moved: {now:?}");
        check_data(&shop, "kept", MINUTE).await?;
        for node in &shop.nodes {
            ensure!(now.node(&node.id)?.host == node.host, "{kind}: an address moved: {now:?}");
        }
        if is_told {
            eventually(&format!("an event tells of {kind} {name}"), MINUTE, async || {
                Ok((told().await? > told_before).then_some(()))
            })
            .await?;
        }
    }
    ensure!(claims(namespace, &shop).await? == before, "there are other volumes");
    end(larder, namespace, &["shop"]).await
}

/// A claim stays for as long as a pod uses it, and Larder says that it will go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_volume_is_copied_again_or_shown_as_lost_and_never_empty() -> Result<()> {
    let namespace = "story-claims";
    let larder = story(namespace).await?;
    larder.expect_log("volume");
    let shop = larder.create("shop", &READ_WRITE).await?;
    let lone = larder.create("lone", &STANDALONE).await?;
    put(&shop, "kept").await?;
    put(&lone, "gone").await?;
    for (name, instance) in [("shop", &shop), ("lone", &lone)] {
        let node = instance.primary(0)?.id.clone();
        kubectl_in(namespace, &["delete", "pvc", &node, "--wait=false"]).await?;
        let parts = [node.as_str(), "goes when its pod ends"];
        is_told(&larder, name, "volume-leaving", "deleted-by-hand", &parts).await?;
        check_data(instance, if name == "shop" { "kept" } else { "gone" }, MINUTE).await?;
        let pod = pod_of(&node);
        kubectl_in(namespace, &["delete", "pod", &pod, "--grace-period=0", "--force"]).await?;
    }
    let now = is_over(&larder, "shop", "volume-leaving").await?;
    check_data(&now, "kept", MINUTE).await?;
    ensure!(now.replicas(0).len() == 1, "{now:?}");
    let reasons = larder.event_reasons("shop").await?;
    ensure!(reasons.iter().any(|reason| reason == "volume-lost"), "{reasons:?}");

    let lost = larder
        .wait_for("lone", "lone is shown as lost", PATIENCE, |i| i.condition("data-lost").is_some())
        .await?;
    ensure!(lost.state == "unavailable", "{lost:?}");
    let reasons = larder.event_reasons("lone").await?;
    ensure!(reasons.iter().any(|reason| reason == "volume-lost"), "{reasons:?}");
    takes_no_writes(namespace, &lone).await?;
    end(larder, namespace, &["shop", "lone"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_namespace_leaves_its_instances_lost_and_nothing_starts_empty() -> Result<()> {
    let namespace = "story-namespace";
    let larder = story(namespace).await?;
    larder.expect_log("volume");
    let shop = larder.create("shop", &READ_WRITE).await?;
    let lone = larder.create("lone", &STANDALONE).await?;
    larder.create("dropped", &STANDALONE).await?;
    put(&shop, "gone").await?;
    put(&lone, "gone").await?;
    kubectl(&["delete", "namespace", namespace, "--timeout=120s"]).await?;
    for name in ["shop", "lone"] {
        let parts = ["its namespace is gone", "make the namespace again"];
        let seen = is_told(&larder, name, "node-blocked", "namespace-missing", &parts).await?;
        ensure!(seen.state == "unavailable", "{seen:?}");
    }
    // There is nothing left to remove.
    larder.cli(&["instance", "delete", "dropped", "--permanent", "--yes", "--wait"]).await?;
    // Where it comes back, everything in it is new, and none of it is taken for the data.
    kubectl(&["create", "namespace", namespace]).await?;
    for name in ["shop", "lone"] {
        let lost = larder
            .wait_for(name, "it is shown as lost", PATIENCE, |i| i.condition("data-lost").is_some())
            .await?;
        ensure!(lost.state == "unavailable", "{lost:?}");
        takes_no_writes(namespace, &lost).await?;
    }
    end(larder, namespace, &["shop", "lone"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_pods_at_once_come_back_with_what_they_had() -> Result<()> {
    let namespace = "story-all";
    let larder = story(namespace).await?;
    larder.cli(&["container-cluster", "set", "east", "--spread", "preferred"]).await?;
    let shop = larder.create("shop", &READ_WRITE).await?;
    let wide = ["--architecture", "cluster", "--memory", "128MiB", "--container-cluster", "east"];
    let wide = larder.create("wide", &wide).await?;
    put(&shop, "kept").await?;
    let hosts: Vec<String> = wide.nodes.iter().filter_map(|node| node.host.clone()).collect();
    let first = hosts.first().context("no node")?.clone();
    for key in 0..100 {
        let answer = redis(&first, &["-c", "SET", &format!("k{key}"), "kept"]).await?;
        ensure!(answer == "OK", "{answer}");
    }
    let volumes = [claims(namespace, &shop).await?, claims(namespace, &wide).await?];
    let label = "app.kubernetes.io/managed-by=larder";
    let all = ["delete", "pods", "-l", label, "--grace-period=0", "--force", "--wait=false"];
    kubectl_in(namespace, &all).await?;
    // A minute from the blow to the first write of each.
    let cluster = eventually("the cluster takes writes", MINUTE, async || {
        for host in &hosts {
            let info = redis(host, &["CLUSTER", "INFO"]).await?;
            if !info.contains("cluster_state:ok") {
                return Ok(None);
            }
        }
        Ok((redis(&first, &["-c", "SET", "k0", "kept"]).await? == "OK").then_some(()))
    });
    tokio::try_join!(check_data(&shop, "kept", MINUTE), cluster)?;
    for key in 0..100 {
        let there = redis(&first, &["-c", "GET", &format!("k{key}")]).await?;
        ensure!(there == "kept", "k{key} is `{there}`");
    }
    for name in ["shop", "wide"] {
        larder.wait_state(name, "running", PATIENCE).await?;
    }
    let now = [claims(namespace, &shop).await?, claims(namespace, &wide).await?];
    ensure!(now == volumes, "there are other volumes");
    end(larder, namespace, &["shop", "wide"]).await
}
