//! Logins, tokens, passwords, permissions, the audit trail; and that secrets stay secret.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::sync::{Arc, Mutex};

use axum::http::{Method, StatusCode, header};
use common::{ADMIN_PASSWORD, World, create_body};
use larder_api::openapi;
use larder_model::{Code, Secret};
use larder_store::{TokenKind, UserNew};
use serde_json::{Value, json};

const LOGIN: &str = "/api/v1/sessions";

fn login(user: &str, password: &str) -> Option<Value> {
    Some(json!({ "user": user, "password": password }))
}

#[tokio::test]
async fn wrong_password_and_unknown_user_are_told_the_same() {
    let world = World::new().await;
    let wrong = world.anonymous(Method::POST, LOGIN, login("admin", "Hunter2-wrong")).await;
    let unknown = world.anonymous(Method::POST, LOGIN, login("nobody", ADMIN_PASSWORD)).await;
    assert_eq!(wrong.problem().0, Code::LoginFailed);
    assert_eq!(wrong.text, unknown.text);
    let records = world.get("/api/v1/records").await;
    let failed = records.as_array().unwrap().iter().filter(|r| r["outcome"] == "login-failed");
    assert_eq!(failed.count(), 2);
}

#[tokio::test]
async fn guessing_passwords_is_slowed_down() {
    let world = World::new().await;
    for _ in 0..5 {
        let answer = world.anonymous(Method::POST, LOGIN, login("mallory", "Hunter2-x")).await;
        assert_eq!(answer.problem().0, Code::LoginFailed);
    }
    let answer = world.anonymous(Method::POST, LOGIN, login("mallory", "Hunter2-x")).await;
    assert_eq!(answer.problem().0, Code::TooManyAttempts);
    assert!(answer.headers.contains_key(header::RETRY_AFTER));
}

#[tokio::test]
async fn session_ends_with_the_logout() {
    let world = World::new().await;
    assert_eq!(world.get("/api/v1/whoami").await["user"], "admin");
    let answer = world.call(Method::DELETE, "/api/v1/sessions/current", None).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    let refused = world.call(Method::GET, "/api/v1/whoami", None).await;
    assert_eq!(refused.problem().0, Code::NotLoggedIn);
    assert_eq!(refused.headers[header::WWW_AUTHENTICATE], "Bearer");
}

