//! Creation of an instance: everything is checked before anything is written.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use larder_api_types::{CreateInstance, Operation, PlanView, Problem};
use larder_model::local::NodeSecrets;
use larder_model::{
    Architecture, ByteSize, Code, EngineName, Expose, IdSource as _, InstanceSpec,
    LOCAL_CONTAINER_CLUSTER, Observed, OperationKind, Refusal, STANDARD_STORAGE_CLASS, Secret,
    check_password,
};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use utoipa::IntoParams;

use super::dry_run;
use super::instances::{instance_name, project_name};
use super::parameters;
use crate::auth::Caller;
use crate::body::{Body, Params};
use crate::clock::now;
use crate::error::ApiError;
use crate::ids::RandomIds;
use crate::permission::{Action, Object};
use crate::render;
use crate::state::{ApiState, ContainerClusterInfo};

const MEMORY: ByteSize = ByteSize::mib(128);
const CLUSTER_SHARDS: u32 = 3;
const CLUSTER_REPLICAS: u32 = 2;
const READ_ONLY_NODES: u32 = 1;
/// Looking at a disk or a port takes milliseconds; a hanging mount must not hang the request.
pub(super) const CAPACITY_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct CreateParams {
    /// Answer what would be done, and do nothing.
    #[serde(default)]
    dry_run: bool,
}

