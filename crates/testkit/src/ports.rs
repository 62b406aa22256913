//! Blocks of ports that one test holds alone, across threads and processes of the test run.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

/// Where the blocks lie. Servers listen on a port and, 10000 above it, on the cluster bus, so all
/// stay below the usual range of ephemeral ports (32768).
const FIRST: u16 = 17_000;
const BLOCK: u16 = 100;
const BLOCKS: u16 = 30;

/// A hundred ports. Held by a lock on a file, which the system drops with the process.
#[derive(Debug)]
pub struct PortBlock {
    pub first: u16,
    _lock: File,
}

impl PortBlock {
    /// The first block that nobody holds.
    ///
    /// # Errors
    /// All blocks are held, or the lock files cannot be made.
    pub fn take() -> Result<Self> {
        let uid = rustix::process::getuid().as_raw();
        let folder: PathBuf = std::env::temp_dir().join(format!("larder-test-ports-{uid}"));
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        // Not always the same block: a port that was just left may linger.
        let offset = (std::process::id() as u16) % BLOCKS;
        for n in 0..BLOCKS {
            let first = FIRST + (offset + n) % BLOCKS * BLOCK;
            let path = folder.join(first.to_string());
            let lock = File::create(&path).with_context(|| format!("making {}", path.display()))?;
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                return Ok(Self { first, _lock: lock });
            }
        }
        bail!("all {BLOCKS} blocks of test ports are held: are other test runs under way?")
    }

    /// The last port that instances may use; those above are for Larder's own listener.
    pub fn last(&self) -> u16 {
        self.first + BLOCK - 5
    }

    /// Where `serve` listens.
    pub fn listen(&self) -> u16 {
        self.first + BLOCK - 1
    }
}
