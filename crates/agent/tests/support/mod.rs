//! A shard or cluster of real agents with real servers, in a temporary folder.
#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod cluster;

use std::fs::{self, OpenOptions};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use larder_agent::AgentClient;
use larder_model::agent::{AgentStatus, Fence, Member, NodeConfig, Order, Role, ServerState};
use larder_model::lease::{LeaseRecord, Route};
use larder_model::local::{AgentBoot, NodeSecrets, ProcessMark, RunDir};
use larder_model::{
    Address, ByteSize, ElectionPolicy, EngineName, InstanceId, InstanceName, Millis, NodeId,
    NodeMode, Secret,
};
use larder_node::Connection;

pub(crate) const TENANT: &str = "Tenant-password-1";
/// What the agents' key is made from.
pub(crate) const AGENTS: &str = "agents-of-the-instance";

/// One node: its folder and its agent's process.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) dir: PathBuf,
    pub(crate) address: Address,
    pub(crate) agent: Option<Child>,
}

/// A set of nodes of one instance.
pub(crate) struct World {
    folder: tempfile::TempDir,
    run: tempfile::TempDir,
    pub(crate) nodes: Vec<Node>,
    pub(crate) mode: NodeMode,
    binary: PathBuf,
}

fn agent_binary() -> PathBuf {
    let mut path = std::env::current_exe().expect("own path");
    path.pop();
    path.pop();
    path.join("examples").join("agent")
}

/// A port that is free together with its bus port. Tests run in several processes and threads:
/// each begins somewhere else. Both are below the range from which the kernel takes ports for
/// clients (32768): one of those may be anybody's between this look and the server's start.
pub(crate) fn free_port() -> u16 {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 2_700;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() as u16).wrapping_mul(37) % COUNT;
    for _ in 0..COUNT {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + start.wrapping_add(offset) % COUNT;
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if free(port) && free(port + 10_000) {
            return port;
        }
    }
    panic!("no free port");
}

impl World {
    /// `shards` of `nodes` each; agents are not started yet.
    pub(crate) fn new(mode: NodeMode, shards: u32, nodes: u32) -> Self {
        Self::with_binary(mode, shards, nodes, Path::new("/usr/bin/redis-server"))
    }

    pub(crate) fn with_binary(mode: NodeMode, shards: u32, nodes: u32, binary: &Path) -> Self {
        let folder = tempfile::tempdir().expect("temp dir");
        let run = tempfile::tempdir().expect("temp dir");
        let mut members = Vec::new();
        for shard in 0..shards {
            for index in 0..nodes {
                members.push(Member {
                    outer: None,
                    node: NodeId::new(format!("n-{shard}{index}")).expect("valid"),
                    shard,
                    zone: None,
                    address: Address::new("127.0.0.1", free_port()),
                });
            }
        }
        let mut world = Self { folder, run, nodes: Vec::new(), mode, binary: binary.to_owned() };
        for (index, member) in members.iter().enumerate() {
            let dir = world.folder.path().join("nodes").join(member.node.as_str());
            fs::create_dir_all(&dir).expect("node dir");
            let boot = world.boot(member, &members, &dir, index == 0);
            write_json(&dir.join("agent.json"), &boot);
            let secrets = NodeSecrets::new(
                Secret::new("system-password"),
                Secret::new(sha256(TENANT)),
                Secret::new(AGENTS),
            );
            write_json(&dir.join("secrets.json"), &secrets);
            world.nodes.push(Node {
                id: member.node.clone(),
                dir,
                address: member.address.clone(),
                agent: None,
            });
        }
        world
    }

