//! Interrupted at any point, a change has happened whole or not at all.

use std::future::Future;
use std::io::{BufRead, BufReader};
use std::pin::pin;
use std::process::{Command, Stdio};
use std::task::Poll;

use larder_model::{OperationState, PlannerPolicy};
use larder_store::{EventFilter, RecordFilter, Store, StoreError};

use crate::support::{Folder, create, instance_id, operation_id, secrets};

/// Where the writer that is to be killed keeps its store; unset in ordinary runs.
const CHILD_FOLDER: &str = "LARDER_STORE_TEST_FOLDER";

/// Polls a future at most `times` times, then drops it.
async fn poll_times<F: Future>(future: F, times: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = times;
    std::future::poll_fn(move |cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(cx).map(Some)
    })
    .await
}

/// Whole or absent; answers which.
async fn check_whole(store: &Store, n: u32) -> bool {
    let id = instance_id(n);
    match store.instance_get(&id).await {
        Ok(_) => {
            assert_eq!(store.instance_secrets(&id).await.expect("secrets"), secrets());
            let operation = store.operation_get(&operation_id(n)).await.expect("operation");
            assert_eq!(operation.state, OperationState::Queued);
            let desired = store.instance_desired(&id, PlannerPolicy::default()).await;
            assert!(desired.expect("read").expect("there").operation.is_some());
            true
        }
        Err(StoreError::NotFound { .. }) => {
            assert!(store.operation_get(&operation_id(n)).await.is_err_and(|e| e.is_not_found()));
            assert!(store.instance_secrets(&id).await.is_err_and(|e| e.is_not_found()));
            false
        }
        Err(other) => panic!("{other}"),
    }
}

/// Every instance brought one event and one record, and their numbers have no gaps.
async fn check_logs(store: &Store, whole: usize) {
    let filter = EventFilter { limit: Some(10_000), ..EventFilter::default() };
    let events = store.event_list(&filter).await.expect("events");
    let numbers: Vec<_> = events.iter().map(|e| e.seq).collect();
    assert_eq!(numbers, (1..=whole as u64).collect::<Vec<_>>());
    let filter = RecordFilter { limit: Some(10_000), ..RecordFilter::default() };
    let records = store.record_list(&filter).await.expect("records");
    assert_eq!(records.len(), whole);
}

#[tokio::test]
async fn a_creation_dropped_at_any_point_is_whole_or_absent() {
    let folder = Folder::new();
    let store = folder.store().await;
    let mut whole = 0;
    let mut finished = 0;
    for n in 1..=60_u32 {
        let name = format!("one-{n}");
        let result = poll_times(create(&store, n, &name), n as usize).await;
        if result.is_some_and(|r| r.is_ok()) {
            finished += 1;
        }
        // A commit that had begun when its caller went away comes through: wait for the writer.
        store.setting_set("turn", &name).await.expect("the store goes on");
        whole += usize::from(check_whole(&store, n).await);
    }
    assert!(whole >= finished);
    assert!(finished > 0 && finished < 60, "{finished} of 60 came to their end");
    check_logs(&store, whole).await;
    assert_eq!(*store.changes().borrow(), whole as u64);
}

#[tokio::test]
async fn what_was_answered_survives_a_kill() {
    let folder = Folder::new();
    folder.store().await.close().await;
    for round in 0..3 {
        let mut child = Command::new(std::env::current_exe().expect("own path"))
            .args(["--exact", "crash::writer_that_is_killed", "--nocapture", "--test-threads=1"])
            .env(CHILD_FOLDER, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("child");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut answered = Vec::new();
        for line in lines.map_while(Result::ok) {
            if let Some(n) = line.strip_prefix("created ") {
                answered.push(n.parse::<u32>().expect("number"));
            }
            if answered.len() == 5 + round * 7 {
                child.kill().expect("kill");
            }
        }
        child.wait().expect("wait");
        assert!(answered.len() >= 5 + round * 7, "only {answered:?}");
        let store = folder.open().await.expect("open after a kill");
        for n in &answered {
            assert!(check_whole(&store, *n).await, "instance {n} was answered and is gone");
        }
        let ids = store.instance_ids().await.expect("ids");
        for id in &ids {
            let n = id.as_str().trim_start_matches("i-").parse().expect("number");
            assert!(check_whole(&store, n).await);
        }
        check_logs(&store, ids.len()).await;
        store.close().await;
    }
}

/// Not a test by itself: what [`what_was_answered_survives_a_kill`] starts and kills.
#[tokio::test]
async fn writer_that_is_killed() {
    let Some(folder) = std::env::var_os(CHILD_FOLDER) else { return };
    let folder = std::path::PathBuf::from(folder);
    let store = Store::open(&folder.join("larder.db"), &folder.join("secret.key"))
        .await
        .expect("open in the child");
    let first = store.instance_ids().await.expect("ids").len() as u32 + 1;
    println!();
    for n in first..first + 10_000 {
        create(&store, n, &format!("one-{n}")).await.expect("create");
        println!("created {n}");
    }
}
