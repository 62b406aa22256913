//! Chained replication: a replica may copy from another replica in the primary's place.
//!
//! A replica of a replica says `master_link_status:up` for as long as the server above it answers,
//! whether or not that one hears of the primary (replication.c: a replica keeps its own replicas when
//! its link is lost). So a link below another replica is judged by the primary's offset, which the
//! agents tell each other.

use larder_model::agent::{Role, ServerState};
use larder_model::{Address, Millis, NodeId, Observation, Timestamp};

use crate::follow::is_synced;
use crate::world::{Context, LeaseKnown, LeaseView, Local, Peer, PeerReport};

/// What a node knows of its place in the chain of its shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Whom it is to copy from; `None`: the primary, whoever that is.
    pub upstream: Option<NodeId>,
    /// The upstream that it has left because nothing came from there any more
    /// ([`crate::Action::LeaveUpstream`]). Forgotten when it is told another one.
    pub left: Option<NodeId>,
    /// From [`stall`].
    pub stall: Option<Stall>,
}

/// Nothing comes from the upstream, though the primary has more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stall {
    /// Monotonic.
    pub since: Timestamp,
    /// The own server's offset then.
    pub offset: u64,
    /// Since when there is no link either; monotonic.
    pub unlinked_since: Option<Timestamp>,
}

/// Answers of peers are good for so many times `renew_every`: they are asked once in it.
const FRESH: u64 = 2;
/// A replica that copied through others and does not answer keeps its reads for so long: its agent may be
/// on its way back, and its server serves.
const SILENT: Millis = Millis::secs(10);

/// The stall of a link to another replica as this sample of the own server shows it, `before` being
/// what the sample before showed. The driver asks after every sample.
pub fn stall(
    before: Option<Stall>,
    local: &Local,
    peers: &[Peer],
    lease: &LeaseView,
    now: Timestamp,
) -> Option<Stall> {
    let view = local.server.replication.as_ref().filter(|view| view.role == Role::Replica)?;
    let LeaseView::Known(LeaseKnown { record, .. }) = lease else { return before };
    let holder = record.holder.as_ref()?;
    let at_replica = |peer: &&Peer| {
        Some(&peer.member.address) == view.primary.as_ref() && peer.member.node != holder.node
    };
    peers.iter().find(at_replica)?;
    let begins = Stall { since: now, offset: view.offset, unlinked_since: None };
    if view.syncing {
        return None;
    }
    if !view.link_up {
        let stall = before.unwrap_or(begins);
        return Some(Stall { unlinked_since: stall.unlinked_since.or(Some(now)), ..stall });
    }
    let before = before.map(|stall| Stall { unlinked_since: None, ..stall });
    let primary = peers.iter().find(|peer| peer.member.node == holder.node)?;
    let has_more = match &primary.answer {
        Observation::Known { value, .. } => value
            .replication
            .as_ref()
            .is_some_and(|theirs| theirs.role == Role::Primary && theirs.offset > view.offset),
        _ => false,
    };
    let moved = before.is_none_or(|stall| stall.offset != view.offset);
    match (has_more, moved) {
        (true, true) => Some(begins),
        (true, false) => before,
        (false, _) => None,
    }
}

/// Whom to copy from, and what has to be done about it first.
pub(crate) struct Source<'p> {
    pub(crate) peer: &'p Peer,
    /// The upstream that is given up.
    pub(crate) leaves: Option<&'p NodeId>,
    /// The peers' answers are too old to choose by.
    pub(crate) asks: bool,
    /// Nobody is to be copied from before they have answered.
    pub(crate) waits: bool,
}

/// The holder, or in a chain the node's own upstream when that is sound.
pub(crate) fn source<'p>(c: &'p Context<'_>, known: &LeaseKnown, holder: &'p Peer) -> Source<'p> {
    let from = |peer| Source { peer, leaves: None, asks: false, waits: false };
    let Some(chain) = &c.local.chain else { return from(holder) };
    let upstream = chain.upstream.as_ref().filter(|node| {
        **node != holder.member.node && !c.is_me(node) && chain.left.as_ref() != Some(node)
    });
    let Some(upstream) = upstream.and_then(|node| c.peer(node)) else { return from(holder) };
    // A complete copy counts for nothing until who is above has vouched for it.
    let every = match is_synced(c, known.record.epoch) {
        true => c.policy.renew_every,
        false => Millis(c.policy.renew_every.0 / 4),
    };
    let asks = upstream.asked_at.is_none_or(|at| c.now >= at + every);
    let server = &c.local.server;
    let copies_from = server.replication.as_ref().and_then(|view| view.primary.as_ref());
    if copies_from == Some(&upstream.member.address) && !server.is_down() {
        if has_stalled(c, upstream, holder) {
            return Source { leaves: Some(&upstream.member.node), asks, ..from(holder) };
        }
        return Source { asks, ..from(upstream) };
    }
    if is_sound(c, known, upstream, holder) {
        return Source { asks, ..from(upstream) };
    }
    // Just started: who is above may be sound and has not been asked yet.
    let unheard = matches!(upstream.answer, Observation::UnknownYet)
        && upstream.asked_at.is_none_or(|at| c.now < at + c.policy.gather);
    Source { asks, waits: unheard, ..from(holder) }
}

