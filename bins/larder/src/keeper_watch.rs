//! What `serve` does about the keeper: starts one that is missing, replaces one that hangs, and
//! tells in events what it has started again.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use larder_keeper::{Beat, KeeperError, KeeperPaths, Restarted, Start, process};
use larder_model::{Event, EventKind, InstanceId, NodeId, Severity};
use larder_reconcile::{Clock as _, SystemClock};
use larder_store::Store;
use tokio_util::sync::CancellationToken;

/// How often a missing keeper is noticed. Instances serve on without one; only what dies
/// meanwhile stays down for that long.
const LOOK: Duration = Duration::from_millis(500);
/// Time is counted in looks: a pause of the whole machine, or of `serve`, is not the keeper's.
const SAY_STOPPED: u32 = 10;
const REPLACE_STOPPED: u32 = 20;
/// Its loop turns every three seconds; a disk that hangs may hold it up for longer.
const SAY_SILENT: u32 = 30;
const REPLACE_SILENT: u32 = 60;
/// The folder of states is read again even when it seems not to have changed.
const LOOKS_PER_READING: u32 = 60;
/// Of a process that keeps ending there is one event in this time.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// Of each process how many of its restarts have been told: a map as JSON.
const TOLD: &str = "keeper-restarts-told";

/// Looks after the keeper until `stop`.
pub(crate) async fn watch_keeper(
    data: PathBuf,
    larder_binary: PathBuf,
    store: Store,
    stop: CancellationToken,
) {
    let mut patience = Patience::default();
    let mut teller = Teller::default();
    let mut remembered = teller.to_remember();
    match store.setting_get(TOLD).await {
        Ok(told) => {
            teller.recall(told.as_deref());
            remembered = told.unwrap_or(remembered);
        }
        Err(error) => tracing::warn!(%error, "what was told of restarts is not known any more"),
    }
    // Of the keeper itself, until it is recorded.
    let mut owed: Vec<Event> = Vec::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let (folder, program) = (data.clone(), larder_binary.clone());
        let looked =
            tokio::task::spawn_blocking(move || (look(&folder, &program, &mut patience), patience));
        let news;
        (news, patience) = looked.await.unwrap_or_else(|error| {
            tracing::error!(%error, "the look after the keeper broke off");
            (Ok(None), Patience::default())
        });
        let news = news.unwrap_or_else(|error| {
            tracing::error!(%error, "the keeper cannot be looked after");
            None
        });
        owed.extend(news);
        let mut events = owed.clone();
        let told_before = teller.told.clone();
        if let Some(all) = teller.read(&data) {
            events.extend(teller.news(all, Instant::now()));
        }
        if let Err(error) = store.event_append(&events).await {
            tracing::warn!(%error, "what happened to the keeper is not recorded, tried again");
            teller.untold(told_before);
            continue;
        }
        owed.clear();
        let told = teller.to_remember();
        if told == remembered {
            continue;
        }
        match store.setting_set(TOLD, &told).await {
            Ok(()) => remembered = told,
            Err(error) => tracing::warn!(%error, "what was told of restarts is not recorded"),
        }
    }
}

/// One look, with what has to be done at once. Blocks for some milliseconds.
fn look(
    data: &Path,
    larder_binary: &Path,
    patience: &mut Patience,
) -> Result<Option<Event>, KeeperError> {
    let started = larder_keeper::ensure_running(data, larder_binary)?;
    if let Start::Started { pid } = started {
        tracing::info!(pid, "the keeper was missing and is started again");
        let text = "the keeper was missing and was started again; instances served on";
        *patience = Patience::default();
        return Ok(Some(event(Severity::Info, "keeper-restarted", text)));
    }
    let Some(beat) = larder_keeper::beat(data)? else { return Ok(None) };
    let keeper = beat.keeper.clone();
    let is_stopped = process::stat(keeper.pid).is_some_and(process::Stat::is_stopped);
    let why = if is_stopped { "is stopped" } else { "does not answer" };
    let news = match patience.judge(beat, is_stopped) {
        Verdict::Well => None,
        Verdict::Say => Some(event(
            Severity::Warning,
            "keeper-hangs",
            &format!(
                "the keeper (process {}) {why}: what ends stays down and nothing is removed until \
                 it goes on or is replaced",
                keeper.pid
            ),
        )),
        // It looks after this folder beyond doubt: it holds the lock, and wrote who it is.
        Verdict::Replace => match process::kill(&keeper) {
            Ok(_) => Some(event(
                Severity::Warning,
                "keeper-replaced",
                &format!(
                    "the keeper (process {}) {why} and was killed, another takes its place; \
                     instances served on",
                    keeper.pid
                ),
            )),
            Err(error) => {
                tracing::error!(pid = keeper.pid, %error, "the keeper hangs and cannot be killed");
                None
            }
        },
    };
    if let Some(news) = &news {
        tracing::warn!("{}", news.message);
    }
    Ok(news)
}

