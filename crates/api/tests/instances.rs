//! Instances through the API: created, looked at, changed, failed over, deleted; and refused.

#![allow(clippy::unwrap_used)]

mod common;

use axum::http::{Method, StatusCode};
use common::{TENANT_PASSWORD, World, create_body};
use larder_model::{AccountRole, Code, OperationState, Refusal};
use serde_json::{Value, json};

fn with(name: &str, architecture: &str, more: Value) -> Value {
    let mut body = create_body(name, architecture);
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test]
async fn created_instance_is_shown_before_anybody_has_looked_at_it() {
    let world = World::new().await;
    let answer = world.post("/api/v1/instances", create_body("one", "read-write")).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED);
    let operation = answer.json;
    assert_eq!(operation["kind"], "create");
    assert_eq!(operation["state"], "queued");
    assert_eq!(operation["instance"], "one");
    assert_eq!(operation["requested_by"], "admin");
    assert_eq!(operation["error"], Value::Null);
    assert_eq!(world.activated.lock().unwrap().len(), 1);

    let one = world.get("/api/v1/instances/one").await;
    assert_eq!(one["state"], "creating");
    assert_eq!(one["nodes"], json!([]));
    assert_eq!(one["endpoints"], json!({}));
    assert_eq!(one["replicas"], 2);
    assert_eq!(one["read_only_nodes"], 1);
    assert_eq!(one["engine_version"], "7.0.15");
    let id = one["id"].as_str().unwrap();
    assert_eq!(world.get(&format!("/api/v1/instances/{id}")).await, one);
    let plan = world.get("/api/v1/instances/one/plan").await;
    assert_eq!(plan["planned_at"], Value::Null);
}

#[tokio::test]
async fn field_names_are_those_of_the_contract() {
    let world = World::new().await;
    world.running("one", "read-write").await;
    let one = world.get("/api/v1/instances/one").await;
    let mut expected = vec![
        "id",
        "name",
        "project",
        "description",
        "tags",
        "state",
        "generation",
        "observed_generation",
        "created_at",
        "architecture",
        "engine",
        "engine_version",
        "memory_bytes",
        "shards",
        "replicas",
        "read_only_nodes",
        "chained",
        "read_from_replicas",
        "container_cluster",
        "storage_class",
        "expose",
        "endpoints",
        "nodes",
        "conditions",
        "observed_at",
    ];
    let mut found = keys(&one);
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(one["state"], "running");
    assert_eq!(one["generation"], one["observed_generation"]);
    assert_eq!(one["endpoints"]["write"], json!({ "host": "127.0.0.1", "port": 22000 }));
    assert_eq!(keys(&one["endpoints"]), ["read", "write"]);

    let mut expected = vec![
        "id",
        "shard",
        "role",
        "state",
        "host",
        "port",
        "pid",
        "zone",
        "worker",
        "replica_of",
        "link",
        "offset",
        "lag_bytes",
        "used_memory_bytes",
        "slots",
        "last_seen_at",
    ];
    let mut found = keys(&one["nodes"][0]);
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(one["nodes"][0]["role"], "primary");
    assert_eq!(one["nodes"][0]["link"], Value::Null);
    assert_eq!(one["nodes"][0]["slots"], json!(["0-16383"]));
    assert_eq!(one["nodes"][1]["link"], "up");
    let mut found = keys(&one["conditions"][0]);
    found.sort_unstable();
    assert_eq!(found, ["message", "reason", "since", "status", "type"]);

    let operations = world.get("/api/v1/operations?instance=one").await;
    let mut found = keys(&operations[0]);
    let mut expected = vec![
        "id",
        "instance",
        "instance_id",
        "kind",
        "state",
        "steps",
        "progress",
        "requested_by",
        "requested_from",
        "created_at",
        "finished_at",
        "error",
    ];
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(operations[0]["progress"], 1.0);
}

