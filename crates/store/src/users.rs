//! People who may log in.

use sqlx::sqlite::{SqliteConnection, SqliteRow};

use larder_model::{Code, Refusal, Secret, Timestamp};

use crate::error::{Doing, is_unique_violation};
use crate::{Result, Store, StoreError, clock, column};

/// The one role of this version: may do everything.
pub const ROLE_CLOUD_ADMINISTRATOR: &str = "cloud-administrator";

/// A user as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserRow {
    pub name: String,
    pub role: String,
    /// A salted hash in PHC form; the password itself is kept nowhere.
    pub password_hash: Secret,
    /// Larder made the password up: it has to be changed at the first login.
    pub password_generated: bool,
    pub password_set_at: Timestamp,
    pub created_at: Timestamp,
}

/// A user to be.
#[derive(Clone, Debug)]
pub struct UserNew {
    pub name: String,
    /// [`ROLE_CLOUD_ADMINISTRATOR`].
    pub role: String,
    pub password_hash: Secret,
    pub password_generated: bool,
}

impl Store {
    pub async fn user_get(&self, name: &str) -> Result<Option<UserRow>> {
        let mut tx = self.read("reading a user").await?;
        fetch(&mut tx, name, "reading a user").await
    }

    /// All users, sorted by name.
    pub async fn user_list(&self) -> Result<Vec<UserRow>> {
        let doing = "listing users";
        let mut tx = self.read(doing).await?;
        let rows = sqlx::query("SELECT * FROM users ORDER BY name")
            .fetch_all(&mut *tx)
            .await
            .doing(doing)?;
        rows.iter().map(user_of).collect()
    }

    /// # Errors
    /// A refusal `name-taken` when the user exists.
    pub async fn user_create(&self, user: &UserNew) -> Result<()> {
        let doing = "creating a user";
        let mut tx = self.write(doing).await?;
        let now = clock::now();
        let inserted = sqlx::query(
            "INSERT INTO users
                 (name, role, password_hash, password_generated, password_set_at, created_at)
             VALUES ($1, $2, $3, $4, $5, $5)",
        )
        .bind(&user.name)
        .bind(&user.role)
        .bind(user.password_hash.expose())
        .bind(user.password_generated)
        .bind(now.0)
        .execute(tx.conn())
        .await;
        match inserted {
            Err(e) if is_unique_violation(&e) => Err(Refusal::new(
                Code::NameTaken,
                format!("a user `{}` exists: choose another name", user.name),
            )
            .field("name")
            .into()),
            other => {
                other.doing(doing)?;
                tx.commit().await
            }
        }
    }

    /// Replaces the password's hash. Sessions stay; see [`Store::token_revoke_sessions`].
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn user_set_password_hash(
        &self,
        name: &str,
        hash: &Secret,
        generated: bool,
    ) -> Result<()> {
        let doing = "changing a user's password";
        let mut tx = self.write(doing).await?;
        let changed = sqlx::query(
            "UPDATE users SET password_hash = $2, password_generated = $3, password_set_at = $4
             WHERE name = $1",
        )
        .bind(name)
        .bind(hash.expose())
        .bind(generated)
        .bind(clock::now().0)
        .execute(tx.conn())
        .await
        .doing(doing)?;
        if changed.rows_affected() == 0 {
            return Err(StoreError::not_found("user", name));
        }
        tx.commit().await
    }
}

pub(crate) async fn fetch(
    conn: &mut SqliteConnection,
    name: &str,
    doing: &'static str,
) -> Result<Option<UserRow>> {
    sqlx::query("SELECT * FROM users WHERE name = $1")
        .bind(name)
        .fetch_optional(conn)
        .await
        .doing(doing)?
        .as_ref()
        .map(user_of)
        .transpose()
}

fn user_of(row: &SqliteRow) -> Result<UserRow> {
    Ok(UserRow {
        name: column::get(row, "name")?,
        role: column::get(row, "role")?,
        password_hash: Secret::new(column::get::<String>(row, "password_hash")?),
        password_generated: column::get(row, "password_generated")?,
        password_set_at: column::time(row, "password_set_at")?,
        created_at: column::time(row, "created_at")?,
    })
}
