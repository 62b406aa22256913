//! Waiting for an operation, for every command that starts one.

use larder_api_types::{Operation, Problem};
use larder_client::{Client, WaitError, WaitOptions};
use larder_model::Code;
use std::time::Duration;

use crate::console::Console;
use crate::duration;
use crate::exit::CliError;
use crate::progress::Progress;

/// Waits until the operation has succeeded.
///
/// # Errors
/// When it failed or was cancelled, and when the time is up.
pub(crate) async fn until_done(
    client: &Client,
    console: &Console,
    project: &str,
    operation: Operation,
    timeout: Duration,
) -> Result<Operation, CliError> {
    let operation = until_finished(client, console, project, operation, timeout).await?;
    if operation.state == "succeeded" {
        return Ok(operation);
    }
    Err(CliError::Operation(Box::new(outcome(operation))))
}

/// Waits until the operation has ended, well or not.
pub(crate) async fn until_finished(
    client: &Client,
    console: &Console,
    project: &str,
    operation: Operation,
    timeout: Duration,
) -> Result<Operation, CliError> {
    let progress = Progress::new(console.stderr_is_terminal);
    let options = WaitOptions { timeout, project: project.to_owned() };
    let waiting = client.wait_operation(operation, &options, |operation| progress.show(operation));
    match Box::pin(waiting).await {
        Ok(operation) => Ok(operation),
        Err(WaitError::TimedOut { last, waited }) => Err(CliError::TimedOut {
            id: last.id.clone(),
            state: last.state.clone(),
            waited: duration::show(waited),
        }),
        Err(WaitError::Client(error)) => Err(error.into()),
    }
}

/// What went wrong in an operation that did not succeed.
pub(crate) fn outcome(operation: Operation) -> Problem {
    let Operation { id, kind, instance, state, error, .. } = operation;
    error.unwrap_or_else(|| {
        // Cancelled without a reason of its own: somebody stopped it.
        Problem::new(
            Code::OperationCancelled,
            format!("the {kind} of instance {instance} was {state} (operation {id})"),
        )
    })
}
