//! Fencing: kills the server whose agent holds a lease and no longer renews it.
//!
//! It runs in a thread of its own, so that nothing else in the keeper can delay it.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use larder_linklog::LinkLog;
use larder_model::lease::LeaseRecord;
use larder_model::local::{Guard, LeaseGuard, Promised};
use larder_model::{InstanceId, NodeId};
use rustix::time::{ClockId, clock_gettime};

use crate::{files, orphans, process};

/// Five times in a second: a renewal is seen at most 200 ms late, which the fence margin covers.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// When the keeper itself did not run for this long, others may not have run either: one more
/// look before anybody is killed.
const OWN_PAUSE: Duration = Duration::from_secs(1);

/// A server that may have to be killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fenced {
    pub(crate) instance: InstanceId,
    pub(crate) guard: Guard,
    pub(crate) lease: LeaseGuard,
}

/// The guards of all desired processes, shared between the keeper's loop and the thread.
#[derive(Clone, Debug, Default)]
pub(crate) struct Guards(Arc<Mutex<Arc<Vec<Fenced>>>>);

impl Guards {
    pub(crate) fn set(&self, guards: Vec<Fenced>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(guards);
    }

    fn get(&self) -> Arc<Vec<Fenced>> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Ends the thread when it is dropped.
#[derive(Debug)]
pub(crate) struct FenceThread {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl FenceThread {
    pub(crate) fn start(guards: Guards) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("fence".to_owned()).spawn(move || {
            let mut leases = Leases::default();
            while !stopped.load(Ordering::Relaxed) {
                leases.look(&guards.get(), since_boot());
                std::thread::sleep(LOOK_EVERY);
            }
        })?;
        Ok(Self { stop, thread })
    }

    /// Whether leases are still watched; a thread that has panicked watches nothing.
    pub(crate) fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }
}

impl Drop for FenceThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// `CLOCK_BOOTTIME`: goes on while the machine sleeps, never jumps.
pub(crate) fn since_boot() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

/// What was seen of each lease.
#[derive(Debug, Default)]
struct Leases {
    seen: HashMap<PathBuf, Seen>,
    last_look: Option<Duration>,
}

#[derive(Debug)]
struct Seen {
    seq: u64,
    /// When this version was first seen; its age counts from here.
    since: Duration,
    /// Read once per version, when it has grown old.
    holder: Option<Holder>,
    /// The server was killed for this version. One that its agent starts later is not fenced
    /// again: the agent lives, and knows that the lease has run out.
    done: bool,
}

#[derive(Debug)]
struct Holder {
    node: Option<NodeId>,
    epoch: u64,
}

impl Leases {
    /// One look at every lease. `now` is time since boot.
    fn look(&mut self, guards: &[Fenced], now: Duration) {
        let own_pause = self.last_look.is_some_and(|last| now.saturating_sub(last) > OWN_PAUSE);
        self.last_look = Some(now);
        self.seen.retain(|dir, _| guards.iter().any(|g| g.lease.lease_dir == *dir));
        let mut looked_at: Vec<&PathBuf> = Vec::new();
        for fenced in guards {
            let dir = &fenced.lease.lease_dir;
            if !looked_at.contains(&dir) {
                looked_at.push(dir);
                self.note(dir, now);
            }
            if !own_pause {
                self.fence_if_lapsed(fenced, now);
            }
        }
    }

    /// Notes the newest version. A lease that cannot be read keeps its age: nobody is killed for
    /// what cannot be seen.
    fn note(&mut self, dir: &PathBuf, now: Duration) {
        let Ok(newest) = LinkLog::at(dir).newest() else { return };
        let Some(seq) = newest else {
            self.seen.remove(dir);
            return;
        };
        if self.seen.get(dir).is_none_or(|seen| seen.seq != seq) {
            self.seen.insert(dir.clone(), Seen { seq, since: now, holder: None, done: false });
        }
    }

    fn fence_if_lapsed(&mut self, fenced: &Fenced, now: Duration) {
        let limit =
            fenced.lease.lease_ttl.duration().saturating_sub(fenced.lease.fence_margin.duration());
        let Some(seen) = self.seen.get_mut(&fenced.lease.lease_dir) else { return };
        let age = now.saturating_sub(seen.since);
        if seen.done || age < limit {
            return;
        }
        let holder = match &seen.holder {
            Some(holder) => holder,
            None => match read_holder(&fenced.lease.lease_dir, seen.seq) {
                Some(holder) => seen.holder.insert(holder),
                None => return,
            },
        };
        if holder.node.as_ref() != Some(&fenced.guard.node) {
            return;
        }
        if now < promised_until(fenced, holder.epoch) {
            return;
        }
        match kill_servers(&fenced.guard) {
            Ok(killed) => {
                seen.done = true;
                if !killed.is_empty() {
                    tracing::warn!(
                        instance = %fenced.instance,
                        node = %fenced.guard.node,
                        lease_seq = seen.seq,
                        age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
                        pids = ?killed,
                        "lease not renewed, server killed"
                    );
                }
            }
            Err(error) => tracing::error!(
                instance = %fenced.instance,
                node = %fenced.guard.node,
                %error,
                "lease not renewed, server cannot be killed"
            ),
        }
    }
}

/// Who holds version `seq`; `None` when it cannot be read, or is not the newest any more.
fn read_holder(dir: &std::path::Path, seq: u64) -> Option<Holder> {
    let entry = LinkLog::at(dir).read().ok()??;
    if entry.seq != seq {
        return None;
    }
    let record: LeaseRecord = serde_json::from_slice(&entry.bytes).ok()?;
    Some(Holder { node: record.holder.map(|holder| holder.node), epoch: record.epoch })
}

