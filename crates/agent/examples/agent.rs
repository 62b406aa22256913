//! Runs one agent from its node folder: `agent DIR`. What `larder agent --dir DIR` does, for tests
//! of this crate alone.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args().nth(1).ok_or("usage: agent DIR")?;
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(larder_agent::run(dir.as_ref()))?;
    Ok(())
}
