//! Which of several servers takes a new connection.

use std::collections::HashMap;
use std::time::Duration;

use larder_model::Address;
use larder_model::lease::RouteTarget;
use tokio::time::Instant;

/// Pause before a server that refused a connection is tried again; doubles up to `LONGEST_PAUSE`.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Least connections first, then one after the other; servers that failed are left out for a
/// while. One per listener.
#[derive(Debug, Default)]
pub(crate) struct Balancer {
    connections: HashMap<Address, usize>,
    failed: HashMap<Address, Failed>,
    turn: usize,
}

#[derive(Debug)]
struct Failed {
    pause: Duration,
    until: Instant,
}

impl Balancer {
    /// The servers of `targets` in the order in which they should be tried, without those that
    /// failed lately or that `is_well` denies.
    pub(crate) fn order(
        &mut self,
        targets: &[RouteTarget],
        now: Instant,
        is_well: impl Fn(&Address) -> bool,
    ) -> Vec<RouteTarget> {
        if targets.is_empty() {
            return Vec::new();
        }
        self.turn = self.turn.wrapping_add(1);
        let start = self.turn % targets.len();
        let rotated = targets[start..].iter().chain(&targets[..start]);
        let mut order: Vec<RouteTarget> = rotated
            .filter(|target| {
                let resting = self.failed.get(&target.address).is_some_and(|f| now < f.until);
                !resting && is_well(&target.address)
            })
            .cloned()
            .collect();
        // Stable: equals stay in turn.
        order.sort_by_key(|target| self.count(&target.address));
        order
    }

    fn count(&self, address: &Address) -> usize {
        self.connections.get(address).copied().unwrap_or(0)
    }

    /// A connection to `address` was made.
    pub(crate) fn opened(&mut self, address: &Address) {
        *self.connections.entry(address.clone()).or_default() += 1;
        self.failed.remove(address);
    }

    /// A connection to `address` has ended.
    pub(crate) fn closed(&mut self, address: &Address) {
        if let Some(count) = self.connections.get_mut(address) {
            *count -= 1;
            if *count == 0 {
                self.connections.remove(address);
            }
        }
    }

    /// `address` refused a connection, or did not answer.
    pub(crate) fn failed(&mut self, address: &Address, now: Instant) {
        let pause = self
            .failed
            .get(address)
            .map_or(FIRST_PAUSE, |failed| (failed.pause * 2).min(LONGEST_PAUSE));
        self.failed.insert(address.clone(), Failed { pause, until: now + pause });
        // Addresses that left long ago must not pile up.
        self.failed.retain(|_, failed| now < failed.until + 10 * LONGEST_PAUSE);
    }
}
