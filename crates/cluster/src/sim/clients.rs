//! Clients that write unique keys through the relay, and the relay that follows the route.

use larder_model::NodeId;
use larder_model::agent::Role;

use super::server::WriteId;
use super::world::{ShardKey, World};

/// How often a client writes when all is well.
const WRITE_EVERY: i64 = 20;
/// A client without an answer for this long connects anew.
const CLIENT_TIMEOUT: i64 = 2000;

/// One client with at most one write under way.
#[derive(Clone, Debug, Default)]
pub(super) struct Client {
    /// The server it is connected to: node and life.
    pub(super) connection: Option<(NodeId, String)>,
    pub(super) pending: Option<(WriteId, i64)>,
    pub(super) next_at: i64,
}

impl World {
    pub(super) fn step_clients(&mut self) {
        let keys: Vec<ShardKey> = self.shards.keys().cloned().collect();
        for key in keys {
            let Some(shard) = self.shards.get_mut(&key) else { continue };
            let mut clients = std::mem::take(&mut shard.clients);
            for client in &mut clients {
                self.step_client(&key, client);
            }
            if let Some(shard) = self.shards.get_mut(&key) {
                shard.clients = clients;
            }
        }
    }

    fn step_client(&mut self, key: &ShardKey, client: &mut Client) {
        let t = self.t;
        if client.connection.is_none() {
            // The relay: new connections wait while a hand-over holds them.
            let route = self.shards.get(key).and_then(|s| s.route.as_ref());
            let target = route.filter(|r| !r.hold).and_then(|r| r.write.as_ref());
            let server = target.and_then(|target| {
                let process = self.nodes.get(&target.node)?.process.as_ref()?;
                process
                    .stopped_since
                    .is_none()
                    .then(|| (target.node.clone(), process.run_id.clone()))
            });
            client.connection = server;
            client.pending = None;
        }
        let Some((node, run_id)) = &client.connection else { return };
        let alive = self.nodes.get(node).is_some_and(|n| {
            self.worker_up(&n.worker) && n.process.as_ref().is_some_and(|p| p.run_id == *run_id)
        });
        if !alive {
            *client = Client { next_at: t, ..Client::default() };
            return;
        }
        match client.pending {
            None if client.next_at <= t => {
                self.next_write += 1;
                client.pending = Some((self.next_write, t));
            }
            None => {}
            Some((write, since)) => {
                let process = self.nodes.get_mut(node).and_then(|n| n.process.as_mut());
                let Some(process) = process else { return };
                if process.takes_writes(t) {
                    process.log.push(write);
                    client.pending = None;
                    client.next_at = t + WRITE_EVERY;
                    self.acknowledge(key, write);
                } else if process.serving() && process.role == Role::Replica {
                    // READONLY: nothing acknowledged; ask the relay again.
                    *client = Client { next_at: t + WRITE_EVERY, ..Client::default() };
                } else if t - since > CLIENT_TIMEOUT {
                    *client = Client { next_at: t, ..Client::default() };
                }
            }
        }
    }

    fn acknowledge(&mut self, key: &ShardKey, write: WriteId) {
        let t = self.t;
        if let Some(shard) = self.shards.get_mut(key) {
            let gap = t - shard.last_ack;
            if shard.acked > 0 && gap > shard.longest_gap.0 {
                shard.longest_gap = (gap, t);
            }
            shard.acked += 1;
            shard.acked_ids.push(write);
            shard.last_ack = t;
        }
    }

    /// `CLIENT KILL`: what is pending is never answered.
    pub(super) fn close_clients(&mut self, node: &NodeId) {
        let t = self.t;
        let Some(key) = self.shard_of(node) else { return };
        if let Some(shard) = self.shards.get_mut(&key) {
            for client in &mut shard.clients {
                if client.connection.as_ref().is_some_and(|(to, _)| to == node) {
                    *client = Client { next_at: t, ..Client::default() };
                }
            }
        }
    }
}
