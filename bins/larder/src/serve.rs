//! `larder serve`: wires the control plane together and runs it until it is told to stop.

use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use larder_api::{ADMIN, ApiParts, ApiState, Bindings, InitialAdmin};
use larder_cluster_local::{LocalCluster, LocalOptions};
use larder_model::local::DataDir;
use larder_model::{LOCAL_CONTAINER_CLUSTER, Secret};
use larder_reconcile::{
    Clock as _, Driver, Reconciler, StoreBook, SystemClock, WatchedStatuses, channel,
};
use larder_store::{Retention, Store};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::bind::KubeBinder;
use crate::config::{self, Config};
use crate::fleet::{Fleet, FleetCapacity};
use crate::home::Home;
use crate::live::FleetLive;
use crate::parts::{Engines, LocalCapacity, Prober};
use crate::{engines, host, keeper_watch, logging, stop};

#[derive(Args)]
pub(crate) struct ServeArgs {
    /// Folder that holds everything [default: ./larder-data]
    #[arg(long, value_name = "DIR", env = "LARDER_DATA")]
    data: Option<PathBuf>,
    /// Address of the API [default: 127.0.0.1:7300]
    #[arg(long, value_name = "ADDR:PORT", env = "LARDER_LISTEN")]
    listen: Option<SocketAddr>,
    /// Configuration, a TOML file; docs/operating.md has its keys
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Stop all instances when the server stops (otherwise they go on without it)
    #[arg(long)]
    stop_instances: bool,
}

/// How often old history is looked for.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);
/// Running requests get this long when the server stops.
const GRACE: Duration = Duration::from_secs(5);

/// Runs the control plane until SIGINT or SIGTERM.
///
/// # Errors
/// When it cannot start, or a newer controller has taken its place.
pub(crate) fn run(args: ServeArgs) -> anyhow::Result<()> {
    logging::init();
    let config = config::load(args.config.as_deref())?;
    let data = args.data.or(config.data.clone()).unwrap_or_else(|| "larder-data".into());
    let listen = args.listen.or(config.listen);
    let listen = listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 7300)));
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&data)
        .with_context(|| format!("making data folder {}", data.display()))?;
    let data = data.canonicalize().context("finding the data folder")?;
    let _lock = lock(&data)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(config, &data, listen, args.stop_instances))?;
    // Waits for a look after the keeper that is under way: it may start one.
    drop(runtime);
    if args.stop_instances {
        tracing::info!("stopping all instances");
        stop::stop_all(&data)?;
    }
    Ok(())
}

/// Two servers on one data folder would work against each other.
pub(crate) fn lock(data: &Path) -> anyhow::Result<std::fs::File> {
    let path = DataDir(data.to_owned()).serve_lock();
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            bail!("a `larder serve` uses {} already: stop it first", data.display())
        }
        Err(error) => Err(error).with_context(|| format!("locking {}", path.display())),
    }
}

