//! Binding Kubernetes clusters: from what a person asks to a backend of the fleet, and back.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use larder_api::Binder;
use larder_api_types::{BindContainerCluster, ContainerCluster, StorageClass, Worker};
use larder_cluster::Cluster as _;
use larder_cluster_k8s::{
    Check, Credentials, Expose, KubeCluster, KubeOptions, Reach, check, connect, ensure_namespace,
};
use larder_model::{ByteSize, Code, IdSource as _, Refusal, STANDARD_STORAGE_CLASS, Secret};
use larder_reconcile::Clock;
use larder_store::ContainerClusterRow;
use serde::{Deserialize, Serialize};

use crate::fleet::Fleet;

const NAMESPACE: &str = "larder";
/// A look is for a person who waits.
const LOOK: Duration = Duration::from_secs(5);

/// What the store keeps of a binding, besides name, owner and credentials.
#[derive(Debug, Serialize, Deserialize)]
struct Options {
    namespace: String,
    image: String,
    #[serde(default)]
    storage_class: Option<String>,
    /// As they were found; the default first.
    #[serde(default)]
    storage_classes: Vec<String>,
    volume_bytes: u64,
    #[serde(default)]
    expose: Expose,
    #[serde(default)]
    outer_address: Option<String>,
}

/// Binds Kubernetes clusters into a fleet.
pub(crate) struct KubeBinder {
    fleet: Arc<Fleet>,
    clock: Arc<dyn Clock>,
}

impl KubeBinder {
    pub(crate) fn new(fleet: Arc<Fleet>, clock: Arc<dyn Clock>) -> Self {
        Self { fleet, clock }
    }

    /// Takes up every binding that the store has. One that cannot be entered is logged: its
    /// instances are unknown until it is bound anew.
    pub(crate) async fn take_up(&self, rows: &[ContainerClusterRow]) {
        for row in rows {
            self.bound(row).await;
        }
    }
}

#[async_trait]
impl Binder for KubeBinder {
    async fn prepare(
        &self,
        asked: &BindContainerCluster,
        known: Option<&ContainerClusterRow>,
    ) -> Result<ContainerClusterRow, Refusal> {
        let before = known.map(stored_options).transpose()?;
        let expose = match asked.expose.as_deref() {
            None => before.as_ref().map_or(Expose::default(), |old| old.expose),
            Some(text) => serde_json::from_value(text.into()).map_err(|_| {
                Refusal::new(
                    Code::InvalidRequest,
                    format!(
                        "`{text}` is no way to expose: use load-balancer, node-port or cluster-ip"
                    ),
                )
                .field("expose")
            })?,
        };
        let owner =
            known.map_or_else(|| larder_api::RandomIds.id_text('b'), |row| row.owner.clone());
        let defaults = KubeOptions::new(&asked.name, NAMESPACE, &owner);
        let old = |pick: fn(&Options) -> String| before.as_ref().map(pick);
        let mut options = Options {
            namespace: (asked.namespace.clone())
                .or_else(|| old(|old| old.namespace.clone()))
                .unwrap_or(defaults.namespace),
            image: (asked.image.clone())
                .or_else(|| old(|old| old.image.clone()))
                .unwrap_or(defaults.image),
            storage_class: (asked.storage_class.clone())
                .or_else(|| before.as_ref().and_then(|old| old.storage_class.clone())),
            storage_classes: Vec::new(),
            volume_bytes: (asked.volume_bytes)
                .or(before.as_ref().map(|old| old.volume_bytes))
                .unwrap_or(defaults.volume_size.bytes()),
            expose,
            outer_address: match asked.outer_address.as_deref() {
                None => before.as_ref().and_then(|old| old.outer_address.clone()),
                Some(text) => outer_address(text)?,
            },
        };
        if let Some(before) = &before
            && before.namespace != options.namespace
        {
            return Err(Refusal::new(
                Code::InvalidRequest,
                format!(
                    "container cluster `{}` uses namespace {}, and what is there cannot move",
                    asked.name, before.namespace
                ),
            )
            .field("namespace"));
        }
        let credentials = match &asked.kubeconfig {
            Some(text) => {
                Credentials::Kubeconfig { text: text.clone(), context: asked.context.clone() }
            }
            None => Credentials::InCluster,
        };
        let kube = kube_options(&asked.name, &owner, &options, &credentials);
        let client = connect(&credentials).await.map_err(|e| unusable(&e.to_string()))?;
        let seen = check(client.clone(), &kube).await.map_err(|e| unusable(&e.to_string()))?;
        refuse_useless(&kube, &seen)?;
        options.storage_classes = classes(kube.storage_class.as_deref(), &seen);
        ensure_namespace(client, &kube).await.map_err(|e| unusable(&e.to_string()))?;
        let text = |error: serde_json::Error| Refusal::new(Code::Internal, error.to_string());
        Ok(ContainerClusterRow {
            name: asked.name.clone(),
            owner,
            options: serde_json::to_value(&options).map_err(text)?,
            credentials: Secret::new(serde_json::to_string(&credentials).map_err(text)?),
            bound_at: self.clock.now(),
        })
    }

