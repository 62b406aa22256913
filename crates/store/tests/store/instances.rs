//! Instances: creation, changes, lists, deletion.

use std::collections::BTreeMap;

use larder_model::{
    Architecture, ByteSize, Code, DeletePolicy, InstanceName, InstanceState, OperationKind,
    OperationState, PlannerPolicy, ProjectName,
};
use larder_store::{
    ContainerClusterRow, EventFilter, InstanceChange, InstanceFilter, InstanceSort,
    OperationFilter, RecordFilter,
};

use crate::support::{
    Folder, assert_not_found, create, created, instance_id, node, observation, operation,
    operation_id, project, record, refusal, refused, restart, secrets, spec,
};

#[tokio::test]
async fn creation_writes_instance_operation_event_and_record_at_once() {
    let folder = Folder::new();
    let store = folder.store().await;
    let spec = create(&store, 1, "one").await.expect("create");

    let row = store.instance_get(&spec.id).await.expect("get");
    assert_eq!(row.spec, spec);
    assert_eq!((row.generation, row.observed_generation, row.initialized), (1, 0, false));
    assert_eq!(row.state(), InstanceState::Creating);
    assert_eq!(store.instance_find(&project(), "one").await.expect("find"), row);
    assert_eq!(store.instance_ids().await.expect("ids"), [instance_id(1)]);

    let desired = store
        .instance_desired(&spec.id, PlannerPolicy::default())
        .await
        .expect("desired")
        .expect("there");
    assert_eq!(desired.spec, spec);
    assert_eq!(desired.operation.expect("held").id, operation_id(1));
    let events = store.event_list(&EventFilter::default()).await.expect("events");
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].event.reason, "create-requested");
    assert_eq!(events[0].instance_name.as_ref().map(InstanceName::as_str), Some("one"));
    let records = store.record_list(&RecordFilter::default()).await.expect("records");
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].record, record("instance-create", &spec));
}

#[tokio::test]
async fn a_taken_name_is_refused_and_leaves_nothing() {
    let folder = Folder::new();
    let store = folder.store().await;
    create(&store, 1, "one").await.expect("create");
    let refusal = refusal(create(&store, 2, "one").await);
    assert_eq!((refusal.code, refusal.field.as_deref()), (Code::NameTaken, Some("name")));
    assert_not_found(store.operation_get(&operation_id(2)).await);
    assert_not_found(store.instance_secrets(&instance_id(2)).await);
    assert_eq!(store.event_list(&EventFilter::default()).await.expect("events").len(), 1);
    assert_eq!(store.record_list(&RecordFilter::default()).await.expect("records").len(), 1);
}

#[tokio::test]
async fn an_unknown_engine_or_project_is_refused_with_its_field() {
    let folder = Folder::new();
    let store = folder.store().await;
    let mut spec = spec(1, "one");
    spec.engine = "redis-9.9".parse().expect("valid");
    let operation = operation(1, &spec, OperationKind::Create);
    let result = store.instance_create(&spec, &secrets(), &operation, &record("x", &spec)).await;
    let refusal = refusal(result);
    assert_eq!((refusal.code, refusal.field.as_deref()), (Code::EngineNotFound, Some("engine")));
    spec.engine = "redis-7.0".parse().expect("valid");
    spec.project = ProjectName::new("nowhere").expect("valid");
    let result = store.instance_create(&spec, &secrets(), &operation, &record("x", &spec)).await;
    assert_eq!(refused(result), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_creations_with_one_name_one_wins() {
    let folder = Folder::new();
    let store = folder.store().await;
    let tasks: Vec<_> = (1..=4)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move { create(&store, n, "one").await })
        })
        .collect();
    let mut won = 0;
    for task in tasks {
        match task.await.expect("task") {
            Ok(_) => won += 1,
            Err(error) => assert_eq!(refused(Err::<(), _>(error)), Code::NameTaken),
        }
    }
    assert_eq!(won, 1);
    assert_eq!(store.instance_ids().await.expect("ids").len(), 1);
    assert_eq!(store.event_list(&EventFilter::default()).await.expect("events").len(), 1);
}

