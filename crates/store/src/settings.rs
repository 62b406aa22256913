//! Small values that Larder remembers about itself, by name. Not for secrets.

use crate::error::Doing;
use crate::{Result, Store, column};

impl Store {
    pub async fn setting_get(&self, name: &str) -> Result<Option<String>> {
        let doing = "reading a setting";
        let mut tx = self.read(doing).await?;
        let row = sqlx::query("SELECT value FROM settings WHERE name = $1")
            .bind(name)
            .fetch_optional(&mut *tx)
            .await
            .doing(doing)?;
        row.map(|row| column::get(&row, "value")).transpose()
    }

    /// Sets or replaces the value.
    pub async fn setting_set(&self, name: &str, value: &str) -> Result<()> {
        let doing = "writing a setting";
        let mut tx = self.write(doing).await?;
        sqlx::query(
            "INSERT INTO settings (name, value) VALUES ($1, $2)
             ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        )
        .bind(name)
        .bind(value)
        .execute(tx.conn())
        .await
        .doing(doing)?;
        tx.commit().await
    }
}
