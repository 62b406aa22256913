//! Node records. Every change of one raises its instance's generation in the same transaction:
//! whoever planned with the former set of nodes finds out.

use sqlx::sqlite::{SqliteConnection, SqliteRow};

use larder_model::{
    Address, ByteSize, InstanceId, NodeId, NodePhase, NodeRecord, OuterAddress, Timestamp,
    WorkerName, ZoneName,
};

use crate::column::big;

use crate::error::Doing;
use crate::tx::WriteTx;
use crate::{Result, Store, StoreError, column, instances};

impl Store {
    /// The instance's nodes, also those on their way out, sorted by id. Empty for an instance
    /// that does not exist.
    pub async fn node_list(&self, instance: &InstanceId) -> Result<Vec<NodeRecord>> {
        let doing = "listing nodes";
        let mut tx = self.read(doing).await?;
        fetch_all(&mut tx, instance, doing).await
    }

    /// Writes the record of a new node; answers the instance's new generation.
    ///
    /// # Errors
    /// A refusal `generation-conflict` unless the instance's generation is `expect_generation`;
    /// [`StoreError::NotFound`] when there is no such instance.
    pub async fn node_insert(
        &self,
        instance: &InstanceId,
        node: &NodeRecord,
        expect_generation: u64,
    ) -> Result<u64> {
        let mut tx = self.write("recording a node").await?;
        let doing = tx.doing();
        instances::expect_generation(&mut tx, instance, expect_generation).await?;
        sqlx::query(
            "INSERT INTO nodes
                 (id, instance, shard, worker, zone, host, port, bootstrap, phase, created_at,
                  outer_address, engine, memory_bytes, revision, leaving_since, in_line_since)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)",
        )
        .bind(node.id.as_str())
        .bind(instance.as_str())
        .bind(i64::from(node.shard))
        .bind(node.worker.as_str())
        .bind(node.zone.as_ref().map(ZoneName::as_str))
        .bind(node.address.as_ref().map(|a| a.host.as_str()))
        .bind(node.address.as_ref().map(|a| i64::from(a.port)))
        .bind(node.bootstrap)
        .bind(column::to_word("a node's phase", &node.phase)?)
        .bind(node.created_at.0)
        .bind(node.outer.as_ref().map(outer_text).transpose()?)
        .bind(node.engine.as_str())
        .bind(big(node.memory.bytes()))
        .bind(big(node.revision))
        .bind(node.leaving_since.map(|at| at.0))
        .bind(node.in_line_since.0)
        .execute(tx.conn())
        .await
        .doing(doing)?;
        let generation = instances::bump(&mut tx, instance).await?;
        tx.commit().await?;
        Ok(generation)
    }

    /// Writes the node's address; answers the instance's generation, which rises unless the node
    /// had that address already.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn node_set_address(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        address: &Address,
    ) -> Result<u64> {
        let mut tx = self.write("recording a node's address").await?;
        let doing = tx.doing();
        let changed = sqlx::query(
            "UPDATE nodes SET host = $3, port = $4 WHERE instance = $1 AND id = $2
             AND (host IS NULL OR port IS NULL OR host <> $3 OR port <> $4)",
        )
        .bind(instance.as_str())
        .bind(node.as_str())
        .bind(&address.host)
        .bind(i64::from(address.port))
        .execute(tx.conn())
        .await
        .doing(doing)?;
        finish(tx, instance, node, changed.rows_affected() > 0).await
    }

    /// Writes where clients outside reach the node; answers the instance's generation, which rises
    /// unless that was known already.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn node_set_outer(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        outer: &OuterAddress,
    ) -> Result<u64> {
        let mut tx = self.write("recording a node's address outside").await?;
        let doing = tx.doing();
        let changed = sqlx::query(
            "UPDATE nodes SET outer_address = $3 WHERE instance = $1 AND id = $2
             AND (outer_address IS NULL OR outer_address <> $3)",
        )
        .bind(instance.as_str())
        .bind(node.as_str())
        .bind(outer_text(outer)?)
        .execute(tx.conn())
        .await
        .doing(doing)?;
        finish(tx, instance, node, changed.rows_affected() > 0).await
    }

    /// Writes since when the node stands where it does in a chain; answers the instance's generation,
    /// which rises unless that was known already.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn node_place_in_line(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        since: Timestamp,
    ) -> Result<u64> {
        let mut tx = self.write("recording a node's place in line").await?;
        let doing = tx.doing();
        let changed = sqlx::query(
            "UPDATE nodes SET in_line_since = $3
             WHERE instance = $1 AND id = $2 AND in_line_since <> $3",
        )
        .bind(instance.as_str())
        .bind(node.as_str())
        .bind(since.0)
        .execute(tx.conn())
        .await
        .doing(doing)?;
        finish(tx, instance, node, changed.rows_affected() > 0).await
    }

    /// Writes what the node has of memory; answers the instance's generation, which rises unless it
    /// had that already.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn node_set_memory(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        memory: ByteSize,
    ) -> Result<u64> {
        let mut tx = self.write("recording a node's memory").await?;
        let doing = tx.doing();
        let changed = sqlx::query(
            "UPDATE nodes SET memory_bytes = $3
             WHERE instance = $1 AND id = $2 AND memory_bytes <> $3",
        )
        .bind(instance.as_str())
        .bind(node.as_str())
        .bind(big(memory.bytes()))
        .execute(tx.conn())
        .await
        .doing(doing)?;
        finish(tx, instance, node, changed.rows_affected() > 0).await
    }

    /// Notes that the node is on its way out, since `at`; answers the instance's generation, which
    /// rises unless it was already.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn node_retire(
        &self,
        instance: &InstanceId,
        node: &NodeId,
        at: Timestamp,
    ) -> Result<u64> {
        let mut tx = self.write("recording that a node goes").await?;
        let doing = tx.doing();
        let changed = sqlx::query(
            "UPDATE nodes SET phase = $3, leaving_since = $4
             WHERE instance = $1 AND id = $2 AND phase <> $3",
        )
        .bind(instance.as_str())
        .bind(node.as_str())
        .bind(column::to_word("a node's phase", &NodePhase::Leaving)?)
        .bind(at.0)
        .execute(tx.conn())
        .await
        .doing(doing)?;
        finish(tx, instance, node, changed.rows_affected() > 0).await
    }

    /// Deletes the node's record; answers the instance's generation, which rises unless the
    /// record was gone already.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is no such instance.
    pub async fn node_delete(&self, instance: &InstanceId, node: &NodeId) -> Result<u64> {
        let mut tx = self.write("deleting a node's record").await?;
        let doing = tx.doing();
        let deleted = sqlx::query("DELETE FROM nodes WHERE instance = $1 AND id = $2")
            .bind(instance.as_str())
            .bind(node.as_str())
            .execute(tx.conn())
            .await
            .doing(doing)?;
        if deleted.rows_affected() == 0 {
            return instances::generation(tx.conn(), instance, doing).await;
        }
        let generation = instances::bump(&mut tx, instance).await?;
        tx.commit().await?;
        Ok(generation)
    }
}

