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
/// Until a server has heard of what it did not know.
const HEARD: Duration = Duration::from_millis(50);

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
    let (former, my_id) = (former.to_owned(), view.my_id.clone());
    // Beside the loop: this node leads already.
    tokio::spawn(async move {
        let each = others.iter().map(|(id, address)| {
            let taken_up = take_up_from(&ends, &former, &my_id, (id, address));
            async { tokio::time::timeout(ASKED, taken_up).await }
        });
        let done = future::join_all(each).await;
        for ((_, address), done) in others.iter().zip(done) {
            match done {
                Ok(Ok(slots)) if slots.is_empty() => {}
                Ok(Ok(slots)) => {
                    tracing::info!(%slots, %address, "half-way there when this server took over");
                }
                Ok(Err(error)) => {
                    tracing::info!(%address, %error, "slots on their way there not taken up");
                }
                Err(_) => tracing::info!(%address, "slots on their way there not taken up in time"),
            }
        }
    });
}

/// Answers which slots are on their way to that server.
async fn take_up_from(
    ends: &Ends,
    former: &str,
    my_id: &str,
    (id, address): (&str, &Address),
) -> Result<SlotSet, NodeError> {
    let mut there = connect(ends, address).await?;
    let view = there.cluster_view().await?;
    let open = view.me().map(|me: &ClusterPeer| me.open.as_slice()).unwrap_or_default();
    let expected = open.iter().filter(|open| !open.leaves && open.peer == former);
    let slots: SlotSet = expected.map(|open| open.slot).collect();
    if slots.is_empty() {
        return Ok(slots);
    }
    mark(ends, &slots, id).await?;
    // A slot that is expected is not handed over by the bus (cluster.c, clusterUpdateSlotsConfigWith):
    // with an owner that is dead, or none, the server would take the whole cluster for down. It may
    // not have heard yet that this one is a primary.
    let each: Vec<u16> = slots.iter().collect();
    loop {
        let told = there.set_slots(&each, SlotMark::Node(my_id)).await?;
        if told.iter().all(Result::is_ok) {
            return Ok(slots);
        }
        tokio::time::sleep(HEARD).await;
    }
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
