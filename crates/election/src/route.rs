//! The route that the holder publishes.

use larder_model::agent::Member;
use larder_model::lease::{Route, RouteTarget};

use crate::action::Action;
use crate::chain;
use crate::world::{Context, Peer};

fn target(member: &Member) -> RouteTarget {
    RouteTarget { node: member.node.clone(), address: member.address.clone() }
}

/// Writes lead here, reads to the replicas that this primary says are online, and to those below them.
pub(crate) fn leading(c: &Context<'_>, epoch: u64, hold: bool) -> Route {
    let online = |peer: &Peer| {
        let mut replicas = c.local.server.replication.iter().flat_map(|view| &view.replicas);
        replicas.any(|replica| replica.online && replica.address == peer.member.address)
    };
    let mut read: Vec<RouteTarget> = c
        .peers
        .iter()
        .filter(|peer| online(peer) || chain::takes_reads(c, peer, epoch))
        .map(|peer| target(&peer.member))
        .collect();
    read.sort_by(|a, b| a.node.cmp(&b.node));
    Route { epoch, write: Some(target(&c.local.me)), read, hold }
}

/// No primary for a moment: new traffic waits. Reads stay where they were.
pub(crate) fn vacant(c: &Context<'_>, epoch: u64) -> Route {
    let read = c.local.route.iter().filter(|r| r.epoch == epoch).flat_map(|r| r.read.clone());
    Route { epoch, write: None, read: read.collect(), hold: true }
}

/// Publishes the route unless it is out already, or a newer one is.
pub(crate) fn publish(c: &Context<'_>, route: Route) -> Option<Action> {
    match &c.local.route {
        Some(there) if *there == route || there.epoch > route.epoch => None,
        _ => Some(Action::PublishRoute(route)),
    }
}
