//! A client that writes in the network of a test bed's cluster, where this machine's own clients do
//! not reach.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_testkit::kubernetes::bed;
use larder_testkit::{Endpoint, PASSWORD};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout};

/// What the loss of a worker may cost a client of a read-write instance, in milliseconds: a lease (4 s),
/// an election and a change of the route; kube-proxy may rest for a second, and the machine be busy.
pub const LOST_WORKER: u64 = 8_000;

/// A client that has begun to write.
pub struct Writing {
    child: Child,
    /// It writes until this ends.
    stdin: ChildStdin,
    lines: BufReader<ChildStdout>,
}

impl Writing {
    /// Starts `program` (the `writer` of this crate) and waits for its first write.
    ///
    /// # Errors
    /// There is no test bed, or nothing could be written.
    pub async fn to(program: &str, endpoint: &Endpoint) -> Result<Self> {
        let port = endpoint.port.to_string();
        let mut command = bed(&["exec", "--", program, &endpoint.host, &port])?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut stdin = child.stdin.take().context("no standard input")?;
        stdin.write_all(format!("{PASSWORD}\n").as_bytes()).await?;
        let mut lines = BufReader::new(child.stdout.take().context("no standard output")?);
        let mut line = String::new();
        lines.read_line(&mut line).await?;
        ensure!(line.trim() == "writing", "the client says `{line}`");
        Ok(Self { child, stdin, lines })
    }

    /// Has it write for so long still, and end. Answers the longest time without an answered write, in
    /// milliseconds.
    ///
    /// # Errors
    /// Nothing was acknowledged, or something acknowledged is lost.
    pub async fn gap(mut self, after: Duration) -> Result<u64> {
        tokio::time::sleep(after).await;
        drop(self.stdin);
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
