//! Tokens for scripts.

use larder_api_types::CreateToken;

use crate::args::TokenCommand;
use crate::config::Context;
use crate::console::Console;
use crate::exit::CliError;
use crate::render;

pub(crate) async fn run(
    command: TokenCommand,
    context: &Context,
    console: &mut Console,
) -> Result<(), CliError> {
    let client = context.client()?;
    match command {
        TokenCommand::Create { name, expires } => {
            let expires_in_seconds = expires.map(|length| length.as_secs());
            let created = client.token_create(&CreateToken { name, expires_in_seconds }).await?;
            if console.is_json() {
                console.json(&created)
            } else {
                console.say(&format!(
                    "token {} ({}); its secret is shown this once:",
                    created.info.name, created.info.id
                ));
                console.data(created.token.expose())
            }
        }
        TokenCommand::List => {
            let tokens = client.token_list().await?;
            if console.is_json() {
                console.json(&tokens)
            } else {
                let text = render::tokens(console, &tokens);
                console.data(&text)
            }
        }
        TokenCommand::Revoke { id } => {
            client.token_revoke(&id).await?;
            console.say(&format!("token {id} is revoked"));
            Ok(())
        }
    }
}
