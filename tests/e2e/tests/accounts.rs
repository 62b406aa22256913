//! Accounts: users besides `default`, on every server, whatever comes and goes, and never Larder's.

use std::time::Duration;

use anyhow::{Result, ensure};
use larder_e2e::world::Tested;
use larder_e2e::{check_tidy, replication_is_whole};
use larder_testkit::engines::engine;
use larder_testkit::process::kill9;
use larder_testkit::{Connection, Endpoint, Instance, Larder, PASSWORD, eventually};

const SOON: Duration = Duration::from_secs(30);
const SECRET: &str = "Pantry-2027";

/// Logs in as an account; `None` when the server does not let it in.
async fn login(endpoint: &Endpoint, user: &str, password: &str) -> Result<Option<Connection>> {
    let mut connection = Connection::open(endpoint, None, Duration::from_secs(2)).await?;
    let answer = connection.call(&["AUTH", user, password]).await?;
    Ok(answer.is_ok().then_some(connection))
}

async fn account(larder: &Larder, args: &[&str]) -> Result<()> {
    let wait = ["--password-stdin", "--wait", "--timeout", "1m"];
    let output = larder.cli_with_input(&[&["account"], args, &wait].concat(), SECRET).await?;
    ensure!(output.code == 0, "{args:?}: {output:?}");
    Ok(())
}

/// Whether the server lets the user use the command.
async fn may(connection: &mut Connection, command: &[&str]) -> Result<bool> {
    Ok(!connection.call(command).await?.text().starts_with("NOPERM"))
}

/// Which of reading, writing, writing elsewhere and managing the account may, at its own node.
async fn powers(endpoint: &Endpoint, user: &str) -> Result<[bool; 4]> {
    let Some(mut as_user) = login(endpoint, user, SECRET).await? else {
        anyhow::bail!("{user} cannot log in at {endpoint}");
    };
    let powers = [
        may(&mut as_user, &["GET", "app:1"]).await?,
        may(&mut as_user, &["SET", "app:1", "v"]).await?,
        may(&mut as_user, &["SET", "other", "v"]).await?,
        may(&mut as_user, &["CLIENT", "KILL", "ID", "999999"]).await?,
    ];
    for denied in [
        &["CONFIG", "GET", "*"][..],
        &["ACL", "SETUSER", user, "+@all"],
        &["ACL", "LIST"],
        &["REPLICAOF", "NO", "ONE"],
        &["SHUTDOWN"],
        &["DEBUG", "SLEEP", "0"],
        &["CLUSTER", "RESET"],
    ] {
        // Servers know DEBUG's own lock before they ask who it is.
        let answer = as_user.call(denied).await?.text();
        let locked = answer.starts_with("ERR DEBUG command not allowed");
        ensure!(answer.starts_with("NOPERM") || locked, "{user} may {denied:?}: {answer}");
    }
    ensure!(may(&mut as_user, &["ACL", "WHOAMI"]).await?, "{user} may ask who it is");
    Ok(powers)
}

async fn powers_everywhere(instance: &Instance, user: &str, expected: [bool; 4]) -> Result<()> {
    for node in &instance.nodes {
        let found = powers(&node.address()?, user).await?;
        ensure!(found == expected, "{user} at {}: {found:?}, not {expected:?}", node.id);
    }
    Ok(())
}

