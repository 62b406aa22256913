//! Runs one agent from its node folder: `agent DIR`. What `larder agent --dir DIR` does, for tests
//! of this crate alone.

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args().nth(1).ok_or("usage: agent DIR")?;
    let levels: Targets = std::env::var("RUST_LOG").unwrap_or_default().parse()?;
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(std::io::stderr);
    tracing_subscriber::registry().with(levels).with(lines).init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(larder_agent::run(dir.as_ref()))?;
    Ok(())
}
