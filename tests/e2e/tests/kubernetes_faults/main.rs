//! Faults and bad input on a real Kubernetes: each has an outcome that a person can read in the
//! instance's conditions and events, nothing is made anew empty, and no two nodes lead.
//!
//! The cluster is the one that `LARDER_TEST_KUBECONFIG` names, with the image of `LARDER_TEST_IMAGE`
//! and at least three workers; `LARDER_TEST_BED` is the command of its test bed (`testbed --dir DIR`).
//! `make test-kubernetes` sets them. To be run one after the other: the stories switch off what they
//! all stand on.

mod away;
mod blocked;
mod bound;
mod deleted;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_e2e::writing::Writing;
use larder_testkit::kubernetes::{bed, bound, kubectl, kubectl_in, kubectl_with, pod_of};
use larder_testkit::{Instance, Larder, PASSWORD, eventually};

/// What nobody hurries, on a busy machine.
const MINUTE: Duration = Duration::from_secs(60);
/// A StatefulSet that was refused a pod is tried again after pauses that double.
const PATIENCE: Duration = Duration::from_secs(120);

const STANDALONE: [&str; 6] =
    ["--architecture", "standalone", "--memory", "128MiB", "--container-cluster", "east"];
const READ_WRITE: [&str; 8] = [
    "--architecture",
    "read-write",
    "--replicas",
    "2",
    "--memory",
    "128MiB",
    "--container-cluster",
    "east",
];

/// Makes objects, for [`take_away`] to delete.
async fn apply(manifest: &str) -> Result<()> {
    kubectl_with(&["apply", "-f", "-"], manifest).await.map(drop)
}

async fn take_away(manifest: &str) -> Result<()> {
    let args = ["delete", "--ignore-not-found", "--wait=false", "-f", "-"];
    kubectl_with(&args, manifest).await.map(drop)
}

/// A Larder with the cluster bound as `east`, in a namespace of its own.
async fn story(namespace: &str) -> Result<Larder> {
    // Of a run that failed.
    kubectl(&["delete", "namespace", namespace, "--ignore-not-found"]).await?;
    let larder = bound(namespace).await?;
    larder.expect_faults();
    // While nobody answers.
    larder.expect_log("strays cannot be swept");
    // While an API server answers to some questions alone.
    larder.expect_log("what nodes share cannot be listed");
    Ok(larder)
}

/// Deletes the instances and everything else of the story, which has to go.
async fn end(larder: Larder, namespace: &str, instances: &[&str]) -> Result<()> {
    for name in instances {
        larder.cli(&["instance", "delete", name, "--permanent", "--yes", "--wait"]).await?;
    }
    larder.cli(&["container-cluster", "unbind", "east"]).await?;
    kubectl(&["delete", "namespace", namespace, "--wait=false", "--ignore-not-found"]).await?;
    larder.finish().await
}

/// Asks for an instance and does not wait for it.
async fn ask_for(larder: &Larder, name: &str, args: &[&str]) -> Result<()> {
    let mut all = vec!["instance", "create", name, "--engine", "redis-7.0", "--password-stdin"];
    all.extend(args);
    let output = larder.cli_with_input(&all, &format!("{PASSWORD}\n")).await?;
    ensure!(output.code == 0, "{output:?}");
    Ok(())
}

/// Waits until the instance shows the condition with this reason, and until an event tells of it.
/// All of `parts` are in the words of both.
async fn is_told(
    larder: &Larder,
    name: &str,
    kind: &str,
    reason: &str,
    parts: &[&str],
) -> Result<Instance> {
    let what = format!("{name} shows {kind} ({reason}) with {parts:?}");
    let seen = larder
        .wait_for(name, &what, MINUTE, |instance| {
            instance.condition(kind).is_some_and(|condition| {
                condition.status
                    && condition.reason == reason
                    && parts.iter().all(|part| condition.message.contains(part))
            })
        })
        .await?;
    eventually("an event tells of it", MINUTE, async || {
        let events = larder.json(&["event", "list", "--instance", name]).await?;
        let told = events.as_array().context("no array")?.iter().any(|event| {
            let message = event["message"].as_str().unwrap_or_default();
            event["reason"] == kind && parts.iter().all(|part| message.contains(part))
        });
        Ok(told.then_some(()))
    })
    .await?;
    Ok(seen)
}

/// Waits until the instance runs, and shows nothing of the condition any more.
async fn is_over(larder: &Larder, name: &str, kind: &str) -> Result<Instance> {
    let what = format!("{name} runs without {kind}");
    larder
        .wait_for(name, &what, PATIENCE, |i| i.state == "running" && i.condition(kind).is_none())
        .await
}

