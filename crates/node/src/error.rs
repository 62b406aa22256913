//! What can go wrong between Larder and a server, sorted by what it says about the server.

use std::io;
use std::time::Duration;

use larder_resp::{ErrorReply, ProtocolError};

/// A server's answer that a parser does not understand.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("the field `{0}` is missing")]
    Missing(&'static str),
    #[error("the field `{field}` has the value `{value}`")]
    Bad { field: &'static str, value: String },
    #[error("the line `{0}` cannot be read")]
    Line(String),
}

/// A call to a server failed. `doing` is the command's name, never its arguments.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Nobody listens, or the network says no.
    #[error("cannot connect to the server at {server}: {source}")]
    Connect { server: String, source: io::Error },
    /// No answer in time. The server may be busy, hung or gone: this alone says nothing.
    #[error("the server at {server} did not answer {doing} within {} ms", waited.as_millis())]
    Timeout { server: String, doing: String, waited: Duration },
    /// The connection ended, or was given up by an earlier call that failed or was dropped.
    #[error("the connection to the server at {server} is closed (while doing {doing})")]
    Closed { server: String, doing: String },
    #[error("the connection to the server at {server} failed while doing {doing}: {source}")]
    Io { server: String, doing: String, source: io::Error },
    /// It does not speak Redis' protocol: something else listens there.
    #[error("the server at {server} does not speak the protocol (while doing {doing}): {source}")]
    Protocol { server: String, doing: String, source: ProtocolError },
    /// `LOADING`: alive, reading its data.
    #[error("the server at {server} is loading its data (while doing {doing})")]
    Loading { server: String, doing: String },
    /// `BUSY`: alive, in a long script or function.
    #[error("the server at {server} is busy with a script (while doing {doing})")]
    Busy { server: String, doing: String },
    /// `MASTERDOWN`: alive, a replica that serves nothing while its link is down.
    #[error("the replica at {server} has no link to its primary (while doing {doing})")]
    PrimaryDown { server: String, doing: String },
    /// `NOAUTH`, `WRONGPASS`, `NOPERM`: alive, and does not let this user do it.
    #[error("the server at {server} refuses {doing} to this user: {code}")]
    NotAllowed { server: String, doing: String, code: String },
    /// Any other error reply.
    #[error("the server at {server} answered {doing} with an error: {error}")]
    Reply { server: String, doing: String, error: ErrorReply },
    /// An answer of another shape than the command has.
    #[error("the server at {server} answered {doing} with {got}")]
    Unexpected { server: String, doing: String, got: String },
    /// An answer that cannot be read.
    #[error("the answer of the server at {server} to {doing} cannot be read: {source}")]
    Parse { server: String, doing: String, source: ParseError },
}

impl NodeError {
    /// A server answered: its process lives, whatever it said.
    pub fn is_alive(&self) -> bool {
        match self {
            Self::Loading { .. }
            | Self::Busy { .. }
            | Self::PrimaryDown { .. }
            | Self::NotAllowed { .. }
            | Self::Reply { .. }
            | Self::Unexpected { .. }
            | Self::Parse { .. } => true,
            Self::Connect { .. }
            | Self::Timeout { .. }
            | Self::Closed { .. }
            | Self::Io { .. }
            | Self::Protocol { .. } => false,
        }
    }

    /// Nobody listens at the address: refused at once, or the unix socket is not there.
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Connect { source, .. } if matches!(
            source.kind(),
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
        ))
    }

    /// The error reply, when the server answered with one that has no variant of its own.
    pub fn reply(&self) -> Option<&ErrorReply> {
        match self {
            Self::Reply { error, .. } => Some(error),
            _ => None,
        }
    }

    pub(crate) fn from_reply(server: &str, doing: &str, error: ErrorReply) -> Self {
        let (server, doing) = (server.to_owned(), doing.to_owned());
        match error.code() {
            "LOADING" => Self::Loading { server, doing },
            "BUSY" => Self::Busy { server, doing },
            "MASTERDOWN" => Self::PrimaryDown { server, doing },
            code @ ("NOAUTH" | "WRONGPASS" | "NOPERM") => {
                Self::NotAllowed { code: code.to_owned(), server, doing }
            }
            _ => Self::Reply { server, doing, error },
        }
    }
}
