//! The node's server as its agent sees it: process and answers together, so that alive, hung and
//! dead are defined and not felt.

use std::time::Duration;

use larder_model::agent::{ClusterView, ReplicationView, ServerState, ServerStatus};
use larder_model::{Address, ByteSize, Millis, Secret, Timestamp};
use larder_node::{Connection, NodeError, ServerInfo};

use crate::clock;
use crate::proc::RunState;
use crate::process::{Exit, Supervisor};
use crate::render::SYSTEM_USER;
use crate::streams::Streams;

/// `lua-time-limit` (5 s, never rendered otherwise) and 5 s more: after that a server in a script
/// answers `BUSY`, so one that says nothing is hung.
const SILENT_IS_HUNG: Millis = Millis(10_000);
/// In an uninterruptible wait; shorter ones are normal during fsync.
const DISK_WAIT_IS_HUNG: Millis = Millis(5_000);
/// From the start of the process to its first answer; it listens before it loads.
const START_IS_HUNG: Millis = Millis(30_000);

/// A server that says nothing for no longer than this is not called busy for it: the machine may
/// be slow, or the server has just been adopted.
const BRIEFLY: Millis = Millis(2_500);

/// How long an order to the server may take.
const ORDER_DEADLINE: Duration = Duration::from_millis(700);

/// Whether a server in this state that has said nothing for `silent` hangs, by the rules of the
/// design; one that is slow or works on something long does not.
pub(crate) fn is_hung(state: RunState, silent: Millis) -> bool {
    match state {
        RunState::Stopped => true,
        RunState::Disk => silent >= DISK_WAIT_IS_HUNG,
        RunState::Normal => silent >= SILENT_IS_HUNG,
        RunState::Exited => false,
    }
}

/// What the last question to the server brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Ready,
    Loading,
    /// `BUSY`, or any other answer that is not the one asked for.
    Busy,
    Silent,
    /// Something else answers on the node's port.
    Stranger,
}

/// Process, connections and the newest sample.
pub(crate) struct Server {
    pub(crate) supervisor: Supervisor,
    address: Address,
    password: Secret,
    clustered: bool,
    /// Opened at the server's start and kept: a tenant that takes all connections takes none of
    /// these. One asks, one orders.
    eyes: Option<Connection>,
    hands: Option<Connection>,
    answer: Answer,
    /// When this process last answered (monotonic).
    answered_at: Option<Timestamp>,
    /// The newest answer of this process; kept while it is silent.
    info: Option<ServerInfo>,
    cluster: Option<ClusterView>,
    streams: Streams,
    /// A process of this node has run in this or a former life of the agent.
    pub(crate) has_run: bool,
    pub(crate) down_since: Option<Timestamp>,
    /// Since when (wall clock) the living process is busy or hangs.
    unanswering_since: Option<Timestamp>,
    pub(crate) last_exit: Option<Exit>,
    /// Until when writes are paused by this agent.
    paused_until: Option<Timestamp>,
}

impl Server {
    pub(crate) fn new(
        supervisor: Supervisor,
        address: Address,
        password: Secret,
        clustered: bool,
        has_run: bool,
    ) -> Self {
        Self {
            supervisor,
            address,
            password,
            clustered,
            eyes: None,
            hands: None,
            answer: Answer::Silent,
            answered_at: None,
            info: None,
            cluster: None,
            streams: Streams::default(),
            has_run,
            down_since: Some(clock::monotonic()),
            unanswering_since: None,
            last_exit: None,
            paused_until: None,
        }
    }

    /// A process was started or adopted: nothing is known of it yet.
    pub(crate) fn began(&mut self, adopted: bool) {
        self.forget();
        self.streams = Streams::of_process(adopted);
        self.has_run = true;
        self.down_since = None;
        if adopted {
            // It may be busy just now; it gets the time that any silent server gets.
            self.answered_at = Some(clock::monotonic());
        }
    }

    /// The process has ended.
    pub(crate) fn ended(&mut self, exit: Exit) {
        self.forget();
        self.down_since = Some(clock::monotonic());
        self.last_exit = Some(exit);
    }

    fn forget(&mut self) {
        self.eyes = None;
        self.hands = None;
        self.answer = Answer::Silent;
        self.answered_at = None;
        self.info = None;
        self.cluster = None;
        self.unanswering_since = None;
        self.paused_until = None;
    }

