//! Logging in: sessions, tokens, the own account.

use larder_model::Secret;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// User and password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Login {
    pub user: String,
    #[serde(with = "crate::secret_in_body")]
    #[schema(value_type = String, format = Password)]
    pub password: Secret,
    /// Answer with a cookie that scripts of a page cannot read, instead of a token.
    #[serde(default)]
    pub cookie: bool,
}

/// A fresh login.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Session {
    pub user: String,
    pub role: String,
    /// Send it as `Authorization: Bearer …`. Null when a cookie was asked for.
    #[serde(default, with = "crate::secret_in_body::option")]
    #[schema(value_type = Option<String>, format = Password)]
    pub token: Option<Secret>,
    /// RFC 3339.
    pub expires_at: Option<String>,
    /// The password was made by Larder: its owner should choose another.
    pub password_is_generated: bool,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WhoAmI {
    pub user: String,
    pub role: String,
    pub password_is_generated: bool,
}

/// A token or session, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    pub id: String,
    pub name: String,
    pub user: String,
    /// `session` or `api`.
    pub kind: String,
    /// RFC 3339.
    pub created_at: String,
    pub expires_at: Option<String>,
    /// To the minute or so.
    pub last_used_at: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    pub name: String,
    /// Seconds from now; it does not expire when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<u64>,
}

/// A new token with its secret, shown this once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreatedToken {
    #[serde(flatten)]
    pub info: Token,
    #[serde(with = "crate::secret_in_body")]
    #[schema(value_type = String, format = Password)]
    pub token: Secret,
}

/// A change of an account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateUser {
    /// The new password; the same rule as for instances. Every other session of the user ends.
    #[serde(with = "crate::secret_in_body")]
    #[schema(value_type = String, format = Password)]
    pub password: Secret,
}
