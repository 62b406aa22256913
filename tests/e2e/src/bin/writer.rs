//! A writing client for a network of its own: `writer HOST PORT SECONDS`, the password on standard
//! input. Prints what became of its writes as JSON.
#![allow(clippy::print_stdout, reason = "a tool for the terminal")]

use std::time::Duration;

use anyhow::{Context, Result};
use larder_testkit::{Endpoint, Writer, WriterOptions};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut next = || args.next().context("usage: writer HOST PORT SECONDS");
    let (host, port, seconds) = (next()?, next()?.parse()?, next()?.parse()?);
    let mut password = String::new();
    std::io::stdin().read_line(&mut password)?;
    let endpoint = Endpoint { host, port };
    let mut options = WriterOptions::new(&endpoint, password.trim(), "story:");
    options.max_time = Duration::from_secs(seconds);
    let writer = Writer::started(options).await?;
    // Whoever started this waits for the first write before anything happens.
    println!("writing");
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let history = writer.stop().await?;
    let lost = history.lost(&endpoint).await?;
    let (gap, at) = history.worst_gap();
    let told = serde_json::json!({
        "acked": history.acked().count(),
        "lost": lost.len(),
        "worst_gap_ms": u64::try_from(gap.as_millis())?,
        "worst_gap_at_ms": u64::try_from(at.as_millis())?,
    });
    println!("{told}");
    Ok(())
}
