//! What must never happen, whatever the faults.

use larder_model::{InstanceId, NodeId};

/// A broken promise of the product.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("{at} ms: nodes {first} and {second} of {instance} take writes at the same time")]
    TwoPrimaries { at: i64, instance: InstanceId, first: NodeId, second: NodeId },
    #[error("{at} ms: node {node} of {instance} leads without the data it had")]
    EmptyPrimary { at: i64, instance: InstanceId, node: NodeId },
    #[error(
        "{at} ms: node {node} of {instance} leads though healthy node {better} has all it has and {more} writes more"
    )]
    NewerCopyIgnored { at: i64, instance: InstanceId, node: NodeId, better: NodeId, more: usize },
    #[error(
        "{at} ms: a planned hand-over to node {node} of {instance} lost {lost} acknowledged writes"
    )]
    PlannedLoss { at: i64, instance: InstanceId, node: NodeId, lost: usize },
    #[error("{at} ms: {instance} takes no writes {after} ms after the last fault")]
    NoPrimary { at: i64, instance: InstanceId, after: i64 },
    #[error(
        "{at} ms: node {node} of {instance} is no synced replica {after} ms after the last fault"
    )]
    NotConverged { at: i64, instance: InstanceId, node: NodeId, after: i64 },
    #[error("{at} ms: {instance} took no writes for {gap} ms, {allowed} are allowed")]
    GapTooLong { at: i64, instance: InstanceId, gap: i64, allowed: i64 },
    #[error("{at} ms: {instance} failed over {count} times by itself, {allowed} are allowed")]
    TooManyFailovers { at: i64, instance: InstanceId, count: usize, allowed: usize },
    #[error("{at} ms: {instance} lost {lost} acknowledged writes, {allowed} are allowed")]
    WritesLost { at: i64, instance: InstanceId, lost: usize, allowed: usize },
}
