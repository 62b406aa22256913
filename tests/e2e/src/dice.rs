//! Random choices that can be repeated.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;

/// A number from the environment.
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// `SplitMix64`.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// Always the same for one seed.
    pub fn of(seed: u64) -> Self {
        Self(seed)
    }

    /// From `LARDER_CHAOS_SEED`, or from the clock; says which it is, so that a failure can be repeated.
    ///
    /// # Errors
    /// The clock is before 1970.
    #[expect(clippy::print_stderr, reason = "the output of a test that failed has to hold it")]
    pub fn thrown() -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos();
        let seed = number("LARDER_CHAOS_SEED", u64::from(now));
        eprintln!("LARDER_CHAOS_SEED={seed}");
        Ok(Self(seed))
    }

    /// From here on the same comes with [`Dice::of`] this.
    pub fn seed(&self) -> u64 {
        self.0
    }

    /// Any 64 bits: the seed of dice of their own.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to `sides - 1`.
    pub fn below(&mut self, sides: u64) -> u64 {
        self.any() % sides.max(1)
    }

    /// One of several; `None` of none.
    pub fn of_these<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        let index = self.below(all.len() as u64);
        all.get(usize::try_from(index).unwrap_or(0))
    }
}
