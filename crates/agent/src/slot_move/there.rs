//! Slots in the eyes of who gets them.

use larder_model::{SlotRange, SlotSet};
use larder_node::{Connection, SlotMark};

use super::Trouble;

/// Asked once for each connection.
pub(super) struct There {
    /// Somebody has them.
    owned: SlotSet,
    /// It expects them, from whomsoever.
    pub(super) expected: SlotSet,
}

impl There {
    pub(super) async fn ask(target: &mut Connection) -> Result<Self, Trouble> {
        let view = target.cluster_view().await?;
        let owned = view.nodes.iter().flat_map(|peer| peer.slots.ranges()).copied().collect();
        let open = view.me().into_iter().flat_map(|me| &me.open);
        let expected = open.filter(|open| !open.leaves).map(|open| open.slot).collect();
        Ok(Self { owned, expected })
    }

    /// Slots that the target expected from a former primary of this shard have no owner in its eyes
    /// once that one has become a replica: who came after it claims them, but a slot that is expected
    /// is not handed over by the bus (cluster.c, clusterUpdateSlotsConfigWith). It would take none of
    /// their keys.
    pub(super) async fn give_orphans(
        &mut self,
        target: &mut Connection,
        source_id: &str,
        slots: &[u16],
    ) -> Result<(), Trouble> {
        let orphans: Vec<u16> =
            slots.iter().copied().filter(|slot| !self.owned.contains(*slot)).collect();
        for result in target.set_slots(&orphans, SlotMark::Node(source_id)).await? {
            result?;
        }
        for slot in orphans {
            self.owned.insert(SlotRange { first: slot, last: slot });
        }
        Ok(())
    }
}
