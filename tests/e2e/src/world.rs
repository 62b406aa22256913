//! An instance under test with its writing clients and its judges.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_testkit::resp::tag_in;
use larder_testkit::{
    Connection, Endpoint, History, Instance, Larder, PASSWORD, PrimaryWatch, Reply, Writer,
    WriterOptions, eventually,
};

const PATIENCE: Duration = Duration::from_millis(500);

/// Opens a connection as the tenant.
///
/// # Errors
/// No connection within 2 s.
pub async fn connect(endpoint: &Endpoint) -> Result<Connection> {
    Connection::open(endpoint, Some(PASSWORD), Duration::from_secs(2))
        .await
        .with_context(|| format!("connecting to {endpoint}"))
}

/// `ROLE` of each node, asked at its own port: `(node, role, link)`.
///
/// # Errors
/// A node does not answer.
pub async fn roles(instance: &Instance) -> Result<Vec<(String, String, String)>> {
    let mut roles = Vec::new();
    for node in &instance.nodes {
        let mut connection = Connection::open(&node.address()?, Some(PASSWORD), PATIENCE).await?;
        let reply = connection.call(&["ROLE"]).await?;
        let role = reply.items().first().map(Reply::text).unwrap_or_default();
        // master: role, offset, replicas; slave: role, host, port, link, offset.
        let link = reply.items().get(3).map(Reply::text).unwrap_or_default();
        roles.push((node.id.clone(), role, link));
    }
    Ok(roles)
}

/// Waits until every node of a one-shard instance answers, one is the primary, the others are its
/// linked replicas. Gives the primary's id. Works while `serve` is down.
///
/// # Errors
/// Not within the given time.
pub async fn replication_is_whole(instance: &Instance, within: Duration) -> Result<String> {
    eventually("one primary and linked replicas", within, async || {
        let roles = roles(instance).await?;
        let primaries: Vec<&String> =
            roles.iter().filter(|(_, role, _)| role == "master").map(|(id, ..)| id).collect();
        let linked =
            roles.iter().filter(|(_, role, link)| role == "slave" && link == "connected").count();
        ensure!(primaries.len() == 1 && linked + 1 == roles.len(), "roles are {roles:?}");
        Ok(primaries.first().map(|id| (*id).clone()))
    })
    .await
}

/// Waits until a one-shard instance is whole and Larder shows it so, with the primary that leads:
/// then every agent has seen what a next fault would be decided on. Gives what is shown.
///
/// # Errors
/// Not within the given time.
pub async fn settled(larder: &Larder, instance: &Instance, within: Duration) -> Result<Instance> {
    let primary = replication_is_whole(instance, within).await?;
    let what = format!("running under {primary}, by what agents have said since");
    let heard = |i: &Instance| -> BTreeMap<String, Option<String>> {
        i.nodes.iter().map(|node| (node.id.clone(), node.last_seen_at.clone())).collect()
    };
    let before = heard(&larder.get(&instance.name).await?);
    // What is shown of an idle instance may be a minute old: a record costs a flush to disk.
    let noticeable = "v".repeat(4096);
    // Where routes are kube-proxy's, one may still lead to the former primary for a moment.
    eventually("a write through the endpoint", within, async || {
        let mut client = connect(instance.endpoint("write")?).await?;
        let answer = client.call(&["SET", "settled", &noticeable, "EX", "60"]).await?;
        ensure!(answer.is_ok(), "{}", answer.text());
        Ok(Some(()))
    })
    .await?;
    let shown = larder.wait_for(&instance.name, &what, within, |i| {
        let is_news = heard(i).iter().all(|(node, at)| before.get(node) != Some(at));
        i.state == "running" && i.primary(0).is_ok_and(|p| p.id == primary) && is_news
    });
    shown.await
}

/// Waits until every node of a cluster instance says `cluster_state:ok` and knows exactly the
/// instance's nodes, none of them failed. Works while `serve` is down.
///
/// # Errors
/// Not within the given time.
pub async fn cluster_is_whole(instance: &Instance, within: Duration) -> Result<()> {
    eventually("the cluster is whole in every node's eyes", within, async || {
        for node in &instance.nodes {
            let mut connection =
                Connection::open(&node.address()?, Some(PASSWORD), PATIENCE).await?;
            let info = connection.call(&["CLUSTER", "INFO"]).await?.text();
            ensure!(info.contains("cluster_state:ok"), "{} says {info}", node.id);
            let nodes = connection.call(&["CLUSTER", "NODES"]).await?.text();
            let lines: Vec<&str> = nodes.lines().filter(|l| !l.is_empty()).collect();
            ensure!(lines.len() == instance.nodes.len(), "{} knows {nodes}", node.id);
            // Whole flags: `nofailover` is no trouble, a shard rests after many failovers.
            let bad = ["fail", "fail?", "handshake", "noaddr"];
            let flags = |line: &str| line.split(' ').nth(2).unwrap_or_default().to_owned();
            let is_bad = |line: &&&str| flags(line).split(',').any(|flag| bad.contains(&flag));
            let trouble: Vec<&&str> = lines.iter().filter(is_bad).collect();
            // What is wrong comes first: reports of a failed run are cut.
            ensure!(trouble.is_empty(), "{} sees trouble: {trouble:?}, of {nodes}", node.id);
        }
        Ok(Some(()))
    })
    .await
}

