//! What the API server holds, in memory: one watch per kind for the whole binding.
//!
//! An observation is read from here and costs no request. It is honest: a kind that was not
//! listed yet, or whose watch is broken, or an API server that is silent, is unknown; and what this
//! process has written itself is waited for, or asked for directly.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    ConfigMap, Event, Node, PersistentVolumeClaim, Pod, Secret, Service,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ObjectMeta;
use kube::core::PartialObjectMeta;
use kube::{Api, Resource};
use larder_cluster::ClusterError;
use larder_model::kube::LABEL_INSTANCE;
use larder_model::{InstanceId, NodeId, Worker};
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;

use crate::apply::Place;
use crate::count;
use crate::hindrance::{self, of_node, told};
use crate::objects;
use crate::observe::Seen;
use crate::pulse::{Health, Pulse};
use crate::shared::{self, Parts};
use crate::store::{Changed, Store, Told};
use crate::watch::{News, Watch, key};
use crate::workers::{LIVING, Use, used, workers};
use crate::writes::Write;

/// The first lists of a binding, and one that has to be repeated, take no longer, or it is unknown.
const LISTS: Duration = Duration::from_secs(8);
/// A watch tells of a write within milliseconds; after this the API server is asked directly.
const OWN_WRITE: Duration = Duration::from_millis(300);

/// Says that something of an instance has changed.
pub type Wake = Arc<dyn Fn(&InstanceId) + Send + Sync>;

/// The workers, and as of how many changes of the workers and of what runs on them.
type Counted = ((u64, u64), Vec<Worker>);

/// Everything of one binding.
pub(crate) struct Mirror {
    place: Arc<Place>,
    stores: Arc<Stores>,
    pulse: Arc<Pulse>,
    changed: Changed,
    workers: Mutex<Option<Counted>>,
    tasks: Vec<JoinHandle<()>>,
}

struct Stores {
    sets: Arc<Store<StatefulSet>>,
    services: Arc<Store<Service>>,
    claims: Arc<Store<PersistentVolumeClaim>>,
    secrets: Arc<Store<PartialObjectMeta<Secret>>>,
    pods: Arc<Store<Pod>>,
    slices: Arc<Store<EndpointSlice>>,
    records: Arc<Store<PartialObjectMeta<ConfigMap>>>,
    /// Of the cluster: its workers, and what all pods request of them.
    nodes: Arc<Store<Node>>,
    uses: Arc<Store<Use>>,
    /// What events say, by node. It explains and is never decided from, so it may be missing: a
    /// binding of an earlier version has no right to it.
    told: Arc<Store<hindrance::Told>>,
}

impl Mirror {
    /// Begins to watch. To be called on a tokio runtime.
    pub(crate) fn start(place: Arc<Place>, wake: Arc<OnceLock<Wake>>) -> Self {
        let changed = Changed::new();
        let stores = Arc::new(Stores::new(&changed));
        let pulse = Arc::new(Pulse::new(changed.clone()));
        let mut tasks = stores.watch(&place, &wake);
        tasks.push(tokio::spawn({
            let (place, pulse) = (place.clone(), pulse.clone());
            async move { pulse.beat(&place).await }
        }));
        tasks.push(tokio::spawn({
            let (place, pulse) = (place.clone(), pulse.clone());
            async move { pulse.look(&place).await }
        }));
        tasks.push(tokio::spawn(count::log(place.clone())));
        let of = stores.clone();
        tasks.push(tokio::spawn(shared::look(place.clone(), wake, move || of.sets.groups())));
        Self { place, stores, pulse, changed, workers: Mutex::default(), tasks }
    }

    /// What is of `instance`, not older than this process' own writes.
    pub(crate) async fn see(&self, instance: &InstanceId) -> Result<Seen, ClusterError> {
        self.counts().await?;
        let seen = || self.stores.has_own_writes(&self.place, instance);
        if !self.changed.until(OWN_WRITE, seen).await {
            tracing::debug!(%instance, "the watches are behind; asking directly");
            return Ok(self.stores.explained(self.place.see(instance).await?));
        }
        Ok(self.stores.explained(self.stores.seen(instance, self.place.shared.known())))
    }

    /// Every instance of which anything is there.
    pub(crate) async fn instances(&self) -> Result<BTreeSet<InstanceId>, ClusterError> {
        self.counts().await?;
        let seen = || self.stores.has_all_own_writes(&self.place);
        if !self.changed.until(OWN_WRITE, seen).await {
            return self.place.instances().await;
        }
        let all = self.stores.groups();
        Ok(all.into_iter().filter_map(|group| InstanceId::new(group).ok()).collect())
    }

    /// The workers, sorted by name, with what all pods of the cluster request of them.
    pub(crate) async fn workers(&self) -> Result<Vec<Worker>, ClusterError> {
        self.counts().await?;
        Ok(self.last_workers())
    }

