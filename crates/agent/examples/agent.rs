//! Runs one agent from its node folder: `agent DIR`. What `larder agent --dir DIR` does, for tests
//! of this crate alone.
//!
//! `agent DIR API PROBES` runs it as the first process of a pod would, with lease and route in
//! folders that are as slow as `DIR/slow-ms` says and tell of no change, like an API server whose
//! watch is broken; `DIR/lease-reads` grows by a byte with each read of the lease.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use larder_agent::{
    Endpoint, Lease, LeaseError, LinkEndpoint, LinkLease, Pod, read_boot, run, run_in_pod,
};
use larder_model::lease::{LeaseRecord, Route};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// A lease or a route, behind what slows it down.
struct Behind<T> {
    kept: T,
    dir: PathBuf,
}

impl<T> Behind<T> {
    async fn wait(&self) {
        let text = fs::read_to_string(self.dir.join("slow-ms")).unwrap_or_default();
        tokio::time::sleep(Duration::from_millis(text.trim().parse().unwrap_or(0))).await;
    }
}

#[async_trait]
impl Lease for Behind<LinkLease> {
    async fn read(&mut self) -> Result<Option<(u64, LeaseRecord)>, LeaseError> {
        let path = self.dir.join("lease-reads");
        let noted = OpenOptions::new().create(true).append(true).open(path);
        let _ = noted.and_then(|mut file| file.write_all(b"."));
        self.wait().await;
        self.kept.read().await
    }

    async fn write(&mut self, after: Option<u64>, record: &LeaseRecord) -> Result<u64, LeaseError> {
        self.wait().await;
        self.kept.write(after, record).await
    }

    async fn renew(&mut self, after: u64) -> Result<u64, LeaseError> {
        self.wait().await;
        self.kept.renew(after).await
    }

    async fn changed(&mut self) {
        std::future::pending().await
    }
}

#[async_trait]
impl Endpoint for Behind<LinkEndpoint> {
    async fn read(&mut self) -> Result<Option<Route>, LeaseError> {
        self.wait().await;
        self.kept.read().await
    }

    async fn publish(&mut self, route: &Route) -> Result<Option<Route>, LeaseError> {
        self.wait().await;
        self.kept.publish(route).await
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let levels: Targets = std::env::var("RUST_LOG").unwrap_or_default().parse()?;
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(std::io::stderr);
    tracing_subscriber::registry().with(levels).with(lines).init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match args.as_slice() {
        [dir] => runtime.block_on(run(Path::new(dir)))?,
        [dir, api, probes] => {
            let dir = PathBuf::from(dir);
            let boot = read_boot(&dir)?;
            let lease = LinkLease::open(&boot.lease_dir)?;
            let endpoint = LinkEndpoint::open(&boot.route_dir)?;
            let pod = Pod {
                config: dir.clone(),
                state: dir.clone(),
                lease: Box::new(Behind { kept: lease, dir: dir.clone() }),
                endpoint: Box::new(Behind { kept: endpoint, dir }),
                worker: None,
                api: api.parse()?,
                probes: probes.parse()?,
                leave_within: Duration::from_secs(10),
            };
            runtime.block_on(run_in_pod(pod))?;
        }
        _ => return Err("usage: agent DIR [API PROBES]".into()),
    }
    Ok(())
}
