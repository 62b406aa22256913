//! The driver of a cluster node: its server decides for itself over the cluster bus, and this
//! makes a primary's death cost a fraction of a second instead of two node timeouts.
//!
//! When the server of a primary dies its agent picks the best replica, has it ask for the votes
//! (`FORCE`), and after a second lets it take over without them (`TAKEOVER`): only this agent
//! knows that the process is dead. The server is started again once another owner of the slots is
//! seen, or when there is nobody to take over.

use std::time::Duration;

use larder_election::PeerReport;
use larder_model::agent::{
    ClusterFailoverMode, ClusterPeer, ClusterView, Member, Order, Problem, ProblemCode,
    ReplicationView, Role, ServerState, VolumeState,
};
use larder_model::{
    Address, Code, Millis, NodeId, Refusal, Severity, SlotRange, SlotSet, Timestamp,
};
use larder_node::NodeError;

use crate::command::FailOverRequest;
use crate::core::{Core, SAMPLE, problem};
use crate::follow::{follow, successor};
use crate::leased::Round;
use crate::peers::PeerAnswer;
use crate::render::NO_FAILOVER;
use crate::rest::{Changes, ELECTION_RESTS, LONG_AGO};
use crate::run::Leaving;
use crate::slot_move::Mover;
use crate::slot_orders;
use crate::{clock, fence};

/// A vote that is not through by then will not come soon: voters refuse a shard that has changed
/// hands less than two node timeouts before.
const FORCE_TIME: Millis = Millis(1_000);
/// A coordinated failover takes at most this long (`CLUSTER_MF_TIMEOUT` in cluster.h). Ordered
/// again meanwhile it would begin anew, and the primary's clients would be paused once more.
const COORDINATED: Millis = Millis(5_000);
/// For so many times as long as a primary waits for its replicas ([`own_file_after`]) a replica
/// that has restarted waits for its primary.
///
/// [`own_file_after`]: larder_election::ElectionPolicy::own_file_after
const BEHIND_PATIENCE: u64 = 3;
/// A replica that is silent for this long in the middle of its failover is given up for another.
const SILENT_REPLICA: Millis = Millis(1_500);
/// How often the replicas are looked at during a failover.
const LOOK: Millis = Millis(60);
const REPORT_SAMPLE: Duration = Duration::from_millis(200);

/// How far the shard's failover has come, from this dead primary's point of view.
#[derive(Clone, Debug)]
struct Failover {
    since: Timestamp,
    /// This agent saw the server die, so an owner that nobody here has chosen was there before.
    witnessed: bool,
    /// The replica that was told to take over, and when.
    chosen: Option<Chosen>,
    asking: bool,
    /// Earliest next question.
    ask_at: Timestamp,
}

#[derive(Clone, Debug)]
struct Chosen {
    node: NodeId,
    told: Timestamp,
    heard: Timestamp,
    takeover_at: Timestamp,
}

/// The driver's own memory.
#[derive(Debug, Default)]
pub(crate) struct Clustered {
    failover: Option<Failover>,
    /// The dead server may be started again.
    released: bool,
    /// Run id of the server that this agent told whether it may fail over, and what it was told.
    hold_applied: Option<(String, bool)>,
    /// A failover was ordered here: the server is watched closely, so that its new part is known
    /// (and what its own death would mean) as soon as it has it.
    attentive_until: Option<Timestamp>,
    /// When this node was last ordered to take over in agreement with its primary.
    coordinated_at: Option<Timestamp>,
    changes: Changes,
    /// The server has become a replica, and may still keep its clients' writes paused.
    pause_due: bool,
    /// Replication id of the server while it was a primary: who has it has synced with it.
    led_as: Option<String>,
    /// Run id of the server that was ordered to take over with what it has, whatever that is.
    appointed: Option<String>,
}

/// Whose part a server has taken.
#[derive(Debug, PartialEq, Eq)]
struct Former {
    id: String,
    agreed: bool,
}

/// For how long a server is watched closely after an order to take over.
const ATTENTION: Millis = Millis(3_000);
/// And so long when a peer asks: a change in agreement is through in much less.
const ASKED_ATTENTION: Millis = Millis(2_000);