/// Create an instance.
#[utoipa::path(post, path = "/api/v1/instances", tag = "instances", request_body = CreateInstance,
    params(CreateParams),
    responses(
        (status = 202, description = "Accepted: the operation that makes it", body = Operation),
        (status = 200, description = "With `dry_run`: what would be done", body = PlanView),
        (status = "default", description = "A refusal; nothing was started", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Params(params): Params<CreateParams>,
    Body(new): Body<CreateInstance>,
) -> Result<Response, ApiError> {
    let project = project_name(new.project.as_deref())?;
    // Cut, because the name has not been checked and goes into the records.
    let named = new.name.chars().take(63).collect();
    let object = Object::Instance { project, name: named };
    caller.ask(Action::InstanceCreate, &object)?;
    let password = new.password.clone();
    let storage_class = new.storage_class.clone();
    let expose = new.expose.clone();
    let mut spec = spec(new, &state.parts().default_container_cluster)?;
    if let Some(password) = &password {
        check_password(password.expose())?;
    } else if !params.dry_run {
        return Err(
            ApiError::new(Code::PasswordMissing, "an instance needs a password").field("password")
        );
    }
    check_surroundings(&state, &mut spec, storage_class, expose).await?;
    if params.dry_run {
        return dry_run::plan(&state, spec).await.map(|plan| Json(plan).into_response());
    }
    let password = password.unwrap_or_else(|| Secret::new(""));
    let secrets = NodeSecrets::new(random_secret(), password_sha256(&password), random_secret());
    let operation = caller.operation_on(&spec.id, spec.name.as_str(), OperationKind::Create);
    let record = caller.record(Action::InstanceCreate, &object, detail(&spec));
    state.store().instance_create(&spec, &secrets, &operation, &record).await?;
    tracing::info!(instance = %spec.id, name = %spec.name, operation = %operation.id, "instance accepted");
    (state.parts().activate)(&spec.id);
    Ok((StatusCode::ACCEPTED, Json(render::operation(&operation))).into_response())
}

fn detail(spec: &InstanceSpec) -> serde_json::Value {
    json!({
        "id": spec.id,
        "architecture": spec.architecture,
        "engine": spec.engine,
        "memory_bytes": spec.memory.bytes(),
        "shards": spec.shards,
        "replicas": spec.replicas,
        "container_cluster": spec.container_cluster,
        "storage_class": spec.storage_class,
        "chained": spec.chained,
        "parameters": spec.parameters,
        "expose": spec.expose,
    })
}

/// The spec that is asked for, with defaults filled in (`home` is the container cluster of one
/// that names none) and every range checked.
fn spec(new: CreateInstance, home: &str) -> Result<InstanceSpec, ApiError> {
    let project = project_name(new.project.as_deref())?;
    let name = instance_name(new.name)?;
    let architecture = Architecture::parse(&new.architecture).ok_or_else(|| {
        let all = Architecture::ALL.map(Architecture::as_str).join(", ");
        ApiError::new(
            Code::ArchitectureNotAvailable,
            format!("`{}` is no architecture of this version: use one of {all}", new.architecture),
        )
        .field("architecture")
    })?;
    let engine = EngineName::new(new.engine.clone()).map_err(|_| no_engine(&new.engine))?;
    let replicas = replicas(architecture, new.replicas, new.read_only_nodes)?;
    let shards = new.shards.unwrap_or(match architecture {
        Architecture::Standalone | Architecture::ReadWrite => 1,
        Architecture::Cluster => CLUSTER_SHARDS,
    });
    let mut spec = InstanceSpec {
        parameters: std::collections::BTreeMap::new(),
        parameters_revision: 0,
        parameters_refused: None,
        revision: 0,
        expose: None,
        id: RandomIds.instance_id(),
        name,
        project,
        description: new.description,
        tags: new.tags,
        architecture,
        engine,
        memory: new.memory_bytes.map_or(MEMORY, ByteSize),
        shards,
        replicas,
        chained: new.chained,
        container_cluster: new.container_cluster.unwrap_or_else(|| home.to_owned()),
        // What it is in truth the container cluster says.
        storage_class: STANDARD_STORAGE_CLASS.to_owned(),
    };
    spec.parameters = parameters::canonical(&new.parameters, &spec)?;
    parameters::check(&spec.parameters, &spec)?;
    spec.check().map_err(|mut refusal| {
        // The field's name in the request.
        if refusal.field.as_deref() == Some("memory") {
            refusal.field = Some("memory_bytes".to_owned());
        }
        refusal
    })?;
    Ok(spec)
}

/// Nodes per shard. For read-write `replicas` and `read_only_nodes` say the same thing, one apart.
fn replicas(
    architecture: Architecture,
    replicas: Option<u32>,
    read_only_nodes: Option<u32>,
) -> Result<u32, ApiError> {
    let refuse = |detail: String, field: &str| {
        Err(Refusal::new(Code::ReplicasOutOfRange, detail).field(field).into())
    };
    match architecture {
        Architecture::ReadWrite => match (replicas, read_only_nodes) {
            (None, None) => Ok(READ_ONLY_NODES + 1),
            (Some(replicas), None) => Ok(replicas),
            (None, Some(nodes)) => Ok(nodes.saturating_add(1)),
            (Some(replicas), Some(nodes)) if replicas == nodes.saturating_add(1) => Ok(replicas),
            (Some(replicas), Some(nodes)) => refuse(
                format!(
                    "{replicas} replicas and {nodes} read-only nodes contradict each other: \
                     replicas count the primary in, so they are one more"
                ),
                "read_only_nodes",
            ),
        },
        Architecture::Standalone | Architecture::Cluster => {
            if read_only_nodes.is_some_and(|nodes| nodes > 0) {
                return refuse(
                    format!("a {architecture} instance has no read-only nodes"),
                    "read_only_nodes",
                );
            }
            Ok(replicas.unwrap_or(if architecture == Architecture::Cluster {
                CLUSTER_REPLICAS
            } else {
                1
            }))
        }
    }
}

/// Checks what depends on the installation, and fills in storage class and exposure: what is asked
/// for, or what the container cluster has by itself. The store checks again, in its transaction, what two requests
/// could take from each other.
async fn check_surroundings(
    state: &ApiState,
    spec: &mut InstanceSpec,
    storage_class: Option<String>,
    expose: Option<String>,
) -> Result<(), ApiError> {
    if !state.store().project_exists(&spec.project).await? {
        return Err(ApiError::new(
            Code::NotFound,
            format!("there is no project `{}`", spec.project),
        )
        .field("project"));
    }
    if state.has_local() && spec.container_cluster == LOCAL_CONTAINER_CLUSTER {
        match state.store().engine_get(&spec.engine).await {
            Ok(_) => {}
            Err(error) if error.is_not_found() => return Err(no_engine(spec.engine.as_str())),
            Err(error) => return Err(error.into()),
        }
    }
    match state.store().instance_find(&spec.project, spec.name.as_str()).await {
        Ok(_) => {
            return Err(ApiError::new(
                Code::NameTaken,
                format!(
                    "project {} has an instance `{}`: choose another name",
                    spec.project, spec.name
                ),
            )
            .field("name"));
        }
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error.into()),
    }
    let checks = async {
        let clusters = state.parts().capacity.container_clusters().await;
        let wanted = clusters.iter().find(|cluster| cluster.name == spec.container_cluster);
        let Some(cluster) = wanted else {
            let all: Vec<_> = clusters.iter().map(|cluster| cluster.name.as_str()).collect();
            return Err(Refusal::new(
                Code::ContainerClusterNotFound,
                format!(
                    "there is no container cluster `{}`: use one of {}",
                    spec.container_cluster,
                    all.join(", ")
                ),
            )
            .field("container_cluster"));
        };
        check_engine(cluster, &spec.engine)?;
        spec.storage_class = self::storage_class(cluster, storage_class)?;
        spec.expose = self::expose(cluster, expose.as_deref())?;
        // What cannot be looked at just now is not known to be full.
        if cluster.reachable {
            let mut desired = dry_run::desired(state, spec.clone(), now());
            cluster.rule(&mut desired);
            let observed = Observed { workers: cluster.workers.clone(), ..Observed::default() };
            larder_planner::check_room(&desired, &observed)
                .map_err(|refusal| refusal.field("memory_bytes"))?;
        }
        state.parts().capacity.check(spec).await
    };
    match tokio::time::timeout(CAPACITY_TIMEOUT, checks).await {
        Ok(result) => result.map_err(ApiError::from),
        Err(_) => Err(ApiError::new(
            Code::Timeout,
            format!("container cluster `{}` did not say what is free", spec.container_cluster),
        )),
    }
}

