//! Bodies, queries and paths of requests, with refusals that name the field and never repeat a
//! value: it may be a password.

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use larder_model::{Code, Refusal};
use serde::de::DeserializeOwned;

use crate::error::ApiError;

/// No request of this API is larger.
pub(crate) const BODY_LIMIT: usize = 64 * 1024;

/// A JSON body. An empty one counts as `{}`.
#[derive(Debug)]
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let content_type = request
            .headers()
            .get(axum::http::header::CONTENT_TYPE)
            .map(|value| value.to_str().unwrap_or_default().to_ascii_lowercase());
        let bytes =
            Bytes::from_request(request, state).await.map_err(|rejection| match rejection {
                BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => {
                    ApiError::new(
                        Code::RequestTooLarge,
                        format!("the body is larger than {BODY_LIMIT} bytes"),
                    )
                }
                _ => ApiError::new(Code::InvalidRequest, "the body broke off"),
            })?;
        if bytes.is_empty() {
            return parse(b"{}").map(Self);
        }
        // A form of a foreign page cannot send this type, so it cannot use a login's cookie.
        let is_json = content_type.is_some_and(|text| {
            text.split(';').next().is_some_and(|kind| kind.trim() == "application/json")
        });
        if !is_json {
            return Err(ApiError::new(
                Code::InvalidRequest,
                "the body must be JSON: send `content-type: application/json`",
            ));
        }
        parse(&bytes).map(Self)
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        if inner.is_data() {
            invalid("the body", Some(&path), &inner.to_string())
        } else {
            // Only where: what stands there may be a secret.
            ApiError::new(
                Code::InvalidRequest,
                format!("the body is not JSON (line {}, column {})", inner.line(), inner.column()),
            )
        }
    })?;
    reader.end().map_err(|_| {
        ApiError::new(Code::InvalidRequest, "the body has more than one JSON value")
    })?;
    Ok(value)
}

/// The query's parameters.
#[derive(Debug)]
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        match Query::<T>::try_from_uri(&parts.uri) {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => {
                // axum puts `path: ` before the message where it knows one.
                let text = rejection.body_text();
                let text = text.rsplit_once("query string: ").map_or(text.as_str(), |(_, t)| t);
                let path = text
                    .split_once(": ")
                    .map(|(path, _)| path)
                    .filter(|path| path.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
                Err(invalid("the query", path, text))
            }
        }
    }
}

/// The path's one parameter.
#[derive(Debug)]
pub(crate) struct PathText(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for PathText {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Path::<String>::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Path(text)| Self(text))
            .map_err(|_| ApiError::new(Code::NotFound, "the path names nothing"))
    }
}

/// The path's parameters, in their order.
#[derive(Debug)]
pub(crate) struct PathTexts<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for PathTexts<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Path::<T>::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Path(texts)| Self(texts))
            .map_err(|_| ApiError::new(Code::NotFound, "the path names nothing"))
    }
}

/// Turns serde's sentence into ours. Kept: names of fields, what was expected. Dropped: values.
fn invalid(what: &str, path: Option<&str>, message: &str) -> ApiError {
    let quoted = |marker: &str| {
        let rest = &message[message.find(marker)? + marker.len()..];
        rest.split_once('`').map(|(name, _)| name.to_owned())
    };
    if let Some(name) = quoted("unknown field `") {
        return Refusal::new(Code::InvalidRequest, format!("{what} has no field `{name}`"))
            .field(name)
            .into();
    }
    if let Some(name) = quoted("missing field `") {
        return Refusal::new(Code::InvalidRequest, format!("{what} lacks the field `{name}`"))
            .field(name)
            .into();
    }
    if let Some(name) = quoted("duplicate field `") {
        return Refusal::new(Code::InvalidRequest, format!("{what} has `{name}` twice"))
            .field(name)
            .into();
    }
    let expected = message
        .rsplit_once("expected ")
        .map(|(_, text)| text.split(" at line").next().unwrap_or(text))
        .map_or_else(String::new, |text| format!(": expected {text}"));
    match path.filter(|path| !path.is_empty() && *path != ".") {
        Some(path) => {
            let field = path.split(['.', '[']).next().unwrap_or(path);
            Refusal::new(
                Code::InvalidRequest,
                format!("`{path}` of {what} has the wrong type{expected}"),
            )
            .field(field)
            .into()
        }
        None => ApiError::new(Code::InvalidRequest, format!("{what} has the wrong type{expected}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_api_types::CreateInstance;

    fn check(body: &str, field: Option<&str>, words: &str) {
        let refusal = parse::<CreateInstance>(body.as_bytes()).unwrap_err().refusal;
        assert_eq!(refusal.code, Code::InvalidRequest, "{body}");
        assert_eq!(refusal.field.as_deref(), field, "{body}: {refusal}");
        assert!(refusal.detail.contains(words), "{body}: {refusal}");
        assert!(!refusal.detail.contains("hunter2"), "{refusal}");
    }

    #[test]
    fn refused_bodies_name_the_field_and_never_its_value() {
        let rest = "\"name\":\"a\",\"engine\":\"e\",\"architecture\":\"cluster\"";
        check(&format!("{{{rest},\"chain\":true}}"), Some("chain"), "no field `chain`");
        check("{\"name\":\"a\",\"engine\":\"e\"}", Some("architecture"), "lacks");
        check(&format!("{{{rest},\"shards\":\"hunter2\"}}"), Some("shards"), "expected u32");
        check(&format!("{{{rest},\"shards\":-1}}"), Some("shards"), "wrong type");
        check(&format!("{{{rest},\"password\":[\"hunter2\"]}}"), Some("password"), "a string");
        check(&format!("{{{rest},\"tags\":{{\"a\":1}}}}"), Some("tags"), "tags.a");
        check(&format!("{{{rest},{rest}}}"), Some("name"), "twice");
        check("[]", None, "wrong type");
        check("{\"password\": hunter2", None, "not JSON");
        check(&format!("{{{rest}}} {{}}"), None, "more than one");
    }
}