impl Clustered {
    /// Looks at the server and acts.
    pub(crate) async fn round(&mut self, core: &mut Core) -> Round {
        core.server.sample(SAMPLE).await;
        core.beat();
        let state = core.server.state();
        match state {
            ServerState::Hung => {
                let message = "the server does not answer and is killed".to_owned();
                core.memory.event(Severity::Warning, "server-hung", message);
                let again = core.kill_server().await;
                Round { again, wake_at: None }
            }
            ServerState::Dead | ServerState::Absent => {
                // A fresh server remembers no election of its own.
                self.changes.won = None;
                self.changes.since = Some(LONG_AGO);
                self.down(core).await
            }
            _ => {
                self.up(core).await;
                Round { again: false, wake_at: None }
            }
        }
    }

    /// The server is a primary with slots.
    pub(crate) fn leads(core: &Core) -> bool {
        (core.server.cluster().and_then(|view| view.me()))
            .is_some_and(|me| me.role == Role::Primary && !me.slots.is_empty())
    }

    /// Has the replica with the most data take over, with this primary's consent.
    pub(crate) async fn begin_leaving(core: &Core) -> Leaving {
        let (Some(view), Some(replication)) = (core.server.cluster(), core.server.replication())
        else {
            return Leaving::Nobody;
        };
        let is_well = |peer: &Member| {
            (view.nodes.iter()).any(|n| peer.is_at(&n.address) && n.linked && !n.failed)
        };
        let best = (core.shard_peers())
            .filter(|peer| is_well(peer))
            .filter_map(|peer| {
                let seen = replication.replicas.iter().find(|r| r.address == peer.address)?;
                seen.online.then_some((seen.offset, &peer.node))
            })
            .max();
        if !Self::leads(core) {
            return Leaving::Nobody;
        }
        // A new primary knows nothing of slots that are half-way.
        if let Some(mover) = core.mover.as_ref().filter(|mover| !mover.is_done()) {
            mover.stop();
            return Leaving::NotYet;
        }
        let Some((_, node)) = best else {
            return if core.server.awaits_replica() { Leaving::NotYet } else { Leaving::Nobody };
        };
        if tell(core, node, ClusterFailoverMode::Coordinated).await {
            Leaving::UnderWay
        } else {
            Leaving::NotYet
        }
    }

    /// The server lives: remember what it is, and keep it from failing over while on hold.
    async fn up(&mut self, core: &mut Core) {
        self.failover = None;
        self.released = false;
        let Some(view) = core.server.cluster() else { return };
        let owns = view.me().is_some_and(owns_slots);
        let is_replica = view.me().is_some_and(|me| me.role == Role::Replica);
        let id = view.my_id.clone();
        if let Some(former) = self.replaces(view, clock::monotonic()) {
            slot_orders::take_up_half_way(core, view, &former.id);
            // Without its agreement it may be frozen.
            if !former.agreed
                && let Some(former) = view.nodes.iter().find(|node| node.id == former.id)
            {
                fence_silent(core, &former.address);
            }
        }
        let replid = core.server.replication().map(|view| view.replid.clone());
        self.led_as = replid.filter(|_| owns);
        let outdated = view.me().is_some_and(|me| {
            let is_peer = |n: &&ClusterPeer| core.shard_peers().any(|m| m.is_at(&n.address));
            let robbed = |n: &&ClusterPeer| n.id != me.id && n.slots.is_empty();
            owns && view.nodes.iter().filter(robbed).filter(is_peer).any(|n| would_take_back(n, me))
        });
        let memory = core.memory.get();
        self.pause_due |= memory.owned_slots && is_replica;
        if memory.owned_slots != owns || memory.cluster_id.as_ref() != Some(&id) {
            let role = if owns { "a primary with slots" } else { "without slots of its own" };
            core.memory.event(Severity::Info, "cluster-role", format!("the server is {role} now"));
            core.memory.change(|memory| {
                memory.owned_slots = owns;
                memory.cluster_id = Some(id);
            });
            core.memory.save();
        }
        self.note_copy(core, owns, is_replica);
        note_in_sync(core, owns, is_replica);
        if outdated {
            self.renew_epoch(core).await;
        }
        if let Some(primary) = successor(core) {
            core.beat();
            match follow(core, &primary).await {
                Ok(()) => tracing::info!(%primary, "follows who has taken its slots"),
                Err(error) => tracing::info!(%primary, %error, "does not follow yet"),
            }
        }
        core.beat();
        if self.pause_due {
            self.end_pause(core, is_replica).await;
        }
        core.beat();
        self.apply_hold(core).await;
    }

