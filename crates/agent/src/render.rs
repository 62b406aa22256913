//! The server's `redis.conf` and `users.acl`, as pure functions of the node's configuration.
//!
//! Whom a server copies from is not here: it goes on the command line of each start, so that
//! these files do not change when roles do and a full disk does not stop a failover.

use std::fmt::Write;
use std::path::Path;

use larder_model::agent::NodeConfig;
use larder_model::local::NodeSecrets;
use larder_model::{AccountRole, Address, ByteSize, NodeMode, Users, acl_of};

use crate::announce::announced;
use crate::engine::Engine;
use crate::parameters;

/// The name of Larder's own user of the server; also `masteruser`.
pub(crate) const SYSTEM_USER: &str = "larder";

/// The user that a password alone logs in as.
pub(crate) const DEFAULT_USER: &str = "default";

/// Keeps a cluster's replica from asking for votes by itself; orders to take over still work.
pub(crate) const NO_FAILOVER: &str = "cluster-replica-no-failover";

/// Clients of the tenant that a server takes (Redis' own default).
const TENANT_CLIENTS: u32 = 10_000;

/// Connections beyond the tenant's: agent, replicas, movers.
pub(crate) const OWN_CLIENTS: u32 = 64;

/// What this machine adds to the node's configuration.
pub(crate) struct Places<'a> {
    /// Where the server listens; what it announces is the host of its address.
    pub(crate) listen_host: &'a str,
    pub(crate) volume: &'a Path,
    pub(crate) users: &'a Path,
    /// Where the node's worker is reached, in a pod.
    pub(crate) worker: Option<&'a str>,
}

/// The text of `redis.conf`. It holds the system password: mode 0600.
pub(crate) fn server_config(
    config: &NodeConfig,
    secrets: &NodeSecrets,
    engine: Engine,
    places: &Places<'_>,
) -> String {
    let mut text = String::with_capacity(2048);
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name} {value}");
    };
    let address = &config.address;
    let port = address.port.to_string();

    line("bind", places.listen_host);
    line("port", &port);
    // Every user has a password; protected mode would only shut replicas out.
    line("protected-mode", "no");
    line("tcp-keepalive", "60");
    line("timeout", "0");
    line("maxclients", &(TENANT_CLIENTS + OWN_CLIENTS).to_string());
    line("daemonize", "no");
    line("loglevel", "notice");
    // Standard output is the node's server.log, which also gets a crash's last words.
    line("logfile", "\"\"");
    line("always-show-logo", "no");
    line("dir", &quoted(&places.volume.to_string_lossy()));
    line("aclfile", &quoted(&places.users.to_string_lossy()));

    line("maxmemory", &config.maxmemory.bytes().to_string());
    line("maxmemory-policy", "noeviction");

    // The append-only file is the one persistence: a snapshot beside it would fork for nothing.
    line("save", "\"\"");
    line("appendonly", "yes");
    line("appendfsync", "everysec");
    if engine.is_seven_or_later() {
        // Else a replica on a full disk aborts at the next write that its primary still takes, and
        // there is nobody to hand over to. What is not on its disk yet follows when there is room;
        // older versions have always done so.
        line("replica-ignore-disk-write-errors", "yes");
    }

    line("masteruser", SYSTEM_USER);
    line("masterauth", &quoted(secrets.system_password.expose()));
    line("replica-announce-ip", &quoted(&address.host));
    line("replica-announce-port", &port);
    line("replica-read-only", "yes");
    line("replica-serve-stale-data", "yes");
    line("repl-diskless-sync", "yes");
    // The default of 5 s delays the first sync of every new replica.
    line("repl-diskless-sync-delay", "0");
    line("repl-backlog-size", &backlog(config.maxmemory).bytes().to_string());

    if config.mode == NodeMode::Clustered {
        line("cluster-enabled", "yes");
        line("cluster-config-file", "nodes.conf");
        line("cluster-node-timeout", &config.cluster_node_timeout.0.to_string());
        for (name, value) in announced(config, engine, places.worker) {
            line(name, &quoted(&value));
        }
        line("cluster-require-full-coverage", "yes");
        // Replicas belong to the shard that the planner placed them in.
        line("cluster-allow-replica-migration", "no");
        // Any replica may ask for votes; which one is asked first is ranked by offset.
        line("cluster-replica-validity-factor", "0");
    }
    // Last: what a user has set counts, and not what is said above.
    for (name, value) in parameters::lines(config) {
        line(name, &value);
    }
    text
}

