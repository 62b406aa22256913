//! What leased and clustered nodes have in common: configuration, memory, volume, the server's
//! start and end, and what the node says of itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use larder_model::agent::{
    AgentStatus, Fence, LeaseSummary, Member, NodeConfig, Order, Problem, ProblemCode, ServerState,
    VolumeState,
};
use larder_model::local::{AgentBoot, NodeSecrets};
use larder_model::{Address, Code, Millis, NodeId, NodeMode, Refusal, Severity, Timestamp};
use larder_node::probe::fingerprint;
use tokio::sync::{mpsc, watch};

use crate::announce::Announced;
use crate::beat::Beat;
use crate::boot::{Boot, NodeDir, read_json};
use crate::command::Command;
use crate::engine::Engine;
use crate::memory::Memory;
use crate::parameters::{self, Compared};
use crate::peers::Peers;
use crate::process::{Exit, port_is_free};
use crate::server::Server;
use crate::slot_move::{Mover, Reign};
use crate::unusable::Failures;
use crate::users::Told;
use crate::volume::{CLUSTER_FILE, Found, Volume};
use crate::{announce, clock, fence, files, metrics, proc, render};

/// A start that failed is tried again after this.
const START_RETRY: Millis = Millis(1_000);

/// How long the loop's own sample of the server may take.
pub(crate) const SAMPLE: Duration = Duration::from_millis(400);

/// The node without what decides over it.
pub(crate) struct Core {
    pub(crate) dir: NodeDir,
    boot: AgentBoot,
    pub(crate) secrets: NodeSecrets,
    /// What the running server knows of the tenant's users.
    pub(crate) users_told: Option<Told>,
    pub(crate) config: NodeConfig,
    boot_changed_at: Option<SystemTime>,
    pub(crate) engine: Result<Engine, String>,
    /// Of the binary that `engine` speaks of.
    engine_binary: Option<String>,
    /// Whether a server of a former agent runs could not be found out: as long as that is so, the
    /// volume is not judged by its files, which a living server changes.
    adoption_failed: bool,
    /// Another node of the shard has said that it has data to copy. Of leased nodes only: those of
    /// a cluster ask each other nothing while a server is down, and here it stays `false`.
    pub(crate) peer_has_data: bool,
    pub(crate) memory: Memory,
    pub(crate) server: Server,
    pub(crate) volume: Volume,
    pub(crate) peers: Peers,
    /// The sender of the loop's own commands, for tasks that bring it news.
    pub(crate) commands: mpsc::Sender<Command>,
    /// Why the last start failed; cleared when the server serves.
    start_problem: Option<Problem>,
    retry_at: Timestamp,
    agent_run: String,
    status: watch::Sender<Arc<AgentStatus>>,
    metrics: watch::Sender<Arc<String>>,
    /// What the server of this run id is known to announce.
    pub(crate) announced: Option<(String, Announced)>,
    /// Where the pod's worker is reached.
    pub(crate) worker: Option<String>,
    beat: Beat,
    /// The other nodes are on other machines.
    in_pod: bool,
    pub(crate) failures: Failures,
    /// The agent was told to end and hands over what this node leads.
    pub(crate) leaving: bool,
    /// The move of slots that this node was last told of.
    pub(crate) mover: Option<Mover>,
    pub(crate) reign: Arc<Reign>,
    /// In a chain, the upstream that brought nothing any more.
    pub(crate) left_upstream: Option<NodeId>,
    /// What the running server has of the parameters that are wanted.
    pub(crate) parameters: Option<Compared>,
    /// Of the cluster file that was kept last.
    pub(crate) cluster_file_kept_of: Option<SystemTime>,
    /// When old data that could not be loaded were last looked for.
    pub(crate) unreadable_seen_to: Option<Timestamp>,
}

/// The ends of the channels that the API reads.
pub(crate) struct Readers {
    pub(crate) status: watch::Receiver<Arc<AgentStatus>>,
    pub(crate) metrics: watch::Receiver<Arc<String>>,
    pub(crate) beat: Beat,
}

