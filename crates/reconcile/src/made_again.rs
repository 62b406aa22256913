//! Tells when something that was there is gone from the container cluster and was made again:
//! somebody has deleted it there.

use std::collections::BTreeSet;

use larder_model::plan::Step;
use larder_model::{EndpointKind, NodeId, Observed};

/// What was there whole, and what of that is not any more. Losing it costs an event.
#[derive(Debug, Default)]
pub(crate) struct MadeAgain {
    whole: BTreeSet<Part>,
    gone: BTreeSet<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Node(NodeId),
    Endpoint(EndpointKind),
}

impl MadeAgain {
    /// Looks at an answer of the container cluster.
    pub(crate) fn look(&mut self, observed: &Observed) {
        for (id, node) in &observed.nodes {
            let is_whole = node.backend.known().is_some_and(|held| held.realised);
            self.seen(Part::Node(id.clone()), is_whole);
        }
        for (kind, endpoint) in &observed.endpoints {
            let is_whole = endpoint.known().is_some_and(|seen| seen.whole);
            self.seen(Part::Endpoint(*kind), is_whole);
        }
        // What was removed on purpose is nobody's to make again.
        let is_there = |part: &Part| match part {
            Part::Node(id) => observed.nodes.contains_key(id),
            Part::Endpoint(kind) => observed.endpoints.contains_key(kind),
        };
        self.whole.retain(is_there);
        self.gone.retain(is_there);
    }

    fn seen(&mut self, part: Part, is_whole: bool) {
        if is_whole {
            // Another's step has made it again, or one whose answer was lost.
            self.gone.remove(&part);
            self.whole.insert(part);
        } else if self.whole.remove(&part) {
            self.gone.insert(part);
        }
    }

    /// What a step has made again, in words; `None`: it has made something for the first time, or
    /// changed it.
    pub(crate) fn taken(&mut self, step: &Step) -> Option<String> {
        let (part, what) = match step {
            Step::EnsureNode { node } => (Part::Node(node.clone()), format!("node {node}")),
            Step::EnsureEndpoint { endpoint } => {
                (Part::Endpoint(*endpoint), format!("the {endpoint} endpoint"))
            }
            _ => return None,
        };
        self.gone.remove(&part).then(|| {
            format!(
                "{what}, or something of it, had been deleted in the container cluster, and was \
                 made again"
            )
        })
    }
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

    #[test]
    fn only_what_was_whole_before_is_made_again() {
        let step = Step::EnsureNode { node: id() };
        let mut all = MadeAgain::default();
        all.look(&observed(false));
        assert_eq!(all.taken(&step), None, "it is made for the first time");
        all.look(&observed(true));
        assert_eq!(all.taken(&step), None, "it is changed");
        all.look(&observed(false));
        all.look(&observed(false));
        assert!(all.taken(&step).is_some_and(|text| text.starts_with("node n-1")));
        assert_eq!(all.taken(&step), None, "said once");
        all.look(&observed(true));
        all.look(&observed(false));
        all.look(&observed(true));
        assert_eq!(all.taken(&step), None, "it is there again, and changed much later");
    }
}
