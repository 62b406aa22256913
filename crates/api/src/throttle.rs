//! Slows down whoever tries passwords: per user and address, more with each failure.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Failures that cost nothing: people mistype.
const FREE: u32 = 5;
/// The longest pause between two attempts.
const LONGEST: Duration = Duration::from_secs(60);
/// After this long without an attempt all is forgotten.
const FORGET: Duration = Duration::from_secs(900);
/// Bound of the memory that strangers can make us use.
const MOST: usize = 10_000;

#[derive(Debug, Default)]
pub(crate) struct Throttle {
    tries: Mutex<HashMap<(String, String), Tries>>,
}

#[derive(Clone, Copy, Debug)]
struct Tries {
    failures: u32,
    last: Instant,
}

impl Throttle {
    /// Counts an attempt, as a failure until [`Throttle::succeeded`] says otherwise: attempts
    /// made at the same time count too.
    ///
    /// # Errors
    /// How long to wait before the next attempt is looked at.
    pub(crate) fn attempt(&self, user: &str, address: &str, now: Instant) -> Result<(), Duration> {
        let mut tries = self.tries.lock().unwrap_or_else(PoisonError::into_inner);
        if tries.len() >= MOST {
            tries.retain(|_, t| now.saturating_duration_since(t.last) < LONGEST);
            if tries.len() >= MOST {
                // A flood of made-up names: nobody new is let in until it ebbs.
                return Err(LONGEST);
            }
        }
        let entry = tries.entry(key(user, address)).or_insert(Tries { failures: 0, last: now });
        let since = now.saturating_duration_since(entry.last);
        if since >= FORGET {
            entry.failures = 0;
        }
        let left = pause(entry.failures).saturating_sub(since);
        if !left.is_zero() {
            return Err(left);
        }
        entry.failures = entry.failures.saturating_add(1);
        entry.last = now;
        Ok(())
    }

    /// The attempt was a good one: nothing is held against this user and address any more.
    pub(crate) fn succeeded(&self, user: &str, address: &str) {
        self.tries.lock().unwrap_or_else(PoisonError::into_inner).remove(&key(user, address));
    }
}

fn key(user: &str, address: &str) -> (String, String) {
    (user.chars().take(64).collect(), address.to_owned())
}

fn pause(failures: u32) -> Duration {
    match failures.checked_sub(FREE) {
        None => Duration::ZERO,
        Some(over) => Duration::from_secs(1 << over.min(6)).min(LONGEST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixth_attempt_has_to_wait_and_longer_each_time() {
        let throttle = Throttle::default();
        let start = Instant::now();
        for _ in 0..FREE {
            assert_eq!(throttle.attempt("admin", "a", start), Ok(()));
        }
        assert_eq!(throttle.attempt("admin", "a", start), Err(Duration::from_secs(1)));
        let later = start + Duration::from_secs(1);
        assert_eq!(throttle.attempt("admin", "a", later), Ok(()));
        assert_eq!(throttle.attempt("admin", "a", later), Err(Duration::from_secs(2)));
        assert_eq!(throttle.attempt("admin", "b", later), Ok(()), "others are not held up");
        throttle.succeeded("admin", "a");
        assert_eq!(throttle.attempt("admin", "a", later), Ok(()));
    }

    #[test]
    fn made_up_names_do_not_fill_the_memory() {
        let throttle = Throttle::default();
        let now = Instant::now();
        let let_in =
            (0..2 * MOST).filter(|i| throttle.attempt(&i.to_string(), "a", now).is_ok()).count();
        assert_eq!(let_in, MOST);
        assert_eq!(throttle.attempt("admin", "a", now + LONGEST), Ok(()));
    }
}