impl Core {
    pub(crate) async fn new(
        boot: Boot,
        mut memory: Memory,
        mut server: Server,
        peers: Peers,
        commands: mpsc::Sender<Command>,
    ) -> (Self, Readers) {
        let Boot { dir, boot, secrets, in_pod, volume_replaced, worker, .. } = boot;
        if volume_replaced && !memory.get().born {
            memory.number_events_anew();
            let message = "the volume of this node was deleted, and its data with it; it will not \
                           lead before it has copied them from another node";
            memory.event(Severity::Critical, "volume-lost", message.to_owned());
            memory.change(|memory| {
                memory.born = true;
                memory.rebuilding = true;
            });
            memory.save();
        }
        let engine_binary = fingerprint(&boot.server_binary);
        let engine = Engine::probe(&boot.server_binary).await;
        let config = match &memory.get().config {
            Some(config) if config.generation > boot.config.generation => config.clone(),
            _ => boot.config.clone(),
        };
        let volume = Volume::new(boot.volume.clone(), config.node.clone(), config.instance.clone());
        let adopted = adopt(&mut server, &mut memory);
        let adoption_failed = adopted.is_err();
        if let Err(error) = adopted {
            tracing::warn!(%error, "server not adopted, tried again");
        }
        let agent_run = agent_run();
        let first = AgentStatus {
            node: config.node.clone(),
            instance: config.instance.clone(),
            agent_run: agent_run.clone(),
            version: 0,
            generation: config.generation,
            at: clock::wall(),
            server: server.status(),
            volume: VolumeState::Fresh,
            replication: None,
            cluster: None,
            behind: false,
            slot_move: None,
            left_upstream: None,
            lease: None,
            problem: None,
            events: Vec::new(),
        };
        let (status, status_reader) = watch::channel(Arc::new(first));
        let (metrics, metrics_reader) = watch::channel(Arc::new(String::new()));
        peers.learn(&config.members);
        let beat = Beat::new();
        let core = Self {
            boot_changed_at: changed_at(&dir.boot()),
            dir,
            boot,
            secrets,
            users_told: None,
            config,
            engine,
            engine_binary,
            adoption_failed,
            peer_has_data: false,
            memory,
            server,
            volume,
            peers,
            commands,
            start_problem: None,
            retry_at: Timestamp(0),
            agent_run,
            status,
            metrics,
            announced: None,
            worker,
            beat: beat.clone(),
            in_pod,
            failures: Failures::default(),
            leaving: false,
            mover: None,
            reign: Arc::default(),
            left_upstream: None,
            parameters: None,
            cluster_file_kept_of: None,
            unreadable_seen_to: None,
        };
        (core, Readers { status: status_reader, metrics: metrics_reader, beat })
    }

    /// The loop goes on: to be said before each thing that is waited for.
    pub(crate) fn beat(&self) {
        self.beat.beat();
    }

    /// Stops the server of a node whose agent does not answer, as well as that can be done.
    pub(crate) async fn fence_server(&self, old: &NodeId) {
        if !self.in_pod {
            fence::kill_server_of(&self.dir, old);
        } else if let Some(member) = self.config.members.iter().find(|m| m.node == *old) {
            fence::demote_server_at(&member.address, &self.secrets.system_password).await;
        }
    }

    /// The other nodes of this node's shard.
    pub(crate) fn shard_peers(&self) -> impl Iterator<Item = &Member> {
        let (node, shard) = (&self.config.node, self.config.shard);
        self.config.members.iter().filter(move |m| m.shard == shard && m.node != *node)
    }

    /// This node as its peers know it.
    pub(crate) fn me(&self) -> Member {
        Member {
            outer: self.config.outer.clone(),
            node: self.config.node.clone(),
            shard: self.config.shard,
            zone: self.config.zone.clone(),
            address: self.config.address.clone(),
        }
    }