async fn serve(
    config: Config,
    data: &Path,
    listen: SocketAddr,
    stop_instances: bool,
) -> anyhow::Result<()> {
    let names = DataDir(data.to_owned());
    // Signals count from the first moment on.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("listening on {listen}; choose another address with --listen"))?;
    let key_file = config.key_file.clone().unwrap_or_else(|| names.key_file());
    let store = Store::open(&names.database(), &key_file).await?;
    let controller_epoch = store.controller_epoch_take().await?;
    let given = match store.user_get(ADMIN).await? {
        Some(_) => None,
        None => first_password(&config)?,
    };
    let admin = larder_api::ensure_admin(&store, given, &names).await?;
    let clock = Arc::new(SystemClock);
    if config.local.enabled {
        look_for_engines(&config.local, &store).await?;
    }
    let engines = Arc::new(Engines::load(&store).await?);
    let larder_binary = std::env::current_exe().context("finding this program's own file")?;
    let cluster = (config.local.enabled)
        .then(|| local_cluster(&config.local, data, &larder_binary, engines.clone()))
        .transpose()?;

    let fleet = Arc::new(Fleet::new(cluster.clone(), store.clone()));
    let (handle, inbox) = channel();
    let activate: larder_api::Activate = Arc::new(move |instance| handle.activate(instance));
    let binder = Arc::new(KubeBinder::new(fleet.clone(), clock.clone(), activate.clone()));
    binder.take_up(&store.container_cluster_list().await?).await;

    let policy = config.policy.planner();
    let statuses = Arc::new(WatchedStatuses::new(fleet.clone(), clock.clone(), activate.clone()));
    let reconciler = Arc::new(Reconciler::new(
        Arc::new(StoreBook::new(store.clone(), policy)),
        fleet.clone(),
        fleet.clone(),
        statuses,
        clock.clone(),
        Box::new(larder_api::RandomIds),
        controller_epoch,
    ));
    let stop = CancellationToken::new();
    let driver = tokio::spawn(Driver::new(reconciler, inbox).run(stop.clone()));
    let history = tokio::spawn(prune(store.clone(), config.retention.store(), stop.clone()));
    let keeper = cluster.as_ref().map(|_| {
        let (data, store) = (data.to_owned(), store.clone());
        tokio::spawn(keeper_watch::watch_keeper(data, larder_binary, store, stop.clone()))
    });
    let bindings = Bindings::new(store.clone(), binder);
    let own = match config.kubernetes.clone() {
        Some(own) => Home::bind(own, bindings.clone(), stop.clone()),
        None => Home::none(),
    };

    let (stopping, is_stopping) = watch::channel(false);
    let initial_password = names.initial_admin_password();
    let has_local = config.local.enabled;
    let live = Arc::new(FleetLive::new(fleet.clone(), store.clone()));
    let state = ApiState::new(ApiParts {
        store: store.clone(),
        activate,
        capacity: Arc::new(FleetCapacity::new(
            fleet,
            cluster.map(|cluster| LocalCapacity::new(cluster, engines.clone())),
        )),
        live,
        advice: Arc::new(move || if has_local { host::advice(Path::new("/")) } else { Vec::new() }),
        engine_probe: Arc::new(Prober::new(engines, store.clone(), clock.clone())),
        bindings,
        default_container_cluster: config.home().unwrap_or(LOCAL_CONTAINER_CLUSTER).to_owned(),
        has_local: config.local.enabled,
        policy,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: clock.now(),
        password_changed: Arc::new(move |user| {
            if user == ADMIN {
                // Gone already: it was removed by hand.
                let _ = std::fs::remove_file(&initial_password);
            }
        }),
        ready: Arc::new(move || own.ready()),
        stopping: is_stopping,
        secure_cookies: false,
    });
    let greeting = Greeting {
        address: listener.local_addr()?,
        data,
        admin: admin.as_ref(),
        has_local: config.local.enabled,
        stop_instances,
    };
    let engines = store.engine_list().await?;
    // Of those found here the newest is what a newcomer wants; names sort by flavour and version.
    let engine = engines.iter().rfind(|engine| engine.builtin).or(engines.last());
    let engine = engine.map(|engine| engine.name.as_str());
    greet(&greeting, engine);
    let server = axum::serve(
        listener,
        larder_api::router(state).into_make_service_with_connect_info::<SocketAddr>(),
    )
    .with_graceful_shutdown({
        let stop = stop.clone();
        async move { stop.cancelled().await }
    });
    let mut server = tokio::spawn(server.into_future());
    let mut driver = driver;
    let superseded = tokio::select! {
        _ = interrupt.recv() => false,
        _ = terminate.recv() => false,
        result = &mut driver => result?,
        result = &mut server => {
            result??;
            false
        }
    };
    tracing::info!("stopping the control plane");
    // Nobody listens any more when every event stream has ended already.
    let _ = stopping.send(true);
    stop.cancel();
    let _ = tokio::time::timeout(GRACE, &mut server).await;
    server.abort();
    if !driver.is_finished() {
        let _ = tokio::time::timeout(GRACE, &mut driver).await;
    }
    history.abort();
    if let Some(keeper) = keeper {
        // A look that is under way goes on by itself; what it finds is told by the next server.
        let _ = tokio::time::timeout(GRACE, keeper).await;
    }
    if tokio::time::timeout(GRACE, store.close()).await.is_err() {
        tracing::warn!("the store does not close in time");
    }
    if superseded {
        bail!("a newer controller is at work on the same instances");
    }
    Ok(())
}

