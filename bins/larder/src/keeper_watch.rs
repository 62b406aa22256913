//! What `serve` does about the keeper: starts one that is missing, replaces one that hangs, and
//! tells in events what it has started again.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use larder_keeper::{Beat, KeeperError, KeeperPaths, Restarted, Start, process};
use larder_model::{Event, EventKind, InstanceId, NodeId, Severity, Timestamp};
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
/// Up to which end of a process everything has been told, in milliseconds since the epoch.
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
    match store.setting_get(TOLD).await {
        Ok(told) => {
            teller.told_until = told.and_then(|at| at.parse().ok()).map_or(Timestamp(0), Timestamp)
        }
        Err(error) => tracing::warn!(%error, "what was told of restarts is not known any more"),
    }
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
        let mut events: Vec<Event> = news.into_iter().collect();
        if let Some(all) = teller.read(&data) {
            events.extend(teller.news(all, Instant::now()));
        }
        if events.is_empty() {
            continue;
        }
        if let Err(error) = store.event_append(&events).await {
            tracing::warn!(%error, "what happened to the keeper is not recorded");
        }
        if let Err(error) = store.setting_set(TOLD, &teller.told_until.0.to_string()).await {
            tracing::warn!(%error, "what was told of restarts is not recorded");
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
    let beat = larder_keeper::beat(data)?;
    let is_stopped = (beat.as_ref())
        .and_then(|beat| process::stat(beat.keeper.pid))
        .is_some_and(|stat| stat.state == 'T');
    let Some(keeper) = beat.as_ref().map(|beat| beat.keeper.clone()) else {
        return Ok(None);
    };
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
    fn judge(&mut self, beat: Option<Beat>, is_stopped: bool) -> Verdict {
        let same_keeper = match (&self.last, &beat) {
            (Some(last), Some(beat)) => last.keeper == beat.keeper,
            _ => false,
        };
        if !same_keeper {
            *self = Self { last: beat, ..Self::default() };
            return Verdict::Well;
        }
        self.stopped = if is_stopped { self.stopped + 1 } else { 0 };
        if self.last == beat {
            self.silent += 1;
        } else {
            (self.silent, self.has_beaten) = (0, true);
            self.last = beat;
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
    told_until: Timestamp,
    known: HashMap<String, Known>,
    read_at: Option<SystemTime>,
    looks: u32,
    /// Something waits for its turn.
    held: bool,
}

#[derive(Debug)]
struct Known {
    restarts: u64,
    told_at: Option<Instant>,
}

impl Teller {
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
        let told_until = self.told_until;
        self.held = false;
        self.known.retain(|name, _| all.iter().any(|of| of.name == *name));
        for of in all {
            // First seen by this process: a former one may have told it.
            let before = self.known.get(&of.name).map_or_else(
                || {
                    if of.ended_at > told_until {
                        of.restarts.saturating_sub(1)
                    } else {
                        of.restarts
                    }
                },
                |known| known.restarts,
            );
            let told_at = self.known.get(&of.name).and_then(|known| known.told_at);
            if of.restarts <= before {
                self.known.insert(of.name, Known { restarts: of.restarts, told_at });
                continue;
            }
            if told_at.is_some_and(|at| now.duration_since(at) < TOLD_EVERY) {
                self.held = true;
                continue;
            }
            self.told_until = self.told_until.max(of.ended_at);
            let times = of.restarts - before;
            self.known.insert(of.name.clone(), Known { restarts: of.restarts, told_at: Some(now) });
            events.push(restart_event(of, times));
        }
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
    Event { instance: Some(of.instance), node: of.node, ..event(Severity::Info, reason, &message) }
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
    use larder_model::local::ProcessMark;

    fn data_with_keeper(pid: u32, turned: u64) -> Option<Beat> {
        let keeper = ProcessMark { pid, start_ticks: 1, boot_id: "boot".to_owned() };
        Some(Beat::new(keeper, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(turned))))
    }

    #[test]
    fn a_stopped_keeper_is_told_once_and_then_replaced() {
        let mut patience = Patience::default();
        let verdicts: Vec<_> =
            (0..21).map(|_| patience.judge(data_with_keeper(7, 1), true)).collect();
        assert_eq!(verdicts.iter().filter(|v| **v == Verdict::Say).count(), 1);
        assert_eq!(verdicts[SAY_STOPPED as usize], Verdict::Say);
        assert_eq!(verdicts[REPLACE_STOPPED as usize], Verdict::Replace);
    }

    #[test]
    fn a_keeper_that_shows_life_or_never_did_is_left_alone() {
        let mut patience = Patience::default();
        for look in 0..200 {
            assert_eq!(patience.judge(data_with_keeper(7, look / 10), false), Verdict::Well);
        }
        let mut patience = Patience::default();
        for _ in 0..200 {
            assert_eq!(patience.judge(data_with_keeper(7, 1), false), Verdict::Well, "old release");
        }
    }

    #[test]
    fn a_keeper_whose_loop_no_longer_turns_is_replaced() {
        let mut patience = Patience::default();
        patience.judge(data_with_keeper(7, 1), false);
        let verdicts: Vec<_> =
            (0..=60).map(|_| patience.judge(data_with_keeper(7, 2), false)).collect();
        assert_eq!(verdicts[SAY_SILENT as usize], Verdict::Say);
        assert_eq!(verdicts[REPLACE_SILENT as usize], Verdict::Replace);
        let fresh = patience.judge(data_with_keeper(8, 2), false);
        assert_eq!(fresh, Verdict::Well, "its successor starts with full patience");
    }

    fn relay(restarts: u64, ended_at: i64) -> Vec<Restarted> {
        vec![Restarted {
            name: "relay-i-1".to_owned(),
            instance: InstanceId::new("i-1").unwrap(),
            node: None,
            restarts,
            ended_at: Timestamp(ended_at),
            how: "it was killed by signal 9".to_owned(),
        }]
    }

    #[test]
    fn a_restart_is_told_once_also_after_a_restart_of_serve() {
        let now = Instant::now();
        let mut teller = Teller::default();
        let events = teller.news(relay(1, 100), now);
        assert_eq!(events[0].message, "the relay was started again: it was killed by signal 9");
        assert_eq!(events[0].reason, "relay-restarted");
        assert!(teller.news(relay(1, 100), now).is_empty());

        let mut next = Teller { told_until: teller.told_until, ..Teller::default() };
        assert!(next.news(relay(1, 100), now).is_empty());
        assert_eq!(next.news(relay(2, 200), now).len(), 1);
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
