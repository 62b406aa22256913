//! The one binary: the command line, and every role of the product as a subcommand.

mod bind;
#[cfg(test)]
mod bind_tests;
mod config;
mod engines;
mod entry;
mod fleet;
mod home;
mod host;
mod keeper_watch;
mod lean;
mod live;
mod logging;
mod parts;
mod pull;
mod serve;
mod stop;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::lean::Lean;

#[derive(Parser)]
#[command(name = "larder", about = "A managed Redis service that you run yourself", version)]
struct Larder {
    #[command(flatten)]
    globals: larder_cli::Globals,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Client(larder_cli::Commands),
    /// Run the control plane on this machine
    Serve(serve::ServeArgs),
    /// Look after one node's server (started by the keeper, or as the first process of a pod)
    Agent(AgentArgs),
    /// Keep agents and relays of a data directory running (started by serve)
    Keeper(KeeperArgs),
    /// Relay an instance's endpoints (started by the keeper)
    Proxy(DirArgs),
}

#[derive(Args)]
struct DirArgs {
    /// Folder with the role's own configuration, written by `larder serve`
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct AgentArgs {
    /// Folder with the agent's own configuration, written by `larder serve`
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// This is a pod of Kubernetes: everything is where its volumes are mounted
    #[arg(long)]
    pod: bool,
}

#[derive(Args)]
struct KeeperArgs {
    /// The data directory
    #[arg(long, value_name = "DIR", env = "LARDER_DATA")]
    data: PathBuf,
    /// Stop every process of the data directory, servers included; data stays. `larder serve` has
    /// to be stopped before: it would start them again
    #[arg(long)]
    stop: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match Lean::of(&arguments) {
        Some(Lean::Agent { dir }) => agent(dir),
        Some(Lean::AgentInPod) => agent_in_pod(),
        Some(Lean::Proxy { dir }) => proxy(dir),
        Some(Lean::Keeper { data }) => keeper(data),
        None => whole_command_line(),
    }
}

fn whole_command_line() -> ExitCode {
    one_tls_provider();
    let Larder { globals, command } = Larder::parse();
    match command {
        Command::Client(command) => {
            on_one_thread(larder_cli::run(globals, command)).map_or_else(failed, ExitCode::from)
        }
        Command::Serve(args) => role(serve::run(args)),
        Command::Agent(AgentArgs { dir: Some(dir), .. }) => agent(&dir),
        Command::Agent(AgentArgs { dir: None, .. }) => agent_in_pod(),
        Command::Proxy(args) => proxy(&args.dir),
        Command::Keeper(KeeperArgs { data, stop: true }) => role(stop::by_hand(&data)),
        Command::Keeper(KeeperArgs { data, stop: false }) => keeper(&data),
    }
}

/// Two TLS providers in one program would leave rustls without a choice.
fn one_tls_provider() {
    // Installed already, by the same call.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn agent(dir: &Path) -> ExitCode {
    role(one_thread_role(larder_agent::run(dir)))
}

fn agent_in_pod() -> ExitCode {
    one_tls_provider();
    role(one_thread_role(larder_agent_k8s::run()))
}

fn proxy(dir: &Path) -> ExitCode {
    role(one_thread_role(larder_proxy::run(dir)))
}

fn keeper(data: &Path) -> ExitCode {
    role(one_thread_role(larder_keeper::run(data)))
}

/// Roles that mostly wait get one thread: there are many of them on a machine.
fn one_thread_role<E>(work: impl Future<Output = Result<(), E>>) -> anyhow::Result<()>
where
    E: std::error::Error + Send + Sync + 'static,
{
    logging::init();
    Ok(on_one_thread(work)??)
}

fn on_one_thread<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(work))
}

fn role(result: anyhow::Result<()>) -> ExitCode {
    result.map_or_else(failed, |()| ExitCode::SUCCESS)
}

#[expect(clippy::print_stderr, reason = "the last words of a program that could not run")]
fn failed(error: anyhow::Error) -> ExitCode {
    eprintln!("larder: {error:#}");
    ExitCode::FAILURE
}
