//! `CLUSTER …`: what a server says of its cluster, and the orders for it.

use larder_model::agent::{ClusterFailoverMode, ClusterPeer, ClusterView, Role};
use larder_model::{Address, OpenSlot, SLOT_COUNT, SlotRange, SlotSet};
use larder_resp::Frame;

use crate::connection::Connection;
use crate::error::{NodeError, ParseError};

/// `cluster_state:ok` and the current epoch, out of `CLUSTER INFO`.
///
/// # Errors
/// [`ParseError`] when a field is missing.
pub fn parse_cluster_info(text: &str) -> Result<(bool, u64), ParseError> {
    let fields = crate::info::InfoText::new(text);
    let state = fields.get("cluster_state").ok_or(ParseError::Missing("cluster_state"))?;
    let epoch =
        fields.get("cluster_current_epoch").ok_or(ParseError::Missing("cluster_current_epoch"))?;
    let current_epoch = epoch
        .parse()
        .map_err(|_| ParseError::Bad { field: "cluster_current_epoch", value: epoch.to_owned() })?;
    Ok((state == "ok", current_epoch))
}

/// Reads `CLUSTER NODES`; answers the id of the server that was asked, and all nodes in the order
/// given. A server that has met nobody does not know its own address: `own_host` stands in.
/// The host of a node without an address (`noaddr`) is `noaddr`, its port 0.
///
/// # Errors
/// [`ParseError`] with the line that cannot be read.
pub fn parse_cluster_nodes(
    text: &str,
    own_host: &str,
) -> Result<(String, Vec<ClusterPeer>), ParseError> {
    let mut my_id = None;
    let mut nodes = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let (peer, is_me) =
            node_line(line, own_host).ok_or_else(|| ParseError::Line(line.to_owned()))?;
        if is_me {
            my_id = Some(peer.id.clone());
        }
        nodes.push(peer);
    }
    Ok((my_id.ok_or(ParseError::Missing("myself"))?, nodes))
}

/// `<id> <ip:port@bus[,hostname[,key=value…]]> <flags> <primary> <ping> <pong> <epoch> <link>
/// [<slots>…]` (Redis documentation of CLUSTER NODES, "Serialization format").
fn node_line(line: &str, own_host: &str) -> Option<(ClusterPeer, bool)> {
    let mut words = line.split(' ');
    let id = words.next().filter(|id| !id.is_empty())?.to_owned();
    let place = words.next()?;
    let flags: Vec<&str> = words.next()?.split(',').collect();
    let primary = words.next()?;
    let (_ping_sent, _pong_received) = (words.next()?, words.next()?);
    let config_epoch = words.next()?.parse().ok()?;
    let linked = words.next()? == "connected";

    let is_me = flags.contains(&"myself");
    let mut slots = SlotSet::default();
    let mut open = Vec::new();
    for word in words.filter(|word| !word.is_empty()) {
        if let Some(word) = word.strip_prefix('[') {
            open.push(open_slot(word.strip_suffix(']')?)?);
        } else {
            slots.insert(word.parse::<SlotRange>().ok()?);
        }
    }
    let peer = ClusterPeer {
        id,
        address: address(place, is_me.then_some(own_host))?,
        role: if flags.contains(&"slave") { Role::Replica } else { Role::Primary },
        primary: (primary != "-").then(|| primary.to_owned()),
        failed: flags.contains(&"fail"),
        suspected: flags.contains(&"fail?"),
        handshake: flags.contains(&"handshake"),
        linked,
        config_epoch,
        slots,
        open,
    };
    Some((peer, is_me))
}

/// `7->-<id>` is on its way to that node, `7-<-<id>` comes from there (there as well).
fn open_slot(text: &str) -> Option<OpenSlot> {
    let (slot, rest) = text.split_once('-')?;
    let (leaves, peer) = match rest.strip_prefix(">-") {
        Some(peer) => (true, peer),
        None => (false, rest.strip_prefix("<-")?),
    };
    let slot = slot.parse().ok().filter(|slot| *slot < SLOT_COUNT)?;
    (!peer.is_empty()).then(|| OpenSlot { slot, leaves, peer: peer.to_owned() })
}

fn address(place: &str, own_host: Option<&str>) -> Option<Address> {
    let mut parts = place.split(',');
    let socket = parts.next()?;
    // Since 7.0 the name, and what follows it as key=value, stand behind commas.
    let name = parts.next().filter(|name| !name.is_empty() && !name.contains('='));
    let client = socket.split_once('@').map_or(socket, |(client, _bus)| client);
    let (host, port) = client.rsplit_once(':')?;
    let port = port.parse().ok()?;
    let host = if host.is_empty() { own_host.or(name).unwrap_or("noaddr") } else { host };
    Some(Address::new(host, port))
}

impl Connection {
    /// `CLUSTER NODES` and `CLUSTER INFO`, asked together.
    ///
    /// # Errors
    /// [`NodeError`]; the server's own error when it does not run in cluster mode.
    pub async fn cluster_view(&mut self) -> Result<ClusterView, NodeError> {
        let replies = self.pipeline(&[vec!["CLUSTER", "NODES"], vec!["CLUSTER", "INFO"]]).await?;
        let mut texts = Vec::with_capacity(2);
        for (reply, doing) in replies.into_iter().zip(["CLUSTER NODES", "CLUSTER INFO"]) {
            let frame = reply?;
            let text = frame.as_text().ok_or_else(|| self.unexpected(doing, &frame))?;
            texts.push(text.to_owned());
        }
        let (nodes, info) = match texts.as_slice() {
            [nodes, info] => (nodes, info),
            _ => return Err(self.unexpected("CLUSTER NODES", &Frame::Null)),
        };
        let (my_id, nodes) = parse_cluster_nodes(nodes, self.host())
            .map_err(|source| self.unreadable("CLUSTER NODES", source))?;
        let (state_ok, current_epoch) =
            parse_cluster_info(info).map_err(|source| self.unreadable("CLUSTER INFO", source))?;
        Ok(ClusterView { my_id, state_ok, current_epoch, nodes })
    }

