//! The keeper as a process of its own, with real children.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use larder_keeper::{
    Belongings, KeeperPaths, Start, beat, ensure_running, files, is_running, process, restarted,
    running_pid,
};
use larder_linklog::LinkLog;
use larder_model::lease::{LeaseHolder, LeaseRecord};
use larder_model::local::{Guard, LeaseGuard, ProcessMark, ProcessSpec};
use larder_model::{InstanceId, Millis, NodeId};
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(15);

/// A data directory with a keeper. Everything that was started ends with it.
struct World {
    dir: tempfile::TempDir,
    keeper: Option<Child>,
    servers: Vec<Child>,
}

impl World {
    fn new() -> Self {
        let mut world = Self::without_keeper();
        world.start_keeper();
        world
    }

    fn without_keeper() -> Self {
        let dir = tempfile::tempdir().expect("temp dir");
        let paths = KeeperPaths::new(dir.path());
        for folder in [paths.desired_dir(), paths.state_dir()] {
            files::make_private_dir(&folder).expect("make");
        }
        Self { dir, keeper: None, servers: Vec::new() }
    }

    fn data(&self) -> &Path {
        self.dir.path()
    }

    fn paths(&self) -> KeeperPaths {
        KeeperPaths::new(self.data())
    }

    fn start_keeper(&mut self) {
        let keeper = Command::new(stub())
            .args(["keeper", "--data"])
            .arg(self.data())
            .stdin(Stdio::null())
            .spawn()
            .expect("start the keeper");
        self.keeper = Some(keeper);
        eventually("the keeper has its lock", || is_running(self.data()).expect("lock"));
        // One that is killed before it has named its folder of sockets leaves the folder behind.
        eventually("its sockets have a place", || self.data().join("run-dir").exists());
    }

    fn kill_keeper(&mut self) {
        let mut keeper = self.keeper.take().expect("a keeper runs");
        keeper.kill().expect("kill");
        keeper.wait().expect("reap");
    }

    fn spec(&self, name: &str, argv: &[&str]) -> ProcessSpec {
        ProcessSpec {
            name: name.to_owned(),
            instance: InstanceId::new("i-1").expect("id"),
            argv: argv.iter().map(|&a| a.to_owned()).collect(),
            log: self.data().join(format!("{name}.log")),
            ping_socket: None,
            guard: None,
            removed: false,
        }
    }

    /// A process that waits for ever, with an argument that no other test uses.
    fn sleeper(&self, name: &str) -> ProcessSpec {
        let file = self.data().join(format!("{name}.follow"));
        std::fs::write(&file, "").expect("write");
        self.spec(name, &["tail", "-f", &file.display().to_string()])
    }

    fn wish(&self, spec: &ProcessSpec) {
        files::write_json(&self.paths().desired(&spec.name), spec).expect("wish");
    }

    fn mark(&self, name: &str) -> Option<ProcessMark> {
        files::read_json(&self.paths().state(name)).ok().flatten()
    }

    fn living(&self, name: &str) -> Option<ProcessMark> {
        self.mark(name).filter(process::is_alive)
    }

    fn started(&self, name: &str) -> ProcessMark {
        let mut found = None;
        eventually("the process runs", || {
            found = self.living(name);
            found.is_some()
        });
        found.expect("it runs")
    }

    fn node_dir(&self, node: &str) -> PathBuf {
        let dir = self.data().join(node);
        files::make_private_dir(&dir.join("volume")).expect("make");
        dir
    }

