//! What changes a serving instance: its size, its engine, its password. Everything is checked
//! against what was last seen before anything is written, so that a refusal costs nothing.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use larder_api_types::{Operation, Problem, ResizeInstance, SetInstancePassword, UpgradeInstance};
use larder_model::{
    BackendNode, ByteSize, Code, Desired, EngineName, Exposed, InstanceSpec,
    LOCAL_CONTAINER_CLUSTER, Millis, Observation, Observed, ObservedNode, OperationKind, Refusal,
    check_password,
};
use larder_store::InstanceRow;
use serde_json::json;

use super::actions::ready;
use super::create::{CAPACITY_TIMEOUT, check_engine, no_engine, password_sha256};
use super::instances::{InProject, find};
use crate::auth::Caller;
use crate::body::{Body, Params, PathText};
use crate::clock::now;
use crate::error::ApiError;
use crate::permission::{Action, Object};
use crate::render;
use crate::state::{ApiState, ContainerClusterInfo};

type Accepted = (StatusCode, Json<Operation>);

/// Give every node another memory.
#[utoipa::path(post, path = "/api/v1/instances/{instance}/resize", tag = "instances", request_body = ResizeInstance,
    params(("instance" = String, Path, description = "Name or id"), InProject),
    responses(
        (status = 202, description = "Accepted", body = Operation),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn resize(
    State(state): State<ApiState>,
    caller: Caller,
    PathText(name): PathText,
    Params(params): Params<InProject>,
    Body(asked): Body<ResizeInstance>,
) -> Result<Accepted, ApiError> {
    let project = params.project.as_deref();
    let (row, object) = find(&state, &caller, Action::InstanceResize, project, &name).await?;
    ready(&row)?;
    let memory = ByteSize(asked.memory_bytes);
    let spec = InstanceSpec { memory, ..row.spec.clone() };
    checked(&spec)?;
    if memory == row.spec.memory {
        return Err(nothing_to_change(format!("has {memory} for each node already"), &row)
            .field("memory_bytes")
            .into());
    }
    fits(&row, memory)?;
    let kind = OperationKind::Resize { former: row.spec.memory };
    let detail = json!({ "from": row.spec.memory.bytes(), "to": memory.bytes() });
    begin(
        &state,
        &caller,
        &row,
        spec,
        Change { action: Action::InstanceResize, object, kind, detail },
    )
    .await
}

/// Run the instance on another version of its engine.
#[utoipa::path(post, path = "/api/v1/instances/{instance}/upgrade", tag = "instances", request_body = UpgradeInstance,
    params(("instance" = String, Path, description = "Name or id"), InProject),
    responses(
        (status = 202, description = "Accepted", body = Operation),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn upgrade(
    State(state): State<ApiState>,
    caller: Caller,
    PathText(name): PathText,
    Params(params): Params<InProject>,
    Body(asked): Body<UpgradeInstance>,
) -> Result<Accepted, ApiError> {
    let project = params.project.as_deref();
    let (row, object) = find(&state, &caller, Action::InstanceUpgrade, project, &name).await?;
    ready(&row)?;
    let engine = EngineName::new(asked.engine.clone()).map_err(|_| no_engine(&asked.engine))?;
    let former = &row.spec.engine;
    if engine == *former {
        return Err(nothing_to_change(format!("runs on {engine} already"), &row)
            .field("engine")
            .into());
    }
    if row.spec.container_cluster == LOCAL_CONTAINER_CLUSTER {
        match state.store().engine_get(&engine).await {
            Ok(_) => {}
            Err(error) if error.is_not_found() => return Err(no_engine(engine.as_str())),
            Err(error) => return Err(error.into()),
        }
    }
    may_become(former, &engine)?;
    let spec = InstanceSpec { engine: engine.clone(), ..row.spec.clone() };
    let kind = OperationKind::Upgrade { former: Some(former.clone()) };
    let detail = json!({ "from": former, "to": engine });
    begin(
        &state,
        &caller,
        &row,
        spec,
        Change { action: Action::InstanceUpgrade, object, kind, detail },
    )
    .await
}

/// How long both passwords are valid when nobody says so, and at most.
const GRACE: u64 = 600;
const GRACE_MOST: u64 = 7 * 86_400;

/// Give the instance another password.
#[utoipa::path(post, path = "/api/v1/instances/{instance}/password", tag = "instances", request_body = SetInstancePassword,
    params(("instance" = String, Path, description = "Name or id"), InProject),
    responses(
        (status = 202, description = "Accepted", body = Operation),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn set_password(
    State(state): State<ApiState>,
    caller: Caller,
    PathText(name): PathText,
    Params(params): Params<InProject>,
    Body(asked): Body<SetInstancePassword>,
) -> Result<Accepted, ApiError> {
    let project = params.project.as_deref();
    let (row, object) = find(&state, &caller, Action::InstanceSetPassword, project, &name).await?;
    ready(&row)?;
    check_password(asked.password.expose())?;
    let grace = asked.grace_seconds.unwrap_or(GRACE);
    if grace > GRACE_MOST {
        return Err(ApiError::new(
            Code::InvalidRequest,
            format!("a grace of {grace} s is too long: at most {GRACE_MOST} s, a week"),
        )
        .field("grace_seconds"));
    }
    let hash = password_sha256(&asked.password);
    let operation = caller.operation(&row, OperationKind::SetPassword { revision: 0 });
    let detail = json!({ "grace_seconds": grace });
    let record = caller.record(Action::InstanceSetPassword, &object, detail);
    let until = operation.created_at + Millis::secs(grace);
    let operation = state.store().password_change_begin(&hash, until, &operation, &record).await?;
    tracing::info!(instance = %row.spec.id, action = %Action::InstanceSetPassword, operation = %operation.id, "operation accepted");
    (state.parts().activate)(&row.spec.id);
    Ok((StatusCode::ACCEPTED, Json(render::operation(&operation))))
}

/// New servers for an instance whose shards have one node each: those cannot hand over to anybody,
/// so a new node comes first.
pub(crate) async fn renew(
    state: &ApiState,
    caller: &Caller,
    row: &InstanceRow,
    object: Object,
) -> Result<Accepted, ApiError> {
    let kind = OperationKind::Renew { former: row.spec.revision };
    let spec = InstanceSpec { revision: row.spec.revision + 1, ..row.spec.clone() };
    let detail = json!({ "node": null });
    begin(
        state,
        caller,
        row,
        spec,
        Change { action: Action::InstanceRestart, object, kind, detail },
    )
    .await
}

/// What is to be done, and how it is recorded.
pub(super) struct Change {
    pub(super) action: Action,
    pub(super) object: Object,
    pub(super) kind: OperationKind,
    pub(super) detail: serde_json::Value,
}

/// Checks that there is room, writes the wish with its operation and record, and says "look again".
pub(super) async fn begin(
    state: &ApiState,
    caller: &Caller,
    row: &InstanceRow,
    spec: InstanceSpec,
    change: Change,
) -> Result<Accepted, ApiError> {
    match tokio::time::timeout(CAPACITY_TIMEOUT, room(state, row, &spec)).await {
        Ok(checked) => checked?,
        Err(_) => {
            return Err(ApiError::new(
                Code::Timeout,
                format!("container cluster `{}` did not say what is free", spec.container_cluster),
            ));
        }
    }
    let operation = caller.operation(row, change.kind);
    let record = caller.record(change.action, &change.object, change.detail);
    let operation =
        state.store().instance_change_begin(&spec, row.generation, &operation, &record).await?;
    tracing::info!(instance = %spec.id, action = %change.action, operation = %operation.id, "operation accepted");
    (state.parts().activate)(&spec.id);
    Ok((StatusCode::ACCEPTED, Json(render::operation(&operation))))
}

/// Whether all nodes that the change needs find a place, the one that stands in for others
/// included. What cannot be looked at just now is not known to be full.
async fn room(state: &ApiState, row: &InstanceRow, spec: &InstanceSpec) -> Result<(), ApiError> {
    let clusters = state.parts().capacity.container_clusters().await;
    let Some(cluster) = clusters.into_iter().find(|it| it.name == spec.container_cluster) else {
        return Ok(());
    };
    check_engine(&cluster, &spec.engine)?;
    let known = state.store().instance_desired(&spec.id, state.parts().policy).await?;
    let Some(known) = known.filter(|_| cluster.reachable) else { return Ok(()) };
    let mut desired = Desired { spec: spec.clone(), operation: None, ..known };
    cluster.rule(&mut desired);
    let observed = held(&desired, &cluster);
    larder_planner::check_room(&desired, &observed)?;
    let in_place = cluster.resizes_in_place
        && spec.engine == row.spec.engine
        && spec.revision == row.spec.revision;
    let stand_in = u32::from(!in_place);
    let more = spec.node_count().saturating_sub(row.spec.node_count()) + stand_in;
    if more > 0 {
        // Ports, disk and binary, of the nodes that come.
        let coming = InstanceSpec { shards: 1, replicas: more, ..spec.clone() };
        state.parts().capacity.check(&coming).await?;
    }
    Ok(())
}

/// The instance's nodes as something that the workers' memory is counted with already.
fn held(desired: &Desired, cluster: &ContainerClusterInfo) -> Observed {
    let at = now();
    let node = |record: &larder_model::NodeRecord| {
        let value = BackendNode {
            worker: record.worker.clone(),
            address: record.address.clone(),
            realised: true,
            volume: true,
            generation: desired.generation,
            exposed: Exposed::No,
            outdated: false,
        };
        let backend = Observation::Known { value, at };
        (record.id.clone(), ObservedNode { backend, ..ObservedNode::default() })
    };
    Observed {
        workers: cluster.workers.clone(),
        nodes: desired.nodes.iter().map(node).collect(),
        ..Observed::default()
    }
}

/// Ranges of the spec, with the fields' names in requests.
pub(super) fn checked(spec: &InstanceSpec) -> Result<(), Refusal> {
    spec.check().map_err(|mut refusal| {
        if refusal.field.as_deref() == Some("memory") {
            refusal.field = Some("memory_bytes".to_owned());
        }
        refusal
    })
}

pub(super) fn nothing_to_change(what: String, row: &InstanceRow) -> Refusal {
    Refusal::new(Code::InvalidRequest, format!("instance `{}` {what}", row.spec.name))
}

/// Whether every node's data would fit, by what was last seen of them.
fn fits(row: &InstanceRow, memory: ByteSize) -> Result<(), Refusal> {
    let limit = InstanceSpec::maxmemory_of(memory);
    let nodes = row.observation.as_ref().map(|seen| seen.nodes.as_slice()).unwrap_or_default();
    let fullest = nodes.iter().filter_map(|node| Some((node.used_memory?, &node.id))).max();
    match fullest {
        Some((used, node)) if used > limit => Err(Refusal::new(
            Code::DataTooLarge,
            format!(
                "node {node} holds {used}, and of {memory} each node has {limit} for data: ask for \
                 more, or delete data first"
            ),
        )
        .field("memory_bytes")),
        _ => Ok(()),
    }
}

/// Whether data of the one engine can be taken over by the other while it is written to: a replica
/// reads what its primary sends, so it must know the primary's formats.
fn may_become(from: &EngineName, to: &EngineName) -> Result<(), Refusal> {
    let refuse = |why: &str| {
        let detail =
            format!("`{from}` cannot become `{to}` online: {why}; create another instance");
        Err(Refusal::new(Code::EngineUnusable, detail).field("engine"))
    };
    let (Some((was, old)), Some((is, new))) = (version(from), version(to)) else {
        return Ok(()); // A name of somebody's own: the first new node shows whether it can.
    };
    match (was, is) {
        (was, is) if was == is && new < old => refuse("it is an older version"),
        (was, is) if was == is => Ok(()),
        // Valkey came from Redis 7.2 and reads RDB versions up to 11 (rdb.h of both).
        ("redis", "valkey") if old <= (7, 2) => Ok(()),
        ("redis", "valkey") => refuse("Valkey does not read the format of Redis after 7.2"),
        _ => refuse("it is another family"),
    }
}

/// `redis-7.0` as its family and version.
fn version(engine: &EngineName) -> Option<(&str, (u32, u32))> {
    let (family, version) = engine.as_str().split_once('-')?;
    let (major, minor) = version.split_once('.')?;
    Some((family, (major.parse().ok()?, minor.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_becomes_a_newer_one_of_its_family_or_valkey_while_that_reads_its_data() {
        let name = |text: &str| EngineName::new(text).expect("valid");
        for (from, to, may) in [
            ("redis-6.2", "redis-7.0", true),
            ("redis-7.0", "redis-6.2", false),
            ("redis-7.0", "valkey-8.0", true),
            ("redis-7.2", "valkey-9.1", true),
            ("redis-7.4", "valkey-9.1", false),
            ("valkey-8.0", "valkey-9.1", true),
            ("valkey-8.0", "redis-8.2", false),
            ("redis-7.0", "house-build", true),
        ] {
            assert_eq!(may_become(&name(from), &name(to)).is_ok(), may, "{from} to {to}");
        }
    }
}
