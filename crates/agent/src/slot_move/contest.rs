//! Keys that both ends have: which copy of them stays.
//!
//! Clients are served by the source as long as it has a key, and by the target from then on. So the
//! source's copy is the newer one, as when a transfer was not answered, unless the source is another
//! server by now, or has restarted: then it may have got back what had gone already. Only there the
//! copy is looked for that was used last.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use larder_model::{SlotRange, SlotSet};
use larder_node::{Connection, Idle, NodeError};

/// Slots of which this agent saw the very first mark set, at a server that has led without a break
/// since. Told apart by run id and config epoch: both change when a server comes back.
#[derive(Debug, Default)]
pub(crate) struct Reign {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    of: Option<(String, u64)>,
    slots: SlotSet,
}

impl Reign {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server is this one, and owns these slots.
    pub(super) fn seen(&self, run_id: &str, config_epoch: u64, owned: &SlotSet) {
        let mut inner = self.inner();
        let of = Some((run_id.to_owned(), config_epoch));
        if inner.of != of {
            *inner = Inner { of, slots: SlotSet::default() };
        }
        inner.slots = inner.slots.intersection(owned);
    }

    /// The slot is about to be opened, and the target has nothing of it.
    pub(super) fn begins(&self, slot: u16) {
        self.inner().slots.insert(SlotRange { first: slot, last: slot });
    }

    /// Whatever the target has of the slot was sent there by this server.
    pub(super) fn covers(&self, slot: u16) -> bool {
        self.inner().slots.contains(slot)
    }
}

/// What is to be known to judge by the time since a key was used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contest {
    /// Since when the servers run.
    pub(super) uptime_here: Duration,
    pub(super) uptime_there: Duration,
    /// The slot was half-way; else the target has keys of it that nobody should have left there.
    pub(super) half_way: bool,
}

impl Contest {
    /// Whether the target's copy stays. Of a key that was not used since its server has started it is
    /// not known when it was: it has what was in the server's files.
    pub(super) fn is_newer_there(&self, here: Idle, there: Idle) -> bool {
        let known = |idle: Idle, uptime: Duration| match idle {
            Idle::For(seconds) if seconds + 1 < uptime.as_secs() => Some(seconds),
            _ => None,
        };
        match (known(here, self.uptime_here), known(there, self.uptime_there)) {
            (Some(here), Some(there)) => there < here,
            (None, Some(_)) => true,
            (Some(_), None) => false,
            // What has arrived once is at least as new as when it was sent.
            (None, None) => self.half_way,
        }
    }
}

/// Of `keys` of a contested slot those that are to be sent, in place of what the target has: of the
/// others the target's copy is the newer one, and they are gone here now.
pub(super) async fn settle(
    source: &mut Connection,
    target: &mut Connection,
    keys: Vec<Vec<u8>>,
    contest: Contest,
) -> Result<Vec<Vec<u8>>, NodeError> {
    let here = source.idle_times(&keys, false).await?;
    let there = target.idle_times(&keys, true).await?;
    let mut sent = Vec::with_capacity(keys.len());
    for (key, (here, there)) in keys.into_iter().zip(here.into_iter().zip(there)) {
        let both = here != Idle::Absent && there != Idle::Absent;
        let stays = both && contest.is_newer_there(here, there);
        if !(stays && source.delete_unless_used(&key, here).await?) {
            sent.push(key);
        }
    }
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contest(here: u64, there: u64) -> Contest {
        let (here, there) = (Duration::from_secs(here), Duration::from_secs(there));
        Contest { uptime_here: here, uptime_there: there, half_way: true }
    }

    #[test]
    fn of_two_copies_the_one_that_was_used_last_stays() {
        let contest = contest(1_000, 1_000);
        assert!(contest.is_newer_there(Idle::For(9), Idle::For(2)));
        assert!(!contest.is_newer_there(Idle::For(2), Idle::For(9)));
        assert!(!contest.is_newer_there(Idle::For(3), Idle::For(3)), "the owner has the last word");
    }

    /// Pain: after a restart every key looks as if it had just been used.
    #[test]
    fn what_a_server_has_only_loaded_is_not_taken_for_used() {
        let target_restarted = contest(1_000, 5);
        assert!(!target_restarted.is_newer_there(Idle::For(60), Idle::For(4)));
        assert!(target_restarted.is_newer_there(Idle::For(60), Idle::For(1)), "used since");
        let source_restarted = contest(5, 1_000);
        assert!(source_restarted.is_newer_there(Idle::For(5), Idle::For(60)));
        assert!(!source_restarted.is_newer_there(Idle::For(1), Idle::For(60)), "written since");
    }

    #[test]
    fn where_the_time_is_not_known_what_has_arrived_stays_but_no_leftovers_do() {
        let half_way = contest(1_000, 1_000);
        assert!(half_way.is_newer_there(Idle::Unknown, Idle::Unknown));
        let left = Contest { half_way: false, ..half_way };
        assert!(!left.is_newer_there(Idle::Unknown, Idle::Unknown));
    }

    #[test]
    fn a_server_that_has_come_back_has_its_word_no_longer() {
        let reign = Reign::default();
        let owned: SlotSet = std::iter::once(7).collect();
        reign.seen("a", 1, &owned);
        reign.begins(7);
        reign.seen("a", 1, &owned);
        assert!(reign.covers(7) && !reign.covers(8));
        for (run_id, epoch) in [("b", 1), ("b", 2)] {
            reign.seen(run_id, epoch, &owned);
            assert!(!reign.covers(7), "restarted, or demoted and promoted");
            reign.begins(7);
        }
        reign.seen("b", 2, &SlotSet::default());
        reign.seen("b", 2, &owned);
        assert!(!reign.covers(7), "it has gone, and come back");
    }
}
