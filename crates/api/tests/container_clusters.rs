//! Container clusters: bound once, bound anew, changed, unbound; whole or not at all.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use axum::http::{Method, StatusCode};
use common::{Answer, World};
use larder_model::Code;
use larder_store::ContainerClusterRow;
use serde_json::{Value, json};

const ALL: &str = "/api/v1/container-clusters";
const EAST: &str = "/api/v1/container-clusters/east";

async fn bind(world: &World, body: Value) -> Answer {
    world.call(Method::POST, ALL, Some(body)).await
}

async fn kept(world: &World) -> Vec<ContainerClusterRow> {
    world.store.container_cluster_list().await.unwrap()
}

/// What was done, the newest first.
async fn actions(world: &World) -> Vec<String> {
    let records = world.get("/api/v1/records").await;
    let accepted = records.as_array().unwrap().iter().filter(|row| row["outcome"] == "accepted");
    accepted.rev().map(|row| row["action"].as_str().unwrap().to_owned()).collect()
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    for _ in 0..500 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 5 s: {what}");
}

#[tokio::test]
async fn a_container_cluster_is_bound_shown_used_and_unbound() {
    let world = World::new().await;
    assert_eq!(world.refusal(Method::GET, EAST, None).await.0, Code::NotFound);
    let answer = bind(&world, json!({ "name": "east", "kubeconfig": "Hunter2-kubeconfig" })).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    let rows = kept(&world).await;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].credentials.expose(), "Hunter2-kubeconfig");
    for name in ["local", "Not-A-Name"] {
        let answer = bind(&world, json!({ "name": name, "kubeconfig": "k" })).await;
        assert_eq!(answer.problem().0, Code::InvalidName, "{name}");
    }
    let answer = bind(&world, json!({ "name": "broken", "kubeconfig": "k" })).await;
    assert_eq!(answer.problem().0, Code::ContainerClusterUnusable);
    let shown = world.get(ALL).await;
    assert_eq!(shown.as_array().unwrap().len(), 2, "{shown}");
    let set = world.call(Method::PATCH, EAST, Some(json!({ "spread": "preferred" }))).await;
    assert_eq!(set.status, StatusCode::OK, "{}", set.text);
    assert_eq!(kept(&world).await[0].options, json!({ "spread": "preferred" }));
    let lost = |worker: &str| format!("{EAST}/workers/{worker}/confirm-lost");
    let refused = world.refusal(Method::POST, &lost("alive"), None).await;
    assert_eq!(refused.0, Code::WorkerNotLost);
    let said = world.call(Method::POST, &lost("gone"), None).await;
    assert_eq!(said.status, StatusCode::NO_CONTENT, "{}", said.text);
    let records = world.get("/api/v1/records").await.to_string();
    assert!(records.contains("gone") && !records.contains("Hunter2"));
    let gone = world.call(Method::DELETE, EAST, None).await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT);
    let gone = world.call(Method::DELETE, EAST, None).await;
    assert_eq!(gone.problem().0, Code::NotFound);
    assert_eq!(
        actions(&world).await[..4],
        [
            "container-cluster-unbind",
            "container-cluster-confirm-lost",
            "container-cluster-set",
            "container-cluster-bind"
        ]
    );
}

#[tokio::test]
async fn a_name_that_is_bound_is_bound_anew_on_purpose_alone() {
    let world = World::new().await;
    let rebind = json!({ "name": "east", "rebind": true, "kubeconfig": "new" });
    let answer = bind(&world, rebind.clone()).await;
    assert_eq!(answer.problem().0, Code::NotFound, "a misspelt name binds nothing");
    assert!(kept(&world).await.is_empty());
    bind(&world, json!({ "name": "east", "kubeconfig": "old" })).await;
    let first = kept(&world).await;
    let answer = bind(&world, json!({ "name": "east", "kubeconfig": "another" })).await;
    assert_eq!(answer.problem().0, Code::NameTaken);
    assert!(answer.text.contains("rebind east"), "{}", answer.text);
    assert_eq!(kept(&world).await, first, "what is bound is as it was");
    let answer = bind(&world, rebind).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    let second = kept(&world).await;
    assert_eq!(second[0].credentials.expose(), "new");
    assert_eq!(second[0].owner, first[0].owner, "it marks its objects");
    assert_eq!(world.binder.owner("east").as_ref(), Some(&first[0].owner));
}

#[tokio::test]
async fn of_two_first_bindings_one_is_kept_and_that_one_is_used() {
    let world = World::new().await;
    let held = world.binder.preparing.lock().await;
    let one = json!({ "name": "east", "kubeconfig": "one" });
    let two = json!({ "name": "east", "kubeconfig": "two" });
    let both = async { tokio::join!(bind(&world, one), bind(&world, two)) };
    let release = async {
        until("somebody prepares", async || world.binder.prepared() > 0).await;
        drop(held);
    };
    let ((one, two), ()) = tokio::join!(both, release);
    let codes = [one.status, two.status];
    assert!(codes.contains(&StatusCode::CREATED) && codes.contains(&StatusCode::CONFLICT));
    let owner = kept(&world).await[0].owner.clone();
    assert_eq!(world.binder.owner("east"), Some(owner), "what it makes there can be found again");
}

#[tokio::test]
async fn two_changes_at_once_lose_nothing_of_each_other() {
    let world = World::new().await;
    bind(&world, json!({ "name": "east", "kubeconfig": "k" })).await;
    let held = world.binder.preparing.lock().await;
    let rebind = json!({ "name": "east", "rebind": true, "image": "next" });
    let set = json!({ "spread": "preferred" });
    let both = async {
        tokio::join!(bind(&world, rebind), async {
            until("the other prepares", async || world.binder.prepared() > 1).await;
            world.call(Method::PATCH, EAST, Some(set)).await
        })
    };
    let release = async {
        until("the other prepares", async || world.binder.prepared() > 1).await;
        // Time for the change to overtake, were it not one at a time.
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(held);
    };
    let ((rebound, set), ()) = tokio::join!(both, release);
    assert_eq!((rebound.status, set.status), (StatusCode::OK, StatusCode::OK));
    assert_eq!(kept(&world).await[0].options, json!({ "image": "next", "spread": "preferred" }));
}

#[tokio::test]
async fn who_hangs_up_leaves_a_binding_that_is_used_as_it_is_kept() {
    let world = World::new().await;
    let held = world.binder.binding.lock().await;
    let asking = bind(&world, json!({ "name": "east", "kubeconfig": "k" }));
    let hang_up = until("it is kept", async || !kept(&world).await.is_empty());
    tokio::select! {
        answer = asking => panic!("answered before it is used: {}", answer.text),
        () = hang_up => {}
    }
    drop(held);
    until("it is used", async || world.binder.owner("east").is_some()).await;
    assert_eq!(actions(&world).await[0], "container-cluster-bind");
}

#[tokio::test]
async fn one_that_says_nothing_is_given_up_and_nothing_is_changed() {
    let world = World::new().await;
    let held = world.binder.preparing.lock().await;
    let answer = bind(&world, json!({ "name": "east", "kubeconfig": "k" })).await;
    assert_eq!(answer.problem().0, Code::Timeout);
    drop(held);
    assert!(kept(&world).await.is_empty());
}
