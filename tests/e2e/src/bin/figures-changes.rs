//! What planned changes cost a writing client: gap, failed and lost writes of each operation, on one
//! machine. `figures-changes BINARY [--runs N] [--engines A,B] [--only TEXT]`, with a release binary.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for a terminal")]

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_testkit::history::Outcome;
use larder_testkit::resp::tag_in;
use larder_testkit::{Endpoint, Instance, Larder, LarderOptions, PASSWORD, Writer, WriterOptions};

const PATIENCE: Duration = Duration::from_secs(60);

struct Options {
    binary: PathBuf,
    runs: usize,
    engines: Vec<String>,
    only: String,
}

fn options() -> Result<Options> {
    let mut options = Options {
        binary: PathBuf::new(),
        runs: 10,
        engines: vec!["redis-7.0".into(), "valkey-8.0".into()],
        only: String::new(),
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--runs" => options.runs = value()?.parse()?,
            "--engines" => options.engines = value()?.split(',').map(str::to_owned).collect(),
            "--only" => options.only = value()?,
            path => options.binary = std::path::absolute(path)?,
        }
    }
    let usage = "usage: figures-changes BINARY [--runs N] [--engines A,B] [--only TEXT]";
    ensure!(options.binary.is_file(), usage);
    Ok(options)
}