    /// The workers as they were seen last, whether that counts or not.
    pub(crate) fn last_workers(&self) -> Vec<Worker> {
        let as_of = (self.stores.nodes.changes(), self.stores.uses.changes());
        let mut kept = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, workers)) = kept.as_ref().filter(|(of, _)| *of == as_of) {
            return workers.clone();
        }
        let ((nodes_at, nodes), (uses_at, uses)) =
            (self.stores.nodes.all(), self.stores.uses.all());
        let counted = workers(nodes.iter().map(|node| &**node), uses.iter().map(|used| &**used));
        *kept = Some(((nodes_at, uses_at), counted.clone()));
        counted
    }

    /// Whether the binding answers. Waits for the first answer, `within` at most.
    pub(crate) async fn health(&self, within: Duration) -> Health {
        self.changed.until(within, || self.pulse.is_known()).await;
        let mut health = self.pulse.health();
        // It answers, and yet something cannot be watched: that is no health either.
        if health.reachable
            && let Err(reason) = self.stores.counts()
        {
            health.reason = Some(reason);
        }
        health
    }

    /// The pod of this name as it was last seen; `None` also when nothing is known.
    pub(crate) fn pod(&self, name: &str) -> Option<Arc<Pod>> {
        self.stores.pods.get(&key(Some(&self.place.options.namespace), Some(name)))
    }

    /// The version of a Secret as it was last seen; `None` also when nothing is known.
    pub(crate) fn secret_version(&self, name: &str) -> Option<String> {
        let name = key(Some(&self.place.options.namespace), Some(name));
        self.stores.secrets.get(&name)?.metadata.resource_version.clone()
    }

    /// Whether what is known of pods counts just now.
    pub(crate) fn knows_pods(&self) -> bool {
        self.pulse.counts().is_ok() && self.stores.pods.counts().is_ok()
    }

    /// # Errors
    /// Why the API server is silent.
    pub(crate) fn answers(&self) -> Result<(), String> {
        self.pulse.counts()
    }

    /// # Errors
    /// [`ClusterError::Unreachable`], with the first reason why what is here does not count.
    async fn counts(&self) -> Result<(), ClusterError> {
        let counts = || self.pulse.counts().and_then(|()| self.stores.counts());
        let known = || counts().is_ok() || self.in_trouble();
        self.changed.until(LISTS, known).await;
        counts().map_err(|reason| ClusterError::Unreachable {
            cluster: self.place.options.name.clone(),
            reason,
        })
    }

    /// There is nothing to wait for.
    fn in_trouble(&self) -> bool {
        self.pulse.is_silent() || self.stores.trouble().is_some()
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Stores {
    fn new(changed: &Changed) -> Self {
        fn store<V>(changed: &Changed) -> Arc<Store<V>> {
            Arc::new(Store::new(changed.clone()))
        }
        Self {
            sets: store(changed),
            services: store(changed),
            claims: store(changed),
            secrets: store(changed),
            pods: store(changed),
            slices: store(changed),
            records: store(changed),
            nodes: store(changed),
            // Every word about the state of any pod is told here.
            uses: Arc::new(Store::of_news(changed.clone())),
            told: store(changed),
        }
    }

    /// Every store, with what people call what it knows.
    fn all(&self) -> [(&'static str, &dyn Told); 9] {
        [
            ("StatefulSets", &*self.sets),
            ("Services", &*self.services),
            ("PersistentVolumeClaims", &*self.claims),
            ("Secrets", &*self.secrets),
            ("Pods", &*self.pods),
            ("EndpointSlices", &*self.slices),
            ("ConfigMaps", &*self.records),
            ("Nodes", &*self.nodes),
            ("Pods of all namespaces", &*self.uses),
        ]
    }

    fn watch(&self, place: &Arc<Place>, wake: &Arc<OnceLock<Wake>>) -> Vec<JoinHandle<()>> {
        let own = Own { place, wake };
        let nodes = Watch {
            api: Api::<Node>::all(place.client.clone()),
            selector: None,
            fields: None,
            keep: light,
            group: of_none,
            store: self.nodes.clone(),
            news: Arc::new(|_: &str| {}),
        };
        let uses = Watch {
            api: Api::<Pod>::all(place.client.clone()),
            selector: None,
            // Finished pods hold nothing any more.
            fields: Some(LIVING),
            keep: used,
            group: of_none,
            store: self.uses.clone(),
            news: Arc::new(|_: &str| {}),
        };
        let told = Watch {
            api: Api::<Event>::namespaced(place.client.clone(), &place.options.namespace),
            // Events carry no labels of ours.
            selector: None,
            fields: None,
            keep: told,
            group: of_node,
            store: self.told.clone(),
            news: Arc::new(|_: &str| {}),
        };
        vec![
            tokio::spawn(told.run()),
            own.watch(&self.sets, |object: StatefulSet| object),
            own.watch(&self.services, |object: Service| object),
            own.watch(&self.claims, |object: PersistentVolumeClaim| object),
            own.watch(&self.secrets, |object: PartialObjectMeta<Secret>| object),
            own.watch(&self.pods, |object: Pod| object),
            own.watch(&self.slices, |object: EndpointSlice| object),
            own.watch(&self.records, |object: PartialObjectMeta<ConfigMap>| object),
            tokio::spawn(nodes.run()),
            tokio::spawn(uses.run()),
        ]
    }

    /// Why something cannot be known just now, if that is known.
    fn trouble(&self) -> Option<String> {
        self.all().into_iter().find_map(|(_, store)| store.trouble())
    }

    fn counts(&self) -> Result<(), String> {
        self.all().into_iter().try_for_each(|(kind, store)| {
            store.counts().map_err(|reason| format!("watching {kind}: {reason}"))
        })
    }

    /// The groups of the kinds by which an instance is seen.
    fn groups(&self) -> BTreeSet<String> {
        let mut all = self.records.groups();
        all.extend(self.services.groups());
        all.extend(self.sets.groups());
        all.extend(self.claims.groups());
        all.extend(self.secrets.groups());
        all
    }

    fn seen(&self, instance: &InstanceId, shared: Arc<Parts>) -> Seen {
        let group = instance.as_str();
        Seen {
            sets: self.sets.of(group),
            services: self.services.of(group),
            claims: self.claims.of(group),
            secrets: self.secrets.of(group).iter().map(|o| o.metadata.clone()).collect(),
            pods: self.pods.of(group),
            slices: self.slices.of(group),
            told: BTreeMap::new(),
            shared,
        }
    }

    /// With what events say of the nodes.
    fn explained(&self, mut seen: Seen) -> Seen {
        let told = |id: NodeId| {
            let told = self.told.of(id.as_str());
            (id, told)
        };
        seen.told = seen.node_ids().into_iter().map(told).collect();
        seen
    }

    fn has_own_writes(&self, place: &Place, instance: &InstanceId) -> bool {
        let namespace = &place.options.namespace;
        let writes = &place.writes;
        writes.are_seen(instance.as_str(), |kind, name, write| {
            self.has_write(namespace, kind, name, write)
        })
    }

    fn has_all_own_writes(&self, place: &Place) -> bool {
        let namespace = &place.options.namespace;
        place.writes.are_all_seen(|kind, name, write| self.has_write(namespace, kind, name, write))
    }

    fn has_write(&self, namespace: &str, kind: &str, name: &str, write: &Write) -> bool {
        let name = key(Some(namespace), Some(name));
        match kind {
            "StatefulSet" => has(&self.sets, &name, write),
            "Service" => has(&self.services, &name, write),
            "PersistentVolumeClaim" => has(&self.claims, &name, write),
            "Secret" => has(&self.secrets, &name, write),
            "Pod" => has(&self.pods, &name, write),
            "EndpointSlice" => has(&self.slices, &name, write),
            "ConfigMap" => has(&self.records, &name, write),
            // Nothing of an observation is made of it.
            _ => true,
        }
    }
}

/// What is of this binding.
struct Own<'a> {
    place: &'a Arc<Place>,
    wake: &'a Arc<OnceLock<Wake>>,
}

impl Own<'_> {
    fn watch<K, V>(&self, store: &Arc<Store<V>>, keep: fn(K) -> V) -> JoinHandle<()>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned
            + Send
            + Sync
            + 'static,
        V: Send + Sync + 'static,
    {
        let wake = self.wake.clone();
        let news: News = Arc::new(move |group: &str| {
            if let (Some(wake), Ok(instance)) = (wake.get(), InstanceId::new(group)) {
                wake(&instance);
            }
        });
        let (client, options) = (self.place.client.clone(), &self.place.options);
        let watch = Watch {
            api: Api::<K>::namespaced(client, &options.namespace),
            selector: Some(objects::selector(options, None)),
            fields: None,
            keep,
            group: of_instance,
            store: store.clone(),
            news,
        };
        tokio::spawn(watch.run())
    }
}

/// Whether the watch has told of the write.
fn has<K: Resource>(store: &Store<K>, name: &str, write: &Write) -> bool {
    match write {
        Write::Version(version) => store.has_seen(*version),
        Write::Gone { uid, version } => {
            store.has_seen(*version)
                && store.get(name).is_none_or(|object| {
                    let metadata = object.meta();
                    metadata.deletion_timestamp.is_some() || metadata.uid.as_ref() != Some(uid)
                })
        }
    }
}

fn of_instance(metadata: &ObjectMeta) -> String {
    let label = metadata.labels.as_ref().and_then(|labels| labels.get(LABEL_INSTANCE));
    label.cloned().unwrap_or_default()
}

fn of_none(_: &ObjectMeta) -> String {
    String::new()
}

/// A worker without the images it has, which are most of it.
fn light(mut node: Node) -> Node {
    if let Some(status) = &mut node.status {
        status.images = None;
        status.volumes_attached = None;
        status.volumes_in_use = None;
    }
    node
}