/// The server's arguments after the configuration file: whom it copies from, and whether it may ask
/// for the votes by itself.
///
/// `on_hold`: a cluster's replica that may have less than its shard to lead with. It would win an
/// election at once (`cluster-replica-validity-factor 0`), and wipe whoever had the data. It starts
/// on hold, so that this does not depend on an agent that lives long enough to say so.
pub(crate) fn start_arguments(upstream: Option<&Address>, on_hold: bool) -> Vec<String> {
    let mut args = Vec::new();
    if let Some(address) = upstream {
        args.extend(["--replicaof".into(), address.host.clone(), address.port.to_string()]);
    }
    if on_hold {
        args.extend([format!("--{NO_FAILOVER}"), "yes".into()]);
    }
    args
}

/// The replication backlog: room for a broken link's catch-up, 16 MiB for small nodes and
/// 1/64 of the data's limit for larger ones, 256 MiB at most.
pub(crate) fn backlog(maxmemory: ByteSize) -> ByteSize {
    ByteSize((maxmemory.bytes() / 64).clamp(ByteSize::mib(16).bytes(), ByteSize::mib(256).bytes()))
}

/// The text of `users.acl`: the tenant's users and Larder's own, by their hashes.
pub(crate) fn users(secrets: &NodeSecrets, engine: Engine) -> String {
    let mut text = String::new();
    for (name, rules) in tenants_users(&secrets.users(), engine) {
        let _ = writeln!(text, "user {name} {rules}");
    }
    let own = sha256_hex(secrets.system_password.expose());
    let _ = writeln!(text, "user {SYSTEM_USER} on #{own} ~* &* +@all");
    text
}

/// The tenant's users with their rules, as a file and `ACL SETUSER` know them: `default` first.
pub(crate) fn tenants_users(users: &Users, engine: Engine) -> Vec<(String, String)> {
    let accounts = users.accounts.iter().map(|account| {
        let acl = account.acl(engine.is_seven_or_later());
        (account.name.clone(), format!("on #{} {acl}", account.password_sha256.expose()))
    });
    let default = (DEFAULT_USER.to_owned(), default_user(users, engine));
    std::iter::once(default).chain(accounts).collect()
}

/// The rules of the instance's own password.
fn default_user(users: &Users, engine: Engine) -> String {
    let mut rules = String::from("on");
    for hash in users.of_default() {
        let _ = write!(rules, " #{}", hash.expose());
    }
    let _ =
        write!(rules, " {}", acl_of(AccountRole::Administrator, "", engine.is_seven_or_later()));
    rules
}

