//! Typed commands outside of `CLUSTER`.

use std::collections::BTreeMap;
use std::time::Duration;

use larder_model::Address;
use larder_resp::Frame;

use crate::connection::Connection;
use crate::error::NodeError;
use crate::info::{ServerInfo, parse_info};

impl Connection {
    /// `PING`.
    ///
    /// # Errors
    /// [`NodeError`]; see [`NodeError::is_alive`] for what an error says of the server.
    pub async fn ping(&mut self) -> Result<(), NodeError> {
        let frame = self.call(&["PING"]).await?;
        self.expect_ok("PING", frame)
    }

    /// `INFO`, the default sections. Answered while the server loads, not while it is busy.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn info(&mut self) -> Result<ServerInfo, NodeError> {
        let text = self.text(&["INFO"]).await?;
        parse_info(&text).map_err(|source| self.unreadable("INFO", source))
    }

    /// `REPLICAOF host port`, or `REPLICAOF NO ONE`: the promotion. The answer to the first says
    /// nothing about the link; see [`ServerInfo::replication`].
    ///
    /// # Errors
    /// [`NodeError`]; a server in cluster mode refuses it.
    pub async fn replicaof(&mut self, primary: Option<&Address>) -> Result<(), NodeError> {
        let frame = match primary {
            Some(address) => {
                let port = address.port.to_string();
                self.call(&["REPLICAOF", &address.host, &port]).await?
            }
            None => self.call(&["REPLICAOF", "NO", "ONE"]).await?,
        };
        self.expect_ok("REPLICAOF", frame)
    }

    /// `CONFIG SET`. The value is never part of an error.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn config_set(&mut self, name: &str, value: &str) -> Result<(), NodeError> {
        let doing = format!("CONFIG SET {name}");
        match self.call(&["CONFIG", "SET", name, value]).await {
            Ok(frame) => self.expect_ok(&doing, frame),
            // Servers repeat the value that they do not like.
            Err(NodeError::Reply { error, .. }) => {
                let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
                let text = if value.is_empty() { text } else { text.replace(value, "…") };
                Err(self.refused(&doing, larder_resp::ErrorReply::new(text)))
            }
            Err(other) => Err(other),
        }
    }

    /// `ACL SETUSER name reset …`: the user is as `rules` say and nothing else, or, if the server does
    /// not like one of them, as it was. Nobody is disconnected (acl.c). Errors do not repeat a rule:
    /// it may be a password's hash.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn set_user(&mut self, name: &str, rules: &str) -> Result<(), NodeError> {
        let mut args = vec!["ACL", "SETUSER", name, "reset"];
        args.extend(rules.split_ascii_whitespace());
        let doing = format!("ACL SETUSER {name}");
        match self.call(&args).await {
            Ok(frame) => self.expect_ok(&doing, frame),
            // "Error in ACL SETUSER modifier '#3c…': why".
            Err(NodeError::Reply { error, .. }) => {
                let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
                let why = text.rsplit_once("': ").map_or("refused", |(_, why)| why);
                Err(self.refused(&doing, larder_resp::ErrorReply::new(format!("ERR {why}"))))
            }
            Err(other) => Err(other),
        }
    }

    /// `ACL USERS`.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn users(&mut self) -> Result<Vec<String>, NodeError> {
        match self.call(&["ACL", "USERS"]).await? {
            Frame::Array(items) => Ok(items
                .iter()
                .filter_map(Frame::as_bytes)
                .map(|name| String::from_utf8_lossy(name).into_owned())
                .collect()),
            other => Err(self.unexpected("ACL USERS", &other)),
        }
    }

    /// `ACL DELUSER`: also of one that does not exist. Closes that user's connections.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn delete_user(&mut self, name: &str) -> Result<(), NodeError> {
        self.call(&["ACL", "DELUSER", name]).await.map(drop)
    }

    /// `CONFIG GET`, with glob patterns.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn config_get(
        &mut self,
        pattern: &str,
    ) -> Result<BTreeMap<String, String>, NodeError> {
        let text = |frame: Frame| {
            frame.as_bytes().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        };
        match self.call(&["CONFIG", "GET", pattern]).await? {
            Frame::Array(items) => {
                let mut items = items.into_iter().map(text);
                let mut found = BTreeMap::new();
                while let (Some(Some(name)), Some(Some(value))) = (items.next(), items.next()) {
                    found.insert(name, value);
                }
                Ok(found)
            }
            other => Err(self.unexpected("CONFIG GET", &other)),
        }
    }

    /// `CONFIG REWRITE`.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn config_rewrite(&mut self) -> Result<(), NodeError> {
        let frame = self.call(&["CONFIG", "REWRITE"]).await?;
        self.expect_ok("CONFIG REWRITE", frame)
    }

    /// `CLIENT PAUSE … WRITE` (6.2): commands that write wait, for every client, at most this
    /// long; replication goes on, and expiry and eviction stop.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn client_pause_write(&mut self, at_most: Duration) -> Result<(), NodeError> {
        let millis = at_most.as_millis().to_string();
        let frame = self.call(&["CLIENT", "PAUSE", &millis, "WRITE"]).await?;
        self.expect_ok("CLIENT PAUSE", frame)
    }

    /// `CLIENT UNPAUSE` (6.2).
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn client_unpause(&mut self) -> Result<(), NodeError> {
        let frame = self.call(&["CLIENT", "UNPAUSE"]).await?;
        self.expect_ok("CLIENT UNPAUSE", frame)
    }

    /// Closes the connections of ordinary, monitoring and subscribed clients, except this one, those
    /// of `spared_user`, and replication links. Answers how many were closed. Clients that connect
    /// meanwhile are not caught.
    ///
    /// Before a primary is demoted: a write that is paused then would be answered `-READONLY`,
    /// where a closed connection makes clients come back to the new primary.
    ///
    /// # Errors
    /// [`NodeError`]. Asking again is safe.
    pub async fn client_kill_normal_and_pubsub(
        &mut self,
        spared_user: &str,
    ) -> Result<usize, NodeError> {
        let own_id = match self.call(&["CLIENT", "ID"]).await? {
            Frame::Integer(id) => id,
            other => return Err(self.unexpected("CLIENT ID", &other)),
        };
        let list = self.call(&["CLIENT", "LIST"]).await?;
        let Some(list) = list.as_bytes() else {
            return Err(self.unexpected("CLIENT LIST", &list));
        };
        let list = String::from_utf8_lossy(list).into_owned();
        let kills: Vec<Vec<String>> = clients_to_close(&list, own_id, spared_user)
            .map(|id| ["CLIENT", "KILL", "ID"].map(str::to_owned).into_iter().chain([id]).collect())
            .collect();
        if kills.is_empty() {
            return Ok(0);
        }
        let mut closed = 0;
        for reply in self.pipeline(&kills).await? {
            // 0: it had left by itself.
            if matches!(reply?, Frame::Integer(n) if n > 0) {
                closed += 1;
            }
        }
        Ok(closed)
    }

    /// `ACL LOAD`. 6.2 and 7.0 drop every connection, replication links and possibly this one
    /// too (redis#12171).
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn acl_load(&mut self) -> Result<(), NodeError> {
        let frame = self.call(&["ACL", "LOAD"]).await?;
        self.expect_ok("ACL LOAD", frame)
    }

    /// `ACL WHOAMI`.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn acl_whoami(&mut self) -> Result<String, NodeError> {
        self.text(&["ACL", "WHOAMI"]).await
    }

    /// Ends the server without saving, without waiting for replicas or a running save (`SHUTDOWN
    /// NOSAVE NOW FORCE`, 7.0; `SHUTDOWN NOSAVE` before). `Ok` when the connection ended, which
    /// shortly precedes the end of the process.
    ///
    /// # Errors
    /// [`NodeError`] when it answered that it will not, or not at all.
    pub async fn shutdown_nosave(&mut self) -> Result<(), NodeError> {
        let mut result = self.call(&["SHUTDOWN", "NOSAVE", "NOW", "FORCE"]).await;
        if let Err(NodeError::Reply { error, .. }) = &result
            && error.text().starts_with("syntax error")
        {
            result = self.call(&["SHUTDOWN", "NOSAVE"]).await;
        }
        match result {
            Err(NodeError::Closed { .. }) => Ok(()),
            Err(other) => Err(other),
            Ok(frame) => Err(self.unexpected("SHUTDOWN", &frame)),
        }
    }

    pub(crate) async fn text<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Result<String, NodeError> {
        let frame = self.call(args).await?;
        match frame.as_bytes() {
            Some(bytes) => Ok(String::from_utf8_lossy(bytes).into_owned()),
            None => {
                let name = args.first().map(|arg| String::from_utf8_lossy(arg.as_ref()));
                Err(self.unexpected(&name.unwrap_or_default(), &frame))
            }
        }
    }
}

