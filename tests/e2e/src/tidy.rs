//! Nothing orphaned, nothing doubled: processes, folders and ports against what is listed.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use larder_testkit::kubernetes::{Namespace, pod_of};
use larder_testkit::process::Kind;
use larder_testkit::{Instance, Larder};
use serde_json::Value;

fn names_in(folder: &Path) -> BTreeSet<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return BTreeSet::new() };
    entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect()
}

/// Ports that somebody has: a released one rests, with its time of release, before it is used
/// again.
pub fn ports_in_use(larder: &Larder) -> BTreeSet<String> {
    let folder = larder.data().join("ports");
    let rests = |name: &String| {
        let text = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        value.get("released_at").is_some_and(|at| !at.is_null())
    };
    names_in(&folder)
        .into_iter()
        .filter(|name| name.parse::<u16>().is_ok() && !rests(name))
        .collect()
}

/// All instances, as `larder instance list` shows them.
///
/// # Errors
/// They cannot be listed.
pub async fn listed(larder: &Larder) -> Result<Vec<Instance>> {
    let value = larder.json(&["instance", "list"]).await?;
    serde_json::from_value(value).context("not a list of instances")
}

/// Compares what runs and lies about with what is listed.
///
/// # Errors
/// Something is left over, doubled or missing.
pub async fn check_tidy(larder: &Larder) -> Result<()> {
    let instances = listed(larder).await?;
    if let Some(namespace) = larder.namespace() {
        return check_tidy_pods(larder, namespace, &instances).await;
    }
    let nodes: usize = instances.iter().map(|i| i.nodes.len()).sum();
    let processes = larder.processes();
    let count = |kind: Kind| processes.iter().filter(|p| p.kind == kind).count();
    ensure!(
        count(Kind::Agent) == nodes,
        "{} agents for {nodes} nodes: {processes:#?}",
        count(Kind::Agent)
    );
    ensure!(
        count(Kind::Server) == nodes,
        "{} servers for {nodes} nodes: {processes:#?}",
        count(Kind::Server)
    );
    ensure!(
        count(Kind::Relay) == instances.len(),
        "{} relays for {} instances: {processes:#?}",
        count(Kind::Relay),
        instances.len()
    );
    ensure!(count(Kind::Keeper) == 1 && count(Kind::Serve) <= 1, "{processes:#?}");

    let ids: BTreeSet<String> = instances.iter().map(|i| i.id.clone()).collect();
    let folders = names_in(&larder.data().join("instances"));
    ensure!(folders == ids, "folders {folders:?} for instances {ids:?}");
    let mut desired = BTreeSet::new();
    let mut ports = BTreeSet::new();
    for instance in &instances {
        desired.insert(format!("relay-{}.json", instance.id));
        ports.extend(instance.endpoints.values().map(|e| e.port.to_string()));
        let of_instance: BTreeSet<String> = instance.nodes.iter().map(|n| n.id.clone()).collect();
        let on_disk = names_in(&larder.instance_folder(instance).join("nodes"));
        ensure!(on_disk == of_instance, "node folders {on_disk:?} for nodes {of_instance:?}");
        for node in &instance.nodes {
            desired.insert(format!("agent-{}.json", node.id));
            ports.extend(node.port.map(|port| port.to_string()));
        }
    }
    for part in ["keeper/desired", "keeper/state"] {
        let found = names_in(&larder.data().join(part));
        ensure!(found == desired, "{part} holds {found:?}, not {desired:?}");
    }
    let in_use = ports_in_use(larder);
    ensure!(in_use == ports, "ports {in_use:?} are taken, {ports:?} are used");
    Ok(())
}

/// One StatefulSet, one claim and one pod for each node that is listed, and none for others; in each
/// pod one agent and one server.
async fn check_tidy_pods(
    larder: &Larder,
    namespace: &Namespace,
    instances: &[Instance],
) -> Result<()> {
    let nodes: BTreeSet<String> =
        instances.iter().flat_map(|i| &i.nodes).map(|node| node.id.clone()).collect();
    for (kind, prefix) in [
        ("statefulsets", "statefulset.apps/"),
        ("persistentvolumeclaims", "persistentvolumeclaim/"),
    ] {
        let found: BTreeSet<String> = (namespace.names(kind).await?.iter())
            .map(|name| name.trim_start_matches(prefix).to_owned())
            .collect();
        ensure!(found == nodes, "{kind} {found:?} for nodes {nodes:?}");
    }
    let pods: BTreeSet<String> = (namespace.names("pods").await?.iter())
        .map(|name| name.trim_start_matches("pod/").to_owned())
        .collect();
    let wanted: BTreeSet<String> = nodes.iter().map(|node| pod_of(node)).collect();
    ensure!(pods == wanted, "pods {pods:?}, not {wanted:?}");
    for instance in instances {
        for node in &instance.nodes {
            larder.agent_pid(&node.id)?;
            larder.server_pid(instance, &node.id)?;
        }
    }
    Ok(())
}
