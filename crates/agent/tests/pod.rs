//! An agent as the first process of a pod: what its kubelet is told, how it ends, what it asks of
//! whoever keeps the lease.

mod support;

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use larder_agent::wire::{InstanceKey, TcpDial};
use larder_agent::{AgentClient, read_boot};
use larder_model::agent::{AgentStatus, Fence, Order, ProblemCode, ServerState, VolumeState};
use larder_model::kube::{VOLUME_FILE, VolumeIds};
use larder_model::lease::ReleaseReason;
use larder_model::{Address, NodeMode, Secret, even_slots};
use larder_node::Connection;
use support::{World, leader, role};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const START: Duration = Duration::from_secs(20);

/// The nodes of a [`World`], each at an address of its own: all agents listen at one port.
struct Pods {
    world: World,
    port: u16,
    probes: u16,
    key: InstanceKey,
}

impl Pods {
    fn new(nodes: u32) -> Self {
        Self::in_mode(NodeMode::Leased, nodes)
    }

    fn in_mode(mode: NodeMode, nodes: u32) -> Self {
        let mut world = World::new(mode, 1, nodes);
        let (port, probes) = (support::free_port(), support::free_port());
        let host = |index: usize| format!("127.0.0.{}", index + 2);
        for index in 0..world.nodes.len() {
            let file = world.nodes[index].dir.join("agent.json");
            let mut boot = read_boot(&world.nodes[index].dir).expect("written");
            boot.config.address.host = host(index);
            for (index, member) in boot.config.members.iter_mut().enumerate() {
                member.address.host = host(index);
            }
            fs::write(file, serde_json::to_vec(&boot).expect("json")).expect("written");
            world.nodes[index].address.host = host(index);
        }
        let key = InstanceKey::derive(&Secret::new(support::AGENTS));
        Self { world, port, probes, key }
    }

    fn at(&self, index: usize, port: u16) -> SocketAddr {
        let host = &self.world.nodes[index].address.host;
        format!("{host}:{port}").parse().expect("an address")
    }

    /// Starts the agent of a node. Of its calls to lease and route [`Pods::reads`] and [`Pods::slow`]
    /// tell.
    fn start(&mut self, index: usize) {
        let (api, probes) = (self.at(index, self.port), self.at(index, self.probes));
        self.world.start_with(index, &[api.to_string(), probes.to_string()]);
    }

    /// How often the agent has read the lease.
    fn reads(&self, index: usize) -> u64 {
        let file = self.world.nodes[index].dir.join("lease-reads");
        fs::metadata(file).map_or(0, |file| file.len())
    }

    /// From now on each of its calls takes so long, in ms.
    fn slow(&self, index: usize, ms: u64) {
        fs::write(self.world.nodes[index].dir.join("slow-ms"), ms.to_string()).expect("written");
    }

    fn client(&self, index: usize) -> AgentClient {
        let address = Address::new(self.world.nodes[index].address.host.clone(), self.port);
        AgentClient::over(Arc::new(TcpDial(address)), self.key.clone())
    }

    async fn status(&self, index: usize) -> Option<AgentStatus> {
        self.client(index).status().await.ok()
    }

    async fn order(&self, index: usize, order: Order) {
        let fence = Fence { controller_epoch: 1, generation: 1 };
        let told = self.client(index).order(fence, &order).await;
        told.unwrap_or_else(|error| panic!("{order:?}: {error}\n{}", self.world.logs()));
    }

    /// A cluster of one shard: node 0 has the slots, node 1 copies from it.
    async fn formed() -> Self {
        let mut pods = Self::in_mode(NodeMode::Clustered, 2);
        for index in [0, 1] {
            pods.start(index);
            pods.wait("serves", index, |status| status.cluster.is_some()).await;
        }
        let ranges = vec![even_slots(0, 1)];
        pods.order(0, Order::ClusterAddSlots { ranges, config_epoch: 1 }).await;
        let peers = vec![pods.world.nodes[1].address.clone()];
        pods.order(0, Order::ClusterMeet { peers }).await;
        let primary = pods.status(0).await.and_then(|status| status.cluster).expect("a view").my_id;
        pods.wait("knows it", 1, |status| {
            let view = status.cluster.as_ref();
            view.is_some_and(|v| v.nodes.iter().any(|n| n.id == primary && !n.handshake))
        })
        .await;
        pods.order(1, Order::ClusterReplicate { primary }).await;
        pods.follows(1).await;
        pods
    }