    /// What is on the volume. While the server lives its memory is the data.
    pub(crate) fn volume_state(&self) -> VolumeState {
        let memory = self.memory.get();
        if memory.rebuilding {
            return VolumeState::Lost;
        }
        if self.server.supervisor.running().is_some() {
            return if memory.born { VolumeState::Data } else { VolumeState::Fresh };
        }
        // Started once but never led and never synced: there was nothing that could be lost. A
        // copy that is not on the disk yet is one that could.
        let leased = self.config.mode == NodeMode::Leased;
        let had_data = memory.data_epoch > 0 || memory.synced.is_some();
        let valueless = !memory.born || (leased && !had_data);
        if self.adoption_failed && memory.born {
            return VolumeState::Data;
        }
        let had_files = memory.files_seen || memory.data_epoch > 0 || memory.cluster_id.is_some();
        match self.volume.find() {
            // The marker alone is no data: a server would start empty, and look like one with data.
            Found::Own if had_files && self.volume.missing_data().is_some() => VolumeState::Lost,
            Found::Own | Found::Unreadable => VolumeState::Data,
            Found::Nothing if valueless => VolumeState::Fresh,
            Found::Nothing | Found::Foreign => VolumeState::Lost,
        }
    }

    /// Notes the loss of the volume, once, and its return. Before that it looks again for a server
    /// of a former agent, if none could be looked for so far.
    pub(crate) fn check_volume(&mut self) -> VolumeState {
        if self.adoption_failed
            && self.server.supervisor.running().is_none()
            && let Err(error) = adopt(&mut self.server, &mut self.memory)
        {
            tracing::debug!(%error, "server still not adopted");
            return self.volume_state();
        }
        self.adoption_failed = false;
        self.volume_put_back();
        let state = self.volume_state();
        if state == VolumeState::Lost && !self.memory.get().rebuilding {
            let message = match self.foreign_volume() {
                Some(message) => message,
                None => self.lost_data(),
            };
            self.memory.event(Severity::Critical, "volume-lost", message);
            self.memory.change(|memory| {
                memory.rebuilding = true;
                // The lineage stays: it says in which epoch this node has led, for whom comes
                // after it. That nothing of it is left is what `rebuilding` says.
                memory.synced = None;
            });
            self.memory.save();
        }
        state
    }

    fn lost_data(&self) -> String {
        let missing = self.volume.missing_data().filter(|_| self.volume.has_marker());
        let missing = missing.map_or_else(String::new, |file| {
            let name = file.strip_prefix(self.volume.path()).unwrap_or(&file);
            format!(" ({} is missing)", name.display())
        });
        let next = if self.config.members.len() < 2 {
            "put the folder back, or delete the instance: nothing is started empty"
        } else {
            "it will not lead before it has copied them from another node"
        };
        let path = self.volume.path().display();
        format!("the data of this node are gone{missing} from {path}; {next}")
    }

    /// What to say when the volume is another node's. Nothing in it is touched then.
    fn foreign_volume(&self) -> Option<String> {
        let owner = self.volume.other_owner()?;
        let path = self.volume.path().display();
        Some(format!(
            "the volume in {path} is node {owner}'s by its file .larder, as if two mounts were \
             swapped; nothing in it is touched and no server started: put this node's own there"
        ))
    }

    /// The lineage of data whose notes are gone: the node's own file of notes was damaged or
    /// deleted, and the volume has its marker and its data. Only for a node that nobody else could
    /// stand in for: others would have to be asked who has more.
    pub(crate) fn recover_lineage(&mut self, led_in: u64) {
        let memory = self.memory.get();
        let forgotten = !memory.born && !memory.rebuilding && memory.data_epoch == 0 && led_in > 0;
        let data = || self.volume.find() == Found::Own && self.volume.missing_data().is_none();
        if !forgotten || self.shard_peers().next().is_some() || !data() {
            return;
        }
        self.server.has_run = true;
        self.memory.number_events_anew();
        self.memory.change(|memory| {
            memory.born = true;
            memory.data_epoch = led_in;
        });
        let path = self.volume.path().display();
        let message = format!(
            "the notes of this node are gone, its data in {path} are not: it leads with them, as \
             the lease names it as the last primary (epoch {led_in})"
        );
        self.memory.event(Severity::Warning, "notes-recovered", message);
        self.memory.save();
    }

