//! Every parameter of the table, at both ends of what it takes and beyond, on every engine.

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use larder_agent::read_boot;
use larder_model::agent::{AgentStatus, NodeConfig, Order, ParametersState, ServerState};
use larder_model::{Applies, EngineName, Kind, NodeMode, PARAMETERS, Parameter, Secret};
use larder_node::Connection;
use support::World;

const LIMIT: Duration = Duration::from_secs(20);

fn engines() -> Vec<(&'static str, PathBuf)> {
    let folder = PathBuf::from(std::env::var_os("LARDER_TEST_ENGINES").expect("set by make"));
    let mut all = vec![("redis-7.0", PathBuf::from("/usr/bin/redis-server"))];
    for (name, path) in [
        ("redis-6.2", "redis-6.2/redis-server"),
        ("valkey-8.0", "valkey-8.0/valkey-server"),
        ("valkey-9.1", "valkey-9.1/valkey-server"),
    ] {
        all.push((name, folder.join(path)));
    }
    all
}

/// A node that runs, and what it is told.
struct Node {
    world: World,
    config: NodeConfig,
}

impl Node {
    async fn started(mode: NodeMode, engine: &str, binary: &std::path::Path) -> Self {
        let mut world = World::with_binary(mode, 1, 1, binary);
        let file = world.nodes[0].dir.join("agent.json");
        let mut boot = read_boot(&world.nodes[0].dir).expect("written");
        boot.config.engine = EngineName::new(engine).expect("valid");
        std::fs::write(file, serde_json::to_vec(&boot).expect("json")).expect("written");
        world.start_all();
        let node = Self { config: boot.config, world };
        node.wait("serves", |status| status.server.state == ServerState::Serving).await;
        node
    }

    async fn wait(&self, what: &str, seen: impl Fn(&AgentStatus) -> bool) {
        self.world.wait(what, LIMIT, |all| all[0].as_ref().is_some_and(&seen)).await;
    }

    /// Tells the agent of these values, and waits until its server was given them.
    async fn set(&mut self, values: BTreeMap<String, String>) -> ParametersState {
        self.config.parameters = values;
        self.config.parameters_revision += 1;
        self.config.generation += 1;
        let config = Box::new(self.config.clone());
        self.world.order(0, Order::Configure { config }).await;
        let revision = self.config.parameters_revision;
        let heard = |status: &AgentStatus| {
            status.server.parameters.as_ref().is_some_and(|it| it.revision == revision)
        };
        self.wait("told", heard).await;
        let status = self.world.statuses().await[0].clone().expect("answers");
        status.server.parameters.expect("told")
    }

    async fn says(&self) -> BTreeMap<String, String> {
        let (address, password) = (&self.world.nodes[0].address, Secret::new("system-password"));
        let login = Connection::login(address, "larder", &password, Duration::from_secs(2));
        login.await.expect("in").config_get("*").await.expect("answers")
    }

    fn of(&self) -> impl Iterator<Item = &'static Parameter> + '_ {
        PARAMETERS.iter().filter(|it| it.is_in(&self.config.engine, self.config.mode))
    }
}

/// The server's word for a parameter, in the table's form.
fn word(parameter: &Parameter, says: &BTreeMap<String, String>) -> Option<String> {
    let name = parameter.later_name.filter(|name| says.contains_key(*name));
    let text = says.get(name.unwrap_or(parameter.name))?;
    if parameter.name == "maxclients" {
        return text.parse::<u32>().ok().map(|all| (all - 64).to_string());
    }
    Some(parameter.kind.normal(text).unwrap_or_else(|_| text.clone()))
}

/// Needs a build of its own, which the engines at hand may not be.
fn may_be_refused(name: &str) -> bool {
    name == "activedefrag"
}

async fn both_ends(node: &mut Node, engine: &str) {
    for end in [0, 1] {
        let mut values = BTreeMap::new();
        for parameter in node.of() {
            let is_live = parameter.applies == Applies::Now;
            let by_config = parameter.name == "cluster-node-timeout";
            if is_live && !by_config && !may_be_refused(parameter.name) {
                let (good, _) = parameter.kind.samples();
                let value = if end == 0 { good.first() } else { good.last() };
                let mut value = parameter.kind.normal(value.expect("some")).expect("good");
                // More needs more open files than every machine allows.
                if parameter.name == "maxclients" && end == 1 {
                    value = "10000".to_owned();
                }
                values.insert(parameter.name.to_owned(), value);
            }
        }
        let state = node.set(values.clone()).await;
        assert_eq!(state.refused, None, "{engine}, end {end}");
        let says = node.says().await;
        for (name, value) in &values {
            let parameter = Parameter::find(name).expect("in the table");
            let has = word(parameter, &says);
            assert_eq!(has.as_ref(), Some(value), "{name} on {engine}, end {end}");
        }
    }
}