/// A Larder with an instance under test and an untouched control, both written to.
#[derive(Debug)]
pub struct Tested {
    pub larder: Larder,
    pub instance: Instance,
    /// One per shard.
    pub writers: Vec<Writer>,
    control: Writer,
    watch: Option<PrimaryWatch>,
}

/// What the clients saw.
#[derive(Debug)]
pub struct Seen {
    /// One per shard.
    pub histories: Vec<History>,
    pub control: History,
}

impl Tested {
    /// A read-write instance `rw` with so many read-only nodes.
    ///
    /// # Errors
    /// It cannot be created or written to.
    pub async fn read_write(larder: Larder, read_only_nodes: u32, engine: &str) -> Result<Self> {
        Self::with_replicas(larder, read_only_nodes, engine, &[]).await
    }

    /// Likewise, with replicas that copy from each other.
    ///
    /// # Errors
    /// It cannot be created or written to.
    pub async fn chained(larder: Larder, read_only_nodes: u32, engine: &str) -> Result<Self> {
        Self::with_replicas(larder, read_only_nodes, engine, &["--chained"]).await
    }

    async fn with_replicas(
        larder: Larder,
        read_only_nodes: u32,
        engine: &str,
        more: &[&str],
    ) -> Result<Self> {
        let count = read_only_nodes.to_string();
        let args =
            ["--architecture", "read-write", "--read-only-nodes", &count, "--engine", engine];
        let instance = larder.create("rw", &[&args, more].concat()).await?;
        let write = instance.endpoint("write")?;
        let writer = Writer::started(WriterOptions::new(write, PASSWORD, "k")).await?;
        let watch = PrimaryWatch::start(&instance, PASSWORD)?;
        let control = control(&larder).await?;
        Ok(Self { larder, instance, writers: vec![writer], control, watch: Some(watch) })
    }

    /// A standalone instance `one`.
    ///
    /// # Errors
    /// It cannot be created or written to.
    pub async fn standalone(larder: Larder) -> Result<Self> {
        let instance = larder.create("one", &["--architecture", "standalone"]).await?;
        let write = instance.endpoint("write")?;
        let writer = Writer::started(WriterOptions::new(write, PASSWORD, "k")).await?;
        let control = control(&larder).await?;
        Ok(Self { larder, instance, writers: vec![writer], control, watch: None })
    }

    /// A cluster instance `shards` of three shards.
    ///
    /// # Errors
    /// It cannot be created or written to.
    pub async fn cluster(larder: Larder, replicas: u32, engine: &str) -> Result<Self> {
        let replicas = replicas.to_string();
        let args = [
            "--architecture",
            "cluster",
            "--shards",
            "3",
            "--replicas",
            &replicas,
            "--engine",
            engine,
        ];
        let instance = larder.create("shards", &args).await?;
        let mut writers = Vec::new();
        for shard in 0..instance.shards {
            let (first, last) =
                instance.primary(shard)?.first_range().context("the primary has no slots")?;
            let discovery = instance.endpoint("discovery")?;
            let prefix = format!("{{{}}}k", tag_in(first, last));
            let mut options = WriterOptions::new(discovery, PASSWORD, &prefix);
            for node in &instance.nodes {
                options.endpoints.push(node.address()?);
            }
            writers.push(Writer::started(options).await?);
        }
        let control = control(&larder).await?;
        Ok(Self { larder, instance, writers, control, watch: None })
    }

    /// Waits until every shard takes a write that is sent from now on.
    ///
    /// # Errors
    /// Not within the given time.
    pub async fn writes_again(&self, within: Duration) -> Result<()> {
        for writer in &self.writers {
            writer.next_ok(within).await?;
        }
        Ok(())
    }

    /// Ends clients and judges: never two primaries.
    ///
    /// # Errors
    /// The verdict of [`PrimaryWatch`].
    pub async fn stop(self) -> Result<(Larder, Instance, Seen)> {
        let mut histories = Vec::new();
        for writer in self.writers {
            histories.push(writer.stop().await?);
        }
        let control = self.control.stop().await?;
        if let Some(watch) = self.watch {
            watch.verdict()?;
        }
        Ok((self.larder, self.instance, Seen { histories, control }))
    }
}

async fn control(larder: &Larder) -> Result<Writer> {
    let instance = larder.create("control", &["--architecture", "standalone"]).await?;
    Writer::started(WriterOptions::new(instance.endpoint("write")?, PASSWORD, "k")).await
}
