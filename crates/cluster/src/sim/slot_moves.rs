//! Slots on their way from one primary to another, some in each round of the bus. Only who has them
//! is modelled, not their keys: a slot is at one end or at the other.

use larder_model::agent::Role;
use larder_model::{NodeId, SlotJob, SlotMoveStatus, SlotSet};

use super::world::World;

/// So many slots arrive in a round.
const AT_A_TIME: u32 = 400;

impl World {
    pub(super) fn told_to_move(&mut self, node: &NodeId, job: &SlotJob) {
        let Some(found) = self.nodes.get_mut(node) else { return };
        let same = |moving: &SlotMoveStatus| {
            !moving.done
                && moving.to_id == job.to_id
                && job.slots.difference(&moving.slots).is_empty()
        };
        if found.agent.moving.as_ref().is_some_and(same) {
            return;
        }
        found.agent.moving = Some(SlotMoveStatus {
            to_id: job.to_id.clone(),
            slots: job.slots.clone(),
            slots_done: 0,
            keys_moved: 0,
            bytes_moved: 0,
            done: false,
            problem: None,
        });
    }

    pub(super) fn told_to_stop_moving(&mut self, node: &NodeId) {
        if let Some(moving) = self.nodes.get_mut(node).and_then(|n| n.agent.moving.as_mut()) {
            moving.done = true;
        }
    }

    pub(super) fn step_slot_move(&mut self, node: &NodeId) {
        let Some(found) = self.nodes.get(node).filter(|found| found.agent.runs(self.t)) else {
            return;
        };
        let Some(moving) = found.agent.moving.clone().filter(|moving| !moving.done) else { return };
        let Some(bus) = self.bus(node) else { return };
        let Some(me) = bus.me().filter(|me| me.role == Role::Primary) else { return };
        let (my_id, mine) = (bus.my_id.clone(), me.slots.clone());
        let Some(target) = bus.known.get(&moving.to_id).map(|peer| peer.node.clone()) else {
            return;
        };
        let left = moving.slots.intersection(&mine);
        let now = left.first(AT_A_TIME);
        let leads = self.bus(&target).is_some_and(|bus| {
            bus.my_id == moving.to_id && bus.me().is_some_and(|me| me.role == Role::Primary)
        });
        let may_arrive = leads && self.reach(node, &target);
        if !may_arrive && !now.is_empty() {
            return;
        }
        let epoch = self.with_bus(&target, |bus| {
            if !now.is_empty() {
                bus.current_epoch += 1;
            }
            let epoch = bus.current_epoch;
            for (id, peer) in &mut bus.known {
                if *id == bus.my_id {
                    add(&mut peer.slots, &now);
                    peer.config_epoch = epoch;
                } else {
                    peer.slots = peer.slots.difference(&now);
                }
            }
            epoch
        });
        self.with_bus(node, |bus| {
            for (id, peer) in &mut bus.known {
                if *id == my_id {
                    peer.slots = peer.slots.difference(&now);
                } else if *id == moving.to_id {
                    add(&mut peer.slots, &now);
                    peer.config_epoch = epoch.unwrap_or(peer.config_epoch);
                }
            }
        });
        if let Some(moving) = self.nodes.get_mut(node).and_then(|n| n.agent.moving.as_mut()) {
            moving.slots_done += now.count();
            moving.done = left.count() == now.count();
        }
        self.note(|| format!("{node} gives {} slots to {target}", now.count()));
    }
}

fn add(all: &mut SlotSet, more: &SlotSet) {
    more.ranges().iter().for_each(|range| all.insert(*range));
}
