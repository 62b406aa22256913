//! The agent in a pod of Kubernetes: its shard's lease is a `Lease` object, its route the
//! `EndpointSlice`s of the instance's Services.
//!
//! Everything else is `larder-agent`'s. See `docs/design/0003-kubernetes.md`.

mod endpoint;
mod error;
#[cfg(test)]
mod fake;
mod lease;
mod none;
mod run;
mod slices;

pub use endpoint::KubeEndpoint;
pub use error::PodError;
pub use lease::KubeLease;
pub use run::run;
