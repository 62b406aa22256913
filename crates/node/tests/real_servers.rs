//! The client against real servers.

#![allow(clippy::unwrap_used, reason = "a helper of a test may fail the test")]

use std::path::Path;
use std::time::{Duration, Instant};

use larder_model::agent::{ClusterFailoverMode, Role};
use larder_model::{Address, Code, Secret, SlotRange, SlotSet};
use larder_node::probe::probe;
use larder_node::{Connection, Flavour, NodeError};
use larder_testkit::redis::{Engine, RedisServer, free_port};

const DEADLINE: Duration = Duration::from_secs(2);

async fn connect(server: &RedisServer) -> Connection {
    Connection::connect(&server.address(), DEADLINE).await.expect("it listens")
}

/// Asks until `done` says so, at most 15 s.
async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_replica_is_made_promoted_and_seen_by_its_primary() {
    for engine in Engine::all() {
        let primary = RedisServer::start(engine.clone(), &[]).unwrap();
        let replica = RedisServer::start(engine.clone(), &[]).unwrap();
        let (mut to_primary, mut to_replica) = (connect(&primary).await, connect(&replica).await);
        assert_eq!(primary.cli(&["SET", "k", "v"]).unwrap(), "OK");
        to_replica.replicaof(Some(&primary.address())).await.unwrap();
        let seen = until("the link comes up", async || {
            let info = to_replica.info().await.unwrap();
            let primary = to_primary.info().await.unwrap();
            let synced = info.replication.link_up
                && primary.replication.replicas.iter().any(|r| r.online)
                && info.replication.offset == primary.replication.offset;
            synced.then_some((info, primary))
        })
        .await;
        assert_eq!(seen.0.replication.role, Role::Replica);
        assert_eq!(seen.0.replication.primary, Some(primary.address()));
        assert_eq!(seen.0.replication.replid, seen.1.replication.replid);
        assert_eq!(seen.1.replication.replicas[0].address, replica.address());
        assert_eq!(seen.1.process_id, primary.pid());
        assert_eq!(seen.1.tcp_port, primary.port());

        to_replica.replicaof(None).await.unwrap();
        let info = to_replica.info().await.unwrap();
        assert_eq!(info.replication.role, Role::Primary);
        assert_eq!(info.replication_detail.replid2, Some(seen.0.replication.replid));
        assert_eq!(replica.cli(&["GET", "k"]).unwrap(), "v");
    }
}

#[tokio::test]
async fn writes_pause_and_clients_are_closed_but_not_those_of_larder() {
    for engine in Engine::all() {
        let server = RedisServer::start(
            engine,
            &[
                ("user", "larder on >system-password ~* &* +@all"),
                ("user", "app on >app ~* &* +@all"),
            ],
        )
        .unwrap();
        let password = Secret::new("system-password");
        let wrong = Secret::new("no");
        let wrong = Connection::login(&server.address(), "larder", &wrong, DEADLINE)
            .await
            .expect_err("a wrong password");
        assert!(matches!(&wrong, NodeError::NotAllowed { code, .. } if code == "WRONGPASS"));
        assert!(wrong.is_alive());

        let mut admin =
            Connection::login(&server.address(), "larder", &password, DEADLINE).await.unwrap();
        let mut other =
            Connection::login(&server.address(), "larder", &password, DEADLINE).await.unwrap();
        assert_eq!(admin.acl_whoami().await.unwrap(), "larder");
        let mut tenant = connect(&server).await;
        let mut subscriber = connect(&server).await;
        subscriber.call(&["SUBSCRIBE", "news"]).await.unwrap();

        admin.client_pause_write(Duration::from_secs(30)).await.unwrap();
        tenant.set_timeout(Duration::from_millis(200));
        assert!(matches!(tenant.call(&["SET", "k", "v"]).await, Err(NodeError::Timeout { .. })));
        assert!(tenant.is_closed(), "a late answer must not be taken for another call's");
        assert!(matches!(tenant.ping().await, Err(NodeError::Closed { .. })));
        let mut tenant = connect(&server).await;
        tenant.ping().await.unwrap();
        // The paused one may still be seen by the server.
        assert!(admin.client_kill_normal_and_pubsub("larder").await.unwrap() >= 2);
        assert!(matches!(
            tenant.ping().await,
            Err(NodeError::Closed { .. } | NodeError::Io { .. })
        ));
        other.ping().await.unwrap();
        admin.client_unpause().await.unwrap();
        assert_eq!(server.cli(&["SET", "k", "v"]).unwrap(), "OK");
    }
}

