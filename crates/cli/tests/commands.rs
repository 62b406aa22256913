//! Whole commands against a server that answers as told: exit codes, output, the config file.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Mutex};

use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use clap::Parser as _;
use larder_cli::{Cli, Console, Environment, Exit, run_with};
use larder_model::Secret;
use serde_json::{Value, json};

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Sink {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

struct Ran {
    exit: Exit,
    out: String,
    err: String,
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.out))
    }
}

struct World {
    folder: tempfile::TempDir,
    server: String,
    /// Method, path with query, body, bearer of each request.
    requests: Arc<Mutex<Vec<(String, Value, String)>>>,
}

impl World {
    async fn new() -> Self {
        let requests: Arc<Mutex<Vec<_>>> = Arc::default();
        let seen = Arc::clone(&requests);
        let answer_all = move |request: Request| {
            let seen = Arc::clone(&seen);
            async move {
                let (parts, body) = request.into_parts();
                let line = format!("{} {}", parts.method, parts.uri);
                let bearer = parts
                    .headers
                    .get("authorization")
                    .map_or(String::new(), |value| value.to_str().unwrap().to_owned());
                let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
                let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                seen.lock().unwrap().push((line.clone(), body, bearer));
                answer(&line)
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer_all);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { folder: tempfile::tempdir().unwrap(), server, requests }
    }

    fn config(&self) -> std::path::PathBuf {
        self.folder.path().join("larder/config.json")
    }

    async fn run(&self, line: &str, stdin: &'static str) -> Ran {
        self.run_at(&self.server, line, stdin).await
    }

    fn environment(&self, server: &str) -> Environment {
        Environment {
            server: Some(server.to_owned()),
            config_file: Some(self.config()),
            ..Environment::default()
        }
    }

    async fn run_at(&self, server: &str, line: &str, stdin: &'static str) -> Ran {
        self.run_in(self.environment(server), line, stdin).await
    }

    async fn run_in(&self, environment: Environment, line: &str, stdin: &'static str) -> Ran {
        let (out, err) = (Sink::default(), Sink::default());
        let words = std::iter::once("larder").chain(line.split_whitespace());
        let cli = match Cli::try_parse_from(words) {
            Ok(cli) => cli,
            Err(error) => {
                assert_eq!(error.exit_code(), 2, "{error}");
                return Ran { exit: Exit::Usage, out: out.text(), err: error.to_string() };
            }
        };
        let mut console = Console {
            stdin: Box::new(stdin.as_bytes()),
            stdout: Box::new(out.clone()),
            stderr: Box::new(err.clone()),
            stdin_is_terminal: false,
            stdout_is_terminal: false,
            stderr_is_terminal: false,
            format: cli.globals.output,
        };
        let exit = run_with(cli.command, environment, &mut console).await;
        Ran { exit, out: out.text(), err: err.text() }
    }

    fn last(&self, start: &str) -> (String, Value, String) {
        let requests = self.requests.lock().unwrap();
        let found = requests.iter().rev().find(|(line, ..)| line.starts_with(start));
        found.unwrap_or_else(|| panic!("no {start} in {requests:?}")).clone()
    }
}

fn problem(status: u16, code: &str) -> Response {
    let body = json!({
        "type": format!("/api/v1/errors/{code}"), "title": "t", "status": status, "code": code,
        "detail": format!("sentence about {code}"), "field": null,
    });
    (StatusCode::from_u16(status).unwrap(), Json(body)).into_response()
}

fn operation(id: &str, state: &str) -> Value {
    let error = (state == "failed").then(|| {
        json!({ "type": "x", "title": "t", "status": 504, "code": "timeout", "detail": "too slow", "field": null })
    });
    json!({
        "id": id, "instance": "one", "instance_id": "i-1", "kind": "create", "state": state,
        "steps": [{ "name": "start-nodes", "state": "running", "progress": 0.5, "message": "1 of 2",
                    "started_at": "2026-11-22T13:12:17Z", "finished_at": null }],
        "progress": 0.25, "requested_by": "admin", "requested_from": "127.0.0.1",
        "created_at": "2026-11-22T13:12:17Z", "finished_at": null, "error": error,
    })
}

fn instance(name: &str) -> Value {
    let node = |id: &str, role: &str| {
        json!({
            "id": id, "shard": 0, "role": role, "state": "serving", "host": "127.0.0.1", "port": 21000,
            "pid": 7, "zone": null, "worker": "here", "replica_of": null,
            "link": if role == "replica" { json!("up") } else { Value::Null },
            "offset": 12, "lag_bytes": 0, "used_memory_bytes": 1_048_576, "slots": [],
            "last_seen_at": "2026-11-22T13:12:17Z",
        })
    };
    json!({
        "id": "i-1", "name": name, "project": "default", "description": "", "tags": { "a": "b" },
        "state": "running", "generation": 3, "observed_generation": 3,
        "created_at": "2026-11-22T13:12:17.5Z", "architecture": "read-write",
        "engine": "redis-7.0", "engine_version": "7.0.15", "memory_bytes": 134_217_728,
        "shards": 1, "replicas": 2, "read_only_nodes": 1, "chained": false,
        "read_from_replicas": false, "container_cluster": "local", "expose": null,
        "storage_class": "standard",
        "expose": null,
        "endpoints": { "write": { "host": "127.0.0.1", "port": 22000 },
                       "read": { "host": "127.0.0.1", "port": 22001 } },
        "nodes": [node("n-aaaaaaaaaaaa", "primary"), node("n-bbbbbbbbbbbb", "replica")],
        "conditions": [{ "type": "ready", "status": true, "reason": "all-serving",
                         "message": "every node serves", "since": "2026-11-22T13:12:17Z" }],
        "observed_at": "2026-11-22T13:12:18Z",
    })
}

fn answer(line: &str) -> Response {
    let path = line.split('?').next().unwrap_or(line);
    let accepted = |value: Value| (StatusCode::ACCEPTED, Json(value)).into_response();
    match path {
        "POST /wrong/api/v1/sessions" => problem(401, "login-failed"),
        "POST /api/v1/sessions" => {
            let session = json!({ "user": "admin", "role": "cloud-administrator",
                "token": "secret-token", "expires_at": "2026-12-22T13:12:17Z", "password_is_generated": true });
            (StatusCode::CREATED, Json(session)).into_response()
        }
        "DELETE /api/v1/sessions/current" | "PATCH /api/v1/users/admin" => {
            StatusCode::NO_CONTENT.into_response()
        }
        "GET /api/v1/whoami" => problem(401, "not-logged-in"),
        "GET /api/v1/projects" => problem(403, "not-allowed"),
        "GET /api/v1/engines" => (StatusCode::OK, "<html>").into_response(),
        "POST /api/v1/instances" if line.contains("dry_run") => Json(json!({
            "instance": null, "generation": 1, "state": "creating", "steps": ["a"], "waits": [],
            "text": "do a\n", "planned_at": null,
        }))
        .into_response(),
        "POST /api/v1/instances" => accepted(operation("o-done", "queued")),
        "POST /api/v1/instances/one/failover" => accepted(operation("o-failed", "queued")),
        "POST /api/v1/instances/one/restart" => accepted(operation("o-slow", "queued")),
        "DELETE /api/v1/instances/one" => accepted(operation("o-done", "queued")),
        "GET /api/v1/operations/o-done" => Json(operation("o-done", "succeeded")).into_response(),
        "GET /api/v1/operations/o-failed" => Json(operation("o-failed", "failed")).into_response(),
        "GET /api/v1/operations/o-slow" => Json(operation("o-slow", "running")).into_response(),
        "GET /api/v1/instances/one" | "GET /api/v1/instances/i-1" => {
            Json(instance("one")).into_response()
        }
        "GET /api/v1/instances" => {
            Json(json!([instance("one"), instance("a-longer-name-than-most")])).into_response()
        }
        "GET /api/v1/records" => Json(json!([{
            "id": 1, "at": "2026-11-22T13:12:17Z", "user": "=admin", "from": "127.0.0.1",
            "action": "login", "object": "session", "instance": null, "outcome": "accepted",
            "detail": { "a": 1 } }]))
        .into_response(),
        _ => problem(404, "not-found"),
    }
}

#[tokio::test]
async fn exit_codes_say_how_it_ended() {
    let world = World::new().await;
    for (line, exit, words) in [
        ("instance get one", Exit::Done, ""),
        ("instance get other", Exit::Failed, "not-found: sentence about not-found"),
        ("operation watch o-failed", Exit::Failed, "timeout: too slow"),
        ("instance failover one --wait", Exit::Failed, "timeout: too slow"),
        ("instance restart one --wait --timeout 1s", Exit::TimedOut, "o-slow"),
        ("whoami", Exit::NotAllowed, "larder login"),
        ("project list", Exit::NotAllowed, "not-allowed"),
        ("engine list", Exit::Unreachable, "not Larder's API"),
        ("instance delete one --permanent", Exit::Usage, "--yes"),
        ("record list --since yesterday", Exit::Usage, "not a time"),
        ("instance create one --engine e --architecture proxy", Exit::Usage, "proxy"),
        ("instance set-chained one maybe", Exit::Usage, "on, off"),
        ("instance delete one --recycle --yes", Exit::Usage, "recycle"),
        ("instance delete one --yes", Exit::Usage, "permanent"),
        ("instance update one", Exit::Usage, "--description"),
        ("instance failover one --accept-data-loss", Exit::Usage, "--to"),
        ("instance restart one --timeout soon", Exit::Usage, "length of time"),
        (
            "instance create one --engine e --architecture cluster --memory lots",
            Exit::Usage,
            "size",
        ),
        ("recycle list", Exit::Usage, "recycle"),
        ("instance", Exit::Usage, "create"),
    ] {
        let ran = world.run(line, "").await;
        assert_eq!(ran.exit, exit, "{line}: {} {}", ran.out, ran.err);
        assert!(ran.err.contains(words), "{line}: {}", ran.err);
        if exit != Exit::Done && !line.contains("watch") {
            assert_eq!(ran.out, "", "{line}: only data goes to stdout");
        }
    }
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let ran = world.run_at(&format!("http://{gone}"), "whoami", "").await;
    assert_eq!(ran.exit, Exit::Unreachable, "{}", ran.err);
    for (exit, code) in [
        (Exit::Done, 0),
        (Exit::Failed, 1),
        (Exit::Usage, 2),
        (Exit::Unreachable, 3),
        (Exit::NotAllowed, 4),
        (Exit::TimedOut, 5),
    ] {
        assert_eq!(exit.code(), code);
    }
}

#[tokio::test]
async fn login_keeps_its_token_in_a_private_file_and_shows_it_nowhere() {
    let world = World::new().await;
    let line = format!("login --server {} --user admin --password-stdin -o json", world.server);
    let ran = world.run(&line, "Hunter2-admin\nmore\n").await;
    assert_eq!(ran.exit, Exit::Done, "{}", ran.err);
    let (_, body, _) = world.last("POST /api/v1/sessions");
    assert_eq!(body["password"], "Hunter2-admin");
    assert!(!ran.out.contains("secret-token") && !ran.err.contains("secret-token"));
    assert!(ran.err.contains("larder user update admin"));
    assert_eq!(ran.json()["user"], "admin");
    let mode = std::fs::metadata(world.config()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    world.run("instance get one", "").await;
    assert_eq!(world.last("GET /api/v1/instances/one").2, "Bearer secret-token");
    let ran = world.run("logout", "").await;
    assert_eq!(ran.exit, Exit::Done, "{}", ran.err);
    assert!(!std::fs::read_to_string(world.config()).unwrap().contains("secret-token"));
    world.run("instance get one", "").await;
    assert_eq!(world.last("GET /api/v1/instances/one").2, "");
}

#[tokio::test]
async fn a_broken_config_file_is_not_guessed_around_nor_written_over() {
    let world = World::new().await;
    std::fs::create_dir_all(world.config().parent().unwrap()).unwrap();
    std::fs::write(world.config(), "{\"project\": \"payments\",").unwrap();
    let token = || Some(Secret::new("t"));
    let all_said = Environment { token: token(), ..world.environment(&world.server) };
    for line in [
        "instance delete one --permanent --yes",
        "instance list",
        "event list --follow",
        "login --user admin --password-stdin",
    ] {
        let ran = world.run_in(all_said.clone(), line, "hunter2\n").await;
        assert_eq!(ran.exit, Exit::Failed, "{line}: {}", ran.err);
        assert!(ran.err.contains("config.json"), "{}", ran.err);
    }
    assert!(world.requests.lock().unwrap().is_empty(), "nothing was asked of the server");
    assert_eq!(std::fs::read_to_string(world.config()).unwrap(), "{\"project\": \"payments\",");
    let ran = world.run_in(all_said.clone(), "instance list --project payments", "").await;
    assert_eq!(ran.exit, Exit::Done, "{}", ran.err);
    let ran = world.run_in(all_said, "operation get o-done", "").await;
    assert_eq!(ran.exit, Exit::Done, "{}", ran.err);
}

#[tokio::test]
async fn login_without_a_terminal_needs_the_password_on_stdin() {
    let world = World::new().await;
    let ran = world.run("login --user admin", "Hunter2-admin\n").await;
    assert_eq!(ran.exit, Exit::Usage);
    let ran = world.run("login --user admin --password-stdin", "").await;
    assert_eq!(ran.exit, Exit::Usage, "{}", ran.err);
}

#[tokio::test]
async fn login_reads_the_password_from_the_first_line_of_a_file() {
    let world = World::new().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    let line = |file: &std::path::Path| {
        let (server, file) = (&world.server, file.display());
        format!("login --server {server} --user admin --password-file {file}")
    };
    let ran = world.run(&line(&file), "").await;
    assert_eq!(ran.exit, Exit::Usage, "{}", ran.err);
    std::fs::write(&file, "\n").unwrap();
    let ran = world.run(&line(&file), "").await;
    assert_eq!(ran.exit, Exit::Usage, "{}", ran.err);
    std::fs::write(&file, "Hunter2-admin\nmore\n").unwrap();
    let ran = world.run(&line(&file), "").await;
    assert_eq!(ran.exit, Exit::Done, "{}", ran.err);
    assert_eq!(world.last("POST /api/v1/sessions").1["password"], "Hunter2-admin");
}

#[tokio::test]
async fn a_refused_login_does_not_answer_with_how_to_log_in() {
    let world = World::new().await;
    let line = format!("login --server {}/wrong --user admin --password-stdin", world.server);
    let ran = world.run(&line, "Hunter2-admin\n").await;
    assert_eq!(ran.exit, Exit::NotAllowed, "{}", ran.err);
    assert_eq!(ran.err, "error: login-failed: sentence about login-failed\n");
}

#[tokio::test]
async fn accepted_work_is_followed_by_how_to_watch_it_and_json_is_not() {
    let world = World::new().await;
    let ran = world.run("instance restart one", "").await;
    assert!(ran.err.contains("larder operation watch o-slow"), "{}", ran.err);
    let ran = world.run("instance restart one -o json", "").await;
    assert_eq!(ran.err, "");
}

#[tokio::test]
async fn create_prints_the_operation_and_with_wait_the_instance() {
    let world = World::new().await;
    let line = "instance create one --engine redis-7.0 --architecture read-write --memory 256MiB \
                --read-only-nodes 3 --tag a=b --tag c=d --description text --password-stdin -o json";
    let ran = world.run(line, "Hunter2-tenant\r\n").await;
    assert_eq!(ran.exit, Exit::Done, "{}", ran.err);
    assert_eq!(ran.json()["kind"], "create");
    let (_, body, _) = world.last("POST /api/v1/instances");
    assert_eq!(
        body,
        json!({
            "name": "one", "project": "default", "description": "text",
            "tags": { "a": "b", "c": "d" }, "architecture": "read-write", "engine": "redis-7.0",
            "memory_bytes": 268_435_456, "read_only_nodes": 3, "password": "Hunter2-tenant",
        })
    );
    let ran = world.run(&format!("{line} --wait"), "Hunter2-tenant\n").await;
    assert_eq!(ran.exit, Exit::Done, "{}", ran.err);
    assert_eq!(ran.json(), instance("one"));
    assert!(!ran.out.contains("Hunter2") && !ran.err.contains("Hunter2"));
    let ran = world
        .run("-o json instance create one --engine e --architecture cluster --dry-run", "")
        .await;
    assert_eq!(ran.json()["text"], "do a\n");
}

#[tokio::test]
async fn generated_password_is_shown_once() {
    let world = World::new().await;
    let line = "instance create one --engine e --architecture standalone --generate-password";
    for more in [" -o json", " -o json --wait"] {
        let ran = world.run(&format!("{line}{more}"), "").await;
        let sent = world.last("POST /api/v1/instances").1["password"].clone();
        assert_eq!(ran.json()["password"], sent);
        assert_eq!(ran.err, "");
    }
    let ran = world.run(line, "").await;
    let sent = world.last("POST /api/v1/instances").1["password"].as_str().unwrap().to_owned();
    assert!(ran.err.contains(&sent) && !ran.out.contains(&sent));
    let both = world.run(&format!("{line} --password-stdin"), "").await;
    assert_eq!(both.exit, Exit::Usage);
}

#[tokio::test]
async fn lists_as_json_are_bare_arrays_and_tables_fit_80_columns() {
    let world = World::new().await;
    let ran = world.run("instance list -o json", "").await;
    assert_eq!(ran.json().as_array().unwrap().len(), 2);
    assert!(world.last("GET /api/v1/instances").0.ends_with("?project=default"));
    world.run("instance list --all-projects --state running --limit 3", "").await;
    assert!(world.last("GET /api/v1/instances").0.ends_with("?state=running&limit=3"));
    for line in ["instance nodes one", "instance get one", "operation get o-done"] {
        let ran = world.run(line, "").await;
        assert_eq!(ran.exit, Exit::Done, "{}", ran.err);
        let widest = ran.out.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(widest <= 80, "{line}: {widest}\n{}", ran.out);
    }
    insta::assert_snapshot!("instance_list", world.run("instance list", "").await.out);
    insta::assert_snapshot!("instance_get", world.run("instance get one", "").await.out);
    insta::assert_snapshot!("operation_get", world.run("operation get o-done", "").await.out);
    assert_eq!(world.run("instance nodes one -o json", "").await.json(), instance("one")["nodes"]);
    let csv = world.run("record list --csv", "").await.out;
    assert_eq!(
        csv.lines().nth(1),
        Some("2026-11-22T13:12:17Z,'=admin,127.0.0.1,login,session,,accepted,\"{\"\"a\"\":1}\"")
    );
}

#[tokio::test]
async fn histories_are_whole_as_json_and_short_as_a_table() {
    let world = World::new().await;
    for (line, asked) in [
        ("event list -o json", "/events?project=default&limit=100000"),
        ("event list", "/events?project=default&limit=100"),
        ("event list -o json --limit 7", "/events?project=default&limit=7"),
        ("operation list -o json", "/operations?project=default&limit=100000"),
        ("operation list --limit 7", "/operations?project=default&limit=7"),
        ("record list -o json", "/records?limit=100000"),
        ("record list --csv", "/records?limit=100000"),
        ("record list", "/records?limit=100"),
    ] {
        world.run(line, "").await;
        assert_eq!(world.last("GET").0, format!("GET /api/v1{asked}"), "{line}");
    }
}

#[tokio::test]
async fn limit_0_is_refused_and_when_following_means_only_what_is_new() {
    let world = World::new().await;
    for line in ["event list --limit 0", "operation list --limit 0", "record list --csv --limit 0"]
    {
        assert_eq!(world.run(line, "").await.exit, Exit::Usage, "{line}");
    }
    assert!(world.requests.lock().unwrap().is_empty());
    // The stream is refused here: what was asked for is what counts.
    world.run("event list --follow --limit 0", "").await;
    assert_eq!(world.last("GET").0, "GET /api/v1/events/stream?project=default");
    assert_eq!(world.requests.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn refusals_as_json_keep_their_code_and_field() {
    let world = World::new().await;
    let ran = world.run("instance get other -o json", "").await;
    assert_eq!((ran.exit, ran.out.as_str()), (Exit::Failed, ""));
    let problem: Value = serde_json::from_str(&ran.err).unwrap();
    assert_eq!(problem["code"], "not-found");
    assert!(problem.as_object().unwrap().contains_key("field"), "{problem}");
}

#[tokio::test]
async fn dry_run_sends_the_password_that_it_was_given_and_needs_none() {
    let world = World::new().await;
    let line = "instance create one --engine e --architecture standalone --dry-run";
    assert_eq!(world.run(&format!("{line} --password-stdin"), "weak\n").await.exit, Exit::Done);
    assert_eq!(world.last("POST").1["password"], "weak");
    assert_eq!(world.run(line, "").await.exit, Exit::Done);
    assert_eq!(world.last("POST").1.get("password"), None);
}

#[tokio::test]
async fn delete_waits_and_prints_the_operation() {
    let world = World::new().await;
    let ran = world.run("instance delete one --permanent --yes --wait -o json", "").await;
    assert_eq!(ran.exit, Exit::Done, "{}", ran.err);
    assert_eq!(ran.json()["state"], "succeeded");
    assert!(world.last("DELETE").0.contains("policy=permanent"));
}

#[tokio::test]
async fn version_needs_no_server() {
    let world = World::new().await;
    let ran = world.run_at("http://127.0.0.1:1", "version -o json", "").await;
    assert_eq!(ran.json()["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn every_subcommand_takes_the_output_option_and_the_tree_is_sound() {
    larder_cli::command().debug_assert();
    fn walk(command: &clap::Command, path: &str, leaves: &mut Vec<String>) {
        for sub in command.get_subcommands() {
            let path = format!("{path} {}", sub.get_name());
            if sub.has_subcommands() {
                walk(sub, &path, leaves);
            } else {
                leaves.push(path);
            }
        }
    }
    let mut leaves = Vec::new();
    walk(&larder_cli::command(), "larder", &mut leaves);
    insta::assert_snapshot!("commands", leaves.join("\n"));
    let token = Secret::new("secret");
    let environment = Environment { token: Some(token), ..Environment::default() };
    assert!(!format!("{environment:?}").contains("secret\""));
}

#[test]
fn help_of_create_is_as_committed() {
    let mut command = larder_cli::command().term_width(100);
    command.build();
    let instance = command.find_subcommand_mut("instance").unwrap();
    let create = instance.find_subcommand_mut("create").unwrap();
    insta::assert_snapshot!("help_instance_create", create.render_long_help());
}

#[tokio::test]
async fn a_rebind_needs_no_credentials_and_a_binding_does() {
    let world = World::new().await;
    let ran = world.run("container-cluster bind east", "").await;
    assert_eq!(ran.exit, Exit::Usage);
    assert!(ran.err.contains("--kubeconfig <FILE>|--in-cluster"), "{}", ran.err);
    let ran = world.run("container-cluster bind east --in-cluster --kubeconfig x", "").await;
    assert_eq!(ran.exit, Exit::Usage);
    let sent = async |line: &str| {
        world.run(line, "").await;
        world.last("POST /api/v1/container-clusters").1
    };
    assert_eq!(
        sent("container-cluster bind east --in-cluster").await,
        json!({ "name": "east", "in_cluster": true })
    );
    assert_eq!(
        sent("container-cluster rebind east --engine redis-7.0").await,
        json!({ "name": "east", "rebind": true, "engines": ["redis-7.0"] })
    );
}
