//! A small file system of its own, for stories of a full disk.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// A mounted `tmpfs` of a given size. Unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    /// # Errors
    /// Mounting needs root; without it a test that needs this must fail, or be named in
    /// `LARDER_SKIP`.
    pub fn mount(mebibytes: u32) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("larder-disk-").tempdir()?;
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m,mode=0700"), "larder-test"])
            .arg(folder.path())
            .status()
            .context("starting `mount`")?;
        if !status.success() {
            bail!(
                "a small tmpfs could not be mounted: this story needs root. Where that cannot be, \
                 run with LARDER_SKIP=full_disk"
            );
        }
        Ok(Self { folder })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Fills what is left, except `spare` bytes, with one file; removing it makes room again.
    ///
    /// In pieces, because who else writes takes room meanwhile, and a piece that does not fit is
    /// given back whole.
    ///
    /// # Errors
    /// The file cannot be written for another reason than a full disk.
    pub fn fill(&self, spare: u64) -> Result<PathBuf> {
        const PAGE: u64 = 4096;
        let path = self.path().join("filler");
        let file = std::fs::File::create(&path)?;
        let (mut length, mut piece) = (0, 256 * PAGE);
        loop {
            let stat = rustix::fs::statvfs(self.path())?;
            let room = (stat.f_bavail * stat.f_frsize).saturating_sub(spare).min(piece);
            if room == 0 {
                return Ok(path);
            }
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), length, room) {
                Ok(()) => length += room,
                Err(rustix::io::Errno::NOSPC) if piece > PAGE => piece /= 2,
                Err(rustix::io::Errno::NOSPC) => return Ok(path),
                Err(error) => return Err(error).context("filling the disk"),
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, because a process killed a moment ago may still hold a file.
        let done = Command::new("umount").arg("-l").arg(self.path()).status();
        if !done.is_ok_and(|status| status.success()) {
            let path = self.path().display().to_string();
            // The only place left to say it.
            assert!(std::thread::panicking(), "{path} could not be unmounted");
        }
    }
}

/// Whether `LARDER_SKIP` names this.
pub fn skipped(name: &str) -> bool {
    std::env::var("LARDER_SKIP").is_ok_and(|list| list.split_whitespace().any(|word| word == name))
}