#[tokio::test]
async fn creation_that_cannot_work_is_refused_before_anything_is_written() {
    let world = World::new().await;
    world.running("taken", "standalone").await;
    let before = world.activated.lock().unwrap().len();
    let cases = [
        (with("No Good", "cluster", json!({})), Code::InvalidName, "name"),
        (with("taken", "standalone", json!({})), Code::NameTaken, "name"),
        (with("a", "proxy", json!({})), Code::ArchitectureNotAvailable, "architecture"),
        (with("a", "cluster", json!({"engine": "redis-1.0"})), Code::EngineNotFound, "engine"),
        (with("a", "cluster", json!({"memory_bytes": 1})), Code::MemoryOutOfRange, "memory_bytes"),
        (
            // Two nodes of 4 GiB on a machine that has 7.75 GiB left.
            with("a", "read-write", json!({"memory_bytes": 4_u64 << 30})),
            Code::CapacityExceeded,
            "memory_bytes",
        ),
        (with("a", "cluster", json!({"shards": 11})), Code::ShardsOutOfRange, "shards"),
        (with("a", "cluster", json!({"replicas": 0})), Code::ReplicasOutOfRange, "replicas"),
        (
            with("a", "read-write", json!({"read_only_nodes": 0})),
            Code::ReplicasOutOfRange,
            "read_only_nodes",
        ),
        (
            with("a", "standalone", json!({"password": "Hunter2"})),
            Code::PasswordTooWeak,
            "password",
        ),
        (with("a", "standalone", json!({"password": null})), Code::PasswordMissing, "password"),
        (
            with("a", "standalone", json!({"container_cluster": "moon"})),
            Code::ContainerClusterNotFound,
            "container_cluster",
        ),
        (
            with("a", "standalone", json!({"storage_class": "gold"})),
            Code::StorageClassNotFound,
            "storage_class",
        ),
        (with("a", "standalone", json!({"expose": "node-port"})), Code::InvalidRequest, "expose"),
        (with("a", "standalone", json!({"project": "none"})), Code::NotFound, "project"),
        (with("a", "standalone", json!({"chained": true})), Code::InvalidRequest, "chained"),
        (with("a", "standalone", json!({"shards": "many"})), Code::InvalidRequest, "shards"),
        (
            with("a", "standalone", json!({"password": ["Hunter2"]})),
            Code::InvalidRequest,
            "password",
        ),
        (
            with("a", "standalone", json!({"description": "x".repeat(2000)})),
            Code::InvalidRequest,
            "description",
        ),
    ];
    for (body, code, field) in cases {
        let got = world.refusal(Method::POST, "/api/v1/instances", Some(body.clone())).await;
        assert_eq!(got, (code, json!(field)), "{body}");
    }
    *world.capacity.refuse.lock().unwrap() = Some(Refusal::new(Code::DiskFull, "no room"));
    let got =
        world.refusal(Method::POST, "/api/v1/instances", Some(create_body("a", "cluster"))).await;
    assert_eq!(got.0, Code::DiskFull);

    assert_eq!(world.activated.lock().unwrap().len(), before);
    assert_eq!(world.get("/api/v1/instances").await.as_array().unwrap().len(), 1);
    // Each refusal of a change is in the audit trail; those of unreadable requests name nobody.
    let records = world.get("/api/v1/records?user=admin").await;
    let refused: Vec<_> = records
        .as_array()
        .unwrap()
        .iter()
        .filter(|r| r["action"] == "instance-create" && r["outcome"] != "accepted")
        .collect();
    assert_eq!(refused.len(), 18, "{refused:?}");
}

