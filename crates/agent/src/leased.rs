//! The driver of a leased node: keeps what [`larder_election::decide`] needs to know, asks it, and
//! does what it says. It decides nothing itself.

use std::time::Duration;

use larder_election::{
    Action, HandOverProgress, KillReason, LeaseKnown, LeaseView, Local, LocalServer, OrderKind,
    OrderOutcome, Peer, PeerPromise, PendingOrder, Promise, Situation, StartAs, WhyNoPrimary,
    WhyParked,
};
use larder_model::agent::{
    LeaseSummary, Order, Problem, ProblemCode, ReplicationView, Role, VolumeState,
};
use larder_model::lease::{LeaseRecord, Route};
use larder_model::local::Promised;
use larder_model::{Code, Millis, NodeId, Observation, Refusal, Severity, Timestamp};

use crate::act::{done, moves, nobody, note_take_over, park, pause, promote, replicate, sync_data};
use crate::chain::{self, ChainPlace};
use crate::client::ClientError;
use crate::command::{DemoteRequest, PromiseAnswer, PromiseRequest};
use crate::core::{Core, SAMPLE, problem};
use crate::lease::{Endpoint, Lease, LeaseError};
use crate::memory::PromiseGiven;
use crate::peers::{Heard, PeerAnswer};
use crate::{clock, files, proc};

/// Nodes that are started together come up within this time of each other.
const ROUTE_IS_NEW: Millis = Millis(10_000);
/// So long a replica that is missing in a new route is looked for ten times a second.
const ROUTE_IS_RECENT: Millis = Millis::secs(60);
/// A report to a peer may spend this on its sample: the peer waits 300 ms.
const REPORT_SAMPLE: Duration = Duration::from_millis(200);

/// A lease that was not reached for so long is said to be out of reach.
const OUT_OF_REACH: Millis = Millis::secs(1);

/// What one round brought.
pub(crate) struct Round {
    /// Something was changed: decide again at once.
    pub(crate) again: bool,
    /// Decide again no later than this (monotonic).
    pub(crate) wake_at: Option<Timestamp>,
}

/// The election's view of the world, kept between decisions.
pub(crate) struct Leased {
    lease: Box<dyn Lease>,
    endpoint: Box<dyn Endpoint>,
    view: LeaseView,
    peers: Vec<Peer>,
    renewed_at: Option<Timestamp>,
    order: Option<PendingOrder>,
    hand_over: Option<HandOverProgress>,
    route: Option<Route>,
    route_known: bool,
    /// When this agent published it last.
    routed_at: Option<Timestamp>,
    situation: Situation,
    boot_id: String,
    /// What the keeper was told last: epoch and end of the promises.
    promised: Option<(u64, Timestamp)>,
    /// A change was announced and not looked at yet: kept over a cancelled wait.
    change_pending: bool,
    /// That the lease is out of reach was said.
    out_of_reach: bool,
    /// That the route is not published was said.
    unpublished: bool,
    /// When the last look at the lease was sent (monotonic): a read, or a write of our own that
    /// was answered.
    looked_at: Option<Timestamp>,
    chain: ChainPlace,
}

impl Leased {
    pub(crate) fn new(lease: Box<dyn Lease>, endpoint: Box<dyn Endpoint>) -> Self {
        let since = clock::monotonic();
        Self {
            lease,
            endpoint,
            view: LeaseView::Unreachable { since, last: None },
            peers: Vec::new(),
            renewed_at: None,
            order: None,
            hand_over: None,
            route: None,
            route_known: false,
            routed_at: None,
            situation: Situation::Down,
            boot_id: proc::boot_id().unwrap_or_default(),
            promised: None,
            change_pending: false,
            out_of_reach: false,
            unpublished: false,
            looked_at: None,
            chain: ChainPlace::default(),
        }
    }

    /// Waits for a change of the lease by somebody else. Cancel-safe.
    pub(crate) async fn changed(&mut self) {
        loop {
            if !self.change_pending {
                self.lease.changed().await;
                self.change_pending = true;
            }
            let known = self.view.last().map(|known| known.version);
            let sent = clock::monotonic();
            let read = self.lease.read().await;
            self.change_pending = false;
            match read {
                // Our own write comes back as a change, too.
                Ok(Some((version, _)))
                    if Some(version) == known && matches!(self.view, LeaseView::Known(_)) => {}
                read => return self.took(read, sent),
            }
        }
    }