#[tokio::test]
async fn description_and_tags_change_without_a_new_generation_but_a_name_makes_one() {
    let folder = Folder::new();
    let store = folder.store().await;
    let spec = created(&store, 1, "one").await;
    create(&store, 2, "two").await.expect("create");
    let record = record("instance-update", &spec);
    let change = InstanceChange {
        description: Some("for the shop".into()),
        tags: Some(BTreeMap::from([("team".into(), "shop".into())])),
        ..InstanceChange::default()
    };
    let row = store.instance_update(&spec.id, Some(1), &change, &record).await.expect("update");
    assert_eq!((row.generation, row.spec.description.as_str()), (1, "for the shop"));
    let rename = |name: &str| InstanceChange {
        name: Some(InstanceName::new(name).expect("valid")),
        ..InstanceChange::default()
    };
    let taken = store.instance_update(&spec.id, None, &rename("two"), &record).await;
    assert_eq!(refused(taken), Code::NameTaken);
    let row = store.instance_update(&spec.id, None, &rename("uno"), &record).await.expect("name");
    assert_eq!((row.generation, row.spec.name.as_str()), (2, "uno"));
    assert_eq!(store.instance_get(&spec.id).await.expect("get"), row);
    assert_eq!(row.spec.tags["team"], "shop");
    assert_not_found(store.instance_find(&project(), "one").await);
    let stale = store.instance_update(&spec.id, Some(1), &rename("eins"), &record).await;
    assert_eq!(refused(stale), Code::GenerationConflict);
    let own = store.instance_update(&spec.id, Some(2), &rename("uno"), &record).await.expect("own");
    assert_eq!(own.generation, 2, "its own name is no change");
    let long = InstanceChange { description: Some("x".repeat(2000)), ..InstanceChange::default() };
    let refused_long = store.instance_update(&spec.id, None, &long, &record).await;
    assert_eq!(refused(refused_long), Code::InvalidRequest);
}

#[tokio::test]
async fn a_deletion_cancels_what_is_under_way_and_says_why() {
    let folder = Folder::new();
    let store = folder.store().await;
    let spec = create(&store, 1, "one").await.expect("create");
    let delete = operation(2, &spec, OperationKind::Delete);
    let record = record("instance-delete", &spec);
    let generation = store
        .instance_delete_begin(&spec.id, DeletePolicy::Permanent, &delete, &record)
        .await
        .expect("delete");
    assert_eq!(generation, 2);
    let cancelled = store.operation_get(&operation_id(1)).await.expect("get");
    assert_eq!(cancelled.state, OperationState::Cancelled);
    assert!(cancelled.finished_at.is_some());
    assert!(cancelled.error.expect("reason").detail.contains("o-2"));
    let row = store.instance_get(&spec.id).await.expect("get");
    assert_eq!(row.deletion, Some(DeletePolicy::Permanent));
    assert_eq!(row.state(), InstanceState::Deleting);

    let again = operation(3, &spec, OperationKind::Delete);
    let result =
        store.instance_delete_begin(&spec.id, DeletePolicy::Permanent, &again, &record).await;
    let refusal = refusal(result);
    assert_eq!(refusal.code, Code::InstanceBusy);
    assert!(refusal.detail.contains("o-2"), "{}", refusal.detail);
    let result = store.operation_begin(&operation(4, &spec, restart()), &record).await;
    assert_eq!(refused(result), Code::InstanceBusy);
    let change = InstanceChange { description: Some("x".into()), ..InstanceChange::default() };
    let result = store.instance_update(&spec.id, None, &change, &record).await;
    assert_eq!(refused(result), Code::InstanceNotReady);

    // A late look from before does not bring the instance back.
    let late = observation(&spec.id, InstanceState::Running, 2);
    store.instance_observation_set(&spec.id, &late).await.expect("set");
    let deleting =
        InstanceFilter { state: Some(InstanceState::Deleting), ..InstanceFilter::default() };
    assert_eq!(store.instance_list(&deleting).await.expect("list").len(), 1);
}

