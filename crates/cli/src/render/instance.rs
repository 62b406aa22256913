//! Instances and their nodes.

use larder_api_types::{Condition, Endpoint, Instance, Node};
use larder_model::ByteSize;

use super::{NONE, finish, or_none, plain, table, time, time_or_none};
use crate::console::Console;

pub(crate) fn instances(console: &Console, rows: &[Instance]) -> String {
    let mut header = vec!["NAME", "STATE", "ARCHITECTURE", "ENGINE", "NODES", "MEMORY", "ENDPOINT"];
    if console.is_wide() {
        header.extend(["PROJECT", "SHARDS", "REPLICAS", "READ", "VERSION", "CREATED", "ID"]);
    }
    let mut table = table(console, &header);
    for row in rows {
        let endpoints = &row.endpoints;
        let first = endpoints.write.as_ref().or(endpoints.discovery.as_ref());
        let mut cells = vec![
            row.name.clone(),
            row.state.clone(),
            row.architecture.clone(),
            row.engine.clone(),
            serving(row),
            ByteSize(row.memory_bytes).to_string(),
            or_none(first.map(address)),
        ];
        if console.is_wide() {
            cells.extend([
                row.project.clone(),
                row.shards.to_string(),
                row.replicas.to_string(),
                or_none(endpoints.read.as_ref().map(address)),
                or_none(row.engine_version.clone()),
                time(&row.created_at),
                row.id.clone(),
            ]);
        }
        table.add_row(cells);
    }
    finish(table)
}

/// Serving nodes of wanted ones: `5/6`.
fn serving(instance: &Instance) -> String {
    let serving = instance.nodes.iter().filter(|node| node.state == "serving").count();
    format!("{serving}/{}", instance.shards * instance.replicas)
}

pub(crate) fn nodes(console: &Console, rows: &[Node]) -> String {
    let mut header = vec!["NODE", "SHARD", "ROLE", "STATE", "ADDRESS", "LINK", "LAG", "USED"];
    if console.is_wide() {
        header.extend(["PID", "OFFSET", "REPLICA-OF", "SLOTS", "WORKER", "ZONE", "LAST-SEEN"]);
    }
    let is_outside = rows.iter().any(|row| row.outside.is_some());
    if is_outside {
        header.push("OUTSIDE");
    }
    let mut table = table(console, &header);
    for row in rows {
        let address = row.host.as_ref().zip(row.port).map(|(host, port)| join(host, port));
        let mut cells = vec![
            row.id.clone(),
            row.shard.to_string(),
            row.role.clone(),
            row.state.clone(),
            or_none(address),
            or_none(row.link.clone()),
            or_none(row.lag_bytes.map(|bytes| ByteSize(bytes).to_string())),
            or_none(row.used_memory_bytes.map(|bytes| ByteSize(bytes).to_string())),
        ];
        if console.is_wide() {
            let slots = row.slots.join(",");
            cells.extend([
                or_none(row.pid),
                or_none(row.offset),
                or_none(row.replica_of.clone()),
                if slots.is_empty() { NONE.to_owned() } else { slots },
                or_none(row.worker.clone()),
                or_none(row.zone.clone()),
                time_or_none(row.last_seen_at.as_ref()),
            ]);
        }
        if is_outside {
            let outside = row.outside.as_ref();
            cells.push(or_none(outside.map(|outside| join(&outside.host, outside.port))));
        }
        table.add_row(cells);
    }
    finish(table)
}

/// One instance with everything that is known of it.
pub(crate) fn instance(console: &Console, one: &Instance) -> String {
    let mut head = plain(console);
    let mut line = |name: &str, value: String| {
        head.add_row([name.to_owned(), value]);
    };
    line("Name", one.name.clone());
    line("Id", one.id.clone());
    line("Project", one.project.clone());
    if !one.description.is_empty() {
        line("Description", one.description.clone());
    }
    if !one.tags.is_empty() {
        let tags: Vec<_> = one.tags.iter().map(|(k, v)| format!("{k}={v}")).collect();
        line("Tags", tags.join(" "));
    }
    line("State", one.state.clone());
    line("Architecture", one.architecture.clone());
    let version = one.engine_version.as_deref().unwrap_or("version not known yet");
    line("Engine", format!("{} ({version})", one.engine));
    line("Memory", format!("{} per node", ByteSize(one.memory_bytes)));
    line("Nodes", shape(one));
    line("Runs on", one.container_cluster.clone());
    line("Storage", one.storage_class.clone());
    if let Some(expose) = &one.expose {
        line("Exposed by", expose.clone());
    }
    line("Generation", format!("{} (observed {})", one.generation, one.observed_generation));
    line("Created", time(&one.created_at));
    line("Observed", time_or_none(one.observed_at.as_ref()));
    for (name, endpoint) in one.endpoints.named() {
        line("Endpoint", format!("{name} {}", both_addresses(endpoint)));
    }
    for condition in &one.conditions {
        line("Condition", condition_text(condition));
    }
    let mut text = finish(head);
    if !one.nodes.is_empty() {
        text.push_str("\n\n");
        text.push_str(&nodes(console, &one.nodes));
    }
    text
}

fn shape(one: &Instance) -> String {
    match one.architecture.as_str() {
        "cluster" => format!("{} shards of {} nodes", one.shards, one.replicas),
        "read-write" => format!("1 primary, {} read-only", one.read_only_nodes),
        _ => "1".to_owned(),
    }
}

fn condition_text(condition: &Condition) -> String {
    let not = if condition.status { "" } else { "not " };
    let since = time(&condition.since);
    format!("{not}{} since {since} ({}): {}", condition.kind, condition.reason, condition.message)
}

fn address(endpoint: &Endpoint) -> String {
    join(&endpoint.host, endpoint.port)
}

fn both_addresses(endpoint: &Endpoint) -> String {
    let mut text = address(endpoint);
    if let Some(inside) = &endpoint.inside {
        text.push_str(&format!(" (inside {})", join(&inside.host, inside.port)));
    }
    text
}

fn join(host: &str, port: u16) -> String {
    larder_model::Address::new(host, port).to_string()
}
