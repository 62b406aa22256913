//! How many nodes an instance has, and which shard has which slots.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use larder_api_types::{Operation, Problem, ScaleInstance};
use larder_model::agent::Role;
use larder_model::{Architecture, ByteSize, Code, InstanceSpec, OperationKind, Refusal, limits};
use larder_store::InstanceRow;
use serde_json::json;

use super::actions::{self, ready};
use super::changes::{Change, begin, checked, nothing_to_change};
use super::instances::{InProject, find};
use crate::auth::Caller;
use crate::body::{Body, Params, PathText};
use crate::error::ApiError;
use crate::permission::{Action, Object};
use crate::render;
use crate::state::ApiState;

type Accepted = (StatusCode, Json<Operation>);

/// Change how many shards or nodes the instance has, or pause the change and let it go on.
#[utoipa::path(post, path = "/api/v1/instances/{instance}/scale", tag = "instances", request_body = ScaleInstance,
    params(("instance" = String, Path, description = "Name or id"), InProject),
    responses(
        (status = 202, description = "Accepted", body = Operation),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn scale(
    State(state): State<ApiState>,
    caller: Caller,
    PathText(name): PathText,
    Params(params): Params<InProject>,
    Body(asked): Body<ScaleInstance>,
) -> Result<Accepted, ApiError> {
    let project = params.project.as_deref();
    let (row, object) = find(&state, &caller, Action::InstanceScale, project, &name).await?;
    ready(&row)?;
    if let Some(paused) = asked.paused {
        if asked != (ScaleInstance { paused: Some(paused), ..ScaleInstance::default() }) {
            return Err(ApiError::new(
                Code::InvalidRequest,
                "pause or resume what is under way, or ask for other numbers: not both at once",
            )
            .field("paused"));
        }
        return pause(&state, &caller, &row, object, paused).await;
    }
    let former = &row.spec;
    let replicas = replicas(former, &asked)?;
    let shards = asked.shards.unwrap_or(former.shards);
    if shards != former.shards && former.architecture != Architecture::Cluster {
        return Err(ApiError::new(
            Code::ShardsOutOfRange,
            format!("a {} instance has one shard", former.architecture),
        )
        .field("shards"));
    }
    let spec = InstanceSpec { shards, replicas, ..former.clone() };
    checked(&spec)?;
    if (spec.shards, spec.replicas) == (former.shards, former.replicas) {
        let what = match former.architecture {
            Architecture::Cluster => {
                format!("has {} shards of {} nodes already", former.shards, former.replicas)
            }
            _ => format!("has {} nodes in each shard already", former.replicas),
        };
        return Err(nothing_to_change(what, &row).into());
    }
    let more = spec.node_count().saturating_sub(former.node_count());
    if more > limits::NODES_MORE {
        let field = if shards > former.shards { "shards" } else { "replicas" };
        return Err(ApiError::new(
            Code::ReplicasOutOfRange,
            format!(
                "{more} nodes more at once: at most {} can be added in one change; ask for some of \
                 them now and for the others after that",
                limits::NODES_MORE
            ),
        )
        .field(field));
    }
    if shards < former.shards {
        fewer_shards_hold_it(&row, &spec)?;
    }
    let kind = OperationKind::Scale {
        former_shards: former.shards,
        former_replicas: former.replicas,
        share_slots: shards != former.shards,
        paused: false,
    };
    let detail = json!({
        "from": { "shards": former.shards, "replicas": former.replicas },
        "to": { "shards": shards, "replicas": replicas },
    });
    begin(
        &state,
        &caller,
        &row,
        spec,
        Change { action: Action::InstanceScale, object, kind, detail },
    )
    .await
}

/// Share the slots of a cluster instance by what its shards hold.
#[utoipa::path(post, path = "/api/v1/instances/{instance}/rebalance", tag = "instances",
    params(("instance" = String, Path, description = "Name or id"), InProject),
    responses(
        (status = 202, description = "Accepted", body = Operation),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn rebalance(
    State(state): State<ApiState>,
    caller: Caller,
    PathText(name): PathText,
    Params(params): Params<InProject>,
) -> Result<Accepted, ApiError> {
    let project = params.project.as_deref();
    let (row, object) = find(&state, &caller, Action::InstanceRebalance, project, &name).await?;
    ready(&row)?;
    if row.spec.shards < 2 {
        return Err(
            nothing_to_change("has one shard: there is nothing to share".into(), &row).into()
        );
    }
    let kind = OperationKind::Rebalance { counts: Vec::new(), paused: false };
    let action = Action::InstanceRebalance;
    actions::begin(&state, &caller, &row, action, &object, kind, json!({})).await
}

/// Nodes of each shard that are asked for.
fn replicas(former: &InstanceSpec, asked: &ScaleInstance) -> Result<u32, Refusal> {
    match (former.architecture, asked.replicas, asked.read_only_nodes) {
        (_, replicas, None) => Ok(replicas.unwrap_or(former.replicas)),
        (Architecture::ReadWrite, None, Some(nodes)) => Ok(nodes.saturating_add(1)),
        (Architecture::ReadWrite, Some(replicas), Some(nodes))
            if Some(replicas) == nodes.checked_add(1) =>
        {
            Ok(replicas)
        }
        (Architecture::ReadWrite, Some(replicas), Some(nodes)) => Err(Refusal::new(
            Code::ReplicasOutOfRange,
            format!(
                "{replicas} replicas and {nodes} read-only nodes contradict each other: replicas \
                 count the primary in, so they are one more"
            ),
        )
        .field("read_only_nodes")),
        (Architecture::Standalone | Architecture::Cluster, ..) => Err(Refusal::new(
            Code::ReplicasOutOfRange,
            format!("a {} instance has no read-only nodes", former.architecture),
        )
        .field("read_only_nodes")),
    }
}

/// Whether fewer shards have room for the data of all, by what was last seen of them.
fn fewer_shards_hold_it(row: &InstanceRow, spec: &InstanceSpec) -> Result<(), Refusal> {
    let nodes = row.observation.as_ref().map(|seen| seen.nodes.as_slice()).unwrap_or_default();
    let primaries = nodes.iter().filter(|node| node.role == Some(Role::Primary));
    let all: u64 = primaries.filter_map(|node| Some(node.used_memory?.bytes())).sum();
    let limit = InstanceSpec::maxmemory_of(spec.memory);
    let each = ByteSize(all.div_ceil(u64::from(spec.shards.max(1))));
    if each <= limit {
        return Ok(());
    }
    Err(Refusal::new(
        Code::DataTooLarge,
        format!(
            "the shards hold {} together, which is {each} for each of {}, and of {} each has \
             {limit} for data: ask for more shards or for more memory first, or delete data",
            ByteSize(all),
            spec.shards,
            spec.memory
        ),
    )
    .field("shards"))
}

/// Pauses the move of slots that is under way, or lets it go on.
async fn pause(
    state: &ApiState,
    caller: &Caller,
    row: &InstanceRow,
    object: Object,
    paused: bool,
) -> Result<Accepted, ApiError> {
    let known = state.store().instance_desired(&row.spec.id, state.parts().policy).await?;
    let operation = known.and_then(|desired| desired.operation);
    let kind = operation.as_ref().and_then(|operation| operation.kind.with_pause(paused));
    let (Some(operation), Some(kind)) = (operation, kind) else {
        let what = "has no change of its shards under way that could be paused or go on";
        return Err(nothing_to_change(what.to_owned(), row).field("paused").into());
    };
    state.store().operation_set_kind(&operation.id, &kind).await?;
    let detail = json!({ "paused": paused, "operation": operation.id });
    state.store().record_append(&caller.record(Action::InstanceScale, &object, detail)).await?;
    tracing::info!(instance = %row.spec.id, operation = %operation.id, paused, "operation paused or resumed");
    (state.parts().activate)(&row.spec.id);
    Ok((StatusCode::ACCEPTED, Json(render::operation(&operation))))
}
