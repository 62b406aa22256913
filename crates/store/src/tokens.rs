//! Sessions and API tokens. Only the SHA-256 of a token is stored: who reads the database cannot
//! use it. Tokens are 256 random bits, so an unsalted hash is enough.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sqlx::sqlite::SqliteRow;
use zeroize::Zeroizing;

use larder_model::{Millis, Secret, Timestamp};

use crate::error::Doing;
use crate::tx::WriteTx;
use crate::users::{self, UserRow};
use crate::{Result, Store, StoreError, clock, column, seal};

/// So that a token is recognised where it does not belong.
const PREFIX: &str = "larder_";
/// `last_used_at` is written at most this often: a request must not cost a durable write.
const LAST_USED_STEP: Millis = Millis::secs(60);

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenKind {
    /// Made by a login, ends with the logout.
    Session,
    /// Made by hand for a program.
    Api,
}

/// A token without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    pub id: String,
    pub user: String,
    pub kind: TokenKind,
    /// What its owner calls it; may be empty.
    pub name: String,
    pub created_at: Timestamp,
    /// `None`: never.
    pub expires_at: Option<Timestamp>,
    /// To the minute; `None`: never.
    pub last_used_at: Option<Timestamp>,
}

/// A new token. The secret is shown once and cannot be read again.
#[derive(Clone, Debug)]
pub struct TokenCreated {
    pub token: TokenRow,
    pub secret: Secret,
}

/// Who stands behind a token.
#[derive(Clone, Debug)]
pub struct TokenHolder {
    pub token: TokenRow,
    pub user: UserRow,
}

