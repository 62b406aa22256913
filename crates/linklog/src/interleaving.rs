//! Writers and readers that are stopped between any two calls to the system, resumed in any order,
//! or killed; on a disk that fills up and empties. The real code runs on a real folder, each actor
//! in a thread of its own, and a seeded scheduler lets one of them take one step at a time.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::{AppendError, LinkLog};

thread_local! {
    static ACTOR: RefCell<Option<Actor>> = const { RefCell::new(None) };
}

#[derive(Clone)]
struct Actor {
    id: usize,
    stage: Arc<Stage>,
}

/// Unwinds an actor that is killed: it makes no further step.
struct Killed;

#[derive(Default)]
struct Stage {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Default)]
struct State {
    /// Who may take a step.
    turn: Option<usize>,
    /// Who waits for a step.
    waiting: HashSet<usize>,
    ended: HashSet<usize>,
    killed: HashSet<usize>,
    disk_full: bool,
    leftovers_at_once: bool,
}

fn stage<T>(look: impl FnOnce(&State) -> T) -> Option<T> {
    let actor = ACTOR.with_borrow(Clone::clone)?;
    Some(look(&actor.stage.state.lock().unwrap()))
}

pub(crate) fn point() {
    let Some(Actor { id, stage }) = ACTOR.with_borrow(Clone::clone) else { return };
    let mut state = stage.state.lock().unwrap();
    state.turn = None;
    state.waiting.insert(id);
    stage.moved.notify_all();
    let mut state = stage.moved.wait_while(state, |state| state.turn != Some(id)).unwrap();
    state.waiting.remove(&id);
    if state.killed.contains(&id) {
        drop(state);
        resume_unwind(Box::new(Killed));
    }
}

pub(crate) fn room() -> io::Result<()> {
    if stage(|state| state.disk_full).unwrap_or(false) {
        return Err(io::ErrorKind::StorageFull.into());
    }
    Ok(())
}

pub(crate) fn leftover_age() -> Duration {
    let at_once = stage(|state| state.leftovers_at_once).unwrap_or(false);
    // A writer may be stopped for longer than any age.
    if at_once { Duration::ZERO } else { crate::LEFTOVER }
}

/// In two halves, so that a mixture can be seen.
pub(crate) fn write_at_start(file: &File, bytes: &[u8]) -> io::Result<()> {
    let (first, second) = bytes.split_at(bytes.len() / 2);
    point();
    file.write_all_at(first, 0)?;
    point();
    file.write_all_at(second, first.len() as u64)
}

pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut bytes = vec![0; 2048];
    point();
    let length = file.read(&mut bytes)?;
    bytes.truncate(length);
    point();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// xorshift64*: the same seed is the same story.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % sides
    }
}

/// What the actors have done and seen.
#[derive(Default)]
struct Told {
    /// Contents that were tried, with the number that they would get.
    tried: Vec<(u64, Vec<u8>)>,
    /// Numbers whose writer was told that it has won, with the content; `None`: a renewal.
    won: Vec<(u64, Option<Vec<u8>>)>,
    seen: Vec<(u64, Vec<u8>)>,
    on_full_disk: usize,
}

const ACTORS: usize = 4;
const ACTS: usize = 12;

fn act(log: &LinkLog, dice: &mut Dice, id: usize, n: usize, told: &Mutex<Told>) {
    // What it has read may be long out of date when it writes.
    let Ok(entry) = log.read() else { return };
    let after = entry.as_ref().map(|entry| entry.seq);
    if let Some(entry) = entry {
        told.lock().unwrap().seen.push((entry.seq, entry.bytes));
    }
    let renews = dice.roll(3) == 0;
    let result = match after {
        Some(seq) if renews => log.renew(seq).map(|seq| (seq, None)),
        _ => {
            // Long enough for the two halves to show a mixture.
            let bytes = format!("{id}.{n} ").repeat(100 + dice.roll(800)).into_bytes();
            let seq = after.map_or(0, |seq| seq + 1);
            told.lock().unwrap().tried.push((seq, bytes.clone()));
            let written = if dice.roll(2) == 0 {
                log.append(after, &bytes)
            } else {
                log.append_volatile(after, &bytes)
            };
            written.map(|seq| (seq, Some(bytes)))
        }
    };
    match result {
        Ok(won) => {
            let full = stage(|state| state.disk_full).unwrap_or(false);
            let mut told = told.lock().unwrap();
            told.on_full_disk += usize::from(full && won.1.is_some());
            told.won.push(won);
        }
        Err(AppendError::Conflict) => {}
        // No spare was left; or it was taken for a dead one's, which it may be as well.
        Err(AppendError::Io { source, .. })
            if [io::ErrorKind::StorageFull, io::ErrorKind::NotFound].contains(&source.kind()) => {}
        Err(error) => panic!("{error}"),
    }
    if dice.roll(3) == 0 {
        let _ = log.reserve();
    }
}