    /// Looks at everything, decides and acts.
    pub(crate) async fn round(&mut self, core: &mut Core) -> Round {
        self.renew_old_promise(core);
        self.match_members(core);
        self.lease.keep_reserve();
        self.endpoint.keep_reserve();
        core.beat();
        core.server.sample(SAMPLE).await;
        core.peer_has_data = self.peers.iter().any(|peer| {
            matches!(&peer.answer, Observation::Known { value, .. }
                if value.volume == VolumeState::Data && value.data_epoch > 0)
        });
        core.check_volume();
        if !self.knows_lease(core) {
            self.read_lease().await;
        }
        core.beat();
        if !self.route_known
            && let Ok(route) = self.endpoint.read().await
        {
            self.route = route;
            self.route_known = true;
        }
        self.recover_lineage(core);
        self.note_sync(core);
        self.ask_successor(core);
        let (now, wall) = (clock::monotonic(), clock::wall());
        let local = self.local(core);
        self.chain.note(core, &local, &self.peers, &self.view, now);
        let local = Local { chain: self.chain.of(core), ..local };
        let policy = core.config.election;
        let decision = larder_election::decide(&local, &self.peers, &self.view, &policy, now, wall);
        self.note_situation(core, decision.situation);
        self.tell_keeper(core, &local);
        let mut again = false;
        for action in decision.actions {
            let moves = moves(&action);
            tracing::debug!(?action, "action");
            core.beat();
            if !self.execute(core, action).await {
                // What failed has put something in doubt: look again soon, not in a hot loop.
                return Round { again: false, wake_at: Some(clock::monotonic() + Millis(100)) };
            }
            again |= moves;
        }
        let mut wake_at = decision.wake_at;
        if let Some(at) = self.looked_at.filter(|_| self.view_looks_old(core)) {
            let look_at = at + Millis(policy.renew_every.0 / 4);
            wake_at = Some(wake_at.map_or(look_at, |wake| wake.min(look_at)));
        }
        if local.server.may_start != core.may_start() || !local.server.may_start {
            let at = core.start_at();
            if at > now {
                wake_at = Some(wake_at.map_or(at, |wake| wake.min(at)));
            }
        }
        Round { again, wake_at }
    }

    /// While this node goes on by its peers' promises alone, the keeper has to know of them, or it
    /// would kill the server with the lapsed lease.
    fn tell_keeper(&mut self, core: &Core, local: &Local) {
        if !matches!(self.situation, Situation::FailStatic { .. }) {
            return;
        }
        let (policy, now) = (core.config.election, clock::monotonic());
        let promised =
            larder_election::promised_until(local, &self.peers, &self.view, &policy, now);
        if promised.is_none() || promised == self.promised {
            return;
        }
        if let Some((epoch, until_ms)) = promised {
            let told = Promised { epoch, until_ms, boot_id: self.boot_id.clone() };
            let written = serde_json::to_vec(&told)
                .map_err(std::io::Error::from)
                .and_then(|bytes| files::write_or_overwrite(&core.dir.promised(), &bytes));
            match written {
                Ok(()) => self.promised = promised,
                Err(error) => tracing::warn!(%error, "keeper not told of the promises"),
            }
        }
    }

    /// A promise from before a reboot counts as given when it is first read.
    fn renew_old_promise(&self, core: &mut Core) {
        let stale = core.memory.get().promise.as_ref().is_some_and(|p| p.boot_id != self.boot_id);
        if stale {
            let until_ms = clock::monotonic() + core.config.election.promise;
            let boot_id = self.boot_id.clone();
            core.memory.change(|memory| {
                if let Some(promise) = &mut memory.promise {
                    promise.until_ms = until_ms;
                    promise.boot_id = boot_id;
                }
            });
            core.memory.save();
        }
    }

