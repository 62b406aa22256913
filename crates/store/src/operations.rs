//! Operations: long pieces of work on an instance. At most one unfinished operation holds an
//! instance; a finished one never changes again.

use sqlx::sqlite::{SqliteConnection, SqliteRow};

use larder_model::{
    Code, Event, EventKind, InstanceId, Operation, OperationId, OperationKind, OperationState,
    OperationStep, ProjectName, Refusal, Severity, StepState, Timestamp,
};

use crate::column::big;
use crate::error::{Doing, is_unique_violation};
use crate::records::Record;
use crate::tx::WriteTx;
use crate::{Result, Store, StoreError, clock, column, events, instances, records};

const COUNTER: &str = "operation";

/// Which operations to read. Everything unset: the newest 100.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperationFilter {
    pub project: Option<ProjectName>,
    /// Name or id of an instance, also of one that is gone.
    pub instance: Option<String>,
    pub state: Option<OperationState>,
    /// At most this many; 100 unless set, never more than [`LIMIT_MAX`](crate::LIMIT_MAX).
    pub limit: Option<u32>,
}

impl Store {
    /// Lets an operation take hold of its instance, with an event `<kind>-requested` and the
    /// record. Creation and deletion begin with [`Store::instance_create`] and
    /// [`Store::instance_delete_begin`].
    ///
    /// # Errors
    /// A refusal `instance-busy` that names the operation which holds the instance, or says that
    /// it is being deleted; [`StoreError::NotFound`].
    pub async fn operation_begin(&self, operation: &Operation, record: &Record) -> Result<()> {
        let mut tx = self.write("beginning an operation").await?;
        let doing = tx.doing();
        let row = instances::fetch(tx.conn(), &operation.instance, doing)
            .await?
            .ok_or_else(|| StoreError::not_found("instance", &operation.instance_name))?;
        if let Some(other) = unfinished(tx.conn(), &operation.instance, doing).await? {
            return Err(busy(&other).into());
        }
        if row.deletion.is_some() {
            return Err(Refusal::new(
                Code::InstanceBusy,
                format!("instance `{}` is being deleted", row.spec.name),
            )
            .into());
        }
        insert(&mut tx, &row.spec.project, operation).await?;
        records::append(&mut tx, record).await?;
        tx.commit().await
    }

    /// Notes how far the operation has come; answers it as it now stands.
    ///
    /// Times of steps are filled in as their states change, and kept from one report to the
    /// next (steps are matched by name and place among those of the same name); progress is kept
    /// to a ten-thousandth. A finished operation stays as it is: a late report changes nothing
    /// and is no error. When it finishes, an event `<kind>-succeeded`, `-failed` or `-cancelled`
    /// is added.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn operation_report(
        &self,
        id: &OperationId,
        steps: Vec<OperationStep>,
        state: OperationState,
        error: Option<Refusal>,
    ) -> Result<Operation> {
        let doing = "noting an operation's progress";
        let now = clock::now();
        // Most reports say what is known: that needs no writer.
        let mut read = self.read(doing).await?;
        let known = fetch(&mut read, id, doing).await?;
        drop(read);
        let next = advance(&known, &steps, state, &error, now);
        if known.state.is_finished() || next == known {
            return Ok(known);
        }
        let mut tx = self.write(doing).await?;
        let known = fetch(tx.conn(), id, doing).await?;
        if known.state.is_finished() {
            return Ok(known);
        }
        let next = advance(&known, &steps, state, &error, now);
        update(&mut tx, &next).await?;
        undo(&mut tx, &next).await?;
        tx.commit().await?;
        Ok(next)
    }

    /// Ends an unfinished operation because somebody wants it so; which operations may be ended
    /// is the caller's to know. Answers it as it now stands.
    ///
    /// # Errors
    /// A refusal `not-cancellable` when it has finished; [`StoreError::NotFound`].
    pub async fn operation_cancel(
        &self,
        id: &OperationId,
        reason: Refusal,
        record: &Record,
    ) -> Result<Operation> {
        let mut tx = self.write("cancelling an operation").await?;
        let doing = tx.doing();
        let known = fetch(tx.conn(), id, doing).await?;
        if known.state.is_finished() {
            return Err(Refusal::new(
                Code::NotCancellable,
                format!("operation {id} is {} already", known.state.as_str()),
            )
            .into());
        }
        let next =
            advance(&known, &known.steps, OperationState::Cancelled, &Some(reason), clock::now());
        update(&mut tx, &next).await?;
        undo(&mut tx, &next).await?;
        records::append(&mut tx, record).await?;
        tx.commit().await?;
        Ok(next)
    }

    /// Remembers in the operation what its steps are measured against. A finished operation
    /// stays as it is.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; a refusal when `kind` is of another kind.
    pub async fn operation_set_kind(&self, id: &OperationId, kind: &OperationKind) -> Result<()> {
        let mut tx = self.write("changing an operation").await?;
        let doing = tx.doing();
        let known = fetch(tx.conn(), id, doing).await?;
        if known.kind.as_str() != kind.as_str() {
            return Err(Refusal::new(
                Code::InvalidRequest,
                format!(
                    "operation {id} is a {}, it cannot become a {}",
                    known.kind.as_str(),
                    kind.as_str()
                ),
            )
            .into());
        }
        if known.state.is_finished() || known.kind == *kind {
            return Ok(());
        }
        update(&mut tx, &Operation { kind: kind.clone(), ..known }).await?;
        tx.commit().await
    }

    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn operation_get(&self, id: &OperationId) -> Result<Operation> {
        let doing = "reading an operation";
        let mut tx = self.read(doing).await?;
        fetch(&mut tx, id, doing).await
    }

    /// Reads operations, newest first.
    pub async fn operation_list(&self, filter: &OperationFilter) -> Result<Vec<Operation>> {
        let doing = "listing operations";
        let mut tx = self.read(doing).await?;
        let rows = sqlx::query(
            "SELECT * FROM operations
             WHERE ($1 IS NULL OR project = $1)
               AND ($2 IS NULL OR instance = $2 OR instance_name = $2)
               AND ($3 IS NULL OR state = $3)
             ORDER BY number DESC LIMIT $4",
        )
        .bind(filter.project.as_ref().map(ProjectName::as_str))
        .bind(&filter.instance)
        .bind(filter.state.map(OperationState::as_str))
        .bind(crate::limit::of_history(filter.limit))
        .fetch_all(&mut *tx)
        .await
        .doing(doing)?;
        rows.iter().map(operation_of).collect()
    }
}