    /// Asks the server how it is, within `deadline`.
    pub(crate) async fn sample(&mut self, deadline: Duration) {
        let Some(state) = self.supervisor.run_state() else { return };
        // A stopped process cannot answer: do not spend the deadline on it.
        if matches!(state, RunState::Stopped | RunState::Exited) {
            self.answer = Answer::Silent;
        } else {
            self.answer = match tokio::time::timeout(deadline, self.ask(deadline)).await {
                Ok(answer) => answer,
                Err(_) => {
                    self.eyes = None;
                    Answer::Silent
                }
            };
        }
        let now = clock::monotonic();
        if matches!(self.answer, Answer::Ready | Answer::Loading | Answer::Busy) {
            self.answered_at = Some(now);
        }
        let state = self.state();
        if state == ServerState::Hung {
            self.down_since.get_or_insert(now);
        } else {
            self.down_since = None;
        }
        if matches!(state, ServerState::Busy | ServerState::Hung) {
            self.unanswering_since.get_or_insert_with(clock::wall);
        } else {
            self.unanswering_since = None;
        }
    }

    async fn ask(&mut self, deadline: Duration) -> Answer {
        let known = self.eyes.is_some();
        let mut result = self.ask_or_fail(deadline).await;
        if known && matches!(result, Err(NodeError::Closed { .. } | NodeError::Io { .. })) {
            // A tenant may close every connection (`CLIENT KILL`): that says nothing of the server.
            self.eyes = None;
            result = self.ask_or_fail(deadline).await;
        }
        match result {
            Ok(answer) => answer,
            Err(error) => {
                self.eyes = None;
                let verified = self.info.is_some();
                match error {
                    NodeError::Loading { .. } => Answer::Loading,
                    NodeError::NotAllowed { .. } if !verified => Answer::Stranger,
                    error if error.is_alive() => Answer::Busy,
                    error => {
                        tracing::debug!(%error, "no answer from the server");
                        Answer::Silent
                    }
                }
            }
        }
    }

    async fn ask_or_fail(&mut self, deadline: Duration) -> Result<Answer, NodeError> {
        if self.eyes.as_ref().is_none_or(Connection::is_closed) {
            self.eyes = Some(self.connect(deadline).await?);
        }
        let Some(eyes) = &mut self.eyes else { return Ok(Answer::Silent) };
        eyes.set_timeout(deadline);
        let mut info = eyes.info().await?;
        if Some(info.process_id) != self.supervisor.pid() {
            self.eyes = None;
            return Ok(Answer::Stranger);
        }
        let loading = info.loading.is_some();
        self.streams.judge(&mut info, clock::monotonic());
        self.info = Some(info);
        if self.clustered && !loading {
            self.cluster = Some(eyes.cluster_view().await?);
        }
        // The second connection is opened now, while there is surely room for it.
        if self.hands.as_ref().is_none_or(Connection::is_closed) {
            self.hands = self.connect(deadline).await.ok();
        }
        Ok(if loading { Answer::Loading } else { Answer::Ready })
    }

    async fn connect(&self, deadline: Duration) -> Result<Connection, NodeError> {
        Connection::login(&self.address, SYSTEM_USER, &self.password, deadline).await
    }

    /// The connection for orders. Each order takes 700 ms at most.
    ///
    /// # Errors
    /// When the server lets nobody in.
    pub(crate) async fn hands(&mut self) -> Result<&mut Connection, NodeError> {
        let connection = match self.hands.take().filter(|connection| !connection.is_closed()) {
            Some(connection) => connection,
            None => self.connect(ORDER_DEADLINE).await?,
        };
        let hands = self.hands.insert(connection);
        hands.set_timeout(ORDER_DEADLINE);
        Ok(hands)
    }

    /// Alive, hung or dead, by the rules of the design.
    pub(crate) fn state(&self) -> ServerState {
        let run_state = match self.supervisor.run_state() {
            None if self.has_run => return ServerState::Dead,
            None => return ServerState::Absent,
            Some(RunState::Exited) => return ServerState::Dead,
            Some(RunState::Stopped) => return ServerState::Hung,
            Some(state) => state,
        };
        match self.answer {
            Answer::Ready => ServerState::Serving,
            Answer::Loading => ServerState::Loading,
            Answer::Busy => ServerState::Busy,
            Answer::Stranger => ServerState::Starting,
            Answer::Silent => self.silent_state(run_state),
        }
    }

    fn silent_state(&self, run_state: RunState) -> ServerState {
        let now = clock::monotonic();
        let Some(answered_at) = self.answered_at else {
            let since = self.supervisor.running().map_or(now, |running| running.since);
            return if now.since(since) >= START_IS_HUNG {
                ServerState::Hung
            } else {
                ServerState::Starting
            };
        };
        let hung = is_hung(run_state, now.since(answered_at));
        if hung { ServerState::Hung } else { ServerState::Busy }
    }

