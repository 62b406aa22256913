//! Binding Kubernetes clusters: from what a person asks to a backend of the fleet, and back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use larder_api::{Binder, How, rfc3339};
use larder_api_types::{
    BindContainerCluster, ContainerCluster, SetContainerCluster, StorageClass, Worker,
};
use larder_cluster::{Cluster as _, ClusterError};
use larder_cluster_k8s::{
    Check, Credentials, Expose, KubeCluster, KubeOptions, Reach, Wake, check, connect,
    ensure_namespace, known_engines,
};
use larder_model::{
    ByteSize, Code, EngineName, IdSource as _, Refusal, STANDARD_STORAGE_CLASS, Secret, WorkerState,
};
use larder_reconcile::Clock;
use larder_store::{ContainerClusterRow, InstanceFilter, InstanceRow};
use serde::{Deserialize, Serialize};

use crate::entry;
use crate::fleet::{Fleet, unusable_binding};
use crate::pull;

const NAMESPACE: &str = "larder";
/// For the first answer of a container cluster; a look is for a person who waits.
const LOOK: Duration = Duration::from_secs(5);

/// What the store keeps of a binding, besides name, owner and credentials.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    /// That there are images of.
    #[serde(default = "known_engines")]
    engines: Vec<EngineName>,
    #[serde(default)]
    pull_secrets: Vec<String>,
    #[serde(default)]
    spread: Spread,
    #[serde(default)]
    outer_address: Option<String>,
}

/// How the nodes of a shard are spread over workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Spread {
    /// On different ones, and a cluster instance over six.
    #[default]
    Strict,
    /// As far as there are workers.
    Preferred,
}

impl Spread {
    fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Preferred => "preferred",
        }
    }

    fn asked(text: &str) -> Result<Self, Refusal> {
        [Self::Strict, Self::Preferred].into_iter().find(|how| how.as_str() == text).ok_or_else(
            || {
                let text = format!("`{text}` is no way to spread: use strict or preferred");
                Refusal::new(Code::InvalidRequest, text).field("spread")
            },
        )
    }
}

/// Binds Kubernetes clusters into a fleet.
pub(crate) struct KubeBinder {
    fleet: Arc<Fleet>,
    clock: Arc<dyn Clock>,
    /// Looks again at an instance that a container cluster has news of.
    wake: Wake,
}

impl KubeBinder {
    pub(crate) fn new(fleet: Arc<Fleet>, clock: Arc<dyn Clock>, wake: Wake) -> Self {
        Self { fleet, clock, wake }
    }

    /// Takes up every binding that the store has. One that cannot be entered is logged: its
    /// instances are unknown until it is bound anew.
    pub(crate) async fn take_up(&self, rows: &[ContainerClusterRow]) {
        for row in rows {
            self.bound(row).await;
        }
    }

    /// An engine that instances run on there keeps its image: their next pods need it.
    async fn refuse_engines_in_use(
        &self,
        cluster: &str,
        engines: &[EngineName],
    ) -> Result<(), Refusal> {
        let all = self.fleet.store().instance_list(&InstanceFilter::default()).await;
        let all = all.map_err(|error| Refusal::new(Code::Internal, error.to_string()))?;
        let left = |row: &&InstanceRow| {
            row.spec.container_cluster == cluster && !engines.contains(&row.spec.engine)
        };
        match all.iter().find(left) {
            None => Ok(()),
            Some(row) => {
                let (engine, name) = (&row.spec.engine, &row.spec.name);
                let detail = format!("engine `{engine}` runs instance `{name}`: it has to stay");
                Err(Refusal::new(Code::EngineInUse, detail).field("engines"))
            }
        }
    }
}

