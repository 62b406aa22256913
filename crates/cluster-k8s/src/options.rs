//! What a binding to a Kubernetes cluster says.

pub use larder_model::Expose;
use larder_model::{ByteSize, EngineName};
use serde::{Deserialize, Serialize};

/// The engines that `scripts/images.sh` makes images of.
const KNOWN_ENGINES: [&str; 4] = ["redis-6.2", "redis-7.0", "valkey-8.0", "valkey-9.1"];

/// The engines of a binding that names none.
pub fn known_engines() -> Vec<EngineName> {
    KNOWN_ENGINES.iter().filter_map(|name| EngineName::new(*name).ok()).collect()
}

/// One bound cluster.
#[derive(Clone, Debug)]
pub struct KubeOptions {
    /// The name users know it by.
    pub name: String,
    /// Everything lives in this one namespace.
    pub namespace: String,
    /// Random and lasting: two control planes in one namespace do not touch each other's objects.
    pub owner: String,
    /// The image of an engine; `{engine}` stands for the engine's name.
    pub image: String,
    /// The engines that there are images of.
    pub engines: Vec<EngineName>,
    /// Secrets of the namespace by which pods pull their image. Somebody else keeps them.
    pub pull_secrets: Vec<String>,
    /// What a node's volume is made of that does not say; `None`: the cluster's default class.
    pub storage_class: Option<String>,
    /// What volumes can be made of, as it was found at the binding; the default first.
    pub storage_classes: Vec<String>,
    /// Size of each node's volume. Default 64 GiB.
    pub volume_size: ByteSize,
    /// How instances are exposed that do not say.
    pub expose: Expose,
    /// A name or address that leads to every worker: what clients outside are told with node
    /// ports. `None`: a worker's own address.
    pub outer_address: Option<String>,
    pub reach: Reach,
    /// Zones and workers are spread over strictly, or as far as possible.
    pub spread_strictly: bool,
}

impl KubeOptions {
    /// The defaults of a binding.
    pub fn new(
        name: impl Into<String>,
        namespace: impl Into<String>,
        owner: impl Into<String>,
    ) -> Self {
        Self {
            name: name.into(),
            namespace: namespace.into(),
            owner: owner.into(),
            image: concat!("localhost/larder-{engine}:", env!("CARGO_PKG_VERSION")).to_owned(),
            engines: known_engines(),
            pull_secrets: Vec::new(),
            storage_class: None,
            storage_classes: Vec::new(),
            volume_size: ByteSize::gib(64),
            expose: Expose::ClusterIp,
            outer_address: None,
            reach: Reach::PortForward,
            spread_strictly: true,
        }
    }

    /// What of this is in every StatefulSet, in words: one that has other words was rendered
    /// before this was changed.
    pub(crate) fn settings(&self) -> String {
        let spread = if self.spread_strictly { "strict" } else { "preferred" };
        let pull = self.pull_secrets.join(",");
        format!("image={} spread={spread} pull={pull}", self.image)
    }

    pub(crate) fn image_of(&self, engine: &EngineName) -> String {
        self.image.replace("{engine}", engine.as_str())
    }
}

/// How this control plane reaches agents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// It runs inside of the cluster and uses the names of the nodes' Services.
    Inside,
    /// It runs elsewhere and has the API server forward a port of the pod.
    #[default]
    PortForward,
}
