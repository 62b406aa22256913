//! One record per node: a random id, its own volume, its own stable address.

use serde::{Deserialize, Serialize};

use crate::address::Address;
use crate::exposure::OuterAddress;
use crate::ids::{EngineName, NodeId, WorkerName, ZoneName};
use crate::size::ByteSize;
use crate::spec::InstanceSpec;
use crate::time::Timestamp;

/// Where a node is in its life. Roles are not here: they are observed, never recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodePhase {
    /// Wanted: it is built, healed and kept.
    Wanted,
    /// On its way out: out of the topology first, then removed with its volume.
    Leaving,
}

/// The lasting record of one node. Written before anything of the node exists and deleted only
/// after everything of it has been seen to be gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub id: NodeId,
    pub shard: u32,
    pub worker: WorkerName,
    pub zone: Option<ZoneName>,
    /// Taken before the first start and kept for the node's life; `None` until it was reserved.
    pub address: Option<Address>,
    /// Where clients outside reach it; `None` where they do not, or until that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outer: Option<OuterAddress>,
    /// May take the very first lease of its instance, or get the first slots of its shard.
    pub bootstrap: bool,
    pub phase: NodePhase,
    pub created_at: Timestamp,
    /// What its server is. Never changes: another engine is another node.
    pub engine: EngineName,
    /// What it was given of memory; changed in place only where the container cluster can.
    pub memory: ByteSize,
    /// [`InstanceSpec::revision`](crate::InstanceSpec::revision) that it was made at.
    pub revision: u64,
    /// Since when it stands where it does in the order in which the nodes of a chained instance copy from
    /// each other: the longest comes first.
    pub in_line_since: Timestamp,
    /// Since when it is on its way out; of nodes that are.
    pub leaving_since: Option<Timestamp>,
    /// Its container cluster has put it on another worker than was recorded. Not kept: seen anew in
    /// each observation.
    #[serde(skip)]
    pub overruled: bool,
}

impl NodeRecord {
    /// The record of a node that is to be as the spec says now, before anything of it exists.
    pub fn new(
        id: NodeId,
        shard: u32,
        worker: WorkerName,
        zone: Option<ZoneName>,
        bootstrap: bool,
        spec: &InstanceSpec,
        created_at: Timestamp,
    ) -> Self {
        Self {
            id,
            shard,
            worker,
            zone,
            address: None,
            outer: None,
            bootstrap,
            phase: NodePhase::Wanted,
            created_at,
            engine: spec.engine.clone(),
            memory: spec.memory,
            revision: spec.revision,
            in_line_since: created_at,
            leaving_since: None,
            overruled: false,
        }
    }

    /// Whether this node's server can be what another server knows at `seen`.
    pub fn is_at(&self, seen: &Address) -> bool {
        self.address.as_ref() == Some(seen)
            || (self.outer.as_ref())
                .is_some_and(|outer| outer.is_seen_at(self.address.as_ref(), seen))
    }
}