/// Ends a change of one node, which may have found nothing to change.
async fn finish(
    mut tx: WriteTx,
    instance: &InstanceId,
    node: &NodeId,
    changed: bool,
) -> Result<u64> {
    let doing = tx.doing();
    if changed {
        let generation = instances::bump(&mut tx, instance).await?;
        tx.commit().await?;
        return Ok(generation);
    }
    let known = sqlx::query("SELECT id FROM nodes WHERE instance = $1 AND id = $2")
        .bind(instance.as_str())
        .bind(node.as_str())
        .fetch_optional(tx.conn())
        .await
        .doing(doing)?;
    if known.is_none() {
        return Err(StoreError::not_found("node", node));
    }
    instances::generation(tx.conn(), instance, doing).await
}

pub(crate) async fn fetch_all(
    conn: &mut SqliteConnection,
    instance: &InstanceId,
    doing: &'static str,
) -> Result<Vec<NodeRecord>> {
    let rows = sqlx::query("SELECT * FROM nodes WHERE instance = $1 ORDER BY id")
        .bind(instance.as_str())
        .fetch_all(conn)
        .await
        .doing(doing)?;
    rows.iter().map(node_of).collect()
}

pub(crate) async fn delete_all(tx: &mut WriteTx, instance: &InstanceId) -> Result<()> {
    let doing = tx.doing();
    sqlx::query("DELETE FROM nodes WHERE instance = $1")
        .bind(instance.as_str())
        .execute(tx.conn())
        .await
        .doing(doing)?;
    Ok(())
}

fn outer_text(outer: &OuterAddress) -> Result<String> {
    column::to_json("a node's address outside", outer)
}

fn node_of(row: &SqliteRow) -> Result<NodeRecord> {
    let host: Option<String> = column::get(row, "host")?;
    let address = match host {
        Some(host) => Some(Address::new(host, column::unsigned(row, "port")?)),
        None => None,
    };
    Ok(NodeRecord {
        id: column::parsed(row, "id")?,
        shard: column::unsigned(row, "shard")?,
        worker: column::parsed::<WorkerName>(row, "worker")?,
        zone: column::parsed_option(row, "zone")?,
        address,
        outer: column::json_option(row, "outer_address")?,
        bootstrap: column::get(row, "bootstrap")?,
        phase: column::word(row, "phase")?,
        created_at: column::time(row, "created_at")?,
        engine: column::parsed(row, "engine")?,
        memory: ByteSize(column::unsigned(row, "memory_bytes")?),
        revision: column::unsigned(row, "revision")?,
        in_line_since: column::time(row, "in_line_since")?,
        leaving_since: column::time_option(row, "leaving_since")?,
        overruled: false,
    })
}
