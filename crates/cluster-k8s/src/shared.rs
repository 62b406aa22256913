//! What the nodes of an instance share: its lease, what their pods may do, who may reach them. Of
//! these objects only their being there matters (of rights, that they still are what agents need),
//! and a watch of the lease would tell of every renewal; so they are listed now and then, and at once
//! when an agent misses its lease. What somebody has deleted makes its nodes incomplete, and they are
//! made whole again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::ResourceExt;
use kube::api::ObjectMeta;
use larder_cluster::ClusterError;
use larder_model::InstanceId;
use larder_model::kube::{LABEL_INSTANCE, LABEL_SHARD, budget_name, instance_name, pod_name};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::apply::Place;
use crate::mirror::Wake;
use crate::objects;
use crate::observe::node_of;
use crate::rights::{binds, given, pods_of};

/// The pause between two looks.
const EVERY: Duration = Duration::from_secs(20);
/// The shortest pause, when somebody misses something; it doubles while nothing is found to be gone:
/// who misses the lease of an overloaded API server is not helped by more questions.
const SOON: Duration = Duration::from_secs(2);
/// Who has said nothing of it for this long misses nothing any more.
const MISSES: Duration = Duration::from_secs(60);
/// Lists of a kind that fail one after the other until it is news.
const FAILURES: u32 = 3;

/// Of every node.
const ALWAYS: [&str; 2] = ["NetworkPolicy", "ServiceAccount"];
/// Of nodes that ask for a lease.
const LEASED: [&str; 3] = ["Lease", ROLE, "RoleBinding"];
const ROLE: &str = "Role";
const BUDGET: &str = "PodDisruptionBudget";

/// Kind and name.
type Part = (&'static str, String);

/// Objects of one kind by their names, and the pods that each gives a right on (a Role alone does).
type Named = HashMap<String, BTreeSet<String>>;

/// The parts that are there, by kind. A kind that was never listed is unknown, and unknown is not
/// absent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parts(BTreeMap<&'static str, Named>);

impl Parts {
    fn lacks(&self, kind: &str, name: &str) -> bool {
        self.0.get(kind).is_some_and(|all| !all.contains_key(name))
    }

    /// There is a Role of this name, and it does not name the pod.
    fn withholds(&self, name: &str, pod: &str) -> bool {
        let role = self.0.get(ROLE).and_then(|all| all.get(name));
        role.is_some_and(|pods| !pods.contains(pod))
    }

    /// All kinds were listed, and there is nothing.
    #[cfg(test)]
    pub(crate) fn without_any() -> Self {
        let kinds = ALWAYS.into_iter().chain(LEASED).chain([BUDGET]);
        Self(kinds.map(|kind| (kind, Named::new())).collect())
    }
}

/// What is known of the shared objects of a binding.
#[derive(Default)]
pub(crate) struct Shared {
    known: Mutex<Known>,
    /// Somebody misses something, again perhaps.
    missed: Notify,
    /// Somebody misses something who did not before.
    newly: Notify,
}

#[derive(Default)]
struct Known {
    there: Arc<Parts>,
    /// What this process has made or (`None`) deleted since the lists that are under way were asked
    /// for.
    written: HashMap<Part, Option<BTreeSet<String>>>,
    /// Whose agents miss the lease, and when they said so last.
    missing: HashMap<InstanceId, Instant>,
}

/// Why it is looked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// It is time.
    Due,
    Missed,
    NewlyMissed,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn known(&self) -> Arc<Parts> {
        self.lock().there.clone()
    }

    /// This process has made the object as it is here, or found that there is one; or has deleted it.
    pub(crate) fn wrote(&self, kind: &'static str, name: &str, object: Option<&Value>) {
        if kind != BUDGET && !ALWAYS.contains(&kind) && !LEASED.contains(&kind) {
            return;
        }
        let content = object.map(|object| match kind {
            ROLE => pods_of(object),
            _ => BTreeSet::new(),
        });
        let mut known = self.lock();
        if let Some(there) = Arc::make_mut(&mut known.there).0.get_mut(kind) {
            put(there, name, content.clone());
        }
        known.written.insert((kind, name.to_owned()), content);
    }

    /// Agents of the instance miss something: it is looked for soon.
    pub(crate) fn is_missed(&self, instance: &InstanceId) {
        let mut known = self.lock();
        let now = Instant::now();
        known.missing.retain(|_, said| now.duration_since(*said) < MISSES);
        let is_new = known.missing.insert(instance.clone(), now).is_none();
        drop(known);
        if is_new {
            self.newly.notify_one();
        }
        self.missed.notify_one();
    }

    fn begins(&self) {
        self.lock().written.clear();
    }

    /// All of a kind, asked for at [`Shared::begins`]. Answers what is there no longer.
    fn listed(&self, kind: &'static str, mut found: Named) -> Vec<Part> {
        let mut known = self.lock();
        for ((of, name), content) in &known.written {
            if *of == kind {
                put(&mut found, name, content.clone());
            }
        }
        let there = &mut Arc::make_mut(&mut known.there).0;
        let before = there.remove(kind).unwrap_or_default();
        let is_less = |(name, pods): &(String, BTreeSet<String>)| {
            found.get(name).is_none_or(|now| !now.is_superset(pods))
        };
        let gone = before.into_iter().filter(is_less).map(|(name, _)| (kind, name)).collect();
        there.insert(kind, found);
        gone
    }

    /// They are about to be made whole: what they miss after that is news.
    fn is_found_for(&self, instances: &[InstanceId]) {
        self.lock().missing.retain(|instance, _| !instances.contains(instance));
    }

    /// Waits until it shall be looked again. Who begins to miss something does not wait for those who
    /// have missed something in vain for long.
    async fn waits(&self, pause: Duration) -> Why {
        let newly = async {
            tokio::time::sleep(SOON).await;
            self.newly.notified().await;
        };
        let again = async {
            tokio::time::sleep(pause).await;
            tokio::time::timeout(EVERY - pause, self.missed.notified()).await.is_ok()
        };
        tokio::select! {
            biased;
            () = newly => Why::NewlyMissed,
            again = again => if again { Why::Missed } else { Why::Due },
        }
    }
}