#[tokio::test]
async fn cookie_login_hides_its_token_and_is_no_good_for_other_pages() {
    let world = World::new().await;
    let body = json!({ "user": "admin", "password": ADMIN_PASSWORD, "cookie": true });
    let answer = world.anonymous(Method::POST, LOGIN, Some(body)).await;
    assert_eq!(answer.json["token"], Value::Null);
    let cookie = answer.headers[header::SET_COOKIE].to_str().unwrap().to_owned();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    let pair = cookie.split(';').next().unwrap();
    let with_origin = |method: Method, path: &str, origin: &str| {
        let mut request = world.request(method, path, None, None);
        request.headers_mut().insert(header::COOKIE, pair.parse().unwrap());
        request.headers_mut().insert(header::HOST, "localhost:7300".parse().unwrap());
        request.headers_mut().insert(header::ORIGIN, origin.parse().unwrap());
        request
    };
    let own = "http://localhost:7300";
    let answer = world.send(with_origin(Method::GET, "/api/v1/whoami", own)).await;
    assert_eq!(answer.json["user"], "admin");
    let foreign = with_origin(Method::DELETE, "/api/v1/sessions/current", "http://localhost:3000");
    assert_eq!(world.send(foreign).await.problem().0, Code::NotAllowed);
    let own = with_origin(Method::DELETE, "/api/v1/sessions/current", own);
    assert_eq!(world.send(own).await.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn token_secret_is_shown_once_and_ends_when_revoked() {
    let world = World::new().await;
    let made =
        world.post("/api/v1/tokens", json!({ "name": "ci", "expires_in_seconds": 60 })).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    let secret = made.json["token"].as_str().unwrap();
    let who = world.request(Method::GET, "/api/v1/whoami", None, Some(secret));
    assert_eq!(world.send(who).await.status, StatusCode::OK);
    let list = world.get("/api/v1/tokens").await;
    assert!(!list.to_string().contains(secret));
    assert!(list.as_array().unwrap().iter().any(|t| t["kind"] == "api" && t["name"] == "ci"));
    let path = format!("/api/v1/tokens/{}", made.json["id"].as_str().unwrap());
    assert_eq!(world.call(Method::DELETE, &path, None).await.status, StatusCode::NO_CONTENT);
    let who = world.request(Method::GET, "/api/v1/whoami", None, Some(secret));
    assert_eq!(world.send(who).await.problem().0, Code::NotLoggedIn);
    assert_eq!(world.refusal(Method::DELETE, &path, None).await.0, Code::NotFound);
    let refusal = world.refusal(Method::POST, "/api/v1/tokens", Some(json!({ "name": "" }))).await;
    assert_eq!(refusal, (Code::InvalidName, json!("name")));
}

#[tokio::test]
async fn changed_password_ends_other_sessions_and_tells_the_server() {
    let world = World::new().await;
    let other = world.anonymous(Method::POST, LOGIN, login("admin", ADMIN_PASSWORD)).await;
    let other = other.json["token"].as_str().unwrap().to_owned();
    let path = "/api/v1/users/admin";
    let weak = world.refusal(Method::PATCH, path, Some(json!({ "password": "weak" }))).await;
    assert_eq!(weak, (Code::PasswordTooWeak, json!("password")));
    let body = json!({ "password": "Hunter2-newer" });
    let answer = world.call(Method::PATCH, path, Some(body.clone())).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT, "{}", answer.text);
    assert_eq!(*world.changed.lock().unwrap(), ["admin"]);
    let request = world.request(Method::GET, "/api/v1/whoami", None, Some(&other));
    assert_eq!(world.send(request).await.problem().0, Code::NotLoggedIn);
    assert_eq!(world.get("/api/v1/whoami").await["user"], "admin");
    let old = world.anonymous(Method::POST, LOGIN, login("admin", ADMIN_PASSWORD)).await;
    assert_eq!(old.problem().0, Code::LoginFailed);
    let new = world.anonymous(Method::POST, LOGIN, login("admin", "Hunter2-newer")).await;
    assert_eq!(new.status, StatusCode::CREATED);
    let missing = world.refusal(Method::PATCH, "/api/v1/users/eve", Some(body)).await;
    assert_eq!(missing.0, Code::NotFound);
}

/// Every route of the OpenAPI document, with a request that it can read.
fn all_routes() -> Vec<(Method, String, Option<Value>)> {
    let document = serde_json::to_value(openapi()).unwrap();
    let mut routes = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let body = match (method.as_str(), path.as_str()) {
                ("post", "/api/v1/instances") => Some(create_body("one", "standalone")),
                ("post", "/api/v1/tokens") => Some(json!({ "name": "t" })),
                ("post", "/api/v1/engines") => Some(json!({ "path": "/opt/redis-server" })),
                ("post", "/api/v1/container-clusters") => Some(json!({ "name": "east" })),
                ("put", "/api/v1/instances/{instance}/parameters") => {
                    Some(json!({ "values": { "hz": "20" } }))
                }
                ("post", "/api/v1/instances/{instance}/resize") => {
                    Some(json!({ "memory_bytes": 1 << 28 }))
                }
                ("post", "/api/v1/instances/{instance}/accounts") => {
                    Some(json!({ "name": "app", "role": "read-only", "password": "Pantry-2027" }))
                }
                ("patch", "/api/v1/instances/{instance}/accounts/{account}") => {
                    Some(json!({ "role": "read-write" }))
                }
                ("post", "/api/v1/instances/{instance}/chained") => {
                    Some(json!({ "chained": true }))
                }
                ("post", "/api/v1/instances/{instance}/password") => {
                    Some(json!({ "password": "Pantry-2027" }))
                }
                ("post", "/api/v1/instances/{instance}/upgrade") => {
                    Some(json!({ "engine": "redis-7.0" }))
                }
                ("post", "/api/v1/sessions") => login("admin", ADMIN_PASSWORD),
                ("patch", "/api/v1/users/{user}") => Some(json!({ "password": "Hunter2-new1" })),
                ("patch", "/api/v1/container-clusters/{container_cluster}") => {
                    Some(json!({ "spread": "preferred" }))
                }
                ("patch", _) => Some(json!({ "description": "d" })),
                _ => None,
            };
            let method = method.to_uppercase().parse().unwrap();
            let path = path
                .replace("{instance}", "one")
                .replace("{user}", "admin")
                .replace("{account}", "app")
                .replace("{code}", "internal")
                .replace("{engine}", "redis-7.0")
                .replace("{container_cluster}", "east")
                .replace("{worker}", "w1")
                .replace("{id}", "x");
            routes.push((method, path, body));
        }
    }
    assert!(routes.len() >= 25, "{}", routes.len());
    // The logout last: it ends the token.
    routes.sort_by_key(|(_, path, _): &(Method, String, _)| path.contains("/sessions/"));
    routes
}

