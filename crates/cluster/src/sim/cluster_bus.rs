//! Cluster mode in small: nodes that meet, gossip, hold slots, vote a replica in after the node
//! timeout, and forget.
//!
//! Simpler than the real bus on purpose: gossip takes one round of 100 ms, and a vote is a look at
//! how many primaries the replica can reach. What planners depend on is kept: views differ from
//! node to node, a forgotten id comes back with gossip unless all forget it within a minute, the
//! higher configuration epoch owns a slot.

use std::collections::BTreeMap;

use larder_model::agent::{ClusterPeer, ClusterView, Role};
use larder_model::{Address, NodeId, NodeMode, SLOT_COUNT, SlotRange, SlotSet};

use super::server::nobody;
use super::world::World;

/// `CLUSTER FORGET` bans an id for this long (cluster.c, `CLUSTER_BLACKLIST_TTL`).
const FORGET_MS: i64 = 60_000;

/// What a server knows of one server, itself included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BusPeer {
    pub(super) node: NodeId,
    pub(super) address: Address,
    pub(super) role: Role,
    pub(super) primary: Option<String>,
    pub(super) config_epoch: u64,
    pub(super) slots: SlotSet,
    /// Not heard of since then.
    pub(super) silent_since: Option<i64>,
    pub(super) failed: bool,
}

/// One server's side of the bus (`nodes.conf`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct BusState {
    pub(super) my_id: String,
    pub(super) current_epoch: u64,
    pub(super) known: BTreeMap<String, BusPeer>,
    pub(super) forgotten: BTreeMap<String, i64>,
    /// Addresses it was told to meet and has not.
    pub(super) meeting: Vec<Address>,
    /// When this replica asks for votes.
    pub(super) election_at: Option<i64>,
}

impl BusState {
    pub(super) fn me(&self) -> Option<&BusPeer> {
        self.known.get(&self.my_id)
    }

    fn me_mut(&mut self) -> Option<&mut BusPeer> {
        self.known.get_mut(&self.my_id)
    }

    /// What the server `id` says in a round of gossip.
    fn hear(&mut self, id: &str, theirs: &Self, t: i64) {
        self.current_epoch = self.current_epoch.max(theirs.current_epoch);
        self.forgotten.retain(|_, until| *until > t);
        for (other_id, other) in &theirs.known {
            if self.forgotten.contains_key(other_id) || *other_id == self.my_id {
                continue;
            }
            // A server's word counts for itself, and for those that were not known.
            let is_news = if other_id == id {
                self.known.get(other_id) != Some(other)
            } else {
                !self.known.contains_key(other_id)
            };
            if is_news {
                let news = BusPeer { silent_since: None, failed: false, ..other.clone() };
                self.known.insert(other_id.clone(), news);
            }
        }
        let Some(them) = theirs.me().filter(|them| them.role == Role::Primary) else { return };
        // The higher configuration epoch owns a slot.
        for (other_id, other) in &mut self.known {
            let older = other.config_epoch < them.config_epoch;
            if other_id != id && older && touches(&other.slots, &them.slots) {
                other.slots = other.slots.difference(&them.slots);
                if *other_id == self.my_id && other.slots.is_empty() {
                    other.role = Role::Replica;
                    other.primary = Some(id.to_owned());
                }
            }
        }
        // A replica goes with the slots of its primary.
        let lost = self
            .me()
            .filter(|me| me.role == Role::Replica)
            .and_then(|me| me.primary.as_ref())
            .and_then(|primary| self.known.get(primary))
            .is_some_and(|primary| primary.primary.as_deref() == Some(id));
        if lost && let Some(me) = self.me_mut() {
            me.primary = Some(id.to_owned());
        }
    }

    pub(super) fn covered(&self) -> bool {
        let slots: u32 = self
            .known
            .values()
            .filter(|p| p.role == Role::Primary && !p.failed)
            .map(|p| p.slots.count())
            .sum();
        slots == u32::from(SLOT_COUNT)
    }
}

