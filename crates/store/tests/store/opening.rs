//! Opening: files, keys, epochs.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use larder_model::{Code, Refusal};
use larder_store::{Store, StoreError};

use crate::support::{Folder, created, instance_id};

#[track_caller]
fn key_error(result: Result<Store, StoreError>) -> String {
    match result {
        Err(error @ StoreError::Key { .. }) => error.to_string(),
        other => panic!("expected a key error, got {other:?}"),
    }
}

#[tokio::test]
async fn a_new_store_makes_private_files_and_opens_again() {
    let folder = Folder::new();
    let store = folder.store().await;
    created(&store, 1, "one").await;
    for entry in fs::read_dir(folder.path()).expect("list") {
        let entry = entry.expect("entry");
        let mode = entry.metadata().expect("metadata").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.file_name());
    }
    store.close().await;
    let store = folder.open().await.expect("again");
    store.ping().await.expect("ping");
    assert_eq!(store.instance_get(&instance_id(1)).await.expect("get").spec.name.as_str(), "one");
}

#[tokio::test]
async fn a_database_without_its_key_is_refused() {
    let folder = Folder::new();
    folder.store().await.close().await;
    fs::remove_file(folder.key()).expect("remove");
    let error = key_error(folder.open().await);
    assert!(error.contains("missing") && error.contains("backup"), "{error}");
    assert!(!folder.key().exists(), "no new key is made for an old database");
}

#[tokio::test]
async fn another_key_is_refused() {
    let (folder, other) = (Folder::new(), Folder::new());
    folder.store().await.close().await;
    other.store().await.close().await;
    let key = fs::read_to_string(other.key()).expect("read");
    fs::write(folder.key(), &key).expect("write");
    let error = key_error(folder.open().await);
    assert!(error.contains("not the key of this database"), "{error}");
    assert!(!error.contains(key.trim()), "{error}");
}

#[tokio::test]
async fn a_key_that_is_there_first_is_used() {
    let (folder, other) = (Folder::new(), Folder::new());
    other.store().await.close().await;
    fs::copy(other.key(), folder.key()).expect("copy");
    folder.store().await.close().await;
    assert_eq!(fs::read(folder.key()).expect("read"), fs::read(other.key()).expect("read"));
}

#[tokio::test]
async fn an_empty_file_left_by_a_crash_is_a_new_database() {
    let folder = Folder::new();
    fs::write(folder.database(), b"").expect("write");
    folder.store().await.ping().await.expect("ping");
}

#[tokio::test]
async fn what_is_not_a_database_is_reported_as_damaged() {
    let folder = Folder::new();
    folder.store().await.close().await;
    fs::write(folder.database(), [b'x'; 8192]).expect("write");
    match folder.open().await {
        Err(error @ StoreError::Corrupt { .. }) => {
            assert_eq!(Refusal::from(error).code, Code::Internal);
        }
        other => panic!("expected damage, got {other:?}"),
    }
}

#[tokio::test]
async fn epochs_rise_with_every_start() {
    let folder = Folder::new();
    let store = folder.store().await;
    let first = store.controller_epoch_take().await.expect("take");
    let second = store.controller_epoch_take().await.expect("take");
    assert!(second > first, "{first}, {second}");
    store.close().await;
    let store = folder.open().await.expect("open");
    assert!(store.controller_epoch_take().await.expect("take") > second);
}
