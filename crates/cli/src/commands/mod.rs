//! What each command does: one request or two, then print.

mod account;
mod catalogue;
mod cluster;
mod event;
mod instance;
mod operation;
mod parameter;
mod session;
mod token;
mod wait;

use crate::args::Commands;
use crate::config::{Context, Environment};
use crate::console::Console;
use crate::exit::CliError;

pub(crate) async fn run(
    command: Commands,
    environment: Environment,
    console: &mut Console,
) -> Result<(), CliError> {
    if matches!(command, Commands::Version) {
        return session::version(console);
    }
    let context = Context::load(environment)?;
    match command {
        Commands::Version => Ok(()),
        Commands::Login(args) => session::login(args, &context, console).await,
        Commands::Logout => session::logout(&context, console).await,
        Commands::Whoami => session::whoami(&context, console).await,
        Commands::Status => session::status(&context, console).await,
        // Boxed: by far the largest future of the tree.
        Commands::Instance(args) => Box::pin(instance::run(args, &context, console)).await,
        Commands::Account(args) => Box::pin(account::run(args, &context, console)).await,
        Commands::Parameter(args) => Box::pin(parameter::run(args, &context, console)).await,
        Commands::Operation(args) => Box::pin(operation::run(args, &context, console)).await,
        Commands::Event(command) => Box::pin(event::run(command, &context, console)).await,
        Commands::Record(command) => event::run_records(command, &context, console).await,
        Commands::Engine(command) => catalogue::engine(command, &context, console).await,
        Commands::ContainerCluster(command) => cluster::run(command, &context, console).await,
        Commands::Project(command) => catalogue::project(command, &context, console).await,
        Commands::Token(command) => token::run(command, &context, console).await,
        Commands::User(command) => session::user(command, &context, console).await,
    }
}
