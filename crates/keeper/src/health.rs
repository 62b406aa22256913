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
const PING_EVERY: Duration = Duration::from_secs(5);
const PING_DEADLINE: Duration = Duration::from_secs(2);
/// One lost ping is a busy machine; three in a row are a dead loop.
const MISSES: u32 = 3;

/// Why a living process is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stuck {
    Stopped,
    Silent,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stopped => "stopped",
            Self::Silent => "does not answer pings",
        })
    }
}

/// Ends when the process is stuck, and never otherwise. Cancel-safe; a new call counts anew.
pub(crate) async fn until_stuck(pid: u32, ping_socket: Option<&Path>) -> Stuck {
    tokio::select! {
        () = until_stopped(pid) => Stuck::Stopped,
        () = until_silent(ping_socket) => Stuck::Silent,
    }
}

async fn until_stopped(pid: u32) {
    let is_stopped = || process::stat(pid).is_some_and(|stat| stat.state == 'T');
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

async fn until_silent(ping_socket: Option<&Path>) {
    let Some(socket) = ping_socket else { return std::future::pending().await };
    let mut misses = 0;
    let mut next = Instant::now();
    while misses < MISSES {
        next = (next + PING_EVERY).max(Instant::now());
        sleep_until(next).await;
        match http::get(socket, "/v1/ping", PING_DEADLINE).await {
            Ok(answer) if answer.status == 200 => misses = 0,
            Ok(_) | Err(_) => misses += 1,
        }
    }
}
