//! Binding: credentials, a client made of them, and what can be known before anything is made.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, StreamExt, TryStreamExt};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Api, Client, Config, ResourceExt};
use larder_cluster::ClusterError;
use larder_model::{InstanceId, Secret, secret_in_file};
use serde::{Deserialize, Serialize};

use crate::apply::Place;
use crate::error::chain;
use crate::options::{KubeOptions, Reach};
use crate::pull::PullSecret;

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
    let mut config = config(credentials).await?;
    config.connect_timeout = Some(CONNECT);
    // Watches and forwarded ports are silent for long; short calls have their own deadlines.
    config.read_timeout = None;
    config.write_timeout = None;
    Client::try_from(config).map_err(|error| {
        ConnectError::Client(match error {
            // Its own words quote the address of the proxy, and that may hold a password.
            kube::Error::ProxyProtocolUnsupported { .. }
            | kube::Error::ProxyProtocolDisabled { .. } => {
                "the kubeconfig names a proxy, and proxies are not supported".to_owned()
            }
            other => chain(&other),
        })
    })
}

/// Whether both lead to the same API server for sure: the same address, and the same authority
/// that vouches for it. Pods of two clusters have the same words for their own, so that of one's
/// own cluster nothing is sure.
pub async fn lead_to_the_same(one: &Credentials, other: &Credentials) -> bool {
    if [one, other].contains(&&Credentials::InCluster) {
        return false;
    }
    match (config(one).await, config(other).await) {
        (Ok(one), Ok(other)) => {
            one.cluster_url == other.cluster_url && one.root_cert == other.root_cert
        }
        _ => false,
    }
}

async fn config(credentials: &Credentials) -> Result<Config, ConnectError> {
    match credentials {
        Credentials::InCluster => {
            Config::incluster().map_err(|error| ConnectError::NotInside(chain(&error)))
        }
        Credentials::Kubeconfig { text, context } => {
            let parsed = Kubeconfig::from_yaml(text.expose())
                .map_err(|error| ConnectError::Kubeconfig(unreadable(&error)))?;
            refuse_foreign(&parsed)?;
            let options =
                KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
            Config::from_custom_kubeconfig(parsed, &options)
                .await
                .map_err(|error| ConnectError::Kubeconfig(unreadable(&error)))
        }
    }
}

/// Why a kubeconfig cannot be used. Where it cannot be parsed, the parser's own words quote the lines
/// around the place, and those hold tokens and keys: only the place is said.
fn unreadable(error: &KubeconfigError) -> String {
    let KubeconfigError::Parse(error) = error else { return chain(error) };
    match error.location() {
        Some(at) => {
            format!("it is not a kubeconfig, from line {}, column {} on", at.line(), at.column())
        }
        None => "it is not a kubeconfig".to_owned(),
    }
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
    /// Names of the storage classes; the default one is marked.
    pub storage_classes: Vec<(String, bool)>,
    /// `verb resource` of every right that is needed and not there.
    pub missing_rights: Vec<String>,
    /// What the binding's pull secrets are there.
    pub pull_secrets: Vec<PullSecret>,
}

/// Of the questions what may be done.
const QUESTIONS_AT_ONCE: usize = 8;

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

/// A right on the whole cluster that Larder does without, and that is not granted unless somebody
/// wants what it is for.
pub(crate) struct Extra {
    resource: &'static str,
    verb: &'static str,
    /// The value of the chart that grants it.
    value: &'static str,
}

/// To mark a worker as lost.
pub(crate) const CONFIRM_LOST: Extra =
    Extra { resource: "nodes", verb: "patch", value: "rbac.confirmLost" };
/// To count the node ports of the whole cluster before an instance takes some.
pub(crate) const COUNT_NODE_PORTS: Extra =
    Extra { resource: "services", verb: "list", value: "rbac.countNodePorts" };

impl Extra {
    /// What is missing, and who can grant it how.
    pub(crate) fn missing(&self, reach: Reach) -> String {
        let how = match reach {
            Reach::Inside => format!("set `{}` in the values of Larder's chart", self.value),
            Reach::PortForward => {
                "grant the rule that packaging/kubernetes/bind.yaml has for it".to_owned()
            }
        };
        let (verb, resource) = (self.verb, self.resource);
        format!("the right to {verb} {resource} of the whole Kubernetes cluster is missing: {how}")
    }
}

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
    let storage_classes =
        if lacks("list storageclasses") { Vec::new() } else { place.storage_classes().await? };
    let pull_secrets = if lacks("list secrets") {
        Vec::new()
    } else {
        place.pull_secrets(&place.options.pull_secrets).await?
    };
    Ok(Check { version, storage_classes, missing_rights, pull_secrets })
}

