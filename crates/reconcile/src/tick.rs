//! One round for one instance: load, observe, plan, record, execute.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use larder_cluster::Agents;
use larder_model::plan::{OperationOutcome, OperationReport, Plan, Report, Step};
use larder_model::{
    Condition, Desired, Event, EventKind, IdSource, InstanceId, InstanceState, NodeId, Operation,
    OperationState, Severity, Timestamp,
};
use larder_planner::ended_by_refusal;

use crate::book::{Book, BookError};
use crate::clusters::Clusters;
use crate::execute::{Executor, Outcome};
use crate::hindrances::Hindrances;
use crate::made_again::MadeAgain;
use crate::observe::{Seen, correct_places, observe};
use crate::pace::Pace;
use crate::statuses::Statuses;
use crate::view::{Figures, digest, observation};

/// Wall-clock time, in milliseconds since the Unix epoch.
pub trait Clock: Send + Sync {
    fn now(&self) -> Timestamp;
}

/// The machine's own clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}

/// How a round ended, for who decides when the next one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TickOutcome {
    /// The instance is no more.
    Gone,
    /// Nothing to do, nothing waited for.
    Settled,
    /// Something new was done: look again at once.
    Acted,
    /// The same was done as the round before: its effect is not seen yet.
    Repeated,
    /// Something is waited for.
    Waiting,
    /// Something failed that may work later.
    Failed,
    /// A newer controller is at work: stop.
    Superseded,
}

/// What is remembered between two rounds only to write less; losing it costs nothing.
#[derive(Default)]
struct Memory {
    /// What the record says; `None`: not read yet by this process.
    told: Option<Told>,
    last_written: Option<Written>,
    node_events: HashMap<NodeId, u64>,
    backend_seen_at: Option<Timestamp>,
    /// When which order was given.
    pace: Pace,
    /// What keeps nodes from coming to be.
    hindrances: Hindrances,
    made_again: MadeAgain,
}

/// What the record of an instance says of it: events tell what is different now.
#[derive(Default)]
struct Told {
    /// `None`: nothing was written yet.
    state: Option<InstanceState>,
    conditions: Vec<Condition>,
}

/// The observation that this process wrote last.
struct Written {
    at: Timestamp,
    digest: String,
    figures: Figures,
}

/// Runs rounds. One value serves all instances; rounds of one instance must not overlap.
pub struct Reconciler {
    pub(crate) book: Arc<dyn Book>,
    pub(crate) clusters: Arc<dyn Clusters>,
    agents: Arc<dyn Agents>,
    statuses: Arc<dyn Statuses>,
    clock: Arc<dyn Clock>,
    ids: Mutex<Box<dyn IdSource + Send>>,
    pub(crate) controller_epoch: u64,
    memory: Mutex<HashMap<InstanceId, Memory>>,
    /// Without a record at the last sweep, by container cluster.
    pub(crate) strays: Mutex<BTreeSet<(String, InstanceId)>>,
}

impl Reconciler {
    pub fn new(
        book: Arc<dyn Book>,
        clusters: Arc<dyn Clusters>,
        agents: Arc<dyn Agents>,
        statuses: Arc<dyn Statuses>,
        clock: Arc<dyn Clock>,
        ids: Box<dyn IdSource + Send>,
        controller_epoch: u64,
    ) -> Self {
        Self {
            book,
            clusters,
            agents,
            statuses,
            clock,
            ids: Mutex::new(ids),
            controller_epoch,
            memory: Mutex::default(),
            strays: Mutex::default(),
        }
    }

