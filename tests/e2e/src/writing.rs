//! A client that writes in the network of a test bed's cluster, where this machine's own clients do
//! not reach.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use larder_testkit::kubernetes::bed;
use larder_testkit::{Endpoint, PASSWORD};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdout};

/// A client that has begun to write.
pub struct Writing {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Writing {
    /// Starts `program` (the `writer` of this crate) and waits for its first write.
    ///
    /// # Errors
    /// There is no test bed, or nothing could be written.
    pub async fn to(program: &str, endpoint: &Endpoint, seconds: u64) -> Result<Self> {
        let (port, seconds) = (endpoint.port.to_string(), seconds.to_string());
        let mut command = bed(&["exec", "--", program, &endpoint.host, &port, &seconds])?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut stdin = child.stdin.take().context("no standard input")?;
        stdin.write_all(format!("{PASSWORD}\n").as_bytes()).await?;
        drop(stdin);
        let mut lines = BufReader::new(child.stdout.take().context("no standard output")?);
        let mut line = String::new();
        lines.read_line(&mut line).await?;
        ensure!(line.trim() == "writing", "the client says `{line}`");
        Ok(Self { child, lines })
    }

    /// The longest time without an answered write, in milliseconds, once its seconds are over.
    ///
    /// # Errors
    /// Nothing was acknowledged, or something acknowledged is lost.
    pub async fn gap(mut self) -> Result<u64> {
        let mut line = String::new();
        self.lines.read_line(&mut line).await?;
        self.child.wait().await?;
        let told: Value =
            serde_json::from_str(&line).with_context(|| format!("the client says `{line}`"))?;
        ensure!(told["lost"] == 0, "acknowledged writes are lost: {told}");
        ensure!(told["acked"].as_u64().is_some_and(|acked| acked > 0), "nothing written: {told}");
        told["worst_gap_ms"].as_u64().context("no gap")
    }
}
