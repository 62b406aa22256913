//! The command tree: what can be typed. What it means is in `commands`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use larder_model::ByteSize;

use crate::duration;

/// Options that every subcommand takes.
#[derive(Args, Clone, Debug)]
pub struct Globals {
    /// How data is printed: table, wide (more columns) or json (the API's answer) [default: table]
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT", display_order = 900,
        default_value_t = Format::Table, hide_possible_values = true, hide_default_value = true)]
    pub output: Format,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A table for people
    Table,
    /// A table with more columns
    Wide,
    /// What the API answered
    Json,
}

/// The commands that talk to a server, for a binary to flatten into its own tree.
#[derive(Subcommand, Debug)]
pub enum Commands {
    /// Log in to a server; keeps a token in the config file
    Login(LoginArgs),
    /// End the session and forget its token
    Logout,
    /// Who you are to the server
    Whoami,
    /// The server at a glance
    Status,
    /// The version of this program
    Version,
    /// Create, look at, change and delete instances
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Instance(InstanceArgs),
    /// The servers' settings of an instance
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Parameter(ParameterArgs),
    /// Users of an instance's servers besides `default`
    Account(AccountArgs),
    /// Follow and cancel long pieces of work
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Operation(OperationArgs),
    /// What happened
    #[command(subcommand, arg_required_else_help = true)]
    Event(EventCommand),
    /// Who asked for what
    #[command(subcommand, arg_required_else_help = true)]
    Record(RecordCommand),
    /// Servers that instances can run on
    #[command(subcommand, arg_required_else_help = true)]
    Engine(EngineCommand),
    /// Places where instances run
    #[command(subcommand, arg_required_else_help = true)]
    ContainerCluster(ContainerClusterCommand),
    /// Tokens for scripts
    #[command(subcommand, arg_required_else_help = true)]
    Token(TokenCommand),
    /// Accounts
    #[command(subcommand, arg_required_else_help = true)]
    User(UserCommand),
    /// Projects
    #[command(subcommand, arg_required_else_help = true)]
    Project(ProjectCommand),
}

#[derive(Args, Debug)]
pub struct LoginArgs {
    /// Address of the server [default: $LARDER_SERVER, the config file's, http://127.0.0.1:7300]
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,
    /// User to log in as; the first one is `admin`
    #[arg(long, value_name = "NAME")]
    pub user: String,
    /// Read the password from one line of standard input [default: ask on the terminal]
    #[arg(long)]
    pub password_stdin: bool,
    /// Read the password from the first line of a file
    #[arg(long, value_name = "FILE", conflicts_with = "password_stdin")]
    pub password_file: Option<PathBuf>,
}

/// The project that names are looked up in.
#[derive(Args, Clone, Debug)]
pub struct ProjectOption {
    /// Project [default: $LARDER_PROJECT, the config file's, default]
    #[arg(long, global = true, value_name = "P", display_order = 800)]
    pub project: Option<String>,
}

/// How much of a history to list.
#[derive(Args, Clone, Copy, Debug)]
pub struct LimitOption {
    /// At most this many, the newest [default: 100, as JSON or CSV all]
    #[arg(long, value_name = "N")]
    pub limit: Option<u32>,
}

/// Waiting for the operation that a command starts.
#[derive(Args, Clone, Debug)]
pub struct WaitOption {
    /// Wait until the work is done
    #[arg(long)]
    pub wait: bool,
    /// For how long to wait (90s, 10m, 2h); the work goes on after that
    #[arg(long, value_name = "D", default_value = "10m", value_parser = duration::parse)]
    pub timeout: Duration,
}

#[derive(Args, Debug)]
pub struct InstanceArgs {
    #[command(flatten)]
    pub project: ProjectOption,
    #[command(subcommand)]
    pub command: InstanceCommand,
}