    /// This server leads by an epoch that is older than that of the one before it.
    async fn renew_epoch(&self, core: &mut Core) {
        let Ok(hands) = core.server.hands().await else { return };
        match hands.cluster_bump_epoch().await {
            Ok(()) => tracing::info!("led by an older epoch than the former primary's: renewed"),
            Err(error) => tracing::warn!(%error, "config epoch not renewed"),
        }
    }

    /// A primary that hands over pauses its clients' writes, and redis-server 6.2 leaves them paused
    /// for up to 10 s after it has become a replica: the stream of its primary, too, waits so long,
    /// and is lost if it has to take over meanwhile (`resetManualFailover`, cluster.c).
    async fn end_pause(&mut self, core: &mut Core, is_replica: bool) {
        if !is_replica {
            self.pause_due = false;
            return;
        }
        let Ok(hands) = core.server.hands().await else { return };
        match hands.client_unpause().await {
            Ok(()) => self.pause_due = false,
            Err(error) => tracing::warn!(%error, "the pause of a former primary not ended"),
        }
    }

    /// Takes note of who has the shard's slots by `view`. Answers whom this server has replaced just
    /// now.
    fn replaces(&mut self, view: &ClusterView, now: Timestamp) -> Option<Former> {
        let me = view.me()?;
        let primary = if owns_slots(me) { &view.my_id } else { me.primary.as_ref()? };
        let id = self.changes.seen(primary, &view.my_id, now)?;
        // What was ordered has come to its end: the next order is another one.
        let agreed = in_agreement(self.coordinated_at.take(), now);
        Some(Former { id, agreed })
    }

    /// A server that began without the shard's data has them once it has copied them. To be a
    /// primary proves nothing: an empty replica that has won an election is one as well.
    fn note_copy(&self, core: &mut Core, owns: bool, is_replica: bool) {
        let Some(run_id) = core.server.run_id() else { return };
        let synced = is_replica && core.server.replication().is_some_and(is_in_sync);
        // A new node gets slots by order alone: what it has is then the shard's data.
        let by_order = core.memory.get().blank || self.appointed.as_ref() == Some(&run_id);
        if (synced || (owns && by_order)) && core.memory.lacks_copy(Some(&run_id)) {
            core.memory.change(|memory| memory.copied = Some(run_id.clone()));
            core.memory.save();
        }
        if !core.server.is_copy_on_disk() {
            return;
        }
        let proven = synced || (owns && !core.memory.lacks_copy(Some(&run_id)));
        if proven {
            core.volume_rebuilt();
            if core.memory.get().blank {
                core.memory.change(|memory| memory.blank = false);
                core.memory.save();
            }
        }
        if synced
            && core.volume.has_aside()
            && let Err(error) = core.volume.drop_aside()
        {
            tracing::warn!(%error, "data kept aside not removed");
        }
    }

    async fn apply_hold(&mut self, core: &mut Core) {
        let Some(run_id) = core.server.run_id() else { return };
        let memory = &core.memory;
        let hold = on_hold(core) || memory.lacks_copy(Some(&run_id)) || memory.get().behind;
        // What a server was told by a former agent, or at its start, is not known here: each is
        // told once.
        let wanted = Some((run_id, hold));
        if self.hold_applied == wanted {
            return;
        }
        let value = if hold { "yes" } else { "no" };
        let Ok(hands) = core.server.hands().await else { return };
        match hands.config_set(NO_FAILOVER, value).await {
            Ok(()) => self.hold_applied = wanted,
            Err(error) => tracing::warn!(%error, "failover hold not set"),
        }
    }

