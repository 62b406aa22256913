//! The event log: append-only, numbered in the order of the commits. Old events go
//! ([`Store::prune`]); numbers are never given out again.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;

use larder_model::agent::AgentEvent;
use larder_model::{Event, EventKind, InstanceId, InstanceName, NodeId, ProjectName, Severity};

use crate::column::big;
use crate::error::Doing;
use crate::tx::WriteTx;
use crate::{Result, Store, column};

/// The counter of event numbers.
pub(crate) const COUNTER: &str = "event";

/// An event as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRow {
    /// Its place in the stream: 1 is the first.
    pub seq: u64,
    #[serde(flatten)]
    pub event: Event,
    /// What the instance was called when it happened; it outlives the instance.
    pub instance_name: Option<InstanceName>,
}

/// Which events to read. Everything unset: the oldest 100.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Only events with a higher number.
    pub after: Option<u64>,
    /// Of this project, and of the installation itself (a keeper that hangs).
    pub project: Option<ProjectName>,
    pub instance: Option<InstanceId>,
    /// At most this many; 100 unless set, never more than [`LIMIT_MAX`](crate::LIMIT_MAX).
    pub limit: Option<u32>,
    /// Newest first; otherwise oldest first, as a follower reads.
    pub newest_first: bool,
}

impl Store {
    /// Appends the events in their order. Answers the number of the newest event there is.
    pub async fn event_append(&self, events: &[Event]) -> Result<u64> {
        if events.is_empty() {
            return Ok(*self.inner.changes.borrow());
        }
        let mut tx = self.write("recording events").await?;
        let newest = append(&mut tx, events).await?;
        tx.commit().await?;
        Ok(newest)
    }

    /// Appends what an agent reports, each event once: agents repeat their newest events in
    /// every report. Answers how many were new.
    pub async fn event_append_from_node(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        events: &[AgentEvent],
    ) -> Result<usize> {
        let Some(lowest) = events.iter().map(|e| e.seq).min() else { return Ok(0) };
        let doing = "recording a node's events";
        // Most reports bring nothing new: find that out without the writer.
        let mut read = self.read(doing).await?;
        let known = known_of_node(&mut read, node, lowest, doing).await?;
        drop(read);
        if events.iter().all(|e| known.contains(&e.seq)) {
            return Ok(0);
        }
        let mut tx = self.write(doing).await?;
        let mut known = known_of_node(tx.conn(), node, lowest, doing).await?;
        let fresh: Vec<(Event, Option<u64>)> = events
            .iter()
            .filter(|e| known.insert(e.seq))
            .map(|e| {
                let event = Event {
                    at: e.at,
                    kind: EventKind::Node,
                    severity: e.severity,
                    instance: Some(instance.clone()),
                    node: Some(node.clone()),
                    reason: e.reason.clone(),
                    message: e.message.clone(),
                };
                (event, Some(e.seq))
            })
            .collect();
        if fresh.is_empty() {
            return Ok(0);
        }
        insert(&mut tx, &fresh).await?;
        tx.commit().await?;
        Ok(fresh.len())
    }

    /// Reads events.
    pub async fn event_list(&self, filter: &EventFilter) -> Result<Vec<EventRow>> {
        const OLDEST_FIRST: &str = "SELECT * FROM events
             WHERE seq > $1 AND ($2 IS NULL OR project = $2 OR instance IS NULL)
               AND ($3 IS NULL OR instance = $3)
             ORDER BY seq LIMIT $4";
        const NEWEST_FIRST: &str = "SELECT * FROM events
             WHERE seq > $1 AND ($2 IS NULL OR project = $2 OR instance IS NULL)
               AND ($3 IS NULL OR instance = $3)
             ORDER BY seq DESC LIMIT $4";
        let doing = "listing events";
        let mut tx = self.read(doing).await?;
        let rows = sqlx::query(if filter.newest_first { NEWEST_FIRST } else { OLDEST_FIRST })
            .bind(big(filter.after.unwrap_or(0)))
            .bind(filter.project.as_ref().map(ProjectName::as_str))
            .bind(filter.instance.as_ref().map(InstanceId::as_str))
            .bind(crate::limit::of_history(filter.limit))
            .fetch_all(&mut *tx)
            .await
            .doing(doing)?;
        rows.iter().map(event_of).collect()
    }
}

/// Appends control-plane events within a larger change; answers the newest number.
pub(crate) async fn append(tx: &mut WriteTx, events: &[Event]) -> Result<u64> {
    let events: Vec<_> = events.iter().map(|e| (e.clone(), None)).collect();
    insert(tx, &events).await
}

async fn insert(tx: &mut WriteTx, events: &[(Event, Option<u64>)]) -> Result<u64> {
    let doing = tx.doing();
    let newest = tx.count(COUNTER, events.len()).await?;
    let first = newest + 1 - events.len() as u64;
    for (seq, (event, node_seq)) in (first..).zip(events) {
        let instance = event.instance.as_ref().map(InstanceId::as_str);
        sqlx::query(
            "INSERT INTO events
                 (seq, at, kind, severity, project, instance, instance_name, node, node_seq,
                  reason, message)
             VALUES ($1, $2, $3, $4, (SELECT project FROM instances WHERE id = $5), $5,
                     (SELECT name FROM instances WHERE id = $5), $6, $7, $8, $9)",
        )
        .bind(big(seq))
        .bind(event.at.0)
        .bind(column::to_word("an event's kind", &event.kind)?)
        .bind(event.severity.as_str())
        .bind(instance)
        .bind(event.node.as_ref().map(NodeId::as_str))
        .bind(node_seq.map(big))
        .bind(&event.reason)
        .bind(&event.message)
        .execute(tx.conn())
        .await
        .doing(doing)?;
    }
    tx.wake(newest);
    Ok(newest)
}

async fn known_of_node(
    conn: &mut sqlx::sqlite::SqliteConnection,
    node: &NodeId,
    lowest: u64,
    doing: &'static str,
) -> Result<BTreeSet<u64>> {
    let rows = sqlx::query("SELECT node_seq FROM events WHERE node = $1 AND node_seq >= $2")
        .bind(node.as_str())
        .bind(big(lowest))
        .fetch_all(conn)
        .await
        .doing(doing)?;
    rows.iter().map(|row| column::unsigned(row, "node_seq")).collect()
}

fn event_of(row: &SqliteRow) -> Result<EventRow> {
    let severity: Severity = column::word(row, "severity")?;
    Ok(EventRow {
        seq: column::unsigned(row, "seq")?,
        event: Event {
            at: column::time(row, "at")?,
            kind: column::word(row, "kind")?,
            severity,
            instance: column::parsed_option(row, "instance")?,
            node: column::parsed_option(row, "node")?,
            reason: column::get(row, "reason")?,
            message: column::get(row, "message")?,
        },
        instance_name: column::parsed_option(row, "instance_name")?,
    })
}
