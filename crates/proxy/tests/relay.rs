//! The relay in front of real servers.

#![allow(clippy::unwrap_used, reason = "a helper of a test may fail the test")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use larder_linklog::LinkLog;
use larder_model::agent::Member;
use larder_model::lease::{Route, RouteTarget};
use larder_model::local::{RelayBoot, RelayListener, RelayStatus, RunDir};
use larder_model::{Address, EndpointKind, InstanceId, NodeId};
use larder_node::{Connection, NodeError};
use larder_testkit::redis::{Engine, RedisServer, free_port};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::AbortHandle;

const DEADLINE: Duration = Duration::from_secs(8);

fn server() -> RedisServer {
    RedisServer::start(Engine::Redis, &[]).unwrap()
}

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn target(name: &str, server: &RedisServer) -> RouteTarget {
    RouteTarget { node: node(name), address: server.address() }
}

fn member(name: &str, server: &RedisServer) -> Member {
    Member { outer: None, node: node(name), shard: 0, zone: None, address: server.address() }
}

/// A relay in this process, with its folders.
struct Fixture {
    folder: tempfile::TempDir,
    boot: RelayBoot,
    task: Option<AbortHandle>,
}

impl Fixture {
    /// A relay with a listener of each kind.
    fn start(kinds: &[EndpointKind], members: Vec<Member>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listeners = kinds
            .iter()
            .map(|kind| RelayListener {
                kind: *kind,
                address: Address::new("127.0.0.1", free_port()),
                bind_host: None,
            })
            .collect();
        std::fs::create_dir(folder.path().join("relay")).unwrap();
        std::fs::create_dir(folder.path().join("run")).unwrap();
        let boot = RelayBoot {
            instance: InstanceId::new("i-test").unwrap(),
            listeners,
            route_dir: folder.path().join("route"),
            members,
            run_dir: folder.path().join("run"),
            generation: 1,
        };
        let mut fixture = Self { folder, boot, task: None };
        fixture.write_boot();
        fixture.run();
        fixture
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("relay")
    }

    fn write_boot(&self) {
        let temporary = self.dir().join("new");
        std::fs::write(&temporary, serde_json::to_vec(&self.boot).unwrap()).unwrap();
        std::fs::rename(temporary, self.dir().join("relay.json")).unwrap();
    }

    fn run(&mut self) {
        let dir = self.dir();
        let task = tokio::spawn(async move { larder_proxy::run(&dir).await.unwrap() });
        self.task = Some(task.abort_handle());
    }

    fn stop(&mut self) {
        self.task.take().unwrap().abort();
    }

    fn publish(&self, route: &Route) {
        let log = LinkLog::open(&self.boot.route_dir).unwrap();
        let after = log.newest().unwrap();
        log.append(after, &serde_json::to_vec(route).unwrap()).unwrap();
    }

    fn address(&self, kind: EndpointKind) -> &Address {
        &self.boot.listeners.iter().find(|l| l.kind == kind).unwrap().address
    }

