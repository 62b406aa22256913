//! Events: the newest, as a list.

use axum::Json;
use axum::extract::State;
use larder_api_types::{Event, Problem};
use larder_model::{Code, InstanceId, ProjectName};
use larder_store::{EventFilter, OperationFilter};
use serde::Deserialize;
use utoipa::IntoParams;

use super::instances::project_name;
use crate::auth::Caller;
use crate::body::Params;
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
    /// Name (in the project, `default` when left out) or id, also of an instance that is no more.
    instance: Option<String>,
    /// Only events with a higher number.
    after: Option<u64>,
    /// At most this many, the newest; 100 when left out, never more than 100000.
    limit: Option<u32>,
}

/// The newest events, oldest first.
#[utoipa::path(get, path = "/api/v1/events", tag = "events", params(ListParams),
    responses(
        (status = 200, description = "Oldest first", body = Vec<Event>),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Params(params): Params<ListParams>,
) -> Result<Json<Vec<Event>>, ApiError> {
    let mut filter =
        filter(&state, &caller, params.project.as_deref(), params.instance.as_deref()).await?;
    filter.after = params.after;
    filter.limit = params.limit;
    filter.newest_first = true;
    let mut rows = state.store().event_list(&filter).await?;
    rows.reverse();
    Ok(Json(rows.iter().map(render::event).collect()))
}

/// Asks for permission and finds out whose events are meant.
pub(crate) async fn filter(
    state: &ApiState,
    caller: &Caller,
    project: Option<&str>,
    instance: Option<&str>,
) -> Result<EventFilter, ApiError> {
    let named = project.map(|text| project_name(Some(text))).transpose()?;
    let object = named.clone().map_or(Object::Installation, Object::Project);
    caller.ask(Action::EventList, &object)?;
    let Some(instance) = instance else {
        return Ok(EventFilter { project: named, ..EventFilter::default() });
    };
    let id = instance_id(state, &project_name(project)?, instance).await?;
    Ok(EventFilter { instance: Some(id), ..EventFilter::default() })
}

/// The id behind a name or id. Events outlive their instance; its operations remember its name.
async fn instance_id(
    state: &ApiState,
    project: &ProjectName,
    text: &str,
) -> Result<InstanceId, ApiError> {
    match state.store().instance_find(project, text).await {
        Ok(row) => return Ok(row.spec.id),
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error.into()),
    }
    let filter = OperationFilter {
        project: Some(project.clone()),
        instance: Some(text.to_owned()),
        limit: Some(1),
        ..OperationFilter::default()
    };
    match state.store().operation_list(&filter).await?.pop() {
        Some(operation) => Ok(operation.instance),
        None => Err(ApiError::new(
            Code::NotFound,
            format!("there is and was no instance `{text}` in project {project}"),
        )),
    }
}
