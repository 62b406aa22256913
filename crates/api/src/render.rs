//! From what is stored to what is shown.

use larder_api_types as api;
use larder_model::agent::Role;
use larder_model::{
    Address, Architecture, EndpointKind, EngineName, LOCAL_CONTAINER_CLUSTER, Operation,
    OperationStep, StepState,
};
use larder_store::{
    ConditionSince, EngineRow, EventRow, InstanceRow, NodeView, RecordRow, TokenKind, TokenRow,
};

use crate::clock::rfc3339;

/// `catalogue_version` is shown until a server has said its own.
pub(crate) fn instance(row: &InstanceRow, catalogue_version: Option<String>) -> api::Instance {
    let spec = &row.spec;
    let observation = row.observation.as_ref();
    let nodes = observation.map(|o| o.nodes.as_slice()).unwrap_or_default();
    let endpoint = |kind: EndpointKind| {
        let address = observation?.endpoints.get(&kind)?;
        let inside = observation?.inner_endpoints.get(&kind).map(host_port);
        Some(api::Endpoint { host: address.host.clone(), port: address.port, inside })
    };
    let read_only_nodes = match spec.architecture {
        Architecture::ReadWrite => spec.replicas.saturating_sub(1),
        Architecture::Standalone | Architecture::Cluster => 0,
    };
    api::Instance {
        id: spec.id.to_string(),
        name: spec.name.to_string(),
        project: spec.project.to_string(),
        description: spec.description.clone(),
        tags: spec.tags.clone(),
        state: row.state().to_string(),
        generation: row.generation,
        observed_generation: row.observed_generation,
        created_at: rfc3339(row.created_at),
        architecture: spec.architecture.to_string(),
        engine: spec.engine.to_string(),
        engine_version: nodes
            .iter()
            .find_map(|node| node.engine_version.clone())
            .or(catalogue_version),
        memory_bytes: spec.memory.bytes(),
        shards: spec.shards,
        replicas: spec.replicas,
        read_only_nodes,
        chained: spec.chained,
        read_from_replicas: false,
        container_cluster: spec.container_cluster.clone(),
        storage_class: spec.storage_class.clone(),
        expose: spec.expose.map(|way| way.to_string()),
        endpoints: api::Endpoints {
            write: endpoint(EndpointKind::Write),
            read: endpoint(EndpointKind::Read),
            discovery: endpoint(EndpointKind::Discovery),
        },
        nodes: nodes.iter().map(node).collect(),
        conditions: observation
            .map(|o| o.conditions.iter().map(condition).collect())
            .unwrap_or_default(),
        observed_at: observation.map(|o| rfc3339(o.at)),
    }
}

fn host_port(address: &Address) -> api::HostPort {
    api::HostPort { host: address.host.clone(), port: address.port }
}

fn node(view: &NodeView) -> api::Node {
    let role = match view.role {
        Some(Role::Primary) => "primary",
        Some(Role::Replica) => "replica",
        None => "unknown",
    };
    let link = view.link_up.map(|up| if up { "up" } else { "down" });
    let (host, port) = match &view.address {
        Some(Address { host, port }) => (Some(host.clone()), Some(*port)),
        None => (None, None),
    };
    api::Node {
        id: view.id.to_string(),
        shard: view.shard,
        role: role.to_owned(),
        state: view.state.as_str().to_owned(),
        host,
        port,
        outside: view.outside.as_ref().map(host_port),
        pid: view.pid,
        zone: view.zone.as_ref().map(ToString::to_string),
        worker: Some(view.worker.to_string()),
        replica_of: view.replica_of.as_ref().map(ToString::to_string),
        link: link.map(str::to_owned),
        offset: view.offset,
        lag_bytes: view.lag_bytes,
        used_memory_bytes: view.used_memory.map(|size| size.bytes()),
        slots: view.slots.ranges().iter().map(ToString::to_string).collect(),
        last_seen_at: view.last_seen_at.map(rfc3339),
    }
}

