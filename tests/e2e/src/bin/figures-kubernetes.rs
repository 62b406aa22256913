//! Measures what many instances on a bound Kubernetes cluster cost `serve` and the API server at rest.
//!
//! `figures-kubernetes BINARY [--instances N] [--seconds S] [--running]` on the test bed of
//! `LARDER_TEST_KUBECONFIG` and `LARDER_TEST_BED` (docs/testbed.md). Without `--running` the volumes
//! of the instances are of a class that never binds: every object is there, and no pod runs, so that
//! two hundred fit on any machine. With it they run, with the image of `LARDER_TEST_IMAGE`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool for the terminal")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use larder_testkit::kubernetes::{self, kubectl};
use larder_testkit::{Larder, LarderOptions, PASSWORD, process};

const NAMESPACE: &str = "figures";
/// A class that nobody makes volumes of: pods with it are never scheduled.
const NEVER: &str = r#"
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: { name: never }
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: Immediate
"#;
/// A minute without a write of `serve` is rest.
const REST: Duration = Duration::from_secs(60);
const SETTLED: Duration = Duration::from_secs(1_200);
/// Of `/proc/PID/stat` (proc(5)); Linux says 100 to programs everywhere.
const TICKS_PER_SECOND: f64 = 100.0;

struct Options {
    binary: PathBuf,
    instances: u32,
    time: Duration,
    running: bool,
}

fn options() -> Result<Options> {
    let mut options = Options {
        binary: PathBuf::new(),
        instances: 200,
        time: Duration::from_secs(120),
        running: false,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--instances" => options.instances = value()?.parse()?,
            "--seconds" => options.time = Duration::from_secs(value()?.parse()?),
            "--running" => options.running = true,
            path => options.binary = std::path::absolute(path)?,
        }
    }
    ensure!(
        options.binary.is_file(),
        "usage: figures-kubernetes BINARY [--instances N] [--seconds S] [--running]"
    );
    Ok(options)
}

type Requests = BTreeMap<String, u64>;

async fn requests(larder: &Larder) -> Result<Requests> {
    let cluster = larder.json(&["container-cluster", "get", "east"]).await?;
    Ok(serde_json::from_value(cluster["requests"].clone())?)
}

/// What was asked between the two.
fn between(before: &Requests, after: &Requests) -> Requests {
    after
        .iter()
        .map(|(kind, count)| (kind.clone(), count - before.get(kind).copied().unwrap_or(0)))
        .filter(|(_, count)| *count > 0)
        .collect()
}

fn writes(requests: &Requests) -> u64 {
    let of = |verb: &&str| ["create", "update", "patch", "delete"].contains(verb);
    let verb = |kind: &String| kind.split(' ').next().map(|verb| of(&verb)).unwrap_or(false);
    requests.iter().filter(|(kind, _)| verb(kind)).map(|(_, count)| count).sum()
}

/// Waits until nothing has been written for a while.
async fn rest(larder: &Larder) -> Result<()> {
    let deadline = Instant::now() + SETTLED;
    let mut since = Instant::now();
    let mut before = requests(larder).await?;
    while since.elapsed() < REST {
        ensure!(Instant::now() < deadline, "there is no rest");
        tokio::time::sleep(Duration::from_secs(3)).await;
        let now = requests(larder).await?;
        if writes(&between(&before, &now)) > 0 {
            since = Instant::now();
        }
        before = now;
    }
    Ok(())
}

async fn create(larder: &Larder, options: &Options) -> Result<()> {
    let class = if options.running { "standard" } else { "never" };
    for number in 0..options.instances {
        let name = format!("one-{number}");
        let args = [
            "instance",
            "create",
            &name,
            "--engine",
            "redis-7.0",
            "--architecture",
            "standalone",
            "--container-cluster",
            "east",
            "--storage-class",
            class,
            "--password-stdin",
        ];
        let output = larder.cli_with_input(&args, &format!("{PASSWORD}\n")).await?;
        ensure!(output.code == 0, "{name}: {output:?}");
    }
    if options.running {
        for number in 0..options.instances {
            larder.wait_state(&format!("one-{number}"), "running", SETTLED).await?;
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = options()?;
    let class = tempfile::NamedTempFile::new()?;
    std::fs::write(&class, NEVER)?;
    let path = class.path().to_str().context("a path that is no text")?;
    kubectl(&["apply", "--filename", path]).await?;
    let binary = Some(options.binary.clone());
    let larder = Larder::start(LarderOptions { binary, ..LarderOptions::default() }).await?;
    kubernetes::bind(&larder, NAMESPACE).await?;
    let measured = measure(&larder, &options).await;
    if let Err(error) = larder.finish().await {
        eprintln!("{error:#}");
    }
    kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"]).await?;
    kubectl(&["delete", "storageclass", "never"]).await?;
    println!("{}", measured?);
    Ok(())
}

async fn measure(larder: &Larder, options: &Options) -> Result<String> {
    let begin = Instant::now();
    let empty = requests(larder).await?;
    create(larder, options).await?;
    rest(larder).await?;
    let made = begin.elapsed().saturating_sub(REST);
    let pid = larder.serve_pid()?;
    let (before, ticks) = (requests(larder).await?, process::cpu_ticks(pid));
    let creation = between(&empty, &before);
    let at = Instant::now();
    tokio::time::sleep(options.time).await;
    let (after, ticks_after) = (requests(larder).await?, process::cpu_ticks(pid));
    let minutes = at.elapsed().as_secs_f64() / 60.0;
    let (rss, pss) = process::memory(pid).context("serve has no memory")?;
    let all = between(&before, &after);
    let total: u64 = all.values().sum();
    let count = f64::from(options.instances);
    let used = ticks_after.zip(ticks).map_or(0, |(after, before)| after - before);
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let (total, used, rss, pss, created) = (
        total as f64,
        used as f64,
        rss as f64 / 1_048_576.0,
        pss as f64 / 1_048_576.0,
        creation.values().sum::<u64>() as f64,
    );
    let kinds: Vec<String> = (all.iter()).map(|(kind, count)| format!("{kind} {count}")).collect();
    let state = if options.running { "running" } else { "every object made, no pod scheduled" };
    Ok(format!(
        "{} standalone instances, {state}; at rest for {:.0} s, made within {:.0} s:\n\n\
         | figure | value |\n| --- | ---: |\n\
         | requests of the API server per instance and minute | {:.3} |\n\
         | requests in all per minute | {:.1} |\n\
         | resident memory of `serve` | {rss:.1} MiB |\n\
         | PSS of `serve` | {pss:.1} MiB |\n\
         | CPU of `serve`, of one core | {:.1} % |\n\
         | requests per creation | {:.1} |\n\n\
         What was asked: {}\n",
        options.instances,
        minutes * 60.0,
        made.as_secs_f64(),
        total / minutes / count,
        total / minutes,
        used / TICKS_PER_SECOND / (minutes * 60.0) * 100.0,
        created / count,
        kinds.join(", "),
    ))
}
