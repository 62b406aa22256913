//! The first start: the local administrator's account.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use larder_model::local::DataDir;
use larder_model::{Secret, check_password};
use larder_store::{ROLE_CLOUD_ADMINISTRATOR, Store, StoreError, UserNew};

use crate::password_hash;

/// Name of the account.
pub const ADMIN: &str = "admin";

/// A password that Larder made up, to be shown once.
#[derive(Clone, Debug)]
pub struct InitialAdmin {
    pub password: Secret,
    /// Where it is kept (mode 0600) until it is changed.
    pub file: PathBuf,
}

/// Why there is no administrator.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("writing the first password to {path}: {cause}", path = path.display())]
    File { path: PathBuf, cause: io::Error },
    #[error("hashing the first password failed: start again")]
    Hash,
}

/// Makes the account `admin` if there is none: with the password `from_env`
/// (`LARDER_ADMIN_PASSWORD`), or with a generated one, which is answered and kept in
/// `DATA/initial-admin-password`. `None` when the account exists or the password was given.
///
/// Safe to repeat after a crash at any point. Blocks for some 30 ms at the first start.
///
/// # Errors
/// When the store or the file cannot be written.
pub async fn ensure_admin(
    store: &Store,
    from_env: Option<Secret>,
    data_dir: &DataDir,
) -> Result<Option<InitialAdmin>, AdminError> {
    if store.user_get(ADMIN).await?.is_some() {
        return Ok(None);
    }
    let generated = from_env.is_none();
    let password = from_env.unwrap_or_else(generate);
    let file = data_dir.initial_admin_password();
    if generated {
        // Before the account: a password that nobody can read would lock everybody out.
        write_private(&file, &password)
            .map_err(|cause| AdminError::File { path: file.clone(), cause })?;
    } else if check_password(password.expose()).is_err() {
        tracing::warn!(user = ADMIN, "the administrator's password is weak: change it");
    }
    let password_hash = password_hash::hash(&password).ok_or(AdminError::Hash)?;
    store
        .user_create(&UserNew {
            name: ADMIN.to_owned(),
            role: ROLE_CLOUD_ADMINISTRATOR.to_owned(),
            password_hash,
            password_generated: generated,
        })
        .await?;
    tracing::info!(user = ADMIN, generated, "administrator created");
    Ok(generated.then_some(InitialAdmin { password, file }))
}

/// 24 letters and digits of 31 kinds: some 119 bits. A prefix makes it pass the rule for
/// passwords.
fn generate() -> Secret {
    use larder_model::IdSource as _;
    let mut ids = crate::ids::RandomIds;
    let mut text = String::from("La1-");
    for _ in 0..2 {
        // Twelve characters of a fresh 60 bits, without the id's own prefix.
        text.push_str(ids.id_text('x').trim_start_matches("x-"));
    }
    Secret::new(text)
}

fn write_private(path: &Path, password: &Secret) -> io::Result<()> {
    let beside = path.with_extension("new");
    // A left-over of a crash may have other permissions.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    writeln!(file, "{}", password.expose())?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn generated_passwords_pass_the_rule_and_differ() {
        let one = generate();
        assert_eq!(check_password(one.expose()), Ok(()));
        assert_ne!(one, generate());
    }

    #[tokio::test]
    async fn first_start_makes_an_administrator_once() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir(folder.path().to_owned());
        let store = Store::open(&data.database(), &data.key_file()).await.unwrap();
        let made = ensure_admin(&store, None, &data).await.unwrap().expect("generated");
        let text = fs::read_to_string(&made.file).unwrap();
        assert_eq!(text.trim(), made.password.expose());
        assert_eq!(fs::metadata(&made.file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(store.user_get("admin").await.unwrap().unwrap().password_generated);
        assert!(ensure_admin(&store, None, &data).await.unwrap().is_none());
        assert!(!format!("{made:?}").contains(made.password.expose()));
    }

    #[tokio::test]
    async fn given_password_is_written_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir(folder.path().to_owned());
        let store = Store::open(&data.database(), &data.key_file()).await.unwrap();
        let given = Some(Secret::new("Given-1-password"));
        assert!(ensure_admin(&store, given, &data).await.unwrap().is_none());
        assert!(!data.initial_admin_password().exists());
        assert!(!store.user_get("admin").await.unwrap().unwrap().password_generated);
    }
}