    /// One round. Safe to drop at any await: the next round starts from what is then seen.
    ///
    /// # Errors
    /// When the book cannot be read or written. Everything else is an outcome.
    pub async fn tick(&self, instance: &InstanceId) -> Result<TickOutcome, BookError> {
        let Some(mut desired) = self.book.desired(instance).await? else {
            self.statuses.retain(instance, &[]);
            self.clusters.forget(instance);
            self.with_memory(|all| all.remove(instance));
            return Ok(TickOutcome::Gone);
        };
        let now = self.clock.now();
        let unknown_since =
            self.memory_of(instance, |memory| *memory.backend_seen_at.get_or_insert(now));
        let cluster = self.clusters.get(&desired.spec.container_cluster);
        larder_planner::rules_of_cluster(
            &mut desired,
            cluster.spreads_strictly(),
            cluster.resizes_in_place(),
        );
        self.recall(&desired, now).await?;
        let mut seen = observe(&*cluster, &*self.statuses, &desired, now, unknown_since).await;
        correct_places(&mut desired, &seen.observed);
        let answered = seen.trouble.is_none();
        let again = self.memory_of(instance, |memory| {
            if answered {
                memory.backend_seen_at = Some(now);
                memory.hindrances.look(&mut seen.observed, &seen.hindrances, now);
                memory.made_again.look(&seen.observed)
            } else {
                memory.hindrances.remain(&mut seen.observed);
                None
            }
        });
        self.tell_made_again(&desired, again, now).await?;
        self.collect_node_events(instance, &seen).await?;

        let plan = self.plan(&desired, &seen, now);
        tracing::debug!(%instance, generation = plan.generation, "{plan}");
        if answered {
            self.memory_of(instance, |memory| memory.hindrances.planned(&plan.steps));
        }
        self.record(&desired, &seen, &plan, now).await?;
        let operation = desired.operation.as_ref().map(|operation| &operation.id);
        let due = self.memory_of(instance, |memory| memory.pace.due(&plan.steps, operation, now));
        if plan.steps.is_empty() {
            if ends_operation(&plan) {
                // Without the operation there may be something to do again.
                return Ok(TickOutcome::Acted);
            }
            return Ok(match (seen.trouble, plan.waits.is_empty()) {
                (Some(_), _) => TickOutcome::Failed,
                (None, true) => TickOutcome::Settled,
                (None, false) => TickOutcome::Waiting,
            });
        }
        if due.steps.is_empty() {
            // Given a moment ago; what comes of it is not seen yet. What was refused has to wait.
            let outcome =
                if due.only_refused { TickOutcome::Failed } else { TickOutcome::Repeated };
            return Ok(outcome);
        }
        let executor = Executor {
            book: &*self.book,
            cluster: &*cluster,
            agents: &*self.agents,
            desired: &desired,
            controller_epoch: self.controller_epoch,
            now,
        };
        let outcomes = executor.execute(&due.steps).await;
        self.judge(&desired, &plan.report, outcomes, due.repeated, now).await
    }

    /// In the first round of this process: what the former one has told.
    async fn recall(&self, desired: &Desired, now: Timestamp) -> Result<(), BookError> {
        let instance = &desired.spec.id;
        if self.memory_of(instance, |memory| memory.told.is_some()) {
            return Ok(());
        }
        let last = self.book.last_observation(instance).await?;
        let told = last.map(|last| Told {
            state: Some(last.state),
            conditions: last.conditions.into_iter().map(|dated| dated.condition).collect(),
        });
        let told = told.unwrap_or_default();
        self.memory_of(instance, |memory| {
            let nodes = desired.nodes.iter().map(|record| &record.id);
            memory.hindrances.resume(&told.conditions, nodes, now);
            memory.told = Some(told);
        });
        Ok(())
    }

    fn plan(&self, desired: &Desired, seen: &Seen, now: Timestamp) -> Plan {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        larder_planner::plan(desired, &seen.observed, now, &mut **ids)
    }

    /// Writes down what was seen and planned: always when it matters, now and then when idle.
    async fn record(
        &self,
        desired: &Desired,
        seen: &Seen,
        plan: &Plan,
        now: Timestamp,
    ) -> Result<(), BookError> {
        let instance = &desired.spec.id;
        let report = &plan.report;
        // Who waits for the operation looks at the instance as soon as it has ended: what is
        // written with its end is how the instance stands without it.
        let plan_after = ends_operation(plan).then(|| {
            let after = Desired { operation: None, ..desired.clone() };
            self.plan(&after, seen, now)
        });
        let plan = plan_after.as_ref().unwrap_or(plan);
        let view = observation(desired, &seen.observed, plan, now);
        let digest = digest(&view);
        let figures = Figures::of(&view);
        let (due, events) = self.memory_of(instance, |memory| {
            let told = memory.told.get_or_insert_default();
            let change = (told.state)
                .filter(|before| *before != plan.report.state)
                .map(|before| state_change(desired, before, plan, now));
            let mut events: Vec<Event> = change.into_iter().collect();
            events.extend(condition_changes(
                desired,
                &told.conditions,
                &plan.report.conditions,
                now,
            ));
            let due = match &memory.last_written {
                Some(last) => {
                    told.conditions != plan.report.conditions
                        || last.digest != digest
                        || now.since(last.at) >= figures.keep(&last.figures)
                }
                None => true,
            };
            (due, events)
        });
        if due || !events.is_empty() {
            // With its event or not at all: a kill in between neither loses nor doubles it.
            self.book.observation_set(instance, &view, &events).await?;
            let told =
                Told { state: Some(plan.report.state), conditions: plan.report.conditions.clone() };
            self.memory_of(instance, |memory| {
                memory.told = Some(told);
                memory.last_written = Some(Written { at: now, digest, figures });
            });
        }
        if let (Some(operation), Some(progress)) = (&desired.operation, &report.operation) {
            self.report_operation(operation, progress).await?;
        }
        Ok(())
    }