    /// `CLUSTER MYID`: the server's id in the cluster, kept in its `nodes.conf`.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn cluster_my_id(&mut self) -> Result<String, NodeError> {
        self.text(&["CLUSTER", "MYID"]).await
    }

    /// `CLUSTER MEET`. The answer says that the handshake began, not that it ended. Meeting a
    /// node that is known does nothing. Older servers take IP addresses only.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn cluster_meet(&mut self, peer: &Address) -> Result<(), NodeError> {
        let port = peer.port.to_string();
        self.order(&["CLUSTER", "MEET", &peer.host, &port]).await
    }

    /// Gives the slots to this server: `ADDSLOTSRANGE` (7.0), or `ADDSLOTS` where that is not
    /// known. All or none are added.
    ///
    /// # Errors
    /// [`NodeError::Reply`] when the server knows an owner of one of them.
    pub async fn cluster_add_slots(&mut self, ranges: &[SlotRange]) -> Result<(), NodeError> {
        if ranges.is_empty() {
            return Ok(());
        }
        let mut args = vec!["CLUSTER".to_owned(), "ADDSLOTSRANGE".to_owned()];
        args.extend(ranges.iter().flat_map(|r| [r.first.to_string(), r.last.to_string()]));
        match self.order(&args).await {
            Err(NodeError::Reply { error, .. }) if is_unknown_subcommand(&error.text()) => {
                let mut args = vec!["CLUSTER".to_owned(), "ADDSLOTS".to_owned()];
                let slots = ranges.iter().flat_map(|r| r.first..=r.last);
                args.extend(slots.map(|slot| slot.to_string()));
                self.order(&args).await
            }
            other => other,
        }
    }

    /// `CLUSTER SET-CONFIG-EPOCH`: only a server that knows no other node and has epoch 0 takes
    /// it.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn cluster_set_config_epoch(&mut self, epoch: u64) -> Result<(), NodeError> {
        self.order(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch.to_string()]).await
    }

    /// `CLUSTER REPLICATE`: makes this server a replica of the node with that id, which it must
    /// know already.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn cluster_replicate(&mut self, primary_id: &str) -> Result<(), NodeError> {
        self.order(&["CLUSTER", "REPLICATE", primary_id]).await
    }

    /// `DBSIZE`.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn key_count(&mut self) -> Result<u64, NodeError> {
        let answer = self.call(&["DBSIZE"]).await?;
        match answer {
            Frame::Integer(count) => Ok(u64::try_from(count).unwrap_or(0)),
            other => Err(self.unexpected("DBSIZE", &other)),
        }
    }

    /// `FLUSHALL ASYNC`: every key is gone when this returns, their memory a little later.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn drop_all_keys(&mut self) -> Result<(), NodeError> {
        self.order(&["FLUSHALL", "ASYNC"]).await
    }

    /// `CLUSTER FORGET`: this server will not hear of the node for a minute. Has to be told to
    /// every node of the cluster within that time.
    ///
    /// # Errors
    /// [`NodeError`]; a node that is not known is no error.
    pub async fn cluster_forget(&mut self, id: &str) -> Result<(), NodeError> {
        match self.order(&["CLUSTER", "FORGET", id]).await {
            Err(NodeError::Reply { error, .. }) if error.text().starts_with("Unknown node") => {
                Ok(())
            }
            other => other,
        }
    }

    /// `CLUSTER FAILOVER [FORCE|TAKEOVER]`, sent to the replica that shall be primary. The answer
    /// says that it was begun.
    ///
    /// # Errors
    /// [`NodeError`]; the server's own error when it is not a replica.
    pub async fn cluster_failover(&mut self, mode: ClusterFailoverMode) -> Result<(), NodeError> {
        let mut args = vec!["CLUSTER", "FAILOVER"];
        args.extend(match mode {
            ClusterFailoverMode::Coordinated => None,
            ClusterFailoverMode::Force => Some("FORCE"),
            ClusterFailoverMode::Takeover => Some("TAKEOVER"),
        });
        self.order(&args).await
    }

    /// `CLUSTER BUMPEPOCH`: gives the server the cluster's newest config epoch, without a vote, unless it
    /// has that already.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn cluster_bump_epoch(&mut self) -> Result<(), NodeError> {
        self.order(&["CLUSTER", "BUMPEPOCH"]).await
    }

    /// `CLUSTER RESET SOFT|HARD`: forgets nodes and slots; `hard` also changes the server's id
    /// and its epochs. A primary that holds keys refuses.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn cluster_reset(&mut self, hard: bool) -> Result<(), NodeError> {
        self.order(&["CLUSTER", "RESET", if hard { "HARD" } else { "SOFT" }]).await
    }

    async fn order<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Result<(), NodeError> {
        let frame = self.call(args).await?;
        match frame {
            Frame::Simple(_) => Ok(()),
            other => Err(self.unexpected("CLUSTER", &other)),
        }
    }
}

/// 6.2: "Unknown subcommand or wrong number of arguments for 'addslotsrange'. Try CLUSTER HELP.";
/// 7.0: "unknown subcommand 'x'. Try CLUSTER HELP."
fn is_unknown_subcommand(text: &str) -> bool {
    text.to_ascii_lowercase().starts_with("unknown subcommand")
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;