    /// A real server as an agent would leave it behind, with or without its mark.
    fn server(&mut self, node: &str, with_mark: bool) -> u32 {
        let dir = self.node_dir(node);
        let server = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--unixsocket", "server.sock", "--dir"])
            .arg(dir.join("volume"))
            .current_dir(dir.join("volume"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("start a server");
        let pid = server.id();
        if with_mark {
            let mark = process::mark_of(pid).expect("proc").expect("alive");
            files::write_json(&dir.join("server.json"), &mark).expect("write");
        }
        self.servers.push(server);
        pid
    }

    fn guard(&self, node: &str, lease: Option<LeaseGuard>) -> Guard {
        let server_file = self.data().join(node).join("server.json");
        Guard { node: NodeId::new(node).expect("id"), server_file, lease }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            let _ = keeper.kill();
            let _ = keeper.wait();
        } else if let Ok(Some(pid)) = running_pid(self.data()) {
            if let Ok(Some(mark)) = process::mark_of(pid) {
                let _ = process::kill(&mark);
            }
            let deadline = Instant::now() + PATIENCE;
            while is_running(self.data()).unwrap_or(false) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        // Whatever names the data directory in its arguments: marks are not enough, because a
        // keeper may be killed before it has written one.
        let data = self.data().display().to_string();
        for pid in process::pids().expect("proc") {
            if process::arguments(pid).iter().any(|argument| argument.contains(&data))
                && let Ok(Some(mark)) = process::mark_of(pid)
            {
                let _ = process::kill(&mark);
            }
        }
        for mut server in self.servers.drain(..) {
            let _ = server.kill();
            let _ = server.wait();
        }
        if let Ok(run_dir) = std::fs::read_to_string(self.data().join("run-dir")) {
            let _ = std::fs::remove_dir_all(run_dir.trim());
        }
    }
}

fn stub() -> PathBuf {
    let own = std::env::current_exe().expect("own path");
    let target = own.parent().and_then(Path::parent).expect("target folder");
    target.join("examples").join("keeper_stub")
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("pid")).expect("pid");
    kill_process(pid, signal).expect("signal");
}

fn is_dead(pid: u32) -> bool {
    process::stat(pid).is_none_or(process::Stat::is_dead)
}

fn running_with(argv: &[String]) -> usize {
    let pids = process::pids().expect("proc");
    pids.filter(|pid| process::arguments(*pid).ends_with(argv)).count()
}

#[test]
fn a_killed_process_is_back_within_a_second() {
    let world = World::new();
    let spec = world.sleeper("agent-a");
    world.wish(&spec);
    let first = world.started("agent-a");
    // It has to have lived for a while, or it counts as a failed start.
    let lived = Instant::now();
    eventually("it has lived", || lived.elapsed() > Duration::from_millis(1100));
    let killed = Instant::now();
    signal(first.pid, Signal::KILL);
    eventually("it is back", || world.living("agent-a").is_some_and(|mark| mark != first));
    assert!(killed.elapsed() < Duration::from_secs(1), "it took {:?}", killed.elapsed());
    // While a process becomes another program it has no arguments for an instant.
    eventually("there is one of it", || running_with(&spec.argv) == 1);
}

#[test]
fn processes_outlive_the_keeper_and_are_adopted() {
    let mut world = World::new();
    let specs = [world.sleeper("agent-a"), world.sleeper("relay-bb")];
    specs.iter().for_each(|spec| world.wish(spec));
    let before: Vec<_> = specs.iter().map(|spec| world.started(&spec.name)).collect();
    world.kill_keeper();
    assert!(before.iter().all(process::is_alive), "they died with the keeper");
    world.start_keeper();
    // A wish that is fulfilled later shows that the keeper has been through the folder.
    let later = world.sleeper("agent-ccc");
    world.wish(&later);
    world.started("agent-ccc");
    for (spec, mark) in specs.iter().zip(&before) {
        assert_eq!(world.started(&spec.name), *mark);
        assert_eq!(running_with(&spec.argv), 1, "doubled: {}", spec.name);
    }
    // Adopted means watched: one that is killed comes back.
    signal(before[0].pid, Signal::KILL);
    eventually("it is back", || world.living("agent-a").is_some_and(|mark| mark != before[0]));
}

#[test]
fn a_process_without_a_mark_is_found_by_its_command_line() {
    let mut world = World::new();
    let spec = world.sleeper("agent-a");
    world.wish(&spec);
    let before = world.started("agent-a");
    world.kill_keeper();
    std::fs::remove_file(world.paths().state("agent-a")).expect("remove");
    world.start_keeper();
    assert_eq!(world.started("agent-a"), before);
    assert_eq!(running_with(&spec.argv), 1);
}

#[test]
fn sigterm_ends_the_keeper_alone() {
    let mut world = World::new();
    world.wish(&world.sleeper("agent-a"));
    let mark = world.started("agent-a");
    let mut keeper = world.keeper.take().expect("a keeper runs");
    signal(keeper.id(), Signal::TERM);
    assert!(keeper.wait().expect("reap").success());
    assert!(process::is_alive(&mark));
    assert!(!is_running(world.data()).expect("lock"));
}

#[test]
fn what_is_removed_goes_with_its_server_and_its_files() {
    let mut world = World::new();
    let server = world.server("n-1", true);
    let mut spec = world.sleeper("agent-n-1");
    spec.guard = Some(world.guard("n-1", None));
    world.wish(&spec);
    let agent = world.started("agent-n-1");
    spec.removed = true;
    world.wish(&spec);
    eventually("the wish is gone", || !world.paths().desired("agent-n-1").exists());
    assert!(!process::is_alive(&agent), "the agent lives");
    assert!(is_dead(server), "the server lives");
    assert!(!world.paths().state("agent-n-1").exists());
    assert_eq!(running_with(&spec.argv), 0);
}

#[test]
fn a_removed_server_is_found_without_its_mark() {
    let mut world = World::without_keeper();
    let server = world.server("n-1", false);
    let boot = serde_json::json!({
        "config": {
            "renderer": 1, "node": "n-1", "instance": "i-1", "instance_name": "one", "shard": 0,
            "zone": null, "mode": "leased", "engine": "redis-7.0",
            "address": { "host": "127.0.0.1", "port": 17000 },
            "memory": 1, "maxmemory": 1, "cluster_node_timeout": 5000, "bootstrap": true,
            "initialized": false, "members": [], "election": {}, "generation": 1
        },
        "server_binary": std::fs::read_link(format!("/proc/{server}/exe")).expect("exe"),
        "volume": "/v", "run_dir": "/r", "lease_dir": "/l", "route_dir": "/o"
    });
    files::write_json(&world.data().join("n-1/agent.json"), &boot).expect("write");
    let mut spec = world.sleeper("agent-n-1");
    spec.guard = Some(world.guard("n-1", None));
    spec.removed = true;
    world.wish(&spec);
    world.start_keeper();
    eventually("the wish is gone", || !world.paths().desired("agent-n-1").exists());
    assert!(is_dead(server), "the server lives");
}

#[test]
fn only_the_server_whose_lease_goes_stale_is_killed() {
    let mut world = World::new();
    let (stale, renewed) = (world.server("n-1", true), world.server("n-2", true));
    let mut leases = Vec::new();
    for node in ["n-1", "n-2"] {
        let lease_dir = world.data().join(format!("lease-{node}"));
        let log = LinkLog::open(&lease_dir).expect("open");
        let record = LeaseRecord {
            epoch: 1,
            holder: Some(LeaseHolder {
                node: NodeId::new(node).expect("id"),
                run_id: "r".to_owned(),
            }),
            previous: None,
            failovers: Vec::new(),
        };
        let seq = log.append(None, &serde_json::to_vec(&record).expect("json")).expect("append");
        leases.push((log, seq));
        let mut spec = world.sleeper(&format!("agent-{node}"));
        let lease = LeaseGuard { lease_dir, lease_ttl: Millis(3000), fence_margin: Millis(700) };
        spec.guard = Some(world.guard(node, Some(lease)));
        world.wish(&spec);
    }
    let (log, mut seq) = leases.pop().expect("two leases");
    let start = Instant::now();
    eventually("the stale one is dead", || {
        seq = log.renew(seq).expect("renew");
        is_dead(stale)
    });
    assert!(start.elapsed() > Duration::from_millis(1500), "too early");
    assert!(start.elapsed() < Duration::from_millis(4000), "took {:?}", start.elapsed());
    assert!(!is_dead(renewed), "the renewed one was killed too");
}

#[test]
fn a_process_that_keeps_ending_is_started_ever_more_rarely() {
    let world = World::new();
    let starts = world.data().join("starts");
    let script = format!("echo x >> {}", starts.display());
    world.wish(&world.spec("agent-a", &["sh", "-c", &script]));
    let begin = Instant::now();
    // At 0, 0.1, 0.3, 0.7, 1.5 s and so on, later when the machine is busy.
    eventually("two seconds are over", || begin.elapsed() > Duration::from_secs(2));
    let count = std::fs::read_to_string(&starts).expect("starts").lines().count();
    assert!((2..=6).contains(&count), "{count} starts in two seconds");
}

#[test]
fn a_broken_wish_is_skipped_and_the_others_are_fulfilled() {
    let world = World::new();
    std::fs::write(world.paths().desired("agent-a"), "{ torn").expect("write");
    world.wish(&world.sleeper("agent-b"));
    world.started("agent-b");
    assert!(world.mark("agent-a").is_none());
    let repaired = world.sleeper("agent-a");
    world.wish(&repaired);
    world.started("agent-a");
}

#[test]
fn a_stopped_process_is_replaced() {
    let world = World::new();
    world.wish(&world.sleeper("agent-a"));
    let first = world.started("agent-a");
    signal(first.pid, Signal::STOP);
    eventually("another one runs", || world.living("agent-a").is_some_and(|mark| mark != first));
    assert!(!process::is_alive(&first));
}

#[test]
fn a_changed_command_line_restarts_that_process_alone() {
    let world = World::new();
    let (mut one, mut other) = (world.sleeper("agent-a"), world.sleeper("agent-bb"));
    world.wish(&one);
    world.wish(&other);
    let (first, kept) = (world.started("agent-a"), world.started("agent-bb"));
    one.argv.push("/dev/null".to_owned());
    world.wish(&one);
    other.guard = Some(world.guard("n-1", None));
    world.wish(&other);
    eventually("it restarts", || world.living("agent-a").is_some_and(|mark| mark != first));
    assert!(!process::is_alive(&first));
    assert_eq!(world.started("agent-bb"), kept, "a changed guard restarted its agent");
}

#[test]
fn a_command_line_that_changed_while_no_keeper_ran_is_noticed() {
    let mut world = World::new();
    let mut spec = world.sleeper("agent-a");
    world.wish(&spec);
    let first = world.started("agent-a");
    world.kill_keeper();
    spec.argv.push("/dev/null".to_owned());
    world.wish(&spec);
    world.start_keeper();
    eventually("it restarts", || world.living("agent-a").is_some_and(|mark| mark != first));
    assert!(!process::is_alive(&first));
}

#[test]
fn a_vanished_wish_removes_nothing() {
    let world = World::new();
    world.wish(&world.sleeper("agent-a"));
    let mark = world.started("agent-a");
    std::fs::remove_file(world.paths().desired("agent-a")).expect("remove");
    world.wish(&world.sleeper("agent-bb"));
    world.started("agent-bb");
    assert!(process::is_alive(&mark));
}

#[test]
fn output_is_appended_to_the_log_and_children_have_their_own_session() {
    let world = World::new();
    let script = format!("echo hello; exec tail -f {}", world.paths().lock().display());
    world.wish(&world.spec("agent-a", &["sh", "-c", &script]));
    let mark = world.started("agent-a");
    let log = world.data().join("agent-a.log");
    eventually("it has written", || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.starts_with("hello\n"))
    });
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", mark.pid)).expect("stat");
    let fields: Vec<&str> = stat[stat.rfind(')').expect("name") + 2..].split(' ').collect();
    // Fields 5 and 6 of proc(5): group and session.
    assert_eq!(fields[2], mark.pid.to_string(), "group");
    assert_eq!(fields[3], mark.pid.to_string(), "session");
}

