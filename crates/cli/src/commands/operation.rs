//! Operations: list, show, follow, cancel.

use std::time::Duration;

use super::wait;
use crate::args::{OperationArgs, OperationCommand};
use crate::config::Context;
use crate::console::Console;
use crate::exit::CliError;
use crate::limit::Limit;
use crate::render;

/// For ever, as far as a person is concerned, and small enough to add to a clock.
const NO_LIMIT: Duration = Duration::from_secs(365 * 86_400);

pub(crate) async fn run(
    args: OperationArgs,
    context: &Context,
    console: &mut Console,
) -> Result<(), CliError> {
    let client = context.client()?;
    let project = || context.project(args.project.project.as_deref());
    match args.command {
        OperationCommand::List { instance, limit } => {
            let limit = Limit::of(limit, console)?;
            let operations =
                client.operation_list(&project()?, instance.as_deref(), limit.rows).await?;
            if console.is_json() {
                console.json(&operations)?;
            } else {
                let text = render::operations(console, &operations);
                console.data(&text)?;
            }
            limit.say_if_cut(console, operations.len());
            Ok(())
        }
        OperationCommand::Get { id } => {
            let operation = client.operation_get(&id).await?;
            print(console, &operation)
        }
        OperationCommand::Watch { id, timeout } => {
            let operation = client.operation_get(&id).await?;
            let timeout = timeout.unwrap_or(NO_LIMIT).min(NO_LIMIT);
            let operation =
                wait::until_finished(&client, console, &project()?, operation, timeout).await?;
            print(console, &operation)?;
            if operation.state == "succeeded" {
                Ok(())
            } else {
                Err(CliError::Operation(Box::new(wait::outcome(operation))))
            }
        }
        OperationCommand::Cancel { id } => {
            let operation = client.operation_cancel(&id).await?;
            print(console, &operation)
        }
    }
}

pub(crate) fn print(
    console: &mut Console,
    operation: &larder_api_types::Operation,
) -> Result<(), CliError> {
    if console.is_json() {
        console.json(operation)
    } else {
        let text = render::operation(console, operation);
        console.data(&text)
    }
}
