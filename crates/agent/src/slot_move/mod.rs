//! Gives slots of this node's server to another one, while clients go on.
//!
//! Two mechanisms: where the engine moves slots by itself (Valkey 9) it is told to, and watched;
//! everywhere else keys go by `MIGRATE`, slot after slot. Nothing of a job is remembered over the
//! agent's death: which slots are where is the servers' own knowledge, and who plans tells again.

mod batches;
mod by_engine;
mod by_keys;
mod contest;
mod marks;
mod pace;
mod there;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use larder_model::agent::{ClusterPeer, ClusterView, Member, Role};
use larder_model::{Address, Secret, SlotJob, SlotMoveStatus, SlotSet};
use larder_node::{Connection, NodeError};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use crate::command::Command;
use crate::render::SYSTEM_USER;
use by_engine::ByEngine;
use by_keys::ByKeys;
pub(crate) use contest::Reign;

/// After something went wrong.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// A question that is no transfer of data.
const QUESTION: Duration = Duration::from_secs(5);
/// So often in a row the engine's own mechanism may fail before keys are moved one by one.
const ENGINE_FAILS: u32 = 3;

/// How the servers at both ends are reached.
#[derive(Clone, Debug)]
pub(crate) struct Ends {
    pub(crate) own: Address,
    pub(crate) password: Secret,
    /// All nodes of the instance: what a server is known by may be its address outside.
    pub(crate) members: Vec<Member>,
    /// The engine moves slots by itself.
    pub(crate) by_engine: bool,
    /// A primary's replicas have to acknowledge a mark of a slot before it is set.
    pub(crate) marks_are_acknowledged: bool,
    pub(crate) reign: Arc<Reign>,
}

/// A job under way, or its end. Dropped, it stops where it is.
#[derive(Debug)]
pub(crate) struct Mover {
    job: SlotJob,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    status: Mutex<SlotMoveStatus>,
    stop: Notify,
    stopping: std::sync::atomic::AtomicBool,
}

impl Shared {
    fn status(&self) -> MutexGuard<'_, SlotMoveStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Waits, but not longer than until it is told to stop.
    async fn rest(&self, time: Duration) {
        let stopped = self.stop.notified();
        if !self.is_stopping() {
            let _ = tokio::time::timeout(time, stopped).await;
        }
    }
}

impl Mover {
    /// Begins the job. `commands`: the loop is told when it has ended.
    pub(crate) fn begin(job: SlotJob, ends: Ends, commands: mpsc::Sender<Command>) -> Self {
        let status = SlotMoveStatus {
            to_id: job.to_id.clone(),
            slots: job.slots.clone(),
            slots_done: 0,
            keys_moved: 0,
            bytes_moved: 0,
            done: false,
            problem: None,
        };
        let shared = Arc::new(Shared {
            status: Mutex::new(status),
            stop: Notify::new(),
            stopping: std::sync::atomic::AtomicBool::new(false),
        });
        let task = tokio::spawn(run(job.clone(), ends, Arc::clone(&shared), commands));
        Self { job, shared, task }
    }

    pub(crate) fn status(&self) -> SlotMoveStatus {
        self.shared.status().clone()
    }

    pub(crate) fn is_done(&self) -> bool {
        self.shared.status().done
    }

    /// It is doing that already, or more of the same.
    pub(crate) fn covers(&self, job: &SlotJob) -> bool {
        !self.is_done()
            && !self.shared.is_stopping()
            && self.job.to_id == job.to_id
            && self.job.to == job.to
            && (self.job.limits, self.job.copies) == (job.limits, job.copies)
            && job.slots.difference(&self.job.slots).is_empty()
    }