#[tokio::test]
async fn a_purged_instance_leaves_its_history_and_frees_its_name() {
    let folder = Folder::new();
    let store = folder.store().await;
    let spec = create(&store, 1, "one").await.expect("create");
    store.node_insert(&spec.id, &node(1, 0), 1).await.expect("node");
    let delete = operation(2, &spec, OperationKind::Delete);
    let record = record("instance-delete", &spec);
    store
        .instance_delete_begin(&spec.id, DeletePolicy::Permanent, &delete, &record)
        .await
        .expect("delete");
    store.instance_purge(&spec.id).await.expect("purge");
    store.instance_purge(&spec.id).await.expect("purge again");

    assert_not_found(store.instance_get(&spec.id).await);
    assert_not_found(store.instance_secrets(&spec.id).await);
    assert!(store.node_list(&spec.id).await.expect("nodes").is_empty());
    let gone = store.instance_desired(&spec.id, PlannerPolicy::default()).await.expect("desired");
    assert_eq!(gone, None);
    let late = observation(&spec.id, InstanceState::Running, 9);
    store.instance_observation_set(&spec.id, &late).await.expect("late looks are dropped");
    let done = store.operation_get(&operation_id(2)).await.expect("operation");
    assert_eq!((done.state, done.progress()), (OperationState::Succeeded, 1.0));
    let filter = OperationFilter { instance: Some("one".into()), ..OperationFilter::default() };
    assert_eq!(store.operation_list(&filter).await.expect("operations").len(), 2);
    let filter = EventFilter { instance: Some(spec.id), ..EventFilter::default() };
    let events = store.event_list(&filter).await.expect("events");
    let reasons: Vec<_> = events.iter().map(|e| e.event.reason.as_str()).collect();
    assert_eq!(
        reasons,
        [
            "create-requested",
            "create-cancelled",
            "delete-requested",
            "delete-succeeded",
            "instance-purged"
        ]
    );
    assert!(events.iter().all(|e| e.instance_name.is_some()));
    create(&store, 3, "one").await.expect("the name is free");
}

#[tokio::test]
async fn initialized_is_set_once_and_only_at_the_expected_generation() {
    let folder = Folder::new();
    let store = folder.store().await;
    let spec = create(&store, 1, "one").await.expect("create");
    let stale = store.instance_mark_initialized(&spec.id, 7).await;
    assert_eq!(refused(stale), Code::GenerationConflict);
    assert_eq!(store.instance_mark_initialized(&spec.id, 1).await.expect("mark"), 2);
    assert_eq!(store.instance_mark_initialized(&spec.id, 1).await.expect("again"), 2);
    assert!(store.instance_get(&spec.id).await.expect("get").initialized);
    assert_not_found(store.instance_mark_initialized(&instance_id(9), 1).await);
}

#[tokio::test]
async fn an_older_look_does_not_replace_a_newer_one() {
    let folder = Folder::new();
    let store = folder.store().await;
    let spec = create(&store, 1, "one").await.expect("create");
    let newer = observation(&spec.id, InstanceState::Running, 3);
    store.instance_observation_set(&spec.id, &newer).await.expect("set");
    let older = observation(&spec.id, InstanceState::Degraded, 2);
    store.instance_observation_set(&spec.id, &older).await.expect("set");
    let row = store.instance_get(&spec.id).await.expect("get");
    assert_eq!(row.state(), InstanceState::Running);
    assert_eq!(row.observed_generation, 3);
    assert_eq!(row.observation, Some(newer));
}