    /// The lost volume holds a full copy again.
    pub(crate) fn volume_rebuilt(&mut self) {
        if !self.memory.get().rebuilding {
            return;
        }
        match self.volume.write_marker() {
            Ok(()) => {
                self.memory.change(|memory| {
                    memory.rebuilding = false;
                    memory.unusable = None;
                });
                let message = "the volume holds a full copy again".to_owned();
                self.memory.event(Severity::Info, "volume-rebuilt", message);
                self.memory.save();
            }
            Err(error) => tracing::warn!(%error, "volume not marked"),
        }
    }

    /// Whether a start of the server may be tried now.
    pub(crate) fn may_start(&self) -> bool {
        let now = clock::monotonic();
        !self.memory.get().stopped
            && now >= self.server.supervisor.not_before()
            && now >= self.retry_at
    }

    /// The earliest time at which [`Core::may_start`] may turn true by itself.
    pub(crate) fn start_at(&self) -> Timestamp {
        self.server.supervisor.not_before().max(self.retry_at)
    }

    /// No start before this time has passed.
    pub(crate) fn hold_start(&mut self, for_: Millis) {
        self.retry_at = clock::monotonic() + for_;
    }

    /// What was wrong is not any more, as far as is known: a start may be tried at once.
    pub(crate) fn start_now(&mut self) {
        self.retry_at = Timestamp(0);
        self.start_problem = None;
        self.server.supervisor.forget_deaths();
    }

    /// Why the server does not start, as far as it is known.
    pub(crate) fn set_start_problem(&mut self, problem: Option<Problem>) {
        self.start_problem = problem;
    }

    /// The server binary as it lies there now.
    pub(crate) fn present_binary(&self) -> Option<String> {
        fingerprint(&self.boot.server_binary)
    }

    /// Starts the server; with `upstream` as a replica of that address. Answers whether it runs.
    pub(crate) async fn start_server(&mut self, upstream: Option<&Address>) -> bool {
        if self.server.supervisor.running().is_some() {
            return true;
        }
        match self.try_start(upstream).await {
            Ok(pid) => {
                self.server.began(false);
                let role = match upstream {
                    Some(address) if *address == crate::act::nobody() => {
                        ", read-only until it leads or follows".to_owned()
                    }
                    Some(address) => format!(" as a replica of {address}"),
                    None => " with its own cluster file".to_owned(),
                };
                let message = format!("the server was started{role} (process {pid})");
                if self.is_old_news() {
                    self.failures.untold_start = Some(message);
                } else {
                    self.memory.event(Severity::Info, "server-started", message);
                }
                true
            }
            Err(problem) => {
                if self.start_problem.as_ref().map(|p| p.code) != Some(problem.code) {
                    tracing::warn!(problem = problem.message, "server not started");
                    self.memory.event(
                        Severity::Critical,
                        "server-not-started",
                        problem.message.clone(),
                    );
                }
                self.start_problem = Some(problem);
                self.retry_at = clock::monotonic() + START_RETRY;
                false
            }
        }
    }