    /// What is half-way arrives; nothing more is begun. Repeatable.
    pub(crate) fn stop(&self) {
        self.shared.stopping.store(true, std::sync::atomic::Ordering::Relaxed);
        self.shared.stop.notify_one();
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How a step of a job went.
enum Went {
    /// There is more to do.
    On,
    /// Nothing is left of it, or it is nobody's business here any more.
    Done,
}

/// Why a job does not get on just now, for people.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Server(#[from] NodeError),
    #[error("{0}")]
    Words(String),
    /// Of the engine's own mechanism, while both servers were well.
    #[error("{0}")]
    Engine(String),
}

async fn run(job: SlotJob, ends: Ends, shared: Arc<Shared>, commands: mpsc::Sender<Command>) {
    tracing::info!(slots = %job.slots, to = %job.to, "moving slots");
    let mut by_engine = ends.by_engine.then(|| ByEngine::new(&job, &ends));
    let mut by_keys = ByKeys::new(&job, &ends);
    let mut failed = 0;
    loop {
        if shared.is_stopping()
            && let Some(mover) = &mut by_engine
        {
            match mover.cancel().await {
                Ok(()) => break,
                Err(error) => {
                    let text = format!("what the server moves is not cancelled yet: {error}");
                    shared.status().problem = Some(text);
                    // It is asked to stop: that is no reason to hurry.
                    tokio::time::sleep(TRY_AGAIN).await;
                    continue;
                }
            }
        }
        let went = match &mut by_engine {
            Some(mover) => mover.step(&shared).await,
            None => by_keys.step(&shared).await,
        };
        match went {
            Ok(Went::Done) => break,
            Ok(Went::On) => {
                failed = 0;
                let mut status = shared.status();
                // Said again when it is met again.
                status.problem = by_keys.refused();
            }
            Err(trouble) => {
                let text = trouble.to_string();
                failed += u32::from(matches!(trouble, Trouble::Engine(_)));
                let news = shared.status().problem.as_ref() != Some(&text);
                if news {
                    tracing::info!(%trouble, "slots do not get on, tried again");
                }
                shared.status().problem = Some(text);
                if failed >= ENGINE_FAILS && by_engine.take().is_some() {
                    tracing::info!("the engine does not move the slots: key by key");
                }
                shared.rest(TRY_AGAIN).await;
            }
        }
        if shared.is_stopping() && by_engine.is_none() && !by_keys.is_half_way() {
            break;
        }
    }
    let (slots, keys) = {
        let mut status = shared.status();
        status.done = true;
        (status.slots_done, status.keys_moved)
    };
    tracing::info!(slots, keys, "slots moved");
    // The status is news now, not only at the loop's next turn.
    let _ = commands.send(Command::Look).await;
}

impl Ends {
    async fn connect(&self, address: &Address) -> Result<Connection, NodeError> {
        Connection::login(address, SYSTEM_USER, &self.password, QUESTION).await
    }

    /// Where the server is reached from here that another one knows as `peer`.
    pub(crate) fn address_of(&self, peer: &ClusterPeer) -> Address {
        let member = self.members.iter().find(|member| member.is_at(&peer.address));
        member.map_or_else(|| peer.address.clone(), |member| member.address.clone())
    }
}

/// What of the job's slots is still here; `None` when this server leads nothing any more.
fn left_of(job: &SlotJob, view: &ClusterView) -> Option<SlotSet> {
    let me = view.me().filter(|me| me.role == Role::Primary)?;
    Some(job.slots.intersection(&me.slots))
}

/// Whether the other end can take slots now.
fn check_target(job: &SlotJob, view: &ClusterView) -> Result<(), Trouble> {
    let target = view.nodes.iter().find(|peer| peer.id == job.to_id);
    let words = match target {
        None => format!("this server does not know the one at {} yet", job.to),
        Some(peer) if peer.role != Role::Primary => {
            format!("the server at {} is not a primary any more", job.to)
        }
        Some(peer) if peer.failed || !peer.linked => {
            format!("the server at {} cannot be reached", job.to)
        }
        Some(_) => return Ok(()),
    };
    Err(Trouble::Words(words))
}

/// Whether the other end has the copies that are wanted of what it gets.
async fn check_copies(job: &SlotJob, target: &mut Connection) -> Result<(), Trouble> {
    let wanted = job.copies;
    if wanted == 0 {
        return Ok(());
    }
    let online = target.online_replicas().await?;
    if online >= wanted {
        return Ok(());
    }
    let words = format!("the server at {} has {online} of {wanted} replicas in sync", job.to);
    Err(Trouble::Words(words))
}
