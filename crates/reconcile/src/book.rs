//! What the driver needs of a store: the wish, the records, and a place to write what was seen.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use larder_model::agent::AgentEvent;
use larder_model::local::NodeSecrets;
use larder_model::{
    Address, ByteSize, Desired, Event, InstanceId, NodeId, NodePhase, NodeRecord, Operation,
    OperationId, OperationKind, OperationState, OperationStep, OuterAddress, Refusal, Secret,
    Timestamp,
};
use larder_store::InstanceObservation;

/// The book could not be read or written. The round is given up and tried again.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BookError(pub String);

/// The driver's view of the store. Every method is one transaction; each change of spec, node
/// records or `initialized` raises the instance's generation in it.
#[async_trait]
pub trait Book: Send + Sync {
    async fn instances(&self) -> Result<Vec<InstanceId>, BookError>;
    /// The wish as one consistent snapshot; `None` when there is no such instance.
    async fn desired(&self, instance: &InstanceId) -> Result<Option<Desired>, BookError>;
    async fn secrets(&self, instance: &InstanceId) -> Result<NodeSecrets, BookError>;
    /// Writes a new record, provided that nobody changed the instance since `generation`; answers
    /// the new generation.
    async fn node_insert(
        &self,
        instance: &InstanceId,
        node: &NodeRecord,
        generation: u64,
    ) -> Result<u64, BookError>;
    async fn node_set_address(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        address: &Address,
    ) -> Result<(), BookError>;
    async fn node_set_outer(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        outer: &OuterAddress,
    ) -> Result<(), BookError>;
    async fn node_set_memory(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        memory: ByteSize,
    ) -> Result<(), BookError>;
    async fn node_place_in_line(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        since: Timestamp,
    ) -> Result<(), BookError>;
    /// Notes that the node is on its way out, since `at` unless it was before.
    async fn node_retire(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        at: Timestamp,
    ) -> Result<(), BookError>;
    async fn node_delete(&self, instance: &InstanceId, node: &NodeId) -> Result<(), BookError>;
    /// Forgets the password before the present one; the users' revision rises with that.
    async fn former_password_drop(&self, instance: &InstanceId) -> Result<(), BookError>;
    /// Notes that the instance has served, provided that nobody changed it since `generation`;
    /// answers the new generation.
    async fn mark_initialized(
        &self,
        instance: &InstanceId,
        generation: u64,
    ) -> Result<u64, BookError>;
    /// Deletes the instance with its nodes and secrets, and ends its delete operation as
    /// succeeded, in one transaction. Operations, events and records stay.
    async fn purge(&self, instance: &InstanceId) -> Result<(), BookError>;
    /// Never changes a finished operation.
    async fn operation_report(
        &self,
        operation: &OperationId,
        steps: &[OperationStep],
        state: OperationState,
        error: Option<&Refusal>,
    ) -> Result<(), BookError>;
    async fn operation_set_kind(
        &self,
        operation: &OperationId,
        kind: &OperationKind,
    ) -> Result<(), BookError>;
    /// What was written last with [`Book::observation_set`].
    async fn last_observation(
        &self,
        instance: &InstanceId,
    ) -> Result<Option<InstanceObservation>, BookError>;
    /// Writes what was seen, and the events that tell of it, in one transaction.
    async fn observation_set(
        &self,
        instance: &InstanceId,
        observation: &InstanceObservation,
        events: &[Event],
    ) -> Result<(), BookError>;
    async fn events_append(&self, events: &[Event]) -> Result<(), BookError>;
    /// Events that were written before are skipped.
    async fn events_from_node(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        events: &[AgentEvent],
    ) -> Result<(), BookError>;
}

/// A book in memory, for runs on the simulator.
#[derive(Default)]
pub struct MemoryBook {
    inner: Mutex<Pages>,
}

#[derive(Default)]
struct Pages {
    instances: BTreeMap<InstanceId, Desired>,
    finished: Vec<Operation>,
    observations: BTreeMap<InstanceId, InstanceObservation>,
    events: Vec<Event>,
}