fn put(all: &mut Named, name: &str, content: Option<BTreeSet<String>>) {
    match content {
        Some(content) => all.insert(name.to_owned(), content),
        None => all.remove(name),
    };
}

/// Whether all is there that the node of this StatefulSet shares with others.
pub(crate) fn is_whole(set: &StatefulSet, there: &Parts) -> bool {
    let labels = set.labels();
    let Some(instance) = labels.get(LABEL_INSTANCE).and_then(|id| InstanceId::new(id).ok()) else {
        return true;
    };
    let name = instance_name(&instance);
    let lacks = |kind: &&'static str| there.lacks(kind, &name);
    let pod = set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    // Who asks for no lease gets no token.
    let is_leased = pod.and_then(|pod| pod.automount_service_account_token).unwrap_or(false);
    let is_withheld =
        || node_of(&set.metadata).is_some_and(|node| there.withholds(&name, &pod_name(&node)));
    let shard = labels.get(LABEL_SHARD).and_then(|shard| shard.parse().ok());
    !ALWAYS.iter().any(lacks)
        && !(is_leased && (LEASED.iter().any(lacks) || is_withheld()))
        && !shard.is_some_and(|shard| there.lacks(BUDGET, &budget_name(&instance, shard)))
}

impl Place {
    /// Each kind by itself: one that may not be listed hides no other.
    async fn list_shared(&self) -> [(&'static str, Result<Named, ClusterError>); 6] {
        let (all, options) = (objects::selector(&self.options, None), &self.options);
        let (policies, accounts, leases, roles, bindings, budgets) = tokio::join!(
            self.metadata::<NetworkPolicy>(&all),
            self.metadata::<ServiceAccount>(&all),
            self.metadata::<Lease>(&all),
            self.list::<Role>(&all),
            self.list::<RoleBinding>(&all),
            self.metadata::<PodDisruptionBudget>(&all),
        );
        let named = |found: Vec<ObjectMeta>| {
            found.into_iter().filter_map(|one| Some((one.name?, BTreeSet::new()))).collect()
        };
        // Who asks the agents why they miss the lease is told "forbidden" at most: what somebody took
        // out of these two is seen here.
        let roles = roles.map(|all| {
            all.into_iter()
                .filter_map(|role| Some((role.name_any(), given(options, &role)?)))
                .collect()
        });
        let bindings = bindings.map(|all| {
            named(
                all.into_iter().filter(|one| binds(options, one)).map(|one| one.metadata).collect(),
            )
        });
        let [policy, account] = ALWAYS;
        let [lease, role, binding] = LEASED;
        [
            (policy, policies.map(named)),
            (account, accounts.map(named)),
            (lease, leases.map(named)),
            (role, roles),
            (binding, bindings),
            (BUDGET, budgets.map(named)),
        ]
    }
}

/// How the looks of one binding have gone.
#[derive(Default)]
struct Looks {
    /// The kinds that could not be listed the last time, and how often while others could.
    failing: BTreeMap<&'static str, u32>,
}

/// What one look has shown.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    gone: Vec<Part>,
    /// A kind could be listed that could not before.
    again: bool,
}

