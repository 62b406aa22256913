//! What can go wrong between a client and the server.

use larder_api_types::Problem;
use larder_model::Code;

/// Why a request has no result. No variant ever holds a token or a password.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server said no, with a code.
    #[error("{0}")]
    Refused(Box<Problem>),
    /// The server wants a login, or the login may not do this.
    #[error("{0}")]
    NotAllowed(Box<Problem>),
    /// No answer: nobody listens there, or the connection broke. A change may or may not have
    /// been carried out.
    #[error("the server {server} cannot be reached: {reason}")]
    Unreachable { server: String, reason: String },
    /// There was an answer, and it is not one of Larder's.
    #[error("the server {server} answered {what}, which is not Larder's API: check the address")]
    NotLarder { server: String, what: String },
    /// The address given cannot be one of a server.
    #[error("`{server}` is not a server's address ({reason}): write it like http://127.0.0.1:7300")]
    InvalidServer { server: String, reason: String },
}

impl ClientError {
    /// The problem that the server answered with, if it did.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Refused(problem) | Self::NotAllowed(problem) => Some(problem),
            Self::Unreachable { .. } | Self::NotLarder { .. } | Self::InvalidServer { .. } => None,
        }
    }

    pub fn code(&self) -> Option<Code> {
        self.problem().and_then(Problem::code)
    }

    /// Whether asking again (for reads) may help without anybody's doing.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused(problem) => matches!(problem.status, 429 | 503 | 504),
            Self::NotAllowed(_) | Self::NotLarder { .. } | Self::InvalidServer { .. } => false,
        }
    }

    pub(crate) fn from_problem(problem: Problem) -> Self {
        if matches!(problem.status, 401 | 403) {
            Self::NotAllowed(Box::new(problem))
        } else {
            Self::Refused(Box::new(problem))
        }
    }
}