#[tokio::test]
async fn a_thousand_instances_are_listed_filtered_searched_and_sorted() {
    let folder = Folder::new();
    let store = folder.store().await;
    for n in 0..1000 {
        let mut spec = spec(n, &format!("cache-{n:04}"));
        spec.memory = ByteSize::mib(128 + u64::from(n % 7));
        if n % 10 == 0 {
            spec.architecture = Architecture::ReadWrite;
            spec.replicas = 2;
            spec.description = "Größer 100%".into();
            spec.tags = BTreeMap::from([("Team".into(), "a_b".into())]);
        }
        let operation = operation(n, &spec, OperationKind::Create);
        let record = record("instance-create", &spec);
        store.instance_create(&spec, &secrets(), &operation, &record).await.expect("create");
    }
    store
        .instance_observation_set(
            &instance_id(5),
            &observation(&instance_id(5), InstanceState::Running, 1),
        )
        .await
        .expect("observe");
    let count =
        async |filter: InstanceFilter| store.instance_list(&filter).await.expect("list").len();
    let all = InstanceFilter::default;
    assert_eq!(count(all()).await, 1000);
    assert_eq!(count(InstanceFilter { limit: Some(7), ..all() }).await, 7);
    let architecture = Some(Architecture::ReadWrite);
    assert_eq!(count(InstanceFilter { architecture, ..all() }).await, 100);
    assert_eq!(count(InstanceFilter { state: Some(InstanceState::Running), ..all() }).await, 1);
    assert_eq!(count(InstanceFilter { project: Some(project()), ..all() }).await, 1000);
    let nowhere = ProjectName::new("nowhere").ok();
    assert_eq!(count(InstanceFilter { project: nowhere, ..all() }).await, 0);
    for (search, expected) in [
        ("cache-099", 10),
        ("gröSSer", 0),
        ("größer 100%", 100),
        ("team=a_b", 100),
        ("a%b", 0),
        ("\\", 0),
    ] {
        let filter = InstanceFilter { search: Some(search.into()), ..all() };
        assert_eq!(count(filter).await, expected, "{search}");
    }
    for sort in InstanceSort::ALL {
        assert_eq!(InstanceSort::parse(sort.as_str()), Some(sort));
        let rows = store
            .instance_list(&InstanceFilter { sort, limit: Some(3), ..all() })
            .await
            .expect("list");
        let names: Vec<_> = rows.iter().map(|r| r.spec.name.as_str()).collect();
        let expected = match sort {
            InstanceSort::Name | InstanceSort::Engine | InstanceSort::State => {
                ["cache-0000", "cache-0001", "cache-0002"]
            }
            InstanceSort::CreatedAt => ["cache-0999", "cache-0998", "cache-0997"],
            InstanceSort::Architecture => ["cache-0000", "cache-0010", "cache-0020"],
            InstanceSort::Memory => ["cache-0006", "cache-0013", "cache-0020"],
        };
        assert_eq!(names, expected, "{sort:?}");
    }
}

#[tokio::test]
async fn an_instance_is_not_written_for_a_container_cluster_that_was_unbound_meanwhile() {
    let folder = Folder::new();
    let store = folder.store().await;
    let bound = ContainerClusterRow {
        name: "east".to_owned(),
        owner: "o-1".to_owned(),
        options: serde_json::json!({}),
        credentials: larder_model::Secret::new("{}"),
        bound_at: larder_model::Timestamp(1),
    };
    let mut wished = spec(1, "one");
    wished.container_cluster = bound.name.clone();
    let begun = operation(1, &wished, OperationKind::Create);
    let (secrets, record) = (secrets(), record("instance.create", &wished));
    let create = || store.instance_create(&wished, &secrets, &begun, &record);
    let refused = refusal(create().await);
    assert_eq!(refused.code, Code::ContainerClusterNotFound);
    assert_eq!(refused.field.as_deref(), Some("container_cluster"));
    store.container_cluster_bind(&bound, &record).await.expect("bound");
    create().await.expect("created");
    let in_use = refusal(store.container_cluster_unbind("east", &record).await);
    assert_eq!(in_use.code, Code::ContainerClusterInUse);
}
