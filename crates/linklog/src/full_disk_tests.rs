//! On a file system without room. Mounting one needs root; see `LARDER_SKIP`.

use larder_testkit::disk::{SmallDisk, skipped};

use super::*;

/// A log on a disk that has no room left, with its value at number 0.
fn full(reserve: bool) -> Option<(SmallDisk, LinkLog)> {
    if skipped("full_disk") {
        return None;
    }
    let disk = SmallDisk::mount(1).unwrap();
    let log = LinkLog::open(&disk.path().join("log")).unwrap();
    log.append(None, b"first").unwrap();
    if reserve {
        log.reserve().unwrap();
    }
    fill(&disk);
    Some((disk, log))
}

fn fill(disk: &SmallDisk) {
    disk.fill(0).unwrap();
    // A file system that keeps some room back gives it to small files.
    let more = (0..1000).find_map(|n| fs::write(disk.path().join(format!("more-{n}")), b"x").err());
    assert!(more.is_some_and(|error| spare::is_full(&error)));
}

fn spares(log: &LinkLog) -> usize {
    folder::list(log.dir()).unwrap().spares.len()
}

#[test]
fn contents_are_written_on_a_full_disk_for_as_long_as_it_is_full() {
    let Some((_disk, log)) = full(true) else { return };
    let mut seq = 0;
    for round in 0..200_usize {
        let content = format!("round {round} ").repeat(1 + round % 7);
        seq = if round % 2 == 0 {
            log.append(Some(seq), content.as_bytes()).unwrap()
        } else {
            log.append_volatile(Some(seq), content.as_bytes()).unwrap()
        };
        assert_eq!(log.read().unwrap(), Some(Entry { seq, bytes: content.into_bytes() }));
        for _ in 0..round % 3 {
            seq = log.renew(seq).unwrap();
        }
        assert!(spares(&log) >= spare::SPARES - 2, "round {round}");
    }
    assert!(folder::list(log.dir()).unwrap().temporaries.is_empty());
}

#[test]
fn without_a_spare_a_full_disk_is_an_error_that_changes_nothing() {
    let Some((_disk, log)) = full(false) else { return };
    let Err(AppendError::Io { source, .. }) = log.append(Some(0), b"second") else {
        panic!("written without room")
    };
    assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    assert_eq!(log.renew(0).unwrap(), 1);
    assert_eq!(log.read().unwrap(), Some(Entry { seq: 1, bytes: b"first".to_vec() }));
    assert!(folder::list(log.dir()).unwrap().temporaries.is_empty());
}

#[test]
fn a_conflict_on_a_full_disk_costs_no_spare() {
    let Some((_disk, log)) = full(true) else { return };
    log.append(Some(0), b"second").unwrap();
    let left = spares(&log);
    for _ in 0..20 {
        assert!(matches!(log.append(Some(0), b"late"), Err(AppendError::Conflict)));
    }
    assert_eq!(spares(&log), left);
    assert_eq!(log.read().unwrap().unwrap().bytes, b"second");
}

#[test]
fn a_value_longer_than_a_spare_is_refused_and_the_spares_stay() {
    let Some((_disk, log)) = full(true) else { return };
    assert!(matches!(log.append(Some(0), &[b'x'; 5000]), Err(AppendError::Io { .. })));
    assert_eq!(spares(&log), spare::SPARES);
    log.append(Some(0), b"short").unwrap();
}

#[test]
fn spares_are_filled_up_when_there_is_room_again() {
    let Some((disk, log)) = full(false) else { return };
    assert!(spare::is_full(&log.reserve().unwrap_err()));
    fs::remove_file(disk.path().join("filler")).unwrap();
    log.reserve().unwrap();
    log.reserve().unwrap();
    assert_eq!(spares(&log), spare::SPARES);
    fill(&disk);
    log.append(Some(0), b"second").unwrap();
}
