//! Random sequences of planned changes, half of them with a process killed meanwhile: each ends, and
//! what was acknowledged is there, but for the last moment before the kill of a server.

#![expect(clippy::print_stderr, reason = "the output of a test that failed has to hold the steps")]

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use larder_e2e::dice::{Dice, number};
use larder_e2e::world::Tested;
use larder_e2e::{check_tidy, cluster_is_whole, replication_is_whole};
use larder_testkit::process::kill9;
use larder_testkit::{Instance, Larder, PASSWORD, eventually};

const ENGINES: [&str; 4] = ["redis-6.2", "redis-7.0", "valkey-8.0", "valkey-9.1"];
const STEPS: u64 = 5;
const OTHER_PASSWORD: &str = "other-password-2";
/// For an operation that has to heal a killed node first, or to move slots on Valkey 8.
const ENDS: Duration = Duration::from_secs(300);
const WHOLE: Duration = Duration::from_secs(90);

#[derive(Clone, Copy, Debug)]
enum Wish {
    Nothing,
    Scale,
    Failover,
    Restart,
    Parameter,
    Password,
    Resize,
    Chain,
}

const WISHES: [Wish; 8] = [
    Wish::Nothing,
    Wish::Scale,
    Wish::Failover,
    Wish::Restart,
    Wish::Parameter,
    Wish::Password,
    Wish::Resize,
    Wish::Chain,
];

#[derive(Clone, Copy, Debug)]
enum Victim {
    Nobody,
    Serve,
    Agent,
    Server,
    Node,
}

const VICTIMS: [Victim; 8] = [
    Victim::Nobody,
    Victim::Nobody,
    Victim::Nobody,
    Victim::Nobody,
    Victim::Serve,
    Victim::Agent,
    Victim::Server,
    Victim::Node,
];

/// The command line of a wish that changes something; `None`: it has no meaning here.
fn command(wish: Wish, instance: &Instance, state: &mut State, dice: &mut Dice) -> Option<Command> {
    let is_cluster = instance.architecture == "cluster";
    let name = instance.name.as_str();
    let said = |args: &[&str]| Some(args.iter().map(|&arg| arg.to_owned()).collect::<Vec<_>>());
    let mut input = None;
    let args = match wish {
        Wish::Nothing => None,
        Wish::Scale if is_cluster => {
            let others: Vec<u32> = (3..=5).filter(|n| *n != instance.shards).collect();
            let shards = dice.of_these(&others)?.to_string();
            said(&["instance", "scale", name, "--shards", &shards])
        }
        Wish::Scale => {
            let now = u32::try_from(instance.nodes.len()).ok()?.saturating_sub(1);
            let others: Vec<u32> = (1..=4).filter(|n| *n != now).collect();
            let nodes = dice.of_these(&others)?.to_string();
            said(&["instance", "scale", name, "--read-only-nodes", &nodes])
        }
        Wish::Failover if is_cluster => {
            let shard = dice.below(u64::from(instance.shards)).to_string();
            said(&["instance", "failover", name, "--shard", &shard])
        }
        Wish::Failover => said(&["instance", "failover", name]),
        Wish::Restart => said(&["instance", "restart", name]),
        Wish::Parameter => {
            // One that servers take up at once, and one that they have to be made anew for.
            let set = match dice.below(3) {
                0 => format!("maxclients={}", 1_000 + dice.below(9_000)),
                _ => format!("hz={}", 10 + dice.below(90)),
            };
            said(&["parameter", "set", name, &set])
        }
        Wish::Password => {
            state.has_other_password ^= true;
            let new = if state.has_other_password { OTHER_PASSWORD } else { PASSWORD };
            input = Some(format!("{new}\n"));
            said(&["instance", "set-password", name, "--password-stdin", "--grace", "1h"])
        }
        Wish::Resize => {
            state.is_large ^= true;
            let memory = if state.is_large { "256MiB" } else { "128MiB" };
            said(&["instance", "resize", name, "--memory", memory])
        }
        Wish::Chain if is_cluster || instance.nodes.len() < 3 => None,
        Wish::Chain => {
            state.is_chained ^= true;
            let to = if state.is_chained { "on" } else { "off" };
            said(&["instance", "set-chained", name, to])
        }
    }?;
    Some(Command { args, input })
}

struct Command {
    args: Vec<String>,
    input: Option<String>,
}

/// What the last wish of its kind was.
#[derive(Default)]
struct State {
    has_other_password: bool,
    is_large: bool,
    is_chained: bool,
    /// An operation has failed: it may be so already.
    is_unsure: bool,
}

/// Gives the operation's id.
async fn begin(larder: &Larder, command: &Command, state: &State) -> Result<Option<String>> {
    let mut args: Vec<&str> = command.args.iter().map(String::as_str).collect();
    args.extend(["-o", "json"]);
    let input = command.input.as_deref().unwrap_or_default();
    let output = larder.cli_with_input(&args, input).await?;
    if output.code == 1 && state.is_unsure {
        eprintln!("refused, as it may: {}", output.stderr);
        return Ok(None);
    }
    ensure!(output.code == 0, "{args:?}: {output:?}");
    let operation: serde_json::Value = serde_json::from_str(&output.stdout)?;
    Ok(Some(operation["id"].as_str().context("an operation has an id")?.to_owned()))
}

