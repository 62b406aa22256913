//! Container clusters: bound, looked at, unbound.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use futures::future::join_all;
use larder_api_types::{BindContainerCluster, ContainerCluster, Problem, SetContainerCluster};
use larder_model::{Code, InstanceName, LOCAL_CONTAINER_CLUSTER};
use serde_json::json;

use crate::auth::Caller;
use crate::body::{Body, PathText, PathTexts};
use crate::error::ApiError;
use crate::permission::{Action, Object};
use crate::state::ApiState;

/// Every container cluster, this machine first, as it was seen last.
#[utoipa::path(get, path = "/api/v1/container-clusters", tag = "catalogue",
    responses(
        (status = 200, description = "This machine, then the others by name", body = Vec<ContainerCluster>),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
) -> Result<Json<Vec<ContainerCluster>>, ApiError> {
    caller.ask(Action::ContainerClusterList, &Object::Installation)?;
    let bound = state.store().container_cluster_list().await?;
    let local = state.has_local().then(|| LOCAL_CONTAINER_CLUSTER.to_owned());
    let names = local.into_iter().chain(bound.into_iter().map(|row| row.name));
    let binder = &state.parts().binder;
    let seen = join_all(names.map(|name| async move { binder.look(&name).await })).await;
    Ok(Json(seen.into_iter().flatten().collect()))
}

/// One container cluster, as it was seen last.
#[utoipa::path(get, path = "/api/v1/container-clusters/{container_cluster}", tag = "catalogue",
    params(("container_cluster" = String, Path, description = "Name of the container cluster")),
    responses(
        (status = 200, description = "As it was seen last", body = ContainerCluster),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn get(
    State(state): State<ApiState>,
    caller: Caller,
    PathText(name): PathText,
) -> Result<Json<ContainerCluster>, ApiError> {
    caller.ask(Action::ContainerClusterList, &Object::ContainerCluster(name.clone()))?;
    state.parts().binder.look(&name).await.map(Json).ok_or_else(|| missing(&name))
}

/// Bind a container cluster, or bind one anew with other credentials or options.
#[utoipa::path(post, path = "/api/v1/container-clusters", tag = "catalogue", request_body = BindContainerCluster,
    responses(
        (status = 201, description = "Bound", body = ContainerCluster),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn bind(
    State(state): State<ApiState>,
    caller: Caller,
    Body(asked): Body<BindContainerCluster>,
) -> Result<(StatusCode, Json<ContainerCluster>), ApiError> {
    let object = Object::ContainerCluster(asked.name.clone());
    caller.ask(Action::ContainerClusterBind, &object)?;
    if asked.name == LOCAL_CONTAINER_CLUSTER || InstanceName::new(asked.name.as_str()).is_err() {
        return Err(ApiError::new(
            Code::InvalidName,
            format!(
                "`{}` cannot be a container cluster's name: use lower-case letters, digits and \
                 inner hyphens, and not `{LOCAL_CONTAINER_CLUSTER}`, which is this machine",
                asked.name
            ),
        )
        .field("name"));
    }
    let bound = state.store().container_cluster_list().await?;
    let known = bound.iter().find(|row| row.name == asked.name);
    let row = state.parts().binder.prepare(&asked, known).await?;
    state.store().container_cluster_bind(&row).await?;
    state.parts().binder.bound(&row).await;
    let detail = json!({ "options": row.options });
    let record = caller.record(Action::ContainerClusterBind, &object, detail);
    state.store().record_append(&record).await?;
    let seen = state.parts().binder.look(&row.name).await.ok_or_else(|| missing(&row.name))?;
    Ok((StatusCode::CREATED, Json(seen)))
}

/// Unbind a container cluster that no instance lives on. Nothing is removed there.
#[utoipa::path(delete, path = "/api/v1/container-clusters/{container_cluster}", tag = "catalogue",
    params(("container_cluster" = String, Path, description = "Name of the container cluster")),
    responses(
        (status = 204, description = "Unbound"),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn unbind(
    State(state): State<ApiState>,
    caller: Caller,
    PathText(name): PathText,
) -> Result<StatusCode, ApiError> {
    let object = Object::ContainerCluster(name.clone());
    caller.ask(Action::ContainerClusterUnbind, &object)?;
    match state.store().container_cluster_unbind(&name).await {
        Err(error) if error.is_not_found() => return Err(missing(&name)),
        other => other?,
    }
    state.parts().binder.unbound(&name);
    let record = caller.record(Action::ContainerClusterUnbind, &object, json!({}));
    state.store().record_append(&record).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Change how a container cluster is used. Instances that are there are not moved.
#[utoipa::path(patch, path = "/api/v1/container-clusters/{container_cluster}", tag = "catalogue",
    params(("container_cluster" = String, Path, description = "Name of the container cluster")),
    request_body = SetContainerCluster,
    responses(
        (status = 200, description = "Changed", body = ContainerCluster),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn set(
    State(state): State<ApiState>,
    caller: Caller,
    PathText(name): PathText,
    Body(asked): Body<SetContainerCluster>,
) -> Result<Json<ContainerCluster>, ApiError> {
    let object = Object::ContainerCluster(name.clone());
    caller.ask(Action::ContainerClusterSet, &object)?;
    let bound = state.store().container_cluster_list().await?;
    let known = bound.iter().find(|row| row.name == name).ok_or_else(|| missing(&name))?;
    let row = state.parts().binder.change(&asked, known).await?;
    state.store().container_cluster_bind(&row).await?;
    state.parts().binder.bound(&row).await;
    let detail = json!({ "options": row.options });
    let record = caller.record(Action::ContainerClusterSet, &object, detail);
    state.store().record_append(&record).await?;
    state.parts().binder.look(&name).await.map(Json).ok_or_else(|| missing(&name))
}

/// Say that a worker is lost for good: Kubernetes gives up its pods and volumes.
#[utoipa::path(post, path = "/api/v1/container-clusters/{container_cluster}/workers/{worker}/confirm-lost",
    tag = "catalogue",
    params(
        ("container_cluster" = String, Path, description = "Name of the container cluster"),
        ("worker" = String, Path, description = "Name of the worker")),
    responses(
        (status = 204, description = "Marked as out of service"),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn confirm_lost(
    State(state): State<ApiState>,
    caller: Caller,
    PathTexts((name, worker)): PathTexts<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let object = Object::ContainerCluster(name.clone());
    caller.ask(Action::ContainerClusterConfirmLost, &object)?;
    state.parts().binder.confirm_lost(&name, &worker).await?;
    let detail = json!({ "worker": worker });
    let record = caller.record(Action::ContainerClusterConfirmLost, &object, detail);
    state.store().record_append(&record).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn missing(name: &str) -> ApiError {
    ApiError::new(
        Code::NotFound,
        format!(
            "there is no container cluster `{name}`: `larder container-cluster list` shows all"
        ),
    )
}
