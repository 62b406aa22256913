//! `INFO` as typed values: Redis 6.2 and later, Valkey.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use larder_model::agent::{ReplicaSeen, ReplicationView, Role};
use larder_model::{Address, ByteSize};
use serde::{Deserialize, Serialize};

use crate::error::ParseError;

/// The family of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flavour {
    Redis,
    Valkey,
}

impl Flavour {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Valkey => "valkey",
        }
    }
}

impl std::fmt::Display for Flavour {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The fields of an `INFO` answer, for what [`ServerInfo`] does not hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InfoText(BTreeMap<String, String>);

impl InfoText {
    pub fn new(text: &str) -> Self {
        let fields = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key.to_owned(), value.trim_end().to_owned()))
            .collect();
        Self(fields)
    }

    pub fn get(&self, field: &str) -> Option<&str> {
        self.0.get(field).map(String::as_str)
    }

    /// All fields, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    fn need(&self, field: &'static str) -> Result<&str, ParseError> {
        self.get(field).ok_or(ParseError::Missing(field))
    }

    fn need_number<T: FromStr>(&self, field: &'static str) -> Result<T, ParseError> {
        let value = self.need(field)?;
        value.parse().map_err(|_| ParseError::Bad { field, value: value.to_owned() })
    }

    fn number<T: FromStr>(&self, field: &str) -> Option<T> {
        self.get(field).and_then(|value| value.parse().ok())
    }

    fn is_one(&self, field: &str) -> bool {
        self.get(field) == Some("1")
    }

    fn is_ok(&self, field: &str) -> bool {
        self.get(field).is_none_or(|value| value == "ok")
    }
}

/// What a server says of itself (`INFO`).
#[derive(Clone, Debug, PartialEq)]
pub struct ServerInfo {
    /// New with every start of the process.
    pub run_id: String,
    pub flavour: Flavour,
    /// `valkey_version` where there is one, else `redis_version`.
    pub engine_version: String,
    /// The Redis version it is compatible with: 7.2.4 on every Valkey.
    pub redis_version: String,
    pub uptime: Duration,
    /// 0 when it listens on a unix socket only.
    pub tcp_port: u16,
    pub process_id: u32,
    pub cluster_enabled: bool,
    /// Reading its data; `None` when it is not.
    pub loading: Option<Loading>,
    pub used_memory: ByteSize,
    /// Zero: no limit.
    pub maxmemory: ByteSize,
    pub connected_clients: u64,
    pub persistence: Persistence,
    pub replication: ReplicationView,
    pub replication_detail: ReplicationDetail,
    /// Every field, for metrics.
    pub fields: InfoText,
}

/// How far the server has read its data.
#[derive(Clone, Debug, PartialEq)]
pub struct Loading {
    pub loaded: ByteSize,
    /// Zero when the server does not know, as in a diskless sync.
    pub total: ByteSize,
    /// 0 to 100.
    pub percent: f64,
    /// The server's own guess.
    pub eta: Option<Duration>,
}

/// RDB and AOF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Persistence {
    pub rdb_save_in_progress: bool,
    pub rdb_last_save_ok: bool,
    pub rdb_changes_since_last_save: u64,
    pub aof_enabled: bool,
    pub aof_rewrite_in_progress: bool,
    pub aof_rewrite_scheduled: bool,
    pub aof_last_rewrite_ok: bool,
    /// False when writing the append-only file failed: a full disk, usually. The server then
    /// refuses writes.
    pub aof_last_write_ok: bool,
}

/// What else the server says of its replication, for elections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicationDetail {
    /// The history before the last promotion, valid up to `second_offset`. `None` when there is
    /// none.
    pub replid2: Option<String>,
    pub second_offset: Option<u64>,
    /// What a replica has processed of its primary's stream, also of a link that is down now
    /// (`slave_repl_offset`). `None` on a primary.
    pub replica_offset: Option<u64>,
    /// For how long a replica has had no link; `None` with a link or when it never had one.
    pub link_down_for: Option<Duration>,
    /// Time since a replica heard from its primary.
    pub last_io: Option<Duration>,
    /// Replicas whose full sync is not over are counted too.
    pub connected_replicas: u64,
    /// How long ago each of [`ReplicationView::replicas`] last acknowledged something, rounded down
    /// to seconds; zero while it is not online.
    pub acknowledged: Vec<Duration>,
    /// Full syncs that replicas have begun here since the process started (`sync_full`).
    pub full_syncs: u64,
}