    async fn try_start(&mut self, upstream: Option<&Address>) -> Result<u32, Problem> {
        let engine = self.engine().await?;
        let state = self.check_volume();
        if let Some(pid) = self.server.supervisor.running().and(self.server.supervisor.pid()) {
            return Ok(pid);
        }
        if self.adoption_failed {
            let message = "it cannot be found out whether a server of a former agent still runs";
            return Err(problem(ProblemCode::ServerWillNotStart, message.into()));
        }
        if let Some(message) = self.foreign_volume() {
            return Err(problem(ProblemCode::VolumeLost, message));
        }
        if state == VolumeState::Lost && upstream.is_none() && !self.copies_by_cluster_file() {
            return Err(problem(ProblemCode::VolumeLost, "the volume of this node is gone".into()));
        }
        let address = self.config.address.clone();
        let bus = (self.config.mode == NodeMode::Clustered).then(|| address.bus_port()).flatten();
        let host = self.boot.listen_host().to_owned();
        for port in [Some(address.port), bus].into_iter().flatten() {
            if !port_is_free(&host, port) {
                // It may be our own server, started by a former agent that died too early.
                if matches!(self.server.supervisor.adopt(), Ok(true)) {
                    self.server.began(true);
                    return Ok(self.server.supervisor.pid().unwrap_or_default());
                }
                return Err(problem(
                    ProblemCode::PortTaken,
                    format!("another process listens on port {port} of {host}"),
                ));
            }
        }
        let io = |doing: &str, error: &std::io::Error| {
            let code = if files::is_disk_full(error) {
                ProblemCode::DiskFull
            } else {
                ProblemCode::ServerWillNotStart
            };
            problem(code, format!("{doing}: {error}"))
        };
        self.volume.create().map_err(|e| io("making the volume", &e))?;
        if state == VolumeState::Lost && self.volume.has_marker() {
            let remains = self.volume.has_server_data();
            self.volume.move_aside().map_err(|e| io("keeping the remains aside", &e))?;
            if remains {
                self.note_moved_aside();
            }
        }
        if state != VolumeState::Lost {
            self.volume.write_marker().map_err(|e| io("marking the volume", &e))?;
        }
        let clustered = self.config.mode == NodeMode::Clustered;
        if !self.memory.get().born {
            let blank = clustered && self.volume.missing_data().is_some();
            self.memory.change(|memory| {
                memory.born = true;
                memory.blank = blank;
            });
            self.memory.save();
        }
        let users = self.dir.users();
        let places = render::Places {
            listen_host: &host,
            volume: self.volume.path(),
            users: &users,
            worker: self.worker.as_deref(),
        };
        let text = render::server_config(&self.config, &self.secrets, engine, &places);
        files::write_if_different(&self.dir.server_config(), text.as_bytes())
            .map_err(|e| io("writing the server's configuration", &e))?;
        files::write_if_different(&users, render::users(&self.secrets, engine).as_bytes())
            .map_err(|e| io("writing the server's users", &e))?;
        if clustered {
            self.mend_cluster_file().map_err(|e| io("restoring nodes.conf", &e))?;
        }
        let mut args = vec![self.dir.server_config().to_string_lossy().into_owned()];
        let on_hold = clustered && self.starts_on_hold();
        args.extend(render::start_arguments(upstream, on_hold));
        let (binary, folder) = (self.boot.server_binary.clone(), self.volume.path().to_owned());
        let pid = self
            .server
            .supervisor
            .start(&binary, &args, &folder)
            .map_err(|e| io("starting the server", &e))?;
        self.users_told = Some(Told { pid, revision: self.secrets.users_revision });
        Ok(pid)
    }

    /// Whether a cluster's server must not take part in elections before it is in sync, because it
    /// may have less than its shard. Notes it for one that comes back as a replica.
    fn starts_on_hold(&mut self) -> bool {
        let memory = self.memory.get();
        let returns_as_replica = memory.cluster_id.is_some() && !memory.owned_slots;
        if returns_as_replica && !memory.behind {
            self.memory.change(|memory| memory.behind = true);
            self.memory.save();
        }
        returns_as_replica || self.memory.lacks_copy(None)
    }

    async fn engine(&mut self) -> Result<Engine, Problem> {
        let missing = |text: String| problem(ProblemCode::EngineMissing, text);
        let binary = self.boot.server_binary.clone();
        if !is_executable(&binary) {
            return Err(missing(format!("the server binary {} is missing", binary.display())));
        }
        let present = fingerprint(&binary);
        if self.engine.is_err() || present != self.engine_binary {
            self.engine = self.beat.during(Engine::probe(&binary)).await;
            self.engine_binary = present;
        }
        match &self.engine {
            Ok(engine) => Ok(*engine),
            // Better the catalogue's word than no server, when the binary is there.
            Err(error) => Engine::from_name(&self.config.engine).ok_or(missing(error.clone())),
        }
    }

