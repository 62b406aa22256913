//! Takes the steps of a plan. What a step means is decided in the planner; here it only becomes
//! calls to the book, the container cluster and agents. No retries: the next plan is the retry.

use futures::future::join_all;
use larder_cluster::{AgentError, Agents, Cluster, ClusterError, EndpointSpec, NodeExposure};
use larder_model::agent::{Fence, Order};
use larder_model::plan::{PlannedStep, Step};
use larder_model::{Desired, NodeId, NodeRecord, Refusal, SlotJob, SlotSet, Timestamp};

use crate::book::{Book, BookError};

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Book(#[from] BookError),
    /// The plan named something that the wish does not hold any more; the next plan will not.
    #[error("the plan is out of date: {0}")]
    OutOfDate(&'static str),
}

impl StepError {
    /// The refusal in it: trying again will not help by itself.
    pub(crate) fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Cluster(ClusterError::Refused(refusal))
            | Self::Agent(AgentError::Refused(refusal)) => Some(refusal),
            Self::Cluster(_) | Self::Agent(_) | Self::Book(_) | Self::OutOfDate(_) => None,
        }
    }

    /// The container cluster refused, not an agent.
    pub(crate) fn is_from_cluster(&self) -> bool {
        matches!(self, Self::Cluster(ClusterError::Refused(_)))
    }

    /// The container cluster gave no answer, and may have obeyed all the same.
    pub(crate) fn is_silence_of_cluster(&self) -> bool {
        matches!(self, Self::Cluster(ClusterError::Unreachable { .. }))
    }

    /// What was obeyed before, when the order was refused as an older one.
    pub(crate) fn stale(&self) -> Option<Fence> {
        match self {
            Self::Cluster(ClusterError::Stale { seen })
            | Self::Agent(AgentError::Stale { seen, .. }) => Some(*seen),
            Self::Cluster(_) | Self::Agent(_) | Self::Book(_) | Self::OutOfDate(_) => None,
        }
    }
}

/// One step and how it went.
pub(crate) struct Outcome<'a> {
    pub(crate) step: &'a PlannedStep,
    pub(crate) result: Result<(), StepError>,
}

/// Everything that steps act on.
pub(crate) struct Executor<'a> {
    pub(crate) book: &'a dyn Book,
    pub(crate) cluster: &'a dyn Cluster,
    pub(crate) agents: &'a dyn Agents,
    pub(crate) desired: &'a Desired,
    pub(crate) controller_epoch: u64,
    pub(crate) now: Timestamp,
}