    fn boot(&self, member: &Member, members: &[Member], dir: &Path, first: bool) -> AgentBoot {
        AgentBoot {
            config: NodeConfig {
                outer: None,
                renderer: 1,
                node: member.node.clone(),
                instance: InstanceId::new("i-1").expect("valid"),
                instance_name: InstanceName::new("one").expect("valid"),
                shard: member.shard,
                zone: None,
                mode: self.mode,
                engine: EngineName::new("redis-7.0").expect("valid"),
                address: member.address.clone(),
                memory: ByteSize::mib(128),
                maxmemory: ByteSize::mib(102),
                cluster_node_timeout: Millis(5000),
                bootstrap: first,
                initialized: false,
                members: members.to_vec(),
                worker: None,
                storage_class: None,
                parameters: std::collections::BTreeMap::new(),
                parameters_revision: 0,
                chained: false,
                upstream: None,
                has_read_endpoint: true,
                election: ElectionPolicy::default(),
                generation: 1,
            },
            bind_host: None,
            server_binary: self.binary.clone(),
            volume: dir.join("volume"),
            run_dir: self.run.path().to_owned(),
            lease_dir: self.folder.path().join("lease"),
            route_dir: self.folder.path().join("route"),
        }
    }

    /// Starts the agent of node `index`.
    pub(crate) fn start(&mut self, index: usize) {
        self.start_with(index, &[]);
    }

    /// Likewise, with more arguments.
    pub(crate) fn start_with(&mut self, index: usize, args: &[String]) {
        let node = &mut self.nodes[index];
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .open(node.dir.join("agent.log"))
            .expect("log");
        let child = Command::new(agent_binary())
            .arg(&node.dir)
            .args(args)
            .env("RUST_LOG", "larder_agent=debug")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("agent started");
        node.agent = Some(child);
    }

    pub(crate) fn start_all(&mut self) {
        (0..self.nodes.len()).for_each(|index| self.start(index));
    }

    pub(crate) fn client(&self, index: usize) -> AgentClient {
        let run = RunDir(self.run.path().to_owned());
        AgentClient::new(run.agent_socket(&self.nodes[index].id))
    }

    pub(crate) fn agent_socket(&self, index: usize) -> PathBuf {
        RunDir(self.run.path().to_owned()).agent_socket(&self.nodes[index].id)
    }

    pub(crate) fn kill_agent(&mut self, index: usize) {
        if let Some(mut agent) = self.nodes[index].agent.take() {
            agent.kill().expect("killed");
            agent.wait().expect("reaped");
        }
    }

