//! Who neither gives nor gets a slot is told beside that it has changed hands: clients that ask there are
//! sent to the right server at once. Over the bus it hears of it as well, a moment later, so nothing
//! waits for this and nothing depends on it.

use std::collections::BTreeMap;
use std::time::Duration;

use larder_model::Address;
use larder_model::agent::{ClusterView, Role};
use larder_node::{Connection, SlotMark};
use tokio::sync::mpsc;

use super::Ends;

/// For who does not answer.
const TELL: Duration = Duration::from_millis(500);
/// News that are not told yet; more than that would be older than what the bus tells.
const PENDING: usize = 16;

/// Ends once it is dropped and has told what it was given.
pub(super) struct Herald {
    ends: Ends,
    to_id: String,
    news: mpsc::Sender<News>,
}

struct News {
    slots: Vec<u16>,
    others: Vec<Address>,
}

impl Herald {
    /// Needs a runtime around it.
    pub(super) fn new(ends: &Ends, to_id: &str) -> Self {
        let (news, pending) = mpsc::channel(PENDING);
        tokio::spawn(tell_all(ends.clone(), to_id.to_owned(), pending));
        Self { ends: ends.clone(), to_id: to_id.to_owned(), news }
    }

    pub(super) fn tell(&self, view: &ClusterView, slots: &[u16]) {
        let is_other = |id: &str| id != view.my_id && id != self.to_id;
        let others = (view.nodes.iter())
            .filter(|peer| peer.role == Role::Primary && is_other(&peer.id))
            .filter(|peer| peer.linked && !peer.failed)
            .map(|peer| self.ends.address_of(peer))
            .collect();
        // Where it cannot keep up the bus does.
        let _ = self.news.try_send(News { slots: slots.to_vec(), others });
    }
}

async fn tell_all(ends: Ends, to_id: String, mut pending: mpsc::Receiver<News>) {
    let mut lines: BTreeMap<Address, Connection> = BTreeMap::new();
    while let Some(News { slots, others }) = pending.recv().await {
        let now = SlotMark::Node(&to_id);
        let each: Vec<_> =
            others.into_iter().map(|address| (lines.remove(&address), address)).collect();
        let (ends, slots) = (&ends, &slots);
        let told = each.into_iter().map(|(line, address)| async move {
            let mut line = match line.filter(|line| !line.is_closed()) {
                Some(line) => line,
                None => ends.connect(&address).await.ok()?,
            };
            line.set_timeout(TELL);
            line.set_slots(slots, now).await.ok()?;
            Some((address, line))
        });
        let told = tokio::time::timeout(TELL, futures::future::join_all(told)).await;
        lines = told.unwrap_or_default().into_iter().flatten().collect();
    }
}
