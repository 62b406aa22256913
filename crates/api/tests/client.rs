//! The client and the API over a real connection: they have to mean the same.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{ADMIN_PASSWORD, TENANT_PASSWORD, World};
use larder_api_types::{CreateInstance, CreateToken, RestartInstance, UpdateInstance};
use larder_client::{Client, ClientError, InstanceFilter, InstanceRef, WaitError, WaitOptions};
use larder_model::{Code, OperationId, OperationState, Secret};
use tokio::net::TcpListener;

async fn serve(world: &World) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = world.router.clone().into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, service).await });
    format!("http://{address}")
}

async fn client(world: &World) -> Client {
    let client = Client::new(&serve(world).await, None).unwrap();
    let session = client.login("admin", &Secret::new(ADMIN_PASSWORD)).await.unwrap();
    client.with_token(session.token)
}

const ONE: InstanceRef<'static> = InstanceRef { project: "default", name: "one" };

#[tokio::test]
async fn every_method_of_the_client_is_understood() {
    let world = World::new().await;
    let client = client(&world).await;
    assert_eq!(client.whoami().await.unwrap().user, "admin");
    assert_eq!(client.status().await.unwrap().engines, 1);
    let new = CreateInstance {
        name: "two".into(),
        architecture: "standalone".into(),
        engine: "redis-7.0".into(),
        password: Some(Secret::new(TENANT_PASSWORD)),
        ..CreateInstance::default()
    };
    assert!(!client.instance_dry_run(&new).await.unwrap().steps.is_empty());
    let operation = client.instance_create(&new).await.unwrap();
    assert_eq!(operation.requested_from, "127.0.0.1");
    world.running("one", "read-write").await;
    let filter = InstanceFilter { project: Some("default".into()), ..InstanceFilter::default() };
    assert_eq!(client.instance_list(&filter).await.unwrap().len(), 2);
    assert_eq!(client.instance_get(ONE).await.unwrap().state, "running");
    assert!(client.instance_plan(ONE).await.unwrap().text.contains("nothing to do"));
    let change = UpdateInstance { description: Some("d".into()), ..UpdateInstance::default() };
    assert_eq!(client.instance_update(ONE, &change).await.unwrap().description, "d");
    let operation = client.instance_restart(ONE, &RestartInstance::default()).await.unwrap();
    assert_eq!(client.operation_get(&operation.id).await.unwrap().kind, "restart");
    assert_eq!(client.operation_cancel(&operation.id).await.unwrap().state, "cancelled");
    assert_eq!(client.operation_list("default", Some("one"), 100).await.unwrap().len(), 2);
    client.instance_failover(ONE, &Default::default()).await.unwrap();
    client.instance_delete_permanently(ONE).await.unwrap();
    assert!(client.event_list("default", Some("one"), 100).await.unwrap().len() > 3);
    let records = client.record_list(None, Some("admin"), Some("2020-01-01T00:00:00Z"), 100).await;
    assert!(records.unwrap().iter().any(|record| record.action == "instance-restart"));
    assert_eq!(client.project_list().await.unwrap()[0].name, "default");
    client.engine_add("/opt/redis-server").await.unwrap();
    assert_eq!(client.engine_list().await.unwrap().len(), 3);
    client.engine_remove("redis-6.2").await.unwrap();
    let asked = CreateToken { name: "ci".into(), expires_in_seconds: None };
    let made = client.token_create(&asked).await.unwrap();
    assert!(client.token_list().await.unwrap().contains(&made.info));
    client.token_revoke(&made.info.id).await.unwrap();
    client.user_set_password("admin", &Secret::new("Hunter2-newer")).await.unwrap();
    client.logout().await.unwrap();
    let error = client.whoami().await.unwrap_err();
    assert!(matches!(error, ClientError::NotAllowed(_)), "{error}");
    assert_eq!(error.code(), Some(Code::NotLoggedIn));
}

#[tokio::test]
async fn waiting_ends_with_the_operation_or_with_the_patience() {
    let world = World::new().await;
    let client = client(&world).await;
    world.running("one", "standalone").await;
    let operation = client.instance_restart(ONE, &RestartInstance::default()).await.unwrap();
    let impatient = WaitOptions { timeout: Duration::from_millis(300), project: "default".into() };
    let error = client.wait_operation(operation.clone(), &impatient, |_| {}).await.unwrap_err();
    assert!(matches!(error, WaitError::TimedOut { .. }), "{error}");

    let id = OperationId::new(operation.id.clone()).unwrap();
    let patient = WaitOptions { timeout: Duration::from_secs(20), ..impatient };
    let mut seen = Vec::new();
    let waiting = client.wait_operation(operation, &patient, |o| seen.push(o.state.clone()));
    let working = async {
        let report = |state| world.store.operation_report(&id, vec![], state, None);
        report(OperationState::Running).await.unwrap();
        report(OperationState::Succeeded).await.unwrap();
    };
    let (done, ()) = tokio::join!(waiting, working);
    assert_eq!(done.unwrap().state, "succeeded");
    assert_eq!(seen.last().map(String::as_str), Some("succeeded"));
}

#[tokio::test]
async fn event_stream_hands_out_every_event_once() {
    let world = World::new().await;
    let client = client(&world).await;
    world.running("one", "standalone").await;
    let listed = client.event_list("default", Some("one"), 100).await.unwrap();
    let mut stream = client.event_stream("default", Some("one"), Some(0)).await.unwrap();
    for event in &listed {
        assert_eq!(stream.next().await.unwrap(), *event);
    }
    client.instance_restart(ONE, &RestartInstance::default()).await.unwrap();
    assert_eq!(stream.next().await.unwrap().reason, "restart-requested");
    let error = client.event_stream("default", Some("none"), None).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::NotFound));
}