#[derive(Subcommand, Debug)]
pub enum InstanceCommand {
    /// Create an instance
    Create(Box<CreateArgs>),
    /// List instances
    List(ListArgs),
    /// Show one instance
    Get {
        /// Name or id of the instance
        name: String,
    },
    /// Show the nodes of an instance
    Nodes {
        /// Name or id of the instance
        name: String,
    },
    /// What Larder would do now for an instance, and what it waits for
    Plan {
        /// Name or id of the instance
        name: String,
    },
    /// Change name, description or tags
    #[command(group = ArgGroup::new("change").multiple(true).required(true)
        .args(["new_name", "description", "tag"]))]
    Update {
        /// Name or id of the instance
        name: String,
        /// New name
        #[arg(long = "name", value_name = "N", id = "new_name")]
        new_name: Option<String>,
        /// New description
        #[arg(long, value_name = "T")]
        description: Option<String>,
        /// The tags from now on, all of them: the former ones go; may be repeated
        #[arg(long, value_name = "K=V", value_parser = key_value)]
        tag: Vec<(String, String)>,
    },
    /// Give a shard another primary
    Failover {
        /// Name or id of the instance
        name: String,
        /// Shard, counted from 0 [default: that of --to, else 0]
        #[arg(long, value_name = "I")]
        shard: Option<u32>,
        /// Node that shall be primary [default: the most advanced replica]
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
        /// Take over even if acknowledged writes may be lost
        #[arg(long, requires = "to")]
        accept_data_loss: bool,
        #[command(flatten)]
        wait: WaitOption,
    },
    /// Restart the servers, replicas first
    Restart {
        /// Name or id of the instance
        name: String,
        /// This node only
        #[arg(long, value_name = "ID")]
        node: Option<String>,
        #[command(flatten)]
        wait: WaitOption,
    },
    /// Give every node another memory
    Resize {
        /// Name or id of the instance
        name: String,
        /// Memory of each node (128MiB to 64GiB)
        #[arg(long, value_name = "M")]
        memory: ByteSize,
        #[command(flatten)]
        wait: WaitOption,
    },
    /// Change how many shards or nodes the instance has
    #[command(group = ArgGroup::new("counts").multiple(true)
        .args(["shards", "replicas", "read_only_nodes"]))]
    #[command(group = ArgGroup::new("what").multiple(true).required(true)
        .args(["shards", "replicas", "read_only_nodes", "pause", "resume"]))]
    Scale {
        /// Name or id of the instance
        name: String,
        /// Shards of a cluster instance
        #[arg(long, value_name = "N")]
        shards: Option<u32>,
        /// Nodes per shard, the primary counted in
        #[arg(long, value_name = "N")]
        replicas: Option<u32>,
        /// Read-only nodes of a read-write instance
        #[arg(long, value_name = "N")]
        read_only_nodes: Option<u32>,
        /// Begin no more moves of slots until --resume
        #[arg(long, conflicts_with_all = ["counts", "resume", "wait"])]
        pause: bool,
        /// Let a paused move of slots go on
        #[arg(long, conflicts_with = "counts")]
        resume: bool,
        #[command(flatten)]
        wait: WaitOption,
    },
    /// Share the slots of a cluster instance by what its shards hold
    Rebalance {
        /// Name or id of the instance
        name: String,
        #[command(flatten)]
        wait: WaitOption,
    },
    /// Let replicas copy from each other in a row, or all from the primary
    SetChained {
        /// Name or id of the instance
        name: String,
        /// Each replica from the one before it, or all from the primary
        #[arg(value_enum)]
        to: OnOff,
        #[command(flatten)]
        wait: WaitOption,
    },
    /// Change the password; who is connected stays so
    #[command(group = ArgGroup::new("password").required(false)
        .args(["password_stdin", "generate_password"]))]
    SetPassword {
        /// Name or id of the instance
        name: String,
        /// Read the password from one line of standard input [default: ask on the terminal]
        #[arg(long)]
        password_stdin: bool,
        /// Make a password and print it once
        #[arg(long)]
        generate_password: bool,
        /// For how long the former password is valid too (0s, 90s, 10m, 2h) [default: 10m]
        #[arg(long, value_name = "D", value_parser = duration::parse)]
        grace: Option<Duration>,
        #[command(flatten)]
        wait: WaitOption,
    },
    /// Run the instance on another engine, as `larder engine list` names it
    Upgrade {
        /// Name or id of the instance
        name: String,
        /// The engine from now on
        #[arg(long, value_name = "E")]
        engine: String,
        #[command(flatten)]
        wait: WaitOption,
    },
    /// Delete an instance
    Delete {
        /// Name or id of the instance
        name: String,
        /// Instance and data are gone for good
        #[arg(long, required = true)]
        permanent: bool,
        #[command(flatten)]
        wait: WaitOption,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Args, Debug)]
