//! Slots that the engine moves by itself, each whole and at once (`CLUSTER MIGRATESLOTS`, Valkey 9).

use std::time::{Duration, Instant};

use larder_model::agent::Role;
use larder_model::{SlotJob, SlotSet};
use larder_node::{Connection, NodeError};

use super::pace::Pace;
use super::{Ends, QUESTION, Shared, Trouble, Went, check_copies, check_target, left_of};

/// How often it is asked how far it is.
const LOOK: Duration = Duration::from_millis(20);
/// Slots that are begun at once where clients shall hardly notice: what is moved at once is copied
/// by a child process, and what is written meanwhile is kept.
const GENTLY: u32 = 64;

pub(super) struct ByEngine<'a> {
    job: &'a SlotJob,
    ends: &'a Ends,
    pace: Pace,
    server: Option<Connection>,
    under_way: Option<UnderWay>,
}

struct UnderWay {
    slots: SlotSet,
    keys: u64,
    since: Instant,
    /// Which server gets them.
    target: String,
}

impl<'a> ByEngine<'a> {
    pub(super) fn new(job: &'a SlotJob, ends: &'a Ends) -> Self {
        let pace = Pace::new(job.limits.pace);
        Self { job, ends, pace, server: None, under_way: None }
    }

    /// Begins a batch, or looks how far the one is that is under way.
    pub(super) async fn step(&mut self, shared: &Shared) -> Result<Went, Trouble> {
        let mut server = match self.server.take() {
            Some(server) if !server.is_closed() => server,
            _ => self.ends.connect(&self.ends.own).await?,
        };
        server.set_timeout(QUESTION);
        let result = match self.under_way.take() {
            Some(under_way) => self.look(&mut server, shared, under_way).await,
            None => self.begin(&mut server).await,
        };
        self.server = Some(server);
        result
    }

    async fn begin(&mut self, server: &mut Connection) -> Result<Went, Trouble> {
        let view = server.cluster_view().await?;
        let Some(left) = left_of(self.job, &view).filter(|left| !left.is_empty()) else {
            return Ok(Went::Done);
        };
        check_target(self.job, &view)?;
        // One that a former agent has begun goes to its end.
        let running = server.slot_migrations().await?;
        let exports = |of: &&larder_node::SlotMigration| of.operation == "EXPORT" && !of.is_over();
        if running.iter().any(|of| exports(&of)) {
            tokio::time::sleep(LOOK).await;
            return Ok(Went::On);
        }
        let slots = match self.job.limits.pace {
            larder_model::MovePace::Gentle => left.first(GENTLY),
            larder_model::MovePace::Fast => left,
        };
        let mut there = self.ends.connect(&self.job.to).await?;
        check_copies(self.job, &mut there).await?;
        let target = there.info().await?.run_id;
        let keys = server.count_keys_in_slots(&slots.iter().collect::<Vec<_>>()).await?;
        server.migrate_slots(&slots, &self.job.to_id).await.map_err(|error| match error {
            NodeError::Reply { error, .. } => {
                Trouble::Engine(format!("the server does not move slots: {}", error.text()))
            }
            other => other.into(),
        })?;
        let keys = keys.iter().sum();
        self.under_way = Some(UnderWay { slots, keys, since: Instant::now(), target });
        Ok(Went::On)
    }

    /// Why the server has given up. Where the other end has died meanwhile that says nothing of the
    /// mechanism.
    async fn given_up(&self, why: &str, target: &str) -> Trouble {
        let words = format!("the server has given up moving slots: {why}");
        let now = async { self.ends.connect(&self.job.to).await?.info().await };
        match now.await {
            Ok(info) if info.run_id == target && info.replication.role == Role::Primary => {
                Trouble::Engine(words)
            }
            _ => Trouble::Words(words),
        }
    }

    async fn look(
        &mut self,
        server: &mut Connection,
        shared: &Shared,
        under_way: UnderWay,
    ) -> Result<Went, Trouble> {
        tokio::time::sleep(LOOK).await;
        let migrations = server.slot_migrations().await?;
        let Some(newest) = migrations.iter().find(|of| of.operation == "EXPORT") else {
            // The server has restarted: it knows of none.
            return Ok(Went::On);
        };
        if !newest.is_over() {
            self.under_way = Some(under_way);
            return Ok(Went::On);
        }
        if newest.state != "success" {
            let why = if newest.message.is_empty() { &newest.state } else { &newest.message };
            return Err(self.given_up(why, &under_way.target).await);
        }
        {
            let mut status = shared.status();
            status.slots_done += under_way.slots.count();
            status.keys_moved += under_way.keys;
        }
        shared.rest(self.pace.rest_after(under_way.since.elapsed())).await;
        Ok(Went::On)
    }

    /// What is under way is taken back: no slot of it has changed hands.
    ///
    /// # Errors
    /// When the server does not answer: it may well be under way still.
    pub(super) async fn cancel(&mut self) -> Result<(), NodeError> {
        let mut server = match self.server.take() {
            Some(server) if !server.is_closed() => server,
            _ => self.ends.connect(&self.ends.own).await?,
        };
        server.set_timeout(QUESTION);
        match server.cancel_slot_migrations().await {
            // It leads no more, and sends nothing.
            Err(NodeError::Reply { .. }) => Ok(()),
            other => other,
        }
    }
}