#[tokio::test]
async fn dry_run_shows_the_plan_and_keeps_nothing() {
    let world = World::new().await;
    let body = json!({ "name": "one", "architecture": "cluster", "engine": "redis-7.0" });
    let answer = world.post("/api/v1/instances?dry_run=true", body).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    let steps = answer.json["steps"].as_array().unwrap();
    let count = |word: &str| steps.iter().filter(|s| s.as_str().unwrap().starts_with(word)).count();
    assert_eq!(count("record node"), 6, "{}", answer.json["text"]);
    assert_eq!(count("reserve an address"), 6);
    assert_eq!(count("ensure node"), 6);
    assert_eq!(world.get("/api/v1/instances").await, json!([]));
    assert!(world.activated.lock().unwrap().is_empty());
}

#[tokio::test]
async fn update_changes_name_description_and_tags() {
    let world = World::new().await;
    world.running("one", "standalone").await;
    world.running("other", "standalone").await;
    let patch = |body: Value| world.call(Method::PATCH, "/api/v1/instances/one", Some(body));
    let answer = patch(json!({ "description": "d", "tags": { "a": "b" } })).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    assert_eq!(answer.json["tags"], json!({ "a": "b" }));
    assert_eq!(patch(json!({ "name": "other" })).await.problem().0, Code::NameTaken);
    assert_eq!(patch(json!({})).await.problem().0, Code::InvalidRequest);
    let stale = patch(json!({ "description": "e", "generation": 1 })).await.problem();
    assert_eq!(stale.0, Code::GenerationConflict);
    assert_eq!(patch(json!({ "name": "two" })).await.status, StatusCode::OK);
    assert_eq!(world.get("/api/v1/instances/two").await["description"], "d");
    let gone = world.refusal(Method::GET, "/api/v1/instances/one", None).await;
    assert_eq!(gone.0, Code::NotFound);
}

#[tokio::test]
async fn list_filters_sorts_and_refuses_unknown_words() {
    let world = World::new().await;
    world.running("b", "cluster").await;
    world.running("a", "standalone").await;
    let names = |list: Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|i| i["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(world.get("/api/v1/instances").await), ["a", "b"]);
    assert_eq!(names(world.get("/api/v1/instances?architecture=cluster").await), ["b"]);
    assert_eq!(names(world.get("/api/v1/instances?state=creating").await), [""; 0]);
    assert_eq!(names(world.get("/api/v1/instances?search=A&limit=1").await), ["a"]);
    for (query, field) in [
        ("state=happy", "state"),
        ("architecture=proxy", "architecture"),
        ("sort=luck", "sort"),
        ("limit=x", "limit"),
        ("colour=red", "colour"),
        ("project=none", "project"),
    ] {
        let (code, found) =
            world.refusal(Method::GET, &format!("/api/v1/instances?{query}"), None).await;
        assert_eq!(found, field, "{query}");
        assert!(matches!(code, Code::InvalidRequest | Code::NotFound), "{query}");
    }
}

#[tokio::test]
async fn failover_and_restart_become_operations_that_hold_the_instance() {
    let world = World::new().await;
    let row = world.running("one", "read-write").await;
    let nodes = &row.observation.as_ref().unwrap().nodes;
    let (primary, replica) = (nodes[0].id.to_string(), nodes[1].id.to_string());
    let path = "/api/v1/instances/one/failover";
    for (body, code, field) in [
        (json!({ "shard": 1 }), Code::ShardsOutOfRange, json!("shard")),
        (json!({ "to": "n-none" }), Code::NodeNotFound, json!("to")),
        (json!({ "to": primary }), Code::NoEligibleReplica, json!("to")),
        (json!({ "accept_data_loss": true }), Code::InvalidRequest, json!("to")),
    ] {
        assert_eq!(world.refusal(Method::POST, path, Some(body)).await, (code, field));
    }
    let answer = world.post(path, json!({ "to": replica })).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text);
    let busy = world.refusal(Method::POST, "/api/v1/instances/one/restart", None).await;
    assert_eq!(busy.0, Code::InstanceBusy);

    let id = answer.json["id"].as_str().unwrap();
    let cancel = format!("/api/v1/operations/{id}/cancel");
    let cancelled = world.call(Method::POST, &cancel, None).await;
    assert_eq!(cancelled.json["state"], "cancelled", "{}", cancelled.text);
    assert_eq!(cancelled.json["error"]["code"], "operation-cancelled");
    assert_eq!(world.refusal(Method::POST, &cancel, None).await.0, Code::NotCancellable);

    let wrong = json!({ "node": "n-none" });
    let refusal = world.refusal(Method::POST, "/api/v1/instances/one/restart", Some(wrong)).await;
    assert_eq!(refusal, (Code::NodeNotFound, json!("node")));
    let answer = world.call(Method::POST, "/api/v1/instances/one/restart", None).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text);
}

