//! With what a container cluster is entered, and whether what is behind it is still the same one.

use larder_api::How;
use larder_api_types::BindContainerCluster;
use larder_cluster_k8s::{Credentials, KubeClient, KubeOptions, instances, lead_to_the_same};
use larder_model::{Code, Refusal};
use larder_store::{ContainerClusterRow, InstanceFilter, InstanceRow, Store};

/// The credentials that are asked for, or those of the binding that is bound again.
///
/// # Errors
/// `invalid-request` when there are none, or two.
pub(crate) fn credentials(
    asked: &BindContainerCluster,
    known: Option<&ContainerClusterRow>,
    how: How,
) -> Result<Credentials, Refusal> {
    let refuse = |field: &str, detail: &str| {
        Err(Refusal::new(Code::InvalidRequest, detail.to_owned()).field(field))
    };
    let context = asked.context.clone();
    let without_kubeconfig = "a context is one of a kubeconfig, and there is none";
    match (&asked.kubeconfig, asked.in_cluster) {
        (Some(_), true) => refuse("kubeconfig", "give a kubeconfig or `in_cluster`, not both"),
        (Some(text), false) => Ok(Credentials::Kubeconfig { text: text.clone(), context }),
        (None, true) if context.is_some() => refuse("context", without_kubeconfig),
        (None, true) => Ok(Credentials::InCluster),
        (None, false) => match known.filter(|_| how == How::Again).map(stored).transpose()? {
            None => refuse(
                "kubeconfig",
                "there are no credentials: give a kubeconfig (`--kubeconfig FILE`), or say that \
                 Larder runs in that cluster itself (`--in-cluster`)",
            ),
            Some(Credentials::InCluster) if context.is_some() => {
                refuse("context", without_kubeconfig)
            }
            Some(Credentials::InCluster) => Ok(Credentials::InCluster),
            Some(Credentials::Kubeconfig { text, context: before }) => {
                Ok(Credentials::Kubeconfig { text, context: context.or(before) })
            }
        },
    }
}

/// The credentials of a binding.
///
/// # Errors
/// `container-cluster-unusable` when they are no such.
pub(crate) fn stored(row: &ContainerClusterRow) -> Result<Credentials, Refusal> {
    serde_json::from_str(row.credentials.expose()).map_err(|_| {
        let detail = format!(
            "the credentials of container cluster `{}` cannot be read: give them again",
            row.name
        );
        Refusal::new(Code::ContainerClusterUnusable, detail).field("kubeconfig")
    })
}

/// Other credentials may lead to another cluster. There, instances that live in this one would be
/// absent and not unknown: shown as lost, and forgotten when somebody deletes them.
///
/// # Errors
/// `container-cluster-unusable` when there is nothing of any instance that lives on `known`.
pub(crate) async fn refuse_another_cluster(
    store: &Store,
    known: &ContainerClusterRow,
    credentials: &Credentials,
    client: KubeClient,
    kube: &KubeOptions,
) -> Result<(), Refusal> {
    if let Ok(before) = stored(known)
        && lead_to_the_same(&before, credentials).await
    {
        return Ok(());
    }
    let all = store.instance_list(&InstanceFilter::default()).await.map_err(Refusal::from)?;
    // Of one that never was more than a wish nothing need be there.
    let lives = |row: &&InstanceRow| row.initialized && row.spec.container_cluster == known.name;
    let Some(one) = all.iter().find(lives) else { return Ok(()) };
    let unusable =
        |detail: String| Refusal::new(Code::ContainerClusterUnusable, detail).field("kubeconfig");
    let held = instances(client, kube).await.map_err(|error| unusable(error.to_string()))?;
    if all.iter().filter(lives).any(|row| held.contains(&row.spec.id)) {
        return Ok(());
    }
    Err(unusable(format!(
        "it is another Kubernetes cluster than before, or everything was deleted there: in its \
         namespace {} there is nothing of `{}` and of whatever else lives on container cluster \
         `{}`; bind the cluster that they are on, or delete these instances first",
        kube.namespace, one.spec.name, known.name
    )))
}