    async fn down(&mut self, core: &mut Core) -> Round {
        let memory = core.memory.get();
        let leads = memory.owned_slots && core.shard_peers().next().is_some();
        if leads && !self.released {
            return self.hand_on(core).await;
        }
        if memory.stopped {
            return Round { again: false, wake_at: None };
        }
        // Without its volume it would come back as an empty node with its old name: it waits for
        // an order. A replica that has kept its name copies its primary's data.
        if core.check_volume() == VolumeState::Lost && !core.copies_by_cluster_file() {
            return Round { again: false, wake_at: None };
        }
        if !core.may_start() {
            return Round { again: false, wake_at: Some(core.start_at()) };
        }
        let again = core.start_server(None).await;
        Round { again, wake_at: Some(core.start_at()) }
    }

    /// The server of a primary is dead: see to it that a replica takes its slots.
    async fn hand_on(&mut self, core: &mut Core) -> Round {
        let now = clock::monotonic();
        // Judged when the server died: the failover under way is one that was still allowed.
        if self.failover.is_none() && on_hold(core) {
            self.hold_shard(core).await;
            self.released = true;
            return Round { again: true, wake_at: None };
        }
        let failover = self.failover.get_or_insert_with(|| Failover {
            since: core.server.down_since.unwrap_or(now),
            witnessed: core.server.last_exit.is_some(),
            chosen: None,
            asking: false,
            ask_at: now,
        });
        if now.since(failover.since) >= core.config.election.own_file_after {
            let message = "no replica took over in time; the server starts with its own data";
            core.memory.event(Severity::Warning, "failover-timed-out", message.to_owned());
            self.release();
            return Round { again: true, wake_at: None };
        }
        let due = failover.chosen.as_ref().is_some_and(|chosen| now >= chosen.takeover_at);
        if due && let Some(chosen) = &mut failover.chosen {
            chosen.takeover_at = now + FORCE_TIME;
            let node = chosen.node.clone();
            tell(core, &node, ClusterFailoverMode::Takeover).await;
        }
        if !failover.asking && now >= failover.ask_at {
            failover.asking = true;
            failover.ask_at = now + LOOK;
            let members: Vec<_> = core.shard_peers().cloned().collect();
            core.peers.ask_shard(&members, &core.commands);
        }
        Round { again: false, wake_at: Some(now + LOOK) }
    }

    fn release(&mut self) {
        self.released = true;
        self.failover = None;
    }

    /// Too many failovers: the replicas stay what they are, this server comes back.
    async fn hold_shard(&mut self, core: &mut Core) {
        let message = format!(
            "the shard has failed over too often: no further failover by itself within {} s of the \
             first one, the server starts again at once; `larder instance failover` works meanwhile",
            core.config.election.failover_window.0 / 1000
        );
        core.memory.event(Severity::Critical, "failover-on-hold", message);
        let request = FailOverRequest {
            mode: ClusterFailoverMode::Force,
            failovers: core.memory.get().failovers.clone(),
            hold: true,
            done: false,
        };
        let told = core.shard_peers().map(|member| core.peers.fail_over(&member.node, &request));
        futures::future::join_all(told).await;
    }

