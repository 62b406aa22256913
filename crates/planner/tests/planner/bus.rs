//! The cluster bus in the world of the tests: gossip, votes, and slots that move, some at a time.

use std::collections::BTreeSet;

use larder_model::agent::ServerState;
use larder_model::{NodeId, OpenSlot, SlotMoveStatus, SlotSet};

use crate::world::{SimNode, World};

/// So many slots arrive between two plans.
const AT_A_TIME: u32 = 300;

impl SimNode {
    pub(crate) fn told_to_move(&mut self, to_id: &str, slots: &SlotSet) {
        let same = |moving: &SlotMoveStatus| {
            !moving.done && moving.to_id == to_id && slots.difference(&moving.slots).is_empty()
        };
        if !self.moving.as_ref().is_some_and(same) {
            self.moving = Some(SlotMoveStatus {
                to_id: to_id.to_owned(),
                slots: slots.clone(),
                slots_done: 0,
                keys_moved: 0,
                bytes_moved: 0,
                done: false,
                problem: None,
            });
        }
    }
}

impl World {
    pub(crate) fn bus(&mut self) {
        // Gossip: who knows each other knows the same.
        let known: Vec<BTreeSet<String>> = self
            .nodes
            .values()
            .filter(|sim| sim.state == ServerState::Serving)
            .map(|sim| sim.knows.clone())
            .collect();
        let alive: BTreeSet<String> = self
            .nodes
            .values()
            .filter(|sim| sim.state == ServerState::Serving)
            .map(|sim| sim.id.clone())
            .collect();
        for sim in self.nodes.values_mut().filter(|sim| sim.state == ServerState::Serving) {
            for other in &known {
                if other.contains(&sim.id) {
                    sim.knows.extend(other.iter().filter(|id| alive.contains(*id)).cloned());
                }
            }
        }
        // A dead primary's replica is voted in.
        let orphans: Vec<NodeId> =
            self.nodes
                .iter()
                .filter(|(_, sim)| sim.state == ServerState::Serving && sim.follows.is_some())
                .filter(|(_, sim)| {
                    !self.nodes.values().any(|p| {
                        Some(&p.id) == sim.follows.as_ref() && p.state != ServerState::Dead
                    })
                })
                .map(|(id, _)| id.clone())
                .collect();
        for orphan in orphans {
            // Nobody votes for a shard without slots.
            let of = self.nodes[&orphan].follows.clone();
            let has_slots = |id: &String| {
                self.nodes.values().any(|sim| sim.id == *id && !sim.slots.is_empty())
                    || self.ghosts.get(id).is_some_and(|ghost| !ghost.slots.is_empty())
            };
            if of.as_ref().is_some_and(has_slots) {
                self.promote(&orphan, true);
            }
        }
        let serving: BTreeSet<String> = self
            .nodes
            .values()
            .filter(|sim| sim.state == ServerState::Serving)
            .map(|sim| sim.id.clone())
            .collect();
        for sim in self.nodes.values_mut() {
            sim.link_up = sim.follows.as_ref().is_some_and(|id| serving.contains(id));
        }
    }

    pub(crate) fn move_slots(&mut self) {
        let sources: Vec<_> = self.nodes.keys().cloned().collect();
        for node in sources {
            let sim = &self.nodes[&node];
            let Some(moving) = sim.moving.clone().filter(|moving| !moving.done) else { continue };
            if sim.state != ServerState::Serving {
                continue;
            }
            let left = moving.slots.intersection(&sim.slots);
            let now = left.first(AT_A_TIME);
            let from = sim.id.clone();
            let alive = |sim: &&mut SimNode| {
                sim.id == moving.to_id && sim.state == ServerState::Serving && sim.follows.is_none()
            };
            let Some(target) = self.nodes.values_mut().find(alive) else { continue };
            self.last_epoch += 1;
            target.epoch = self.last_epoch;
            now.ranges().iter().for_each(|range| target.slots.insert(*range));
            target.open.retain(|open| open.leaves || !now.contains(open.slot));
            let next = left.difference(&now).first(1);
            for slot in next.iter() {
                target.open.push(OpenSlot { slot, leaves: false, peer: from.clone() });
            }
            let sim = self.nodes.get_mut(&node).expect("it was there a moment ago");
            sim.slots = sim.slots.difference(&now);
            sim.open.retain(|open| !now.contains(open.slot));
            for slot in next.iter() {
                sim.open.push(OpenSlot { slot, leaves: true, peer: moving.to_id.clone() });
            }
            if let Some(moving) = &mut sim.moving {
                moving.slots_done += now.count();
                moving.keys_moved += u64::from(now.count());
                moving.done = next.is_empty();
            }
        }
    }
}
