//! The judges of the end-to-end stories find what they are there to find.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_testkit::redis::{Engine, RedisServer};
use larder_testkit::{
    Connection, Endpoint, Instance, Node, PrimaryWatch, Writer, WriterOptions, eventually,
};

const WORD: &str = "secret";
const SOON: Duration = Duration::from_secs(10);

fn server() -> Result<(RedisServer, Endpoint)> {
    let server = RedisServer::start(Engine::Redis, &[("requirepass", WORD)])?;
    let endpoint = Endpoint { host: "127.0.0.1".to_owned(), port: server.port() };
    Ok((server, endpoint))
}

fn instance(endpoints: &[&Endpoint]) -> Instance {
    let node = |endpoint: &Endpoint| Node {
        id: format!("n-{}", endpoint.port),
        shard: 0,
        role: "unknown".into(),
        state: "serving".into(),
        host: Some(endpoint.host.clone()),
        port: Some(endpoint.port),
        pid: None,
        replica_of: None,
        link: None,
        slots: Vec::new(),
        last_seen_at: None,
    };
    Instance {
        id: "i-1".into(),
        name: "one".into(),
        project: "default".into(),
        state: "running".into(),
        generation: 1,
        observed_generation: 1,
        architecture: "read-write".into(),
        engine: "redis-7.0".into(),
        engine_version: None,
        memory_bytes: 0,
        shards: 1,
        replicas: 2,
        read_only_nodes: 1,
        endpoints: BTreeMap::new(),
        nodes: endpoints.iter().map(|e| node(e)).collect(),
        conditions: Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_write_that_is_gone_is_found() -> Result<()> {
    let (_server, endpoint) = server()?;
    let writer = Writer::started(WriterOptions::new(&endpoint, WORD, "k")).await?;
    let mut connection = Connection::open(&endpoint, Some(WORD), SOON).await?;
    ensure!(connection.call(&["DEL", "k:0"]).await?.text() == "1");
    writer.next_ok(SOON).await?;
    let history = writer.stop().await?;
    let lost = history.lost(&endpoint).await?;
    ensure!(lost.len() == 1 && lost[0].number == 0, "{lost:?}");
    ensure!(history.check_nothing_lost(&endpoint).await.is_err());
    let long_before = [Duration::from_secs(60)];
    let window = Duration::from_secs(2);
    ensure!(history.check_lost_only_before(&endpoint, &long_before, window).await.is_err());
    let just_after = [lost[0].done];
    history.check_lost_only_before(&endpoint, &just_after, window).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gap_of_a_frozen_server_is_measured_and_its_writes_are_not_repeated() -> Result<()> {
    let (server, endpoint) = server()?;
    let writer = Writer::started(WriterOptions::new(&endpoint, WORD, "k")).await?;
    server.freeze()?;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    server.thaw()?;
    writer.next_ok(SOON).await?;
    let history = writer.stop().await?;
    let (gap, _) = history.worst_gap();
    ensure!(gap >= Duration::from_millis(1400) && gap < Duration::from_secs(4), "{gap:?}");
    let mut numbers: Vec<u64> = history.writes.iter().map(|w| w.number).collect();
    numbers.dedup();
    ensure!(numbers.len() == history.writes.len(), "a write was sent twice");
    history.check_nothing_lost(&endpoint).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_that_take_writes_are_two_primaries() -> Result<()> {
    let ((_a, first), (_b, second)) = (server()?, server()?);
    let watch = PrimaryWatch::start(&instance(&[&first, &second]), WORD)?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let verdict = watch.verdict();
    ensure!(verdict.is_err_and(|e| e.to_string().contains("two primaries")));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn primary_with_a_replica_is_one_primary() -> Result<()> {
    let ((_a, first), (_b, second)) = (server()?, server()?);
    let mut replica = Connection::open(&second, Some(WORD), SOON).await?;
    ensure!(replica.call(&["CONFIG", "SET", "masterauth", WORD]).await?.is_ok());
    ensure!(replica.call(&["REPLICAOF", "127.0.0.1", &first.port.to_string()]).await?.is_ok());
    eventually("the replica is linked", SOON, async || {
        let mut connection = Connection::open(&second, Some(WORD), SOON).await?;
        let role = connection.call(&["ROLE"]).await?;
        Ok(role.items().get(3).is_some_and(|link| link.text() == "connected").then_some(()))
    })
    .await?;
    let watch = PrimaryWatch::start(&instance(&[&first, &second]), WORD)?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    watch.verdict().context("a primary and its replica")
}
