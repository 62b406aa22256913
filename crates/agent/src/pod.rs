//! The agent as the first process of a pod: its API over TLS, its probes, its end.
//!
//! Agent and server die together here, so the agent ends by handing over and stopping its
//! server; and a kubelet that gets no answer to its probe is what the keeper is on one machine.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use larder_model::Millis;
use larder_model::agent::{AgentStatus, ClusterPeer, ClusterView, Role, ServerState};
use larder_model::kube::{VOLUME_FILE, VolumeIds};
use larder_model::local::AgentBoot;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::api::{self, ApiState};
use crate::boot::{Boot, read_json};
use crate::error::AgentError;
use crate::lease::{Endpoint, Lease};
use crate::peers::{Peers, Reach};
use crate::run::{End, Leave, Mode, live};
use crate::wire::InstanceKey;

/// A loop that has not beaten for this long is stuck. It beats before each thing that it waits for:
/// a question to the server, the lease or the route, one action of the election, one step of the
/// server's end. The longest of them is the end of a killed process, 2 s. A whole turn may take
/// longer: a take-over from a node that is silent, with a slow disk, about 5 s.
const STUCK: Millis = Millis(2_500);
/// kube-proxy rests for a second between two changes (`minSyncPeriod`), and the end of this pod
/// was one.
const SETTLE: Duration = Duration::from_millis(1_100);
/// A caller that has not shown the key by then does not have it.
const HANDSHAKE: Duration = Duration::from_secs(2);
/// More callers at a time than all agents of an instance and two control planes.
const CALLERS: usize = 256;

/// Where a pod's agent finds and keeps what it needs.
pub struct Pod {
    /// Mounted: `agent.json` and `secrets.json`.
    pub config: PathBuf,
    /// On the volume: everything that the agent remembers.
    pub state: PathBuf,
    pub lease: Box<dyn Lease>,
    pub endpoint: Box<dyn Endpoint>,
    /// Where the pod's worker is reached: what a cluster node with a node port announces.
    pub worker: Option<String>,
    /// Where the API listens, with TLS. Its port is the same for all nodes of the instance.
    pub api: SocketAddr,
    /// Where `/livez` and `/readyz` are answered, without TLS.
    pub probes: SocketAddr,
    /// How long a hand-over may take at the end, less than the pod's grace period.
    pub leave_within: Duration,
}

/// What the agent of the node will start from.
///
/// # Errors
/// When `agent.json` in `config` cannot be read.
pub fn read_boot(config: &Path) -> Result<AgentBoot, AgentError> {
    read_json(&config.join("agent.json"))
}

/// Runs the agent until SIGTERM; then hands over what it leads and stops its server. To be run
/// on a current-thread runtime.
///
/// # Errors
/// As [`crate::run()`].
pub async fn run_in_pod(pod: Pod) -> Result<(), AgentError> {
    let end = End::listen()?;
    std::fs::create_dir_all(&pod.state)
        .map_err(|source| AgentError::Read { path: pod.state.clone(), source })?;
    let mut boot = Boot::load_apart(&pod.config, &pod.state)?;
    boot.in_pod = true;
    boot.worker = pod.worker;
    let key = InstanceKey::derive(boot.secrets.of_agents());
    let listen = async |address: SocketAddr| {
        TcpListener::bind(address).await.map_err(|source| AgentError::Listen { address, source })
    };
    let (api, probes) = (listen(pod.api).await?, listen(pod.probes).await?);
    boot.volume_replaced = is_volume_replaced(&pod.config)?;
    let mode = Mode::new(&boot, pod.lease, pod.endpoint);
    let reach = Reach::Network { port: pod.api.port(), key: key.clone() };
    let open = |state: ApiState| {
        tokio::spawn(async move {
            tokio::join!(serve_api(api, key, state.clone()), serve_probes(probes, state));
        })
    };
    let leave = Leave { settle: SETTLE, within: pod.leave_within };
    live(boot, mode, Peers::new(reach), open, end, Some(leave)).await
}

