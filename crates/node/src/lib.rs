//! The client of ONE server (Redis or Valkey), for agents, relays and movers.
//!
//! [`Connection`] speaks to a server and gives typed answers; [`probe`] finds out what a server
//! binary is. What the answers mean for an instance is decided elsewhere.

mod cluster;
mod commands;
mod connection;
mod error;
mod info;
pub mod probe;
mod slots;

pub use cluster::{parse_cluster_info, parse_cluster_nodes};
pub use connection::Connection;
pub use error::{NodeError, ParseError};
pub use info::{
    Flavour, InfoText, Loading, Persistence, ReplicationDetail, ServerInfo, parse_info,
};
pub use slots::{Idle, MigrateTo, SlotMark, SlotMigration};
