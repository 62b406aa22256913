//! Failover on request: coordinated and without loss while the primary lives; by a person's word
//! when it is dead and something may be lost.

use larder_model::agent::ClusterFailoverMode;
use larder_model::plan::{OperationReport, Step, Wait};
use larder_model::{Code, Millis, NodeId, NodeRecord, OperationKind, Refusal};

use crate::cluster_repair;
use crate::draft::Draft;
use crate::heal::coordinated_change;
use crate::op_steps::{self, Phase};
use crate::view::View;

/// For so long a silent agent is waited for before a wish is judged without it.
const PATIENCE: Millis = Millis::secs(10);

/// What was asked for; `from` is the primary when the work began.
pub(crate) struct Wish<'w> {
    pub(crate) shard: u32,
    pub(crate) to: Option<&'w NodeId>,
    pub(crate) accept_data_loss: bool,
    pub(crate) from: Option<&'w NodeId>,
}

pub(crate) fn advance(view: &View<'_>, draft: &mut Draft<'_>, wish: &Wish<'_>) -> OperationReport {
    if let Some(from) = wish.from {
        let changed = has_changed(view, wish, from);
        let done = changed && is_settled(view, wish.shard);
        if changed && !done {
            draft.wait(Wait::Effect { what: format!("shard {} is in sync again", wish.shard) });
        } else if !changed {
            go_on(view, draft, wish, from);
        }
        return op_steps::report(phases(view, wish, changed), done, draft);
    }
    match begin(view, draft, wish) {
        Ok(()) => op_steps::report(phases(view, wish, false), false, draft),
        Err(refusal) => op_steps::failed(phases(view, wish, false), refusal),
    }
}

/// The wanted change has happened: the chosen node leads, or any other than before.
fn has_changed(view: &View<'_>, wish: &Wish<'_>, from: &NodeId) -> bool {
    view.primary(wish.shard).is_some_and(|primary| match wish.to {
        Some(to) => primary.id == *to,
        None => primary.id != *from,
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
    match view.primary(shard) {
        Some(primary) => {
            if to.is_some_and(|to| to.id == primary.id) {
                return Err(not_eligible(&primary.id, "it is the primary already"));
            }
            match to {
                Some(to) if !view.is_linked(to) => {
                    if view.agent(&to.id).is_none() {
                        return Err(not_eligible(&to.id, "nothing is heard of it"));
                    }
                    if !wish.accept_data_loss {
                        return Err(not_eligible(
                            &to.id,
                            "it is not in sync with the primary; wait until its link is up",
                        ));
                    }
                }
                None if view.successor(shard).is_none() => {
                    return Err(Refusal::new(
                        Code::NoEligibleReplica,
                        format!("no replica of shard {shard} is in sync with its primary"),
                    ));
                }
                _ => {}
            }
            note(draft, wish, primary.id.clone(), "it is the primary now");
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
            let Some(heir) = to.or_else(|| survivor(view, shard)) else {
                return Err(Refusal::new(
                    Code::NoEligibleReplica,
                    format!("no node of shard {shard} can be reached"),
                ));
            };
            if view.agent(&heir.id).is_none() {
                return Err(not_eligible(&heir.id, "nothing is heard of it"));
            }
            match last_primary(view, shard, heir) {
                Some(old) => note(draft, wish, old.id.clone(), "it was the last primary"),
                None => draft.wait(Wait::Election { shard }),
            }
        }
    }
    Ok(())
}

fn note(draft: &mut Draft<'_>, wish: &Wish<'_>, from: NodeId, reason: &str) {
    let kind = OperationKind::Failover {
        shard: wish.shard,
        to: wish.to.cloned(),
        accept_data_loss: wish.accept_data_loss,
        from: Some(from.clone()),
    };
    draft.step(Step::UpdateOperation { kind }, format!("from node {from}: {reason}"));
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

/// The reachable node with most of the data, for a change that a person answers for.
fn survivor<'a>(view: &View<'a>, shard: u32) -> Option<&'a NodeRecord> {
    view.wanted_of(shard)
        .filter(|record| view.serves(&record.id))
        .max_by(|a, b| (view.offset(&a.id), &b.id).cmp(&(view.offset(&b.id), &a.id)))
}

/// Who led the shard last: by the lease, by the replica's own memory, or whoever is not `heir`.
fn last_primary<'a>(view: &View<'a>, shard: u32, heir: &NodeRecord) -> Option<&'a NodeRecord> {
    if view.is_cluster() {
        let old = cluster_repair::former_primary(view, heir);
        return old.or_else(|| view.all_of(shard).find(|record| record.id != heir.id));
    }
    let holder = view
        .all_of(shard)
        .filter_map(|record| view.agent(&record.id)?.lease.as_ref())
        .filter_map(|lease| Some((lease.epoch, lease.holder.as_ref()?)))
        .max()
        .and_then(|(_, holder)| view.record(holder));
    holder
        .filter(|record| record.id != heir.id)
        .or_else(|| view.all_of(shard).find(|record| record.id != heir.id))
}

/// Orders the change until it is seen.
fn go_on(view: &View<'_>, draft: &mut Draft<'_>, wish: &Wish<'_>, from: &NodeId) {
    let shard = wish.shard;
    if draft.disturbs(view.all_of(shard).map(|record| &record.id)) {
        return;
    }
    let to = wish.to.and_then(|to| view.wanted_of(shard).find(|record| record.id == *to));
    if let Some(primary) = view.primary(shard) {
        match to.or_else(|| view.successor(shard)) {
            Some(to) if view.is_linked(to) => {
                coordinated_change(view, draft, primary, to, "a failover was asked for");
            }
            Some(to) if wish.accept_data_loss && view.agent(&to.id).is_some() => {
                draft.step(by_a_persons_word(view, to), "a person accepts the loss of data");
            }
            Some(to) => draft.wait(Wait::ReplicaSyncing { node: to.id.clone() }),
            None => {
                draft.wait(Wait::Effect { what: format!("a replica of shard {shard} is in sync") })
            }
        }
        return;
    }
    // Nobody leads just now. In the middle of a hand-over the old primary is alive: wait.
    let old_is_gone = view.record(from).is_none_or(|record| !view.serves(&record.id));
    let heir = to.or_else(|| survivor(view, shard)).filter(|r| view.agent(&r.id).is_some());
    match heir {
        Some(heir) if wish.accept_data_loss && old_is_gone && heir.id != *from => {
            draft.step(by_a_persons_word(view, heir), "a person accepts the loss of data");
        }
        _ => draft.wait(Wait::Election { shard }),
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
    let begun = wish.from.is_some();
    let leads = match view.primary(wish.shard) {
        Some(primary) => format!("node {} is the primary", primary.id),
        None => "no primary".to_owned(),
    };
    let synced = changed && is_settled(view, wish.shard);
    vec![
        Phase::new("check-replica", begun, "a replica may take over"),
        Phase::new("change-primary", changed, leads),
        Phase::new("sync-replicas", synced, "the others copy from the new primary"),
    ]
}
