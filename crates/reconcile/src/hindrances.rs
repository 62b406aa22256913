//! What keeps nodes of one instance from coming to be, from one round to the next: what the
//! container cluster shows, and what it has answered to steps.

use std::collections::BTreeMap;

use larder_cluster::ClusterError;
use larder_model::plan::{PlannedStep, Step};
use larder_model::{Condition, Hindered, Hindrance, HindranceKind, NodeId, Observed, Timestamp};

use crate::execute::StepError;

/// Losing it costs little: what still stands in the way is seen again, or answered again to the
/// next try.
#[derive(Debug, Default)]
pub(crate) struct Hindrances {
    /// As of the last look, with the time of the first.
    seen: BTreeMap<NodeId, Hindered>,
    /// The answers to steps that were not taken.
    refused: BTreeMap<NodeId, Hindrance>,
    /// What a former process told of, which may have been such an answer: the container cluster
    /// shows nothing of it, and this process has not tried yet.
    resumed: BTreeMap<NodeId, Hindrance>,
}

impl Hindrances {
    /// What a former process has told of these nodes: it is not new, and not over before something
    /// says so.
    pub(crate) fn resume<'n>(
        &mut self,
        told: &[Condition],
        nodes: impl Iterator<Item = &'n NodeId>,
        now: Timestamp,
    ) {
        for node in nodes {
            let Some(by) = told.iter().find_map(|condition| former(condition, node)) else {
                continue;
            };
            // What leaves is the container cluster's to show.
            if by.kind != HindranceKind::VolumeLeaving {
                self.resumed.insert(node.clone(), by.clone());
            }
            self.seen.insert(node.clone(), Hindered::lasting(by, now));
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
        self.resumed.retain(|id, _| {
            let is_there = observed.nodes.get(id).is_some_and(|node| node.agent.known().is_some());
            !is_there && !said.contains_key(id)
        });
        for (id, node) in &mut observed.nodes {
            let answered = || self.refused.get(id).or_else(|| self.resumed.get(id));
            let Some(by) = said.get(id).or_else(answered) else { continue };
            // One may follow another without a moment in which nothing stands in the way.
            let hindered = match former.get(id) {
                Some(former) => Hindered { by: by.clone(), since: former.since },
                None => Hindered { by: by.clone(), since: now },
            };
            self.seen.insert(id.clone(), hindered.clone());
            node.hindered = Some(hindered);
        }
    }

    /// What is not planned any more was refused for nothing.
    pub(crate) fn planned(&mut self, steps: &[PlannedStep]) {
        let is_made = |node: &NodeId| {
            steps.iter().any(|planned| makes(&planned.step) && planned.step.node() == Some(node))
        };
        self.refused.retain(|node, _| is_made(node));
        self.resumed.retain(|node, _| is_made(node));
    }

    pub(crate) fn taken(&mut self, step: &Step) {
        let Some(node) = step.node().filter(|_| makes(step)) else { return };
        self.refused.remove(node);
        // An address alone may have been there before; which step was refused is not recorded.
        if matches!(step, Step::EnsureNode { .. }) {
            self.resumed.remove(node);
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
        self.resumed.remove(node);
        self.refused.insert(node.clone(), by);
    }
}

/// What the condition says of a node, if it names it: among others, each in words that follow its
/// id, between semicolons.
fn former(condition: &Condition, node: &NodeId) -> Option<Hindrance> {
    let kind = match condition.kind.as_str() {
        "node-blocked" => HindranceKind::parse(&condition.reason)?,
        "volume-leaving" => HindranceKind::VolumeLeaving,
        _ => return None,
    };
    let words = condition.message.split("; ").find_map(|part| {
        let (before, words) = part.split_once(node.as_str())?;
        (before.ends_with("node ") && words.starts_with(' ')).then(|| words.trim_start())
    })?;
    Some(Hindrance::new(kind, words))
}

/// Steps by which a node comes to be.
fn makes(step: &Step) -> bool {
    matches!(step, Step::ReserveAddress { .. } | Step::ExposeNode { .. } | Step::EnsureNode { .. })
}

#[cfg(test)]
mod tests {
    use larder_model::agent::{AgentStatus, ServerState, ServerStatus, VolumeState};
    use larder_model::{Code, InstanceId, Observation, ObservedNode, Refusal};

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

    fn planned(step: Step) -> PlannedStep {
        PlannedStep {
            instance: InstanceId::new("i-1").expect("valid"),
            generation: 1,
            reason: "it is not there".to_owned(),
            step,
        }
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

    fn status() -> AgentStatus {
        AgentStatus {
            node: node(),
            instance: InstanceId::new("i-1").expect("valid"),
            agent_run: "a".to_owned(),
            version: 1,
            generation: 1,
            at: Timestamp(0),
            server: ServerStatus {
                state: ServerState::Absent,
                unanswering_since: None,
                pid: None,
                run_id: None,
                engine_version: None,
                started_at: None,
                used_memory: None,
                maxmemory: None,
                users_revision: None,
                parameters: None,
                connected_clients: None,
            },
            volume: VolumeState::Fresh,
            replication: None,
            cluster: None,
            behind: false,
            slot_move: None,
            left_upstream: None,
            lease: None,
            problem: None,
            events: Vec::new(),
        }
    }

    fn blocked(message: &str) -> Condition {
        Condition {
            kind: "node-blocked".to_owned(),
            status: true,
            reason: "quota-exceeded".to_owned(),
            message: message.to_owned(),
        }
    }

    fn resumed(message: &str, now: i64) -> Hindrances {
        let mut all = Hindrances::default();
        all.resume(&[blocked(message)], [node()].iter(), Timestamp(now));
        all
    }

    const TOLD: &str = "node n-0 has no worker; node n-1 cannot be made: full; raise the quota";

    #[test]
    fn what_a_former_process_told_of_is_not_new() {
        let now = 1_000_000;
        let kind = HindranceKind::Unschedulable;
        let lasts = |told: &str| {
            let mut all = resumed(told, now);
            let first = after(&mut all, &says(kind, "0 of 3"), now).expect("hindered");
            assert!(after(&mut all, &BTreeMap::new(), now).is_none());
            let new = after(&mut all, &says(kind, "0 of 3"), now).expect("hindered");
            assert!(!new.lasts(Timestamp(now)), "a new one begins");
            first.lasts(Timestamp(now))
        };
        assert!(lasts(TOLD));
        assert!(!lasts("node n-12 has no worker; node n-0 cannot be made: as node n-1"));
    }

    #[test]
    fn what_a_former_process_told_of_stays_while_the_container_cluster_is_silent() {
        let (all, mut silent) = (resumed(TOLD, 0), observed());
        all.remain(&mut silent);
        let seen = silent.nodes[&node()].hindered.clone().expect("hindered");
        assert!(seen.lasts(Timestamp(0)));
        assert_eq!(seen.by, Hindrance::new(HindranceKind::QuotaExceeded, "cannot be made: full"));
    }

    #[test]
    fn what_a_former_process_told_of_is_over_once_the_node_is_known_to_be_free() {
        let step = Step::EnsureNode { node: node() };
        let plan = [planned(step.clone())];
        let lasts = |change: &dyn Fn(&mut Hindrances)| {
            let mut all = resumed(TOLD, 0);
            assert!(after(&mut all, &BTreeMap::new(), 0).is_some(), "nobody has tried yet");
            change(&mut all);
            after(&mut all, &BTreeMap::new(), 0).is_some()
        };
        assert!(lasts(&|all| all.planned(&plan)));
        assert!(lasts(&|all| all.taken(&Step::ReserveAddress { node: node() })));
        assert!(!lasts(&|all| all.taken(&step)));
        assert!(!lasts(&|all| all.planned(&[])));
        assert!(!lasts(&|all| {
            let mut observed = observed();
            observed.nodes.entry(node()).or_default().agent =
                Observation::Known { value: status(), at: Timestamp(0) };
            all.look(&mut observed, &BTreeMap::new(), Timestamp(0));
        }));
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
        all.planned(&[planned(step)]);
        assert!(after(&mut all, &BTreeMap::new(), 4).is_some());
        all.planned(&[]);
        assert!(after(&mut all, &BTreeMap::new(), 5).is_none());
    }
}
