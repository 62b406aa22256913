//! The Secrets by which pods of instances pull their images from a private registry. Whoever keeps
//! the namespace keeps them; Larder names them in pods, and never reads what is in them.

use k8s_openapi::api::core::v1::Secret;
use kube::api::ListParams;
use larder_cluster::ClusterError;

use crate::apply::Place;
use crate::cluster::KubeCluster;

/// What the kubelet takes credentials for registries from.
pub const PULL_SECRET_TYPE: &str = "kubernetes.io/dockerconfigjson";
/// The older form of it, which the kubelet takes as well.
const OLD_PULL_SECRET_TYPE: &str = "kubernetes.io/dockercfg";

/// A pull secret of a binding, as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullSecret {
    pub name: String,
    pub found: Found,
}

/// What there is under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A Secret of type [`PULL_SECRET_TYPE`], or of the older one.
    Fit,
    /// A Secret of another type.
    OtherType,
    Nothing,
}

impl KubeCluster {
    /// Looks at the pull secrets of the binding, by their metadata alone. Makes nothing.
    ///
    /// # Errors
    /// When the cluster does not answer, or the right to list Secrets is missing.
    pub async fn pull_secrets(&self) -> Result<Vec<PullSecret>, ClusterError> {
        self.place.pull_secrets(&self.place.options.pull_secrets).await
    }
}

impl Place {
    pub(crate) async fn pull_secrets(
        &self,
        names: &[String],
    ) -> Result<Vec<PullSecret>, ClusterError> {
        let mut all = Vec::new();
        for name in names {
            let named = format!("metadata.name={name}");
            let of_type = |kind: &str| format!("{named},type={kind}");
            let found = if self.has_secret(&of_type(PULL_SECRET_TYPE)).await?
                || self.has_secret(&of_type(OLD_PULL_SECRET_TYPE)).await?
            {
                Found::Fit
            } else if self.has_secret(&named).await? {
                Found::OtherType
            } else {
                Found::Nothing
            };
            all.push(PullSecret { name: name.clone(), found });
        }
        Ok(all)
    }

    /// The type is not in the metadata, but the API server selects by it.
    async fn has_secret(&self, fields: &str) -> Result<bool, ClusterError> {
        let (api, params) = (self.api::<Secret>(), ListParams::default().fields(fields));
        let list = self.ask("looking for a pull secret", api.list_metadata(&params)).await?;
        Ok(!list.items.is_empty())
    }
}
