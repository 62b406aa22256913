//! The Secrets of a binding by which pods pull their images: what may be named, and what has to be there.

use larder_cluster_k8s::{Found, PULL_SECRET_TYPE, PullSecret};
use larder_model::{Code, Refusal};

/// What a binding names from now on: what is asked for, each once, or what it named before.
///
/// # Errors
/// `invalid-request` for what cannot be the name of a Secret.
pub(crate) fn names(
    asked: Option<&[String]>,
    before: Option<&[String]>,
) -> Result<Vec<String>, Refusal> {
    let Some(asked) = asked else { return Ok(before.unwrap_or_default().to_vec()) };
    let mut all: Vec<String> = Vec::new();
    for name in asked {
        if !is_name(name) {
            let detail = format!("`{name}` cannot be the name of a Secret");
            return Err(Refusal::new(Code::InvalidRequest, detail).field("pull_secrets"));
        }
        if !all.contains(name) {
            all.push(name.clone());
        }
    }
    Ok(all)
}

/// As Kubernetes takes it for most objects: lower-case letters and digits, inner `-` and `.`.
fn is_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= 253
        && name.starts_with(is_plain)
        && name.ends_with(is_plain)
        && name.chars().all(|c| is_plain(c) || c == '-' || c == '.')
}

/// Refuses a binding by whose Secrets no pod could pull.
///
/// # Errors
/// `container-cluster-unusable` with what to do about the first one that does not fit.
pub(crate) fn refuse_unfit(namespace: &str, found: &[PullSecret]) -> Result<(), Refusal> {
    let Some(unfit) = found.iter().find(|secret| secret.found != Found::Fit) else { return Ok(()) };
    let name = &unfit.name;
    let wrong = match unfit.found {
        Found::OtherType => format!(
            "Secret `{name}` is not of type {PULL_SECRET_TYPE} (or the older kubernetes.io/dockercfg)"
        ),
        Found::Fit | Found::Nothing => format!("there is no Secret `{name}` to pull images by"),
    };
    let detail = format!(
        "in namespace {namespace} {wrong}: make it with `kubectl --namespace {namespace} create \
         secret docker-registry {name} --from-file=.dockerconfigjson=FILE`, then try again"
    );
    Err(Refusal::new(Code::ContainerClusterUnusable, detail).field("pull_secrets"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_binding_keeps_its_pull_secrets_until_others_are_named() {
        let old = list(&["old"]);
        assert_eq!(names(None, None), Ok(Vec::new()));
        assert_eq!(names(None, Some(&old)), Ok(old.clone()));
        assert_eq!(names(Some(&[]), Some(&old)), Ok(Vec::new()));
        let twice = list(&["registry.east", "a", "registry.east"]);
        assert_eq!(names(Some(&twice), Some(&old)), Ok(list(&["registry.east", "a"])));
    }

    #[test]
    fn what_cannot_be_a_secrets_name_is_refused() {
        for wrong in ["", "Registry", "a,type=Opaque", "-a", "a.", "a b", &"a".repeat(254)] {
            let refusal = names(Some(&list(&[wrong])), None).expect_err(wrong);
            assert_eq!(refusal.field.as_deref(), Some("pull_secrets"), "{wrong}");
        }
    }

    #[test]
    fn a_missing_pull_secret_and_one_of_another_type_are_refused_with_what_to_do() {
        let secret = |name: &str, found| PullSecret { name: name.to_owned(), found };
        let fit = secret("good", Found::Fit);
        assert_eq!(refuse_unfit("redis", &[]), Ok(()));
        assert_eq!(refuse_unfit("redis", std::slice::from_ref(&fit)), Ok(()));
        for (found, words) in
            [(Found::Nothing, "no Secret `bad`"), (Found::OtherType, "not of type kubernetes.io/")]
        {
            let refusal = refuse_unfit("redis", &[fit.clone(), secret("bad", found)]);
            let refusal = refusal.expect_err("refused");
            assert_eq!(refusal.code, Code::ContainerClusterUnusable);
            assert!(refusal.detail.contains(words), "{}", refusal.detail);
            assert!(refusal.detail.contains("--namespace redis create secret docker-registry bad"));
        }
    }
}
