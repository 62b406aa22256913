//! Exit codes and the errors behind them.

use std::path::PathBuf;

use larder_api_types::Problem;
use larder_client::ClientError;
use larder_model::Code;

/// How a command ended. The numbers are part of the contract with scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    /// Refused or failed; code and sentence are on stderr.
    Failed = 1,
    Usage = 2,
    Unreachable = 3,
    /// Not logged in or not allowed.
    NotAllowed = 4,
    /// `--wait` ran out of time; the operation goes on.
    TimedOut = 5,
}

impl Exit {
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// The config file cannot be read or written.
#[derive(Clone, Debug, thiserror::Error)]
#[error("config file {path}: {reason}", path = path.display())]
pub(crate) struct ConfigError {
    pub(crate) path: PathBuf,
    pub(crate) reason: String,
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    #[error(transparent)]
    Client(#[from] ClientError),
    /// An operation ended badly.
    #[error("{0}")]
    Operation(Box<Problem>),
    #[error(
        "operation {id} is still {state} after {waited}; it goes on: larder operation watch {id}"
    )]
    TimedOut { id: String, state: String, waited: String },
    #[error("{0}")]
    Usage(String),
    /// The user said no.
    #[error("not confirmed: nothing was done")]
    NotConfirmed,
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{doing}: {cause}")]
    Io { doing: &'static str, cause: std::io::Error },
}

impl CliError {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Client(error) => match error {
                ClientError::Refused(_) => Exit::Failed,
                ClientError::NotAllowed(_) => Exit::NotAllowed,
                ClientError::Unreachable { .. } | ClientError::NotLarder { .. } => {
                    Exit::Unreachable
                }
                ClientError::InvalidServer { .. } => Exit::Usage,
            },
            Self::TimedOut { .. } => Exit::TimedOut,
            Self::Usage(_) => Exit::Usage,
            Self::Operation(_) | Self::NotConfirmed | Self::Config(_) | Self::Io { .. } => {
                Exit::Failed
            }
        }
    }

    /// The server's own words, where the error is a refusal.
    pub(crate) fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Client(error) => error.problem(),
            Self::Operation(problem) => Some(problem),
            Self::TimedOut { .. }
            | Self::Usage(_)
            | Self::NotConfirmed
            | Self::Config(_)
            | Self::Io { .. } => None,
        }
    }

    /// What the user may do about it, where the sentence does not say so itself.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            // After a failed login the way in is known.
            Self::Client(ClientError::NotAllowed(problem))
                if problem.status == 401 && problem.code != Code::LoginFailed.as_str() =>
            {
                Some("log in with: larder login --server URL --user NAME")
            }
            Self::Client(ClientError::Unreachable { .. }) => Some(
                "is `larder serve` running there? LARDER_SERVER or `larder login` sets the address",
            ),
            _ => None,
        }
    }
}

/// Writing to a closed pipe is how `larder … | head` ends: not worth a message.
pub(crate) fn is_broken_pipe(error: &CliError) -> bool {
    matches!(error, CliError::Io { cause, .. } if cause.kind() == std::io::ErrorKind::BrokenPipe)
}

pub(crate) fn output_failed(cause: std::io::Error) -> CliError {
    CliError::Io { doing: "writing the output", cause }
}
