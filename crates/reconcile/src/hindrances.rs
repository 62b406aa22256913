//! What keeps nodes of one instance from coming to be, from one round to the next: what the
//! container cluster shows, and what it has answered to steps.

use std::collections::{BTreeMap, BTreeSet};

use larder_cluster::ClusterError;
use larder_model::plan::{PlannedStep, Step};
use larder_model::{Condition, Hindered, Hindrance, HindranceKind, NodeId, Observed, Timestamp};

use crate::execute::StepError;

/// What a former process has told is not over because this one does not know of it yet.
#[derive(Debug, Default)]
pub(crate) struct Hindrances {
    former: Former,
    /// As of the last look, with the time of the first.
    seen: BTreeMap<NodeId, Hindered>,
    /// The answers to steps that were not taken.
    refused: BTreeMap<NodeId, Hindrance>,
}

/// What a former process has told, as far as it may still hold.
#[derive(Debug, Default)]
struct Former {
    conditions: Vec<Condition>,
    /// This process has had an answer of the container cluster.
    looked: bool,
    /// Nodes that something stood in the way of, and that were not seen without it since.
    blocked: BTreeSet<NodeId>,
    /// Those of them whose making, which may have been refused and nothing else, is to be tried
    /// again: the container cluster's answer to that counts.
    untried: BTreeSet<NodeId>,
}

const BLOCKED: &str = "node-blocked";

impl Hindrances {
    /// What a former process has told of these `nodes`: what it saw is not new.
    pub(crate) fn resume(&mut self, told: &[Condition], nodes: impl Iterator<Item = NodeId>) {
        let of_container_cluster =
            [BLOCKED, HindranceKind::VolumeLeaving.as_str()].map(str::to_owned);
        let conditions = told.iter().filter(|told| of_container_cluster.contains(&told.kind));
        let conditions: Vec<Condition> = conditions.cloned().collect();
        let blocked = conditions.iter().find(|told| told.kind == BLOCKED);
        let names =
            |id: &NodeId| blocked.is_some_and(|told| told.message.contains(&format!("node {id} ")));
        let blocked: BTreeSet<NodeId> = nodes.filter(names).collect();
        self.former = Former { looked: false, untried: blocked.clone(), blocked, conditions };
    }

    /// Puts into the `conditions` of this round what a former process has told and nothing has
    /// contradicted.
    pub(crate) fn carry(&self, conditions: &mut Vec<Condition>) {
        for told in &self.former.conditions {
            let holds = match self.former.looked {
                false => true,
                true => told.kind == BLOCKED && !self.former.untried.is_empty(),
            };
            if holds && !conditions.iter().any(|there| there.kind == told.kind) {
                conditions.push(told.clone());
            }
        }
    }

    /// The container cluster does not answer: nothing says that what stood in the way does not.
    pub(crate) fn remain(&self, observed: &mut Observed) {
        for (id, hindered) in &self.seen {
            if let Some(node) = observed.nodes.get_mut(id) {
                node.hindered = Some(hindered.clone());
            }
        }
    }

    /// Puts into `observed` what stands in the way. `said` is what the container cluster shows; its
    /// answer to a step counts where it shows nothing.
    pub(crate) fn look(
        &mut self,
        observed: &mut Observed,
        said: &BTreeMap<NodeId, Hindrance>,
        now: Timestamp,
    ) {
        let former = std::mem::take(&mut self.seen);
        self.former.looked = true;
        for (id, node) in &mut observed.nodes {
            let Some(by) = said.get(id).or_else(|| self.refused.get(id)) else { continue };
            // One may follow another without a moment in which nothing stands in the way.
            let hindered = match former.get(id) {
                Some(former) => Hindered { by: by.clone(), since: former.since },
                None if self.former.blocked.contains(id) => Hindered::lasting(by.clone(), now),
                None => Hindered { by: by.clone(), since: now },
            };
            self.seen.insert(id.clone(), hindered.clone());
            node.hindered = Some(hindered);
        }
        let Former { blocked, untried, .. } = &mut self.former;
        blocked.retain(|id| self.seen.contains_key(id) || untried.contains(id));
    }

