//! The tenant's users and passwords at a running server, changed without a restart.
//!
//! Each user is set by one `ACL SETUSER` from nothing, which a server takes as a whole or not at
//! all, and which closes nobody's connection. `ACL LOAD` would close all of them, replicas' too
//! (redis#12171).

use larder_model::agent::ServerState;
use larder_model::{Code, Refusal, Severity, Users};
use larder_node::{Connection, NodeError};

use crate::core::Core;
use crate::files;
use crate::render::{self, SYSTEM_USER};

/// What the server of this process has been told; of a server that was adopted nobody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) pid: u32,
    pub(crate) revision: u64,
}

impl Core {
    /// Takes users that are newer than those it knows, and tells the server.
    pub(crate) async fn set_users(&mut self, users: Users) {
        let revision = users.revision;
        if self.secrets.adopt(users) {
            tracing::info!(revision, "users or passwords have changed");
        }
        self.tell_users().await;
    }

    /// Revision that the running server has, if that is known.
    pub(crate) fn users_revision(&self) -> Option<u64> {
        let pid = self.server.supervisor.pid()?;
        self.users_told.filter(|told| told.pid == pid).map(|told| told.revision)
    }

    /// Tells the running server of its users, unless it has them.
    pub(crate) async fn tell_users(&mut self) {
        let users = self.secrets.users();
        let Some(pid) = self.server.supervisor.pid() else { return };
        let up_to_date = self.users_revision() == Some(users.revision);
        if up_to_date || self.server.state() != ServerState::Serving {
            return;
        }
        let Ok(engine) = self.engine else { return };
        // Before the server: one that starts anew in between reads them there.
        let text = render::users(&self.secrets, engine);
        if let Err(error) = files::write_if_different(&self.dir.users(), text.as_bytes()) {
            tracing::warn!(%error, "users not written");
            return;
        }
        let wanted = render::tenants_users(&users, engine);
        let told = match self.server.hands().await {
            Ok(hands) => tell(hands, &wanted).await,
            Err(error) => Err(error),
        };
        match told {
            Ok(()) => {
                let first = self.users_told.is_none_or(|told| told.pid != pid);
                self.users_told = Some(Told { pid, revision: users.revision });
                if !first {
                    let message = "the server has new users or passwords".to_owned();
                    self.memory.event(Severity::Info, "users-changed", message);
                }
            }
            Err(error) => tracing::info!(%error, "users not told, tried again"),
        }
    }

    /// Whether the running server takes these rules of an account: tried on a user that nobody can log in
    /// as and that goes at once.
    pub(crate) async fn check_rules(&mut self, rules: &str) -> Result<(), Refusal> {
        let silent = |error: NodeError| Refusal::new(Code::InstanceNotReady, error.to_string());
        let hands = self.server.hands().await.map_err(silent)?;
        let tried = hands.set_user(CHECKED_USER, &format!("off {rules}")).await;
        let gone = hands.delete_user(CHECKED_USER).await;
        match tried {
            Ok(()) => gone.map_err(silent),
            Err(NodeError::Reply { error, .. }) => {
                let words = String::from_utf8_lossy(error.as_bytes()).into_owned();
                let words = words.strip_prefix("ERR ").unwrap_or(&words).to_owned();
                Err(Refusal::new(Code::RulesRefused, format!("the engine says: {words}"))
                    .field("rules"))
            }
            Err(error) => Err(silent(error)),
        }
    }
}

/// What rules are tried on. No account is called so: its name is one of Larder's.
const CHECKED_USER: &str = "larder-check";

/// Sets every wanted user and deletes all others but Larder's own; those of a deleted one are
/// disconnected.
async fn tell(hands: &mut Connection, wanted: &[(String, String)]) -> Result<(), NodeError> {
    for (name, rules) in wanted {
        hands.set_user(name, rules).await?;
    }
    let is_wanted = |name: &String| name == SYSTEM_USER || wanted.iter().any(|(it, _)| it == name);
    for name in hands.users().await?.iter().filter(|name| !is_wanted(name)) {
        hands.delete_user(name).await?;
    }
    Ok(())
}
