//! Engines, projects, tokens, the server, the login.

use larder_api_types::{ContainerCluster, Engine, Project, Session, Status, Token, WhoAmI, Worker};
use larder_model::ByteSize;

use super::{NONE, finish, or_none, plain, table, time, time_or_none};
use crate::console::Console;

pub(crate) fn engines(console: &Console, rows: &[Engine]) -> String {
    let mut header = vec!["NAME", "VERSION", "FLAVOUR", "ON", "PATH"];
    if console.is_wide() {
        header.extend(["FOUND", "ADDED", "CAPABILITIES"]);
    }
    let mut table = table(console, &header);
    for row in rows {
        let mut cells = vec![
            row.name.clone(),
            row.version.clone(),
            row.flavour.clone(),
            row.container_clusters.join(", "),
            or_none(row.path.clone()),
        ];
        if console.is_wide() {
            let found = if row.builtin { "by larder" } else { "by hand" };
            let added = time_or_none(row.added_at.as_ref());
            cells.extend([found.to_owned(), added, capabilities(&row.capabilities)]);
        }
        table.add_row(cells);
    }
    finish(table)
}

/// The capabilities in short; all of them are in the JSON.
fn capabilities(probed: &serde_json::Value) -> String {
    let mut words: Vec<String> = ["arch", "malloc"]
        .iter()
        .filter_map(|key| probed.get(key)?.as_str().map(str::to_owned))
        .collect();
    if probed.get("tls").and_then(serde_json::Value::as_bool) == Some(true) {
        words.push("tls".to_owned());
    }
    if let Some(directives) = probed.get("directives").and_then(serde_json::Value::as_array) {
        words.push(format!("{} directives", directives.len()));
    }
    if words.is_empty() { NONE.to_owned() } else { words.join(", ") }
}

pub(crate) fn container_clusters(console: &Console, rows: &[ContainerCluster]) -> String {
    let mut header = vec!["NAME", "KIND", "STATE", "VERSION", "WORKERS", "MEMORY"];
    if console.is_wide() {
        header.extend(["NAMESPACE", "EXPOSE", "SPREAD", "STORAGE CLASSES", "ENGINES"]);
        header.push("PULL SECRETS");
    }
    let mut table = table(console, &header);
    for row in rows {
        let since = row.since.as_ref().map(|at| format!(" since {}", time(at))).unwrap_or_default();
        let state = match (row.reachable, &row.problem) {
            (true, None) => format!("reachable{since}"),
            (true, Some(problem)) => format!("reachable, but {problem}"),
            (false, problem) => {
                let why = problem.as_deref().unwrap_or("nothing was heard of it yet");
                format!("out of reach{since}: {why}")
            }
        };
        let memory = row.workers.iter().map(|worker| worker.memory_bytes).sum();
        let mut cells = vec![
            row.name.clone(),
            row.kind.clone(),
            state,
            or_none(row.version.clone()),
            format!("{}/{}", row.workers_ready, row.workers.len()),
            ByteSize(memory).to_string(),
        ];
        if console.is_wide() {
            let classes: Vec<_> = row.storage_classes.iter().map(|c| c.name.as_str()).collect();
            let classes = (!classes.is_empty()).then(|| classes.join(", "));
            let (namespace, expose) = (row.namespace.clone(), row.expose.clone());
            let engines = (!row.engines.is_empty()).then(|| row.engines.join(", "));
            let spread = row.spread.clone();
            cells.extend([or_none(namespace), or_none(expose), or_none(spread), or_none(classes)]);
            let pull = (!row.pull_secrets.is_empty()).then(|| row.pull_secrets.join(", "));
            cells.extend([or_none(engines), or_none(pull)]);
        }
        table.add_row(cells);
    }
    finish(table)
}

pub(crate) fn workers(console: &Console, rows: &[Worker]) -> String {
    let mut table = table(console, &["NAME", "ZONE", "STATE", "MEMORY", "REQUESTED", "ADDRESS"]);
    for row in rows {
        table.add_row([
            row.name.clone(),
            or_none(row.zone.clone()),
            row.state.clone(),
            ByteSize(row.memory_bytes).to_string(),
            ByteSize(row.requested_memory_bytes).to_string(),
            or_none(row.address.clone()),
        ]);
    }
    finish(table)
}

pub(crate) fn projects(console: &Console, rows: &[Project]) -> String {
    let mut table = table(console, &["NAME"]);
    for row in rows {
        table.add_row([row.name.clone()]);
    }
    finish(table)
}

pub(crate) fn tokens(console: &Console, rows: &[Token]) -> String {
    let mut header = vec!["ID", "NAME", "KIND", "EXPIRES", "LAST USED"];
    if console.is_wide() {
        header.extend(["USER", "CREATED"]);
    }
    let mut table = table(console, &header);
    for row in rows {
        let expires = row.expires_at.as_ref().map_or_else(|| "never".to_owned(), |at| time(at));
        let mut cells = vec![
            row.id.clone(),
            if row.name.is_empty() { NONE.to_owned() } else { row.name.clone() },
            row.kind.clone(),
            expires,
            time_or_none(row.last_used_at.as_ref()),
        ];
        if console.is_wide() {
            cells.extend([row.user.clone(), time(&row.created_at)]);
        }
        table.add_row(cells);
    }
    finish(table)
}

pub(crate) fn status(console: &Console, server: &str, one: &Status) -> String {
    let mut head = plain(console);
    let mut line = |name: &str, value: String| {
        head.add_row([name.to_owned(), value]);
    };
    line("Server", server.to_owned());
    line("Version", one.version.clone());
    line("Started", time(&one.started_at));
    let instances: Vec<_> = one.instances.iter().map(|(s, n)| format!("{n} {s}")).collect();
    line("Instances", if instances.is_empty() { "none".to_owned() } else { instances.join(", ") });
    line("Engines", one.engines.to_string());
    for cluster in &one.container_clusters {
        let state = if cluster.reachable { "" } else { ", out of reach" };
        line(
            "Runs on",
            format!(
                "{}: {} {}, {} of {} memory promised{state}",
                cluster.name,
                cluster.workers,
                if cluster.workers == 1 { "worker" } else { "workers" },
                ByteSize(cluster.requested_memory_bytes),
                ByteSize(cluster.memory_bytes)
            ),
        );
        line("Storage", format!("{}: {}", cluster.name, cluster.storage_classes.join(", ")));
    }
    for it in &one.advice {
        line(
            "Advice",
            format!("{} is {}, better {}: {}; {}", it.setting, it.value, it.wanted, it.why, it.how),
        );
    }
    finish(head)
}

pub(crate) fn session(server: &str, one: &Session) -> String {
    let until = or_none(one.expires_at.as_ref().map(|at| time(at)));
    format!("logged in to {server} as {} ({}) until {until}", one.user, one.role)
}

pub(crate) fn who(server: &str, one: &WhoAmI) -> String {
    format!("{} ({}) at {server}", one.user, one.role)
}
