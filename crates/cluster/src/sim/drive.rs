//! How a simulated agent samples, decides and acts, and the messages between agents and lease.

use larder_election::{
    Action, Chain, HandOverProgress, Local, LocalServer, OrderKind, Peer, PeerPromise, PeerReport,
    Promise, StartAs, decide_with, may_promise, peer_report, view_looks_old,
};
use larder_model::agent::{Member, ReplicaSeen, ReplicationView, Role, ServerState, VolumeState};
use larder_model::lease::Route;
use larder_model::{Millis, NodeId, NodeMode, Observation, Timestamp};

use super::agent::{LEASE_DEADLINE, PEER_DEADLINE, SAMPLE_EVERY, Waiting};
use super::lease::{LeaseAnswer, LeaseCall, LeaseTrouble};
use super::server::{Phase, nobody};
use super::world::World;

/// What is on its way.
#[derive(Clone, Debug)]
pub(super) enum Message {
    LeaseCall { from: NodeId, life: u64, call: u64, what: LeaseCall, answer_lost: bool },
    LeaseAnswer { to: NodeId, life: u64, call: u64, answer: LeaseAnswer },
    PeerCall { from: NodeId, life: u64, ask: u64, sent: Timestamp, to: NodeId, what: PeerCall },
    PeerAnswer { to: NodeId, life: u64, ask: u64, from: NodeId, sent: Timestamp, what: PeerAnswer },
}

#[derive(Clone, Debug)]
pub(super) enum PeerCall {
    Report,
    Promise { epoch: u64, for_: Millis },
    Demote { epoch: u64 },
}

#[derive(Clone, Debug)]
pub(super) enum PeerAnswer {
    Report(Box<PeerReport>),
    Promised { epoch: u64, until: Timestamp },
    Refused,
    Demoted,
}

enum Done {
    Yes,
    No,
    Waits,
}

impl World {
    /// `INFO replication` of the node's server, when it answers.
    pub(super) fn replication_of(&self, node: &NodeId) -> Option<ReplicationView> {
        let process = self.nodes.get(node)?.process.as_ref()?;
        if matches!(process.phase, Phase::Starting { .. }) || process.stopped_since.is_some() {
            return None;
        }
        let replicas = self
            .nodes
            .values()
            .filter_map(|other| {
                let copy = other.process.as_ref()?;
                let (peer, online) = match &copy.link {
                    super::server::Link::Streaming { peer } => (peer, true),
                    super::server::Link::Syncing { peer, .. } => (peer, false),
                    super::server::Link::Down { .. } => return None,
                };
                (peer.node == *node && peer.run_id == process.run_id).then(|| ReplicaSeen {
                    address: other.config.address.clone(),
                    online,
                    offset: if online { u64::try_from(copy.offset()).unwrap_or(0) } else { 0 },
                })
            })
            .collect();
        Some(process.view(replicas))
    }

    pub(super) fn server_state(&self, node: &NodeId) -> ServerState {
        let Some(found) = self.nodes.get(node) else { return ServerState::Absent };
        match &found.process {
            None if found.disk.born => ServerState::Dead,
            None => ServerState::Absent,
            Some(p) if p.stopped_since.is_some_and(|at| self.t - at >= 100) => ServerState::Hung,
            Some(p) => match p.phase {
                Phase::Starting { .. } => ServerState::Starting,
                Phase::Loading { .. } => ServerState::Loading,
                Phase::Serving => ServerState::Serving,
            },
        }
    }

    pub(super) fn volume_state(&self, node: &NodeId) -> VolumeState {
        match self.nodes.get(node).map(|n| (n.disk.born, n.disk.gone)) {
            Some((true, true)) => VolumeState::Lost,
            Some((true, false)) => VolumeState::Data,
            Some((false, _)) | None => VolumeState::Fresh,
        }
    }

    pub(super) fn run_id_of(&self, node: &NodeId) -> Option<String> {
        let process = self.nodes.get(node)?.process.as_ref()?;
        (!matches!(process.phase, Phase::Starting { .. })).then(|| process.run_id.clone())
    }

