//! Instances.

use std::collections::BTreeMap;

use larder_api_types::{
    CreateInstance, FailoverInstance, Instance, Operation, PlanView, ResizeInstance,
    RestartInstance, ScaleInstance, SetChained, SetInstancePassword, UpdateInstance,
    UpgradeInstance,
};
use larder_client::{Client, InstanceFilter, InstanceRef};
use larder_model::{Code, Refusal, Secret};
use serde::Serialize;

use super::{operation, wait};
use crate::args::{CreateArgs, InstanceArgs, InstanceCommand, ListArgs, OnOff, WaitOption};
use crate::config::Context;
use crate::console::{Console, generate_password};
use crate::exit::{CliError, output_failed};
use crate::render;

pub(crate) async fn run(
    args: InstanceArgs,
    context: &Context,
    console: &mut Console,
) -> Result<(), CliError> {
    let client = context.client()?;
    let project = context.project(args.project.project.as_deref())?;
    let project = project.as_str();
    match args.command {
        InstanceCommand::Create(args) => Box::pin(create(*args, &client, project, console)).await,
        InstanceCommand::List(args) => list(args, &client, project, console).await,
        InstanceCommand::Get { name } => {
            let one = client.instance_get(InstanceRef { project, name: &name }).await?;
            print(console, &one)
        }
        InstanceCommand::Nodes { name } => {
            let one = client.instance_get(InstanceRef { project, name: &name }).await?;
            if console.is_json() {
                console.json(&one.nodes)
            } else {
                let text = render::nodes(console, &one.nodes);
                console.data(&text)
            }
        }
        InstanceCommand::Plan { name } => {
            let plan = client.instance_plan(InstanceRef { project, name: &name }).await?;
            print_plan(console, &plan)
        }
        InstanceCommand::Update { name, new_name, description, tag } => {
            let change = UpdateInstance {
                name: new_name,
                description,
                tags: if tag.is_empty() { None } else { Some(tags(tag)?) },
                generation: None,
            };
            let one = client.instance_update(InstanceRef { project, name: &name }, &change).await?;
            print(console, &one)
        }
        InstanceCommand::Failover { name, shard, to, accept_data_loss, wait } => {
            let how = FailoverInstance { shard, to, accept_data_loss };
            let instance = InstanceRef { project, name: &name };
            let operation = client.instance_failover(instance, &how).await?;
            started(operation, &wait, &client, project, console).await
        }
        InstanceCommand::Restart { name, node, wait } => {
            let instance = InstanceRef { project, name: &name };
            let operation = client.instance_restart(instance, &RestartInstance { node }).await?;
            started(operation, &wait, &client, project, console).await
        }
        InstanceCommand::Resize { name, memory, wait } => {
            let to = ResizeInstance { memory_bytes: memory.bytes() };
            let operation =
                client.instance_resize(InstanceRef { project, name: &name }, &to).await?;
            started(operation, &wait, &client, project, console).await
        }
        InstanceCommand::SetChained { name, to, wait } => {
            let to = SetChained { chained: to == OnOff::On };
            let instance = InstanceRef { project, name: &name };
            let operation = client.instance_set_chained(instance, &to).await?;
            started(operation, &wait, &client, project, console).await
        }
        InstanceCommand::Rebalance { name, wait } => {
            let operation = client.instance_rebalance(InstanceRef { project, name: &name }).await?;
            started(operation, &wait, &client, project, console).await
        }
        InstanceCommand::Scale { name, shards, replicas, read_only_nodes, pause, resume, wait } => {
            let paused = (pause || resume).then_some(pause);
            let to = ScaleInstance { shards, replicas, read_only_nodes, paused };
            let operation =
                client.instance_scale(InstanceRef { project, name: &name }, &to).await?;
            started(operation, &wait, &client, project, console).await
        }
        InstanceCommand::SetPassword { name, password_stdin, generate_password, grace, wait } => {
            let instance = InstanceRef { project, name: &name };
            let password = if password_stdin {
                Some(console.password_from_stdin()?)
            } else if generate_password {
                Some(self::generate_password()?)
            } else {
                console.ask_new_password()?
            };
            let Some(password) = password else {
                let how =
                    "give --password-stdin or --generate-password: there is no terminal to ask on";
                return Err(CliError::Usage(how.to_owned()));
            };
            let grace_seconds = grace.map(|grace| grace.as_secs());
            let to = SetInstancePassword { password: password.clone(), grace_seconds };
            let operation = client.instance_set_password(instance, &to).await?;
            if generate_password {
                console
                    .say(&format!("password of {name} (shown this once): {}", password.expose()));
            }
            started(operation, &wait, &client, project, console).await
        }
        InstanceCommand::Upgrade { name, engine, wait } => {
            let to = UpgradeInstance { engine };
            let operation =
                client.instance_upgrade(InstanceRef { project, name: &name }, &to).await?;
            started(operation, &wait, &client, project, console).await
        }
        InstanceCommand::Delete { name, permanent: _, wait, yes } => {
            console.confirm(&format!("Delete instance {name} and all its data for good?"), yes)?;
            let instance = InstanceRef { project, name: &name };
            let operation = client.instance_delete_permanently(instance).await?;
            if !wait.wait {
                operation::print(console, &operation)?;
                how_to_follow(console, &operation);
                return Ok(());
            }
            let operation =
                wait::until_done(&client, console, project, operation, wait.timeout).await?;
            operation::print(console, &operation)
        }
    }
}