/// Reads an answer to `INFO` (default sections).
///
/// # Errors
/// [`ParseError`] when a field is missing that every supported version has.
pub fn parse_info(text: &str) -> Result<ServerInfo, ParseError> {
    let fields = InfoText::new(text);
    let redis_version = fields.need("redis_version")?.to_owned();
    let valkey_version = fields.get("valkey_version").map(str::to_owned);
    let flavour = if valkey_version.is_some() || fields.get("server_name") == Some("valkey") {
        Flavour::Valkey
    } else {
        Flavour::Redis
    };
    let (replication, replication_detail) = replication(&fields)?;
    Ok(ServerInfo {
        run_id: fields.need("run_id")?.to_owned(),
        flavour,
        engine_version: valkey_version.unwrap_or_else(|| redis_version.clone()),
        redis_version,
        uptime: Duration::from_secs(fields.need_number("uptime_in_seconds")?),
        tcp_port: fields.need_number("tcp_port")?,
        process_id: fields.need_number("process_id")?,
        cluster_enabled: fields.is_one("cluster_enabled"),
        loading: loading(&fields),
        used_memory: ByteSize(fields.need_number("used_memory")?),
        maxmemory: ByteSize(fields.number("maxmemory").unwrap_or(0)),
        connected_clients: fields.need_number("connected_clients")?,
        persistence: persistence(&fields),
        replication,
        replication_detail,
        fields,
    })
}

fn loading(fields: &InfoText) -> Option<Loading> {
    // Not `async_loading` (7.0): such a replica serves its old data; `syncing` tells.
    if !fields.is_one("loading") {
        return None;
    }
    Some(Loading {
        loaded: ByteSize(fields.number("loading_loaded_bytes").unwrap_or(0)),
        total: ByteSize(fields.number("loading_total_bytes").unwrap_or(0)),
        percent: fields.number("loading_loaded_perc").unwrap_or(0.0),
        eta: fields.number("loading_eta_seconds").map(Duration::from_secs),
    })
}

fn persistence(fields: &InfoText) -> Persistence {
    Persistence {
        rdb_save_in_progress: fields.is_one("rdb_bgsave_in_progress"),
        rdb_last_save_ok: fields.is_ok("rdb_last_bgsave_status"),
        rdb_changes_since_last_save: fields.number("rdb_changes_since_last_save").unwrap_or(0),
        aof_enabled: fields.is_one("aof_enabled"),
        aof_rewrite_in_progress: fields.is_one("aof_rewrite_in_progress"),
        aof_rewrite_scheduled: fields.is_one("aof_rewrite_scheduled"),
        aof_last_rewrite_ok: fields.is_ok("aof_last_bgrewrite_status"),
        aof_last_write_ok: fields.is_ok("aof_last_write_status"),
    }
}

fn replication(fields: &InfoText) -> Result<(ReplicationView, ReplicationDetail), ParseError> {
    let role = match fields.need("role")? {
        "master" => Role::Primary,
        "slave" => Role::Replica,
        other => return Err(ParseError::Bad { field: "role", value: other.to_owned() }),
    };
    let primary = match role {
        Role::Primary => None,
        Role::Replica => Some(Address {
            host: fields.need("master_host")?.to_owned(),
            port: fields.need_number("master_port")?,
        }),
    };
    let (mut replicas, mut acknowledged) = (Vec::new(), Vec::new());
    for at in 0.. {
        let Some(line) = fields.get(&format!("slave{at}")) else { break };
        let (replica, age) = replica(line)?;
        replicas.push(replica);
        acknowledged.push(age);
    }
    let view = ReplicationView {
        role,
        primary,
        link_up: fields.get("master_link_status") == Some("up"),
        syncing: fields.is_one("master_sync_in_progress"),
        replid: fields.need("master_replid")?.to_owned(),
        // On a replica too, and not `slave_repl_offset`: that one stands for a position in
        // another history while a replica has not synced (0 or 1 on a fresh one).
        offset: fields.need_number("master_repl_offset")?,
        replicas,
    };
    let seconds = |field| fields.number::<u64>(field).map(Duration::from_secs);
    let detail = ReplicationDetail {
        replid2: fields
            .get("master_replid2")
            .filter(|id| id.bytes().any(|b| b != b'0'))
            .map(str::to_owned),
        // -1 where there is none, which is no unsigned number.
        second_offset: fields.number("second_repl_offset"),
        replica_offset: fields.number("slave_repl_offset"),
        link_down_for: seconds("master_link_down_since_seconds"),
        last_io: seconds("master_last_io_seconds_ago"),
        connected_replicas: fields.number("connected_slaves").unwrap_or(0),
        acknowledged,
        full_syncs: fields.number("sync_full").unwrap_or(0),
    };
    Ok((view, detail))
}

/// `ip=127.0.0.1,port=7001,state=online,offset=42,lag=0[,type=replica]`
fn replica(line: &str) -> Result<(ReplicaSeen, Duration), ParseError> {
    let bad = || ParseError::Line(line.to_owned());
    let value = |name: &str| {
        line.split(',').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).ok_or_else(bad)
    };
    let replica = ReplicaSeen {
        address: Address::new(value("ip")?, value("port")?.parse().map_err(|_| bad())?),
        online: value("state")? == "online",
        offset: value("offset")?.parse().map_err(|_| bad())?,
    };
    Ok((replica, Duration::from_secs(value("lag")?.parse().map_err(|_| bad())?)))
}

#[cfg(test)]
#[path = "info_tests.rs"]
mod tests;