async fn wrong_values(node: &mut Node, engine: &str) {
    let before = node.says().await;
    let mut values = BTreeMap::new();
    for parameter in node.of().filter(|it| it.applies == Applies::Now) {
        let wrong = match parameter.kind {
            Kind::Integer { .. } | Kind::Bytes { .. } => "not-a-number".to_owned(),
            _ => parameter.kind.samples().1,
        };
        if !matches!(parameter.name, "maxclients" | "cluster-node-timeout") {
            values.insert(parameter.name.to_owned(), wrong);
        }
    }
    let state = node.set(values).await;
    let refused = state.refused.expect("every one is wrong");
    assert!(!refused.words.is_empty(), "{refused:?}");
    let after = node.says().await;
    for parameter in node.of() {
        let (was, is) = (word(parameter, &before), word(parameter, &after));
        assert_eq!(was, is, "{} on {engine}", parameter.name);
    }
}

#[tokio::test]
async fn every_parameter_takes_both_ends_of_its_range_no_wrong_value_and_its_default_again() {
    for (engine, binary) in engines() {
        for mode in [NodeMode::Leased, NodeMode::Clustered] {
            let mut node = Node::started(mode, engine, &binary).await;
            both_ends(&mut node, engine).await;
            let state = node.set(BTreeMap::new()).await;
            assert_eq!(state.refused, None);
            let says = node.says().await;
            for parameter in node.of().filter(|it| !may_be_refused(it.name)) {
                let (Some(default), Some(has)) = (parameter.default, word(parameter, &says)) else {
                    continue;
                };
                assert_eq!(has, default, "{} on {engine} again", parameter.name);
            }
            wrong_values(&mut node, engine).await;
        }
    }
}

#[tokio::test]
async fn what_holds_from_the_start_only_makes_a_server_stale_until_it_starts_anew() {
    for (engine, binary) in engines() {
        let mut node = Node::started(NodeMode::Leased, engine, &binary).await;
        let state = node.set(BTreeMap::new()).await;
        assert!(!state.stale, "{engine}: as it was started");
        let value = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let values =
            [value("databases", "32"), value("rdbchecksum", "no"), value("io-threads", "2")];
        let state = node.set(values.clone().into_iter().collect()).await;
        assert!(state.stale && state.refused.is_none(), "{engine}: {state:?}");
        let pid = node.world.signal_server(0, "-9");
        node.wait("again", |status| {
            let fresh = status.server.pid.is_some_and(|now| now != pid);
            fresh && status.server.parameters.as_ref().is_some_and(|it| !it.stale)
        })
        .await;
        let says = node.says().await;
        for (name, value) in values {
            assert_eq!(says.get(&name), Some(&value), "{engine}");
        }
    }
}

#[tokio::test]
async fn a_server_that_starts_again_has_what_was_set_and_lets_as_many_clients_in() {
    let mut node =
        Node::started(NodeMode::Leased, "redis-7.0", "/usr/bin/redis-server".as_ref()).await;
    let values = [("hz", "37"), ("save", "3600 1 300 100"), ("maxclients", "100")];
    let values = values.map(|(name, value)| (name.to_owned(), value.to_owned()));
    node.set(values.into_iter().collect()).await;
    let pid = node.world.signal_server(0, "-9");
    node.wait("again", |status| {
        status.server.pid.is_some_and(|now| now != pid) && status.server.parameters.is_some()
    })
    .await;
    let says = node.says().await;
    assert_eq!(says.get("hz").map(String::as_str), Some("37"));
    assert_eq!(says.get("save").map(String::as_str), Some("3600 1 300 100"));
    assert_eq!(says.get("maxclients").map(String::as_str), Some("164"));
}

/// The server has a limit that is not the node's: an agent took the new one up, and was killed before
/// it told its server.
#[tokio::test]
async fn a_memory_limit_that_a_killed_agent_has_not_told_its_server_is_told_by_the_next_one() {
    let (name, binary) = engines().remove(0);
    let mut node = Node::started(NodeMode::Leased, name, &binary).await;
    node.world.kill_agent(0);
    let (address, password) = (&node.world.nodes[0].address, Secret::new("system-password"));
    let login = Connection::login(address, "larder", &password, LIMIT).await;
    login.expect("in").config_set("maxmemory", "50000000").await.expect("set");
    node.world.start(0);
    let limit = node.config.maxmemory;
    node.wait("has its own limit", |status| status.server.maxmemory == Some(limit)).await;
}