/// The refusal for whoever finds the instance held.
pub(crate) fn busy(holder: &Operation) -> Refusal {
    Refusal::new(
        Code::InstanceBusy,
        format!(
            "operation {id} ({kind}) holds instance `{name}`: wait for it with `larder operation watch {id}`",
            id = holder.id,
            kind = holder.kind.as_str(),
            name = holder.instance_name,
        ),
    )
}

/// The operation that holds the instance, if any.
pub(crate) async fn unfinished(
    conn: &mut SqliteConnection,
    instance: &InstanceId,
    doing: &'static str,
) -> Result<Option<Operation>> {
    sqlx::query("SELECT * FROM operations WHERE instance = $1 AND finished_at IS NULL")
        .bind(instance.as_str())
        .fetch_optional(conn)
        .await
        .doing(doing)?
        .as_ref()
        .map(operation_of)
        .transpose()
}

/// Writes a new operation and its event.
pub(crate) async fn insert(
    tx: &mut WriteTx,
    project: &ProjectName,
    operation: &Operation,
) -> Result<()> {
    let doing = tx.doing();
    let number = tx.count(COUNTER, 1).await?;
    let inserted = sqlx::query(
        "INSERT INTO operations
             (id, number, instance, instance_name, project, kind, state, steps,
              requested_by, requested_from, created_at, finished_at, error)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    )
    .bind(operation.id.as_str())
    .bind(big(number))
    .bind(operation.instance.as_str())
    .bind(&operation.instance_name)
    .bind(project.as_str())
    .bind(column::to_json("an operation's kind", &operation.kind)?)
    .bind(operation.state.as_str())
    .bind(column::to_json("an operation's steps", &operation.steps)?)
    .bind(&operation.requested_by)
    .bind(&operation.requested_from)
    .bind(operation.created_at.0)
    .bind(operation.finished_at.map(|t| t.0))
    .bind(error_json(operation.error.as_ref())?)
    .execute(tx.conn())
    .await;
    match inserted {
        // The index is the last word where two writers can meet.
        Err(e) if is_unique_violation(&e) => {
            return Err(Refusal::new(
                Code::InstanceBusy,
                format!("another operation holds instance `{}`", operation.instance_name),
            )
            .into());
        }
        other => other.doing(doing)?,
    };
    let message = format!("{} asked for by {}", operation.kind.as_str(), operation.requested_by);
    events::append(tx, &[event(operation, "requested", Severity::Info, message)]).await?;
    Ok(())
}

/// Writes what has changed of an operation, and an event when that finishes it.
async fn update(tx: &mut WriteTx, operation: &Operation) -> Result<()> {
    let doing = tx.doing();
    sqlx::query(
        "UPDATE operations SET kind = $2, state = $3, steps = $4, finished_at = $5, error = $6
         WHERE id = $1 AND finished_at IS NULL",
    )
    .bind(operation.id.as_str())
    .bind(column::to_json("an operation's kind", &operation.kind)?)
    .bind(operation.state.as_str())
    .bind(column::to_json("an operation's steps", &operation.steps)?)
    .bind(operation.finished_at.map(|t| t.0))
    .bind(error_json(operation.error.as_ref())?)
    .execute(tx.conn())
    .await
    .doing(doing)?;
    if !operation.state.is_finished() {
        // Followers of the operation want to see its steps move.
        tx.wake(0);
        return Ok(());
    }
    let severity = match operation.state {
        OperationState::Failed => Severity::Warning,
        _ => Severity::Info,
    };
    let outcome = operation.state.as_str();
    let mut message = format!("{} {outcome}", operation.kind.as_str());
    if let Some(error) = &operation.error {
        message = format!("{message}: {}", error.detail);
    }
    events::append(tx, &[event(operation, outcome, severity, message)]).await?;
    Ok(())
}

