//! Container clusters: how one is bound, and what it is.

use std::collections::BTreeMap;

use larder_model::Secret;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Bind a container cluster, or bind it anew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BindContainerCluster {
    /// Lower-case letters, digits and inner hyphens. Not `local`.
    pub name: String,
    /// It is bound already and to be bound anew: what is left out stays as it was. Without, the
    /// name has to be free.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rebind: bool,
    /// Larder runs in that cluster itself and uses its pod's service account, not a kubeconfig.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_cluster: bool,
    /// The text of a kubeconfig with the credentials in it. Left out with `rebind`: the credentials
    /// of the former binding.
    #[serde(
        default,
        with = "crate::secret_in_body::option",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<String>)]
    pub kubeconfig: Option<Secret>,
    /// Context of the kubeconfig; its current one unless named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// Where everything is made; `larder` unless named. Made when it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// How clients outside reach endpoints: `load-balancer`, `node-port` or `cluster-ip`
    /// (default).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expose: Option<String>,
    /// Name or address that leads to every worker: what clients outside are told with `node-port`.
    /// A healthy worker's own address unless given; empty takes it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outer_address: Option<String>,
    /// Image of an engine; `{engine}` stands for the engine's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Engines that there are images of, as `redis-7.0`. Left out: those that Larder makes images
    /// of, or, bound anew, those of the former binding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engines: Option<Vec<String>>,
    /// Secrets of type `kubernetes.io/dockerconfigjson`, or the older `kubernetes.io/dockercfg`, kept
    /// by others in the namespace, by which the pods of instances pull their images. Left out: none,
    /// or, bound anew, those of the former binding; an empty list takes them back. Pods have them
    /// from when they are next made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_secrets: Option<Vec<String>>,
    /// Class of the volumes; the cluster's default class unless named. Empty: that one again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// Size of each node's volume; 64 GiB unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_bytes: Option<u64>,
}

/// Change how a container cluster is used. What is left out stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetContainerCluster {
    /// `strict`: the nodes of a shard on different workers, and at least six of them for a cluster
    /// instance; `preferred`: as far as there are workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<String>,
    /// As at the binding, which looks whether they are there; an empty list takes them back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_secrets: Option<Vec<String>>,
}

/// A container cluster as it was seen last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ContainerCluster {
    pub name: String,
    /// `local` or `kubernetes`.
    pub kind: String,
    /// It answers; otherwise what follows is as it was when it last did.
    pub reachable: bool,
    /// Since when it has answered, or has not, as far as this server knows.
    pub since: Option<String>,
    /// Why it does not answer, or what is missing there.
    pub problem: Option<String>,
    /// Of its API server.
    pub version: Option<String>,
    pub namespace: Option<String>,
    pub expose: Option<String>,
    /// Image of an engine; `{engine}` stands for the engine's name.
    pub image: Option<String>,
    /// Engines that instances can run on there.
    pub engines: Vec<String>,
    /// Secrets by which the pods of instances pull their images.
    #[serde(default)]
    pub pull_secrets: Vec<String>,
    /// `strict` or `preferred`.
    pub spread: Option<String>,
    /// Workers that take nodes.
    pub workers_ready: u32,
    #[serde(default)]
    pub outer_address: Option<String>,
    pub workers: Vec<Worker>,
    pub storage_classes: Vec<StorageClass>,
    /// How often this server has asked what of the API server since it bound it or was started, by
    /// verb and resource.
    pub requests: BTreeMap<String, u64>,
}

/// A worker of a container cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Worker {
    pub name: String,
    pub zone: Option<String>,
    /// Where its node ports are reached.
    #[serde(default)]
    pub address: Option<String>,
    /// `ready`, `cordoned`, `unreachable` or `lost`.
    pub state: String,
    pub memory_bytes: u64,
    pub requested_memory_bytes: u64,
}

/// A class of volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StorageClass {
    pub name: String,
    pub default: bool,
}
