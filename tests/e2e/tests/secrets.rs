//! Passwords and tokens appear where they must, and nowhere else.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use larder_testkit::process::{Kind, kill9};
use larder_testkit::{Connection, Larder, LarderOptions, eventually, http, logs};

const ADMIN: &str = "Adm1n-unmistakable-7Qx";
const TENANT: &str = "Ten4nt-unmistakable-9Zk";
const SOON: std::time::Duration = std::time::Duration::from_secs(30);

fn holds(bytes: &[u8], secret: &str) -> bool {
    bytes.windows(secret.len()).any(|window| window == secret.as_bytes())
}

fn check_file(path: &Path, secrets: &[(&str, &str)]) -> Result<()> {
    let bytes = std::fs::read(path).unwrap_or_default();
    for (what, secret) in secrets {
        ensure!(!holds(&bytes, secret), "{what} is in {}", path.display());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_in_no_log_argument_environment_answer_or_database() -> Result<()> {
    let options =
        LarderOptions { admin_password: Some(ADMIN.to_owned()), ..LarderOptions::default() };
    let larder = Larder::start(options).await?;
    larder.expect_faults();
    let args = [
        "instance",
        "create",
        "rw",
        "--engine",
        "redis-7.0",
        "--architecture",
        "read-write",
        "--password-stdin",
        "--wait",
        "--timeout",
        "60s",
        "-o",
        "json",
    ];
    let created = larder.cli_with_input(&args, &format!("{TENANT}\n")).await?;
    ensure!(created.code == 0, "{created:?}");
    let instance = larder.get("rw").await?;
    let token = larder.json(&["token", "create", "--name", "ci"]).await?;
    let token = token["token"].as_str().context("no token")?.to_owned();
    // Trouble talks most: a wrong password, a refusal, a killed server.
    let wrong = ["login", "--server", &larder.url(), "--user", "admin", "--password-stdin"]
        .map(str::to_owned);
    let wrong: Vec<&str> = wrong.iter().map(String::as_str).collect();
    let refused = larder.cli_with_input(&wrong, &format!("{TENANT}\n")).await?;
    ensure!(refused.code == 4, "{refused:?}");
    let again = larder.cli_with_input(&args, &format!("{TENANT}\n")).await?;
    ensure!(again.code == 1, "{again:?}");
    kill9(larder.server_pid(&instance, &instance.primary(0)?.id)?)?;
    eventually("a login works again", SOON, async || {
        let write = instance.endpoint("write")?;
        Ok(Connection::open(write, Some(TENANT), SOON).await.ok().map(drop))
    })
    .await?;
    larder.wait_state("rw", "running", SOON).await?;

    let mut system = Vec::new();
    for node in &instance.nodes {
        system.push(larder.system_password(&instance, &node.id)?);
    }
    ensure!(
        system.windows(2).all(|pair| pair[0] == pair[1]),
        "nodes have different system passwords"
    );
    let system = system[0].as_str();
    let everywhere = [
        ("the admin's password", ADMIN),
        ("the tenant's password", TENANT),
        ("a token", token.as_str()),
    ];
    let all: Vec<(&str, &str)> =
        everywhere.into_iter().chain([("the system password", system)]).collect();

    for process in larder.processes() {
        check_file(Path::new(&format!("/proc/{}/cmdline", process.pid)), &all)?;
        // `serve` was given the admin's password in its environment, by whoever started it.
        if process.kind != Kind::Serve {
            check_file(Path::new(&format!("/proc/{}/environ", process.pid)), &all)?;
        }
    }

    check_file(&larder.serve_log(), &all)?;
    let private = ["secrets.json", "users.acl", "redis.conf"];
    for path in logs::files_below(larder.data()) {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        // A node's own files hold the system password, for nobody else's eyes.
        if private.contains(&name) {
            check_file(&path, &everywhere)?;
            use std::os::unix::fs::PermissionsExt as _;
            let mode = std::fs::metadata(&path)?.permissions().mode() & 0o777;
            ensure!(mode == 0o600, "{} has mode {mode:o}", path.display());
        } else {
            check_file(&path, &all)?;
        }
    }

    let operation = larder.json(&["operation", "list", "--instance", "rw"]).await?;
    ensure!(!operation.as_array().context("no array")?.is_empty());
    let mut answers =
        vec![created.stdout, created.stderr, refused.stderr, again.stderr, operation.to_string()];
    for path in [
        "instances",
        "instances/rw",
        "instances/rw/plan",
        "operations",
        "events",
        "records",
        "tokens",
        "engines",
        "whoami",
        "status",
        "openapi.json",
    ] {
        let path = format!("/api/v1/{path}");
        let answer = http::request(larder.port(), "GET", &path, Some(&token), None).await?;
        ensure!(answer.status == 200, "{path}: {answer:?}");
        answers.push(answer.body);
        answers.extend(answer.headers.into_iter().map(|(_, value)| value));
    }
    for answer in &answers {
        for (what, secret) in &all {
            ensure!(!answer.contains(secret), "{what} is in an answer: {answer}");
        }
    }
    larder.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generated_password_is_shown_once_and_works() -> Result<()> {
    let larder = Larder::started().await?;
    let args = [
        "instance",
        "create",
        "one",
        "--engine",
        "redis-7.0",
        "--architecture",
        "standalone",
        "--generate-password",
        "--wait",
        "--timeout",
        "60s",
        "-o",
        "json",
    ];
    let shown: serde_json::Value = serde_json::from_str(&larder.cli(&args).await?)?;
    let password = shown["password"].as_str().context("no password is shown")?.to_owned();
    let instance = larder.get("one").await?;
    Connection::open(instance.endpoint("write")?, Some(&password), SOON).await?;
    let again = larder.cli(&["instance", "get", "one", "-o", "json"]).await?;
    ensure!(!again.contains(&password), "it is shown again");
    larder.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoked_tokens_and_changed_passwords_end_access() -> Result<()> {
    let larder = Larder::started().await?;
    let created = larder.json(&["token", "create", "--name", "ci"]).await?;
    let (id, token) =
        (created["id"].as_str().context("no id")?, created["token"].as_str().context("no token")?);
    let path = "/api/v1/whoami";
    let with = http::request(larder.port(), "GET", path, Some(token), None).await?;
    ensure!(with.status == 200, "{with:?}");
    larder.cli(&["token", "revoke", id]).await?;
    let without = http::request(larder.port(), "GET", path, Some(token), None).await?;
    ensure!(without.status == 401, "{without:?}");

    let changed = larder
        .cli_with_input(&["user", "update", "admin", "--password-stdin"], "Another-Pa55word\n")
        .await?;
    ensure!(changed.code == 0, "{changed:?}");
    let url = larder.url();
    let login = ["login", "--server", &url, "--user", "admin", "--password-stdin"];
    let old = larder
        .cli_with_input(&login, &format!("{}\n", larder_testkit::larder::ADMIN_PASSWORD))
        .await?;
    ensure!(old.code == 4, "{old:?}");
    let new = larder.cli_with_input(&login, "Another-Pa55word\n").await?;
    ensure!(new.code == 0, "{new:?}");
    larder.finish().await
}
