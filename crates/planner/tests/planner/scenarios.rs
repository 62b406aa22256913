//! Text scenarios: a world and what happens to it in a few lines, and what is planned, as text.
//!
//! `tests/scenarios/NAME.txt` is played and compared with `NAME.golden` beside it;
//! `UPDATE_GOLDEN=1 cargo test -p larder-planner` writes the golden files anew. Commands:
//!
//! ```text
//! instance ARCHITECTURE shards=N replicas=N workers=NAME/ZONE/SIZE,…   a creation begins
//! running ARCHITECTURE …   the same, created and settled already
//! plan                     show the plan
//! round [N]                do the plan, let agents act; shows steps
//! settle                   rounds until nothing is left to do; shows steps
//! freeze | thaw            nothing moves by itself, or does again
//! wait SECONDS             time passes
//! kill | start | silence | hear NODE…      server dies, starts; agent is cut off, heard again
//! hang NODE…              the server lives and answers nothing
//! vacate                   the lease has no holder
//! wipe NODE…               the server is dead and its volume gone
//! unlink NODE…             the replica's link is down
//! vanish NODE…             the container cluster holds the node no longer
//! worker NAME ready | cordoned | unreachable | lost      the last two take its nodes along
//! backend unknown | known [WORDS]  it says why
//! block NODE KIND WORDS    the container cluster says why the node cannot come to be
//! unblock NODE
//! leaving-volume NODE      its volume is marked for deletion, and it serves
//! delete | restart [NODE] | failover SHARD [NODE] [accept-data-loss]
//! resize SIZE | upgrade ENGINE | renew | scale [shards=N] [replicas=N]      another wish
//! set-password SECONDS     in which the former one is valid too
//! cancel                   the operation ends, and its wish with it
//! in-place                 running nodes can be given another memory
//! holds NODE SIZE          of data
//! refuses-to-start NODE
//! give-up                  the operation is marked as failed
//! ```

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use larder_model::agent::{ServerState, VolumeState};
use larder_model::plan::Plan;
use larder_model::{
    Architecture, EngineName, Hindered, Hindrance, HindranceKind, Millis, NodeId, OperationKind,
    WorkerState,
};

use crate::world::World;

#[test]
fn scenarios_are_planned_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("the folder of scenarios")
        .map(|entry| entry.expect("a folder entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no scenarios in {}", folder.display());
    let mut wrong = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a readable scenario");
        let played = play(&text);
        let golden = file.with_extension("golden");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&golden, &played).expect("a writable golden file");
        }
        if std::fs::read_to_string(&golden).ok().as_deref() != Some(played.as_str()) {
            wrong.push(format!("{}:\n{played}", golden.display()));
        }
    }
    assert!(wrong.is_empty(), "differs from\n{}", wrong.join("\n"));
}

fn play(text: &str) -> String {
    let mut world = None;
    let mut shown = String::new();
    for line in text.lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        writeln!(shown, "> {line}").expect("a string takes all");
        let words: Vec<&str> = line.split_whitespace().collect();
        if words[0] == "instance" {
            world = Some(instance(&words[1..]));
        } else if words[0] == "running" {
            let mut created = instance(&words[1..]);
            drop(created.settle());
            world = Some(created);
        } else {
            let world = world.as_mut().expect("`instance` comes first");
            command(world, &words, &mut shown);
        }
    }
    shown
}

fn instance(words: &[&str]) -> World {
    let architecture = Architecture::parse(words[0]).expect("an architecture");
    let options: BTreeMap<&str, &str> =
        words[1..].iter().map(|word| word.split_once('=').expect("name=value")).collect();
    let number = |name: &str| options.get(name).map_or(1, |text| text.parse().expect("a number"));
    let workers: Vec<&str> = options.get("workers").unwrap_or(&"w1").split(',').collect();
    World::new(architecture, number("shards"), number("replicas"), &workers)
}

