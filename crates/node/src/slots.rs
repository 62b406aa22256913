//! Commands that move slots and their keys between servers of a cluster.

use std::time::Duration;

use larder_model::{Address, Secret, SlotSet};
use larder_resp::Frame;

use crate::connection::Connection;
use crate::error::{NodeError, ParseError};

/// What is to be noted of a slot (`CLUSTER SETSLOT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotMark<'a> {
    /// On its way to the node of this id.
    Migrating(&'a str),
    /// On its way from there.
    Importing(&'a str),
    /// Not on its way.
    Stable,
    /// The node of this id has it now.
    Node(&'a str),
}

/// Where `MIGRATE` sends keys, and as whom.
pub struct MigrateTo<'a> {
    pub address: &'a Address,
    pub user: &'a str,
    pub password: &'a Secret,
    /// For each step of the transfer, in the servers' eyes.
    pub timeout: Duration,
    /// A key that is there already is overwritten.
    pub replace: bool,
}

/// One entry of `CLUSTER GETSLOTMIGRATIONS` (Valkey 9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotMigration {
    /// `EXPORT` at the source.
    pub operation: String,
    pub target: String,
    /// `success`, `failed`, `cancelled`, or what it is doing.
    pub state: String,
    /// Why it failed.
    pub message: String,
}

impl SlotMigration {
    pub fn is_over(&self) -> bool {
        matches!(self.state.as_str(), "success" | "failed" | "canceled" | "cancelled")
    }
}