    /// What the agent of the node would hand to the election now.
    fn local(&self, node: &NodeId) -> Option<Local> {
        let found = self.nodes.get(node)?;
        let agent = &found.agent;
        let route = self.shards.get(&self.shard_of(node)?)?.route.clone();
        Some(Local {
            me: Member {
                outer: None,
                node: node.clone(),
                shard: found.config.shard,
                zone: found.config.zone.clone(),
                address: found.config.address.clone(),
            },
            server: LocalServer {
                state: self.server_state(node),
                run_id: self.run_id_of(node),
                replication: self.replication_of(node),
                writes_paused: agent.writes_paused,
                down_since: agent.down_since,
                may_start: !agent.held_back && found.start_not_before <= self.t,
            },
            volume: self.volume_state(node),
            data_epoch: agent.memory.data_epoch,
            data_aside: agent.memory.data_aside,
            synced: agent.memory.synced.clone(),
            bootstrap: found.config.bootstrap,
            initialized: found.config.initialized,
            promise: agent.memory.promise,
            renewed_at: agent.renewed_at,
            order: agent.order.clone(),
            hand_over: agent.hand_over.clone(),
            route,
            chain: found.config.chained.then(|| Chain {
                upstream: found.config.upstream.clone(),
                left: agent.left.clone(),
                stall: agent.stall,
            }),
        })
    }

    fn peers(&self, node: &NodeId) -> Vec<Peer> {
        let Some(found) = self.nodes.get(node) else { return Vec::new() };
        found
            .config
            .members
            .iter()
            .filter(|m| m.node != *node && m.shard == found.config.shard)
            .map(|member| {
                let heard = found.agent.peers.get(&member.node).cloned().unwrap_or_default();
                Peer {
                    member: member.clone(),
                    asked_at: heard.asked_at,
                    answer: heard.answer,
                    promise: heard.promise,
                }
            })
            .collect()
    }

