//! What can go wrong in the store, sorted by who can help.

use std::path::PathBuf;

use larder_model::{Code, Refusal};

/// Why the store did not do what it was asked. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The user's matter: the name is taken, another operation is under way, somebody else was
    /// faster. Trying the same again does not help.
    #[error(transparent)]
    Conflict(#[from] Refusal),
    /// There is no such thing.
    #[error("there is no {kind} `{name}`")]
    NotFound { kind: &'static str, name: String },
    /// The disk is full. Helps: free some space, then try again.
    #[error("the disk is full while {doing}: free some space, then try again")]
    Full { doing: &'static str },
    /// Something stored cannot be read back. Helps: a backup.
    #[error("the store is damaged, {what}: restore the database and its key from a backup")]
    Corrupt { what: String },
    /// The key file is missing, wrong or unreadable.
    #[error("key file {path}: {reason}", path = path.display())]
    Key { path: PathBuf, reason: String },
    /// The database file cannot be opened or brought up to date.
    #[error("opening database {path}: {reason}", path = path.display())]
    Open { path: PathBuf, reason: String },
    /// Anything else that the database says. A retry may help.
    #[error("{doing}: {cause}")]
    Database { doing: &'static str, cause: sqlx::Error },
}

impl StoreError {
    pub(crate) fn not_found(kind: &'static str, name: impl ToString) -> Self {
        Self::NotFound { kind, name: name.to_string() }
    }

    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt { what: what.into() }
    }

    pub(crate) fn database(doing: &'static str, cause: sqlx::Error) -> Self {
        match result_code(&cause) {
            Some(SQLITE_FULL) => Self::Full { doing },
            Some(SQLITE_CORRUPT | SQLITE_NOTADB) => {
                Self::Corrupt { what: format!("{doing}: {cause}") }
            }
            _ => Self::Database { doing, cause },
        }
    }

    /// Whether the thing asked for is simply not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

/// What the user may be told. Inner matters become `internal` without their text: log the error
/// itself where it is handled.
impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict(refusal) => refusal,
            StoreError::NotFound { kind, .. } => {
                let code = match kind {
                    "node" => Code::NodeNotFound,
                    "engine" => Code::EngineNotFound,
                    _ => Code::NotFound,
                };
                Self::new(code, error.to_string())
            }
            StoreError::Full { .. } => Self::new(
                Code::DiskFull,
                "the disk that holds Larder's data is full: free some space, then try again",
            ),
            StoreError::Corrupt { .. }
            | StoreError::Key { .. }
            | StoreError::Open { .. }
            | StoreError::Database { .. } => Self::new(
                Code::Internal,
                "the store could not do it: the server's log has the reason",
            ),
        }
    }
}

// Primary result codes, https://www.sqlite.org/rescode.html.
const SQLITE_CORRUPT: u32 = 11;
const SQLITE_FULL: u32 = 13;
const SQLITE_NOTADB: u32 = 26;

/// SQLite's primary result code: the low byte of the extended one, which sqlx reports.
fn result_code(error: &sqlx::Error) -> Option<u32> {
    let code = error.as_database_error()?.code()?.parse::<u32>().ok()?;
    Some(code & 0xff)
}

/// Says what was being done when the database failed.
pub(crate) trait Doing<T> {
    fn doing(self, doing: &'static str) -> Result<T, StoreError>;
}

impl<T> Doing<T> for Result<T, sqlx::Error> {
    fn doing(self, doing: &'static str) -> Result<T, StoreError> {
        self.map_err(|cause| StoreError::database(doing, cause))
    }
}

/// Whether a statement failed because a unique index has the value already.
pub(crate) fn is_unique_violation(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|e| e.is_unique_violation())
}
