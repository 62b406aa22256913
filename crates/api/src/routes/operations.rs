//! Operations: list, show, cancel.

use axum::Json;
use axum::extract::State;
use larder_api_types::{Operation, Problem};
use larder_model::{Code, OperationId, OperationKind, OperationState, Refusal};
use larder_store::OperationFilter;
use serde::Deserialize;
use serde_json::json;
use utoipa::IntoParams;

use super::instances::project_name;
use crate::auth::Caller;
use crate::body::{Params, PathText};
use crate::error::ApiError;
use crate::permission::{Action, Object};
use crate::render;
use crate::state::ApiState;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListParams {
    /// All projects when left out.
    project: Option<String>,
    /// Name or id of an instance, also of one that is no more.
    instance: Option<String>,
    /// At most this many, the newest; 100 when left out, never more than 100000.
    limit: Option<u32>,
}

/// List operations, the newest first.
#[utoipa::path(get, path = "/api/v1/operations", tag = "operations", params(ListParams),
    responses(
        (status = 200, description = "The newest first", body = Vec<Operation>),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Params(params): Params<ListParams>,
) -> Result<Json<Vec<Operation>>, ApiError> {
    let project = params.project.as_deref().map(|text| project_name(Some(text))).transpose()?;
    let object = project.clone().map_or(Object::Installation, Object::Project);
    caller.ask(Action::OperationList, &object)?;
    let filter =
        OperationFilter { project, instance: params.instance, state: None, limit: params.limit };
    let operations = state.store().operation_list(&filter).await?;
    Ok(Json(operations.iter().map(render::operation).collect()))
}

/// Show one operation.
#[utoipa::path(get, path = "/api/v1/operations/{id}", tag = "operations",
    params(("id" = String, Path, description = "Id of the operation")),
    responses(
        (status = 200, description = "How far it has come", body = Operation),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn get(
    State(state): State<ApiState>,
    caller: Caller,
    PathText(id): PathText,
) -> Result<Json<Operation>, ApiError> {
    caller.ask(Action::OperationGet, &Object::Operation(id.clone()))?;
    let operation = find(&state, id).await?;
    Ok(Json(render::operation(&operation)))
}

/// Stop an operation. What it has done so far stays; a creation that is stopped leaves a failed
/// instance to delete, and a change that is stopped is undone. A deletion cannot be stopped, nor an
/// upgrade once a new version leads.
#[utoipa::path(post, path = "/api/v1/operations/{id}/cancel", tag = "operations",
    params(("id" = String, Path, description = "Id of the operation")),
    responses(
        (status = 200, description = "Cancelled", body = Operation),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn cancel(
    State(state): State<ApiState>,
    caller: Caller,
    PathText(id): PathText,
) -> Result<Json<Operation>, ApiError> {
    let object = Object::Operation(id.clone());
    caller.ask(Action::OperationCancel, &object)?;
    let operation = find(&state, id).await?;
    if operation.kind == OperationKind::Delete {
        return Err(ApiError::new(
            Code::NotCancellable,
            "a deletion goes on to its end: there is no way back",
        ));
    }
    if matches!(operation.kind, OperationKind::SetPassword { .. }) {
        return Err(ApiError::new(
            Code::NotCancellable,
            "servers may know the new password already: set the former one again instead",
        ));
    }
    if matches!(operation.kind, OperationKind::ChangeAccount { .. }) {
        return Err(ApiError::new(
            Code::NotCancellable,
            "servers may know of the change already: change the account back instead",
        ));
    }
    if operation.kind == (OperationKind::Upgrade { former: None }) {
        return Err(ApiError::new(
            Code::NotCancellable,
            "servers of the new version lead already, and the old one may not read their data: the \
             upgrade goes on to its end",
        ));
    }
    let too_late = |operation: &larder_model::Operation| {
        ApiError::new(
            Code::NotCancellable,
            format!("operation {} has {} already", operation.id, operation.state.as_str()),
        )
    };
    if operation.state.is_finished() {
        return Err(too_late(&operation));
    }
    let by = &caller.principal.user;
    let detail = match operation.kind {
        OperationKind::Failover { .. } | OperationKind::Restart { .. } => {
            format!("cancelled by {by}; what was ordered already may still happen")
        }
        OperationKind::Resize { .. }
        | OperationKind::Scale { .. }
        | OperationKind::Upgrade { .. }
        | OperationKind::SetParameters { .. }
        | OperationKind::SetChained { .. }
        | OperationKind::Renew { .. } => {
            format!("cancelled by {by}; the instance goes back to what it was")
        }
        OperationKind::Rebalance { .. } => {
            format!("cancelled by {by}; slots stay where they are")
        }
        OperationKind::Create
        | OperationKind::Delete
        | OperationKind::SetPassword { .. }
        | OperationKind::ChangeAccount { .. } => {
            format!("cancelled by {by}")
        }
    };
    let reason = Refusal::new(Code::OperationCancelled, detail);
    let cancelled = state
        .store()
        .operation_report(
            &operation.id,
            operation.steps,
            OperationState::Cancelled,
            Some(reason.clone()),
        )
        .await?;
    // It may have finished in between; a finished operation stays as it is.
    if cancelled.state != OperationState::Cancelled || cancelled.error.as_ref() != Some(&reason) {
        return Err(too_late(&cancelled));
    }
    let mut record =
        caller.record(Action::OperationCancel, &object, json!({ "kind": cancelled.kind.as_str() }));
    record.instance = Some(cancelled.instance_name.clone());
    state.store().record_append(&record).await?;
    (state.parts().activate)(&cancelled.instance);
    Ok(Json(render::operation(&cancelled)))
}

async fn find(state: &ApiState, id: String) -> Result<larder_model::Operation, ApiError> {
    let missing = || ApiError::new(Code::NotFound, format!("there is no operation `{id}`"));
    let parsed = OperationId::new(id.clone()).map_err(|_| missing())?;
    match state.store().operation_get(&parsed).await {
        Err(error) if error.is_not_found() => Err(missing()),
        other => Ok(other?),
    }
}