    /// The shard's other nodes have answered, or have not.
    pub(crate) async fn heard(
        &mut self,
        core: &mut Core,
        answers: Vec<(NodeId, Option<PeerAnswer>)>,
    ) {
        let Some(failover) = &mut self.failover else { return };
        failover.asking = false;
        let now = clock::monotonic();
        let Some(own_id) = core.memory.get().cluster_id.clone() else {
            // It never got as far as having a name in the cluster.
            return self.release();
        };
        let owner = answers.iter().find(|(_, answer)| {
            answer.as_ref().is_some_and(|answer| owns_slots_of(answer, &own_id))
        });
        if let Some((node, _)) = owner {
            let node = node.clone();
            let took = now.since(failover.since);
            // Handed over by order, right before the death: no failover, and none that counts.
            if failover.witnessed && failover.chosen.is_none() {
                let message = format!("node {node} had the slots already");
                core.memory.event(Severity::Info, "slots-elsewhere", message);
                return self.release();
            }
            let message = format!("node {node} has taken the slots over, {took} after the death");
            core.memory.event(Severity::Warning, "failover", message);
            note_failover(core, &node);
            return self.release();
        }
        let down_for = now.since(failover.since);
        if let Some(chosen) = &mut failover.chosen {
            let answer = answers.iter().find(|(node, _)| *node == chosen.node);
            match answer.and_then(|(_, answer)| answer.as_ref()) {
                // Its server died as well: it cannot take over any more.
                Some(answer) if !has_run_for(answer, down_for) => {}
                Some(_) => {
                    chosen.heard = now;
                    return;
                }
                None if now.since(chosen.heard) < SILENT_REPLICA => return,
                None => {}
            }
            tracing::warn!(node = %chosen.node, told = %now.since(chosen.told), "replica given up");
            failover.chosen = None;
        }
        let best = answers
            .iter()
            .filter_map(|(node, answer)| Some((node, answer.as_ref()?)))
            .filter(|(_, answer)| is_candidate(answer, &own_id, self.led_as.as_deref(), down_for))
            .max_by_key(|(node, answer)| (offset(answer), std::cmp::Reverse((*node).clone())));
        if let Some((node, _)) = best {
            let node = node.clone();
            failover.chosen = Some(Chosen {
                node: node.clone(),
                told: now,
                heard: now,
                takeover_at: now + FORCE_TIME,
            });
            tell(core, &node, ClusterFailoverMode::Force).await;
        } else if answers.iter().all(|(_, answer)| answer.is_some()) {
            let message = "no replica can take over; the server starts with its own data";
            core.memory.event(Severity::Warning, "no-candidate", message.to_owned());
            self.release();
        }
    }

    /// Another agent, whose primary is dead, wants this replica to take over, or to hold.
    pub(crate) async fn fail_over(
        &mut self,
        core: &mut Core,
        request: FailOverRequest,
    ) -> Result<(), Refusal> {
        core.memory.change(|memory| {
            memory.failovers.extend(request.failovers);
            memory.failovers.sort();
            memory.failovers.dedup();
        });
        prune(core);
        core.memory.save();
        if request.hold || request.done {
            self.apply_hold(core).await;
            return Ok(());
        }
        self.take_over(core, request.mode).await
    }

    /// Has the server take its primary's part, by whosever word. One in agreement is not begun when
    /// it could not get its votes: it would pause the primary's clients in vain.
    async fn take_over(
        &mut self,
        core: &mut Core,
        mode: ClusterFailoverMode,
    ) -> Result<(), Refusal> {
        let (now, node_timeout) = (clock::monotonic(), core.config.cluster_node_timeout);
        if mode == ClusterFailoverMode::Coordinated {
            if in_agreement(self.coordinated_at, now) {
                // Under way, and ordered again until its effect is seen, as every order is.
                return Ok(());
            }
            if self.changes.too_soon(node_timeout, now) {
                return Err(no_votes_yet(node_timeout));
            }
            self.coordinated_at = Some(now);
            watch_primary(core);
        } else {
            self.coordinated_at = None;
        }
        self.attentive_until = Some(now + ATTENTION);
        let mode = self.changes.way_for(mode, node_timeout, now);
        let begun = fail_over(core, mode).await;
        if matches!(begun, Err(NotBegun::Certainly(_))) {
            self.coordinated_at = None;
        }
        begun.map_err(|(NotBegun::Certainly(error) | NotBegun::Perhaps(error))| not_ready(&error))
    }

    /// Orders that are a cluster node's business.
    pub(crate) async fn order(&mut self, core: &mut Core, order: &Order) -> Result<(), Refusal> {
        match order {
            Order::StartEmpty => start_empty(core),
            Order::ClusterMeet { peers } => {
                for peer in peers {
                    let hands = core.server.hands().await.map_err(|e| not_ready(&e))?;
                    hands.cluster_meet(peer).await.map_err(|e| not_ready(&e))?;
                }
                Ok(())
            }
            Order::ClusterAddSlots { ranges, config_epoch } => {
                add_slots(core, ranges, *config_epoch).await
            }
            Order::ClusterReplicate { primary } => follow(core, primary).await,
            Order::ClusterForget { ids } => {
                for id in ids {
                    let hands = core.server.hands().await.map_err(|e| not_ready(&e))?;
                    hands.cluster_forget(id).await.map_err(|e| not_ready(&e))?;
                }
                Ok(())
            }
            Order::ClusterFailover { mode } => {
                if *mode != ClusterFailoverMode::Coordinated {
                    self.appointed = core.server.run_id();
                }
                self.take_over(core, *mode).await
            }
            Order::MoveSlots { job } => slot_orders::move_slots(core, job),
            Order::StopMovingSlots => {
                core.mover.iter().for_each(Mover::stop);
                Ok(())
            }
            Order::CloseSlots { slots } => slot_orders::close(core, slots).await,
            other => Err(Refusal::new(
                Code::InvalidRequest,
                format!("{} is for nodes with a lease", other.name()),
            )),
        }
    }

