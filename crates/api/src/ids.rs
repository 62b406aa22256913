//! Random ids for what the API creates.

use larder_model::IdSource;

/// Ids from the system's random source.
#[derive(Clone, Copy, Debug, Default)]
pub struct RandomIds;

impl IdSource for RandomIds {
    fn next_u64(&mut self) -> u64 {
        getrandom::u64().expect("the kernel's random source answers once the machine has booted")
    }
}