fn touches(a: &SlotSet, b: &SlotSet) -> bool {
    let overlap = |x: &SlotRange| b.ranges().iter().any(|y| x.first <= y.last && y.first <= x.last);
    a.ranges().iter().any(overlap)
}

impl World {
    pub(super) fn bus(&self, node: &NodeId) -> Option<&BusState> {
        let process = self.nodes.get(node)?.process.as_ref()?;
        process.bus.as_ref().filter(|bus| process.serving() && !bus.my_id.is_empty())
    }

    pub(super) fn with_bus<T>(
        &mut self,
        node: &NodeId,
        change: impl FnOnce(&mut BusState) -> T,
    ) -> Option<T> {
        let process = self.nodes.get_mut(node)?.process.as_mut()?;
        process.bus.as_mut().map(change)
    }

    /// One round of the bus for every cluster-mode server.
    pub(super) fn step_buses(&mut self) {
        let nodes: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(|(_, n)| n.config.mode == NodeMode::Clustered && n.process.is_some())
            .map(|(id, _)| id.clone())
            .collect();
        for node in &nodes {
            self.introduce(node);
            self.meet(node);
        }
        for node in &nodes {
            self.gossip(node);
        }
        for node in &nodes {
            self.vote(node);
            self.obey_bus(node);
            self.step_slot_move(node);
        }
    }

    /// A server's first start gives it an id for life.
    fn introduce(&mut self, node: &NodeId) {
        let Some(found) = self.nodes.get_mut(node) else { return };
        let Some(process) = found.process.as_mut().filter(|p| p.serving()) else { return };
        if let Some(bus) = process.bus.as_mut().filter(|bus| bus.my_id.is_empty()) {
            let id = self.rng.hex_id();
            let address = found.config.address.clone();
            bus.my_id.clone_from(&id);
            let me = BusPeer {
                node: node.clone(),
                address,
                role: Role::Primary,
                primary: None,
                config_epoch: 0,
                slots: SlotSet::default(),
                silent_since: None,
                failed: false,
            };
            bus.known.insert(id, me);
        }
    }

    fn meet(&mut self, node: &NodeId) {
        let Some(bus) = self.bus(node) else { return };
        let mine = (bus.my_id.clone(), bus.me().cloned());
        let (my_id, Some(me)) = mine else { return };
        for address in bus.meeting.clone() {
            let Some(other) = self.addresses.get(&address).cloned() else { continue };
            if !self.reach(node, &other) {
                continue;
            }
            let Some(theirs) =
                self.bus(&other).and_then(|b| b.me().map(|p| (b.my_id.clone(), p.clone())))
            else {
                continue;
            };
            self.with_bus(&other, |bus| {
                bus.forgotten.remove(&my_id);
                bus.known.entry(my_id.clone()).or_insert_with(|| me.clone());
            });
            self.with_bus(node, |bus| {
                bus.forgotten.remove(&theirs.0);
                bus.known.entry(theirs.0.clone()).or_insert(theirs.1);
                bus.meeting.retain(|a| *a != address);
            });
        }
    }

    fn gossip(&mut self, node: &NodeId) {
        let t = self.t;
        if self.bus(node).is_none() {
            return;
        }
        // Taken out, so that it can be changed while the others are looked at.
        let Some(mut bus) = self.with_bus(node, std::mem::take) else { return };
        let my_id = bus.my_id.clone();
        let peers: Vec<(String, NodeId)> = bus
            .known
            .iter()
            .filter(|(id, _)| **id != my_id)
            .map(|(id, p)| (id.clone(), p.node.clone()))
            .collect();
        let timeout = self.node_timeout(node);
        for (id, peer) in peers {
            let heard = if self.reach(node, &peer) {
                self.bus(&peer).filter(|theirs| theirs.my_id == id)
            } else {
                None
            };
            match heard {
                Some(theirs) => bus.hear(&id, theirs, t),
                None => {
                    if let Some(known) = bus.known.get_mut(&id) {
                        let since = *known.silent_since.get_or_insert(t);
                        known.failed = t - since >= timeout;
                    }
                }
            }
        }
        self.with_bus(node, |there| *there = bus);
    }

