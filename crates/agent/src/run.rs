//! The agent's loop: one task that owns the node and does one thing after the other.

use std::path::Path;
use std::time::Duration;

use larder_model::agent::{LeaseSummary, Order, Problem};
use larder_model::{Millis, NodeMode, Refusal, Severity, Timestamp};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::api::{self, ApiState};
use crate::boot::Boot;
use crate::clock;
use crate::clustered::Clustered;
use crate::command::{Command, OrderError};
use crate::core::{Core, Readers};
use crate::error::AgentError;
use crate::lease::{Endpoint, Lease, LinkEndpoint, LinkLease};
use crate::leased::{Leased, Round};
use crate::memory::Memory;
use crate::peers::{Peers, Reach};
use crate::process::{Exit, Supervisor};
use crate::server::Server;

/// How often a node at rest is looked at.
const STEADY: Millis = Millis(1_000);
/// How often while something is in motion.
const MOTION: Millis = Millis(100);
/// The shortest pause between two rounds without an event.
const PAUSE: Millis = Millis(20);
/// Rounds in a row that may follow each other without a pause.
const ROUNDS_IN_A_ROW: u32 = 16;
/// How soon somebody who does not take over yet is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// After this a hand-over that was begun and has not come to its end is ordered again: longer than
/// a cluster's coordinated failover and a lease's hand-over, which give up after 5 s.
const TRY_AGAIN: Duration = Duration::from_millis(5_500);
/// Commands that may wait for the loop.
const QUEUE: usize = 256;

/// Runs the agent of the node in `dir` until SIGTERM or SIGINT. Its server goes on; the next
/// agent adopts it. To be run on a current-thread runtime: it does one thing at a time.
///
/// # Errors
/// [`AgentError`] when the agent cannot begin: another one runs, or its files cannot be read.
/// Whatever goes wrong later is a problem of the node, shown in its status.
pub async fn run(dir: &Path) -> Result<(), AgentError> {
    let end = End::listen()?;
    let boot = Boot::load(dir)?;
    let mode = Mode::on_machine(&boot)?;
    let socket = boot.run_dir.agent_socket(&boot.boot.config.node);
    let listener = api::bind(&socket)?;
    let peers = Peers::new(Reach::Sockets(boot.run_dir.clone()));
    let path = socket.clone();
    let open = |state| tokio::spawn(api::serve(path, listener, state));
    live(boot, mode, peers, open, end, None).await?;
    let _ = std::fs::remove_file(&socket);
    Ok(())
}

/// The word that the agent shall end: SIGTERM or SIGINT. To be listened for before anything else:
/// to the first process of a pod a signal without a handler is as if it had not been sent.
pub(crate) struct End {
    terminate: Signal,
    interrupt: Signal,
}

impl End {
    /// Listens from now on. Must be called within a runtime.
    pub(crate) fn listen() -> Result<Self, AgentError> {
        let listen = |kind| signal(kind).map_err(AgentError::Setup);
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// Waits until it was said, also before this was called. Cancel-safe.
    async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// How an agent ends that takes its server with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leave {
    /// How long it goes on leading first. Whoever leads clients elsewhere has just been told that
    /// this node goes, and may take up nothing else for a moment.
    pub(crate) settle: Duration,
    /// How long a hand-over may take.
    pub(crate) within: Duration,
}

/// One life of an agent. With `leave` it ends by handing over and stopping its server; without,
/// the server goes on.
pub(crate) async fn live(
    boot: Boot,
    mut mode: Mode,
    peers: Peers,
    open: impl FnOnce(ApiState) -> JoinHandle<()>,
    mut end: End,
    leave: Option<Leave>,
) -> Result<(), AgentError> {
    let config = boot.boot.config.clone();
    let memory = Memory::load(boot.dir.memory());
    let supervisor = Supervisor::new(boot.dir.server_mark(), boot.dir.server_log());
    let server = Server::new(
        supervisor,
        boot.own_address(),
        boot.secrets.system_password.clone(),
        config.mode == NodeMode::Clustered,
        memory.get().born,
    );
    let (commands, mut inbox) = mpsc::channel(QUEUE);
    let (mut core, readers) = Core::new(boot, memory, server, peers, commands.clone()).await;
    tracing::info!(node = %config.node, instance = %config.instance, "agent started");

    // The first status is published after the first round: nobody gets to read one in which the
    // volume, the lease or an adopted server was not looked at.
    core.check_volume();
    let Readers { status, metrics, beat } = readers;
    let api = open(ApiState { commands, status, metrics, beat });
    tokio::select! {
        () = turn(&mut core, &mut mode, &mut inbox, |_, _| false) => {}
        () = end.told() => {}
    }
    if let Some(how) = leave {
        leave_node(&mut core, &mut mode, &mut inbox, how).await;
    }
    api.abort();
    core.memory.save();
    tracing::info!(node = %config.node, "agent ended");
    Ok(())
}

/// Hands over what this node leads, while the other nodes and clients are still served, and then
/// stops the server.
async fn leave_node(
    core: &mut Core,
    mode: &mut Mode,
    inbox: &mut mpsc::Receiver<Command>,
    how: Leave,
) {
    let message = "the agent was told to end and stops its server".to_owned();
    core.memory.event(Severity::Info, "agent-leaving", message);
    if mode.leads(core) && core.shard_peers().next().is_some() {
        // Looked at closely: when the last replica goes too, as all pods of an instance may at once,
        // every write from then on is on this server alone.
        core.leaving = true;
        let enough = |mode: &Mode, core: &Core| !mode.leads(core) || core.server.is_alone();
        let settled = turn(core, mode, inbox, enough);
        let _ = tokio::time::timeout(how.settle, settled).await;
    }
    let began = clock::monotonic();
    loop {
        let wait = match mode.begin_leaving(core).await {
            Leaving::Nobody => break,
            Leaving::NotYet => ASK_AGAIN,
            Leaving::UnderWay => TRY_AGAIN,
        };
        let left = how.within.saturating_sub(clock::monotonic().since(began).duration());
        let handed_over = turn(core, mode, inbox, |mode, core| !mode.leads(core));
        if tokio::time::timeout(wait.min(left), handed_over).await.is_ok() {
            break;
        }
        if left <= wait {
            tracing::warn!(within = ?how.within, "nobody has taken over in time");
            break;
        }
    }
    core.shut_down_server().await;
}

/// What came of the wish to hand over at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// Somebody takes over, or tries to.
    UnderWay,
    /// Who should take over does not, yet.
    NotYet,
    /// This node leads nothing, or there is nobody to take over.
    Nobody,
}

