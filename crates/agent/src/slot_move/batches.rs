//! Keys that wait to be sent, and how many of them go together.

use std::collections::VecDeque;

use super::pace::Pace;

/// Keys of one slot that go together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) slot: u16,
    pub(super) keys: Vec<Vec<u8>>,
    /// Memory of the keys at the source.
    pub(super) bytes: u64,
}

/// Keys and their memory, slot by slot. How many make a batch is decided as they are taken: by then it
/// is known how long the last ones took.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    slots: VecDeque<(u16, VecDeque<Weighed>)>,
}

/// A key and its memory at the source, in bytes.
type Weighed = (Vec<u8>, u64);

impl Waiting {
    pub(super) fn add(&mut self, slot: u16, keys: Vec<Weighed>) {
        if !keys.is_empty() {
            self.slots.push_back((slot, keys.into()));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// What is sent without waiting for an answer in between.
    pub(super) fn flight(&mut self, pace: &Pace) -> Vec<Batch> {
        std::iter::from_fn(|| self.batch(pace)).take(pace.flight()).collect()
    }

    fn batch(&mut self, pace: &Pace) -> Option<Batch> {
        let (slot, waiting) = self.slots.front_mut()?;
        let mut batch = Batch { slot: *slot, keys: Vec::new(), bytes: 0 };
        while let Some((_, bytes)) = waiting.front() {
            let full = batch.keys.len() >= pace.keys() || batch.bytes + bytes > pace.bytes();
            if full && !batch.keys.is_empty() {
                return Some(batch);
            }
            let (key, bytes) = waiting.pop_front()?;
            batch.keys.push(key);
            batch.bytes += bytes;
        }
        self.slots.pop_front();
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    use larder_model::MovePace;

    use super::*;

    fn keys(count: usize, bytes: u64) -> Vec<(Vec<u8>, u64)> {
        (0..count).map(|n| (n.to_string().into_bytes(), bytes)).collect()
    }

    #[test]
    fn a_batch_is_of_one_slot_and_no_larger_than_allowed_unless_it_is_one_key() {
        let pace = Pace::new(MovePace::Fast);
        let mut waiting = Waiting::default();
        waiting.add(7, keys(pace.keys() + 1, 10));
        waiting.add(8, Vec::new());
        waiting.add(9, keys(2, pace.bytes() * 2));
        let flight = waiting.flight(&pace);
        let sizes: Vec<_> = flight.iter().map(|batch| (batch.slot, batch.keys.len())).collect();
        assert_eq!(sizes, [(7, pace.keys()), (7, 1), (9, 1), (9, 1)]);
        assert!(waiting.is_empty());
        assert_eq!(waiting.flight(&pace), []);
    }

    #[test]
    fn a_flight_leaves_what_it_does_not_take() {
        let pace = Pace::new(MovePace::Gentle);
        let mut waiting = Waiting::default();
        waiting.add(7, keys(pace.keys() * 3, 10));
        let mut sent = 0;
        while !waiting.is_empty() {
            let flight = waiting.flight(&pace);
            assert_eq!(flight.len(), pace.flight());
            sent += flight.iter().map(|batch| batch.keys.len()).sum::<usize>();
        }
        assert_eq!(sent, pace.keys() * 3);
    }
}
