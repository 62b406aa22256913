//! One machine as a container cluster: nodes are folders and processes, addresses are ports of
//! this machine, and the keeper is the kubelet.
//!
//! Everything lasting is in files (`docs/design/0002-one-machine.md`); a [`LocalCluster`] may be
//! dropped at any instruction and made anew. Only one process at a time may use one on a data
//! directory: `serve`, which holds `serve.lock`.

mod agents;
mod cluster;
mod endpoints;
mod error;
mod fences;
mod instances;
mod machine;
mod nodes;
mod options;
mod place;
mod ports;
mod readable;

pub use cluster::LocalCluster;
pub use options::{EngineLookup, LocalOptions};
