//! What moving slots costs: keys per second against `redis-cli --cluster reshard` on the same cluster,
//! or against the engine alone where it moves slots by itself, and what a client notices of a gentle
//! move.
//!
//! `cargo bench -p larder-agent --bench slot_moves`; the agent comes from `--example agent`, built
//! in the same profile. Bounded: a few hundred thousand keys, some minutes.

#![allow(clippy::print_stdout, reason = "a program for a terminal")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use larder_model::agent::{AgentStatus, Order};
use larder_model::{MoveLimits, MovePace, Secret, SlotJob, SlotRange, SlotSet, even_slots};
use larder_node::Connection;
use support::World;
use support::cluster::{formed_with, view};

const SHARDS: u32 = 8;
/// Of the first shard's: all of these go to the second one, and back.
const SLOTS: u16 = 1_000;
const LIMIT: Duration = Duration::from_secs(240);
const RUNS: usize = 3;

enum Load {
    Strings,
    Hashes,
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let folder = std::env::var_os("LARDER_TEST_ENGINES").map(PathBuf::from);
        let folder = folder.expect("LARDER_TEST_ENGINES names the engines' folder");
        println!("| engine | keys | moved by | keys/s, median of {RUNS} | of the peer's |");
        println!("| --- | --- | --- | ---: | ---: |");
        compare("redis-7.0", Path::new("/usr/bin/redis-server"), Load::Strings, 200_000).await;
        compare("redis-7.0", Path::new("/usr/bin/redis-server"), Load::Hashes, 4_000).await;
        let valkey = folder.join("valkey-9.1/valkey-server");
        compare("valkey-9.1", &valkey, Load::Strings, 200_000).await;
        println!();
        println!("| engine | client's p99, idle | while gently moved | keys/s |");
        println!("| --- | ---: | ---: | ---: |");
        gentle("redis-7.0", Path::new("/usr/bin/redis-server")).await;
        gentle("valkey-9.1", &valkey).await;
    });
}

async fn system(world: &World, index: usize) -> Connection {
    let (address, password) = (&world.nodes[index].address, Secret::new("system-password"));
    Connection::login(address, "larder", &password, Duration::from_secs(30)).await.expect("in")
}

fn slots() -> SlotSet {
    [SlotRange::new(0, SLOTS - 1).expect("valid")].into_iter().collect()
}

/// CRC-16/XMODEM of the tag (Redis Cluster specification, "Key distribution model").
fn slot(tag: &str) -> u16 {
    tag.bytes().fold(0_u16, |mut crc, byte| {
        crc ^= u16::from(byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
        }
        crc
    }) % 16_384
}

/// Keys in the slots that move, evenly.
async fn fill(world: &World, load: &Load, keys: u32) {
    let mut server = system(world, 0).await;
    let tags: Vec<String> =
        (0..).map(|n: u32| n.to_string()).filter(|tag| slot(tag) < SLOTS).take(2_000).collect();
    let numbers: Vec<u32> = (0..keys).collect();
    for some in numbers.chunks(500) {
        let commands: Vec<Vec<String>> = some
            .iter()
            .map(|n| {
                let key = format!("k{n}:{{{}}}", tags[*n as usize % tags.len()]);
                match load {
                    Load::Strings => vec!["SET".to_owned(), key, "x".repeat(100)],
                    Load::Hashes => {
                        let mut command = vec!["HSET".to_owned(), key];
                        for field in 0..100 {
                            command.extend([format!("field-{field:03}"), "v".repeat(90)]);
                        }
                        command
                    }
                }
            })
            .collect();
        for reply in server.pipeline(&commands).await.expect("sent") {
            reply.expect("written");
        }
    }
}

async fn id(world: &World, index: usize) -> String {
    let status = world.statuses().await[index].clone().expect("answers");
    status.cluster.expect("a view").my_id
}

fn owns(all: &[Option<AgentStatus>], index: usize) -> bool {
    let me = view(&all[index]).and_then(|view| view.me().cloned());
    me.is_some_and(|me| slots().difference(&me.slots).is_empty())
}

async fn seen_at(world: &World, to: usize) {
    world
        .wait("heard of", LIMIT, |all| {
            (0..all.len()).step_by(2).all(|index| {
                let id = view(&all[to]).map(|view| view.my_id.clone());
                let peer = view(&all[index])
                    .and_then(|v| v.nodes.iter().find(|n| Some(&n.id) == id.as_ref()).cloned());
                owns(all, to) && peer.is_some_and(|peer| slots().difference(&peer.slots).is_empty())
            })
        })
        .await;
}

async fn by_larder(world: &World, from: usize, to: usize, pace: MovePace) -> Duration {
    let job = SlotJob {
        slots: slots(),
        to: world.nodes[to].address.clone(),
        to_id: id(world, to).await,
        copies: 1,
        limits: MoveLimits { pace, ..MoveLimits::default() },
    };
    let began = Instant::now();
    world.order(from, Order::MoveSlots { job }).await;
    world
        .wait("moved", LIMIT, |all| {
            let status = all[from].as_ref().and_then(|status| status.slot_move.as_ref());
            status.is_some_and(|moving| moving.done && moving.slots_done == u32::from(SLOTS))
        })
        .await;
    let took = began.elapsed();
    seen_at(world, to).await;
    took
}