    /// Tells the agent of node `index` to end and waits until it has.
    pub(crate) async fn end_agent(&mut self, index: usize, limit: Duration) -> ExitStatus {
        let mut agent = self.nodes[index].agent.take().expect("its agent runs");
        let told = Command::new("kill").arg("-TERM").arg(agent.id().to_string()).status();
        assert!(told.expect("kill").success());
        let began = Instant::now();
        loop {
            if let Some(status) = agent.try_wait().expect("own child") {
                return status;
            }
            if began.elapsed() > limit {
                self.nodes[index].agent = Some(agent);
                panic!("not ended within {limit:?}\n{}", self.logs());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn server_mark(&self, index: usize) -> Option<ProcessMark> {
        let bytes = fs::read(self.nodes[index].dir.join("server.json")).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    pub(crate) fn server_pid(&self, index: usize) -> Option<u32> {
        self.server_mark(index).map(|mark| mark.pid)
    }

    pub(crate) fn agent_pids(&self) -> Vec<u32> {
        self.nodes.iter().filter_map(|node| node.agent.as_ref()).map(Child::id).collect()
    }

    /// Sends a signal to the server of node `index`.
    pub(crate) fn signal_server(&self, index: usize, signal: &str) -> u32 {
        let pid = self.server_pid(index).expect("a server runs");
        let status = Command::new("kill").arg(signal).arg(pid.to_string()).status().expect("kill");
        assert!(status.success());
        pid
    }

    /// Agent and server of node `index` die together.
    pub(crate) fn kill_node(&mut self, index: usize) {
        self.kill_agent(index);
        self.signal_server(index, "-9");
    }

    /// Every agent dies, then every server: nobody sees another one's death.
    pub(crate) fn kill_all(&mut self) {
        (0..self.nodes.len()).for_each(|index| self.kill_agent(index));
        for index in 0..self.nodes.len() {
            self.signal_server(index, "-9");
        }
    }

    pub(crate) async fn order(&self, index: usize, order: Order) {
        let fence = Fence { controller_epoch: 1, generation: 1 };
        let result = self.client(index).order(fence, &order).await;
        result.unwrap_or_else(|error| panic!("{order:?}: {error}\n{}", self.logs()));
    }

    /// What the agents say now; `None`: no answer.
    pub(crate) async fn statuses(&self) -> Vec<Option<AgentStatus>> {
        let mut statuses = Vec::new();
        for index in 0..self.nodes.len() {
            statuses.push(self.client(index).status().await.ok());
        }
        statuses
    }

    /// Waits until `seen` says yes to the statuses of all nodes (`None`: its agent is silent).
    pub(crate) async fn wait(
        &self,
        what: &str,
        limit: Duration,
        seen: impl Fn(&[Option<AgentStatus>]) -> bool,
    ) -> Duration {
        let began = Instant::now();
        loop {
            let statuses = self.statuses().await;
            if seen(&statuses) {
                return began.elapsed();
            }
            assert!(
                began.elapsed() < limit,
                "{what}: not within {limit:?}\n{statuses:#?}\n{}",
                self.logs()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until one node leads and all others follow it. Answers the leader.
    pub(crate) async fn settled(&self, limit: Duration) -> usize {
        self.wait("settled", limit, |all| leader(all).is_some() && all.iter().all(follows)).await;
        leader(&self.statuses().await).expect("just seen")
    }

    pub(crate) async fn tenant(&self, index: usize) -> Connection {
        let address = &self.nodes[index].address;
        let password = Secret::new(TENANT);
        Connection::login(address, "default", &password, Duration::from_secs(2))
            .await
            .unwrap_or_else(|error| panic!("{error}\n{}", self.logs()))
    }

    pub(crate) fn route(&self) -> Option<Route> {
        newest(&self.folder.path().join("route"))
    }

    pub(crate) fn lease_dir(&self) -> PathBuf {
        self.folder.path().join("lease")
    }

    pub(crate) fn lease(&self) -> Option<LeaseRecord> {
        newest(&self.folder.path().join("lease"))
    }

    pub(crate) fn logs(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            for file in ["agent.log", "server.log"] {
                let log = fs::read_to_string(node.dir.join(file)).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(60)..].join("\n");
                text.push_str(&format!("--- {} {file}\n{tail}\n", node.id));
            }
        }
        text
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for index in 0..self.nodes.len() {
            self.kill_agent(index);
            // The server may be long gone, and its number somebody else's.
            if let Some(mark) = self.server_mark(index).filter(is_same_process) {
                let _ = Command::new("kill").arg("-9").arg(mark.pid.to_string()).status();
            }
        }
    }
}

/// By the time of its start: field 22 of `/proc/PID/stat` (proc(5)).
fn is_same_process(mark: &ProcessMark) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", mark.pid)).unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let started = after_name.split_whitespace().nth(19).and_then(|text| text.parse().ok());
    started == Some(mark.start_ticks)
}

fn newest<T: serde::de::DeserializeOwned>(dir: &Path) -> Option<T> {
    let entry = larder_linklog::LinkLog::at(dir).read().ok()??;
    serde_json::from_slice(&entry.bytes).ok()
}

/// The node that says it is a serving primary.
pub(crate) fn leader(all: &[Option<AgentStatus>]) -> Option<usize> {
    all.iter().position(|status| {
        status.as_ref().is_some_and(|status| {
            let lease = status.lease.as_ref();
            status.server.state == ServerState::Serving
                && lease.is_some_and(|lease| lease.holder.as_ref() == Some(&status.node))
                && role(status) == Some(Role::Primary)
        })
    })
}

fn follows(status: &Option<AgentStatus>) -> bool {
    status.as_ref().is_some_and(|status| {
        status
            .replication
            .as_ref()
            .is_some_and(|view| view.role == Role::Primary || (view.link_up && !view.syncing))
    })
}

pub(crate) fn role(status: &AgentStatus) -> Option<Role> {
    status.replication.as_ref().map(|view| view.role)
}

pub(crate) fn events(status: &AgentStatus) -> Vec<&str> {
    status.events.iter().map(|event| event.reason.as_str()).collect()
}

fn write_json<T: serde::Serialize>(path: &Path, value: &T) {
    fs::write(path, serde_json::to_vec(value).expect("json")).expect("written");
}

fn sha256(text: &str) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}
