//! What the agents of an instance may do, as somebody may have changed it. An agent without one of
//! its rights says "forbidden" at most, and the next holder of the lease may be the first to need
//! it: so what is there is compared with what is wished as a whole.

use std::collections::BTreeSet;

use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, Subject};
use kube::api::ObjectMeta;
use larder_model::InstanceId;
use larder_model::kube::LABEL_INSTANCE;
use serde_json::Value;

use crate::objects;
use crate::options::KubeOptions;

/// The pods whose addresses agents may ask for by this Role; `None` when it is not in all else
/// what is wished. Which pods it has to name is known by their nodes alone.
pub(crate) fn given(options: &KubeOptions, role: &Role) -> Option<BTreeSet<String>> {
    let wish = objects::role(options, &instance_of(&role.metadata)?, &[]);
    let wish: Role = serde_json::from_value(wish).ok()?;
    let (rules, pods) = parted(role);
    (role.metadata.name == wish.metadata.name && rules == parted(&wish).0).then_some(pods)
}

/// The pods that a Role names which is about to be written.
pub(crate) fn pods_of(role: &Value) -> BTreeSet<String> {
    let role = serde_json::from_value(role.clone());
    role.map(|role| parted(&role).1).unwrap_or_default()
}

/// The rules without the names of pods, and these.
fn parted(role: &Role) -> (Vec<PolicyRule>, BTreeSet<String>) {
    let mut rules = role.rules.clone().unwrap_or_default();
    let mut pods = BTreeSet::new();
    let is_of_pods = |rule: &&mut PolicyRule| rule.resources.iter().flatten().eq(["pods"]);
    for rule in rules.iter_mut().filter(is_of_pods) {
        pods.extend(rule.resource_names.take().into_iter().flatten());
    }
    (rules, pods)
}

/// The Role is given to the agents, and nothing else to anybody.
pub(crate) fn binds(options: &KubeOptions, binding: &RoleBinding) -> bool {
    let Some(instance) = instance_of(&binding.metadata) else { return false };
    let wish = serde_json::from_value(objects::role_binding(options, &instance));
    wish.is_ok_and(|wish: RoleBinding| {
        binding.metadata.name == wish.metadata.name
            && binding.role_ref == wish.role_ref
            && subjects(binding) == subjects(&wish)
    })
}

/// The group of a ServiceAccount is the empty one, said or not.
fn subjects(binding: &RoleBinding) -> Vec<Subject> {
    let said = |subject: &Subject| {
        let api_group = subject.api_group.clone().filter(|group| !group.is_empty());
        Subject { api_group, ..subject.clone() }
    };
    binding.subjects.iter().flatten().map(said).collect()
}

fn instance_of(metadata: &ObjectMeta) -> Option<InstanceId> {
    InstanceId::new(metadata.labels.as_ref()?.get(LABEL_INSTANCE)?.as_str()).ok()
}

#[cfg(test)]
mod tests {
    use larder_model::agent::Member;
    use larder_model::{Address, NodeId};
    use serde_json::json;

    use super::*;

    fn options() -> KubeOptions {
        KubeOptions::new("east", "redis", "b-1")
    }

    fn instance() -> InstanceId {
        InstanceId::new("i-1").expect("valid")
    }

    fn member(id: &str) -> Member {
        Member {
            node: NodeId::new(id).expect("valid"),
            shard: 0,
            zone: None,
            address: Address::new("10.0.0.1", 6379),
            outer: None,
        }
    }

    fn role(edit: impl Fn(&mut Value)) -> Option<BTreeSet<String>> {
        let mut role = objects::role(&options(), &instance(), &[member("n-1"), member("n-2")]);
        edit(&mut role);
        given(&options(), &serde_json::from_value(role).expect("a Role"))
    }

    #[test]
    fn a_role_that_lacks_any_part_of_any_right_is_not_there() {
        let pods: BTreeSet<String> = ["n-1-0", "n-2-0"].map(str::to_owned).into();
        assert_eq!(role(|_| ()), Some(pods));
        assert_eq!(role(|role| role["rules"] = json!([])), None);
        assert_eq!(role(|role| role["metadata"]["labels"] = json!({})), None);
        for rule in 0..3 {
            let without =
                role(|role| drop(role["rules"].as_array_mut().expect("rules").remove(rule)));
            assert_eq!(without, None, "without rule {rule}");
            for part in ["apiGroups", "resources", "verbs", "resourceNames"] {
                // The pods that are left are told, and compared with the nodes that need them.
                let expected = (rule == 2 && part == "resourceNames").then(BTreeSet::new);
                let other = role(|role| role["rules"][rule][part] = json!(["other"]));
                let others = expected.clone().map(|_| BTreeSet::from(["other".to_owned()]));
                assert_eq!(other, others, "rule {rule}, other {part}");
                let none = role(|role| role["rules"][rule][part] = json!([]));
                assert_eq!(none, expected, "rule {rule} without {part}");
            }
            for verb in 0..3 {
                let all =
                    |role: &Value| role["rules"][rule]["verbs"].as_array().map_or(0, Vec::len);
                if verb < all(&objects::role(&options(), &instance(), &[])) {
                    let lacking = role(|role| {
                        let verbs = role["rules"][rule]["verbs"].as_array_mut().expect("verbs");
                        verbs.remove(verb);
                    });
                    assert_eq!(lacking, None, "rule {rule} without verb {verb}");
                }
            }
        }
        assert_eq!(
            role(|role| drop(role["rules"][1]["resourceNames"].as_array_mut().map(|n| n.pop()))),
            None,
            "one of two slices"
        );
        assert_eq!(
            role(|role| {
                let rule = json!({ "apiGroups": [""], "resources": ["secrets"], "verbs": ["get"] });
                role["rules"].as_array_mut().expect("rules").push(rule);
            }),
            None,
            "agents may do no more than they need"
        );
    }

    #[test]
    fn a_binding_to_anybody_else_or_of_another_role_is_not_there() {
        let binding = |edit: fn(&mut Value)| {
            let mut binding = objects::role_binding(&options(), &instance());
            edit(&mut binding);
            binds(&options(), &serde_json::from_value(binding).expect("a RoleBinding"))
        };
        assert!(binding(|_| ()));
        assert!(binding(|all| all["subjects"][0]["apiGroup"] = json!("")), "as it is by default");
        assert!(!binding(|all| all["metadata"]["labels"] = json!({})));
        assert!(!binding(|all| all["subjects"] = json!([])));
        assert!(!binding(|all| all["subjects"][0]["kind"] = json!("User")));
        assert!(!binding(|all| all["subjects"][0]["name"] = json!("i-2")));
        assert!(!binding(|all| all["subjects"][0]["namespace"] = json!("default")));
        assert!(!binding(|all| drop(
            all["subjects"][0].as_object_mut().map(|s| s.remove("namespace"))
        )));
        assert!(!binding(|all| all["roleRef"]["name"] = json!("i-2")));
        assert!(!binding(|all| all["roleRef"]["kind"] = json!("ClusterRole")));
    }
}
