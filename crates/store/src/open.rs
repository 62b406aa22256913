//! Opening the database: files, key, migrations, connections.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::MigrateError;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, Row, SqlitePool};
use tokio::sync::watch;

use larder_model::Timestamp;

use crate::column;
use crate::error::Doing;
use crate::seal::Key;
use crate::{Inner, Result, Store, StoreError, clock, keyfile};

/// The place that the key check value is bound to.
const KEY_CHECK: &str = "key-check";
const CONTROLLER_LEASE: &str = "controller";
/// Another process may be in the middle of a change (a backup tool): waited for this long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// A request that gets no connection for this long fails rather than piling up.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);
const READERS: u32 = 4;

impl Store {
    /// Opens the store, making it when neither the database nor the key is there, and brings its
    /// schema up to date. Both files get mode 0600.
    ///
    /// # Errors
    /// [`StoreError::Key`] when a database exists and its key is missing or is another one;
    /// [`StoreError::Open`] when the database was written by a newer Larder or cannot be opened;
    /// [`StoreError::Corrupt`], [`StoreError::Full`].
    pub async fn open(database: &Path, key_file: &Path) -> Result<Self> {
        let key = prepare_files(database, key_file)?;
        let options = SqliteConnectOptions::new()
            .filename(database)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let writer = pool_options(1)
            .connect_with(options.clone().pragma("secure_delete", "ON"))
            .await
            .map_err(|cause| open_error(database, cause))?;
        migrate(database, &writer).await?;
        let readers = pool_options(READERS)
            .connect_with(options.pragma("query_only", "ON"))
            .await
            .map_err(|cause| open_error(database, cause))?;
        let (changes, _) = watch::channel(0);
        let store = Self { inner: Arc::new(Inner { writer, readers, key, changes }) };
        store.prepare(key_file).await?;
        Ok(store)
    }

    /// What every start sees to: the key is the right one, the default project exists, tokens
    /// that have expired are gone.
    async fn prepare(&self, key_file: &Path) -> Result<()> {
        let mut tx = self.write("opening the store").await?;
        let doing = tx.doing();
        let check = sqlx::query("SELECT value FROM meta WHERE name = $1")
            .bind(KEY_CHECK)
            .fetch_optional(tx.conn())
            .await
            .doing(doing)?;
        if let Some(row) = check {
            let sealed: Vec<u8> = column::get(&row, "value")?;
            self.inner.key.open(KEY_CHECK, &sealed).map_err(|_| StoreError::Key {
                path: key_file.to_owned(),
                reason: "it is not the key of this database: put the right one back".into(),
            })?;
        } else {
            let sealed = self.inner.key.seal(KEY_CHECK, b"").map_err(|e| StoreError::Key {
                path: key_file.to_owned(),
                reason: e.to_string(),
            })?;
            sqlx::query("INSERT INTO meta (name, value) VALUES ($1, $2)")
                .bind(KEY_CHECK)
                .bind(sealed)
                .execute(tx.conn())
                .await
                .doing(doing)?;
        }
        let now = clock::now();
        crate::projects::ensure_default(&mut tx, now).await?;
        crate::tokens::sweep(&mut tx, now).await?;
        let newest = sqlx::query("SELECT value FROM counters WHERE name = $1")
            .bind(crate::events::COUNTER)
            .fetch_optional(tx.conn())
            .await
            .doing(doing)?
            .map(|row| column::unsigned(&row, "value"))
            .transpose()?;
        tx.commit().await?;
        self.inner.changes.send_replace(newest.unwrap_or(0));
        Ok(())
    }

    /// Takes the lease of the controller: its epoch rises and rides on every order from now on, so
    /// that agents refuse what a former controller still says. Once per start.
    ///
    /// At least the seconds since 1970: a database restored from a backup does not know the epochs
    /// that were taken after the backup, and the agents keep those. A clock that was set back
    /// cannot make it run backwards.
    pub async fn controller_epoch_take(&self) -> Result<u64> {
        self.controller_epoch_take_at(clock::now()).await
    }

    async fn controller_epoch_take_at(&self, Timestamp(now): Timestamp) -> Result<u64> {
        let mut tx = self.write("taking the controller's lease").await?;
        let doing = tx.doing();
        let row = sqlx::query(
            "INSERT INTO leases (name, epoch, taken_at) VALUES ($1, $2, $3)
             ON CONFLICT (name) DO UPDATE
             SET epoch = CASE WHEN leases.epoch >= excluded.epoch THEN leases.epoch + 1
                              ELSE excluded.epoch END,
                 taken_at = excluded.taken_at
             RETURNING epoch",
        )
        .bind(CONTROLLER_LEASE)
        .bind((now / 1000).max(1))
        .bind(now)
        .fetch_one(tx.conn())
        .await
        .doing(doing)?;
        let epoch = column::unsigned(&row, "epoch")?;
        tx.commit().await?;
        Ok(epoch)
    }

