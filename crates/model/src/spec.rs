//! What the user asked for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::architecture::Architecture;
use crate::error::{Code, Refusal};
use crate::exposure::Expose;
use crate::ids::{EngineName, InstanceId, InstanceName, ProjectName};
use crate::node::NodeRecord;
use crate::operation::Operation;
use crate::policy::PlannerPolicy;
use crate::size::ByteSize;
use crate::time::Timestamp;

/// Ranges of the spec's fields (spec rows A2, A4, B1).
pub mod limits {
    use crate::size::ByteSize;
    use std::ops::RangeInclusive;

    pub const MEMORY: RangeInclusive<ByteSize> = ByteSize::mib(128)..=ByteSize::gib(64);
    pub const CLUSTER_SHARDS: RangeInclusive<u32> = 3..=10;
    pub const CLUSTER_REPLICAS: RangeInclusive<u32> = 1..=3;
    pub const READ_ONLY_NODES: RangeInclusive<u32> = 1..=10;
    /// How many nodes more an instance may get by one change (spec row B6).
    pub const NODES_MORE: u32 = 10;
    pub const DESCRIPTION_BYTES: usize = 1024;
    pub const TAGS: usize = 32;
    pub const TAG_BYTES: usize = 128;
}

/// The wish for one instance. Every accepted change makes a new generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSpec {
    pub id: InstanceId,
    pub name: InstanceName,
    pub project: ProjectName,
    #[serde(default)]
    pub description: String,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    pub architecture: Architecture,
    pub engine: EngineName,
    /// Memory of each node; 80 % of it is `maxmemory`.
    pub memory: ByteSize,
    /// 1 except for cluster instances.
    pub shards: u32,
    /// Nodes per shard, the primary counted in.
    pub replicas: u32,
    /// Replicas copy from each other in a row, so that the primary feeds one of them only (spec row A3).
    #[serde(default)]
    pub chained: bool,
    /// Name of the container cluster where the nodes run: `local` is this machine.
    pub container_cluster: String,
    /// Name of a storage class of that container cluster: what the nodes' volumes are made of.
    #[serde(default = "standard_storage_class")]
    pub storage_class: String,
    /// How clients outside of the container cluster reach it; `None` where there is no choice
    /// (this machine), and in specs of versions that knew only the binding's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expose: Option<Expose>,
    /// Rises when its servers are to be new ones: nodes of an older revision are renewed. 0 at
    /// first.
    #[serde(default)]
    pub revision: u64,
    /// What is set of the servers' parameters, by name, each value in its one form. All others are at
    /// their defaults.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    /// Rises with every change of them.
    #[serde(default)]
    pub parameters_revision: u64,
    /// Why the last change of them was taken back; `None` once one has succeeded or another is tried.
    #[serde(default)]
    pub parameters_refused: Option<String>,
}

/// The container cluster that is the machine itself. All others are bound.
pub const LOCAL_CONTAINER_CLUSTER: &str = "local";

/// Whether a bound container cluster may have this name: it follows the rules of instances' names,
/// and is not this machine's.
///
/// # Errors
/// `invalid-name`, of the field `name`.
pub fn check_container_cluster_name(name: &str) -> Result<(), Refusal> {
    if name != LOCAL_CONTAINER_CLUSTER && InstanceName::new(name).is_ok() {
        return Ok(());
    }
    let detail = format!(
        "`{name}` cannot be a container cluster's name: use lower-case letters, digits and inner \
         hyphens, and not `{LOCAL_CONTAINER_CLUSTER}`, which is this machine"
    );
    Err(Refusal::new(Code::InvalidName, detail).field("name"))
}

/// The one storage class of this machine, and the class of specs that name none.
pub const STANDARD_STORAGE_CLASS: &str = "standard";

fn standard_storage_class() -> String {
    STANDARD_STORAGE_CLASS.to_owned()
}

impl InstanceSpec {
    /// How many nodes the instance has when it is whole.
    pub fn node_count(&self) -> u32 {
        self.shards * self.replicas
    }

