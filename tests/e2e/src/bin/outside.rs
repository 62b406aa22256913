//! A client of a cluster instance for a network of its own: `outside write|read HOST PORT`, the
//! password on standard input. Knows only the discovery address and goes where the servers send
//! it. Prints what it reached as JSON.
#![allow(clippy::print_stdout, reason = "a tool for the terminal")]

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use redis::cluster::ClusterClientBuilder;
use redis::{AsyncCommands, Client, IntoConnectionInfo, Value};
use serde_json::json;

/// Enough for every shard to get some.
const KEYS: u32 = 48;
const PATIENCE: Duration = Duration::from_secs(2);

/// A server as `CLUSTER SLOTS` names it.
struct Node {
    host: String,
    port: u16,
    id: String,
    primary: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut next = || args.next().context("usage: outside write|read HOST PORT");
    let (what, host, port) = (next()?, next()?, next()?.parse()?);
    let mut password = String::new();
    std::io::stdin().read_line(&mut password)?;
    let password = password.trim();
    let nodes = nodes(&host, port, password).await?;
    let mut seen = Vec::new();
    for node in &nodes {
        let error = reach(node, password).await.err().map(|error| format!("{error:#}"));
        seen.push(json!({
            "host": node.host, "port": node.port, "primary": node.primary, "error": error,
        }));
    }
    let keys = keys(&what, &host, port, password).await;
    let told = json!({
        "nodes": seen,
        "keys": keys.as_ref().ok(),
        "error": keys.as_ref().err().map(|error| format!("{error:#}")),
    });
    println!("{told}");
    Ok(())
}

fn client(host: &str, port: u16, password: &str) -> Result<Client> {
    let info = format!("redis://{host}:{port}").into_connection_info()?;
    let login = info.redis_settings().clone().set_password(password);
    Ok(Client::open(info.set_redis_settings(login))?)
}

async fn ask(host: &str, port: u16, password: &str, command: &[&str]) -> Result<Value> {
    let client = client(host, port, password)?;
    let asked = async {
        let mut connection = client.get_multiplexed_async_connection().await?;
        let (name, args) = command.split_first().context("no command")?;
        anyhow::Ok(redis::cmd(name).arg(args).query_async(&mut connection).await?)
    };
    tokio::time::timeout(PATIENCE, asked).await.context("no answer in time")?
}

/// Every server that `CLUSTER SLOTS` names: `[[first, last, [host, port, id, …], …], …]`.
async fn nodes(host: &str, port: u16, password: &str) -> Result<Vec<Node>> {
    let Value::Array(shards) = ask(host, port, password, &["CLUSTER", "SLOTS"]).await? else {
        bail!("CLUSTER SLOTS answers no list");
    };
    let mut nodes = Vec::new();
    for shard in shards {
        let Value::Array(fields) = shard else { bail!("a shard is no list: {shard:?}") };
        for (index, node) in fields.iter().skip(2).enumerate() {
            let (host, port, id): (String, u16, String) = match node {
                Value::Array(fields) => {
                    let three = fields.get(..3).context("a node has host, port and id")?;
                    redis::from_redis_value(Value::Array(three.to_vec()))?
                }
                other => bail!("a node is no list: {other:?}"),
            };
            nodes.push(Node { host, port, id, primary: index == 0 });
        }
    }
    Ok(nodes)
}

/// Whether the server that was named answers where it was said to be.
async fn reach(node: &Node, password: &str) -> Result<()> {
    let answer = ask(&node.host, node.port, password, &["CLUSTER", "MYID"]).await?;
    let id: String = redis::from_redis_value(answer)?;
    ensure!(id == node.id, "somebody else answers: {id}");
    Ok(())
}

/// Writes or reads the keys with a cluster client, which follows the servers' own words. Answers
/// how many were right.
async fn keys(what: &str, host: &str, port: u16, password: &str) -> Result<u32> {
    let client = ClusterClientBuilder::new([format!("redis://{host}:{port}")])
        .password(password)
        .connection_timeout(PATIENCE)
        .response_timeout(PATIENCE)
        .retries(2)
        .build()?;
    let work = async {
        let mut connection = client.get_async_connection().await?;
        let mut right = 0;
        for number in 0..KEYS {
            let (key, value) = (format!("outside:{number}"), format!("value {number}"));
            let is_right = match what {
                "write" => connection.set::<_, _, ()>(&key, &value).await.map(|()| true)?,
                "read" => connection.get::<_, Option<String>>(&key).await? == Some(value),
                other => bail!("what is `{other}`?"),
            };
            right += u32::from(is_right);
        }
        Ok(right)
    };
    tokio::time::timeout(Duration::from_secs(15), work).await.context("not done in time")?
}
