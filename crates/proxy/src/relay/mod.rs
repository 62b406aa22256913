//! The relay of one instance: fixed addresses that lead to servers which change.
//!
//! It follows two things: `relay.json` (its listeners and, for discovery, the members) and the
//! route (who is primary, which replicas are well), written by the holder of the lease. Bytes are
//! passed on unread. Connections to a server that the route no longer names are closed at once:
//! that is half of "never two primaries take writes"; the other half is the lease.

mod balance;
mod boot;
mod connect;
mod health;
mod limits;
mod listener;
mod pipe;
mod status;
mod supervisor;
mod view;

pub use supervisor::{RelayError, run};

#[cfg(test)]
mod tests;
