//! Accounts: the change of a password.

use axum::extract::State;
use axum::http::StatusCode;
use larder_api_types::{Problem, UpdateUser};
use larder_model::{Code, check_password};
use serde_json::json;

use crate::auth::Caller;
use crate::body::{Body, PathText};
use crate::error::ApiError;
use crate::permission::{Action, Object};
use crate::state::ApiState;

/// Change a user's password. The user's other sessions end; tokens made by hand stay.
#[utoipa::path(patch, path = "/api/v1/users/{user}", tag = "accounts", request_body = UpdateUser,
    params(("user" = String, Path, description = "Name of the user")),
    responses(
        (status = 204, description = "Changed"),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn update(
    State(state): State<ApiState>,
    caller: Caller,
    PathText(name): PathText,
    Body(change): Body<UpdateUser>,
) -> Result<StatusCode, ApiError> {
    let object = Object::User(name.clone());
    caller.ask(Action::UserSetPassword, &object)?;
    if state.store().user_get(&name).await?.is_none() {
        return Err(ApiError::new(Code::NotFound, format!("there is no user `{name}`")));
    }
    check_password(change.password.expose())?;
    let hash = state.hasher().hash(change.password).await?;
    state.store().user_set_password_hash(&name, &hash, false).await?;
    let own = name == caller.principal.user;
    let keep = own.then_some(caller.token.id.as_str());
    state.store().token_revoke_sessions(&name, keep).await?;
    let record = caller.record(Action::UserSetPassword, &object, json!({}));
    state.store().record_append(&record).await?;
    (state.parts().password_changed)(&name);
    Ok(StatusCode::NO_CONTENT)
}
