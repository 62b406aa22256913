//! Binding: credentials, a client made of them, and what can be known before anything is made.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt};
use larder_cluster::ClusterError;
use larder_model::{Secret, Worker, secret_in_file};
use serde::{Deserialize, Serialize};

use crate::apply::Place;
use crate::error::chain;
use crate::options::{KubeOptions, Reach};

/// A connection that is not there by then is not there.
const CONNECT: Duration = Duration::from_secs(3);

/// How a cluster is entered. Holds secrets: to be kept encrypted.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Credentials {
    /// The text of a kubeconfig with everything in it, and the context to use.
    Kubeconfig {
        #[serde(with = "secret_in_file")]
        text: Secret,
        context: Option<String>,
    },
    /// The service account of the pod that this control plane runs in.
    InCluster,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kubeconfig { context, .. } => write!(f, "Kubeconfig({context:?}, ***)"),
            Self::InCluster => f.write_str("InCluster"),
        }
    }
}

/// Why credentials lead nowhere.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("the kubeconfig cannot be read: {0}")]
    Kubeconfig(String),
    /// It would make this program run another one, or read files of the machine it is on.
    #[error("the kubeconfig uses {0}: put the credentials themselves into it")]
    Foreign(&'static str),
    #[error("this program does not run in a Kubernetes cluster: {0}")]
    NotInside(String),
    #[error("making a client of the API server: {0}")]
    Client(String),
}

/// A client. Asks nothing yet.
///
/// # Errors
/// When the credentials are no credentials.
pub async fn connect(credentials: &Credentials) -> Result<Client, ConnectError> {
    let mut config = match credentials {
        Credentials::InCluster => {
            Config::incluster().map_err(|error| ConnectError::NotInside(chain(&error)))?
        }
        Credentials::Kubeconfig { text, context } => {
            let parsed = Kubeconfig::from_yaml(text.expose())
                .map_err(|error| ConnectError::Kubeconfig(chain(&error)))?;
            refuse_foreign(&parsed)?;
            let options =
                KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
            Config::from_custom_kubeconfig(parsed, &options)
                .await
                .map_err(|error| ConnectError::Kubeconfig(chain(&error)))?
        }
    };
    config.connect_timeout = Some(CONNECT);
    // Watches and forwarded ports are silent for long; short calls have their own deadlines.
    config.read_timeout = None;
    config.write_timeout = None;
    Client::try_from(config).map_err(|error| ConnectError::Client(chain(&error)))
}

/// A kubeconfig comes from a user: it may not make this program run commands or read files.
fn refuse_foreign(config: &Kubeconfig) -> Result<(), ConnectError> {
    for user in config.auth_infos.iter().filter_map(|named| named.auth_info.as_ref()) {
        if user.exec.is_some() || user.auth_provider.is_some() {
            return Err(ConnectError::Foreign("a credential plugin"));
        }
        if user.client_certificate.is_some()
            || user.client_key.is_some()
            || user.token_file.is_some()
        {
            return Err(ConnectError::Foreign("files of another machine"));
        }
    }
    let clusters = config.clusters.iter().filter_map(|named| named.cluster.as_ref());
    if clusters.into_iter().any(|cluster| cluster.certificate_authority.is_some()) {
        return Err(ConnectError::Foreign("files of another machine"));
    }
    Ok(())
}

/// What a cluster offers, and what is missing there.
#[derive(Clone, Debug)]
pub struct Check {
    /// Such as `v1.34.4`.
    pub version: String,
    pub workers: Vec<Worker>,
    /// Names of the storage classes; the default one is marked.
    pub storage_classes: Vec<(String, bool)>,
    /// `verb resource` of every right that is needed and not there.
    pub missing_rights: Vec<String>,
}

/// Every right that the backend uses, by API group; those on whole-cluster objects at the end.
const RIGHTS: &[(&str, &str, &[&str])] = &[
    ("", "configmaps", &["get", "list", "watch", "create", "update", "patch", "delete"]),
    ("", "secrets", &["get", "list", "watch", "create", "patch", "delete"]),
    ("", "services", &["list", "watch", "create", "patch", "delete"]),
    ("", "serviceaccounts", &["list", "create", "patch", "delete"]),
    ("", "persistentvolumeclaims", &["get", "list", "watch", "create", "delete"]),
    ("", "pods", &["get", "list", "watch", "delete"]),
    ("", "events", &["list", "watch"]),
    ("", "pods/portforward", &["get", "create"]),
    ("apps", "statefulsets", &["list", "watch", "create", "patch", "delete"]),
    ("coordination.k8s.io", "leases", &["get", "list", "watch", "create", "update", "delete"]),
    ("discovery.k8s.io", "endpointslices", &["get", "list", "watch", "create", "update", "delete"]),
    ("policy", "poddisruptionbudgets", &["list", "create", "patch", "delete"]),
    ("networking.k8s.io", "networkpolicies", &["list", "create", "patch", "delete"]),
    ("rbac.authorization.k8s.io", "roles", &["list", "create", "patch", "delete"]),
    ("rbac.authorization.k8s.io", "rolebindings", &["list", "create", "patch", "delete"]),
];
const CLUSTER_RIGHTS: &[(&str, &str, &[&str])] = &[
    ("", "nodes", &["list", "watch"]),
    ("", "pods", &["list", "watch"]),
    ("storage.k8s.io", "storageclasses", &["list"]),
];

