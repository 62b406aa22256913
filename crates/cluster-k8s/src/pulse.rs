//! Whether a binding is alive: a small question every few seconds, and what the cluster is.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ListParams;
use larder_model::Timestamp;
use tokio::time::Instant;

use crate::apply::Place;
use crate::connect::{Check, check_place};
use crate::error::{chain, with_next_move};
use crate::objects;
use crate::store::Changed;

/// The pause between two questions.
const EVERY: Duration = Duration::from_secs(5);
/// The pause after one that was not answered.
const AGAIN: Duration = Duration::from_secs(2);
/// For one answer.
const DEADLINE: Duration = Duration::from_secs(4);
/// A binding that has not answered for longer is unknown. Longer than [`EVERY`] and [`DEADLINE`].
const STALE: Duration = Duration::from_secs(10);
/// Rights, storage classes and the version are looked at again this often.
const CHECK_EVERY: Duration = Duration::from_secs(600);
/// A check that was not answered is tried again after this.
const CHECK_AGAIN: Duration = Duration::from_secs(15);

/// Whether a bound cluster answers, and what it said of itself last.
#[derive(Clone, Debug)]
pub struct Health {
    /// It answers, or did a moment ago.
    pub reachable: bool,
    /// Since when it has been so, as far as this process knows.
    pub since: Option<Timestamp>,
    /// Why it does not answer, when it does not.
    pub reason: Option<String>,
    /// What it is and what is missing there, as of the last check that was answered.
    pub check: Option<Check>,
}

struct State {
    answered: Option<Instant>,
    reachable: bool,
    since: Option<Timestamp>,
    reason: Option<String>,
    check: Option<Check>,
}

/// What is known of a binding's life.
pub(crate) struct Pulse {
    state: Mutex<State>,
    changed: Changed,
}

impl Pulse {
    pub(crate) fn new(changed: Changed) -> Self {
        let state =
            State { answered: None, reachable: false, since: None, reason: None, check: None };
        Self { state: Mutex::new(state), changed }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it was asked, and what came of it is known.
    pub(crate) fn is_known(&self) -> bool {
        let state = self.lock();
        state.reason.is_some() || state.check.is_some()
    }

    pub(crate) fn health(&self) -> Health {
        let state = self.lock();
        Health {
            reachable: state.reachable,
            since: state.since,
            reason: state.reason.clone().filter(|_| !state.reachable),
            check: state.check.clone(),
        }
    }

    /// # Errors
    /// Why the API server is silent.
    pub(crate) fn counts(&self) -> Result<(), String> {
        self.counts_at(Instant::now())
    }

    fn counts_at(&self, now: Instant) -> Result<(), String> {
        let state = self.lock();
        match state.answered {
            Some(at) if now - at <= STALE => Ok(()),
            _ => Err(state.reason.clone().unwrap_or_else(|| "not asked yet".to_owned())),
        }
    }

    fn answered(&self) {
        let mut state = self.lock();
        state.answered = Some(Instant::now());
        state.reason = None;
        if !state.reachable {
            state.reachable = true;
            state.since = Some(wall_clock());
        }
        drop(state);
        self.changed.tell();
    }

    fn silent(&self, reason: String, now: Instant) {
        let mut state = self.lock();
        let is_over = state.answered.is_none_or(|at| now - at > STALE);
        if is_over && (state.reachable || state.since.is_none()) {
            state.reachable = false;
            state.since = Some(wall_clock());
        }
        state.reason = Some(reason);
        drop(state);
        self.changed.tell();
    }

    /// Asks for ever; to be aborted. Reads from the store behind the API server and not from the
    /// API server's memory, so that one that is cut off from it is noticed.
    pub(crate) async fn beat(&self, place: &Place) {
        let api = place.api::<ConfigMap>();
        let params =
            ListParams::default().labels(&objects::selector(&place.options, None)).limit(1);
        loop {
            let answer = tokio::time::timeout(DEADLINE, Box::pin(api.list_metadata(&params))).await;
            let silence = match answer {
                Ok(Ok(_)) => None,
                Ok(Err(kube::Error::Api(status))) => {
                    let text =
                        format!("the API server answers {}: {}", status.code, status.message);
                    Some(with_next_move(status.code, text))
                }
                Ok(Err(error)) => Some(chain(&error)),
                Err(_) => Some(format!("no answer within {} s", DEADLINE.as_secs())),
            };
            match silence {
                None => {
                    self.answered();
                    tokio::time::sleep(EVERY).await;
                }
                Some(reason) => {
                    self.silent(reason, Instant::now());
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// Looks for ever at what the cluster is; to be aborted.
    pub(crate) async fn look(&self, place: &Place) {
        loop {
            // Dozens of questions are for one that answers.
            self.changed.until(CHECK_EVERY, || self.counts().is_ok()).await;
            let asked = self.lock().since;
            let pause = match Box::pin(check_place(place)).await {
                Ok(check) => {
                    self.lock().check = Some(check);
                    self.changed.tell();
                    CHECK_EVERY
                }
                Err(error) => {
                    tracing::debug!(cluster = place.options.name, %error, "cluster not checked");
                    CHECK_AGAIN
                }
            };
            // One that comes back may be another one.
            let came_back = || self.counts().is_ok() && self.lock().since != asked;
            self.changed.until(pause, came_back).await;
        }
    }
}

fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lost_answer_makes_nothing_unknown_and_silence_does() {
        let pulse = Pulse::new(Changed::new());
        assert!(pulse.counts().is_err(), "not asked yet");
        pulse.answered();
        pulse.silent("busy".to_owned(), Instant::now());
        assert!(pulse.counts().is_ok());
        assert!(pulse.health().reachable && pulse.health().reason.is_none());
        let later = Instant::now() + STALE + Duration::from_secs(1);
        pulse.silent("no answer".to_owned(), later);
        assert_eq!(pulse.counts_at(later), Err("no answer".to_owned()));
        let health = pulse.health();
        assert!(!health.reachable && health.since.is_some());
        assert_eq!(health.reason.as_deref(), Some("no answer"));
        pulse.answered();
        assert!(pulse.counts().is_ok() && pulse.health().reachable);
    }

    #[test]
    fn a_binding_that_never_answered_says_why() {
        let pulse = Pulse::new(Changed::new());
        assert!(!pulse.is_known());
        pulse.silent("connection refused".to_owned(), Instant::now());
        assert!(pulse.is_known());
        assert_eq!(pulse.health().reason.as_deref(), Some("connection refused"));
    }
}
