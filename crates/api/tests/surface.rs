//! What every request meets: health, OpenAPI, unknown routes, bad bodies, panics, the stream.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use common::{World, create_body};
use http_body_util::BodyExt as _;
use larder_api::openapi;
use larder_model::Code;
use serde_json::{Value, json};
use tower::ServiceExt as _;

#[tokio::test]
async fn health_needs_no_login_and_status_counts() {
    let world = World::new().await;
    for path in ["/healthz", "/readyz", "/api/v1/openapi.json"] {
        let answer = world.anonymous(Method::GET, path, None).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        assert_eq!(answer.headers[header::CACHE_CONTROL], "no-store");
    }
    world.running("one", "standalone").await;
    let status = world.get("/api/v1/status").await;
    assert_eq!(status["instances"], json!({ "running": 1 }));
    assert_eq!(status["engines"], 1);
    assert_eq!(status["container_clusters"][0]["name"], "local");
    world.store.close().await;
    let answer = world.anonymous(Method::GET, "/readyz", None).await;
    assert_eq!(answer.problem().0, Code::NotReady);
}

/// `UPDATE_OPENAPI=1` writes the document anew.
#[test]
fn openapi_document_is_the_committed_one() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    let mut text = serde_json::to_string_pretty(&openapi()).unwrap();
    text.push('\n');
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(&file, &text).unwrap();
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        committed == text,
        "crates/api/openapi.json is not what the code says: run this test with UPDATE_OPENAPI=1"
    );
    assert_eq!(larder_api_types::LIMIT_MAX, larder_store::LIMIT_MAX);
    assert!(text.contains(&format!("never more than {}.", larder_api_types::LIMIT_MAX)));
    let document: Value = serde_json::from_str(&text).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            for (status, response) in operation["responses"].as_object().unwrap() {
                assert!(response["description"].is_string(), "{method} {path} {status}");
            }
        }
    }
}

#[tokio::test]
async fn whatever_goes_wrong_is_a_problem_with_a_code() {
    let world = World::new().await;
    let check = async |method: Method, path: &str, code: Code| {
        assert_eq!(world.refusal(method, path, None).await.0, code, "{path}");
    };
    check(Method::GET, "/nothing", Code::NotFound).await;
    check(Method::GET, "/api/v1/nothing", Code::NotFound).await;
    check(Method::PUT, "/api/v1/instances", Code::MethodNotAllowed).await;
    check(Method::GET, "/api/v1/operations/O!", Code::NotFound).await;
    check(Method::GET, "/api/v1/instances/%FF", Code::NotFound).await;
    check(Method::GET, "/api/v1/errors/none", Code::NotFound).await;
    check(Method::GET, "/api/v1/instances/x?project=..", Code::NotFound).await;

    let raw = |body: Vec<u8>, kind: &'static str| {
        let token = format!("Bearer {}", world.token);
        Request::builder()
            .method(Method::POST)
            .uri("/api/v1/instances")
            .header(header::AUTHORIZATION, token)
            .header(header::CONTENT_TYPE, kind)
            .body(Body::from(body))
            .unwrap()
    };
    let large = world.send(raw(vec![b' '; 70_000], "application/json")).await;
    assert_eq!(large.problem().0, Code::RequestTooLarge);
    let form = world.send(raw(b"name=x".to_vec(), "application/x-www-form-urlencoded")).await;
    assert_eq!(form.problem().0, Code::InvalidRequest);
    let broken = world.send(raw(b"{\"password\":\"Hunter2".to_vec(), "application/json")).await;
    assert_eq!(broken.problem().0, Code::InvalidRequest);
    let missing = world.send(raw(b"{}".to_vec(), "application/json; charset=utf-8")).await;
    assert_eq!(missing.problem(), (Code::InvalidRequest, json!("name")));
}

#[tokio::test]
async fn panic_becomes_an_answer_without_its_text() {
    let world = World::new().await;
    let answer = world.post("/api/v1/engines", json!({ "path": "/opt/panic" })).await;
    assert_eq!(answer.problem().0, Code::Internal);
    assert_eq!(world.get("/api/v1/whoami").await["user"], "admin");
}

