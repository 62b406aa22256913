//! Change notice for a folder: a socket in it for each watcher, and a datagram to each of them
//! from whoever has changed something.
//!
//! Not `inotify`: a user has 128 instances of it by default, which a machine with a hundred nodes
//! uses up. A notice that gets lost (its sender died in between) costs no more than the time until
//! the watcher looks by itself, which every watcher does now and then anyway.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram as StdDatagram;
use std::path::{Path, PathBuf};

use tokio::net::UnixDatagram;

/// Sockets of watchers begin with this; versions never do.
const PREFIX: &str = "w.";

/// Wakes when somebody says that the folder has changed. Several notices may come as one.
pub struct Watch {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Watch {
    /// Registers a watcher in `dir`. Wants a tokio runtime with IO.
    pub(crate) fn new(dir: &Path) -> io::Result<Self> {
        let name = format!("{PREFIX}{:016x}", crate::folder::random_u64()?);
        let short = ShortDir::open(dir)?;
        let socket = UnixDatagram::bind(short.path(&name))?;
        Ok(Self { socket, path: dir.join(name) })
    }

    /// Waits for the next notice. Cancel-safe: a notice is not lost by dropping the future.
    pub async fn changed(&mut self) {
        let mut notice = [0; 1];
        // A socket that fails says nothing any more: look again, which is never wrong.
        let _ = self.socket.recv(&mut notice).await;
        // What has piled up meanwhile is answered by the same look.
        while self.socket.try_recv(&mut notice).is_ok() {}
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Left over by a process that was killed it goes with the next notice.
        let _ = fs::remove_file(&self.path);
    }
}

/// Wakes all watchers of `dir`. Best effort, and never blocks: a watcher whose queue is full has
/// a notice waiting already.
pub fn notify(dir: &Path) {
    let Ok(listing) = fs::read_dir(dir) else { return };
    let Ok(socket) = StdDatagram::unbound() else { return };
    if socket.set_nonblocking(true).is_err() {
        return;
    }
    let mut short = None;
    for entry in listing.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
        if short.is_none() {
            short = ShortDir::open(dir).ok();
        }
        let Some(short) = &short else { return };
        match socket.send_to(&[1], short.path(name)) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                // Nobody listens any more: its owner was killed.
                let _ = fs::remove_file(entry.path());
            }
            Ok(_) | Err(_) => {}
        }
    }
}

/// A folder by its descriptor: paths of unix sockets end at 107 bytes, and folders may be deep.
struct ShortDir(OwnedFd);

impl ShortDir {
    fn open(dir: &Path) -> io::Result<Self> {
        Ok(Self(File::open(dir)?.into()))
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd()))
    }
}