    /// What this node tells a peer, with a sample taken now. Who asks has a reason: the server is
    /// watched closely for a while.
    pub(crate) async fn report(&mut self, core: &mut Core) -> PeerAnswer {
        let until = clock::monotonic() + ASKED_ATTENTION;
        self.attentive_until = Some(self.attentive_until.map_or(until, |known| known.max(until)));
        core.server.sample(REPORT_SAMPLE).await;
        let running = core.server.supervisor.running();
        let up_for = running.map(|running| clock::monotonic().since(running.since));
        let report = PeerReport {
            node: core.config.node.clone(),
            state: core.server.state(),
            run_id: core.server.run_id(),
            replication: core.server.replication().cloned(),
            volume: core.volume_state(),
            data_epoch: 0,
            synced: None,
            lease_epoch: 0,
        };
        let behind = core.memory.get().behind;
        PeerAnswer { report, cluster: core.server.cluster().cloned(), up_for, behind }
    }

    /// What is wrong from the cluster's point of view.
    pub(crate) fn concern(&self, core: &Core) -> Option<Problem> {
        if core.volume_state() == VolumeState::Lost {
            let message =
                "the data of this node are gone; it waits for the word to start empty".to_owned();
            return Some(problem(ProblemCode::VolumeLost, message));
        }
        on_hold(core).then(|| {
            let message =
                "the shard has failed over often: the next failover by itself is on hold \
                           for a while; `larder instance failover` works"
                    .to_owned();
            problem(ProblemCode::FailoverOnHold, message)
        })
    }

    pub(crate) fn in_motion(&self, core: &Core) -> bool {
        self.failover.is_some()
            || self.attentive_until.is_some_and(|until| clock::monotonic() < until)
            || !matches!(core.server.state(), ServerState::Serving)
    }
}

fn is_in_sync(view: &ReplicationView) -> bool {
    view.role == Role::Replica && view.link_up && !view.syncing
}

/// A replica that has come back may lead again: it is in sync, or it was given slots, or there has
/// been no primary to copy from for long.
fn note_in_sync(core: &mut Core, owns: bool, is_replica: bool) {
    if !core.memory.get().behind {
        return;
    }
    let Some(view) = core.server.replication() else { return };
    let in_sync = owns || (is_replica && is_in_sync(view));
    if !in_sync {
        // The bus forgets a dead primary's offset, so to be held for ever would be a shard without
        // a primary for ever, where nobody else can bring one back.
        let patience = Millis(core.config.election.own_file_after.0 * BEHIND_PATIENCE);
        let up_since = core.server.supervisor.running().map(|running| running.since);
        let waited = up_since.is_some_and(|at| clock::monotonic().since(at) >= patience);
        if view.link_up || view.syncing || !waited {
            return;
        }
        let message = format!(
            "no primary to copy from for {patience}: this server may lead the shard again, with the \
             data it has"
        );
        core.memory.event(Severity::Warning, "may-lead-behind", message);
    }
    core.memory.change(|memory| memory.behind = false);
    core.memory.save();
}

/// Draws the attention of the shard's other agents to what begins now: one of them has a server
/// that pauses its clients' writes, and may have to end that itself ([`Clustered::end_pause`]).
fn watch_primary(core: &Core) {
    for member in core.shard_peers() {
        let (peers, node) = (core.peers.clone(), member.node.clone());
        tokio::spawn(async move { peers.report(&node).await });
    }
}

/// The same words each time: they are told to people once.
fn no_votes_yet(node_timeout: Millis) -> Refusal {
    let longest = Millis(node_timeout.0 * ELECTION_RESTS);
    Refusal::new(
        Code::InstanceNotReady,
        format!(
            "the shard has changed hands a moment ago, and no other change can be voted for before \
             {longest} at most have passed since; it is tried again by itself"
        ),
    )
}

