//! Bad input: refused before anything starts, one structured error with the field at fault.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use larder_e2e::{check_tidy, tidy};
use larder_testkit::larder::{ADMIN_PASSWORD, CliOutput};
use larder_testkit::process::Kind;
use larder_testkit::{Larder, LarderOptions, PASSWORD, engines, http};
use serde_json::{Value, json};

async fn create(larder: &Larder, password: &str, args: &[&str]) -> Result<CliOutput> {
    let mut all = vec!["instance", "create"];
    all.extend(args);
    all.extend(["--password-stdin", "-o", "json"]);
    larder.cli_with_input(&all, &format!("{password}\n")).await
}

fn nothing_runs(larder: &Larder) -> Result<()> {
    let other: Vec<_> = larder
        .processes()
        .into_iter()
        .filter(|p| !matches!(p.kind, Kind::Serve | Kind::Keeper))
        .collect();
    ensure!(other.is_empty(), "a refused request started {other:?}");
    let ports = tidy::ports_in_use(larder);
    ensure!(ports.is_empty(), "a refused request keeps the ports {ports:?}");
    let folders = std::fs::read_dir(larder.data().join("instances")).map(Iterator::count);
    ensure!(folders.unwrap_or(0) == 0, "a refused request left a folder");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creation_that_cannot_work_is_refused_before_anything_starts() -> Result<()> {
    let larder = Larder::started().await?;
    let good = PASSWORD;
    let standalone = ["--architecture", "standalone"];
    let cases: &[(&str, &[&str], &str)] = &[
        (good, &["a", "--engine", "redis-1.0", standalone[0], standalone[1]], "engine-not-found"),
        (
            good,
            &["a", "--engine", "redis-7.0", "--architecture", "proxy"],
            "architecture-not-available",
        ),
        (
            good,
            &["a", "--engine", "redis-7.0", "--architecture", "standalone", "--memory", "127MiB"],
            "memory-out-of-range",
        ),
        (
            good,
            &["a", "--engine", "redis-7.0", "--architecture", "standalone", "--memory", "65GiB"],
            "memory-out-of-range",
        ),
        (
            good,
            &["a", "--engine", "redis-7.0", "--architecture", "cluster", "--shards", "11"],
            "shards-out-of-range",
        ),
        (
            good,
            &["a", "--engine", "redis-7.0", "--architecture", "cluster", "--shards", "2"],
            "shards-out-of-range",
        ),
        (
            good,
            &["a", "--engine", "redis-7.0", "--architecture", "cluster", "--replicas", "0"],
            "replicas-out-of-range",
        ),
        (
            good,
            &["a", "--engine", "redis-7.0", "--architecture", "cluster", "--replicas", "4"],
            "replicas-out-of-range",
        ),
        (
            good,
            &[
                "a",
                "--engine",
                "redis-7.0",
                "--architecture",
                "read-write",
                "--read-only-nodes",
                "0",
            ],
            "replicas-out-of-range",
        ),
        (
            good,
            &[
                "a",
                "--engine",
                "redis-7.0",
                "--architecture",
                "read-write",
                "--read-only-nodes",
                "11",
            ],
            "replicas-out-of-range",
        ),
        (good, &["A_b", "--engine", "redis-7.0", "--architecture", "standalone"], "invalid-name"),
        (good, &["-a-", "--engine", "redis-7.0", "--architecture", "standalone"], ""),
        (
            "short1A",
            &["a", "--engine", "redis-7.0", "--architecture", "standalone"],
            "password-too-weak",
        ),
        (
            "onlylowercase",
            &["a", "--engine", "redis-7.0", "--architecture", "standalone"],
            "password-too-weak",
        ),
        (
            good,
            &[
                "a",
                "--engine",
                "redis-7.0",
                "--architecture",
                "standalone",
                "--container-cluster",
                "moon",
            ],
            "container-cluster-not-found",
        ),
        (
            good,
            &["a", "--engine", "redis-7.0", "--architecture", "standalone", "--project", "nobodys"],
            "not-found",
        ),
    ];
    for (password, args, code) in cases {
        let output = create(&larder, password, args).await?;
        let wanted =
            if code.is_empty() || *code == "architecture-not-available" { [1, 2] } else { [1, 1] };
        ensure!(wanted.contains(&output.code), "{args:?}: {output:?}");
        ensure!(output.stdout.trim().is_empty(), "{args:?} printed data: {output:?}");
        ensure!(output.code == 2 || output.stderr.contains(code), "{args:?}: {output:?}");
        ensure!(!output.stderr.contains(password), "the password is repeated: {}", output.stderr);
    }
    nothing_runs(&larder)?;
    ensure!(tidy::listed(&larder).await?.is_empty());

    larder.create("taken", &standalone).await?;
    let args = ["taken", "--engine", "redis-7.0", "--architecture", "standalone"];
    let output = create(&larder, good, &args).await?;
    ensure!(output.code == 1 && output.stderr.contains("name-taken"), "{output:?}");
    check_tidy(&larder).await?;
    larder.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn api_names_code_and_field_of_each_refusal() -> Result<()> {
    let larder = Larder::started().await?;
    let login = json!({ "user": "admin", "password": ADMIN_PASSWORD }).to_string();
    let session =
        http::request(larder.port(), "POST", "/api/v1/sessions", None, Some(&login)).await?;
    let session = session.json()?;
    let token = session["token"].as_str().context("no token")?.to_owned();
    let base = json!({
        "name": "a", "architecture": "standalone", "engine": "redis-7.0", "password": PASSWORD,
    });
    let with = |changes: Value| {
        let mut body = base.clone();
        for (key, value) in changes.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        body.to_string()
    };
    let cases = [
        (with(json!({ "engine": "redis-1.0" })), "engine-not-found", Some("engine")),
        (with(json!({ "memory_bytes": 1024 })), "memory-out-of-range", Some("memory")),
        (
            with(json!({ "architecture": "cluster", "shards": 11 })),
            "shards-out-of-range",
            Some("shards"),
        ),
        (
            with(json!({ "architecture": "cluster", "replicas": 0 })),
            "replicas-out-of-range",
            Some("replicas"),
        ),
        (
            with(json!({ "architecture": "proxy" })),
            "architecture-not-available",
            Some("architecture"),
        ),
        (with(json!({ "name": "Not a name" })), "invalid-name", Some("name")),
        (with(json!({ "password": "weak" })), "password-too-weak", Some("password")),
        (with(json!({ "password": null })), "password-missing", Some("password")),
        (with(json!({ "surprise": 1 })), "invalid-request", None),
        (with(json!({ "shards": "three" })), "invalid-request", None),
        ("{".to_owned(), "invalid-request", None),
        ("[]".to_owned(), "invalid-request", None),
    ];
    let path = "/api/v1/instances";
    for (body, code, field) in cases {
        let answer = http::request(larder.port(), "POST", path, Some(&token), Some(&body)).await?;
        ensure!((400..500).contains(&answer.status), "{body}: {answer:?}");
        let kind = answer.header("content-type").unwrap_or_default();
        ensure!(kind.starts_with("application/problem+json"), "{body}: {answer:?}");
        let problem = answer.json()?;
        ensure!(problem["code"] == code, "{body}: {problem}");
        ensure!(problem["status"] == answer.status, "{body}: {problem}");
        ensure!(["type", "title", "detail"].iter().all(|f| problem[f].is_string()), "{problem}");
        if let Some(field) = field {
            let named = problem["field"].as_str().unwrap_or_default();
            ensure!(named.starts_with(field), "{body}: {problem}");
        }
        ensure!(!answer.body.contains(PASSWORD), "the password is repeated: {}", answer.body);
    }
    for (method, path, token, status) in [
        ("GET", "/api/v1/instances", None, 401),
        ("GET", "/api/v1/instances", Some("not-a-token"), 401),
        ("GET", "/api/v1/instances/nobody", Some(token.as_str()), 404),
        ("GET", "/api/v1/nowhere", Some(token.as_str()), 404),
        ("PUT", "/api/v1/whoami", Some(token.as_str()), 405),
    ] {
        let answer = http::request(larder.port(), method, path, token, None).await?;
        ensure!(answer.status == status, "{method} {path}: {answer:?}");
        ensure!(answer.json()?["code"].is_string(), "{method} {path}: {answer:?}");
    }
    nothing_runs(&larder)?;
    larder.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creation_without_enough_ports_is_refused_and_keeps_none() -> Result<()> {
    let options = LarderOptions { ports: Some(4), ..LarderOptions::default() };
    let larder = Larder::start(options).await?;
    let args = ["a", "--engine", "redis-7.0", "--architecture", "cluster"];
    let output = create(&larder, PASSWORD, &args).await?;
    ensure!(output.code == 1 && output.stderr.contains("no-free-port"), "{output:?}");
    nothing_runs(&larder)?;
    // There is room for what is smaller.
    larder.create("b", &["--architecture", "standalone"]).await?;
    check_tidy(&larder).await?;
    larder.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creation_that_breaks_midway_fails_with_a_reason_and_is_deleted_without_a_trace()
-> Result<()> {
    let config = "[policy]\noperation_timeout = 8000\n".to_owned();
    let larder = Larder::start(LarderOptions { config, ..LarderOptions::default() }).await?;
    for part in ["server not started", "process keeps ending"] {
        larder.expect_log(part);
    }
    // An engine whose binary answers when it is probed and is gone when it is needed.
    let folder = tempfile::tempdir()?;
    let binary = folder.path().join("redis-server");
    std::fs::copy(engines::binary("redis-6.2")?, &binary)?;
    larder.cli(&["engine", "remove", "redis-6.2"]).await?;
    let engine = larder.json(&["engine", "add", &binary.to_string_lossy()]).await?;
    let engine = engine["name"].as_str().context("engine add prints no name")?.to_owned();
    std::fs::write(&binary, "#!/bin/sh\nexit 1\n")?;
    let args = [
        "broken",
        "--engine",
        &engine,
        "--architecture",
        "standalone",
        "--wait",
        "--timeout",
        "60s",
    ];
    let output = create(&larder, PASSWORD, &args).await?;
    ensure!(output.code == 1, "{output:?}");
    let shown = larder.wait_state("broken", "failed", std::time::Duration::from_secs(10)).await?;
    let plan = larder.cli(&["instance", "plan", "broken"]).await?;
    let reasons = format!("{plan}{:?}{}", shown.conditions, output.stderr);
    ensure!(
        reasons.contains("server") || reasons.contains("engine"),
        "no reason is given: {reasons}"
    );
    larder.cli(&["instance", "delete", "broken", "--permanent", "--yes", "--wait"]).await?;
    nothing_runs(&larder)?;
    check_tidy(&larder).await?;
    larder.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_end_with_the_code_that_scripts_rely_on() -> Result<()> {
    let larder = Larder::started().await?;
    let port = larder.port().to_string();
    for (args, codes) in [
        (&["version"][..], &[0][..]),
        (&["status"], &[0]),
        (&["whoami"], &[0]),
        (&["engine", "list"], &[0]),
        (&["engine", "add", "/bin/true"], &[1]),
        (&["engine", "add", "/nowhere/redis-server"], &[1]),
        (&["engine", "remove", "redis-1.0"], &[1]),
        (&["instance", "get", "nobody"], &[1]),
        (&["instance", "delete", "nobody", "--permanent", "--yes"], &[1]),
        (&["instance", "failover", "nobody"], &[1]),
        (&["instance", "restart", "nobody"], &[1]),
        (&["operation", "get", "o-nobody"], &[1]),
        (&["instance", "create"], &[2]),
        (&["instance", "create", "a", "--no-such-option"], &[2]),
        (&["instance", "get", "a", "-o", "yaml"], &[2]),
        (&["nonsense"], &[2]),
    ] {
        let output = larder.run(args).await?;
        ensure!(codes.contains(&output.code), "larder {args:?}: {output:?}");
        ensure!(output.code == 0 || output.stdout.is_empty(), "larder {args:?}: {output:?}");
    }
    let engines = larder.json(&["engine", "list"]).await?;
    let names: BTreeSet<&str> = engines
        .as_array()
        .context("no bare array")?
        .iter()
        .filter_map(|e| e["name"].as_str())
        .collect();
    ensure!(names.contains("redis-7.0") && engines[0]["version"].is_string(), "{engines}");
    ensure!(larder.json(&["instance", "list"]).await? == json!([]));

    let nowhere =
        ["login", "--server", "http://127.0.0.1:1", "--user", "admin", "--password-stdin"];
    ensure!(larder.cli_with_input(&nowhere, "x\n").await?.code == 3);
    let url = format!("http://127.0.0.1:{port}");
    let wrong = ["login", "--server", &url, "--user", "admin", "--password-stdin"];
    ensure!(larder.cli_with_input(&wrong, "Wrong-Pa55word\n").await?.code == 4);
    larder.cli(&["logout"]).await?;
    ensure!(larder.run(&["instance", "list"]).await?.code == 4);
    larder.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_no_cluster_is_not_bound_and_says_why() -> Result<()> {
    let larder = Larder::started().await?;
    let file = larder.data().join("kubeconfig");
    for (text, said) in [
        ("no: kubeconfig", "container-cluster-unusable"),
        (
            "apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{name: a, cluster: {server: 'https://127.0.0.1:1'}}]\ncontexts: [{name: a, context: {cluster: a, user: a}}]\nusers: [{name: a, user: {token: t}}]\n",
            "container-cluster-unusable",
        ),
    ] {
        std::fs::write(&file, text)?;
        let path = file.to_string_lossy().into_owned();
        let output =
            larder.run(&["container-cluster", "bind", "east", "--kubeconfig", &path]).await?;
        ensure!(output.code == 1 && output.stderr.contains(said), "{output:?}");
    }
    let all = larder.json(&["container-cluster", "list"]).await?;
    ensure!(all.as_array().is_some_and(|all| all.len() == 1), "{all}");
    larder.finish().await
}
