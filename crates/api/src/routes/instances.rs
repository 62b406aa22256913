//! Instances: look at them, change what describes them.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use larder_api_types::{Instance, PlanView, Problem, UpdateInstance};
use larder_model::{
    Architecture, Code, InstanceId, InstanceName, InstanceState, LOCAL_CONTAINER_CLUSTER,
    ProjectName,
};
use larder_store::{InstanceChange, InstanceFilter, InstanceRow, InstanceSort};
use serde::Deserialize;
use serde_json::json;
use utoipa::IntoParams;

use crate::auth::Caller;
use crate::body::{Body, Params, PathText};
use crate::clock::rfc3339;
use crate::error::ApiError;
use crate::permission::{Action, Object};
use crate::render;
use crate::state::ApiState;

/// The project that a name is looked up in.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct InProject {
    /// `default` when left out.
    pub(crate) project: Option<String>,
}

pub(crate) fn project_name(text: Option<&str>) -> Result<ProjectName, ApiError> {
    let text = text.unwrap_or("default");
    ProjectName::new(text).map_err(|_| {
        ApiError::new(Code::NotFound, format!("there is no project `{text}`")).field("project")
    })
}

/// Asks for permission, then finds the instance by its name in the project, or by its id.
///
/// # Errors
/// `not-allowed`, `not-found`.
pub(crate) async fn find(
    state: &ApiState,
    caller: &Caller,
    action: Action,
    project: Option<&str>,
    name: &str,
) -> Result<(InstanceRow, Object), ApiError> {
    let project = project_name(project)?;
    let mut object = Object::Instance { project: project.clone(), name: name.to_owned() };
    caller.ask(action, &object)?;
    let row = match state.store().instance_find(&project, name).await {
        Err(error) if error.is_not_found() => by_id(state, name).await?,
        other => Some(other?),
    };
    let Some(row) = row else {
        return Err(ApiError::new(
            Code::NotFound,
            format!("there is no instance `{name}` in project {project}"),
        ));
    };
    let named = row.spec.name.to_string();
    if row.spec.project != project || named != name {
        // Found by its id: ask about what it really is.
        object = Object::Instance { project: row.spec.project.clone(), name: named };
        caller.ask(action, &object)?;
    }
    Ok((row, object))
}

