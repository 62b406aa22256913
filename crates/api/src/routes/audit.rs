//! Around every route: the audit trail of refused changes, and the proof that a route has asked
//! for permission.

use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use larder_store::{Record, RecordOutcome};
use serde_json::json;

use super::PUBLIC;
use crate::auth::{AskedSlot, instance_of};
use crate::clock::now;
use crate::error::{ApiError, Refused};
use crate::permission::Asked;
use crate::state::ApiState;

pub(crate) async fn audit(
    State(state): State<ApiState>,
    mut request: Request,
    next: Next,
) -> Response {
    let slot = AskedSlot::default();
    request.extensions_mut().insert(slot.clone());
    let method = request.method().clone();
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let mut response = next.run(request).await;
    let asked = slot.take();
    let status = response.status();
    tracing::debug!(
        %method,
        path = path.as_deref().unwrap_or("-"),
        status = status.as_u16(),
        user = asked.as_ref().map_or("-", |asked| asked.user.as_str()),
        "request"
    );
    let Some(asked) = asked else {
        let public = path.as_deref().is_none_or(|path| PUBLIC.contains(&path));
        if status.is_success() && !public {
            tracing::error!(%method, path, "a route answered without asking for permission");
            return ApiError::internal().into_response();
        }
        return response;
    };
    if let Some(Refused(refusal)) = response.extensions().get::<Refused>()
        && changes(&method)
    {
        let record = refused(&asked, refusal);
        if let Err(error) = state.store().record_append(&record).await {
            tracing::error!(%error, action = %asked.action, "a refusal was not recorded");
        }
    }
    response.extensions_mut().insert(asked);
    response
}

fn changes(method: &Method) -> bool {
    !method.is_safe()
}

fn refused(asked: &Asked, refusal: &larder_model::Refusal) -> Record {
    Record {
        at: now(),
        user: asked.user.clone(),
        from: asked.from.clone(),
        action: asked.action.as_str().to_owned(),
        object: asked.object.to_string(),
        instance: instance_of(&asked.object),
        detail: json!({ "detail": refusal.detail, "field": refusal.field }),
        outcome: RecordOutcome::Refused(refusal.code),
    }
}