    fn match_members(&mut self, core: &Core) {
        let members: Vec<_> = core.shard_peers().cloned().collect();
        self.peers.retain(|peer| members.iter().any(|m| m.node == peer.member.node));
        for member in members {
            match self.peers.iter_mut().find(|peer| peer.member.node == member.node) {
                Some(peer) => peer.member = member,
                None => self.peers.push(Peer {
                    member,
                    asked_at: None,
                    answer: Observation::UnknownYet,
                    promise: None,
                }),
            }
        }
    }

    /// Whether this decision may rest on the lease as it was seen last. Rounds may follow each
    /// other ten times a second for as long as a copy, a load or a dead worker takes, and each look
    /// may be a question to an API server. To decide on an older view is safe: any view may be old
    /// when it is acted on, and every write is a compare-and-set. News are told by
    /// [`Lease::changed`], all but renewals.
    fn knows_lease(&self, core: &Core) -> bool {
        let Some(at) = self.looked_at.filter(|_| !self.change_pending) else { return false };
        let policy = core.config.election;
        let (now, every) = (clock::monotonic(), policy.renew_every);
        let age = now.since(at);
        let is_recent = || age < Millis(every.0 / 4) || (age < every && !self.view_looks_old(core));
        match &self.view {
            LeaseView::Unreachable { .. } => age < Millis(every.0 / 4),
            LeaseView::Absent => is_recent(),
            LeaseView::Known(known) => {
                let holder = known.record.holder.as_ref();
                if holder.is_some_and(|holder| holder.node == core.config.node) {
                    // A holder's renewals are looks at the lease.
                    return age < Millis(every.0.saturating_mul(2));
                }
                // No holder is called silent without a look that is younger than its lease.
                let runs_out = known.seen_at + policy.lease_ttl;
                is_recent() && (now < runs_out || at >= runs_out)
            }
        }
    }

    fn view_looks_old(&self, core: &Core) -> bool {
        larder_election::view_looks_old(&self.local(core), &self.peers, &self.view)
    }

    async fn read_lease(&mut self) {
        let sent = clock::monotonic();
        let read = self.lease.read().await;
        self.change_pending = false;
        self.took(read, sent);
    }

    /// The answer to a read that was sent at `sent`.
    fn took(&mut self, read: Result<Option<(u64, LeaseRecord)>, LeaseError>, sent: Timestamp) {
        self.looked_at = Some(sent);
        match read {
            Ok(None) => {
                self.out_of_reach = false;
                self.view = LeaseView::Absent;
            }
            Ok(Some((version, record))) => self.saw(version, record, sent),
            Err(error) => self.lost_lease(&error),
        }
    }

    /// A version of the lease is in our hands: new ones get their times. `sent`: when it was asked
    /// for, or written.
    fn saw(&mut self, version: u64, record: LeaseRecord, sent: Timestamp) {
        self.out_of_reach = false;
        self.looked_at = Some(sent);
        let now = clock::monotonic();
        let last = self.view.last();
        let seen_at = last.filter(|k| k.version == version).map_or(now, |k| k.seen_at);
        let epoch_seen_at =
            last.filter(|k| k.record.epoch == record.epoch).map_or(now, |k| k.epoch_seen_at);
        self.view = LeaseView::Known(LeaseKnown { record, version, seen_at, epoch_seen_at });
    }

    fn lost_lease(&mut self, error: &LeaseError) {
        let now = clock::monotonic();
        let (since, last) = match &self.view {
            LeaseView::Unreachable { since, last } => (*since, last.clone()),
            LeaseView::Known(known) => (now, Some(known.clone())),
            LeaseView::Absent => (now, None),
        };
        // A disk that is slow once is no fault; a fault is told before the lease runs out.
        if !matches!(self.view, LeaseView::Unreachable { .. }) {
            tracing::info!(%error, "lease not reached, tried again");
        } else if !self.out_of_reach && now.since(since) >= OUT_OF_REACH {
            self.out_of_reach = true;
            tracing::warn!(%error, "lease out of reach");
        }
        self.view = LeaseView::Unreachable { since, last };
    }

