//! Logs go to standard error: one line each, level by `LARDER_LOG` (default `info`).

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// The client of Kubernetes logs each failed call as an error; what a failure means is said by who
/// made the call.
const DEFAULT: &str = "info,sqlx=warn,hyper=warn,tower_http=warn,kube_client=off";

pub(crate) fn init() {
    let filter = EnvFilter::try_from_env("LARDER_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    // A second initialisation happens in tests only; the first one stays.
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
}
