//! Instances: the wish for each, with its generation, and what was last seen of it.

use std::collections::BTreeMap;

use sqlx::sqlite::{SqliteConnection, SqliteRow};

use larder_model::local::NodeSecrets;
use larder_model::{
    Code, DeletePolicy, Event, EventKind, InstanceId, InstanceName, InstanceSpec, InstanceState,
    LOCAL_CONTAINER_CLUSTER, Operation, OperationKind, OperationState, ProjectName, Refusal,
    Severity, Timestamp,
};

use crate::column::big;
use crate::error::{Doing, is_unique_violation};
use crate::records::Record;
use crate::tx::WriteTx;
use crate::views::InstanceObservation;
use crate::{
    Result, Store, StoreError, accounts, clock, clusters, column, engines, events, nodes,
    operations, records, secrets,
};

/// An instance as the store keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceRow {
    pub spec: InstanceSpec,
    /// Rises with every change of what is wanted, node records included. 1 at first.
    pub generation: u64,
    pub created_at: Timestamp,
    /// Set once deletion was asked for.
    pub deletion: Option<DeletePolicy>,
    /// The instance has served before.
    pub initialized: bool,
    /// What was last seen; `None` until somebody looked.
    pub observation: Option<InstanceObservation>,
    /// Generation of the spec at the last look; 0 until somebody looked.
    pub observed_generation: u64,
    /// Of the tenant's users and passwords.
    pub users_revision: u64,
    /// Until when the password before the present one is valid, while there is one.
    pub former_password_until: Option<Timestamp>,
}

impl InstanceRow {
    /// The state to show: `deleting` once deletion was asked for, else what was last seen.
    pub fn state(&self) -> InstanceState {
        if self.deletion.is_some() {
            return InstanceState::Deleting;
        }
        self.observation.as_ref().map_or(InstanceState::Creating, |o| o.state)
    }
}

/// What a user may change of an instance without an operation. `None` leaves a field as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstanceChange {
    pub name: Option<InstanceName>,
    pub description: Option<String>,
    /// Replaces all tags.
    pub tags: Option<BTreeMap<String, String>>,
}