    /// Clients outside have to reach every single node: the cluster protocol sends them there.
    pub fn exposes_nodes(&self) -> Option<Expose> {
        self.expose.filter(|way| way.is_outside() && self.architecture == Architecture::Cluster)
    }

    /// `maxmemory` of a node of this memory: 80 % of it, the rest is for forks and buffers.
    pub fn maxmemory_of(memory: ByteSize) -> ByteSize {
        ByteSize(memory.bytes() / 5 * 4)
    }

    /// [`InstanceSpec::maxmemory_of`] the memory that is wanted for each node.
    pub fn maxmemory(&self) -> ByteSize {
        Self::maxmemory_of(self.memory)
    }

    /// Checks every range that does not depend on what is installed or free.
    ///
    /// # Errors
    /// The first [`Refusal`], with the field at fault.
    pub fn check(&self) -> Result<(), Refusal> {
        if !limits::MEMORY.contains(&self.memory) {
            return Err(Refusal::new(
                Code::MemoryOutOfRange,
                format!(
                    "{} is outside of {} to {} of memory per node",
                    self.memory,
                    limits::MEMORY.start(),
                    limits::MEMORY.end()
                ),
            )
            .field("memory"));
        }
        let (shards, replicas, replicas_field) = match self.architecture {
            Architecture::Standalone => (1..=1, 1..=1, "replicas"),
            Architecture::ReadWrite => (
                1..=1,
                limits::READ_ONLY_NODES.start() + 1..=limits::READ_ONLY_NODES.end() + 1,
                "read_only_nodes",
            ),
            Architecture::Cluster => (limits::CLUSTER_SHARDS, limits::CLUSTER_REPLICAS, "replicas"),
        };
        if !shards.contains(&self.shards) {
            return Err(Refusal::new(
                Code::ShardsOutOfRange,
                format!(
                    "{} shards asked for; a {} instance has {}",
                    self.shards,
                    self.architecture,
                    range_text(&shards)
                ),
            )
            .field("shards"));
        }
        if !replicas.contains(&self.replicas) {
            let detail = match self.architecture {
                Architecture::ReadWrite => format!(
                    "{} read-only nodes asked for; a read-write instance has {}",
                    i64::from(self.replicas) - 1,
                    range_text(&limits::READ_ONLY_NODES)
                ),
                architecture => format!(
                    "{} nodes per shard asked for; a {architecture} instance has {} (the primary counted in)",
                    self.replicas,
                    range_text(&replicas)
                ),
            };
            return Err(Refusal::new(Code::ReplicasOutOfRange, detail).field(replicas_field));
        }
        if self.chained && self.architecture != Architecture::ReadWrite {
            let why = match self.architecture {
                Architecture::Cluster => {
                    "every replica of a cluster instance copies from its primary"
                }
                Architecture::Standalone | Architecture::ReadWrite => "this one has none",
            };
            let detail = format!("only replicas of read-write instances can be chained: {why}");
            return Err(Refusal::new(Code::InvalidRequest, detail).field("chained"));
        }
        check_description(&self.description)?;
        check_tags(&self.tags)
    }
}

fn range_text(range: &std::ops::RangeInclusive<u32>) -> String {
    if range.start() == range.end() {
        format!("exactly {}", range.start())
    } else {
        format!("{} to {}", range.start(), range.end())
    }
}

fn check_description(description: &str) -> Result<(), Refusal> {
    if description.len() > limits::DESCRIPTION_BYTES {
        return Err(Refusal::new(
            Code::InvalidRequest,
            format!("the description is longer than {} bytes", limits::DESCRIPTION_BYTES),
        )
        .field("description"));
    }
    Ok(())
}

