//! Container clusters.

use larder_api_types::{BindContainerCluster, ContainerCluster, SetContainerCluster};
use larder_model::{ByteSize, Secret};
use serde::Serialize;

use crate::args::{BindArgs, ContainerClusterCommand};
use crate::config::Context;
use crate::console::Console;
use crate::exit::CliError;
use crate::render;

pub(crate) async fn run(
    command: ContainerClusterCommand,
    context: &Context,
    console: &mut Console,
) -> Result<(), CliError> {
    let client = context.client()?;
    match command {
        ContainerClusterCommand::Bind(args) => {
            one(console, &client.container_cluster_bind(&asked(args, false)?).await?)
        }
        ContainerClusterCommand::Rebind(args) => {
            one(console, &client.container_cluster_bind(&asked(args, true)?).await?)
        }
        ContainerClusterCommand::List => {
            let clusters = client.container_cluster_list().await?;
            show(console, &clusters, |console| render::container_clusters(console, &clusters))
        }
        ContainerClusterCommand::Get { name } => {
            one(console, &client.container_cluster_get(&name).await?)
        }
        ContainerClusterCommand::Workers { name } => {
            let workers = client.container_cluster_get(&name).await?.workers;
            show(console, &workers, |console| render::workers(console, &workers))
        }
        ContainerClusterCommand::Set { name, spread, pull_secret } => {
            let asked = SetContainerCluster { spread, pull_secrets: pull_secrets(pull_secret) };
            one(console, &client.container_cluster_set(&name, &asked).await?)
        }
        ContainerClusterCommand::ConfirmLost { name, worker, yes } => {
            let question = format!(
                "Say that worker {worker} is gone for good? Kubernetes then gives up its pods and volumes"
            );
            console.confirm(&question, yes)?;
            client.container_cluster_confirm_lost(&name, &worker).await?;
            console.say(&format!("worker {worker} is marked as out of service"));
            Ok(())
        }
        ContainerClusterCommand::Unbind { name } => {
            client.container_cluster_unbind(&name).await?;
            console.say(&format!("container cluster {name} is unbound"));
            Ok(())
        }
    }
}

fn one(console: &mut Console, cluster: &ContainerCluster) -> Result<(), CliError> {
    let table =
        |console: &Console| render::container_clusters(console, std::slice::from_ref(cluster));
    show(console, cluster, table)
}

fn show<T: Serialize>(
    console: &mut Console,
    what: &T,
    table: impl FnOnce(&Console) -> String,
) -> Result<(), CliError> {
    if console.is_json() {
        return console.json(what);
    }
    let text = table(console);
    console.data(&text)
}

fn asked(args: BindArgs, rebind: bool) -> Result<BindContainerCluster, CliError> {
    let kubeconfig = match &args.kubeconfig {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| {
                CliError::Usage(format!("reading kubeconfig {}: {error}", path.display()))
            })?;
            Some(Secret::new(text))
        }
    };
    Ok(BindContainerCluster {
        name: args.name,
        rebind,
        in_cluster: args.in_cluster,
        kubeconfig,
        context: args.context,
        namespace: args.namespace,
        expose: args.expose,
        outer_address: args.outer_address,
        image: args.image,
        engines: (!args.engine.is_empty()).then_some(args.engine),
        pull_secrets: pull_secrets(args.pull_secret),
        storage_class: args.storage_class,
        volume_bytes: args.volume_size.map(ByteSize::bytes),
    })
}

/// Nothing said leaves them as they are; an empty name takes them back.
fn pull_secrets(said: Vec<String>) -> Option<Vec<String>> {
    let is_said = !said.is_empty();
    is_said.then(|| said.into_iter().filter(|name| !name.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_name_takes_the_pull_secrets_back() {
        let said = |names: &[&str]| pull_secrets(names.iter().map(|n| (*n).to_owned()).collect());
        assert_eq!(said(&[]), None);
        assert_eq!(said(&[""]), Some(Vec::new()));
        assert_eq!(said(&["a", "b"]), Some(vec!["a".to_owned(), "b".to_owned()]));
    }
}