    /// The lease still knows when this node led, also when its own notes are gone.
    fn recover_lineage(&self, core: &mut Core) {
        let LeaseView::Known(known) = &self.view else { return };
        let (record, me) = (&known.record, &core.config.node);
        let held = record.holder.as_ref().filter(|holder| holder.node == *me);
        let before = record.previous.as_ref().filter(|previous| previous.node == *me);
        let led_in = match (held, before) {
            (Some(_), _) => record.epoch,
            (None, Some(previous)) if record.holder.is_none() => previous.epoch,
            _ => return,
        };
        core.recover_lineage(led_in);
    }

    /// Keeps the mark of a completed sync, and with it the lineage of the data.
    fn note_sync(&self, core: &mut Core) {
        let local = self.local(core);
        let mark = larder_election::sync_mark(&local, &self.peers, &self.view);
        if mark != core.memory.get().synced {
            core.memory.change(|memory| memory.synced.clone_from(&mark));
            core.memory.save();
        }
        // What the server has copied is first in its memory alone. The lineage speaks of the disk:
        // killed before that, the server would come back with nothing and this node would lead.
        let run_id = core.server.run_id();
        let Some(mark) = mark.filter(|mark| Some(&mark.run_id) == run_id.as_ref()) else { return };
        if !core.server.is_copy_on_disk() {
            return;
        }
        if core.memory.get().data_epoch < mark.epoch {
            core.memory.change(|memory| memory.data_epoch = mark.epoch);
            core.memory.save();
        }
        // A rebuilt volume is one whose present server has completed a sync.
        core.volume_rebuilt();
    }

    /// In a hand-over writes wait for the successor's offset, which a primary hears only once a
    /// second (`REPLCONF ACK`): it is asked for in every round instead.
    fn ask_successor(&mut self, core: &Core) {
        let Some(progress) = &self.hand_over else { return };
        if let Some(peer) = self.peers.iter_mut().find(|p| p.member.node == progress.to) {
            peer.asked_at = Some(clock::monotonic());
            core.peers.ask_reports(std::slice::from_ref(&peer.member), &core.commands);
        }
    }

    /// Replication as this server sees it, with the offset that the successor of a hand-over has
    /// itself told since, when it is newer and of the same history.
    fn replication(&self, core: &Core) -> Option<ReplicationView> {
        let mut own = core.server.replication().cloned()?;
        let told = self.hand_over.as_ref().and_then(|progress| {
            let peer = self.peers.iter().find(|p| p.member.node == progress.to)?;
            let Observation::Known { value, at } = &peer.answer else { return None };
            let view = value.replication.as_ref()?;
            let same = view.role == Role::Replica && view.link_up && view.replid == own.replid;
            (same && *at >= progress.since).then_some((&peer.member.address, view.offset))
        });
        if let Some((address, offset)) = told
            && let Some(replica) = own.replicas.iter_mut().find(|r| r.address == *address)
        {
            replica.offset = replica.offset.max(offset);
        }
        Some(own)
    }

    fn local(&self, core: &Core) -> Local {
        let memory = core.memory.get();
        Local {
            me: core.me(),
            server: LocalServer {
                state: core.server.state(),
                run_id: core.server.run_id(),
                replication: self.replication(core),
                writes_paused: core.server.writes_paused(),
                down_since: core.server.down_since,
                may_start: core.may_start(),
            },
            volume: core.volume_state(),
            data_epoch: memory.data_epoch,
            data_aside: core.volume.has_aside(),
            synced: memory.synced.clone(),
            bootstrap: core.config.bootstrap,
            initialized: core.config.initialized,
            promise: memory.promise.as_ref().map(|p| Promise { epoch: p.epoch, until: p.until_ms }),
            renewed_at: self.renewed_at,
            order: self.order.clone(),
            hand_over: self.hand_over.clone(),
            route: self.route.clone(),
            chain: self.chain.of(core),
        }
    }

