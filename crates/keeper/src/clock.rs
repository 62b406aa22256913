//! The machine's wall clock, for what is shown to people or has to outlast a boot.

use std::time::{SystemTime, UNIX_EPOCH};

use larder_model::Timestamp;

/// Milliseconds since the Unix epoch. May be set back or forward at any time.
pub fn wall() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
