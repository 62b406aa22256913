//! The servers' settings of an instance.

use larder_api_types::{ResetParameters, SetParameters};
use larder_client::InstanceRef;

use super::instance::started;
use crate::args::{ParameterArgs, ParameterCommand};
use crate::config::Context;
use crate::console::Console;
use crate::exit::CliError;
use crate::render;

pub(crate) async fn run(
    args: ParameterArgs,
    context: &Context,
    console: &mut Console,
) -> Result<(), CliError> {
    let client = context.client()?;
    let project = context.project(args.project.project.as_deref())?;
    let project = project.as_str();
    match args.command {
        ParameterCommand::List { name } => {
            let all = client.parameter_list(InstanceRef { project, name: &name }).await?;
            if console.is_json() {
                console.json(&all)
            } else {
                let text = render::parameters(console, &all);
                console.data(&text)
            }
        }
        ParameterCommand::Set { name, values, wait } => {
            let mut to = SetParameters::default();
            for (parameter, value) in values {
                if to.values.insert(parameter.clone(), value).is_some() {
                    return Err(CliError::Usage(format!("`{parameter}` is given twice")));
                }
            }
            let instance = InstanceRef { project, name: &name };
            let operation = client.parameter_set(instance, &to).await?;
            started(operation, &wait, &client, project, console).await
        }
        ParameterCommand::Reset { name, names, wait } => {
            let instance = InstanceRef { project, name: &name };
            let operation = client.parameter_reset(instance, &ResetParameters { names }).await?;
            started(operation, &wait, &client, project, console).await
        }
        ParameterCommand::History { name } => {
            let history = client.parameter_history(InstanceRef { project, name: &name }).await?;
            if console.is_json() {
                console.json(&history)
            } else {
                let text = render::parameter_history(console, &history);
                console.data(&text)
            }
        }
    }
}