    /// What is not planned any more was refused for nothing.
    pub(crate) fn planned(&mut self, steps: &[PlannedStep]) {
        let is_planned = |node: &NodeId| {
            steps.iter().any(|planned| makes(&planned.step) && planned.step.node() == Some(node))
        };
        self.refused.retain(|node, _| is_planned(node));
        self.former.untried.retain(is_planned);
    }

    pub(crate) fn taken(&mut self, step: &Step) {
        if let Some(node) = step.node().filter(|_| makes(step)) {
            self.refused.remove(node);
            self.former.untried.remove(node);
        }
    }

    /// The container cluster has answered no, or something that is no answer.
    pub(crate) fn refused(&mut self, step: &Step, error: &StepError) {
        let Some(node) = step.node().filter(|_| makes(step)) else { return };
        let by = match error {
            StepError::Cluster(ClusterError::Refused(refusal)) => {
                let kind = HindranceKind::of_refusal(refusal.code);
                Hindrance::new(kind, format!("cannot be made: {}", refusal.detail))
            }
            StepError::Cluster(ClusterError::Unreachable { reason, .. }) => {
                Hindrance::new(HindranceKind::Refused, format!("cannot be made: {reason}"))
            }
            StepError::Cluster(ClusterError::Stale { .. })
            | StepError::Agent(_)
            | StepError::Book(_)
            | StepError::OutOfDate(_) => return,
        };
        self.refused.insert(node.clone(), by);
        self.former.untried.remove(node);
    }
}

/// Steps by which a node comes to be.
fn makes(step: &Step) -> bool {
    matches!(step, Step::ReserveAddress { .. } | Step::ExposeNode { .. } | Step::EnsureNode { .. })
}

#[cfg(test)]
mod tests {
    use larder_model::{Code, InstanceId, ObservedNode, Refusal};

    use super::*;

    fn node() -> NodeId {
        NodeId::new("n-1").expect("valid")
    }

    fn observed() -> Observed {
        let nodes = BTreeMap::from([(node(), ObservedNode::default())]);
        Observed { nodes, ..Observed::default() }
    }

    fn after(
        all: &mut Hindrances,
        said: &BTreeMap<NodeId, Hindrance>,
        at: i64,
    ) -> Option<Hindered> {
        let mut observed = observed();
        all.look(&mut observed, said, Timestamp(at));
        observed.nodes.remove(&node()).and_then(|node| node.hindered)
    }

    fn says(kind: HindranceKind, words: &str) -> BTreeMap<NodeId, Hindrance> {
        BTreeMap::from([(node(), Hindrance::new(kind, words))])
    }

    #[test]
    fn a_hindrance_lasts_while_something_stands_in_the_way() {
        use HindranceKind::{Unschedulable, VolumeUnbound};
        let mut all = Hindrances::default();
        let since = |seen: Option<Hindered>| seen.expect("hindered").since.0;
        assert_eq!(since(after(&mut all, &says(Unschedulable, "0 of 3"), 10)), 10);
        assert_eq!(since(after(&mut all, &says(Unschedulable, "0 of 4"), 20)), 10);
        assert_eq!(since(after(&mut all, &says(VolumeUnbound, "no class"), 30)), 10);
        assert!(after(&mut all, &BTreeMap::new(), 40).is_none());
        assert_eq!(since(after(&mut all, &says(VolumeUnbound, "no class"), 50)), 50);
    }

    #[test]
    fn silence_of_the_container_cluster_takes_nothing_out_of_the_way() {
        let mut all = Hindrances::default();
        let kind = HindranceKind::Unschedulable;
        let before = after(&mut all, &says(kind, "0 of 3"), 10);
        let mut silent = observed();
        all.remain(&mut silent);
        assert_eq!(silent.nodes[&node()].hindered, before);
        let seen = after(&mut all, &says(kind, "0 of 3"), 20).expect("hindered");
        assert_eq!(seen.since.0, 10, "it is the same one");
    }

    fn told(kind: &str, message: &str) -> Condition {
        let (kind, message) = (kind.to_owned(), message.to_owned());
        Condition { kind, status: true, reason: "unschedulable".to_owned(), message }
    }

    fn ensures(node: NodeId) -> PlannedStep {
        PlannedStep {
            instance: InstanceId::new("i-1").expect("valid"),
            generation: 1,
            reason: "it is not there".to_owned(),
            step: Step::EnsureNode { node },
        }
    }

