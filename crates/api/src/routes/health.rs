//! Probes, and the installation at a glance.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::State;
use larder_api_types::{ContainerClusterStatus, Health, Problem, Status};
use larder_model::Code;
use larder_store::InstanceFilter;

use crate::auth::Caller;
use crate::clock::rfc3339;
use crate::error::ApiError;
use crate::permission::{Action, Object};
use crate::state::ApiState;

/// The process lives.
#[utoipa::path(get, path = "/healthz", tag = "health", security(()),
    responses((status = 200, description = "It lives", body = Health)))]
pub(crate) async fn healthz() -> Json<Health> {
    Json(Health { status: "ok".to_owned() })
}

/// The server takes requests: its store answers and its work runs.
#[utoipa::path(get, path = "/readyz", tag = "health", security(()),
    responses(
        (status = 200, description = "It is ready", body = Health),
        (status = 503, description = "It is not", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn readyz(State(state): State<ApiState>) -> Result<Json<Health>, ApiError> {
    if let Err(error) = state.store().ping().await {
        tracing::warn!(%error, "not ready");
        return Err(ApiError::new(Code::NotReady, "the store does not answer"));
    }
    (state.parts().ready)().map_err(|missing| ApiError::new(Code::NotReady, missing))?;
    Ok(Json(Health { status: "ok".to_owned() }))
}

/// The installation at a glance.
#[utoipa::path(get, path = "/api/v1/status", tag = "catalogue",
    responses(
        (status = 200, description = "Version and counts", body = Status),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn status(
    State(state): State<ApiState>,
    caller: Caller,
) -> Result<Json<Status>, ApiError> {
    caller.ask(Action::StatusGet, &Object::Installation)?;
    let mut instances = BTreeMap::new();
    for row in state.store().instance_list(&InstanceFilter::default()).await? {
        *instances.entry(row.state().to_string()).or_insert(0) += 1;
    }
    let clusters = state.parts().capacity.container_clusters().await;
    let mut engines: BTreeSet<_> =
        clusters.iter().flat_map(|cluster| cluster.engines.iter().flatten().cloned()).collect();
    if state.has_local() {
        engines.extend(state.store().engine_list().await?.into_iter().map(|engine| engine.name));
    }
    Ok(Json(Status {
        version: state.parts().version.clone(),
        started_at: rfc3339(state.parts().started_at),
        instances,
        engines: engines.len() as u64,
        advice: (state.parts().advice)(),
        container_clusters: clusters
            .into_iter()
            .map(|cluster| ContainerClusterStatus {
                name: cluster.name,
                reachable: cluster.reachable,
                workers: u32::try_from(cluster.workers.len()).unwrap_or(u32::MAX),
                memory_bytes: cluster.workers.iter().map(|w| w.allocatable.bytes()).sum(),
                storage_classes: cluster.storage_classes,
                requested_memory_bytes: cluster.workers.iter().map(|w| w.requested.bytes()).sum(),
            })
            .collect(),
    }))
}
