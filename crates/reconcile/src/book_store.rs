//! The book of a real installation: the SQL store.

use async_trait::async_trait;
use larder_model::agent::AgentEvent;
use larder_model::local::NodeSecrets;
use larder_model::{
    Address, ByteSize, Desired, Event, InstanceId, NodeId, NodeRecord, OperationId, OperationKind,
    OperationState, OperationStep, OuterAddress, PlannerPolicy, Refusal, Timestamp,
};
use larder_store::{ConditionSince, InstanceObservation, Store, StoreError};

use crate::book::{Book, BookError};

/// The store with the policy that the planner shall use.
pub struct StoreBook {
    store: Store,
    policy: PlannerPolicy,
}

impl StoreBook {
    pub fn new(store: Store, policy: PlannerPolicy) -> Self {
        Self { store, policy }
    }
}

impl From<StoreError> for BookError {
    fn from(error: StoreError) -> Self {
        Self(error.to_string())
    }
}

/// What is gone meanwhile needs no change any more.
fn or_gone(result: Result<(), StoreError>) -> Result<(), BookError> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        result => Ok(result?),
    }
}

#[async_trait]
impl Book for StoreBook {
    async fn instances(&self) -> Result<Vec<InstanceId>, BookError> {
        Ok(self.store.instance_ids().await?)
    }

    async fn desired(&self, instance: &InstanceId) -> Result<Option<Desired>, BookError> {
        Ok(self.store.instance_desired(instance, self.policy).await?)
    }

    async fn secrets(&self, instance: &InstanceId) -> Result<NodeSecrets, BookError> {
        Ok(self.store.instance_secrets(instance).await?)
    }

    async fn node_insert(
        &self,
        instance: &InstanceId,
        node: &NodeRecord,
        generation: u64,
    ) -> Result<u64, BookError> {
        Ok(self.store.node_insert(instance, node, generation).await?)
    }

    async fn node_set_address(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        address: &Address,
    ) -> Result<(), BookError> {
        or_gone(self.store.node_set_address(instance, node, address).await.map(drop))
    }

    async fn node_set_outer(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        outer: &OuterAddress,
    ) -> Result<(), BookError> {
        or_gone(self.store.node_set_outer(instance, node, outer).await.map(drop))
    }

    async fn node_set_memory(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        memory: ByteSize,
    ) -> Result<(), BookError> {
        or_gone(self.store.node_set_memory(instance, node, memory).await.map(drop))
    }

    async fn node_place_in_line(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        since: Timestamp,
    ) -> Result<(), BookError> {
        or_gone(self.store.node_place_in_line(instance, node, since).await.map(drop))
    }

    async fn node_retire(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        at: Timestamp,
    ) -> Result<(), BookError> {
        or_gone(self.store.node_retire(instance, node, at).await.map(drop))
    }

    async fn former_password_drop(&self, instance: &InstanceId) -> Result<(), BookError> {
        or_gone(self.store.former_password_drop(instance).await)
    }

    async fn node_delete(&self, instance: &InstanceId, node: &NodeId) -> Result<(), BookError> {
        or_gone(self.store.node_delete(instance, node).await.map(drop))
    }

    async fn mark_initialized(
        &self,
        instance: &InstanceId,
        generation: u64,
    ) -> Result<u64, BookError> {
        Ok(self.store.instance_mark_initialized(instance, generation).await?)
    }

    async fn purge(&self, instance: &InstanceId) -> Result<(), BookError> {
        or_gone(self.store.instance_purge(instance).await)
    }

    async fn operation_report(
        &self,
        operation: &OperationId,
        steps: &[OperationStep],
        state: OperationState,
        error: Option<&Refusal>,
    ) -> Result<(), BookError> {
        or_gone(
            self.store
                .operation_report(operation, steps.to_vec(), state, error.cloned())
                .await
                .map(drop),
        )
    }

    async fn operation_set_kind(
        &self,
        operation: &OperationId,
        kind: &OperationKind,
    ) -> Result<(), BookError> {
        or_gone(self.store.operation_set_kind(operation, kind).await.map(drop))
    }

    async fn last_observation(
        &self,
        instance: &InstanceId,
    ) -> Result<Option<InstanceObservation>, BookError> {
        match self.store.instance_get(instance).await {
            Ok(row) => Ok(row.observation),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn observation_set(
        &self,
        instance: &InstanceId,
        observation: &InstanceObservation,
        events: &[Event],
    ) -> Result<(), BookError> {
        let mut observation = observation.clone();
        // A condition keeps its date while its status stays.
        if let Ok(row) = self.store.instance_get(instance).await
            && let Some(former) = row.observation
        {
            let conditions = observation.conditions.drain(..).map(|c| c.condition).collect();
            observation.conditions =
                ConditionSince::carry(&former.conditions, conditions, observation.at);
        }
        or_gone(self.store.instance_observed(instance, &observation, events).await)
    }

    async fn events_append(&self, events: &[Event]) -> Result<(), BookError> {
        self.store.event_append(events).await?;
        Ok(())
    }

    async fn events_from_node(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        events: &[AgentEvent],
    ) -> Result<(), BookError> {
        self.store.event_append_from_node(instance, node, events).await?;
        Ok(())
    }
}
