//! Decides when which instance gets its next round.
//!
//! An activation carries nothing but "look again". A full scan repairs what an activation missed.
//! Rounds of one instance never overlap; a slow instance delays no other.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use larder_model::InstanceId;
use tokio::sync::mpsc;
use tokio::task::{self, JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::tick::{Reconciler, TickOutcome};

/// Every instance is looked at this often even when nothing is heard of it.
const SCAN: Duration = Duration::from_secs(10);
/// What nobody has a record of is looked for this often.
const SWEEP: Duration = Duration::from_secs(60);
/// Rounds at the same time. Rounds mostly wait for agents; the limit is for the machine's sake.
const CONCURRENT: usize = 16;
/// First and longest pause before looking again at what is waited for; activations come sooner.
const WAIT: (Duration, Duration) = (Duration::from_millis(25), Duration::from_secs(2));
/// First and longest pause after a failure.
const FAILURE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Activations that have not been picked up yet. A full queue loses nothing: the scan follows.
const QUEUE: usize = 4096;

/// Lets others say "look again".
#[derive(Clone)]
pub struct DriverHandle {
    queue: mpsc::Sender<InstanceId>,
}

impl DriverHandle {
    /// Never blocks.
    pub fn activate(&self, instance: &InstanceId) {
        // A full queue is not an error: the next scan looks at every instance anyway.
        let _ = self.queue.try_send(instance.clone());
    }
}

/// What is known of the rounds of one instance.
struct Slot {
    running: bool,
    /// Activated while a round was running.
    again: bool,
    due: Instant,
    /// Rounds in a row that ended without news.
    idle_rounds: u32,
}

/// Runs rounds until it is told to stop.
pub struct Driver {
    reconciler: Arc<Reconciler>,
    inbox: mpsc::Receiver<InstanceId>,
    slots: HashMap<InstanceId, Slot>,
    rounds: JoinSet<TickOutcome>,
    /// Whose round each task is.
    of_round: HashMap<task::Id, InstanceId>,
    next_scan: Instant,
    next_sweep: Instant,
    /// Beside the rounds, so that a slow container cluster holds up none of them.
    sweep: Option<JoinHandle<()>>,
}

/// Makes the queue first, so that watchers can activate before the driver exists.
pub fn channel() -> (DriverHandle, mpsc::Receiver<InstanceId>) {
    let (queue, inbox) = mpsc::channel(QUEUE);
    (DriverHandle { queue }, inbox)
}

impl Driver {
    pub fn new(reconciler: Arc<Reconciler>, inbox: mpsc::Receiver<InstanceId>) -> Self {
        let now = Instant::now();
        Self {
            reconciler,
            inbox,
            slots: HashMap::new(),
            rounds: JoinSet::new(),
            of_round: HashMap::new(),
            next_scan: now,
            next_sweep: now,
            sweep: None,
        }
    }

    /// Drives all instances until `stop`, then waits for the running rounds. Answers whether a
    /// newer controller has taken over, in which case this process must not go on.
    pub async fn run(mut self, stop: CancellationToken) -> bool {
        let mut superseded = false;
        loop {
            if Instant::now() >= self.next_scan {
                self.scan().await;
            }
            self.start_due_rounds();
            let wake = self.next_wake();
            tokio::select! {
                () = stop.cancelled() => break,
                Some(instance) = self.inbox.recv() => self.activated(instance),
                Some(finished) = self.rounds.join_next_with_id() => {
                    if self.finished(finished) {
                        superseded = true;
                        break;
                    }
                }
                () = tokio::time::sleep_until(wake) => {}
            }
        }
        if let Some(sweep) = &self.sweep {
            // What it has begun the container cluster brings to its end; the next start goes on.
            sweep.abort();
        }
        while self.rounds.join_next().await.is_some() {}
        superseded
    }

    async fn scan(&mut self) {
        self.next_scan = Instant::now() + SCAN;
        match self.reconciler.book.instances().await {
            Ok(instances) => {
                let now = Instant::now();
                for instance in instances {
                    let slot = self.slots.entry(instance).or_insert_with(|| Slot::new(now));
                    slot.due = slot.due.min(now);
                }
            }
            Err(error) => tracing::warn!(%error, "instances cannot be listed"),
        }
        let sweeping = self.sweep.as_ref().is_some_and(|sweep| !sweep.is_finished());
        if Instant::now() >= self.next_sweep && !sweeping {
            self.next_sweep = Instant::now() + SWEEP;
            let reconciler = self.reconciler.clone();
            self.sweep = Some(tokio::spawn(async move {
                if let Err(error) = crate::strays::sweep_strays(&reconciler).await {
                    tracing::warn!(%error, "strays cannot be swept");
                }
            }));
        }
    }

    fn start_due_rounds(&mut self) {
        let room = CONCURRENT.saturating_sub(self.rounds.len());
        for instance in next_due(&self.slots, Instant::now(), room) {
            let Some(slot) = self.slots.get_mut(&instance) else { continue };
            slot.running = true;
            slot.again = false;
            let (reconciler, of) = (self.reconciler.clone(), instance.clone());
            let round = self.rounds.spawn(async move {
                match reconciler.tick(&instance).await {
                    Ok(outcome) => outcome,
                    Err(error) => {
                        tracing::warn!(%instance, %error, "round failed");
                        TickOutcome::Failed
                    }
                }
            });
            self.of_round.insert(round.id(), of);
        }
    }

    fn next_wake(&self) -> Instant {
        if self.rounds.len() >= CONCURRENT {
            return self.next_scan;
        }
        let due = self.slots.values().filter(|slot| !slot.running).map(|slot| slot.due).min();
        due.map_or(self.next_scan, |due| due.min(self.next_scan))
    }

    fn activated(&mut self, instance: InstanceId) {
        let now = Instant::now();
        let slot = self.slots.entry(instance).or_insert_with(|| Slot::new(now));
        slot.idle_rounds = 0;
        if slot.running {
            slot.again = true;
        } else {
            slot.due = now;
        }
    }

    /// Answers whether a newer controller has taken over.
    fn finished(&mut self, finished: Result<(task::Id, TickOutcome), task::JoinError>) -> bool {
        let (round, outcome) = match finished {
            Ok(finished) => finished,
            Err(error) => {
                // A round that panicked is a bug; the next one may not meet it.
                tracing::error!(%error, "round broke off");
                (error.id(), TickOutcome::Failed)
            }
        };
        let Some(instance) = self.of_round.remove(&round) else { return false };
        let now = Instant::now();
        let Some(slot) = self.slots.get_mut(&instance) else { return false };
        slot.running = false;
        let pause = match outcome {
            TickOutcome::Superseded => return true,
            TickOutcome::Gone => {
                if !slot.again {
                    self.slots.remove(&instance);
                }
                return false;
            }
            TickOutcome::Settled => SCAN,
            TickOutcome::Acted => {
                slot.idle_rounds = 0;
                Duration::ZERO
            }
            TickOutcome::Waiting | TickOutcome::Repeated => back_off(WAIT, slot.idle_rounds),
            TickOutcome::Failed => back_off(FAILURE, slot.idle_rounds),
        };
        slot.idle_rounds = slot.idle_rounds.saturating_add(1);
        slot.due = if slot.again { now } else { now + pause };
        false
    }
}

impl Slot {
    fn new(due: Instant) -> Self {
        Self { running: false, again: false, due, idle_rounds: 0 }
    }
}

/// The instances whose turn it is, at most `room`: those first that have waited longest, so that
/// busy ones do not keep others from their turn.
fn next_due(slots: &HashMap<InstanceId, Slot>, now: Instant, room: usize) -> Vec<InstanceId> {
    let mut due: Vec<(Instant, &InstanceId)> = slots
        .iter()
        .filter(|(_, slot)| !slot.running && slot.due <= now)
        .map(|(instance, slot)| (slot.due, instance))
        .collect();
    due.sort();
    due.into_iter().take(room).map(|(_, instance)| instance.clone()).collect()
}

/// Grows by half with each idle round: close looks at first, when things move fastest.
fn back_off((first, longest): (Duration, Duration), rounds: u32) -> Duration {
    first.mul_f64(1.5_f64.powi(rounds.min(20) as i32)).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end_at_the_longest() {
        let pauses: Vec<_> = (0..30).map(|n| back_off(WAIT, n)).collect();
        assert_eq!(pauses[0], WAIT.0);
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(pauses[29], WAIT.1);
    }

    #[test]
    fn who_has_waited_longest_is_next_and_nobody_has_two_rounds() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let id = |n: u64| InstanceId::new(format!("i-{n}")).unwrap();
        let mut slots: HashMap<_, _> = (0..40).map(|n| (id(n), Slot::new(at(40 - n)))).collect();
        assert_eq!(next_due(&slots, at(100), 2), [id(39), id(38)]);
        slots.entry(id(39)).and_modify(|slot| slot.running = true);
        assert_eq!(next_due(&slots, at(100), 1), [id(38)]);
        assert_eq!(next_due(&slots, at(2), 9), [id(38)]);
        assert_eq!(next_due(&slots, at(100), 0), []);
    }
}