/// What may wake the loop.
enum Wake {
    Exited(Exit),
    Asked(Option<Command>),
    LeaseChanged,
    Due,
}

/// Turns until `enough`.
async fn turn(
    core: &mut Core,
    mode: &mut Mode,
    inbox: &mut mpsc::Receiver<Command>,
    enough: impl Fn(&Mode, &Core) -> bool,
) {
    let mut in_a_row = 0;
    let mut kept_house = Timestamp(0);
    loop {
        core.beat();
        let round = mode.round(core).await;
        let now = clock::monotonic();
        if now.since(kept_house) >= STEADY {
            core.beat();
            core.housekeeping().await;
            kept_house = now;
        } else if !round.again {
            // Between two steps of a hand-over or take-over a sync of the disk would be a gap in
            // writes. What has to be durable before the next step has been saved by its action.
            core.memory.save();
        }
        core.publish(mode.summary(core), mode.concern(core));
        if enough(mode, core) {
            return;
        }
        if round.again && in_a_row < ROUNDS_IN_A_ROW {
            in_a_row += 1;
            continue;
        }
        in_a_row = 0;
        let rest = if mode.in_motion(core) { MOTION } else { STEADY };
        let due = round.wake_at.map_or(now + rest, |at| at.min(now + rest)).max(now + PAUSE);
        loop {
            let wait = due.since(clock::monotonic()).duration();
            let wake = tokio::select! {
                exit = core.server.supervisor.wait() => Wake::Exited(exit),
                command = inbox.recv() => Wake::Asked(command),
                () = mode.changed() => Wake::LeaseChanged,
                () = tokio::time::sleep(wait) => Wake::Due,
            };
            match wake {
                Wake::Exited(exit) => {
                    core.server_ended(exit);
                    break;
                }
                Wake::Asked(Some(command)) => {
                    core.beat();
                    if mode.command(core, command).await {
                        break;
                    }
                }
                // The loop itself holds a sender, so the queue never ends.
                Wake::Asked(None) => tokio::time::sleep(Duration::from_millis(100)).await,
                Wake::LeaseChanged | Wake::Due => break,
            }
        }
    }
}

/// Who decides over the node.
pub(crate) enum Mode {
    Leased(Box<Leased>),
    Clustered(Box<Clustered>),
}

impl Mode {
    /// With lease and route in folders of this machine.
    fn on_machine(boot: &Boot) -> Result<Self, AgentError> {
        if boot.boot.config.mode == NodeMode::Clustered {
            return Ok(Self::Clustered(Box::default()));
        }
        let (lease, route) = (&boot.boot.lease_dir, &boot.boot.route_dir);
        let lease = LinkLease::open(lease)
            .map_err(|source| AgentError::Log { path: lease.clone(), source })?;
        let endpoint = LinkEndpoint::open(route)
            .map_err(|source| AgentError::Log { path: route.clone(), source })?;
        Ok(Self::new(boot, Box::new(lease), Box::new(endpoint)))
    }

