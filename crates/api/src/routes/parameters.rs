//! Parameters of the servers: what there is, what is set, and changes, checked as a whole.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use larder_api_types::{
    Operation, Parameter, ParameterChange, ParameterHistory, Problem, ResetParameters,
    SetParameters,
};
use larder_model::{
    Code, InstanceSpec, Kind, OperationKind, PARAMETERS, ParameterContext, Refusal,
    canonical_parameter, check_parameters,
};
use larder_store::{InstanceRow, OperationFilter};
use serde_json::json;

use super::actions::ready;
use super::changes::{Change, begin, nothing_to_change};
use super::instances::{InProject, find};
use crate::auth::Caller;
use crate::body::{Body, Params, PathText};
use crate::error::ApiError;
use crate::permission::{Action, Object};
use crate::render;
use crate::state::ApiState;

type Accepted = (StatusCode, Json<Operation>);

/// The parameters of an instance: those that its engine and architecture have.
#[utoipa::path(get, path = "/api/v1/instances/{instance}/parameters", tag = "parameters",
    params(("instance" = String, Path, description = "Name or id"), InProject),
    responses(
        (status = 200, description = "In the order of the table, common ones first", body = Vec<Parameter>),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    PathText(name): PathText,
    Params(params): Params<InProject>,
) -> Result<Json<Vec<Parameter>>, ApiError> {
    let project = params.project.as_deref();
    let (row, _) = find(&state, &caller, Action::ParameterList, project, &name).await?;
    Ok(Json(all_of(&row.spec)))
}

