//! Things a container cluster holds and nobody has a record of.
//!
//! A record is written before anything of it exists and deleted after all of it is gone, so a
//! stray is left over only by a controller that was superseded in the middle of a step, or by a
//! database that was put back to an older state. The latter is why a stray is removed only when
//! its instance has no record at all *and* it was seen so twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

use larder_cluster::{Cluster, ClusterError};
use larder_model::agent::Fence;
use larder_model::{Event, EventKind, InstanceId, Severity};

use crate::tick::Reconciler;

/// Why a sweep ended early.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    #[error(transparent)]
    Book(#[from] crate::book::BookError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

/// Looks once; removes what was a stray in the sweep before as well. Answers the removed ones.
///
/// # Errors
/// When book or container cluster cannot be asked; nothing is removed then.
pub async fn sweep_strays(reconciler: &Reconciler) -> Result<BTreeSet<InstanceId>, SweepError> {
    // The container clusters first: an instance that is created meanwhile has its record by the
    // time the book is read.
    let mut held = BTreeMap::new();
    let mut silent = None;
    for cluster in reconciler.clusters.all() {
        match cluster.instances().await {
            Ok(instances) => {
                let name = cluster.name().to_owned();
                held.extend(instances.into_iter().map(|id| ((name.clone(), id), cluster.clone())));
            }
            // One that does not answer does not keep the others from being swept.
            Err(error) => {
                tracing::debug!(cluster = cluster.name(), %error, "not swept");
                silent = Some(error);
            }
        }
    }
    if let Some(error) = silent.filter(|_| held.is_empty()) {
        return Err(error.into());
    }
    let recorded: BTreeSet<_> = reconciler.book.instances().await?.into_iter().collect();
    held.retain(|(_, instance), _| !recorded.contains(instance));
    let strays: BTreeSet<_> = held.keys().cloned().collect();
    let before = std::mem::replace(
        &mut *reconciler.strays.lock().unwrap_or_else(PoisonError::into_inner),
        strays,
    );
    let fence = Fence { controller_epoch: reconciler.controller_epoch, generation: u64::MAX };
    let mut removed = BTreeSet::new();
    for (stray, cluster) in held.iter().filter(|(stray, _)| before.contains(*stray)) {
        let instance = &stray.1;
        // One that cannot be removed does not keep the others.
        if let Err(error) = remove(&**cluster, fence, instance).await {
            tracing::warn!(%instance, %error, "a stray cannot be removed");
            continue;
        }
        let message = format!("{instance} has no record; what was left of it is being removed");
        let event = Event {
            at: reconciler.now(),
            kind: EventKind::Control,
            severity: Severity::Warning,
            instance: Some(instance.clone()),
            node: None,
            reason: "stray-removed".to_owned(),
            message,
        };
        reconciler.book.events_append(&[event]).await?;
        removed.insert(instance.clone());
    }
    Ok(removed)
}

async fn remove(
    cluster: &dyn Cluster,
    fence: Fence,
    instance: &InstanceId,
) -> Result<(), ClusterError> {
    let seen = cluster.observe(instance).await?;
    for kind in seen.endpoints.keys() {
        cluster.remove_endpoint(fence, instance, *kind).await?;
    }
    for node in seen.nodes.keys() {
        cluster.remove_node(fence, instance, node).await?;
    }
    if seen.endpoints.is_empty() && seen.nodes.is_empty() {
        cluster.remove_instance(fence, instance).await?;
    }
    Ok(())
}
