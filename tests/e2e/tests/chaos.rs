//! Random `kill -9` of `serve` during random operations.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_e2e::dice::{Dice, number};
use larder_e2e::world::connect;
use larder_e2e::{check_tidy, tidy};
use larder_testkit::larder::CliOutput;
use larder_testkit::{Larder, PASSWORD, Reply, eventually};

const NAMES: [&str; 3] = ["a", "b", "c"];

/// What was asked for and answered with an operation.
#[derive(Default)]
struct Accepted {
    operations: Vec<String>,
    actions: BTreeMap<&'static str, usize>,
}

async fn ask(larder: &Larder, dice: &mut Dice, accepted: &mut Accepted) -> Result<()> {
    let name = NAMES[usize::try_from(dice.below(3))?];
    let (action, args): (&'static str, Vec<&str>) = match dice.below(8) {
        0 => ("instance-create", vec!["--architecture", "standalone"]),
        1 | 2 => ("instance-create", vec!["--architecture", "read-write"]),
        3 => ("instance-delete", vec!["instance", "delete", name, "--permanent", "--yes"]),
        4 | 5 => ("instance-restart", vec!["instance", "restart", name]),
        _ => ("instance-failover", vec!["instance", "failover", name]),
    };
    let mut all = args.clone();
    if action == "instance-create" {
        all = vec!["instance", "create", name, "--engine", "redis-7.0", "--password-stdin"];
        all.extend(args);
    }
    all.extend(["-o", "json"]);
    let CliOutput { code, stdout, stderr } =
        larder.cli_with_input(&all, &format!("{PASSWORD}\n")).await?;
    match code {
        0 => {
            let operation: serde_json::Value = serde_json::from_str(&stdout)?;
            accepted.operations.push(operation["id"].as_str().context("no id")?.to_owned());
            *accepted.actions.entry(action).or_default() += 1;
        }
        // Refused, for the dice ask for nonsense too; or `serve` died under the request.
        1 | 3 => {}
        _ => anyhow::bail!("larder {all:?} ended with {code}: {stderr}"),
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_kills_of_serve_leave_no_orphan_and_lose_no_record() -> Result<()> {
    let kills = number("LARDER_CHAOS_KILLS", 8);
    let mut dice = Dice::thrown()?;
    let mut larder = Larder::started().await?;
    larder.expect_faults();
    let mut accepted = Accepted::default();
    for _ in 0..kills {
        for _ in 0..=dice.below(3) {
            ask(&larder, &mut dice, &mut accepted).await?;
        }
        // A random moment is the point here.
        tokio::time::sleep(Duration::from_millis(dice.below(1500))).await;
        larder.kill_serve().await?;
        larder.start_serve().await?;
    }

    for id in &accepted.operations {
        eventually(&format!("operation {id} ends"), Duration::from_secs(60), async || {
            let operation = larder.json(&["operation", "get", id]).await?;
            let state = operation["state"].as_str().unwrap_or_default();
            ensure!(state != "failed", "{operation}");
            Ok(["succeeded", "cancelled"].contains(&state).then_some(()))
        })
        .await?;
    }
    for instance in tidy::listed(&larder).await? {
        let instance =
            larder.wait_state(&instance.name, "running", Duration::from_secs(60)).await?;
        let mut connection = connect(instance.endpoint("write")?).await?;
        ensure!(matches!(connection.call(&["INCR", "n"]).await?, Reply::Integer(_)));
    }
    check_tidy(&larder).await?;

    let records = larder.json(&["record", "list"]).await?;
    for (action, count) in &accepted.actions {
        let recorded = records
            .as_array()
            .context("no array")?
            .iter()
            .filter(|r| r["action"] == *action && r["outcome"] == "accepted")
            .count();
        ensure!(recorded >= *count, "{count} times {action} accepted, {recorded} recorded");
    }
    larder.finish().await
}
