//! Measures the figures of `docs/measurements.md` on a given binary and prints them as Markdown.
//!
//! `figures BINARY [--runs N] [--idle-seconds N] [--only start,gaps,idle] [--gaps TEXT] [--write]`;
//! `--gaps` measures those whose name has the text, `--write` puts the figures into the page. Run it on a quiet machine with a release binary: `make bench`. With the variables that
//! `larder_testkit::kubernetes` names, and in a test bed's network, `start` and `gaps` are those of
//! instances in pods: `make bench-kubernetes`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool for the terminal")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use larder_e2e::world::{connect, settled};
use larder_e2e::{Fault, cluster_is_whole, replication_is_whole};
use larder_testkit::kubernetes::pod_of;
use larder_testkit::larder::ADMIN_PASSWORD;
use larder_testkit::process::{self, Kind};
use larder_testkit::resp::{slot, tag_in};
use larder_testkit::{
    Connection, Endpoint, Instance, Larder, LarderOptions, PASSWORD, PrimaryWatch, Writer,
    WriterOptions, eventually,
};
use larder_testkit::{http, kubernetes, logs};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);
const BEGIN: &str = "<!-- figures: written by tests/e2e/src/bin/figures.rs --write -->";
const END: &str = "<!-- end of figures -->";

struct Options {
    binary: PathBuf,
    runs: usize,
    idle: Duration,
    only: Vec<String>,
    gaps: String,
    write: bool,
}

fn options() -> Result<Options> {
    let mut options = Options {
        binary: PathBuf::new(),
        runs: 20,
        idle: Duration::from_secs(60),
        only: vec!["start".into(), "gaps".into(), "idle".into()],
        gaps: String::new(),
        write: false,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--runs" => options.runs = value()?.parse()?,
            "--idle-seconds" => options.idle = Duration::from_secs(value()?.parse()?),
            "--gaps" => options.gaps = value()?,
            "--only" => options.only = value()?.split(',').map(str::to_owned).collect(),
            "--write" => options.write = true,
            path => options.binary = std::path::absolute(path)?,
        }
    }
    ensure!(
        options.binary.is_file(),
        "usage: figures BINARY [--runs N] [--only start,gaps,idle] [--gaps TEXT] [--write]"
    );
    Ok(options)
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = options()?;
    let wanted = |part: &str| options.only.iter().any(|o| o == part);
    let mut rows: Vec<[String; 5]> = Vec::new();
    if wanted("start") {
        rows.extend(starts(&options).await.context("measuring starts")?);
    }
    if wanted("gaps") {
        rows.extend(read_write_gaps(&options).await.context("measuring gaps of read-write")?);
        rows.extend(cluster_gaps(&options).await.context("measuring gaps of clusters")?);
    }
    let mut text = header(&options)?;
    if !rows.is_empty() {
        text += "\n| figure | runs | median | worst | asked for |\n| --- | ---: | ---: | ---: | --- |\n";
        for row in &rows {
            writeln!(text, "| {} |", row.join(" | "))?;
        }
    }
    if wanted("idle") {
        text += &idle(&options).await.context("measuring idle cost")?;
    }
    println!("{text}");
    if options.write {
        write(&text)?;
    }
    Ok(())
}

async fn larder(options: &Options) -> Result<Larder> {
    // More failovers in a short time than a real instance may have.
    let config = "[policy.election]\nmax_failovers = 1000\n".to_owned();
    let binary = Some(options.binary.clone());
    Larder::start(LarderOptions {
        // Ports of deleted instances rest for a while.
        port_blocks: Some(8),
        binary,
        config,
        ..LarderOptions::default()
    })
    .await
}

fn header(options: &Options) -> Result<String> {
    let said = |program: &str, args: &[&str]| -> Result<String> {
        let output = Command::new(program).args(args).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|l| l.starts_with(name))?;
        line.split_once(':').map(|(_, value)| value.trim().to_owned())
    };
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = field(&memory, "MemTotal").unwrap_or_default();
    let gib = memory.split(' ').next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or_default()
        / 1048576.0;
    let threads = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    Ok(format!(
        "Measured on {} with {} ({} × {}, {gib:.0} GiB, Linux {}), engine redis-7.0.\n",
        said("date", &["-u", "+%F"])?,
        said(&options.binary.to_string_lossy(), &["version"])?.lines().next().unwrap_or("larder"),
        threads,
        field(&cpu, "model name").unwrap_or_else(|| "CPU".into()),
        said("uname", &["-r"])?,
    ))
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.0} ms", duration.as_secs_f64() * 1000.0)
}

