//! The driver of the control plane: load the wish, observe the world, plan, execute, record.
//!
//! The only crate that holds a [`larder_cluster::Cluster`] and speaks to agents. It decides
//! nothing: what to do comes from `larder-planner`. Everything it remembers between two rounds is
//! in the [`Book`], so that it may be killed at any instruction.

mod book;
mod book_store;
mod clusters;
mod driver;
mod execute;
mod hindrances;
mod made_again;
mod observe;
mod pace;
mod statuses;
mod strays;
mod tick;
mod view;

pub use book::{Book, BookError, MemoryBook};
pub use book_store::StoreBook;
pub use clusters::{Clusters, OnlyCluster};
pub use driver::{Driver, DriverHandle, channel};
pub use statuses::{DirectStatuses, Statuses, WatchedStatuses};
pub use strays::sweep_strays;
pub use tick::{Clock, Reconciler, SystemClock, TickOutcome};
pub use view::observation;
