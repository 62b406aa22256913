//! What is seen, put in the planner's words: who serves, who leads a shard, who is linked, who is
//! lost. Every question has one answer here, so that deciding, reporting and checking agree.

use std::collections::{BTreeMap, BTreeSet};

use larder_model::agent::{
    AgentStatus, ClusterPeer, ClusterView, ReplicationView, Role, ServerState, VolumeState,
};
use larder_model::{
    BackendNode, Desired, EndpointKind, EndpointStatus, Hindrance, HindranceKind, Millis, NodeId,
    NodeMode, NodePhase, NodeRecord, Observation, Observed, Operation, OperationKind, SLOT_COUNT,
    SlotSet, Timestamp, Worker, WorkerState,
};

use crate::cluster_repair;
use crate::parameters;

/// A server that has not answered for so long is not merely in a long command. The servers' own
/// measure: scripts that take longer are answered for with `BUSY` (`lua-time-limit`, redis.conf).
pub(crate) const STUCK_AFTER: Millis = Millis::secs(5);

pub(crate) struct View<'a> {
    pub(crate) desired: &'a Desired,
    pub(crate) observed: &'a Observed,
    pub(crate) now: Timestamp,
    /// Wanted nodes by shard, then id.
    pub(crate) wanted: Vec<&'a NodeRecord>,
    /// Nodes on their way out, by shard, then id.
    pub(crate) leaving: Vec<&'a NodeRecord>,
    /// The serving primary of each shard that has one.
    primaries: BTreeMap<u32, &'a NodeRecord>,
    /// Shards that have slots in anybody's eyes; `None` while some slots may be anybody's.
    slotted: Option<BTreeSet<u32>>,
}

impl<'a> View<'a> {
    pub(crate) fn new(desired: &'a Desired, observed: &'a Observed, now: Timestamp) -> Self {
        let in_phase = |phase: NodePhase| {
            let mut records: Vec<&NodeRecord> =
                desired.nodes.iter().filter(|record| record.phase == phase).collect();
            records.sort_by(|a, b| (a.shard, &a.id).cmp(&(b.shard, &b.id)));
            records
        };
        let mut view = Self {
            desired,
            observed,
            now,
            wanted: in_phase(NodePhase::Wanted),
            leaving: in_phase(NodePhase::Leaving),
            primaries: BTreeMap::new(),
            slotted: None,
        };
        view.slotted = view.find_slotted();
        view.primaries =
            view.shards().filter_map(|shard| Some((shard, view.find_primary(shard)?))).collect();
        view
    }

    pub(crate) fn is_cluster(&self) -> bool {
        self.desired.spec.architecture.node_mode() == NodeMode::Clustered
    }

    /// Those that are wanted, and those that are on their way out.
    pub(crate) fn shards(&self) -> std::ops::Range<u32> {
        let records = self.wanted.iter().chain(&self.leaving);
        let last = records.map(|record| record.shard + 1).max().unwrap_or(0);
        0..self.desired.spec.shards.max(last)
    }

    pub(crate) fn wanted_shards(&self) -> std::ops::Range<u32> {
        0..self.desired.spec.shards
    }

    /// The shard is to go.
    pub(crate) fn is_surplus(&self, shard: u32) -> bool {
        shard >= self.desired.spec.shards
    }

    /// The shard of a cluster has slots in anybody's eyes, or may have some. One that has none has no
    /// data: it is new, or on its way out.
    pub(crate) fn has_slots(&self, shard: u32) -> bool {
        self.slotted.as_ref().is_none_or(|slotted| slotted.contains(&shard))
    }

    /// A shard of a running cluster that is known to have no slots.
    pub(crate) fn is_empty_shard(&self, shard: u32) -> bool {
        self.desired.initialized && !self.has_slots(shard)
    }