    /// Does one thing. Answers whether it was done.
    async fn execute(&mut self, core: &mut Core, action: Action) -> bool {
        match action {
            Action::AcquireLease { record, after_version } => {
                self.acquire(core, record, after_version).await
            }
            Action::RenewLease { after_version } => self.renew(after_version).await,
            Action::ReleaseLease { record, after_version } => {
                self.release(core, record, after_version).await
            }
            Action::StartServer { start_as: StartAs::ReplicaOf(member) } => {
                core.start_server(Some(&member.address)).await
            }
            Action::StartServer { start_as: StartAs::Parked } => {
                core.start_server(Some(&nobody())).await
            }
            Action::KillServer { reason: KillReason::Hung } => {
                let message = "the server does not answer and is killed".to_owned();
                core.memory.event(Severity::Warning, "server-hung", message);
                core.kill_server().await
            }
            Action::SyncData => sync_data(core).await,
            Action::Promote { epoch } => promote(core, epoch, self.may_promote_until(core)).await,
            Action::Follow(member) => {
                let done = replicate(core, &member.address).await;
                if done {
                    chain::said(core, &member.node, &member.address);
                }
                done
            }
            Action::Join(member) => self.chain.join(core, &member).await,
            Action::LeaveUpstream(node) => {
                self.chain.leave(core, node);
                true
            }
            Action::Park => park(core).await,
            Action::PauseWrites { for_ } => pause(core, for_).await,
            Action::ResumeWrites => {
                core.server.paused(Millis(0));
                done(core.server.hands().await, async |hands| hands.client_unpause().await).await
            }
            Action::CloseClients => {
                let user = crate::render::SYSTEM_USER;
                done(core.server.hands().await, async |hands| {
                    hands.client_kill_normal_and_pubsub(user).await.map(drop)
                })
                .await
            }
            Action::FenceOldPrimary { old, epoch } => self.fence_old(core, &old.node, epoch).await,
            Action::AskPeers => {
                let members: Vec<_> = self.peers.iter().map(|p| p.member.clone()).collect();
                let now = clock::monotonic();
                self.peers.iter_mut().for_each(|peer| peer.asked_at = Some(now));
                core.peers.ask_reports(&members, &core.commands);
                true
            }
            Action::AskPromises { epoch, for_ } => {
                let members: Vec<_> = self.peers.iter().map(|p| p.member.clone()).collect();
                core.peers.ask_promises(&members, epoch, for_, &core.commands);
                true
            }
            Action::PublishRoute(route) => self.publish_route(route).await,
            Action::KeepDataAside => {
                // Without room for the links the data go on without a second name.
                if let Err(error) = core.volume.keep_aside() {
                    let message = format!("older data could not be kept aside: {error}");
                    core.memory.event(Severity::Warning, "data-not-kept", message);
                }
                true
            }
            Action::DropDataAside => {
                if let Err(error) = core.volume.drop_aside() {
                    tracing::warn!(%error, "data kept aside not removed");
                }
                true
            }
            Action::BeginHandOver { to } => {
                self.hand_over = Some(HandOverProgress { to, since: clock::monotonic() });
                true
            }
            Action::EndHandOver => {
                self.hand_over = None;
                true
            }
            Action::FinishOrder(outcome) => {
                self.finish_order(core, &outcome);
                true
            }
        }
    }

    /// Until when (monotonic) a promotion may still reach the server; `None`: nobody else could
    /// lead. This agent may have been stopped since it decided.
    fn may_promote_until(&self, core: &Core) -> Option<Timestamp> {
        if self.peers.is_empty() {
            return None;
        }
        let policy = core.config.election;
        let never = Timestamp(0);
        Some(self.renewed_at.map_or(never, |at| at + policy.lease_ttl - policy.fence_margin))
    }

    /// Stops a former primary that did not let go. Looks at the lease once more first: an agent
    /// that was stopped since it decided must not kill who has been elected meanwhile.
    async fn fence_old(&mut self, core: &Core, old: &NodeId, epoch: u64) -> bool {
        self.read_lease().await;
        let holds = matches!(&self.view, LeaseView::Known(known) if known.record.epoch == epoch
            && known.record.holder.as_ref().is_some_and(|h| h.node == core.config.node));
        if !holds {
            return false;
        }
        let request = DemoteRequest { epoch, holder: core.config.node.clone() };
        match core.peers.demote(old, &request).await {
            Ok(()) => true,
            Err(ClientError::Refused(refusal)) if refusal.code == Code::InstanceNotReady => {
                tracing::warn!(%old, %refusal, "the old primary knows of a newer epoch");
                false
            }
            Err(error) => {
                tracing::info!(%old, %error, "old primary's agent did not demote");
                core.fence_server(old).await;
                true
            }
        }
    }