    /// What is told of a round that finds nothing of its own.
    fn carried(all: &Hindrances) -> Vec<String> {
        let mut conditions = Vec::new();
        all.carry(&mut conditions);
        conditions.into_iter().map(|condition| condition.kind).collect()
    }

    #[test]
    fn what_a_former_process_told_of_is_not_new() {
        let kind = HindranceKind::Unschedulable;
        let lasts = |told: &[Condition]| {
            let mut all = Hindrances::default();
            all.resume(told, [node()].into_iter());
            let now = Timestamp(1_000_000);
            let first = after(&mut all, &says(kind, "0 of 3"), now.0).expect("hindered");
            all.planned(&[]);
            let other = after(&mut all, &BTreeMap::new(), now.0);
            assert!(other.is_none());
            let new = after(&mut all, &says(kind, "0 of 3"), now.0).expect("hindered");
            assert!(!new.lasts(now), "a new one begins");
            first.lasts(now)
        };
        assert!(lasts(&[told(BLOCKED, "node n-1 has no room; add a worker")]));
        assert!(!lasts(&[told(BLOCKED, "node n-12 has no room")]), "of another node");
        assert!(!lasts(&[]));
    }

    #[test]
    fn what_a_former_process_told_of_holds_until_the_container_cluster_answers() {
        let former = [
            told(BLOCKED, "node n-1 has no room"),
            told("volume-leaving", "the volume of node n-1 is being deleted"),
            told("ready", "never of the container cluster's"),
        ];
        let mut all = Hindrances::default();
        all.resume(&former, [node()].into_iter());
        all.remain(&mut observed());
        assert_eq!(carried(&all), [BLOCKED, "volume-leaving"]);
        let mut seen = vec![told(BLOCKED, "node n-1 has no room, still")];
        all.carry(&mut seen);
        assert_eq!(seen.len(), 2, "{seen:?}");
        assert!(after(&mut all, &BTreeMap::new(), 1).is_none());
        all.planned(&[]);
        assert!(carried(&all).is_empty());
    }

    #[test]
    fn a_step_that_a_former_process_saw_refused_is_in_the_way_until_it_is_tried_again() {
        let step = Step::EnsureNode { node: node() };
        let refusal = Refusal::new(Code::CapacityExceeded, "exceeded quota: small");
        let error = StepError::Cluster(ClusterError::Refused(refusal));
        let resumed = || {
            let mut all = Hindrances::default();
            all.resume(&[told(BLOCKED, "node n-1 cannot be made")], [node()].into_iter());
            assert!(after(&mut all, &BTreeMap::new(), 1_000_000).is_none());
            all.planned(&[ensures(node())]);
            assert_eq!(carried(&all), [BLOCKED], "nobody has answered to the next try");
            all
        };
        let mut all = resumed();
        all.refused(&step, &error);
        let seen = after(&mut all, &BTreeMap::new(), 1_000_000).expect("hindered");
        assert!(seen.lasts(Timestamp(1_000_000)), "it is the same one");
        let mut all = resumed();
        all.taken(&step);
        assert!(after(&mut all, &BTreeMap::new(), 1_000_000).is_none());
        assert!(carried(&all).is_empty());
    }

    #[test]
    fn a_refused_step_stands_in_the_way_until_it_is_taken_or_planned_no_more() {
        let step = Step::EnsureNode { node: node() };
        let refusal = Refusal::new(Code::CapacityExceeded, "exceeded quota: small");
        let error = StepError::Cluster(ClusterError::Refused(refusal));
        let mut all = Hindrances::default();
        all.refused(&Step::StartEmpty { node: node() }, &error);
        assert!(after(&mut all, &BTreeMap::new(), 1).is_none(), "it makes no node");
        all.refused(&step, &error);
        let seen = after(&mut all, &BTreeMap::new(), 2).expect("hindered");
        assert_eq!(seen.by.kind, HindranceKind::QuotaExceeded);
        assert!(seen.by.message.contains("exceeded quota: small"), "{seen:?}");
        all.taken(&step);
        assert!(after(&mut all, &BTreeMap::new(), 3).is_none());
        all.refused(&step, &error);
        all.planned(&[ensures(node())]);
        assert!(after(&mut all, &BTreeMap::new(), 4).is_some());
        all.planned(&[]);
        assert!(after(&mut all, &BTreeMap::new(), 5).is_none());
    }
}
