//! Damaged and deleted files: what is known elsewhere is written anew, what shall go goes.

#[allow(dead_code, reason = "shared with other test programs")]
mod common;

use std::time::{Duration, Instant};

use common::{Local, config, instance, node, secrets};
use larder_cluster::{Cluster, ClusterError, EndpointSpec};
use larder_keeper::{KeeperPaths, files, process};
use larder_model::agent::Fence;
use larder_model::local::{NodeSecrets, ProcessMark, ProcessSpec};
use larder_model::{EndpointKind, Secret};

const FENCE: Fence = Fence { controller_epoch: 1, generation: 1 };

const NODE: &str = "n-1";

async fn make_node(local: &Local) {
    let address =
        local.cluster.reserve_address(FENCE, &instance(), &node(NODE)).await.expect("address");
    local
        .cluster
        .ensure_node(FENCE, &config(NODE, address, Vec::new(), 1), &secrets())
        .await
        .expect("ensure");
}

async fn make_endpoint(local: &Local) {
    let spec = EndpointSpec {
        expose: None,
        instance: instance(),
        kind: EndpointKind::Write,
        members: Vec::new(),
        generation: 1,
    };
    local.cluster.ensure_endpoint(FENCE, &spec).await.expect("ensure");
}

async fn eventually(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn runs(local: &Local, name: &str) -> ProcessMark {
    let mut mark = None;
    eventually("it runs", async || {
        mark = files::read_json(&KeeperPaths::new(local.data()).state(name)).ok().flatten();
        mark.as_ref().is_some_and(process::is_alive)
    })
    .await;
    mark.expect("it runs")
}

/// A node and an endpoint, with the marks of their agent and relay.
async fn running() -> (Local, [ProcessMark; 2]) {
    let local = Local::new();
    make_node(&local).await;
    make_endpoint(&local).await;
    let marks = [runs(&local, "agent-n-1").await, runs(&local, "relay-i-one").await];
    (local, marks)
}

async fn realised(local: &Local) -> bool {
    let seen = local.cluster.observe(&instance()).await.expect("observe");
    seen.nodes[&node(NODE)].realised
}

#[tokio::test]
async fn a_damaged_wish_counts_as_missing_and_is_written_anew() {
    let (local, [agent, relay]) = running().await;
    let paths = KeeperPaths::new(local.data());
    for name in ["agent-n-1", "relay-i-one"] {
        std::fs::write(paths.desired(name), b"\xff garbage").expect("damage");
    }
    assert!(!realised(&local).await);
    let seen = local.cluster.observe(&instance()).await.expect("observe");
    assert!(seen.endpoints.is_empty());
    make_node(&local).await;
    make_endpoint(&local).await;
    assert!(realised(&local).await);
    for name in ["agent-n-1", "relay-i-one"] {
        let wish: Option<ProcessSpec> = files::read_json(&paths.desired(name)).expect("mended");
        assert!(wish.is_some_and(|wish| !wish.removed));
    }
    assert_eq!(runs(&local, "agent-n-1").await, agent, "the agent was restarted");
    assert_eq!(runs(&local, "relay-i-one").await, relay, "the relay was restarted");
}

#[tokio::test]
async fn an_instance_with_damaged_wishes_is_removed_whole() {
    let (local, [agent, relay]) = running().await;
    let paths = KeeperPaths::new(local.data());
    std::fs::write(paths.desired("agent-n-1"), "{").expect("damage");
    std::fs::write(paths.desired("relay-i-one"), "{").expect("damage");
    remove_all(&local).await;
    assert!(!process::is_alive(&agent) && !process::is_alive(&relay));
}

#[tokio::test]
async fn a_relay_whose_wish_was_deleted_goes_with_its_instance() {
    let (local, [_, relay]) = running().await;
    let paths = KeeperPaths::new(local.data());
    std::fs::remove_file(paths.desired("relay-i-one")).expect("remove");
    // As it is after a restart of the keeper too, which knows it only by its state.
    local.stop_keeper();
    local.start_keeper();
    let seen = local.cluster.observe(&instance()).await.expect("observe");
    assert!(seen.endpoints.is_empty());
    remove_all(&local).await;
    assert!(!process::is_alive(&relay), "an orphan is left");
}

/// As the planner does: what is seen is removed, then the rest.
async fn remove_all(local: &Local) {
    eventually("the instance is gone", async || {
        let seen = local.cluster.observe(&instance()).await.expect("observe");
        for kind in seen.endpoints.keys() {
            local.cluster.remove_endpoint(FENCE, &instance(), *kind).await.expect("remove");
        }
        for node in seen.nodes.keys() {
            local.cluster.remove_node(FENCE, &instance(), node).await.expect("remove");
        }
        if !seen.nodes.is_empty() || !seen.endpoints.is_empty() {
            return false;
        }
        match local.cluster.remove_instance(FENCE, &instance()).await {
            Ok(()) => true,
            Err(ClusterError::Unreachable { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    })
    .await;
    assert!(local.cluster.instances().await.expect("list").is_empty());
}

#[tokio::test]
async fn damaged_secrets_are_written_anew() {
    let local = Local::new();
    make_node(&local).await;
    let path = local.data().join("instances/i-one/nodes/n-1/secrets.json");
    let other = NodeSecrets { default_password_sha256: Secret::new("short"), ..secrets() };
    let damages = [b"\xff garbage".to_vec(), Vec::new(), serde_json::to_vec(&other).expect("json")];
    for damage in damages {
        std::fs::write(&path, damage).expect("damage");
        assert!(!realised(&local).await);
        make_node(&local).await;
        assert!(realised(&local).await);
        assert_eq!(files::read_json::<NodeSecrets>(&path).expect("read"), Some(secrets()));
    }
}

#[tokio::test]
async fn small_files_that_are_damaged_hold_nothing_up() {
    let local = Local::new();
    make_node(&local).await;
    let dir = local.data().join("instances/i-one");
    let port =
        local.cluster.reserve_address(FENCE, &instance(), &node(NODE)).await.expect("address").port;
    let ports = local.data().join("ports").join(port.to_string());
    for path in [dir.join("fence.json"), dir.join("nodes/n-1/address.json"), ports] {
        std::fs::write(&path, "garbage").expect("damage");
        make_node(&local).await;
        let address =
            local.cluster.reserve_address(FENCE, &instance(), &node(NODE)).await.expect("address");
        assert_eq!(address.port, port, "after damage to {}", path.display());
    }
}
