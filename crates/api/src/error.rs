//! From whatever went wrong to `application/problem+json`. The only place that does so.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use larder_api_types::Problem;
use larder_model::{Code, Refusal};
use larder_store::StoreError;

/// A refusal on its way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    pub refusal: Refusal,
    /// When asking again may help, where that is known.
    pub retry_after: Option<Duration>,
}

/// Extension of a response that is a refusal, for the audit trail.
#[derive(Clone, Debug)]
pub(crate) struct Refused(pub(crate) Refusal);

impl ApiError {
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        Refusal::new(code, detail).into()
    }

    pub(crate) fn field(mut self, field: &str) -> Self {
        self.refusal = self.refusal.field(field);
        self
    }

    pub(crate) fn internal() -> Self {
        Self::new(Code::Internal, "something went wrong: the server's log has the reason")
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, retry_after: None }
    }
}

impl From<StoreError> for ApiError {
    /// Inner matters are logged here and shown as `internal`.
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Conflict(_) | StoreError::NotFound { .. } => {}
            StoreError::Full { .. }
            | StoreError::Corrupt { .. }
            | StoreError::Key { .. }
            | StoreError::Open { .. }
            | StoreError::Database { .. } => tracing::error!(%error, "store"),
        }
        Refusal::from(error).into()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let refusal = self.refusal;
        let status = StatusCode::from_u16(refusal.code.status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(Problem::from(refusal.clone()))).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if refusal.code == Code::NotLoggedIn {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(after) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        response.extensions_mut().insert(Refused(refusal));
        response
    }
}
