//! Bound container clusters: what they are called, how they are used, how they are entered.

use sqlx::sqlite::{SqliteConnection, SqliteRow};

use larder_model::{Code, InstanceSpec, Refusal, Secret, Timestamp};

use crate::error::Doing;
use crate::records::Record;
use crate::seal::DoesNotOpen;
use crate::{Result, Store, StoreError, column, records};

/// One bound container cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerClusterRow {
    pub name: String,
    /// Random and lasting: marks what this binding has made there.
    pub owner: String,
    /// The backend's own shape.
    pub options: serde_json::Value,
    /// The backend's own shape; kept sealed.
    pub credentials: Secret,
    pub bound_at: Timestamp,
}

/// # Errors
/// Refusal `container-cluster-not-found` for one that is not bound.
pub(crate) async fn check_bound(
    conn: &mut SqliteConnection,
    name: &str,
    doing: &'static str,
) -> Result<()> {
    let bound = sqlx::query("SELECT 1 FROM container_clusters WHERE name = $1")
        .bind(name)
        .fetch_optional(conn)
        .await
        .doing(doing)?;
    if bound.is_some() {
        return Ok(());
    }
    Err(Refusal::new(
        Code::ContainerClusterNotFound,
        format!(
            "container cluster `{name}` is not bound: `larder container-cluster list` shows what is"
        ),
    )
    .field("container_cluster")
    .into())
}

/// What sealed credentials are bound to.
fn place(name: &str) -> String {
    format!("container-cluster/{name}")
}

impl Store {
    /// Keeps a binding, or replaces the options and credentials of one that is there: its owner
    /// and the time of its first binding stay. Answers the binding as it is kept, which has to be
    /// used from then on; that it was asked for is recorded in the same transaction.
    pub async fn container_cluster_bind(
        &self,
        row: &ContainerClusterRow,
        record: &Record,
    ) -> Result<ContainerClusterRow> {
        let doing = "binding a container cluster";
        let sealed =
            self.inner.key.seal(&place(&row.name), row.credentials.expose().as_bytes()).map_err(
                |error| StoreError::Database {
                    doing,
                    cause: sqlx::Error::Io(std::io::Error::other(error)),
                },
            )?;
        let mut tx = self.write(doing).await?;
        let kept = sqlx::query(
            "INSERT INTO container_clusters (name, owner, options, credentials, bound_at)
             VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (name) DO UPDATE SET
                 options = excluded.options, credentials = excluded.credentials
             RETURNING *",
        )
        .bind(&row.name)
        .bind(&row.owner)
        .bind(column::to_json("a container cluster's options", &row.options)?)
        .bind(sealed)
        .bind(row.bound_at.0)
        .fetch_one(tx.conn())
        .await
        .doing(doing)?;
        let kept = self.container_cluster_of(&kept)?;
        records::append(&mut tx, record).await?;
        tx.commit().await?;
        Ok(kept)
    }

    /// All bindings, sorted by name.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when credentials do not open.
    pub async fn container_cluster_list(&self) -> Result<Vec<ContainerClusterRow>> {
        let doing = "listing container clusters";
        let mut tx = self.read(doing).await?;
        let rows = sqlx::query("SELECT * FROM container_clusters ORDER BY name")
            .fetch_all(&mut *tx)
            .await
            .doing(doing)?;
        rows.iter().map(|row| self.container_cluster_of(row)).collect()
    }

    /// Forgets a binding that no instance needs, in the same transaction as that is looked at and
    /// recorded.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; `container-cluster-in-use` with the instances.
    pub async fn container_cluster_unbind(&self, name: &str, record: &Record) -> Result<()> {
        let doing = "unbinding a container cluster";
        let mut tx = self.write(doing).await?;
        let rows = sqlx::query("SELECT spec FROM instances ORDER BY name")
            .fetch_all(tx.conn())
            .await
            .doing(doing)?;
        let mut used = Vec::new();
        for row in &rows {
            let spec: InstanceSpec = column::json(row, "spec")?;
            if spec.container_cluster == name {
                used.push(spec.name.to_string());
            }
        }
        if !used.is_empty() {
            return Err(Refusal::new(
                Code::ContainerClusterInUse,
                format!("instances live on container cluster `{name}`: {}", used.join(", ")),
            )
            .into());
        }
        let gone = sqlx::query("DELETE FROM container_clusters WHERE name = $1")
            .bind(name)
            .execute(tx.conn())
            .await
            .doing(doing)?;
        if gone.rows_affected() == 0 {
            return Err(StoreError::not_found("container cluster", name));
        }
        records::append(&mut tx, record).await?;
        tx.commit().await
    }

    fn container_cluster_of(&self, row: &SqliteRow) -> Result<ContainerClusterRow> {
        let name: String = column::get(row, "name")?;
        let damaged = |_: DoesNotOpen| {
            StoreError::corrupt(format!("the credentials of container cluster {name} do not open"))
        };
        let sealed: Vec<u8> = column::get(row, "credentials")?;
        let plain = self.inner.key.open(&place(&name), &sealed).map_err(damaged)?;
        let text = str::from_utf8(&plain).map_err(|_| damaged(DoesNotOpen))?;
        Ok(ContainerClusterRow {
            credentials: Secret::new(text),
            owner: column::get(row, "owner")?,
            options: column::json(row, "options")?,
            bound_at: Timestamp(column::get(row, "bound_at")?),
            name,
        })
    }
}