    fn node_timeout(&self, node: &NodeId) -> i64 {
        let timeout = self.nodes.get(node).map(|n| n.config.cluster_node_timeout.0);
        timeout.map_or(5000, |timeout| i64::try_from(timeout).unwrap_or(i64::MAX))
    }

    /// A replica whose primary has failed asks for votes after a delay by its offset's rank.
    fn vote(&mut self, node: &NodeId) {
        let t = self.t;
        let jitter = self.rng.below(500);
        let Some(bus) = self.bus(node) else { return };
        let Some(me) = bus.me().filter(|me| me.role == Role::Replica) else { return };
        let Some(primary) = me.primary.as_ref().and_then(|id| bus.known.get(id)) else { return };
        if !primary.failed || primary.slots.is_empty() {
            self.with_bus(node, |bus| bus.election_at = None);
            return;
        }
        let owners: Vec<&BusPeer> =
            bus.known.values().filter(|p| p.role == Role::Primary && !p.slots.is_empty()).collect();
        let votes = owners.iter().filter(|p| !p.failed && self.reach(node, &p.node)).count();
        let offset = |id: &NodeId| {
            self.nodes.get(id).and_then(|n| n.process.as_ref()).map_or(0, |p| p.offset())
        };
        let mine = offset(node);
        let primary_id = me.primary.clone();
        let rank = bus
            .known
            .values()
            .filter(|p| p.primary == primary_id && p.node != *node && offset(&p.node) > mine)
            .count() as i64;
        let delay = 500 + jitter + rank * 1000;
        let majority = votes * 2 > owners.len();
        let due = bus.election_at.is_some_and(|at| at <= t);
        // Nobody votes for two replicas of one primary within twice the node timeout
        // (cluster.c, clusterSendFailoverAuthIfNeeded).
        let rests = 2 * self.node_timeout(node);
        let voted = primary_id.as_ref().and_then(|id| self.voted_at.get(id));
        let free = voted.is_none_or(|at| at + rests <= t);
        if due && majority && free {
            if self.take_slots(node)
                && let Some(primary) = primary_id
            {
                self.voted_at.insert(primary, t);
            }
        } else {
            self.with_bus(node, |bus| {
                bus.election_at.get_or_insert(t + delay);
            });
        }
    }

    /// The replica takes the slots of its primary (`TAKEOVER`, or the vote that it won).
    pub(super) fn take_slots(&mut self, node: &NodeId) -> bool {
        let taken = self.with_bus(node, |bus| {
            let primary = bus.me().filter(|me| me.role == Role::Replica)?.primary.clone()?;
            let slots = bus.known.get(&primary)?.slots.clone();
            bus.current_epoch += 1;
            let epoch = bus.current_epoch;
            let id = bus.my_id.clone();
            let old = bus.known.get_mut(&primary)?;
            old.slots = SlotSet::default();
            old.role = Role::Replica;
            old.primary = Some(id);
            let me = bus.me_mut()?;
            me.role = Role::Primary;
            me.primary = None;
            me.slots = slots;
            me.config_epoch = epoch;
            bus.election_at = None;
            Some(())
        });
        if taken.flatten().is_some() {
            self.note(|| format!("{node} takes its primary's slots"));
            true
        } else {
            false
        }
    }

    /// The server's replication follows its side of the bus.
    fn obey_bus(&mut self, node: &NodeId) {
        let t = self.t;
        let Some(bus) = self.bus(node) else { return };
        let Some(me) = bus.me() else { return };
        let upstream = match (me.role, &me.primary) {
            (Role::Primary, _) => None,
            (Role::Replica, Some(id)) => {
                Some(bus.known.get(id).map_or_else(nobody, |p| p.address.clone()))
            }
            (Role::Replica, None) => Some(nobody()),
        };
        let is_primary = self
            .nodes
            .get(node)
            .and_then(|n| n.process.as_ref())
            .is_some_and(|p| p.role == Role::Primary);
        match upstream {
            None if !is_primary => {
                let replid = self.rng.hex_id();
                self.with_process(node, |p| p.promote(replid));
            }
            None => {}
            Some(address) => self.with_process(node, |p| p.follow(address, t)),
        }
    }

