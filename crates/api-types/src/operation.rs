//! Operations: long pieces of work on an instance.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Problem;

/// One operation. At most one unfinished operation holds an instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    pub id: String,
    /// Name of the instance when the operation was asked for; it outlives the instance.
    pub instance: String,
    pub instance_id: String,
    /// `create`, `delete`, `restart` or `failover`.
    pub kind: String,
    /// `queued`, `running`, `waiting`, `succeeded`, `failed` or `cancelled`.
    pub state: String,
    pub steps: Vec<OperationStep>,
    /// 0 to 1.
    pub progress: f64,
    pub requested_by: String,
    /// The address that the request came from.
    pub requested_from: String,
    /// RFC 3339.
    pub created_at: String,
    pub finished_at: Option<String>,
    pub error: Option<Problem>,
}

impl Operation {
    /// Whether the state is final.
    pub fn is_finished(&self) -> bool {
        matches!(self.state.as_str(), "succeeded" | "failed" | "cancelled")
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OperationStep {
    /// A stable word: `start-nodes`.
    pub name: String,
    /// `pending`, `running`, `waiting`, `succeeded` or `failed`.
    pub state: String,
    /// 0 to 1 where it can be measured.
    pub progress: Option<f64>,
    pub message: String,
    pub started_at: Option<String>,
    pub finished_at: Option<String>,
}