/// Every instance of this binding of which anything is there.
///
/// # Errors
/// When it does not answer.
pub async fn instances(
    client: Client,
    options: &KubeOptions,
) -> Result<BTreeSet<InstanceId>, ClusterError> {
    Place::new(client, options.clone()).instances().await
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
        // Made one by one: a stream of borrowing closures is not `Send` for every lifetime.
        let mut questions: Vec<BoxFuture<'_, Result<Option<String>, ClusterError>>> = Vec::new();
        for ((group, resource, verbs), namespace) in own.chain(everywhere) {
            for verb in *verbs {
                let namespace = namespace.clone();
                questions.push(Box::pin(async move {
                    if self.may(group, resource, verb, namespace.as_deref()).await? {
                        return Ok(None);
                    }
                    let place = match namespace {
                        None if *resource == "pods" => " (all namespaces)",
                        _ => "",
                    };
                    Ok(Some(format!("{verb} {resource}{place}")))
                }));
            }
        }
        // Some at a time: one after the other they would take longer than anybody waits, where the
        // API server is far away.
        let answers = stream::iter(questions).buffered(QUESTIONS_AT_ONCE);
        answers.try_filter_map(|missing| async { Ok(missing) }).try_collect().await
    }

    /// Whether it may what not everybody grants.
    pub(crate) async fn may_also(&self, right: &Extra) -> Result<bool, ClusterError> {
        self.may("", right.resource, right.verb, None).await
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
    async fn an_error_in_a_kubeconfig_is_told_by_its_place_and_not_by_its_lines() {
        let before = "apiVersion: v1\nkind: Config\nusers:\n- name: a\n  user:\n";
        for (broken, line) in [
            ("    token: very-secret\n    client-key-data: [c2VjcmV0\n", "line"),
            ("    token: very-secret\n   client-key-data: c2VjcmV0\n", "line"),
            ("    token: {very-secret: c2VjcmV0}\n", "line 6"),
            ("    token: \"very-secret\n\n", "line"),
            ("    token: very-secret c2VjcmV0: a\n", "line"),
        ] {
            let text = Secret::new(format!("{before}{broken}"));
            let error = connect(&Credentials::Kubeconfig { text, context: None }).await;
            let error = error.err().expect("refused");
            for said in [error.to_string(), format!("{error:?}"), chain(&error)] {
                assert!(!said.contains("very-secret") && !said.contains("c2VjcmV0"), "{said}");
                assert!(said.contains("not a kubeconfig") && said.contains(line), "{said}");
            }
        }
    }

    #[tokio::test]
    async fn only_the_same_address_with_the_same_authority_is_the_same_cluster_for_sure() {
        let at = |server: &str, ca: &str| {
            let text = format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: a\n\
                 clusters: [{{name: a, cluster: {{server: '{server}', certificate-authority-data: '{ca}'}}}}]\n\
                 contexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n\
                 users: [{{name: a, user: {{token: t}}}}]\n"
            );
            Credentials::Kubeconfig { text: Secret::new(text), context: None }
        };
        let pem = |body: &str| {
            let text = format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text)
        };
        let one = at("https://127.0.0.1:1", &pem("AAAA"));
        assert!(lead_to_the_same(&one, &at("https://127.0.0.1:1", &pem("AAAA"))).await);
        assert!(!lead_to_the_same(&one, &at("https://127.0.0.1:2", &pem("AAAA"))).await);
        assert!(!lead_to_the_same(&one, &at("https://127.0.0.1:1", &pem("AAAB"))).await);
        let own = Credentials::InCluster;
        assert!(!lead_to_the_same(&own, &own).await, "two clusters' pods say the same");
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

    fn extra(right: &Extra) -> Vec<String> {
        rules(&[("", right.resource, &[right.verb])])
    }

    #[test]
    fn what_is_granted_to_who_wants_it_stands_where_it_is_said_to_stand() {
        let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging");
        let bind = std::fs::read_to_string(packaging.join("kubernetes/bind.yaml")).unwrap();
        let values = std::fs::read_to_string(packaging.join("helm/larder/README.md")).unwrap();
        for right in [CONFIRM_LOST, COUNT_NODE_PORTS] {
            assert!(bind.contains(&format!("  # {}\n", extra(&right).concat())), "{}", right.verb);
            assert!(values.contains(&format!("`{}`", right.value)), "{}", right.value);
            assert!(right.missing(Reach::Inside).contains(right.value));
            assert!(right.missing(Reach::PortForward).contains("bind.yaml"));
        }
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
            ("helm/larder/files/confirm-lost-rules.yaml", vec![extra(&CONFIRM_LOST)]),
            ("helm/larder/files/count-node-ports-rules.yaml", vec![extra(&COUNT_NODE_PORTS)]),
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
