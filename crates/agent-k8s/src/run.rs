//! `larder agent --pod`: finds what the pod offers and runs the agent with it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use kube::{Client, Config};
use larder_agent::{Endpoint, Lease, Pod, read_boot, run_in_pod};
use larder_model::NodeMode;
use larder_model::kube::{
    AGENT_PORT, CONFIG_DIR, ENV_POD_IP, ENV_WORKER_IP, PROBE_PORT, STATE_DIR,
};

use crate::endpoint::KubeEndpoint;
use crate::error::PodError;
use crate::lease::KubeLease;
use crate::none::Nowhere;

/// Less than the pod's grace period by what a server needs to end.
const LEAVE_WITHIN: Duration = Duration::from_secs(10);

/// Runs the agent of this pod until SIGTERM; then it hands over and stops its server. To be run
/// on a current-thread runtime.
///
/// # Errors
/// [`PodError`] when the agent cannot begin.
pub async fn run() -> Result<(), PodError> {
    let config = Path::new(CONFIG_DIR);
    let node = read_boot(config)?.config;
    let (lease, endpoint): (Box<dyn Lease>, Box<dyn Endpoint>) = match node.mode {
        // Cluster mode has no lease, and its pods no right to speak to the API server.
        NodeMode::Clustered => (Box::new(Nowhere), Box::new(Nowhere)),
        NodeMode::Leased => {
            let ip = own_ip()?;
            let config = Config::incluster()?;
            let namespace = config.default_namespace.clone();
            let client =
                Client::try_from(config).map_err(|error| PodError::Client(Box::new(error)))?;
            let ttl = node.election.lease_ttl;
            let lease = KubeLease::new(client.clone(), &namespace, &node.instance, ttl);
            let reads = node.has_read_endpoint;
            let endpoint =
                KubeEndpoint::new(client, &namespace, node.instance, node.node, ip, reads);
            (Box::new(lease), Box::new(endpoint))
        }
    };
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    // The agent's whole life is one future: on the heap.
    let life = run_in_pod(Pod {
        config: config.to_owned(),
        state: STATE_DIR.into(),
        lease,
        endpoint,
        worker: std::env::var(ENV_WORKER_IP).ok().filter(|text| !text.is_empty()),
        api: SocketAddr::new(any, AGENT_PORT),
        probes: SocketAddr::new(any, PROBE_PORT),
        leave_within: LEAVE_WITHIN,
    });
    Box::pin(life).await?;
    Ok(())
}

fn own_ip() -> Result<IpAddr, PodError> {
    let text = std::env::var(ENV_POD_IP).ok();
    text.and_then(|text| text.parse().ok()).ok_or(PodError::Environment { name: ENV_POD_IP })
}
