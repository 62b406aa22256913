//! Faults taking effect.

use larder_model::{NodeId, WorkerName};

use super::fault::Fault;
use super::world::World;

impl World {
    fn worker_of(&self, node: &NodeId) -> Option<WorkerName> {
        self.nodes.get(node).map(|n| n.worker.clone())
    }

    /// The node is not well until then.
    fn unwell(&mut self, node: &NodeId, until: i64) {
        if let Some(found) = self.nodes.get_mut(node) {
            found.well_since = found.well_since.max(until);
        }
    }

    fn kill_agent(&mut self, node: &NodeId) {
        let back_at = self.t + 200 + self.rng.below(800);
        if let Some(found) = self.nodes.get_mut(node) {
            found.agent.up = false;
            found.agent.back_at = back_at;
            found.agent.waiting = None;
            found.agent.plan.clear();
        }
    }

    /// Does what the fault says, now.
    pub(super) fn apply(&mut self, fault: Fault) {
        let t = self.t;
        self.note(|| format!("FAULT {fault:?}"));
        let mut over = t;
        match fault {
            Fault::KillServer { node } => {
                self.unwell(&node, t);
                self.kill_process(&node, false);
            }
            Fault::KillAgent { node } => {
                self.unwell(&node, t + 1500);
                over = t + 1000;
                self.kill_agent(&node);
            }
            Fault::KillNode { node } => {
                self.unwell(&node, t + 1500);
                over = t + 1000;
                self.kill_process(&node, false);
                self.kill_agent(&node);
            }
            Fault::StopAgent { node, length } => {
                over = t + length;
                self.unwell(&node, over);
                if let Some(found) = self.nodes.get_mut(&node) {
                    found.agent.stopped_until = found.agent.stopped_until.max(over);
                }
            }
            Fault::StopServer { node, length } => {
                over = t + length;
                self.unwell(&node, over);
                self.with_process(&node, |p| {
                    if p.stopped_since.is_none() {
                        p.stopped_since = Some(t);
                    }
                });
                let run_id = self.run_id_of(&node);
                self.resumes.push((over, node, run_id));
            }
            Fault::CrashWorker { node, length } => {
                over = t + length;
                if let Some(worker) = self.worker_of(&node) {
                    self.crash(&worker, over);
                }
            }
            Fault::DeleteVolume { node } => {
                self.unwell(&node, t);
                self.kill_process(&node, false);
                if let Some(found) = self.nodes.get_mut(&node) {
                    found.disk.gone = found.disk.born;
                    found.disk.log.clear();
                    found.disk.bus = None;
                }
            }
            Fault::Isolate { node, length } => {
                over = t + length;
                self.unwell(&node, over);
                if let Some(worker) = self.worker_of(&node) {
                    self.isolated.push((worker, over));
                }
            }
            Fault::CutReplication { node, length } => {
                over = t + length;
                self.unwell(&node, over);
                if let Some(found) = self.nodes.get_mut(&node) {
                    found.replication_cut_until = over;
                }
            }
            Fault::Lease { node, trouble, length } => {
                over = t + length + 2000;
                let worker = node.and_then(|n| self.worker_of(&n));
                self.lease_well_since = self.lease_well_since.max(over);
                self.lease_trouble.push((worker, trouble, t + length));
            }
            Fault::LoseLease { node } => {
                if let Some(key) = self.shard_of(&node)
                    && let Some(shard) = self.shards.get_mut(&key)
                {
                    shard.lease.value = None;
                }
                for found in self.nodes.values_mut() {
                    found.agent.known = None;
                    found.agent.read_at = larder_model::Timestamp(0);
                }
            }
            Fault::LoseParts { node } => {
                let instance = self.nodes.get(&node).map(|n| n.config.instance.clone());
                for node in self.nodes.values_mut() {
                    node.whole &= Some(&node.config.instance) != instance.as_ref();
                }
                for ((of, _), endpoint) in &mut self.endpoints {
                    endpoint.whole &= Some(of) != instance.as_ref();
                }
            }
            Fault::SlowSync { sync_ms } => self.sync_ms = sync_ms,
            Fault::StopKeeper { node, length } => {
                over = t + length;
                if let Some(worker) =
                    self.worker_of(&node).and_then(|name| self.workers.get_mut(&name))
                {
                    worker.keeper_stopped_until = over;
                }
            }
            Fault::ClusterUnreachable { length } => {
                over = t + length;
                self.cluster_unreachable_until = over;
            }
            Fault::LoseReplies { length } => {
                over = t + length;
                self.replies_lost_until = over;
            }
        }
        self.last_fault = self.last_fault.max(over);
    }

    /// Whatever lasts is over now. What was killed stays dead until somebody starts it.
    pub(super) fn heal(&mut self) {
        let t = self.t;
        self.note(|| "HEAL".to_owned());
        for (_, until) in &mut self.isolated {
            *until = (*until).min(t);
        }
        for (_, _, until) in &mut self.lease_trouble {
            *until = (*until).min(t);
        }
        self.lease_well_since = self.lease_well_since.min(t + 2000);
        for node in self.nodes.values_mut() {
            node.replication_cut_until = node.replication_cut_until.min(t);
            node.agent.stopped_until = node.agent.stopped_until.min(t);
            node.well_since = node.well_since.min(t + 1500);
        }
        for (at, _, _) in &mut self.resumes {
            *at = t;
        }
        for worker in self.workers.values_mut() {
            worker.keeper_stopped_until = worker.keeper_stopped_until.min(t);
            worker.down_until = worker.down_until.min(t);
        }
        for node in self.nodes.values_mut().filter(|n| !n.agent.up) {
            node.agent.back_at = node.agent.back_at.min(t + 1000);
        }
        self.last_fault = self.last_fault.min(t + 1000);
    }

    fn crash(&mut self, worker: &WorkerName, until: i64) {
        let nodes: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(|(_, n)| n.worker == *worker)
            .map(|(id, _)| id.clone())
            .collect();
        for node in nodes {
            self.unwell(&node, until + 1500);
            self.kill_process(&node, true);
            self.kill_agent(&node);
            if let Some(found) = self.nodes.get_mut(&node) {
                found.agent.back_at = until;
            }
        }
        if let Some(found) = self.workers.get_mut(worker) {
            found.down_until = found.down_until.max(until);
        }
    }

    /// Stopped servers go on, unless they were killed meanwhile.
    pub(super) fn resume_stopped(&mut self) {
        let t = self.t;
        let due: Vec<(i64, NodeId, Option<String>)> =
            self.resumes.iter().filter(|(at, _, _)| *at <= t).cloned().collect();
        self.resumes.retain(|(at, _, _)| *at > t);
        for (_, node, run_id) in due {
            self.with_process(&node, |p| {
                if run_id.is_none() || run_id.as_ref() == Some(&p.run_id) {
                    p.stopped_since = None;
                }
            });
        }
    }
}
