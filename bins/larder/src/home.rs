//! The container cluster that this control plane is a pod of: bound by itself, as the configuration
//! says, at every start.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use larder_api::{Bindings, By, How};
use larder_api_types::BindContainerCluster;
use tokio_util::sync::CancellationToken;

use crate::config::{Kubernetes, OwnBinding};

/// The next try after one that failed: soon, for a pod that starts before its network does, and
/// less often for a right that somebody has to grant.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How far the binding is.
#[derive(Clone)]
pub(crate) struct Home {
    /// Why it is not bound; `None` when it is.
    missing: Arc<RwLock<Option<String>>>,
}

impl Home {
    /// A control plane without a cluster of its own has nothing to wait for.
    pub(crate) fn none() -> Self {
        Self { missing: Arc::default() }
    }

    /// Starts to bind, and tries again until it is done. An older binding that can be entered is
    /// used meanwhile, and goes on where the new one is refused: instances live on it.
    pub(crate) fn bind(own: Kubernetes, bindings: Bindings, stop: CancellationToken) -> Self {
        let known = bindings.is_in_use(&own.name);
        let reason = format!("container cluster `{}` is not bound yet", own.name);
        let home = Self { missing: Arc::new(RwLock::new((!known).then_some(reason))) };
        let told = home.clone();
        tokio::spawn(async move {
            let mut pause = FIRST_PAUSE;
            while let Err(reason) = bind_once(&own, &bindings).await {
                tracing::warn!(
                    cluster = own.name,
                    reason,
                    "container cluster cannot be bound; trying again"
                );
                if !known {
                    told.set(Some(format!(
                        "container cluster `{}` cannot be bound: {reason}",
                        own.name
                    )));
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            told.set(None);
        });
        home
    }

    fn set(&self, missing: Option<String>) {
        *self.missing.write().unwrap_or_else(PoisonError::into_inner) = missing;
    }

    /// Whether instances can be created.
    ///
    /// # Errors
    /// The sentence that says what is missing.
    pub(crate) fn ready(&self) -> Result<(), String> {
        let missing = self.missing.read().unwrap_or_else(PoisonError::into_inner);
        missing.clone().map_or(Ok(()), Err)
    }
}

/// Binds, and keeps it where something of it is new.
async fn bind_once(own: &Kubernetes, bindings: &Bindings) -> Result<(), String> {
    let by = By { user: "larder".to_owned(), from: "configuration".to_owned() };
    let bound = bindings.bind(&asked(own), How::AsConfigured, &by).await;
    let is_new = bound.map_err(|error| error.refusal.detail)?;
    tracing::info!(cluster = own.name, is_new, "container cluster is bound");
    Ok(())
}

fn asked(own: &Kubernetes) -> BindContainerCluster {
    let OwnBinding::InCluster = own.bind;
    BindContainerCluster {
        name: own.name.clone(),
        in_cluster: true,
        namespace: own.namespace.clone(),
        expose: own.expose.clone(),
        outer_address: own.outer_address.clone(),
        image: own.image.clone(),
        engines: own.engines.clone(),
        pull_secrets: own.pull_secrets.clone(),
        storage_class: own.storage_class.clone(),
        volume_bytes: own.volume_size.map(|size| size.bytes()),
        ..BindContainerCluster::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_plane_without_a_cluster_of_its_own_is_ready() {
        assert_eq!(Home::none().ready(), Ok(()));
        let home = Home::none();
        home.set(Some("not yet".to_owned()));
        assert_eq!(home.ready(), Err("not yet".to_owned()));
    }
}
