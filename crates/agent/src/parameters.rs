//! The servers' parameters: in the file of the next start, and in the server that runs.
//!
//! A running server is compared as a whole with what is wanted, at its start, at the agent's start and
//! at each change, so that nothing depends on what was applied when.

use std::collections::BTreeMap;

use larder_model::agent::{NodeConfig, ParametersState, RefusedParameter, ServerState};
use larder_model::{Applies, Kind, PARAMETERS, Parameter};
use larder_node::NodeError;

use crate::core::Core;
use crate::render::{OWN_CLIENTS, backlog};

/// What a server was last compared with, and how that went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Compared {
    run_id: String,
    revision: u64,
    /// The replication backlog's default goes with it.
    maxmemory: u64,
    state: ParametersState,
}

/// Those that this node's server has.
fn of(config: &NodeConfig) -> impl Iterator<Item = &'static Parameter> + '_ {
    PARAMETERS.iter().filter(|it| it.is_in(&config.engine, config.mode))
}

/// The value that the server should say it has: set, or the default.
fn wanted(parameter: &Parameter, config: &NodeConfig) -> String {
    let set = config.parameters.get(parameter.name).map(String::as_str);
    match (parameter.name, set) {
        // Also where no parameter says so.
        ("cluster-node-timeout", _) => config.cluster_node_timeout.0.to_string(),
        ("maxclients", value) => {
            let tenants: u32 =
                value.or(parameter.default).and_then(|v| v.parse().ok()).unwrap_or(0);
            (tenants + OWN_CLIENTS).to_string()
        }
        (_, Some(value)) => value.to_owned(),
        ("repl-backlog-size", None) => backlog(config.maxmemory).bytes().to_string(),
        (_, None) => parameter.default.unwrap_or_default().to_owned(),
    }
}

/// Lines of the configuration file: what is set, and what holds from the start only, set or not.
pub(crate) fn lines(config: &NodeConfig) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    for parameter in of(config) {
        let is_set = config.parameters.contains_key(parameter.name);
        if !is_set && parameter.applies == Applies::Now {
            continue;
        }
        let value = wanted(parameter, config);
        let words: Vec<&str> = value.split(' ').filter(|word| !word.is_empty()).collect();
        // Redis 6.2 reads one pair, and every version one class, from a line.
        match parameter.kind {
            Kind::Save if words.is_empty() => lines.push((parameter.name, "\"\"".to_owned())),
            Kind::Save => {
                lines.extend(words.chunks(2).map(|pair| (parameter.name, pair.join(" "))));
            }
            Kind::Buffers => {
                lines.extend(words.chunks(4).map(|class| (parameter.name, class.join(" "))));
            }
            _ => lines.push((parameter.name, value)),
        }
    }
    lines
}

/// Gives the running server what is wanted, where that is not what it has.
pub(crate) async fn apply_online(core: &mut Core) {
    let Some(run_id) = core.server.run_id() else { return };
    let (revision, maxmemory) = (core.config.parameters_revision, core.config.maxmemory.bytes());
    let is_known = core.parameters.as_ref().is_some_and(|it| {
        it.run_id == run_id && it.revision == revision && it.maxmemory == maxmemory
    });
    if is_known || core.server.state() != ServerState::Serving {
        return;
    }
    match compare(core).await {
        Ok(state) => {
            if let Some(refused) = &state.refused {
                tracing::info!(name = refused.name, words = refused.words, "parameter refused");
            }
            core.parameters = Some(Compared { run_id, revision, maxmemory, state });
        }
        Err(error) => tracing::info!(%error, "parameters not compared, tried again"),
    }
}

/// What the server that runs now has of what is wanted.
pub(crate) fn state(core: &Core) -> Option<ParametersState> {
    let run_id = core.server.run_id()?;
    core.parameters.as_ref().filter(|it| it.run_id == run_id).map(|it| it.state.clone())
}

async fn compare(core: &mut Core) -> Result<ParametersState, NodeError> {
    let config = core.config.clone();
    let hands = core.server.hands().await?;
    let has = hands.config_get("*").await?;
    let mut state =
        ParametersState { revision: config.parameters_revision, refused: None, stale: false };
    for parameter in of(&config) {
        let value = wanted(parameter, &config);
        let Some(name) = known_as(parameter, &has) else { continue };
        if is_same(parameter, &value, &has[name]) {
            continue;
        }
        if parameter.applies == Applies::NewServers {
            state.stale = true;
            continue;
        }
        let is_set = config.parameters.contains_key(parameter.name);
        let taken = match hands.config_set(name, &value).await {
            Ok(()) => {
                let now = hands.config_get(name).await?;
                let now = now.get(name).map(String::as_str).unwrap_or_default();
                if is_same(parameter, &value, now) {
                    Ok(())
                } else {
                    Err(format!("it says `{now}` after it was set"))
                }
            }
            Err(NodeError::Reply { error, .. }) => Err(error.text()),
            Err(error) => return Err(error),
        };
        if let Err(words) = taken {
            if is_set {
                let name = parameter.name.to_owned();
                state.refused.get_or_insert(RefusedParameter { name, words });
            } else {
                tracing::debug!(name, words, "another default than Larder's stays");
            }
        }
    }
    Ok(state)
}

/// The name under which this server has it.
fn known_as(parameter: &Parameter, has: &BTreeMap<String, String>) -> Option<&'static str> {
    let names = std::iter::once(parameter.name).chain(parameter.later_name);
    names.into_iter().find(|name| has.contains_key(*name))
}

fn is_same(parameter: &Parameter, wanted: &str, says: &str) -> bool {
    if parameter.name == "maxclients" {
        return wanted == says;
    }
    // What is wanted may be out of the table's range, when a policy says so.
    let normal = |text: &str| parameter.kind.normal(text).unwrap_or_else(|_| text.to_owned());
    normal(wanted) == normal(says)
}
