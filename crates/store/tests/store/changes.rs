//! Another wish for a serving instance: all or nothing, taken back when it does not get there.

use larder_model::{
    ByteSize, Code, EngineName, InstanceSpec, Operation, OperationKind, OperationState,
    PlannerPolicy, Refusal, Secret, Timestamp,
};
use larder_store::Store;

use crate::support::{
    Folder, created, node, node_id, operation, operation_id, record, refused, restart, secrets,
};

/// An instance that serves, at generation 2.
async fn serving(store: &Store) -> InstanceSpec {
    let spec = created(store, 1, "one").await;
    store.instance_mark_initialized(&spec.id, 1).await.expect("initialized");
    spec
}

fn resize(n: u32, spec: &InstanceSpec, mib: u64) -> (InstanceSpec, Operation) {
    let next = InstanceSpec { memory: ByteSize::mib(mib), ..spec.clone() };
    (next, operation(n, spec, OperationKind::Resize { former: spec.memory }))
}

async fn memory(store: &Store, spec: &InstanceSpec) -> ByteSize {
    store.instance_get(&spec.id).await.expect("there").spec.memory
}

#[tokio::test]
async fn a_change_that_succeeds_stays_and_one_that_does_not_is_taken_back() {
    let folder = Folder::new();
    let store = folder.store().await;
    let spec = serving(&store).await;
    let no = || Some(Refusal::new(Code::CapacityExceeded, "no room"));
    let ends = [(OperationState::Failed, no(), 128, 4), (OperationState::Succeeded, None, 256, 5)];
    let mut generation = 2;
    for (n, (state, error, mib, after)) in (2..).zip(ends) {
        let (next, begun) = resize(n, &spec, 256);
        let record = record("instance-resize", &spec);
        let begun = store.instance_change_begin(&next, generation, &begun, &record).await;
        assert_eq!(begun.expect("begin").kind, OperationKind::Resize { former: spec.memory });
        assert_eq!(memory(&store, &spec).await, ByteSize::mib(256));
        store.operation_report(&operation_id(n), Vec::new(), state, error).await.expect("end");
        assert_eq!(memory(&store, &spec).await, ByteSize::mib(mib));
        generation = store.instance_get(&spec.id).await.expect("there").generation;
        assert_eq!(generation, after);
    }
}

#[tokio::test]
async fn a_wish_for_the_same_thing_takes_the_place_of_one_that_has_not_finished() {
    let folder = Folder::new();
    let store = folder.store().await;
    let spec = serving(&store).await;
    let record = record("instance-resize", &spec);
    let (large, first) = resize(2, &spec, 512);
    store.instance_change_begin(&large, 2, &first, &record).await.expect("first");
    let (smaller, second) = resize(3, &large, 256);
    let second = store.instance_change_begin(&smaller, 3, &second, &record).await.expect("second");
    // The way back is to where the first began.
    assert_eq!(second.kind, OperationKind::Resize { former: ByteSize::mib(128) });
    let first = store.operation_get(&operation_id(2)).await.expect("there");
    assert_eq!(first.state, OperationState::Cancelled);
    assert_eq!(memory(&store, &spec).await, ByteSize::mib(256));
    let why = Refusal::new(Code::OperationCancelled, "enough");
    store.operation_cancel(&operation_id(3), why, &record).await.expect("cancel");
    assert_eq!(memory(&store, &spec).await, ByteSize::mib(128));
}

#[tokio::test]
async fn a_change_is_refused_beside_another_operation_or_after_another_change() {
    let folder = Folder::new();
    let store = folder.store().await;
    let spec = created(&store, 1, "one").await;
    let record = record("instance-resize", &spec);
    let (next, begun) = resize(2, &spec, 256);
    let early = store.instance_change_begin(&next, 1, &begun, &record).await;
    assert_eq!(refused(early), Code::InstanceNotReady);
    store.instance_mark_initialized(&spec.id, 1).await.expect("initialized");
    let old = store.instance_change_begin(&next, 1, &begun, &record).await;
    assert_eq!(refused(old), Code::GenerationConflict);
    let other = operation(3, &spec, restart());
    store.operation_begin(&other, &record).await.expect("begin");
    let beside = store.instance_change_begin(&next, 2, &begun, &record).await;
    assert_eq!(refused(beside), Code::InstanceBusy);
    assert_eq!(memory(&store, &spec).await, spec.memory);
}

