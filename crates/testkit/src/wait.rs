//! Waiting for something to become true, with a deadline instead of a sleep.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// Asks `probe` every 50 ms until it gives a value. An error of the probe counts as "not yet".
///
/// # Errors
/// When `within` has passed: what was waited for, and the probe's last error.
///
/// Cancel-safe when `probe` is.
pub async fn eventually<T>(
    what: &str,
    within: Duration,
    mut probe: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let began = Instant::now();
    let mut last = None;
    loop {
        match probe().await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => {}
            Err(error) => last = Some(error),
        }
        if began.elapsed() > within {
            let why = last.map(|e| format!(" (last error: {e:#})")).unwrap_or_default();
            return Err(anyhow!("not within {within:?}: {what}{why}"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