    /// Answers when the database can be read: for `readyz`.
    pub async fn ping(&self) -> Result<()> {
        let mut tx = self.read("asking the store for a sign of life").await?;
        let row = sqlx::query("SELECT 1").fetch_one(&mut *tx).await.doing("reading")?;
        row.try_get::<i64, _>(0).doing("reading").map(drop)
    }

    /// Closes all connections; what runs is finished first. The store cannot be used afterwards.
    pub async fn close(&self) {
        self.inner.readers.close().await;
        self.inner.writer.close().await;
    }
}

fn pool_options(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .after_release(|connection, _| {
            Box::pin(async move {
                // A full disk or an IO error makes SQLite roll back by itself; sqlx's own ROLLBACK
                // then fails, and it goes on counting a transaction that is over. Such a writer
                // would refuse every later BEGIN, such a reader would see an old moment for ever:
                // it is replaced. The ping waits until a queued ROLLBACK was done.
                connection.ping().await?;
                Ok(!connection.is_in_transaction())
            })
        })
}

/// Reads or makes the key, and makes the database file private before SQLite opens it (its
/// journal files get the same mode). A key is made only where there was no database.
fn prepare_files(database: &Path, key_file: &Path) -> Result<Key> {
    let fresh = match fs::metadata(database) {
        // An empty file is what a crash between these steps leaves.
        Ok(metadata) => metadata.len() == 0 && !wal_of(database).exists(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => true,
        Err(e) => return Err(file_error(database, &e)),
    };
    let key = match keyfile::read(key_file)? {
        Some(key) => key,
        None if fresh => keyfile::create(key_file)?,
        None => {
            return Err(StoreError::Key {
                path: key_file.to_owned(),
                reason: format!(
                    "it is missing, and database {} needs it: put the key back from a backup",
                    database.display()
                ),
            });
        }
    };
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(database)
        .map_err(|e| file_error(database, &e))?;
    Ok(key)
}

fn wal_of(database: &Path) -> std::path::PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

fn file_error(database: &Path, cause: &io::Error) -> StoreError {
    if cause.kind() == io::ErrorKind::StorageFull {
        return StoreError::Full { doing: "creating the database" };
    }
    StoreError::Open { path: database.to_owned(), reason: cause.to_string() }
}

fn open_error(database: &Path, cause: sqlx::Error) -> StoreError {
    match StoreError::database("opening the database", cause) {
        StoreError::Database { cause, .. } => {
            StoreError::Open { path: database.to_owned(), reason: cause.to_string() }
        }
        other => other,
    }
}

async fn migrate(database: &Path, writer: &SqlitePool) -> Result<()> {
    let reason = match sqlx::migrate!("./migrations").run(writer).await {
        Ok(()) => return Ok(()),
        Err(MigrateError::VersionMissing(version)) => format!(
            "a newer Larder has written it (schema {version}): start that version, or restore a backup"
        ),
        Err(MigrateError::Execute(cause) | MigrateError::ExecuteMigration(cause, _)) => {
            return Err(open_error(database, cause));
        }
        Err(other) => other.to_string(),
    };
    Err(StoreError::Open { path: database.to_owned(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    use larder_model::{Code, Refusal};

    async fn new_store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path();
        let store = Store::open(&path.join("larder.db"), &path.join("secret.key")).await;
        (folder, store.expect("open"))
    }

    async fn pragma(pool: &SqlitePool, name: &'static str) -> i64 {
        sqlx::query(name).fetch_one(pool).await.expect("pragma").try_get(0).expect("number")
    }

    #[tokio::test]
    async fn what_is_answered_is_durable_and_references_hold() {
        let (_folder, store) = new_store().await;
        let writer = &store.inner.writer;
        assert_eq!(pragma(writer, "PRAGMA synchronous").await, 2, "FULL");
        assert_eq!(pragma(writer, "PRAGMA foreign_keys").await, 1);
        assert_eq!(pragma(writer, "PRAGMA secure_delete").await, 1, "deleted secrets are gone");
        let mode = sqlx::query("PRAGMA journal_mode").fetch_one(writer).await.expect("pragma");
        assert_eq!(mode.try_get::<String, _>(0).expect("text"), "wal");
        let wrote = sqlx::query("DELETE FROM projects").execute(&store.inner.readers).await;
        assert!(wrote.is_err(), "readers cannot write");
    }

    #[tokio::test]
    async fn a_full_disk_is_said_and_the_store_goes_on_when_there_is_room() {
        let (_folder, store) = new_store().await;
        let pages = pragma(&store.inner.writer, "PRAGMA page_count").await;
        let limit = format!("PRAGMA max_page_count = {}", pages + 2);
        for round in 0..3 {
            sqlx::query(sqlx::AssertSqlSafe(limit.clone()))
                .execute(&store.inner.writer)
                .await
                .expect("limit");
            let big = "x".repeat(100_000);
            let error = store.setting_set("big", &big).await.expect_err("no room");
            assert!(matches!(error, StoreError::Full { .. }), "round {round}: {error}");
            assert_eq!(Refusal::from(error).code, Code::DiskFull);
            assert_eq!(store.setting_get("big").await.expect("reading goes on"), None);
            store.setting_set("small", "y").await.expect("what fits is written");
            sqlx::query("PRAGMA max_page_count = 1000000")
                .execute(&store.inner.writer)
                .await
                .expect("limit");
        }
        store.setting_set("big", "z").await.expect("room again");
        store.controller_epoch_take().await.expect("the writer is well");
    }

    #[tokio::test]
    async fn a_restored_database_takes_a_newer_epoch_than_all_before_and_no_clock_sets_it_back() {
        let (_folder, backup) = new_store().await;
        let start = 1_800_000_000;
        let take = async |store: &Store, second: u64| {
            let now = Timestamp(i64::try_from(second * 1000).expect("small"));
            store.controller_epoch_take_at(now).await.expect("take")
        };
        assert_eq!(take(&backup, start).await, start);
        // The database went on after the backup, with a start every minute, and was lost.
        let (_other, lost) = new_store().await;
        let mut newest = 0;
        for minute in 0..10 {
            newest = take(&lost, start + 60 * minute).await;
        }
        assert!(take(&backup, start + 601).await > newest);
        let newest = take(&backup, start + 601).await;
        assert_eq!(newest, start + 602, "two starts within a second");
        assert_eq!(take(&backup, 0).await, newest + 1, "the clock was set back");
    }

    #[tokio::test]
    async fn a_newer_database_is_refused() {
        let (folder, store) = new_store().await;
        sqlx::query(
            "INSERT INTO _sqlx_migrations
                 (version, description, success, checksum, execution_time)
             VALUES (9999, 'of a newer version', 1, x'00', 0)",
        )
        .execute(&store.inner.writer)
        .await
        .expect("insert");
        store.close().await;
        let path = folder.path();
        let error = Store::open(&path.join("larder.db"), &path.join("secret.key"))
            .await
            .expect_err("newer")
            .to_string();
        assert!(error.contains("a newer Larder") && error.contains("9999"), "{error}");
    }

    #[tokio::test]
    async fn instances_of_an_older_database_keep_their_nodes_and_need_no_catalogue() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("larder.db");
        let options =
            SqliteConnectOptions::new().filename(&path).create_if_missing(true).foreign_keys(true);
        let pool = pool_options(1).connect_with(options).await.expect("database");
        sqlx::migrate!("./migrations").run_to(2, &pool).await.expect("the older schema");
        let instance = "INSERT INTO instances
                 (id, project, name, architecture, engine, memory_bytes, search_text, spec,
                  generation, created_at, initialized, state, observed_generation)
             VALUES ('i-1', 'p', 'one', 'standalone', 'redis-7.0', 1, '', '{}', 3, 1, 1, 'running', 3)";
        let node = "INSERT INTO nodes (id, instance, shard, worker, bootstrap, phase, created_at)
             VALUES ('n-1', 'i-1', 0, 'w', 1, 'wanted', 1)";
        let run = async |statement: &'static str| sqlx::query(statement).execute(&pool).await;
        run("INSERT INTO projects (name, created_at) VALUES ('p', 1)").await.expect("project");
        run(instance).await.expect_err("the older schema refers to the catalogue");
        run("INSERT INTO engines (name, version, flavour, path, capabilities, added_at, builtin)
             VALUES ('redis-7.0', '7.0.15', 'redis', '/x', '{}', 1, 1)")
        .await
        .expect("engine");
        run(instance).await.expect("instance");
        run(node).await.expect("node");
        migrate(&path, &pool).await.expect("up to date");
        assert_eq!(pragma(&pool, "SELECT generation FROM instances WHERE id = 'i-1'").await, 3);
        assert_eq!(pragma(&pool, "SELECT count(*) FROM nodes WHERE instance = 'i-1'").await, 1);
        run("DELETE FROM engines").await.expect("nothing refers to it");
        run("DELETE FROM instances").await.expect_err("its node refers to it");
        let broken = sqlx::query("PRAGMA foreign_key_check").fetch_all(&pool).await;
        assert!(broken.expect("check").is_empty());
    }

    /// Handlers of a web server must be able to hold every future of the store.
    #[tokio::test]
    async fn futures_can_move_between_threads() {
        fn sent<T: Send>(value: T) -> T {
            value
        }
        let (_folder, store) = new_store().await;
        let id = larder_model::InstanceId::new("i-1").expect("valid");
        assert!(sent(store.instance_secrets(&id)).await.is_err());
        assert!(sent(store.instance_purge(&id)).await.is_ok());
        assert!(sent(store.instance_get(&id)).await.is_err());
    }
}