#[test]
fn ensure_running_starts_one_keeper() {
    let world = World::without_keeper();
    let first = ensure_running(world.data(), &stub()).expect("start");
    let Start::Started { pid } = first else { panic!("nobody ran: {first:?}") };
    assert_eq!(ensure_running(world.data(), &stub()).expect("again"), Start::AlreadyRunning);
    eventually("its sockets have a place", || world.data().join("run-dir").exists());
    eventually("it names itself", || running_pid(world.data()).expect("pid") == Some(pid));
}

#[test]
fn ensure_running_says_where_the_reason_is() {
    let world = World::without_keeper();
    let error = ensure_running(world.data(), Path::new("/bin/false")).expect_err("it ends");
    assert!(error.to_string().contains("keeper.log"), "{error}");
}

#[test]
fn a_keeper_whose_folder_was_replaced_leaves() {
    let mut world = World::new();
    std::fs::remove_file(world.paths().lock()).expect("remove");
    let mut keeper = world.keeper.take().expect("a keeper runs");
    eventually("it leaves", || keeper.try_wait().expect("wait").is_some());
}

#[test]
fn the_next_keeper_goes_on_with_a_process_whose_wish_is_damaged() {
    let mut world = World::new();
    world.wish(&world.sleeper("p"));
    let before = world.started("p");
    world.kill_keeper();
    std::fs::write(world.paths().desired("p"), "garbage").expect("damage");
    world.start_keeper();
    process::kill(&before).expect("kill");
    eventually("another has taken its place", || world.living("p").is_some_and(|m| m != before));
}