/// How long the keeper has shown no sign of life, in looks.
#[derive(Clone, Debug, Default)]
struct Patience {
    last: Option<Beat>,
    /// The one that is looked at has shown a sign of life before: keepers of older releases never
    /// do, and are not to be blamed for it.
    has_beaten: bool,
    silent: u32,
    stopped: u32,
    said: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Well,
    /// It hangs: said once.
    Say,
    Replace,
}

impl Patience {
    fn judge(&mut self, beat: Beat, is_stopped: bool) -> Verdict {
        let Some(last) = self.last.as_mut().filter(|last| last.keeper == beat.keeper) else {
            *self = Self { last: Some(beat), ..Self::default() };
            return Verdict::Well;
        };
        self.stopped = if is_stopped { self.stopped + 1 } else { 0 };
        if *last == beat {
            self.silent += 1;
        } else {
            (self.silent, self.has_beaten) = (0, true);
            *last = beat;
        }
        let silent = if self.has_beaten { self.silent } else { 0 };
        if self.stopped >= REPLACE_STOPPED || silent >= REPLACE_SILENT {
            *self = Self::default();
            return Verdict::Replace;
        }
        let hangs = self.stopped >= SAY_STOPPED || silent >= SAY_SILENT;
        let verdict = if hangs && !self.said { Verdict::Say } else { Verdict::Well };
        self.said = hangs;
        verdict
    }
}

/// Tells of each restart once, also across restarts of `serve`.
#[derive(Debug, Default)]
struct Teller {
    /// How many restarts of a process have been told.
    told: BTreeMap<String, u64>,
    told_at: HashMap<String, Instant>,
    read_at: Option<SystemTime>,
    looks: u32,
    /// Something waits for its turn.
    held: bool,
}

impl Teller {
    /// Takes up what a former `serve` has told.
    fn recall(&mut self, remembered: Option<&str>) {
        let Some(text) = remembered else { return };
        match serde_json::from_str(text) {
            Ok(told) => self.told = told,
            Err(error) => {
                tracing::warn!(%error, "what was told of restarts cannot be read and is told again");
            }
        }
    }

    /// The news since `told` have not reached anybody.
    fn untold(&mut self, told: BTreeMap<String, u64>) {
        self.told = told;
        self.told_at.clear();
        self.read_at = None;
        self.held = true;
    }

    /// What the next `serve` is to [`recall`](Self::recall).
    fn to_remember(&self) -> String {
        serde_json::json!(self.told).to_string()
    }

    /// What has been started again, when there may be news.
    fn read(&mut self, data: &Path) -> Option<Vec<Restarted>> {
        // Each new state is renamed into its folder, which shows in the folder's time.
        let changed = KeeperPaths::new(data).state_dir().metadata().and_then(|of| of.modified());
        let changed = changed.ok();
        self.looks = self.looks.wrapping_add(1);
        let due = self.held || self.looks.is_multiple_of(LOOKS_PER_READING);
        if self.read_at == changed && !due {
            return None;
        }
        self.read_at = changed;
        larder_keeper::restarted(data)
            .inspect_err(|error| tracing::warn!(%error, "the keeper's states cannot be read"))
            .ok()
    }