    async fn acquire(
        &mut self,
        core: &mut Core,
        record: LeaseRecord,
        after_version: Option<u64>,
    ) -> bool {
        let sent = clock::monotonic();
        match self.lease.write(after_version, &record).await {
            Ok(version) => {
                self.renewed_at = Some(sent);
                note_take_over(core, &record);
                self.saw(version, record, sent);
                true
            }
            Err(error) => self.write_failed(&error).await,
        }
    }

    async fn renew(&mut self, after_version: u64) -> bool {
        let sent = clock::monotonic();
        match self.lease.renew(after_version).await {
            Ok(version) => {
                self.renewed_at = Some(sent);
                if let Some(record) = self.view.last().map(|known| known.record.clone()) {
                    self.saw(version, record, sent);
                }
                true
            }
            Err(error) => self.write_failed(&error).await,
        }
    }

    async fn release(&mut self, core: &mut Core, record: LeaseRecord, after_version: u64) -> bool {
        let sent = clock::monotonic();
        match self.lease.write(Some(after_version), &record).await {
            Ok(version) => {
                self.renewed_at = None;
                let previous = record.previous.as_ref();
                let to = previous
                    .and_then(|p| p.successor.as_ref())
                    .map_or_else(String::new, |node| format!(" to node {node}"));
                let why = previous.map_or_else(String::new, |p| format!(", because {}", p.reason));
                let message = format!("gave the primary's part away{to}{why}");
                core.memory.event(Severity::Info, "lease-released", message);
                self.saw(version, record, sent);
                true
            }
            Err(error) => self.write_failed(&error).await,
        }
    }

    /// After a conflict the lease is read again; after silence it is out of reach.
    async fn write_failed(&mut self, error: &LeaseError) -> bool {
        match error {
            LeaseError::Conflict => self.read_lease().await,
            LeaseError::Unreachable { .. } => self.lost_lease(error),
        }
        false
    }

    async fn publish_route(&mut self, route: Route) -> bool {
        match self.endpoint.publish(&route).await {
            Ok(None) => {
                self.route = Some(route);
                self.routed_at = Some(clock::monotonic());
            }
            Ok(Some(newer)) => self.route = Some(newer),
            Err(error) => {
                // Tried ten times a second: the first one is news.
                if !std::mem::replace(&mut self.unpublished, true) {
                    tracing::warn!(%error, "route not published, tried again");
                } else {
                    tracing::debug!(%error, "route not published");
                }
                return false;
            }
        };
        self.unpublished = false;
        true
    }

    fn finish_order(&mut self, core: &mut Core, outcome: &OrderOutcome) {
        let Some(order) = self.order.take() else { return };
        let name = match order.kind {
            OrderKind::HandOver { .. } => "hand-over",
            OrderKind::TakeLease { .. } => "take-lease",
        };
        let (severity, reason) = match outcome {
            OrderOutcome::Done => (Severity::Info, format!("{name}-done")),
            _ => (Severity::Warning, format!("{name}-refused")),
        };
        core.memory.event(severity, &reason, format!("{name}: {outcome}"));
    }

    fn note_situation(&mut self, core: &mut Core, situation: Situation) {
        if situation == self.situation {
            return;
        }
        tracing::debug!(?situation, "situation");
        match &situation {
            Situation::NoPrimary(WhyNoPrimary::OnHold) => {
                let policy = core.config.election;
                let message = format!(
                    "{} automatic failovers within {}: no further one until that time has passed \
                     or a person chooses a node",
                    policy.max_failovers, policy.failover_window
                );
                core.memory.event(Severity::Critical, "failover-on-hold", message);
            }
            Situation::FailStatic { .. }
                if !matches!(self.situation, Situation::FailStatic { .. }) =>
            {
                let message = "the lease cannot be renewed; writes go on, because nobody else may \
                               take it";
                core.memory.event(Severity::Critical, "lease-unreachable", message.to_owned());
            }
            _ => {}
        }
        self.situation = situation;
    }

