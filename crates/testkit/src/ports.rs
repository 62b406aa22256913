//! Blocks of ports that one test holds alone, across threads and processes of the test run.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

/// Where the blocks lie. Servers listen on a port and, 10000 above it, on the cluster bus, so all
/// stay below the usual range of ephemeral ports (32768), and below the ports that a Larder of this
/// machine takes unless configured (17000 to 19999).
const FIRST: u16 = 11_000;
const BLOCK: u16 = 100;
const BLOCKS: u16 = 30;

/// A hundred ports, or several hundreds. Held by locks on files, which the system drops with the
/// process.
#[derive(Debug)]
pub struct PortBlock {
    pub first: u16,
    count: u16,
    _locks: Vec<File>,
}

impl PortBlock {
    /// The first `blocks` hundreds in a row that nobody holds.
    ///
    /// # Errors
    /// There are none, or the lock files cannot be made.
    pub fn take(blocks: u16) -> Result<Self> {
        let uid = rustix::process::getuid().as_raw();
        let folder: PathBuf = std::env::temp_dir().join(format!("larder-test-ports-{uid}"));
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let starts = BLOCKS + 1 - blocks.clamp(1, BLOCKS);
        // Not always the same block: a port that was just left may linger.
        let offset = u16::try_from(std::process::id() % u32::from(starts))?;
        for n in 0..starts {
            let start = (offset + n) % starts;
            let mut locks = Vec::new();
            for block in start..start + blocks {
                let path = folder.join((FIRST + block * BLOCK).to_string());
                let file =
                    File::create(&path).with_context(|| format!("making {}", path.display()))?;
                if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                    break;
                }
                locks.push(file);
            }
            if locks.len() == usize::from(blocks) {
                return Ok(Self {
                    first: FIRST + start * BLOCK,
                    count: blocks * BLOCK,
                    _locks: locks,
                });
            }
        }
        bail!("all {BLOCKS} blocks of test ports are held: are other test runs under way?")
    }

    /// The last port that instances may use; those above are for Larder's own listener.
    pub fn last(&self) -> u16 {
        self.first + self.count - 5
    }

    /// Where `serve` listens.
    pub fn listen(&self) -> u16 {
        self.first + self.count - 1
    }
}