impl Store {
    /// Makes a token for the user. `expires`: when it ends, `None` for never.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is no such user.
    pub async fn token_create(
        &self,
        user: &str,
        kind: TokenKind,
        name: &str,
        expires: Option<Timestamp>,
    ) -> Result<TokenCreated> {
        let doing = "creating a token";
        let no_random = |e: seal::NoRandom| StoreError::Database {
            doing,
            cause: sqlx::Error::Io(std::io::Error::other(e)),
        };
        let bytes = Zeroizing::new(seal::random::<32>().map_err(no_random)?);
        let id = URL_SAFE_NO_PAD.encode(seal::random::<9>().map_err(no_random)?);
        let secret = Secret::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(*bytes)));
        let now = clock::now();
        let token = TokenRow {
            id: format!("t-{id}"),
            user: user.to_owned(),
            kind,
            name: name.to_owned(),
            created_at: now,
            expires_at: expires,
            last_used_at: None,
        };
        let mut tx = self.write(doing).await?;
        if users::fetch(tx.conn(), user, doing).await?.is_none() {
            return Err(StoreError::not_found("user", user));
        }
        sweep(&mut tx, now).await?;
        sqlx::query(
            "INSERT INTO tokens (id, digest, owner, kind, name, created_at, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(&token.id)
        .bind(digest(&secret))
        .bind(&token.user)
        .bind(column::to_word("a token's kind", &kind)?)
        .bind(&token.name)
        .bind(now.0)
        .bind(expires.map(|t| t.0))
        .execute(tx.conn())
        .await
        .doing(doing)?;
        tx.commit().await?;
        Ok(TokenCreated { token, secret })
    }

    /// Finds who a token belongs to; `None` when it is unknown, revoked or has expired. Notes the
    /// use, to the minute.
    pub async fn token_find(&self, secret: &Secret) -> Result<Option<TokenHolder>> {
        let doing = "looking for a token";
        let now = clock::now();
        let mut tx = self.read(doing).await?;
        // Found by the digest's index: what timing tells of a digest does not lead to a token.
        let row = sqlx::query("SELECT * FROM tokens WHERE digest = $1")
            .bind(digest(secret))
            .fetch_optional(&mut *tx)
            .await
            .doing(doing)?;
        let Some(row) = row else { return Ok(None) };
        let token = token_of(&row)?;
        if token.expires_at.is_some_and(|end| end <= now) {
            return Ok(None);
        }
        let Some(user) = users::fetch(&mut tx, &token.user, doing).await? else {
            return Ok(None);
        };
        drop(tx);
        if token.last_used_at.is_none_or(|last| now.since(last) >= LAST_USED_STEP)
            && let Err(error) = self.token_note_use(&token.id, now).await
        {
            // A full disk must not lock people out.
            tracing::warn!(%error, token = token.id, "a token's use was not noted");
        }
        Ok(Some(TokenHolder { token, user }))
    }

    async fn token_note_use(&self, id: &str, now: Timestamp) -> Result<()> {
        let doing = "noting a token's use";
        let mut tx = self.write(doing).await?;
        sqlx::query("UPDATE tokens SET last_used_at = $2 WHERE id = $1")
            .bind(id)
            .bind(now.0)
            .execute(tx.conn())
            .await
            .doing(doing)?;
        tx.commit().await
    }

    /// Ends a token.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn token_revoke(&self, id: &str) -> Result<()> {
        let doing = "revoking a token";
        let mut tx = self.write(doing).await?;
        let gone = sqlx::query("DELETE FROM tokens WHERE id = $1")
            .bind(id)
            .execute(tx.conn())
            .await
            .doing(doing)?;
        if gone.rows_affected() == 0 {
            return Err(StoreError::not_found("token", id));
        }
        tx.commit().await
    }

    /// Ends all sessions of the user but `keep`, as after a change of password. Answers how many.
    pub async fn token_revoke_sessions(&self, user: &str, keep: Option<&str>) -> Result<u64> {
        let doing = "revoking a user's sessions";
        let mut tx = self.write(doing).await?;
        let gone = sqlx::query(
            "DELETE FROM tokens WHERE owner = $1 AND kind = $2 AND ($3 IS NULL OR id <> $3)",
        )
        .bind(user)
        .bind(column::to_word("a token's kind", &TokenKind::Session)?)
        .bind(keep)
        .execute(tx.conn())
        .await
        .doing(doing)?;
        tx.commit().await?;
        Ok(gone.rows_affected())
    }

    /// The user's tokens that have not expired, oldest first; sessions included.
    pub async fn token_list(&self, user: &str) -> Result<Vec<TokenRow>> {
        let doing = "listing tokens";
        let mut tx = self.read(doing).await?;
        let rows = sqlx::query(
            "SELECT * FROM tokens
             WHERE owner = $1 AND (expires_at IS NULL OR expires_at > $2)
             ORDER BY created_at, id",
        )
        .bind(user)
        .bind(clock::now().0)
        .fetch_all(&mut *tx)
        .await
        .doing(doing)?;
        rows.iter().map(token_of).collect()
    }

    /// Removes tokens that have expired; answers how many. Also done at each start and with each
    /// new token.
    pub async fn token_sweep(&self) -> Result<u64> {
        let mut tx = self.write("sweeping tokens").await?;
        let gone = sweep(&mut tx, clock::now()).await?;
        tx.commit().await?;
        Ok(gone)
    }
}

pub(crate) async fn sweep(tx: &mut WriteTx, now: Timestamp) -> Result<u64> {
    let doing = tx.doing();
    let gone = sqlx::query("DELETE FROM tokens WHERE expires_at <= $1")
        .bind(now.0)
        .execute(tx.conn())
        .await
        .doing(doing)?;
    Ok(gone.rows_affected())
}

fn digest(secret: &Secret) -> String {
    let digest = Sha256::digest(secret.expose().as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn token_of(row: &SqliteRow) -> Result<TokenRow> {
    Ok(TokenRow {
        id: column::get(row, "id")?,
        user: column::get(row, "owner")?,
        kind: column::word(row, "kind")?,
        name: column::get(row, "name")?,
        created_at: column::time(row, "created_at")?,
        expires_at: column::time_option(row, "expires_at")?,
        last_used_at: column::time_option(row, "last_used_at")?,
    })
}