#[async_trait]
impl Binder for KubeBinder {
    async fn prepare(
        &self,
        asked: &BindContainerCluster,
        known: Option<&ContainerClusterRow>,
        how: How,
    ) -> Result<ContainerClusterRow, Refusal> {
        let former = known.map(stored_options).transpose()?;
        // What is left out stays as it was, or has its default.
        let before = former.clone().filter(|_| how == How::Again);
        let expose = match asked.expose.as_deref() {
            None => before.as_ref().map_or(Expose::default(), |old| old.expose),
            Some(text) => Expose::asked(text)?,
        };
        let owner =
            known.map_or_else(|| larder_api::RandomIds.id_text('b'), |row| row.owner.clone());
        let defaults = KubeOptions::new(&asked.name, NAMESPACE, &owner);
        let old = |pick: fn(&Options) -> String| before.as_ref().map(pick);
        let mut options = Options {
            namespace: (asked.namespace.clone())
                .or_else(|| former.as_ref().map(|old| old.namespace.clone()))
                .unwrap_or(defaults.namespace),
            image: (asked.image.clone())
                .or_else(|| old(|old| old.image.clone()))
                .unwrap_or(defaults.image),
            storage_class: match asked.storage_class.as_deref() {
                None => before.as_ref().and_then(|old| old.storage_class.clone()),
                Some(name) => (!name.is_empty()).then(|| name.to_owned()),
            },
            storage_classes: Vec::new(),
            volume_bytes: (asked.volume_bytes)
                .or(before.as_ref().map(|old| old.volume_bytes))
                .unwrap_or(defaults.volume_size.bytes()),
            expose,
            engines: engines(asked, before.as_ref())?,
            pull_secrets: pull::names(
                asked.pull_secrets.as_deref(),
                before.as_ref().map(|old| old.pull_secrets.as_slice()),
            )?,
            // It is changed by `set` alone.
            spread: former.as_ref().map(|old| old.spread).unwrap_or_default(),
            outer_address: match asked.outer_address.as_deref() {
                None => before.as_ref().and_then(|old| old.outer_address.clone()),
                Some(text) => outer_address(text)?,
            },
        };
        self.refuse_engines_in_use(&asked.name, &options.engines).await?;
        if let Some(former) = &former
            && former.namespace != options.namespace
        {
            return Err(Refusal::new(
                Code::InvalidRequest,
                format!(
                    "container cluster `{}` uses namespace {}, and what is there cannot move",
                    asked.name, former.namespace
                ),
            )
            .field("namespace"));
        }
        let credentials = entry::credentials(asked, known, how)?;
        let kube = kube_options(&asked.name, &owner, &options, &credentials);
        let client = connect(&credentials).await.map_err(|e| unusable(&e.to_string()))?;
        let seen = check(client.clone(), &kube).await.map_err(|e| unusable(&e.to_string()))?;
        refuse_useless(&kube, &seen)?;
        if let Some(known) = known {
            let store = self.fleet.store();
            entry::refuse_another_cluster(store, known, &credentials, client.clone(), &kube)
                .await?;
        }
        options.storage_classes = classes(kube.storage_class.as_deref(), &seen);
        // Who may work in the namespace that it runs in needs no right to make one.
        if credentials != Credentials::InCluster {
            ensure_namespace(client, &kube).await.map_err(|e| unusable(&e.to_string()))?;
        }
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
            Ok(cluster) => self.fleet.insert(cluster.waking(self.wake.clone())),
            Err(error) => {
                tracing::error!(cluster = row.name, %error, "container cluster cannot be entered");
                self.fleet.shut(&row.name, error);
            }
        }
    }

    fn unbound(&self, name: &str) {
        self.fleet.remove(name);
    }

    fn is_in_use(&self, name: &str) -> bool {
        self.fleet.bound(name).is_some()
    }

    fn engines(&self) -> Vec<(String, Vec<EngineName>)> {
        let bound = self.fleet.bindings().into_iter();
        bound.map(|one| (one.name().to_owned(), one.options().engines.clone())).collect()
    }

    async fn look(&self, name: &str) -> Option<ContainerCluster> {
        if let Some(local) = self.fleet.local(name) {
            let workers = local.workers().await;
            let engines = self.fleet.store().engine_list().await.unwrap_or_default();
            return Some(ContainerCluster {
                name: name.to_owned(),
                kind: "local".to_owned(),
                reachable: workers.is_ok(),
                problem: workers.as_ref().err().map(ToString::to_string),
                engines: engines.into_iter().map(|engine| engine.name.to_string()).collect(),
                workers_ready: ready(workers.as_deref().unwrap_or_default()),
                workers: workers.unwrap_or_default().iter().map(worker).collect(),
                storage_classes: vec![StorageClass {
                    name: STANDARD_STORAGE_CLASS.to_owned(),
                    default: true,
                }],
                ..ContainerCluster::default()
            });
        }
        let cluster = match self.fleet.binding(name)? {
            Ok(cluster) => cluster,
            Err(reason) => {
                return Some(ContainerCluster {
                    name: name.to_owned(),
                    kind: "kubernetes".to_owned(),
                    problem: Some(unusable_binding(name, &reason)),
                    ..ContainerCluster::default()
                });
            }
        };
        let options = cluster.options();
        let health = cluster.health(LOOK).await;
        let workers = match tokio::time::timeout(LOOK, cluster.workers()).await {
            Ok(Ok(workers)) => workers,
            // As they were when they were seen last.
            _ => cluster.last_workers(),
        };
        let useless = |check: &Check| refuse_useless(options, check).err();
        let lacks = health.check.as_ref().and_then(useless).map(|refusal| refusal.detail);
        let spread = if options.spread_strictly { Spread::Strict } else { Spread::Preferred };
        let (version, classes) = match health.check {
            Some(check) => (Some(check.version), check.storage_classes),
            None => (None, Vec::new()),
        };
        Some(ContainerCluster {
            name: name.to_owned(),
            kind: "kubernetes".to_owned(),
            reachable: health.reachable,
            since: health.since.map(rfc3339),
            problem: health.reason.or(lacks),
            version,
            namespace: Some(options.namespace.clone()),
            expose: Some(options.expose.to_string()),
            outer_address: options.outer_address.clone(),
            image: Some(options.image.clone()),
            engines: options.engines.iter().map(ToString::to_string).collect(),
            pull_secrets: options.pull_secrets.clone(),
            spread: Some(spread.as_str().to_owned()),
            workers_ready: if health.reachable { ready(&workers) } else { 0 },
            workers: workers.iter().map(worker).collect(),
            storage_classes: (classes.into_iter())
                .map(|(name, default)| StorageClass { name, default })
                .collect(),
            requests: cluster.requests(),
        })
    }

    async fn change(
        &self,
        asked: &SetContainerCluster,
        known: &ContainerClusterRow,
    ) -> Result<ContainerClusterRow, Refusal> {
        let mut options = stored_options(known)?;
        if let Some(text) = &asked.spread {
            options.spread = Spread::asked(text)?;
        }
        if let Some(names) = &asked.pull_secrets {
            options.pull_secrets = pull::names(Some(names), None)?;
            let cluster = enter(known, &options).await.map_err(|e| unusable(&e))?;
            let found = cluster.pull_secrets().await.map_err(|e| unusable(&e.to_string()))?;
            pull::refuse_unfit(&options.namespace, &found)?;
        }
        let options = serde_json::to_value(&options)
            .map_err(|error| Refusal::new(Code::Internal, error.to_string()))?;
        Ok(ContainerClusterRow { options, ..known.clone() })
    }

    async fn confirm_lost(&self, name: &str, worker: &str) -> Result<(), Refusal> {
        let Some(cluster) = self.fleet.bound(name) else {
            if let Some(Err(reason)) = self.fleet.binding(name) {
                return Err(unusable(&unusable_binding(name, &reason)));
            }
            let text = if self.fleet.local(name).is_some() {
                format!("`{name}` is this machine: its one worker is where this server runs")
            } else {
                format!("there is no container cluster `{name}`")
            };
            return Err(Refusal::new(Code::NotFound, text));
        };
        cluster.confirm_lost(worker).await.map_err(|error| match error {
            ClusterError::Refused(refusal) => refusal,
            other => unusable(&other.to_string()),
        })
    }
}

