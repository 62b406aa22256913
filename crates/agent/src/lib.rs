//! `larder agent`: supervises exactly one server process and takes part in its shard's election.
//!
//! The agent renders the server's configuration, starts, adopts, watches and ends the process,
//! reports on it over a small HTTP API on a unix socket, and drives the election of a leased shard
//! or the quick failover of a cluster shard. It needs nobody else to do so: while the control
//! plane is down everything here goes on. See `docs/design/0002-one-machine.md`.

mod act;
mod announce;
mod api;
mod beat;
mod boot;
mod chain;
pub mod client;
mod clock;
mod clustered;
mod command;
mod core;
mod damage;
mod engine;
mod error;
mod fence;
mod files;
mod follow;
mod lease;
mod leased;
mod memory;
mod metrics;
mod parameters;
mod peers;
mod pod;
mod proc;
mod process;
mod render;
mod rest;
mod run;
mod server;
mod slot_move;
mod slot_orders;
mod streams;
mod unusable;
mod users;
mod volume;
pub mod wire;

pub use client::{AgentClient, ClientError, LocalAgents, OrderRequest};
pub use error::AgentError;
pub use lease::{Endpoint, Lease, LeaseError, LinkEndpoint, LinkLease};
pub use pod::{Pod, read_boot, run_in_pod};
pub use run::run;