pub struct CreateArgs {
    /// Lower-case letters, digits and inner hyphens; unique in the project
    pub name: String,
    /// Engine, as `larder engine list` names it
    #[arg(long, value_name = "E")]
    pub engine: String,
    /// Shape of the instance
    #[arg(long, value_enum, value_name = "A")]
    pub architecture: ArchitectureArg,
    /// Memory of each node [default: 128MiB]
    #[arg(long, value_name = "M")]
    pub memory: Option<ByteSize>,
    /// Shards of a cluster [default: 3]
    #[arg(long, value_name = "N")]
    pub shards: Option<u32>,
    /// Nodes per shard, the primary counted in [default for a cluster: 2]
    #[arg(long, value_name = "N")]
    pub replicas: Option<u32>,
    /// Read-only nodes of a read-write instance [default: 1]
    #[arg(long, value_name = "N")]
    pub read_only_nodes: Option<u32>,
    /// Replicas of a read-write instance copy from each other in a row
    #[arg(long)]
    pub chained: bool,
    /// Where the nodes run [default: local]
    #[arg(long, value_name = "C")]
    pub container_cluster: Option<String>,
    /// What the nodes' volumes are made of; `larder status` lists them [default: the first]
    #[arg(long, value_name = "C")]
    pub storage_class: Option<String>,
    /// How clients outside of the container cluster reach it: load-balancer, node-port or
    /// cluster-ip [default: as the container cluster was bound]
    #[arg(long, value_name = "WAY")]
    pub expose: Option<String>,
    /// What the instance is for
    #[arg(long, value_name = "T", default_value = "", hide_default_value = true)]
    pub description: String,
    /// A tag; may be repeated
    #[arg(long, value_name = "K=V", value_parser = key_value)]
    pub tag: Vec<(String, String)>,
    /// A parameter of the servers (see `larder parameter list`); may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub parameter: Vec<(String, String)>,
    /// Read the password from one line of standard input [default: ask on the terminal]
    #[arg(long, conflicts_with = "generate_password")]
    pub password_stdin: bool,
    /// Make a password and print it once
    #[arg(long)]
    pub generate_password: bool,
    #[command(flatten)]
    pub wait: WaitOption,
    /// Print what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnOff {
    On,
    Off,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchitectureArg {
    /// One primary
    Standalone,
    /// A primary and read-only nodes, with a write and a read endpoint
    ReadWrite,
    /// Shards that speak the cluster protocol
    Cluster,
}

impl ArchitectureArg {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Standalone => "standalone",
            Self::ReadWrite => "read-write",
            Self::Cluster => "cluster",
        }
    }
}

#[derive(Args, Debug)]
pub struct ListArgs {
    /// The instances of every project
    #[arg(long, conflicts_with = "project")]
    pub all_projects: bool,
    /// Only those in this state: creating, running, updating, scaling, degraded, unavailable, deleting, failed
    #[arg(long, value_name = "S")]
    pub state: Option<String>,
    /// Only those of this shape
    #[arg(long, value_enum, value_name = "A")]
    pub architecture: Option<ArchitectureArg>,
    /// Only those with this in their name
    #[arg(long, value_name = "T")]
    pub search: Option<String>,
    /// Field to sort by: name, created_at, state, architecture, engine, memory_bytes [default: name]
    #[arg(long, value_name = "F")]
    pub sort: Option<String>,
    /// At most this many
    #[arg(long, value_name = "N")]
    pub limit: Option<u32>,
}

#[derive(Args, Debug)]
pub struct AccountArgs {
    #[command(flatten)]
    pub project: ProjectOption,
    #[command(subcommand)]
    pub command: AccountCommand,
}

#[derive(Subcommand, Debug)]
pub enum AccountCommand {
    /// List the accounts with their roles
    List {
        /// Name or id of the instance
        name: String,
    },
    /// Make an account
    Create {
        /// Name or id of the instance
        name: String,
        /// The account's name: a letter, then letters, digits, `-`, `_` and `.`
        user: String,
        /// What it may do
        #[arg(long, value_enum, value_name = "R")]
        role: RoleArg,
        /// Rules of a custom account, as in Redis' ACL files: '~app:* +@read +set'
        #[arg(long, value_name = "RULES", allow_hyphen_values = true)]
        rules: Option<String>,
        #[command(flatten)]
        password: AccountPassword,
        #[command(flatten)]
        wait: WaitOption,
    },
    /// Change what an account may do, or its password
    Update {
        /// Name or id of the instance
        name: String,
        /// The account's name
        user: String,
        /// What it may do from now on
        #[arg(long, value_enum, value_name = "R")]
        role: Option<RoleArg>,
        /// Rules of a custom account from now on, all of them
        #[arg(long, value_name = "RULES", allow_hyphen_values = true)]
        rules: Option<String>,
        #[command(flatten)]
        password: AccountPassword,
        #[command(flatten)]
        wait: WaitOption,
    },
    /// Delete an account; who is connected as it is disconnected
    Delete {
        /// Name or id of the instance
        name: String,
        /// The account's name
        user: String,
        #[command(flatten)]
        wait: WaitOption,
    },
}

