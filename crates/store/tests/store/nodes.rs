//! Node records and the generation they raise.

use larder_model::{Address, Code, NodePhase, OuterAddress, PlannerPolicy, Timestamp};

use crate::support::{Folder, assert_not_found, create, instance_id, node, node_id, refused};

#[tokio::test]
async fn every_change_of_a_node_raises_the_generation_once() {
    let folder = Folder::new();
    let store = folder.store().await;
    let id = create(&store, 1, "one").await.expect("create").id;
    let address = Address::new("127.0.0.1", 7001);
    assert_eq!(store.node_insert(&id, &node(1, 0), 1).await.expect("insert"), 2);
    assert_eq!(store.node_insert(&id, &node(2, 0), 2).await.expect("insert"), 3);
    for _ in 0..2 {
        assert_eq!(store.node_set_address(&id, &node_id(1), &address).await.expect("set"), 4);
    }
    for _ in 0..2 {
        assert_eq!(store.node_retire(&id, &node_id(2), Timestamp(7_000)).await.expect("set"), 5);
    }
    let desired =
        store.instance_desired(&id, PlannerPolicy::default()).await.expect("read").expect("there");
    assert_eq!(desired.generation, 5);
    assert_eq!(desired.nodes, store.node_list(&id).await.expect("list"));
    assert_eq!(desired.nodes[0].address, Some(address));
    assert_eq!(desired.nodes[1].phase, NodePhase::Leaving);
    assert_eq!(desired.nodes[1].leaving_since, Some(Timestamp(7_000)));
    for _ in 0..2 {
        assert_eq!(store.node_delete(&id, &node_id(2)).await.expect("delete"), 6);
    }
    assert_eq!(store.node_list(&id).await.expect("list").len(), 1);
}

#[tokio::test]
async fn an_address_outside_is_kept_and_raises_the_generation_once() {
    let folder = Folder::new();
    let store = folder.store().await;
    let id = create(&store, 1, "one").await.expect("create").id;
    store.node_insert(&id, &node(1, 0), 1).await.expect("insert");
    assert_eq!(store.node_list(&id).await.expect("list")[0].outer, None);
    let mut outer = OuterAddress { host: None, port: 31_007, bus_port: Some(31_008) };
    for _ in 0..2 {
        assert_eq!(store.node_set_outer(&id, &node_id(1), &outer).await.expect("set"), 3);
    }
    outer.host = Some("10.102.0.3".to_owned());
    assert_eq!(store.node_set_outer(&id, &node_id(1), &outer).await.expect("set"), 4);
    assert_eq!(store.node_list(&id).await.expect("list")[0].outer, Some(outer.clone()));
    assert_not_found(store.node_set_outer(&id, &node_id(9), &outer).await);
}

#[tokio::test]
async fn a_node_planned_from_an_older_generation_is_refused() {
    let folder = Folder::new();
    let store = folder.store().await;
    let id = create(&store, 1, "one").await.expect("create").id;
    store.node_insert(&id, &node(1, 0), 1).await.expect("insert");
    let stale = store.node_insert(&id, &node(2, 0), 1).await;
    assert_eq!(refused(stale), Code::GenerationConflict);
    assert_eq!(store.node_list(&id).await.expect("list").len(), 1);
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let folder = Folder::new();
    let store = folder.store().await;
    let id = create(&store, 1, "one").await.expect("create").id;
    let address = Address::new("127.0.0.1", 7001);
    assert_not_found(store.node_insert(&instance_id(9), &node(1, 0), 1).await);
    assert_not_found(store.node_set_address(&id, &node_id(9), &address).await);
    assert_not_found(store.node_retire(&id, &node_id(9), Timestamp(7_000)).await);
    assert_not_found(store.node_delete(&instance_id(9), &node_id(9)).await);
    assert_eq!(store.instance_get(&id).await.expect("get").generation, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_desired_is_of_one_moment() {
    let folder = Folder::new();
    let store = folder.store().await;
    let id = create(&store, 1, "one").await.expect("create").id;
    let writer = tokio::spawn({
        let (store, id) = (store.clone(), id.clone());
        async move {
            for n in 1..=40 {
                let expect = u64::from(n);
                store.node_insert(&id, &node(n, 0), expect).await.expect("insert");
            }
        }
    });
    loop {
        let done = writer.is_finished();
        let desired = store.instance_desired(&id, PlannerPolicy::default()).await.expect("read");
        let desired = desired.expect("there");
        // Every node has raised the generation by one.
        assert_eq!(desired.generation, 1 + desired.nodes.len() as u64);
        if done {
            break;
        }
    }
    writer.await.expect("writer");
}
