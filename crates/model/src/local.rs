//! The files that hold one machine together: what `serve` writes and agents, relays and keeper
//! read. JSON, written whole and renamed into place. See `docs/design/0002-one-machine.md`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::account::Account;
use crate::address::Address;
use crate::agent::{Member, NodeConfig};
use crate::architecture::EndpointKind;
use crate::ids::{InstanceId, NodeId};
use crate::secret::{Secret, secret_in_file};
use crate::time::{Millis, Timestamp};
use crate::users::Users;

/// `nodes/<node>/agent.json`: what `larder agent --dir nodes/<node>` starts from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentBoot {
    pub config: NodeConfig,
    /// Where the server listens; `None`: at the host of its address, which is what it announces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind_host: Option<String>,
    pub server_binary: PathBuf,
    /// The server's own folder: its data, `nodes.conf`, append-only files.
    pub volume: PathBuf,
    /// Short folder of unix sockets; see [`RunDir`].
    pub run_dir: PathBuf,
    /// Shared by all nodes of the instance.
    pub lease_dir: PathBuf,
    pub route_dir: PathBuf,
}

impl AgentBoot {
    /// The host to listen on.
    pub fn listen_host(&self) -> &str {
        self.bind_host.as_deref().unwrap_or(&self.config.address.host)
    }
}

/// `nodes/<node>/secrets.json`, mode 0600: what a node needs to go on while `serve` is down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSecrets {
    /// Password of Larder's own ACL user `larder` (also `masteruser`); the same on all nodes of
    /// an instance and on no other instance.
    #[serde(with = "secret_in_file")]
    pub system_password: Secret,
    /// SHA-256 of the tenant's password as ACL files write it: 64 hex digits. The password
    /// itself is kept nowhere.
    #[serde(with = "secret_in_file")]
    pub default_password_sha256: Secret,
    /// What the key of the agents' API over a network is made from. Unlike the system password it
    /// is never sent. Empty for an instance that is older than it.
    #[serde(with = "secret_in_file", default = "no_secret", skip_serializing_if = "is_no_secret")]
    pub agent_key: Secret,
    /// The password before the present one, while both are valid; empty otherwise.
    #[serde(with = "secret_in_file", default = "no_secret", skip_serializing_if = "is_no_secret")]
    pub former_password_sha256: Secret,
    /// Users besides the tenant's `default`, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accounts: Vec<Account>,
    /// Rises with every change of the tenant's users.
    #[serde(default)]
    pub users_revision: u64,
}

fn no_secret() -> Secret {
    Secret::new("")
}

fn is_no_secret(secret: &Secret) -> bool {
    secret.expose().is_empty()
}

impl NodeSecrets {
    /// Those of a new instance.
    pub fn new(
        system_password: Secret,
        default_password_sha256: Secret,
        agent_key: Secret,
    ) -> Self {
        Self {
            system_password,
            default_password_sha256,
            agent_key,
            former_password_sha256: no_secret(),
            accounts: Vec::new(),
            users_revision: 0,
        }
    }

    /// What the servers are told of the tenant's users.
    pub fn users(&self) -> Users {
        Users {
            revision: self.users_revision,
            password_sha256: self.default_password_sha256.clone(),
            former_sha256: self.former_password_sha256.clone(),
            accounts: self.accounts.clone(),
        }
    }

    /// Takes other users; answers whether they are newer.
    pub fn adopt(&mut self, users: Users) -> bool {
        let newer = users.revision > self.users_revision;
        if newer {
            self.users_revision = users.revision;
            self.default_password_sha256 = users.password_sha256;
            self.former_password_sha256 = users.former_sha256;
            self.accounts = users.accounts;
        }
        newer
    }

    /// What the key of the agents' API is made from: for an older instance, its system password.
    pub fn of_agents(&self) -> &Secret {
        if is_no_secret(&self.agent_key) { &self.system_password } else { &self.agent_key }
    }

    /// Whether a node can run with them: no agent starts with others.
    pub fn is_usable(&self) -> bool {
        let hash = self.default_password_sha256.expose();
        !self.system_password.expose().is_empty()
            && hash.len() == 64
            && hash.bytes().all(|digit| digit.is_ascii_hexdigit())
    }
}

/// `relay/relay.json`: what `larder proxy --dir relay` (relay mode) starts from. Rewritten when
/// members change; the relay follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayBoot {
    pub instance: InstanceId,
    pub listeners: Vec<RelayListener>,
    /// Followed by write and read listeners.
    pub route_dir: PathBuf,
    /// Used by discovery listeners.
    pub members: Vec<Member>,
    pub run_dir: PathBuf,
    pub generation: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayListener {
    pub kind: EndpointKind,
    /// What clients are told to connect to.
    pub address: Address,
    /// Where it listens; `None`: at the host of its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind_host: Option<String>,
}