#[derive(Args, Debug)]
pub struct AccountPassword {
    /// Read the password from one line of standard input
    #[arg(long, conflicts_with = "generate_password")]
    pub password_stdin: bool,
    /// Make a password and print it once
    #[arg(long)]
    pub generate_password: bool,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleArg {
    /// Reads and writes all keys
    ReadWrite,
    /// Reads all keys
    ReadOnly,
    /// All that the instance's own password is good for
    Administrator,
    /// What its rules say
    Custom,
}

impl RoleArg {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::ReadWrite => "read-write",
            Self::ReadOnly => "read-only",
            Self::Administrator => "administrator",
            Self::Custom => "custom",
        }
    }
}

#[derive(Args, Debug)]
pub struct ParameterArgs {
    #[command(flatten)]
    pub project: ProjectOption,
    #[command(subcommand)]
    pub command: ParameterCommand,
}

#[derive(Subcommand, Debug)]
pub enum ParameterCommand {
    /// List all parameters: value, default, range, meaning (with -o wide)
    List {
        /// Name or id of the instance
        name: String,
    },
    /// Give parameters other values, all or none
    Set {
        /// Name or id of the instance
        name: String,
        /// Parameters and their values
        #[arg(value_name = "K=V", required = true, value_parser = pair)]
        values: Vec<(String, String)>,
        #[command(flatten)]
        wait: WaitOption,
    },
    /// Give parameters their defaults again
    Reset {
        /// Name or id of the instance
        name: String,
        /// Parameters [default: all that are set]
        #[arg(value_name = "K")]
        names: Vec<String>,
        #[command(flatten)]
        wait: WaitOption,
    },
    /// Who has changed what, the newest first
    History {
        /// Name or id of the instance
        name: String,
    },
}

/// `name=value`; the value may be empty, or have an equals sign.
fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, value) = pair.ok_or_else(|| format!("`{text}` is not NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

#[derive(Args, Debug)]
pub struct OperationArgs {
    #[command(flatten)]
    pub project: ProjectOption,
    #[command(subcommand)]
    pub command: OperationCommand,
}

#[derive(Subcommand, Debug)]
pub enum OperationCommand {
    /// List operations, the newest first
    List {
        /// Of this instance only
        #[arg(long, value_name = "NAME")]
        instance: Option<String>,
        #[command(flatten)]
        limit: LimitOption,
    },
    /// Show one operation
    Get {
        /// Id, as `larder operation list` shows it
        id: String,
    },
    /// Follow an operation to its end
    Watch {
        /// Id, as `larder operation list` shows it
        id: String,
        /// For how long (90s, 10m, 2h) [default: until it ends]
        #[arg(long, value_name = "D", value_parser = duration::parse)]
        timeout: Option<Duration>,
    },
    /// Stop an operation: nothing further is ordered; what was ordered already may still happen
    Cancel {
        /// Id, as `larder operation list` shows it
        id: String,
    },
}

#[derive(Subcommand, Debug)]
pub enum EventCommand {
    /// List the newest events, oldest first
    List {
        #[command(flatten)]
        project: ProjectOption,
        /// Of this instance only
        #[arg(long, value_name = "NAME")]
        instance: Option<String>,
        /// Go on printing as things happen; as JSON one line per event
        #[arg(long)]
        follow: bool,
        #[command(flatten)]
        limit: LimitOption,
    },
}

#[derive(Subcommand, Debug)]
pub enum RecordCommand {
    /// List the newest records, oldest first
    List {
        /// About this instance only
        #[arg(long, value_name = "NAME")]
        instance: Option<String>,
        /// Of this user only
        #[arg(long, value_name = "U")]
        user: Option<String>,
        /// From this time on: RFC 3339, a date (UTC), or how long ago (2h)
        #[arg(long, value_name = "T")]
        since: Option<String>,
        #[command(flatten)]
        limit: LimitOption,
        /// Comma-separated values with a header line
        #[arg(long)]
        csv: bool,
    },
}

#[derive(Subcommand, Debug)]
pub enum ContainerClusterCommand {
    /// Bind a Kubernetes cluster: check it, and let instances run there
    #[command(group(
        clap::ArgGroup::new("credentials").args(["kubeconfig", "in_cluster"]).required(true)
    ))]
    Bind(BindArgs),
    /// Bind a cluster anew, with other credentials or options; what is not said stays, defaults
    /// are those of the first binding
    Rebind(BindArgs),
    /// List the container clusters
    List,
    /// Show one container cluster
    Get {
        /// Name of the container cluster
        name: String,
    },
    /// Show the workers of a container cluster
    Workers {
        /// Name of the container cluster
        name: String,
    },
    /// Change how a container cluster is used
    Set {
        /// Name of the container cluster
        name: String,
        /// The nodes of a shard on different workers: strict (a cluster instance then needs six
        /// workers) or preferred
        #[arg(long, value_name = "HOW", required_unless_present = "pull_secret")]
        spread: Option<String>,
        /// Secret of the namespace by which pods pull images; may be repeated, and empty takes all
        /// back. For pods that are made from now on
        #[arg(long, value_name = "NAME")]
        pull_secret: Vec<String>,
    },
    /// Say that a worker will not come back as it was: Kubernetes gives up its pods and volumes
    ConfirmLost {
        /// Name of the container cluster
        name: String,
        /// Name of the worker
        worker: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Unbind a container cluster that no instance lives on
    Unbind {
        /// Name of the container cluster
        name: String,
    },
}