async fn by_id(state: &ApiState, text: &str) -> Result<Option<InstanceRow>, ApiError> {
    let Ok(id) = InstanceId::new(text) else { return Ok(None) };
    match state.store().instance_get(&id).await {
        Ok(row) => Ok(Some(row)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What is shown of one instance.
pub(crate) async fn show(state: &ApiState, row: &InstanceRow) -> Result<Instance, ApiError> {
    if row.spec.container_cluster != LOCAL_CONTAINER_CLUSTER {
        // The binary of this machine says nothing of an image.
        return Ok(render::instance(row, None));
    }
    let version = match state.store().engine_get(&row.spec.engine).await {
        Ok(engine) => Some(engine.version),
        Err(error) if error.is_not_found() => None,
        Err(error) => return Err(error.into()),
    };
    Ok(render::instance(row, version))
}

/// Which instances, and how.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListParams {
    /// All projects when left out.
    project: Option<String>,
    state: Option<String>,
    architecture: Option<String>,
    /// Part of name, description or a tag.
    search: Option<String>,
    /// `name` (when left out), `created_at`, `state`, `architecture`, `engine`, `memory_bytes`.
    sort: Option<String>,
    limit: Option<u32>,
}

/// List instances.
#[utoipa::path(get, path = "/api/v1/instances", tag = "instances", params(ListParams),
    responses(
        (status = 200, description = "As they were last observed", body = Vec<Instance>),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Params(params): Params<ListParams>,
) -> Result<Json<Vec<Instance>>, ApiError> {
    let project = match params.project.as_deref() {
        Some(text) => Some(project_name(Some(text))?),
        None => None,
    };
    let object = project.clone().map_or(Object::Installation, Object::Project);
    caller.ask(Action::InstanceList, &object)?;
    if let Some(project) = &project
        && !state.store().project_exists(project).await?
    {
        return Err(ApiError::new(Code::NotFound, format!("there is no project `{project}`"))
            .field("project"));
    }
    let sort = word(
        "sort",
        params.sort.as_deref(),
        InstanceSort::parse,
        &InstanceSort::ALL.map(InstanceSort::as_str),
    )?;
    let filter = InstanceFilter {
        project,
        state: word(
            "state",
            params.state.as_deref(),
            InstanceState::parse,
            &InstanceState::ALL.map(InstanceState::as_str),
        )?,
        architecture: word(
            "architecture",
            params.architecture.as_deref(),
            Architecture::parse,
            &Architecture::ALL.map(Architecture::as_str),
        )?,
        search: params.search,
        sort: sort.unwrap_or_default(),
        limit: params.limit,
    };
    let rows = state.store().instance_list(&filter).await?;
    let engines = state.store().engine_list().await?;
    let versions: BTreeMap<_, _> =
        engines.into_iter().map(|engine| (engine.name, engine.version)).collect();
    let shown = rows
        .iter()
        .map(|row| {
            let local = row.spec.container_cluster == LOCAL_CONTAINER_CLUSTER;
            let version = versions.get(&row.spec.engine).filter(|_| local);
            render::instance(row, version.cloned())
        })
        .collect();
    Ok(Json(shown))
}

/// Reads one of a closed set of words.
fn word<T>(
    field: &str,
    text: Option<&str>,
    parse: impl Fn(&str) -> Option<T>,
    all: &[&str],
) -> Result<Option<T>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    match parse(text) {
        Some(value) => Ok(Some(value)),
        None => Err(ApiError::new(
            Code::InvalidRequest,
            format!("`{text}` is no {field}: use one of {}", all.join(", ")),
        )
        .field(field)),
    }
}

/// Show one instance.
#[utoipa::path(get, path = "/api/v1/instances/{instance}", tag = "instances",
    params(("instance" = String, Path, description = "Name or id"), InProject),
    responses(
        (status = 200, description = "As it was last observed", body = Instance),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn get(
    State(state): State<ApiState>,
    caller: Caller,
    PathText(name): PathText,
    Params(params): Params<InProject>,
) -> Result<Json<Instance>, ApiError> {
    let project = params.project.as_deref();
    let (row, _) = find(&state, &caller, Action::InstanceGet, project, &name).await?;
    show(&state, &row).await.map(Json)
}

/// What the planner would do now, and what it waits for.
#[utoipa::path(get, path = "/api/v1/instances/{instance}/plan", tag = "instances",
    params(("instance" = String, Path, description = "Name or id"), InProject),
    responses(
        (status = 200, description = "The newest plan", body = PlanView),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn plan(
    State(state): State<ApiState>,
    caller: Caller,
    PathText(name): PathText,
    Params(params): Params<InProject>,
) -> Result<Json<PlanView>, ApiError> {
    let project = params.project.as_deref();
    let (row, _) = find(&state, &caller, Action::InstanceGet, project, &name).await?;
    let instance = Some(row.spec.id.to_string());
    Ok(Json(match &row.observation {
        Some(observation) => PlanView {
            instance,
            generation: observation.plan.generation,
            state: row.state().to_string(),
            steps: observation.plan.steps.iter().map(ToString::to_string).collect(),
            waits: observation.plan.waits.iter().map(ToString::to_string).collect(),
            // People know the instance by its name.
            text: observation.plan.to_string().replacen(
                row.spec.id.as_str(),
                row.spec.name.as_str(),
                1,
            ),
            planned_at: Some(rfc3339(observation.at)),
        },
        None => PlanView {
            instance,
            generation: row.generation,
            state: row.state().to_string(),
            steps: Vec::new(),
            waits: vec!["nobody has looked at the instance yet".to_owned()],
            text: format!("instance {} has not been planned yet\n", row.spec.name),
            planned_at: None,
        },
    }))
}

/// Change name, description or tags.
#[utoipa::path(patch, path = "/api/v1/instances/{instance}", tag = "instances", request_body = UpdateInstance,
    params(("instance" = String, Path, description = "Name or id"), InProject),
    responses(
        (status = 200, description = "The instance as it now is", body = Instance),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn update(
    State(state): State<ApiState>,
    caller: Caller,
    PathText(name): PathText,
    Params(params): Params<InProject>,
    Body(change): Body<UpdateInstance>,
) -> Result<Json<Instance>, ApiError> {
    let project = params.project.as_deref();
    let (row, object) = find(&state, &caller, Action::InstanceUpdate, project, &name).await?;
    let detail = json!({
        "name": change.name,
        "description": change.description,
        "tags": change.tags,
    });
    let new_name = change.name.map(instance_name).transpose()?;
    let generation = change.generation;
    let change =
        InstanceChange { name: new_name, description: change.description, tags: change.tags };
    if change == InstanceChange::default() {
        return Err(ApiError::new(
            Code::InvalidRequest,
            "nothing to change: give name, description or tags",
        ));
    }
    let record = caller.record(Action::InstanceUpdate, &object, detail);
    let row = state.store().instance_update(&row.spec.id, generation, &change, &record).await?;
    // A new name is part of what nodes are told.
    (state.parts().activate)(&row.spec.id);
    show(&state, &row).await.map(Json)
}

pub(crate) fn instance_name(text: String) -> Result<InstanceName, ApiError> {
    InstanceName::new(text)
        .map_err(|error| ApiError::new(Code::InvalidName, error.to_string()).field("name"))
}