impl MemoryBook {
    /// Adds an instance, or replaces what is known of it.
    pub fn put(&self, desired: Desired) {
        self.pages().instances.insert(desired.spec.id.clone(), desired);
    }

    /// Changes the wish, as the API does: the generation rises.
    pub fn change(&self, instance: &InstanceId, change: impl FnOnce(&mut Desired)) {
        if let Some(desired) = self.pages().instances.get_mut(instance) {
            change(desired);
            desired.generation += 1;
        }
    }

    /// The wish as it now is.
    pub fn desired_now(&self, instance: &InstanceId) -> Option<Desired> {
        self.pages().instances.get(instance).cloned()
    }

    pub fn observation(&self, instance: &InstanceId) -> Option<InstanceObservation> {
        self.pages().observations.get(instance).cloned()
    }

    /// Operations that have ended, in the order of their ends.
    pub fn finished(&self) -> Vec<Operation> {
        self.pages().finished.clone()
    }

    pub fn events(&self) -> Vec<Event> {
        self.pages().events.clone()
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_nodes(&self, instance: &InstanceId, change: impl FnOnce(&mut Vec<NodeRecord>)) {
        if let Some(desired) = self.pages().instances.get_mut(instance) {
            let before = desired.nodes.clone();
            change(&mut desired.nodes);
            if desired.nodes != before {
                desired.generation += 1;
            }
        }
    }
}

impl Pages {
    fn at_generation(
        &mut self,
        instance: &InstanceId,
        generation: u64,
    ) -> Result<&mut Desired, BookError> {
        let desired = self.instances.get_mut(instance);
        let desired = desired.filter(|desired| desired.generation == generation);
        desired.ok_or_else(|| BookError(format!("{instance} has changed")))
    }

    fn operation(&mut self, id: &OperationId) -> Option<&mut Operation> {
        (self.instances.values_mut())
            .find_map(|desired| desired.operation.as_mut().filter(|o| o.id == *id))
    }

    fn retire_finished(&mut self) {
        for desired in self.instances.values_mut() {
            let Some(operation) = desired.operation.take_if(|o| o.state.is_finished()) else {
                continue;
            };
            let succeeded = operation.state == OperationState::Succeeded;
            if !succeeded && operation.kind.undo(&mut desired.spec, operation.error.as_ref()) {
                desired.generation += 1;
            }
            self.finished.push(operation);
        }
    }
}

#[async_trait]
impl Book for MemoryBook {
    async fn instances(&self) -> Result<Vec<InstanceId>, BookError> {
        Ok(self.pages().instances.keys().cloned().collect())
    }

    async fn desired(&self, instance: &InstanceId) -> Result<Option<Desired>, BookError> {
        Ok(self.desired_now(instance))
    }

    async fn secrets(&self, instance: &InstanceId) -> Result<NodeSecrets, BookError> {
        let pages = self.pages();
        let users_revision = pages.instances.get(instance).map_or(0, |it| it.users_revision);
        Ok(NodeSecrets {
            system_password: Secret::new(format!("system-{instance}")),
            default_password_sha256: Secret::new("0".repeat(64)),
            agent_key: Secret::new(format!("agents-{instance}")),
            former_password_sha256: Secret::new(""),
            accounts: Vec::new(),
            users_revision,
        })
    }

    async fn node_insert(
        &self,
        instance: &InstanceId,
        node: &NodeRecord,
        generation: u64,
    ) -> Result<u64, BookError> {
        let mut pages = self.pages();
        let desired = pages.at_generation(instance, generation)?;
        desired.nodes.push(node.clone());
        desired.generation += 1;
        Ok(desired.generation)
    }

    async fn node_set_address(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        address: &Address,
    ) -> Result<(), BookError> {
        self.with_nodes(instance, |nodes| {
            for record in nodes.iter_mut().filter(|n| n.id == *node) {
                record.address = Some(address.clone());
            }
        });
        Ok(())
    }

