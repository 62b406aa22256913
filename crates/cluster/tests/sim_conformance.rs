//! The simulator passes the suite that every backend has to pass, and carries cluster instances.

use std::sync::Arc;

use async_trait::async_trait;
use larder_cluster::conformance::{self, Subject};
use larder_cluster::sim::{Fault, Sim, SimConfig};
use larder_cluster::{Agents, Cluster};
use larder_model::agent::{AgentStatus, Fence, Member, NodeConfig, Order, Role};
use larder_model::local::NodeSecrets;
use larder_model::{
    ByteSize, ElectionPolicy, EngineName, InstanceId, InstanceName, Millis, NodeId, NodeMode,
    Secret, even_slots,
};

struct Simulated(Sim);

#[async_trait]
impl Subject for Simulated {
    fn cluster(&self) -> Arc<dyn Cluster> {
        Arc::new(self.0.cluster("local"))
    }

    fn engine(&self) -> EngineName {
        EngineName::new("redis-7.0").expect("valid")
    }

    /// The fleet outlives whoever asks it.
    async fn restart(&mut self) {}

    async fn pause(&self) {
        self.0.step_until(self.0.now() + 50);
    }
}

#[tokio::test]
async fn the_simulator_is_a_backend_like_any_other() {
    conformance::run(async || Simulated(Sim::new(1, SimConfig::default()))).await;
}

const FENCE: Fence = Fence { controller_epoch: 1, generation: 1 };

fn instance() -> InstanceId {
    InstanceId::new("i-c").expect("valid")
}

async fn status(sim: &Sim, node: &NodeId) -> AgentStatus {
    sim.status(&instance(), node).await.expect("the agent answers")
}

async fn my_id(sim: &Sim, node: &NodeId) -> String {
    status(sim, node).await.cluster.expect("cluster mode").my_id
}

/// Three shards of two nodes, formed by orders as the planner gives them.
async fn cluster_instance(sim: &Sim) -> Vec<NodeId> {
    let cluster = sim.cluster("local");
    let mut members = Vec::new();
    for i in 0..6_u32 {
        let node = NodeId::new(format!("n-{i}")).expect("valid");
        let address = cluster.reserve_address(FENCE, &instance(), &node).await.expect("an address");
        members.push(Member { outer: None, node, shard: i % 3, zone: None, address });
    }
    for (i, member) in members.iter().enumerate() {
        let config = NodeConfig {
            outer: None,
            renderer: 1,
            node: member.node.clone(),
            instance: instance(),
            instance_name: InstanceName::new("c").expect("valid"),
            shard: member.shard,
            zone: None,
            mode: NodeMode::Clustered,
            engine: EngineName::new("redis-7.0").expect("valid"),
            address: member.address.clone(),
            memory: ByteSize::mib(128),
            maxmemory: ByteSize::mib(102),
            cluster_node_timeout: Millis(5000),
            bootstrap: i < 3,
            initialized: false,
            members: members.clone(),
            worker: None,
            storage_class: None,
            parameters: std::collections::BTreeMap::new(),
            parameters_revision: 0,
            chained: false,
            upstream: None,
            has_read_endpoint: true,
            election: ElectionPolicy::default(),
            generation: 1,
        };
        let secrets = NodeSecrets::new(
            Secret::new("system"),
            Secret::new("0".repeat(64)),
            Secret::new("agents"),
        );
        cluster.ensure_node(FENCE, &config, &secrets).await.expect("a node");
    }
    sim.step_until(sim.now() + 1000);
    let order = async |node: &NodeId, order: Order| {
        sim.order_as(node, &order).await;
    };
    let peers = members.iter().map(|m| m.address.clone()).collect();
    order(&members[0].node, Order::ClusterMeet { peers }).await;
    for shard in 0..3 {
        let ranges = vec![even_slots(shard, 3)];
        let config_epoch = u64::from(shard) + 1;
        let node = &members[shard as usize].node;
        order(node, Order::ClusterAddSlots { ranges, config_epoch }).await;
    }
    sim.step_until(sim.now() + 2000);
    for i in 0..3 {
        let primary = my_id(sim, &members[i].node).await;
        order(&members[i + 3].node, Order::ClusterReplicate { primary }).await;
    }
    sim.step_until(sim.now() + 3000);
    members.into_iter().map(|m| m.node).collect()
}

/// Orders without the noise of arguments.
trait OrderAs {
    async fn order_as(&self, node: &NodeId, order: &Order);
}

impl OrderAs for Sim {
    async fn order_as(&self, node: &NodeId, order: &Order) {
        Agents::order(self, &instance(), node, FENCE, order).await.expect("the order is taken");
    }
}

#[tokio::test]
async fn a_cluster_instance_forms_and_a_replica_takes_its_primarys_slots() {
    let sim = Sim::new(3, SimConfig::default());
    let nodes = cluster_instance(&sim).await;
    for node in &nodes {
        let view = status(&sim, node).await.cluster.expect("cluster mode");
        assert!(view.state_ok, "{node} sees {view:?}");
        assert_eq!(view.nodes.len(), 6, "{node}");
    }
    let replica = status(&sim, &nodes[3]).await.replication.expect("it answers");
    assert!(replica.role == Role::Replica && replica.link_up, "{replica:?}");

    // The machine of a primary is gone: the vote, after the node timeout.
    let was = my_id(&sim, &nodes[0]).await;
    sim.inject(Fault::CrashWorker { node: nodes[0].clone(), length: 20_000 });
    sim.step_until(sim.now() + 10_000);
    let seen = status(&sim, &nodes[3]).await.cluster.expect("cluster mode");
    let taken = seen.me().expect("it knows itself");
    assert_eq!((taken.role, taken.slots.count()), (Role::Primary, 5461), "{seen:?}");

    // It returns as a replica of who has its slots now.
    sim.step_until(sim.now() + 20_000);
    let back = status(&sim, &nodes[0]).await.cluster.expect("cluster mode");
    assert_eq!(back.my_id, was);
    let me = back.me().expect("it knows itself");
    assert_eq!(me.primary.as_ref(), Some(&taken.clone().id), "{back:?}");
    assert!(sim.check().is_ok());
}