impl RelayListener {
    /// The host to listen on.
    pub fn listen_host(&self) -> &str {
        self.bind_host.as_deref().unwrap_or(&self.address.host)
    }
}

/// What a relay answers on its status socket (`GET /v1/status`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayStatus {
    pub instance: InstanceId,
    /// Generation of the `relay.json` it works with.
    pub generation: u64,
    pub route_epoch: Option<u64>,
    pub listeners: Vec<RelayListenerStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayListenerStatus {
    pub kind: EndpointKind,
    pub address: Address,
    /// A server behind it answered a PING (an error reply is an answer) within the last seconds.
    pub answers: bool,
    pub leads_to: Vec<NodeId>,
    pub connections: u64,
}

/// `keeper/desired/<name>.json`: one process that the keeper keeps alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// File name without `.json`: `agent-<node>` or `relay-<instance>`.
    pub name: String,
    pub instance: InstanceId,
    pub argv: Vec<String>,
    /// Standard output and error are appended here.
    pub log: PathBuf,
    /// `<run_dir>/<…>.sock`: answers `GET /v1/ping` while the process is well.
    pub ping_socket: Option<PathBuf>,
    pub guard: Option<Guard>,
    /// The process shall go, with the server in `guard`, and must not come back.
    pub removed: bool,
}

/// The server that an agent looks after, so that the keeper can fence and remove it when the
/// agent cannot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guard {
    pub node: NodeId,
    /// `nodes/<node>/server.json`, a [`ProcessMark`].
    pub server_file: PathBuf,
    /// Kill the server when this lease is held by `node` and was not renewed in time. `None` for
    /// nodes without a lease (cluster mode) and for instances of one node (nobody else could
    /// take over: it goes on).
    pub lease: Option<LeaseGuard>,
}

impl Guard {
    /// `nodes/<node>/promised.json`, a [`Promised`].
    pub fn promised_file(&self) -> PathBuf {
        self.server_file.with_file_name(PROMISED)
    }
}

/// Name of the file with a [`Promised`], in the node's folder.
pub const PROMISED: &str = "promised.json";

/// What an agent writes whose lease cannot be renewed, while every other node of the shard has
/// promised not to take it: until then nobody else leads, and its server is not to be killed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promised {
    /// The epoch in which the node leads; a later one has promises of its own.
    pub epoch: u64,
    /// Milliseconds since boot (`CLOCK_BOOTTIME`), by the promise that ends first.
    pub until_ms: Timestamp,
    pub boot_id: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseGuard {
    pub lease_dir: PathBuf,
    pub lease_ttl: Millis,
    pub fence_margin: Millis,
}

/// Names a process beyond doubt: a pid alone is reused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessMark {
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks since boot.
    pub start_ticks: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

/// Names in the short folder of sockets: a socket's path ends at 107 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir(pub PathBuf);

impl RunDir {
    pub fn agent_socket(&self, node: &NodeId) -> PathBuf {
        self.0.join(format!("a-{node}.sock"))
    }

    pub fn relay_socket(&self, instance: &InstanceId) -> PathBuf {
        self.0.join(format!("r-{instance}.sock"))
    }
}

/// Names below the data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDir(pub PathBuf);

impl DataDir {
    pub fn database(&self) -> PathBuf {
        self.0.join("larder.db")
    }

    /// Key of the envelope encryption, mode 0600.
    pub fn key_file(&self) -> PathBuf {
        self.0.join("secret.key")
    }

    pub fn serve_lock(&self) -> PathBuf {
        self.0.join("serve.lock")
    }

    pub fn initial_admin_password(&self) -> PathBuf {
        self.0.join("initial-admin-password")
    }

    /// A text file that names the run folder, so that every process finds the same one.
    pub fn run_dir_file(&self) -> PathBuf {
        self.0.join("run-dir")
    }

    pub fn keeper(&self) -> PathBuf {
        self.0.join("keeper")
    }

    pub fn ports(&self) -> PathBuf {
        self.0.join("ports")
    }

    pub fn instances(&self) -> PathBuf {
        self.0.join("instances")
    }

    pub fn instance(&self, instance: &InstanceId) -> PathBuf {
        self.instances().join(instance.as_str())
    }

    pub fn lease(&self, instance: &InstanceId) -> PathBuf {
        self.instance(instance).join("lease")
    }

    pub fn route(&self, instance: &InstanceId) -> PathBuf {
        self.instance(instance).join("route")
    }

    pub fn relay(&self, instance: &InstanceId) -> PathBuf {
        self.instance(instance).join("relay")
    }

    pub fn node(&self, instance: &InstanceId, node: &NodeId) -> PathBuf {
        self.instance(instance).join("nodes").join(node.as_str())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}
