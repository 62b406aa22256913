//! How long to wait before a process is started again.

use std::time::Duration;

/// A life shorter than this counts as a failed start.
const SHORT_LIFE: Duration = Duration::from_secs(1);
/// After a life of this length the past is forgotten.
const LONG_LIFE: Duration = Duration::from_secs(10);
const FIRST: Duration = Duration::from_millis(100);
/// Long enough not to burn a processor, short enough that a cause which goes away is not felt.
const LONGEST: Duration = Duration::from_secs(5);

/// A process that lived is started again at once; one that ends right after its start waits
/// 100 ms, then twice as long each time, at most 5 s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backoff {
    wait: Duration,
}

impl Backoff {
    /// Takes note of a life that has ended; answers how long to wait now.
    pub(crate) fn ended_after(&mut self, life: Duration) -> Duration {
        if life >= LONG_LIFE {
            self.wait = Duration::ZERO;
        } else if life < SHORT_LIFE {
            self.wait = (self.wait * 2).clamp(FIRST, LONGEST);
            return self.wait;
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_short_lives_wait_and_ever_longer() {
        let mut backoff = Backoff::default();
        let short = Duration::from_millis(10);
        let waits: Vec<u128> = (0..8).map(|_| backoff.ended_after(short).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(backoff.ended_after(Duration::from_secs(2)), Duration::ZERO);
        assert_eq!(backoff.ended_after(short), LONGEST, "two seconds do not clear the past");
        assert_eq!(backoff.ended_after(LONG_LIFE), Duration::ZERO);
        assert_eq!(backoff.ended_after(short), FIRST);
    }
}
