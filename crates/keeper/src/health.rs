//! Whether a living process is of use: not stopped, and answering pings.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::{http, process};

/// How often the state of a process is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A stopped process is given this long to be continued: debuggers and checkpoints stop for less.
const STOPPED_FOR: Duration = Duration::from_millis(2100);
/// One lost ping is a busy machine; three in a row are a dead loop.
const PINGS: Pings =
    Pings { every: Duration::from_secs(5), deadline: Duration::from_secs(2), misses: 3 };

/// How a process is asked whether it is well.
#[derive(Clone, Copy, Debug)]
struct Pings {
    every: Duration,
    deadline: Duration,
    /// So many unanswered in a row, and it is silent.
    misses: u32,
}

/// Why a living process is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stuck {
    Stopped,
    Silent,
}

/// The end of a sentence about the process.
impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stopped => "was stopped",
            Self::Silent => "did not answer pings",
        })
    }
}

/// Ends when the process is stuck, and never otherwise. Cancel-safe; a new call counts anew.
pub(crate) async fn until_stuck(pid: u32, ping_socket: Option<&Path>) -> Stuck {
    tokio::select! {
        () = until_stopped(pid) => Stuck::Stopped,
        () = until_silent(ping_socket, PINGS) => Stuck::Silent,
    }
}

async fn until_stopped(pid: u32) {
    let is_stopped = || process::stat(pid).is_some_and(process::Stat::is_stopped);
    loop {
        sleep(LOOK_EVERY).await;
        if is_stopped() {
            sleep(STOPPED_FOR).await;
            if is_stopped() {
                return;
            }
        }
    }
}

async fn until_silent(ping_socket: Option<&Path>, pings: Pings) {
    let Some(socket) = ping_socket else { return std::future::pending().await };
    let mut misses = 0;
    let mut next = Instant::now();
    while misses < pings.misses {
        next = (next + pings.every).max(Instant::now());
        sleep_until(next).await;
        match http::get(socket, "/v1/ping", pings.deadline).await {
            Ok(answer) if answer.status == 200 => misses = 0,
            Ok(_) | Err(_) => misses += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const FAST: Pings =
        Pings { every: Duration::from_millis(10), deadline: Duration::from_secs(1), misses: 3 };

    #[tokio::test]
    async fn a_process_without_its_socket_is_silent() {
        let dir = tempfile::tempdir().expect("temp dir");
        let socket = dir.path().join("none.sock");
        let silent = until_silent(Some(&socket), FAST);
        tokio::time::timeout(Duration::from_secs(10), silent).await.expect("silent");
    }

    #[tokio::test]
    async fn two_misses_and_an_answer_are_no_silence() {
        let dir = tempfile::tempdir().expect("temp dir");
        let socket = dir.path().join("s.sock");
        let listener = tokio::net::UnixListener::bind(&socket).expect("bind");
        let answers = async {
            for n in 1.. {
                let (mut stream, _) = listener.accept().await.expect("accept");
                let mut request = [0; 256];
                let _ = stream.read(&mut request).await;
                let status = if n % 3 == 0 { "200 OK" } else { "503 No" };
                let _ = stream.write_all(format!("HTTP/1.0 {status}\r\n\r\n").as_bytes()).await;
                if n == 30 {
                    return;
                }
            }
        };
        tokio::select! {
            () = answers => {}
            () = until_silent(Some(&socket), FAST) => panic!("taken for silent"),
        }
    }
}