impl Connection {
    /// `CLUSTER COUNTKEYSINSLOT` of each.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn count_keys_in_slots(&mut self, slots: &[u16]) -> Result<Vec<u64>, NodeError> {
        let doing = "CLUSTER COUNTKEYSINSLOT";
        let ask =
            |slot: &u16| vec!["CLUSTER".to_owned(), "COUNTKEYSINSLOT".into(), slot.to_string()];
        let commands: Vec<_> = slots.iter().map(ask).collect();
        let replies = self.pipeline(&commands).await?;
        replies
            .into_iter()
            .map(|reply| match reply? {
                Frame::Integer(count) => Ok(u64::try_from(count).unwrap_or(0)),
                other => Err(self.unexpected(doing, &other)),
            })
            .collect()
    }

    /// `CLUSTER GETKEYSINSLOT`: up to `count` keys of each slot.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn keys_in_slots(
        &mut self,
        slots: &[u16],
        count: u64,
    ) -> Result<Vec<Vec<Vec<u8>>>, NodeError> {
        let doing = "CLUSTER GETKEYSINSLOT";
        let commands: Vec<_> = slots
            .iter()
            .map(|slot| {
                let (slot, count) = (slot.to_string(), count.to_string());
                vec!["CLUSTER".to_owned(), "GETKEYSINSLOT".into(), slot, count]
            })
            .collect();
        let replies = self.pipeline(&commands).await?;
        replies
            .into_iter()
            .map(|reply| {
                let Frame::Array(keys) = reply? else {
                    return Err(self.unexpected(doing, &Frame::Null));
                };
                let keys = keys.iter().map(|key| key.as_bytes().map(<[u8]>::to_vec));
                keys.collect::<Option<Vec<_>>>().ok_or_else(|| self.unexpected(doing, &Frame::Null))
            })
            .collect()
    }

    /// `MEMORY USAGE` of each key, in bytes; `None` for one that is gone.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn memory_usage(&mut self, keys: &[Vec<u8>]) -> Result<Vec<Option<u64>>, NodeError> {
        let ask = |key: &Vec<u8>| vec![b"MEMORY".to_vec(), b"USAGE".to_vec(), key.clone()];
        let commands: Vec<_> = keys.iter().map(ask).collect();
        let replies = self.pipeline(&commands).await?;
        replies
            .into_iter()
            .map(|reply| match reply {
                Ok(Frame::Integer(bytes)) => Ok(u64::try_from(bytes).ok()),
                // `ASK` where it has gone on its way meanwhile.
                Ok(_) | Err(NodeError::Reply { .. }) => Ok(None),
                Err(error) => Err(error),
            })
            .collect()
    }

    /// `CLUSTER SETSLOT` of each slot. An error about one does not keep the others from being set.
    ///
    /// # Errors
    /// Only when the connection fails.
    pub async fn set_slots(
        &mut self,
        slots: &[u16],
        mark: SlotMark<'_>,
    ) -> Result<Vec<Result<(), NodeError>>, NodeError> {
        let (word, id) = match mark {
            SlotMark::Migrating(id) => ("MIGRATING", Some(id)),
            SlotMark::Importing(id) => ("IMPORTING", Some(id)),
            SlotMark::Stable => ("STABLE", None),
            SlotMark::Node(id) => ("NODE", Some(id)),
        };
        let commands: Vec<_> = slots
            .iter()
            .map(|slot| {
                let mut command: Vec<String> =
                    vec!["CLUSTER".into(), "SETSLOT".into(), slot.to_string(), word.into()];
                command.extend(id.map(str::to_owned));
                command
            })
            .collect();
        let replies = self.pipeline(&commands).await?;
        Ok(replies.into_iter().map(|reply| self.expect_ok("CLUSTER SETSLOT", reply?)).collect())
    }

    /// `MIGRATE … KEYS`, one for each batch, all sent at once: the server does them one after the
    /// other, and nothing else meanwhile. The keys of a batch have to be of one slot. A batch of
    /// which no key is left is done.
    ///
    /// # Errors
    /// Of a batch: `BUSYKEY` where `replace` is not set and the target has a key, `IOERR` where the
    /// target did not answer, and then keys may be at both ends. Of the whole only when the
    /// connection fails.
    pub async fn migrate(
        &mut self,
        batches: &[&[Vec<u8>]],
        to: &MigrateTo<'_>,
    ) -> Result<Vec<Result<(), NodeError>>, NodeError> {
        let (port, timeout) = (to.address.port.to_string(), to.timeout.as_millis().to_string());
        let commands: Vec<Vec<&[u8]>> = batches
            .iter()
            .map(|keys| {
                let mut command: Vec<&[u8]> = vec![b"MIGRATE", to.address.host.as_bytes()];
                command.extend([port.as_bytes(), b"", b"0", timeout.as_bytes()]);
                if to.replace {
                    command.push(b"REPLACE");
                }
                command.extend([b"AUTH2", to.user.as_bytes(), to.password.expose().as_bytes()]);
                command.push(b"KEYS");
                command.extend(keys.iter().map(Vec::as_slice));
                command
            })
            .collect();
        let replies = self.pipeline(&commands).await;
        self.forget_what_was_sent();
        Ok(replies?.into_iter().map(|reply| self.expect_ok("MIGRATE", reply?)).collect())
    }

    /// `OBJECT IDLETIME`: seconds since the key was used; `None` when it is not there, or when the
    /// server counts something else (an LFU policy of eviction). `asking`: of a slot that is on its
    /// way to this server.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn idle_time(&mut self, key: &[u8], asking: bool) -> Result<Option<i64>, NodeError> {
        if asking {
            let frame = self.call(&["ASKING"]).await?;
            self.expect_ok("ASKING", frame)?;
        }
        match self.call(&[b"OBJECT".as_slice(), b"IDLETIME", key]).await {
            Ok(Frame::Integer(seconds)) => Ok(Some(seconds)),
            Ok(_) | Err(NodeError::Reply { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `DEL`. That it is not there is no error.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn delete_key(&mut self, key: &[u8]) -> Result<(), NodeError> {
        match self.call(&[b"DEL".as_slice(), key]).await? {
            Frame::Integer(_) => Ok(()),
            other => Err(self.unexpected("DEL", &other)),
        }
    }

    /// `CLUSTER MIGRATESLOTS` (Valkey 9): begins to give the slots to the node of this id.
    ///
    /// # Errors
    /// [`NodeError`]; the server's own words when it does not begin.
    pub async fn migrate_slots(&mut self, slots: &SlotSet, to_id: &str) -> Result<(), NodeError> {
        let mut command: Vec<String> =
            vec!["CLUSTER".into(), "MIGRATESLOTS".into(), "SLOTSRANGE".into()];
        for range in slots.ranges() {
            command.extend([range.first.to_string(), range.last.to_string()]);
        }
        command.extend(["NODE".to_owned(), to_id.to_owned()]);
        let frame = self.call(&command).await?;
        self.expect_ok("CLUSTER MIGRATESLOTS", frame)
    }

    /// `CLUSTER CANCELSLOTMIGRATIONS` (Valkey 9). That there is none is no error.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn cancel_slot_migrations(&mut self) -> Result<(), NodeError> {
        match self.call(&["CLUSTER", "CANCELSLOTMIGRATIONS"]).await {
            Ok(frame) => self.expect_ok("CLUSTER CANCELSLOTMIGRATIONS", frame),
            Err(NodeError::Reply { error, .. }) if error.text().contains("No migrations") => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// `CLUSTER GETSLOTMIGRATIONS` (Valkey 9): those that run and the last ones, newest first.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn slot_migrations(&mut self) -> Result<Vec<SlotMigration>, NodeError> {
        let doing = "CLUSTER GETSLOTMIGRATIONS";
        let frame = self.call(&["CLUSTER", "GETSLOTMIGRATIONS"]).await?;
        let Frame::Array(entries) = &frame else { return Err(self.unexpected(doing, &frame)) };
        let parsed: Option<Vec<_>> = entries.iter().map(migration).collect();
        parsed.ok_or_else(|| self.unreadable(doing, ParseError::Missing("state")))
    }
}

fn migration(entry: &Frame) -> Option<SlotMigration> {
    let fields: Vec<(String, String)> = match entry {
        Frame::Array(items) => {
            items.chunks_exact(2).map(|pair| (text(&pair[0]), text(&pair[1]))).collect()
        }
        Frame::Map(pairs) => pairs.iter().map(|(key, value)| (text(key), text(value))).collect(),
        _ => return None,
    };
    let field =
        |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    Some(SlotMigration {
        operation: field("operation").unwrap_or_default(),
        target: field("target_node").unwrap_or_default(),
        state: field("state")?,
        message: field("message").unwrap_or_default(),
    })
}

fn text(frame: &Frame) -> String {
    frame.as_text().unwrap_or_default().to_owned()
}
