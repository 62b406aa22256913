use std::sync::Barrier;
use std::time::Duration;

use super::*;

fn log() -> (tempfile::TempDir, LinkLog) {
    let dir = tempfile::tempdir().unwrap();
    let log = LinkLog::open(&dir.path().join("log")).unwrap();
    (dir, log)
}

fn is_conflict<T>(result: Result<T, AppendError>) -> bool {
    matches!(result, Err(AppendError::Conflict))
}

#[test]
fn a_missing_or_empty_log_has_no_value() {
    let (dir, log) = log();
    assert_eq!(log.read().unwrap(), None);
    assert_eq!(LinkLog::at(&dir.path().join("nowhere")).read().unwrap(), None);
}

#[test]
fn the_newest_content_is_read() {
    let (_dir, log) = log();
    assert_eq!(log.append(None, b"one").unwrap(), 0);
    assert_eq!(log.append(Some(0), b"two").unwrap(), 1);
    assert_eq!(log.read().unwrap(), Some(Entry { seq: 1, bytes: b"two".to_vec() }));
}

#[test]
fn writing_after_an_old_version_conflicts() {
    let (_dir, log) = log();
    log.append(None, b"one").unwrap();
    log.append(Some(0), b"two").unwrap();
    assert!(is_conflict(log.append(None, b"late")));
    assert!(is_conflict(log.append(Some(0), b"late")));
    assert!(is_conflict(log.renew(0)));
    assert_eq!(log.read().unwrap().unwrap().bytes, b"two");
}

#[test]
fn a_writer_into_the_cleaned_past_conflicts_and_leaves_nothing() {
    let (_dir, log) = log();
    log.append(None, b"one").unwrap();
    for seq in 0..5 {
        log.renew(seq).unwrap();
    }
    // Number 2 is cleaned up, so the link itself succeeds: the listing after it must unmask it.
    assert!(!folder::version(log.dir(), 2).exists());
    assert!(is_conflict(log.append(Some(1), b"stale")));
    assert!(!folder::version(log.dir(), 2).exists());
    assert_eq!(log.read().unwrap(), Some(Entry { seq: 5, bytes: b"one".to_vec() }));
}

#[test]
fn renewals_keep_the_content_and_two_files_at_most() {
    let (_dir, log) = log();
    log.append(None, b"content").unwrap();
    for seq in 0..100 {
        assert_eq!(log.renew(seq).unwrap(), seq + 1);
    }
    assert_eq!(log.read().unwrap(), Some(Entry { seq: 100, bytes: b"content".to_vec() }));
    assert_eq!(fs::read_dir(log.dir()).unwrap().count(), KEPT);
}

#[test]
fn of_many_writers_exactly_one_wins_each_version() {
    const WRITERS: usize = 4;
    const ROUNDS: u64 = 50;
    let (_dir, log) = log();
    log.append(None, b"start").unwrap();
    let barrier = Barrier::new(WRITERS);
    let wins: u64 = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (log, barrier) = (&log, &barrier);
                scope.spawn(move || {
                    let mut wins = 0;
                    for seq in 0..ROUNDS {
                        barrier.wait();
                        let result = if writer % 2 == 0 {
                            log.append(Some(seq), &[writer as u8])
                        } else {
                            log.renew(seq)
                        };
                        match result {
                            Ok(_) => wins += 1,
                            Err(AppendError::Conflict) => {}
                            Err(error) => panic!("{error}"),
                        }
                        barrier.wait();
                    }
                    wins
                })
            })
            .collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).sum()
    });
    assert_eq!(wins, ROUNDS);
    assert_eq!(log.newest().unwrap(), Some(ROUNDS));
}

#[tokio::test]
async fn every_watcher_wakes_when_a_content_is_written() {
    let (_dir, log) = log();
    let mut watches = [log.watch().unwrap(), log.watch().unwrap()];
    log.append(None, b"one").unwrap();
    for watch in &mut watches {
        tokio::time::timeout(Duration::from_secs(5), watch.changed()).await.unwrap();
    }
    // Notices that pile up are one.
    log.append(Some(0), b"two").unwrap();
    log.append(Some(1), b"three").unwrap();
    let [watch, _] = &mut watches;
    tokio::time::timeout(Duration::from_secs(5), watch.changed()).await.unwrap();
    let none = tokio::time::timeout(Duration::from_millis(50), watch.changed()).await;
    assert!(none.is_err());
}

#[tokio::test]
async fn a_watcher_in_a_deep_folder_is_woken_and_leaves_no_socket() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("a-folder-with-a-long-name".repeat(8));
    let log = LinkLog::open(&deep).unwrap();
    let mut watch = log.watch().unwrap();
    notify(&deep);
    tokio::time::timeout(Duration::from_secs(5), watch.changed()).await.unwrap();
    drop(watch);
    assert_eq!(fs::read_dir(&deep).unwrap().count(), 0);
}

#[tokio::test]
async fn the_socket_of_a_killed_watcher_goes_with_the_next_notice() {
    let (_dir, log) = log();
    let stale = log.dir().join("w.stale");
    drop(std::os::unix::net::UnixDatagram::bind(&stale).unwrap());
    assert!(stale.exists());
    log.append(None, b"one").unwrap();
    assert!(!stale.exists());
    assert_eq!(log.read().unwrap().unwrap().bytes, b"one");
}