impl Store {
    /// Writes a new instance with its secrets, the operation that creates it (and its event),
    /// and the record: all or nothing. `spec.check()` is the caller's.
    ///
    /// # Errors
    /// Refusals `name-taken` (field `name`), `engine-not-found` (field `engine`: it must be in
    /// the catalogue, which says what this machine has; what a bound container cluster has is the
    /// caller's to check), `container-cluster-not-found` (field `container_cluster`), `not-found`
    /// (field `project`).
    pub async fn instance_create(
        &self,
        spec: &InstanceSpec,
        secrets: &NodeSecrets,
        operation: &Operation,
        record: &Record,
    ) -> Result<()> {
        let mut tx = self.write("creating an instance").await?;
        let doing = tx.doing();
        if spec.container_cluster == LOCAL_CONTAINER_CLUSTER {
            engines::check_exists(tx.conn(), &spec.engine, doing).await?;
        } else {
            // Unbinding looks for instances in its own transaction: one of the two sees the other.
            clusters::check_bound(tx.conn(), &spec.container_cluster, doing).await?;
        }
        check_project(tx.conn(), &spec.project, doing).await?;
        check_name(tx.conn(), &spec.project, &spec.name, None, doing).await?;
        let inserted = sqlx::query(
            "INSERT INTO instances
                 (id, project, name, architecture, engine, memory_bytes, search_text, spec,
                  generation, created_at, initialized, state, observed_generation)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 1, $9, $10, $11, 0)",
        )
        .bind(spec.id.as_str())
        .bind(spec.project.as_str())
        .bind(spec.name.as_str())
        .bind(spec.architecture.as_str())
        .bind(spec.engine.as_str())
        .bind(big(spec.memory.bytes()))
        .bind(search_text(spec))
        .bind(column::to_json("an instance's spec", spec)?)
        .bind(operation.created_at.0)
        .bind(false)
        .bind(InstanceState::Creating.as_str())
        .execute(tx.conn())
        .await;
        match inserted {
            Err(e) if is_unique_violation(&e) => return Err(name_taken(spec).into()),
            other => other.doing(doing)?,
        };
        secrets::insert(&mut tx, &self.inner.key, &spec.id, secrets).await?;
        operations::insert(&mut tx, &spec.project, operation).await?;
        records::append(&mut tx, record).await?;
        tx.commit().await
    }

    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn instance_get(&self, id: &InstanceId) -> Result<InstanceRow> {
        let doing = "reading an instance";
        let mut tx = self.read(doing).await?;
        fetch(&mut tx, id, doing).await?.ok_or_else(|| StoreError::not_found("instance", id))
    }

    /// Finds an instance by its name.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], also for a text that no instance can be named.
    pub async fn instance_find(&self, project: &ProjectName, name: &str) -> Result<InstanceRow> {
        let doing = "looking for an instance";
        let mut tx = self.read(doing).await?;
        sqlx::query("SELECT * FROM instances WHERE project = $1 AND name = $2")
            .bind(project.as_str())
            .bind(name)
            .fetch_optional(&mut *tx)
            .await
            .doing(doing)?
            .as_ref()
            .map(instance_of)
            .transpose()?
            .ok_or_else(|| StoreError::not_found("instance", name))
    }

    /// Every instance there is, also those that are being deleted, sorted by id.
    pub async fn instance_ids(&self) -> Result<Vec<InstanceId>> {
        let doing = "listing instances";
        let mut tx = self.read(doing).await?;
        let rows = sqlx::query("SELECT id FROM instances ORDER BY id")
            .fetch_all(&mut *tx)
            .await
            .doing(doing)?;
        rows.iter().map(|row| column::parsed(row, "id")).collect()
    }

    /// Changes name, description or tags. A new name is rendered into nodes and raises the
    /// generation; description and tags do not. Answers the instance as it now is.
    ///
    /// # Errors
    /// Refusals `generation-conflict`, `name-taken` (field `name`), `instance-not-ready` for one
    /// that is being deleted, and those of `InstanceSpec::check`; [`StoreError::NotFound`].
    pub async fn instance_update(
        &self,
        id: &InstanceId,
        expect_generation: Option<u64>,
        change: &InstanceChange,
        record: &Record,
    ) -> Result<InstanceRow> {
        let mut tx = self.write("changing an instance").await?;
        let doing = tx.doing();
        let mut row = fetch(tx.conn(), id, doing)
            .await?
            .ok_or_else(|| StoreError::not_found("instance", id))?;
        if let Some(expected) = expect_generation
            && expected != row.generation
        {
            return Err(
                generation_conflict(row.spec.name.as_str(), expected, row.generation).into()
            );
        }
        if row.deletion.is_some() {
            return Err(Refusal::new(
                Code::InstanceNotReady,
                format!("instance `{}` is being deleted", row.spec.name),
            )
            .into());
        }
        let former = row.spec.clone();
        if let Some(name) = &change.name {
            check_name(tx.conn(), &row.spec.project, name, Some(id), doing).await?;
            row.spec.name = name.clone();
        }
        if let Some(description) = &change.description {
            row.spec.description.clone_from(description);
        }
        if let Some(tags) = &change.tags {
            row.spec.tags.clone_from(tags);
        }
        row.spec.check()?;
        if row.spec != former {
            if row.spec.name != former.name {
                row.generation += 1;
            }
            update_spec(&mut tx, &row).await?;
            let event = control_event(id, "instance-updated", changed_text(&former, &row.spec));
            events::append(&mut tx, &[event]).await?;
        }
        records::append(&mut tx, record).await?;
        tx.commit().await?;
        Ok(row)
    }

    /// Takes another wish for the instance, with the operation that makes it so (and its event) and
    /// the record: all or nothing. What was wished before is in the operation's kind. An operation
    /// for the same thing that has not finished gives way (`OperationKind::in_place_of`). Answers
    /// the operation as it now stands. `spec.check()` is the caller's.
    ///
    /// # Errors
    /// Refusals `generation-conflict` when somebody else changed the instance since
    /// `expect_generation`, `instance-busy` and `instance-not-ready`; [`StoreError::NotFound`].
    pub async fn instance_change_begin(
        &self,
        spec: &InstanceSpec,
        expect_generation: u64,
        operation: &Operation,
        record: &Record,
    ) -> Result<Operation> {
        let mut tx = self.write("beginning a change of an instance").await?;
        let doing = tx.doing();
        let mut row = changeable(&mut tx, &spec.id).await?;
        let mut operation = operation.clone();
        if let Some(holder) = operations::unfinished(tx.conn(), &spec.id, doing).await? {
            let Some(kind) = operation.kind.in_place_of(&holder.kind) else {
                return Err(operations::busy(&holder).into());
            };
            operation.kind = kind;
            operations::give_way(&mut tx, &holder, &operation.id).await?;
        }
        if row.generation != expect_generation {
            let name = row.spec.name.as_str();
            return Err(generation_conflict(name, expect_generation, row.generation).into());
        }
        row.spec = spec.clone();
        row.generation += 1;
        update_spec(&mut tx, &row).await?;
        operations::insert(&mut tx, &spec.project, &operation).await?;
        records::append(&mut tx, record).await?;
        tx.commit().await?;
        Ok(operation)
    }

    /// Marks the instance for deletion; there is no way back. Whatever other operation holds the
    /// instance is cancelled, saying why. Answers the new generation.
    ///
    /// # Errors
    /// A refusal `instance-busy` when a deletion is under way; [`StoreError::NotFound`].
    pub async fn instance_delete_begin(
        &self,
        id: &InstanceId,
        policy: DeletePolicy,
        operation: &Operation,
        record: &Record,
    ) -> Result<u64> {
        let mut tx = self.write("deleting an instance").await?;
        let doing = tx.doing();
        let row = fetch(tx.conn(), id, doing)
            .await?
            .ok_or_else(|| StoreError::not_found("instance", id))?;
        if let Some(holder) = operations::unfinished(tx.conn(), id, doing).await?
            && holder.kind == OperationKind::Delete
        {
            return Err(operations::busy(&holder).into());
        }
        operations::finish_unfinished(&mut tx, id, |_| {
            let reason = format!("operation {} deletes the instance", operation.id);
            (OperationState::Cancelled, Some(Refusal::new(Code::InstanceBusy, reason)))
        })
        .await?;
        sqlx::query("UPDATE instances SET deletion = $2, state = $3 WHERE id = $1")
            .bind(id.as_str())
            .bind(column::to_word("a delete policy", &policy)?)
            .bind(InstanceState::Deleting.as_str())
            .execute(tx.conn())
            .await
            .doing(doing)?;
        let generation = bump(&mut tx, id).await?;
        operations::insert(&mut tx, &row.spec.project, operation).await?;
        records::append(&mut tx, record).await?;
        tx.commit().await?;
        Ok(generation)
    }

    /// Notes that the instance has served: from now on nothing of it starts empty by itself.
    /// Answers the generation, which rises unless that was noted already.
    ///
    /// # Errors
    /// A refusal `generation-conflict`; [`StoreError::NotFound`].
    pub async fn instance_mark_initialized(
        &self,
        id: &InstanceId,
        expect_generation: u64,
    ) -> Result<u64> {
        let mut tx = self.write("marking an instance as initialized").await?;
        let doing = tx.doing();
        let row = fetch(tx.conn(), id, doing)
            .await?
            .ok_or_else(|| StoreError::not_found("instance", id))?;
        if row.initialized {
            return Ok(row.generation);
        }
        self::expect_generation(&mut tx, id, expect_generation).await?;
        sqlx::query("UPDATE instances SET initialized = $2 WHERE id = $1")
            .bind(id.as_str())
            .bind(true)
            .execute(tx.conn())
            .await
            .doing(doing)?;
        let generation = bump(&mut tx, id).await?;
        tx.commit().await?;
        Ok(generation)
    }

    /// Writes what was seen. A look at an older generation than the last one is dropped, as is
    /// one at an instance that is gone: neither is an error.
    pub async fn instance_observation_set(
        &self,
        id: &InstanceId,
        observation: &InstanceObservation,
    ) -> Result<()> {
        self.instance_observed(id, observation, &[]).await
    }

    /// Like [`Store::instance_observation_set`], with the events that tell of it: written with
    /// the observation, and dropped with it.
    pub async fn instance_observed(
        &self,
        id: &InstanceId,
        observation: &InstanceObservation,
        news: &[Event],
    ) -> Result<()> {
        let mut tx = self.write("recording what was seen of an instance").await?;
        let doing = tx.doing();
        let written = sqlx::query(
            "UPDATE instances SET observation = $2, observed_generation = $3,
                 state = CASE WHEN deletion IS NULL THEN $4 ELSE state END
             WHERE id = $1 AND observed_generation <= $3",
        )
        .bind(id.as_str())
        .bind(column::to_json("an observation", observation)?)
        .bind(big(observation.generation))
        .bind(observation.state.as_str())
        .execute(tx.conn())
        .await
        .doing(doing)?;
        if written.rows_affected() > 0 && !news.is_empty() {
            events::append(&mut tx, news).await?;
        }
        tx.commit().await
    }

    /// Deletes instance, nodes and secrets; operations, events and records stay. The operation
    /// that still holds it has succeeded if it is the deletion, else it is cancelled. Done
    /// again it changes nothing.
    pub async fn instance_purge(&self, id: &InstanceId) -> Result<()> {
        let mut tx = self.write("purging an instance").await?;
        let doing = tx.doing();
        let Some(row) = fetch(tx.conn(), id, doing).await? else { return Ok(()) };
        operations::finish_unfinished(&mut tx, id, |holder| match holder.kind {
            OperationKind::Delete => (OperationState::Succeeded, None),
            _ => (
                OperationState::Cancelled,
                Some(Refusal::new(Code::NotFound, "the instance was purged")),
            ),
        })
        .await?;
        // Before the row goes: the event takes the instance's name from it.
        let event = control_event(
            id,
            "instance-purged",
            format!("nothing is left of instance `{}`", row.spec.name),
        );
        events::append(&mut tx, &[event]).await?;
        secrets::delete(&mut tx, id).await?;
        accounts::delete_all(&mut tx, id).await?;
        nodes::delete_all(&mut tx, id).await?;
        sqlx::query("DELETE FROM instances WHERE id = $1")
            .bind(id.as_str())
            .execute(tx.conn())
            .await
            .doing(doing)?;
        tx.commit().await
    }
}

