//! The store's own clock, for what nobody hands it a time for.

use larder_model::Timestamp;

/// Now, in milliseconds since 1970 UTC.
pub(crate) fn now() -> Timestamp {
    Timestamp(jiff::Timestamp::now().as_millisecond())
}
