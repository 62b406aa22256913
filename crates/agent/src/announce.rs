//! What a cluster's server tells others of where it is, as a pure function of the node's
//! configuration and of the worker that it runs on.
//!
//! From Redis 7.0 on gossip and replication keep to the node's own address inside, and clients
//! are given a name beside it (`cluster-announce-hostname`, which may be an IP address as well).
//! `cluster-announce-port` is one value for both, so it has to hold inside, too. Redis 6.2 has one
//! address for everybody, its bus port included.

use larder_model::agent::{NodeConfig, ServerState};
use larder_model::{Address, NodeMode, Severity};
use larder_node::{Connection, NodeError};

use crate::core::Core;
use crate::engine::Engine;

/// Settings and their values, in the order in which a living server takes them.
pub(crate) type Announced = Vec<(&'static str, String)>;

/// What the server of a cluster node announces. `worker`: where the node's worker is reached.
pub(crate) fn announced(config: &NodeConfig, engine: Engine, worker: Option<&str>) -> Announced {
    let Address { host, .. } = &config.address;
    let Some(outer) = &config.outer else { return vec![("cluster-announce-ip", host.clone())] };
    let outer_host = outer.host.as_deref().or(worker);
    if let (Some(bus_port), Some(outer_host)) = (outer.bus_port, outer_host) {
        return vec![
            ("cluster-announce-ip", outer_host.to_owned()),
            ("cluster-announce-port", outer.port.to_string()),
            ("cluster-announce-bus-port", bus_port.to_string()),
        ];
    }
    let mut lines = vec![("cluster-announce-ip", host.clone())];
    if outer.bus_port.is_some() || !engine.is_seven_or_later() {
        // Nobody says where it is reached from outside, or it could not say so.
        return lines;
    }
    lines.push(("cluster-announce-port", outer.port.to_string()));
    if let Some(bus) = config.address.bus_port() {
        lines.push(("cluster-announce-bus-port", bus.to_string()));
    }
    if let Some(outer_host) = outer_host {
        lines.push(("cluster-announce-hostname", outer_host.to_owned()));
        lines.push(("cluster-preferred-endpoint-type", "hostname".to_owned()));
    }
    lines
}

/// Tells a living server to announce what the node's configuration says now, where that is not what it
/// does: an agent that was killed before it said so has left that to the next one.
pub(crate) async fn announce_online(core: &mut Core) {
    if core.config.mode != NodeMode::Clustered || core.server.state() != ServerState::Serving {
        return;
    }
    let engine = core.server.info().and_then(Engine::of);
    let (Some(engine), Some(run_id)) = (engine, core.server.run_id()) else { return };
    let lines = announced(&core.config, engine, core.worker.as_deref());
    let wanted = Some((run_id, lines.clone()));
    if core.announced == wanted {
        return;
    }
    let Ok(hands) = core.server.hands().await else { return };
    match announce(hands, &lines).await {
        Ok(false) => {}
        Ok(true) => {
            let message = "the server announces where clients outside reach it now".to_owned();
            core.memory.event(Severity::Info, "announced-anew", message);
        }
        Err(error) => return tracing::warn!(%error, "addresses not announced yet"),
    }
    core.announced = wanted;
}

/// Answers whether the server announced something else.
async fn announce(hands: &mut Connection, lines: &Announced) -> Result<bool, NodeError> {
    let mut is_new = false;
    for (name, value) in lines {
        if hands.config_get(name).await?.get(*name) != Some(value) {
            hands.config_set(name, value).await?;
            is_new = true;
        }
    }
    Ok(is_new)
}

#[cfg(test)]
mod tests {
    use larder_model::OuterAddress;

    use super::*;
    use crate::engine::Flavour;
    use crate::render::tests::config;

    const SEVEN: Engine = Engine { flavour: Flavour::Redis, major: 7, minor: 0 };
    const SIX: Engine = Engine { flavour: Flavour::Redis, major: 6, minor: 2 };

    fn told(outer: Option<OuterAddress>, engine: Engine, worker: Option<&str>) -> Vec<String> {
        let mut config = config(NodeMode::Clustered);
        config.address = Address::new("10.101.0.7", 6379);
        config.outer = outer;
        let lines = announced(&config, engine, worker);
        lines.iter().map(|(name, value)| format!("{name} {value}")).collect()
    }

    #[test]
    fn a_node_that_nobody_outside_reaches_announces_its_address_inside() {
        assert_eq!(told(None, SEVEN, Some("10.99.0.11")), ["cluster-announce-ip 10.101.0.7"]);
    }

    #[test]
    fn gossip_stays_inside_and_clients_are_given_the_worker_that_the_node_is_on() {
        let outer = OuterAddress { host: None, port: 31_007, bus_port: None };
        let lines = told(Some(outer.clone()), SEVEN, Some("10.99.0.11"));
        assert_eq!(
            lines,
            [
                "cluster-announce-ip 10.101.0.7",
                "cluster-announce-port 31007",
                "cluster-announce-bus-port 16379",
                "cluster-announce-hostname 10.99.0.11",
                "cluster-preferred-endpoint-type hostname",
            ]
        );
        let named = OuterAddress { host: Some("redis.example".to_owned()), ..outer };
        let lines = told(Some(named), SEVEN, Some("10.99.0.11"));
        assert_eq!(lines[3], "cluster-announce-hostname redis.example");
    }

    #[test]
    fn an_old_server_gossips_where_its_clients_are() {
        let outer = OuterAddress { host: None, port: 31_007, bus_port: Some(31_008) };
        assert_eq!(
            told(Some(outer.clone()), SIX, Some("10.99.0.11")),
            [
                "cluster-announce-ip 10.99.0.11",
                "cluster-announce-port 31007",
                "cluster-announce-bus-port 31008",
            ]
        );
        assert_eq!(
            told(Some(outer), SIX, None),
            ["cluster-announce-ip 10.101.0.7"],
            "better inside alone than nowhere"
        );
    }
}
