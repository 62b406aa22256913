//! `larder serve`: wires the control plane together and runs it until it is told to stop.

use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use larder_api::{ApiParts, ApiState, InitialAdmin};
use larder_cluster_local::{LocalCluster, LocalOptions};
use larder_model::Secret;
use larder_model::local::DataDir;
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
use crate::parts::{Engines, LocalCapacity, Prober};
use crate::{engines, keeper_watch, logging, stop};

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
    let store = Store::open(&names.database(), &names.key_file()).await?;
    let controller_epoch = store.controller_epoch_take().await?;
    let from_environment = std::env::var("LARDER_ADMIN_PASSWORD").ok();
    let from_environment = from_environment.filter(|text| !text.is_empty()).map(Secret::new);
    let admin = larder_api::ensure_admin(&store, from_environment, &names).await?;
    let clock = Arc::new(SystemClock);
    let mut engine_dirs = config.local.engine_dirs.clone();
    if let Some(more) = std::env::var_os("LARDER_ENGINE_DIRS") {
        engine_dirs.extend(std::env::split_paths(&more));
    }
    engines::refresh(&store).await?;
    engines::discover(&store, &engine_dirs, clock.now()).await?;
    let engines = Arc::new(Engines::load(&store).await?);

    let larder_binary = std::env::current_exe().context("finding this program's own file")?;
    larder_keeper::ensure_running(data, &larder_binary)?;
    let local = &config.local;
    let options = LocalOptions {
        bind_host: local.bind.clone(),
        advertise_host: local.advertise.clone(),
        port_range: local.port_first..=local.port_last,
        ..LocalOptions::new(data, &larder_binary)
    };
    let cluster = Arc::new(LocalCluster::new(options, engines.clone())?);

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
    let keeper = tokio::spawn(keeper_watch::watch_keeper(
        data.to_owned(),
        larder_binary,
        store.clone(),
        stop.clone(),
    ));

    let (stopping, is_stopping) = watch::channel(false);
    let initial_password = names.initial_admin_password();
    let state = ApiState::new(ApiParts {
        store: store.clone(),
        activate,
        capacity: Arc::new(FleetCapacity::new(fleet, LocalCapacity::new(cluster, engines.clone()))),
        engine_probe: Arc::new(Prober::new(engines, store.clone(), clock.clone())),
        binder,
        policy,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: clock.now(),
        password_changed: Arc::new(move |user| {
            if user == "admin" {
                // Gone already: it was removed by hand.
                let _ = std::fs::remove_file(&initial_password);
            }
        }),
        ready: Arc::new(|| Ok(())),
        stopping: is_stopping,
        secure_cookies: false,
    });
    let engines = store.engine_list().await?;
    // Of those found here the newest is what a newcomer wants; names sort by flavour and version.
    let engine = engines.iter().rfind(|engine| engine.builtin).or(engines.last());
    let engine = engine.map(|engine| engine.name.as_str());
    greet(listener.local_addr()?, data, admin.as_ref(), engine, stop_instances);
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
    keeper.abort();
    history.abort();
    store.close().await;
    if superseded {
        bail!("a newer controller is at work on the same instances");
    }
    Ok(())
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

/// Tells the person at the terminal where to go. The password itself is shown once, on a
/// terminal only: standard output of a service ends up in logs.
fn greet(
    address: SocketAddr,
    data: &Path,
    admin: Option<&InitialAdmin>,
    engine: Option<&str>,
    stop_instances: bool,
) {
    use std::io::{IsTerminal as _, Write as _};
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