/// What the volumes are made of: as asked for, or the container cluster's first.
fn storage_class(cluster: &ContainerClusterInfo, asked: Option<String>) -> Result<String, Refusal> {
    let refuse = |detail| Refusal::new(Code::StorageClassNotFound, detail).field("storage_class");
    let (name, all) = (&cluster.name, &cluster.storage_classes);
    match asked {
        Some(asked) if all.contains(&asked) => Ok(asked),
        Some(asked) => Err(refuse(format!(
            "container cluster `{name}` has no storage class `{asked}`: use one of {}",
            all.join(", ")
        ))),
        None => all.first().cloned().ok_or_else(|| {
            refuse(format!(
                "no storage class of container cluster `{name}` is known: `larder \
                 container-cluster get {name}` says why, `larder container-cluster rebind {name}` \
                 reads them again"
            ))
        }),
    }
}

/// Whether the container cluster has an image of the engine; what this machine has is in the
/// catalogue.
pub(super) fn check_engine(
    cluster: &ContainerClusterInfo,
    engine: &EngineName,
) -> Result<(), Refusal> {
    let Some(engines) = cluster.engines.as_ref().filter(|engines| !engines.contains(engine)) else {
        return Ok(());
    };
    let all: Vec<_> = engines.iter().map(EngineName::as_str).collect();
    let detail = format!(
        "container cluster `{}` has no engine `{engine}`: use one of {}, or add its image with \
         `larder container-cluster rebind {} --engine`",
        cluster.name,
        all.join(", "),
        cluster.name
    );
    Err(Refusal::new(Code::EngineNotFound, detail).field("engine"))
}

/// How clients outside reach it: as asked for, or as the container cluster was bound.
fn expose(cluster: &ContainerClusterInfo, asked: Option<&str>) -> Result<Option<Expose>, Refusal> {
    let refuse = |detail| Refusal::new(Code::InvalidRequest, detail).field("expose");
    let Some(asked) = asked else { return Ok(cluster.expose) };
    let way = Expose::asked(asked)?;
    if cluster.expose.is_none() {
        return Err(refuse(format!(
            "instances on `{}` are reached at the addresses of this machine: leave `expose` out, or \
             create the instance on a bound container cluster (`larder container-cluster list`)",
            cluster.name
        )));
    }
    Ok(Some(way))
}

pub(super) fn no_engine(name: &str) -> ApiError {
    ApiError::new(
        Code::EngineNotFound,
        format!("engine `{name}` is not in the catalogue: `larder engine list` shows what is"),
    )
    .field("engine")
}

/// 256 random bits in hex: no character that any file format would mind.
fn random_secret() -> Secret {
    let words: Vec<String> = (0..4).map(|_| format!("{:016x}", RandomIds.next_u64())).collect();
    Secret::new(words.concat())
}

