//! Tunable numbers of the pure deciders, each with the reason for its default.

use serde::{Deserialize, Serialize};

use crate::slot_move::MoveLimits;
use crate::time::{Millis, Timestamp};

/// Numbers of the election (design: lease 4 s, renewed each second, candidates wait 500 ms).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ElectionPolicy {
    /// How long a lease holds after its last renewal. 4 s: long enough for three lost renewals,
    /// short enough that a dead machine costs less than 6 s.
    pub lease_ttl: Millis,
    /// How often the holder renews.
    pub renew_every: Millis,
    /// How long a candidate waits for its peers' offsets before it decides with what it has.
    pub gather: Millis,
    /// Clocks of two machines may run apart by this much in the life of one lease.
    pub clock_drift: Millis,
    /// The holder stops writes, and the keeper kills a silent holder's server, this long before
    /// the lease has run out.
    pub fence_margin: Millis,
    /// A node whose server has restarted waits this long for a synced replica to take over
    /// before it serves its own, possibly older, file.
    pub own_file_after: Millis,
    /// Automatic failovers of a shard allowed within `failover_window`; then hold and alarm.
    pub max_failovers: u32,
    pub failover_window: Millis,
    /// For how long a replica promises not to take the lease when the holder cannot renew.
    pub promise: Millis,
    /// How long a planned hand-over may pause writes before it is called off.
    pub hand_over_timeout: Millis,
}

impl Default for ElectionPolicy {
    fn default() -> Self {
        Self {
            lease_ttl: Millis(4000),
            renew_every: Millis(1000),
            gather: Millis(500),
            clock_drift: Millis(100),
            fence_margin: Millis(700),
            own_file_after: Millis(10_000),
            max_failovers: 3,
            failover_window: Millis::secs(300),
            promise: Millis(6000),
            hand_over_timeout: Millis(5000),
        }
    }
}

impl ElectionPolicy {
    /// Whether a failover at `at` counts against the limit at `wall` (both wall clock). A time far
    /// in the future is a clock that was wrong.
    pub fn counts_failover(&self, at: Timestamp, wall: Timestamp) -> bool {
        wall.since(at) < self.failover_window && at.since(wall) < self.failover_window
    }
}

/// Numbers of the planner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlannerPolicy {
    /// A node that nobody has seen for this long is replaced on another worker, when there is one
    /// and another copy of its shard serves.
    pub replace_lost_after: Millis,
    /// An operation that has not got there after this long is marked as timed out.
    pub operation_timeout: Millis,
    /// Minimum number of schedulable workers for a cluster instance; 0 switches the rule off
    /// (one machine has one worker).
    pub cluster_min_workers: u32,
    pub election: ElectionPolicy,
    /// `cluster-node-timeout` of cluster instances.
    pub cluster_node_timeout: Millis,
    /// How long the clients of a node that is replaced have to leave it before it is removed. New
    /// connections do not reach it meanwhile.
    pub drain: Millis,
    /// How much of the servers' time a move of slots may take.
    pub slot_moves: MoveLimits,
    /// A node's memory can be changed while its server runs. A property of the container cluster.
    #[serde(skip)]
    pub resizes_in_place: bool,
}

impl Default for PlannerPolicy {
    fn default() -> Self {
        Self {
            replace_lost_after: Millis::secs(300),
            operation_timeout: Millis::secs(7200),
            cluster_min_workers: 0,
            election: ElectionPolicy::default(),
            cluster_node_timeout: Millis(5000),
            drain: Millis::secs(5),
            slot_moves: MoveLimits::default(),
            resizes_in_place: false,
        }
    }
}
