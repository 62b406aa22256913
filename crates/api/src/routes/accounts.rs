//! Accounts: users of an instance's servers besides `default`, with roles or rules of their own.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use larder_api_types::{Account, CreateAccount, Operation, Problem, UpdateAccount};
use larder_model::{
    AccountChange, AccountRole, Code, OperationKind, Refusal, Secret, acl_of, check_account_name,
    check_password, check_rules,
};
use larder_store::{AccountRow, AccountWish, InstanceRow};
use serde_json::json;

use super::actions::ready;
use super::create::password_sha256;
use super::instances::{InProject, find};
use crate::auth::Caller;
use crate::body::{Body, Params, PathText, PathTexts};
use crate::clock::rfc3339;
use crate::error::ApiError;
use crate::permission::{Action, Object};
use crate::render;
use crate::state::ApiState;

type Accepted = (StatusCode, Json<Operation>);

/// The accounts of an instance, by name. `default`, the user of the instance's own password, is none.
#[utoipa::path(get, path = "/api/v1/instances/{instance}/accounts", tag = "accounts",
    params(("instance" = String, Path, description = "Name or id"), InProject),
    responses(
        (status = 200, description = "By name", body = Vec<Account>),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    PathText(name): PathText,
    Params(params): Params<InProject>,
) -> Result<Json<Vec<Account>>, ApiError> {
    let project = params.project.as_deref();
    let (row, _) = find(&state, &caller, Action::AccountList, project, &name).await?;
    let rows = state.store().account_list(&row.spec.id).await?;
    Ok(Json(rows.iter().map(shown).collect()))
}

fn shown(row: &AccountRow) -> Account {
    Account {
        name: row.name.clone(),
        role: row.role.to_string(),
        rules: row.rules.clone(),
        created_at: rfc3339(row.created_at),
        changed_at: rfc3339(row.changed_at),
    }
}

/// Make an account.
#[utoipa::path(post, path = "/api/v1/instances/{instance}/accounts", tag = "accounts", request_body = CreateAccount,
    params(("instance" = String, Path, description = "Name or id"), InProject),
    responses(
        (status = 202, description = "Accepted", body = Operation),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    PathText(name): PathText,
    Params(params): Params<InProject>,
    Body(asked): Body<CreateAccount>,
) -> Result<Accepted, ApiError> {
    let project = params.project.as_deref();
    let (row, object) = find(&state, &caller, Action::AccountCreate, project, &name).await?;
    ready(&row)?;
    check_account_name(&asked.name)?;
    let (role, rules) = allowed(&asked.role, asked.rules.as_deref())?;
    let hash = hashed(&asked.password)?;
    let wish = AccountWish { name: asked.name, role, rules, password_sha256: Some(hash) };
    let change = AccountChange::Create;
    put(&state, &caller, &row, Action::AccountCreate, &object, change, wish).await
}

