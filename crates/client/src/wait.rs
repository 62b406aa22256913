//! Waiting for an operation: woken by events, with polling as the floor.

use std::time::Duration;

use larder_api_types::Operation;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::client::Client;
use crate::error::ClientError;
use crate::stream::EventStream;

/// How to wait.
#[derive(Clone, Debug)]
pub struct WaitOptions {
    /// When to give up waiting; the operation goes on.
    pub timeout: Duration,
    /// Whose events wake the waiter early.
    pub project: String,
}

/// Why the waiting ended without a finished operation.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// Time is up; the operation goes on. Holds it as it was last seen.
    #[error("operation {id} is not finished after {waited:?}; it goes on", id = .last.id)]
    TimedOut { last: Box<Operation>, waited: Duration },
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// First pause between two looks; doubles up to [`SLOWEST`].
const FASTEST: Duration = Duration::from_millis(50);
const SLOWEST: Duration = Duration::from_secs(1);
/// For how long the server may be away (it restarts) before the waiting ends.
const AWAY: Duration = Duration::from_secs(20);

impl Client {
    /// Waits until the operation is finished, whatever its outcome, and answers it. `progress` is
    /// called with every change that is seen. Survives a restart of the server.
    ///
    /// # Errors
    /// [`WaitError::TimedOut`] when the time is up; [`WaitError::Client`] when the server refuses
    /// to show the operation or is away for longer than 20 s.
    pub async fn wait_operation(
        &self,
        operation: Operation,
        options: &WaitOptions,
        mut progress: impl FnMut(&Operation),
    ) -> Result<Operation, WaitError> {
        let deadline = Instant::now() + options.timeout;
        let mut last = operation;
        progress(&last);
        // Without the stream the polling alone is enough.
        let opening = self.event_stream(&options.project, Some(&last.instance_id), None);
        let mut events = match timeout_at(deadline, opening).await {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(_)) | Err(_) => None,
        };
        let mut pause = FASTEST;
        let mut away_since: Option<Instant> = None;
        loop {
            if last.is_finished() {
                return Ok(last);
            }
            match timeout_at(deadline, self.operation_get(&last.id)).await {
                Ok(Ok(now)) => {
                    away_since = None;
                    if now != last {
                        pause = FASTEST;
                        last = now;
                        progress(&last);
                        continue;
                    }
                }
                Ok(Err(error)) => {
                    let since = *away_since.get_or_insert_with(Instant::now);
                    if !error.is_retryable() || since.elapsed() > AWAY {
                        return Err(error.into());
                    }
                }
                Err(_) => {}
            }
            if Instant::now() >= deadline {
                return Err(WaitError::TimedOut { last: Box::new(last), waited: options.timeout });
            }
            tokio::select! {
                () = sleep_until(deadline) => {}
                () = sleep(pause) => pause = (pause * 2).min(SLOWEST),
                () = woken(&mut events) => pause = FASTEST,
            }
        }
    }
}

/// Returns at the next event; never when there is no stream (any more).
async fn woken(events: &mut Option<EventStream>) {
    if let Some(stream) = events {
        if stream.next().await.is_ok() {
            return;
        }
        *events = None;
    }
    std::future::pending().await
}
