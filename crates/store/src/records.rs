//! Records: who did what, when, from where, and how it ended. Append-only; they outlive
//! everything they speak of.

use std::fmt;

use sqlx::sqlite::SqliteRow;

use larder_model::{Code, Timestamp};

use crate::column::big;
use crate::error::Doing;
use crate::tx::WriteTx;
use crate::{Result, Store, StoreError, column};

const COUNTER: &str = "record";

/// What a person or a program asked for. Never holds secrets.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub at: Timestamp,
    /// Name of the user, or who else did it.
    pub user: String,
    /// Address the request came from.
    pub from: String,
    /// A stable word, kebab-case: `instance-create`, `login`.
    pub action: String,
    /// What it was done to, for people: `instance cache-1`.
    pub object: String,
    /// Name of the instance, when it was about one.
    pub instance: Option<String>,
    /// What was asked for, without secrets.
    pub detail: serde_json::Value,
    pub outcome: RecordOutcome,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordOutcome {
    /// It was done, or the work was accepted.
    Accepted,
    Refused(Code),
}

impl fmt::Display for RecordOutcome {
    /// `accepted`, or the code of the refusal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accepted => f.write_str("accepted"),
            Self::Refused(code) => f.write_str(code.as_str()),
        }
    }
}

/// A record as the store keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordRow {
    /// Counts from 1 without gaps; old ones go from the beginning ([`Store::prune`]). A number
    /// missing in the middle is a removed record.
    pub number: u64,
    pub record: Record,
}

/// Which records to read. Everything unset: the newest 100.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordFilter {
    /// Name of an instance.
    pub instance: Option<String>,
    pub user: Option<String>,
    /// Only what happened at or after this time.
    pub since: Option<Timestamp>,
    /// At most this many; 100 unless set, never more than [`LIMIT_MAX`](crate::LIMIT_MAX).
    pub limit: Option<u32>,
}

impl Store {
    /// Records something that changed nothing else in the store: a login, a refusal. Answers its
    /// number.
    pub async fn record_append(&self, record: &Record) -> Result<u64> {
        let mut tx = self.write("writing a record").await?;
        let number = append(&mut tx, record).await?;
        tx.commit().await?;
        Ok(number)
    }

    /// Reads records, newest first.
    pub async fn record_list(&self, filter: &RecordFilter) -> Result<Vec<RecordRow>> {
        let doing = "listing records";
        let mut tx = self.read(doing).await?;
        let rows = sqlx::query(
            "SELECT * FROM records
             WHERE ($1 IS NULL OR instance_name = $1) AND ($2 IS NULL OR actor = $2)
               AND ($3 IS NULL OR at >= $3)
             ORDER BY number DESC LIMIT $4",
        )
        .bind(&filter.instance)
        .bind(&filter.user)
        .bind(filter.since.map(|t| t.0))
        .bind(crate::limit::of_history(filter.limit))
        .fetch_all(&mut *tx)
        .await
        .doing(doing)?;
        rows.iter().map(record_of).collect()
    }
}

pub(crate) async fn append(tx: &mut WriteTx, record: &Record) -> Result<u64> {
    let doing = tx.doing();
    let number = tx.count(COUNTER, 1).await?;
    sqlx::query(
        "INSERT INTO records
             (number, at, actor, origin, action, object, instance_name, detail, outcome)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(big(number))
    .bind(record.at.0)
    .bind(&record.user)
    .bind(&record.from)
    .bind(&record.action)
    .bind(&record.object)
    .bind(&record.instance)
    .bind(column::to_json("a record's detail", &record.detail)?)
    .bind(record.outcome.to_string())
    .execute(tx.conn())
    .await
    .doing(doing)?;
    Ok(number)
}

fn record_of(row: &SqliteRow) -> Result<RecordRow> {
    let outcome: &str = column::get(row, "outcome")?;
    let outcome = if outcome == RecordOutcome::Accepted.to_string() {
        RecordOutcome::Accepted
    } else {
        RecordOutcome::Refused(Code::parse(outcome).ok_or_else(|| {
            StoreError::corrupt(format!("column `outcome` holds the unknown word `{outcome}`"))
        })?)
    };
    Ok(RecordRow {
        number: column::unsigned(row, "number")?,
        record: Record {
            at: column::time(row, "at")?,
            user: column::get(row, "actor")?,
            from: column::get(row, "origin")?,
            action: column::get(row, "action")?,
            object: column::get(row, "object")?,
            instance: column::get(row, "instance_name")?,
            detail: column::json(row, "detail")?,
            outcome,
        },
    })
}
