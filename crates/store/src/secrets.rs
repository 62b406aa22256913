//! The secrets of instances: each instance has a data key of its own, wrapped by the key of the
//! key file, so that a new key file means wrapping keys anew, not secrets.

use sqlx::sqlite::SqliteConnection;

use larder_model::local::NodeSecrets;
use larder_model::{InstanceId, Secret};

use crate::error::Doing;
use crate::seal::{DoesNotOpen, Key, NoRandom};
use crate::tx::WriteTx;
use crate::{Result, Store, StoreError, column};

const DATA_KEY: &str = "data-key";
const SYSTEM_PASSWORD: &str = "system-password";
const DEFAULT_PASSWORD_SHA256: &str = "default-password-sha256";
const AGENT_KEY: &str = "agent-key";

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
        let row = sqlx::query("SELECT wrapped FROM instance_keys WHERE instance = $1")
            .bind(instance.as_str())
            .fetch_optional(&mut *tx)
            .await
            .doing(doing)?
            .ok_or_else(|| StoreError::not_found("instance", instance))?;
        let wrapped: Vec<u8> = column::get(&row, "wrapped")?;
        let damaged = |field: &'static str| {
            move |DoesNotOpen: DoesNotOpen| {
                StoreError::corrupt(format!("the {field} of instance {instance} does not open"))
            }
        };
        let opened =
            self.inner.key.open(&place(instance, DATA_KEY), &wrapped).map_err(damaged(DATA_KEY))?;
        let data_key = Key::from_bytes(&opened).ok_or(DoesNotOpen).map_err(damaged(DATA_KEY))?;
        let mut open = async |field: &'static str| {
            let Some(sealed) = sealed_field(&mut tx, instance, field, doing).await? else {
                return Ok::<_, StoreError>(None);
            };
            let plain = data_key.open(&place(instance, field), &sealed).map_err(damaged(field))?;
            let text = str::from_utf8(&plain).map_err(|_| damaged(field)(DoesNotOpen))?;
            Ok(Some(Secret::new(text)))
        };
        let missing = |field: &'static str| {
            move || StoreError::corrupt(format!("the {field} of instance {instance} is missing"))
        };
        let system_password = open(SYSTEM_PASSWORD).await?;
        let default_password = open(DEFAULT_PASSWORD_SHA256).await?;
        // An instance that is older than the field has none, and never gets one: its agents would
        // have to take up another key all at once.
        let agent_key = open(AGENT_KEY).await?.unwrap_or_else(|| Secret::new(""));
        Ok(NodeSecrets {
            system_password: system_password.ok_or_else(missing(SYSTEM_PASSWORD))?,
            default_password_sha256: default_password
                .ok_or_else(missing(DEFAULT_PASSWORD_SHA256))?,
            agent_key,
        })
    }
}

async fn sealed_field(
    conn: &mut SqliteConnection,
    instance: &InstanceId,
    field: &'static str,
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
        let sealed = data_key
            .seal(&place(instance, field), secret.expose().as_bytes())
            .map_err(no_random(doing))?;
        sqlx::query("INSERT INTO instance_secrets (instance, field, sealed) VALUES ($1, $2, $3)")
            .bind(instance.as_str())
            .bind(field)
            .bind(sealed)
            .execute(tx.conn())
            .await
            .doing(doing)?;
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