    /// A client's connection; waits until the relay listens.
    async fn client(&self, kind: EndpointKind) -> Connection {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match Connection::connect(self.address(kind), DEADLINE).await {
                Ok(client) => return client,
                Err(error) => assert!(error.is_refused() && Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn get(&self, path: &str) -> Option<(String, String)> {
        let socket = RunDir(self.boot.run_dir.clone()).relay_socket(&self.boot.instance);
        let mut stream = UnixStream::connect(socket).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: relay\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.lines().next()?.to_owned(), body.to_owned()))
    }

    async fn status(&self) -> Option<RelayStatus> {
        let (head, body) = self.get("/v1/status").await?;
        assert_eq!(head, "HTTP/1.1 200 OK");
        Some(serde_json::from_str(&body).unwrap())
    }

    async fn status_until(&self, what: &str, is: impl Fn(&RelayStatus) -> bool) -> RelayStatus {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let status = self.status().await;
            if let Some(status) = &status
                && is(status)
            {
                return status.clone();
            }
            assert!(Instant::now() < deadline, "{what}: {status:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// The port of the server at the other end of a relayed connection.
async fn port_behind(client: &mut Connection) -> u16 {
    client.info().await.unwrap().tcp_port
}

async fn is_closed(client: &mut Connection) -> bool {
    matches!(client.ping().await, Err(NodeError::Closed { .. } | NodeError::Io { .. }))
}

/// Waits, without sending, until the relay closes the connection.
async fn closed_within(address: &Address, limit: Duration, then: impl AsyncFnOnce()) -> Duration {
    let mut idle =
        tokio::net::TcpStream::connect((address.host.as_str(), address.port)).await.unwrap();
    idle.write_all(b"PING\r\n").await.unwrap();
    let mut answer = [0; 7];
    idle.read_exact(&mut answer).await.unwrap();
    then().await;
    let from = Instant::now();
    let end = tokio::time::timeout(limit, idle.read(&mut answer)).await;
    assert!(matches!(end, Ok(Ok(0) | Err(_))), "still open after {limit:?}");
    from.elapsed()
}

fn route(epoch: u64, write: Option<RouteTarget>, read: Vec<RouteTarget>) -> Route {
    Route { epoch, write, read, hold: false }
}

#[tokio::test]
async fn writers_follow_the_route_and_old_connections_are_closed() {
    let (a, b) = (server(), server());
    let relay = Fixture::start(&[EndpointKind::Write], vec![]);
    relay.publish(&route(1, Some(target("n-a", &a)), vec![]));
    let mut client = relay.client(EndpointKind::Write).await;
    assert_eq!(port_behind(&mut client).await, a.port());
    let took = closed_within(relay.address(EndpointKind::Write), DEADLINE, async || {
        relay.publish(&route(2, Some(target("n-b", &b)), vec![]));
    })
    .await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(is_closed(&mut client).await);
    let mut client = relay.client(EndpointKind::Write).await;
    assert_eq!(port_behind(&mut client).await, b.port());
    // No primary: what leads to the former one is closed too.
    relay.publish(&route(3, None, vec![]));
    relay.status_until("epoch 3", |s| s.route_epoch == Some(3)).await;
    assert!(is_closed(&mut client).await);
}

#[tokio::test]
async fn an_older_epoch_is_ignored() {
    let (a, b) = (server(), server());
    let relay = Fixture::start(&[EndpointKind::Write], vec![]);
    relay.publish(&route(5, Some(target("n-a", &a)), vec![]));
    let mut client = relay.client(EndpointKind::Write).await;
    assert_eq!(port_behind(&mut client).await, a.port());
    relay.publish(&route(4, Some(target("n-b", &b)), vec![]));
    relay.publish(&route(5, Some(target("n-a", &a)), vec![target("n-b", &b)]));
    relay
        .status_until("the second one of epoch 5", |s| {
            s.route_epoch == Some(5) && s.listeners[0].leads_to == [node("n-a")]
        })
        .await;
    client.ping().await.unwrap();
    let mut other = relay.client(EndpointKind::Write).await;
    assert_eq!(port_behind(&mut other).await, a.port());
}

#[tokio::test]
async fn new_writers_wait_during_a_hold_and_old_ones_go_on() {
    let (a, b) = (server(), server());
    let relay = Fixture::start(&[EndpointKind::Write], vec![]);
    relay.publish(&route(1, Some(target("n-a", &a)), vec![]));
    let mut old = relay.client(EndpointKind::Write).await;
    old.ping().await.unwrap();
    let held = Route { hold: true, ..route(1, Some(target("n-a", &a)), vec![]) };
    relay.publish(&held);
    // Seen by the relay: a connection made now stays without an answer.
    let deadline = Instant::now() + DEADLINE;
    loop {
        let mut probe = relay.client(EndpointKind::Write).await;
        probe.set_timeout(Duration::from_millis(100));
        if matches!(probe.ping().await, Err(NodeError::Timeout { .. })) {
            break;
        }
        assert!(Instant::now() < deadline, "the hold is not seen");
    }
    old.ping().await.unwrap();
    let mut new = relay.client(EndpointKind::Write).await;
    let waiting = tokio::spawn(async move { port_behind(&mut new).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    relay.publish(&route(2, Some(target("n-b", &b)), vec![]));
    assert_eq!(waiting.await.unwrap(), b.port());
    assert!(is_closed(&mut old).await);
}

#[tokio::test]
async fn without_a_primary_a_client_waits_a_bounded_time() {
    let relay = Fixture::start(&[EndpointKind::Write], vec![]);
    let mut client = relay.client(EndpointKind::Write).await;
    let from = Instant::now();
    assert!(is_closed(&mut client).await);
    let waited = from.elapsed();
    assert!(waited > Duration::from_secs(4) && waited < Duration::from_secs(7), "{waited:?}");
}

#[tokio::test]
async fn clients_of_a_dead_primary_are_closed_and_new_ones_wait_for_the_next() {
    let (mut a, b) = (server(), server());
    let relay = Fixture::start(&[EndpointKind::Write], vec![]);
    relay.publish(&route(1, Some(target("n-a", &a)), vec![]));
    relay.client(EndpointKind::Write).await.ping().await.unwrap();
    let took = closed_within(relay.address(EndpointKind::Write), DEADLINE, async || {
        a.kill().unwrap();
    })
    .await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    let mut client = relay.client(EndpointKind::Write).await;
    let waiting = tokio::spawn(async move { port_behind(&mut client).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished());
    relay.publish(&route(2, Some(target("n-b", &b)), vec![]));
    assert_eq!(waiting.await.unwrap(), b.port());
}

#[tokio::test]
async fn readers_are_spread_and_leave_replicas_that_left() {
    let (primary, a, mut b) = (server(), server(), server());
    let relay = Fixture::start(&[EndpointKind::Read], vec![]);
    let (on_primary, on_a, on_b) = (target("n-p", &primary), target("n-a", &a), target("n-b", &b));
    relay.publish(&route(1, Some(on_primary.clone()), vec![on_a.clone(), on_b.clone()]));
    let mut clients = Vec::new();
    let mut ports = Vec::new();
    for _ in 0..6 {
        let mut client = relay.client(EndpointKind::Read).await;
        ports.push(port_behind(&mut client).await);
        clients.push(client);
    }
    let on = |port: u16| ports.iter().filter(|p| **p == port).count();
    assert_eq!((on(a.port()), on(b.port())), (3, 3), "{ports:?}");

    // Dead and still in the route: left out at once.
    b.kill().unwrap();
    for _ in 0..4 {
        let mut client = relay.client(EndpointKind::Read).await;
        assert_eq!(port_behind(&mut client).await, a.port());
    }
    for (client, port) in clients.iter_mut().zip(&ports) {
        assert_eq!(is_closed(client).await, *port != a.port());
    }
    relay.publish(&route(1, Some(on_primary.clone()), vec![on_a]));
    // The last replica leaves: reads go to the primary.
    let took = closed_within(relay.address(EndpointKind::Read), DEADLINE, async || {
        relay.publish(&route(1, Some(on_primary.clone()), vec![]));
    })
    .await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    let mut client = relay.client(EndpointKind::Read).await;
    assert_eq!(port_behind(&mut client).await, primary.port());
    // It comes back: new readers use it, those on the primary may stay.
    b.restart().unwrap();
    relay.publish(&route(1, Some(on_primary), vec![on_b]));
    relay.status_until("n-b is back", |s| s.listeners[0].leads_to == [node("n-b")]).await;
    client.ping().await.unwrap();
    let deadline = Instant::now() + DEADLINE;
    while port_behind(&mut relay.client(EndpointKind::Read).await).await != b.port() {
        assert!(Instant::now() < deadline, "the replica is never used again");
    }
}

#[tokio::test]
async fn a_frozen_replica_is_avoided_and_reported() {
    let (a, b) = (server(), server());
    let relay = Fixture::start(&[EndpointKind::Read], vec![]);
    relay.publish(&route(1, None, vec![target("n-a", &a), target("n-b", &b)]));
    relay.status_until("both answer", |s| s.listeners[0].leads_to.len() == 2).await;
    a.freeze().unwrap();
    relay.status_until("one is left", |s| s.listeners[0].leads_to == [node("n-b")]).await;
    for _ in 0..3 {
        let mut client = relay.client(EndpointKind::Read).await;
        assert_eq!(port_behind(&mut client).await, b.port());
    }
    a.thaw().unwrap();
    relay.status_until("it is back", |s| s.listeners[0].leads_to.len() == 2).await;
}

#[tokio::test]
async fn discovery_leads_to_any_member_that_answers() {
    let (a, mut b) = (server(), server());
    let mut relay = Fixture::start(&[EndpointKind::Discovery], vec![member("n-b", &b)]);
    let mut client = relay.client(EndpointKind::Discovery).await;
    assert_eq!(port_behind(&mut client).await, b.port());
    relay.boot.members.push(member("n-a", &a));
    relay.boot.generation = 2;
    relay.write_boot();
    relay
        .status_until("both members", |s| s.generation == 2 && s.listeners[0].leads_to.len() == 2)
        .await;
    b.kill().unwrap();
    for _ in 0..3 {
        let mut client = relay.client(EndpointKind::Discovery).await;
        assert_eq!(port_behind(&mut client).await, a.port());
    }
    relay.status_until("one answers", |s| s.listeners[0].leads_to == [node("n-a")]).await;
}

#[tokio::test]
async fn the_status_tells_what_is_behind_each_listener() {
    let a =
        RedisServer::start(Engine::Redis, &[("requirepass", "not-known-to-the-relay")]).unwrap();
    let relay = Fixture::start(&[EndpointKind::Write, EndpointKind::Read], vec![]);
    let status = relay.status_until("it is up", |s| s.listeners.len() == 2).await;
    assert_eq!((status.route_epoch, status.generation), (None, 1));
    assert!(status.listeners.iter().all(|l| !l.answers && l.leads_to.is_empty()));

    relay.publish(&route(7, Some(target("n-a", &a)), vec![]));
    let _client = relay.client(EndpointKind::Write).await;
    let from = Instant::now();
    let status = relay
        .status_until("NOAUTH is an answer", |s| {
            s.listeners.iter().all(|l| l.answers) && s.listeners[0].connections == 1
        })
        .await;
    assert!(from.elapsed() < Duration::from_secs(1), "asked at once");
    assert_eq!(status.instance.as_str(), "i-test");
    assert_eq!(status.route_epoch, Some(7));
    for listener in &status.listeners {
        assert_eq!(listener.leads_to, [node("n-a")]);
        assert_eq!(&listener.address, relay.address(listener.kind));
    }
    a.freeze().unwrap();
    relay.status_until("it does not answer", |s| s.listeners.iter().all(|l| !l.answers)).await;

    assert_eq!(relay.get("/v1/ping").await.unwrap(), ("HTTP/1.1 200 OK".into(), "{}".into()));
    assert_eq!(relay.get("/v1/other").await.unwrap().0, "HTTP/1.1 404 Not Found");
}

#[tokio::test]
async fn a_restarted_relay_takes_up_its_address_and_route() {
    let a = server();
    let mut relay = Fixture::start(&[EndpointKind::Write], vec![]);
    relay.publish(&route(1, Some(target("n-a", &a)), vec![]));
    let mut client = relay.client(EndpointKind::Write).await;
    client.ping().await.unwrap();
    relay.stop();
    assert!(is_closed(&mut client).await);
    relay.run();
    let mut client = relay.client(EndpointKind::Write).await;
    assert_eq!(port_behind(&mut client).await, a.port());
    relay.status_until("its socket is back", |s| s.listeners[0].answers).await;
}

#[tokio::test]
async fn listeners_follow_the_file_and_a_taken_port_is_tried_again() {
    let a = server();
    let mut relay = Fixture::start(&[EndpointKind::Write], vec![]);
    relay.publish(&route(1, Some(target("n-a", &a)), vec![]));
    let mut writer = relay.client(EndpointKind::Write).await;
    writer.ping().await.unwrap();

    let blocker = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::new("127.0.0.1", blocker.local_addr().unwrap().port());
    relay.boot.listeners.push(RelayListener {
        kind: EndpointKind::Read,
        address: address.clone(),
        bind_host: None,
    });
    relay.boot.generation = 2;
    relay.write_boot();
    let status = relay.status_until("generation 2", |s| s.generation == 2).await;
    assert!(!status.listeners[1].answers, "nothing can be reached there yet");
    drop(blocker);
    relay.status_until("the port is free", |s| s.listeners[1].answers).await;
    let mut reader = relay.client(EndpointKind::Read).await;
    reader.ping().await.unwrap();

    relay.boot.listeners.remove(0);
    relay.boot.generation = 1;
    relay.write_boot();
    tokio::time::sleep(Duration::from_millis(100)).await;
    writer.ping().await.expect("an older generation is ignored");
    relay.boot.generation = 3;
    relay.write_boot();
    relay.status_until("generation 3", |s| s.generation == 3 && s.listeners.len() == 1).await;
    assert!(is_closed(&mut writer).await);
    reader.ping().await.unwrap();
}

#[tokio::test]
async fn large_values_and_half_closed_clients_get_through() {
    let a = server();
    let relay = Fixture::start(&[EndpointKind::Write], vec![]);
    relay.publish(&route(1, Some(target("n-a", &a)), vec![]));
    let mut client = relay.client(EndpointKind::Write).await;
    let value: Vec<u8> = (0..8 << 20_u32).map(|n| (n % 251) as u8).collect();
    client.call(&[&b"SET"[..], b"k", &value]).await.unwrap();
    let back = client.call(&["GET", "k"]).await.unwrap();
    assert!(back.as_bytes() == Some(&value), "the value came back changed");

    let address = relay.address(EndpointKind::Write);
    let mut half =
        tokio::net::TcpStream::connect((address.host.as_str(), address.port)).await.unwrap();
    half.write_all(b"PING\r\nSTRLEN k\r\n").await.unwrap();
    half.shutdown().await.unwrap();
    let mut answer = String::new();
    half.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, format!("+PONG\r\n:{}\r\n", value.len()));
}

#[tokio::test]
async fn a_folder_without_a_file_is_refused_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let error = larder_proxy::run(folder.path()).await.expect_err("nothing to start from");
    assert!(error.to_string().contains("relay.json"), "{error}");
    std::fs::write(folder.path().join("relay.json"), "{").unwrap();
    let error = larder_proxy::run(folder.path()).await.expect_err("not JSON");
    assert!(error.to_string().contains("not a relay's file"), "{error}");
    assert!(larder_proxy::run(Path::new("/no/such/folder")).await.is_err());
}

#[tokio::test]
async fn a_status_socket_that_was_removed_is_back_within_seconds() {
    let relay = Fixture::start(&[EndpointKind::Write], Vec::new());
    relay.status_until("it is up", |s| s.listeners.len() == 1).await;
    let socket = RunDir(relay.boot.run_dir.clone()).relay_socket(&relay.boot.instance);
    for _ in 0..2 {
        std::fs::remove_file(&socket).unwrap();
        relay.status_until("it is back", |s| s.listeners.len() == 1).await;
    }
}
