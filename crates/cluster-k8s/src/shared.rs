//! What the nodes of an instance share: its lease, what their pods may do, who may reach them. Of
//! these objects only their being there matters (of rights, that they still give the lease), and a
//! watch of the lease would tell of every renewal; so they are listed now and then, and at once when
//! an agent misses its lease. What somebody has deleted makes its nodes incomplete, and they are made
//! whole again.

use std::collections::{BTreeSet, HashMap, HashSet};
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
use larder_model::kube::{LABEL_INSTANCE, LABEL_SHARD, budget_name, instance_name};
use tokio::sync::Notify;

use crate::apply::Place;
use crate::mirror::Wake;
use crate::objects;

/// The pause between two looks.
const EVERY: Duration = Duration::from_secs(20);
/// The shortest pause, when somebody misses something; it doubles while nothing is found to be gone:
/// who misses the lease of an overloaded API server is not helped by more questions.
const SOON: Duration = Duration::from_secs(2);

/// Of every node.
const ALWAYS: [&str; 2] = ["NetworkPolicy", "ServiceAccount"];
/// Of nodes that ask for a lease.
const LEASED: [&str; 3] = ["Lease", "Role", "RoleBinding"];
const BUDGET: &str = "PodDisruptionBudget";

/// Kind and name.
type Part = (&'static str, String);

/// The parts that are there.
pub(crate) type Parts = Arc<HashSet<Part>>;

/// What is known of the shared objects of a binding.
#[derive(Default)]
pub(crate) struct Shared {
    known: Mutex<Known>,
    missed: Notify,
}

#[derive(Default)]
struct Known {
    /// `None`: never listed. Unknown is not absent.
    there: Option<Parts>,
    /// What this process has made or deleted since the list that is under way was asked for.
    written: HashMap<Part, bool>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn known(&self) -> Option<Parts> {
        self.lock().there.clone()
    }

    /// This process has made the object, or found that it is there; or has deleted it.
    pub(crate) fn wrote(&self, kind: &'static str, name: &str, is_there: bool) {
        if kind != BUDGET && !ALWAYS.contains(&kind) && !LEASED.contains(&kind) {
            return;
        }
        let part = (kind, name.to_owned());
        let mut known = self.lock();
        if let Some(there) = &mut known.there {
            let there = Arc::make_mut(there);
            if is_there {
                there.insert(part.clone());
            } else {
                there.remove(&part);
            }
        }
        known.written.insert(part, is_there);
    }

    /// Somebody misses something: it is looked for soon.
    pub(crate) fn is_missed(&self) {
        self.missed.notify_one();
    }

    fn begins(&self) {
        self.lock().written.clear();
    }

    /// A whole list, asked for at [`Shared::begins`]. Answers what is there no longer.
    fn listed(&self, mut there: HashSet<Part>) -> Vec<Part> {
        let mut known = self.lock();
        for (part, is_there) in &known.written {
            if *is_there {
                there.insert(part.clone());
            } else {
                there.remove(part);
            }
        }
        let before = known.there.take().unwrap_or_default();
        let gone = before.difference(&there).cloned().collect();
        known.there = Some(Arc::new(there));
        gone
    }
}

/// Whether all is there that the node of this StatefulSet shares with others.
pub(crate) fn is_whole(set: &StatefulSet, known: Option<&Parts>) -> bool {
    let Some(there) = known else { return true };
    let labels = set.labels();
    let Some(instance) = labels.get(LABEL_INSTANCE).and_then(|id| InstanceId::new(id).ok()) else {
        return true;
    };
    let name = instance_name(&instance);
    let has = |kind: &&'static str| there.contains(&(*kind, name.clone()));
    let pod = set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    // Who asks for no lease gets no token.
    let is_leased = pod.and_then(|pod| pod.automount_service_account_token).unwrap_or(false);
    let shard = labels.get(LABEL_SHARD).and_then(|shard| shard.parse().ok());
    ALWAYS.iter().all(has)
        && (!is_leased || LEASED.iter().all(has))
        && shard.is_none_or(|shard| there.contains(&(BUDGET, budget_name(&instance, shard))))
}

impl Place {
    async fn list_shared(&self) -> Result<HashSet<Part>, ClusterError> {
        let all = objects::selector(&self.options, None);
        let (policies, accounts, leases, roles, bindings, budgets) = tokio::try_join!(
            self.metadata::<NetworkPolicy>(&all),
            self.metadata::<ServiceAccount>(&all),
            self.metadata::<Lease>(&all),
            self.list::<Role>(&all),
            self.list::<RoleBinding>(&all),
            self.metadata::<PodDisruptionBudget>(&all),
        )?;
        let named = |kind: &'static str, found: Vec<ObjectMeta>| {
            found.into_iter().filter_map(move |metadata| Some((kind, metadata.name?)))
        };
        // Who asks the agents why they miss the lease is told "forbidden" at most: what somebody took
        // out of these two is seen here.
        let roles = roles.into_iter().filter(gives_lease).map(|role| role.metadata).collect();
        let bindings = bindings.into_iter().filter(binds).map(|one| one.metadata).collect();
        let [policy, account] = ALWAYS;
        let [lease, role, binding] = LEASED;
        Ok(named(policy, policies)
            .chain(named(account, accounts))
            .chain(named(lease, leases))
            .chain(named(role, roles))
            .chain(named(binding, bindings))
            .chain(named(BUDGET, budgets))
            .collect())
    }
}

