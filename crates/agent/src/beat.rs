//! When the loop last showed that it goes on: what a kubelet is told, who would kill a stuck one.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use larder_model::{Millis, Timestamp};

use crate::clock;

/// Between two beats beside one long piece of work.
const EVERY: Duration = Duration::from_millis(500);

/// Shared by the loop, which beats, and the probe, which looks. Monotonic time.
#[derive(Clone, Debug)]
pub(crate) struct Beat(Arc<AtomicI64>);

impl Beat {
    /// Beats once.
    pub(crate) fn new() -> Self {
        Self(Arc::new(AtomicI64::new(clock::monotonic().0)))
    }

    /// The loop goes on. Each piece of work between two beats ends by its own deadline well before
    /// a loop without a beat counts as stuck.
    pub(crate) fn beat(&self) {
        self.0.store(clock::monotonic().0, Ordering::Relaxed);
    }

    /// For how long the loop has not beaten.
    pub(crate) fn still(&self) -> Millis {
        clock::monotonic().since(Timestamp(self.0.load(Ordering::Relaxed)))
    }

    /// Does `work` and beats meanwhile: for what ends by a deadline of its own that is longer than a
    /// stuck loop is left alive. Cancel-safe if `work` is.
    pub(crate) async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            self.beat();
            if let Ok(done) = tokio::time::timeout(EVERY, &mut work).await {
                self.beat();
                return done;
            }
        }
    }
}
