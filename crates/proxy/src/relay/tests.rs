//! The rules of the view and of the balancer, and the bound on connections.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use larder_model::lease::{Route, RouteTarget};
use larder_model::local::RelayListener;
use larder_model::{Address, EndpointKind, NodeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};

use super::balance::Balancer;
use super::listener::{ListenerState, Shared, listen};
use super::view::{Stale, View};

fn target(name: &str, port: u16) -> RouteTarget {
    RouteTarget {
        node: NodeId::new(name).expect("a name"),
        address: Address::new("127.0.0.1", port),
    }
}

fn route(epoch: u64, write: Option<RouteTarget>, read: &[RouteTarget]) -> Route {
    Route { epoch, write, read: read.to_vec(), hold: false }
}

#[test]
fn an_older_epoch_never_replaces_a_newer_one() {
    let (a, b) = (target("n-a", 1), target("n-b", 2));
    let view = View::default().with_route(7, route(3, Some(a.clone()), &[])).expect("the first");
    assert_eq!(
        view.with_route(9, route(2, Some(b.clone()), &[])),
        Err(Stale::OlderEpoch { known: 3, offered: 2 })
    );
    assert_eq!(view.with_route(7, route(3, Some(b.clone()), &[])), Err(Stale::Known));
    // The log was made anew: numbers start again, epochs do not.
    assert!(view.with_route(0, route(4, Some(b.clone()), &[])).is_ok());
    let next = view.with_route(8, route(3, Some(b.clone()), &[])).expect("the same holder");
    assert!(next.keeps(EndpointKind::Write, &b, false));
    assert!(!next.keeps(EndpointKind::Write, &a, false));
}

#[test]
fn a_hold_stops_new_writers_and_keeps_old_ones() {
    let (a, b) = (target("n-a", 1), target("n-b", 2));
    let mut held = route(1, Some(a.clone()), std::slice::from_ref(&b));
    held.hold = true;
    let view = View::default().with_route(0, held).expect("the first");
    assert!(view.open(EndpointKind::Write).is_empty());
    assert!(view.keeps(EndpointKind::Write, &a, false));
    assert_eq!(view.open(EndpointKind::Read), std::slice::from_ref(&b));
    assert_eq!(view.fallback(EndpointKind::Read), None);
}

#[test]
fn readers_leave_a_promoted_replica_when_another_is_left() {
    let (a, b, c) = (target("n-a", 1), target("n-b", 2), target("n-c", 3));
    let view = View::default();
    let two =
        view.with_route(0, route(2, Some(b.clone()), &[a.clone(), c.clone()])).expect("newer");
    assert!(!two.keeps(EndpointKind::Read, &b, false));
    assert!(two.keeps(EndpointKind::Read, &a, false));
    // One that went to the primary because nobody else was there stays.
    assert!(two.keeps(EndpointKind::Read, &b, true));
    let one = view.with_route(0, route(2, Some(b.clone()), &[])).expect("newer");
    assert!(one.keeps(EndpointKind::Read, &b, false));
    assert_eq!(one.fallback(EndpointKind::Read), Some(&b));
    assert!(!one.keeps(EndpointKind::Read, &a, false));
}

#[test]
fn least_connections_come_first_then_turns() {
    let targets = [target("n-a", 1), target("n-b", 2), target("n-c", 3)];
    let now = Instant::now();
    let mut balancer = Balancer::default();
    let mut taken = Vec::new();
    for _ in 0..6 {
        let first = balancer.order(&targets, now, |_| true).remove(0);
        balancer.opened(&first.address);
        taken.push(first.address.port);
    }
    taken.sort_unstable();
    assert_eq!(taken, [1, 1, 2, 2, 3, 3]);
    balancer.closed(&targets[1].address);
    assert_eq!(balancer.order(&targets, now, |_| true)[0], targets[1]);
    assert_ne!(balancer.order(&targets, now, |a| a.port != 2)[0], targets[1]);
}

#[test]
fn a_failed_server_rests_longer_each_time_and_comes_back() {
    let targets = [target("n-a", 1)];
    let start = Instant::now();
    let mut balancer = Balancer::default();
    let rests = |balancer: &mut Balancer, ms: u64| {
        balancer.order(&targets, start + Duration::from_millis(ms), |_| true).is_empty()
    };
    balancer.failed(&targets[0].address, start);
    assert!(rests(&mut balancer, 99) && !rests(&mut balancer, 101));
    balancer.failed(&targets[0].address, start);
    assert!(rests(&mut balancer, 199) && !rests(&mut balancer, 201));
    for _ in 0..10 {
        balancer.failed(&targets[0].address, start);
    }
    assert!(rests(&mut balancer, 1999) && !rests(&mut balancer, 2001));
    balancer.opened(&targets[0].address);
    assert!(!rests(&mut balancer, 0));
}

/// A server that sends every byte back.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    });
    port
}

#[tokio::test]
async fn beyond_the_bound_clients_wait_until_another_leaves() {
    let view = route(1, Some(target("n-a", echo().await)), &[]);
    let view = View::default().with_route(0, view).expect("the first");
    let (_sender, view) = watch::channel(Arc::new(view));
    let shared = Shared { view, health: Arc::default(), permits: Arc::new(Semaphore::new(2)) };
    let free = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = free.local_addr().expect("bound");
    drop(free);
    let state = Arc::new(ListenerState::new(RelayListener {
        kind: EndpointKind::Write,
        // Clients are told another host than the one it listens at.
        address: Address::new("192.0.2.7", address.port()),
        bind_host: Some("127.0.0.1".into()),
    }));
    let task = tokio::spawn(listen(Arc::clone(&state), shared));
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = loop {
            match TcpStream::connect(address).await {
                Ok(client) => break client,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        client.write_all(b"x").await.expect("the kernel takes it");
        clients.push(client);
    }
    let mut third = clients.pop().expect("three were made");
    for client in &mut clients {
        client.read_exact(&mut [0]).await.expect("within the bound");
    }
    let early = timeout(Duration::from_millis(100), third.read_exact(&mut [0])).await;
    assert!(early.is_err(), "beyond the bound");
    assert_eq!(state.connections.load(Ordering::Relaxed), 2);
    clients.pop();
    third.read_exact(&mut [0]).await.expect("a place is free");
    task.abort();
}