    /// Cluster mode: an empty `nodes.conf`, or none, gives way to the last good copy of a node that
    /// had a name in the cluster. The node's address in it is the server's own business: it takes
    /// the announced one from its configuration.
    fn mend_cluster_file(&self) -> std::io::Result<()> {
        let file = self.volume.path().join(CLUSTER_FILE);
        // A file cut short by a full disk keeps the server from starting ("Unrecoverable error:
        // corrupted cluster config file"); an empty one is the same as none.
        let empty = match std::fs::metadata(&file) {
            Ok(meta) => meta.len() == 0,
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        };
        let had_name = self.memory.get().cluster_id.is_some();
        if empty && !(had_name && self.put_back_cluster_file()?) {
            let _ = std::fs::remove_file(&file);
        }
        Ok(())
    }

    /// Records the end of the server's process, which nobody here has asked for.
    pub(crate) fn server_ended(&mut self, exit: Exit) {
        let expected = self.memory.get().stopped;
        self.record_end(exit, expected);
    }

    /// An end that is expected is no warning, and what the server said at it is no news.
    fn record_end(&mut self, exit: Exit, expected: bool) {
        let mut message = format!(
            "the server (process {}) ended after {}: {}",
            exit.mark.pid, exit.lived, exit.how
        );
        if !expected && !exit.last_words.is_empty() && !exit.how.starts_with("signal 9") {
            message.push_str("; its last words: ");
            message.push_str(&exit.last_words);
        }
        let severity = if expected { Severity::Info } else { Severity::Warning };
        if !self.is_old_news() {
            self.memory.event(severity, "server-exited", message.clone());
        }
        if self.server.supervisor.short_lives() > 1 {
            let taken = exit.last_words.contains("listen") && exit.last_words.contains("in use");
            let code = if taken { ProblemCode::PortTaken } else { ProblemCode::ServerWillNotStart };
            self.start_problem = Some(problem(code, message));
        }
        let served = self.server.info().is_some_and(|info| info.loading.is_none());
        match exit.damage.filter(|_| !expected && !served) {
            Some(damage) => {
                if let Some(problem) = self.failed_to_load(damage, &exit) {
                    self.start_problem = Some(problem);
                }
            }
            None => self.loads(),
        }
        self.server.ended(exit);
        self.check_volume();
    }

    /// Kills the server and records its end. Answers whether it is gone.
    pub(crate) async fn kill_server(&mut self) -> bool {
        if self.server.supervisor.running().is_none() {
            return true;
        }
        self.beat();
        match self.server.supervisor.kill().await {
            Some(exit) => {
                self.server_ended(exit);
                true
            }
            None => false,
        }
    }

    /// Ends the server so that its append-only file is complete; kills it when it does not go.
    pub(crate) async fn shut_down_server(&mut self) -> bool {
        self.beat();
        if let Ok(hands) = self.server.hands().await {
            let _ = hands.shutdown_nosave().await;
            let waited = tokio::time::timeout(Duration::from_millis(800), async {
                self.server.supervisor.wait().await
            });
            if let Ok(exit) = waited.await {
                self.record_end(exit, true);
                return true;
            }
        }
        self.kill_server().await
    }

    /// Checks an order's stamp against the newest seen, and remembers it.
    pub(crate) fn accept(&mut self, fence: Fence) -> Result<(), Fence> {
        match self.memory.get().fence {
            Some(seen) if fence < seen => Err(seen),
            Some(seen) if fence == seen => Ok(()),
            _ => {
                self.memory.change(|memory| memory.fence = Some(fence));
                self.memory.save();
                Ok(())
            }
        }
    }

    /// Orders that mean the same in every mode; `None` when the mode has to answer.
    pub(crate) async fn order(&mut self, order: &Order) -> Option<Result<(), Refusal>> {
        match order {
            Order::Configure { config } => Some(self.configure((**config).clone())),
            Order::RestartServer { run_id } => {
                if self.server.run_id().as_ref() == Some(run_id) {
                    let message = "the server restarts by order".to_owned();
                    self.memory.event(Severity::Info, "server-restart", message);
                    self.shut_down_server().await;
                    self.server.supervisor.forget_deaths();
                }
                // Another run id: it has restarted since, which is what was wanted.
                Some(Ok(()))
            }
            Order::SetUsers { users } => {
                self.set_users(users.clone()).await;
                Some(Ok(()))
            }
            Order::CheckRules { rules } => Some(self.check_rules(rules).await),
            Order::StopServer => {
                self.memory.change(|memory| memory.stopped = true);
                self.memory.save();
                self.kill_server().await;
                Some(Ok(()))
            }
            _ => None,
        }
    }

