//! Operations: who holds an instance, and how times are kept.

use std::collections::BTreeMap;

use larder_model::{Code, OperationKind, OperationState, Refusal, StepState, Timestamp};
use larder_store::{EventFilter, OperationFilter, RecordFilter};

use crate::support::{
    Folder, assert_not_found, create, created, instance_id, operation, operation_id, record,
    refusal, refused, restart, spec, step,
};

#[tokio::test]
async fn a_held_instance_is_busy_and_the_holder_is_named() {
    let folder = Folder::new();
    let store = folder.store().await;
    let spec = create(&store, 1, "one").await.expect("create");
    let result =
        store.operation_begin(&operation(2, &spec, restart()), &record("restart", &spec)).await;
    let refusal = refusal(result);
    assert_eq!(refusal.code, Code::InstanceBusy);
    assert!(refusal.detail.contains("o-1") && refusal.detail.contains("create"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_operations_at_once_one_takes_hold() {
    let folder = Folder::new();
    let store = folder.store().await;
    let spec = created(&store, 1, "one").await;
    let tasks: Vec<_> = (10..18)
        .map(|n| {
            let (store, spec) = (store.clone(), spec.clone());
            tokio::spawn(async move {
                let record = record("restart", &spec);
                store.operation_begin(&operation(n, &spec, restart()), &record).await
            })
        })
        .collect();
    let mut won = 0;
    for task in tasks {
        match task.await.expect("task") {
            Ok(()) => won += 1,
            error => assert_eq!(refused(error), Code::InstanceBusy),
        }
    }
    assert_eq!(won, 1);
    let filter = OperationFilter { instance: Some("i-1".into()), ..OperationFilter::default() };
    assert_eq!(store.operation_list(&filter).await.expect("list").len(), 2);
}

#[tokio::test]
async fn times_of_steps_are_filled_in_and_kept() {
    let folder = Folder::new();
    let store = folder.store().await;
    create(&store, 1, "one").await.expect("create");
    let id = operation_id(1);
    let first = store
        .operation_report(
            &id,
            vec![step("start", StepState::Running), step("join", StepState::Pending)],
            OperationState::Running,
            None,
        )
        .await
        .expect("report");
    let started = first.steps[0].started_at.expect("started");
    assert_eq!((first.steps[0].finished_at, first.steps[1].started_at), (None, None));
    let second = store
        .operation_report(
            &id,
            vec![step("start", StepState::Succeeded), step("join", StepState::Waiting)],
            OperationState::Waiting,
            None,
        )
        .await
        .expect("report");
    assert_eq!(second.steps[0].started_at, Some(started));
    let finished = second.steps[0].finished_at.expect("finished");
    assert!(finished >= started && second.steps[1].started_at.is_some());
    let third = store
        .operation_report(
            &id,
            vec![step("start", StepState::Succeeded), step("join", StepState::Succeeded)],
            OperationState::Succeeded,
            None,
        )
        .await
        .expect("report");
    assert_eq!(third.steps[0].finished_at, Some(finished));
    assert!(third.finished_at.is_some());
    assert_eq!(store.operation_get(&id).await.expect("get"), third);
}

#[tokio::test]
async fn a_report_that_says_nothing_new_wakes_nobody() {
    let folder = Folder::new();
    let store = folder.store().await;
    create(&store, 1, "one").await.expect("create");
    let steps = || vec![step("start", StepState::Running)];
    let report = async || {
        store
            .operation_report(&operation_id(1), steps(), OperationState::Running, None)
            .await
            .expect("report")
    };
    let mut changes = store.changes();
    let first = report().await;
    assert!(changes.has_changed().expect("open"), "followers see steps move");
    changes.mark_unchanged();
    assert_eq!(report().await, first);
    assert!(!changes.has_changed().expect("open"));
}

#[tokio::test]
async fn a_finished_operation_never_changes() {
    let folder = Folder::new();
    let store = folder.store().await;
    create(&store, 1, "one").await.expect("create");
    let id = operation_id(1);
    let why = Refusal::new(Code::NoFreePort, "no port is free");
    let failed = store
        .operation_report(&id, Vec::new(), OperationState::Failed, Some(why.clone()))
        .await
        .expect("report");
    assert_eq!(failed.error, Some(why));
    let late = store
        .operation_report(
            &id,
            vec![step("start", StepState::Running)],
            OperationState::Running,
            None,
        )
        .await
        .expect("late");
    assert_eq!(late, failed);
    store.operation_set_kind(&id, &OperationKind::Create).await.expect("late kind");
    assert_eq!(store.operation_get(&id).await.expect("get"), failed);
    let events = store.event_list(&EventFilter::default()).await.expect("events");
    assert_eq!(events.len(), 2);
    assert_eq!(events[1].event.reason, "create-failed");
    assert!(events[1].event.message.contains("no port is free"));
}

#[tokio::test]
async fn an_unfinished_operation_is_cancelled_once_with_its_reason_and_record() {
    let folder = Folder::new();
    let store = folder.store().await;
    let spec = create(&store, 1, "one").await.expect("create");
    let id = operation_id(1);
    let why = Refusal::new(Code::NotReady, "admin cancelled it");
    let record = record("operation-cancel", &spec);
    let cancelled = store.operation_cancel(&id, why.clone(), &record).await.expect("cancel");
    assert_eq!((cancelled.state, cancelled.error.clone()), (OperationState::Cancelled, Some(why)));
    assert_eq!(store.operation_get(&id).await.expect("get"), cancelled);
    let again = Refusal::new(Code::NotReady, "again");
    let refused_again = store.operation_cancel(&id, again, &record).await;
    assert_eq!(refused(refused_again), Code::NotCancellable);
    let records = store.record_list(&RecordFilter::default()).await.expect("records");
    assert_eq!(records.len(), 2, "the creation and one cancellation");
}

#[tokio::test]
async fn an_operation_remembers_what_it_is_measured_against() {
    let folder = Folder::new();
    let store = folder.store().await;
    let spec = created(&store, 1, "one").await;
    let id = operation_id(2);
    store
        .operation_begin(&operation(2, &spec, restart()), &record("restart", &spec))
        .await
        .expect("begin");
    let kind = OperationKind::Restart {
        node: None,
        run_ids: BTreeMap::from([(crate::support::node_id(1), "abc".into())]),
    };
    store.operation_set_kind(&id, &kind).await.expect("set");
    assert_eq!(store.operation_get(&id).await.expect("get").kind, kind);
    let other = store.operation_set_kind(&id, &OperationKind::Delete).await;
    assert_eq!(refused(other), Code::InvalidRequest);
}

#[tokio::test]
async fn operations_are_listed_newest_first_by_name_id_state_and_project() {
    let folder = Folder::new();
    let store = folder.store().await;
    let one = created(&store, 1, "one").await;
    created(&store, 2, "two").await;
    store
        .operation_begin(&operation(3, &one, restart()), &record("restart", &one))
        .await
        .expect("begin");
    let ids = async |filter: OperationFilter| -> Vec<String> {
        let operations = store.operation_list(&filter).await.expect("list");
        operations.iter().map(|o| o.id.to_string()).collect()
    };
    let all = OperationFilter::default;
    assert_eq!(ids(all()).await, ["o-3", "o-2", "o-1"]);
    assert_eq!(
        ids(OperationFilter { instance: Some("one".into()), ..all() }).await,
        ["o-3", "o-1"]
    );
    assert_eq!(ids(OperationFilter { instance: Some("i-2".into()), ..all() }).await, ["o-2"]);
    let state = Some(OperationState::Queued);
    assert_eq!(ids(OperationFilter { state, ..all() }).await, ["o-3"]);
    assert_eq!(ids(OperationFilter { limit: Some(1), ..all() }).await, ["o-3"]);
    let project = "nowhere".parse().ok();
    assert!(ids(OperationFilter { project, ..all() }).await.is_empty());
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let folder = Folder::new();
    let store = folder.store().await;
    let id = operation_id(9);
    assert_not_found(store.operation_get(&id).await);
    assert_not_found(store.operation_report(&id, Vec::new(), OperationState::Running, None).await);
    assert_not_found(store.operation_set_kind(&id, &OperationKind::Create).await);
    let spec = spec(9, "nine");
    assert_eq!(spec.id, instance_id(9));
    let operation = operation(9, &spec, restart());
    assert_eq!(operation.created_at, Timestamp(1_700_000_000_009));
    assert_not_found(store.operation_begin(&operation, &record("restart", &spec)).await);
}
