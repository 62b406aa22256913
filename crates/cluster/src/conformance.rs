//! One suite that every backend has to pass.
//!
//! A backend's tests implement [`Subject`] and call [`run`], or take [`CHECKS`] one by one. Each
//! check gets a subject of its own over an empty backend.

mod checks;
mod wish;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use larder_model::EngineName;

use crate::Cluster;

pub use checks::CHECKS;

/// A backend under test, over a place of its own.
#[async_trait]
pub trait Subject: Send + Sync {
    /// The backend as it is now.
    fn cluster(&self) -> Arc<dyn Cluster>;

    /// An engine that the backend can run.
    fn engine(&self) -> EngineName;

    /// Forgets everything that is only in memory, as a crash of the caller does, and makes a new
    /// backend over what is left.
    async fn restart(&mut self);

    /// Lets about 50 ms pass: real ones, or simulated ones.
    async fn pause(&self);
}

/// What is wrong with the backend.
pub type Failure = String;

type Running<'a> = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>>;

/// One claim about backends.
#[derive(Clone, Copy)]
pub struct Check {
    /// The claim, in snake case.
    pub name: &'static str,
    /// Tries it. `Err` says how the claim is wrong.
    pub run: for<'a> fn(&'a mut dyn Subject) -> Running<'a>,
}

/// Runs every check, each on a subject of its own.
///
/// # Panics
/// When at least one claim does not hold; all that do not are named.
pub async fn run<S: Subject>(make: impl AsyncFn() -> S) {
    let mut failures = Vec::new();
    for check in CHECKS {
        let mut subject = make().await;
        if let Err(failure) = (check.run)(&mut subject).await {
            failures.push(format!("{}: {failure}", check.name));
        }
    }
    assert!(failures.is_empty(), "the backend fails the suite:\n  {}", failures.join("\n  "));
}
