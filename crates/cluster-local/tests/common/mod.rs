//! A data directory with a keeper, and a backend over it.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use larder_cluster::Cluster;
use larder_cluster::conformance::Subject;
use larder_cluster_local::{EngineLookup, LocalCluster, LocalOptions};
use larder_keeper::{ensure_running, is_running, process, running_pid};
use larder_model::agent::{Member, NodeConfig};
use larder_model::local::NodeSecrets;
use larder_model::{
    Address, ByteSize, ElectionPolicy, EngineName, InstanceId, InstanceName, Millis, NodeId,
    NodeMode, Secret,
};

/// Each test gets its own ports: what one tests to be free another may be about to use.
static NEXT_RANGE: AtomicU16 = AtomicU16::new(0);

/// The first of 20 ports that nobody uses, nor their bus ports: a Larder may run on this machine.
fn free_range() -> u16 {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    loop {
        let first = 14_000 + NEXT_RANGE.fetch_add(20, Ordering::Relaxed);
        assert!(first < 17_000, "no 20 free ports in a row");
        if (first..first + 20).all(|port| is_free(port) && is_free(port + 10_000)) {
            return first;
        }
    }
}

pub(crate) struct Engines;

impl EngineLookup for Engines {
    fn server_binary(&self, engine: &EngineName) -> Option<PathBuf> {
        (engine.as_str() == "redis-7.0").then(|| "/usr/bin/redis-server".into())
    }
}

pub(crate) struct Local {
    pub(crate) options: LocalOptions,
    pub(crate) cluster: Arc<LocalCluster>,
    dir: tempfile::TempDir,
}

impl Local {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("temp dir");
        let first = free_range();
        let mut options = LocalOptions::new(dir.path(), larder());
        options.port_range = first..=first + 19;
        ensure_running(dir.path(), &larder()).expect("keeper");
        let cluster = Arc::new(open(&options));
        Self { options, cluster, dir }
    }

    pub(crate) fn data(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn reopen(&mut self) {
        self.cluster = Arc::new(open(&self.options));
    }

    pub(crate) fn stop_keeper(&self) {
        if let Ok(Some(pid)) = running_pid(self.data())
            && let Ok(Some(mark)) = process::mark_of(pid)
        {
            let _ = process::kill(&mark);
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while is_running(self.data()).unwrap_or(false) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn start_keeper(&self) {
        ensure_running(self.data(), &larder()).expect("keeper");
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.stop_keeper();
        kill_all_of(self.data());
        let _ = std::fs::remove_dir_all(&self.cluster.run_dir().0);
    }
}

#[async_trait]
impl Subject for Local {
    fn cluster(&self) -> Arc<dyn Cluster> {
        Arc::clone(&self.cluster) as Arc<dyn Cluster>
    }

    fn engine(&self) -> EngineName {
        EngineName::new("redis-7.0").expect("name")
    }

    async fn restart(&mut self) {
        self.reopen();
    }

    async fn pause(&self) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whatever names the data directory in its arguments, or works below it, as servers do, which
/// overwrite their arguments. Marks are not enough, because a keeper may be killed before it has
/// written one. Again until nothing is left: what dies last may have started something meanwhile.
fn kill_all_of(data: &Path) {
    // The system names a process's folder without links.
    let real = &data.canonicalize().unwrap_or_else(|_| data.to_owned());
    let deadline = Instant::now() + Duration::from_secs(10);
    while kill_once(data, real) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether there was anything to kill.
fn kill_once(data: &Path, real: &Path) -> bool {
    let name = data.display().to_string();
    let mut found = false;
    for pid in process::pids().expect("proc") {
        let named = process::arguments(pid).iter().any(|argument| argument.contains(&name));
        let works_there = std::fs::read_link(format!("/proc/{pid}/cwd"))
            .is_ok_and(|folder| folder.starts_with(real));
        if (named || works_there)
            && let Ok(Some(mark)) = process::mark_of(pid)
        {
            found = true;
            let _ = process::kill(&mark);
        }
    }
    found
}

fn open(options: &LocalOptions) -> LocalCluster {
    LocalCluster::new(options.clone(), Arc::new(Engines)).expect("backend")
}

/// The program that is run as keeper, agent and relay: the one in `LARDER_TEST_BINARY`, else a
/// stub that is built with the tests.
fn larder() -> PathBuf {
    if let Some(binary) = std::env::var_os("LARDER_TEST_BINARY") {
        return binary.into();
    }
    let own = std::env::current_exe().expect("own path");
    let target = own.parent().and_then(Path::parent).expect("target folder");
    target.join("examples").join("larder_stub")
}

pub(crate) fn instance() -> InstanceId {
    InstanceId::new("i-one").expect("id")
}

pub(crate) fn node(text: &str) -> NodeId {
    NodeId::new(text).expect("id")
}

pub(crate) fn config(
    id: &str,
    address: Address,
    members: Vec<Member>,
    generation: u64,
) -> NodeConfig {
    NodeConfig {
        outer: None,
        renderer: 1,
        node: node(id),
        instance: instance(),
        instance_name: InstanceName::new("one").expect("name"),
        shard: 0,
        zone: None,
        mode: NodeMode::Leased,
        engine: EngineName::new("redis-7.0").expect("name"),
        address,
        memory: ByteSize::mib(128),
        maxmemory: ByteSize::mib(102),
        cluster_node_timeout: Millis(5000),
        bootstrap: true,
        initialized: false,
        members,
        worker: None,
        storage_class: None,
        parameters: std::collections::BTreeMap::new(),
        parameters_revision: 0,
        chained: false,
        upstream: None,
        has_read_endpoint: true,
        election: ElectionPolicy::default(),
        generation,
    }
}

pub(crate) fn secrets() -> NodeSecrets {
    NodeSecrets::new(Secret::new("system"), Secret::new("0".repeat(64)), Secret::new("agents"))
}