/// One story. Answers how many contents were written while the disk was full.
fn play(dir: &Path, seed: u64) -> usize {
    let log = LinkLog::open(dir).unwrap();
    let told = Arc::new(Mutex::new(Told::default()));
    log.append(None, b"start").unwrap();
    log.reserve().unwrap();
    {
        let mut told = told.lock().unwrap();
        told.tried.push((0, b"start".to_vec()));
        told.won.push((0, Some(b"start".to_vec())));
    }
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let stage = Arc::new(Stage::default());
    stage.state.lock().unwrap().leftovers_at_once = dice.roll(4) == 0;
    let threads: Vec<_> = (0..ACTORS)
        .map(|id| {
            let (log, told, stage) = (log.clone(), Arc::clone(&told), Arc::clone(&stage));
            let mut dice = Dice(dice.0.wrapping_add(id as u64 + 1) | 1);
            std::thread::spawn(move || {
                ACTOR.set(Some(Actor { id, stage: Arc::clone(&stage) }));
                let ended = catch_unwind(AssertUnwindSafe(|| {
                    for n in 0..ACTS {
                        point();
                        act(&log, &mut dice, id, n, &told);
                    }
                }));
                let mut state = stage.state.lock().unwrap();
                state.ended.insert(id);
                state.turn = None;
                stage.moved.notify_all();
                drop(state);
                match ended {
                    Err(why) if !why.is::<Killed>() => resume_unwind(why),
                    _ => {}
                }
            })
        })
        .collect();
    direct(&stage, &mut dice);
    for thread in threads {
        thread.join().unwrap_or_else(|_| panic!("seed {seed}"));
    }
    let told = told.lock().unwrap();
    judge(&told, seed);
    let spares = crate::folder::list(dir).unwrap().spares.len();
    assert!(spares <= 2 * crate::spare::SPARES + ACTORS, "seed {seed}: {spares} spares");
    // Whatever was left behind, the log goes on.
    let newest = log.read().unwrap().unwrap();
    let seq = log.append(Some(newest.seq), b"end").unwrap();
    assert_eq!(log.read().unwrap().unwrap().seq, seq);
    told.on_full_disk
}

/// Lets the actors take their steps; most of the time the same one goes on for a while, and some
/// rest for long.
fn direct(stage: &Stage, dice: &mut Dice) {
    let mut current = 0;
    let mut resting: Option<usize> = None;
    loop {
        let idle = |state: &mut State| {
            state.turn.is_some() || state.waiting.len() + state.ended.len() < ACTORS
        };
        let state = stage.state.lock().unwrap();
        let mut state = stage.moved.wait_while(state, idle).unwrap();
        if state.ended.len() == ACTORS {
            return;
        }
        match dice.roll(400) {
            0..40 => resting = Some(dice.roll(ACTORS)),
            40..44 => resting = None,
            44..50 => state.disk_full = !state.disk_full,
            50 if state.killed.len() + 1 < ACTORS => {
                let victim = dice.roll(ACTORS);
                state.killed.insert(victim);
            }
            _ => {}
        }
        if !state.waiting.contains(&current) || Some(current) == resting || dice.roll(6) == 0 {
            let mut able: Vec<usize> = state.waiting.iter().copied().collect();
            able.sort_unstable();
            let awake: Vec<usize> =
                able.iter().copied().filter(|id| Some(*id) != resting).collect();
            let from = if awake.is_empty() { &able } else { &awake };
            current = from[dice.roll(from.len())];
        }
        state.turn = Some(current);
        stage.moved.notify_all();
    }
}

fn judge(told: &Told, seed: u64) {
    let mut values: BTreeMap<u64, Option<Vec<u8>>> = BTreeMap::new();
    for (seq, content) in &told.won {
        let before = values.insert(*seq, content.clone());
        assert!(before.is_none(), "seed {seed}: two have won number {seq}");
    }
    for (seq, bytes) in &told.seen {
        let text = || String::from_utf8_lossy(&bytes[..bytes.len().min(20)]).into_owned();
        let whole = told.tried.iter().any(|(at, tried)| at <= seq && tried == bytes);
        assert!(whole, "seed {seed}: number {seq} was read as {}…, which nobody wrote", text());
        match values.get(seq) {
            Some(Some(content)) => {
                assert!(content == bytes, "seed {seed}: number {seq} was read as {}…", text());
            }
            // A renewal, or its writer was killed before it knew: all have to see the same.
            _ => drop(values.insert(*seq, Some(bytes.clone()))),
        }
    }
    // A version is new, or the same again.
    let mut before: Option<(u64, &Vec<u8>)> = None;
    for (seq, content) in &values {
        let Some(content) = content else { continue };
        let is_new = told.tried.iter().any(|(at, tried)| at == seq && tried == content);
        let again = before.is_none_or(|(at, old)| at + 1 < *seq || old == content);
        assert!(is_new || again, "seed {seed}: number {seq} is neither new nor a renewal");
        before = Some((*seq, content));
    }
}

/// Memory, where the machine offers it: the stories sync a lot.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir()
        && let Ok(dir) = tempfile::tempdir_in(memory)
    {
        return dir;
    }
    tempfile::tempdir().unwrap()
}

#[test]
fn however_writers_are_stopped_and_killed_one_wins_and_all_read_what_it_wrote() {
    let stories = std::env::var("LARDER_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(120);
    let dir = folder();
    let mut on_full_disk = 0;
    for seed in 1..=stories {
        let story = dir.path().join(seed.to_string());
        on_full_disk += play(&story, seed);
        fs::remove_dir_all(story).unwrap();
    }
    assert!(on_full_disk > 0, "spares were never used");
}