/// Whether the node has had another volume before. A file that cannot be read says nothing: taken
/// for "no", an empty volume would look like a new node's.
fn is_volume_replaced(config: &Path) -> Result<bool, AgentError> {
    match read_json::<VolumeIds>(&config.join(VOLUME_FILE)) {
        Ok(ids) => Ok(ids.is_replaced()),
        // An older control plane has not written it.
        Err(AgentError::Read { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Serves the API to whoever has the instance's key.
async fn serve_api(listener: TcpListener, key: InstanceKey, state: ApiState) {
    let callers = Arc::new(Semaphore::new(CALLERS));
    let app = api::router(state);
    loop {
        let Ok(permit) = Arc::clone(&callers).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, or the caller is gone already.
                tracing::warn!(%error, "caller not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (key, app) = (key.clone(), app.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let _ = stream.set_nodelay(true);
            let stream = match tokio::time::timeout(HANDSHAKE, key.accept(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%error, "caller without the key"),
                Err(_) => return tracing::debug!("caller without a handshake"),
            };
            let served = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app))
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "connection ended");
            }
        });
    }
}

async fn serve_probes(listener: TcpListener, state: ApiState) {
    let app = Router::new()
        .route("/livez", get(live_probe))
        .route("/readyz", get(ready_probe))
        .with_state(state);
    if let Err(error) = axum::serve(listener, app).await {
        tracing::error!(%error, "probes ended");
    }
}

/// Whether the loop turns. A server that hangs is the loop's own business; a lease that cannot be
/// reached is no reason to die.
async fn live_probe(State(state): State<ApiState>) -> (StatusCode, String) {
    let still = state.beat.still();
    if still > STUCK {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("the loop has not gone on for {still}"));
    }
    (StatusCode::OK, "ok".to_owned())
}

async fn ready_probe(State(state): State<ApiState>) -> (StatusCode, String) {
    match not_ready(&state.status.borrow()) {
        None => (StatusCode::OK, "ok".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, why.to_owned()),
    }
}

/// Why clients should not come here.
fn not_ready(status: &AgentStatus) -> Option<&'static str> {
    if !matches!(status.server.state, ServerState::Serving | ServerState::Busy) {
        return Some("the server does not serve");
    }
    let Some(replication) = &status.replication else { return Some("the role is not known") };
    if let Some(cluster) = &status.cluster {
        let out_of_sync =
            replication.role == Role::Replica && (!replication.link_up || replication.syncing);
        return if out_of_sync {
            Some("the replica is not in sync")
        } else if !cluster.state_ok && is_cut_off(cluster) {
            Some("this node sees too few of the cluster's primaries")
        } else {
            None
        };
    }
    let leads =
        (status.lease.as_ref()).is_some_and(|lease| lease.holder.as_ref() == Some(&status.node));
    match replication.role {
        Role::Primary if leads => None,
        Role::Primary => Some("a primary without the lease"),
        Role::Replica if replication.link_up && !replication.syncing => None,
        Role::Replica => Some("the replica is not in sync"),
    }
}

/// No more than half of the shards are seen from here, as from the lesser part of a network that broke.
/// That a shard has no primary somewhere in the cluster is no reason to stay away from this node:
/// clients would then reach none at all.
fn is_cut_off(cluster: &ClusterView) -> bool {
    let primaries =
        || cluster.nodes.iter().filter(|n| n.role == Role::Primary && !n.slots.is_empty());
    let is_seen =
        |n: &&ClusterPeer| n.id == cluster.my_id || (n.linked && !n.failed && !n.suspected);
    primaries().filter(is_seen).count() * 2 <= primaries().count()
}

#[cfg(test)]
mod tests {
    use larder_model::agent::{ReplicationView, ServerStatus, VolumeState};
    use larder_model::{Address, InstanceId, NodeId, SlotRange, Timestamp};

    use super::*;