#[tokio::test]
async fn engines_are_probed_added_and_removed() {
    let world = World::new().await;
    let add = |path: &'static str| world.post("/api/v1/engines", json!({ "path": path }));
    assert_eq!(add("redis-server").await.problem(), (Code::InvalidRequest, json!("path")));
    assert_eq!(add("/bin/ls").await.problem(), (Code::EngineUnusable, json!("path")));
    let added = add("/opt/redis-server").await;
    assert_eq!(added.status, StatusCode::CREATED, "{}", added.text);
    assert_eq!(added.json["name"], "redis-6.2");
    assert_eq!(add("/opt/redis-server").await.status, StatusCode::CREATED);
    assert_eq!(add("/opt/other/redis-server").await.problem().0, Code::NameTaken);
    let engines = world.get("/api/v1/engines").await;
    let places = |index: usize| engines[index]["container_clusters"].clone();
    assert_eq!([places(0), places(1)], [json!(["local"]), json!(["local", "east"])]);
    assert_eq!(engines[2]["name"], "valkey-8.0");
    assert_eq!(engines[2]["version"], "8.0");
    assert_eq!([places(2), engines[2]["path"].clone()], [json!(["east"]), json!(null)]);
    world.running("one", "standalone").await;
    let used = world.refusal(Method::DELETE, "/api/v1/engines/redis-7.0", None).await;
    assert_eq!(used.0, Code::EngineInUse);
    let removed = world.call(Method::DELETE, "/api/v1/engines/redis-6.2", None).await;
    assert_eq!(removed.status, StatusCode::NO_CONTENT);
    let gone = world.refusal(Method::DELETE, "/api/v1/engines/redis-6.2", None).await;
    assert_eq!(gone.0, Code::NotFound);
    assert_eq!(world.get("/api/v1/projects").await, json!([{ "name": "default" }]));
}

/// Reads the stream until `wanted` event messages have come; answers their ids and reasons.
async fn read(body: &mut Body, wanted: usize) -> Vec<(u64, String)> {
    let mut text = String::new();
    loop {
        let messages: Vec<_> = text
            .split("\n\n")
            .filter_map(|message| {
                let line =
                    |name: &str| message.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
                let data: Value = serde_json::from_str(line("data:")?).ok()?;
                let id = line("id:")?.parse().ok()?;
                assert_eq!(data["seq"], json!(id));
                Some((id, data["reason"].as_str()?.to_owned()))
            })
            .collect();
        if messages.len() >= wanted {
            return messages;
        }
        let frame = tokio::time::timeout(Duration::from_secs(10), body.frame()).await;
        let frame = frame.expect("an event in time").expect("no end").unwrap();
        text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
    }
}

async fn open(world: &World, query: &str, last_id: Option<u64>) -> Body {
    let path = format!("/api/v1/events/stream{query}");
    let mut request = world.request(Method::GET, &path, None, Some(&world.token));
    if let Some(id) = last_id {
        request.headers_mut().insert("last-event-id", id.into());
    }
    let response = world.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    response.into_body()
}

#[tokio::test]
async fn stream_follows_resumes_and_ends_with_the_server() {
    let world = World::new().await;
    world.running("one", "standalone").await;
    let mut all = open(&world, "?instance=one&after=0", None).await;
    let seen = read(&mut all, 2).await;
    assert_eq!(seen[0].1, "create-requested");
    let mut resumed = open(&world, "?instance=one", Some(seen[0].0)).await;
    assert_eq!(read(&mut resumed, 1).await[0], seen[1]);

    // From now on, and only of the instance that was asked for.
    let mut new = open(&world, "?instance=one", None).await;
    world.post("/api/v1/instances", create_body("two", "standalone")).await;
    world.call(Method::POST, "/api/v1/instances/one/restart", None).await;
    assert_eq!(read(&mut new, 1).await[0].1, "restart-requested");

    world.stop.send(true).unwrap();
    let end = tokio::time::timeout(Duration::from_secs(10), async {
        while let Some(frame) = new.frame().await {
            frame.unwrap();
        }
    });
    end.await.expect("the stream ends");
}

#[tokio::test]
async fn stream_refuses_what_it_cannot_resume_from() {
    let world = World::new().await;
    let mut request = world.request(Method::GET, "/api/v1/events/stream", None, Some(&world.token));
    request.headers_mut().insert("last-event-id", "yesterday".parse().unwrap());
    assert_eq!(world.send(request).await.problem().0, Code::InvalidRequest);
}