fn row(name: &str, mut times: Vec<Duration>, asked: &str) -> [String; 5] {
    times.sort();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    let worst = times.last().copied().unwrap_or_default();
    let row = [
        name.to_owned(),
        times.len().to_string(),
        milliseconds(median),
        milliseconds(worst),
        asked.to_owned(),
    ];
    eprintln!("{}", row.join("  "));
    row
}

/// A session for requests past the command line, whose own start would be measured too.
struct Api {
    port: u16,
    token: String,
}

impl Api {
    async fn new(larder: &Larder) -> Result<Self> {
        let body = json!({ "user": "admin", "password": ADMIN_PASSWORD }).to_string();
        let answer =
            http::request(larder.port(), "POST", "/api/v1/sessions", None, Some(&body)).await?;
        let token = answer.json()?["token"].as_str().context("no token")?.to_owned();
        Ok(Self { port: larder.port(), token })
    }

    async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value> {
        let body = body.map(|b| b.to_string());
        let path = format!("/api/v1/{path}");
        let answer =
            http::request(self.port, method, &path, Some(&self.token), body.as_deref()).await?;
        ensure!(answer.status < 300, "{method} {path}: {answer:?}");
        answer.json()
    }

    async fn instance(&self, name: &str) -> Result<Instance> {
        Ok(serde_json::from_value(self.call("GET", &format!("instances/{name}"), None).await?)?)
    }
}

async fn writable(endpoint: &Endpoint, key: &str) -> bool {
    let patience = Duration::from_millis(200);
    let mut endpoint = endpoint.clone();
    for _ in 0..2 {
        let Ok(mut connection) = Connection::open(&endpoint, Some(PASSWORD), patience).await else {
            return false;
        };
        let Ok(reply) = connection.call(&["SET", key, "1"]).await else { return false };
        if reply.is_ok() {
            return true;
        }
        let text = reply.text();
        let Some((host, port)) = text
            .strip_prefix("MOVED ")
            .and_then(|rest| rest.split(' ').nth(1))
            .and_then(|target| target.rsplit_once(':'))
        else {
            return false;
        };
        let Ok(port) = port.parse() else { return false };
        endpoint = Endpoint { host: host.to_owned(), port };
    }
    false
}