/// Change what an account may do, or its password.
#[utoipa::path(patch, path = "/api/v1/instances/{instance}/accounts/{account}", tag = "accounts", request_body = UpdateAccount,
    params(
        ("instance" = String, Path, description = "Name or id"),
        ("account" = String, Path, description = "Name"), InProject),
    responses(
        (status = 202, description = "Accepted", body = Operation),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn update(
    State(state): State<ApiState>,
    caller: Caller,
    PathTexts((name, account)): PathTexts<(String, String)>,
    Params(params): Params<InProject>,
    Body(asked): Body<UpdateAccount>,
) -> Result<Accepted, ApiError> {
    let project = params.project.as_deref();
    let (row, object) = find(&state, &caller, Action::AccountUpdate, project, &name).await?;
    ready(&row)?;
    if asked == UpdateAccount::default() {
        let detail = "nothing is to change: give a role, rules or a password";
        return Err(ApiError::new(Code::InvalidRequest, detail));
    }
    let known = state.store().account_list(&row.spec.id).await?;
    let known = known.into_iter().find(|it| it.name == account).ok_or_else(|| missing(&account))?;
    let role = asked.role.unwrap_or_else(|| known.role.to_string());
    // Rules go with a role of their own: who changes the role says what they are from now on.
    let kept =
        (role == known.role.as_str() && known.role == AccountRole::Custom).then_some(known.rules);
    let rules = asked.rules.or(kept);
    let (role, rules) = allowed(&role, rules.as_deref())?;
    let password_sha256 = asked.password.as_ref().map(hashed).transpose()?;
    let wish = AccountWish { name: account, role, rules, password_sha256 };
    let change = AccountChange::Update;
    put(&state, &caller, &row, Action::AccountUpdate, &object, change, wish).await
}

/// Delete an account. Who is connected as it is disconnected.
#[utoipa::path(delete, path = "/api/v1/instances/{instance}/accounts/{account}", tag = "accounts",
    params(
        ("instance" = String, Path, description = "Name or id"),
        ("account" = String, Path, description = "Name"), InProject),
    responses(
        (status = 202, description = "Accepted", body = Operation),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn delete(
    State(state): State<ApiState>,
    caller: Caller,
    PathTexts((name, account)): PathTexts<(String, String)>,
    Params(params): Params<InProject>,
) -> Result<Accepted, ApiError> {
    let project = params.project.as_deref();
    let (row, object) = find(&state, &caller, Action::AccountDelete, project, &name).await?;
    ready(&row)?;
    let operation = caller.operation(&row, kind(&account, AccountChange::Delete));
    let record = caller.record(Action::AccountDelete, &object, json!({ "account": account }));
    let operation = state.store().account_delete_begin(&account, &operation, &record).await?;
    Ok(accepted(&state, &row, &operation))
}

async fn put(
    state: &ApiState,
    caller: &Caller,
    row: &InstanceRow,
    action: Action,
    object: &Object,
    change: AccountChange,
    wish: AccountWish,
) -> Result<Accepted, ApiError> {
    if wish.role == AccountRole::Custom {
        // As servers older than Redis 7 would be told it: what a newer one has more, no rule needs.
        let acl = acl_of(wish.role, &wish.rules, false);
        state.parts().live.check_rules(&row.spec.id, &acl).await?;
    }
    let operation = caller.operation(row, kind(&wish.name, change));
    let detail = json!({
        "account": wish.name,
        "role": wish.role,
        "rules": wish.rules,
        "password": wish.password_sha256.is_some(),
    });
    let record = caller.record(action, object, detail);
    let operation = state.store().account_put_begin(change, &wish, &operation, &record).await?;
    Ok(accepted(state, row, &operation))
}

/// The store says which revision it is.
fn kind(name: &str, change: AccountChange) -> OperationKind {
    OperationKind::ChangeAccount { name: name.to_owned(), change, revision: 0 }
}

fn accepted(state: &ApiState, row: &InstanceRow, operation: &larder_model::Operation) -> Accepted {
    let kind = operation.kind.as_str();
    tracing::info!(instance = %row.spec.id, kind, operation = %operation.id, "operation accepted");
    (state.parts().activate)(&row.spec.id);
    (StatusCode::ACCEPTED, Json(render::operation(operation)))
}

/// The role with its rules, as far as they can be checked here.
fn allowed(role: &str, rules: Option<&str>) -> Result<(AccountRole, String), Refusal> {
    let parsed = AccountRole::parse(role).ok_or_else(|| {
        let all = AccountRole::ALL.map(AccountRole::as_str).join(", ");
        let detail = format!("`{role}` is no role of an account: use one of {all}");
        Refusal::new(Code::InvalidRequest, detail).field("role")
    })?;
    match (parsed, rules) {
        (AccountRole::Custom, rules) => {
            let rules = rules.unwrap_or_default();
            check_rules(rules)?;
            let rules: Vec<&str> = rules.split_ascii_whitespace().collect();
            Ok((parsed, rules.join(" ")))
        }
        (_, Some(rules)) if !rules.trim().is_empty() => {
            let detail =
                format!("a {parsed} account has no rules of its own: the role is `custom`");
            Err(Refusal::new(Code::InvalidRequest, detail).field("rules"))
        }
        (_, _) => Ok((parsed, String::new())),
    }
}

fn hashed(password: &Secret) -> Result<Secret, Refusal> {
    check_password(password.expose())?;
    Ok(password_sha256(password))
}

fn missing(account: &str) -> Refusal {
    let detail = format!(
        "the instance has no account `{account}`: `larder account list` shows those it has"
    );
    Refusal::new(Code::AccountNotFound, detail).field("account")
}