/// Ids in a `CLIENT LIST` that [`Connection::client_kill_normal_and_pubsub`] closes.
fn clients_to_close<'a>(
    list: &'a str,
    own_id: i64,
    spared_user: &'a str,
) -> impl Iterator<Item = String> + 'a {
    list.lines().filter_map(move |line| {
        let field = |name: &str| {
            line.split(' ').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
        };
        let id = field("id")?;
        // S: a replica, M: the primary; everything else (N, P, O, …) is somebody's client.
        let is_link = field("flags")?.contains(['S', 'M']);
        let is_own = id.parse() == Ok(own_id);
        let is_spared = field("user") == Some(spared_user);
        (!is_link && !is_own && !is_spared).then(|| id.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_oneself_and_the_spared_user_are_not_closed() {
        // Lines of Redis 6.2.5, 7.0.15 and Valkey 9.1.2.
        let list = "\
id=9 addr=127.0.0.1:35498 laddr=127.0.0.1:27101 fd=16 name= age=3 idle=0 flags=S db=0 sub=0 psub=0 multi=-1 qbuf=0 qbuf-free=0 argv-mem=0 obl=0 oll=0 omem=0 tot-mem=20512 events=r cmd=replconf user=default redir=-1
id=14 addr=127.0.0.1:40042 laddr=127.0.0.1:27101 fd=17 name= age=0 idle=0 flags=N db=0 sub=0 psub=0 multi=-1 qbuf=26 qbuf-free=40928 argv-mem=10 obl=0 oll=0 omem=0 tot-mem=61466 events=r cmd=client user=default redir=-1
id=15 addr=127.0.0.1:51746 laddr=127.0.0.1:27104 fd=17 name= age=0 idle=0 flags=N db=0 sub=0 psub=0 ssub=0 multi=-1 qbuf=26 qbuf-free=20448 argv-mem=10 multi-mem=0 rbs=16384 rbp=0 obl=0 oll=0 omem=0 tot-mem=37658 events=r cmd=client|list user=larder redir=-1 resp=2
id=16 addr=127.0.0.1:57186 laddr=127.0.0.1:27107 fd=19 name= age=0 idle=0 flags=P capa= db=0 sub=1 psub=0 ssub=0 multi=-1 watch=0 qbuf=0 qbuf-free=0 argv-mem=10 multi-mem=0 rbs=16392 rbp=16392 obl=0 oll=0 omem=0 tot-mem=17002 events=r cmd=subscribe user=app redir=-1 resp=3 lib-name= lib-ver= tot-net-in=26 tot-net-out=0 tot-cmds=0
id=17 addr=127.0.0.1:1 laddr=127.0.0.1:2 fd=19 name= age=0 idle=0 flags=M db=0 user=default
id=18 addr=127.0.0.1:1 laddr=127.0.0.1:2 fd=19 name= age=0 idle=0 flags=x db=0 user=default
id=19 addr=127.0.0.1:1 laddr=127.0.0.1:2 fd=19 name= age=0 idle=0 flags=O db=0 user=default
";
        let closed: Vec<_> = clients_to_close(list, 18, "larder").collect();
        assert_eq!(closed, ["14", "16", "19"]);
        let closed: Vec<_> = clients_to_close(list, 14, "nobody").collect();
        assert_eq!(closed, ["15", "16", "18", "19"]);
    }
}