    fn find_slotted(&self) -> Option<BTreeSet<u32>> {
        if !self.is_cluster() {
            return None;
        }
        let by_id: BTreeMap<&str, u32> = self
            .desired
            .nodes
            .iter()
            .filter_map(|record| Some((self.server_id(&record.id)?, record.shard)))
            .collect();
        let mut found = BTreeSet::new();
        let mut somebody_sees_all = false;
        for (_, view) in self.views() {
            let mut seen = SlotSet::default();
            for peer in view.nodes.iter().filter(|peer| !peer.slots.is_empty()) {
                // Also the former name of a server that has lost it: the slots are still its shard's.
                let at_address = || self.desired.nodes.iter().find(|r| r.is_at(&peer.address));
                let shard = by_id.get(peer.id.as_str()).copied();
                found.insert(shard.or_else(|| Some(at_address()?.shard))?);
                peer.slots.ranges().iter().for_each(|range| seen.insert(*range));
            }
            somebody_sees_all |= seen == SlotSet::full();
        }
        somebody_sees_all.then_some(found)
    }

    /// The shard of the node whose server has this id.
    pub(crate) fn shard_of_server(&self, id: &str) -> Option<u32> {
        let is_it = |record: &&NodeRecord| self.server_id(&record.id) == Some(id);
        self.desired.nodes.iter().find(is_it).map(|record| record.shard)
    }

    /// Every server sees all slots covered, and none of them at a node of this shard, whose primary has
    /// none half-moved. A replica may keep marks of slots that have long gone: Valkey 8 tells it of them,
    /// and not again when it was down as they went.
    pub(crate) fn is_emptied(&self, shard: u32) -> bool {
        let covered = |view: &ClusterView| {
            let seen: SlotSet =
                view.nodes.iter().flat_map(|n| n.slots.ranges().iter().copied()).collect();
            seen.count() == u32::from(SLOT_COUNT)
        };
        let open = |view: &ClusterView| {
            view.me().is_some_and(|me| me.role == Role::Primary && !me.open.is_empty())
        };
        let mut all = self.views().peekable();
        self.is_empty_shard(shard)
            && self.all_slots_are_held()
            && all.peek().is_some()
            && all.all(|(record, view)| covered(view) && !(open(view) && record.shard == shard))
    }

