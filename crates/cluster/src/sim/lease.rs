//! A lease with compare-and-set in a store that is slow, fails, and times out after it succeeded.

use larder_model::lease::LeaseRecord;

/// What a call asks of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LeaseCall {
    Read,
    Write { record: LeaseRecord, after: Option<u64> },
    Renew { after: u64 },
}

/// What the store answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LeaseAnswer {
    /// The lease as it is: for a read, or after a write that succeeded.
    Is(Option<(LeaseRecord, u64)>),
    Conflict,
}

/// The store of one shard's lease.
#[derive(Clone, Debug, Default)]
pub(super) struct SimLease {
    pub(super) value: Option<(LeaseRecord, u64)>,
}

impl SimLease {
    pub(super) fn apply(&mut self, call: LeaseCall) -> LeaseAnswer {
        let version = self.value.as_ref().map(|(_, version)| *version);
        match call {
            LeaseCall::Read => LeaseAnswer::Is(self.value.clone()),
            LeaseCall::Write { record, after } if after == version => {
                self.value = Some((record, version.unwrap_or(0) + 1));
                LeaseAnswer::Is(self.value.clone())
            }
            LeaseCall::Renew { after } if Some(after) == version => {
                if let Some((_, version)) = &mut self.value {
                    *version += 1;
                }
                LeaseAnswer::Is(self.value.clone())
            }
            LeaseCall::Write { .. } | LeaseCall::Renew { .. } => LeaseAnswer::Conflict,
        }
    }
}

/// How the store behaves towards one worker, or all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseTrouble {
    /// Calls never arrive.
    Fails,
    /// Calls take effect and their answers are lost.
    AnswersLost,
    /// Calls take effect after up to this many milliseconds, maybe after their caller gave up.
    Slow(i64),
}
