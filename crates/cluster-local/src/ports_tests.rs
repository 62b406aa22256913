//! Tests of the ports.

use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use super::*;

fn instance(text: &str) -> InstanceId {
    InstanceId::new(text).expect("id")
}

fn owner(text: &str) -> Owner {
    Owner::Node(NodeId::new(text).expect("id"))
}

/// A few neighbouring ports that are free with their bus ports right now; others for each test,
/// because tests run side by side.
fn free_range(count: u16) -> std::ops::RangeInclusive<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let own = NEXT.fetch_add(40, Ordering::Relaxed);
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let first = (0..40 / count)
        .map(|n| 20_000 + (std::process::id() as u16 % 5) * 400 + own + n * count)
        .find(|first| (*first..first + count).all(|p| is_free(p) && is_free(p + 10_000)))
        .expect("a free range");
    first..=first + count - 1
}

fn ports(dir: &std::path::Path, count: u16, rest: Duration, clustered_rest: Duration) -> Ports {
    Ports::new(&LocalOptions {
        port_range: free_range(count),
        port_rest: rest,
        clustered_port_rest: clustered_rest,
        ..LocalOptions::new(dir, "/larder")
    })
}

fn code(result: Result<u16, ClusterError>) -> Code {
    match result {
        Err(ClusterError::Refused(refusal)) => refusal.code,
        other => panic!("not refused: {other:?}"),
    }
}

const LONG: Duration = Duration::from_secs(3600);

#[test]
fn ports_are_taken_in_order_until_none_is_left() {
    let dir = tempfile::tempdir().expect("temp dir");
    let ports = ports(dir.path(), 2, LONG, LONG);
    let first = *ports.options.port_range.start();
    let one = instance("i-1");
    assert_eq!(ports.take(&one, &owner("n-1")).expect("first"), first);
    assert_eq!(ports.take(&one, &owner("n-1")).expect("again"), first);
    assert_eq!(ports.take(&one, &owner("n-2")).expect("second"), first + 1);
    assert_eq!(code(ports.take(&one, &owner("n-3"))), Code::NoFreePort);
}

#[test]
fn a_port_whose_bus_port_is_in_use_is_passed_over() {
    let dir = tempfile::tempdir().expect("temp dir");
    let ports = ports(dir.path(), 2, LONG, LONG);
    let first = *ports.options.port_range.start();
    let _bus = TcpListener::bind(("127.0.0.1", first + 10_000)).expect("bind");
    assert_eq!(ports.take(&instance("i-1"), &owner("n-1")).expect("port"), first + 1);
}

#[test]
fn a_released_port_rests() {
    let dir = tempfile::tempdir().expect("temp dir");
    let resting = ports(dir.path(), 1, LONG, LONG);
    let first = resting.take(&instance("i-1"), &owner("n-1")).expect("port");
    resting.release(&instance("i-1"), &owner("n-1"), false).expect("release");
    assert_eq!(code(resting.take(&instance("i-2"), &owner("n-2"))), Code::NoFreePort);

    assert!(resting.check(1).is_err());

    let mut rested = resting;
    rested.options.port_rest = Duration::ZERO;
    rested.check(1).expect("what can be taken is counted as free");
    assert_eq!(rested.take(&instance("i-2"), &owner("n-2")).expect("port"), first);
}

#[test]
fn a_cluster_port_rests_longer_while_its_instance_lives() {
    let dir = tempfile::tempdir().expect("temp dir");
    let ports = ports(dir.path(), 1, Duration::ZERO, LONG);
    let one = instance("i-1");
    std::fs::create_dir_all(ports.data.instance(&one).join("nodes")).expect("make");
    let port = ports.take(&one, &owner("n-1")).expect("port");
    ports.release(&one, &owner("n-1"), true).expect("release");
    assert_eq!(code(ports.take(&instance("i-2"), &owner("n-2"))), Code::NoFreePort);

    std::fs::remove_dir_all(ports.data.instance(&one)).expect("remove");
    assert_eq!(ports.take(&instance("i-2"), &owner("n-2")).expect("port"), port);
}

#[test]
fn an_unreadable_port_file_keeps_its_port() {
    let dir = tempfile::tempdir().expect("temp dir");
    let ports = ports(dir.path(), 2, LONG, LONG);
    let first = *ports.options.port_range.start();
    std::fs::create_dir_all(&ports.dir).expect("make");
    std::fs::write(ports.path(first), "{").expect("write");
    assert_eq!(ports.take(&instance("i-1"), &owner("n-1")).expect("port"), first + 1);
}

#[test]
fn a_port_whose_file_was_lost_is_held_again() {
    let dir = tempfile::tempdir().expect("temp dir");
    let ports = ports(dir.path(), 1, LONG, LONG);
    let port = ports.take(&instance("i-1"), &owner("n-1")).expect("port");
    std::fs::remove_file(ports.path(port)).expect("remove");
    ports.hold(port, &instance("i-1"), &owner("n-1")).expect("held");
    assert!(ports.hold(port, &instance("i-2"), &owner("n-2")).is_err());
}