/// Lower-case hex of the SHA-256, as ACL files write passwords.
pub(crate) fn sha256_hex(text: &str) -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// A configuration value in double quotes, escaped as `sdssplitargs` (Redis' sds.c) reads it.
fn quoted(value: &str) -> String {
    let mut text = String::with_capacity(value.len() + 2);
    text.push('"');
    for byte in value.bytes() {
        match byte {
            b'"' | b'\\' => {
                text.push('\\');
                text.push(char::from(byte));
            }
            b' '..=b'~' => text.push(char::from(byte)),
            other => {
                let _ = write!(text, "\\x{other:02x}");
            }
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::engine::Flavour;
    use larder_model::agent::Member;
    use larder_model::{
        ElectionPolicy, EngineName, InstanceId, InstanceName, Millis, NodeId, Secret,
    };

    pub(crate) fn config(mode: NodeMode) -> NodeConfig {
        let node = NodeId::new("n-1").expect("valid");
        let address = Address::new("127.0.0.1", 17_001);
        NodeConfig {
            outer: None,
            renderer: 1,
            node: node.clone(),
            instance: InstanceId::new("i-1").expect("valid"),
            instance_name: InstanceName::new("one").expect("valid"),
            shard: 0,
            zone: None,
            mode,
            engine: EngineName::new("redis-7.0").expect("valid"),
            address: address.clone(),
            memory: ByteSize::mib(128),
            maxmemory: ByteSize::mib(102),
            cluster_node_timeout: Millis(5000),
            bootstrap: true,
            initialized: false,
            members: vec![Member { outer: None, node, shard: 0, zone: None, address }],
            worker: None,
            storage_class: None,
            parameters: std::collections::BTreeMap::new(),
            parameters_revision: 0,
            chained: false,
            upstream: None,
            has_read_endpoint: true,
            election: ElectionPolicy::default(),
            generation: 1,
        }
    }

    fn secrets() -> NodeSecrets {
        NodeSecrets::new(
            Secret::new("se\"cret"),
            Secret::new(sha256_hex("tenant")),
            Secret::new(""),
        )
    }

    fn rendered_at(listen_host: &str, mode: NodeMode) -> String {
        let (volume, users) = (Path::new("/d/my volume"), Path::new("/d/users.acl"));
        let places = Places { listen_host, volume, users, worker: None };
        let seven = Engine { flavour: Flavour::Redis, major: 7, minor: 0 };
        server_config(&config(mode), &secrets(), seven, &places)
    }

    fn rendered(mode: NodeMode) -> String {
        rendered_at("127.0.0.1", mode)
    }

    #[test]
    fn a_leased_node_has_no_cluster_lines_and_no_upstream() {
        let text = rendered(NodeMode::Leased);
        for expected in [
            "bind 127.0.0.1\n",
            "port 17001\n",
            "dir \"/d/my volume\"\n",
            "maxmemory 106954752\n",
            "maxmemory-policy noeviction\n",
            "appendonly yes\n",
            "replica-ignore-disk-write-errors yes\n",
            "maxclients 10064\n",
            "masterauth \"se\\\"cret\"\n",
            "repl-backlog-size 16777216\n",
        ] {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
        assert!(!text.contains("cluster-"), "{text}");
        assert!(!text.contains("replicaof"), "{text}");
    }

    #[test]
    fn a_clustered_node_announces_itself_and_stays_in_its_shard() {
        let text = rendered(NodeMode::Clustered);
        for expected in [
            "cluster-enabled yes\n",
            "cluster-node-timeout 5000\n",
            "cluster-announce-ip \"127.0.0.1\"\n",
            "cluster-allow-replica-migration no\n",
        ] {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
    }

    #[test]
    fn only_a_server_without_a_copy_is_started_on_hold() {
        let held = ["--cluster-replica-no-failover", "yes"];
        assert_eq!(start_arguments(None, true), held);
        assert!(start_arguments(None, false).is_empty(), "its agent may be down when it is needed");
        let primary = Address::new("127.0.0.1", 7001);
        assert_eq!(start_arguments(Some(&primary), false), ["--replicaof", "127.0.0.1", "7001"]);
    }

    #[test]
    fn a_node_may_listen_elsewhere_than_it_announces() {
        let text = rendered_at("0.0.0.0", NodeMode::Clustered);
        assert!(text.contains("bind 0.0.0.0\n"), "{text}");
        assert!(text.contains("replica-announce-ip \"127.0.0.1\"\n"), "{text}");
        assert!(text.contains("cluster-announce-ip \"127.0.0.1\"\n"), "{text}");
    }

    #[test]
    fn users_are_known_by_hash_alone() {
        let engine = Engine { flavour: Flavour::Redis, major: 6, minor: 2 };
        let text = users(&secrets(), engine);
        assert!(!text.contains("secret") && !text.contains("cret\""), "{text}");
        assert_eq!(text.lines().count(), 2);
        assert!(text.contains(&format!("user larder on #{}", sha256_hex("se\"cret"))));
        assert!(!text.contains("cluster|shards"), "6.2 has no CLUSTER SHARDS");
    }

    #[test]
    fn large_nodes_have_larger_backlogs() {
        assert_eq!(backlog(ByteSize::mib(102)), ByteSize::mib(16));
        assert_eq!(backlog(ByteSize::gib(4)), ByteSize::mib(64));
        assert_eq!(backlog(ByteSize::gib(64)), ByteSize::mib(256));
    }
}
