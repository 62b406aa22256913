//! The one question every route asks: may this principal do this to that?

use std::fmt;

use larder_model::{Code, ProjectName, Refusal};
use larder_store::ROLE_CLOUD_ADMINISTRATOR;

use crate::auth::Principal;

macro_rules! actions {
    ($($(#[$doc:meta])* $variant:ident = $text:literal;)*) => {
        /// Everything that can be asked for. The texts are the actions of the records.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Action { $($(#[$doc])* $variant,)* }

        impl Action {
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

actions! {
    InstanceCreate = "instance-create";
    InstanceList = "instance-list";
    InstanceGet = "instance-get";
    InstanceUpdate = "instance-update";
    InstanceFailover = "instance-failover";
    InstanceRestart = "instance-restart";
    InstanceResize = "instance-resize";
    InstanceScale = "instance-scale";
    InstanceRebalance = "instance-rebalance";
    InstanceSetChained = "instance-set-chained";
    InstanceUpgrade = "instance-upgrade";
    ParameterList = "parameter-list";
    ParameterSet = "parameter-set";
    InstanceSetPassword = "instance-set-password";
    AccountList = "account-list";
    AccountCreate = "account-create";
    AccountUpdate = "account-update";
    AccountDelete = "account-delete";
    InstanceDelete = "instance-delete";
    OperationList = "operation-list";
    OperationGet = "operation-get";
    OperationCancel = "operation-cancel";
    EventList = "event-list";
    RecordList = "record-list";
    EngineList = "engine-list";
    EngineAdd = "engine-add";
    EngineRemove = "engine-remove";
    ContainerClusterList = "container-cluster-list";
    ContainerClusterBind = "container-cluster-bind";
    ContainerClusterUnbind = "container-cluster-unbind";
    ContainerClusterSet = "container-cluster-set";
    ContainerClusterConfirmLost = "container-cluster-confirm-lost";
    ProjectList = "project-list";
    StatusGet = "status-get";
    /// Who am I: of the own account.
    AccountGet = "account-get";
    /// End the own session.
    Logout = "logout";
    TokenCreate = "token-create";
    TokenList = "token-list";
    TokenRevoke = "token-revoke";
    UserSetPassword = "user-set-password";
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an action is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// The whole installation.
    Installation,
    /// Everything in a project.
    Project(ProjectName),
    Instance {
        project: ProjectName,
        name: String,
    },
    /// Of an instance that may be gone.
    Operation(String),
    Engine(String),
    ContainerCluster(String),
    /// An account, with its tokens.
    User(String),
}

impl fmt::Display for Object {
    /// As the records show it: `instance cache-1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Installation => f.write_str("installation"),
            Self::Project(name) => write!(f, "project {name}"),
            Self::Instance { name, .. } => write!(f, "instance {name}"),
            Self::Operation(id) => write!(f, "operation {id}"),
            Self::Engine(name) => write!(f, "engine {name}"),
            Self::ContainerCluster(name) => write!(f, "container cluster {name}"),
            Self::User(name) => write!(f, "user {name}"),
        }
    }
}

/// What a request asked of [`allow`], last. An extension of the response, for the audit trail and
/// for tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub user: String,
    pub from: String,
    pub action: Action,
    pub object: Object,
}

/// Whether `principal` may do `action` to `object`.
///
/// # Errors
/// `not-allowed`, naming the action.
pub fn allow(principal: &Principal, action: Action, object: &Object) -> Result<(), Refusal> {
    let own = matches!(object, Object::User(name) if *name == principal.user);
    let allowed = match action {
        // One's own account is everybody's to use.
        Action::AccountGet
        | Action::Logout
        | Action::TokenCreate
        | Action::TokenList
        | Action::TokenRevoke => own,
        Action::UserSetPassword => own || is_cloud_administrator(principal),
        Action::InstanceCreate
        | Action::InstanceList
        | Action::InstanceGet
        | Action::InstanceUpdate
        | Action::InstanceFailover
        | Action::InstanceRestart
        | Action::InstanceResize
        | Action::InstanceScale
        | Action::InstanceRebalance
        | Action::InstanceSetChained
        | Action::InstanceUpgrade
        | Action::ParameterList
        | Action::ParameterSet
        | Action::InstanceSetPassword
        | Action::AccountList
        | Action::AccountCreate
        | Action::AccountUpdate
        | Action::AccountDelete
        | Action::InstanceDelete
        | Action::OperationList
        | Action::OperationGet
        | Action::OperationCancel
        | Action::EventList
        | Action::RecordList
        | Action::EngineList
        | Action::EngineAdd
        | Action::EngineRemove
        | Action::ContainerClusterList
        | Action::ContainerClusterBind
        | Action::ContainerClusterUnbind
        | Action::ContainerClusterSet
        | Action::ContainerClusterConfirmLost
        | Action::ProjectList
        | Action::StatusGet => is_cloud_administrator(principal),
    };
    if allowed {
        return Ok(());
    }
    Err(Refusal::new(
        Code::NotAllowed,
        format!("user `{}` may not do {action} on {object}", principal.user),
    ))
}

fn is_cloud_administrator(principal: &Principal) -> bool {
    principal.role == ROLE_CLOUD_ADMINISTRATOR
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(role: &str) -> Principal {
        Principal { user: "u".into(), role: role.into(), password_is_generated: false }
    }

    #[test]
    fn administrator_may_everything_but_use_others_tokens() {
        let own = Object::User("u".into());
        for action in Action::ALL {
            assert_eq!(allow(&principal(ROLE_CLOUD_ADMINISTRATOR), *action, &own), Ok(()));
        }
        let other = Object::User("v".into());
        assert!(allow(&principal(ROLE_CLOUD_ADMINISTRATOR), Action::TokenCreate, &other).is_err());
    }

    #[test]
    fn unknown_role_may_only_use_its_own_account() {
        let own = Object::User("u".into());
        let allowed: Vec<_> = Action::ALL
            .iter()
            .filter(|action| allow(&principal("stranger"), **action, &own).is_ok())
            .map(|action| action.as_str())
            .collect();
        assert_eq!(
            allowed,
            [
                "account-get",
                "logout",
                "token-create",
                "token-list",
                "token-revoke",
                "user-set-password"
            ]
        );
        let refusal =
            allow(&principal("stranger"), Action::StatusGet, &Object::Installation).unwrap_err();
        assert_eq!(refusal.code, Code::NotAllowed);
    }
}