fn ready(workers: &[larder_model::Worker]) -> u32 {
    let ready = workers.iter().filter(|worker| worker.state == WorkerState::Ready).count();
    u32::try_from(ready).unwrap_or(u32::MAX)
}

fn worker(worker: &larder_model::Worker) -> Worker {
    Worker {
        name: worker.name.to_string(),
        zone: worker.zone.as_ref().map(ToString::to_string),
        address: worker.address.clone(),
        state: worker.state.as_str().to_owned(),
        memory_bytes: worker.allocatable.bytes(),
        requested_memory_bytes: worker.requested.bytes(),
    }
}

/// The engines of a binding: those asked for, those that it had, or those that Larder knows.
fn engines(
    asked: &BindContainerCluster,
    before: Option<&Options>,
) -> Result<Vec<EngineName>, Refusal> {
    let Some(names) = &asked.engines else {
        return Ok(before.map_or_else(known_engines, |old| old.engines.clone()));
    };
    let refuse = |detail| Refusal::new(Code::InvalidRequest, detail).field("engines");
    let all: Result<BTreeSet<_>, _> =
        names.iter().map(|name| EngineName::new(name.as_str())).collect();
    let all = all.map_err(|error| refuse(format!("{error}: write it like redis-7.0")))?;
    if all.is_empty() {
        return Err(refuse("at least one engine has to have an image".to_owned()));
    }
    Ok(all.into_iter().collect())
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
    pull::refuse_unfit(&options.namespace, &seen.pull_secrets)
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
        engines: options.engines.clone(),
        pull_secrets: options.pull_secrets.clone(),
        spread_strictly: options.spread == Spread::Strict,
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
    enter(row, &options).await
}

