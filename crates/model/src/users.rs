//! Who may log in to an instance's servers, besides Larder itself.

use serde::{Deserialize, Serialize};

use crate::account::Account;
use crate::secret::{Secret, secret_in_file};

/// What the servers are told of their users: hashes as ACL files write them, no password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Users {
    /// Rises with every change; 0 for an instance whose users were never changed.
    pub revision: u64,
    /// SHA-256 of the tenant's password, 64 hex digits.
    #[serde(with = "secret_in_file")]
    pub password_sha256: Secret,
    /// The same of the password before, while both are valid; empty otherwise.
    #[serde(with = "secret_in_file")]
    pub former_sha256: Secret,
    /// Others than the tenant's `default`, by name.
    #[serde(default)]
    pub accounts: Vec<Account>,
}

impl Users {
    /// The hashes that the tenant's user `default` may log in with, the newest first.
    pub fn of_default(&self) -> impl Iterator<Item = &Secret> {
        [&self.password_sha256, &self.former_sha256]
            .into_iter()
            .filter(|hash| !hash.expose().is_empty())
    }
}
