//! The catalogue: engines and projects.

use std::collections::BTreeMap;
use std::path::Path;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use larder_api_types::{AddEngine, Engine, Problem, Project};
use larder_model::{Code, EngineName};
use serde_json::json;

use crate::auth::Caller;
use crate::body::{Body, PathText};
use crate::error::ApiError;
use crate::permission::{Action, Object};
use crate::render;
use crate::state::ApiState;

/// The engines that instances can run on.
#[utoipa::path(get, path = "/api/v1/engines", tag = "catalogue",
    responses(
        (status = 200, description = "Sorted by name", body = Vec<Engine>),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
) -> Result<Json<Vec<Engine>>, ApiError> {
    caller.ask(Action::EngineList, &Object::Installation)?;
    let rows = match state.has_local() {
        true => state.store().engine_list().await?,
        false => Vec::new(),
    };
    let mut engines: BTreeMap<String, Engine> =
        rows.iter().map(|row| (row.name.to_string(), render::engine(row))).collect();
    for (cluster, names) in state.bindings().binder().engines() {
        for name in names {
            let engine = engines
                .entry(name.to_string())
                .or_insert_with(|| render::engine_of_an_image(&name));
            engine.container_clusters.push(cluster.clone());
        }
    }
    Ok(Json(engines.into_values().collect()))
}

/// Probe a server binary of the machine where Larder runs and add it.
#[utoipa::path(post, path = "/api/v1/engines", tag = "catalogue", request_body = AddEngine,
    responses(
        (status = 201, description = "Added, or probed anew", body = Engine),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn add(
    State(state): State<ApiState>,
    caller: Caller,
    Body(asked): Body<AddEngine>,
) -> Result<(StatusCode, Json<Engine>), ApiError> {
    caller.ask(Action::EngineAdd, &Object::Installation)?;
    if !state.has_local() {
        return Err(ApiError::new(
            Code::EngineUnusable,
            "this Larder runs no servers on its own machine: name engines at \
             `larder container-cluster rebind NAME --engine E`",
        )
        .field("path"));
    }
    let path = Path::new(&asked.path);
    if !path.is_absolute() || asked.path.contains('\0') {
        return Err(ApiError::new(
            Code::InvalidRequest,
            "the path has to be absolute: it is one of the server's machine",
        )
        .field("path"));
    }
    let engine = state.parts().engine_probe.probe(path).await.map_err(|refusal| {
        // The probe knows a path, not which field of a request it came from.
        if refusal.field.is_none() { refusal.field("path") } else { refusal }
    })?;
    match state.store().engine_get(&engine.name).await {
        // Instances find their server by this path: it must not change under them.
        Ok(known) if known.path != engine.path => {
            return Err(ApiError::new(
                Code::NameTaken,
                format!(
                    "engine `{}` is {} already: remove it first",
                    known.name,
                    known.path.display()
                ),
            )
            .field("path"));
        }
        Ok(_) => {}
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error.into()),
    }
    state.store().engine_upsert(&engine).await?;
    let replaced = state.parts().engine_probe.added(&engine).await;
    let object = Object::Engine(engine.name.to_string());
    let mut detail = json!({ "path": asked.path, "version": engine.version });
    if let Ok(names) = &replaced
        && !names.is_empty()
    {
        detail["replaced"] = json!(names);
    }
    state.store().record_append(&caller.record(Action::EngineAdd, &object, detail)).await?;
    // It is in the catalogue whatever became of its former names.
    replaced?;
    Ok((StatusCode::CREATED, Json(render::engine(&engine))))
}

/// Remove an engine that no instance runs on.
#[utoipa::path(delete, path = "/api/v1/engines/{engine}", tag = "catalogue",
    params(("engine" = String, Path, description = "Name of the engine")),
    responses(
        (status = 204, description = "Removed"),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn remove(
    State(state): State<ApiState>,
    caller: Caller,
    PathText(text): PathText,
) -> Result<StatusCode, ApiError> {
    let object = Object::Engine(text.clone());
    caller.ask(Action::EngineRemove, &object)?;
    let missing = || ApiError::new(Code::NotFound, format!("there is no engine `{text}`"));
    let name = EngineName::new(text.clone()).map_err(|_| missing())?;
    match state.store().engine_remove(&name).await {
        Err(error) if error.is_not_found() => return Err(missing()),
        other => other?,
    }
    state.parts().engine_probe.removed(&name);
    state.store().record_append(&caller.record(Action::EngineRemove, &object, json!({}))).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The projects.
#[utoipa::path(get, path = "/api/v1/projects", tag = "catalogue",
    responses(
        (status = 200, description = "Sorted by name", body = Vec<Project>),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn projects(
    State(state): State<ApiState>,
    caller: Caller,
) -> Result<Json<Vec<Project>>, ApiError> {
    caller.ask(Action::ProjectList, &Object::Installation)?;
    let names = state.store().project_list().await?;
    Ok(Json(names.iter().map(|name| Project { name: name.to_string() }).collect()))
}
