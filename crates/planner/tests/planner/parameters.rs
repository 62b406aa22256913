//! Parameters: tried by one replica first, taken back when a server refuses them, and new servers for
//! what holds from a start only.

use std::collections::BTreeMap;

use larder_model::agent::{NodeConfig, ParametersState, RefusedParameter};
use larder_model::plan::{Plan, Step};
use larder_model::{Architecture, Code, InstanceState, NodeId, OperationKind, ParameterChange};

use crate::world::{SimNode, World};

/// What a node's server knows of its parameters.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Parameters {
    revision: u64,
    heard: BTreeMap<String, String>,
    started_with: BTreeMap<String, String>,
    /// Its server does not take this one.
    pub(crate) refuses: Option<&'static str>,
}

const FROM_THE_START: &str = "databases";

impl Parameters {
    pub(crate) fn hear(&mut self, config: Option<&NodeConfig>) {
        let Some(config) = config else { return };
        self.revision = config.parameters_revision;
        self.heard.clone_from(&config.parameters);
    }

    pub(crate) fn start_with(&mut self, config: &NodeConfig) {
        self.hear(Some(config));
        self.started_with.clone_from(&config.parameters);
    }
}

impl World {
    pub(crate) fn parameters_of(&self, sim: &SimNode) -> ParametersState {
        let known = &sim.parameters;
        let refused = known.refuses.filter(|name| known.heard.contains_key(*name));
        ParametersState {
            revision: known.revision,
            refused: refused.map(|name| RefusedParameter {
                name: name.to_owned(),
                words: "not in this build".to_owned(),
            }),
            stale: known.heard.get(FROM_THE_START) != known.started_with.get(FROM_THE_START),
        }
    }

    fn set(&mut self, name: &str, value: &str) {
        let from = self.desired.spec.parameters.get(name).cloned();
        let change = ParameterChange { name: name.to_owned(), from, to: Some(value.to_owned()) };
        self.change(OperationKind::SetParameters { changes: vec![change] }, |spec| {
            spec.parameters.insert(name.to_owned(), value.to_owned());
            spec.parameters_revision += 1;
            spec.parameters_refused = None;
        });
    }
}

/// Rounds in which each node was told.
fn told(plans: &[Plan]) -> Vec<(usize, NodeId)> {
    let mut told: Vec<(usize, NodeId)> = Vec::new();
    for (round, plan) in plans.iter().enumerate() {
        for planned in &plan.steps {
            if let Step::ConfigureNode { node } = &planned.step {
                told.push((round, node.clone()));
            }
        }
    }
    told
}

#[test]
fn one_replica_tries_new_values_before_anybody_else_hears_of_them() {
    let mut world = World::running(Architecture::Cluster, 3, 2, &["w1", "w2", "w3"]);
    let primaries: Vec<NodeId> = (0..3).filter_map(|shard| world.primary(shard)).collect();
    world.set("hz", "50");
    let plans = world.settle();
    assert_eq!((world.failure.clone(), world.desired.operation.clone()), (None, None));
    let told = told(&plans);
    assert_eq!(told.len(), 6, "{told:?}");
    assert!(!primaries.contains(&told[0].1) && told[0].0 < told[1].0, "{told:?}");
    assert!(world.nodes.values().all(|sim| sim.parameters.heard.contains_key("hz")));
    assert_eq!(world.plan().report.state, InstanceState::Running);
}

/// Pain 19: a wrong value takes the instance down, or is never applied while it is said to be.
#[test]
fn what_a_server_refuses_is_taken_back_with_its_words_and_only_one_replica_had_heard_of_it() {
    let mut world = World::running(Architecture::ReadWrite, 1, 3, &["w1", "w2", "w3"]);
    for sim in world.nodes.values_mut() {
        sim.parameters.refuses = Some("activedefrag");
    }
    world.set("activedefrag", "yes");
    let plans = world.settle();
    let failure = world.failure.clone().expect("refused");
    assert_eq!(failure.code, Code::UpdateFailed);
    assert_eq!(failure.field.as_deref(), Some("activedefrag"));
    assert!(failure.detail.contains("not in this build"), "{failure:?}");
    let during = plans.iter().position(|plan| plan.report.operation.is_none()).expect("ended");
    assert_eq!(told(&plans[..during]).len(), 1, "a single replica");
    assert!(world.desired.spec.parameters.is_empty());
    assert!(world.nodes.values().all(|sim| sim.parameters.heard.is_empty()), "the former values");
    assert_eq!(world.plan().report.state, InstanceState::UpdateFailed);
    // The next one that works is the end of it.
    world.set("hz", "50");
    world.settle();
    assert_eq!(world.plan().report.state, InstanceState::Running);
}

#[test]
fn what_holds_from_the_start_only_comes_with_new_nodes_and_goes_with_them_again() {
    for (architecture, replicas) in [(Architecture::Standalone, 1), (Architecture::ReadWrite, 2)] {
        let mut world = World::running(architecture, 1, replicas, &["w1", "w2", "w3"]);
        let before: Vec<NodeId> = world.nodes.keys().cloned().collect();
        world.set("databases", "32");
        world.settle();
        assert_eq!((world.failure.clone(), world.desired.operation.clone()), (None, None));
        assert!(world.nodes.keys().all(|node| !before.contains(node)), "all are new");
        assert_eq!(world.nodes.len(), before.len());
        let with = |world: &World, value: Option<&str>| {
            let has = |sim: &SimNode| sim.parameters.started_with.get("databases").cloned();
            world.nodes.values().all(|sim| has(sim).as_deref() == value)
        };
        assert!(with(&world, Some("32")));
        // Cancelled when the first new node is there.
        world.set("databases", "64");
        while world.nodes.len() == before.len() {
            world.pass();
        }
        world.pass();
        world.end_operation();
        world.settle();
        assert!(with(&world, Some("32")), "as before");
        assert_eq!(world.nodes.len(), before.len());
    }
}
