//! The two clocks of an agent: monotonic for what an election measures, wall for what is shown.

use larder_model::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// Milliseconds since the machine booted (`CLOCK_BOOTTIME`: it also counts suspended time, so a
/// lease ages while the machine sleeps). The same for every process of the machine.
pub(crate) fn monotonic() -> Timestamp {
    let now = clock_gettime(ClockId::Boottime);
    Timestamp(now.tv_sec * 1000 + now.tv_nsec / 1_000_000)
}

/// Milliseconds since the Unix epoch.
pub(crate) fn wall() -> Timestamp {
    let now = clock_gettime(ClockId::Realtime);
    Timestamp(now.tv_sec * 1000 + now.tv_nsec / 1_000_000)
}
