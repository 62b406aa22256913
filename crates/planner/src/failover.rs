//! Failover on request: coordinated and without loss while the primary lives; by a person's word
//! when it is dead and something may be lost.

use larder_model::agent::{ClusterFailoverMode, ServerState, VolumeState};
use larder_model::plan::{OperationReport, Step, Wait};
use larder_model::{Code, Millis, NodeId, NodeRecord, OperationKind, Refusal, Timestamp};

use crate::draft::Draft;
use crate::heal::coordinated_change;
use crate::op_steps::{self, Phase};
use crate::view::View;

/// For so long a silent agent is waited for before a wish is judged without it.
const PATIENCE: Millis = Millis::secs(10);
/// So long after it began no hand-over is still under way: one takes
/// `hand_over_timeout` at most, and who comes after a successor that died is settled within
/// `own_file_after` (see `ElectionPolicy`).
const HAND_OVER: Millis = Millis::secs(15);

/// The step in which the primary changes.
pub(crate) const CHANGE: &str = "change-primary";

/// What was asked for; `from` is the primary when the work began, `without_primary` that it had
/// begun without one.
pub(crate) struct Wish<'w> {
    pub(crate) shard: u32,
    pub(crate) to: Option<&'w NodeId>,
    pub(crate) accept_data_loss: bool,
    pub(crate) from: Option<&'w NodeId>,
    pub(crate) without_primary: bool,
    /// When the change became the step at work.
    pub(crate) begun_at: Timestamp,
}

impl Wish<'_> {
    fn has_begun(&self) -> bool {
        self.from.is_some() || self.without_primary
    }
}

pub(crate) fn advance(view: &View<'_>, draft: &mut Draft<'_>, wish: &Wish<'_>) -> OperationReport {
    if !wish.has_begun() {
        return match begin(view, draft, wish) {
            Ok(()) => op_steps::report(phases(view, wish, false), false, draft),
            Err(refusal) => op_steps::failed(phases(view, wish, false), refusal),
        };
    }
    let changed = has_changed(view, wish);
    let done = changed && is_settled(view, wish.shard);
    if changed && !done {
        end_stuck(view, draft, wish);
        draft.wait(Wait::Effect { what: format!("shard {} is in sync again", wish.shard) });
    } else if !changed && let Err(refusal) = go_on(view, draft, wish) {
        return op_steps::failed(phases(view, wish, changed), refusal);
    }
    op_steps::report(phases(view, wish, changed), done, draft)
}

/// The wanted change has happened: the chosen node leads, or any other than before.
fn has_changed(view: &View<'_>, wish: &Wish<'_>) -> bool {
    view.primary(wish.shard).is_some_and(|primary| match (wish.to, wish.from) {
        (Some(to), _) => primary.id == *to,
        (None, Some(from)) => primary.id != *from,
        (None, None) => true,
    })
}

/// Everybody of the shard who is alive is in sync. A node that is dead or unheard of is healed
/// on its own; the failover does not wait for it.
fn is_settled(view: &View<'_>, shard: u32) -> bool {
    view.wanted_of(shard).all(|record| match view.server(&record.id) {
        Some(state) if state.is_alive() => view.is_well(record),
        _ => true,
    })
}

