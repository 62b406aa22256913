//! Every rule of the election by name, so that a test can switch one off and show what it is for.

/// Each rule of the design's section on election. All on in production.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Nobody takes a lease that has not run out by their own clock plus drift, unless its holder
    /// let go.
    pub wait_for_expiry: bool,
    /// A holder that cannot renew stops writes before its lease runs out.
    pub stop_before_expiry: bool,
    /// It may go on only while *every* replica has promised; off: a majority is enough.
    pub every_replica_promises: bool,
    /// A node that has promised neither takes the lease nor promotes while the promise holds.
    pub keep_promise: bool,
    /// A node without peers goes on without a lease: there is nobody to ask.
    pub alone_goes_on: bool,
    /// A dead server whose agent lives is handed over at once.
    pub hand_over_dead_server: bool,
    /// A restarted server (new run id) never resumes as primary while a synced replica is
    /// reachable.
    pub restarted_server_steps_back: bool,
    /// Only who completed a sync in the last primary's epoch is a candidate.
    pub only_synced: bool,
    /// A candidate's own server has not restarted since that sync.
    pub own_restart_disqualifies: bool,
    /// The candidate with the highest offset takes it; off: the lowest id.
    pub highest_offset: bool,
    /// Nobody a candidate, or `own_file_after` over: the former holder starts from its own file.
    pub own_file: bool,
    /// The former holder silent or without its volume: the newest lineage may take it.
    pub newest_lineage: bool,
    /// A node whose volume is lost never leads.
    pub lost_volume_never_leads: bool,
    /// Only a new instance's bootstrap node may start from nothing.
    pub bootstrap_only_once: bool,
    /// The new holder first demotes or kills the old primary.
    pub fence_old_primary: bool,
    /// A node that sees a newer epoch becomes a replica of its holder.
    pub older_epoch_follows: bool,
    /// At most `max_failovers` automatic failovers in the window.
    pub failover_limit: bool,
    /// A planned hand-over pauses writes and waits for equal offsets.
    pub equal_offsets: bool,
    /// A write to the lease comes right before each promotion, so that no older write of this node
    /// (a release without an answer) can take effect after it.
    pub renew_before_promote: bool,
    /// What a new primary has copied is on its disk before it takes writes. From then on its own
    /// file counts as the newest, though an append-only file is behind by a second; without this
    /// a power cut right after a hand-over would cost writes that every replica still holds.
    pub data_on_disk_first: bool,
    /// Who copies from another replica judges the link by the primary's offset, and leaves one that
    /// brings nothing.
    pub leave_stalled_upstream: bool,
}

impl Rules {
    pub const ALL: Self = Self {
        wait_for_expiry: true,
        stop_before_expiry: true,
        every_replica_promises: true,
        keep_promise: true,
        alone_goes_on: true,
        hand_over_dead_server: true,
        restarted_server_steps_back: true,
        only_synced: true,
        own_restart_disqualifies: true,
        highest_offset: true,
        own_file: true,
        newest_lineage: true,
        lost_volume_never_leads: true,
        bootstrap_only_once: true,
        fence_old_primary: true,
        older_epoch_follows: true,
        failover_limit: true,
        equal_offsets: true,
        renew_before_promote: true,
        data_on_disk_first: true,
        leave_stalled_upstream: true,
    };
}

impl Default for Rules {
    fn default() -> Self {
        Self::ALL
    }
}