    /// Whatever keeps lease and route.
    pub(crate) fn new(boot: &Boot, lease: Box<dyn Lease>, endpoint: Box<dyn Endpoint>) -> Self {
        if boot.boot.config.mode == NodeMode::Clustered {
            return Self::Clustered(Box::default());
        }
        Self::Leased(Box::new(Leased::new(lease, endpoint)))
    }

    fn leads(&self, core: &Core) -> bool {
        match self {
            Self::Leased(leased) => leased.leads(),
            Self::Clustered(_) => Clustered::leads(core),
        }
    }

    /// Begins a hand-over to whoever is best.
    async fn begin_leaving(&mut self, core: &Core) -> Leaving {
        match self {
            Self::Leased(leased) => match leased.order(core, &Order::HandOver { to: None }) {
                Ok(()) => Leaving::UnderWay,
                Err(_) => Leaving::Nobody,
            },
            Self::Clustered(_) => Clustered::begin_leaving(core).await,
        }
    }

    async fn round(&mut self, core: &mut Core) -> Round {
        match self {
            Self::Leased(leased) => leased.round(core).await,
            Self::Clustered(clustered) => clustered.round(core).await,
        }
    }

    async fn changed(&mut self) {
        match self {
            Self::Leased(leased) => leased.changed().await,
            Self::Clustered(_) => std::future::pending().await,
        }
    }

    fn summary(&self, core: &Core) -> Option<LeaseSummary> {
        match self {
            Self::Leased(leased) => leased.summary(core),
            Self::Clustered(_) => None,
        }
    }

    fn concern(&self, core: &Core) -> Option<Problem> {
        match self {
            Self::Leased(leased) => leased.concern(),
            Self::Clustered(clustered) => clustered.concern(core),
        }
    }

    fn in_motion(&self, core: &Core) -> bool {
        core.leaving
            || core.server.awaits_replica()
            || match self {
                Self::Leased(leased) => leased.in_motion(),
                Self::Clustered(clustered) => clustered.in_motion(core),
            }
    }

    /// Does what the API asks. Answers whether something may have changed that the next round
    /// should look at.
    async fn command(&mut self, core: &mut Core, command: Command) -> bool {
        match command {
            Command::Ping(reply) => {
                let _ = reply.send(());
                false
            }
            Command::Order { fence, order, reply } => {
                // A question changes nothing, and is asked by who knows of no stamp.
                let asks = matches!(*order, Order::CheckRules { .. });
                let result = match if asks { Ok(()) } else { core.accept(fence) } {
                    Err(seen) => Err(OrderError::Stale(seen)),
                    Ok(()) => self.order(core, &order).await.map_err(OrderError::Refused),
                };
                if let Err(error) = &result {
                    tracing::info!(order = order.name(), ?error, "order not accepted");
                }
                let _ = reply.send(result);
                true
            }
            Command::Report(reply) => {
                let report = match self {
                    Self::Leased(leased) => leased.report(core).await,
                    Self::Clustered(clustered) => clustered.report(core).await,
                };
                let _ = reply.send(report);
                // Where it makes attentive the next look comes sooner.
                matches!(self, Self::Clustered(_))
            }
            Command::Promise { request, reply } => {
                let answer = match self {
                    Self::Leased(leased) => leased.promise(core, request),
                    Self::Clustered(_) => None,
                };
                let _ = reply.send(answer);
                true
            }
            Command::Demote { request, reply } => {
                let result = match self {
                    Self::Leased(leased) => leased.demote(core, &request).await,
                    Self::Clustered(_) => Err(wrong_mode("demote")),
                };
                let _ = reply.send(result);
                true
            }
            Command::FailOver { request, reply } => {
                let result = match self {
                    Self::Leased(_) => Err(wrong_mode("fail-over")),
                    Self::Clustered(clustered) => clustered.fail_over(core, request).await,
                };
                let _ = reply.send(result);
                true
            }
            Command::Look => true,
            Command::Heard(heard) => {
                if let Self::Leased(leased) = self {
                    leased.heard(heard);
                }
                true
            }
            Command::ShardHeard(answers) => {
                if let Self::Clustered(clustered) = self {
                    clustered.heard(core, answers).await;
                }
                true
            }
        }
    }

    async fn order(&mut self, core: &mut Core, order: &Order) -> Result<(), Refusal> {
        if let Some(result) = core.order(order).await {
            return result;
        }
        match self {
            Self::Leased(leased) => leased.order(core, order),
            Self::Clustered(clustered) => clustered.order(core, order).await,
        }
    }
}

fn wrong_mode(what: &str) -> Refusal {
    Refusal::new(
        larder_model::Code::InvalidRequest,
        format!("{what} is not for a node of this architecture"),
    )
}
