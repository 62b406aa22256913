//! Which node of a leased shard takes writes: the decision, and nothing but the decision.
//!
//! [`decide`] is handed what one agent knows (its own node, what its peers last said, the lease as
//! it last saw it, the time) and answers what that agent shall do. No IO, no clock, no chance, no
//! hidden state: the agent runs it on real servers, the simulator runs it with many agents,
//! partitions, drifting clocks and failing leases.
//!
//! # Contract of the driver
//!
//! - Call [`decide`] on every change (server exit, lease change, peers' news, order) and no later
//!   than `wake_at`; sample the own server right before.
//! - Execute the actions in order and stop at the first that fails; then refresh what the failure
//!   put in doubt (a failed lease call makes the view [`LeaseView::Unreachable`] or, read again,
//!   [`LeaseView::Known`]) and call again, but no sooner than 50 ms after a failure. Every action
//!   is idempotent. After a lease was acquired the view is the new record with the new version.
//! - The lease may be decided on as it was seen up to `renew_every` ago (one's own up to twice that, as
//!   each renewal is a look), unless news of it were told; a holder whose lease has run out by
//!   `seen_at + lease_ttl` has been looked at since. Every write is a compare-and-set, so an older
//!   view costs time and never two primaries.
//! - Every call of the lease has a deadline of at most `fence_margin / 2`.
//! - After [`Action::AcquireLease`] and [`Action::RenewLease`] succeeded, `renewed_at` is the
//!   monotonic time at which that call was *sent*, never when it was answered.
//! - [`Action::SyncData`] comes before the first promotion of an epoch: a restarted primary may lead
//!   from its own file while no replica has synced with it, so that file lacks nothing older.
//! - Before [`Action::Promote`] reaches the server, `data_epoch := epoch of the lease` is made
//!   durable; [`sync_mark`] is asked after every sample and its answer kept durably, as is a
//!   promise given to a holder. Monotonic times of another boot are worthless: a promise from
//!   before a reboot counts as given at the time of its first reading.
//! - [`stall`] is asked after every sample, and its answer handed in with [`Local::chain`].
//! - Monotonic time is milliseconds of one machine's clock; it is never compared between machines.

mod action;
mod candidate;
mod chain;
mod follow;
mod hand_over;
mod holder;
mod promise;
mod route;
mod rules;
mod vacancy;
mod world;

pub use action::{
    Action, Decision, KillReason, OrderOutcome, Situation, StartAs, WhyNoPrimary, WhyParked,
};
pub use chain::{Chain, Stall, stall};
pub use promise::{may_promise, promised_until};
pub use rules::Rules;
pub use world::{
    HandOverProgress, LeaseKnown, LeaseView, Local, LocalServer, OrderKind, Peer, PeerPromise,
    PeerReport, PendingOrder, Promise, SyncMark, peer_report, sync_mark, view_looks_old,
};

use larder_model::{ElectionPolicy, Timestamp};

/// What this agent shall do now, by every rule.
///
/// `now` is monotonic (milliseconds, one machine), `wall` milliseconds since the Unix epoch; only
/// the limit of automatic failovers looks at the latter.
pub fn decide(
    local: &Local,
    peers: &[Peer],
    lease: &LeaseView,
    policy: &ElectionPolicy,
    now: Timestamp,
    wall: Timestamp,
) -> Decision {
    decide_with(&Rules::ALL, local, peers, lease, policy, now, wall)
}

/// [`decide`] with single rules switched off: for tests that show what each rule is for.
pub fn decide_with(
    rules: &Rules,
    local: &Local,
    peers: &[Peer],
    lease: &LeaseView,
    policy: &ElectionPolicy,
    now: Timestamp,
    wall: Timestamp,
) -> Decision {
    let context = world::Context { rules, local, peers, lease, policy, now, wall };
    follow::decide(&context)
}
