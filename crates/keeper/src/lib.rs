//! The keeper: what the kubelet is to a worker, for one machine. It realises a folder of desired
//! processes (agents and relays), restarts them, removes them for good, and kills the server of
//! a lease that has lapsed when its agent cannot.
//!
//! It knows nothing of Redis and decides nothing about instances. It survives `serve`, and what
//! it started survives the keeper. See `docs/design/0002-one-machine.md`.

mod backoff;
mod belongings;
pub mod clock;
mod desired;
mod error;
mod fence;
pub mod files;
mod health;
pub mod http;
mod log_file;
mod orphans;
pub mod paths;
pub mod process;
mod run;
pub mod run_dir;
mod session;
mod start;
mod state;
mod supervise;

pub use belongings::Belongings;
pub use desired::wishes;
pub use error::KeeperError;
pub use paths::KeeperPaths;
pub use run::run;
pub use start::{Beat, Start, beat, ensure_running, is_running, running_pid};
pub use state::{Restarted, forget_ended, restarted};
