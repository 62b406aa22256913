//! Logs go to standard error: one line each, level by `LARDER_LOG` (default `info`).

use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

pub(crate) fn init() {
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    let (filter, not_understood) = filter();
    // A second initialisation happens in tests only; the first one stays.
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
    if let Some(error) = not_understood {
        tracing::warn!(%error, "LARDER_LOG is not understood and has no effect");
    }
}

/// Levels by target, such as `debug` or `info,larder_agent=debug`, and what is wrong with those that
/// were asked for. An `EnvFilter` would know spans and fields too, at the price of a regex engine
/// resident in every agent and relay.
fn filter() -> (Targets, Option<ParseError>) {
    let asked = std::env::var("LARDER_LOG").ok().filter(|levels| !levels.trim().is_empty());
    let usual = || {
        Targets::new()
            .with_default(Level::INFO)
            .with_targets(["sqlx", "hyper", "tower_http"].map(|target| (target, Level::WARN)))
            // The client of Kubernetes logs each failed call as an error; what a failure means is
            // said by who made the call.
            .with_target("kube_client", LevelFilter::OFF)
    };
    match asked.map(|levels| levels.parse()) {
        Some(Ok(levels)) => (levels, None),
        Some(Err(error)) => (usual(), Some(error)),
        None => (usual(), None),
    }
}