fn check_tags(tags: &BTreeMap<String, String>) -> Result<(), Refusal> {
    let refuse = |detail: String| Err(Refusal::new(Code::InvalidRequest, detail).field("tags"));
    if tags.len() > limits::TAGS {
        return refuse(format!("more than {} tags", limits::TAGS));
    }
    for (key, value) in tags {
        if key.is_empty() || key.len() > limits::TAG_BYTES || value.len() > limits::TAG_BYTES {
            return refuse(format!(
                "tag keys have 1 to {0} bytes and values at most {0}",
                limits::TAG_BYTES
            ));
        }
    }
    Ok(())
}

/// What happens to an instance that is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeletePolicy {
    /// Instance and data are gone.
    Permanent,
}

/// Everything the planner may know of what is wanted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    pub spec: InstanceSpec,
    pub generation: u64,
    pub created_at: Timestamp,
    /// Set once deletion was asked for; there is no way back.
    pub deletion: Option<DeletePolicy>,
    /// One record per node, also of nodes that are about to go.
    pub nodes: Vec<NodeRecord>,
    /// The instance has served before. From then on nothing of it is ever started empty by itself.
    pub initialized: bool,
    /// The operation that holds the instance, if any.
    pub operation: Option<Operation>,
    /// Revision of the tenant's users and passwords that every server is to have.
    #[serde(default)]
    pub users_revision: u64,
    /// Until when a former password is valid, while there is one.
    #[serde(default)]
    pub former_password_until: Option<Timestamp>,
    pub policy: PlannerPolicy,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_clusters_name_is_a_slug_and_not_this_machines() {
        assert_eq!(check_container_cluster_name("east-1"), Ok(()));
        for wrong in ["local", "", "East", "a_b", "-a"] {
            let refusal = check_container_cluster_name(wrong).expect_err(wrong);
            assert_eq!((refusal.code, refusal.field.as_deref()), (Code::InvalidName, Some("name")));
        }
    }

    pub(crate) fn spec(architecture: Architecture, shards: u32, replicas: u32) -> InstanceSpec {
        InstanceSpec {
            id: InstanceId::new("i-1").expect("valid"),
            name: InstanceName::new("one").expect("valid"),
            project: ProjectName::new("default").expect("valid"),
            description: String::new(),
            tags: BTreeMap::new(),
            architecture,
            engine: EngineName::new("redis-7.0").expect("valid"),
            memory: ByteSize::mib(128),
            shards,
            replicas,
            chained: false,
            container_cluster: "local".into(),
            storage_class: standard_storage_class(),
            expose: None,
            parameters: BTreeMap::new(),
            parameters_revision: 0,
            parameters_refused: None,
            revision: 0,
        }
    }

    #[test]
    fn each_architecture_has_its_own_ranges() {
        use Architecture::{Cluster, ReadWrite, Standalone};
        for (architecture, shards, replicas, wrong) in [
            (Standalone, 1, 1, None),
            (Standalone, 2, 1, Some("shards")),
            (Standalone, 1, 2, Some("replicas")),
            (ReadWrite, 1, 2, None),
            (ReadWrite, 1, 11, None),
            (ReadWrite, 1, 1, Some("read_only_nodes")),
            (ReadWrite, 1, 12, Some("read_only_nodes")),
            (Cluster, 3, 1, None),
            (Cluster, 10, 3, None),
            (Cluster, 2, 2, Some("shards")),
            (Cluster, 11, 2, Some("shards")),
            (Cluster, 3, 0, Some("replicas")),
            (Cluster, 3, 4, Some("replicas")),
        ] {
            let field = spec(architecture, shards, replicas).check().err().and_then(|r| r.field);
            assert_eq!(field.as_deref(), wrong, "{architecture} {shards} x {replicas}");
        }
    }

    #[test]
    fn memory_below_and_above_the_range_is_refused() {
        for memory in [ByteSize::mib(127), ByteSize(ByteSize::gib(64).0 + 1)] {
            let mut spec = spec(Architecture::Standalone, 1, 1);
            spec.memory = memory;
            assert_eq!(spec.check().map_err(|r| r.code), Err(Code::MemoryOutOfRange));
        }
    }
}