/// The instance, which has served and is not being deleted.
///
/// # Errors
/// A refusal `instance-not-ready`; [`StoreError::NotFound`].
pub(crate) async fn changeable(tx: &mut WriteTx, id: &InstanceId) -> Result<InstanceRow> {
    let doing = tx.doing();
    let row =
        fetch(tx.conn(), id, doing).await?.ok_or_else(|| StoreError::not_found("instance", id))?;
    let what = match (row.deletion, row.initialized) {
        (Some(_), _) => "is being deleted",
        (None, false) => "has not served yet",
        (None, true) => return Ok(row),
    };
    let detail = format!("instance `{}` {what}", row.spec.name);
    Err(Refusal::new(Code::InstanceNotReady, detail).into())
}

/// Revision of the instance's users; 0 for one that is not there.
pub(crate) async fn users_revision(
    conn: &mut SqliteConnection,
    id: &InstanceId,
    doing: &'static str,
) -> Result<u64> {
    let row = sqlx::query("SELECT users_revision FROM instances WHERE id = $1")
        .bind(id.as_str())
        .fetch_optional(conn)
        .await
        .doing(doing)?;
    row.map_or(Ok(0), |row| column::unsigned(&row, "users_revision"))
}

/// Takes back what an operation has wished for that did not get there; the generation rises if that changes
/// anything. An instance that is gone has no wishes.
pub(crate) async fn undo(tx: &mut WriteTx, operation: &Operation) -> Result<()> {
    let doing = tx.doing();
    let row = fetch(tx.conn(), &operation.instance, doing).await?;
    let Some(mut row) = row else { return Ok(()) };
    let refusal = operation.error.as_ref().filter(|_| operation.state == OperationState::Failed);
    if operation.kind.undo(&mut row.spec, refusal) {
        row.generation += 1;
        update_spec(tx, &row).await?;
    }
    Ok(())
}

