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
use larder_model::kube::{LABEL_INSTANCE, instance_name};
use larder_model::{Code, InstanceId, NodeMode, OuterAddress};

use crate::apply::Place;
use crate::error::{is_of_another_role, refused};
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
            self.bind_role(instance).await?;
        }
        let budget = objects::disruption_budget(options, instance, config.shard);
        self.apply::<PodDisruptionBudget>(&budget).await.map(drop)
    }

    /// Gives the agents their role. Which role a binding gives cannot be changed: one that gives
    /// another one is made anew, if it is this binding's.
    async fn bind_role(&self, instance: &InstanceId) -> Result<(), ClusterError> {
        let wish = objects::role_binding(&self.options, instance);
        match self.apply::<RoleBinding>(&wish).await {
            Err(error) if is_of_another_role(&error) => {}
            done => return done.map(drop),
        }
        let own = objects::selector(&self.options, Some(instance));
        let there = self.metadata::<RoleBinding>(&own).await?;
        let name = instance_name(instance);
        let Some(seen) = there.into_iter().find(|seen| seen.name.as_ref() == Some(&name)) else {
            return Err(refused(
                Code::Internal,
                format!(
                    "giving the agents of {instance} their rights: RoleBinding {name} gives another \
                     role and does not have Larder's labels: delete it, and it is made again"
                ),
            ));
        };
        tracing::info!(%instance, name, "a RoleBinding gives another role and is made anew");
        self.delete_this::<RoleBinding>(&seen).await?;
        self.apply::<RoleBinding>(&wish).await.map(drop)
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use hyper::{Method, Request, Response, StatusCode};
    use kube::Client;
    use kube::client::Body;
    use larder_cluster::ClusterError;
    use larder_model::InstanceId;
    use serde_json::{Value, json};

    use crate::apply::Place;
    use crate::options::KubeOptions;

    /// What was asked, with its body, of an API server that has a binding of another role under the
    /// name, with Larder's labels or without, and how giving the role has ended.
    async fn bound_over_another(is_own: bool) -> (Vec<(Method, Value)>, Result<(), ClusterError>) {
        let asked: Arc<Mutex<Vec<(Method, Value)>>> = Arc::default();
        let log = asked.clone();
        let server = tower::service_fn(move |request: Request<Body>| {
            let log = log.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect_bytes().await.expect("a body");
                let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                let mut log = log.lock().expect("no panic");
                let is_deleted = log.iter().any(|(method, _)| *method == Method::DELETE);
                let metadata = json!({ "name": "i-1", "uid": "u-1", "resourceVersion": "7" });
                let (code, answer) = match head.method {
                    Method::PATCH if !is_deleted => (
                        422,
                        json!({ "kind": "Status", "status": "Failure", "reason": "Invalid",
                            "metadata": {}, "code": 422, "message": "RoleBinding \"i-1\" is invalid: \
                             roleRef: Invalid value: {}: cannot change roleRef" }),
                    ),
                    Method::GET => {
                        let all =
                            if is_own { vec![json!({ "metadata": metadata })] } else { vec![] };
                        (200, json!({ "metadata": { "resourceVersion": "9" }, "items": all }))
                    }
                    Method::DELETE => (200, json!({ "kind": "Status", "status": "Success" })),
                    _ => (
                        200,
                        json!({ "metadata": metadata, "roleRef": {
                        "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "i-1",
                    } }),
                    ),
                };
                log.push((head.method, body));
                let mut response = Response::new(Body::from(answer.to_string().into_bytes()));
                *response.status_mut() = StatusCode::from_u16(code).expect("a status");
                Ok::<_, std::io::Error>(response)
            }
        });
        let options = KubeOptions::new("east", "redis", "b-1");
        let place = Place::new(Client::new(server, "redis"), options);
        let done = place.bind_role(&InstanceId::new("i-1").expect("valid")).await;
        let asked = asked.lock().expect("no panic").clone();
        (asked, done)
    }

    #[tokio::test]
    async fn a_binding_of_another_role_is_made_anew() {
        let (asked, done) = bound_over_another(true).await;
        done.expect("bound");
        let methods: Vec<&Method> = asked.iter().map(|(method, _)| method).collect();
        assert_eq!(methods, [Method::PATCH, Method::GET, Method::DELETE, Method::PATCH]);
        let seen = json!({ "uid": "u-1", "resourceVersion": "7" });
        assert_eq!(asked[2].1["preconditions"], seen, "this very one");
    }

    #[tokio::test]
    async fn a_binding_that_is_not_larders_is_not_deleted() {
        let (asked, done) = bound_over_another(false).await;
        let error = done.expect_err("nobody may delete it").to_string();
        assert!(error.contains("RoleBinding i-1") && error.contains("delete it"), "{error}");
        assert!(asked.iter().all(|(method, _)| *method != Method::DELETE), "{asked:?}");
    }
}
