//! Engines and projects.

use crate::args::{EngineCommand, ProjectCommand};
use crate::config::Context;
use crate::console::Console;
use crate::exit::CliError;
use crate::render;

pub(crate) async fn engine(
    command: EngineCommand,
    context: &Context,
    console: &mut Console,
) -> Result<(), CliError> {
    let client = context.client()?;
    match command {
        EngineCommand::List => {
            let engines = client.engine_list().await?;
            if console.is_json() {
                console.json(&engines)
            } else {
                let text = render::engines(console, &engines);
                console.data(&text)
            }
        }
        EngineCommand::Add { path } => {
            let engine = client.engine_add(&path).await?;
            if console.is_json() {
                console.json(&engine)
            } else {
                let text = render::engines(console, std::slice::from_ref(&engine));
                console.data(&text)
            }
        }
        EngineCommand::Remove { engine } => {
            client.engine_remove(&engine).await?;
            console.say(&format!("engine {engine} is removed"));
            Ok(())
        }
    }
}

pub(crate) async fn project(
    command: ProjectCommand,
    context: &Context,
    console: &mut Console,
) -> Result<(), CliError> {
    let ProjectCommand::List = command;
    let projects = context.client()?.project_list().await?;
    if console.is_json() {
        console.json(&projects)
    } else {
        let text = render::projects(console, &projects);
        console.data(&text)
    }
}