    async fn bound(&self, row: &ContainerClusterRow) {
        match open(row).await {
            Ok(cluster) => self.fleet.insert(cluster),
            Err(error) => {
                tracing::error!(cluster = row.name, %error, "container cluster cannot be entered");
            }
        }
    }

    fn unbound(&self, name: &str) {
        self.fleet.remove(name);
    }

    async fn look(&self, name: &str) -> Option<ContainerCluster> {
        if name == self.fleet.local().name() {
            let workers = self.fleet.local().workers().await;
            return Some(ContainerCluster {
                name: name.to_owned(),
                kind: "local".to_owned(),
                reachable: workers.is_ok(),
                problem: workers.as_ref().err().map(ToString::to_string),
                version: None,
                namespace: None,
                expose: None,
                outer_address: None,
                workers: workers.unwrap_or_default().iter().map(worker).collect(),
                storage_classes: vec![StorageClass {
                    name: STANDARD_STORAGE_CLASS.to_owned(),
                    default: true,
                }],
            });
        }
        let cluster = self.fleet.bound(name)?;
        let options = cluster.options();
        let seen = match tokio::time::timeout(LOOK, cluster.check()).await {
            Ok(seen) => seen.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", LOOK.as_secs())),
        };
        let expose = serde_json::to_value(options.expose).ok();
        let mut shown = ContainerCluster {
            name: name.to_owned(),
            kind: "kubernetes".to_owned(),
            reachable: seen.is_ok(),
            problem: seen.as_ref().err().cloned(),
            version: None,
            namespace: Some(options.namespace.clone()),
            expose: expose.and_then(|value| Some(value.as_str()?.to_owned())),
            outer_address: options.outer_address.clone(),
            workers: Vec::new(),
            storage_classes: Vec::new(),
        };
        if let Ok(seen) = seen {
            shown.problem = refuse_useless(options, &seen).err().map(|refusal| refusal.detail);
            shown.version = Some(seen.version);
            shown.workers = seen.workers.iter().map(worker).collect();
            let classes = seen.storage_classes.into_iter();
            shown.storage_classes =
                classes.map(|(name, default)| StorageClass { name, default }).collect();
        }
        Some(shown)
    }
}

fn worker(worker: &larder_model::Worker) -> Worker {
    let state = serde_json::to_value(worker.state).ok();
    Worker {
        name: worker.name.to_string(),
        zone: worker.zone.as_ref().map(ToString::to_string),
        address: worker.address.clone(),
        state: state.and_then(|value| Some(value.as_str()?.to_owned())).unwrap_or_default(),
        memory_bytes: worker.allocatable.bytes(),
        requested_memory_bytes: worker.requested.bytes(),
    }
}

