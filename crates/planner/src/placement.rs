//! On which worker a new node goes.

use larder_model::{
    Architecture, ByteSize, Code, Desired, NodePhase, NodeRecord, Observation, Observed, Refusal,
    Worker, WorkerName, WorkerState, ZoneName,
};

use crate::ensure;
use crate::view::View;

/// A worker chosen for a new node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    pub worker: WorkerName,
    pub zone: Option<ZoneName>,
}

/// A node that counts for the spreading: recorded, or chosen a moment ago.
#[derive(Clone, Debug)]
struct Placed {
    shard: u32,
    bootstrap: bool,
    worker: WorkerName,
    zone: Option<ZoneName>,
}

/// Chooses workers for several nodes in a row, each choice knowing the former ones.
pub(crate) struct Placer<'a> {
    desired: &'a Desired,
    workers: Vec<Load<'a>>,
    placed: Vec<Placed>,
}

struct Load<'a> {
    worker: &'a Worker,
    /// Promised in all, nodes that only have a record included. In bytes.
    requested: u64,
}

impl Load<'_> {
    fn has_room(&self, memory: ByteSize) -> bool {
        self.requested.saturating_add(memory.bytes()) <= self.worker.allocatable.bytes()
    }

    /// Millionths of the worker's memory that are promised.
    fn fullness(&self) -> u64 {
        let allocatable = u128::from(self.worker.allocatable.bytes().max(1));
        u64::try_from(u128::from(self.requested) * 1_000_000 / allocatable).unwrap_or(u64::MAX)
    }
}

impl<'a> Placer<'a> {
    pub(crate) fn new(desired: &'a Desired, observed: &'a Observed) -> Self {
        let workers = observed
            .workers
            .iter()
            .map(|worker| {
                // The backend counts what it holds; a record that it does not hold yet is a
                // promise too.
                let promised = desired
                    .nodes
                    .iter()
                    .filter(|record| record.worker == worker.name)
                    .filter(|record| !is_held(observed, record))
                    .fold(0, |sum: u64, record| sum.saturating_add(record.memory.bytes()));
                Load { worker, requested: worker.requested.bytes().saturating_add(promised) }
            })
            .collect();
        let placed = desired
            .nodes
            .iter()
            .filter(|record| record.phase == NodePhase::Wanted)
            .map(|record| Placed {
                shard: record.shard,
                bootstrap: record.bootstrap,
                worker: record.worker.clone(),
                zone: record.zone.clone(),
            })
            .collect();
        Self { desired, workers, placed }
    }

    /// Chooses a worker and remembers the choice; `None` when no worker may take the node.
    pub(crate) fn place(
        &mut self,
        shard: u32,
        bootstrap: bool,
        avoid: &[WorkerName],
    ) -> Option<Placement> {
        let spec = &self.desired.spec;
        let ready =
            self.workers.iter().filter(|load| load.worker.state == WorkerState::Ready).count();
        let least = self.desired.policy.cluster_min_workers;
        if spec.architecture == Architecture::Cluster
            && ready < usize::try_from(least).unwrap_or(usize::MAX)
        {
            return None;
        }
        let choice = self
            .workers
            .iter()
            .enumerate()
            .filter(|(_, load)| load.worker.state == WorkerState::Ready)
            .filter(|(_, load)| !avoid.contains(&load.worker.name))
            .filter(|(_, load)| load.has_room(spec.memory))
            .filter(|(_, load)| !self.would_hold_the_whole_shard(shard, load.worker, avoid))
            .min_by_key(|(index, load)| {
                (self.cost(shard, bootstrap, load), self.turn(shard, *index))
            })
            .map(|(index, _)| index)?;
        let load = &mut self.workers[choice];
        load.requested = load.requested.saturating_add(spec.memory.bytes());
        let placement =
            Placement { worker: load.worker.name.clone(), zone: load.worker.zone.clone() };
        self.placed.push(Placed {
            shard,
            bootstrap,
            worker: placement.worker.clone(),
            zone: placement.zone.clone(),
        });
        Some(placement)
    }

    /// Gives every recorded node the memory that is wanted now, where it is.
    ///
    /// # Errors
    /// A [`Refusal`] with `capacity-exceeded` for the first worker that has not got it.
    fn grow_in_place(&mut self) -> Result<(), Refusal> {
        let spec = &self.desired.spec;
        for load in &mut self.workers {
            let here = self.desired.nodes.iter().filter(|r| r.worker == load.worker.name);
            let more = here.fold(0, |sum: u64, record| {
                sum.saturating_add(spec.memory.bytes().saturating_sub(record.memory.bytes()))
            });
            let all = load.requested.saturating_add(more);
            if more > 0 && all > load.worker.allocatable.bytes() {
                return Err(Refusal::new(
                    Code::CapacityExceeded,
                    format!(
                        "worker `{}` of container cluster `{}` has {} free, and the nodes there \
                         would need {} more; free some memory, or ask for less",
                        load.worker.name,
                        spec.container_cluster,
                        ByteSize(load.worker.allocatable.bytes().saturating_sub(load.requested)),
                        ByteSize(more),
                    ),
                ));
            }
            load.requested = all;
        }
        Ok(())
    }

