//! The secrets of instances: each instance has a data key of its own, wrapped by the key of the
//! key file, so that a new key file means wrapping keys anew, not secrets.

use sqlx::sqlite::SqliteConnection;

use larder_model::local::NodeSecrets;
use larder_model::{InstanceId, Operation, OperationKind, Secret, Timestamp};

use crate::error::Doing;
use crate::records::Record;
use crate::seal::{Key, NoRandom};
use crate::tx::WriteTx;
use crate::{Result, Store, StoreError, accounts, column, events, instances, operations, records};

const DATA_KEY: &str = "data-key";
const SYSTEM_PASSWORD: &str = "system-password";
const DEFAULT_PASSWORD_SHA256: &str = "default-password-sha256";
const AGENT_KEY: &str = "agent-key";
const FORMER_PASSWORD_SHA256: &str = "former-password-sha256";

/// What a sealed value is bound to: its instance and field. Neither holds a slash.
fn place(instance: &InstanceId, field: &str) -> String {
    format!("{instance}/{field}")
}

fn no_random(doing: &'static str) -> impl Fn(NoRandom) -> StoreError {
    move |e| StoreError::Database { doing, cause: sqlx::Error::Io(std::io::Error::other(e)) }
}

impl Store {
    /// The secrets that the instance's nodes need.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Corrupt`] when a stored secret does not open.
    pub async fn instance_secrets(&self, instance: &InstanceId) -> Result<NodeSecrets> {
        let doing = "reading an instance's secrets";
        let mut tx = self.read(doing).await?;
        let data_key = data_key(&mut tx, &self.inner.key, instance, doing).await?;
        let mut open =
            async |field: &'static str| opened(&mut tx, &data_key, instance, field, doing).await;
        let missing = |field: &'static str| {
            move || StoreError::corrupt(format!("the {field} of instance {instance} is missing"))
        };
        let system_password = open(SYSTEM_PASSWORD).await?;
        let default_password = open(DEFAULT_PASSWORD_SHA256).await?;
        // An instance that is older than the field has none, and never gets one: its agents would
        // have to take up another key all at once.
        let agent_key = open(AGENT_KEY).await?.unwrap_or_else(|| Secret::new(""));
        let former_password = open(FORMER_PASSWORD_SHA256).await?;
        let users_revision = instances::users_revision(&mut tx, instance, doing).await?;
        let accounts = accounts::of_servers(&mut tx, &data_key, instance, doing).await?;
        Ok(NodeSecrets {
            accounts,
            system_password: system_password.ok_or_else(missing(SYSTEM_PASSWORD))?,
            default_password_sha256: default_password
                .ok_or_else(missing(DEFAULT_PASSWORD_SHA256))?,
            agent_key,
            former_password_sha256: former_password.unwrap_or_else(|| Secret::new("")),
            users_revision,
        })
    }

    /// Gives the tenant another password, with the operation that tells the servers of it (and its
    /// event) and the record: all or nothing. The former one is valid beside it until `until`. The
    /// operation is told its revision; answers it as it now stands.
    ///
    /// # Errors
    /// Refusals `instance-busy` and `instance-not-ready`; [`StoreError::NotFound`].
    pub async fn password_change_begin(
        &self,
        password_sha256: &Secret,
        until: Timestamp,
        operation: &Operation,
        record: &Record,
    ) -> Result<Operation> {
        let mut tx = self.write("changing an instance's password").await?;
        let doing = tx.doing();
        let id = &operation.instance;
        let row = instances::changeable(&mut tx, id).await?;
        if let Some(holder) = operations::unfinished(tx.conn(), id, doing).await? {
            return Err(operations::busy(&holder).into());
        }
        let data_key = data_key(tx.conn(), &self.inner.key, id, doing).await?;
        let known = opened(tx.conn(), &data_key, id, DEFAULT_PASSWORD_SHA256, doing).await?;
        let former = known.unwrap_or_else(|| Secret::new(""));
        write(&mut tx, &data_key, id, FORMER_PASSWORD_SHA256, &former).await?;
        write(&mut tx, &data_key, id, DEFAULT_PASSWORD_SHA256, password_sha256).await?;
        let revision = raise_users(&mut tx, id, Some(until)).await?;
        let kind = OperationKind::SetPassword { revision };
        let operation = Operation { kind, ..operation.clone() };
        operations::insert(&mut tx, &row.spec.project, &operation).await?;
        records::append(&mut tx, record).await?;
        tx.commit().await?;
        Ok(operation)
    }

    /// Forgets the password before the present one. Done again it changes nothing.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn former_password_drop(&self, id: &InstanceId) -> Result<()> {
        let mut tx = self.write("ending a former password").await?;
        let doing = tx.doing();
        let row = instances::fetch(tx.conn(), id, doing)
            .await?
            .ok_or_else(|| StoreError::not_found("instance", id))?;
        if row.former_password_until.is_none() {
            return Ok(());
        }
        forget(&mut tx, id, FORMER_PASSWORD_SHA256).await?;
        raise_users(&mut tx, id, None).await?;
        let message = "the password before the last change is valid no longer".to_owned();
        let event = instances::control_event(id, "former-password-ended", message);
        events::append(&mut tx, &[event]).await?;
        tx.commit().await
    }
}