/// Whether `failovers` forbid another one now.
fn on_hold(core: &Core) -> bool {
    let policy = core.config.election;
    let wall = clock::wall();
    let failovers = &core.memory.get().failovers;
    let recent = failovers.iter().filter(|at| policy.counts_failover(**at, wall)).count();
    recent >= policy.max_failovers as usize
}

fn prune(core: &mut Core) {
    let policy = core.config.election;
    let wall = clock::wall();
    core.memory.change(|memory| memory.failovers.retain(|at| policy.counts_failover(*at, wall)));
}

/// A failover has happened: it counts, here and where the next one would be decided. One that was
/// only tried, a hand-over by order, and a restart with the own data do not.
fn note_failover(core: &mut Core, new_primary: &NodeId) {
    let wall = clock::wall();
    core.memory.change(|memory| {
        memory.failovers.push(wall);
        // In the same breath: an agent that is killed now must not find it out, and count it, again.
        memory.owned_slots = false;
    });
    prune(core);
    core.memory.save();
    let failovers = core.memory.get().failovers.clone();
    let mode = ClusterFailoverMode::Force;
    let request = FailOverRequest { mode, failovers, hold: false, done: true };
    let (peers, node) = (core.peers.clone(), new_primary.clone());
    // Beside the loop: the dead server's start need not wait for it.
    tokio::spawn(async move {
        if let Err(error) = peers.fail_over(&node, &request).await {
            tracing::warn!(%node, %error, "new primary not told of the failovers so far");
        }
    });
}

/// Answers whether it will.
async fn tell(core: &Core, node: &NodeId, mode: ClusterFailoverMode) -> bool {
    let failovers = core.memory.get().failovers.clone();
    let request = FailOverRequest { mode, failovers, hold: false, done: false };
    let told = core.peers.fail_over(node, &request).await;
    match &told {
        Ok(()) => tracing::info!(%node, ?mode, "told to take over"),
        Err(error) => tracing::warn!(%node, ?mode, %error, "not told to take over"),
    }
    told.is_ok()
}

/// A change now is the one that was ordered, which the former primary has taken part in: it knows
/// of its successor, and if it says nothing it is busy becoming its replica.
fn in_agreement(coordinated_at: Option<Timestamp>, now: Timestamp) -> bool {
    coordinated_at.is_some_and(|at| now.since(at) < COORDINATED)
}

/// The server at `address`, whose slots this node's server has taken over, may be frozen.
fn fence_silent(core: &Core, address: &Address) {
    let Some(member) = core.shard_peers().find(|member| member.is_at(address)) else { return };
    let password = core.server.password().clone();
    // Beside the loop: this node leads already.
    tokio::spawn(fence::kill_when_hung(core.dir.clone(), member.clone(), password));
}

fn owns_slots(peer: &ClusterPeer) -> bool {
    peer.role == Role::Primary && !peer.slots.is_empty()
}

/// The answering node is a primary that owns slots, and in its eyes the dead one has none left.
fn owns_slots_of(answer: &PeerAnswer, dead: &str) -> bool {
    let Some(view) = &answer.cluster else { return false };
    let owns = view.me().is_some_and(owns_slots);
    let dead = view.nodes.iter().find(|n| n.id == dead);
    let robbed = dead.is_none_or(|n| n.slots.is_empty());
    let keeps = view.me().zip(dead).is_none_or(|(me, dead)| !would_take_back(dead, me));
    owns && robbed && keeps
}

/// `former` would take its slots back from `owner` when it returns: its epoch is the newer one.
fn would_take_back(former: &ClusterPeer, owner: &ClusterPeer) -> bool {
    // Of a replica its primary's epoch is shown.
    former.role == Role::Primary && former.config_epoch > owner.config_epoch
}

