//! How many rows a list has.

/// No answer has more rows, whatever a filter asks for.
pub const LIMIT_MAX: u32 = 100_000;

/// Rows of a history (events, operations, records) unless the filter says otherwise.
const HISTORY: u32 = 100;

/// For `LIMIT`: a part of a history.
pub(crate) fn of_history(asked: Option<u32>) -> i64 {
    i64::from(asked.unwrap_or(HISTORY).min(LIMIT_MAX))
}

/// For `LIMIT`: a list of what there is, whole.
pub(crate) fn of_list(asked: Option<u32>) -> i64 {
    i64::from(asked.unwrap_or(LIMIT_MAX).min(LIMIT_MAX))
}