    /// What the agent of a cluster-mode node does: start the server, and hand a dead primary's
    /// slots to a synced replica at once.
    pub(super) fn step_cluster_agent(&mut self, node: &NodeId) {
        let t = self.t;
        let Some(found) = self.nodes.get(node) else { return };
        let lost = found.disk.gone && !found.agent.memory.start_empty;
        let waits = found.start_not_before > t;
        if found.process.is_some() || lost || found.agent.held_back || waits {
            return;
        }
        let my_id = found.disk.bus.as_ref().map(|bus| bus.my_id.clone());
        let me = found.disk.bus.as_ref().and_then(|bus| bus.me().cloned());
        let owned = me.is_some_and(|me| me.role == Role::Primary && !me.slots.is_empty());
        if owned && let Some(my_id) = my_id {
            let best = self
                .nodes
                .keys()
                .filter(|id| self.reach(node, id))
                .filter(|id| {
                    self.bus(id).and_then(BusState::me).is_some_and(|p| {
                        p.role == Role::Replica && p.primary.as_ref() == Some(&my_id)
                    })
                })
                .max_by_key(|id| {
                    self.nodes.get(*id).and_then(|n| n.process.as_ref()).map_or(0, |p| p.offset())
                })
                .cloned();
            if let Some(best) = best {
                self.take_slots(&best);
            }
        }
        if let Some(found) = self.nodes.get_mut(node)
            && found.disk.gone
        {
            found.disk.gone = false;
            found.disk.bus = None;
            found.agent.memory.start_empty = false;
        }
        self.start_process(node, nobody());
    }

    /// `CLUSTER NODES` of the node's server.
    pub(super) fn cluster_view(&self, node: &NodeId) -> Option<ClusterView> {
        let bus = self.bus(node)?;
        let nodes = bus
            .known
            .iter()
            .map(|(id, p)| ClusterPeer {
                id: id.clone(),
                address: p.address.clone(),
                role: p.role,
                primary: p.primary.clone(),
                failed: p.failed,
                suspected: p.silent_since.is_some() && !p.failed,
                handshake: false,
                linked: *id == bus.my_id || p.silent_since.is_none(),
                config_epoch: p.config_epoch,
                slots: if p.role == Role::Primary { p.slots.clone() } else { SlotSet::default() },
                open: Vec::new(),
            })
            .collect();
        Some(ClusterView {
            my_id: bus.my_id.clone(),
            state_ok: bus.covered(),
            current_epoch: bus.current_epoch,
            nodes,
        })
    }

    pub(super) fn bus_add_slots(&mut self, node: &NodeId, ranges: &[SlotRange], epoch: u64) {
        self.with_bus(node, |bus| {
            bus.current_epoch = bus.current_epoch.max(epoch);
            if let Some(me) = bus.me_mut().filter(|me| me.role == Role::Primary) {
                for range in ranges {
                    me.slots.insert(*range);
                }
                if me.config_epoch == 0 {
                    me.config_epoch = epoch;
                }
            }
        });
    }

    pub(super) fn bus_replicate(&mut self, node: &NodeId, primary: &str) -> bool {
        self.with_bus(node, |bus| {
            let known = bus.known.get(primary).is_some_and(|p| p.role == Role::Primary);
            match bus.me_mut() {
                Some(me) if known && me.slots.is_empty() => {
                    me.role = Role::Replica;
                    me.primary = Some(primary.to_owned());
                    true
                }
                _ => false,
            }
        })
        .unwrap_or(false)
    }

    pub(super) fn bus_forget(&mut self, node: &NodeId, ids: &[String]) {
        let until = self.t + FORGET_MS;
        self.with_bus(node, |bus| {
            for id in ids {
                let mine = bus.me().and_then(|me| me.primary.as_ref()) == Some(id);
                if *id != bus.my_id && !mine {
                    bus.known.remove(id);
                    bus.forgotten.insert(id.clone(), until);
                }
            }
        });
    }
}