/// The agents may still do with their lease what they do.
fn gives_lease(role: &Role) -> bool {
    let holds = |all: &Option<Vec<String>>, one: &str| {
        all.as_ref().is_some_and(|all| all.iter().any(|each| each == one))
    };
    role.rules.iter().flatten().any(|rule| {
        holds(&rule.resources, "leases")
            && holds(&rule.resource_names, &role.name_any())
            && ["get", "update", "watch"].iter().all(|verb| rule.verbs.iter().any(|v| v == verb))
    })
}

/// The role is still given to the agents. Which role it gives cannot be changed once it is made.
fn binds(binding: &RoleBinding) -> bool {
    let name = binding.name_any();
    (binding.subjects.iter().flatten())
        .any(|subject| subject.kind == "ServiceAccount" && subject.name == name)
}

/// Looks for ever; to be aborted. `instances` are those that may miss something.
pub(crate) async fn look(
    place: Arc<Place>,
    wake: Arc<OnceLock<Wake>>,
    instances: impl Fn() -> BTreeSet<String>,
) {
    let mut pause = SOON;
    loop {
        place.shared.begins();
        let mut found_gone = false;
        match Box::pin(place.list_shared()).await {
            Ok(there) => {
                let gone = place.shared.listed(there);
                found_gone = !gone.is_empty();
                for instance in of_which(&gone, instances()) {
                    tracing::info!(%instance, "something that its nodes share was deleted");
                    if let Some(wake) = wake.get() {
                        wake(&instance);
                    }
                }
            }
            Err(error) => {
                tracing::debug!(cluster = place.options.name, %error, "shared objects not listed");
            }
        }
        tokio::time::sleep(pause).await;
        let asked = tokio::time::timeout(EVERY - pause, place.shared.missed.notified()).await;
        pause = match asked {
            Ok(()) if !found_gone => (pause * 2).min(EVERY),
            _ => SOON,
        };
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
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set(leased: bool) -> StatefulSet {
        serde_json::from_value(json!({
            "metadata": { "name": "n-1", "labels": { LABEL_INSTANCE: "i-1", LABEL_SHARD: "0" } },
            "spec": {
                "serviceName": "n-1",
                "selector": {},
                "template": { "spec": { "automountServiceAccountToken": leased, "containers": [] } },
            },
        }))
        .expect("a StatefulSet")
    }

    fn all() -> HashSet<Part> {
        let name = instance_name(&InstanceId::new("i-1").expect("valid"));
        let named = ALWAYS.into_iter().chain(LEASED).map(|kind| (kind, name.clone()));
        named.chain([(BUDGET, format!("{name}-s0"))]).collect()
    }

    #[test]
    fn a_node_is_whole_with_everything_that_it_shares() {
        for part in all() {
            let mut there = all();
            assert!(is_whole(&set(true), Some(&Arc::new(there.clone()))));
            there.remove(&part);
            let lacking = Arc::new(there);
            assert!(!is_whole(&set(true), Some(&lacking)), "without {part:?}");
            let unleased = LEASED.contains(&part.0);
            assert_eq!(is_whole(&set(false), Some(&lacking)), unleased, "without {part:?}");
        }
        assert!(is_whole(&set(true), None), "unknown is not absent");
    }

    #[test]
    fn rights_that_somebody_has_taken_the_lease_out_of_are_not_there() {
        let options = crate::options::KubeOptions::new("east", "redis", "b-1");
        let instance = InstanceId::new("i-1").expect("valid");
        let role = |edit: fn(&mut Value)| {
            let mut role = objects::role(&options, &instance, &[]);
            edit(&mut role);
            gives_lease(&serde_json::from_value(role).expect("a Role"))
        };
        assert!(role(|_| ()));
        assert!(!role(|role| role["rules"] = json!([])));
        assert!(!role(|role| role["rules"][0]["verbs"] = json!(["get", "watch"])));
        assert!(!role(|role| role["rules"][0]["resourceNames"] = json!(["other"])));
        let binding = |edit: fn(&mut Value)| {
            let mut binding = objects::role_binding(&options, &instance);
            edit(&mut binding);
            binds(&serde_json::from_value(binding).expect("a RoleBinding"))
        };
        assert!(binding(|_| ()));
        assert!(!binding(|binding| binding["subjects"] = json!([])));
    }

    #[test]
    fn what_is_made_while_a_list_is_under_way_is_there() {
        let shared = Shared::default();
        shared.begins();
        assert!(shared.listed(HashSet::new()).is_empty());
        shared.wrote("Lease", "i-1", true);
        shared.wrote("Secret", "n-1", true);
        let lease = ("Lease", "i-1".to_owned());
        assert_eq!(shared.known().expect("listed").iter().collect::<Vec<_>>(), [&lease]);
        shared.begins();
        shared.wrote("Role", "i-1", true);
        shared.wrote("RoleBinding", "i-1", false);
        // As it was before these writes, and without the lease.
        let gone = shared.listed(HashSet::from([("RoleBinding", "i-1".to_owned())]));
        assert_eq!(gone, [lease]);
        let role = ("Role", "i-1".to_owned());
        assert_eq!(shared.known().expect("listed").iter().collect::<Vec<_>>(), [&role]);
    }

    #[test]
    fn the_instances_of_what_is_gone_are_told() {
        let instances = BTreeSet::from(["i-1".to_owned(), "i-10".to_owned(), "i-2".to_owned()]);
        let name = |id: &str| instance_name(&InstanceId::new(id).expect("valid"));
        let gone = [("Lease", name("i-2")), (BUDGET, format!("{}-s0", name("i-1")))];
        let told = of_which(&gone, instances);
        assert_eq!(told.iter().map(InstanceId::as_str).collect::<Vec<_>>(), ["i-1", "i-2"]);
    }
}