/// Rule "judged by the primary's offset": a link that brings nothing is left, but only for a primary
/// that lives: while there is none, nothing comes from anywhere. An upstream that answers gets longer:
/// more likely than not it waits itself for somebody further up, and will go around that one. Before 7.0
/// a server that does so drops those below (replication.c, `replicationSetMaster`), who are let in
/// again at once: a lost link counts from its own beginning.
fn has_stalled(c: &Context<'_>, upstream: &Peer, holder: &Peer) -> bool {
    let Some(stall) = c.local.chain.as_ref().and_then(|chain| chain.stall) else { return false };
    let answers = recent(c, upstream)
        .is_some_and(|report| report.state == ServerState::Serving && report.replication.is_some());
    let past =
        |since: Timestamp, beats: u64| c.now >= since + Millis(c.policy.renew_every.0 * beats);
    let is_over = past(stall.since, 6)
        || match answers {
            true => stall.unlinked_since.is_some_and(|since| past(since, 2)),
            false => past(stall.since, 2),
        };
    c.rules.leave_stalled_upstream
        && is_over
        && recent(c, holder).is_some_and(|report| {
            report.state == ServerState::Serving
                && report.replication.as_ref().is_some_and(|view| view.role == Role::Primary)
        })
}

fn recent<'p>(c: &Context<'_>, peer: &'p Peer) -> Option<&'p PeerReport> {
    c.fresh(peer, c.now - Millis(c.policy.renew_every.0 * FRESH))
}

/// The peer copies from the holder, by itself or through others, and not through this node.
fn is_sound(c: &Context<'_>, known: &LeaseKnown, peer: &Peer, holder: &Peer) -> bool {
    let own = c.local.server.replication.as_ref();
    let fed = own.is_some_and(|view| view.link_up);
    recent(c, peer).is_some_and(|report| {
        // From behind this server would copy everything anew, and have less for a while.
        let has_less = !fed
            && matches!((own, &report.replication), (Some(own), Some(theirs))
                if own.replid == theirs.replid && own.offset > theirs.offset);
        is_in_step(report, known.record.epoch)
            && !has_less
            && leads_to(c, report, &holder.member.address)
    })
}

/// By its own word it has a link, and has completed a sync in this epoch.
pub(crate) fn is_in_step(report: &PeerReport, epoch: u64) -> bool {
    let linked = report
        .replication
        .as_ref()
        .is_some_and(|view| view.role == Role::Replica && view.link_up && !view.syncing);
    let synced = report
        .synced
        .as_ref()
        .is_some_and(|mark| mark.epoch == epoch && Some(&mark.run_id) == report.run_id.as_ref());
    report.state == ServerState::Serving && linked && synced
}

/// The links from this replica upwards end at `top`.
fn leads_to(c: &Context<'_>, report: &PeerReport, top: &Address) -> bool {
    let above = |report: &PeerReport| report.replication.as_ref()?.primary.clone();
    let mut at = above(report);
    for _ in 0..=c.peers.len() {
        let Some(address) = at else { return false };
        if address == *top {
            return true;
        }
        let next = c.peers.iter().find(|peer| peer.member.address == address);
        at = next.and_then(|peer| recent(c, peer)).and_then(above);
    }
    false
}

/// The replica copies from this primary through others, and has said so since `since`.
pub(crate) fn copies_through_others(
    c: &Context<'_>,
    known: &LeaseKnown,
    node: &NodeId,
    since: Timestamp,
) -> bool {
    let mine = &c.local.me.address;
    c.peer(node).and_then(|peer| c.fresh(peer, since)).is_some_and(|report| {
        let direct =
            || report.replication.as_ref().is_some_and(|v| v.primary.as_ref() == Some(mine));
        is_in_step(report, known.record.epoch) && !direct() && leads_to(c, report, mine)
    })
}

/// Reads may lead to a replica that this primary does not feed itself.
pub(crate) fn takes_reads(c: &Context<'_>, peer: &Peer, epoch: u64) -> bool {
    if c.local.chain.is_none() {
        return false;
    }
    match &peer.answer {
        Observation::Known { value, .. } => is_in_step(value, epoch),
        Observation::Unknown { since } => {
            c.now < *since + SILENT
                && c.local.route.as_ref().is_some_and(|route| {
                    route.epoch == epoch && route.read.iter().any(|t| t.node == peer.member.node)
                })
        }
        _ => false,
    }
}

/// The link below another replica carries what the holder of this epoch has written: who is above has
/// synced in it, with the replication id that this node has.
pub(crate) fn is_fed_through(
    peers: &[Peer],
    epoch: u64,
    upstream: Option<&Address>,
    replid: &str,
) -> bool {
    let peer = peers.iter().find(|peer| Some(&peer.member.address) == upstream);
    match peer.map(|peer| &peer.answer) {
        Some(Observation::Known { value, .. }) => {
            is_in_step(value, epoch)
                && value.synced.as_ref().is_some_and(|mark| mark.replid == replid)
                && value.replication.as_ref().is_some_and(|theirs| theirs.replid == replid)
        }
        _ => false,
    }
}