/// The instance's users have changed: answers their new revision. The generation rises too.
pub(crate) async fn raise_users(
    tx: &mut WriteTx,
    id: &InstanceId,
    former_until: Option<Timestamp>,
) -> Result<u64> {
    let doing = tx.doing();
    let row = sqlx::query(
        "UPDATE instances SET users_revision = users_revision + 1, generation = generation + 1,
             former_password_until = $2
         WHERE id = $1 RETURNING users_revision",
    )
    .bind(id.as_str())
    .bind(former_until.map(|until| until.0))
    .fetch_one(tx.conn())
    .await
    .doing(doing)?;
    column::unsigned(&row, "users_revision")
}

/// The key that the instance's secrets are sealed with.
pub(crate) async fn data_key(
    conn: &mut SqliteConnection,
    master: &Key,
    instance: &InstanceId,
    doing: &'static str,
) -> Result<Key> {
    let row = sqlx::query("SELECT wrapped FROM instance_keys WHERE instance = $1")
        .bind(instance.as_str())
        .fetch_optional(conn)
        .await
        .doing(doing)?
        .ok_or_else(|| StoreError::not_found("instance", instance))?;
    let wrapped: Vec<u8> = column::get(&row, "wrapped")?;
    let opened = master.open(&place(instance, DATA_KEY), &wrapped);
    let key = opened.ok().and_then(|opened| Key::from_bytes(&opened));
    key.ok_or_else(|| damaged(instance, DATA_KEY))
}

/// One secret of the instance, if it has that one.
pub(crate) async fn opened(
    conn: &mut SqliteConnection,
    data_key: &Key,
    instance: &InstanceId,
    field: &str,
    doing: &'static str,
) -> Result<Option<Secret>> {
    let Some(sealed) = sealed_field(conn, instance, field, doing).await? else { return Ok(None) };
    let plain = data_key.open(&place(instance, field), &sealed);
    let plain = plain.map_err(|_| damaged(instance, field))?;
    let text = str::from_utf8(&plain).map_err(|_| damaged(instance, field))?;
    Ok(Some(Secret::new(text)))
}

fn damaged(instance: &InstanceId, field: &str) -> StoreError {
    StoreError::corrupt(format!("the {field} of instance {instance} does not open"))
}

/// Seals and writes one secret, in place of the former one.
pub(crate) async fn write(
    tx: &mut WriteTx,
    data_key: &Key,
    instance: &InstanceId,
    field: &str,
    secret: &Secret,
) -> Result<()> {
    let doing = tx.doing();
    let sealed = data_key
        .seal(&place(instance, field), secret.expose().as_bytes())
        .map_err(no_random(doing))?;
    sqlx::query(
        "INSERT INTO instance_secrets (instance, field, sealed) VALUES ($1, $2, $3)
         ON CONFLICT (instance, field) DO UPDATE SET sealed = $3",
    )
    .bind(instance.as_str())
    .bind(field)
    .bind(sealed)
    .execute(tx.conn())
    .await
    .doing(doing)?;
    Ok(())
}

/// Deletes one secret, if the instance has that one.
pub(crate) async fn forget(tx: &mut WriteTx, instance: &InstanceId, field: &str) -> Result<()> {
    let doing = tx.doing();
    sqlx::query("DELETE FROM instance_secrets WHERE instance = $1 AND field = $2")
        .bind(instance.as_str())
        .bind(field)
        .execute(tx.conn())
        .await
        .doing(doing)?;
    Ok(())
}

async fn sealed_field(
    conn: &mut SqliteConnection,
    instance: &InstanceId,
    field: &str,
    doing: &'static str,
) -> Result<Option<Vec<u8>>> {
    let row = sqlx::query("SELECT sealed FROM instance_secrets WHERE instance = $1 AND field = $2")
        .bind(instance.as_str())
        .bind(field)
        .fetch_optional(conn)
        .await
        .doing(doing)?;
    row.map(|row| column::get(&row, "sealed")).transpose()
}

/// Seals and writes the secrets of a new instance.
pub(crate) async fn insert(
    tx: &mut WriteTx,
    master: &Key,
    instance: &InstanceId,
    secrets: &NodeSecrets,
) -> Result<()> {
    let doing = tx.doing();
    let data_key = Key::random().map_err(no_random(doing))?;
    let wrapped =
        master.seal(&place(instance, DATA_KEY), data_key.bytes()).map_err(no_random(doing))?;
    sqlx::query("INSERT INTO instance_keys (instance, wrapped) VALUES ($1, $2)")
        .bind(instance.as_str())
        .bind(wrapped)
        .execute(tx.conn())
        .await
        .doing(doing)?;
    for (field, secret) in [
        (SYSTEM_PASSWORD, &secrets.system_password),
        (DEFAULT_PASSWORD_SHA256, &secrets.default_password_sha256),
        (AGENT_KEY, &secrets.agent_key),
    ] {
        if secret.expose().is_empty() {
            continue;
        }
        write(tx, &data_key, instance, field, secret).await?;
    }
    Ok(())
}

/// Deletes the instance's secrets with their key; `secure_delete` overwrites both in the file.
pub(crate) async fn delete(tx: &mut WriteTx, instance: &InstanceId) -> Result<()> {
    let doing = tx.doing();
    for statement in [
        "DELETE FROM instance_secrets WHERE instance = $1",
        "DELETE FROM instance_keys WHERE instance = $1",
    ] {
        sqlx::query(statement).bind(instance.as_str()).execute(tx.conn()).await.doing(doing)?;
    }
    Ok(())
}
