//! The judge of "never two primaries": writes to every node's own port, past all endpoints.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::task::JoinHandle;

use crate::instance::{Endpoint, Instance};
use crate::resp::Connection;

const EVERY: Duration = Duration::from_millis(20);

/// One probing write. Times are since the watch began.
#[derive(Clone, Copy, Debug)]
struct Probe {
    sent: Duration,
    done: Duration,
    accepted: bool,
}

#[derive(Debug)]
struct Watched {
    node: String,
    probes: Arc<Mutex<Vec<Probe>>>,
    task: JoinHandle<()>,
}

/// Probes every node each 20 ms, until it is dropped or asked for its verdict.
#[derive(Debug)]
pub struct PrimaryWatch {
    nodes: Vec<Watched>,
}

impl PrimaryWatch {
    /// Watches all nodes of an instance of one shard. Nodes that join later are not seen.
    ///
    /// # Errors
    /// A node shows no address.
    pub fn start(instance: &Instance, password: &str) -> Result<Self> {
        let began = Instant::now();
        let mut nodes = Vec::new();
        for node in &instance.nodes {
            let probes = Arc::new(Mutex::new(Vec::new()));
            let key = format!("larder-probe:{}", node.id);
            let task = tokio::spawn(probe(
                node.address()?,
                password.to_owned(),
                key,
                began,
                Arc::clone(&probes),
            ));
            nodes.push(Watched { node: node.id.clone(), probes, task });
        }
        Ok(Self { nodes })
    }

    /// The longest time in which no node took a write: what a fault costs at the servers themselves,
    /// past all endpoints. To about 20 ms.
    pub fn worst_gap(&self) -> Duration {
        let mut taken: Vec<Duration> = Vec::new();
        for node in &self.nodes {
            let probes = node.probes.lock().expect("no holder panics");
            taken.extend(probes.iter().filter(|p| p.accepted).map(|p| p.done));
        }
        taken.sort_unstable();
        taken.windows(2).map(|two| two[1] - two[0]).max().unwrap_or_default()
    }

    /// Ends the watch.
    ///
    /// # Errors
    /// Two nodes took writes at once, or no node ever took one (then nothing was watched).
    pub fn verdict(self) -> Result<()> {
        let seen: Vec<(String, Vec<Probe>)> = self
            .nodes
            .iter()
            .map(|w| (w.node.clone(), w.probes.lock().expect("no holder panics").clone()))
            .collect();
        if !seen.iter().any(|(_, probes)| probes.iter().any(|p| p.accepted)) {
            bail!("no node took a probing write: the watch saw nothing");
        }
        match overlap(&seen) {
            Some(text) => bail!("two primaries: {text}"),
            None => Ok(()),
        }
    }
}

impl Drop for PrimaryWatch {
    fn drop(&mut self) {
        for node in &self.nodes {
            node.task.abort();
        }
    }
}

async fn probe(
    endpoint: Endpoint,
    password: String,
    key: String,
    began: Instant,
    probes: Arc<Mutex<Vec<Probe>>>,
) {
    let mut connection: Option<Connection> = None;
    loop {
        let patience = Duration::from_millis(300);
        if connection.is_none() {
            connection = Connection::open(&endpoint, Some(&password), patience).await.ok();
        }
        let sent = began.elapsed();
        let reply = match &mut connection {
            Some(live) => live.call(&["SET", &key, "1"]).await.ok(),
            None => None,
        };
        if reply.is_none() {
            connection = None;
        }
        let accepted = reply.is_some_and(|r| r.is_ok());
        probes.lock().expect("no holder panics").push(Probe {
            sent,
            done: began.elapsed(),
            accepted,
        });
        tokio::time::sleep(EVERY).await;
    }
}

/// A node is a primary for certain from the end of one accepted write to the begin of the last
/// one that follows it without a refusal between them. An accepted write of another node that lies
/// wholly in such a time was taken by a second primary.
fn overlap(seen: &[(String, Vec<Probe>)]) -> Option<String> {
    for (node, probes) in seen {
        for run in probes.split(|p| !p.accepted).filter(|run| run.len() > 1) {
            let (from, to) = (run[0].done, run[run.len() - 1].sent);
            for (other, others) in seen.iter().filter(|(other, _)| other != node) {
                let inside = |p: &&Probe| p.accepted && p.sent >= from && p.done <= to;
                if let Some(second) = others.iter().find(inside) {
                    return Some(format!(
                        "{node} took writes from {from:?} to {to:?}, and {other} took one at {:?}",
                        second.sent
                    ));
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probes(list: &[(u64, bool)]) -> Vec<Probe> {
        list.iter()
            .map(|(ms, accepted)| Probe {
                sent: Duration::from_millis(*ms),
                done: Duration::from_millis(ms + 1),
                accepted: *accepted,
            })
            .collect()
    }

    #[test]
    fn change_of_primary_is_no_overlap() {
        let a = probes(&[(0, true), (20, true), (40, false), (60, false), (80, false)]);
        let b = probes(&[(1, false), (21, false), (41, false), (61, true), (81, true)]);
        assert_eq!(overlap(&[("a".into(), a), ("b".into(), b)]), None);
    }

    #[test]
    fn one_write_to_a_stale_primary_is_found() {
        let a = probes(&[(0, true), (20, true), (70, true), (90, false)]);
        let b = probes(&[(1, false), (21, false), (41, true), (61, true), (81, true)]);
        assert!(overlap(&[("a".into(), a), ("b".into(), b)]).is_some());
    }
}