fn condition(dated: &ConditionSince) -> api::Condition {
    api::Condition {
        kind: dated.condition.kind.clone(),
        status: dated.condition.status,
        reason: dated.condition.reason.clone(),
        message: dated.condition.message.clone(),
        since: rfc3339(dated.since),
    }
}

pub(crate) fn operation(operation: &Operation) -> api::Operation {
    api::Operation {
        id: operation.id.to_string(),
        instance: operation.instance_name.clone(),
        instance_id: operation.instance.to_string(),
        kind: operation.kind.as_str().to_owned(),
        state: operation.state.as_str().to_owned(),
        steps: operation.steps.iter().map(step).collect(),
        progress: operation.progress(),
        requested_by: operation.requested_by.clone(),
        requested_from: operation.requested_from.clone(),
        created_at: rfc3339(operation.created_at),
        finished_at: operation.finished_at.map(rfc3339),
        error: operation.error.clone().map(api::Problem::from),
    }
}

fn step(step: &OperationStep) -> api::OperationStep {
    let state = match step.state {
        StepState::Pending => "pending",
        StepState::Running => "running",
        StepState::Waiting => "waiting",
        StepState::Succeeded => "succeeded",
        StepState::Failed => "failed",
    };
    api::OperationStep {
        name: step.name.clone(),
        state: state.to_owned(),
        progress: step.progress,
        message: step.message.clone(),
        started_at: step.started_at.map(rfc3339),
        finished_at: step.finished_at.map(rfc3339),
    }
}

pub(crate) fn event(row: &EventRow) -> api::Event {
    let event = &row.event;
    let kind = match event.kind {
        larder_model::EventKind::Control => "control",
        larder_model::EventKind::Node => "node",
    };
    let id = event.instance.as_ref().map(ToString::to_string);
    api::Event {
        seq: row.seq,
        at: rfc3339(event.at),
        kind: kind.to_owned(),
        severity: event.severity.as_str().to_owned(),
        instance: row.instance_name.as_ref().map(ToString::to_string).or_else(|| id.clone()),
        instance_id: id,
        node: event.node.as_ref().map(ToString::to_string),
        reason: event.reason.clone(),
        message: event.message.clone(),
    }
}

pub(crate) fn record(row: &RecordRow) -> api::Record {
    let record = &row.record;
    api::Record {
        id: row.number,
        at: rfc3339(record.at),
        user: record.user.clone(),
        from: record.from.clone(),
        action: record.action.clone(),
        object: record.object.clone(),
        instance: record.instance.clone(),
        outcome: record.outcome.to_string(),
        detail: record.detail.clone(),
    }
}

pub(crate) fn engine(row: &EngineRow) -> api::Engine {
    api::Engine {
        name: row.name.to_string(),
        version: row.version.clone(),
        flavour: row.flavour.clone(),
        container_clusters: vec![LOCAL_CONTAINER_CLUSTER.to_owned()],
        path: Some(row.path.display().to_string()),
        builtin: row.builtin,
        added_at: Some(rfc3339(row.added_at)),
        capabilities: row.capabilities.clone(),
    }
}

/// An engine that this machine has no binary of: all that is known of it is its name.
pub(crate) fn engine_of_an_image(name: &EngineName) -> api::Engine {
    let (flavour, series) = name.as_str().split_once('-').unwrap_or((name.as_str(), ""));
    api::Engine {
        name: name.to_string(),
        version: series.to_owned(),
        flavour: flavour.to_owned(),
        container_clusters: Vec::new(),
        path: None,
        builtin: true,
        added_at: None,
        capabilities: serde_json::Value::Null,
    }
}

pub(crate) fn token(row: &TokenRow) -> api::Token {
    let kind = match row.kind {
        TokenKind::Session => "session",
        TokenKind::Api => "api",
    };
    api::Token {
        id: row.id.clone(),
        name: row.name.clone(),
        user: row.user.clone(),
        kind: kind.to_owned(),
        created_at: rfc3339(row.created_at),
        expires_at: row.expires_at.map(rfc3339),
        last_used_at: row.last_used_at.map(rfc3339),
    }
}