/// Whether a server may have died.
async fn kill(tested: &mut Tested, victim: Victim, dice: &mut Dice) -> Result<bool> {
    let instance = tested.larder.get(&tested.instance.name).await?;
    let node = dice.of_these(&instance.nodes).context("no nodes")?;
    match victim {
        Victim::Nobody => return Ok(false),
        Victim::Serve => {
            tested.larder.kill_serve().await?;
            tested.larder.start_serve().await?;
            return Ok(false);
        }
        Victim::Agent => {
            drop(tested.larder.agent_pid(&node.id).map(kill9));
            return Ok(false);
        }
        // It may be on its way up or out.
        Victim::Server => drop(tested.larder.server_pid(&instance, &node.id).map(kill9)),
        Victim::Node => {
            drop(tested.larder.agent_pid(&node.id).map(kill9));
            drop(tested.larder.server_pid(&instance, &node.id).map(kill9));
        }
    }
    Ok(true)
}

/// Whether it has succeeded.
async fn ended(larder: &Larder, id: &str, was_disturbed: bool) -> Result<bool> {
    let operation = eventually(&format!("operation {id} ends"), ENDS, async || {
        let operation = larder.json(&["operation", "get", id]).await?;
        let is_over = !operation["finished_at"].is_null();
        ensure!(is_over, "it goes on: {}", operation["steps"]);
        Ok(Some(operation))
    })
    .await?;
    match operation["state"].as_str().unwrap_or_default() {
        "succeeded" => Ok(true),
        // It leaves the instance as it was.
        "failed" if was_disturbed => {
            eprintln!("failed, as it may: {}", operation["error"]);
            Ok(false)
        }
        _ => bail!("it has ended: {operation}"),
    }
}

async fn whole(tested: &Tested) -> Result<Instance> {
    let name = &tested.instance.name;
    let instance = tested.larder.wait_state(name, "running", WHOLE).await?;
    if instance.architecture == "cluster" {
        ensure!(instance.nodes.len() as u32 == 2 * instance.shards, "{:?}", instance.nodes);
        cluster_is_whole(&instance, WHOLE).await?;
    } else {
        replication_is_whole(&instance, WHOLE).await?;
    }
    tested.writes_again(WHOLE).await?;
    Ok(instance)
}

async fn sequence(is_cluster: bool, mut dice: Dice) -> Result<()> {
    let engine = dice.of_these(&ENGINES).context("no engines")?;
    let larder = Larder::started().await?;
    larder.expect_faults();
    let mut tested = match is_cluster {
        true => Tested::cluster(larder, 2, engine).await?,
        false => Tested::read_write(larder, 2, engine).await?,
    };
    let mut state = State::default();
    // For each writer, by its own clock.
    let mut faults: Vec<Vec<Duration>> = vec![Vec::new(); tested.writers.len()];
    for _ in 0..STEPS {
        let instance = whole(&tested).await?;
        let wish = *dice.of_these(&WISHES).context("no wishes")?;
        let victim = *dice.of_these(&VICTIMS).context("no victims")?;
        let command = command(wish, &instance, &mut state, &mut dice);
        eprintln!("{engine}: {wish:?} {:?}, {victim:?}", command.as_ref().map(|c| &c.args));
        let operation = match &command {
            Some(command) => begin(&tested.larder, command, &state).await?,
            None => None,
        };
        // A random moment is the point here.
        tokio::time::sleep(Duration::from_millis(dice.below(2_500))).await;
        let has_killed = kill(&mut tested, victim, &mut dice).await?;
        if has_killed {
            for (writer, faults) in tested.writers.iter().zip(&mut faults) {
                faults.push(writer.now());
            }
        }
        if let Some(id) = operation {
            let was_disturbed = !matches!(victim, Victim::Nobody);
            state.is_unsure |= !ended(&tested.larder, &id, was_disturbed).await?;
        }
    }
    let last = whole(&tested).await?;
    let (larder, instance, seen) = tested.stop().await?;
    let kind = if is_cluster { "discovery" } else { "write" };
    ensure!(last.endpoint(kind)? == instance.endpoint(kind)?, "the {kind} endpoint has moved");
    for (history, faults) in seen.histories.iter().zip(&faults) {
        let window = Duration::from_secs(2);
        history.check_lost_only_before(last.endpoint(kind)?, faults, window).await?;
    }
    check_tidy(&larder).await?;
    larder.cli(&["instance", "delete", &last.name, "--permanent", "--yes", "--wait"]).await?;
    check_tidy(&larder).await?;
    larder.finish().await
}

/// One in CI; `LARDER_SEQUENCES` of each kind by `make sequences`.
async fn sequences(is_cluster: bool) -> Result<()> {
    let mut dice = Dice::thrown()?;
    for n in 0..number("LARDER_SEQUENCES", 1) {
        let seed = if n == 0 { dice.seed() } else { dice.any() };
        eprintln!("sequence {n}: LARDER_CHAOS_SEED={seed}");
        sequence(is_cluster, Dice::of(seed)).await.with_context(|| format!("seed {seed}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_changes_and_kills_of_a_read_write_instance_lose_nothing_and_leave_nothing()
-> Result<()> {
    sequences(false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_changes_and_kills_of_a_cluster_lose_no_slot_and_leave_nothing() -> Result<()> {
    sequences(true).await
}
