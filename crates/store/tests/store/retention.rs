//! What is kept of the history, and for how long.

use larder_model::agent::{AgentEvent, EVENTS_KEPT};
use larder_model::{Event, EventKind, InstanceId, Millis, OperationState, Severity, Timestamp};
use larder_store::{EventFilter, OperationFilter, Pruned, RecordFilter, Retention, Store};

use crate::support::{
    Folder, created, instance_id, node, node_id, operation, operation_id, record, restart, spec,
};

const DAY: i64 = Millis::days(1).0 as i64;

fn event(at: i64, instance: Option<InstanceId>) -> Event {
    Event {
        at: Timestamp(at),
        kind: EventKind::Control,
        severity: Severity::Info,
        instance,
        node: None,
        reason: "test".into(),
        message: "something happened".into(),
    }
}

async fn events(store: &Store, instance: Option<InstanceId>) -> Vec<u64> {
    let filter = EventFilter { instance, limit: Some(10_000), ..EventFilter::default() };
    store.event_list(&filter).await.expect("list").iter().map(|row| row.seq).collect()
}

#[tokio::test]
async fn old_events_go_and_of_a_noisy_instance_the_oldest() {
    let folder = Folder::new();
    let store = folder.store().await;
    let now = 1_900_000_000_000;
    let first =
        store.event_append(&[event(now - 31 * DAY, Some(instance_id(1)))]).await.expect("one");
    let of = |n| Some(instance_id(n));
    let mut young: Vec<Event> = (0..20).map(|n| event(now - n, of(1))).collect();
    young.extend([event(now - 29 * DAY, of(2)), event(now - 29 * DAY, None)]);
    let newest = store.event_append(&young).await.expect("more");
    let keep = Retention { events_per_instance: 5, ..Retention::default() };
    let pruned = store.prune(Timestamp(now), &keep).await.expect("prune");
    assert_eq!(pruned, Pruned { events: 16, ..Pruned::default() });
    assert_eq!(events(&store, of(1)).await, (first + 16..first + 21).collect::<Vec<_>>());
    assert_eq!(events(&store, None).await.len(), 7);
    // What follows is numbered on, though the newest may be gone.
    let everything = Retention { events: Millis(0), ..keep };
    store.prune(Timestamp(now + 1), &everything).await.expect("prune");
    assert_eq!(events(&store, None).await, Vec::<u64>::new());
    assert_eq!(store.event_append(&[event(now, None)]).await.expect("append"), newest + 1);
}

#[tokio::test]
async fn what_a_living_node_tells_again_is_not_taken_for_news() {
    let folder = Folder::new();
    let store = folder.store().await;
    let spec = created(&store, 1, "one").await;
    let generation = store.instance_get(&spec.id).await.expect("get").generation;
    store.node_insert(&spec.id, &node(1, 0), generation).await.expect("insert");
    let told = |range: std::ops::RangeInclusive<u64>| -> Vec<AgentEvent> {
        range
            .map(|seq| AgentEvent {
                seq,
                at: Timestamp(1_000),
                severity: Severity::Info,
                reason: "test".into(),
                message: format!("event {seq}"),
            })
            .collect()
    };
    for id in [node_id(1), node_id(9)] {
        store.event_append_from_node(&spec.id, &id, &told(1..=100)).await.expect("append");
    }
    let now = Timestamp(1_900_000_000_000);
    let keep = Retention { events_per_instance: 10, ..Retention::default() };
    store.prune(now, &keep).await.expect("prune");
    let again = store.event_append_from_node(&spec.id, &node_id(1), &told(37..=100)).await;
    assert_eq!(again.expect("append"), 0, "its newest 64 are still known");
    // Nothing is left of a node that is no more.
    let all = EventFilter { limit: Some(1000), ..EventFilter::default() };
    let left = store.event_list(&all).await.expect("list");
    assert!(left.iter().all(|row| row.event.node != Some(node_id(9))));
    assert_eq!(left.len(), EVENTS_KEPT, "what it tells no more is gone");
}

#[tokio::test]
async fn operations_go_400_days_after_their_end_and_unfinished_ones_stay() {
    let folder = Folder::new();
    let store = folder.store().await;
    let one = created(&store, 1, "one").await;
    let begun = operation(7, &one, restart());
    store.operation_begin(&begun, &record("restart", &one)).await.expect("begin");
    let left = async || -> Vec<_> {
        let rows = store.operation_list(&OperationFilter::default()).await.expect("list");
        rows.into_iter().map(|row| (row.id, row.state)).collect()
    };
    let created = store.operation_get(&operation_id(1)).await.expect("get");
    let ended = created.finished_at.expect("it has ended");
    store.prune(ended + Millis::days(399), &Retention::default()).await.expect("prune");
    assert_eq!(left().await.len(), 2);
    let pruned = store.prune(ended + Millis::days(401), &Retention::default()).await;
    assert_eq!(pruned.expect("prune").operations, 1);
    assert_eq!(left().await, [(operation_id(7), OperationState::Queued)]);
    store.prune(Timestamp(4_000_000_000_000), &Retention::default()).await.expect("prune");
    assert_eq!(left().await.len(), 1);
}

#[tokio::test]
async fn records_go_after_400_days_from_the_beginning_only() {
    let folder = Folder::new();
    let store = folder.store().await;
    let one = created(&store, 1, "one").await;
    store.record_append(&record("restart", &one)).await.expect("append");
    let written = record("restart", &one).at;
    let now = written + Millis::days(399);
    store.prune(now, &Retention::default()).await.expect("prune");
    assert_eq!(store.record_list(&RecordFilter::default()).await.expect("list").len(), 2);
    let mut late = record("late", &spec(1, "one"));
    late.at = now;
    let number = store.record_append(&late).await.expect("append");
    // The clock was wrong once: what comes after a kept record stays with it.
    store.record_append(&record("odd", &one)).await.expect("append");
    store.prune(now + Millis::days(2), &Retention::default()).await.expect("prune");
    let left = store.record_list(&RecordFilter::default()).await.expect("list");
    assert_eq!(left.iter().map(|row| row.number).collect::<Vec<_>>(), [number + 1, number]);
    let far = store.prune(Timestamp(4_000_000_000_000), &Retention::default()).await;
    assert_eq!(far.expect("prune").records, 2, "none is left to keep any");
}
