//! All routes, and what surrounds every one of them. One file per resource.

mod accounts;
mod actions;
mod audit;
mod chain;
mod changes;
mod clusters;
mod create;
mod dry_run;
mod engines;
mod events;
mod health;
mod instances;
mod operations;
mod parameters;
mod records;
mod scale;
mod sessions;
mod stream;
mod tokens;
mod users;

use std::any::Any;

use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderValue, Method, Uri, header};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router, middleware};
use larder_model::Code;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::body::BODY_LIMIT;
use crate::error::ApiError;
use crate::state::ApiState;

/// Routes that answer without a login and so have nobody to ask about.
pub(crate) const PUBLIC: &[&str] =
    &["/healthz", "/readyz", "/api/v1/openapi.json", "/api/v1/errors/{code}", "/api/v1/sessions"];

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Larder",
        description = "A managed Redis service that you run yourself. Long work answers 202 with \
                       an operation; errors are RFC 9457 problems with stable codes; what \
                       happens is streamed as server-sent events.",
        version = "v1",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    security(("token" = []), ("cookie" = [])),
    modifiers(&Security),
    tags(
        (name = "instances", description = "Create, look at, change and delete instances"),
        (name = "operations", description = "Long pieces of work on an instance"),
        (name = "events", description = "What happened, and who asked for what"),
        (name = "catalogue", description = "Engines, projects, the installation"),
        (name = "accounts", description = "Sessions, tokens, passwords"),
        (name = "health", description = "For probes"),
    )
)]
struct Document;

struct Security;

impl Modify for Security {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_default();
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        components.add_security_scheme("token", SecurityScheme::Http(bearer));
        let cookie = ApiKey::Cookie(ApiKeyValue::new(crate::auth::COOKIE));
        components.add_security_scheme("cookie", SecurityScheme::ApiKey(cookie));
    }
}

fn described() -> OpenApiRouter<ApiState> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(health::status))
        .routes(routes!(crate::errors_pages::error_page))
        .routes(routes!(sessions::login))
        .routes(routes!(sessions::logout))
        .routes(routes!(sessions::whoami))
        .routes(routes!(tokens::list, tokens::create))
        .routes(routes!(tokens::revoke))
        .routes(routes!(users::update))
        .routes(routes!(instances::list, create::create))
        .routes(routes!(instances::get, instances::update, actions::delete))
        .routes(routes!(instances::plan))
        .routes(routes!(actions::failover))
        .routes(routes!(actions::restart))
        .routes(routes!(changes::resize))
        .routes(routes!(scale::scale))
        .routes(routes!(scale::rebalance))
        .routes(routes!(chain::set_chained))
        .routes(routes!(parameters::list, parameters::set))
        .routes(routes!(parameters::reset))
        .routes(routes!(parameters::history))
        .routes(routes!(accounts::list, accounts::create))
        .routes(routes!(accounts::update, accounts::delete))
        .routes(routes!(changes::upgrade))
        .routes(routes!(changes::set_password))
        .routes(routes!(operations::list))
        .routes(routes!(operations::get))
        .routes(routes!(operations::cancel))
        .routes(routes!(events::list))
        .routes(routes!(stream::stream))
        .routes(routes!(records::list))
        .routes(routes!(engines::list, engines::add))
        .routes(routes!(engines::remove))
        .routes(routes!(engines::projects))
        .routes(routes!(clusters::list, clusters::bind))
        .routes(routes!(clusters::get, clusters::set, clusters::unbind))
        .routes(routes!(clusters::confirm_lost))
}

/// The OpenAPI 3.1 document, generated from the routes.
pub fn openapi() -> utoipa::openapi::OpenApi {
    described().into_openapi()
}

/// The whole API. Serve it with
/// `router(state).into_make_service_with_connect_info::<std::net::SocketAddr>()`: records and
/// the throttle of logins need the peer's address.
pub fn router(state: ApiState) -> Router {
    let (router, document) = described().split_for_parts();
    router
        .route("/api/v1/openapi.json", axum::routing::get(move || async move { Json(document) }))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(middleware::from_fn_with_state(state.clone(), audit::audit))
        .layer(middleware::map_response(harden))
        .layer(CatchPanicLayer::custom(panicked))
        .with_state(state)
}

async fn not_found(uri: Uri) -> ApiError {
    ApiError::new(Code::NotFound, format!("there is nothing at {}", uri.path()))
}

async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::new(Code::MethodNotAllowed, format!("{} does not know {method}", uri.path()))
}

/// The panic's text stays in the log: it may name anything.
fn panicked(_: Box<dyn Any + Send + 'static>) -> Response {
    tracing::error!("a request handler panicked");
    ApiError::internal().into_response()
}

/// Answers are for who asked, and are what their type says.
async fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
