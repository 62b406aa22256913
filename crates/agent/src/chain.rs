//! The node's place in a chain of replicas, and the change from one link to another.

use std::time::Duration;

use larder_election::{Chain, LeaseView, Local, Peer, Stall};
use larder_model::agent::Member;
use larder_model::{Address, NodeId, Severity, Timestamp};

use crate::act::{nobody, replicate};
use crate::core::{Core, SAMPLE};

/// So long a server may be without a link while it waits for the one above to have as much as it has.
const CATCH_UP: Duration = Duration::from_millis(500);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What the agent remembers of it between decisions.
#[derive(Default)]
pub(crate) struct ChainPlace {
    /// The upstream that it was told last.
    told: Option<NodeId>,
    left: Option<NodeId>,
    stall: Option<Stall>,
}

impl ChainPlace {
    /// Takes in the configuration and a sample of the server.
    pub(crate) fn note(
        &mut self,
        core: &mut Core,
        local: &Local,
        peers: &[Peer],
        lease: &LeaseView,
        now: Timestamp,
    ) {
        if self.told != core.config.upstream {
            self.told.clone_from(&core.config.upstream);
            self.left = None;
        }
        self.stall = larder_election::stall(self.stall, local, peers, lease, now);
        core.left_upstream.clone_from(&self.left);
    }

    pub(crate) fn of(&self, core: &Core) -> Option<Chain> {
        core.config.chained.then(|| Chain {
            upstream: core.config.upstream.clone(),
            left: self.left.clone(),
            stall: self.stall,
        })
    }

    pub(crate) fn leave(&mut self, core: &mut Core, node: NodeId) {
        let message = format!("nothing comes from node {node} any more: copies from the primary");
        core.memory.event(Severity::Warning, "upstream-left", message);
        self.stall = None;
        self.left = Some(node);
        core.left_upstream.clone_from(&self.left);
    }

    /// Goes from a link that is well to `member`, once that one has as much as this server, which gets
    /// nothing meanwhile: asked by a server that is ahead, it would send everything anew.
    pub(crate) async fn join(&mut self, core: &mut Core, member: &Member) -> bool {
        let former = core.server.replication().and_then(|view| view.primary.clone());
        if !replicate(core, &nobody()).await {
            return false;
        }
        core.server.sample(SAMPLE).await;
        let has = core.server.replication().map(|view| view.offset);
        let is_there = tokio::time::timeout(CATCH_UP, async {
            loop {
                let answer = core.peers.report(&member.node).await;
                let theirs = answer.and_then(|answer| answer.report.replication);
                if theirs.map(|view| view.offset) >= has {
                    return;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        })
        .await
        .is_ok();
        core.beat();
        if !is_there {
            let back = former.unwrap_or_else(|| member.address.clone());
            self.leave(core, member.node.clone());
            replicate(core, &back).await;
            return false;
        }
        let done = replicate(core, &member.address).await;
        if done {
            said(core, &member.node, &member.address);
        }
        done
    }
}

/// The server copies from somebody else from now on.
pub(crate) fn said(core: &mut Core, node: &NodeId, address: &Address) {
    core.memory.event(Severity::Info, "following", format!("copies from node {node} at {address}"));
}