#[tokio::test]
async fn settings_are_read_and_written_and_values_stay_out_of_errors() {
    let server = RedisServer::start(Engine::Redis, &[("requirepass", "pw")]).unwrap();
    let mut node = connect(&server).await;
    assert!(matches!(node.ping().await, Err(NodeError::NotAllowed { .. })));
    node.auth(None, &Secret::new("pw")).await.unwrap();
    node.config_set("maxmemory", "7mb").await.unwrap();
    assert_eq!(node.config_get("maxmemory").await.unwrap()["maxmemory"], "7340032");
    assert_eq!(node.info().await.unwrap().maxmemory.bytes(), 7 << 20);
    let error = node.config_set("maxmemory", "secret-value").await.expect_err("no number");
    assert!(error.is_alive() && !error.to_string().contains("secret-value"), "{error}");
    let commands = [vec!["SET", "k", "1"], vec!["NONSENSE"], vec!["INCR", "k"]];
    let replies = node.pipeline(&commands).await.unwrap();
    assert!(replies[0].is_ok() && replies[1].is_err() && replies[2].is_ok());
}

#[tokio::test]
async fn a_busy_server_is_alive_and_a_frozen_one_is_not_known() {
    let server = RedisServer::start(Engine::Redis, &[("lua-time-limit", "50")]).unwrap();
    let mut script = connect(&server).await;
    let running = tokio::spawn(async move {
        script.set_timeout(Duration::from_secs(20));
        script.call(&["EVAL", "while true do end", "0"]).await
    });
    let mut node = connect(&server).await;
    let error = until("BUSY", async || node.ping().await.err()).await;
    assert!(matches!(error, NodeError::Busy { .. }) && error.is_alive());
    node.call(&["SCRIPT", "KILL"]).await.unwrap();
    assert!(running.await.unwrap().is_err());

    server.freeze().unwrap();
    node.set_timeout(Duration::from_millis(100));
    let error = node.ping().await.expect_err("stopped");
    assert!(matches!(error, NodeError::Timeout { .. }) && !error.is_alive());
    server.thaw().unwrap();
    connect(&server).await.ping().await.unwrap();
}

#[tokio::test]
async fn a_loading_server_says_so() {
    let mut server = RedisServer::start(
        Engine::Redis,
        &[
            ("save", "900 1"),
            ("key-load-delay", "200"),
            // A server looks at its clients only after so many bytes: small files load silently.
            ("loading-process-events-interval-bytes", "1024"),
            ("enable-debug-command", "local"),
        ],
    )
    .unwrap();
    server.cli(&["DEBUG", "POPULATE", "20000"]).unwrap();
    server.cli(&["SAVE"]).unwrap();
    let address = server.address();
    let restart = std::thread::spawn(move || {
        server.restart().unwrap();
        server
    });
    // Until LOADING is seen: old or missing servers in between are no news.
    let loading = until("it loads", async || {
        let mut node = Connection::connect(&address, DEADLINE).await.ok()?;
        let error = node.ping().await.err()?;
        let info = node.info().await.ok()?;
        matches!(error, NodeError::Loading { .. }).then_some(info.loading)
    })
    .await;
    assert!(loading.is_some_and(|l| l.total.bytes() > 0));
    restart.join().unwrap();
}

#[tokio::test]
async fn nobody_there_is_refused_and_other_services_are_not_servers() {
    let nobody = Address::new("127.0.0.1", free_port());
    let error = Connection::connect(&nobody, DEADLINE).await.expect_err("nobody listens");
    assert!(error.is_refused() && !error.is_alive());

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await
    });
    let mut other = Connection::connect(&Address::new("127.0.0.1", port), DEADLINE).await.unwrap();
    let error = other.ping().await.expect_err("not a server");
    assert!(matches!(error, NodeError::Protocol { .. }), "{error}");

    let full = RedisServer::start(Engine::Redis, &[("maxclients", "1")]).unwrap();
    let _holder = until("the only place is free", async || {
        let mut holder = connect(&full).await;
        holder.ping().await.ok().map(|()| holder)
    })
    .await;
    let error = connect(&full).await.ping().await.expect_err("no place");
    assert!(error.is_alive(), "{error}");
}

#[tokio::test]
async fn a_dropped_call_closes_the_connection() {
    let server = RedisServer::start(Engine::Redis, &[]).unwrap();
    let mut node = connect(&server).await;
    let call = node.call(&["BLPOP", "list", "0"]);
    assert!(tokio::time::timeout(Duration::from_millis(50), call).await.is_err());
    assert!(node.is_closed());
    assert!(matches!(node.ping().await, Err(NodeError::Closed { .. })));
}