#[tokio::test]
async fn a_change_is_checked_before_it_is_taken_and_undone_when_it_is_cancelled() {
    let world = World::new().await;
    world.running("one", "read-write").await;
    for (verb, body, code, field) in [
        ("resize", json!({ "memory_bytes": 1 << 20 }), Code::MemoryOutOfRange, "memory_bytes"),
        ("resize", json!({ "memory_bytes": 128 << 20 }), Code::InvalidRequest, "memory_bytes"),
        ("scale", json!({ "read_only_nodes": 11 }), Code::ReplicasOutOfRange, "read_only_nodes"),
        (
            "scale",
            json!({ "read_only_nodes": 2, "replicas": 2 }),
            Code::ReplicasOutOfRange,
            "read_only_nodes",
        ),
        ("upgrade", json!({ "engine": "redis-7.0" }), Code::InvalidRequest, "engine"),
        ("upgrade", json!({ "engine": "no-such-1.0" }), Code::EngineNotFound, "engine"),
    ] {
        let path = format!("/api/v1/instances/one/{verb}");
        let refusal = world.refusal(Method::POST, &path, Some(body.clone())).await;
        assert_eq!(refusal, (code, json!(field)), "{verb} {body}");
    }
    let path = "/api/v1/instances/one/scale";
    let none = world.refusal(Method::POST, path, Some(json!({ "read_only_nodes": 1 }))).await;
    assert_eq!(none.0, Code::InvalidRequest, "nothing to change");
    let accepted = world.post(path, json!({ "read_only_nodes": 3 })).await;
    assert_eq!(accepted.status, StatusCode::ACCEPTED, "{}", accepted.text);
    assert_eq!(accepted.json["kind"], "scale");
    assert_eq!(world.get("/api/v1/instances/one").await["read_only_nodes"], 3);
    // Another measure of the same thing takes its place; anything else waits.
    let resize = json!({ "memory_bytes": 256 << 20 });
    let busy = world.refusal(Method::POST, "/api/v1/instances/one/resize", Some(resize)).await;
    assert_eq!(busy.0, Code::InstanceBusy);
    let instead = world.post(path, json!({ "read_only_nodes": 2 })).await;
    assert_eq!(instead.status, StatusCode::ACCEPTED, "{}", instead.text);
    let first = format!("/api/v1/operations/{}", accepted.json["id"].as_str().unwrap());
    assert_eq!(world.get(&first).await["state"], "cancelled");
    let cancel = format!("/api/v1/operations/{}/cancel", instead.json["id"].as_str().unwrap());
    let cancelled = world.call(Method::POST, &cancel, None).await;
    assert_eq!(cancelled.json["state"], "cancelled", "{}", cancelled.text);
    assert_eq!(world.get("/api/v1/instances/one").await["read_only_nodes"], 1);
}

