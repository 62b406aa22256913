//! Chained replication of a serving instance, on and off.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use larder_api_types::{Operation, Problem, SetChained};
use larder_model::{InstanceSpec, OperationKind};
use serde_json::json;

use super::actions::ready;
use super::changes::{Change, begin, checked, nothing_to_change};
use super::instances::{InProject, find};
use crate::auth::Caller;
use crate::body::{Body, Params, PathText};
use crate::error::ApiError;
use crate::permission::Action;
use crate::state::ApiState;

/// Let replicas copy from each other in a row, or all from the primary.
#[utoipa::path(post, path = "/api/v1/instances/{instance}/chained", tag = "instances", request_body = SetChained,
    params(("instance" = String, Path, description = "Name or id"), InProject),
    responses(
        (status = 202, description = "Accepted", body = Operation),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn set_chained(
    State(state): State<ApiState>,
    caller: Caller,
    PathText(name): PathText,
    Params(params): Params<InProject>,
    Body(asked): Body<SetChained>,
) -> Result<(StatusCode, Json<Operation>), ApiError> {
    let project = params.project.as_deref();
    let (row, object) = find(&state, &caller, Action::InstanceSetChained, project, &name).await?;
    ready(&row)?;
    let former = row.spec.chained;
    let spec = InstanceSpec { chained: asked.chained, ..row.spec.clone() };
    checked(&spec)?;
    if former == asked.chained {
        let is = if former { "is chained already" } else { "is not chained" };
        return Err(nothing_to_change(is.to_owned(), &row).field("chained").into());
    }
    let kind = OperationKind::SetChained { former };
    let detail = json!({ "chained": asked.chained });
    let change = Change { action: Action::InstanceSetChained, object, kind, detail };
    begin(&state, &caller, &row, spec, change).await
}
