//! Restart on request: one node of the instance at a time, replicas before their primary, and a
//! primary only after a replica has taken over from it. A server that hangs comes before all
//! others: it keeps them from being well, and cannot hand over.

use std::collections::BTreeMap;

use larder_model::plan::{OperationReport, Step, Wait};
use larder_model::{Code, NodeId, NodeRecord, OperationKind, Refusal};

use crate::draft::Draft;
use crate::heal::coordinated_change;
use crate::op_steps::{self, Phase};
use crate::view::View;

/// `run_ids` are the servers to be replaced; empty until the work begins.
pub(crate) fn advance(
    view: &View<'_>,
    draft: &mut Draft<'_>,
    node: Option<&NodeId>,
    run_ids: &BTreeMap<NodeId, String>,
) -> OperationReport {
    if let Some(node) = node
        && !view.wanted.iter().any(|record| record.id == *node)
    {
        let refusal = Refusal::new(
            Code::NodeNotFound,
            format!("node {node} does not exist in this instance; see `larder instance nodes`"),
        );
        return op_steps::failed(phases(view, run_ids, false), refusal.field("node"));
    }
    if run_ids.is_empty() {
        begin(view, draft, node);
        return op_steps::report(phases(view, run_ids, false), false, draft);
    }
    let done = view
        .wanted
        .iter()
        .all(|record| run_ids.get(&record.id).is_none_or(|old| is_replaced(view, record, old)));
    if !done {
        go_on(view, draft, run_ids);
    }
    op_steps::report(phases(view, run_ids, true), done, draft)
}

/// Remembers the servers that are to be replaced, once all of them are known.
fn begin(view: &View<'_>, draft: &mut Draft<'_>, node: Option<&NodeId>) {
    let mut run_ids = BTreeMap::new();
    for record in view.wanted.iter().filter(|r| node.is_none_or(|node| r.id == *node)) {
        match view.agent(&record.id).map(|status| &status.server.run_id) {
            Some(Some(run_id)) => {
                run_ids.insert(record.id.clone(), run_id.clone());
            }
            Some(None) => {
                draft.wait(Wait::ServerDown { node: record.id.clone() });
                return;
            }
            None => {
                draft.wait(Wait::AgentSilent {
                    node: record.id.clone(),
                    unknown_for: view.silent_for(&record.id),
                });
                return;
            }
        }
    }
    if !run_ids.is_empty() {
        draft.step(
            Step::UpdateOperation { kind: OperationKind::Restart { node: node.cloned(), run_ids } },
            "these servers are to be replaced",
        );
    }
}

/// Another server than the noted one serves, in its part.
fn is_replaced(view: &View<'_>, record: &NodeRecord, old: &str) -> bool {
    has_new_server(view, record, old) && view.is_well(record)
}

fn has_new_server(view: &View<'_>, record: &NodeRecord, old: &str) -> bool {
    view.agent(&record.id)
        .and_then(|status| status.server.run_id.as_deref())
        .is_some_and(|run_id| run_id != old)
}

/// The servers that are still the old ones, replicas first. One is restarted, and only while
/// everybody else of its shard is well.
fn go_on(view: &View<'_>, draft: &mut Draft<'_>, run_ids: &BTreeMap<NodeId, String>) {
    // A new server that is not in its part yet is the one being restarted. With a primary that hangs
    // it never would be.
    for record in &view.wanted {
        let Some(old) = run_ids.get(&record.id) else { continue };
        if has_new_server(view, record, old)
            && !view.is_well(record)
            && !is_held_up(view, record.shard, run_ids)
        {
            draft.wait(Wait::Effect { what: format!("node {} is back in its part", record.id) });
            return;
        }
    }
    let mut pending: Vec<(&NodeRecord, &String)> = view
        .wanted
        .iter()
        .filter_map(|record| Some((*record, run_ids.get(&record.id)?)))
        .filter(|(record, old)| !has_new_server(view, record, old))
        .collect();
    pending.sort_by_key(|(record, _)| {
        let answers = !view.is_stuck(&record.id);
        (answers, view.is_primary(record), record.shard, record.id.clone())
    });
    let Some(&(record, run_id)) = pending.first() else { return };
    if view.agent(&record.id).is_none() {
        draft.wait(Wait::AgentSilent {
            node: record.id.clone(),
            unknown_for: view.silent_for(&record.id),
        });
        return;
    }
    if view.is_down(&record.id) {
        // Its agent starts it again, with a new run id.
        draft.wait(Wait::ServerDown { node: record.id.clone() });
        return;
    }
    let stuck = view.is_stuck(&record.id);
    if let Some(ailing) = ailing(view, record, stuck) {
        draft.wait(Wait::Effect {
            what: format!("node {} is well, before node {} is restarted", ailing.id, record.id),
        });
        return;
    }
    if draft.disturbs(view.all_of(record.shard).map(|other| &other.id)) {
        return;
    }
    if view.is_primary(record)
        && let Some(successor) = view.successor(record.shard)
    {
        let reason = format!("node {} is to be restarted as a replica", record.id);
        coordinated_change(view, draft, record, successor, reason);
        return;
    }
    let in_its_part = view.is_well(record);
    if in_its_part || stuck {
        let reason = if stuck {
            "a restart was asked for, and it does not answer"
        } else {
            "a restart was asked for"
        };
        draft.step(Step::RestartServer { node: record.id.clone(), run_id: run_id.clone() }, reason);
    } else {
        draft.wait(Wait::Effect { what: format!("node {} is well", record.id) });
    }
}

/// The shard's primary hangs, and is to be restarted.
fn is_held_up(view: &View<'_>, shard: u32, run_ids: &BTreeMap<NodeId, String>) -> bool {
    view.last_primary(shard).is_some_and(|last| {
        view.is_stuck(&last.id)
            && run_ids.get(&last.id).is_some_and(|old| !has_new_server(view, last, old))
    })
}

/// Another node of the shard whose trouble the restart has to wait for. Not for what comes of the
/// node's own trouble: nobody is in sync with a primary that hangs.
fn ailing<'a>(view: &View<'a>, record: &NodeRecord, stuck: bool) -> Option<&'a NodeRecord> {
    let leads = || view.last_primary(record.shard).is_some_and(|last| last.id == record.id);
    if stuck && leads() {
        return None;
    }
    view.wanted_of(record.shard).find(|other| {
        other.id != record.id && !view.is_well(other) && !(stuck && view.is_stuck(&other.id))
    })
}

fn phases(view: &View<'_>, run_ids: &BTreeMap<NodeId, String>, begun: bool) -> Vec<Phase> {
    let all = u32::try_from(run_ids.len()).unwrap_or(u32::MAX);
    let replaced = view
        .wanted
        .iter()
        .filter(|record| run_ids.get(&record.id).is_some_and(|old| is_replaced(view, record, old)))
        .count();
    let replaced = u32::try_from(replaced).unwrap_or(u32::MAX);
    let mut servers =
        Phase::counted("restart-servers", replaced, all, "servers are new and in sync");
    if !begun {
        servers = Phase::new("restart-servers", false, "not begun");
    }
    vec![Phase::new("note-servers", begun, "the servers to be replaced are noted"), servers]
}
