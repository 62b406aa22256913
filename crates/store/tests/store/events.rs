//! The event log and the records.

use larder_model::agent::AgentEvent;
use larder_model::{Code, Event, EventKind, InstanceId, Severity, Timestamp};
use larder_store::{EventFilter, Record, RecordFilter, RecordOutcome};

use crate::support::{Folder, create, instance_id, node_id, record, spec};

fn event(message: &str, instance: Option<InstanceId>) -> Event {
    Event {
        at: Timestamp(1),
        kind: EventKind::Control,
        severity: Severity::Critical,
        instance,
        node: None,
        reason: "volume-lost".into(),
        message: message.into(),
    }
}

fn agent_event(seq: u64) -> AgentEvent {
    AgentEvent {
        seq,
        at: Timestamp(2),
        severity: Severity::Warning,
        reason: "node-restarted".into(),
        message: format!("event {seq}"),
    }
}

#[tokio::test]
async fn events_are_numbered_in_order_and_read_from_where_one_stopped() {
    let folder = Folder::new();
    let store = folder.store().await;
    create(&store, 1, "one").await.expect("create");
    let about = Some(instance_id(1));
    let newest =
        store.event_append(&[event("a", about.clone()), event("b", None)]).await.expect("append");
    assert_eq!(newest, 3);
    assert_eq!(store.event_append(&[]).await.expect("nothing"), 3);
    let messages = async |filter: EventFilter| -> Vec<(u64, String)> {
        let rows = store.event_list(&filter).await.expect("list");
        rows.into_iter().map(|r| (r.seq, r.event.message)).collect()
    };
    let after = EventFilter { after: Some(1), ..EventFilter::default() };
    assert_eq!(messages(after).await, [(2, "a".to_owned()), (3, "b".to_owned())]);
    let newest = EventFilter { newest_first: true, limit: Some(1), ..EventFilter::default() };
    assert_eq!(messages(newest).await, [(3, "b".to_owned())]);
    let of_one = EventFilter { instance: about, ..EventFilter::default() };
    assert_eq!(messages(of_one).await.len(), 2);
    let of_project = EventFilter { project: "default".parse().ok(), ..EventFilter::default() };
    assert_eq!(messages(of_project).await.len(), 3, "the installation's events are everybody's");
    let of_another = EventFilter { project: "other".parse().ok(), ..EventFilter::default() };
    assert_eq!(messages(of_another).await, [(3, "b".to_owned())]);
}

#[tokio::test]
async fn an_agents_event_is_kept_once_however_often_it_is_told() {
    let folder = Folder::new();
    let store = folder.store().await;
    create(&store, 1, "one").await.expect("create");
    let (instance, node) = (instance_id(1), node_id(1));
    let tell = async |events: &[AgentEvent]| {
        store.event_append_from_node(&instance, &node, events).await.expect("append")
    };
    assert_eq!(tell(&[]).await, 0);
    assert_eq!(tell(&[agent_event(1), agent_event(2)]).await, 2);
    assert_eq!(tell(&[agent_event(1), agent_event(2)]).await, 0);
    assert_eq!(tell(&[agent_event(2), agent_event(3), agent_event(3)]).await, 1);
    let other = node_id(2);
    let told = store.event_append_from_node(&instance, &other, &[agent_event(1)]).await;
    assert_eq!(told.expect("append"), 1, "numbers are each node's own");
    let filter = EventFilter { instance: Some(instance.clone()), ..EventFilter::default() };
    let rows = store.event_list(&filter).await.expect("list");
    assert_eq!(rows.iter().map(|r| r.seq).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert_eq!(rows[1].event.kind, EventKind::Node);
    assert_eq!(rows[1].event.node, Some(node.clone()));
    assert_eq!(rows[1].event.severity, Severity::Warning);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_sees_every_event_once_and_in_order() {
    let folder = Folder::new();
    let store = folder.store().await;
    let mut changes = store.changes();
    let follower = tokio::spawn({
        let store = store.clone();
        async move {
            let mut seen = Vec::new();
            while seen.len() < 60 {
                let newest = *changes.borrow_and_update();
                let after = Some(seen.len() as u64);
                let filter = EventFilter { after, ..EventFilter::default() };
                let rows = store.event_list(&filter).await.expect("list");
                assert!(seen.len() + rows.len() >= usize::try_from(newest).expect("small"));
                seen.extend(rows.into_iter().map(|r| r.seq));
                if seen.len() < 60 {
                    changes.changed().await.expect("open");
                }
            }
            seen
        }
    });
    let writers: Vec<_> = (0..3)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                for _ in 0..10 {
                    store
                        .event_append(&[event("x", None), event("y", None)])
                        .await
                        .expect("append");
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("writer");
    }
    let seen = tokio::time::timeout(std::time::Duration::from_secs(30), follower)
        .await
        .expect("woken for every event")
        .expect("follower");
    assert_eq!(seen, (1..=60).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_newest_number_survives_a_restart() {
    let folder = Folder::new();
    let store = folder.store().await;
    store.event_append(&[event("a", None), event("b", None)]).await.expect("append");
    store.close().await;
    let store = folder.open().await.expect("open");
    assert_eq!(*store.changes().borrow(), 2);
    assert_eq!(store.event_append(&[event("c", None)]).await.expect("append"), 3);
}

#[tokio::test]
async fn records_are_found_by_instance_user_and_time() {
    let folder = Folder::new();
    let store = folder.store().await;
    let one = record("instance-create", &spec(1, "one"));
    let login = Record {
        at: Timestamp(1_800_000_000_000),
        user: "eve".into(),
        action: "login".into(),
        object: "user eve".into(),
        instance: None,
        outcome: RecordOutcome::Refused(Code::LoginFailed),
        ..one.clone()
    };
    assert_eq!(store.record_append(&one).await.expect("append"), 1);
    assert_eq!(store.record_append(&login).await.expect("append"), 2);
    let list = async |filter: RecordFilter| {
        let rows = store.record_list(&filter).await.expect("list");
        rows.into_iter().map(|r| (r.number, r.record)).collect::<Vec<_>>()
    };
    let all = RecordFilter::default;
    assert_eq!(list(all()).await, [(2, login.clone()), (1, one.clone())]);
    assert_eq!(list(RecordFilter { instance: Some("one".into()), ..all() }).await, [(1, one)]);
    assert_eq!(
        list(RecordFilter { user: Some("eve".into()), ..all() }).await,
        [(2, login.clone())]
    );
    let since = Some(Timestamp(1_800_000_000_000));
    assert_eq!(list(RecordFilter { since, ..all() }).await, [(2, login.clone())]);
    assert_eq!(list(RecordFilter { limit: Some(1), ..all() }).await, [(2, login)]);
}
