//! The audit trail.

use axum::Json;
use axum::extract::State;
use larder_api_types::{Problem, Record};
use larder_model::{Code, Timestamp};
use larder_store::RecordFilter;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::auth::Caller;
use crate::body::Params;
use crate::error::ApiError;
use crate::permission::{Action, Object};
use crate::render;
use crate::state::ApiState;

/// Rows unless the request says otherwise.
const LIMIT: u32 = 1000;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListParams {
    /// Name of an instance, also of one that is no more.
    instance: Option<String>,
    user: Option<String>,
    /// RFC 3339.
    since: Option<String>,
    /// At most this many, the newest; 1000 when left out, never more than 100000.
    limit: Option<u32>,
}

/// The newest records, oldest first.
#[utoipa::path(get, path = "/api/v1/records", tag = "events", params(ListParams),
    responses(
        (status = 200, description = "Oldest first", body = Vec<Record>),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Params(params): Params<ListParams>,
) -> Result<Json<Vec<Record>>, ApiError> {
    caller.ask(Action::RecordList, &Object::Installation)?;
    let since = params.since.as_deref().map(time).transpose()?;
    let filter = RecordFilter {
        instance: params.instance,
        user: params.user,
        since,
        limit: Some(params.limit.unwrap_or(LIMIT)),
    };
    let mut rows = state.store().record_list(&filter).await?;
    rows.reverse();
    Ok(Json(rows.iter().map(render::record).collect()))
}

fn time(text: &str) -> Result<Timestamp, ApiError> {
    text.parse::<jiff::Timestamp>().map(|time| Timestamp(time.as_millisecond())).map_err(|_| {
        ApiError::new(Code::InvalidRequest, "`since` is not a time: write it as RFC 3339")
            .field("since")
    })
}
