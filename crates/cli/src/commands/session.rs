//! Login, logout, whoami, status, version, passwords of accounts.

use std::path::Path;

use larder_client::{Client, ClientError};
use larder_model::Secret;
use serde_json::json;

use crate::args::{LoginArgs, UserCommand};
use crate::config::Context;
use crate::console::Console;
use crate::exit::CliError;
use crate::render;

pub(crate) fn version(console: &mut Console) -> Result<(), CliError> {
    let version = env!("CARGO_PKG_VERSION");
    if console.is_json() {
        console.json(&json!({ "version": version }))
    } else {
        console.data(&format!("larder {version}"))
    }
}

pub(crate) async fn login(
    args: LoginArgs,
    context: &Context,
    console: &mut Console,
) -> Result<(), CliError> {
    // Before anything is asked: what cannot be read would be written over.
    let mut file = context.file.clone()?;
    let server = args.server.unwrap_or_else(|| context.server().to_owned());
    let client = Client::new(&server, None)?;
    let password = if args.password_stdin {
        console.password_from_stdin()?
    } else if let Some(path) = &args.password_file {
        password_from_file(path)?
    } else {
        console.ask_password(&format!("Password of {}", args.user))?.ok_or_else(|| {
            CliError::Usage(
                "nobody can be asked for the password here: use --password-stdin or --password-file"
                    .into(),
            )
        })?
    };
    let session = client.login(&args.user, &password).await?;
    client.server().clone_into(file.server.get_or_insert_default());
    file.token.clone_from(&session.token);
    file.save(context.environment.config_file.as_deref())?;
    if session.password_is_generated {
        console.say(&format!(
            "this password was made by Larder: choose another with `larder user update {}`",
            session.user
        ));
    }
    if console.is_json() {
        // Without the token: it is in the config file, and this may end up in a log.
        console.json(&json!({
            "server": client.server(),
            "user": session.user,
            "role": session.role,
            "expires_at": session.expires_at,
            "password_is_generated": session.password_is_generated,
        }))
    } else {
        console.data(&render::session(client.server(), &session))
    }
}

/// The first line of the file, as of standard input.
fn password_from_file(path: &Path) -> Result<Secret, CliError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| CliError::Usage(format!("reading {}: {error}", path.display())))?;
    match text.lines().next().filter(|line| !line.is_empty()) {
        Some(line) => Ok(Secret::new(line)),
        None => Err(CliError::Usage(format!("{} holds no password", path.display()))),
    }
}

pub(crate) async fn logout(context: &Context, console: &mut Console) -> Result<(), CliError> {
    let client = context.client()?;
    let ended = match context.token() {
        None => Ok(()),
        Some(_) => client.logout().await,
    };
    // The token goes from the file in any case: that is what the user wants on this machine.
    if context.environment.token.is_none() {
        let mut file = context.file.clone()?;
        if file.token.take().is_some() {
            file.save(context.environment.config_file.as_deref())?;
        }
    }
    match ended {
        // Not valid any more: that is as good as ended.
        Ok(()) | Err(ClientError::NotAllowed(_)) => {
            console.say("logged out");
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

pub(crate) async fn whoami(context: &Context, console: &mut Console) -> Result<(), CliError> {
    let who = context.client()?.whoami().await?;
    if console.is_json() {
        console.json(&who)
    } else {
        console.data(&render::who(context.server(), &who))
    }
}

pub(crate) async fn status(context: &Context, console: &mut Console) -> Result<(), CliError> {
    let status = context.client()?.status().await?;
    if console.is_json() {
        console.json(&status)
    } else {
        let text = render::status(console, context.server(), &status);
        console.data(&text)
    }
}

pub(crate) async fn user(
    command: UserCommand,
    context: &Context,
    console: &mut Console,
) -> Result<(), CliError> {
    let UserCommand::Update { name, password_stdin } = command;
    let client = context.client()?;
    let password = if password_stdin {
        console.password_from_stdin()?
    } else {
        console.ask_new_password()?.ok_or_else(|| {
            CliError::Usage("nobody can be asked for a password here: use --password-stdin".into())
        })?
    };
    client.user_set_password(&name, &password).await?;
    console.say(&format!("the password of {name} is changed; other sessions of {name} have ended"));
    Ok(())
}