/// Checks the wish against what is seen and notes where it started.
fn begin(view: &View<'_>, draft: &mut Draft<'_>, wish: &Wish<'_>) -> Result<(), Refusal> {
    let shard = wish.shard;
    if shard >= view.desired.spec.shards {
        let last = view.desired.spec.shards - 1;
        let detail = format!("shard {shard} does not exist; shards are 0 to {last}");
        return Err(Refusal::new(Code::InvalidRequest, detail).field("shard"));
    }
    if view.wanted_of(shard).count() < 2 {
        return Err(Refusal::new(
            Code::NoEligibleReplica,
            format!("shard {shard} has no replica that could take over"),
        ));
    }
    let to = wish.to.map(|to| chosen(view, shard, to)).transpose()?;
    // Nobody is refused for what is merely not known yet, as right after a start of `serve`.
    let unheard = view
        .wanted_of(shard)
        .find(|record| view.is_silent(&record.id) && view.silent_for(&record.id) < PATIENCE);
    if let Some(record) = unheard {
        let unknown_for = view.silent_for(&record.id);
        draft.wait(Wait::AgentSilent { node: record.id.clone(), unknown_for });
        return Ok(());
    }
    if let Some(old) = view.last_primary(shard).filter(|old| view.is_pausing(&old.id)) {
        draft.wait(Wait::Effect { what: format!("the server of node {} answers again", old.id) });
        return Ok(());
    }
    match view.primary(shard) {
        Some(primary) => {
            if to.is_some_and(|to| to.id == primary.id) {
                return Err(not_eligible(&primary.id, "it is the primary already"));
            }
            match to {
                Some(to) if !view.is_linked(to) => {
                    if view.agent(&to.id).is_some() && !wish.accept_data_loss {
                        return Err(not_eligible(
                            &to.id,
                            "it is not in sync with the primary; wait until its link is up",
                        ));
                    }
                    may_lead(view, to)?;
                }
                None if view.successor(shard).is_none() => {
                    // In a moment, more often than not: a replica that has just restarted.
                    let coming = view.wanted_of(shard).find(|record| {
                        record.id != primary.id
                            && view.server(&record.id).is_some_and(ServerState::is_alive)
                    });
                    if let Some(record) = coming
                        && view.now.since(wish.begun_at) < PATIENCE
                    {
                        draft.wait(Wait::ReplicaSyncing { node: record.id.clone() });
                        return Ok(());
                    }
                    return Err(Refusal::new(
                        Code::NoEligibleReplica,
                        format!("no replica of shard {shard} is in sync with its primary"),
                    ));
                }
                _ => {}
            }
            let reason = format!("from node {}: it is the primary now", primary.id);
            note(draft, wish, Some(primary.id.clone()), false, reason);
        }
        None => {
            if !wish.accept_data_loss {
                return Err(Refusal::new(
                    Code::DataLossNotAccepted,
                    format!(
                        "shard {shard} has no serving primary, so writes may be lost: choose a \
                         node with --to and add --accept-data-loss"
                    ),
                ));
            }
            let Some(heir) = to.or_else(|| survivor(view, shard, None)) else {
                return Err(Refusal::new(
                    Code::NoEligibleReplica,
                    format!("no node of shard {shard} with data answers"),
                ));
            };
            may_lead(view, heir)?;
            let old = view.last_primary(shard).filter(|old| old.id != heir.id);
            let reason = match old {
                Some(old) => format!("from node {}: it was the last primary", old.id),
                None => "nobody leads, and nobody says who led last".to_owned(),
            };
            note(draft, wish, old.map(|old| old.id.clone()), true, reason);
        }
    }
    Ok(())
}

fn note(
    draft: &mut Draft<'_>,
    wish: &Wish<'_>,
    from: Option<NodeId>,
    without_primary: bool,
    reason: String,
) {
    let kind = OperationKind::Failover {
        shard: wish.shard,
        to: wish.to.cloned(),
        accept_data_loss: wish.accept_data_loss,
        from,
        without_primary,
    };
    draft.step(Step::UpdateOperation { kind }, reason);
}

/// Whether a person's word could make the node lead: it is heard of, its server is not the one
/// that hangs, and it has data. No word of a person makes an empty node hold data.
fn may_lead(view: &View<'_>, record: &NodeRecord) -> Result<(), Refusal> {
    let Some(status) = view.agent(&record.id) else {
        return Err(not_eligible(&record.id, "nothing is heard of it"));
    };
    if status.volume == VolumeState::Lost {
        return Err(not_eligible(&record.id, "this node has no data to lead with"));
    }
    if view.is_stuck(&record.id) {
        return Err(not_eligible(&record.id, "its server does not answer"));
    }
    Ok(())
}

fn chosen<'a>(view: &View<'a>, shard: u32, to: &NodeId) -> Result<&'a NodeRecord, Refusal> {
    let record = view.wanted.iter().copied().find(|record| record.id == *to).ok_or_else(|| {
        let detail =
            format!("node {to} does not exist in this instance; see `larder instance nodes`");
        Refusal::new(Code::NodeNotFound, detail).field("to")
    })?;
    if record.shard == shard {
        Ok(record)
    } else {
        Err(not_eligible(to, &format!("it belongs to shard {}, not {shard}", record.shard)))
    }
}

fn not_eligible(node: &NodeId, why: &str) -> Refusal {
    Refusal::new(Code::NoEligibleReplica, format!("node {node} cannot take over: {why}"))
        .field("to")
}