async fn create(
    args: CreateArgs,
    client: &Client,
    project: &str,
    console: &mut Console,
) -> Result<(), CliError> {
    let mut new = CreateInstance {
        name: args.name,
        project: Some(project.to_owned()),
        description: args.description,
        tags: tags(args.tag)?,
        architecture: args.architecture.as_str().to_owned(),
        engine: args.engine,
        memory_bytes: args.memory.map(larder_model::ByteSize::bytes),
        shards: args.shards,
        replicas: args.replicas,
        read_only_nodes: args.read_only_nodes,
        chained: args.chained,
        container_cluster: args.container_cluster,
        storage_class: args.storage_class,
        expose: args.expose,
        parameters: args.parameter.into_iter().collect(),
        password: None,
    };
    let mut shown = None;
    new.password = if args.password_stdin {
        Some(console.password_from_stdin()?)
    } else if args.dry_run {
        // A look ahead needs none; one that is given is checked like the rest.
        None
    } else if args.generate_password {
        let password = generate_password()?;
        shown = Some(password.clone());
        Some(password)
    } else {
        // Where nobody can be asked the server says that one is missing.
        console.ask_new_password()?
    };
    if args.dry_run {
        let plan = client.instance_dry_run(&new).await?;
        return print_plan(console, &plan);
    }
    let operation = client.instance_create(&new).await?;
    if let Some(password) = shown.as_ref().filter(|_| !console.is_json()) {
        // Before any waiting: it exists only here.
        console.say(&format!("password of {} (shown this once): {}", new.name, password.expose()));
    }
    if !args.wait.wait {
        print_with_password(console, &operation, shown.as_ref(), operation::print)?;
        how_to_follow(console, &operation);
        return Ok(());
    }
    let id = operation.instance_id.clone();
    let done = wait::until_done(client, console, project, operation, args.wait.timeout).await;
    if let Err(error) = done {
        // The instance is there in some state, and nobody else knows its password.
        if let Some(password) = shown.as_ref().filter(|_| console.is_json()) {
            console.say(&format!(
                "password of {} (shown this once): {}",
                new.name,
                password.expose()
            ));
        }
        return Err(error);
    }
    let instance = client.instance_get(InstanceRef { project, name: &id }).await?;
    print_with_password(console, &instance, shown.as_ref(), print)
}

/// As JSON the generated password is one more field; as a table it has been said already.
fn print_with_password<T: Serialize>(
    console: &mut Console,
    value: &T,
    password: Option<&Secret>,
    print: impl FnOnce(&mut Console, &T) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let Some(password) = password.filter(|_| console.is_json()) else {
        return print(console, value);
    };
    let mut json = serde_json::to_value(value).map_err(|e| output_failed(e.into()))?;
    if let Some(object) = json.as_object_mut() {
        object.insert("password".to_owned(), password.expose().into());
    }
    console.json(&json)
}

async fn list(
    args: ListArgs,
    client: &Client,
    project: &str,
    console: &mut Console,
) -> Result<(), CliError> {
    let filter = InstanceFilter {
        project: (!args.all_projects).then(|| project.to_owned()),
        state: args.state,
        architecture: args.architecture.map(|a| a.as_str().to_owned()),
        search: args.search,
        sort: args.sort,
        limit: args.limit,
    };
    let instances = client.instance_list(&filter).await?;
    if console.is_json() {
        console.json(&instances)
    } else {
        let text = render::instances(console, &instances);
        console.data(&text)
    }
}

/// Prints the operation, or waits for it and prints the instance.
pub(super) async fn started(
    operation: Operation,
    wait: &WaitOption,
    client: &Client,
    project: &str,
    console: &mut Console,
) -> Result<(), CliError> {
    if !wait.wait {
        operation::print(console, &operation)?;
        how_to_follow(console, &operation);
        return Ok(());
    }
    let id = operation.instance_id.clone();
    wait::until_done(client, console, project, operation, wait.timeout).await?;
    let instance = client.instance_get(InstanceRef { project, name: &id }).await?;
    print(console, &instance)
}

/// The work has only been accepted: tells a person, not a script, where to see how it goes.
fn how_to_follow(console: &mut Console, operation: &Operation) {
    if !console.is_json() {
        console.say(&format!("accepted; follow it with: larder operation watch {}", operation.id));
    }
}

fn print(console: &mut Console, instance: &Instance) -> Result<(), CliError> {
    if console.is_json() {
        console.json(instance)
    } else {
        let text = render::instance(console, instance);
        console.data(&text)
    }
}

fn print_plan(console: &mut Console, plan: &PlanView) -> Result<(), CliError> {
    if console.is_json() { console.json(plan) } else { console.data(&plan.text) }
}

/// The same key twice is a slip of the hand, not a wish.
fn tags(pairs: Vec<(String, String)>) -> Result<BTreeMap<String, String>, CliError> {
    let mut tags = BTreeMap::new();
    for (key, value) in pairs {
        if tags.contains_key(&key) {
            let refusal = Refusal::new(Code::InvalidRequest, format!("tag `{key}` is given twice"));
            return Err(CliError::Usage(refusal.detail));
        }
        tags.insert(key, value);
    }
    Ok(tags)
}