/// A cluster in which no instance could live.
fn refuse_useless(options: &KubeOptions, seen: &Check) -> Result<(), Refusal> {
    if !seen.missing_rights.is_empty() {
        return Err(unusable(&format!(
            "in namespace {} these rights are missing: {}",
            options.namespace,
            seen.missing_rights.join(", ")
        )));
    }
    if let Some(class) = &options.storage_class
        && !seen.storage_classes.iter().any(|(name, _)| name == class)
    {
        let all: Vec<_> = seen.storage_classes.iter().map(|(name, _)| name.as_str()).collect();
        return Err(unusable(&format!(
            "there is no storage class `{class}`, only: {}",
            all.join(", ")
        ))
        .field("storage_class"));
    }
    if options.storage_class.is_none() && !seen.storage_classes.iter().any(|(_, default)| *default)
    {
        return Err(unusable("it has no default storage class: name one").field("storage_class"));
    }
    Ok(())
}

/// What volumes can be made of: first what is used where an instance does not say.
fn classes(chosen: Option<&str>, seen: &Check) -> Vec<String> {
    let is_default = |name: &str, default: bool| chosen.map_or(default, |chosen| chosen == name);
    let mut all: Vec<_> = (seen.storage_classes.iter())
        .map(|(name, default)| (!is_default(name, *default), name.clone()))
        .collect();
    all.sort();
    all.into_iter().map(|(_, name)| name).collect()
}

/// What servers may announce and clients may be told; empty takes it back.
fn outer_address(text: &str) -> Result<Option<String>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    // As Redis takes it (`isValidAnnouncedHostname`), and no longer than a name can be.
    let is_host = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if text.len() > 253 || !text.chars().all(is_host) {
        return Err(Refusal::new(
            Code::InvalidRequest,
            format!("`{text}` is neither a name nor an IPv4 address that leads to the workers"),
        )
        .field("outer_address"));
    }
    Ok(Some(text.to_owned()))
}

fn unusable(detail: &str) -> Refusal {
    Refusal::new(Code::ContainerClusterUnusable, detail)
}

fn stored_options(row: &ContainerClusterRow) -> Result<Options, Refusal> {
    serde_json::from_value(row.options.clone()).map_err(|error| {
        Refusal::new(
            Code::Internal,
            format!("the options of container cluster `{}` cannot be read: {error}", row.name),
        )
    })
}

fn kube_options(
    name: &str,
    owner: &str,
    options: &Options,
    credentials: &Credentials,
) -> KubeOptions {
    KubeOptions {
        image: options.image.clone(),
        storage_class: options.storage_class.clone(),
        storage_classes: options.storage_classes.clone(),
        volume_size: ByteSize(options.volume_bytes),
        expose: options.expose,
        outer_address: options.outer_address.clone(),
        reach: match credentials {
            Credentials::InCluster => Reach::Inside,
            Credentials::Kubeconfig { .. } => Reach::PortForward,
        },
        ..KubeOptions::new(name, &options.namespace, owner)
    }
}

async fn open(row: &ContainerClusterRow) -> Result<KubeCluster, String> {
    let options = stored_options(row).map_err(|refusal| refusal.detail)?;
    let credentials: Credentials = serde_json::from_str(row.credentials.expose())
        .map_err(|_| "its credentials cannot be read".to_owned())?;
    let client = connect(&credentials).await.map_err(|error| error.to_string())?;
    Ok(KubeCluster::new(client, kube_options(&row.name, &row.owner, &options, &credentials)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outer_address_is_a_host_without_a_port() {
        assert_eq!(outer_address("redis.example"), Ok(Some("redis.example".to_owned())));
        assert_eq!(outer_address("10.0.0.1"), Ok(Some("10.0.0.1".to_owned())));
        assert_eq!(outer_address(""), Ok(None));
        for wrong in ["redis.example:6379", "two words", "a\nport 1", "\"", "::1"] {
            let refusal = outer_address(wrong).expect_err("refused");
            assert_eq!(refusal.field.as_deref(), Some("outer_address"), "{wrong}");
        }
    }

    #[test]
    fn the_class_that_is_used_by_itself_comes_first() {
        let found = [("fast", false), ("plain", true), ("tape", false)];
        let seen = Check {
            version: String::new(),
            workers: Vec::new(),
            storage_classes: found.map(|(name, default)| (name.to_owned(), default)).to_vec(),
            missing_rights: Vec::new(),
        };
        assert_eq!(classes(None, &seen), ["plain", "fast", "tape"]);
        assert_eq!(classes(Some("tape"), &seen), ["tape", "fast", "plain"]);
    }
}
