//! The parameters of the servers that a user may set: one table, from which validation, the servers'
//! configuration and the API come.

mod check;
mod kind;
mod table;

pub use check::{ParameterContext, canonical, check_all};
pub use kind::{InvalidValue, Kind};
pub use table::TABLE;

use crate::architecture::NodeMode;
use crate::ids::EngineName;

/// When a new value takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applies {
    /// At once, in servers that run.
    Now,
    /// In new servers: nodes are made anew, one after the other, with the same data.
    NewServers,
}

impl Applies {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Now => "now",
            Self::NewServers => "new-servers",
        }
    }
}

/// One parameter, as the table has it.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    pub name: &'static str,
    /// Its name in versions from 7.0 on, where that is another one.
    pub later_name: Option<&'static str>,
    /// Among those that most users look for.
    pub common: bool,
    /// A stable word, kebab-case.
    pub group: &'static str,
    pub kind: Kind,
    /// As the servers of an instance have it unless it is set; `None`: it depends on the memory.
    pub default: Option<&'static str>,
    /// Of its number, where it has one.
    pub unit: &'static str,
    pub applies: Applies,
    pub place: Place,
    pub english: &'static str,
    pub chinese: &'static str,
}

/// Where a parameter means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Everywhere,
    /// Cluster instances only.
    Clusters,
    /// Not in clusters, which have one database.
    NotInClusters,
    /// Servers that read with threads only when told to: Redis, and not Valkey.
    Redis,
    /// Valkey from 9.0 on has it no longer.
    BeforeValkey9,
}

impl Parameter {
    /// The parameter of that name, by either of its names.
    pub fn find(name: &str) -> Option<&'static Self> {
        TABLE.iter().find(|it| it.name == name || it.later_name == Some(name))
    }

    /// What it is called in this engine.
    pub fn shown_in(&self, engine: &EngineName) -> &'static str {
        match self.later_name {
            Some(later) if !engine.as_str().starts_with("redis-6.") => later,
            _ => self.name,
        }
    }

    /// Instances of this engine and mode have it.
    pub fn is_in(&self, engine: &EngineName, mode: NodeMode) -> bool {
        match self.place {
            Place::Everywhere => true,
            Place::Clusters => mode == NodeMode::Clustered,
            Place::NotInClusters => mode == NodeMode::Leased,
            Place::Redis => !engine.as_str().starts_with("valkey-"),
            Place::BeforeValkey9 => valkey(engine).is_none_or(|major| major < 9),
        }
    }
}

/// The major version of a Valkey.
fn valkey(engine: &EngineName) -> Option<u32> {
    engine.as_str().strip_prefix("valkey-")?.split('.').next()?.parse().ok()
}
