//! Passwords of accounts: argon2id, a few at a time, off the async threads.

use std::sync::Arc;
use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use larder_model::{Code, Refusal, Secret};
use tokio::sync::Semaphore;

/// Each run takes 19 MiB and a core for some 20 ms: two at once leave a machine usable while
/// somebody tries passwords.
const AT_ONCE: usize = 2;
/// Who waits for longer is turned away.
const QUEUE: Duration = Duration::from_secs(5);

/// The hash that unknown users' passwords are compared with, so that the work does not tell
/// whether a user exists. Of a random password that nobody knows; parameters as in [`hash`].
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$bGFyZGVyLW5vYm9keS1zYWx0$\
                      Zk1gXcXf0sVn5pUQ6l7dE9yqv4w3Hk2b8cTzRjAaMiI";

/// Hashes and verifies. Cheap to share.
#[derive(Debug)]
pub(crate) struct Hasher {
    turns: Arc<Semaphore>,
}

impl Default for Hasher {
    fn default() -> Self {
        Self { turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl Hasher {
    /// The hash of a password in PHC form.
    ///
    /// # Errors
    /// `too-many-attempts` when too many wait, `internal`.
    pub(crate) async fn hash(&self, password: Secret) -> Result<Secret, Refusal> {
        self.run(move || hash(&password)).await?.ok_or_else(broken)
    }

    /// Whether the password is the one behind `hash`; with `None` (no such user) the same work
    /// for the answer no.
    ///
    /// # Errors
    /// `too-many-attempts` when too many wait, `internal`.
    pub(crate) async fn verify(
        &self,
        password: Secret,
        hash: Option<Secret>,
    ) -> Result<bool, Refusal> {
        self.run(move || {
            let known = hash.is_some();
            let hash = hash.unwrap_or_else(|| Secret::new(NOBODY));
            let Ok(parsed) = PasswordHash::new(hash.expose()) else { return None };
            let fits =
                Argon2::default().verify_password(password.expose().as_bytes(), &parsed).is_ok();
            Some(fits && known)
        })
        .await?
        .ok_or_else(broken)
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let turn = tokio::time::timeout(QUEUE, Arc::clone(&self.turns).acquire_owned()).await;
        let turn = match turn {
            Ok(Ok(turn)) => turn,
            Ok(Err(_)) => return Err(broken()),
            Err(_) => {
                return Err(Refusal::new(
                    Code::TooManyAttempts,
                    "too many logins at once: try again in a few seconds",
                ));
            }
        };
        tokio::task::spawn_blocking(move || {
            let done = work();
            drop(turn);
            done
        })
        .await
        .map_err(|_| broken())
    }
}

/// Salted with random bytes; argon2id with its default parameters (19 MiB, 2 passes), which are
/// those of the OWASP cheat sheet.
pub(crate) fn hash(password: &Secret) -> Option<Secret> {
    let hash = Argon2::default().hash_password(password.expose().as_bytes()).ok()?;
    Some(Secret::new(hash.to_string()))
}

fn broken() -> Refusal {
    Refusal::new(Code::Internal, "the password could not be checked: the server's log may say why")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_right_password_fits() {
        let hasher = Hasher::default();
        let hash = hasher.hash(Secret::new("Right-1")).await.unwrap();
        assert!(hash.expose().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        assert_eq!(hasher.verify(Secret::new("Right-1"), Some(hash.clone())).await, Ok(true));
        assert_eq!(hasher.verify(Secret::new("Wrong-1"), Some(hash)).await, Ok(false));
    }

    #[tokio::test]
    async fn unknown_user_costs_the_same_work_and_never_fits() {
        // A hash that could not be parsed would make the answer quick, and so tell.
        assert_eq!(Hasher::default().verify(Secret::new("x"), None).await, Ok(false));
    }
}
