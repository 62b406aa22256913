//! Projects: who owns instances. `default` always exists.

use larder_model::{ProjectName, Timestamp};

use crate::error::Doing;
use crate::tx::WriteTx;
use crate::{Result, Store, column};

const DEFAULT: &str = "default";

impl Store {
    /// All projects, sorted by name.
    pub async fn project_list(&self) -> Result<Vec<ProjectName>> {
        let doing = "listing projects";
        let mut tx = self.read(doing).await?;
        let rows = sqlx::query("SELECT name FROM projects ORDER BY name")
            .fetch_all(&mut *tx)
            .await
            .doing(doing)?;
        rows.iter().map(|row| column::parsed(row, "name")).collect()
    }

    pub async fn project_exists(&self, project: &ProjectName) -> Result<bool> {
        let doing = "looking for a project";
        let mut tx = self.read(doing).await?;
        let row = sqlx::query("SELECT name FROM projects WHERE name = $1")
            .bind(project.as_str())
            .fetch_optional(&mut *tx)
            .await
            .doing(doing)?;
        Ok(row.is_some())
    }
}

pub(crate) async fn ensure_default(tx: &mut WriteTx, now: Timestamp) -> Result<()> {
    let doing = tx.doing();
    sqlx::query("INSERT INTO projects (name, created_at) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(DEFAULT)
        .bind(now.0)
        .execute(tx.conn())
        .await
        .doing(doing)?;
    Ok(())
}
