//! Chance from a seed.

use larder_model::{IdSource, SeededIds};

/// SplitMix64 with a few ways to ask.
#[derive(Clone, Debug)]
pub struct Rng(SeededIds);

impl Rng {
    pub fn new(seed: u64) -> Self {
        let mut ids = SeededIds(seed ^ 0x5bd1_e995_9d1b_54a5);
        let _ = ids.next_u64();
        Self(ids)
    }

    /// 0 to `limit - 1`; 0 when `limit` is not positive.
    pub fn below(&mut self, limit: i64) -> i64 {
        match u64::try_from(limit) {
            Ok(limit) if limit > 0 => (self.0.next_u64() % limit) as i64,
            _ => 0,
        }
    }

    /// True `percent` times in a hundred.
    pub fn chance(&mut self, percent: i64) -> bool {
        self.below(100) < percent
    }

    /// 40 hex digits, as Redis names runs and replications.
    pub(super) fn hex_id(&mut self) -> String {
        format!(
            "{:016x}{:016x}{:08x}",
            self.0.next_u64(),
            self.0.next_u64(),
            self.0.next_u64() as u32
        )
    }
}
