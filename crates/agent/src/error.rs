//! Why an agent cannot run at all.

use std::io;
use std::path::PathBuf;

/// What ends `larder agent` at once. Everything else is a problem of the node, shown in its
/// status while the agent goes on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("reading {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is not what an agent starts from: {source}")]
    Malformed { path: PathBuf, source: serde_json::Error },
    #[error(
        "{path} holds no password of Larder's own user, or no hash of the tenant's: the control plane writes it anew"
    )]
    Secrets { path: PathBuf },
    /// Another agent looks after this node. Nothing to do.
    #[error("another agent holds {path}")]
    AlreadyRunning { path: PathBuf },
    #[error("locking {path}: {source}")]
    Lock { path: PathBuf, source: io::Error },
    #[error("opening the agent's socket {path}: {source}")]
    Socket { path: PathBuf, source: io::Error },
    #[error("opening the lease or route folder {path}: {source}")]
    Log { path: PathBuf, source: io::Error },
    #[error("listening on {address}: {source}")]
    Listen { address: std::net::SocketAddr, source: io::Error },
    #[error("setting up the agent: {0}")]
    Setup(io::Error),
}