impl Looks {
    async fn look(&mut self, place: &Place) -> Found {
        place.shared.begins();
        let all = Box::pin(place.list_shared()).await;
        // Where nobody answers at all, everybody says so.
        let is_answered = all.iter().any(|(_, list)| list.is_ok());
        let mut found = Found::default();
        for (kind, list) in all {
            match list {
                Ok(named) => {
                    found.again |= self.succeeded(kind);
                    found.gone.extend(place.shared.listed(kind, named));
                }
                Err(error) => {
                    let cluster = &place.options.name;
                    if self.failed(kind, is_answered) {
                        tracing::warn!(
                            cluster, kind, %error,
                            "what nodes share cannot be listed, and is not made again when it is deleted"
                        );
                    } else {
                        tracing::debug!(cluster, kind, %error, "what nodes share not listed");
                    }
                }
            }
        }
        found
    }

    /// Whether it had failed before.
    fn succeeded(&mut self, kind: &'static str) -> bool {
        self.failing.remove(kind).is_some()
    }

    /// Whether the failure has to be told: once, when it lasts while others are listed.
    fn failed(&mut self, kind: &'static str, others_answer: bool) -> bool {
        let times = self.failing.entry(kind).or_default();
        *times = times.saturating_add(u32::from(others_answer));
        others_answer && *times == FAILURES
    }
}

/// The pause before the look after this one.
fn next_pause(pause: Duration, why: Why) -> Duration {
    match why {
        Why::Missed => (pause * 2).min(EVERY),
        Why::Due | Why::NewlyMissed => SOON,
    }
}

/// Looks for ever; to be aborted. `instances` are those that may miss something.
pub(crate) async fn look(
    place: Arc<Place>,
    wake: Arc<OnceLock<Wake>>,
    instances: impl Fn() -> BTreeSet<String>,
) {
    let mut pause = SOON;
    let mut looks = Looks::default();
    loop {
        let found = looks.look(&place).await;
        let lacking = of_which(&found.gone, instances());
        place.shared.is_found_for(&lacking);
        for instance in &lacking {
            tracing::info!(%instance, "something that its nodes share was deleted or changed");
            if let Some(wake) = wake.get() {
                wake(instance);
            }
        }
        if found.again || !found.gone.is_empty() {
            pause = SOON;
        }
        pause = next_pause(pause, place.shared.waits(pause).await);
    }
}

/// The instances that the parts are of.
fn of_which(parts: &[Part], instances: BTreeSet<String>) -> Vec<InstanceId> {
    let all = instances.into_iter().filter_map(|id| InstanceId::new(id).ok());
    all.filter(|instance| {
        let name = instance_name(instance);
        let budgets = format!("{name}-s");
        parts
            .iter()
            .any(|(kind, part)| *part == name || (*kind == BUDGET && part.starts_with(&budgets)))
    })
    .collect()
}

#[cfg(test)]
mod tests;