#[derive(Args, Debug)]
pub struct BindArgs {
    /// What it is to be called
    pub name: String,
    /// File with the credentials; they are kept encrypted
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Larder runs in that cluster itself and uses its pod's service account
    #[arg(long, conflicts_with = "kubeconfig")]
    pub in_cluster: bool,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "C", conflicts_with = "in_cluster")]
    pub context: Option<String>,
    /// Namespace for everything that is made [default: larder]
    #[arg(long, value_name = "N")]
    pub namespace: Option<String>,
    /// How clients outside reach endpoints: load-balancer, node-port or cluster-ip [default:
    /// cluster-ip]
    #[arg(long, value_name = "WAY")]
    pub expose: Option<String>,
    /// Name or address that leads to every worker, told to clients outside with node-port; empty
    /// takes it back [default: a healthy worker's own address]
    #[arg(long, value_name = "HOST")]
    pub outer_address: Option<String>,
    /// Image of an engine; `{engine}` stands for the engine's name
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// Engine that there is an image of, such as redis-7.0; may be repeated [default: those that
    /// Larder makes images of]
    #[arg(long, value_name = "E")]
    pub engine: Vec<String>,
    /// Secret of the namespace by which pods pull images, of type kubernetes.io/dockerconfigjson or
    /// the older kubernetes.io/dockercfg; may be repeated, and empty takes all back [default: none]
    #[arg(long, value_name = "NAME")]
    pub pull_secret: Vec<String>,
    /// Class of the volumes; empty takes it back [default: the cluster's]
    #[arg(long, value_name = "C")]
    pub storage_class: Option<String>,
    /// Size of each node's volume [default: 64GiB]
    #[arg(long, value_name = "SIZE")]
    pub volume_size: Option<ByteSize>,
}

#[derive(Subcommand, Debug)]
pub enum EngineCommand {
    /// List the engines that instances can run on
    List,
    /// Probe a server binary on the server's machine and add it
    Add {
        /// Absolute path on the machine where `larder serve` runs
        path: String,
    },
    /// Remove an engine that no instance runs on
    Remove {
        /// Name, as `larder engine list` shows it
        engine: String,
    },
}

#[derive(Subcommand, Debug)]
pub enum TokenCommand {
    /// Make a token; its secret is shown this once
    Create {
        /// What it is for; need not be unique
        #[arg(long, value_name = "N")]
        name: String,
        /// When it ends (90s, 10m, 2h, 30d) [default: never]
        #[arg(long, value_name = "D", value_parser = duration::parse)]
        expires: Option<Duration>,
    },
    /// List your tokens and sessions
    List,
    /// Make a token worthless
    Revoke {
        /// Id, as `larder token list` shows it
        id: String,
    },
}

#[derive(Subcommand, Debug)]
pub enum UserCommand {
    /// Change a password
    Update {
        /// Name of the user
        name: String,
        /// Read the new password from one line of standard input [default: ask on the terminal]
        #[arg(long)]
        password_stdin: bool,
    },
}

#[derive(Subcommand, Debug)]
pub enum ProjectCommand {
    /// List projects
    List,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not a tag: write it like key=value")),
    }
}
