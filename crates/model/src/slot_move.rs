//! Moving slots from one primary to another: what a source's agent is told, and what it says.

use serde::{Deserialize, Serialize};

use crate::address::Address;
use crate::size::ByteSize;
use crate::slots::SlotSet;

/// A slot that is on its way, in one server's own eyes (`CLUSTER NODES`: `[7->-id]`, `[7-<-id]`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenSlot {
    pub slot: u16,
    /// On its way out of this server; else on its way in.
    pub leaves: bool,
    /// The id of the server at the other end.
    pub peer: String,
}

/// Slots that a primary gives to another one. Told again it goes on: only what is not there yet is
/// moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotJob {
    pub slots: SlotSet,
    /// The server that gets them, and its id in the cluster.
    pub to: Address,
    pub to_id: String,
    /// So many replicas of it have to be in sync before a slot is opened.
    #[serde(default)]
    pub copies: u32,
    pub limits: MoveLimits,
}

/// How much of the servers' time a move of slots may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MovePace {
    /// Clients hardly notice: short bursts, and rests between them.
    Gentle,
    /// As fast as both servers can.
    Fast,
}

impl MovePace {
    pub const ALL: [Self; 2] = [Self::Gentle, Self::Fast];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gentle => "gentle",
            Self::Fast => "fast",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MoveLimits {
    pub pace: MovePace,
    /// A key that takes more memory than this is not moved: both servers stand still meanwhile.
    pub largest_key: ByteSize,
}

impl Default for MoveLimits {
    /// A key of 64 MiB keeps both ends busy for less than a second.
    fn default() -> Self {
        Self { pace: MovePace::Gentle, largest_key: ByteSize::mib(64) }
    }
}

/// How a job is getting on, in its agent's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotMoveStatus {
    pub to_id: String,
    /// All slots of the job.
    pub slots: SlotSet,
    pub slots_done: u32,
    pub keys_moved: u64,
    /// Memory that they took at the source; 0 where the servers do not say.
    pub bytes_moved: u64,
    /// Nothing is left to do, or it was told to stop.
    pub done: bool,
    /// Why it does not get on just now; it is tried again.
    pub problem: Option<String>,
}
