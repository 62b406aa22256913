//! What is particular to one machine: files, processes, ports, disks.

#[allow(dead_code, reason = "shared with other test programs")]
mod common;

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use common::{Local, config, instance, node, secrets};
use larder_cluster::{AgentError, Agents, Cluster, ClusterError, EndpointSpec};
use larder_keeper::{KeeperPaths, files, process};
use larder_model::agent::{Fence, Member};
use larder_model::local::{AgentBoot, ProcessMark, ProcessSpec};
use larder_model::{Address, ByteSize, Code, EndpointKind, EngineName, InstanceId, Millis};

fn fence(generation: u64) -> Fence {
    Fence { controller_epoch: 1, generation }
}

fn member(id: &str, port: u16) -> Member {
    let address = Address::new("127.0.0.1", port);
    Member { outer: None, node: node(id), shard: 0, zone: None, address }
}

async fn make(local: &Local, id: &str, members: Vec<Member>, generation: u64) -> Address {
    let cluster = &local.cluster;
    let address =
        cluster.reserve_address(fence(generation), &instance(), &node(id)).await.expect("address");
    let config = config(id, address.clone(), members, generation);
    cluster.ensure_node(fence(generation), &config, &secrets()).await.expect("ensure");
    address
}

fn wish(local: &Local, name: &str) -> Option<ProcessSpec> {
    files::read_json(&KeeperPaths::new(local.data()).desired(name)).expect("read")
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !holds().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn agent_mark(local: &Local, id: &str) -> ProcessMark {
    let path = KeeperPaths::new(local.data()).state(&format!("agent-{id}"));
    let mut mark = None;
    eventually("the agent runs", async || {
        mark = files::read_json::<ProcessMark>(&path).ok().flatten().filter(process::is_alive);
        mark.is_some()
    })
    .await;
    mark.expect("it runs")
}

#[tokio::test]
async fn private_files_are_private() {
    let local = Local::new();
    make(&local, "n-1", Vec::new(), 1).await;
    let dir = local.data().join("instances/i-one/nodes/n-1");
    let mode = |path: &std::path::Path| {
        std::fs::metadata(path).expect("metadata").permissions().mode() & 0o777
    };
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join("secrets.json")), 0o600);
    assert_eq!(mode(&dir.join("agent.json")), 0o600);
    assert_eq!(mode(&local.cluster.run_dir().0), 0o700);
}

#[tokio::test]
async fn a_lease_is_guarded_only_where_somebody_else_could_take_it() {
    let local = Local::new();
    make(&local, "n-1", vec![member("n-1", 1)], 1).await;
    let guard = wish(&local, "agent-n-1").expect("wish").guard.expect("guard");
    assert_eq!(guard.lease, None);
    make(&local, "n-1", vec![member("n-1", 1), member("n-2", 2)], 2).await;
    let guard = wish(&local, "agent-n-1").expect("wish").guard.expect("guard");
    assert!(guard.lease.is_some_and(|lease| lease.lease_ttl == Millis(4000)));
}

#[tokio::test]
async fn new_members_reach_the_files_without_a_restart_of_the_agent() {
    let local = Local::new();
    make(&local, "n-1", Vec::new(), 1).await;
    let before = agent_mark(&local, "n-1").await;
    make(&local, "n-1", vec![member("n-1", 1), member("n-2", 2)], 1).await;
    let path = local.data().join("instances/i-one/nodes/n-1/agent.json");
    let boot: AgentBoot = files::read_json(&path).expect("read").expect("present");
    assert_eq!(boot.config.members.len(), 2);
    make(&local, "n-2", Vec::new(), 1).await;
    agent_mark(&local, "n-2").await;
    assert_eq!(agent_mark(&local, "n-1").await, before);
}

#[tokio::test]
async fn an_engine_that_is_not_installed_is_refused() {
    let local = Local::new();
    let address =
        local.cluster.reserve_address(fence(1), &instance(), &node("n-1")).await.expect("address");
    let mut config = config("n-1", address, Vec::new(), 1);
    config.engine = EngineName::new("redis-1.0").expect("name");
    match local.cluster.ensure_node(fence(1), &config, &secrets()).await {
        Err(ClusterError::Refused(refusal)) => assert_eq!(refusal.code, Code::EngineNotFound),
        other => panic!("not refused: {other:?}"),
    }
    assert_eq!(wish(&local, "agent-n-1"), None);
}