/// The administrator's first password, where a person has given one.
fn first_password(config: &Config) -> anyhow::Result<Option<Secret>> {
    if let Some(text) = std::env::var("LARDER_ADMIN_PASSWORD").ok().filter(|text| !text.is_empty())
    {
        return Ok(Some(Secret::new(text)));
    }
    let Some(path) = &config.admin_password_file else { return Ok(None) };
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("reading the administrator's password from {}", path.display()))?;
    let first = text.lines().next().unwrap_or_default();
    anyhow::ensure!(!first.is_empty(), "there is no password in {}", path.display());
    Ok(Some(Secret::new(first)))
}

/// Brings the catalogue up to date with this machine.
async fn look_for_engines(local: &config::Local, store: &Store) -> anyhow::Result<()> {
    let mut engine_dirs = local.engine_dirs.clone();
    if let Some(more) = std::env::var_os("LARDER_ENGINE_DIRS") {
        engine_dirs.extend(std::env::split_paths(&more));
    }
    engines::refresh(store).await?;
    engines::discover(store, &engine_dirs, SystemClock.now()).await
}

/// This machine as a container cluster, with a keeper that runs.
fn local_cluster(
    local: &config::Local,
    data: &Path,
    larder_binary: &Path,
    engines: Arc<Engines>,
) -> anyhow::Result<Arc<LocalCluster>> {
    larder_keeper::ensure_running(data, larder_binary)?;
    let options = LocalOptions {
        bind_host: local.bind.clone(),
        advertise_host: local.advertise.clone(),
        port_range: local.port_first..=local.port_last,
        ..LocalOptions::new(data, larder_binary)
    };
    Ok(Arc::new(LocalCluster::new(options, engines)?))
}

/// Removes old history, now and once an hour.
async fn prune(store: Store, keep: Retention, stop: CancellationToken) {
    loop {
        match store.prune(SystemClock.now(), &keep).await {
            Ok(gone) if gone.is_empty() => {}
            Ok(gone) => tracing::info!(
                events = gone.events,
                operations = gone.operations,
                records = gone.records,
                "old history was removed"
            ),
            Err(error) => tracing::warn!(%error, "old history is not removed"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PRUNE_EVERY) => {}
        }
    }
}

/// What the person at the terminal is told of.
struct Greeting<'a> {
    address: SocketAddr,
    data: &'a Path,
    admin: Option<&'a InitialAdmin>,
    has_local: bool,
    stop_instances: bool,
}

/// Tells the person at the terminal where to go. The password itself is shown once, on a
/// terminal only: standard output of a service ends up in logs.
fn greet(greeting: &Greeting<'_>, engine: Option<&str>) {
    use std::io::{IsTerminal as _, Write as _};
    let Greeting { address, data, admin, has_local, stop_instances } = *greeting;
    let file = DataDir(data.to_owned()).initial_admin_password();
    let mut lines =
        vec![format!("Larder is running at http://{address}  (data in {})", data.display())];
    let mut out = std::io::stdout().lock();
    if let Some(admin) = admin.filter(|_| out.is_terminal()) {
        lines.push(format!(
            "First password of `admin`, shown this once: {}",
            admin.password.expose()
        ));
    }
    if file.exists() {
        lines.push(format!("Log in as `admin` with the password in {}:", file.display()));
        lines.push(format!(
            "  larder login --server http://{address} --user admin --password-stdin < '{}'",
            file.display()
        ));
    } else {
        lines.push(format!("Log in: larder login --server http://{address} --user admin"));
    }
    lines.push(match engine {
        _ if !has_local => "Then: larder engine list, larder instance create".to_owned(),
        Some(engine) => format!(
            "Then: larder instance create shop --engine {engine} --architecture read-write --generate-password --wait"
        ),
        None => "No redis-server or valkey-server was found on PATH: add one with `larder engine add /path/to/redis-server`"
            .to_owned(),
    });
    let instances = if stop_instances { "the instances too" } else { "instances go on" };
    lines.push(format!("Ctrl-C stops the control plane; {instances}."));
    // Nobody reads it: no reason not to serve.
    let _ = writeln!(out, "{}", lines.join("\n")).and_then(|()| out.flush());
}