    pub(super) fn deliver(&mut self) {
        while let Some((&(at, id), _)) = self.messages.first_key_value() {
            if at > self.t {
                return;
            }
            if let Some(message) = self.messages.remove(&(at, id)) {
                self.receive(message);
            }
        }
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::LeaseCall { from, life, call, what, answer_lost } => {
                let Some(key) = self.shard_of(&from) else { return };
                let Some(shard) = self.shards.get_mut(&key) else { return };
                let writes = what != LeaseCall::Read;
                let renewal = matches!(what, LeaseCall::Renew { .. });
                let answer = shard.lease.apply(what);
                let changed = writes && answer != LeaseAnswer::Conflict;
                if changed && !renewal {
                    let text = format!("{:?}", shard.lease.value);
                    self.note(|| format!("{from} lease {text}"));
                    // Change notice: everybody reads soon, but for whom the notice does not reach.
                    for node in self.nodes.values_mut() {
                        if self.rng.chance(5) {
                            continue;
                        }
                        if node.config.instance == key.0 && node.config.shard == key.1 {
                            node.agent.read_at = Timestamp(0);
                        }
                    }
                }
                if !answer_lost {
                    let delay = 1 + self.rng.below(5);
                    self.send(delay, Message::LeaseAnswer { to: from, life, call, answer });
                }
            }
            Message::LeaseAnswer { to, life, call, answer } => {
                self.lease_answered(&to, life, call, answer);
            }
            Message::PeerCall { from, life, ask, sent, to, what } => {
                self.peer_called(from, life, ask, sent, &to, what);
            }
            Message::PeerAnswer { to, life, ask, from, sent, what } => {
                self.peer_answered(&to, life, ask, from, sent, what);
            }
        }
    }

    fn lease_answered(&mut self, to: &NodeId, life: u64, call: u64, answer: LeaseAnswer) {
        let t = self.t;
        let Some(found) = self.nodes.get_mut(to) else { return };
        let agent = &mut found.agent;
        if agent.life != life || !agent.runs(t) {
            return;
        }
        let now = agent.clock(t);
        if let Some((id, deadline)) = agent.reading
            && id == call
        {
            let sent = deadline - Millis(LEASE_DEADLINE as u64);
            agent.reading = None;
            if let LeaseAnswer::Is(value) = answer {
                if agent.readable != Some(true) {
                    agent.dirty = true;
                }
                agent.learn(value, now);
                agent.read_at = agent.next_look(to, &found.config.election, sent);
            }
            return;
        }
        let Some(Waiting::Lease { call: waits_for, sent, release, .. }) = agent.waiting else {
            return;
        };
        if waits_for != call {
            return;
        }
        agent.waiting = None;
        match answer {
            LeaseAnswer::Is(value) => {
                agent.learn(value, now);
                agent.renewed_at = if release { None } else { Some(sent) };
                agent.read_at = agent.next_look(to, &found.config.election, sent);
            }
            LeaseAnswer::Conflict => {
                agent.lose_lease_view(now);
                agent.fail(now);
            }
        }
    }

    fn peer_called(
        &mut self,
        from: NodeId,
        life: u64,
        ask: u64,
        sent: Timestamp,
        to: &NodeId,
        what: PeerCall,
    ) {
        let t = self.t;
        if !self.reach(&from, to) || !self.nodes.get(to).is_some_and(|n| n.agent.runs(t)) {
            return;
        }
        // A report rests on a sample taken for it, as every decision does.
        let Some(mut local) = self.local(to) else { return };
        let peers = self.peers(to);
        let Some(found) = self.nodes.get_mut(to) else { return };
        let view = found.agent.lease_view();
        found.agent.note_sync(&mut local, &peers);
        let answer = match what {
            PeerCall::Report => PeerAnswer::Report(Box::new(peer_report(&local, &view))),
            PeerCall::Promise { epoch, for_ } => {
                if may_promise(&local, &view, epoch) {
                    let until = found.agent.clock(t) + for_;
                    found.agent.memory.promise = Some(Promise { epoch, until });
                    PeerAnswer::Promised { epoch, until: sent + for_ }
                } else {
                    PeerAnswer::Refused
                }
            }
            PeerCall::Demote { epoch } => {
                let older = view.last().is_none_or(|known| known.record.epoch <= epoch);
                if older {
                    found.agent.read_at = Timestamp(0);
                    self.park(to);
                    PeerAnswer::Demoted
                } else {
                    PeerAnswer::Refused
                }
            }
        };
        let delay = 1 + self.rng.below(10);
        let from_peer = to.clone();
        self.send(
            delay,
            Message::PeerAnswer { to: from, life, ask, from: from_peer, sent, what: answer },
        );
    }

    fn peer_answered(
        &mut self,
        to: &NodeId,
        life: u64,
        ask: u64,
        from: NodeId,
        sent: Timestamp,
        what: PeerAnswer,
    ) {
        let t = self.t;
        if !self.reach(to, &from) {
            return;
        }
        let Some(found) = self.nodes.get_mut(to) else { return };
        let agent = &mut found.agent;
        if agent.life != life || !agent.runs(t) {
            return;
        }
        let heard = agent.peers.entry(from).or_default();
        match what {
            PeerAnswer::Report(report) => {
                heard.answer = Observation::Known { value: *report, at: sent };
            }
            PeerAnswer::Promised { epoch, until } => {
                heard.promise = Some(PeerPromise { epoch, until });
            }
            PeerAnswer::Refused | PeerAnswer::Demoted => {}
        }
        if let Some(Waiting::Peers { ask: waits_for, open, .. }) = &mut agent.waiting
            && *waits_for == ask
        {
            *open -= 1;
            if *open == 0 {
                agent.waiting = None;
            }
        }
    }

    /// One step of the agent: a late answer given up, an action, or a decision.
    pub(super) fn step_agent(&mut self, node: &NodeId) {
        let t = self.t;
        let Some(found) = self.nodes.get_mut(node) else { return };
        if !found.agent.runs(t) {
            return;
        }
        if found.config.mode == NodeMode::Clustered {
            self.step_cluster_agent(node);
            return;
        }
        let now = found.agent.clock(t);
        let down = found.process.is_none();
        let agent = &mut found.agent;
        agent.down_since = if down { agent.down_since.or(Some(now)) } else { None };
        match &agent.waiting {
            Some(Waiting::Lease { deadline, .. }) if now >= *deadline => {
                agent.lose_lease_view(now);
                agent.fail(now);
            }
            Some(Waiting::Peers { deadline, .. }) if now >= *deadline => {
                agent.waiting = None;
                for heard in agent.peers.values_mut() {
                    let old = match &heard.answer {
                        Observation::Known { at, .. } => heard.asked_at.is_some_and(|a| *at < a),
                        _ => true,
                    };
                    if old {
                        heard.answer = Observation::Unknown { since: now };
                    }
                }
            }
            _ => {}
        }
        if agent.reading.is_some_and(|(_, deadline)| now >= deadline) {
            agent.reading = None;
            agent.lose_lease_view(now);
        }
        if agent.reading.is_none() && now >= agent.read_at {
            agent.looked_at = now;
            agent.read_at = agent.next_look(node, &found.config.election, now);
            let life = agent.life;
            let call = self.id();
            if let Some(found) = self.nodes.get_mut(node) {
                found.agent.reading = Some((call, now + Millis(LEASE_DEADLINE as u64)));
            }
            self.call_lease(node, life, call, LeaseCall::Read);
        }
        let Some(found) = self.nodes.get_mut(node) else { return };
        let agent = &mut found.agent;
        if agent.waiting.is_some() {
            return;
        }
        if let Some(action) = agent.plan.pop_front() {
            match self.act(node, action, now) {
                Done::Yes | Done::Waits => {}
                Done::No => {
                    if let Some(found) = self.nodes.get_mut(node) {
                        found.agent.fail(now);
                    }
                }
            }
            if let Some(found) = self.nodes.get_mut(node)
                && found.agent.plan.is_empty()
            {
                found.agent.dirty = true;
            }
        } else if (agent.dirty || now >= agent.wake_at) && now >= agent.not_before {
            self.decide(node, now);
        }
    }

    fn decide(&mut self, node: &NodeId, now: Timestamp) {
        let Some(local) = self.local(node) else { return };
        let peers = self.peers(node);
        let Some(found) = self.nodes.get_mut(node) else { return };
        let view = found.agent.lease_view();
        let mut local = local;
        found.agent.note_sync(&mut local, &peers);
        let stall = larder_election::stall(found.agent.stall, &local, &peers, &view, now);
        found.agent.stall = stall;
        if found.agent.told != found.config.upstream {
            found.agent.told.clone_from(&found.config.upstream);
            found.agent.left = None;
        }
        if let Some(chain) = &mut local.chain {
            chain.left.clone_from(&found.agent.left);
            chain.stall = stall;
        }
        let policy = found.config.election;
        if view_looks_old(&local, &peers, &view) {
            let agent = &mut found.agent;
            agent.read_at = agent.read_at.min(agent.looked_at + Millis(policy.renew_every.0 / 4));
        }
        let wall = Timestamp(1_800_000_000_000 + self.t);
        let decision = decide_with(&self.rules, &local, &peers, &view, &policy, now, wall);
        let Some(found) = self.nodes.get_mut(node) else { return };
        let agent = &mut found.agent;
        let sample = now + Millis(SAMPLE_EVERY as u64);
        agent.wake_at = decision.wake_at.map_or(sample, |at| at.min(sample));
        agent.dirty = false;
        let quiet = |a: &Action| {
            matches!(a, Action::RenewLease { .. } | Action::AskPeers | Action::AskPromises { .. })
        };
        let news = agent.situation.as_ref() != Some(&decision.situation)
            || decision.actions.iter().any(|a| !quiet(a));
        if news {
            let line = format!("{node} {:?} -> {:?}", decision.situation, decision.actions);
            agent.situation = Some(decision.situation);
            agent.plan = decision.actions.into();
            self.note(|| line);
        } else {
            agent.plan = decision.actions.into();
        }
    }

    fn call_lease(&mut self, node: &NodeId, life: u64, call: u64, what: LeaseCall) {
        let Some(found) = self.nodes.get(node) else { return };
        let trouble = self.trouble_for(&found.worker);
        let usual = 1 + self.rng.below(self.config.lease_ms.max(1));
        let (delay, answer_lost) = match trouble {
            Some(LeaseTrouble::Fails) => return,
            Some(LeaseTrouble::AnswersLost) => (usual, true),
            Some(LeaseTrouble::Slow(most)) => (usual + self.rng.below(most), false),
            None => (usual, false),
        };
        let from = node.clone();
        self.send(delay, Message::LeaseCall { from, life, call, what, answer_lost });
    }

    fn write_lease(&mut self, node: &NodeId, what: LeaseCall, release: bool) -> Done {
        let call = self.id();
        let t = self.t;
        let Some(found) = self.nodes.get_mut(node) else { return Done::No };
        let agent = &mut found.agent;
        let sent = agent.clock(t);
        let deadline = sent + Millis(LEASE_DEADLINE as u64);
        agent.waiting = Some(Waiting::Lease { call, sent, deadline, release });
        let life = agent.life;
        self.call_lease(node, life, call, what);
        Done::Waits
    }

    fn call_peers(&mut self, node: &NodeId, now: Timestamp, what: &PeerCall) -> Done {
        let peers = self.peers(node);
        if peers.is_empty() {
            return Done::Yes;
        }
        let ask = self.id();
        let Some(found) = self.nodes.get_mut(node) else { return Done::No };
        let deadline = now + Millis(PEER_DEADLINE as u64);
        found.agent.waiting = Some(Waiting::Peers { ask, deadline, open: peers.len() });
        let life = found.agent.life;
        for peer in &peers {
            found.agent.peers.entry(peer.member.node.clone()).or_default().asked_at = Some(now);
        }
        for peer in peers {
            let delay = 1 + self.rng.below(10);
            let from = node.clone();
            let to = peer.member.node;
            self.send(
                delay,
                Message::PeerCall { from, life, ask, sent: now, to, what: what.clone() },
            );
        }
        Done::Waits
    }

    /// Replica of nobody; kills the server when it does not answer.
    fn park(&mut self, node: &NodeId) -> bool {
        let t = self.t;
        let serving = self
            .nodes
            .get(node)
            .and_then(|n| n.process.as_ref())
            .is_none_or(super::server::Process::serving);
        if !serving {
            self.kill_process(node, false);
        }
        self.with_process(node, |p| p.follow(nobody(), t));
        true
    }

    fn act(&mut self, node: &NodeId, action: Action, now: Timestamp) -> Done {
        let t = self.t;
        let yes = |ok: bool| if ok { Done::Yes } else { Done::No };
        let serving = self
            .nodes
            .get(node)
            .and_then(|n| n.process.as_ref())
            .is_some_and(super::server::Process::serving);
        match action {
            Action::AcquireLease { record, after_version } => {
                self.write_lease(node, LeaseCall::Write { record, after: after_version }, false)
            }
            Action::RenewLease { after_version } => {
                self.write_lease(node, LeaseCall::Renew { after: after_version }, false)
            }
            Action::ReleaseLease { record, after_version } => {
                let after = Some(after_version);
                self.write_lease(node, LeaseCall::Write { record, after }, true)
            }
            Action::StartServer { start_as } => {
                let upstream = match start_as {
                    StartAs::ReplicaOf(member) => member.address,
                    StartAs::Parked => nobody(),
                };
                self.start_process(node, upstream);
                Done::Yes
            }
            Action::KillServer { .. } => {
                self.kill_process(node, false);
                Done::Yes
            }
            Action::SyncData => {
                self.with_process(node, |p| p.durable = p.log.len());
                Done::Yes
            }
            Action::Promote { epoch } => {
                if !serving {
                    return Done::No;
                }
                let replid = self.rng.hex_id();
                let mut first_time = false;
                if let Some(found) = self.nodes.get_mut(node) {
                    first_time = found.agent.memory.data_epoch < epoch;
                    found.agent.memory.data_epoch = found.agent.memory.data_epoch.max(epoch);
                }
                self.with_process(node, |p| p.promote(replid));
                self.check_promotion(node, first_time);
                Done::Yes
            }
            Action::Follow(member) => {
                self.with_process(node, |p| p.follow(member.address, t));
                yes(serving)
            }
            // What is ahead of the other's data is copied anew here: real drivers wait for it first.
            Action::Join(member) => {
                self.with_process(node, |p| p.follow(member.address, t));
                yes(serving)
            }
            Action::LeaveUpstream(upstream) => {
                if let Some(found) = self.nodes.get_mut(node) {
                    found.agent.left = Some(upstream);
                    found.agent.stall = None;
                }
                Done::Yes
            }
            Action::Park => {
                self.remember_planned(node);
                yes(self.park(node))
            }
            Action::PauseWrites { for_ } => {
                let until = t + i64::try_from(for_.0).unwrap_or(i64::MAX);
                self.with_process(node, |p| p.paused_until = until);
                if let Some(found) = self.nodes.get_mut(node) {
                    found.agent.writes_paused = serving;
                }
                yes(serving)
            }
            Action::ResumeWrites => {
                self.with_process(node, |p| p.paused_until = 0);
                if let Some(found) = self.nodes.get_mut(node) {
                    found.agent.writes_paused = false;
                }
                Done::Yes
            }
            Action::CloseClients => {
                self.close_clients(node);
                Done::Yes
            }
            Action::FenceOldPrimary { old, epoch } => self.fence(node, &old, epoch, now),
            Action::AskPeers => self.call_peers(node, now, &PeerCall::Report),
            Action::AskPromises { epoch, for_ } => {
                self.call_peers(node, now, &PeerCall::Promise { epoch, for_ })
            }
            Action::PublishRoute(route) => {
                self.publish(node, route);
                Done::Yes
            }
            Action::KeepDataAside | Action::DropDataAside => {
                if let Some(found) = self.nodes.get_mut(node) {
                    found.agent.memory.data_aside = action == Action::KeepDataAside;
                }
                Done::Yes
            }
            Action::BeginHandOver { to } => {
                if let Some(found) = self.nodes.get_mut(node) {
                    found.agent.hand_over = Some(HandOverProgress { to, since: now });
                }
                Done::Yes
            }
            Action::EndHandOver => {
                if let Some(found) = self.nodes.get_mut(node) {
                    found.agent.hand_over = None;
                }
                Done::Yes
            }
            Action::FinishOrder(outcome) => {
                self.note(|| format!("{node} order finished: {outcome}"));
                if let Some(found) = self.nodes.get_mut(node) {
                    found.agent.order = None;
                }
                Done::Yes
            }
        }
    }

    /// Asks the old primary's agent to demote; where the machine is the same, or the agent does
    /// not turn, kills its server as the keeper would.
    fn fence(&mut self, node: &NodeId, old: &Member, epoch: u64, now: Timestamp) -> Done {
        let agent_runs = self.nodes.get(&old.node).is_some_and(|n| n.agent.runs(self.t));
        let reaches = self.reach(node, &old.node);
        if !reaches && self.config.kill_by_network {
            return Done::Yes;
        }
        if !agent_runs || !reaches {
            if self.config.kill_peers && self.kill_process(&old.node, false) {
                self.note(|| format!("{node} kills the server of {}", old.node));
            }
            return Done::Yes;
        }
        let ask = self.id();
        let Some(found) = self.nodes.get_mut(node) else { return Done::No };
        let deadline = now + Millis(PEER_DEADLINE as u64);
        found.agent.waiting = Some(Waiting::Peers { ask, deadline, open: 1 });
        let life = found.agent.life;
        let (from, to) = (node.clone(), old.node.clone());
        let what = PeerCall::Demote { epoch };
        self.send(5, Message::PeerCall { from, life, ask, sent: now, to, what });
        Done::Waits
    }

    fn publish(&mut self, node: &NodeId, route: Route) {
        let Some(key) = self.shard_of(node) else { return };
        if let Some(shard) = self.shards.get_mut(&key)
            && shard.route.as_ref().is_none_or(|there| there.epoch <= route.epoch)
        {
            shard.route = Some(route);
        }
    }

    /// For the check of planned hand-overs: what the old primary has acknowledged.
    fn remember_planned(&mut self, node: &NodeId) {
        let Some(found) = self.nodes.get(node) else { return };
        let ordered = found
            .agent
            .order
            .as_ref()
            .is_some_and(|o| matches!(o.kind, OrderKind::HandOver { .. }));
        let primary = found.process.as_ref().filter(|p| p.role == Role::Primary);
        if let (true, Some(process), Some(_)) = (ordered, primary, &found.agent.hand_over) {
            let log = process.log.clone();
            if let Some(key) = self.shard_of(node)
                && let Some(shard) = self.shards.get_mut(&key)
            {
                shard.planned = Some(log);
            }
        }
    }
}