/// Give parameters other values. Those that are not named stay.
#[utoipa::path(put, path = "/api/v1/instances/{instance}/parameters", tag = "parameters", request_body = SetParameters,
    params(("instance" = String, Path, description = "Name or id"), InProject),
    responses(
        (status = 202, description = "Accepted", body = Operation),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn set(
    State(state): State<ApiState>,
    caller: Caller,
    PathText(name): PathText,
    Params(params): Params<InProject>,
    Body(asked): Body<SetParameters>,
) -> Result<Accepted, ApiError> {
    let project = params.project.as_deref();
    let (row, object) = find(&state, &caller, Action::ParameterSet, project, &name).await?;
    ready(&row)?;
    let mut values = row.spec.parameters.clone();
    values.extend(canonical(&asked.values, &row.spec)?);
    change(&state, &caller, &row, object, values).await
}

/// Give parameters their defaults again: the named ones, or all.
#[utoipa::path(post, path = "/api/v1/instances/{instance}/parameters/reset", tag = "parameters", request_body = ResetParameters,
    params(("instance" = String, Path, description = "Name or id"), InProject),
    responses(
        (status = 202, description = "Accepted", body = Operation),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn reset(
    State(state): State<ApiState>,
    caller: Caller,
    PathText(name): PathText,
    Params(params): Params<InProject>,
    Body(asked): Body<ResetParameters>,
) -> Result<Accepted, ApiError> {
    let project = params.project.as_deref();
    let (row, object) = find(&state, &caller, Action::ParameterSet, project, &name).await?;
    ready(&row)?;
    let mut values = row.spec.parameters.clone();
    for name in &asked.names {
        let known = larder_model::Parameter::find(name).ok_or_else(|| {
            let detail =
                format!("there is no parameter `{name}`; `larder parameter list` has them all");
            Refusal::new(Code::UnknownParameter, detail).field(name.clone())
        })?;
        values.remove(known.name);
    }
    if asked.names.is_empty() {
        values.clear();
    }
    change(&state, &caller, &row, object, values).await
}

/// Changes of an instance's parameters, the newest first: who, when, what, and what came of it.
#[utoipa::path(get, path = "/api/v1/instances/{instance}/parameters/history", tag = "parameters",
    params(("instance" = String, Path, description = "Name or id"), InProject),
    responses(
        (status = 200, description = "The newest first", body = Vec<ParameterHistory>),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn history(
    State(state): State<ApiState>,
    caller: Caller,
    PathText(name): PathText,
    Params(params): Params<InProject>,
) -> Result<Json<Vec<ParameterHistory>>, ApiError> {
    let project = params.project.as_deref();
    let (row, _) = find(&state, &caller, Action::ParameterList, project, &name).await?;
    let filter = OperationFilter {
        project: None,
        instance: Some(row.spec.id.to_string()),
        state: None,
        limit: Some(larder_api_types::LIMIT_MAX),
    };
    let operations = state.store().operation_list(&filter).await?;
    let history = operations.into_iter().filter_map(|operation| {
        let shown = render::operation(&operation);
        let OperationKind::SetParameters { changes } = operation.kind else { return None };
        let changes = changes.into_iter().map(|change| ParameterChange {
            name: shown_name(&change.name, &row.spec),
            from: change.from,
            to: change.to,
        });
        Some(ParameterHistory {
            operation: shown.id,
            requested_by: shown.requested_by,
            requested_at: shown.created_at,
            state: shown.state,
            error: operation.error.map(|error| error.detail),
            changes: changes.collect(),
        })
    });
    Ok(Json(history.collect()))
}

/// Values that were asked for, under the parameters' own names and in their one form.
///
/// # Errors
/// The first that cannot be.
pub(super) fn canonical(
    values: &BTreeMap<String, String>,
    spec: &InstanceSpec,
) -> Result<BTreeMap<String, String>, Refusal> {
    let mut all = BTreeMap::new();
    for (name, value) in values {
        let (parameter, value) = canonical_parameter(name, value, &context(spec))?;
        if all.insert(parameter.name.to_owned(), value).is_some() {
            let detail = format!("`{name}` is given twice, under both of its names");
            return Err(Refusal::new(Code::ParameterInvalid, detail).field(name.clone()));
        }
    }
    Ok(all)
}

/// Whether all values go together.
///
/// # Errors
/// `parameter-invalid`.
pub(super) fn check(values: &BTreeMap<String, String>, spec: &InstanceSpec) -> Result<(), Refusal> {
    check_parameters(values, &context(spec))
}

fn context(spec: &InstanceSpec) -> ParameterContext<'_> {
    ParameterContext {
        engine: &spec.engine,
        mode: spec.architecture.node_mode(),
        maxmemory: InstanceSpec::maxmemory_of(spec.memory),
        replicas: spec.replicas,
    }
}

async fn change(
    state: &ApiState,
    caller: &Caller,
    row: &InstanceRow,
    object: Object,
    values: BTreeMap<String, String>,
) -> Result<Accepted, ApiError> {
    check(&values, &row.spec)?;
    let former = &row.spec.parameters;
    let names: std::collections::BTreeSet<&String> = former.keys().chain(values.keys()).collect();
    let changes: Vec<larder_model::ParameterChange> = names
        .into_iter()
        .filter(|name| former.get(*name) != values.get(*name))
        .map(|name| larder_model::ParameterChange {
            name: name.clone(),
            from: former.get(name).cloned(),
            to: values.get(name).cloned(),
        })
        .collect();
    if changes.is_empty() {
        return Err(nothing_to_change("has these values already".to_owned(), row).into());
    }
    let detail = json!({ "changes": changes });
    let spec = InstanceSpec {
        parameters: values,
        parameters_revision: row.spec.parameters_revision + 1,
        parameters_refused: None,
        ..row.spec.clone()
    };
    let kind = OperationKind::SetParameters { changes };
    let action = Action::ParameterSet;
    begin(state, caller, row, spec, Change { action, object, kind, detail }).await
}

fn shown_name(name: &str, spec: &InstanceSpec) -> String {
    let known = larder_model::Parameter::find(name);
    known.map_or(name, |parameter| parameter.shown_in(&spec.engine)).to_owned()
}

fn all_of(spec: &InstanceSpec) -> Vec<Parameter> {
    let mode = spec.architecture.node_mode();
    let mut all: Vec<Parameter> = PARAMETERS
        .iter()
        .filter(|it| it.is_in(&spec.engine, mode))
        .map(|it| {
            let set = spec.parameters.get(it.name);
            let (least, most) = match it.kind {
                Kind::Integer { least, most } => (Some(least), Some(most)),
                Kind::Bytes { least, most } => {
                    (i64::try_from(least).ok(), i64::try_from(most).ok())
                }
                _ => (None, None),
            };
            let choices: &[&str] = match it.kind {
                Kind::Word(words) => words,
                Kind::YesNo => &["yes", "no"],
                _ => &[],
            };
            Parameter {
                name: it.shown_in(&spec.engine).to_owned(),
                group: it.group.to_owned(),
                common: it.common,
                kind: it.kind.as_str().to_owned(),
                takes: it.kind.to_string(),
                least,
                most,
                choices: choices.iter().map(|word| (*word).to_owned()).collect(),
                unit: it.unit.to_owned(),
                default: it.default.map(str::to_owned),
                value: set.map(String::as_str).or(it.default).map(str::to_owned),
                set: set.is_some(),
                applies: it.applies.as_str().to_owned(),
                meaning: it.english.to_owned(),
                meaning_zh: it.chinese.to_owned(),
            }
        })
        .collect();
    all.sort_by_key(|parameter| !parameter.common);
    all
}