async fn by_redis_cli(world: &World, from: usize, to: usize) -> Duration {
    let (from_id, to_id) = (id(world, from).await, id(world, to).await);
    let began = Instant::now();
    let status = tokio::process::Command::new("redis-cli")
        .args(["--user", "larder", "-a", "system-password", "--no-auth-warning"])
        .args(["--cluster", "reshard", &world.nodes[from].address.to_string()])
        .args(["--cluster-from", &from_id, "--cluster-to", &to_id, "--cluster-yes"])
        .args(["--cluster-slots", &SLOTS.to_string()])
        .stdout(Stdio::null())
        .stdin(Stdio::null())
        .status()
        .await
        .expect("redis-cli");
    assert!(status.success(), "{status}");
    let took = began.elapsed();
    seen_at(world, to).await;
    took
}

/// What the engine does when nobody is between.
async fn by_engine(world: &World, from: usize, to: usize) -> Duration {
    let to_id = id(world, to).await;
    let mut server = system(world, from).await;
    let began = Instant::now();
    server.migrate_slots(&slots(), &to_id).await.expect("begun");
    loop {
        let all = server.slot_migrations().await.expect("answers");
        let newest = all.iter().find(|it| it.operation == "EXPORT").expect("begun");
        if newest.is_over() {
            assert_eq!(newest.state, "success");
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let took = began.elapsed();
    seen_at(world, to).await;
    took
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

async fn compare(engine: &str, binary: &Path, load: Load, keys: u32) {
    let world = formed_with(binary, SHARDS).await;
    assert!(even_slots(0, SHARDS).len() > SLOTS);
    fill(&world, &load, keys).await;
    let what = match load {
        Load::Strings => "100 B strings",
        Load::Hashes => "10 KB hashes",
    };
    let native = engine.starts_with("valkey-9");
    let (mut larder, mut peer) = (Vec::new(), Vec::new());
    let mut busy = Vec::new();
    for _ in 0..RUNS {
        // The same slots there by the one and back by the other.
        let took =
            if native { by_engine(&world, 0, 2).await } else { by_redis_cli(&world, 0, 2).await };
        peer.push(f64::from(keys) / took.as_secs_f64());
        let before = cpu(&world);
        let took = by_larder(&world, 2, 0, MovePace::Fast).await;
        let per_key = |(now, then): (f64, f64)| (now - then) * 1e6 / f64::from(keys);
        busy = cpu(&world).into_iter().zip(before).map(per_key).collect();
        larder.push(f64::from(keys) / took.as_secs_f64());
    }
    let (larder, peer) = (median(larder), median(peer));
    let name =
        if native { "`CLUSTER MIGRATESLOTS` alone" } else { "`redis-cli --cluster reshard`" };
    println!("| {engine} | {keys} {what} | {name} | {peer:.0} | 1.0 |");
    println!("| {engine} | {keys} {what} | Larder, fast | {larder:.0} | {:.2} |", larder / peer);
    let [source, its_replica, target, other_replica, agents] = busy[..] else { return };
    println!(
        "|  |  | CPU of a key: source {source:.1} µs, target {target:.1}, their replicas \
         {its_replica:.1} and {other_replica:.1}, agents {agents:.1} |  |  |"
    );
}

/// Seconds that the processor spent for source, its replica, target, its replica, and all agents.
fn cpu(world: &World) -> Vec<f64> {
    let of = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit(')').next().unwrap_or_default();
        // Fields 14 and 15, in ticks of 10 ms (proc(5)); the first here is the third.
        let ticks =
            fields.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<f64>().ok());
        ticks.sum::<f64>() / 100.0
    };
    let mut all: Vec<f64> =
        [2, 3, 0, 1].map(|index| world.server_pid(index).map_or(0.0, of)).to_vec();
    all.push(world.agent_pids().into_iter().map(of).sum());
    all
}

/// p99 of a client that reads and writes at the source for so long, or until `until`.
async fn p99(world: &World, until: impl Fn() -> bool) -> Duration {
    let mut client = system(world, 0).await;
    let mut all = Vec::new();
    let key = format!(
        "stays:{{{}}}",
        (0..)
            .map(|n: u32| n.to_string())
            .find(|tag| { (SLOTS..2_000).contains(&slot(tag)) })
            .expect("some")
    );
    while !until() {
        let began = Instant::now();
        client.call(&["SET", &key, "value"]).await.expect("written");
        all.push(began.elapsed());
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    all.sort();
    all[all.len() * 99 / 100]
}

async fn gentle(engine: &str, binary: &Path) {
    let keys = 100_000;
    let world = formed_with(binary, SHARDS).await;
    fill(&world, &Load::Strings, keys).await;
    let end = Instant::now() + Duration::from_secs(5);
    let idle = p99(&world, || Instant::now() >= end).await;
    let done = std::sync::atomic::AtomicBool::new(false);
    let moving = async {
        let took = by_larder(&world, 0, 2, MovePace::Gentle).await;
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        took
    };
    let is_done = || done.load(std::sync::atomic::Ordering::Relaxed);
    let (took, busy) = tokio::join!(moving, p99(&world, is_done));
    let ms = |time: Duration| time.as_secs_f64() * 1_000.0;
    let rate = f64::from(keys) / took.as_secs_f64();
    println!("| {engine} | {:.2} ms | {:.2} ms | {rate:.0} |", ms(idle), ms(busy));
}