/// The binding with these options, by its credentials. Asks nothing yet.
async fn enter(row: &ContainerClusterRow, options: &Options) -> Result<KubeCluster, String> {
    let credentials = entry::stored(row).map_err(|refusal| refusal.detail)?;
    let client = connect(&credentials).await.map_err(|error| error.to_string())?;
    Ok(KubeCluster::new(client, kube_options(&row.name, &row.owner, options, &credentials)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_keeps_its_engines_until_others_are_named() {
        let asked = |names: Option<&[&str]>| BindContainerCluster {
            name: "east".to_owned(),
            engines: names.map(|names| names.iter().map(|name| (*name).to_owned()).collect()),
            ..BindContainerCluster::default()
        };
        let of =
            |names: &[&str]| names.iter().map(|name| EngineName::new(*name).unwrap()).collect();
        let old = serde_json::json!({ "namespace": "n", "image": "i", "volume_bytes": 1 });
        let mut old: Options = serde_json::from_value(old).unwrap();
        assert_eq!(old.engines, known_engines(), "a binding of before there was a list");
        assert_eq!(engines(&asked(None), None), Ok(known_engines()));
        old.engines = of(&["valkey-8.0"]);
        assert_eq!(engines(&asked(None), Some(&old)), Ok(of(&["valkey-8.0"])));
        let twice = asked(Some(&["redis-7.0", "redis-6.2", "redis-7.0"]));
        assert_eq!(engines(&twice, Some(&old)), Ok(of(&["redis-6.2", "redis-7.0"])));
        for wrong in [&[][..], &["No Engine"]] {
            let refusal = engines(&asked(Some(wrong)), None).unwrap_err();
            assert_eq!(refusal.field.as_deref(), Some("engines"), "{wrong:?}");
        }
    }

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
            storage_classes: found.map(|(name, default)| (name.to_owned(), default)).to_vec(),
            missing_rights: Vec::new(),
            pull_secrets: Vec::new(),
        };
        assert_eq!(classes(None, &seen), ["plain", "fast", "tape"]);
        assert_eq!(classes(Some("tape"), &seen), ["tape", "fast", "plain"]);
    }
}
