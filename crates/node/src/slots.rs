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

/// For how long a key has not been used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// In seconds, rounded down. A server that has restarted counts from then.
    For(u64),
    /// It is there, and the server counts something else: an LFU policy of eviction.
    Unknown,
    /// It is not there.
    Absent,
}

impl Idle {
    fn read(reply: Result<Frame, NodeError>) -> Result<Self, NodeError> {
        match reply {
            Ok(Frame::Integer(seconds)) => Ok(Self::For(u64::try_from(seconds).unwrap_or(0))),
            Ok(_) => Ok(Self::Absent),
            Err(NodeError::Reply { error, .. }) if error.text().contains("LFU") => {
                Ok(Self::Unknown)
            }
            // It is at the other end.
            Err(NodeError::Reply { error, .. }) if matches!(error.code(), "ASK" | "MOVED") => {
                Ok(Self::Absent)
            }
            Err(error) => Err(error),
        }
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
    /// which no key is left is done, and a key that is there already is overwritten.
    ///
    /// # Errors
    /// Of a batch: `IOERR` where the target did not answer, and then keys may be at both ends. Of the whole only when the
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
                command.extend([
                    b"REPLACE".as_slice(),
                    b"AUTH2",
                    to.user.as_bytes(),
                    to.password.expose().as_bytes(),
                ]);
                command.push(b"KEYS");
                command.extend(keys.iter().map(Vec::as_slice));
                command
            })
            .collect();
        let replies = self.pipeline(&commands).await;
        self.forget_what_was_sent();
        Ok(replies?.into_iter().map(|reply| self.expect_ok("MIGRATE", reply?)).collect())
    }

    /// `OBJECT IDLETIME` of each key. `asking`: of slots that are on their way to this server.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn idle_times(
        &mut self,
        keys: &[Vec<u8>],
        asking: bool,
    ) -> Result<Vec<Idle>, NodeError> {
        let mut commands: Vec<Vec<&[u8]>> = Vec::new();
        for key in keys {
            if asking {
                commands.push(vec![b"ASKING"]);
            }
            commands.push(vec![b"OBJECT", b"IDLETIME", key]);
        }
        let each = if asking { 2 } else { 1 };
        let replies = self.pipeline(&commands).await?;
        replies.into_iter().skip(each - 1).step_by(each).map(Idle::read).collect()
    }

    /// `DEL`, unless the key has been used for the last time less than `idle` ago, or is written to
    /// meanwhile (`WATCH`, `EXEC`). Answers whether it is gone now.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn delete_unless_used(&mut self, key: &[u8], idle: Idle) -> Result<bool, NodeError> {
        let ask: Vec<Vec<&[u8]>> = vec![vec![b"WATCH", key], vec![b"OBJECT", b"IDLETIME", key]];
        let now = self.pipeline(&ask).await?.pop().map_or(Ok(Idle::Absent), Idle::read)?;
        let is_used = matches!((idle, now), (Idle::For(before), Idle::For(now)) if now < before);
        if is_used || now == Idle::Absent {
            let frame = self.call(&["UNWATCH"]).await?;
            self.expect_ok("UNWATCH", frame)?;
            return Ok(!is_used);
        }
        let end: Vec<Vec<&[u8]>> = vec![vec![b"MULTI"], vec![b"DEL", key], vec![b"EXEC"]];
        match self.pipeline(&end).await?.pop() {
            Some(Ok(Frame::Array(_))) => Ok(true),
            // Written to meanwhile, or gone: `ASK` is the answer to keys that are not here.
            Some(Ok(Frame::Null) | Err(NodeError::Reply { .. })) => Ok(false),
            Some(Ok(other)) => Err(self.unexpected("EXEC", &other)),
            Some(Err(error)) => Err(error),
            None => Err(self.unexpected("EXEC", &Frame::Null)),
        }
    }

    /// How many replicas are fed by this server and have its data (`ROLE`).
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn online_replicas(&mut self) -> Result<u32, NodeError> {
        match self.call(&["ROLE"]).await? {
            Frame::Array(parts) => match parts.get(2) {
                Some(Frame::Array(replicas)) => Ok(u32::try_from(replicas.len()).unwrap_or(0)),
                _ => Ok(0),
            },
            other => Err(self.unexpected("ROLE", &other)),
        }
    }

    /// `WAIT`: until so many replicas have everything that this server has now, or for `at_most`.
    /// Answers how many do.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn wait_for_replicas(
        &mut self,
        count: u32,
        at_most: Duration,
    ) -> Result<u32, NodeError> {
        // It waits for what this connection has seen the server do: `PING` sees all.
        let (count, time) = (count.to_string(), at_most.as_millis().to_string());
        let commands = vec![vec!["PING".to_owned()], vec!["WAIT".to_owned(), count, time]];
        match self.pipeline(&commands).await?.pop() {
            Some(Ok(Frame::Integer(count))) => Ok(u32::try_from(count).unwrap_or(0)),
            Some(Ok(other)) => Err(self.unexpected("WAIT", &other)),
            Some(Err(error)) => Err(error),
            None => Err(self.unexpected("WAIT", &Frame::Null)),
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