    /// Writes down how far the operation has come, when that is news.
    async fn report_operation(
        &self,
        known: &Operation,
        report: &OperationReport,
    ) -> Result<(), BookError> {
        let (state, error) = match &report.outcome {
            OperationOutcome::Running => (OperationState::Running, None),
            OperationOutcome::Waiting => (OperationState::Waiting, None),
            OperationOutcome::Succeeded => (OperationState::Succeeded, None),
            OperationOutcome::Failed(refusal) => (OperationState::Failed, Some(refusal)),
        };
        let unchanged = known.state == state
            && known.error.as_ref() == error
            && same_steps(known, &report.steps);
        if unchanged {
            return Ok(());
        }
        self.book.operation_report(&known.id, &report.steps, state, error).await
    }

    /// Looks at how the steps went. Some refusals end the operation; anything else is tried again.
    async fn judge(
        &self,
        desired: &Desired,
        report: &Report,
        outcomes: Vec<Outcome<'_>>,
        repeated: bool,
        now: Timestamp,
    ) -> Result<TickOutcome, BookError> {
        let instance = &desired.spec.id;
        let mut result = if repeated { TickOutcome::Repeated } else { TickOutcome::Acted };
        let taken = outcomes.iter().filter(|outcome| outcome.result.is_ok());
        let again = self.memory_of(instance, |memory| {
            memory.made_again.taken(taken.map(|outcome| &outcome.step.step))
        });
        self.tell_made_again(desired, again, now).await?;
        for Outcome { step, result: outcome } in outcomes {
            let Err(error) = outcome else {
                tracing::info!(
                    %instance, generation = step.generation, step = %step.step,
                    reason = %step.reason, "step taken"
                );
                if step.step == Step::PurgeInstance {
                    self.statuses.retain(instance, &[]);
                    self.clusters.forget(instance);
                    self.with_memory(|all| all.remove(instance));
                    return Ok(TickOutcome::Gone);
                }
                self.memory_of(instance, |memory| {
                    memory.pace.taken(&step.step, now);
                    memory.hindrances.taken(&step.step);
                });
                continue;
            };
            result = TickOutcome::Failed;
            if let Some(seen) = error.stale() {
                if seen.controller_epoch > self.controller_epoch {
                    tracing::error!(%instance, %error, "a newer controller is at work");
                    return Ok(TickOutcome::Superseded);
                }
                // Our own words of an older generation: the next plan has the newer one.
                tracing::warn!(%instance, step = %step.step, %error, "step is out of date");
                continue;
            }
            tracing::info!(%instance, step = %step.step, %error, "step not taken");
            self.memory_of(instance, |memory| {
                memory.hindrances.refused(&step.step, &error);
                if error.is_silence_of_cluster() {
                    memory.made_again.unanswered(&step.step);
                }
            });
            let Some(refusal) = error.refusal() else { continue };
            let text = format!("{}: {refusal}", step.step);
            let from_cluster = error.is_from_cluster();
            let tell = self.memory_of(instance, |memory| {
                memory.pace.refused(&step.step, &text, !from_cluster, now)
            });
            if tell {
                let told = event(desired, now, Severity::Warning, "step-refused", text);
                self.book.events_append(&[told]).await?;
            }
            if let (Some(operation), Some(progress)) = (&desired.operation, &report.operation)
                && let Some(ended) =
                    ended_by_refusal(desired, progress, &step.step, refusal, from_cluster)
            {
                self.report_operation(operation, &ended).await?;
                return Ok(TickOutcome::Acted);
            }
        }
        Ok(result)
    }

    async fn tell_made_again(
        &self,
        desired: &Desired,
        again: Option<String>,
        now: Timestamp,
    ) -> Result<(), BookError> {
        let Some(text) = again else { return Ok(()) };
        let told = event(desired, now, Severity::Warning, "made-again", text);
        self.book.events_append(&[told]).await
    }

