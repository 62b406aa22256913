//! Tokens for scripts: one's own.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use larder_api_types::{CreateToken, CreatedToken, Problem, Token};
use larder_model::{Code, Millis};
use larder_store::TokenKind;
use serde_json::json;

use crate::auth::Caller;
use crate::body::{Body, PathText};
use crate::clock::now;
use crate::error::ApiError;
use crate::permission::Action;
use crate::render;
use crate::state::ApiState;

/// A name longer than this is not a name.
const NAME_BYTES: usize = 128;

/// Your tokens and sessions.
#[utoipa::path(get, path = "/api/v1/tokens", tag = "accounts",
    responses(
        (status = 200, description = "Without their secrets", body = Vec<Token>),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
) -> Result<Json<Vec<Token>>, ApiError> {
    caller.ask(Action::TokenList, &caller.own_account())?;
    let rows = state.store().token_list(&caller.principal.user).await?;
    Ok(Json(rows.iter().map(render::token).collect()))
}

/// Make a token. Its secret is in this answer and nowhere else.
#[utoipa::path(post, path = "/api/v1/tokens", tag = "accounts", request_body = CreateToken,
    responses(
        (status = 201, description = "The token with its secret", body = CreatedToken),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Body(new): Body<CreateToken>,
) -> Result<(StatusCode, Json<CreatedToken>), ApiError> {
    let own = caller.own_account();
    caller.ask(Action::TokenCreate, &own)?;
    if new.name.is_empty() || new.name.len() > NAME_BYTES || new.name.contains(char::is_control) {
        return Err(ApiError::new(
            Code::InvalidName,
            format!("a token's name has 1 to {NAME_BYTES} bytes and no control characters"),
        )
        .field("name"));
    }
    if new.expires_in_seconds == Some(0) {
        return Err(ApiError::new(
            Code::InvalidRequest,
            "a token has to live for a second at least",
        )
        .field("expires_in_seconds"));
    }
    let expires =
        new.expires_in_seconds.map(|seconds| now() + Millis(seconds.saturating_mul(1000)));
    let user = &caller.principal.user;
    let made = state.store().token_create(user, TokenKind::Api, &new.name, expires).await?;
    let detail = json!({ "token": made.token.id, "name": new.name });
    state.store().record_append(&caller.record(Action::TokenCreate, &own, detail)).await?;
    let created = CreatedToken { info: render::token(&made.token), token: made.secret };
    Ok((StatusCode::CREATED, Json(created)))
}

/// Make a token worthless.
#[utoipa::path(delete, path = "/api/v1/tokens/{id}", tag = "accounts",
    params(("id" = String, Path, description = "Id of one of your tokens or sessions")),
    responses(
        (status = 204, description = "Revoked"),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn revoke(
    State(state): State<ApiState>,
    caller: Caller,
    PathText(id): PathText,
) -> Result<StatusCode, ApiError> {
    let own = caller.own_account();
    caller.ask(Action::TokenRevoke, &own)?;
    let mine = state.store().token_list(&caller.principal.user).await?;
    if !mine.iter().any(|token| token.id == id) {
        return Err(ApiError::new(Code::NotFound, format!("you have no token `{id}`")));
    }
    state.store().token_revoke(&id).await?;
    let detail = json!({ "token": id });
    state.store().record_append(&caller.record(Action::TokenRevoke, &own, detail)).await?;
    Ok(StatusCode::NO_CONTENT)
}
