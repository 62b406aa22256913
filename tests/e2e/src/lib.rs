//! What the stories share: faults, what a whole instance looks like past Larder's own word, and
//! what may be left of a deleted one.

pub mod dice;
pub mod faults;
pub mod stories;
pub mod tidy;
pub mod world;
pub mod writing;

pub use faults::Fault;
pub use tidy::check_tidy;
pub use world::{Tested, cluster_is_whole, replication_is_whole};
