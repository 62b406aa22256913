//! Instances as a whole: what their nodes share, and the end of one.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolumeClaim, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use larder_cluster::ClusterError;
use larder_model::agent::{Fence, NodeConfig};
use larder_model::kube::LABEL_INSTANCE;
use larder_model::{Code, InstanceId, NodeMode, OuterAddress};

use crate::apply::Place;
use crate::error::refused;
use crate::objects;

impl Place {
    /// Every instance of which anything is there, as the API server itself says.
    pub(crate) async fn instances(&self) -> Result<BTreeSet<InstanceId>, ClusterError> {
        let selector = objects::selector(&self.options, None);
        let (records, services, sets, claims, secrets) = tokio::try_join!(
            self.metadata::<ConfigMap>(&selector),
            self.metadata::<Service>(&selector),
            self.metadata::<StatefulSet>(&selector),
            self.metadata::<PersistentVolumeClaim>(&selector),
            self.metadata::<Secret>(&selector),
        )?;
        let all = [records, services, sets, claims, secrets].into_iter().flatten();
        Ok(all
            .filter_map(|metadata| {
                let labels = metadata.labels?;
                InstanceId::new(labels.get(LABEL_INSTANCE)?.as_str()).ok()
            })
            .collect())
    }

    /// Makes what the nodes of an instance share, as this node needs it.
    pub(crate) async fn ensure_shared(&self, config: &NodeConfig) -> Result<(), ClusterError> {
        let (options, instance) = (&self.options, &config.instance);
        // The policy first: no server is reachable before it.
        let bus_callers = self.bus_callers(config).await?;
        let policy = objects::network_policy(options, instance, &bus_callers);
        self.apply::<NetworkPolicy>(&policy).await?;
        self.apply::<ServiceAccount>(&objects::service_account(options, instance)).await?;
        if config.mode == NodeMode::Leased {
            self.make::<Lease>(&objects::lease(options, instance)).await?;
            let role = objects::role(options, instance, &config.members);
            self.apply::<Role>(&role).await?;
            self.apply::<RoleBinding>(&objects::role_binding(options, instance)).await?;
        }
        let budget = objects::disruption_budget(options, instance, config.shard);
        self.apply::<PodDisruptionBudget>(&budget).await.map(drop)
    }

    /// Workers in whose name gossip may come: only where it goes through node ports.
    async fn bus_callers(&self, config: &NodeConfig) -> Result<Vec<String>, ClusterError> {
        let through_workers =
            |outer: &OuterAddress| outer.host.is_none() && outer.bus_port.is_some();
        if !config.outer.as_ref().is_some_and(through_workers) {
            return Ok(Vec::new());
        }
        self.worker_addresses().await
    }

    /// Removes what the nodes of an instance shared; the record of orders last, because by it the
    /// instance is still seen.
    pub(crate) async fn remove_instance(
        &self,
        fence: Fence,
        instance: &InstanceId,
    ) -> Result<(), ClusterError> {
        self.fence(instance, fence, false).await?;
        let seen = self.see(instance).await?;
        if seen.has_nodes() || seen.has_endpoints() {
            // What nobody has asked to be removed is never deleted on the way.
            return Err(refused(
                Code::InstanceBusy,
                format!("instance {instance} still has nodes or endpoints: remove them first"),
            ));
        }
        let all = objects::selector(&self.options, Some(instance));
        self.delete_all::<RoleBinding>(&all).await?;
        self.delete_all::<Role>(&all).await?;
        self.delete_all::<ServiceAccount>(&all).await?;
        self.delete_all::<Lease>(&all).await?;
        self.delete_all::<EndpointSlice>(&all).await?;
        self.delete_all::<PodDisruptionBudget>(&all).await?;
        self.delete_all::<NetworkPolicy>(&all).await?;
        self.delete_all::<ConfigMap>(&all).await
    }
}
