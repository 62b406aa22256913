//! The configuration of `larder serve`: file, environment, options; the later wins.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use larder_model::{
    ByteSize, ElectionPolicy, LOCAL_CONTAINER_CLUSTER, Millis, PlannerPolicy,
    check_container_cluster_name,
};
use larder_store::Retention;
use serde::{Deserialize, Deserializer};

/// What the file may hold. Unknown keys are errors: a misspelt key must not be silently ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) data: Option<PathBuf>,
    pub(crate) listen: Option<SocketAddr>,
    /// First password of `admin`, on the first line of a file. Read at the first start alone.
    pub(crate) admin_password_file: Option<PathBuf>,
    /// Key of the database's secrets; in the data folder unless named. Made when it is missing.
    pub(crate) key_file: Option<PathBuf>,
    /// Where instances are created that name no container cluster.
    pub(crate) default_container_cluster: Option<String>,
    pub(crate) kubernetes: Option<Kubernetes>,
    pub(crate) local: Local,
    pub(crate) policy: Policy,
    pub(crate) retention: History,
}

/// The container cluster `local`: this machine.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Local {
    /// Whether instances may live on this machine.
    pub(crate) enabled: bool,
    /// Where servers and relays listen.
    pub(crate) bind: String,
    /// What clients and peers are told; the same as `bind` unless set.
    pub(crate) advertise: Option<String>,
    /// Ports for nodes and endpoints. The bus port of a node is 10000 higher, and must stay below
    /// the ephemeral range (32768 by default).
    pub(crate) port_first: u16,
    pub(crate) port_last: u16,
    /// Searched for server binaries besides PATH: the folders themselves and those in them.
    pub(crate) engine_dirs: Vec<PathBuf>,
}

impl Default for Local {
    fn default() -> Self {
        Self {
            enabled: true,
            bind: "127.0.0.1".to_owned(),
            advertise: None,
            port_first: 17_000,
            port_last: 19_999,
            engine_dirs: Vec::new(),
        }
    }
}

/// The Kubernetes cluster that this control plane is a pod of, to be bound by itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kubernetes {
    pub(crate) bind: OwnBinding,
    /// The container cluster's name.
    #[serde(default = "kubernetes_name")]
    pub(crate) name: String,
    /// As in `larder container-cluster bind`; what is left out has its default there, also where it
    /// was something else before. A namespace that is left out stays.
    pub(crate) namespace: Option<String>,
    pub(crate) image: Option<String>,
    pub(crate) engines: Option<Vec<String>>,
    pub(crate) pull_secrets: Option<Vec<String>>,
    pub(crate) expose: Option<String>,
    pub(crate) outer_address: Option<String>,
    pub(crate) storage_class: Option<String>,
    #[serde(default, deserialize_with = "size")]
    pub(crate) volume_size: Option<ByteSize>,
}

/// How a cluster is bound that the configuration names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OwnBinding {
    /// By the service account of the pod that this runs in.
    InCluster,
}

fn kubernetes_name() -> String {
    "kubernetes".to_owned()
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ByteSize>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

/// Numbers of the deciders, in milliseconds where they are times.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Policy {
    pub(crate) election: ElectionPolicy,
    pub(crate) cluster_node_timeout: Option<Millis>,
    pub(crate) operation_timeout: Option<Millis>,
    pub(crate) drain: Option<Millis>,
}

impl Policy {
    pub(crate) fn planner(&self) -> PlannerPolicy {
        let default = PlannerPolicy::default();
        PlannerPolicy {
            election: self.election,
            cluster_node_timeout: self.cluster_node_timeout.unwrap_or(default.cluster_node_timeout),
            operation_timeout: self.operation_timeout.unwrap_or(default.operation_timeout),
            drain: self.drain.unwrap_or(default.drain),
            ..default
        }
    }
}

/// How long history is kept.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct History {
    pub(crate) events_days: Option<u32>,
    pub(crate) events_per_instance: Option<u32>,
    /// Finished operations, too.
    pub(crate) records_days: Option<u32>,
}