/// As ACL files write passwords.
pub(super) fn password_sha256(password: &Secret) -> Secret {
    Secret::new(hex(&Sha256::digest(password.expose())))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(architecture: &str) -> CreateInstance {
        CreateInstance {
            name: "one".into(),
            architecture: architecture.into(),
            engine: "redis-7.0".into(),
            ..CreateInstance::default()
        }
    }

    #[test]
    fn each_architecture_has_its_defaults() {
        for (architecture, shards, replicas) in
            [("standalone", 1, 1), ("read-write", 1, 2), ("cluster", 3, 2)]
        {
            let spec = spec(new(architecture), "local").unwrap();
            assert_eq!((spec.shards, spec.replicas), (shards, replicas), "{architecture}");
            assert_eq!(spec.memory, ByteSize::mib(128));
            assert_eq!(spec.container_cluster, "local");
        }
    }

    #[test]
    fn an_engine_without_an_image_is_refused_with_those_that_have_one() {
        let redis = EngineName::new("redis-7.0").unwrap();
        let valkey = EngineName::new("valkey-8.0").unwrap();
        let mut east = ContainerClusterInfo {
            name: "east".into(),
            reachable: true,
            engines: Some(vec![valkey.clone()]),
            ..ContainerClusterInfo::default()
        };
        assert_eq!(check_engine(&east, &valkey), Ok(()));
        let refusal = check_engine(&east, &redis).unwrap_err();
        assert_eq!(refusal.code, Code::EngineNotFound);
        assert_eq!(refusal.field.as_deref(), Some("engine"));
        assert!(refusal.detail.contains("valkey-8.0"), "{refusal}");
        east.engines = None;
        assert_eq!(check_engine(&east, &redis), Ok(()), "the catalogue's to say");
    }

    #[test]
    fn volumes_are_of_the_clusters_first_class_unless_another_is_asked_for() {
        let east = |classes: &[&str]| ContainerClusterInfo {
            name: "east".into(),
            reachable: true,
            storage_classes: classes.iter().map(|class| (*class).to_owned()).collect(),
            expose: Some(Expose::NodePort),
            ..ContainerClusterInfo::default()
        };
        let two = east(&["fast", "slow"]);
        assert_eq!(storage_class(&two, None).unwrap(), "fast");
        assert_eq!(storage_class(&two, Some("slow".into())).unwrap(), "slow");
        for (cluster, asked) in [(&two, Some("standard".to_owned())), (&east(&[]), None)] {
            let refusal = storage_class(cluster, asked).unwrap_err();
            assert_eq!(refusal.code, Code::StorageClassNotFound);
            assert_eq!(refusal.field.as_deref(), Some("storage_class"));
        }
    }

    #[test]
    fn instances_are_exposed_as_asked_for_or_as_their_container_cluster_was_bound() {
        let cluster = |name: &str, expose| ContainerClusterInfo {
            name: name.into(),
            reachable: true,
            expose,
            ..ContainerClusterInfo::default()
        };
        let (east, local) = (cluster("east", Some(Expose::NodePort)), cluster("local", None));
        assert_eq!(expose(&east, None), Ok(Some(Expose::NodePort)));
        assert_eq!(expose(&east, Some("load-balancer")), Ok(Some(Expose::LoadBalancer)));
        assert_eq!(expose(&local, None), Ok(None));
        for (cluster, asked) in [(&local, "node-port"), (&east, "everywhere")] {
            let refusal = expose(cluster, Some(asked)).unwrap_err();
            assert_eq!(refusal.code, Code::InvalidRequest);
            assert_eq!(refusal.field.as_deref(), Some("expose"));
        }
    }

    #[test]
    fn read_only_nodes_are_one_less_than_replicas() {
        let both = |replicas, nodes| super::replicas(Architecture::ReadWrite, replicas, nodes);
        assert_eq!(both(None, Some(3)), Ok(4));
        assert_eq!(both(Some(4), None), Ok(4));
        assert_eq!(both(Some(4), Some(3)), Ok(4));
        let refusal = both(Some(2), Some(3)).unwrap_err().refusal;
        assert_eq!(refusal.code, Code::ReplicasOutOfRange);
        assert_eq!(refusal.field.as_deref(), Some("read_only_nodes"));
        assert!(super::replicas(Architecture::Cluster, None, Some(1)).is_err());
    }

    #[test]
    fn unasked_for_combinations_are_refused_with_their_field() {
        let check = |change: fn(&mut CreateInstance), code: Code, field: &str| {
            let mut asked = new("cluster");
            change(&mut asked);
            let refusal = spec(asked, "local").unwrap_err().refusal;
            assert_eq!((refusal.code, refusal.field.as_deref()), (code, Some(field)), "{refusal}");
        };
        check(|n| n.name = "No Good".into(), Code::InvalidName, "name");
        check(|n| n.architecture = "proxy".into(), Code::ArchitectureNotAvailable, "architecture");
        check(|n| n.engine = "Redis!".into(), Code::EngineNotFound, "engine");
        check(|n| n.memory_bytes = Some(127 << 20), Code::MemoryOutOfRange, "memory_bytes");
        check(|n| n.shards = Some(11), Code::ShardsOutOfRange, "shards");
        check(|n| n.chained = true, Code::InvalidRequest, "chained");
        check(|n| n.replicas = Some(0), Code::ReplicasOutOfRange, "replicas");
    }

    #[test]
    fn password_digest_is_what_acl_files_hold() {
        // `ACL SETUSER default >p` lists this digest (redis.conf, "ACL file", `#<hashed>`).
        assert_eq!(
            hex(&Sha256::digest("p")),
            "148de9c5a7a44d19e56cd9ae1a554bf67847afb0c58f6e12fa29ac7ddfca9940"
        );
        assert_eq!(random_secret().expose().len(), 64);
    }
}