    fn news(&mut self, all: Vec<Restarted>, now: Instant) -> Vec<Event> {
        let mut events = Vec::new();
        self.held = false;
        // One that is gone begins to count anew if its name ever comes back.
        self.told.retain(|name, _| all.iter().any(|of| of.name == *name));
        self.told_at.retain(|name, _| all.iter().any(|of| of.name == *name));
        for of in all {
            let before = self.told.get(&of.name).copied().unwrap_or(0);
            let times = of.restarts.saturating_sub(before);
            if times > 0 {
                let last = self.told_at.get(&of.name);
                if last.is_some_and(|at| now.duration_since(*at) < TOLD_EVERY) {
                    self.held = true;
                    continue;
                }
                self.told_at.insert(of.name.clone(), now);
            }
            self.told.insert(of.name.clone(), of.restarts);
            if times > 0 {
                events.push(restart_event(of, times));
            }
        }
        // Their numbers follow their times, as far as they are told together.
        events.sort_by_key(|event| event.at);
        events
    }
}

fn restart_event(of: Restarted, times: u64) -> Event {
    let (reason, who) = match &of.node {
        Some(node) => ("agent-restarted", format!("the agent of node {node}")),
        None => ("relay-restarted", "the relay".to_owned()),
    };
    let message = match times {
        1 => format!("{who} was started again: {}", of.how),
        _ => format!("{who} was started again, {times} times since it was last told: {}", of.how),
    };
    Event {
        at: of.ended_at,
        instance: Some(of.instance),
        node: of.node,
        ..event(Severity::Info, reason, &message)
    }
}