    /// The operation that holds the instance.
    pub(crate) fn operation(&self) -> Option<&'a Operation> {
        self.desired.operation.as_ref().filter(|operation| !operation.state.is_finished())
    }

    /// Never served, and nobody is creating it any more.
    pub(crate) fn creation_failed(&self) -> bool {
        let creating =
            self.operation().is_some_and(|operation| operation.kind == OperationKind::Create);
        !self.desired.initialized && self.desired.deletion.is_none() && !creating
    }

    pub(crate) fn record(&self, node: &NodeId) -> Option<&'a NodeRecord> {
        self.desired.nodes.iter().find(|record| record.id == *node)
    }

    /// Wanted nodes of the shard, by id.
    pub(crate) fn wanted_of(&self, shard: u32) -> impl Iterator<Item = &'a NodeRecord> + '_ {
        self.wanted.iter().copied().filter(move |record| record.shard == shard)
    }

    /// Wanted nodes of the shard, then those on their way out.
    pub(crate) fn all_of(&self, shard: u32) -> impl Iterator<Item = &'a NodeRecord> + '_ {
        self.wanted.iter().chain(&self.leaving).copied().filter(move |r| r.shard == shard)
    }

    pub(crate) fn backend(&self, node: &NodeId) -> &'a Observation<BackendNode> {
        self.observed.nodes.get(node).map_or(&Observation::UnknownYet, |seen| &seen.backend)
    }

    pub(crate) fn backend_is_known(&self, node: &NodeId) -> bool {
        matches!(self.backend(node), Observation::Known { .. })
    }

    /// What keeps the node from coming to be. One whose agent answers is there.
    pub(crate) fn hindrance(&self, node: &NodeId) -> Option<&'a Hindrance> {
        let hindered = self.observed.nodes.get(node)?.hindered.as_ref()?;
        let counts = self.agent(node).is_none() && hindered.by.kind != HindranceKind::VolumeLeaving;
        (counts && hindered.lasts(self.now)).then_some(&hindered.by)
    }

    /// The node's volume is marked for deletion and goes when the node next ends, though it may
    /// serve until then.
    pub(crate) fn volume_is_leaving(&self, node: &NodeId) -> bool {
        let hindered = self.observed.nodes.get(node).and_then(|seen| seen.hindered.as_ref());
        hindered.is_some_and(|it| it.by.kind == HindranceKind::VolumeLeaving)
    }

    pub(crate) fn endpoint(&self, kind: EndpointKind) -> &'a Observation<EndpointStatus> {
        self.observed.endpoints.get(&kind).unwrap_or(&Observation::UnknownYet)
    }

    /// The node is of another engine, another memory or an older revision than is wanted, and a new
    /// one has to come in its place.
    pub(crate) fn is_outdated(&self, record: &NodeRecord) -> bool {
        let spec = &self.desired.spec;
        let resized = record.memory != spec.memory && !self.desired.policy.resizes_in_place;
        record.engine != spec.engine
            || record.revision < spec.revision
            || resized
            || parameters::is_stale(self, record)
    }

    /// What the node's agent says. An answer in another node's name is no answer: somebody else
    /// lives at that address.
    pub(crate) fn agent(&self, node: &NodeId) -> Option<&'a AgentStatus> {
        self.observed
            .nodes
            .get(node)?
            .agent
            .known()
            .filter(|status| status.node == *node && status.instance == self.desired.spec.id)
    }

    /// Nobody can say how the node is: neither its agent, nor the backend that it is not there.
    pub(crate) fn is_silent(&self, node: &NodeId) -> bool {
        self.agent(node).is_none() && !self.backend(node).is_absent()
    }

    /// For how long nothing was heard of the agent; zero when nobody has tried yet.
    pub(crate) fn silent_for(&self, node: &NodeId) -> Millis {
        self.observed
            .nodes
            .get(node)
            .and_then(|seen| seen.agent.unknown_for(self.now))
            .unwrap_or(Millis(0))
    }

    pub(crate) fn server(&self, node: &NodeId) -> Option<ServerState> {
        self.agent(node).map(|status| status.server.state)
    }

    /// Takes commands, though perhaps in a long script just now.
    pub(crate) fn serves(&self, node: &NodeId) -> bool {
        matches!(self.server(node), Some(ServerState::Serving | ServerState::Busy))
    }

    /// The server lives and has not answered for longer than any command that is not a fault:
    /// an endless script, or a process that is stopped.
    pub(crate) fn is_stuck(&self, node: &NodeId) -> bool {
        let Some(status) = self.agent(node) else { return false };
        let unanswering = matches!(status.server.state, ServerState::Busy | ServerState::Hung);
        let since = status.server.unanswering_since;
        unanswering && since.is_some_and(|since| self.now.since(since) >= STUCK_AFTER)
    }

    /// The server lives and does not answer just now; it may well do so in a moment.
    pub(crate) fn is_pausing(&self, node: &NodeId) -> bool {
        matches!(self.server(node), Some(ServerState::Busy | ServerState::Hung))
            && !self.is_stuck(node)
    }

    /// The server's process is seen to be gone, or never came up.
    pub(crate) fn is_down(&self, node: &NodeId) -> bool {
        matches!(self.server(node), Some(ServerState::Dead | ServerState::Absent))
    }

    pub(crate) fn replication(&self, node: &NodeId) -> Option<&'a ReplicationView> {
        self.agent(node)?.replication.as_ref()
    }

    /// The server came back as a replica and has not been in sync since.
    pub(crate) fn is_behind(&self, node: &NodeId) -> bool {
        self.agent(node).is_some_and(|status| status.behind)
    }

    pub(crate) fn offset(&self, node: &NodeId) -> u64 {
        self.replication(node).map_or(0, |replication| replication.offset)
    }

    pub(crate) fn worker(&self, record: &NodeRecord) -> Option<&'a Worker> {
        self.observed.workers.iter().find(|worker| worker.name == record.worker)
    }

    /// The worker runs what it has. Not known when the container cluster cannot be asked.
    pub(crate) fn worker_lives(&self, record: &NodeRecord) -> bool {
        self.worker(record)
            .is_some_and(|w| matches!(w.state, WorkerState::Ready | WorkerState::Cordoned))
    }

    /// An administrator has said that the worker will not come back.
    pub(crate) fn worker_is_lost(&self, record: &NodeRecord) -> bool {
        self.worker(record).is_some_and(|worker| worker.state == WorkerState::Lost)
    }

    /// The worker is not heard of, or the container cluster does not list it any more.
    pub(crate) fn worker_is_away(&self, record: &NodeRecord) -> bool {
        !self.observed.workers.is_empty() && !self.worker_lives(record)
    }

    /// The node is given up: its worker is lost by an administrator's word, or is away and
    /// nothing was heard of the node for the policy's time, or is away and the container cluster
    /// says that it holds the node no longer.
    pub(crate) fn is_lost(&self, record: &NodeRecord) -> bool {
        if self.agent(&record.id).is_some() {
            return false;
        }
        self.worker_is_lost(record)
            || (self.worker_is_away(record)
                && (self.backend(&record.id).is_absent()
                    || self.silent_for(&record.id) > self.desired.policy.replace_lost_after))
    }

    /// A past and an empty volume, and the server is held back because of it.
    pub(crate) fn volume_is_lost(&self, node: &NodeId) -> bool {
        self.agent(node).is_some_and(|status| status.volume == VolumeState::Lost)
            && self.is_down(node)
    }

    /// A past and an empty volume, and nobody who fills it: the server is held back, or was started
    /// as the replica of a primary that is gone as well.
    fn has_no_copy(&self, node: &NodeId) -> bool {
        let fills_nothing =
            |view: &ReplicationView| view.role == Role::Replica && !view.link_up && !view.syncing;
        self.volume_is_lost(node)
            || self.agent(node).is_some_and(|status| {
                status.volume == VolumeState::Lost
                    && status.replication.as_ref().is_some_and(fills_nothing)
            })
    }

    /// Every copy of the shard is seen to be gone: nothing that anybody could bring back.
    pub(crate) fn data_is_lost(&self, shard: u32) -> bool {
        let mut nodes = self.all_of(shard).peekable();
        self.desired.initialized
            && nodes.peek().is_some()
            && nodes.all(|record| {
                self.has_no_copy(&record.id)
                    || (self.worker_is_lost(record) && self.agent(&record.id).is_none())
            })
    }

    /// The serving primary of the shard.
    pub(crate) fn primary(&self, shard: u32) -> Option<&'a NodeRecord> {
        self.primaries.get(&shard).copied()
    }

    pub(crate) fn is_primary(&self, record: &NodeRecord) -> bool {
        self.primary(record.shard).is_some_and(|primary| primary.id == record.id)
    }

    fn find_primary(&self, shard: u32) -> Option<&'a NodeRecord> {
        if self.is_cluster() {
            // Two that claim slots: the one with the higher configuration epoch has the last
            // word on the cluster bus too.
            self.all_of(shard)
                .filter(|record| self.serves(&record.id))
                .filter_map(|record| {
                    let me = self.me(&record.id)?;
                    (me.role == Role::Primary && !me.slots.is_empty())
                        .then_some((me.config_epoch, record))
                })
                .max_by(|(a, a_node), (b, b_node)| (a, &b_node.id).cmp(&(b, &a_node.id)))
                .map(|(_, record)| record)
                .or_else(|| self.first_of_empty(shard))
        } else {
            self.all_of(shard)
                .filter(|record| self.serves(&record.id))
                .filter_map(|record| {
                    let status = self.agent(&record.id)?;
                    let lease = status.lease.as_ref()?;
                    let leads = lease.holder.as_ref() == Some(&record.id)
                        && status.replication.as_ref()?.role == Role::Primary;
                    leads.then_some((lease.epoch, record))
                })
                .max_by(|(a, a_node), (b, b_node)| (a, &b_node.id).cmp(&(b, &a_node.id)))
                .map(|(_, record)| record)
        }
    }

    /// Who leads a shard without slots: whom the others follow, else the oldest.
    fn first_of_empty(&self, shard: u32) -> Option<&'a NodeRecord> {
        if !self.is_empty_shard(shard) {
            return None;
        }
        let followers = |record: &NodeRecord| {
            let id = self.server_id(&record.id);
            let follows = |other: &&NodeRecord| {
                self.me(&other.id).is_some_and(|me| me.primary.as_deref() == id)
            };
            self.all_of(shard).filter(follows).count()
        };
        self.all_of(shard)
            .filter(|record| self.serves(&record.id))
            .filter(|record| self.me(&record.id).is_some_and(|me| me.role == Role::Primary))
            .min_by_key(|record| {
                (std::cmp::Reverse(followers(record)), record.created_at, &record.id)
            })
    }

    /// Who leads the shard or led it last, whether it serves or not: the primary, else by the
    /// lease of the newest epoch, or by the memory of those who copied from it. Never a guess.
    pub(crate) fn last_primary(&self, shard: u32) -> Option<&'a NodeRecord> {
        if let Some(primary) = self.primary(shard) {
            return Some(primary);
        }
        if self.is_cluster() {
            return self
                .all_of(shard)
                .filter(|record| self.serves(&record.id))
                .find_map(|record| cluster_repair::former_primary(self, record));
        }
        self.all_of(shard)
            .filter_map(|record| self.agent(&record.id)?.lease.as_ref())
            .max_by_key(|lease| (lease.epoch, lease.holder.as_ref()))
            .and_then(|lease| self.record(lease.holder.as_ref()?))
    }

    /// A replica that serves and copies from the shard's primary without a gap.
    pub(crate) fn is_linked(&self, record: &NodeRecord) -> bool {
        let Some(primary) = self.primary(record.shard) else { return false };
        if primary.id == record.id || self.server(&record.id) != Some(ServerState::Serving) {
            return false;
        }
        if !self.is_cluster() {
            return self.leads_up(record, primary);
        }
        self.link_is_up(record).is_some()
            && self.is_streamed_to(primary, record)
            && self.me(&record.id).is_some_and(|me| {
                me.role == Role::Replica && me.primary.as_deref() == self.server_id(&primary.id)
            })
    }

    /// What the replica says of its link, while that is up and nothing is copied anew.
    fn link_is_up(&self, record: &NodeRecord) -> Option<&'a ReplicationView> {
        self.replication(&record.id)
            .filter(|view| view.role == Role::Replica && view.link_up && !view.syncing)
    }

    /// The links from the replica upwards are all up, and end at the primary: a replica of a replica
    /// says that its own is up whether or not anything comes from above.
    fn leads_up(&self, record: &NodeRecord, primary: &NodeRecord) -> bool {
        let mut at = record;
        for _ in &self.desired.nodes {
            let Some(view) = self.link_is_up(at) else { return false };
            let above = match &view.primary {
                Some(copied) if primary.address.as_ref().is_none_or(|its| its == copied) => primary,
                Some(copied) => {
                    let is_it = |other: &&NodeRecord| other.address.as_ref() == Some(copied);
                    let Some(above) = self.all_of(record.shard).find(is_it) else { return false };
                    above
                }
                None => primary,
            };
            if !self.is_streamed_to(above, at) {
                return false;
            }
            if above.id == primary.id {
                return true;
            }
            at = above;
        }
        false
    }

    /// The primary feeds the replica itself.
    fn is_direct(&self, record: &NodeRecord) -> bool {
        let copied = self.replication(&record.id).and_then(|view| view.primary.as_ref());
        let primary = self.primary(record.shard).and_then(|primary| primary.address.as_ref());
        copied.is_none() || copied == primary
    }

    /// The primary says so, or says nothing. A link comes up in the replica's eyes up to a second
    /// before the primary's writes flow: until then they are safe nowhere else.
    fn is_streamed_to(&self, primary: &NodeRecord, record: &NodeRecord) -> bool {
        self.replication(&primary.id).is_none_or(|view| {
            let mut online = view.replicas.iter().filter(|replica| replica.online);
            online.any(|replica| Some(&replica.address) == record.address.as_ref())
        })
    }

    /// Serves in its part: the primary, or a linked replica.
    pub(crate) fn is_well(&self, record: &NodeRecord) -> bool {
        let answers = self.server(&record.id) == Some(ServerState::Serving);
        answers && (self.is_primary(record) || self.is_linked(record))
    }

    /// Linked replicas of the shard that are to stay: lowest id first.
    pub(crate) fn linked_of(&self, shard: u32) -> impl Iterator<Item = &'a NodeRecord> + '_ {
        self.wanted_of(shard).filter(|record| self.is_linked(record))
    }

    /// The replica that shall lead next in a planned change: same zone as the primary first, then
    /// the lowest id. Not by offset: a coordinated change waits for equal offsets, and a choice
    /// that moved with every write would order a new one each time.
    ///
    /// One that is outdated would have to hand over again; in a chain all others hang below the first.
    pub(crate) fn successor(&self, shard: u32) -> Option<&'a NodeRecord> {
        let zone = self.primary(shard).and_then(|primary| primary.zone.as_ref());
        self.linked_of(shard).min_by_key(|record| {
            let far = !self.is_cluster() && !self.is_direct(record);
            (self.is_outdated(record), far, record.zone.as_ref() != zone, &record.id)
        })
    }

    /// The cluster in the node's own eyes.
    pub(crate) fn cluster(&self, node: &NodeId) -> Option<&'a ClusterView> {
        self.agent(node)?.cluster.as_ref()
    }

    /// In the eyes of `voter`, `replica` copies from `primary`.
    pub(crate) fn knows_as_replica(
        &self,
        voter: &NodeRecord,
        replica: &NodeRecord,
        primary: &NodeRecord,
    ) -> bool {
        let (Some(replica), Some(primary)) =
            (self.server_id(&replica.id), self.server_id(&primary.id))
        else {
            return false;
        };
        let peers = self.cluster(&voter.id).map(|view| view.nodes.as_slice()).unwrap_or_default();
        peers.iter().any(|peer| {
            peer.id == replica
                && peer.role == Role::Replica
                && peer.primary.as_deref() == Some(primary)
        })
    }

    /// The node's own line in its own view.
    pub(crate) fn me(&self, node: &NodeId) -> Option<&'a ClusterPeer> {
        self.cluster(node)?.me()
    }

    /// The id that the servers know the node by, from its own mouth.
    pub(crate) fn server_id(&self, node: &NodeId) -> Option<&'a str> {
        self.cluster(node).map(|view| view.my_id.as_str())
    }

    /// Views of all nodes that serve, with their records.
    pub(crate) fn views(&self) -> impl Iterator<Item = (&'a NodeRecord, &'a ClusterView)> + '_ {
        self.wanted
            .iter()
            .chain(&self.leaving)
            .filter(|record| self.serves(&record.id))
            .filter_map(|record| Some((*record, self.cluster(&record.id)?)))
    }

    /// Slots that serving primaries hold by their own word, or by another one's: who gives a slot away
    /// may be heard of before who gets it.
    pub(crate) fn held_slots(&self) -> SlotSet {
        let primaries: BTreeMap<&str, &NodeRecord> = self
            .shards()
            .filter_map(|shard| self.primary(shard))
            .filter_map(|record| Some((self.server_id(&record.id)?, record)))
            .collect();
        primaries
            .values()
            .filter_map(|record| self.cluster(&record.id))
            .flat_map(|view| &view.nodes)
            .filter(|peer| primaries.contains_key(peer.id.as_str()))
            .flat_map(|peer| peer.slots.ranges().iter().copied())
            .collect()
    }

    pub(crate) fn all_slots_are_held(&self) -> bool {
        self.held_slots().count() == u32::from(SLOT_COUNT)
    }

    /// Of the primaries each says itself what it has, and that is each slot once: nothing that has
    /// changed hands just now is still to be heard of.
    pub(crate) fn each_slot_is_claimed_once(&self) -> bool {
        let own: Vec<&SlotSet> = self
            .shards()
            .filter_map(|shard| Some(&self.me(&self.primary(shard)?.id)?.slots))
            .collect();
        let all = u32::from(SLOT_COUNT);
        let union: SlotSet = own.iter().flat_map(|slots| slots.ranges().iter().copied()).collect();
        union.count() == all && own.iter().map(|slots| slots.count()).sum::<u32>() == all
    }

    /// The node has slots in anybody's eyes, its own included.
    pub(crate) fn holds_slots(&self, record: &NodeRecord) -> bool {
        let id = self.server_id(&record.id);
        self.views().any(|(_, view)| {
            view.nodes.iter().any(|peer| {
                let same = match id {
                    Some(id) => peer.id == id,
                    None => record.is_at(&peer.address),
                };
                same && !peer.slots.is_empty()
            })
        })
    }
}