#[tokio::test]
async fn a_cluster_is_formed_failed_over_and_forgotten() {
    for engine in Engine::all() {
        let settings =
            [("cluster-enabled", "yes"), ("cluster-node-timeout", "2000"), ("appendonly", "no")];
        let start = || RedisServer::start(engine.clone(), &settings).unwrap();
        let servers = [start(), start(), start()];
        let mut nodes = Vec::new();
        for (epoch, server) in servers.iter().enumerate() {
            let mut node = connect(server).await;
            node.cluster_set_config_epoch(epoch as u64 + 1).await.unwrap();
            nodes.push(node);
        }
        let halves = [SlotRange::new(0, 8191).unwrap(), SlotRange::new(8192, 16383).unwrap()];
        nodes[0].cluster_add_slots(&halves[..1]).await.unwrap();
        nodes[1].cluster_add_slots(&halves[1..]).await.unwrap();
        let lone = nodes[0].cluster_view().await.unwrap();
        assert_eq!(lone.me().unwrap().address, servers[0].address());
        for server in &servers[1..] {
            nodes[0].cluster_meet(&server.address()).await.unwrap();
        }
        let primary = nodes[0].cluster_my_id().await.unwrap();
        until("everybody knows everybody", async || {
            for node in &mut nodes {
                let view = node.cluster_view().await.unwrap();
                let met = view.nodes.iter().filter(|n| n.linked && !n.handshake).count();
                if met < 3 {
                    return None;
                }
            }
            nodes[2].cluster_replicate(&primary).await.ok()
        })
        .await;
        until("the replica is linked", async || {
            let info = nodes[2].info().await.unwrap();
            (info.cluster_enabled && info.replication.link_up).then_some(())
        })
        .await;
        until("the cluster is well", async || {
            let view = nodes[2].cluster_view().await.unwrap();
            assert_eq!(view.me().unwrap().primary.as_ref(), Some(&primary));
            view.state_ok.then_some(())
        })
        .await;
        until("the replica has taken over", async || {
            nodes[2].cluster_failover(ClusterFailoverMode::Takeover).await.ok();
            let view = nodes[2].cluster_view().await.unwrap();
            (view.me().unwrap().slots == SlotSet::from_iter([halves[0]])).then_some(())
        })
        .await;
        nodes[1].cluster_forget(&primary).await.unwrap();
        nodes[1].cluster_forget(&primary).await.unwrap();
        nodes[1].cluster_reset(true).await.unwrap();
        let view = nodes[1].cluster_view().await.unwrap();
        assert_eq!(view.nodes.len(), 1);
    }
}

#[tokio::test]
async fn a_server_told_to_end_ends() {
    for engine in Engine::all() {
        let server = RedisServer::start(engine, &[("appendonly", "yes")]).unwrap();
        connect(&server).await.shutdown_nosave().await.unwrap();
        until("nobody listens", async || {
            Connection::connect(&server.address(), DEADLINE)
                .await
                .err()
                .filter(NodeError::is_refused)
        })
        .await;
    }
}

#[tokio::test]
async fn engines_are_probed() {
    for engine in Engine::all() {
        let found = probe(&engine.binary()).await.unwrap();
        assert!(found.name.as_str().starts_with(found.flavour.as_str()), "{}", found.name);
        assert!(found.version.starts_with(found.name.as_str().rsplit('-').next().unwrap()));
        assert!(found.directives.contains("maxmemory") && found.directives.len() > 100);
        assert!(!found.malloc.is_empty() && !found.arch.is_empty());
        assert_eq!(found.flavour == Flavour::Valkey, found.name.as_str().starts_with("valkey-"));
    }
}

#[tokio::test]
async fn a_symlink_with_another_name_is_probed() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("my-cache");
    std::os::unix::fs::symlink(Engine::Redis.binary(), &link).unwrap();
    assert_eq!(probe(&link).await.unwrap().path, link);
}

#[tokio::test]
async fn what_is_no_server_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str, mode: u32| {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let check = async |path: &Path, why: &str| {
        let refusal = probe(path).await.expect_err(why);
        assert_eq!(refusal.code, Code::EngineUnusable);
        assert!(refusal.detail.contains(why), "{refusal}");
    };
    check(Path::new("/no/such/file"), "No such file").await;
    check(folder.path(), "not a file").await;
    check(&file("text", "", 0o644), "not executable").await;
    check(&file("script", "#!/bin/sh\necho hello\n", 0o755), "said \"hello\"").await;
    check(&file("endless", "#!/bin/sh\nexec yes\n", 0o755), "said \"y\"").await;
    let old = "#!/bin/sh\necho 'Redis server v=5.0.14 sha=0:0 malloc=libc bits=64 build=0'\n";
    check(&file("old", old, 0o755), "5.0.14").await;
    let dies = "#!/bin/sh\necho 'Redis server v=7.0.1 sha=0:0 malloc=libc bits=64 build=0'\n";
    check(&file("dies", dies, 0o755), "does not run as a server").await;
    let sentinel = folder.path().join("redis-sentinel");
    std::os::unix::fs::symlink(Engine::Redis.binary(), &sentinel).unwrap();
    check(&sentinel, "redis-sentinel cannot be used").await;
}