    fn configure(&mut self, config: NodeConfig) -> Result<(), Refusal> {
        if config.node != self.config.node || config.instance != self.config.instance {
            return Err(Refusal::new(
                Code::NodeNotFound,
                format!("this is node {}, not {}", self.config.node, config.node),
            ));
        }
        if config.address != self.config.address || config.mode != self.config.mode {
            return Err(Refusal::new(
                Code::InvalidRequest,
                "address and mode of a node do not change in its life",
            ));
        }
        if config.generation < self.config.generation {
            return Err(Refusal::new(
                Code::GenerationConflict,
                format!(
                    "generation {} is older than {}",
                    config.generation, self.config.generation
                ),
            ));
        }
        self.adopt_config(config);
        Ok(())
    }

    fn adopt_config(&mut self, config: NodeConfig) {
        if config == self.config {
            return;
        }
        self.peers.learn(&config.members);
        self.config = config.clone();
        self.memory.change(|memory| memory.config = Some(config));
        self.memory.save();
    }

    /// By what the server says it has: an agent that was killed before it told the server of a new
    /// limit has left that to the next one.
    async fn tell_maxmemory(&mut self) {
        let limit = self.config.maxmemory;
        let has = self.server.maxmemory();
        if has.is_none_or(|has| has == limit) || self.server.state() != ServerState::Serving {
            return;
        }
        let Ok(hands) = self.server.hands().await else { return };
        if let Err(error) = hands.config_set("maxmemory", &limit.bytes().to_string()).await {
            tracing::info!(%error, "maxmemory not set, tried again");
        }
    }

    /// What is due once a second: a newer `agent.json`, the log's size, unwritten memory.
    pub(crate) async fn housekeeping(&mut self) {
        let path = self.dir.boot();
        let changed = changed_at(&path);
        if changed.is_some() && changed != self.boot_changed_at {
            match read_json::<AgentBoot>(&path) {
                Ok(boot) => {
                    self.boot_changed_at = changed;
                    if boot.config.generation > self.config.generation {
                        let result = self.configure(boot.config.clone());
                        if let Err(error) = result {
                            tracing::warn!(%error, "agent.json not adopted");
                        }
                    }
                    self.boot = boot;
                    if let Ok(secrets) = read_json::<NodeSecrets>(&self.dir.secrets()) {
                        self.secrets.adopt(secrets.users());
                    }
                }
                Err(error) => tracing::warn!(%error, "agent.json not read"),
            }
        }
        self.tell_maxmemory().await;
        self.tell_users().await;
        parameters::apply_online(self).await;
        announce::announce_online(self).await;
        self.server.supervisor.trim_log();
        if self.in_pod {
            proc::reap_orphans(self.server.supervisor.pid());
        }
        if self.server.state() == ServerState::Serving {
            self.note_files();
        } else {
            self.look_at_given_up_files();
        }
        self.memory.save();
    }

    /// A server that serves has made its append-only file, so from now on there is one to miss.
    fn note_files(&mut self) {
        self.serves();
        self.keep_cluster_file();
        self.drop_old_unreadable();
        let seen = self.memory.get().files_seen || self.memory.get().rebuilding;
        if !seen && self.volume.missing_data().is_none() {
            self.memory.change(|memory| memory.files_seen = true);
        }
    }