/// Inside of the cluster agents are reached by their addresses.
fn is_needed(resource: &str, reach: Reach) -> bool {
    resource != "pods/portforward" || reach == Reach::PortForward
}

/// Asks a cluster what it is and what may be done there. Makes nothing.
///
/// # Errors
/// When it does not answer.
pub async fn check(client: Client, options: &KubeOptions) -> Result<Check, ClusterError> {
    check_place(&Place::new(client, options.clone())).await
}

/// As [`check`].
pub(crate) async fn check_place(place: &Place) -> Result<Check, ClusterError> {
    let version =
        place.ask("asking for the version", place.client.apiserver_version()).await?.git_version;
    let missing_rights = place.missing_rights().await?;
    let lacks = |right: &str| missing_rights.iter().any(|missing| missing == right);
    let workers = if lacks("list nodes") || lacks("list pods (all namespaces)") {
        Vec::new()
    } else {
        place.workers().await?
    };
    let storage_classes =
        if lacks("list storageclasses") { Vec::new() } else { place.storage_classes().await? };
    Ok(Check { version, workers, storage_classes, missing_rights })
}

/// Makes the namespace when it is missing, with Kubernetes' strictest rules for pods. Who may
/// neither make nor look at namespaces, but may work in this one, needs no more.
///
/// # Errors
/// When it is missing and may not be made, or the API server does not answer.
pub async fn ensure_namespace(client: Client, options: &KubeOptions) -> Result<(), ClusterError> {
    let place = Place::new(client, options.clone());
    let api: Api<Namespace> = Api::all(place.client.clone());
    let name = &options.namespace;
    let doing = format!("making namespace {name}");
    let mut wish = Namespace::default();
    wish.metadata.name = Some(name.clone());
    wish.metadata.labels = Some(BTreeMap::from([(
        "pod-security.kubernetes.io/enforce".to_owned(),
        "restricted".to_owned(),
    )]));
    if place.may("", "namespaces", "create", None).await? {
        let made = place.ask(&doing, async {
            match api.create(&PostParams::default(), &wish).await {
                Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(()),
                other => other.map(drop),
            }
        });
        return made.await;
    }
    // By name: a right may be for this one alone.
    if !place.may_on("", "namespaces", "get", None, Some(name)).await? {
        return Ok(());
    }
    match place.ask(&doing, api.get_opt(name)).await? {
        Some(_) => Ok(()),
        None => Err(ClusterError::Unreachable {
            cluster: options.name.clone(),
            reason: format!("there is no namespace {name}, and it may not be made"),
        }),
    }
}

impl Place {
    async fn missing_rights(&self) -> Result<Vec<String>, ClusterError> {
        let own = RIGHTS
            .iter()
            .filter(|(_, resource, _)| is_needed(resource, self.options.reach))
            .map(|right| (right, Some(self.options.namespace.clone())));
        let everywhere = CLUSTER_RIGHTS.iter().map(|right| (right, None));
        let mut missing = Vec::new();
        for ((group, resource, verbs), namespace) in own.chain(everywhere) {
            for verb in *verbs {
                if !self.may(group, resource, verb, namespace.as_deref()).await? {
                    let place = match namespace {
                        None if *resource == "pods" => " (all namespaces)",
                        _ => "",
                    };
                    missing.push(format!("{verb} {resource}{place}"));
                }
            }
        }
        Ok(missing)
    }

    async fn may(
        &self,
        group: &str,
        resource: &str,
        verb: &str,
        namespace: Option<&str>,
    ) -> Result<bool, ClusterError> {
        self.may_on(group, resource, verb, namespace, None).await
    }