#[tokio::test]
async fn shards_are_checked_before_they_change_and_the_change_is_paused_and_goes_on() {
    let world = World::new().await;
    world.running("one", "cluster").await;
    world.running("two", "read-write").await;
    let scale = "/api/v1/instances/one/scale";
    for (path, body, code, field) in [
        (scale, json!({ "shards": 2 }), Code::ShardsOutOfRange, "shards"),
        (scale, json!({ "shards": 9 }), Code::ReplicasOutOfRange, "shards"),
        (scale, json!({ "paused": true }), Code::InvalidRequest, "paused"),
        (scale, json!({ "paused": true, "shards": 4 }), Code::InvalidRequest, "paused"),
        ("/api/v1/instances/two/scale", json!({ "shards": 2 }), Code::ShardsOutOfRange, "shards"),
    ] {
        let refusal = world.refusal(Method::POST, path, Some(body.clone())).await;
        assert_eq!(refusal, (code, json!(field)), "{path} {body}");
    }
    let rebalance = "/api/v1/instances/two/rebalance";
    let none = world.refusal(Method::POST, rebalance, None).await;
    assert_eq!(none.0, Code::InvalidRequest, "one shard");
    let accepted = world.post(scale, json!({ "shards": 5 })).await;
    assert_eq!(accepted.status, StatusCode::ACCEPTED, "{}", accepted.text);
    assert_eq!(world.get("/api/v1/instances/one").await["shards"], 5);
    for paused in [true, false] {
        let same = world.post(scale, json!({ "paused": paused })).await;
        assert_eq!(same.json["id"], accepted.json["id"], "{}", same.text);
    }
    let busy = world.refusal(Method::POST, "/api/v1/instances/one/rebalance", None).await;
    assert_eq!(busy.0, Code::InstanceBusy);
    let cancel = format!("/api/v1/operations/{}/cancel", accepted.json["id"].as_str().unwrap());
    world.call(Method::POST, &cancel, None).await;
    assert_eq!(world.get("/api/v1/instances/one").await["shards"], 3);
    let accepted = world.call(Method::POST, "/api/v1/instances/one/rebalance", None).await;
    assert_eq!(accepted.json["kind"], "rebalance", "{}", accepted.text);
}

#[tokio::test]
async fn replicas_of_a_read_write_instance_are_chained_and_of_no_other() {
    let world = World::new().await;
    world.running("one", "cluster").await;
    world.running("two", "read-write").await;
    let chained = |name: &str| format!("/api/v1/instances/{name}/chained");
    let on = json!({ "chained": true });
    let refusal = world.refusal(Method::POST, &chained("one"), Some(on.clone())).await;
    assert_eq!(refusal, (Code::InvalidRequest, json!("chained")));
    let same =
        world.refusal(Method::POST, &chained("two"), Some(json!({ "chained": false }))).await;
    assert_eq!(same, (Code::InvalidRequest, json!("chained")), "it is so already");
    let accepted = world.post(&chained("two"), on).await;
    assert_eq!(accepted.status, StatusCode::ACCEPTED, "{}", accepted.text);
    assert_eq!(accepted.json["kind"], "set-chained");
    assert_eq!(world.get("/api/v1/instances/two").await["chained"], true);
    let cancel = format!("/api/v1/operations/{}/cancel", accepted.json["id"].as_str().unwrap());
    world.call(Method::POST, &cancel, None).await;
    assert_eq!(world.get("/api/v1/instances/two").await["chained"], false);
}

