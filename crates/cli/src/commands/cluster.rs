//! Container clusters.

use larder_api_types::{BindContainerCluster, SetContainerCluster};
use larder_model::{ByteSize, Secret};

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
        ContainerClusterCommand::Bind(args) | ContainerClusterCommand::Rebind(args) => {
            let cluster = client.container_cluster_bind(&asked(args)?).await?;
            if console.is_json() {
                console.json(&cluster)
            } else {
                let text = render::container_clusters(console, std::slice::from_ref(&cluster));
                console.data(&text)
            }
        }
        ContainerClusterCommand::List => {
            let clusters = client.container_cluster_list().await?;
            if console.is_json() {
                console.json(&clusters)
            } else {
                let text = render::container_clusters(console, &clusters);
                console.data(&text)
            }
        }
        ContainerClusterCommand::Get { name } => {
            let cluster = client.container_cluster_get(&name).await?;
            if console.is_json() {
                console.json(&cluster)
            } else {
                let text = render::container_clusters(console, std::slice::from_ref(&cluster));
                console.data(&text)
            }
        }
        ContainerClusterCommand::Workers { name } => {
            let cluster = client.container_cluster_get(&name).await?;
            if console.is_json() {
                console.json(&cluster.workers)
            } else {
                let text = render::workers(console, &cluster.workers);
                console.data(&text)
            }
        }
        ContainerClusterCommand::Set { name, spread, pull_secret } => {
            let asked = SetContainerCluster { spread, pull_secrets: pull_secrets(pull_secret) };
            let cluster = client.container_cluster_set(&name, &asked).await?;
            if console.is_json() {
                console.json(&cluster)
            } else {
                let text = render::container_clusters(console, std::slice::from_ref(&cluster));
                console.data(&text)
            }
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

fn asked(args: BindArgs) -> Result<BindContainerCluster, CliError> {
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
