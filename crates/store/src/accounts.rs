//! Accounts: users of an instance's servers besides the tenant's `default`.

use sqlx::sqlite::{SqliteConnection, SqliteRow};

use larder_model::{
    ACCOUNTS, Account, AccountChange, AccountRole, Code, InstanceId, Operation, OperationKind,
    Refusal, Secret, Timestamp,
};

use crate::error::Doing;
use crate::records::Record;
use crate::seal::Key;
use crate::tx::WriteTx;
use crate::{Result, Store, StoreError, clock, column, instances, operations, records, secrets};

/// An account, without its password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountRow {
    pub name: String,
    pub role: AccountRole,
    /// Of a custom account; empty otherwise.
    pub rules: String,
    pub created_at: Timestamp,
    pub changed_at: Timestamp,
}

/// What an account is to be from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountWish {
    pub name: String,
    pub role: AccountRole,
    pub rules: String,
    /// `None` keeps the present one.
    pub password_sha256: Option<Secret>,
}

/// Where its password's hash is sealed.
fn field(name: &str) -> String {
    format!("account:{name}")
}

impl Store {
    /// The instance's accounts, by name.
    pub async fn account_list(&self, instance: &InstanceId) -> Result<Vec<AccountRow>> {
        let doing = "listing accounts";
        let mut tx = self.read(doing).await?;
        rows(&mut tx, instance, doing).await
    }

    /// Lets an account come or change, with the operation that tells the servers of it (and its event)
    /// and the record: all or nothing. The operation is told its revision; answers it as it now stands.
    ///
    /// # Errors
    /// Refusals `name-taken`, `account-not-found`, `invalid-request` (too many), `instance-busy` and
    /// `instance-not-ready`; [`StoreError::NotFound`].
    pub async fn account_put_begin(
        &self,
        change: AccountChange,
        wish: &AccountWish,
        operation: &Operation,
        record: &Record,
    ) -> Result<Operation> {
        let mut tx = self.write("changing an account").await?;
        let (doing, id) = (tx.doing(), &operation.instance);
        let known = rows(tx.conn(), id, doing).await?;
        let is_known = known.iter().any(|row| row.name == wish.name);
        match change {
            AccountChange::Create if is_known => {
                let detail = format!("the instance has an account `{}` already", wish.name);
                return Err(Refusal::new(Code::NameTaken, detail).field("name").into());
            }
            AccountChange::Create if known.len() >= ACCOUNTS => {
                let detail = format!("an instance has {ACCOUNTS} accounts at most: delete one");
                return Err(Refusal::new(Code::InvalidRequest, detail).into());
            }
            AccountChange::Update | AccountChange::Delete if !is_known => {
                return Err(not_found(&wish.name).into());
            }
            AccountChange::Create | AccountChange::Update | AccountChange::Delete => {}
        }
        let now = clock::now();
        sqlx::query(
            "INSERT INTO accounts (instance, name, role, rules, created_at, changed_at)
             VALUES ($1, $2, $3, $4, $5, $5)
             ON CONFLICT (instance, name) DO UPDATE SET role = $3, rules = $4, changed_at = $5",
        )
        .bind(id.as_str())
        .bind(&wish.name)
        .bind(column::to_word("an account's role", &wish.role)?)
        .bind(&wish.rules)
        .bind(now.0)
        .execute(tx.conn())
        .await
        .doing(doing)?;
        if let Some(hash) = &wish.password_sha256 {
            let data_key = secrets::data_key(tx.conn(), &self.inner.key, id, doing).await?;
            secrets::write(&mut tx, &data_key, id, &field(&wish.name), hash).await?;
        }
        begun(tx, change, &wish.name, operation, record).await
    }

    /// Lets an account go; likewise.
    ///
    /// # Errors
    /// Refusals `account-not-found`, `instance-busy` and `instance-not-ready`;
    /// [`StoreError::NotFound`].
    pub async fn account_delete_begin(
        &self,
        name: &str,
        operation: &Operation,
        record: &Record,
    ) -> Result<Operation> {
        let mut tx = self.write("deleting an account").await?;
        let (doing, id) = (tx.doing(), &operation.instance);
        let deleted = sqlx::query("DELETE FROM accounts WHERE instance = $1 AND name = $2")
            .bind(id.as_str())
            .bind(name)
            .execute(tx.conn())
            .await
            .doing(doing)?;
        if deleted.rows_affected() == 0 {
            return Err(not_found(name).into());
        }
        secrets::forget(&mut tx, id, &field(name)).await?;
        begun(tx, AccountChange::Delete, name, operation, record).await
    }
}

fn not_found(name: &str) -> Refusal {
    let detail =
        format!("the instance has no account `{name}`: `larder account list` shows those it has");
    Refusal::new(Code::AccountNotFound, detail).field("account")
}

/// Writes what goes with every change: revision, operation, record.
async fn begun(
    mut tx: WriteTx,
    change: AccountChange,
    name: &str,
    operation: &Operation,
    record: &Record,
) -> Result<Operation> {
    let (doing, id) = (tx.doing(), &operation.instance);
    let row = instances::changeable(&mut tx, id).await?;
    if let Some(holder) = operations::unfinished(tx.conn(), id, doing).await? {
        return Err(operations::busy(&holder).into());
    }
    let revision = secrets::raise_users(&mut tx, id, row.former_password_until).await?;
    let kind = OperationKind::ChangeAccount { name: name.to_owned(), change, revision };
    let operation = Operation { kind, ..operation.clone() };
    operations::insert(&mut tx, &row.spec.project, &operation).await?;
    records::append(&mut tx, record).await?;
    tx.commit().await?;
    Ok(operation)
}

/// The accounts as servers are told of them, by name.
pub(crate) async fn of_servers(
    conn: &mut SqliteConnection,
    data_key: &Key,
    instance: &InstanceId,
    doing: &'static str,
) -> Result<Vec<Account>> {
    let mut accounts = Vec::new();
    for row in rows(conn, instance, doing).await? {
        let hash = secrets::opened(conn, data_key, instance, &field(&row.name), doing).await?;
        let missing =
            || StoreError::corrupt(format!("the password of account {} is missing", row.name));
        let password_sha256 = hash.ok_or_else(missing)?;
        let (name, role, rules) = (row.name.clone(), row.role, row.rules.clone());
        accounts.push(Account { name, role, rules, password_sha256 });
    }
    Ok(accounts)
}

pub(crate) async fn delete_all(tx: &mut WriteTx, instance: &InstanceId) -> Result<()> {
    let doing = tx.doing();
    sqlx::query("DELETE FROM accounts WHERE instance = $1")
        .bind(instance.as_str())
        .execute(tx.conn())
        .await
        .doing(doing)?;
    Ok(())
}

async fn rows(
    conn: &mut SqliteConnection,
    instance: &InstanceId,
    doing: &'static str,
) -> Result<Vec<AccountRow>> {
    let rows = sqlx::query("SELECT * FROM accounts WHERE instance = $1 ORDER BY name")
        .bind(instance.as_str())
        .fetch_all(conn)
        .await
        .doing(doing)?;
    rows.iter().map(row_of).collect()
}

fn row_of(row: &SqliteRow) -> Result<AccountRow> {
    Ok(AccountRow {
        name: column::get(row, "name")?,
        role: column::word(row, "role")?,
        rules: column::get(row, "rules")?,
        created_at: column::time(row, "created_at")?,
        changed_at: column::time(row, "changed_at")?,
    })
}
