//! Users of an instance's servers.

use larder_model::Secret;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A user of an instance's servers besides `default`, which the instance's own password is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Account {
    pub name: String,
    /// `read-write`, `read-only`, `administrator` or `custom`.
    pub role: String,
    /// Of a custom account, as Redis' ACL files write them; empty otherwise.
    pub rules: String,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub changed_at: String,
}

/// Makes an account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateAccount {
    /// A letter, then letters, digits, `-`, `_` and `.`, at most 32. Not `default`, nor what begins with
    /// `larder`.
    pub name: String,
    /// `read-write`, `read-only`, `administrator` or `custom`.
    pub role: String,
    /// Of a custom account: rules for commands, keys and channels, as Redis' ACL files write them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<String>,
    /// 8 to 32 characters of three of: upper case, lower case, digit, special.
    #[serde(with = "crate::secret_in_body")]
    #[schema(value_type = String, format = Password)]
    pub password: Secret,
}

/// Changes an account. What is left out stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateAccount {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<String>,
    /// Valid at once, and the former one no longer. Connections stay.
    #[serde(
        default,
        with = "crate::secret_in_body::option",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<String>, format = Password)]
    pub password: Option<Secret>,
}
