//! The command line: a thin view over the REST API.
//!
//! Data goes to standard output, everything else to standard error. A binary flattens
//! [`Commands`] and [`Globals`] into its own clap tree and calls [`run`].

mod args;
mod commands;
mod config;
mod console;
mod duration;
mod exit;
mod limit;
mod progress;
mod render;

use clap::{CommandFactory as _, Parser};

pub use args::{
    ArchitectureArg, Commands, CreateArgs, EngineCommand, EventCommand, Format, Globals,
    InstanceArgs, InstanceCommand, LimitOption, ListArgs, LoginArgs, OperationArgs,
    OperationCommand, ProjectCommand, ProjectOption, RecordCommand, TokenCommand, UserCommand,
    WaitOption,
};
pub use config::{DEFAULT_SERVER, Environment};
pub use console::Console;
pub use exit::Exit;

/// The commands of this crate alone, without the roles that a binary adds.
#[derive(Parser, Debug)]
#[command(name = "larder", about = "A managed Redis service that you run yourself")]
pub struct Cli {
    #[command(flatten)]
    pub globals: Globals,
    #[command(subcommand)]
    pub command: Commands,
}

/// The clap tree of [`Cli`].
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs one command against the process's own terminal and environment.
pub async fn run(globals: Globals, command: Commands) -> Exit {
    let mut console = Console::from_process(globals.output);
    run_with(command, Environment::from_process(), &mut console).await
}

/// Runs one command. Errors are printed to `console`'s standard error; the answer is the exit
/// code.
pub async fn run_with(command: Commands, environment: Environment, console: &mut Console) -> Exit {
    match commands::run(command, environment, console).await {
        Ok(()) => Exit::Done,
        Err(error) if exit::is_broken_pipe(&error) => Exit::Done,
        Err(error) => {
            console.say_error(&error);
            error.exit()
        }
    }
}
