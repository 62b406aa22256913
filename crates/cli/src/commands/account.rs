//! Accounts of an instance.

use larder_api_types::{CreateAccount, UpdateAccount};
use larder_client::InstanceRef;
use larder_model::Secret;

use super::instance::started;
use crate::args::{AccountArgs, AccountCommand, AccountPassword};
use crate::config::Context;
use crate::console::{Console, generate_password};
use crate::exit::CliError;
use crate::render;

pub(crate) async fn run(
    args: AccountArgs,
    context: &Context,
    console: &mut Console,
) -> Result<(), CliError> {
    let client = context.client()?;
    let project = context.project(args.project.project.as_deref())?;
    let project = project.as_str();
    match args.command {
        AccountCommand::List { name } => {
            let all = client.account_list(InstanceRef { project, name: &name }).await?;
            if console.is_json() {
                console.json(&all)
            } else {
                let text = render::accounts(console, &all);
                console.data(&text)
            }
        }
        AccountCommand::Create { name, user, role, rules, password, wait } => {
            let mut made = None;
            let password = match given(&password, &mut made, console)? {
                Some(password) => password,
                None => console.ask_new_password()?.ok_or_else(no_terminal)?,
            };
            let role = role.as_str().to_owned();
            let account = CreateAccount { name: user, role, rules, password };
            let instance = InstanceRef { project, name: &name };
            let operation = client.account_create(instance, &account).await?;
            shown(&account.name, made, console);
            started(operation, &wait, &client, project, console).await
        }
        AccountCommand::Update { name, user, role, rules, password, wait } => {
            let mut made = None;
            let password = given(&password, &mut made, console)?;
            let role = role.map(|role| role.as_str().to_owned());
            let change = UpdateAccount { role, rules, password };
            let instance = InstanceRef { project, name: &name };
            let operation = client.account_update(instance, &user, &change).await?;
            shown(&user, made, console);
            started(operation, &wait, &client, project, console).await
        }
        AccountCommand::Delete { name, user, wait } => {
            let instance = InstanceRef { project, name: &name };
            let operation = client.account_delete(instance, &user).await?;
            started(operation, &wait, &client, project, console).await
        }
    }
}

fn given(
    options: &AccountPassword,
    made: &mut Option<Secret>,
    console: &mut Console,
) -> Result<Option<Secret>, CliError> {
    if options.password_stdin {
        return Ok(Some(console.password_from_stdin()?));
    }
    if options.generate_password {
        *made = Some(generate_password()?);
    }
    Ok(made.clone())
}

/// A password that was made here is shown once, when the account has been accepted.
fn shown(account: &str, made: Option<Secret>, console: &mut Console) {
    if let Some(password) = made {
        console.say(&format!("password of {account} (shown this once): {}", password.expose()));
    }
}

fn no_terminal() -> CliError {
    let how = "give --password-stdin or --generate-password: there is no terminal to ask on";
    CliError::Usage(how.to_owned())
}
