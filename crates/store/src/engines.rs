//! The catalogue of engines: server binaries that instances can run on.

use std::path::PathBuf;

use sqlx::sqlite::{SqliteConnection, SqliteRow};

use larder_model::{Code, EngineName, InstanceSpec, LOCAL_CONTAINER_CLUSTER, Refusal, Timestamp};

use crate::error::Doing;
use crate::{Result, Store, StoreError, column};

/// One engine of the catalogue.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineRow {
    pub name: EngineName,
    /// As the binary reports it: `7.0.15`.
    pub version: String,
    /// `redis` or `valkey`.
    pub flavour: String,
    pub path: PathBuf,
    /// SHA-256 of the binary in hex, where it is pinned.
    pub sha256: Option<String>,
    /// What was probed of it; the prober's own shape.
    pub capabilities: serde_json::Value,
    pub added_at: Timestamp,
    /// Found on the machine by Larder, not added by a person.
    pub builtin: bool,
}

impl Store {
    /// Adds the engine or replaces what is known of it; `added_at` keeps its first value.
    pub async fn engine_upsert(&self, engine: &EngineRow) -> Result<()> {
        let doing = "adding an engine";
        let path = engine.path.to_str().ok_or_else(|| {
            Refusal::new(
                Code::EngineUnusable,
                format!(
                    "the path of engine `{}` is not UTF-8: rename or link the file",
                    engine.name
                ),
            )
            .field("path")
        })?;
        let mut tx = self.write(doing).await?;
        sqlx::query(
            "INSERT INTO engines
                 (name, version, flavour, path, sha256, capabilities, added_at, builtin)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
             ON CONFLICT (name) DO UPDATE SET
                 version = excluded.version, flavour = excluded.flavour, path = excluded.path,
                 sha256 = excluded.sha256, capabilities = excluded.capabilities,
                 builtin = excluded.builtin",
        )
        .bind(engine.name.as_str())
        .bind(&engine.version)
        .bind(&engine.flavour)
        .bind(path)
        .bind(&engine.sha256)
        .bind(column::to_json("an engine's capabilities", &engine.capabilities)?)
        .bind(engine.added_at.0)
        .bind(engine.builtin)
        .execute(tx.conn())
        .await
        .doing(doing)?;
        tx.commit().await
    }

    /// All engines, sorted by name.
    pub async fn engine_list(&self) -> Result<Vec<EngineRow>> {
        let doing = "listing engines";
        let mut tx = self.read(doing).await?;
        let rows = sqlx::query("SELECT * FROM engines ORDER BY name")
            .fetch_all(&mut *tx)
            .await
            .doing(doing)?;
        rows.iter().map(engine_of).collect()
    }

    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn engine_get(&self, name: &EngineName) -> Result<EngineRow> {
        let doing = "reading an engine";
        let mut tx = self.read(doing).await?;
        let row = fetch(&mut tx, name, doing).await?;
        row.ok_or_else(|| StoreError::not_found("engine", name))
    }

    /// Takes the engine out of the catalogue.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; a refusal `engine-in-use` that names an instance.
    pub async fn engine_remove(&self, name: &EngineName) -> Result<()> {
        let doing = "removing an engine";
        let mut tx = self.write(doing).await?;
        let rows = sqlx::query("SELECT spec FROM instances WHERE engine = $1 ORDER BY name")
            .bind(name.as_str())
            .fetch_all(tx.conn())
            .await
            .doing(doing)?;
        let mut users = Vec::new();
        for row in &rows {
            let spec: InstanceSpec = column::json(row, "spec")?;
            // Elsewhere it is an image that instances run on.
            if spec.container_cluster == LOCAL_CONTAINER_CLUSTER {
                users.push(spec.name);
            }
        }
        if let Some(first) = users.first() {
            let others = match users.len() {
                1 => String::new(),
                n => format!(" and {} more", n - 1),
            };
            return Err(Refusal::new(
                Code::EngineInUse,
                format!("engine `{name}` runs instance `{first}`{others}: delete them first"),
            )
            .into());
        }
        let removed = sqlx::query("DELETE FROM engines WHERE name = $1")
            .bind(name.as_str())
            .execute(tx.conn())
            .await
            .doing(doing)?;
        if removed.rows_affected() == 0 {
            return Err(StoreError::not_found("engine", name));
        }
        tx.commit().await
    }
}

async fn fetch(
    conn: &mut SqliteConnection,
    name: &EngineName,
    doing: &'static str,
) -> Result<Option<EngineRow>> {
    sqlx::query("SELECT * FROM engines WHERE name = $1")
        .bind(name.as_str())
        .fetch_optional(conn)
        .await
        .doing(doing)?
        .as_ref()
        .map(engine_of)
        .transpose()
}

/// Refuses what names no engine of the catalogue.
pub(crate) async fn check_exists(
    conn: &mut SqliteConnection,
    name: &EngineName,
    doing: &'static str,
) -> Result<()> {
    if fetch(conn, name, doing).await?.is_some() {
        return Ok(());
    }
    Err(Refusal::new(
        Code::EngineNotFound,
        format!("engine `{name}` is not in the catalogue: `larder engine list` shows what is"),
    )
    .field("engine")
    .into())
}

fn engine_of(row: &SqliteRow) -> Result<EngineRow> {
    Ok(EngineRow {
        name: column::parsed(row, "name")?,
        version: column::get(row, "version")?,
        flavour: column::get(row, "flavour")?,
        path: PathBuf::from(column::get::<String>(row, "path")?),
        sha256: column::get(row, "sha256")?,
        capabilities: column::json(row, "capabilities")?,
        added_at: column::time(row, "added_at")?,
        builtin: column::get(row, "builtin")?,
    })
}