    fn status(role: Role, cluster: Option<ClusterView>) -> AgentStatus {
        AgentStatus {
            node: NodeId::new("n-1").expect("valid"),
            instance: InstanceId::new("i-1").expect("valid"),
            agent_run: "r".to_owned(),
            version: 1,
            generation: 1,
            at: Timestamp(0),
            server: ServerStatus {
                state: ServerState::Serving,
                unanswering_since: None,
                pid: Some(7),
                run_id: None,
                engine_version: None,
                started_at: None,
                used_memory: None,
                maxmemory: None,
                users_revision: None,
                parameters: None,
                connected_clients: None,
            },
            volume: VolumeState::Data,
            replication: Some(ReplicationView {
                role,
                primary: None,
                link_up: true,
                syncing: false,
                replid: "r".to_owned(),
                offset: 1,
                replicas: Vec::new(),
            }),
            cluster,
            behind: false,
            slot_move: None,
            left_upstream: None,
            lease: None,
            problem: None,
            events: Vec::new(),
        }
    }

    /// Three shards as the primary of the first one sees them; `seen`: the other primaries.
    fn cluster(state_ok: bool, seen: [bool; 2]) -> ClusterView {
        let primary = |index: u16, linked: bool| ClusterPeer {
            id: index.to_string(),
            address: Address::new("10.0.0.1", 7000 + index),
            role: Role::Primary,
            primary: None,
            failed: !linked,
            suspected: false,
            handshake: false,
            linked,
            config_epoch: 1,
            slots: SlotRange::new(index * 100, index * 100 + 99).into_iter().collect(),
            open: Vec::new(),
        };
        ClusterView {
            my_id: "0".to_owned(),
            state_ok,
            current_epoch: 1,
            nodes: vec![primary(0, true), primary(1, seen[0]), primary(2, seen[1])],
        }
    }

    #[test]
    fn a_shard_without_a_primary_keeps_no_other_node_of_the_cluster_from_its_clients() {
        let ready = |state_ok, seen| {
            not_ready(&status(Role::Primary, Some(cluster(state_ok, seen)))).is_none()
        };
        assert!(ready(true, [true, true]));
        assert!(ready(false, [true, false]), "one shard has no primary");
        assert!(!ready(false, [false, false]), "this node is cut off");
        let mut unborn = cluster(false, [true, true]);
        unborn
            .nodes
            .iter_mut()
            .for_each(|node| node.slots = SlotRange::new(1, 0).into_iter().collect());
        assert!(not_ready(&status(Role::Primary, Some(unborn))).is_some(), "nobody has slots yet");
    }

    #[test]
    fn a_replica_of_a_cluster_is_ready_while_it_is_in_sync() {
        let mut replica = status(Role::Replica, Some(cluster(true, [true, true])));
        assert_eq!(not_ready(&replica), None);
        let link = |status: &mut AgentStatus, up, syncing| {
            let view = status.replication.as_mut().expect("set");
            (view.link_up, view.syncing) = (up, syncing);
        };
        link(&mut replica, true, true);
        assert!(not_ready(&replica).is_some());
        link(&mut replica, false, false);
        assert!(not_ready(&replica).is_some());
    }

    #[test]
    fn a_leased_node_is_ready_as_the_holder_or_in_sync() {
        let mut primary = status(Role::Primary, None);
        assert_eq!(not_ready(&primary), Some("a primary without the lease"));
        let holder = Some(primary.node.clone());
        let lease = larder_model::agent::LeaseSummary { epoch: 1, holder, failover_on_hold: false };
        primary.lease = Some(lease);
        assert_eq!(not_ready(&primary), None);
        primary.server.state = ServerState::Loading;
        assert!(not_ready(&primary).is_some());
        assert_eq!(not_ready(&status(Role::Replica, None)), None);
    }

    #[test]
    fn a_file_of_volumes_that_cannot_be_read_says_nothing() {
        let folder = tempfile::tempdir().expect("temp dir");
        let file = folder.path().join(VOLUME_FILE);
        let replaced = || is_volume_replaced(folder.path());
        assert!(matches!(replaced(), Ok(false)), "an older control plane");
        std::fs::write(&file, br#"{"first":"u-1","now":""}"#).expect("written");
        assert!(matches!(replaced(), Ok(true)));
        std::fs::write(&file, b"{").expect("written");
        assert!(matches!(replaced(), Err(AgentError::Malformed { .. })));
        std::fs::remove_file(&file).expect("removed");
        std::fs::create_dir(&file).expect("made");
        assert!(matches!(replaced(), Err(AgentError::Read { .. })));
    }
}
