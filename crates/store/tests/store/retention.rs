//! What is kept of the history, and for how long.

use larder_model::agent::AgentEvent;
use larder_model::{Event, EventKind, InstanceId, Millis, OperationState, Severity, Timestamp};
use larder_store::{EventFilter, OperationFilter, Pruned, RecordFilter, Retention, Store};

use crate::support::{
    Folder, created, instance_id, node, node_id, operation, operation_id, record, restart, spec,
};

const DAY: i64 = 24 * 3600 * 1000;

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
}

#[tokio::test]
async fn operations_and_records_go_after_more_than_a_year_and_unfinished_ones_stay() {
    let folder = Folder::new();
    let store = folder.store().await;
    let one = created(&store, 1, "one").await;
    let begun = operation(7, &one, restart());
    store.operation_begin(&begun, &record("restart", &one)).await.expect("begin");
    let count = async |store: &Store| {
        let operations = store.operation_list(&OperationFilter::default()).await.expect("list");
        let records = store.record_list(&RecordFilter::default()).await.expect("list");
        (operations.len(), records.len())
    };
    // Records say when by themselves (2023), the operation has just finished.
    let now = Timestamp(1_700_000_000_000 + 399 * DAY);
    store.prune(now, &Retention::default()).await.expect("prune");
    assert_eq!(count(&store).await, (2, 2));
    let mut late = record("late", &spec(1, "one"));
    late.at = Timestamp(now.0);
    let number = store.record_append(&late).await.expect("append");
    // The clock was wrong once: what comes after a kept record stays with it.
    store.record_append(&record("odd", &one)).await.expect("append");
    store.prune(now + Millis(2 * DAY as u64), &Retention::default()).await.expect("prune");
    let left = store.record_list(&RecordFilter::default()).await.expect("list");
    assert_eq!(left.iter().map(|row| row.number).collect::<Vec<_>>(), [number + 1, number]);
    let far = Timestamp(4_000_000_000_000);
    store.prune(far, &Retention::default()).await.expect("prune");
    let left = store.operation_list(&OperationFilter::default()).await.expect("list");
    assert_eq!(left.iter().map(|o| o.id.clone()).collect::<Vec<_>>(), [operation_id(7)]);
    assert_ne!(left[0].state, OperationState::Succeeded);
}