    async fn node_set_outer(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        outer: &OuterAddress,
    ) -> Result<(), BookError> {
        self.with_nodes(instance, |nodes| {
            for record in nodes.iter_mut().filter(|n| n.id == *node) {
                record.outer = Some(outer.clone());
            }
        });
        Ok(())
    }

    async fn node_set_memory(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        memory: ByteSize,
    ) -> Result<(), BookError> {
        self.with_nodes(instance, |nodes| {
            for record in nodes.iter_mut().filter(|n| n.id == *node) {
                record.memory = memory;
            }
        });
        Ok(())
    }

    async fn node_place_in_line(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        since: Timestamp,
    ) -> Result<(), BookError> {
        self.with_nodes(instance, |nodes| {
            for record in nodes.iter_mut().filter(|n| n.id == *node) {
                record.in_line_since = since;
            }
        });
        Ok(())
    }

    async fn node_retire(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        at: Timestamp,
    ) -> Result<(), BookError> {
        self.with_nodes(instance, |nodes| {
            let wanted = |n: &&mut NodeRecord| n.id == *node && n.phase == NodePhase::Wanted;
            for record in nodes.iter_mut().filter(wanted) {
                record.phase = NodePhase::Leaving;
                record.leaving_since = Some(at);
            }
        });
        Ok(())
    }

    async fn node_delete(&self, instance: &InstanceId, node: &NodeId) -> Result<(), BookError> {
        self.with_nodes(instance, |nodes| nodes.retain(|n| n.id != *node));
        Ok(())
    }

    async fn former_password_drop(&self, instance: &InstanceId) -> Result<(), BookError> {
        self.change(instance, |desired| {
            if desired.former_password_until.take().is_some() {
                desired.users_revision += 1;
            }
        });
        Ok(())
    }

    async fn mark_initialized(
        &self,
        instance: &InstanceId,
        generation: u64,
    ) -> Result<u64, BookError> {
        let mut pages = self.pages();
        let desired = pages.at_generation(instance, generation)?;
        desired.initialized = true;
        desired.generation += 1;
        Ok(desired.generation)
    }

    async fn purge(&self, instance: &InstanceId) -> Result<(), BookError> {
        let mut pages = self.pages();
        if let Some(mut operation) = pages.instances.remove(instance).and_then(|d| d.operation) {
            operation.state = OperationState::Succeeded;
            pages.finished.push(operation);
        }
        Ok(())
    }

    async fn operation_report(
        &self,
        operation: &OperationId,
        steps: &[OperationStep],
        state: OperationState,
        error: Option<&Refusal>,
    ) -> Result<(), BookError> {
        let mut pages = self.pages();
        if let Some(operation) = pages.operation(operation) {
            operation.steps = steps.to_vec();
            operation.state = state;
            operation.error = error.cloned();
        }
        pages.retire_finished();
        Ok(())
    }

    async fn operation_set_kind(
        &self,
        operation: &OperationId,
        kind: &OperationKind,
    ) -> Result<(), BookError> {
        if let Some(operation) = self.pages().operation(operation) {
            operation.kind = kind.clone();
        }
        Ok(())
    }

    async fn last_observation(
        &self,
        instance: &InstanceId,
    ) -> Result<Option<InstanceObservation>, BookError> {
        Ok(self.observation(instance))
    }

    async fn observation_set(
        &self,
        instance: &InstanceId,
        observation: &InstanceObservation,
        events: &[Event],
    ) -> Result<(), BookError> {
        let mut pages = self.pages();
        pages.observations.insert(instance.clone(), observation.clone());
        pages.events.extend_from_slice(events);
        Ok(())
    }

    async fn events_append(&self, events: &[Event]) -> Result<(), BookError> {
        self.pages().events.extend_from_slice(events);
        Ok(())
    }

    async fn events_from_node(
        &self,
        _instance: &InstanceId,
        _node: &NodeId,
        _events: &[AgentEvent],
    ) -> Result<(), BookError> {
        Ok(())
    }
}