#[tokio::test]
async fn a_refused_reservation_leaves_no_trace() {
    let mut local = Local::new();
    let first = *local.options.port_range.start();
    local.options.port_range = first..=first;
    local.reopen();
    local
        .cluster
        .reserve_address(fence(1), &instance(), &node("n-1"))
        .await
        .expect("the only port");
    let other = InstanceId::new("i-two").expect("id");
    match local.cluster.reserve_address(fence(1), &other, &node("n-2")).await {
        Err(ClusterError::Refused(refusal)) => assert_eq!(refusal.code, Code::NoFreePort),
        answer => panic!("not refused: {answer:?}"),
    }
    assert_eq!(local.cluster.instances().await.expect("list").len(), 1);
}

#[tokio::test]
async fn a_removed_node_takes_its_agent_and_volume_with_it() {
    let local = Local::new();
    make(&local, "n-1", Vec::new(), 1).await;
    let agent = agent_mark(&local, "n-1").await;
    let dir = local.data().join("instances/i-one/nodes/n-1");
    eventually("it has data", async || dir.join("volume/data").exists()).await;
    local.cluster.remove_node(fence(1), &instance(), &node("n-1")).await.expect("remove");
    eventually("it is gone", async || {
        local.cluster.observe(&instance()).await.expect("observe").nodes.is_empty()
    })
    .await;
    assert!(!process::is_alive(&agent));
    assert!(!dir.exists());
    assert!(!local.cluster.run_dir().agent_socket(&node("n-1")).exists());
    assert_eq!(wish(&local, "agent-n-1"), None);
}

#[tokio::test]
async fn a_node_is_shown_until_the_keeper_has_removed_it() {
    let local = Local::new();
    make(&local, "n-1", Vec::new(), 1).await;
    let agent = agent_mark(&local, "n-1").await;
    local.stop_keeper();
    local.cluster.remove_node(fence(1), &instance(), &node("n-1")).await.expect("remove");
    let seen = local.cluster.observe(&instance()).await.expect("observe");
    assert!(!seen.nodes[&node("n-1")].realised);
    let again = local.cluster.reserve_address(fence(1), &instance(), &node("n-1")).await;
    assert!(again.is_err(), "a node that leaves got an address");
    assert!(process::is_alive(&agent));
    local.start_keeper();
    eventually("it is gone", async || {
        local.cluster.observe(&instance()).await.expect("observe").nodes.is_empty()
    })
    .await;
    assert!(!process::is_alive(&agent));
}

#[tokio::test]
async fn an_instance_with_nodes_is_not_removed() {
    let local = Local::new();
    make(&local, "n-1", Vec::new(), 1).await;
    match local.cluster.remove_instance(fence(1), &instance()).await {
        Err(ClusterError::Refused(refusal)) => assert_eq!(refusal.code, Code::InstanceBusy),
        other => panic!("not refused: {other:?}"),
    }
    let seen = local.cluster.observe(&instance()).await.expect("observe");
    assert!(seen.nodes[&node("n-1")].realised);
}

#[tokio::test]
async fn what_is_left_of_a_deleted_folder_is_seen_and_removed() {
    let local = Local::new();
    make(&local, "n-1", Vec::new(), 1).await;
    let agent = agent_mark(&local, "n-1").await;
    std::fs::remove_dir_all(local.data().join("instances/i-one")).expect("remove");
    assert!(local.cluster.instances().await.expect("list").contains(&instance()));
    let seen = local.cluster.observe(&instance()).await.expect("observe");
    assert!(seen.nodes.contains_key(&node("n-1")));
    eventually("it is gone", async || {
        local.cluster.remove_node(fence(1), &instance(), &node("n-1")).await.expect("remove");
        local.cluster.observe(&instance()).await.expect("observe").nodes.is_empty()
    })
    .await;
    local.cluster.remove_instance(fence(1), &instance()).await.expect("remove");
    assert!(local.cluster.instances().await.expect("list").is_empty());
    assert!(!process::is_alive(&agent));
}