fn is_public(method: &Method, path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz" | "/api/v1/errors/internal")
        || (path == "/api/v1/sessions" && *method == Method::POST)
}

#[tokio::test]
async fn every_route_wants_a_login_and_asks_the_permission_function() {
    let world = World::new().await;
    let stranger = UserNew {
        name: "stranger".into(),
        role: "stranger".into(),
        password_hash: Secret::new("-"),
        password_generated: false,
    };
    world.store.user_create(&stranger).await.unwrap();
    let made = world.store.token_create("stranger", TokenKind::Api, "t", None).await.unwrap();
    for (method, path, body) in all_routes() {
        if is_public(&method, &path) {
            continue;
        }
        let route = format!("{method} {path}");
        let answer = world.anonymous(method.clone(), &path, body.clone()).await;
        assert_eq!(answer.problem().0, Code::NotLoggedIn, "{route}");
        let request = world.request(method.clone(), &path, body, Some(made.secret.expose()));
        let answer = world.send(request).await;
        let asked = answer.asked.as_ref().unwrap_or_else(|| panic!("{route} did not ask"));
        assert_eq!(asked.user, "stranger");
        // One's own account is everybody's to use.
        if ["whoami", "/tokens", "/sessions/"].iter().any(|own| path.contains(own)) {
            continue;
        }
        assert_eq!(answer.problem().0, Code::NotAllowed, "{route}");
    }
}

#[tokio::test]
async fn administrator_is_asked_about_on_every_route_too() {
    let world = World::new().await;
    for (method, path, body) in all_routes() {
        if is_public(&method, &path) {
            continue;
        }
        let answer = world.call(method.clone(), &path, body).await;
        assert!(answer.asked.is_some(), "{method} {path}: {}", answer.text);
        assert_ne!(answer.status, StatusCode::INTERNAL_SERVER_ERROR, "{method} {path}");
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn passwords_and_tokens_are_in_no_log_and_no_record() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    // Of this thread only: the test's runtime has no other.
    let guard = tracing::subscriber::set_default(subscriber);
    let world = World::new().await;
    world.running("one", "standalone").await;
    world.anonymous(Method::POST, LOGIN, login("admin", "Hunter2-wrong")).await;
    let body = json!({ "password": "Hunter2-newer" });
    world.call(Method::PATCH, "/api/v1/users/admin", Some(body)).await;
    let bad = json!({ "user": "x", "password": ["Hunter2-array"] });
    world.anonymous(Method::POST, LOGIN, Some(bad)).await.problem();
    world.post("/api/v1/tokens", json!({ "name": "ci" })).await;
    let records = world.get("/api/v1/records").await.to_string();
    drop(guard);
    let text = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(text.contains("instance accepted"), "the log was captured");
    for secret in ["Hunter2", world.token.as_str()] {
        assert!(!text.contains(secret), "in the log");
        assert!(!records.contains(secret), "in the records");
    }
}