fn event(severity: Severity, reason: &str, message: &str) -> Event {
    Event {
        at: SystemClock.now(),
        kind: EventKind::Control,
        severity,
        instance: None::<InstanceId>,
        node: None::<NodeId>,
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::Timestamp;
    use larder_model::local::ProcessMark;
    use std::os::unix::process::ExitStatusExt as _;

    fn beat_of(pid: u32, turned: u64) -> Beat {
        let keeper = ProcessMark { pid, start_ticks: 1, boot_id: "boot".to_owned() };
        let turned_at = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(turned));
        Beat { keeper, turned_at }
    }

    #[test]
    fn a_stopped_keeper_is_told_once_and_then_replaced() {
        let mut patience = Patience::default();
        let verdicts: Vec<_> = (0..21).map(|_| patience.judge(beat_of(7, 1), true)).collect();
        assert_eq!(verdicts.iter().filter(|v| **v == Verdict::Say).count(), 1);
        assert_eq!(verdicts[SAY_STOPPED as usize], Verdict::Say);
        assert_eq!(verdicts[REPLACE_STOPPED as usize], Verdict::Replace);
    }

    #[test]
    fn a_keeper_that_shows_life_or_never_did_is_left_alone() {
        let mut patience = Patience::default();
        for look in 0..200 {
            assert_eq!(patience.judge(beat_of(7, look / 10), false), Verdict::Well);
        }
        let mut patience = Patience::default();
        for _ in 0..200 {
            assert_eq!(patience.judge(beat_of(7, 1), false), Verdict::Well, "old release");
        }
    }

    #[test]
    fn a_keeper_whose_loop_no_longer_turns_is_replaced() {
        let mut patience = Patience::default();
        patience.judge(beat_of(7, 1), false);
        let verdicts: Vec<_> = (0..=60).map(|_| patience.judge(beat_of(7, 2), false)).collect();
        assert_eq!(verdicts[SAY_SILENT as usize], Verdict::Say);
        assert_eq!(verdicts[REPLACE_SILENT as usize], Verdict::Replace);
        let fresh = patience.judge(beat_of(8, 2), false);
        assert_eq!(fresh, Verdict::Well, "its successor starts with full patience");
    }

    /// A process that holds the keeper's lock by all appearances: the lock itself is this one's.
    struct StandIn {
        child: std::process::Child,
        _lock: std::fs::File,
    }

    impl Drop for StandIn {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    fn stand_in(data: &Path) -> StandIn {
        let child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let mark = process::mark_of(child.id()).unwrap();
        let paths = KeeperPaths::new(data);
        std::fs::create_dir_all(paths.root()).unwrap();
        std::fs::write(paths.lock(), serde_json::to_vec(&mark).unwrap()).unwrap();
        let lock = std::fs::File::open(paths.lock()).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        StandIn { child, _lock: lock }
    }

    #[test]
    fn a_keeper_that_stays_stopped_is_said_to_hang_and_then_killed() {
        let data = tempfile::tempdir().unwrap();
        let mut keeper = stand_in(data.path());
        let mark = process::mark_of(keeper.child.id()).unwrap().unwrap();
        let handle = process::Handle::open(&mark).unwrap().unwrap();
        handle.signal(rustix::process::Signal::STOP).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !process::stat(mark.pid).is_some_and(process::Stat::is_stopped) {
            assert!(Instant::now() < deadline, "it is not stopped");
            std::thread::yield_now();
        }
        let mut patience = Patience::default();
        let mut look = || look(data.path(), Path::new("/bin/false"), &mut patience).unwrap();
        let reasons: Vec<_> =
            (0..REPLACE_STOPPED).filter_map(|_| look()).map(|e| e.reason).collect();
        assert_eq!(reasons, ["keeper-hangs"]);
        assert!(process::is_alive(&mark), "it may still go on");
        assert_eq!(look().unwrap().reason, "keeper-replaced");
        assert_eq!(keeper.child.wait().unwrap().signal(), Some(9));
    }

    fn restarted(name: &str, restarts: u64, ended_at: i64) -> Restarted {
        Restarted {
            name: name.to_owned(),
            instance: InstanceId::new("i-1").unwrap(),
            node: None,
            restarts,
            ended_at: Timestamp(ended_at),
            how: "it was killed by signal 9".to_owned(),
        }
    }

    fn relay(restarts: u64, ended_at: i64) -> Vec<Restarted> {
        vec![restarted("relay-i-1", restarts, ended_at)]
    }

    /// The teller of a `serve` that was started again.
    fn after_restart(teller: &Teller) -> Teller {
        let mut next = Teller::default();
        next.recall(Some(&teller.to_remember()));
        next
    }

    #[test]
    fn a_restart_is_told_once_also_after_a_restart_of_serve() {
        let now = Instant::now();
        let mut teller = Teller::default();
        let events = teller.news(relay(1, 100), now);
        assert_eq!(events[0].message, "the relay was started again: it was killed by signal 9");
        assert_eq!(events[0].reason, "relay-restarted");
        assert_eq!(events[0].at, Timestamp(100), "when it happened, not when it is told");
        assert!(teller.news(relay(1, 100), now).is_empty());

        let mut next = after_restart(&teller);
        assert!(next.news(relay(1, 100), now).is_empty());
        // Whatever the clock says by then.
        assert_eq!(next.news(relay(2, 50), now).len(), 1);
    }

    #[test]
    fn what_is_held_back_is_told_after_a_restart_of_serve_whatever_was_told_of_others_meanwhile() {
        let now = Instant::now();
        let both = |one: (u64, i64), other: (u64, i64)| {
            vec![restarted("relay-a", one.0, one.1), restarted("relay-b", other.0, other.1)]
        };
        let mut teller = Teller::default();
        assert_eq!(teller.news(both((1, 100), (0, 0)), now).len(), 1);
        let events = teller.news(both((2, 200), (1, 300)), now);
        assert_eq!(events.len(), 1, "`a` is held back, `b` is told");
        assert!(teller.held);

        let mut next = after_restart(&teller);
        let events = next.news(both((4, 250), (1, 300)), now);
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].at, Timestamp(250));
        assert!(events[0].message.contains("3 times"), "{}", events[0].message);
    }

    #[test]
    fn restarts_while_serve_was_down_are_all_counted_and_told_in_their_order() {
        let mut teller = Teller::default();
        let all = vec![restarted("relay-a", 5, 200), restarted("relay-b", 1, 100)];
        let events = teller.news(all, Instant::now());
        assert_eq!(events.iter().map(|of| of.at.0).collect::<Vec<_>>(), [100, 200]);
        assert!(events[1].message.contains("5 times"), "{}", events[1].message);
    }

    #[test]
    fn a_process_that_keeps_ending_does_not_fill_the_log() {
        let now = Instant::now();
        let mut teller = Teller::default();
        assert_eq!(teller.news(relay(1, 100), now).len(), 1);
        for n in 2..10 {
            assert!(teller.news(relay(n, 100 + n as i64), now).is_empty());
        }
        assert!(teller.held);
        let events = teller.news(relay(9, 109), now + TOLD_EVERY);
        assert!(events[0].message.contains("8 times"), "{}", events[0].message);
    }
}