    /// All nodes of the shard on one worker would be lost together: the last one goes elsewhere,
    /// or waits for an elsewhere, unless there is only one worker at all.
    fn would_hold_the_whole_shard(
        &self,
        shard: u32,
        worker: &Worker,
        avoid: &[WorkerName],
    ) -> bool {
        if self.workers.len() < 2 {
            return false;
        }
        let others: Vec<&Placed> = self
            .placed
            .iter()
            .filter(|placed| placed.shard == shard && !avoid.contains(&placed.worker))
            .collect();
        !others.is_empty()
            && others.len() + 1 >= usize::try_from(self.desired.spec.replicas).unwrap_or(usize::MAX)
            && others.iter().all(|placed| placed.worker == worker.name)
    }

    /// Smaller is better: fewest nodes of the shard on the worker, then in its zone; first
    /// primaries apart from each other; then the least loaded worker.
    fn cost(
        &self,
        shard: u32,
        bootstrap: bool,
        load: &Load<'_>,
    ) -> (usize, usize, usize, usize, u64) {
        let count = |test: &dyn Fn(&Placed) -> bool| self.placed.iter().filter(|p| test(p)).count();
        let here = |placed: &Placed| placed.worker == load.worker.name;
        let same_zone = |placed: &Placed| placed.zone.is_some() && placed.zone == load.worker.zone;
        let of_shard = count(&|p| p.shard == shard && here(p));
        let of_shard_in_zone = count(&|p| p.shard == shard && same_zone(p));
        let (primaries, primaries_in_zone) = if bootstrap {
            (count(&|p| p.bootstrap && here(p)), count(&|p| p.bootstrap && same_zone(p)))
        } else {
            (0, 0)
        };
        (of_shard, of_shard_in_zone, primaries, primaries_in_zone, load.fullness())
    }

    /// Among equals by name, beginning after the worker of the shard's first node: so replicas of
    /// shards whose primaries are on different workers go to different workers too.
    fn turn(&self, shard: u32, index: usize) -> usize {
        let first = self.placed.iter().find(|placed| placed.shard == shard);
        let after = first
            .and_then(|first| self.workers.iter().position(|w| w.worker.name == first.worker))
            .map_or(0, |position| position + 1);
        let count = self.workers.len();
        (index + count - after % count) % count
    }
}

fn is_held(observed: &Observed, record: &NodeRecord) -> bool {
    observed
        .nodes
        .get(&record.id)
        .is_some_and(|node| matches!(node.backend, Observation::Known { .. }))
}

/// Where a further node of `shard` would go now, or `None` when no worker may take it. For
/// checks before a change; [`crate::plan`] chooses by the same rules.
pub fn place(
    desired: &Desired,
    observed: &Observed,
    shard: u32,
    bootstrap: bool,
) -> Option<Placement> {
    Placer::new(desired, observed).place(shard, bootstrap, &[])
}

/// Workers of a cluster instance where nodes are spread strictly: three shards of two nodes, each
/// on one of its own. The nodes of one shard are kept apart by the container cluster anyway; with fewer
/// workers the loss of one can take the primaries of two shards, and with them the majority.
const STRICT_WORKERS: u32 = 6;

/// Lets the ways of the container cluster count for the instance: how it spreads nodes (`None`: it
/// has no rule, and the policy stays as it is), and whether it can give a running node another memory.
pub fn rules_of_cluster(desired: &mut Desired, strictly: Option<bool>, resizes_in_place: bool) {
    desired.policy.resizes_in_place = resizes_in_place;
    if let Some(strictly) = strictly {
        desired.policy.cluster_min_workers = if strictly { STRICT_WORKERS } else { 0 };
    }
}

/// Whether all nodes that the spec still lacks would find a place now. For the check before a
/// creation or a growth is accepted; the places themselves are chosen by [`crate::plan`].
///
/// # Errors
/// A [`Refusal`] with `capacity-exceeded` that says how many nodes have no place.
pub fn check_room(desired: &Desired, observed: &Observed) -> Result<(), Refusal> {
    let view = View::new(desired, observed, desired.created_at);
    let mut missing = ensure::missing_nodes(&view);
    let spec = &desired.spec;
    let ready = observed.workers.iter().filter(|worker| worker.state == WorkerState::Ready).count();
    let least = usize::try_from(desired.policy.cluster_min_workers).unwrap_or(usize::MAX);
    if spec.architecture == Architecture::Cluster && ready < least && !missing.is_empty() {
        return Err(Refusal::new(
            Code::CapacityExceeded,
            format!(
                "a cluster instance is spread over {least} workers, and container cluster `{0}` has \
                 {ready} that take nodes; add workers, or let it do with fewer: `larder \
                 container-cluster set {0} --spread preferred`",
                spec.container_cluster,
            ),
        ));
    }
    let mut placer = Placer::new(desired, observed);
    if desired.policy.resizes_in_place {
        placer.grow_in_place()?;
    } else if let Some(old) = view.wanted.iter().find(|record| view.is_outdated(record)) {
        // One after the other: each new node takes the room of the old one before it.
        missing.push((old.shard, false));
    }
    let homeless = missing
        .iter()
        .filter(|(shard, bootstrap)| placer.place(*shard, *bootstrap, &[]).is_none())
        .count();
    if homeless == 0 {
        return Ok(());
    }
    Err(Refusal::new(
        Code::CapacityExceeded,
        format!(
            "container cluster `{}` has no place for {homeless} of {} nodes of {} each; free some \
             memory, or ask for fewer or smaller nodes",
            spec.container_cluster,
            missing.len(),
            spec.memory
        ),
    ))
}
