//! Calls of the API server, each with a deadline and an error that says what was being done.

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use kube::api::{
    DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions,
};
use kube::core::PartialObjectMeta;
use kube::{Api, Client, Resource};
use larder_cluster::ClusterError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::count::{Requests, counted};
use crate::error::said;
use crate::options::KubeOptions;
use crate::shared::Shared;
use crate::writes::Writes;

/// Who owns the fields that are applied.
const MANAGER: &str = "larder";
/// No single call takes longer.
const DEADLINE: Duration = Duration::from_secs(8);

/// An object in a namespace.
pub(crate) trait Object:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + k8s_openapi::Resource
    + Clone
    + Debug
    + DeserializeOwned
    + Serialize
    + Send
    + Sync
    + 'static
{
}

impl<K> Object for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + k8s_openapi::Resource
        + Clone
        + Debug
        + DeserializeOwned
        + Serialize
        + Send
        + Sync
        + 'static
{
}

/// One namespace of one cluster.
pub(crate) struct Place {
    pub(crate) client: Client,
    pub(crate) options: KubeOptions,
    pub(crate) writes: Writes,
    pub(crate) shared: Shared,
    pub(crate) requests: Arc<Requests>,
}

impl Place {
    pub(crate) fn new(client: Client, options: KubeOptions) -> Self {
        let (client, requests) = counted(client);
        Self { client, options, writes: Writes::default(), shared: Shared::default(), requests }
    }

    pub(crate) fn api<K: Object>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.options.namespace)
    }

    /// Bounds a call and gives its error a meaning.
    pub(crate) async fn ask<T>(
        &self,
        doing: &str,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, ClusterError> {
        match tokio::time::timeout(DEADLINE, call).await {
            Ok(result) => result.map_err(|error| said(&self.options.name, doing, &error)),
            Err(_) => Err(ClusterError::Unreachable {
                cluster: self.options.name.clone(),
                reason: format!("{doing}: no answer within {} s", DEADLINE.as_secs()),
            }),
        }
    }

    /// Makes the object what it shall be, whatever it was.
    pub(crate) async fn apply<K: Object>(&self, object: &Value) -> Result<K, ClusterError> {
        let name = name_of(object);
        let params = PatchParams::apply(MANAGER).force().validation_strict();
        let doing = format!("applying {} {name}", K::KIND);
        let (api, patch) = (self.api::<K>(), Patch::Apply(object));
        let applied = self.ask(&doing, api.patch(name, &params, &patch)).await?;
        self.writes.made(<K as k8s_openapi::Resource>::KIND, applied.meta());
        self.shared.wrote(<K as k8s_openapi::Resource>::KIND, name, Some(object));
        Ok(applied)
    }

    /// Makes the object when it is missing; one that is there stays as it is. Answers the
    /// metadata of the one that is there then.
    pub(crate) async fn make<K: Object>(&self, object: &Value) -> Result<ObjectMeta, ClusterError> {
        let name = name_of(object);
        let doing = format!("making {} {name}", K::KIND);
        let api = self.api::<K>();
        if let Some(found) = self.ask(&doing, api.get_metadata_opt(name)).await? {
            self.shared.wrote(<K as k8s_openapi::Resource>::KIND, name, Some(object));
            return Ok(found.metadata);
        }
        let typed: K = serde_json::from_value(object.clone()).map_err(|error| {
            crate::error::refused(larder_model::Code::Internal, format!("{doing}: {error}"))
        })?;
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..Default::default() };
        let made = self.ask(&doing, async {
            match api.create(&params, &typed).await {
                Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                    api.get_metadata(name).await.map(|found| found.metadata)
                }
                other => other.map(|made| made.meta().clone()),
            }
        });
        let made = made.await?;
        self.writes.made(<K as k8s_openapi::Resource>::KIND, &made);
        self.shared.wrote(<K as k8s_openapi::Resource>::KIND, name, Some(object));
        Ok(made)
    }

    /// The metadata of the object of that name, if there is one.
    pub(crate) async fn find<K: Object>(
        &self,
        object: &Value,
    ) -> Result<Option<ObjectMeta>, ClusterError> {
        let name = name_of(object);
        let doing = format!("looking for {} {name}", K::KIND);
        let found = self.ask(&doing, self.api::<K>().get_metadata_opt(name)).await?;
        Ok(found.map(|found| found.metadata))
    }

    /// The metadata of all objects that match.
    pub(crate) async fn metadata<K: Object>(
        &self,
        selector: &str,
    ) -> Result<Vec<ObjectMeta>, ClusterError> {
        let params = ListParams::default().labels(selector);
        let doing = format!("listing {} of {selector}", K::KIND);
        let api = self.api::<K>();
        // Boxed, here and below: several lists run at once, and each of these futures is large.
        let list = self.ask(&doing, Box::pin(api.list_metadata(&params))).await?;
        Ok(list.items.into_iter().map(|item: PartialObjectMeta<K>| item.metadata).collect())
    }

    /// All objects that match.
    pub(crate) async fn list<K: Object>(&self, selector: &str) -> Result<Vec<K>, ClusterError> {
        let params = ListParams::default().labels(selector);
        let doing = format!("listing {} of {selector}", K::KIND);
        let api = self.api::<K>();
        Ok(self.ask(&doing, Box::pin(api.list(&params))).await?.items)
    }

    /// Deletes every object that matches, whoever made it and under whatever name.
    pub(crate) async fn delete_all<K: Object>(&self, selector: &str) -> Result<(), ClusterError> {
        for metadata in self.metadata::<K>(selector).await? {
            // One that is on its way out needs no second word.
            if let (Some(name), None) = (&metadata.name, &metadata.deletion_timestamp) {
                self.delete::<K>(name).await?;
            }
            // Also of those: they shall be seen to be leaving.
            self.writes.deleted(<K as k8s_openapi::Resource>::KIND, &metadata);
        }
        Ok(())
    }

    /// Deletes the very object that was seen, as it was seen; another one of its name, or one that has
    /// changed since, is left.
    pub(crate) async fn delete_this<K: Object>(
        &self,
        seen: &ObjectMeta,
    ) -> Result<(), ClusterError> {
        let name = seen.name.as_deref().unwrap_or_default();
        let preconditions = Preconditions {
            uid: seen.uid.clone(),
            resource_version: seen.resource_version.clone(),
        };
        let params = DeleteParams::background().preconditions(preconditions);
        let api = self.api::<K>();
        self.ask(&format!("deleting {} {name}", K::KIND), async {
            match api.delete(name, &params).await {
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
                other => other.map(drop),
            }
        })
        .await
    }

    /// Deletes one object; one that is not there is deleted.
    pub(crate) async fn delete<K: Object>(&self, name: &str) -> Result<(), ClusterError> {
        let api = self.api::<K>();
        let doing = format!("deleting {} {name}", K::KIND);
        self.ask(&doing, async {
            match api.delete(name, &DeleteParams::background()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                other => other.map(drop),
            }
        })
        .await?;
        self.shared.wrote(<K as k8s_openapi::Resource>::KIND, name, None);
        Ok(())
    }
}

fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}