#[tokio::test]
async fn parameters_are_checked_as_a_whole_listed_with_their_values_and_kept_with_their_history() {
    let world = World::new().await;
    world.running("one", "read-write").await;
    let path = "/api/v1/instances/one/parameters";
    for (values, code, field) in [
        (json!({ "hz": "0" }), Code::ParameterInvalid, "hz"),
        (json!({ "hz": "50", "maxmemory": "1gb" }), Code::UnknownParameter, "maxmemory"),
        (json!({ "cluster-node-timeout": "9000" }), Code::UnknownParameter, "cluster-node-timeout"),
        (json!({ "min-replicas-to-write": "5" }), Code::ParameterInvalid, "min-replicas-to-write"),
    ] {
        let body = json!({ "values": values });
        let refusal = world.refusal(Method::PUT, path, Some(body)).await;
        assert_eq!(refusal, (code, json!(field)), "{values}");
    }
    assert!(world.get(path).await.as_array().unwrap().iter().all(|it| it["set"] == false));
    let values = json!({ "hz": " 50 ", "hash-max-listpack-entries": "64" });
    let accepted = world.call(Method::PUT, path, Some(json!({ "values": values }))).await;
    assert_eq!(accepted.status, StatusCode::ACCEPTED, "{}", accepted.text);
    assert_eq!(accepted.json["kind"], "set-parameters");
    let all = world.get(path).await;
    let of = |name: &str| {
        let found = all.as_array().unwrap().iter().find(|it| it["name"] == name);
        found.unwrap_or_else(|| panic!("no {name}")).clone()
    };
    assert_eq!((of("hz")["value"].clone(), of("hz")["set"].clone()), (json!("50"), json!(true)));
    assert_eq!(of("hash-max-listpack-entries")["value"], "64");
    assert_eq!(of("databases")["applies"], "new-servers");
    assert_eq!(all[0]["name"], "save", "common ones first");
    let cancel = format!("/api/v1/operations/{}/cancel", accepted.json["id"].as_str().unwrap());
    world.call(Method::POST, &cancel, None).await;
    assert!(world.get(path).await.as_array().unwrap().iter().all(|it| it["set"] == false));
    let history = world.get(&format!("{path}/history")).await;
    assert_eq!(history[0]["state"], "cancelled");
    assert_eq!(history[0]["changes"][1], json!({ "name": "hz", "from": null, "to": "50" }));
    let none = world.refusal(Method::POST, &format!("{path}/reset"), Some(json!({}))).await;
    assert_eq!(none.0, Code::InvalidRequest, "nothing is set");
}

#[tokio::test]
async fn accounts_are_checked_listed_without_their_passwords_and_go_to_the_servers() {
    let world = World::new().await;
    let row = world.running("one", "read-write").await;
    let path = "/api/v1/instances/one/accounts";
    let with = |name: &str, role: &str, rules: Option<&str>, password: &str| json!({ "name": name, "role": role, "rules": rules, "password": password });
    let fine = "Pantry-2027";
    for (body, code, field) in [
        (with("default", "read-only", None, fine), Code::InvalidName, "name"),
        (with("larder-x", "read-only", None, fine), Code::InvalidName, "name"),
        (with("app", "owner", None, fine), Code::InvalidRequest, "role"),
        (with("app", "read-only", Some("+get"), fine), Code::InvalidRequest, "rules"),
        (with("app", "custom", None, fine), Code::RulesRefused, "rules"),
        (with("app", "custom", Some("+config"), fine), Code::RulesRefused, "rules"),
        (with("app", "read-only", None, "weak"), Code::PasswordTooWeak, "password"),
    ] {
        let refusal = world.refusal(Method::POST, path, Some(body.clone())).await;
        assert_eq!(refusal, (code, json!(field)), "{body}");
    }
    let nonsense = with("app", "custom", Some("+nonsense"), fine);
    let by_engine = world.refusal(Method::POST, path, Some(nonsense)).await;
    assert_eq!(by_engine.0, Code::RulesRefused, "the engine has the last word");

    let end = async |operation: &Value| {
        let id = operation["id"].as_str().unwrap().parse().unwrap();
        let done = OperationState::Succeeded;
        world.store.operation_report(&id, Vec::new(), done, None).await.unwrap();
    };
    let made = world.post(path, with("app", "custom", Some("~a:*   +get"), fine)).await;
    assert_eq!(made.status, StatusCode::ACCEPTED, "{}", made.text);
    assert_eq!(made.json["kind"], "create-account");
    assert!(!made.text.contains("Pantry"), "{}", made.text);
    let cancel = format!("/api/v1/operations/{}/cancel", made.json["id"].as_str().unwrap());
    assert_eq!(world.refusal(Method::POST, &cancel, None).await.0, Code::NotCancellable);
    end(&made.json).await;
    let twice = world.refusal(Method::POST, path, Some(with("app", "read-only", None, fine))).await;
    assert_eq!(twice.0, Code::NameTaken);
    let all = world.get(path).await;
    assert_eq!(keys(&all[0]), ["changed_at", "created_at", "name", "role", "rules"]);
    assert_eq!((&all[0]["role"], &all[0]["rules"]), (&json!("custom"), &json!("~a:* +get")));

    let one = format!("{path}/app");
    let before = world.store.instance_secrets(&row.spec.id).await.unwrap();
    let nothing = world.refusal(Method::PATCH, &one, Some(json!({}))).await;
    assert_eq!(nothing.0, Code::InvalidRequest);
    let nobody = format!("{path}/nobody");
    let none = world.refusal(Method::PATCH, &nobody, Some(json!({ "role": "read-only" })));
    assert_eq!(none.await.0, Code::AccountNotFound);
    let changed = world.call(Method::PATCH, &one, Some(json!({ "role": "read-only" }))).await;
    assert_eq!(changed.status, StatusCode::ACCEPTED, "{}", changed.text);
    end(&changed.json).await;
    let after = world.store.instance_secrets(&row.spec.id).await.unwrap();
    assert_eq!(after.accounts[0].password_sha256, before.accounts[0].password_sha256);
    assert_eq!(
        (after.accounts[0].role, after.accounts[0].rules.as_str()),
        (AccountRole::ReadOnly, "")
    );
    assert_eq!(after.users_revision, before.users_revision + 1);

    let gone = world.call(Method::DELETE, &one, None).await;
    assert_eq!(gone.json["kind"], "delete-account", "{}", gone.text);
    assert_eq!(world.get(path).await, json!([]));
    assert!(world.store.instance_secrets(&row.spec.id).await.unwrap().accounts.is_empty());
}

