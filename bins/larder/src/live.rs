//! Questions of the API that only running servers can answer, put to their agents.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use larder_api::Live;
use larder_cluster::{AgentError, Agents};
use larder_model::agent::{Fence, Order};
use larder_model::{Code, InstanceId, NodePhase, Refusal};
use larder_store::Store;

use crate::fleet::Fleet;

/// What one agent may take.
const PATIENCE: Duration = Duration::from_secs(3);

pub(crate) struct FleetLive {
    fleet: Arc<Fleet>,
    store: Store,
}

impl FleetLive {
    pub(crate) fn new(fleet: Arc<Fleet>, store: Store) -> Self {
        Self { fleet, store }
    }
}

#[async_trait]
impl Live for FleetLive {
    async fn check_rules(&self, instance: &InstanceId, rules: &str) -> Result<(), Refusal> {
        let order = Order::CheckRules { rules: rules.to_owned() };
        let no_stamp = Fence { controller_epoch: 0, generation: 0 };
        let nodes = self.store.node_list(instance).await?;
        for node in nodes.iter().filter(|node| node.phase == NodePhase::Wanted) {
            let asked = self.fleet.order(instance, &node.id, no_stamp, &order);
            match tokio::time::timeout(PATIENCE, asked).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(AgentError::Refused(refusal))) if refusal.code == Code::RulesRefused => {
                    return Err(refusal);
                }
                Ok(Err(error)) => tracing::debug!(node = %node.id, %error, "rules not checked"),
                Err(_) => tracing::debug!(node = %node.id, "rules not checked in time"),
            }
        }
        Err(Refusal::new(
            Code::InstanceNotReady,
            "no server of the instance answers, so nobody can say whether the rules are taken: try \
             again when it runs",
        ))
    }
}