fn command(world: &mut World, words: &[&str], shown: &mut String) {
    let (name, rest) = (words[0], &words[1..]);
    let now = world.now;
    match name {
        "plan" => write!(shown, "{}", world.plan()).expect("a string takes all"),
        "round" => {
            let rounds = rest.first().map_or(1, |n| n.parse().expect("a number"));
            for _ in 0..rounds {
                show(&world.round(), shown);
            }
        }
        "settle" => {
            for plan in world.settle() {
                show(&plan, shown);
            }
        }
        "freeze" => world.frozen = true,
        "thaw" => world.frozen = false,
        "wait" => world.now = now + Millis::secs(rest[0].parse().expect("seconds")),
        "backend" => {
            world.backend_unknown = rest[0] == "unknown";
            world.trouble = (rest.len() > 1).then(|| rest[1..].join(" "));
        }
        "block" => {
            let kind = HindranceKind::parse(rest[1]).expect("a kind of hindrance");
            let by = Hindrance::new(kind, rest[2..].join(" "));
            let sim = world.node(rest[0]);
            sim.silent = Some(now);
            sim.hindered = Some(Hindered { by, since: now });
        }
        "leaving-volume" => {
            let by = Hindrance::new(HindranceKind::VolumeLeaving, "has a volume that goes");
            world.node(rest[0]).hindered = Some(Hindered { by, since: now });
        }
        "unblock" => {
            let sim = world.node(rest[0]);
            sim.silent = None;
            sim.hindered = None;
        }
        "delete" => world.delete(),
        "vacate" => world.vacate(),
        "give-up" => world.desired.operation = None,
        "worker" => {
            let state = match rest[1] {
                "ready" => WorkerState::Ready,
                "cordoned" => WorkerState::Cordoned,
                "unreachable" => WorkerState::Unreachable,
                "lost" => WorkerState::Lost,
                other => panic!("no such state of a worker: {other}"),
            };
            if matches!(state, WorkerState::Unreachable | WorkerState::Lost) {
                world.lose_worker(rest[0], state);
            } else {
                let mut workers = world.workers.iter_mut();
                workers.find(|w| w.name.as_str() == rest[0]).expect("a worker").state = state;
            }
        }
        "restart" => world.begin(OperationKind::Restart {
            node: rest.first().map(|node| NodeId::new(*node).expect("a valid id")),
            run_ids: BTreeMap::new(),
        }),
        "resize" => {
            let former = world.desired.spec.memory;
            let memory = rest[0].parse().expect("a size");
            world.change(OperationKind::Resize { former }, |spec| spec.memory = memory);
        }
        "upgrade" => {
            let former = Some(world.desired.spec.engine.clone());
            let engine = EngineName::new(rest[0]).expect("an engine");
            world.change(OperationKind::Upgrade { former }, |spec| spec.engine = engine);
        }
        "renew" => {
            let former = world.desired.spec.revision;
            world.change(OperationKind::Renew { former }, |spec| spec.revision += 1);
        }
        "scale" => {
            let (former_shards, former_replicas) =
                (world.desired.spec.shards, world.desired.spec.replicas);
            let kind = OperationKind::Scale {
                former_shards,
                former_replicas,
                share_slots: rest.iter().any(|word| word.starts_with("shards=")),
                paused: false,
            };
            world.change(kind, |spec| {
                for word in rest {
                    let (name, number) = word.split_once('=').expect("name=number");
                    let number = number.parse().expect("a number");
                    match name {
                        "shards" => spec.shards = number,
                        "replicas" => spec.replicas = number,
                        other => panic!("no such count: {other}"),
                    }
                }
            });
        }
        "set-password" => {
            let revision = world.desired.users_revision + 1;
            let seconds = rest[0].parse().expect("seconds");
            world.desired.users_revision = revision;
            world.desired.former_password_until = Some(now + Millis::secs(seconds));
            world.change(OperationKind::SetPassword { revision }, |_| {});
        }
        "in-place" => world.desired.policy.resizes_in_place = true,
        "holds" => world.node(rest[0]).used_memory = rest[1].parse().expect("a size"),
        "refuses-to-start" => {
            let problem = larder_model::agent::Problem {
                code: larder_model::agent::ProblemCode::ServerWillNotStart,
                message: "it says no".into(),
            };
            let sim = world.node(rest[0]);
            (sim.state, sim.problem) = (ServerState::Dead, Some(problem));
        }
        "cancel" => world.end_operation(),
        "failover" => world.begin(OperationKind::Failover {
            shard: rest[0].parse().expect("a shard"),
            to: rest
                .get(1)
                .filter(|word| **word != "accept-data-loss")
                .map(|node| NodeId::new(*node).expect("a valid id")),
            accept_data_loss: rest.contains(&"accept-data-loss"),
            from: None,
            without_primary: false,
        }),
        _ => {
            for node in rest {
                if name == "vanish" {
                    world.vanish(&NodeId::new(*node).expect("a valid id"));
                    continue;
                }
                if name == "hang" {
                    world.hang(node);
                    continue;
                }
                let sim = world.node(node);
                match name {
                    "kill" => sim.state = ServerState::Dead,
                    "start" => sim.state = ServerState::Absent,
                    "outdate" => sim.outdated = true,
                    "silence" => sim.silent = Some(now),
                    "hear" => sim.silent = None,
                    "unlink" => sim.link_up = false,
                    "wipe" => {
                        sim.state = ServerState::Dead;
                        sim.volume = VolumeState::Lost;
                    }
                    other => panic!("no such command: {other}"),
                }
            }
        }
    }
    if let Some(refusal) = world.failure.take() {
        writeln!(shown, "  operation failed: {refusal}").expect("a string takes all");
    }
}

/// The steps of a round and the state; rounds that only wait show what for.
fn show(plan: &Plan, shown: &mut String) {
    writeln!(shown, "  [{}]", plan.report.state).expect("a string takes all");
    for step in &plan.steps {
        writeln!(shown, "  do   {step}").expect("a string takes all");
    }
    if plan.steps.is_empty() {
        for wait in &plan.waits {
            writeln!(shown, "  wait {wait}").expect("a string takes all");
        }
    }
}
