//! The relay against a direct connection, in the same run: `cargo bench -p larder-proxy`.
//!
//! Prints requests per second of both and their ratio, and the memory of a relay process with
//! many idle connections. The relay runs as a process of its own: this program started again.

#![allow(clippy::print_stdout, reason = "the result of a bench is what it prints")]

use std::error::Error;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use larder_linklog::LinkLog;
use larder_model::lease::{Route, RouteTarget};
use larder_model::local::{RelayBoot, RelayListener};
use larder_model::{Address, EndpointKind, InstanceId, NodeId};
use larder_testkit::redis::{Engine, RedisServer, free_port};

type Failure = Box<dyn Error + Send + Sync>;

const ROUND: Duration = Duration::from_millis(500);
const ROUNDS: usize = 4;
const IDLE_CONNECTIONS: usize = 300;

struct KilledOnDrop(Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().collect();
    if let [_, role, dir] = args.as_slice()
        && role == "relay"
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        return Ok(runtime.block_on(larder_proxy::run(Path::new(dir)))?);
    }
    let server = RedisServer::start(Engine::Redis, &[])?;
    let folder = tempfile::tempdir()?;
    let address = Address::new("127.0.0.1", free_port());
    prepare(folder.path(), &server, &address)?;
    let relay = Command::new(&args[0]).arg("relay").arg(folder.path()).spawn()?;
    let relay = KilledOnDrop(relay);
    wait_for(&address)?;

    println!("{:>22} {:>12} {:>12} {:>7}", "", "direct /s", "relay /s", "ratio");
    for (connections, pipeline) in [(1, 1), (16, 1), (16, 16)] {
        let (mut direct, mut relayed) = (0.0, 0.0);
        // In turns, so that a noisy neighbour hits both.
        for _ in 0..ROUNDS {
            direct += round(&server.address(), connections, pipeline)?;
            relayed += round(&address, connections, pipeline)?;
        }
        let rounds = ROUNDS as f64;
        println!(
            "{:>22} {:>12.0} {:>12.0} {:>7.2}",
            format!("{connections} conn, pipeline {pipeline}"),
            direct / rounds,
            relayed / rounds,
            relayed / direct
        );
    }
    let before = resident_kib(relay.0.id())?;
    let idle: Vec<TcpStream> =
        (0..IDLE_CONNECTIONS).map(|_| ping(&address)).collect::<Result<_, _>>()?;
    let after = resident_kib(relay.0.id())?;
    println!("memory: {before} KiB, with {} idle connections {after} KiB", idle.len());
    Ok(())
}

fn prepare(dir: &Path, server: &RedisServer, address: &Address) -> Result<(), Failure> {
    let boot = RelayBoot {
        instance: InstanceId::new("i-bench")?,
        listeners: vec![RelayListener {
            kind: EndpointKind::Write,
            address: address.clone(),
            bind_host: None,
        }],
        route_dir: dir.join("route"),
        members: vec![],
        run_dir: dir.to_owned(),
        generation: 1,
    };
    std::fs::write(dir.join("relay.json"), serde_json::to_vec(&boot)?)?;
    let target = RouteTarget { node: NodeId::new("n-bench")?, address: server.address() };
    let route = Route { epoch: 1, write: Some(target), read: vec![], hold: false };
    LinkLog::open(&boot.route_dir)?.append(None, &serde_json::to_vec(&route)?)?;
    Ok(())
}

fn connect(address: &Address) -> Result<TcpStream, Failure> {
    let stream = TcpStream::connect((address.host.as_str(), address.port))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn ping(address: &Address) -> Result<TcpStream, Failure> {
    let mut stream = connect(address)?;
    stream.write_all(b"PING\r\n")?;
    stream.read_exact(&mut [0; 7])?;
    Ok(stream)
}

fn wait_for(address: &Address) -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = ping(address) {
        if Instant::now() > deadline {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Requests per second of `connections` clients that each keep `pipeline` requests under way.
fn round(address: &Address, connections: usize, pipeline: usize) -> Result<f64, Failure> {
    let mut streams = (0..connections).map(|_| connect(address)).collect::<Result<Vec<_>, _>>()?;
    let batch = b"*2\r\n$3\r\nGET\r\n$4\r\nnone\r\n".repeat(pipeline);
    let mut answer = vec![0; b"$-1\r\n".len() * pipeline];
    let start = Instant::now();
    let mut requests = 0;
    while start.elapsed() < ROUND {
        for stream in &mut streams {
            stream.write_all(&batch)?;
        }
        for stream in &mut streams {
            stream.read_exact(&mut answer)?;
            requests += pipeline;
        }
    }
    Ok(requests as f64 / start.elapsed().as_secs_f64())
}

fn resident_kib(pid: u32) -> Result<u64, Failure> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).ok_or("no number")?.parse()?)
}