async fn update_spec(tx: &mut WriteTx, row: &InstanceRow) -> Result<()> {
    let doing = tx.doing();
    let spec = &row.spec;
    sqlx::query(
        "UPDATE instances SET name = $2, architecture = $3, engine = $4, memory_bytes = $5,
             search_text = $6, spec = $7, generation = $8
         WHERE id = $1",
    )
    .bind(spec.id.as_str())
    .bind(spec.name.as_str())
    .bind(spec.architecture.as_str())
    .bind(spec.engine.as_str())
    .bind(big(spec.memory.bytes()))
    .bind(search_text(spec))
    .bind(column::to_json("an instance's spec", spec)?)
    .bind(big(row.generation))
    .execute(tx.conn())
    .await
    .doing(doing)?;
    Ok(())
}

pub(crate) fn control_event(id: &InstanceId, reason: &str, message: String) -> Event {
    Event {
        at: clock::now(),
        kind: EventKind::Control,
        severity: Severity::Info,
        instance: Some(id.clone()),
        node: None,
        reason: reason.into(),
        message,
    }
}

fn changed_text(former: &InstanceSpec, spec: &InstanceSpec) -> String {
    let mut parts = Vec::new();
    if former.name != spec.name {
        parts.push(format!("renamed from `{}` to `{}`", former.name, spec.name));
    }
    if former.description != spec.description {
        parts.push("description changed".into());
    }
    if former.tags != spec.tags {
        parts.push("tags changed".into());
    }
    parts.join(", ")
}

