//! Instances as a whole: what there is, and the end of one.

use std::collections::BTreeSet;

use larder_cluster::ClusterError;
use larder_model::agent::Fence;
use larder_model::{Code, InstanceId};

use crate::nodes::{folder_names, remove_folder};
use crate::place::Place;
use crate::{error, fences};

impl Place {
    /// Every instance that has a folder, a process or a port.
    pub(crate) fn instances(&self) -> Result<BTreeSet<InstanceId>, ClusterError> {
        let mut instances = self.instance_folders()?;
        instances.extend(self.wishes()?.into_iter().map(|spec| spec.instance));
        instances.extend(self.ports.instances()?);
        Ok(instances)
    }

    pub(crate) fn instance_folders(&self) -> Result<BTreeSet<InstanceId>, ClusterError> {
        let names = folder_names(&self.data.instances())?;
        Ok(names.into_iter().filter_map(|name| InstanceId::new(name).ok()).collect())
    }

    pub(crate) fn remove_instance(
        &self,
        fence: Fence,
        instance: &InstanceId,
    ) -> Result<(), ClusterError> {
        let dir = self.data.instance(instance);
        fences::check(&dir, fence)?;
        // Removals that were asked for and are done by now.
        let nodes = self.observe_nodes(instance)?;
        let listeners = self.observe_relay(instance)?;
        if !nodes.is_empty() || !listeners.is_empty() {
            // What nobody has asked to be removed is never deleted on the way.
            return Err(error::refused(
                Code::InstanceBusy,
                format!(
                    "instance {instance} still has {} nodes and {} endpoints: remove them first",
                    nodes.len(),
                    listeners.len()
                ),
            ));
        }
        if self.has_process(&Self::relay_name(instance)) {
            // Its wish was lost, so that nobody sees it as an endpoint to be removed.
            self.dismiss_relay(instance)?;
            return Err(error::unreachable(format!(
                "the relay of instance {instance} runs without a wish and is being removed"
            )));
        }
        self.ports.release_all(instance)?;
        remove_folder(&dir)
    }
}
