//! Larder's REST API: routes, login, permissions, the event stream, the OpenAPI document.
//!
//! It writes the wish into the store and says "look again"; it never touches a container cluster
//! or a server. Pages are rendered from what was last observed, never from a live call.
//!
//! Every route asks [`allow`] before it answers; a response of a route that did not ask is
//! replaced by an error, and a test walks all routes.

mod admin;
mod auth;
mod bindings;
mod body;
mod clock;
mod error;
mod errors_pages;
mod ids;
mod password_hash;
mod permission;
mod render;
mod routes;
mod state;
mod throttle;

pub use admin::{ADMIN, AdminError, InitialAdmin, ensure_admin};
pub use auth::Principal;
pub use bindings::{Bindings, By, How};
pub use clock::rfc3339;
pub use error::ApiError;
pub use ids::RandomIds;
pub use larder_api_types::Advice;
pub use permission::{Action, Asked, Object, allow};
pub use routes::{openapi, router};
pub use state::{
    Activate, ApiParts, ApiState, Binder, Capacity, ContainerClusterInfo, EngineProbe, Live,
    PasswordChanged, Ready,
};