impl History {
    pub(crate) fn store(&self) -> Retention {
        let default = Retention::default();
        let days = |days: u32| Millis::days(u64::from(days));
        Retention {
            events: self.events_days.map_or(default.events, days),
            events_per_instance: self.events_per_instance.unwrap_or(default.events_per_instance),
            records: self.records_days.map_or(default.records, days),
        }
    }
}

impl Config {
    /// Where instances are created that name no container cluster.
    pub(crate) fn home(&self) -> Option<&str> {
        let named = self.default_container_cluster.as_deref();
        let local = self.local.enabled.then_some(LOCAL_CONTAINER_CLUSTER);
        named.or(local).or(self.kubernetes.as_ref().map(|own| own.name.as_str()))
    }
}

/// Reads the file, if one was named, and checks what can be checked without the machine.
pub(crate) fn load(path: Option<&Path>) -> anyhow::Result<Config> {
    let config = match path {
        None => Config::default(),
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("reading configuration file {}", path.display()))?;
            toml::from_str(&text)
                .with_context(|| format!("reading configuration file {}", path.display()))?
        }
    };
    let local = &config.local;
    anyhow::ensure!(
        local.port_first >= 1024 && local.port_first <= local.port_last && local.port_last < 22_768,
        "local.port_first and port_last must be a range within 1024 and 22767: bus ports are 10000 higher and must stay below the ephemeral ports"
    );
    anyhow::ensure!(
        config.home().is_some(),
        "nothing can be created with local.enabled = false: add [kubernetes], or say with default_container_cluster where to"
    );
    if let Some(own) = &config.kubernetes {
        check_container_cluster_name(&own.name)
            .map_err(|refusal| anyhow::anyhow!("kubernetes.name: {}", refusal.detail))?;
    }
    let history = &config.retention;
    anyhow::ensure!(
        ![history.events_days, history.events_per_instance, history.records_days]
            .contains(&Some(0)),
        "retention: each number must be at least 1"
    );
    let election = &config.policy.election;
    anyhow::ensure!(
        election.lease_ttl.0 >= 2 * election.renew_every.0
            && election.fence_margin.0 + election.clock_drift.0 < election.lease_ttl.0 / 2,
        "policy.election: the lease must last at least two renewals, and its margins less than half of it"
    );
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> anyhow::Result<Config> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("larder.toml");
        std::fs::write(&file, text)?;
        load(Some(&file))
    }

    #[test]
    fn an_empty_file_is_all_defaults() {
        let config = check("").unwrap();
        assert_eq!(config.local.port_first, 17_000);
        assert_eq!(config.policy.planner(), PlannerPolicy::default());
        assert_eq!(config.retention.store(), Retention::default());
    }

    #[test]
    fn a_control_plane_in_a_pod_creates_instances_in_its_own_cluster() {
        let own = "[local]\nenabled = false\n[kubernetes]\nbind = 'in-cluster'\n";
        let config = check(own).unwrap();
        assert_eq!(config.home(), Some("kubernetes"));
        assert_eq!(check("").unwrap().home(), Some("local"));
        let config = check(&format!("{own}name = 'east'\nvolume_size = '2GiB'")).unwrap();
        assert_eq!(config.home(), Some("east"));
        assert_eq!(config.kubernetes.unwrap().volume_size, Some(ByteSize::gib(2)));
        assert!(check("[local]\nenabled = false").is_err());
        assert!(check(&format!("{own}name = 'local'")).is_err());
        assert!(check(&format!("{own}volume_size = 'much'")).is_err());
        assert!(check("[kubernetes]\nbind = 'somehow'").is_err());
    }

    #[test]
    fn misspelt_keys_and_impossible_numbers_are_refused() {
        assert!(check("lisen = '127.0.0.1:7300'").is_err());
        assert!(check("[local]\nport_first = 30000\nport_last = 31000").is_err());
        assert!(check("[policy.election]\nlease_ttl = 1000").is_err());
        assert!(check("[retention]\nevents_days = 0").is_err());
        assert!(check("[retention]\nevents_days = 7").is_ok());
    }
}
