//! What the relay knows now of where connections lead, and the rules that follow from it.

use std::sync::Arc;

use larder_model::EndpointKind;
use larder_model::agent::Member;
use larder_model::lease::{Route, RouteTarget};

/// Replaced whole; readers hold the version they started with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// The newest route by epoch, then by its number in the log.
    pub(crate) route: Option<Arc<Route>>,
    pub(crate) route_seq: u64,
    /// All nodes, for discovery.
    pub(crate) members: Arc<Vec<RouteTarget>>,
}

/// Why a route was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stale {
    /// It is the one that is known already, or one before it.
    Known,
    /// A former holder wrote it: an older epoch under a newer number.
    OlderEpoch { known: u64, offered: u64 },
}

impl View {
    /// The view with another route, unless that one is older.
    pub(crate) fn with_route(&self, seq: u64, route: Route) -> Result<Self, Stale> {
        if let Some(known) = &self.route {
            if route.epoch < known.epoch {
                return Err(Stale::OlderEpoch { known: known.epoch, offered: route.epoch });
            }
            if route.epoch == known.epoch && seq <= self.route_seq {
                return Err(Stale::Known);
            }
        }
        Ok(Self {
            route: Some(Arc::new(route)),
            route_seq: seq,
            members: Arc::clone(&self.members),
        })
    }

    pub(crate) fn with_members(&self, members: &[Member]) -> Self {
        let members = members
            .iter()
            .map(|m| RouteTarget { node: m.node.clone(), address: m.address.clone() })
            .collect();
        Self { members: Arc::new(members), ..self.clone() }
    }

    fn write(&self) -> Option<&RouteTarget> {
        self.route.as_ref()?.write.as_ref()
    }

    fn read(&self) -> &[RouteTarget] {
        self.route.as_ref().map_or(&[], |route| &route.read)
    }

    fn hold(&self) -> bool {
        self.route.as_ref().is_none_or(|route| route.hold)
    }

    /// Where new connections may go just now; any of them is as good as another.
    pub(crate) fn open(&self, kind: EndpointKind) -> &[RouteTarget] {
        match kind {
            EndpointKind::Write if self.hold() => &[],
            EndpointKind::Write => self.write().map_or(&[], std::slice::from_ref),
            EndpointKind::Read => self.read(),
            EndpointKind::Discovery => &self.members,
        }
    }

    /// Where new connections go when none of [`View::open`] takes them.
    pub(crate) fn fallback(&self, kind: EndpointKind) -> Option<&RouteTarget> {
        match kind {
            EndpointKind::Read if !self.hold() => self.write(),
            _ => None,
        }
    }

    /// Whether a connection that was made to `target` may go on. A hold ends none: the agent
    /// closes what has to be closed when writes are paused.
    pub(crate) fn keeps(&self, kind: EndpointKind, target: &RouteTarget, fallback: bool) -> bool {
        let is_primary = self.write() == Some(target);
        match kind {
            EndpointKind::Write => is_primary,
            // A replica that was promoted is left for another one, when there is one.
            EndpointKind::Read => {
                self.read().contains(target) || (is_primary && (fallback || self.read().is_empty()))
            }
            EndpointKind::Discovery => self.members.contains(target),
        }
    }

    /// Every server behind a listener of this kind, for health and status.
    pub(crate) fn behind(&self, kind: EndpointKind) -> &[RouteTarget] {
        match kind {
            EndpointKind::Write => self.write().map_or(&[], std::slice::from_ref),
            EndpointKind::Read => self.read(),
            EndpointKind::Discovery => &self.members,
        }
    }

    /// The primary, as the place for reads when no replica is left.
    pub(crate) fn primary(&self) -> Option<&RouteTarget> {
        self.write()
    }
}
