//! Engines, projects, settings.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use larder_model::{Code, DeletePolicy, EngineName, OperationKind, ProjectName, Timestamp};

use crate::support::{
    Folder, assert_not_found, created, engine, operation, project, record, refusal, refused,
};

#[tokio::test]
async fn an_engine_is_replaced_but_keeps_its_first_day() {
    let folder = Folder::new();
    let store = folder.store().await;
    let mut newer = engine("redis-7.0");
    newer.version = "7.0.16".into();
    newer.sha256 = Some("ab".repeat(32));
    newer.builtin = false;
    newer.added_at = Timestamp(99_000);
    store.engine_upsert(&newer).await.expect("upsert");
    newer.added_at = Timestamp(1_000);
    let name = newer.name.clone();
    assert_eq!(store.engine_get(&name).await.expect("get"), newer);
    store.engine_upsert(&engine("keydb-6.3")).await.expect("upsert");
    let names: Vec<_> =
        store.engine_list().await.expect("list").iter().map(|e| e.name.to_string()).collect();
    assert_eq!(names, ["keydb-6.3", "redis-7.0"]);
    let mut odd = engine("odd-1.0");
    odd.path = PathBuf::from(OsStr::from_bytes(b"/opt/\xff"));
    assert_eq!(refused(store.engine_upsert(&odd).await), Code::EngineUnusable);
}

#[tokio::test]
async fn an_engine_in_use_stays_and_says_who_uses_it() {
    let folder = Folder::new();
    let store = folder.store().await;
    let name = EngineName::new("redis-7.0").expect("valid");
    let spec = created(&store, 1, "one").await;
    created(&store, 2, "two").await;
    let refusal = refusal(store.engine_remove(&name).await);
    assert_eq!(refusal.code, Code::EngineInUse);
    assert!(refusal.detail.contains("`one` and 1 more"), "{}", refusal.detail);
    for n in [1, 2] {
        let spec = crate::support::spec(n, if n == 1 { "one" } else { "two" });
        let delete = operation(n + 10, &spec, OperationKind::Delete);
        store
            .instance_delete_begin(&spec.id, DeletePolicy::Permanent, &delete, &record("d", &spec))
            .await
            .expect("delete");
        store.instance_purge(&spec.id).await.expect("purge");
    }
    assert_not_found(store.instance_get(&spec.id).await);
    store.engine_remove(&name).await.expect("remove");
    assert_not_found(store.engine_remove(&name).await);
    assert_not_found(store.engine_get(&name).await);
}

#[tokio::test]
async fn the_default_project_is_there() {
    let folder = Folder::new();
    let store = folder.store().await;
    assert_eq!(store.project_list().await.expect("list"), [project()]);
    assert!(store.project_exists(&project()).await.expect("exists"));
    let nowhere = ProjectName::new("nowhere").expect("valid");
    assert!(!store.project_exists(&nowhere).await.expect("exists"));
}

#[tokio::test]
async fn settings_are_kept() {
    let folder = Folder::new();
    let store = folder.store().await;
    assert_eq!(store.setting_get("colour").await.expect("get"), None);
    store.setting_set("colour", "red").await.expect("set");
    store.setting_set("colour", "blue").await.expect("set");
    assert_eq!(store.setting_get("colour").await.expect("get").as_deref(), Some("blue"));
}