async fn roles_hold(engine: &str) -> Result<()> {
    let larder = Larder::started().await?;
    let args = ["--architecture", "standalone", "--engine", engine];
    let instance = larder.create("one", &args).await?;
    for (user, role) in [("boss", "administrator"), ("app", "read-write"), ("report", "read-only")]
    {
        account(&larder, &["create", "one", user, "--role", role]).await?;
    }
    let rules = "~app:* +@read +set";
    account(&larder, &["create", "one", "narrow", "--role", "custom", "--rules", rules]).await?;
    powers_everywhere(&instance, "boss", [true, true, true, true]).await?;
    powers_everywhere(&instance, "app", [true, true, true, false]).await?;
    powers_everywhere(&instance, "report", [true, false, false, false]).await?;
    powers_everywhere(&instance, "narrow", [true, true, false, false]).await?;
    // A script of a reader writes nothing either.
    let node = instance.nodes[0].address()?;
    let mut reader = login(&node, "report", SECRET).await?.expect("it may log in");
    reader.call(&["EVAL", "return redis.call('SET', KEYS[1], 'v')", "1", "written"]).await?;
    let written = reader.call(&["EXISTS", "written"]).await?.text();
    ensure!(written == "0", "a script of a reader has written: {written}");
    ensure!(may(&mut reader, &["CLIENT", "SETNAME", "report"]).await?);

    let nonsense = ["account", "create", "one", "odd", "--role", "custom", "--rules", "+nonsense"];
    let stdin = [&nonsense[..], &["--password-stdin"]].concat();
    let refused = larder.cli_with_input(&stdin, SECRET).await?;
    ensure!(refused.code == 1 && refused.stderr.contains("rules-refused"), "{refused:?}");
    ensure!(refused.stderr.contains("nknown command"), "in the engine's words: {refused:?}");
    ensure!(login(&node, "larder-check", "").await?.is_none(), "what was tried is gone");
    check_tidy(&larder).await?;
    larder.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_and_rules_hold() -> Result<()> {
    roles_hold("redis-6.2").await?;
    roles_hold(&engine()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_and_rules_hold_on_valkey() -> Result<()> {
    roles_hold("valkey-8.0").await?;
    roles_hold("valkey-9.1").await
}

/// Pain 12: accounts that break the operator, or are lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pain_12_accounts_outlive_servers_upgrades_and_new_nodes_and_go_when_they_are_deleted()
-> Result<()> {
    let tested = Tested::read_write(Larder::started().await?, 1, "redis-6.2").await?;
    let larder = &tested.larder;
    larder.expect_faults();
    account(larder, &["create", "rw", "app", "--role", "read-write"]).await?;
    let reserved = ["account", "create", "rw", "larder", "--role", "administrator"];
    let stdin = [&reserved[..], &["--password-stdin"]].concat();
    let refused = larder.cli_with_input(&stdin, SECRET).await?;
    ensure!(refused.code == 1 && refused.stderr.contains("invalid-name"), "{refused:?}");

    // A server that died reads them where it starts.
    let replica = tested.instance.replicas(0)[0].clone();
    kill9(larder.server_pid(&tested.instance, &replica.id)?)?;
    replication_is_whole(&tested.instance, SOON).await?;
    ensure!(login(&replica.address()?, "app", SECRET).await?.is_some(), "the account is lost");

    // New nodes have them, of another version too.
    for args in [
        &["instance", "scale", "rw", "--read-only-nodes", "2"][..],
        &["instance", "upgrade", "rw", "--engine", "redis-7.0"],
    ] {
        larder.cli(&[args, &["--wait", "--timeout", "2m"]].concat()).await?;
    }
    let now = larder.get("rw").await?;
    powers_everywhere_but_writes(&now).await?;

    // Another role holds for who is connected; a deleted account is gone, and disconnected.
    let write = now.primary(0)?.address()?;
    let mut as_app = login(&write, "app", SECRET).await?.expect("it may log in");
    ensure!(as_app.call(&["SET", "app:1", "v"]).await?.is_ok());
    let update = ["account", "update", "rw", "app", "--role", "read-only", "--wait"];
    larder.cli(&update).await?;
    ensure!(!may(&mut as_app, &["SET", "app:1", "v"]).await?, "it may still write");
    let shown = larder.json(&["account", "list", "rw"]).await?;
    ensure!(shown[0]["name"] == "app" && shown[0]["role"] == "read-only", "{shown}");
    ensure!(!shown.to_string().contains(SECRET));
    larder.cli(&["account", "delete", "rw", "app", "--wait"]).await?;
    eventually("it is disconnected", SOON, async || {
        Ok(as_app.call(&["PING"]).await.is_err().then_some(()))
    })
    .await?;
    ensure!(login(&write, "app", SECRET).await?.is_none(), "it may still log in");

    let (larder, instance, seen) = tested.stop().await?;
    for history in &seen.histories {
        history.check_nothing_lost(instance.endpoint("write")?).await?;
    }
    ensure!(login(instance.endpoint("write")?, "default", PASSWORD).await?.is_some());
    check_tidy(&larder).await?;
    larder.finish().await
}

/// Replicas take no writes from anybody.
async fn powers_everywhere_but_writes(instance: &Instance) -> Result<()> {
    ensure!(instance.nodes.len() == 3, "{:?}", instance.nodes);
    for node in &instance.nodes {
        let [reads, ..] = powers(&node.address()?, "app").await?;
        ensure!(reads, "the account cannot read at {}", node.id);
    }
    Ok(())
}
