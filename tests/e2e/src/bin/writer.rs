//! A writing client for a network of its own: `writer HOST PORT [SECONDS]`, the password on the first
//! line of standard input. Without SECONDS it writes until standard input ends, so that it writes for
//! as long as takes what happens meanwhile. Prints what became of its writes as JSON.
#![allow(clippy::print_stdout, reason = "a tool for the terminal")]

use std::time::Duration;

use anyhow::{Context, Result};
use larder_testkit::{Endpoint, Writer, WriterOptions};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};

/// Whoever started it and never ends it has gone.
const LONGEST: Duration = Duration::from_secs(900);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut next = || args.next().context("usage: writer HOST PORT [SECONDS]");
    let (host, port) = (next()?, next()?.parse()?);
    let seconds = args.next().map(|text| text.parse()).transpose()?;
    let mut input = BufReader::new(tokio::io::stdin());
    let mut password = String::new();
    input.read_line(&mut password).await?;
    let endpoint = Endpoint { host, port };
    let mut options = WriterOptions::new(&endpoint, password.trim(), "story:");
    options.max_time = seconds.map_or(LONGEST, Duration::from_secs);
    let longest = options.max_time;
    let writer = Writer::started(options).await?;
    // Whoever started this waits for the first write before anything happens.
    println!("writing");
    match seconds {
        Some(_) => tokio::time::sleep(longest).await,
        None => {
            let mut rest = Vec::new();
            let ended = tokio::time::timeout(longest, input.read_to_end(&mut rest)).await;
            ended.context("nobody has ended standard input")??;
        }
    }
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