/// A replica of the dead primary that had synced with it and has not restarted since it died.
/// `replid`: the dead primary's replication id, if it is known.
fn is_candidate(answer: &PeerAnswer, dead: &str, replid: Option<&str>, down_for: Millis) -> bool {
    let Some(replication) = &answer.report.replication else { return false };
    let Some(me) = answer.cluster.as_ref().and_then(|view| view.me()) else { return false };
    answer.report.state == ServerState::Serving
        && !answer.behind
        && me.role == Role::Replica
        && me.primary.as_deref() == Some(dead)
        && !replication.syncing
        // A replica that has restarted and not synced again counts from zero, with an id of its
        // own. So does one of a new shard that nobody has written to, but with its primary's id.
        && (replication.offset > 0 || replid == Some(replication.replid.as_str()))
        && has_run_for(answer, down_for)
}

/// Its server process lives and is older than that.
fn has_run_for(answer: &PeerAnswer, down_for: Millis) -> bool {
    answer.up_for.is_some_and(|up| up >= down_for)
}

fn offset(answer: &PeerAnswer) -> u64 {
    answer.report.replication.as_ref().map_or(0, |view| view.offset)
}

/// A failover was ordered, and the server did not say that it begins one.
enum NotBegun {
    /// It refused, or nobody could tell it.
    Certainly(NodeError),
    /// It was told, and no answer came: it may well be under way.
    Perhaps(NodeError),
}

async fn fail_over(core: &mut Core, mode: ClusterFailoverMode) -> Result<(), NotBegun> {
    core.server.sample(REPORT_SAMPLE).await;
    let is_primary = core.server.cluster().and_then(|view| view.me()).is_some_and(owns_slots);
    if is_primary {
        return Ok(());
    }
    let hands = core.server.hands().await.map_err(NotBegun::Certainly)?;
    hands.cluster_failover(mode).await.map_err(|error| match error {
        NodeError::Timeout { .. } | NodeError::Closed { .. } | NodeError::Io { .. } => {
            NotBegun::Perhaps(error)
        }
        error => NotBegun::Certainly(error),
    })
}

async fn add_slots(core: &mut Core, ranges: &[SlotRange], epoch: u64) -> Result<(), Refusal> {
    core.server.sample(REPORT_SAMPLE).await;
    let wanted: SlotSet = ranges.iter().copied().collect();
    let (owned, config_epoch) = core
        .server
        .cluster()
        .and_then(|view| view.me())
        .map(|me| (me.slots.clone(), me.config_epoch))
        .unwrap_or_default();
    let hands = core.server.hands().await.map_err(|e| not_ready(&e))?;
    if config_epoch == 0 && epoch > 0 {
        // Refused once the node has met others; equal epochs then sort themselves out.
        if let Err(error) = hands.cluster_set_config_epoch(epoch).await {
            tracing::info!(%error, "config epoch not set");
        }
    }
    let missing = wanted.difference(&owned);
    hands.cluster_add_slots(missing.ranges()).await.map_err(|e| not_ready(&e))
}

/// A person's or the planner's word: the node begins a new life with an empty volume.
fn start_empty(core: &mut Core) -> Result<(), Refusal> {
    if core.volume_state() != VolumeState::Lost {
        // Repeated order, or data that are still there: those are never thrown away.
        return Ok(());
    }
    if core.server.supervisor.running().is_some() {
        return Ok(());
    }
    // Remains of the node's own data are for a person to look at until there is a copy again.
    let remains =
        if core.volume.has_marker() { core.volume.move_aside().map(drop) } else { Ok(()) };
    remains.and_then(|()| core.volume.clear()).and_then(|()| core.forget_cluster_file()).map_err(
        |error| {
            let text = format!("clearing the remains of the lost volume: {error}");
            Refusal::new(Code::Internal, text)
        },
    )?;
    core.memory.change(|memory| {
        memory.born = false;
        memory.files_seen = false;
        memory.rebuilding = false;
        memory.blank = true;
        memory.copied = None;
        memory.unusable = None;
        memory.owned_slots = false;
        memory.cluster_id = None;
    });
    core.memory.event(Severity::Warning, "starts-empty", "the node starts empty by order".into());
    core.memory.save();
    core.start_now();
    Ok(())
}

pub(crate) fn not_ready(error: &NodeError) -> Refusal {
    Refusal::new(Code::InstanceNotReady, error.to_string())
}

#[cfg(test)]
#[path = "clustered_tests.rs"]
mod tests;