/// An operation and the one that takes it back, which is measured as well.
type Pair = (&'static str, &'static [&'static str], &'static [&'static str]);

const RESIZE: Pair =
    ("resize", &["resize", "--memory", "256MiB"], &["resize", "--memory", "128MiB"]);
const RESTART: Pair = ("restart", &["restart"], &["restart"]);
/// The second password is the first again.
const PASSWORDS: Pair = ("set-password", &["set-password"], &["set-password"]);

const PARAMETERS: Pair = ("parameter", &["parameter", "hz=20"], &["parameter", "hz=10"]);

const CASES: [(&str, &[&str], &[Pair]); 4] = [
    ("standalone", &["--architecture", "standalone"], &[RESIZE, RESTART, PASSWORDS, PARAMETERS]),
    (
        "read-write",
        &["--architecture", "read-write", "--read-only-nodes", "1"],
        &[
            RESIZE,
            RESTART,
            PASSWORDS,
            PARAMETERS,
            ("scale", &["scale", "--read-only-nodes", "3"], &["scale", "--read-only-nodes", "1"]),
        ],
    ),
    (
        "cluster",
        &["--architecture", "cluster", "--shards", "3", "--replicas", "2"],
        &[
            RESIZE,
            RESTART,
            PASSWORDS,
            PARAMETERS,
            ("scale", &["scale", "--replicas", "3"], &["scale", "--replicas", "2"]),
            ("shards", &["scale", "--shards", "6"], &["scale", "--shards", "3"]),
        ],
    ),
    (
        "read-write of four",
        &["--architecture", "read-write", "--read-only-nodes", "3"],
        &[("chain", &["set-chained", "on"], &["set-chained", "off"])],
    ),
];

#[derive(Default)]
struct Cost {
    gaps: Vec<Duration>,
    failed: usize,
    lost: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = options()?;
    println!(
        "| change | engine | runs | median gap | worst | writes failed | acknowledged writes lost |"
    );
    println!("| --- | --- | ---: | ---: | ---: | ---: | ---: |");
    for engine in &options.engines {
        for (name, args, pairs) in CASES {
            for pair in pairs {
                let title = format!("{name}, {}", pair.0);
                if !title.contains(&options.only) {
                    continue;
                }
                let cost = measured(&options, engine, args, pair).await;
                print_row(&title, engine, cost.with_context(|| format!("{title} on {engine}"))?);
            }
        }
        if "upgrade".contains(&options.only) || options.only.contains("upgrade") {
            upgrades(&options, engine).await.with_context(|| format!("upgrades to {engine}"))?;
        }
    }
    Ok(())
}

fn print_row(title: &str, engine: &str, mut cost: Cost) {
    cost.gaps.sort();
    let of = |gap: Option<&Duration>| gap.map_or(0.0, |gap| gap.as_secs_f64() * 1000.0);
    println!(
        "| {title} | {engine} | {} | {:.0} ms | {:.0} ms | {} | {} |",
        cost.gaps.len(),
        of(cost.gaps.get(cost.gaps.len() / 2)),
        of(cost.gaps.last()),
        cost.failed,
        cost.lost
    );
}

async fn larder(options: &Options) -> Result<Larder> {
    // Handed over more often than a real instance is, and from port to port.
    let config = "[policy]\ndrain = 500\n[policy.election]\nmax_failovers = 1000\n".to_owned();
    let binary = Some(options.binary.clone());
    Larder::start(LarderOptions {
        port_blocks: Some(8),
        binary,
        config,
        ..LarderOptions::default()
    })
    .await
}

async fn measured(options: &Options, engine: &str, args: &[&str], pair: &Pair) -> Result<Cost> {
    let larder = larder(options).await?;
    let args = [args, &["--engine", engine]].concat();
    larder.create("tested", &args).await?;
    let control = control(&larder).await?;
    let mut cost = Cost::default();
    for run in 0..options.runs {
        for (half, operation) in [pair.1, pair.2].into_iter().enumerate() {
            one(&larder, operation, &format!("{run}-{half}-"), &control, &mut cost).await?;
        }
    }
    larder.finish().await?;
    Ok(cost)
}

/// Each run on an instance of its own: there is no way back.
async fn upgrades(options: &Options, engine: &str) -> Result<()> {
    // One of each architecture.
    for (name, args, _) in CASES.into_iter().take(3) {
        let larder = larder(options).await?;
        let control = control(&larder).await?;
        let mut cost = Cost::default();
        let args = [args, &["--engine", "redis-6.2"]].concat();
        for run in 0..options.runs {
            larder.create("tested", &args).await?;
            let upgrade = ["upgrade", "--engine", engine];
            one(&larder, &upgrade, &format!("{run}-"), &control, &mut cost).await?;
            let delete = ["instance", "delete", "tested", "--permanent", "--yes", "--wait"];
            larder.cli(&delete).await?;
        }
        larder.finish().await?;
        print_row(&format!("{name}, upgrade from redis-6.2"), engine, cost);
    }
    Ok(())
}

async fn control(larder: &Larder) -> Result<Endpoint> {
    let control = larder.create("control", &["--architecture", "standalone"]).await?;
    Ok(control.endpoint("write")?.clone())
}

/// One operation under a client of shard 0 that writes once in a millisecond.
async fn one(
    larder: &Larder,
    operation: &[&str],
    prefix: &str,
    control: &Endpoint,
    cost: &mut Cost,
) -> Result<()> {
    let instance = larder.wait_state("tested", "running", PATIENCE).await?;
    let endpoint = instance.endpoint(if is_cluster(&instance) { "discovery" } else { "write" })?;
    let writer = Writer::started(writing(&instance, endpoint, prefix)?).await?;
    let control = Writer::started(precise(control, prefix)).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let what: &[&str] = match operation[0] {
        "parameter" => &["parameter", "set", "tested"],
        change => &["instance", change, "tested"],
    };
    let command = [what, &operation[1..], &["--wait"]].concat();
    if operation[0] == "set-password" {
        let command = [&command[..], &["--password-stdin", "--grace", "1h"]].concat();
        let output = larder.cli_with_input(&command, &format!("{PASSWORD}\n")).await?;
        ensure!(output.code == 0, "{output:?}");
    } else {
        larder.cli(&command).await?;
    }
    writer.next_ok(PATIENCE).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (history, control) = (writer.stop().await?, control.stop().await?);
    let gap = history.gap(&control);
    let failed = history.writes.iter().filter(|write| write.outcome != Outcome::Acked).count();
    let lost = history.lost(endpoint).await?.len();
    eprintln!("  {} {prefix}: gap {gap:?}, {failed} failed, {lost} lost", operation.join(" "));
    cost.gaps.push(gap);
    cost.failed += failed;
    cost.lost += lost;
    Ok(())
}

fn is_cluster(instance: &Instance) -> bool {
    instance.architecture == "cluster"
}

fn precise(endpoint: &Endpoint, prefix: &str) -> WriterOptions {
    let mut options = WriterOptions::new(endpoint, PASSWORD, prefix);
    options.interval = Duration::from_millis(1);
    options
}

/// Of a cluster every node is known, as to any client of a cluster.
fn writing(instance: &Instance, endpoint: &Endpoint, prefix: &str) -> Result<WriterOptions> {
    if !is_cluster(instance) {
        return Ok(precise(endpoint, prefix));
    }
    let (first, last) = instance.primary(0)?.first_range().context("the primary has no slots")?;
    let mut options = precise(endpoint, &format!("{{{}}}{prefix}", tag_in(first, last)));
    for node in &instance.nodes {
        options.endpoints.push(node.address()?);
    }
    Ok(options)
}
