//! The container clusters that instances run on, by name.

use std::sync::Arc;

use larder_cluster::Cluster;
use larder_model::InstanceId;

/// Which container clusters there are. One that cannot be reached is there all the same.
pub trait Clusters: Send + Sync {
    /// The container cluster of this name. For a name that nobody has bound it is one that never
    /// answers: everything about its instances is unknown, and nothing is done.
    fn get(&self, name: &str) -> Arc<dyn Cluster>;

    /// All of them.
    fn all(&self) -> Vec<Arc<dyn Cluster>>;

    /// There is no such instance any more: what is remembered of it is of no use.
    fn forget(&self, _instance: &InstanceId) {}
}

/// The one container cluster that there is, whatever it is called.
pub struct OnlyCluster(pub Arc<dyn Cluster>);

impl Clusters for OnlyCluster {
    fn get(&self, _name: &str) -> Arc<dyn Cluster> {
        self.0.clone()
    }

    fn all(&self) -> Vec<Arc<dyn Cluster>> {
        vec![self.0.clone()]
    }
}