/// Until when every other node of the shard has promised not to take the lease of this epoch, less
/// the margin; zero when there are no such promises.
fn promised_until(fenced: &Fenced, epoch: u64) -> Duration {
    let promised = match files::read_json::<Promised>(&fenced.guard.promised_file()) {
        Ok(Some(promised)) => promised,
        Ok(None) | Err(_) => return Duration::ZERO,
    };
    let of_this_boot = process::boot_id().is_ok_and(|id| id == promised.boot_id);
    if promised.epoch != epoch || !of_this_boot {
        return Duration::ZERO;
    }
    let until = u64::try_from(promised.until_ms.0).unwrap_or(0);
    Duration::from_millis(until).saturating_sub(fenced.lease.fence_margin.duration())
}

fn kill_servers(guard: &Guard) -> io::Result<Vec<u32>> {
    let mut killed = Vec::new();
    for mark in orphans::servers(guard)? {
        if process::kill(&mark)? {
            killed.push(mark.pid);
        }
    }
    Ok(killed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::Millis;
    use larder_model::lease::LeaseHolder;
    use std::process::{Child, Command};

    struct World {
        dir: tempfile::TempDir,
        server: Child,
        leases: Leases,
        log: LinkLog,
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("temp dir");
            let server = Command::new("sleep").arg("60").spawn().expect("spawn");
            let mark = process::mark_of(server.id()).expect("proc").expect("alive");
            crate::files::write_json(&dir.path().join("server.json"), &mark).expect("write");
            let log = LinkLog::open(&dir.path().join("lease")).expect("open");
            Self { dir, server, leases: Leases::default(), log }
        }

        fn hold(&self, node: &str) -> u64 {
            let record = LeaseRecord {
                epoch: 1,
                holder: Some(LeaseHolder { node: id(node), run_id: "r".to_owned() }),
                previous: None,
                failovers: Vec::new(),
            };
            let bytes = serde_json::to_vec(&record).expect("json");
            self.log.append(None, &bytes).expect("append")
        }

        fn look(&mut self, at_ms: u64) {
            let lease = LeaseGuard {
                lease_dir: self.dir.path().join("lease"),
                lease_ttl: Millis(4000),
                fence_margin: Millis(700),
            };
            let guard = Guard {
                node: id("n-1"),
                server_file: self.dir.path().join("server.json"),
                lease: Some(lease.clone()),
            };
            let instance = InstanceId::new("i-1").expect("id");
            let fenced = Fenced { instance, guard, lease };
            self.leases.look(&[fenced], Duration::from_millis(at_ms));
        }

        fn is_killed(&mut self) -> bool {
            // A killed child may need a moment to become a zombie; a spared one never does.
            let id = self.server.id();
            let deadline = std::time::Instant::now() + Duration::from_millis(200);
            while std::time::Instant::now() < deadline {
                if process::stat(id).is_none_or(process::Stat::is_dead) {
                    return true;
                }
                std::thread::yield_now();
            }
            false
        }
    }

    impl Drop for World {
        fn drop(&mut self) {
            let _ = self.server.kill();
            let _ = self.server.wait();
        }
    }

    fn id(text: &str) -> NodeId {
        NodeId::new(text).expect("id")
    }

    #[test]
    fn the_server_of_a_lapsed_lease_is_killed_before_the_lease_runs_out() {
        let mut world = World::new();
        world.hold("n-1");
        for at in (0..3300).step_by(200) {
            world.look(at);
        }
        assert!(!world.is_killed(), "not before the margin");
        world.look(3300);
        assert!(world.is_killed());
    }

    #[test]
    fn promises_of_all_replicas_spare_the_server_until_they_end_and_in_their_epoch_only() {
        for (epoch, killed_at) in [(1, 8_400), (2, 3_400)] {
            let mut world = World::new();
            world.hold("n-1");
            let boot_id = process::boot_id().expect("boot id").to_owned();
            let promised = Promised { epoch, until_ms: larder_model::Timestamp(9_000), boot_id };
            let path = world.dir.path().join("promised.json");
            crate::files::write_json(&path, &promised).expect("write");
            for at in (0..killed_at).step_by(200) {
                world.look(at);
            }
            assert!(!world.is_killed(), "epoch {epoch}: spared up to the margin");
            world.look(killed_at);
            assert!(world.is_killed(), "epoch {epoch}");
        }
    }

    #[test]
    fn a_renewed_lease_spares_the_server() {
        let mut world = World::new();
        let mut seq = world.hold("n-1");
        for at in (0..12_000).step_by(200) {
            world.look(at);
            if at % 1000 == 0 {
                seq = world.log.renew(seq).expect("renew");
            }
        }
        assert!(!world.is_killed());
    }

    #[test]
    fn the_server_of_another_node_is_spared() {
        let mut world = World::new();
        world.hold("n-2");
        for at in (0..12_000).step_by(200) {
            world.look(at);
        }
        assert!(!world.is_killed());
    }

    #[test]
    fn a_keeper_that_slept_looks_twice_before_it_kills() {
        let mut world = World::new();
        let seq = world.hold("n-1");
        world.look(0);
        world.look(60_000);
        world.log.renew(seq).expect("renew");
        world.look(60_200);
        assert!(!world.is_killed());
    }

    #[test]
    fn without_a_lease_nobody_is_killed() {
        let mut world = World::new();
        for at in (0..12_000).step_by(200) {
            world.look(at);
        }
        assert!(!world.is_killed());
    }
}
