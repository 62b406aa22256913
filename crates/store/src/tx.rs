//! Transactions: one writer at a time, readers that see one moment.

use sqlx::sqlite::SqliteConnection;
use sqlx::{Row, Sqlite, Transaction};

use crate::column::big;
use crate::error::Doing;
use crate::{Result, Store, StoreError};

/// A transaction that may write. Dropped without [`WriteTx::commit`] it never happened.
pub(crate) struct WriteTx {
    store: Store,
    inner: Transaction<'static, Sqlite>,
    doing: &'static str,
    /// Followers are woken after the commit; the number of the newest event, if it is known.
    wakes: Option<u64>,
}

impl Store {
    /// Starts to write. `doing` says what for, in errors. Waits for its turn.
    pub(crate) async fn write(&self, doing: &'static str) -> Result<WriteTx> {
        // IMMEDIATE: a transaction that reads first and writes later would fail with "busy"
        // instead of waiting, if another process ever had the database open.
        let inner = self.inner.writer.begin_with("BEGIN IMMEDIATE").await.doing(doing)?;
        Ok(WriteTx { store: self.clone(), inner, doing, wakes: None })
    }

    /// Starts to read: all queries in it see the same moment.
    pub(crate) async fn read(&self, doing: &'static str) -> Result<Transaction<'static, Sqlite>> {
        self.inner.readers.begin().await.doing(doing)
    }
}

impl WriteTx {
    pub(crate) fn conn(&mut self) -> &mut SqliteConnection {
        &mut self.inner
    }

    pub(crate) fn doing(&self) -> &'static str {
        self.doing
    }

    /// Followers of [`Store::changes`] are to look again once this is committed.
    pub(crate) fn wake(&mut self, newest_event: u64) {
        self.wakes = Some(self.wakes.unwrap_or(0).max(newest_event));
    }

    /// Makes it durable, then wakes the followers. Runs to its end even when the caller goes
    /// away meanwhile: a commit without its wake-up would leave followers asleep.
    pub(crate) async fn commit(self) -> Result<()> {
        let Self { store, inner, doing, wakes } = self;
        let task = tokio::spawn(async move {
            let result = inner.commit().await.doing(doing);
            if let (Ok(()), Some(newest)) = (&result, wakes) {
                store.inner.changes.send_modify(|seen| *seen = (*seen).max(newest));
            }
            result
        });
        // The task can only be lost with the runtime.
        task.await.unwrap_or(Err(StoreError::Database { doing, cause: sqlx::Error::WorkerCrashed }))
    }

    /// Hands out the next `count` numbers of a counter and answers the last of them.
    /// Numbers appear in the order of commits and without gaps, so a reader that has seen `n`
    /// will never find a new one below it.
    pub(crate) async fn count(&mut self, counter: &'static str, count: usize) -> Result<u64> {
        let doing = self.doing;
        let row = sqlx::query(
            "INSERT INTO counters (name, value) VALUES ($1, $2)
             ON CONFLICT (name) DO UPDATE SET value = counters.value + excluded.value
             RETURNING value",
        )
        .bind(counter)
        .bind(big(count as u64))
        .fetch_one(self.conn())
        .await
        .doing(doing)?;
        let value: i64 = row.try_get(0).doing(doing)?;
        u64::try_from(value)
            .map_err(|_| StoreError::corrupt(format!("counter `{counter}` is {value}")))
    }
}