impl Executor<'_> {
    /// Takes all steps. First those that are checked against the generation that was planned
    /// with, one after the other; then those of one node (and those of no node) in their order,
    /// those of different nodes side by side. After a failure the rest of the same node's steps is
    /// left for the next plan.
    pub(crate) async fn execute<'p>(&self, steps: &'p [PlannedStep]) -> Vec<Outcome<'p>> {
        let (checked, others): (Vec<_>, Vec<_>) = steps.iter().partition(|planned| {
            matches!(planned.step, Step::RecordNode { .. } | Step::MarkInitialized)
        });
        let mut outcomes = Vec::with_capacity(steps.len());
        let mut generation = self.desired.generation;
        for step in checked {
            let result = self.take_checked(&step.step, generation).await;
            match result {
                Ok(new) => generation = new,
                Err(error) => {
                    // The plan is out of date: nothing else of it may be done.
                    outcomes.push(Outcome { step, result: Err(error) });
                    return outcomes;
                }
            }
            outcomes.push(Outcome { step, result: Ok(()) });
        }
        outcomes.extend(self.execute_lanes(others).await);
        outcomes
    }

    async fn take_checked(&self, step: &Step, generation: u64) -> Result<u64, StepError> {
        let instance = &self.desired.spec.id;
        match step {
            Step::RecordNode { node, shard, worker, zone, bootstrap } => {
                let record = NodeRecord::new(
                    node.clone(),
                    *shard,
                    worker.clone(),
                    zone.clone(),
                    *bootstrap,
                    &self.desired.spec,
                    self.now,
                );
                Ok(self.book.node_insert(instance, &record, generation).await?)
            }
            Step::MarkInitialized => Ok(self.book.mark_initialized(instance, generation).await?),
            _ => Err(StepError::OutOfDate("the step is not checked against a generation")),
        }
    }

    async fn execute_lanes<'p>(&self, steps: Vec<&'p PlannedStep>) -> Vec<Outcome<'p>> {
        let mut lanes: Vec<(Option<&NodeId>, Vec<&'p PlannedStep>)> = Vec::new();
        for step in steps {
            let node = step.step.node();
            match lanes.iter_mut().find(|(lane, _)| *lane == node) {
                Some((_, lane)) => lane.push(step),
                None => lanes.push((node, vec![step])),
            }
        }
        let lanes = lanes.into_iter().map(|(_, lane)| self.execute_lane(lane));
        join_all(lanes).await.into_iter().flatten().collect()
    }

    async fn execute_lane<'p>(&self, steps: Vec<&'p PlannedStep>) -> Vec<Outcome<'p>> {
        let mut outcomes = Vec::with_capacity(steps.len());
        for step in steps {
            let result = self.take(step).await;
            let failed = result.is_err();
            outcomes.push(Outcome { step, result });
            if failed {
                break;
            }
        }
        outcomes
    }

    async fn take(&self, planned: &PlannedStep) -> Result<(), StepError> {
        let instance = &self.desired.spec.id;
        let fence =
            Fence { controller_epoch: self.controller_epoch, generation: planned.generation };
        match &planned.step {
            Step::RecordNode { .. } | Step::MarkInitialized => {
                self.take_checked(&planned.step, self.desired.generation).await?;
            }
            Step::ReserveAddress { node } => {
                let address = self.cluster.reserve_address(fence, instance, node).await?;
                self.book.node_set_address(instance, node, &address).await?;
            }
            Step::ExposeNode { node } => {
                let wish = self.exposure(node)?;
                if let Some(outer) = self.cluster.expose_node(fence, &wish).await? {
                    self.book.node_set_outer(instance, node, &outer).await?;
                }
            }
            Step::EnsureNode { node } => {
                let config = self.node_config(node)?;
                let secrets = self.book.secrets(instance).await?;
                self.cluster.ensure_node(fence, &config, &secrets).await?;
            }
            Step::ConfigureNode { node } => {
                let config = Box::new(self.node_config(node)?);
                self.order(node, fence, Order::Configure { config }).await?;
            }
            Step::EnsureEndpoint { endpoint } => {
                let spec = EndpointSpec {
                    expose: self.desired.spec.expose,
                    instance: instance.clone(),
                    kind: *endpoint,
                    members: larder_planner::endpoint_members(self.desired),
                    generation: planned.generation,
                };
                self.cluster.ensure_endpoint(fence, &spec).await?;
            }
            Step::MeetNodes { node, peers } => {
                let peers = peers
                    .iter()
                    .map(|peer| {
                        let record = self.record(peer)?;
                        record.address.clone().ok_or(StepError::OutOfDate("a peer has no address"))
                    })
                    .collect::<Result<_, _>>()?;
                self.order(node, fence, Order::ClusterMeet { peers }).await?;
            }
            Step::AssignSlots { node, ranges, config_epoch } => {
                let order =
                    Order::ClusterAddSlots { ranges: ranges.clone(), config_epoch: *config_epoch };
                self.order(node, fence, order).await?;
            }
            Step::ReplicateNode { node, primary_id, .. } => {
                let order = Order::ClusterReplicate { primary: primary_id.clone() };
                self.order(node, fence, order).await?;
            }
            Step::ForgetNodes { node, ids } => {
                self.order(node, fence, Order::ClusterForget { ids: ids.clone() }).await?;
            }
            Step::MoveSlots { node, to, to_id, slots, copies } => {
                let job = self.slot_job(to, to_id, slots, *copies)?;
                self.order(node, fence, Order::MoveSlots { job }).await?;
            }
            Step::StopMovingSlots { node } => {
                self.order(node, fence, Order::StopMovingSlots).await?;
            }
            Step::CloseSlots { node, slots } => {
                self.order(node, fence, Order::CloseSlots { slots: slots.clone() }).await?;
            }
            Step::StartEmpty { node } => self.order(node, fence, Order::StartEmpty).await?,
            Step::HandOver { holder, to } => {
                self.order(holder, fence, Order::HandOver { to: to.clone() }).await?;
            }
            Step::TakeLease { node } => {
                self.order(node, fence, Order::TakeLease { accept_data_loss: true }).await?;
            }
            Step::FailOverShard { node, mode } => {
                self.order(node, fence, Order::ClusterFailover { mode: *mode }).await?;
            }
            Step::RestartServer { node, run_id } => {
                self.order(node, fence, Order::RestartServer { run_id: run_id.clone() }).await?;
            }
            Step::UpdateOperation { kind } => {
                let operation = self.desired.operation.as_ref();
                let operation = operation.ok_or(StepError::OutOfDate("the operation is over"))?;
                self.book.operation_set_kind(&operation.id, kind).await?;
            }
            Step::ResizeNode { node, memory } => {
                self.book.node_set_memory(instance, node, *memory).await?;
            }
            Step::PlaceInLine { node, since } => {
                self.book.node_place_in_line(instance, node, *since).await?;
            }
            Step::SetUsers { node, .. } => {
                let users = self.book.secrets(instance).await?.users();
                self.order(node, fence, Order::SetUsers { users }).await?;
            }
            Step::DropFormerPassword => self.book.former_password_drop(instance).await?,
            Step::RetireNode { node } => {
                self.book.node_retire(instance, node, self.now).await?;
            }
            Step::RemoveNode { node } => self.cluster.remove_node(fence, instance, node).await?,
            Step::RemoveEndpoint { endpoint } => {
                self.cluster.remove_endpoint(fence, instance, *endpoint).await?;
            }
            Step::ForgetRecord { node } => self.book.node_delete(instance, node).await?,
            Step::PurgeInstance => {
                self.cluster.remove_instance(fence, instance).await?;
                self.book.purge(instance).await?;
            }
        }
        Ok(())
    }

    async fn order(&self, node: &NodeId, fence: Fence, order: Order) -> Result<(), AgentError> {
        self.agents.order(&self.desired.spec.id, node, fence, &order).await
    }

    fn record(&self, node: &NodeId) -> Result<&NodeRecord, StepError> {
        let record = self.desired.nodes.iter().find(|record| record.id == *node);
        record.ok_or(StepError::OutOfDate("a node has no record"))
    }

    fn slot_job(
        &self,
        to: &NodeId,
        to_id: &str,
        slots: &SlotSet,
        copies: u32,
    ) -> Result<SlotJob, StepError> {
        let address = self.record(to)?.address.clone();
        Ok(SlotJob {
            slots: slots.clone(),
            to: address.ok_or(StepError::OutOfDate("a node has no address"))?,
            to_id: to_id.to_owned(),
            copies,
            limits: self.desired.policy.slot_moves,
        })
    }

    fn node_config(&self, node: &NodeId) -> Result<larder_model::agent::NodeConfig, StepError> {
        let config = larder_planner::node_config(self.desired, self.record(node)?);
        config.ok_or(StepError::OutOfDate("a node has no address"))
    }

    fn exposure(&self, node: &NodeId) -> Result<NodeExposure, StepError> {
        let (spec, record) = (&self.desired.spec, self.record(node)?);
        Ok(NodeExposure {
            instance: spec.id.clone(),
            node: node.clone(),
            address: record.address.clone().ok_or(StepError::OutOfDate("a node has no address"))?,
            way: spec.exposes_nodes().ok_or(StepError::OutOfDate("its nodes are not exposed"))?,
            engine: spec.engine.clone(),
            known: record.outer.clone(),
        })
    }
}