/// One command at a server, in the cluster's network.
async fn redis(host: &str, args: &[&str]) -> Result<String> {
    let mut command =
        bed(&["exec", "--", "timeout", "3", "redis-cli", "--no-auth-warning", "-h", host])?;
    let output = command.args(args).env("REDISCLI_AUTH", PASSWORD).output().await?;
    ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn host(instance: &Instance) -> Result<String> {
    Ok(instance.endpoint("write")?.host.clone())
}

/// Writes something to be found again, with its replicas.
async fn put(instance: &Instance, value: &str) -> Result<()> {
    let answer = redis(&host(instance)?, &["SET", "story", value]).await?;
    ensure!(answer == "OK", "the write was answered with `{answer}`");
    let replicas: Vec<&str> =
        instance.replicas(0).iter().filter_map(|node| node.host.as_deref()).collect();
    eventually("the replicas have it", MINUTE, async || {
        for host in &replicas {
            if redis(host, &["GET", "story"]).await? != value {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .await
}

/// It is there, and the endpoint takes writes.
async fn check_data(instance: &Instance, value: &str, within: Duration) -> Result<()> {
    let host = host(instance)?;
    eventually("writes go through, and what was written is there", within, async || {
        let there = redis(&host, &["GET", "story"]).await?;
        let taken = redis(&host, &["SET", "again", value]).await?;
        Ok((there == value && taken == "OK").then_some(()))
    })
    .await
}

/// For how long nobody may take a write.
const A_WHILE: Duration = Duration::from_secs(5);

/// Every server of the instance refuses writes, in so many words or by not listening, at each look for
/// some seconds, and none goes through by the way for writes as it is now (a Service that was made again
/// may have another address).
async fn takes_no_writes(namespace: &str, instance: &Instance) -> Result<()> {
    let service = format!("{}-write", instance.id);
    let way = address(namespace, "service", &service, "{.spec.clusterIP}").await?;
    let began = tokio::time::Instant::now();
    let mut looks = 0;
    while looks < 3 || began.elapsed() < A_WHILE {
        for node in &instance.nodes {
            let pod = pod_of(&node.id);
            let host = address(namespace, "pod", &pod, "{.status.podIP}").await?;
            let said = answer(&host, &["SET", "story", "anew"]).await?;
            ensure!(is_refusal(&said), "{pod} at {host} answers a write with `{said}`");
        }
        // What is not refused here has reached nobody: it may still lead to a pod that is no more.
        let said = answer(&way, &["SET", "story", "anew"]).await?;
        ensure!(said != "OK", "{service} at {way} takes a write");
        looks += 1;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    Ok(())
}

/// The address that this path of the object gives, once it has one.
async fn address(namespace: &str, kind: &str, name: &str, path: &str) -> Result<String> {
    let output = format!("jsonpath={path}");
    eventually("it has an address", MINUTE, async || {
        let text = kubectl_in(namespace, &["get", kind, name, "-o", &output]).await?;
        Ok((!text.is_empty()).then_some(text))
    })
    .await
}

/// What a server, or the client in its place, says to a command, whatever that is.
async fn answer(host: &str, args: &[&str]) -> Result<String> {
    let mut command =
        bed(&["exec", "--", "timeout", "3", "redis-cli", "--no-auth-warning", "-h", host])?;
    let output = command.args(args).env("REDISCLI_AUTH", PASSWORD).output().await?;
    let all = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&all).trim().to_owned())
}

/// Somebody is there and says no. Silence, a wrong password or a missing program are no such answer.
fn is_refusal(said: &str) -> bool {
    let said = said.strip_prefix("(error) ").unwrap_or(said);
    ["READONLY ", "LOADING ", "MASTERDOWN ", "NOREPLICAS "].iter().any(|no| said.starts_with(no))
        || said.ends_with("Connection refused")
}

#[test]
fn only_a_definite_no_is_a_refused_write() {
    for no in [
        "READONLY You can't write against a read only replica.",
        "(error) LOADING Redis is loading the dataset in memory",
        "Could not connect to Redis at 10.1.0.7:6379: Connection refused",
    ] {
        assert!(is_refusal(no), "{no}");
    }
    for other in [
        "OK",
        "",
        "Could not connect to Redis at 10.1.0.7:6379: No route to host",
        "WRONGPASS invalid username-password pair or user is disabled.",
        "timeout: failed to run command 'redis-cli': No such file or directory",
    ] {
        assert!(!is_refusal(other), "{other}");
    }
}

/// UIDs of the claims of an instance: another one is another, empty volume.
async fn claims(namespace: &str, instance: &Instance) -> Result<Vec<String>> {
    let label = format!("larder.io/instance={}", instance.id);
    let args = ["get", "pvc", "-l", &label, "-o", "jsonpath={.items[*].metadata.uid}"];
    let text = kubectl_in(namespace, &args).await?;
    let mut uids: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    uids.sort();
    Ok(uids)
}

/// A client in the cluster's network that has begun to write.
async fn writing(instance: &Instance) -> Result<Writing> {
    Writing::to(env!("CARGO_BIN_EXE_writer"), instance.endpoint("write")?).await
}
