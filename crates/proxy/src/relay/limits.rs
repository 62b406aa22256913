//! How many connections the relay may hold.

use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::Semaphore;

/// Files that are open besides relayed connections: listeners, watches, health checks, status.
const OTHER_FILES: u64 = 64;
/// What to assume when there is no limit at all.
const NO_LIMIT: u64 = 1 << 20;

/// One permit per connection, which takes two files. Accepting stops at nine tenths of
/// `RLIMIT_NOFILE`, whose soft limit is raised to the hard one first: what waits in the kernel's
/// queue costs nothing, and a relay out of files could not even read its route.
pub(crate) fn connection_permits() -> Arc<Semaphore> {
    let limit = getrlimit(Resource::Nofile);
    let mut files = limit.current.unwrap_or(NO_LIMIT);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if wanted.current != limit.current {
        match setrlimit(Resource::Nofile, wanted) {
            Ok(()) => files = limit.maximum.unwrap_or(NO_LIMIT),
            Err(error) => tracing::warn!(%error, files, "limit of open files stays as it is"),
        }
    }
    Arc::new(Semaphore::new(connections_for(files)))
}

fn connections_for(files: u64) -> usize {
    let usable = (files.min(NO_LIMIT) * 9 / 10).saturating_sub(OTHER_FILES);
    usize::try_from(usable / 2).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_other_files() {
        assert_eq!(connections_for(1024), (921 - 64) / 2);
        assert_eq!(connections_for(16), 1);
        assert!(connections_for(u64::MAX) < 1 << 19);
    }
}
