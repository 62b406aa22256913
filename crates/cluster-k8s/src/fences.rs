//! The record of an instance, a ConfigMap: the newest order that was obeyed, so that older ones are
//! refused; and what has to be the same when it is made again after somebody has deleted it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams, PostParams};
use larder_cluster::ClusterError;
use larder_model::InstanceId;
use larder_model::agent::Fence;
use larder_model::kube::instance_name;
use serde_json::json;

use crate::apply::Place;
use crate::error::is_without_namespace;
use crate::objects;

const KEY: &str = "fence";
/// Two controllers may write at the same time; one of them then looks again.
const TRIES: usize = 4;

impl Place {
    /// Refuses an order that is older than one that was obeyed, and remembers a newer one before
    /// it is obeyed. With `begin` the first order of an instance is remembered, too; without, an
    /// instance of which nothing is there has obeyed nothing.
    pub(crate) async fn fence(
        &self,
        instance: &InstanceId,
        fence: Fence,
        begin: bool,
    ) -> Result<(), ClusterError> {
        let api = self.api::<ConfigMap>();
        let name = instance_name(instance);
        let doing = format!("fencing instance {instance}");
        let params = PostParams::default();
        for _ in 0..TRIES {
            let found = self.ask(&doing, api.get_opt(&name)).await?;
            let written = match found {
                None if !begin => return Ok(()),
                None => {
                    let object = self.fence_object(instance, fence);
                    let made = self.ask(&doing, quiet(api.create(&params, &object))).await?;
                    if let Some(made) = &made {
                        self.writes.made("ConfigMap", &made.metadata);
                    }
                    made.is_some()
                }
                Some(object) => {
                    let seen = object.data.as_ref().and_then(|data| data.get(KEY));
                    // One that cannot be understood fences nobody and is written anew.
                    match seen.and_then(|text| serde_json::from_str::<Fence>(text).ok()) {
                        Some(seen) if fence < seen => return Err(ClusterError::Stale { seen }),
                        Some(seen) if fence == seen => return Ok(()),
                        _ => {}
                    }
                    let mut newer = object.clone();
                    let text = json!(fence).to_string();
                    newer.data.get_or_insert_default().insert(KEY.to_owned(), text);
                    self.ask(&doing, quiet(api.replace(&name, &params, &newer))).await?.is_some()
                }
            };
            if written {
                return Ok(());
            }
        }
        Err(ClusterError::Unreachable {
            cluster: self.options.name.clone(),
            reason: format!("{doing}: somebody else writes all the time"),
        })
    }

    /// All notes, by their keys; none when there is no record.
    pub(crate) async fn notes(
        &self,
        instance: &InstanceId,
    ) -> Result<BTreeMap<String, String>, ClusterError> {
        let doing = format!("reading the record of instance {instance}");
        let name = instance_name(instance);
        let object = self.ask(&doing, self.api::<ConfigMap>().get_opt(&name)).await?;
        Ok(object.and_then(|object| object.data).unwrap_or_default())
    }

    /// What was noted under `key`, if anything.
    pub(crate) async fn noted(
        &self,
        instance: &InstanceId,
        key: &str,
    ) -> Result<Option<String>, ClusterError> {
        Ok(self.notes(instance).await?.remove(key))
    }

    /// Notes `value` under `key`, or forgets what was noted. The record has to be there.
    pub(crate) async fn note(
        &self,
        instance: &InstanceId,
        key: &str,
        value: Option<&str>,
    ) -> Result<(), ClusterError> {
        let doing = format!("noting {key} of instance {instance}");
        let patch = Patch::Merge(json!({ "data": { key: value } }));
        let (api, name) = (self.api::<ConfigMap>(), instance_name(instance));
        self.ask(&doing, async {
            match api.patch(&name, &PatchParams::default(), &patch).await {
                // Without a record there is nothing to forget.
                Err(kube::Error::Api(status)) if status.code == 404 && value.is_none() => Ok(()),
                other => other.map(drop),
            }
        })
        .await
    }

    fn fence_object(&self, instance: &InstanceId, fence: Fence) -> ConfigMap {
        let labels = objects::labels(&self.options, instance);
        let mut object = ConfigMap::default();
        object.metadata.name = Some(instance_name(instance));
        object.metadata.labels = Some(
            labels
                .into_iter()
                .filter_map(|(key, value)| Some((key, value.as_str()?.to_owned())))
                .collect(),
        );
        object.data = Some(BTreeMap::from([(KEY.to_owned(), json!(fence).to_string())]));
        object
    }
}

/// What was written, if it was; a conflict is not an error.
async fn quiet<T>(
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<Option<T>, kube::Error> {
    match call.await {
        Ok(written) => Ok(Some(written)),
        Err(kube::Error::Api(status))
            if status.code == 409
                || (status.code == 404 && !is_without_namespace(&status.message)) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
