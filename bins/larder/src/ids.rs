//! Ids from the system's randomness.

use larder_model::IdSource;

pub(crate) struct RandomIds;

impl IdSource for RandomIds {
    fn next_u64(&mut self) -> u64 {
        let mut bytes = [0_u8; 8];
        // Without randomness there are no safe ids, passwords or tokens: nothing can go on.
        getrandom::fill(&mut bytes).expect("the system has a source of randomness");
        u64::from_ne_bytes(bytes)
    }
}