    /// What the status says of the lease.
    pub(crate) fn summary(&self, core: &Core) -> Option<LeaseSummary> {
        let known = self.view.last()?;
        let policy = core.config.election;
        let wall = clock::wall();
        let recent =
            known.record.failovers.iter().filter(|at| policy.counts_failover(**at, wall)).count();
        Some(LeaseSummary {
            epoch: known.record.epoch,
            holder: known.record.holder.as_ref().map(|holder| holder.node.clone()),
            failover_on_hold: recent >= policy.max_failovers as usize,
        })
    }

    /// What is wrong from the election's point of view.
    pub(crate) fn concern(&self) -> Option<Problem> {
        match &self.situation {
            Situation::NoPrimary(WhyNoPrimary::OnHold) => Some(problem(
                ProblemCode::FailoverOnHold,
                "too many automatic failovers; waiting".to_owned(),
            )),
            Situation::FailStatic { .. } => Some(problem(
                ProblemCode::LeaseUnreachable,
                "the lease cannot be renewed; writes go on, because nobody else may take it"
                    .to_owned(),
            )),
            Situation::Parked(why) => {
                let code = match why {
                    WhyParked::CannotRenew => ProblemCode::LeaseUnreachable,
                    WhyParked::Promised | WhyParked::OldLeaseRuns => ProblemCode::NoPrimary,
                };
                Some(problem(code, format!("the server takes no writes: {why}")))
            }
            Situation::NoPrimary(why @ WhyNoPrimary::LeaseUnreachable) => {
                Some(problem(ProblemCode::LeaseUnreachable, format!("no node takes writes: {why}")))
            }
            Situation::NoPrimary(why) => {
                Some(problem(ProblemCode::NoPrimary, format!("no node takes writes: {why}")))
            }
            _ => None,
        }
    }

    /// Roles change just now: the node is looked at more often.
    pub(crate) fn in_motion(&self) -> bool {
        match self.situation {
            Situation::Leading => self.awaits_replica(),
            Situation::Following { synced, .. } => !synced,
            Situation::FailStatic { .. } => false,
            _ => true,
        }
    }

    /// No reads lead to some peer yet, and it lives, or may have come up since the route was made: its
    /// copy may be complete at any moment. A copy that takes long may take a second longer.
    fn awaits_replica(&self) -> bool {
        let Some(route) = &self.route else { return true };
        let now = clock::monotonic();
        let is_younger_than = |age| self.routed_at.is_some_and(|at| now.since(at) < age);
        let (is_new, is_recent) = (is_younger_than(ROUTE_IS_NEW), is_younger_than(ROUTE_IS_RECENT));
        self.peers.iter().any(|peer| {
            (is_new || (is_recent && matches!(peer.answer, Observation::Known { .. })))
                && !route.read.iter().any(|target| target.node == peer.member.node)
        })
    }

    /// The lease is this node's, and its server the primary.
    pub(crate) fn leads(&self) -> bool {
        matches!(
            self.situation,
            Situation::Leading | Situation::HandingOver { .. } | Situation::FailStatic { .. }
        )
    }

    /// Orders that are the election's business.
    pub(crate) fn order(&mut self, core: &Core, order: &Order) -> Result<(), Refusal> {
        let kind = match order {
            Order::HandOver { to } => {
                self.may_hand_over(to.as_ref())?;
                OrderKind::HandOver { to: to.clone() }
            }
            Order::TakeLease { accept_data_loss } => {
                // Said at once, so that who asked need not wait for what can never be.
                let has_data =
                    core.volume_state() == VolumeState::Data && core.memory.get().data_epoch > 0;
                if !has_data {
                    let text = OrderOutcome::NoData.to_string();
                    return Err(Refusal::new(Code::NoEligibleReplica, text));
                }
                OrderKind::TakeLease { accept_data_loss: *accept_data_loss }
            }
            // A lost volume is filled by a sync as soon as there is a holder to copy from.
            Order::StartEmpty => return Ok(()),
            other => {
                return Err(Refusal::new(
                    Code::InvalidRequest,
                    format!("{} is for nodes of cluster instances", other.name()),
                ));
            }
        };
        // The same order again is the same order: its time does not start anew.
        if self.order.as_ref().is_none_or(|order| order.kind != kind) {
            self.order = Some(PendingOrder { kind, since: clock::monotonic() });
        }
        Ok(())
    }