/// What an operation that did not get there has wished for is wished for no longer.
async fn undo(tx: &mut WriteTx, operation: &Operation) -> Result<()> {
    match operation.state {
        OperationState::Failed | OperationState::Cancelled => instances::undo(tx, operation).await,
        OperationState::Queued
        | OperationState::Running
        | OperationState::Waiting
        | OperationState::Succeeded => Ok(()),
    }
}

/// Ends an unfinished operation because another one, for the same thing, goes on in its place. What
/// it has wished for is the other's to keep or to change.
pub(crate) async fn give_way(tx: &mut WriteTx, holder: &Operation, to: &OperationId) -> Result<()> {
    let reason = Refusal::new(
        Code::OperationCancelled,
        format!("operation {to} goes on in its place, with another measure"),
    );
    let state = OperationState::Cancelled;
    let next = advance(holder, &holder.steps, state, &Some(reason), clock::now());
    update(tx, &next).await
}

/// Finishes whatever operation holds the instance, because something else decided its fate.
pub(crate) async fn finish_unfinished(
    tx: &mut WriteTx,
    instance: &InstanceId,
    outcome: impl FnOnce(&Operation) -> (OperationState, Option<Refusal>),
) -> Result<()> {
    let doing = tx.doing();
    let Some(known) = unfinished(tx.conn(), instance, doing).await? else { return Ok(()) };
    let (state, error) = outcome(&known);
    let mut steps = known.steps.clone();
    if state == OperationState::Succeeded {
        for step in &mut steps {
            step.state = StepState::Succeeded;
            step.progress = Some(1.0);
        }
    }
    let next = advance(&known, &steps, state, &error, clock::now());
    update(tx, &next).await
}

/// The operation after a report.
fn advance(
    known: &Operation,
    steps: &[OperationStep],
    state: OperationState,
    error: &Option<Refusal>,
    now: Timestamp,
) -> Operation {
    let mut former: Vec<&OperationStep> = known.steps.iter().collect();
    let steps = steps
        .iter()
        .map(|step| {
            let before =
                former.iter().position(|f| f.name == step.name).map(|at| former.remove(at));
            let started_at = before.and_then(|b| b.started_at).or(step.started_at);
            let finished_at = before.and_then(|b| b.finished_at).or(step.finished_at);
            let started_at = match step.state {
                StepState::Pending => started_at,
                _ => started_at.or(Some(now)),
            };
            let finished_at = match step.state {
                StepState::Succeeded | StepState::Failed => finished_at.or(Some(now)),
                StepState::Pending | StepState::Running | StepState::Waiting => None,
            };
            // To a ten-thousandth: more digits may come back from JSON as another number, and
            // then every report would look like news.
            let progress = step.progress.map(|p| (p * 1e4).round() / 1e4);
            OperationStep { started_at, finished_at, progress, ..step.clone() }
        })
        .collect();
    Operation {
        steps,
        state,
        error: error.clone(),
        finished_at: state.is_finished().then_some(now),
        ..known.clone()
    }
}

fn event(operation: &Operation, what: &str, severity: Severity, message: String) -> Event {
    Event {
        at: operation.finished_at.unwrap_or(operation.created_at),
        kind: EventKind::Control,
        severity,
        instance: Some(operation.instance.clone()),
        node: None,
        reason: format!("{}-{what}", operation.kind.as_str()),
        message,
    }
}

fn error_json(error: Option<&Refusal>) -> Result<Option<String>> {
    error.map(|e| column::to_json("an operation's error", e)).transpose()
}

async fn fetch(
    conn: &mut SqliteConnection,
    id: &OperationId,
    doing: &'static str,
) -> Result<Operation> {
    sqlx::query("SELECT * FROM operations WHERE id = $1")
        .bind(id.as_str())
        .fetch_optional(conn)
        .await
        .doing(doing)?
        .as_ref()
        .map(operation_of)
        .transpose()?
        .ok_or_else(|| StoreError::not_found("operation", id))
}

fn operation_of(row: &SqliteRow) -> Result<Operation> {
    Ok(Operation {
        id: column::parsed(row, "id")?,
        instance: column::parsed(row, "instance")?,
        instance_name: column::get(row, "instance_name")?,
        kind: column::json(row, "kind")?,
        state: column::word(row, "state")?,
        steps: column::json(row, "steps")?,
        requested_by: column::get(row, "requested_by")?,
        requested_from: column::get(row, "requested_from")?,
        created_at: column::time(row, "created_at")?,
        finished_at: column::time_option(row, "finished_at")?,
        error: column::json_option(row, "error")?,
    })
}