    /// What the probe at `path` answers; 0: nothing within a second.
    async fn probe(&self, index: usize, path: &str) -> u16 {
        let asked = async {
            let mut stream = TcpStream::connect(self.at(index, self.probes)).await?;
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
            Ok::<u16, std::io::Error>(code.unwrap_or(0))
        };
        let answer = tokio::time::timeout(Duration::from_secs(1), asked).await;
        answer.ok().and_then(Result::ok).unwrap_or(0)
    }

    async fn wait(&self, what: &str, index: usize, seen: impl Fn(&AgentStatus) -> bool) {
        let began = Instant::now();
        loop {
            let status = self.status(index).await;
            if status.as_ref().is_some_and(&seen) {
                return;
            }
            let late = began.elapsed() > START;
            assert!(!late, "{what}: not in time\n{status:#?}\n{}", self.world.logs());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn leads(&self, index: usize) {
        self.wait("leads", index, |status| leader(&[Some(status.clone())]) == Some(0)).await;
    }

    async fn follows(&self, index: usize) {
        let in_sync = |status: &AgentStatus| {
            status.replication.as_ref().is_some_and(|view| view.link_up && !view.syncing)
        };
        self.wait("follows", index, |s| in_sync(s) && role(s).is_some()).await;
    }
}

#[tokio::test]
async fn the_lease_is_asked_for_once_a_second_however_long_a_copy_takes() {
    let mut pods = Pods::new(2);
    pods.start(0);
    pods.leads(0).await;
    let (address, password) = (&pods.world.nodes[0].address, Secret::new("system-password"));
    let mut primary =
        Connection::login(address, "larder", &password, Duration::from_secs(2)).await.expect("in");
    primary.config_set("repl-diskless-sync", "yes").await.expect("set");
    primary.config_set("repl-diskless-sync-delay", "60").await.expect("set");
    pods.start(1);
    pods.wait("waits for its copy", 1, |status| {
        status.replication.as_ref().is_some_and(|view| !view.link_up)
    })
    .await;
    let reads = || [pods.reads(0), pods.reads(1)];
    let before = reads();
    tokio::time::sleep(Duration::from_secs(4)).await;
    let after = reads();
    let syncs = |status: &AgentStatus| status.replication.as_ref().is_some_and(|v| !v.link_up);
    assert!(pods.status(1).await.as_ref().is_some_and(syncs), "it still waits");
    let [leader, replica] = [after[0] - before[0], after[1] - before[1]];
    eprintln!("reads in 4 s: {leader} by the leader, {replica} by the replica");
    assert!(leader <= 1, "its renewals are looks: {leader}");
    assert!((2..=6).contains(&replica), "{replica}");
}

#[tokio::test]
async fn a_stuck_loop_fails_livez_and_a_slow_take_over_does_not() {
    let mut pods = Pods::new(2);
    pods.start(0);
    pods.leads(0).await;
    pods.start(1);
    pods.follows(1).await;
    // Two calls one after the other are longer than a stuck loop is left alive.
    pods.slow(1, 1_400);
    pods.world.kill_node(0);
    let began = Instant::now();
    while pods.status(1).await.is_none_or(|status| leader(&[Some(status)]) != Some(0)) {
        assert_eq!(pods.probe(1, "/livez").await, 200, "after {:?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(30), "{}", pods.world.logs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    eprintln!("slow take-over after {:?}", began.elapsed());
    pods.slow(1, 600_000);
    let stuck = Instant::now();
    while pods.probe(1, "/livez").await != 503 {
        assert!(stuck.elapsed() < Duration::from_secs(8), "still called alive");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    eprintln!("stuck loop noticed after {:?}", stuck.elapsed());
}

#[tokio::test]
async fn a_node_with_another_volume_and_no_memory_is_lost() {
    let mut pods = Pods::new(1);
    let ids = VolumeIds { first: "u-1".to_owned(), now: "u-2".to_owned() };
    let file = pods.world.nodes[0].dir.join(VOLUME_FILE);
    fs::write(&file, serde_json::to_vec(&ids).expect("json")).expect("written");
    pods.start(0);
    pods.wait("lost", 0, |status| status.volume == VolumeState::Lost).await;
    let status = pods.status(0).await.expect("answers");
    assert_ne!(status.server.state, ServerState::Serving, "nothing is started empty");
    assert_eq!(status.problem.map(|problem| problem.code), Some(ProblemCode::VolumeLost));
    assert_eq!(pods.probe(0, "/readyz").await, 503);
    assert_eq!(pods.probe(0, "/livez").await, 200);
}

#[tokio::test]
async fn an_agent_told_to_end_hands_over_before_its_server_stops() {
    let mut pods = Pods::new(2);
    pods.start(0);
    pods.leads(0).await;
    pods.start(1);
    pods.follows(1).await;
    pods.world.tenant(0).await.call(&["SET", "key", "value"]).await.expect("written");
    assert_eq!(pods.probe(0, "/readyz").await, 200);
    let server = pods.world.server_pid(0).expect("runs");
    let ended = pods.world.end_agent(0, Duration::from_secs(15)).await;
    assert!(ended.success(), "{ended}\n{}", pods.world.logs());
    assert!(!fs::exists(format!("/proc/{server}")).expect("looked"), "its server goes with it");
    let previous = pods.world.lease().and_then(|lease| lease.previous).expect("handed over");
    assert_eq!(previous.reason, ReleaseReason::Planned, "{}", pods.world.logs());
    pods.leads(1).await;
    let value = pods.world.tenant(1).await.call(&["GET", "key"]).await.expect("read");
    assert_eq!(value.as_bytes(), Some(&b"value"[..]));
}

/// All pods of an instance may be deleted at once: what the last server acknowledges after its
/// replica has gone is nowhere else.
#[tokio::test]
async fn a_primary_whose_replica_has_gone_takes_no_more_writes_once_it_is_told_to_end() {
    let mut pods = Pods::formed().await;
    pods.wait("has a replica", 0, |status| {
        status.replication.as_ref().is_some_and(|view| view.replicas.iter().any(|r| r.online))
    })
    .await;
    pods.world.kill_node(1);
    let mut tenant = pods.world.tenant(0).await;
    let (last_write, ended) = tokio::join!(
        async {
            let told = Instant::now();
            while told.elapsed() < Duration::from_secs(10)
                && tenant.call(&["SET", "key", "value"]).await.is_ok()
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            told.elapsed()
        },
        pods.world.end_agent(0, Duration::from_secs(15)),
    );
    assert!(ended.success(), "{ended}\n{}", pods.world.logs());
    assert!(last_write < Duration::from_millis(800), "{last_write:?} after the word");
}

/// To the first process of a pod a signal that nobody listens for is as if it were not sent.
#[tokio::test]
async fn an_agent_listens_for_its_end_before_it_looks_at_its_engine() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().expect("temp dir");
    let (engine, asked) = (folder.path().join("engine"), folder.path().join("asked"));
    let script =
        format!("#!/bin/sh\n: > {}\nsleep 1\necho Redis server v=7.0.15\n", asked.display());
    fs::write(&engine, script).expect("written");
    fs::set_permissions(&engine, fs::Permissions::from_mode(0o755)).expect("executable");
    let mut world = World::with_binary(NodeMode::Leased, 1, 1, &engine);
    world.start(0);
    let began = Instant::now();
    while !asked.exists() {
        assert!(began.elapsed() < START, "{}", world.logs());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let ended = world.end_agent(0, Duration::from_secs(10)).await;
    assert!(ended.success(), "{ended}\n{}", world.logs());
}
