//! Change notice for a folder by `inotify`.

use std::io;
use std::path::Path;

use futures::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};

/// Wakes when files appear in a folder. Several changes may come as one.
pub struct Watch {
    events: EventStream<[u8; 1024]>,
}

impl Watch {
    pub(crate) fn new(dir: &Path) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        inotify
            .watches()
            .add(dir, WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::DELETE_SELF)?;
        Ok(Self { events: inotify.into_event_stream([0; 1024])? })
    }

    /// Waits for the next change. Never completes once the folder itself is gone. Cancel-safe: a
    /// change is not lost by dropping the future.
    pub async fn changed(&mut self) {
        match self.events.next().await {
            Some(Ok(_)) => {}
            // The queue ran over, or the watch broke: look again rather than miss something.
            Some(Err(_)) => {}
            None => std::future::pending().await,
        }
    }
}
