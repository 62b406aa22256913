//! When the voters of a cluster would not grant, or a replica not begin, an election.

use larder_model::agent::ClusterFailoverMode;
use larder_model::{Millis, Timestamp};

/// A replica begins no election within so many node timeouts of its last one (`auth_retry_time` in
/// `clusterHandleSlaveFailover`, cluster.c).
pub(crate) const ELECTION_RESTS: u64 = 4;
/// Voters grant no vote in the place of a primary for which they voted less than so many node
/// timeouts ago (`clusterSendFailoverAuthIfNeeded`, there as well).
const VOTERS_REST: u64 = 2;
/// Which servers have won and lost the shard lately. A coordinated failover that cannot get its
/// votes keeps the primary's clients paused in vain, so it is not begun before it can: see
/// [`ELECTION_RESTS`] and [`VOTERS_REST`].
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) primary: Option<String>,
    pub(crate) replaced: Vec<(String, Timestamp)>,
    pub(crate) won: Option<Timestamp>,
    /// Since when the server is looked at.
    pub(crate) since: Option<Timestamp>,
}

impl Changes {
    /// Notes the id of the shard's primary as the server `me` sees it. Answers whom that server has
    /// just replaced.
    pub(crate) fn seen(&mut self, primary: &str, me: &str, now: Timestamp) -> Option<String> {
        self.since.get_or_insert(now);
        if self.primary.as_deref() == Some(primary) {
            return None;
        }
        let old = self.primary.replace(primary.to_owned())?;
        self.replaced.retain(|(id, _)| *id != old);
        self.replaced.push((old.clone(), now));
        if primary != me {
            return None;
        }
        self.won = Some(now);
        Some(old)
    }

    /// How a replica whose primary is dead takes over: by a vote, where one would be granted, and
    /// where it would be a new one. Who has won an election lately still
    /// has the votes: `FORCE` begins no other election before [`ELECTION_RESTS`] have passed, counts
    /// those votes, and the server leads by an epoch that is older than its predecessor's, which
    /// takes the slots back when it returns (`clusterHandleSlaveFailover`, redis-server 7.0). To take
    /// over without votes makes a new epoch. What a server did before it was looked at is not known.
    pub(crate) fn way_for(
        &self,
        mode: ClusterFailoverMode,
        node_timeout: Millis,
        now: Timestamp,
    ) -> ClusterFailoverMode {
        let is_new = |at: Timestamp| now.since(at) <= Millis(node_timeout.0 * ELECTION_RESTS);
        let no_vote = self.too_soon(node_timeout, now) || self.since.is_none_or(is_new);
        match mode {
            ClusterFailoverMode::Force if no_vote => ClusterFailoverMode::Takeover,
            other => other,
        }
    }

    /// An election would not be begun, or not be won.
    pub(crate) fn too_soon(&self, node_timeout: Millis, now: Timestamp) -> bool {
        let within = |at: Timestamp, node_timeouts: u64| {
            // What was seen happened up to a sample earlier.
            now.since(at) <= Millis(node_timeout.0 * node_timeouts)
        };
        let primary = self.primary.as_deref();
        self.won.is_some_and(|at| within(at, ELECTION_RESTS))
            || (self.replaced.iter())
                .any(|(id, at)| Some(id.as_str()) == primary && within(*at, VOTERS_REST))
    }
}

/// Monotonic.
pub(crate) const LONG_AGO: Timestamp = Timestamp(0);

#[cfg(test)]
mod tests {
    use super::*;

    const NODE_TIMEOUT: Millis = Millis(5_000);

    #[test]
    fn a_shard_that_went_back_and_forth_rests_until_votes_are_granted_again() {
        let mut changes = Changes::default();
        changes.seen("a", "c", Timestamp(0));
        assert!(!changes.too_soon(NODE_TIMEOUT, Timestamp(0)));
        changes.seen("b", "c", Timestamp(1_000));
        assert!(!changes.too_soon(NODE_TIMEOUT, Timestamp(1_100)), "nobody has voted for `b` yet");
        changes.seen("a", "c", Timestamp(2_000));
        assert!(changes.too_soon(NODE_TIMEOUT, Timestamp(3_000)), "`a` was replaced a moment ago");
        assert!(!changes.too_soon(NODE_TIMEOUT, Timestamp(11_001)));
    }

    #[test]
    fn who_has_won_lately_takes_over_without_the_votes_of_that_time() {
        use ClusterFailoverMode::{Coordinated, Force, Takeover};
        let mut changes = Changes { since: Some(LONG_AGO), ..Changes::default() };
        let start = Timestamp(100_000);
        changes.seen("a", "c", start);
        assert_eq!(changes.way_for(Force, NODE_TIMEOUT, start), Force);
        changes.seen("c", "c", start);
        changes.seen("a", "c", start + Millis(3_000));
        let way = |mode, ms| changes.way_for(mode, NODE_TIMEOUT, start + Millis(ms));
        assert_eq!(way(Force, 4_000), Takeover);
        assert_eq!(way(Force, 19_000), Takeover);
        assert_eq!(way(Force, 21_000), Force);
        assert_eq!(way(Coordinated, 4_000), Coordinated);
        let adopted = Changes { since: Some(start), ..Changes::default() };
        assert_eq!(adopted.way_for(Force, NODE_TIMEOUT, start + Millis(4_000)), Takeover);
    }

    #[test]
    fn a_server_that_has_won_an_election_rests_before_its_next_one() {
        let mut changes = Changes::default();
        changes.seen("a", "b", Timestamp(0));
        changes.seen("b", "b", Timestamp(1_000));
        changes.seen("a", "b", Timestamp(2_000));
        assert!(changes.too_soon(NODE_TIMEOUT, Timestamp(20_000)));
        assert!(!changes.too_soon(NODE_TIMEOUT, Timestamp(21_001)));
    }
}