/// From the request to the first write that the endpoint takes.
async fn starts(options: &Options) -> Result<Vec<[String; 5]>> {
    let larder = larder(options).await?;
    let api = Api::new(&larder).await?;
    let mut rows = Vec::new();
    let in_pods = larder.namespace().is_some();
    let cases = [
        (
            "standalone: request to first write",
            "standalone",
            "write",
            options.runs,
            if in_pods { "p50 ≤ 10 s" } else { "p50 ≤ 1 s" },
        ),
        (
            "cluster 3 × 2: request to writable",
            "cluster",
            "discovery",
            options.runs.div_ceil(2),
            if in_pods { "p50 ≤ 20 s" } else { "p50 ≤ 5 s" },
        ),
    ];
    for (name, architecture, kind, runs, asked) in cases {
        let mut times = Vec::new();
        for run in 0..runs {
            let id = format!("{architecture}-{run}");
            let began = Instant::now();
            let mut body = json!({
                "name": id, "architecture": architecture, "engine": "redis-7.0", "password": PASSWORD,
            });
            if larder.namespace().is_some() {
                body["container_cluster"] = json!(kubernetes::BOUND);
                body["memory_bytes"] = json!(128 << 20);
            }
            api.call("POST", "instances", Some(body)).await?;
            loop {
                ensure!(began.elapsed() < PATIENCE, "{id} does not start");
                let instance = api.instance(&id).await?;
                if let Some(endpoint) = instance.endpoints.get(kind) {
                    let done = if architecture == "cluster" {
                        // Writable on every shard, and every node agrees.
                        instance.nodes.len() == 6
                            && cluster_is_whole(&instance, Duration::ZERO).await.is_ok()
                            && writable(endpoint, &tag_in(0, 5000)).await
                            && writable(endpoint, &tag_in(6000, 10000)).await
                            && writable(endpoint, &tag_in(11000, 16383)).await
                    } else {
                        writable(endpoint, "k").await
                    };
                    if done {
                        break;
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            times.push(began.elapsed());
            larder.wait_state(&id, "running", PATIENCE).await?;
            larder.cli(&["instance", "delete", &id, "--permanent", "--yes", "--wait"]).await?;
        }
        rows.push(row(name, times, asked));
    }
    larder.finish().await?;
    Ok(rows)
}

fn precise(endpoint: &Endpoint, prefix: &str) -> WriterOptions {
    let mut options = WriterOptions::new(endpoint, PASSWORD, prefix);
    options.interval = Duration::from_millis(1);
    options
}

/// What one fault cost a client.
struct Gap {
    whole: Duration,
    /// At the servers themselves, past the endpoint; a client of a cluster has nothing else.
    at_servers: Option<Duration>,
    lost: usize,
}

/// One gap: a client on the tested shard, another on the control, one fault, both compared.
async fn one_gap(
    larder: &Larder,
    name: &str,
    fault: Fault,
    run: usize,
    control: &Endpoint,
) -> Result<Gap> {
    let mut instance = larder.wait_state(name, "running", PATIENCE).await?;
    let clustered = instance.architecture == "cluster";
    if !clustered {
        // Each fault but a stopped agent has made another node primary: what shows that one is news.
        instance = if fault == Fault::AgentStopped {
            settled(larder, &instance, PATIENCE).await?
        } else {
            let primary = replication_is_whole(&instance, PATIENCE).await?;
            let leads = |i: &Instance| {
                i.state == "running" && i.primary(0).is_ok_and(|now| now.id == primary)
            };
            larder.wait_for(name, "running under its primary", PATIENCE, leads).await?
        };
    }
    let (endpoint, prefix) = if clustered {
        let (first, last) = instance.primary(0)?.first_range().context("no slots")?;
        let tag = tag_in(first, last);
        ensure!((first..=last).contains(&slot(&tag)));
        (instance.endpoint("discovery")?.clone(), format!("{{{tag}}}{fault:?}{run}"))
    } else {
        (instance.endpoint("write")?.clone(), format!("{fault:?}{run}"))
    };
    let mut writing = precise(&endpoint, &prefix);
    if clustered {
        for node in &instance.nodes {
            writing.endpoints.push(node.address()?);
        }
    }
    let writer = Writer::started(writing).await?;
    let control = Writer::started(precise(control, &prefix)).await?;
    // A stretch of quiet before, to show the control's own worst. In pods also so long that
    // kube-proxy rests: it takes up one change in a second, and the run before was several.
    let quiet = if larder.namespace().is_some() { 4 } else { 1 };
    tokio::time::sleep(Duration::from_secs(quiet)).await;
    let watch = if clustered { None } else { Some(PrimaryWatch::start(&instance, PASSWORD)?) };
    let primary = instance.primary(0)?.id.clone();
    fault.strike(larder, &instance, 0).await?;
    let written = writer.next_ok(PATIENCE).await;
    fault.mend(larder, &instance, &primary).await?;
    written?;
    let at_servers = watch.map(|watch| watch.worst_gap());
    if clustered {
        cluster_is_whole(&instance, PATIENCE).await?;
    } else {
        replication_is_whole(&instance, PATIENCE).await?;
    }
    larder.wait_state(name, "running", PATIENCE).await?;
    writer.next_ok(PATIENCE).await?;
    let (history, control) = (writer.stop().await?, control.stop().await?);
    // The writer knows every node; where all pods were gone the endpoint may come back after them.
    let reached = async || Ok(connect(&endpoint).await.map(Some)?);
    eventually("the endpoint answers", PATIENCE, reached).await?;
    let lost = history.lost(&endpoint).await?.len();
    if let (Fault::ServerAndAgentKilled, Some(pods)) = (fault, larder.namespace()) {
        // Kubernetes waits twice as long before each start of a container that ends again and again;
        // that of a new pod has no past.
        pods.kubectl(&["delete", "pod", &pod_of(&primary)]).await?;
    }
    // The control may have been on the same worker.
    let whole = match fault {
        Fault::WorkerLost | Fault::AllPodsGone => history.worst_gap().0,
        _ => history.gap(&control),
    };
    eprintln!(
        "  {fault:?} {run}: gap {}, at the servers {}, lost {lost} of {}",
        milliseconds(whole),
        at_servers.map_or("the same".to_owned(), milliseconds),
        history.acked().count()
    );
    Ok(Gap { whole, at_servers, lost })
}

async fn gaps(
    options: &Options,
    larder: &Larder,
    (name, architecture): (&str, &str),
    cases: &[(Fault, &str, &str)],
) -> Result<Vec<[String; 5]>> {
    let mut cases = cases.iter().filter(|(_, title, _)| title.contains(&options.gaps)).peekable();
    if cases.peek().is_none() {
        return Ok(Vec::new());
    }
    larder.create(name, &["--architecture", architecture]).await?;
    let control = larder.create("control", &["--architecture", "standalone"]).await?;
    let control = control.endpoint("write")?.clone();
    let mut rows = Vec::new();
    for (fault, title, asked) in cases {
        let mut gaps = Vec::new();
        for run in 0..options.runs {
            gaps.push(one_gap(larder, name, *fault, run, &control).await?);
        }
        let lost: usize = gaps.iter().map(|gap| gap.lost).sum();
        let whole = gaps.iter().map(|gap| gap.whole).collect();
        rows.push(row(&format!("{title} (acknowledged writes lost: {lost})"), whole, asked));
        let at_servers: Vec<Duration> = gaps.iter().filter_map(|gap| gap.at_servers).collect();
        // On one machine the relay costs next to nothing; on Kubernetes kube-proxy has its part.
        if larder.namespace().is_some() && !at_servers.is_empty() {
            rows.push(row(&format!("{title}: of it at the servers"), at_servers, ""));
        }
    }
    Ok(rows)
}

async fn read_write_gaps(options: &Options) -> Result<Vec<[String; 5]>> {
    let larder = larder(options).await?;
    larder.expect_faults();
    let in_pods = [
        (Fault::Planned, "read-write gap: planned failover", "median ≤ 0.5 s, worst ≤ 2 s, lost 0"),
        (Fault::PodDeleted, "read-write gap: pod deleted", "median ≤ 0.5 s, worst ≤ 2 s, lost 0"),
        (Fault::ServerKilled, "read-write gap: primary's server killed", "≤ 3 s"),
        (Fault::ServerAndAgentKilled, "read-write gap: container killed", "≤ 6 s"),
        (Fault::WorkerLost, "read-write gap: worker lost", "≤ 8 s"),
    ];
    let cases = [
        (Fault::Planned, "read-write gap: planned failover", "worst ≤ 300 ms, lost 0"),
        (Fault::ServerKilled, "read-write gap: primary's server killed", "≤ 2 s"),
        (Fault::ServerAndAgentKilled, "read-write gap: server and agent killed", "≤ 6 s"),
        (Fault::AgentStopped, "read-write gap: primary's agent stopped", "≤ 8 s"),
    ];
    let cases = if larder.namespace().is_some() { &in_pods[..] } else { &cases[..] };
    let rows = gaps(options, &larder, ("rw", "read-write"), cases).await?;
    larder.finish().await?;
    Ok(rows)
}

async fn cluster_gaps(options: &Options) -> Result<Vec<[String; 5]>> {
    let larder = larder(options).await?;
    larder.expect_faults();
    let in_pods = [
        (Fault::Planned, "cluster gap: planned failover", "median ≤ 0.5 s, worst ≤ 2 s, lost 0"),
        (Fault::PodDeleted, "cluster gap: pod deleted", "median ≤ 0.5 s, worst ≤ 2 s, lost 0"),
        (Fault::ServerKilled, "cluster gap: primary's server killed", "≤ 3 s"),
        (Fault::ServerAndAgentKilled, "cluster gap: container killed", "≤ 6 s"),
        (Fault::WorkerLost, "cluster gap: worker lost", "≤ node timeout (5 s) + 5 s"),
        (Fault::AllPodsGone, "cluster gap: all six pods deleted with grace 0", "≤ 60 s"),
    ];
    let cases = [
        (Fault::ServerKilled, "cluster gap: primary's server killed, agent alive", "≤ 2 s"),
        (
            Fault::ServerAndAgentKilled,
            "cluster gap: server and agent killed",
            "≤ node timeout (5 s) + 5 s",
        ),
    ];
    let cases = if larder.namespace().is_some() { &in_pods[..] } else { &cases[..] };
    let rows = gaps(options, &larder, ("shards", "cluster"), cases).await?;
    larder.finish().await?;
    Ok(rows)
}

/// What 50 idle instances cost: 40 standalone, 8 read-write, 2 clusters of 3 × 2, so 68 nodes.
async fn idle(options: &Options) -> Result<String> {
    let larder = Larder::start(LarderOptions {
        binary: Some(options.binary.clone()),
        // Ports of deleted instances rest for a while.
        port_blocks: Some(8),
        ..LarderOptions::default()
    })
    .await?;
    // Where the system's `fs.inotify.max_user_instances` is used up, processes poll. That is part
    // of the cost, and said here.
    larder.expect_log("cannot be watched");
    for n in 0..50 {
        let architecture = match n {
            0..40 => "standalone",
            40..48 => "read-write",
            _ => "cluster",
        };
        larder.create(&format!("idle-{n}"), &["--architecture", architecture]).await?;
    }
    // Creation is work; what follows is idleness.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let ours =
        || larder.processes().into_iter().filter(|p| !matches!(p.kind, Kind::Other | Kind::Saver));
    let before: BTreeMap<u32, (Kind, u64)> =
        ours().filter_map(|p| Some((p.pid, (p.kind, process::cpu_ticks(p.pid)?)))).collect();
    let began = Instant::now();
    tokio::time::sleep(options.idle).await;
    let seconds = began.elapsed().as_secs_f64();
    let mut sums: BTreeMap<Kind, (usize, u64, u64, u64, u64)> = BTreeMap::new();
    for (pid, (kind, ticks)) in before {
        let after = process::cpu_ticks(pid).with_context(|| format!("{kind:?} {pid} ended"))?;
        let (rss, pss) = process::memory(pid).unwrap_or_default();
        let sum = sums.entry(kind).or_default();
        *sum = (sum.0 + 1, sum.1 + after - ticks, sum.2 + rss, sum.3.max(rss), sum.4 + pss);
    }
    let mut text = format!(
        "\nIdle cost of 50 instances (40 standalone, 8 read-write, 2 clusters of 3 × 2: 68 nodes) \
         over {seconds:.0} s; 100 % is one core:\n\n\
         | processes | count | CPU in all | RSS each (mean) | RSS (worst) | PSS each (mean) |\n\
         | --- | ---: | ---: | ---: | ---: | ---: |\n"
    );
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / 1048576.0);
    for (kind, (count, ticks, rss, worst, pss)) in &sums {
        let name = match kind {
            Kind::Keeper => "keeper",
            Kind::Serve => "serve",
            Kind::Agent => "agents (asked for: RSS ≤ 12 MiB each)",
            Kind::Relay => "relays",
            Kind::Server => "redis-server, for comparison",
            Kind::Saver | Kind::Other => continue,
        };
        let each = u64::try_from(*count)?.max(1);
        let cpu = *ticks as f64 / 100.0 / seconds * 100.0;
        writeln!(
            text,
            "| {name} | {count} | {cpu:.1} % | {} | {} | {} |",
            mib(rss / each),
            mib(*worst),
            mib(pss / each)
        )?;
    }
    let limit = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_instances");
    let blind = logs::files_below(larder.data())
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .filter(|log| log.contains("cannot be watched"))
        .count();
    writeln!(
        text,
        "\n{blind} processes had to poll for changes (`fs.inotify.max_user_instances` is {}).",
        limit.unwrap_or_default().trim()
    )?;
    larder.finish().await?;
    Ok(text)
}

fn write(text: &str) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/measurements.md");
    let page =
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let (head, rest) = page.split_once(BEGIN).context("the page has no place for figures")?;
    let (_, tail) = rest.split_once(END).context("the place for figures does not end")?;
    std::fs::write(&path, format!("{head}{BEGIN}\n\n{}\n{END}{tail}", text.trim_end()))?;
    Ok(())
}