#[test]
fn a_restart_and_its_cause_are_on_record() {
    let mut world = World::new();
    world.wish(&world.sleeper("p"));
    let first = world.started("p");
    assert!(restarted(world.data()).expect("read").is_empty());
    process::kill(&first).expect("kill");
    eventually("it is noted", || restarted(world.data()).expect("read").len() == 1);
    let seen = restarted(world.data()).expect("read").remove(0);
    assert_eq!((seen.name.as_str(), seen.restarts), ("p", 1));
    assert_eq!(seen.how, "it was killed by signal 9");

    world.kill_keeper();
    let second = world.living("p").expect("it outlives the keeper");
    process::kill(&second).expect("kill");
    eventually("it is gone", || is_dead(second.pid));
    world.start_keeper();
    eventually("it is noted", || restarted(world.data()).expect("read")[0].restarts == 2);
}

#[test]
fn a_keeper_that_turns_leaves_signs_of_life_and_a_stopped_one_none() {
    let world = World::new();
    let first = beat(world.data()).expect("lock").expect("a keeper");
    eventually("a sign of life", || {
        beat(world.data()).expect("lock").is_some_and(|b| b != first && b.keeper == first.keeper)
    });
    let handle = process::Handle::open(&first.keeper).expect("open").expect("it runs");
    handle.signal(Signal::STOP).expect("stop");
    eventually("it is stopped", || {
        process::stat(first.keeper.pid).is_some_and(process::Stat::is_stopped)
    });
    let last = beat(world.data()).expect("lock").expect("it holds its lock");
    // Longer than between two of its signs.
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        assert_eq!(beat(world.data()).expect("lock").as_ref(), Some(&last), "it is stopped");
        std::thread::sleep(Duration::from_millis(50));
    }
    handle.signal(Signal::CONT).expect("continue");
    eventually("another sign of life", || {
        beat(world.data()).expect("lock").is_some_and(|b| b != last && b.keeper == last.keeper)
    });
}

