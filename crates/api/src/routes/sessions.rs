//! Logging in and out, and who one is.

use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use larder_api_types::{Login, Problem, Session, WhoAmI};
use larder_model::{Code, Millis};
use larder_store::{Record, RecordOutcome, TokenKind};
use serde_json::json;

use crate::auth::{COOKIE, Caller, address};
use crate::body::Body;
use crate::clock::{now, rfc3339};
use crate::error::ApiError;
use crate::permission::Action;
use crate::state::ApiState;

/// A command line's login: long enough not to be in the way.
const TOKEN_LIFE: Millis = Millis::secs(30 * 86_400);
/// A browser's login: a working day.
const COOKIE_LIFE: Millis = Millis::secs(12 * 3600);

/// Address that a request came from, also without a login.
#[derive(Debug)]
pub(crate) struct Origin(String);

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Origin {
    type Rejection = std::convert::Infallible;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Self(address(parts)))
    }
}

/// Log in.
#[utoipa::path(post, path = "/api/v1/sessions", tag = "accounts", security(()), request_body = Login,
    responses(
        (status = 201, description = "Logged in", body = Session),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn login(
    State(state): State<ApiState>,
    Origin(from): Origin,
    Body(login): Body<Login>,
) -> Result<Response, ApiError> {
    let Login { user, password, cookie } = login;
    if let Err(wait) = state.throttle().attempt(&user, &from, Instant::now()) {
        let mut error = ApiError::new(
            Code::TooManyAttempts,
            format!("too many failed logins: try again in {} s", wait.as_secs().max(1)),
        );
        error.retry_after = Some(wait);
        return Err(error);
    }
    let known = state.store().user_get(&user).await?;
    let hash = known.as_ref().map(|user| user.password_hash.clone());
    let fits = state.hasher().verify(password, hash).await?;
    let mut record = Record {
        at: now(),
        user: user.chars().take(64).collect(),
        from: from.clone(),
        action: "login".to_owned(),
        object: "session".to_owned(),
        instance: None,
        detail: json!({}),
        outcome: RecordOutcome::Accepted,
    };
    let Some(known) = known.filter(|_| fits) else {
        record.outcome = RecordOutcome::Refused(Code::LoginFailed);
        state.store().record_append(&record).await?;
        return Err(ApiError::new(Code::LoginFailed, "there is no such user with this password"));
    };
    state.throttle().succeeded(&user, &from);
    let life = if cookie { COOKIE_LIFE } else { TOKEN_LIFE };
    let made =
        state.store().token_create(&user, TokenKind::Session, "login", Some(now() + life)).await?;
    state.store().record_append(&record).await?;
    let set_cookie = cookie.then(|| {
        let secure = if state.parts().secure_cookies { "; Secure" } else { "" };
        let age = life.0 / 1000;
        let secret = made.secret.expose();
        HeaderValue::from_str(&format!(
            "{COOKIE}={secret}; Path=/; HttpOnly; SameSite=Strict; Max-Age={age}{secure}"
        ))
    });
    let session = Session {
        user: known.name,
        role: known.role,
        token: (!cookie).then_some(made.secret),
        expires_at: made.token.expires_at.map(rfc3339),
        password_is_generated: known.password_generated,
    };
    let mut response = (StatusCode::CREATED, Json(session)).into_response();
    if let Some(value) = set_cookie {
        let mut value = value.map_err(|_| ApiError::internal())?;
        value.set_sensitive(true);
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
    Ok(response)
}

/// Log out: end the session or token that this request is sent with.
#[utoipa::path(delete, path = "/api/v1/sessions/current", tag = "accounts",
    responses(
        (status = 204, description = "Logged out"),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn logout(
    State(state): State<ApiState>,
    caller: Caller,
) -> Result<Response, ApiError> {
    let own = caller.own_account();
    caller.ask(Action::Logout, &own)?;
    state.store().token_revoke(&caller.token.id).await?;
    state.store().record_append(&caller.record(Action::Logout, &own, json!({}))).await?;
    let mut response = StatusCode::NO_CONTENT.into_response();
    let forget = format!("{COOKIE}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0");
    if let Ok(value) = HeaderValue::from_str(&forget) {
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
    Ok(response)
}

/// Who the server takes you for.
#[utoipa::path(get, path = "/api/v1/whoami", tag = "accounts",
    responses(
        (status = 200, description = "User and role", body = WhoAmI),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn whoami(caller: Caller) -> Result<Json<WhoAmI>, ApiError> {
    caller.ask(Action::AccountGet, &caller.own_account())?;
    let principal = caller.principal;
    Ok(Json(WhoAmI {
        user: principal.user,
        role: principal.role,
        password_is_generated: principal.password_is_generated,
    }))
}
