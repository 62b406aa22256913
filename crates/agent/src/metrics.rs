//! Prometheus text under the names that redis_exporter uses, so that its dashboards fit.

use std::fmt::Write;

use larder_model::agent::{AgentStatus, NodeConfig, Role, ServerState};
use larder_node::ServerInfo;

/// Fields of `INFO` that are numbers, with the name and kind they have in redis_exporter.
const FIELDS: [(&str, &str, &str); 36] = [
    ("uptime_in_seconds", "redis_uptime_in_seconds", "gauge"),
    ("connected_clients", "redis_connected_clients", "gauge"),
    ("blocked_clients", "redis_blocked_clients", "gauge"),
    ("maxclients", "redis_max_clients", "gauge"),
    ("used_memory", "redis_memory_used_bytes", "gauge"),
    ("used_memory_rss", "redis_memory_used_rss_bytes", "gauge"),
    ("used_memory_peak", "redis_memory_used_peak_bytes", "gauge"),
    ("used_memory_dataset", "redis_memory_used_dataset_bytes", "gauge"),
    ("maxmemory", "redis_memory_max_bytes", "gauge"),
    ("mem_fragmentation_ratio", "redis_mem_fragmentation_ratio", "gauge"),
    ("loading", "redis_loading_dump_file", "gauge"),
    ("rdb_changes_since_last_save", "redis_rdb_changes_since_last_save", "gauge"),
    ("rdb_bgsave_in_progress", "redis_rdb_bgsave_in_progress", "gauge"),
    ("aof_enabled", "redis_aof_enabled", "gauge"),
    ("aof_rewrite_in_progress", "redis_aof_rewrite_in_progress", "gauge"),
    ("aof_current_size", "redis_aof_current_size_bytes", "gauge"),
    ("aof_base_size", "redis_aof_base_size_bytes", "gauge"),
    ("total_connections_received", "redis_connections_received_total", "counter"),
    ("rejected_connections", "redis_rejected_connections_total", "counter"),
    ("total_commands_processed", "redis_commands_processed_total", "counter"),
    ("instantaneous_ops_per_sec", "redis_instantaneous_ops_per_sec", "gauge"),
    ("total_net_input_bytes", "redis_net_input_bytes_total", "counter"),
    ("total_net_output_bytes", "redis_net_output_bytes_total", "counter"),
    ("expired_keys", "redis_expired_keys_total", "counter"),
    ("evicted_keys", "redis_evicted_keys_total", "counter"),
    ("keyspace_hits", "redis_keyspace_hits_total", "counter"),
    ("keyspace_misses", "redis_keyspace_misses_total", "counter"),
    ("pubsub_channels", "redis_pubsub_channels", "gauge"),
    ("latest_fork_usec", "redis_latest_fork_usec", "gauge"),
    ("sync_full", "redis_replica_resyncs_full", "gauge"),
    ("sync_partial_ok", "redis_replica_partial_resync_accepted", "gauge"),
    ("connected_slaves", "redis_connected_slaves", "gauge"),
    ("master_repl_offset", "redis_master_repl_offset", "gauge"),
    ("master_sync_in_progress", "redis_master_sync_in_progress", "gauge"),
    ("used_cpu_sys", "redis_cpu_sys_seconds_total", "counter"),
    ("used_cpu_user", "redis_cpu_user_seconds_total", "counter"),
];

/// The page of one node. Without an answer of the server it holds `redis_up 0` and the agent's
/// own lines.
pub(crate) fn render(
    config: &NodeConfig,
    status: &AgentStatus,
    info: Option<&ServerInfo>,
) -> String {
    let mut page = Page {
        text: String::with_capacity(6 * 1024),
        labels: format!("instance_name=\"{}\",node=\"{}\"", config.instance_name, config.node),
    };
    let up = matches!(status.server.state, ServerState::Serving | ServerState::Loading);
    page.metric("redis_up", "gauge", "", if up { "1" } else { "0" });
    let Some(info) = info.filter(|_| status.server.state.is_alive()) else { return page.text };
    for (field, name, kind) in FIELDS {
        if let Some(value) = info.fields.get(field).filter(|v| v.parse::<f64>().is_ok()) {
            page.metric(name, kind, "", value);
        }
    }
    let role = match info.replication.role {
        Role::Primary => "master",
        Role::Replica => "slave",
    };
    let labels = format!(
        "role=\"{role}\",redis_version=\"{}\",run_id=\"{}\",tcp_port=\"{}\"",
        escaped(&info.engine_version),
        escaped(&info.run_id),
        info.tcp_port
    );
    page.metric("redis_instance_info", "gauge", &labels, "1");
    if info.replication.role == Role::Replica {
        let up = if info.replication.link_up { "1" } else { "0" };
        page.metric("redis_master_link_up", "gauge", "", up);
        page.metric("redis_slave_repl_offset", "gauge", "", &info.replication.offset.to_string());
    }
    page.keyspace(info);
    page.text
}

struct Page {
    text: String,
    labels: String,
}

impl Page {
    fn metric(&mut self, name: &str, kind: &str, labels: &str, value: &str) {
        let _ = writeln!(self.text, "# TYPE {name} {kind}");
        self.sample(name, labels, value);
    }

    fn sample(&mut self, name: &str, labels: &str, value: &str) {
        let comma = if labels.is_empty() { "" } else { "," };
        let _ = writeln!(self.text, "{name}{{{}{comma}{labels}}} {value}", self.labels);
    }

    /// `db0:keys=1,expires=0,avg_ttl=0`.
    fn keyspace(&mut self, info: &ServerInfo) {
        for (name, part) in [("redis_db_keys", "keys"), ("redis_db_keys_expiring", "expires")] {
            let mut first = true;
            for (db, value) in info.fields.iter() {
                let is_db = db
                    .strip_prefix("db")
                    .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
                let number = value.split(',').find_map(|pair| {
                    pair.split_once('=').filter(|(key, _)| *key == part).map(|(_, n)| n)
                });
                let (true, Some(number)) = (is_db, number) else { continue };
                if first {
                    let _ = writeln!(self.text, "# TYPE {name} gauge");
                    first = false;
                }
                self.sample(name, &format!("db=\"{db}\""), number);
            }
        }
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
