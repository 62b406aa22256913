//! Tells when something that was there is gone from the container cluster and was made again:
//! somebody has deleted it there.

use std::collections::BTreeSet;
use std::fmt;

use larder_model::plan::Step;
use larder_model::{EndpointKind, NodeId, Observed};

/// What was there whole, and what of that is not any more. Losing it costs an event.
#[derive(Debug, Default)]
pub(crate) struct MadeAgain {
    whole: BTreeSet<Part>,
    gone: BTreeSet<Part>,
    /// What of that was ordered to be made again, and no answer came.
    ordered: BTreeSet<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Node(NodeId),
    Endpoint(EndpointKind),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(id) => write!(f, "node {id}"),
            Self::Endpoint(kind) => write!(f, "the {kind} endpoint"),
        }
    }
}

impl MadeAgain {
    /// Looks at an answer of the container cluster. Answers, in words, what is whole again by orders
    /// whose own answers were lost.
    pub(crate) fn look(&mut self, observed: &Observed) -> Option<String> {
        let mut again = Vec::new();
        for (id, node) in &observed.nodes {
            let is_whole = node.backend.known().is_some_and(|held| held.realised);
            again.extend(self.seen(Part::Node(id.clone()), is_whole));
        }
        for (kind, endpoint) in &observed.endpoints {
            let is_whole = endpoint.known().is_some_and(|seen| seen.whole);
            again.extend(self.seen(Part::Endpoint(*kind), is_whole));
        }
        // What was removed on purpose is nobody's to make again.
        let is_there = |part: &Part| match part {
            Part::Node(id) => observed.nodes.contains_key(id),
            Part::Endpoint(kind) => observed.endpoints.contains_key(kind),
        };
        self.whole.retain(is_there);
        self.gone.retain(is_there);
        self.ordered.retain(is_there);
        in_words(&again)
    }

    /// The part, if it is whole again by an order that had no answer.
    fn seen(&mut self, part: Part, is_whole: bool) -> Option<Part> {
        if !is_whole {
            if self.whole.remove(&part) {
                self.gone.insert(part);
            }
            return None;
        }
        self.whole.insert(part.clone());
        // By whomever it is: a later step only changes it.
        let was_gone = self.gone.remove(&part);
        (self.ordered.remove(&part) && was_gone).then_some(part)
    }

    /// What these steps have made again, in words; `None`: they have made something for the first
    /// time, or changed it. What several parts share is deleted once, and told of once.
    pub(crate) fn taken<'s>(&mut self, steps: impl Iterator<Item = &'s Step>) -> Option<String> {
        let again: Vec<Part> = steps.filter_map(made).filter(|p| self.gone.remove(p)).collect();
        in_words(&again)
    }

    /// Whether the step was taken will be seen.
    pub(crate) fn unanswered(&mut self, step: &Step) {
        self.ordered.extend(made(step).filter(|part| self.gone.contains(part)));
    }
}

/// What a step makes.
fn made(step: &Step) -> Option<Part> {
    match step {
        Step::EnsureNode { node } => Some(Part::Node(node.clone())),
        Step::EnsureEndpoint { endpoint } => Some(Part::Endpoint(*endpoint)),
        _ => None,
    }
}

fn in_words(again: &[Part]) -> Option<String> {
    let (of, were) = match again {
        [] => return None,
        [_] => ("it", "was"),
        _ => ("them", "were"),
    };
    let parts: Vec<String> = again.iter().map(Part::to_string).collect();
    Some(format!(
        "{}, or something of {of}, had been deleted in the container cluster, and {were} made again",
        parts.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use larder_model::{
        Address, BackendNode, Exposed, Observation, ObservedNode, Timestamp, WorkerName,
    };

    use super::*;

    fn id() -> NodeId {
        NodeId::new("n-1").expect("valid")
    }

    fn observed(realised: bool) -> Observed {
        let value = BackendNode {
            outdated: false,
            worker: WorkerName::new("w1").expect("valid"),
            address: Some(Address::new("10.0.0.1", 6379)),
            realised,
            volume: true,
            generation: 1,
            exposed: Exposed::No,
        };
        let backend = Observation::Known { value, at: Timestamp(1) };
        let node = ObservedNode { backend, ..ObservedNode::default() };
        Observed { nodes: BTreeMap::from([(id(), node)]), ..Observed::default() }
    }

    fn step() -> Step {
        Step::EnsureNode { node: id() }
    }

    fn taken(all: &mut MadeAgain) -> Option<String> {
        all.taken([step()].iter())
    }

    #[test]
    fn only_what_was_whole_before_is_made_again() {
        let mut all = MadeAgain::default();
        all.look(&observed(false));
        assert_eq!(taken(&mut all), None, "it is made for the first time");
        all.look(&observed(true));
        assert_eq!(taken(&mut all), None, "it is changed");
        all.look(&observed(false));
        all.look(&observed(false));
        assert!(taken(&mut all).is_some_and(|text| text.starts_with("node n-1, or something")));
        assert_eq!(taken(&mut all), None, "said once");
        assert_eq!(all.look(&observed(true)), None, "said once");
    }

    #[test]
    fn what_is_whole_again_by_an_order_without_an_answer_is_told_when_it_is_seen() {
        let mut all = MadeAgain::default();
        all.look(&observed(true));
        all.look(&observed(false));
        all.unanswered(&step());
        assert_eq!(all.look(&observed(false)), None);
        assert!(all.look(&observed(true)).is_some_and(|text| text.starts_with("node n-1")));
        assert_eq!(all.look(&observed(true)), None, "said once");
        assert_eq!(taken(&mut all), None, "it is changed");
    }

    #[test]
    fn what_became_whole_by_itself_is_not_told_with_a_later_change() {
        let mut all = MadeAgain::default();
        all.look(&observed(true));
        all.look(&observed(false));
        assert_eq!(all.look(&observed(true)), None);
        assert_eq!(taken(&mut all), None, "it is changed");
    }

    #[test]
    fn what_is_made_again_together_is_told_in_one() {
        let mut all = MadeAgain::default();
        let kind = EndpointKind::Write;
        let steps = [step(), Step::EnsureEndpoint { endpoint: kind }];
        all.gone.extend(steps.iter().filter_map(made));
        let text = all.taken(steps.iter()).expect("told");
        assert!(text.starts_with("node n-1, the write endpoint, or something of them"), "{text}");
    }
}