    /// The server has not answered just now, and not for long: what was known of it before is as
    /// likely to hold.
    pub(crate) fn is_briefly_silent(&self) -> bool {
        let recently = |at| clock::monotonic().since(at) < BRIEFLY;
        self.answer == Answer::Silent
            && self.state() == ServerState::Busy
            && self.answered_at.is_some_and(recently)
    }

    /// Where it is reached from here.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// What its system user logs in with, at every server of the instance.
    pub(crate) fn password(&self) -> &Secret {
        &self.password
    }

    /// Something that is not this node's server answers on its port.
    pub(crate) fn is_stranger(&self) -> bool {
        self.answer == Answer::Stranger
    }

    /// The newest answer of this process, however old.
    pub(crate) fn info(&self) -> Option<&ServerInfo> {
        self.info.as_ref()
    }

    /// Whether what the server has in memory is on its disk too. After a full sync it begins a new
    /// append-only file, which counts for nothing before the rewrite has ended.
    pub(crate) fn is_copy_on_disk(&self) -> bool {
        self.answer == Answer::Ready
            && self.info.as_ref().is_some_and(|info| {
                let disk = &info.persistence;
                disk.aof_enabled
                    && !disk.aof_rewrite_in_progress
                    && !disk.aof_rewrite_scheduled
                    && disk.aof_last_rewrite_ok
            })
    }

    pub(crate) fn run_id(&self) -> Option<String> {
        self.info.as_ref().map(|info| info.run_id.clone())
    }

    /// Replication as of the last sample; `None` when that was not answered.
    pub(crate) fn replication(&self) -> Option<&ReplicationView> {
        match self.answer {
            Answer::Ready | Answer::Loading => self.info.as_ref().map(|info| &info.replication),
            Answer::Busy | Answer::Silent | Answer::Stranger => None,
        }
    }

    /// A replica has come, and the server is not known to stream to it yet.
    pub(crate) fn awaits_replica(&self) -> bool {
        self.streams.awaited(clock::monotonic())
    }

    /// A primary that nobody copies from: what is written now is on this server alone.
    pub(crate) fn is_alone(&self) -> bool {
        let nobody = |view: &ReplicationView| {
            view.role == larder_model::agent::Role::Primary && view.replicas.is_empty()
        };
        self.replication().is_some_and(nobody)
    }

    /// The cluster as of the last sample; `None` when that was not answered.
    pub(crate) fn cluster(&self) -> Option<&ClusterView> {
        if self.answer == Answer::Ready { self.cluster.as_ref() } else { None }
    }

    /// Writes are paused for this long from now; zero ends the pause.
    pub(crate) fn paused(&mut self, for_: Millis) {
        self.paused_until = (for_.0 > 0).then(|| clock::monotonic() + for_);
    }

    pub(crate) fn writes_paused(&self) -> bool {
        self.paused_until.is_some_and(|until| until > clock::monotonic())
    }

    /// As of the last look at the server.
    pub(crate) fn maxmemory(&self) -> Option<ByteSize> {
        self.info.as_ref().map(|info| info.maxmemory)
    }

    pub(crate) fn status(&self) -> ServerStatus {
        let info = self.info.as_ref();
        ServerStatus {
            state: self.state(),
            unanswering_since: self.unanswering_since,
            pid: self.supervisor.pid(),
            run_id: self.run_id(),
            engine_version: info.map(|info| info.engine_version.clone()),
            started_at: self.supervisor.running().map(|running| running.started_wall),
            used_memory: info.map(|info| info.used_memory),
            maxmemory: info.map(|info| info.maxmemory),
            users_revision: None,
            parameters: None,
            connected_clients: info.map(|info| info.connected_clients),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_silent_for_a_while_hangs_only_when_it_is_stopped() {
        let moment = Millis(1_500);
        assert!(is_hung(RunState::Stopped, Millis(0)));
        assert!(!is_hung(RunState::Normal, moment), "emptying a large data set takes longer");
        assert!(!is_hung(RunState::Disk, moment), "normal during fsync");
        assert!(is_hung(RunState::Disk, DISK_WAIT_IS_HUNG));
        assert!(!is_hung(RunState::Normal, DISK_WAIT_IS_HUNG));
        assert!(is_hung(RunState::Normal, SILENT_IS_HUNG));
    }
}
