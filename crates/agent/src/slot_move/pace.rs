//! How much at a time, and how long to rest in between.
//!
//! A server does nothing else while it sends or takes a batch of keys, so a batch's time is what a
//! client waits at worst, and the share of time without a batch is what is left for clients.

use std::time::Duration;

use larder_model::MovePace;

#[derive(Debug)]
pub(super) struct Pace {
    pace: MovePace,
    /// Keys of a batch, as far as their sizes allow.
    keys: usize,
}

impl Pace {
    pub(super) fn new(pace: MovePace) -> Self {
        Self { pace, keys: 16 }
    }

    /// Slots that are open at the same time: more where each mark waits for the replicas. To close some
    /// costs the target one write to its disk, however many they are.
    pub(super) fn slots(&self, marks_are_acknowledged: bool) -> u32 {
        match self.pace {
            MovePace::Gentle if marks_are_acknowledged => 16,
            MovePace::Gentle => 4,
            MovePace::Fast => 96,
        }
    }

    /// Keys of slots that are open at the same time, as long as it is not one slot: for as long as they
    /// take commands with several keys may be told to try again.
    pub(super) fn keys_at_once(&self) -> u64 {
        match self.pace {
            MovePace::Gentle => 10_000,
            MovePace::Fast => 40_000,
        }
    }

    /// Batches that are sent without waiting for the answer to the one before.
    pub(super) fn flight(&self) -> usize {
        match self.pace {
            MovePace::Gentle => 1,
            MovePace::Fast => 16,
        }
    }

    /// Questions about keys that are sent at once.
    pub(super) fn questions(&self) -> usize {
        match self.pace {
            MovePace::Gentle => 64,
            MovePace::Fast => 2048,
        }
    }

    pub(super) fn keys(&self) -> usize {
        self.keys
    }

    /// Memory of the keys of a batch, at the source.
    pub(super) fn bytes(&self) -> u64 {
        match self.pace {
            MovePace::Gentle => 64 << 10,
            MovePace::Fast => 1 << 20,
        }
    }

    /// How long both servers may be busy with one batch.
    fn burst(&self) -> Duration {
        match self.pace {
            MovePace::Gentle => Duration::from_micros(600),
            MovePace::Fast => Duration::from_micros(2_500),
        }
    }

    /// A flight of `batches` that were as large as allowed, or not, has taken so long. Answers how
    /// long to rest.
    pub(super) fn took(&mut self, batches: usize, full: bool, time: Duration) -> Duration {
        let each = time / u32::try_from(batches.max(1)).unwrap_or(u32::MAX);
        if each > self.burst() {
            self.keys = (self.keys / 2).max(1);
        } else if full && each * 2 < self.burst() {
            self.keys = (self.keys * 2).min(1024);
        }
        self.rest_after(time)
    }

    /// Three times as long as the servers were busy, so that clients have three quarters of the time.
    pub(super) fn rest_after(&self, busy: Duration) -> Duration {
        match self.pace {
            MovePace::Gentle => (busy * 3).min(Duration::from_secs(1)),
            MovePace::Fast => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_grow_while_they_are_quick_and_shrink_when_they_are_not() {
        let mut pace = Pace::new(MovePace::Gentle);
        let start = pace.keys();
        let rest = pace.took(1, true, Duration::from_micros(100));
        assert_eq!((pace.keys(), rest), (start * 2, Duration::from_micros(300)));
        pace.took(1, false, Duration::from_micros(100));
        assert_eq!(pace.keys(), start * 2, "it was not full");
        for _ in 0..20 {
            pace.took(1, true, Duration::from_millis(50));
        }
        assert_eq!(pace.keys(), 1);
        assert_eq!(pace.rest_after(Duration::from_secs(9)), Duration::from_secs(1));
        let mut fast = Pace::new(MovePace::Fast);
        assert_eq!(fast.took(8, true, Duration::from_millis(4)), Duration::ZERO);
        assert_eq!(fast.keys(), start * 2);
    }
}
