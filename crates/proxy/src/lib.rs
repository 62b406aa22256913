//! The data path between clients and servers.
//!
//! [`relay`] is its simplest form: on one machine it gives an instance fixed addresses and passes
//! bytes on, to the server that the route names.

pub mod relay;

pub use relay::{RelayError, run};
