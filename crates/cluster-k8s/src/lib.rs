//! Kubernetes as a container cluster: nodes are StatefulSets of one pod with a volume and an
//! address of their own, endpoints are Services.
//!
//! Everything is found by its labels and made by server-side apply with one field manager. This
//! crate decides nothing: what it holds is what the API server holds. See
//! `docs/design/0003-kubernetes.md`.

mod agents;
mod apply;
mod cluster;
mod connect;
mod count;
mod error;
mod expose;
mod fences;
mod forward;
mod hindrance;
mod instances;
mod mirror;
mod objects;
mod observe;
mod options;
mod pull;
mod pulse;
mod quantity;
mod rights;
mod shared;
mod store;
mod watch;
mod workers;
mod writes;

pub use cluster::KubeCluster;
pub use connect::{
    Check, ConnectError, Credentials, check, connect, ensure_namespace, instances, lead_to_the_same,
};
pub use kube::Client as KubeClient;
pub use mirror::Wake;
pub use options::{Expose, KubeOptions, Reach, known_engines};
pub use pull::{Found, PULL_SECRET_TYPE, PullSecret};
pub use pulse::Health;