    async fn collect_node_events(
        &self,
        instance: &InstanceId,
        seen: &Seen,
    ) -> Result<(), BookError> {
        for (node, observed) in &seen.observed.nodes {
            let Some(status) = observed.agent.known() else { continue };
            let Some(newest) = status.events.last().map(|event| event.seq) else { continue };
            let known = self.memory_of(instance, |memory| memory.node_events.get(node).copied());
            if known == Some(newest) {
                continue;
            }
            let first_new = known.unwrap_or(0);
            let new: Vec<_> = status
                .events
                .iter()
                .filter(|e| known.is_none() || e.seq > first_new)
                .cloned()
                .collect();
            self.book.events_from_node(instance, node, &new).await?;
            self.memory_of(instance, |memory| memory.node_events.insert(node.clone(), newest));
        }
        Ok(())
    }

    fn memory_of<T>(&self, instance: &InstanceId, use_it: impl FnOnce(&mut Memory) -> T) -> T {
        self.with_memory(|all| use_it(all.entry(instance.clone()).or_default()))
    }

    fn with_memory<T>(&self, use_it: impl FnOnce(&mut HashMap<InstanceId, Memory>) -> T) -> T {
        use_it(&mut self.memory.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

fn state_change(desired: &Desired, before: InstanceState, plan: &Plan, now: Timestamp) -> Event {
    let state = plan.report.state;
    let severity = match state {
        InstanceState::Unavailable | InstanceState::Failed => Severity::Critical,
        InstanceState::Degraded | InstanceState::UpdateFailed => Severity::Warning,
        InstanceState::Creating
        | InstanceState::Running
        | InstanceState::Updating
        | InstanceState::Scaling
        | InstanceState::Deleting => Severity::Info,
    };
    let ready = plan.report.conditions.iter().find(|c| c.kind == "ready");
    let reason = ready.filter(|c| !c.status).map(|c| format!(": {}", c.message));
    let message = format!("{before} -> {state}{}", reason.unwrap_or_default());
    event(desired, now, severity, "state-changed", message)
}

/// Conditions that come and go beside the state: also while an operation holds the instance, which
/// has no change of state to tell of them. What a condition is called, and what its end is.
const TOLD: [(&str, &str); 3] = [
    ("volume-leaving", "volume-left"),
    ("node-blocked", "node-unblocked"),
    ("container-cluster-unreachable", "container-cluster-reachable"),
];

/// Events of conditions that have come, have another reason, or have gone.
fn condition_changes(
    desired: &Desired,
    before: &[Condition],
    after: &[Condition],
    now: Timestamp,
) -> Vec<Event> {
    let find = |all: &[Condition], kind| all.iter().find(|c| c.kind == kind).cloned();
    let of_one = |(kind, end): (&'static str, &'static str)| {
        let (before, after) = (find(before, kind), find(after, kind));
        match (before, after) {
            (Some(before), Some(after)) if before.reason == after.reason => None,
            (_, Some(after)) => Some(event(desired, now, Severity::Warning, kind, after.message)),
            (Some(_), None) => {
                Some(event(desired, now, Severity::Info, end, format!("{kind} is over")))
            }
            (None, None) => None,
        }
    };
    TOLD.into_iter().filter_map(of_one).collect()
}

fn event(
    desired: &Desired,
    at: Timestamp,
    severity: Severity,
    reason: &str,
    message: String,
) -> Event {
    Event {
        at,
        kind: EventKind::Control,
        severity,
        instance: Some(desired.spec.id.clone()),
        node: None,
        reason: reason.to_owned(),
        message,
    }
}

/// The operation that holds the instance has got there, or never will.
fn ends_operation(plan: &Plan) -> bool {
    plan.report.operation.as_ref().is_some_and(|operation| match operation.outcome {
        OperationOutcome::Succeeded | OperationOutcome::Failed(_) => true,
        OperationOutcome::Running | OperationOutcome::Waiting => false,
    })
}

/// Equal but for the times, which only the book fills in.
fn same_steps(operation: &Operation, steps: &[larder_model::OperationStep]) -> bool {
    operation.steps.len() == steps.len()
        && operation.steps.iter().zip(steps).all(|(a, b)| {
            a.name == b.name
                && a.state == b.state
                && a.progress == b.progress
                && a.message == b.message
        })
}
