//! Why an agent in a pod cannot begin.

use larder_agent::{AgentError, LeaseError};

/// What ends `larder agent --pod` at once.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("finding the API server of this pod: {0}")]
    Config(#[from] kube::config::InClusterError),
    #[error("making a client of the API server: {0}")]
    Client(#[source] Box<kube::Error>),
    #[error("the environment variable {name} is not an IP address")]
    Environment { name: &'static str },
}

/// What a failed call means to an election: a conflict is an answer, all else is silence.
pub(crate) fn said(doing: &'static str, error: &kube::Error) -> LeaseError {
    match error {
        kube::Error::Api(status) if status.code == 409 => LeaseError::Conflict,
        other => LeaseError::Unreachable { doing, reason: other.to_string() },
    }
}
