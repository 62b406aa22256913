//! Bindings of container clusters.

use larder_model::{Code, InstanceSpec, OperationKind, Refusal, Secret, Timestamp};
use larder_store::{ContainerClusterRow, Record, RecordFilter, RecordOutcome, StoreError};
use serde_json::json;

use crate::support::{Folder, operation, secrets, spec};

fn binding(owner: &str, image: &str) -> ContainerClusterRow {
    ContainerClusterRow {
        name: "east".to_owned(),
        owner: owner.to_owned(),
        options: json!({ "image": image }),
        credentials: Secret::new("kubeconfig"),
        bound_at: Timestamp(1_000),
    }
}

fn record(action: &str) -> Record {
    Record {
        at: Timestamp(2_000),
        user: "admin".to_owned(),
        from: "127.0.0.1".to_owned(),
        action: action.to_owned(),
        object: "container cluster east".to_owned(),
        instance: None,
        detail: json!({}),
        outcome: RecordOutcome::Accepted,
    }
}

#[tokio::test]
async fn a_second_binding_of_a_name_answers_the_owner_that_is_kept() {
    let folder = Folder::new();
    let store = folder.store().await;
    let bound = record("container-cluster-bind");
    let first = store.container_cluster_bind(&binding("b-1", "one"), &bound).await.unwrap();
    assert_eq!(first, binding("b-1", "one"));
    let later = ContainerClusterRow { bound_at: Timestamp(9_000), ..binding("b-2", "two") };
    let second = store.container_cluster_bind(&later, &bound).await.unwrap();
    assert_eq!(second, binding("b-1", "two"));
    assert_eq!(store.container_cluster_list().await.unwrap(), [second]);
}

#[tokio::test]
async fn a_binding_and_its_record_are_kept_together_or_not_at_all() {
    let folder = Folder::new();
    let store = folder.store().await;
    let actions = async || -> Vec<String> {
        let rows = store.record_list(&RecordFilter::default()).await.unwrap();
        rows.into_iter().map(|row| row.record.action).collect()
    };
    let gone = store.container_cluster_unbind("east", &record("unbind")).await;
    assert!(matches!(gone, Err(StoreError::NotFound { .. })), "{gone:?}");
    assert!(actions().await.is_empty());
    store.container_cluster_bind(&binding("b-1", "one"), &record("bind")).await.unwrap();
    store.container_cluster_unbind("east", &record("unbind")).await.unwrap();
    assert_eq!(actions().await, ["unbind", "bind"]);
}

#[tokio::test]
async fn a_binding_that_an_instance_needs_is_not_forgotten_and_nothing_is_recorded() {
    let folder = Folder::new();
    let store = folder.store().await;
    store.container_cluster_bind(&binding("b-1", "one"), &record("bind")).await.unwrap();
    let spec = InstanceSpec { container_cluster: "east".into(), ..spec(1, "one") };
    let operation = operation(1, &spec, OperationKind::Create);
    store.instance_create(&spec, &secrets(), &operation, &record("create")).await.unwrap();
    let refused = store.container_cluster_unbind("east", &record("unbind")).await.unwrap_err();
    assert_eq!(Refusal::from(refused).code, Code::ContainerClusterInUse);
    assert_eq!(store.container_cluster_list().await.unwrap().len(), 1);
    let records = store.record_list(&RecordFilter::default()).await.unwrap();
    assert!(records.iter().all(|row| row.record.action != "unbind"));
}