/// What `instance list --search` looks in: name, description and tags, in lower case.
fn search_text(spec: &InstanceSpec) -> String {
    let mut text = format!("{}\n{}", spec.name, spec.description);
    for (key, value) in &spec.tags {
        text.push_str(&format!("\n{key}={value}"));
    }
    text.to_lowercase()
}

async fn check_project(
    conn: &mut SqliteConnection,
    project: &ProjectName,
    doing: &'static str,
) -> Result<()> {
    let found = sqlx::query("SELECT name FROM projects WHERE name = $1")
        .bind(project.as_str())
        .fetch_optional(conn)
        .await
        .doing(doing)?;
    if found.is_some() {
        return Ok(());
    }
    Err(Refusal::new(Code::NotFound, format!("there is no project `{project}`"))
        .field("project")
        .into())
}

/// Refuses a name that another instance of the project has; `own` is the one that may have it.
async fn check_name(
    conn: &mut SqliteConnection,
    project: &ProjectName,
    name: &InstanceName,
    own: Option<&InstanceId>,
    doing: &'static str,
) -> Result<()> {
    let taken = sqlx::query("SELECT id FROM instances WHERE project = $1 AND name = $2")
        .bind(project.as_str())
        .bind(name.as_str())
        .fetch_optional(conn)
        .await
        .doing(doing)?;
    let Some(row) = taken else { return Ok(()) };
    let holder: InstanceId = column::parsed(&row, "id")?;
    if own == Some(&holder) {
        return Ok(());
    }
    Err(name_taken_text(project, name).into())
}

fn name_taken(spec: &InstanceSpec) -> Refusal {
    name_taken_text(&spec.project, &spec.name)
}

fn name_taken_text(project: &ProjectName, name: &InstanceName) -> Refusal {
    Refusal::new(
        Code::NameTaken,
        format!("project `{project}` has an instance `{name}`: choose another name"),
    )
    .field("name")
}

fn generation_conflict(name: &str, expected: u64, found: u64) -> Refusal {
    Refusal::new(
        Code::GenerationConflict,
        format!(
            "instance `{name}` is at generation {found}, not {expected}: read it again, then decide anew"
        ),
    )
}

/// The instance's generation.
pub(crate) async fn generation(
    conn: &mut SqliteConnection,
    id: &InstanceId,
    doing: &'static str,
) -> Result<u64> {
    let row = sqlx::query("SELECT generation FROM instances WHERE id = $1")
        .bind(id.as_str())
        .fetch_optional(conn)
        .await
        .doing(doing)?
        .ok_or_else(|| StoreError::not_found("instance", id))?;
    column::unsigned(&row, "generation")
}

/// Compare-and-set: refuses unless the instance's generation is the one expected.
pub(crate) async fn expect_generation(
    tx: &mut WriteTx,
    id: &InstanceId,
    expected: u64,
) -> Result<()> {
    let doing = tx.doing();
    let found = generation(tx.conn(), id, doing).await?;
    if found == expected {
        return Ok(());
    }
    Err(generation_conflict(id.as_str(), expected, found).into())
}

/// Raises the instance's generation; answers the new one.
pub(crate) async fn bump(tx: &mut WriteTx, id: &InstanceId) -> Result<u64> {
    let doing = tx.doing();
    let row = sqlx::query(
        "UPDATE instances SET generation = generation + 1 WHERE id = $1 RETURNING generation",
    )
    .bind(id.as_str())
    .fetch_optional(tx.conn())
    .await
    .doing(doing)?
    .ok_or_else(|| StoreError::not_found("instance", id))?;
    column::unsigned(&row, "generation")
}

pub(crate) async fn fetch(
    conn: &mut SqliteConnection,
    id: &InstanceId,
    doing: &'static str,
) -> Result<Option<InstanceRow>> {
    sqlx::query("SELECT * FROM instances WHERE id = $1")
        .bind(id.as_str())
        .fetch_optional(conn)
        .await
        .doing(doing)?
        .as_ref()
        .map(instance_of)
        .transpose()
}

pub(crate) fn instance_of(row: &SqliteRow) -> Result<InstanceRow> {
    Ok(InstanceRow {
        spec: column::json(row, "spec")?,
        generation: column::unsigned(row, "generation")?,
        created_at: column::time(row, "created_at")?,
        deletion: column::word_option(row, "deletion")?,
        initialized: column::get(row, "initialized")?,
        observation: column::json_option(row, "observation")?,
        observed_generation: column::unsigned(row, "observed_generation")?,
        users_revision: column::unsigned(row, "users_revision")?,
        former_password_until: column::time_option(row, "former_password_until")?,
    })
}
