//! What a cluster node is told of slots that go elsewhere, and what it has to find out itself.

use std::sync::Arc;
use std::time::Duration;

use futures::future;
use larder_model::agent::{ClusterPeer, ClusterView, Role};
use larder_model::{Address, Code, Refusal, SlotJob, SlotSet};
use larder_node::{Connection, NodeError, SlotMark};

use crate::clustered::not_ready;
use crate::core::Core;
use crate::engine::Engine;
use crate::render::SYSTEM_USER;
use crate::slot_move::{Ends, Mover};

/// Who does not answer by then is not waited for: a move of slots finds it out as well, later.
const ASKED: Duration = Duration::from_secs(2);

/// Begins to give slots away, unless that is under way. What it was told before arrives as far as it
/// is half-way, and then this is told again.
pub(crate) fn move_slots(core: &mut Core, job: &SlotJob) -> Result<(), Refusal> {
    if core.leaving {
        let text = "this node is on its way out, and hands over what it leads first";
        return Err(Refusal::new(Code::InstanceNotReady, text));
    }
    if let Some(mover) = core.mover.as_ref().filter(|mover| !mover.is_done()) {
        if !mover.covers(job) {
            mover.stop();
        }
        return Ok(());
    }
    let ends = ends(core);
    core.mover = Some(Mover::begin(job.clone(), ends, core.commands.clone()));
    Ok(())
}

fn ends(core: &Core) -> Ends {
    let engine = core.server.info().and_then(Engine::of);
    Ends {
        own: core.server.address().clone(),
        password: core.server.password().clone(),
        members: core.config.members.clone(),
        by_engine: engine.is_some_and(Engine::moves_slots),
        marks_are_acknowledged: engine.is_some_and(Engine::acknowledges_marks),
        reign: Arc::clone(&core.reign),
    }
}

pub(crate) async fn close(core: &mut Core, slots: &SlotSet) -> Result<(), Refusal> {
    let slots: Vec<u16> = slots.iter().collect();
    let hands = core.server.hands().await.map_err(|e| not_ready(&e))?;
    let closed = hands.set_slots(&slots, SlotMark::Stable).await;
    let closed = closed.and_then(|each| each.into_iter().collect());
    closed.map_err(|e| not_ready(&e))
}

/// This node's server leads in place of `former`, which may have been giving slots away. Marks are not
/// replicated (before Valkey 8): the server would answer that keys which have gone on do not exist,
/// and take new ones in their place. Who gets the slots knows which they are.
pub(crate) fn take_up_half_way(core: &Core, view: &ClusterView, former: &str) {
    let ends = ends(core);
    let others: Vec<(String, Address)> = (view.nodes.iter())
        .filter(|peer| peer.role == Role::Primary && peer.linked && !peer.failed)
        .filter(|peer| peer.id != view.my_id && peer.id != former)
        .map(|peer| (peer.id.clone(), ends.address_of(peer)))
        .collect();
    let former = former.to_owned();
    // Beside the loop: this node leads already.
    tokio::spawn(async move {
        let asked = others.into_iter().map(|(id, address)| {
            let (ends, former) = (&ends, &former);
            async move {
                let expected = expected_from(ends, &address, former);
                let expected = tokio::time::timeout(ASKED, expected).await;
                (id, address, expected)
            }
        });
        for (id, address, expected) in future::join_all(asked).await {
            let slots = match expected {
                Ok(Ok(slots)) if slots.is_empty() => continue,
                Ok(Ok(slots)) => slots,
                Ok(Err(error)) => {
                    tracing::info!(%address, %error, "slots on their way there not known");
                    continue;
                }
                Err(_) => {
                    tracing::info!(%address, "slots on their way there not known: no answer");
                    continue;
                }
            };
            match mark(&ends, &slots, &id).await {
                Ok(()) => {
                    tracing::info!(%slots, %address, "half-way there when this server took over")
                }
                Err(error) => {
                    tracing::info!(%slots, %address, %error, "half-way there, not marked")
                }
            }
        }
    });
}

/// Slots that the server expects from another one.
async fn expected_from(ends: &Ends, address: &Address, from: &str) -> Result<SlotSet, NodeError> {
    let mut line = connect(ends, address).await?;
    let view = line.cluster_view().await?;
    let open = view.me().map(|me: &ClusterPeer| me.open.as_slice()).unwrap_or_default();
    Ok(open.iter().filter(|open| !open.leaves && open.peer == from).map(|open| open.slot).collect())
}

/// Has the own server send clients after the keys, for slots that it has no mark of.
async fn mark(ends: &Ends, slots: &SlotSet, to: &str) -> Result<(), NodeError> {
    let mut line = connect(ends, &ends.own).await?;
    let view = line.cluster_view().await?;
    let Some(me) = view.me() else { return Ok(()) };
    let marked: SlotSet = me.open.iter().map(|open| open.slot).collect();
    let mine = slots.intersection(&me.slots).difference(&marked);
    let mine: Vec<u16> = mine.iter().collect();
    line.set_slots(&mine, SlotMark::Migrating(to)).await?.into_iter().collect()
}

async fn connect(ends: &Ends, address: &Address) -> Result<Connection, NodeError> {
    Connection::login(address, SYSTEM_USER, &ends.password, ASKED).await
}
