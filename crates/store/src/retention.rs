//! How long the history is kept: events, finished operations, records.

use larder_model::agent::EVENTS_KEPT;
use larder_model::{Millis, Timestamp};

use crate::error::Doing;
use crate::tx::WriteTx;
use crate::{Result, Store, column};

/// What is kept. Unfinished operations always are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Events that are older go.
    pub events: Millis,
    /// Of each instance no more events than these stay, the newest; and of those that belong to no
    /// instance.
    pub events_per_instance: u32,
    /// Finished operations and records that are older go.
    pub records: Millis,
}

impl Default for Retention {
    /// 30 days of events, at most 10,000 of an instance; 400 days of operations and records.
    fn default() -> Self {
        Self { events: Millis::days(30), events_per_instance: 10_000, records: Millis::days(400) }
    }
}

/// How many rows went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    pub events: u64,
    pub operations: u64,
    pub records: u64,
}

impl Pruned {
    /// Whether there was nothing to remove.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Store {
    /// Removes what is older than the retention says. Numbers of what stays do not change, and are
    /// not given out again; of the records a piece from the beginning goes, so that a number
    /// missing in the middle still means that somebody has removed it.
    pub async fn prune(&self, now: Timestamp, keep: &Retention) -> Result<Pruned> {
        let mut tx = self.write("removing old history").await?;
        let events = old_events(&mut tx, now - keep.events).await?
            + surplus_events(&mut tx, keep.events_per_instance).await?;
        let before = now - keep.records;
        let doing = tx.doing();
        let operations = sqlx::query("DELETE FROM operations WHERE finished_at < $1")
            .bind(before.0)
            .execute(tx.conn())
            .await
            .doing(doing)?
            .rows_affected();
        let records = sqlx::query(
            "DELETE FROM records
             WHERE number < COALESCE((SELECT MIN(number) FROM records WHERE at >= $1), $2)",
        )
        .bind(before.0)
        .bind(i64::MAX)
        .execute(tx.conn())
        .await
        .doing(doing)?
        .rows_affected();
        tx.commit().await?;
        Ok(Pruned { events, operations, records })
    }
}

/// True of the events that their node may tell again: those of a living node stay, or they would
/// be taken for new ones.
fn told_again() -> String {
    format!(
        "node_seq IS NOT NULL
         AND node IN (SELECT id FROM nodes)
         AND node_seq > (SELECT MAX(newest.node_seq) FROM events AS newest
                         WHERE newest.node = events.node) - {EVENTS_KEPT}"
    )
}

async fn old_events(tx: &mut WriteTx, before: Timestamp) -> Result<u64> {
    let doing = tx.doing();
    let query = format!("DELETE FROM events WHERE at < $1 AND NOT ({})", told_again());
    let done = sqlx::query(sqlx::AssertSqlSafe(query))
        .bind(before.0)
        .execute(tx.conn())
        .await
        .doing(doing)?;
    Ok(done.rows_affected())
}

async fn surplus_events(tx: &mut WriteTx, most: u32) -> Result<u64> {
    let doing = tx.doing();
    let full = sqlx::query("SELECT instance FROM events GROUP BY instance HAVING COUNT(*) > $1")
        .bind(i64::from(most))
        .fetch_all(tx.conn())
        .await
        .doing(doing)?;
    let query = format!(
        "DELETE FROM events
         WHERE instance IS NOT DISTINCT FROM $1
           AND seq <= (SELECT surplus.seq FROM events AS surplus
                       WHERE surplus.instance IS NOT DISTINCT FROM $1
                       ORDER BY surplus.seq DESC LIMIT 1 OFFSET $2)
           AND NOT ({})",
        told_again()
    );
    let mut removed = 0;
    for row in full {
        let instance: Option<String> = column::get(&row, "instance")?;
        let done = sqlx::query(sqlx::AssertSqlSafe(query.as_str()))
            .bind(instance)
            .bind(i64::from(most))
            .execute(tx.conn())
            .await
            .doing(doing)?;
        removed += done.rows_affected();
    }
    Ok(removed)
}
