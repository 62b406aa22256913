//! Who may take a vacant lease, and in which order.

use std::cmp::Ordering;

use larder_model::agent::{ServerState, VolumeState};
use larder_model::lease::LeaseRecord;
use larder_model::{NodeId, Timestamp, ZoneName};

use crate::world::{Context, PeerReport, former_holder, lineage, peer_report};

/// One node with what decides its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claimant {
    pub(crate) node: NodeId,
    data_epoch: u64,
    offset: u64,
    other_zone: bool,
}

/// Whether the node of this report completed a sync in the last primary's epoch and still has it
/// all (rules: only synced, own restart disqualifies, lost volume never leads).
pub(crate) fn is_candidate(c: &Context<'_>, report: &PeerReport, record: &LeaseRecord) -> bool {
    let Some(view) = &report.replication else { return false };
    if report.state != ServerState::Serving || view.syncing {
        return false;
    }
    if c.rules.lost_volume_never_leads && report.volume != VolumeState::Data {
        return false;
    }
    if !c.rules.only_synced {
        return true;
    }
    let Some(mark) = &report.synced else { return false };
    if mark.epoch != lineage(record) {
        return false;
    }
    !c.rules.own_restart_disqualifies
        || (Some(&mark.run_id) == report.run_id.as_ref() && mark.replid == view.replid)
}

fn claimant(c: &Context<'_>, report: &PeerReport, record: &LeaseRecord) -> Claimant {
    let zone_of = |node: &NodeId| -> Option<&ZoneName> {
        if c.is_me(node) {
            c.local.me.zone.as_ref()
        } else {
            c.peer(node).and_then(|p| p.member.zone.as_ref())
        }
    };
    let other_zone =
        former_holder(record).is_some_and(|former| zone_of(former) != zone_of(&report.node));
    Claimant {
        node: report.node.clone(),
        data_epoch: report.data_epoch,
        offset: report.replication.as_ref().map_or(0, |view| view.offset),
        other_zone,
    }
}

/// Best first: highest offset, then the former holder's zone, then the id.
fn by_offset(c: &Context<'_>, a: &Claimant, b: &Claimant) -> Ordering {
    let offset = if c.rules.highest_offset { b.offset.cmp(&a.offset) } else { Ordering::Equal };
    offset.then(a.other_zone.cmp(&b.other_zone)).then(a.node.cmp(&b.node))
}

/// This node's own report, as its peers would get it.
pub(crate) fn own_report(c: &Context<'_>) -> PeerReport {
    peer_report(c.local, c.lease)
}

/// Every known candidate, best first, this node included when it is one. Peers count when they
/// answered a question sent since `since`.
pub(crate) fn candidates(c: &Context<'_>, record: &LeaseRecord, since: Timestamp) -> Vec<Claimant> {
    let own = own_report(c);
    let mut list: Vec<Claimant> = c
        .peers
        .iter()
        .filter_map(|peer| c.fresh(peer, since))
        .chain([&own])
        .filter(|report| is_candidate(c, report, record))
        .map(|report| claimant(c, report, record))
        .collect();
    list.sort_by(|a, b| by_offset(c, a, b));
    list
}

/// Whether the node could lead with what is on its disk (rule: never from nothing).
pub(crate) fn has_data(c: &Context<'_>, report: &PeerReport) -> bool {
    !c.rules.lost_volume_never_leads
        || (report.volume == VolumeState::Data && report.data_epoch > 0)
}

/// Whether this node's offset is behind the other's, so that leading would lose writes.
pub(crate) fn is_behind(a: &Claimant, b: &Claimant) -> bool {
    a.offset < b.offset
}

/// Every node known to have data of its own but the former holder, newest lineage first.
pub(crate) fn by_lineage(c: &Context<'_>, record: &LeaseRecord, since: Timestamp) -> Vec<Claimant> {
    let own = own_report(c);
    let former = former_holder(record);
    let mut list: Vec<Claimant> = c
        .peers
        .iter()
        .filter_map(|peer| c.fresh(peer, since))
        .chain([&own])
        .filter(|report| has_data(c, report) && former != Some(&report.node))
        .map(|report| claimant(c, report, record))
        .collect();
    list.sort_by(|a, b| b.data_epoch.cmp(&a.data_epoch).then_with(|| by_offset(c, a, b)));
    list
}