    /// Publishes the status; its version rises when something in it matters to a planner.
    /// `concern` is what the mode has to say, unless the server's own problem is worse.
    pub(crate) fn publish(&mut self, lease: Option<LeaseSummary>, concern: Option<Problem>) {
        if self.server.state() == ServerState::Serving {
            self.start_problem = None;
        }
        let old = Arc::clone(&self.status.borrow());
        // The very first status waits for the first answer of an adopted server.
        let same = old.server.pid == self.server.supervisor.pid();
        let known = old.version == 0 || old.server.state == ServerState::Serving;
        if same && known && self.server.is_briefly_silent() {
            return;
        }
        let mut status = AgentStatus {
            node: self.config.node.clone(),
            instance: self.config.instance.clone(),
            agent_run: self.agent_run.clone(),
            version: old.version,
            generation: self.config.generation,
            at: clock::wall(),
            server: self.server.status(),
            volume: self.volume_state(),
            replication: self.server.replication().cloned(),
            cluster: self.server.cluster().cloned(),
            behind: self.memory.get().behind,
            slot_move: self.mover.as_ref().map(Mover::status),
            left_upstream: self.left_upstream.clone(),
            lease,
            problem: self.problem(concern),
            events: self.memory.get().events.iter().cloned().collect(),
        };
        status.server.users_revision = self.users_revision();
        status.server.parameters = parameters::state(self);
        if old.version == 0 || essence(&old) != essence(&status) {
            status.version += 1;
        }
        if !self.metrics.is_closed() {
            let text = metrics::render(&self.config, &status, self.server.info());
            self.metrics.send_replace(Arc::new(text));
        }
        self.status.send_replace(Arc::new(status));
    }

    fn problem(&self, concern: Option<Problem>) -> Option<Problem> {
        if self.server.is_stranger() {
            let message = format!("a stranger answers at {}", self.config.address);
            return Some(problem(ProblemCode::PortTaken, message));
        }
        if let Some(start) = &self.start_problem {
            return Some(start.clone());
        }
        if self.memory.get().rebuilding && self.server.state() != ServerState::Serving {
            let message = match (&self.memory.get().unusable, self.foreign_volume()) {
                (_, Some(message)) => message,
                (Some(unusable), None) => self.unusable_data(&unusable.words),
                (None, None) if self.config.members.len() < 2 => {
                    "the data are gone; put the volume folder back, or delete the instance"
                        .to_owned()
                }
                (None, None) => "the data are gone; the node starts again when it can copy from \
                                 another one"
                    .to_owned(),
            };
            return Some(problem(ProblemCode::VolumeLost, message));
        }
        if concern.is_some() {
            return concern;
        }
        let aof_broken = self.server.info().is_some_and(|info| !info.persistence.aof_last_write_ok);
        if aof_broken {
            let message =
                "the server cannot write its append-only file and refuses writes".to_owned();
            return Some(problem(ProblemCode::DiskFull, message));
        }
        match self.memory.failure() {
            Some((text, true)) => Some(problem(ProblemCode::DiskFull, text.to_owned())),
            _ => None,
        }
    }
}

/// Takes the server of a former agent over, if one runs.
///
/// # Errors
/// When it cannot be found out whether one does.
fn adopt(server: &mut Server, memory: &mut Memory) -> std::io::Result<()> {
    if server.supervisor.adopt()? {
        server.began(true);
        let pid = server.supervisor.pid().unwrap_or_default();
        let message = format!("a new agent looks after the running server (process {pid})");
        memory.event(Severity::Info, "server-adopted", message);
    }
    Ok(())
}

pub(crate) fn problem(code: ProblemCode, message: String) -> Problem {
    Problem { code, message }
}

/// The status without what changes all the time and matters to nobody who plans.
fn essence(status: &AgentStatus) -> AgentStatus {
    let mut status = status.clone();
    status.version = 0;
    status.at = Timestamp(0);
    status.server.used_memory = None;
    status.server.connected_clients = None;
    if let Some(moving) = &mut status.slot_move {
        (moving.keys_moved, moving.bytes_moved) = (0, 0);
    }
    if let Some(view) = &mut status.replication {
        view.offset = 0;
        view.replicas.iter_mut().for_each(|replica| replica.offset = 0);
    }
    status
}

/// `None` when there is no such file.
pub(crate) fn changed_at(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|meta| meta.modified()).ok()
}

fn is_executable(path: &PathBuf) -> bool {
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// Names this life of the agent: nothing else on this machine starts in the same millisecond
/// with the same pid.
fn agent_run() -> String {
    format!("{:x}-{:x}", clock::wall().0, std::process::id())
}