    fn may_hand_over(&self, to: Option<&NodeId>) -> Result<(), Refusal> {
        if !matches!(self.situation, Situation::Leading | Situation::HandingOver { .. }) {
            let text = OrderOutcome::NotHolder.to_string();
            return Err(Refusal::new(Code::InstanceNotReady, text));
        }
        match to {
            Some(node) if !self.peers.iter().any(|peer| peer.member.node == *node) => {
                Err(Refusal::new(Code::NodeNotFound, format!("the shard has no node {node}")))
            }
            None if self.peers.is_empty() => Err(Refusal::new(
                Code::NoEligibleReplica,
                "the instance has no replica to hand over to",
            )),
            _ => Ok(()),
        }
    }

    /// What this node tells a peer, with a sample taken now.
    pub(crate) async fn report(&self, core: &mut Core) -> PeerAnswer {
        core.server.sample(REPORT_SAMPLE).await;
        self.note_sync(core);
        let report = larder_election::peer_report(&self.local(core), &self.view);
        PeerAnswer { report, cluster: None, up_for: None, behind: false }
    }

    /// Gives a holder the promise that it asks for, when the election lets it. Durable before it
    /// is answered.
    pub(crate) fn promise(
        &self,
        core: &mut Core,
        request: PromiseRequest,
    ) -> Option<PromiseAnswer> {
        let local = self.local(core);
        if !larder_election::may_promise(&local, &self.view, request.epoch) {
            return None;
        }
        let longest = Millis(core.config.election.promise.0.saturating_mul(2));
        let for_ = Millis(request.for_ms).min(longest);
        let until_ms = clock::monotonic() + for_;
        let boot_id = self.boot_id.clone();
        core.memory.change(|memory| {
            memory.promise = Some(PromiseGiven { epoch: request.epoch, until_ms, boot_id });
        });
        core.memory.save().then_some(PromiseAnswer { until_ms })
    }

    /// A newer holder asks that this node's server takes no more writes.
    pub(crate) async fn demote(
        &mut self,
        core: &mut Core,
        request: &DemoteRequest,
    ) -> Result<(), Refusal> {
        self.read_lease().await;
        let newer = self.view.last().is_some_and(|known| {
            known.record.epoch > request.epoch
                || known.record.holder.as_ref().is_some_and(|h| h.node == core.config.node)
                    && known.record.epoch >= request.epoch
        });
        if newer {
            return Err(Refusal::new(
                Code::InstanceNotReady,
                format!("epoch {} is not the newest here", request.epoch),
            ));
        }
        if core.server.supervisor.running().is_none() {
            return Ok(());
        }
        core.server.sample(REPORT_SAMPLE).await;
        let is_replica = core.server.replication().is_some_and(|view| view.role == Role::Replica);
        if is_replica {
            return Ok(());
        }
        // Replica of nobody at first: following the new holder is the next decision's, which keeps
        // aside what this server may have taken and nobody has copied.
        let message = format!("node {} leads since epoch {}", request.holder, request.epoch);
        core.memory.event(Severity::Warning, "demoted", message);
        if replicate(core, &nobody()).await || core.kill_server().await {
            return Ok(());
        }
        Err(Refusal::new(Code::Internal, "the server takes no orders and cannot be killed"))
    }

    /// A peer has answered, or has not.
    pub(crate) fn heard(&mut self, heard: Vec<Heard>) {
        for heard in heard {
            match heard {
                Heard::Report { node, sent, report } => {
                    let Some(peer) = self.peers.iter_mut().find(|p| p.member.node == node) else {
                        continue;
                    };
                    // An older question must not hide the answer to a newer one.
                    if matches!(&peer.answer, Observation::Known { at, .. } if *at > sent) {
                        continue;
                    }
                    peer.answer = match report {
                        Some(report) => Observation::Known { value: *report, at: sent },
                        None => Observation::Unknown { since: sent },
                    };
                }
                Heard::Promise { node, sent, epoch, for_, given } => {
                    if let Some(peer) = self.peers.iter_mut().find(|p| p.member.node == node)
                        && given
                    {
                        peer.promise = Some(PeerPromise { epoch, until: sent + for_ });
                    }
                }
            }
        }
    }
}
