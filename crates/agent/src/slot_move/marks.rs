//! Marks of slots, many at a time.
//!
//! Since Valkey 8.0 a primary has every replica acknowledge a mark before it sets it, and reads no
//! further command of that connection meanwhile (`cluster_legacy.c`, `clusterCommandSetSlot`): marks
//! that are sent one after the other wait for one round trip each. Over several connections they
//! wait for the same one.

use std::collections::BTreeMap;

use futures::future;
use larder_model::Address;
use larder_node::{Connection, NodeError, SlotMark};

use super::Ends;

/// Connections to one server, the one that is used anyway included.
const LANES: usize = 16;

pub(super) struct Marks<'a> {
    ends: &'a Ends,
    lanes: BTreeMap<Address, Vec<Connection>>,
}

impl<'a> Marks<'a> {
    pub(super) fn new(ends: &'a Ends) -> Self {
        Self { ends, lanes: BTreeMap::new() }
    }

    /// `CLUSTER SETSLOT` of each slot at the server at `address`, that `line` leads to. Answers in the
    /// order of the slots.
    ///
    /// # Errors
    /// Only when a connection fails.
    pub(super) async fn set(
        &mut self,
        line: &mut Connection,
        address: &Address,
        slots: &[u16],
        mark: SlotMark<'_>,
    ) -> Result<Vec<Result<(), NodeError>>, NodeError> {
        let each = slots.len().div_ceil(LANES).max(1);
        if !self.ends.marks_are_acknowledged || slots.len() <= each {
            return line.set_slots(slots, mark).await;
        }
        let (first, rest) = slots.split_at(each);
        let lanes = self.lanes.entry(address.clone()).or_default();
        lanes.retain(|lane| !lane.is_closed());
        while lanes.len() < rest.chunks(each).len() {
            lanes.push(self.ends.connect(address).await?);
        }
        let others = lanes.iter_mut().zip(rest.chunks(each));
        let others = others.map(|(lane, some)| lane.set_slots(some, mark));
        let (first, others) =
            future::try_join(line.set_slots(first, mark), future::try_join_all(others)).await?;
        Ok(first.into_iter().chain(others.into_iter().flatten()).collect())
    }
}