#[test]
fn everything_is_found_though_its_folders_and_files_are_gone() {
    let mut world = World::new();
    world.wish(&world.sleeper("p"));
    let process = world.started("p");
    let server = world.server("instances/i-1/nodes/n-9", true);
    let volume = world.data().join("instances/i-1/nodes/n-9/volume");
    eventually("the server is up", || volume.join("server.sock").exists());
    // A person's shell in the same folder is not ours.
    let mut shell = Command::new("sleep").arg("60").current_dir(&volume).spawn().expect("spawn");
    std::fs::remove_dir_all(world.data().join("instances")).expect("remove");
    std::fs::remove_file(world.paths().desired("p")).expect("remove");
    std::fs::write(world.paths().lock(), "garbage").expect("damage");
    let found = Belongings::find(world.data()).expect("find");
    shell.kill().expect("kill");
    shell.wait().expect("reap");
    let pids = |marks: &[ProcessMark]| marks.iter().map(|mark| mark.pid).collect::<Vec<_>>();
    assert_eq!(pids(&found.servers), [server]);
    assert_eq!(pids(&found.supervised), [process.pid]);
    assert_eq!(pids(&found.keepers), [world.keeper.as_ref().expect("it runs").id()]);
}

#[test]
fn a_server_whose_folder_was_deleted_is_removed_with_its_agent() {
    let mut world = World::new();
    let node = "instances/i-1/nodes/n-9";
    let server = world.server(node, true);
    let server_file = world.data().join(node).join("server.json");
    let guard = Guard { node: NodeId::new("n-9").expect("id"), server_file, lease: None };
    let spec = ProcessSpec { guard: Some(guard), ..world.sleeper("agent-n-9") };
    world.wish(&spec);
    world.started("agent-n-9");
    let socket = world.data().join(node).join("volume/server.sock");
    eventually("the server is up", || socket.exists());
    std::fs::remove_dir_all(world.data().join("instances")).expect("remove");
    world.wish(&ProcessSpec { removed: true, ..spec });
    eventually("the server is gone", || is_dead(server));
}
