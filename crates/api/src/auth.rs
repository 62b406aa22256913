//! Who asks: from a bearer token or the login cookie to a [`Principal`].

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use larder_model::{Code, OperationKind, OperationState, Secret};
use larder_store::{InstanceRow, Record, RecordOutcome, TokenRow};

use crate::bindings::By;
use crate::clock::now;
use crate::error::ApiError;
use crate::ids::RandomIds;
use crate::permission::{Action, Asked, Object, allow};
use crate::state::ApiState;

/// The cookie of a console's login.
pub(crate) const COOKIE: &str = "larder_session";

/// A user who has proved to be one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    pub user: String,
    pub role: String,
    /// The password was made by Larder and not changed yet.
    pub password_is_generated: bool,
}

/// Where a request notes what it asked of [`allow`].
#[derive(Clone, Debug, Default)]
pub(crate) struct AskedSlot(Arc<Mutex<Option<Asked>>>);

impl AskedSlot {
    pub(crate) fn take(&self) -> Option<Asked> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn note(&self, asked: Asked) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(asked);
    }
}

/// The logged-in sender of a request.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) principal: Principal,
    /// The token that proved it.
    pub(crate) token: TokenRow,
    /// That token's secret, to ask again whether it still holds (long streams).
    pub(crate) secret: Secret,
    /// Address the request came from.
    pub(crate) from: String,
    slot: AskedSlot,
}

impl Caller {
    /// Asks [`allow`]. Every handler does so before it answers.
    ///
    /// # Errors
    /// `not-allowed`.
    pub(crate) fn ask(&self, action: Action, object: &Object) -> Result<(), ApiError> {
        self.slot.note(Asked {
            user: self.principal.user.clone(),
            from: self.from.clone(),
            action,
            object: object.clone(),
        });
        allow(&self.principal, action, object).map_err(ApiError::from)
    }

    pub(crate) fn own_account(&self) -> Object {
        Object::User(self.principal.user.clone())
    }

    pub(crate) fn by(&self) -> By {
        By { user: self.principal.user.clone(), from: self.from.clone() }
    }

    /// The record of an accepted change.
    pub(crate) fn record(
        &self,
        action: Action,
        object: &Object,
        detail: serde_json::Value,
    ) -> Record {
        Record {
            at: now(),
            user: self.principal.user.clone(),
            from: self.from.clone(),
            action: action.as_str().to_owned(),
            object: object.to_string(),
            instance: instance_of(object),
            detail,
            outcome: RecordOutcome::Accepted,
        }
    }

    /// A new operation on an instance, asked for by this caller.
    pub(crate) fn operation(
        &self,
        instance: &InstanceRow,
        kind: OperationKind,
    ) -> larder_model::Operation {
        self.operation_on(&instance.spec.id, instance.spec.name.as_str(), kind)
    }

    pub(crate) fn operation_on(
        &self,
        instance: &larder_model::InstanceId,
        name: &str,
        kind: OperationKind,
    ) -> larder_model::Operation {
        use larder_model::IdSource as _;
        larder_model::Operation {
            id: RandomIds.operation_id(),
            instance: instance.clone(),
            instance_name: name.to_owned(),
            kind,
            state: OperationState::Queued,
            steps: Vec::new(),
            requested_by: self.principal.user.clone(),
            requested_from: self.from.clone(),
            created_at: now(),
            finished_at: None,
            error: None,
        }
    }
}

/// Name of the instance that an object is, for records.
pub(crate) fn instance_of(object: &Object) -> Option<String> {
    match object {
        Object::Instance { name, .. } => Some(name.clone()),
        Object::Installation
        | Object::Project(_)
        | Object::Operation(_)
        | Object::Engine(_)
        | Object::ContainerCluster(_)
        | Object::User(_) => None,
    }
}

impl FromRequestParts<ApiState> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, ApiError> {
        let (secret, by_cookie) = match (bearer(&parts.headers), cookie(&parts.headers)) {
            (Some(token), _) => (token, false),
            (None, Some(token)) => (token, true),
            (None, None) => {
                return Err(ApiError::new(
                    Code::NotLoggedIn,
                    "this needs a login: send a token as `authorization: Bearer …`",
                ));
            }
        };
        if by_cookie && !parts.method.is_safe() && is_foreign(&parts.headers) {
            return Err(ApiError::new(
                Code::NotAllowed,
                "a login's cookie is good for pages of this server only",
            ));
        }
        let Some(holder) = state.store().token_find(&secret).await? else {
            return Err(ApiError::new(
                Code::NotLoggedIn,
                "the login or token has ended or was never valid: log in again",
            ));
        };
        Ok(Self {
            principal: Principal {
                user: holder.user.name,
                role: holder.user.role,
                password_is_generated: holder.user.password_generated,
            },
            token: holder.token,
            secret,
            from: address(parts),
            slot: parts.extensions.get::<AskedSlot>().cloned().unwrap_or_default(),
        })
    }
}

/// The peer's address; what a proxy in between claims is not looked at.
pub(crate) fn address(parts: &Parts) -> String {
    parts
        .extensions
        .get::<ConnectInfo<SocketAddr>>()
        .map_or_else(|| "unknown".to_owned(), |ConnectInfo(peer)| peer.ip().to_string())
}

fn bearer(headers: &HeaderMap) -> Option<Secret> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| Secret::new(token.trim()))
}

fn cookie(headers: &HeaderMap) -> Option<Secret> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, _)| *name == COOKIE)
        .map(|(_, token)| Secret::new(token))
}

/// Whether a browser says that the request comes from another page than ours. `SameSite=Strict`
/// keeps other sites out, but another port of this host is the same site.
fn is_foreign(headers: &HeaderMap) -> bool {
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    match text(header::ORIGIN) {
        None => false,
        Some(origin) => {
            let authority = origin.split_once("://").map(|(_, rest)| rest);
            authority.is_none() || authority != text(header::HOST)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn headers(pairs: &[(header::HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (k.clone(), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn cookie_is_found_among_others() {
        let map = headers(&[(header::COOKIE, "a=b; larder_session=t; c=d")]);
        assert_eq!(cookie(&map), Some(Secret::new("t")));
        assert_eq!(cookie(&headers(&[(header::COOKIE, "xlarder_session=t")])), None);
    }

    #[test]
    fn another_port_of_this_host_is_foreign() {
        let host = (header::HOST, "localhost:7300");
        assert!(!is_foreign(&headers(std::slice::from_ref(&host))));
        let same = (header::ORIGIN, "http://localhost:7300");
        assert!(!is_foreign(&headers(&[host.clone(), same])));
        for origin in ["http://localhost:3000", "null"] {
            assert!(is_foreign(&headers(&[host.clone(), (header::ORIGIN, origin)])));
        }
    }
}