/// The answering node with most of the data, `except` one, for a change that a person answers for.
fn survivor<'a>(view: &View<'a>, shard: u32, except: Option<&NodeId>) -> Option<&'a NodeRecord> {
    view.wanted_of(shard)
        .filter(|record| except != Some(&record.id))
        .filter(|record| view.server(&record.id) == Some(ServerState::Serving))
        .filter(|record| may_lead(view, record).is_ok())
        .max_by(|a, b| (view.offset(&a.id), &b.id).cmp(&(view.offset(&b.id), &a.id)))
}

/// Orders the change until it is seen.
///
/// # Errors
/// When the chosen node can never do it.
fn go_on(view: &View<'_>, draft: &mut Draft<'_>, wish: &Wish<'_>) -> Result<(), Refusal> {
    let shard = wish.shard;
    if draft.disturbs(view.all_of(shard).map(|record| &record.id)) {
        return Ok(());
    }
    let to = wish.to.and_then(|to| view.wanted_of(shard).find(|record| record.id == *to));
    if let Some(primary) = view.primary(shard) {
        match to.or_else(|| view.successor(shard)) {
            Some(to) if view.is_linked(to) => {
                coordinated_change(view, draft, primary, to, "a failover was asked for");
            }
            Some(to) if wish.accept_data_loss && view.agent(&to.id).is_some() => {
                may_lead(view, to)?;
                draft.step(by_a_persons_word(view, to), "a person accepts the loss of data");
            }
            Some(to) => draft.wait(Wait::ReplicaSyncing { node: to.id.clone() }),
            None => {
                draft.wait(Wait::Effect { what: format!("a replica of shard {shard} is in sync") })
            }
        }
        return Ok(());
    }
    let heir = to
        .or_else(|| survivor(view, shard, wish.from))
        .filter(|heir| view.agent(&heir.id).is_some() && wish.from != Some(&heir.id));
    match heir {
        Some(heir) if wish.accept_data_loss && !is_handing_over(view, wish) => {
            may_lead(view, heir)?;
            draft.step(by_a_persons_word(view, heir), "a person accepts the loss of data");
        }
        _ => draft.wait(Wait::Election { shard }),
    }
    Ok(())
}

/// Nobody leads just now because a hand-over that this operation began is under way, or may be:
/// the old primary lives, and answers or has done so a moment ago.
fn is_handing_over(view: &View<'_>, wish: &Wish<'_>) -> bool {
    let Some(from) = wish.from.filter(|_| !wish.without_primary) else { return false };
    view.serves(from) && !view.is_stuck(from) && view.now.since(wish.begun_at) < HAND_OVER
}

/// The old primary's server hangs while another node leads. An agent with a lease sees to that
/// itself; a server of a cluster would be in its endless script for ever.
fn end_stuck(view: &View<'_>, draft: &mut Draft<'_>, wish: &Wish<'_>) {
    let Some(from) = wish.from.filter(|_| wish.accept_data_loss) else { return };
    let Some(run_id) = view.agent(from).and_then(|status| status.server.run_id.clone()) else {
        return;
    };
    let shard = view.all_of(wish.shard).map(|record| &record.id);
    if view.is_stuck(from) && !draft.disturbs(shard) {
        draft.step(
            Step::RestartServer { node: from.clone(), run_id },
            "its server does not answer, and another node leads now",
        );
    }
}

fn by_a_persons_word(view: &View<'_>, to: &NodeRecord) -> Step {
    let node = to.id.clone();
    if view.is_cluster() {
        Step::FailOverShard { node, mode: ClusterFailoverMode::Takeover }
    } else {
        Step::TakeLease { node }
    }
}

fn phases(view: &View<'_>, wish: &Wish<'_>, changed: bool) -> Vec<Phase> {
    let begun = wish.has_begun();
    let leads = match view.primary(wish.shard) {
        Some(primary) => format!("node {} is the primary", primary.id),
        None => "no primary".to_owned(),
    };
    let synced = changed && is_settled(view, wish.shard);
    vec![
        Phase::new("check-replica", begun, "a replica may take over"),
        Phase::new(CHANGE, changed, leads),
        Phase::new("sync-replicas", synced, "the others copy from the new primary"),
    ]
}
