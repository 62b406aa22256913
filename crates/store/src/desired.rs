//! What the planner is handed: spec, nodes and operation of one moment.

use larder_model::{Desired, InstanceId, PlannerPolicy};

use crate::{Result, Store, instances, nodes, operations};

impl Store {
    /// Everything that is wanted of the instance, as it was at one moment; `None` when there is
    /// no such instance (any more).
    pub async fn instance_desired(
        &self,
        id: &InstanceId,
        policy: PlannerPolicy,
    ) -> Result<Option<Desired>> {
        let doing = "reading what is wanted of an instance";
        let mut tx = self.read(doing).await?;
        let Some(row) = instances::fetch(&mut tx, id, doing).await? else { return Ok(None) };
        Ok(Some(Desired {
            spec: row.spec,
            generation: row.generation,
            created_at: row.created_at,
            deletion: row.deletion,
            nodes: nodes::fetch_all(&mut tx, id, doing).await?,
            initialized: row.initialized,
            users_revision: row.users_revision,
            former_password_until: row.former_password_until,
            operation: operations::unfinished(&mut tx, id, doing).await?,
            policy,
        }))
    }
}