#[tokio::test]
async fn an_upgrade_without_a_way_back_keeps_its_engine_when_it_fails() {
    let folder = Folder::new();
    let store = folder.store().await;
    let spec = serving(&store).await;
    let engine = EngineName::new("valkey-8.0").expect("valid");
    let next = InstanceSpec { engine: engine.clone(), ..spec.clone() };
    let kind = OperationKind::Upgrade { former: Some(spec.engine.clone()) };
    let (begun, record) = (operation(2, &spec, kind), record("instance-upgrade", &spec));
    store.instance_change_begin(&next, 2, &begun, &record).await.expect("begin");
    let no_way_back = OperationKind::Upgrade { former: None };
    store.operation_set_kind(&operation_id(2), &no_way_back).await.expect("noted");
    let late = Some(Refusal::new(Code::Timeout, "two hours"));
    let state = OperationState::Failed;
    store.operation_report(&operation_id(2), Vec::new(), state, late).await.expect("end");
    assert_eq!(store.instance_get(&spec.id).await.expect("there").spec.engine, engine);
}

#[tokio::test]
async fn a_node_stands_in_line_since_it_was_made_or_moved() {
    let folder = Folder::new();
    let store = folder.store().await;
    let spec = serving(&store).await;
    store.node_insert(&spec.id, &node(1, 0), 2).await.expect("insert");
    for _ in 0..2 {
        let written = store.node_place_in_line(&spec.id, &node_id(1), Timestamp(9_000)).await;
        assert_eq!(written.expect("written"), 4);
    }
    let nodes = store.node_list(&spec.id).await.expect("read");
    assert_eq!(nodes[0].in_line_since, Timestamp(9_000));
}

#[tokio::test]
async fn a_nodes_memory_is_its_own() {
    let folder = Folder::new();
    let store = folder.store().await;
    let spec = serving(&store).await;
    store.node_insert(&spec.id, &node(1, 0), 2).await.expect("insert");
    for _ in 0..2 {
        let written = store.node_set_memory(&spec.id, &node_id(1), ByteSize::mib(256)).await;
        assert_eq!(written.expect("written"), 4);
    }
    let desired = store.instance_desired(&spec.id, PlannerPolicy::default()).await;
    let desired = desired.expect("read").expect("there");
    assert_eq!(desired.nodes[0].memory, ByteSize::mib(256));
    assert_eq!(desired.nodes[0].engine, spec.engine);
}

#[tokio::test]
async fn a_former_password_is_kept_until_it_is_dropped_and_each_change_raises_the_revision() {
    let folder = Folder::new();
    let store = folder.store().await;
    let spec = serving(&store).await;
    let kind = OperationKind::SetPassword { revision: 0 };
    let (begun, record) = (operation(2, &spec, kind), record("set-password", &spec));
    let (new, until) = (Secret::new("f".repeat(64)), Timestamp(9_000));
    let begun = store.password_change_begin(&new, until, &begun, &record).await.expect("begin");
    assert_eq!(begun.kind, OperationKind::SetPassword { revision: 1 });
    let known = store.instance_secrets(&spec.id).await.expect("secrets");
    assert_eq!(known.former_password_sha256, secrets().default_password_sha256);
    assert_eq!((known.default_password_sha256.clone(), known.users_revision), (new, 1));
    let policy = PlannerPolicy::default;
    let wish = store.instance_desired(&spec.id, policy()).await.expect("read").expect("there");
    assert_eq!((wish.users_revision, wish.former_password_until), (1, Some(until)));
    for _ in 0..2 {
        store.former_password_drop(&spec.id).await.expect("dropped");
    }
    let wish = store.instance_desired(&spec.id, policy()).await.expect("read").expect("there");
    assert_eq!((wish.users_revision, wish.former_password_until), (2, None));
    let known = store.instance_secrets(&spec.id).await.expect("secrets");
    assert_eq!(known.former_password_sha256, Secret::new(""));
}