#[tokio::test]
async fn an_endpoint_says_what_its_relay_says() {
    let local = Local::new();
    let spec = |members: Vec<Member>| EndpointSpec {
        expose: None,
        instance: instance(),
        kind: EndpointKind::Write,
        members,
        generation: 1,
    };
    local.stop_keeper();
    local.cluster.ensure_endpoint(fence(1), &spec(Vec::new())).await.expect("ensure");
    let silent = local.cluster.observe(&instance()).await.expect("observe");
    let address = silent.endpoints[&EndpointKind::Write].address.clone();
    assert!(!silent.endpoints[&EndpointKind::Write].answers, "nobody runs it");

    local.start_keeper();
    local.cluster.ensure_endpoint(fence(1), &spec(vec![member("n-1", 1)])).await.expect("ensure");
    eventually("it answers", async || {
        let seen = local.cluster.observe(&instance()).await.expect("observe");
        let endpoint = &seen.endpoints[&EndpointKind::Write];
        assert_eq!(endpoint.address, address);
        endpoint.answers && endpoint.leads_to == [node("n-1")]
    })
    .await;
}

#[tokio::test]
async fn a_port_range_that_cannot_work_is_refused() {
    let mut local = Local::new();
    local.options.port_range = 50_000..=60_000;
    let engines = std::sync::Arc::new(common::Engines);
    let made = larder_cluster_local::LocalCluster::new(local.options.clone(), engines);
    assert!(matches!(made, Err(ClusterError::Refused(r)) if r.code == Code::InvalidRequest));
}

#[tokio::test]
async fn room_is_checked_before_it_is_needed() {
    let local = Local::new();
    local.cluster.check_room(ByteSize(1)).expect("a byte");
    match local.cluster.check_room(ByteSize(u64::MAX)) {
        Err(ClusterError::Refused(refusal)) => assert_eq!(refusal.code, Code::DiskFull),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_missing_agent_is_silent() {
    let local = Local::new();
    let said = local.cluster.status(&instance(), &node("n-none")).await;
    assert!(matches!(said, Err(AgentError::Silent { .. })), "{said:?}");
}

#[tokio::test]
async fn whatever_file_a_crash_left_out_the_next_call_completes() {
    let local = Local::new();
    let address = make(&local, "n-1", Vec::new(), 1).await;
    let dir = local.data().join("instances/i-one/nodes/n-1");
    let lost = [
        dir.join("agent.json"),
        dir.join("secrets.json"),
        dir.join("address.json"),
        local.data().join("ports").join(address.port.to_string()),
        local.data().join("instances/i-one/fence.json"),
        local.data().join("instances/i-one/lease"),
        KeeperPaths::new(local.data()).desired("agent-n-1"),
    ];
    for path in lost {
        if path.is_dir() {
            std::fs::remove_dir_all(&path).expect("remove");
        } else {
            std::fs::remove_file(&path).expect("remove");
        }
        let config = config("n-1", address.clone(), Vec::new(), 1);
        local.cluster.ensure_node(fence(1), &config, &secrets()).await.expect("ensure");
        assert!(path.exists(), "{} is still missing", path.display());
        assert_eq!(make(&local, "n-1", Vec::new(), 1).await, address);
        let seen = local.cluster.observe(&instance()).await.expect("observe");
        assert!(seen.nodes[&node("n-1")].realised, "without {}", path.display());
    }
}

#[tokio::test]
async fn whatever_file_a_crash_left_out_the_removal_completes() {
    for lost in ["agent.json", "secrets.json", "address.json", "removed"] {
        let local = Local::new();
        make(&local, "n-1", Vec::new(), 1).await;
        let agent = agent_mark(&local, "n-1").await;
        let dir = local.data().join("instances/i-one/nodes/n-1");
        local.stop_keeper();
        local.cluster.remove_node(fence(1), &instance(), &node("n-1")).await.expect("remove");
        std::fs::remove_file(dir.join(lost)).expect("remove");
        local.start_keeper();
        eventually("it is gone", async || {
            local.cluster.remove_node(fence(1), &instance(), &node("n-1")).await.expect("remove");
            local.cluster.observe(&instance()).await.expect("observe").nodes.is_empty()
        })
        .await;
        assert!(!process::is_alive(&agent), "without {lost}");
        local.cluster.remove_instance(fence(1), &instance()).await.expect("remove");
        assert!(local.cluster.instances().await.expect("list").is_empty(), "without {lost}");
    }
}
