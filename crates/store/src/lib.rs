//! Larder's memory: specs with generations, nodes, secrets, operations, events, records, people.
//!
//! An embedded SQLite (WAL, `synchronous=FULL`: what was answered survives a power cut), written
//! in the subset of SQL that PostgreSQL shares. Every method that changes something is one
//! transaction, and is cancel-safe: dropped half-way it has happened whole or not at all.
//! It decides nothing and knows no cluster.
//!
//! One file per resource, methods noun first. Reads of one thing answer [`StoreError::NotFound`]
//! when it is not there; where absence is an everyday answer they answer an `Option`.

mod accounts;
mod clock;
mod clusters;
mod column;
mod desired;
mod engines;
mod error;
mod events;
mod instances;
mod instances_list;
mod keyfile;
mod limit;
mod nodes;
mod open;
mod operations;
mod projects;
mod records;
mod retention;
mod seal;
mod secrets;
mod settings;
mod tokens;
mod tx;
mod users;
mod views;

pub use accounts::{AccountRow, AccountWish};
pub use clusters::ContainerClusterRow;
pub use engines::EngineRow;
pub use error::StoreError;
pub use events::{EventFilter, EventRow};
pub use instances::{InstanceChange, InstanceRow};
pub use instances_list::{InstanceFilter, InstanceSort};
pub use limit::LIMIT_MAX;
pub use operations::OperationFilter;
pub use records::{Record, RecordFilter, RecordOutcome, RecordRow};
pub use retention::{Pruned, Retention};
pub use tokens::{TokenCreated, TokenHolder, TokenKind, TokenRow};
pub use users::{ROLE_CLOUD_ADMINISTRATOR, UserNew, UserRow};
pub use views::{ConditionSince, InstanceObservation, NodeState, NodeView};

use std::fmt;
use std::sync::Arc;

use sqlx::SqlitePool;
use tokio::sync::watch;

/// What every method of the store answers.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// The store. Cheap to clone: all clones are one store.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    /// One connection: changes happen one after the other.
    writer: SqlitePool,
    /// Read-only connections; each transaction on them sees one moment.
    readers: SqlitePool,
    key: seal::Key,
    changes: watch::Sender<u64>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    /// The number of the newest event, and a wake-up for whoever follows events or operations.
    ///
    /// It is marked as changed after each commit that adds an event or changes an operation (then
    /// the number may stay as it was). Read again from where you stopped when it wakes you.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }
}
