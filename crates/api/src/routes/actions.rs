//! What starts an operation on an instance: failover, restart, deletion.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use larder_api_types::{FailoverInstance, Operation, Problem, RestartInstance};
use larder_model::agent::Role;
use larder_model::{Architecture, Code, DeletePolicy, NodeId, NodeRecord, OperationKind, Refusal};
use larder_store::InstanceRow;
use serde::Deserialize;
use serde_json::json;
use utoipa::IntoParams;

use super::changes;
use super::instances::{InProject, find};
use crate::auth::Caller;
use crate::body::{Body, Params, PathText};
use crate::error::ApiError;
use crate::permission::{Action, Object};
use crate::render;
use crate::state::ApiState;

type Accepted = (StatusCode, Json<Operation>);

/// Give a shard another primary.
#[utoipa::path(post, path = "/api/v1/instances/{instance}/failover", tag = "instances", request_body = FailoverInstance,
    params(("instance" = String, Path, description = "Name or id"), InProject),
    responses(
        (status = 202, description = "Accepted", body = Operation),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn failover(
    State(state): State<ApiState>,
    caller: Caller,
    PathText(name): PathText,
    Params(params): Params<InProject>,
    Body(asked): Body<FailoverInstance>,
) -> Result<Accepted, ApiError> {
    let project = params.project.as_deref();
    let (row, object) = find(&state, &caller, Action::InstanceFailover, project, &name).await?;
    ready(&row)?;
    if row.spec.architecture == Architecture::Standalone || row.spec.replicas < 2 {
        return Err(ApiError::new(
            Code::NoEligibleReplica,
            format!("instance `{}` has no replicas that could take over", row.spec.name),
        ));
    }
    if asked.accept_data_loss && asked.to.is_none() {
        return Err(ApiError::new(
            Code::InvalidRequest,
            "accepting data loss needs the node that shall take over",
        )
        .field("to"));
    }
    let to = match asked.to.as_deref() {
        Some(text) => Some(node(&state, &row, text, "to").await?),
        None => None,
    };
    let shard = shard(&row, asked.shard, to.as_ref())?;
    if let Some(to) = &to {
        not_primary(&row, &to.id)?;
    }
    let kind = OperationKind::Failover {
        shard,
        to: to.map(|record| record.id),
        accept_data_loss: asked.accept_data_loss,
        from: None,
        without_primary: false,
    };
    let detail = json!({
        "shard": shard,
        "to": asked.to,
        "accept_data_loss": asked.accept_data_loss,
    });
    begin(&state, &caller, &row, Action::InstanceFailover, &object, kind, detail).await
}

/// Restart the servers, one after the other, replicas first.
#[utoipa::path(post, path = "/api/v1/instances/{instance}/restart", tag = "instances", request_body = RestartInstance,
    params(("instance" = String, Path, description = "Name or id"), InProject),
    responses(
        (status = 202, description = "Accepted", body = Operation),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn restart(
    State(state): State<ApiState>,
    caller: Caller,
    PathText(name): PathText,
    Params(params): Params<InProject>,
    Body(asked): Body<RestartInstance>,
) -> Result<Accepted, ApiError> {
    let project = params.project.as_deref();
    let (row, object) = find(&state, &caller, Action::InstanceRestart, project, &name).await?;
    ready(&row)?;
    let only = match asked.node.as_deref() {
        Some(text) => Some(node(&state, &row, text, "node").await?.id),
        None => None,
    };
    if only.is_none() && row.spec.replicas == 1 {
        return changes::renew(&state, &caller, &row, object).await;
    }
    let detail = json!({ "node": only });
    let kind = OperationKind::Restart { node: only, run_ids: std::collections::BTreeMap::new() };
    begin(&state, &caller, &row, Action::InstanceRestart, &object, kind, detail).await
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DeleteParams {
    /// `default` when left out.
    project: Option<String>,
    /// `permanent`: instance and data are gone for good. Has to be said.
    policy: Option<String>,
}

/// Delete an instance.
#[utoipa::path(delete, path = "/api/v1/instances/{instance}", tag = "instances",
    params(("instance" = String, Path, description = "Name or id"), DeleteParams),
    responses(
        (status = 202, description = "Accepted", body = Operation),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn delete(
    State(state): State<ApiState>,
    caller: Caller,
    PathText(name): PathText,
    Params(params): Params<DeleteParams>,
) -> Result<Accepted, ApiError> {
    let project = params.project.as_deref();
    let (row, object) = find(&state, &caller, Action::InstanceDelete, project, &name).await?;
    if params.policy.as_deref() != Some("permanent") {
        return Err(ApiError::new(
            Code::InvalidRequest,
            "say what becomes of the data: policy=permanent is what this version knows",
        )
        .field("policy"));
    }
    let operation = caller.operation(&row, OperationKind::Delete);
    let record = caller.record(Action::InstanceDelete, &object, json!({ "policy": "permanent" }));
    let id = &row.spec.id;
    state.store().instance_delete_begin(id, DeletePolicy::Permanent, &operation, &record).await?;
    tracing::info!(instance = %id, name = %row.spec.name, operation = %operation.id, "deletion accepted");
    (state.parts().activate)(id);
    Ok((StatusCode::ACCEPTED, Json(render::operation(&operation))))
}

/// Writes the operation, with its record, and says "look again".
pub(super) async fn begin(
    state: &ApiState,
    caller: &Caller,
    row: &InstanceRow,
    action: Action,
    object: &Object,
    kind: OperationKind,
    detail: serde_json::Value,
) -> Result<Accepted, ApiError> {
    let operation = caller.operation(row, kind);
    let record = caller.record(action, object, detail);
    state.store().operation_begin(&operation, &record).await?;
    tracing::info!(instance = %row.spec.id, %action, operation = %operation.id, "operation accepted");
    (state.parts().activate)(&row.spec.id);
    Ok((StatusCode::ACCEPTED, Json(render::operation(&operation))))
}

/// An instance that has never served has nothing to fail over or restart.
pub(super) fn ready(row: &InstanceRow) -> Result<(), ApiError> {
    if row.deletion.is_some() {
        return Err(ApiError::new(
            Code::InstanceBusy,
            format!("instance `{}` is being deleted", row.spec.name),
        ));
    }
    if !row.initialized {
        return Err(ApiError::new(
            Code::InstanceNotReady,
            format!(
                "instance `{}` is {} and has not served yet: wait for its creation, or delete it",
                row.spec.name,
                row.state()
            ),
        ));
    }
    Ok(())
}

/// The record of the node that the request names.
async fn node(
    state: &ApiState,
    row: &InstanceRow,
    text: &str,
    field: &str,
) -> Result<NodeRecord, ApiError> {
    let desired = state.store().instance_desired(&row.spec.id, state.parts().policy).await?;
    let nodes = desired.map(|desired| desired.nodes).unwrap_or_default();
    nodes.into_iter().find(|record| record.id.as_str() == text).ok_or_else(|| {
        Refusal::new(
            Code::NodeNotFound,
            format!(
                "instance `{0}` has no node `{text}`: `larder instance nodes {0}` lists them",
                row.spec.name
            ),
        )
        .field(field)
        .into()
    })
}

fn shard(row: &InstanceRow, asked: Option<u32>, to: Option<&NodeRecord>) -> Result<u32, ApiError> {
    if let Some(shard) = asked.filter(|shard| *shard >= row.spec.shards) {
        return Err(ApiError::new(
            Code::ShardsOutOfRange,
            format!(
                "there is no shard {shard}: instance `{}` has shards 0 to {}",
                row.spec.name,
                row.spec.shards - 1
            ),
        )
        .field("shard"));
    }
    match (asked, to) {
        (Some(shard), Some(to)) if shard != to.shard => Err(ApiError::new(
            Code::NodeNotFound,
            format!("node `{}` is of shard {}, not of shard {shard}", to.id, to.shard),
        )
        .field("to")),
        (Some(shard), _) => Ok(shard),
        (None, Some(to)) => Ok(to.shard),
        (None, None) => Ok(0),
    }
}

fn not_primary(row: &InstanceRow, to: &NodeId) -> Result<(), ApiError> {
    let is_primary = row.observation.as_ref().is_some_and(|observation| {
        observation.nodes.iter().any(|node| node.id == *to && node.role == Some(Role::Primary))
    });
    if is_primary {
        return Err(ApiError::new(
            Code::NoEligibleReplica,
            format!("node `{to}` is the primary already"),
        )
        .field("to"));
    }
    Ok(())
}