#[tokio::test]
async fn a_password_is_checked_kept_as_a_hash_and_its_change_is_not_cancelled() {
    let world = World::new().await;
    let row = world.running("one", "read-write").await;
    let path = "/api/v1/instances/one/password";
    let long = json!({ "password": "Pantry-2027", "grace_seconds": 9_999_999 });
    for (body, code, field) in [
        (json!({ "password": "weak" }), Code::PasswordTooWeak, "password"),
        (long, Code::InvalidRequest, "grace_seconds"),
    ] {
        let refusal = world.refusal(Method::POST, path, Some(body)).await;
        assert_eq!(refusal, (code, json!(field)));
    }
    let before = world.store.instance_secrets(&row.spec.id).await.unwrap();
    let accepted = world.post(path, json!({ "password": "Pantry-2027" })).await;
    assert_eq!(accepted.status, StatusCode::ACCEPTED, "{}", accepted.text);
    assert!(!accepted.text.contains("Pantry"), "{}", accepted.text);
    let after = world.store.instance_secrets(&row.spec.id).await.unwrap();
    assert_eq!(after.former_password_sha256, before.default_password_sha256);
    assert_ne!(after.default_password_sha256, before.default_password_sha256);
    assert_eq!(after.users_revision, before.users_revision + 1);
    let cancel = format!("/api/v1/operations/{}/cancel", accepted.json["id"].as_str().unwrap());
    assert_eq!(world.refusal(Method::POST, &cancel, None).await.0, Code::NotCancellable);
}

#[tokio::test]
async fn instance_that_never_served_or_has_no_replica_is_not_failed_over() {
    let world = World::new().await;
    world.post("/api/v1/instances", create_body("young", "read-write")).await;
    world.running("alone", "standalone").await;
    for (name, code) in [("young", Code::InstanceNotReady), ("alone", Code::NoEligibleReplica)] {
        let path = format!("/api/v1/instances/{name}/failover");
        assert_eq!(world.refusal(Method::POST, &path, None).await.0, code);
    }
}