    async fn may_on(
        &self,
        group: &str,
        resource: &str,
        verb: &str,
        namespace: Option<&str>,
        name: Option<&str>,
    ) -> Result<bool, ClusterError> {
        let (resource, subresource) = match resource.split_once('/') {
            Some((resource, sub)) => (resource, Some(sub.to_owned())),
            None => (resource, None),
        };
        let question = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    group: Some(group.to_owned()),
                    resource: Some(resource.to_owned()),
                    subresource,
                    verb: Some(verb.to_owned()),
                    namespace: namespace.map(str::to_owned),
                    name: name.map(str::to_owned),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let api: Api<SelfSubjectAccessReview> = Api::all(self.client.clone());
        let params = PostParams::default();
        let answer = self.ask("asking for our rights", api.create(&params, &question)).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    async fn storage_classes(&self) -> Result<Vec<(String, bool)>, ClusterError> {
        const DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
        let api: Api<StorageClass> = Api::all(self.client.clone());
        let all = ListParams::default();
        let list = self.ask("listing storage classes", api.list(&all)).await?;
        let mut classes: Vec<_> = (list.items.iter())
            .map(|class| {
                let is_default = class.annotations().get(DEFAULT).is_some_and(|v| v == "true");
                (class.name_any(), is_default)
            })
            .collect();
        classes.sort();
        Ok(classes)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn kubeconfig(user: &str) -> Credentials {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\n\
             clusters: [{{name: a, cluster: {{server: 'https://127.0.0.1:1'}}}}]\n\
             contexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n\
             users: [{{name: a, user: {user}}}]\n"
        );
        Credentials::Kubeconfig { text: Secret::new(text), context: None }
    }

    #[tokio::test]
    async fn a_kubeconfig_that_would_run_a_program_is_refused() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let plugin =
            kubeconfig("{exec: {apiVersion: client.authentication.k8s.io/v1, command: /bin/true}}");
        assert!(matches!(connect(&plugin).await, Err(ConnectError::Foreign(_))));
        let file = kubeconfig("{client-key: /etc/shadow, client-certificate: /etc/passwd}");
        assert!(matches!(connect(&file).await, Err(ConnectError::Foreign(_))));
        let token = kubeconfig("{token: t}");
        assert!(connect(&token).await.is_ok());
    }

    #[tokio::test]
    async fn a_context_that_is_not_there_is_said() {
        let Credentials::Kubeconfig { text, .. } = kubeconfig("{token: t}") else { unreachable!() };
        let credentials = Credentials::Kubeconfig { text, context: Some("elsewhere".to_owned()) };
        let error = connect(&credentials).await.err().expect("refused");
        assert!(error.to_string().contains("elsewhere"), "{error}");
    }

    /// The rules of a Role, one a line.
    fn rules(rights: &[(&str, &str, &[&str])]) -> Vec<String> {
        let rule = |(group, resource, verbs): &(&str, &str, &[&str])| {
            let group = if group.is_empty() { "\"\"" } else { group };
            let verbs = verbs.join(", ");
            format!("- {{ apiGroups: [{group}], resources: [{resource}], verbs: [{verbs}] }}")
        };
        rights.iter().map(rule).collect()
    }

    /// The manifest with the rules in it replaced, block by block.
    fn with_rules(manifest: &str, blocks: &[Vec<String>]) -> String {
        let (mut lines, mut blocks, mut inside) = (Vec::new(), blocks.iter(), false);
        for line in manifest.lines() {
            let rule = line.trim_start();
            if !rule.starts_with("- { apiGroups:") {
                inside = false;
                lines.push(line.to_owned());
            } else if !inside {
                inside = true;
                let indent = &line[..line.len() - rule.len()];
                let block = blocks.next().into_iter().flatten();
                lines.extend(block.map(|rule| format!("{indent}{rule}")));
            }
        }
        lines.join("\n") + "\n"
    }

    /// `UPDATE_RIGHTS=1` writes the manifests anew.
    #[test]
    fn the_manifests_grant_exactly_what_is_asked_for() {
        let inside = RIGHTS.iter().filter(|(_, kind, _)| is_needed(kind, Reach::Inside));
        let inside: Vec<_> = inside.copied().collect();
        let [inside, outside, everywhere] = [&*inside, RIGHTS, CLUSTER_RIGHTS].map(rules);
        for (file, blocks) in [
            ("helm/larder/files/rules.yaml", vec![inside]),
            ("helm/larder/files/cluster-rules.yaml", vec![everywhere.clone()]),
            ("kubernetes/bind.yaml", vec![outside, everywhere]),
        ] {
            let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging");
            let committed = std::fs::read_to_string(packaging.join(file)).unwrap();
            let right = with_rules(&committed, &blocks);
            if std::env::var_os("UPDATE_RIGHTS").is_some() {
                std::fs::write(packaging.join(file), &right).unwrap();
                continue;
            }
            let text = "does not say what RIGHTS says: run this test with UPDATE_RIGHTS=1";
            assert!(committed == right, "{file} {text}");
        }
    }

    #[test]
    fn debug_output_shows_no_credentials() {
        assert!(!format!("{:?}", kubeconfig("{token: very-secret}")).contains("very-secret"));
    }
}