#[tokio::test]
async fn deletion_needs_its_policy_supersedes_and_cannot_be_cancelled() {
    let world = World::new().await;
    world.running("one", "read-write").await;
    for query in ["", "?policy=recycle"] {
        let path = format!("/api/v1/instances/one{query}");
        let refusal = world.refusal(Method::DELETE, &path, None).await;
        assert_eq!(refusal, (Code::InvalidRequest, json!("policy")));
    }
    let restart = world.call(Method::POST, "/api/v1/instances/one/restart", None).await.json;
    let path = "/api/v1/instances/one?policy=permanent";
    let answer = world.call(Method::DELETE, path, None).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text);
    assert_eq!(answer.json["kind"], "delete");
    let restart =
        world.get(&format!("/api/v1/operations/{}", restart["id"].as_str().unwrap())).await;
    assert_eq!(restart["state"], "cancelled");
    assert_eq!(world.get("/api/v1/instances/one").await["state"], "deleting");
    assert_eq!(world.refusal(Method::DELETE, path, None).await.0, Code::InstanceBusy);
    let cancel = format!("/api/v1/operations/{}/cancel", answer.json["id"].as_str().unwrap());
    assert_eq!(world.refusal(Method::POST, &cancel, None).await.0, Code::NotCancellable);
}

#[tokio::test]
async fn events_and_operations_of_a_deleted_instance_are_still_found_by_its_name() {
    let world = World::new().await;
    let row = world.running("one", "standalone").await;
    world.call(Method::DELETE, "/api/v1/instances/one?policy=permanent", None).await;
    world.store.instance_purge(&row.spec.id).await.unwrap();
    let events = world.get("/api/v1/events?project=default&instance=one").await;
    let events = events.as_array().unwrap();
    assert!(events.iter().any(|e| e["reason"] == "create-requested"), "{events:?}");
    assert!(events.iter().all(|e| e["instance"] == "one"));
    assert!(events.windows(2).all(|pair| pair[0]["seq"].as_u64() < pair[1]["seq"].as_u64()));
    assert_eq!(world.get("/api/v1/operations?instance=one").await.as_array().unwrap().len(), 2);
    let never = world.refusal(Method::GET, "/api/v1/events?instance=never", None).await;
    assert_eq!(never.0, Code::NotFound);
}

#[tokio::test]
async fn tenant_password_is_kept_nowhere() {
    let world = World::new().await;
    world.running("one", "standalone").await;
    for page in ["instances/one", "operations", "events", "records", "instances/one/plan"] {
        let text = world.get(&format!("/api/v1/{page}")).await.to_string();
        assert!(!text.contains(TENANT_PASSWORD), "{page}");
    }
    for file in std::fs::read_dir(world.database().parent().unwrap()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        let needle = TENANT_PASSWORD.as_bytes();
        assert!(!bytes.windows(needle.len()).any(|window| window == needle));
    }
}

#[tokio::test]
async fn storage_class_left_out_is_the_container_clusters_first() {
    let world = World::new().await;
    let classes = |names: &[&str]| {
        *world.capacity.storage_classes.lock().unwrap() =
            Some(names.iter().map(|name| (*name).to_owned()).collect());
    };
    classes(&["standard", "fast"]);
    world.post("/api/v1/instances", create_body("one", "standalone")).await;
    classes(&["fast", "slow"]);
    world.post("/api/v1/instances", create_body("two", "standalone")).await;
    for (name, class) in [("one", "standard"), ("two", "fast")] {
        let shown = world.get(&format!("/api/v1/instances/{name}")).await;
        assert_eq!(shown["storage_class"], class, "{name}");
    }
    let asked = with("three", "standalone", json!({"storage_class": "standard"}));
    let (code, field) = world.refusal(Method::POST, "/api/v1/instances", Some(asked)).await;
    assert_eq!((code, field), (Code::StorageClassNotFound, json!("storage_class")));
}
