//! Which replicas the own server streams to.
//!
//! A server calls a replica `online` when its diskless full sync has ended, but sends it nothing
//! before the replica's next acknowledgement (`repl_start_cmd_stream_on_ack` in Redis'
//! replication.c). The one that the replica sends when it has loaded is lost when the server has
//! not yet noticed the end of its own child; the next comes a second later. Up to then the link is
//! up in the replica's eyes, and writes that are acknowledged exist on the primary alone.

use std::collections::BTreeMap;
use std::time::Duration;

use larder_model::agent::ReplicaSeen;
use larder_model::{Address, Timestamp};
use larder_node::ServerInfo;

/// The server rounds the age of an acknowledgement down to seconds, by a clock that it reads ten
/// times a second.
const ROUNDING: Duration = Duration::from_millis(1_100);

/// For how long an acknowledgement is looked out for closely: they come once a second.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Syncing,
    /// Online since then (monotonic), and not known to have acknowledged anything since.
    Online(Timestamp),
    Streaming,
}

/// The replicas of one server process, from one sample to the next.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    replicas: BTreeMap<Address, Known>,
    /// Full syncs begun up to the last sample; `None` before the first.
    full_syncs: Option<u64>,
    /// The process was there before this agent: its replicas have followed for a while.
    adopted: bool,
}

impl Streams {
    pub(crate) fn of_process(adopted: bool) -> Self {
        Self { adopted, ..Self::default() }
    }

    /// Takes a sample's replicas that are not streamed to for not online.
    pub(crate) fn judge(&mut self, info: &mut ServerInfo, now: Timestamp) {
        let detail = &info.replication_detail;
        let first = self.full_syncs.is_none();
        let begun = detail.full_syncs.saturating_sub(self.full_syncs.unwrap_or(0));
        self.full_syncs = Some(detail.full_syncs);
        let old = std::mem::take(&mut self.replicas);
        let seen = &mut info.replication.replicas;
        let came_between =
            |replica: &ReplicaSeen| !replica.online || !old.contains_key(&replica.address);
        let (new, stayed): (Vec<_>, Vec<_>) =
            seen.iter().partition(|replica| came_between(replica));
        // More full syncs than newcomers: one that was online before has gone and come again since
        // the last sample. Where several may have, none is doubted: reads led to the others go on.
        let again = begun > new.len() as u64 && stayed.len() == 1;
        for (at, replica) in seen.iter_mut().enumerate() {
            let acknowledged = detail.acknowledged.get(at).copied().unwrap_or(Duration::ZERO);
            let known = match old.get(&replica.address) {
                _ if !replica.online => Known::Syncing,
                // By a partial sync, after which the stream goes on at once.
                None if (first && self.adopted) || (!first && begun == 0) => Known::Streaming,
                None | Some(Known::Syncing) => Known::Online(now),
                Some(Known::Online(_) | Known::Streaming) if again => Known::Online(now),
                Some(Known::Online(since))
                    if now.since(*since).duration() >= acknowledged + ROUNDING =>
                {
                    Known::Streaming
                }
                Some(known) => *known,
            };
            replica.online = known == Known::Streaming;
            self.replicas.insert(replica.address.clone(), known);
        }
    }

    /// Some replica should acknowledge something any moment now.
    pub(crate) fn awaited(&self, now: Timestamp) -> bool {
        self.replicas.values().any(
            |known| matches!(known, Known::Online(since) if now.since(*since).duration() < PATIENCE),
        )
    }
}

#[cfg(test)]
mod tests {
    use larder_node::parse_info;

    use super::*;

    const A: &str = "10.0.0.1";
    const B: &str = "10.0.0.2";

    /// What a primary says after `full_syncs`, of replicas by host, state and lag in seconds.
    fn said(full_syncs: u64, replicas: &[(&str, &str, u64)]) -> ServerInfo {
        let replicas: String = (replicas.iter().enumerate())
            .map(|(at, (ip, state, lag))| {
                format!("slave{at}:ip={ip},port=6379,state={state},offset=0,lag={lag}\n")
            })
            .collect();
        parse_info(&format!(
            "redis_version:7.0.15\nprocess_id:1\nrun_id:r\ntcp_port:6379\nuptime_in_seconds:1\n\
             connected_clients:1\nused_memory:1\nsync_full:{full_syncs}\nrole:master\n{replicas}\
             master_replid:r\nmaster_repl_offset:0\n"
        ))
        .expect("a server's answer")
    }

    /// The hosts of the replicas that the server is taken to stream to.
    fn streamed_to(streams: &mut Streams, at: i64, mut info: ServerInfo) -> Vec<String> {
        streams.judge(&mut info, Timestamp(at));
        let replicas = info.replication.replicas.into_iter();
        replicas.filter(|replica| replica.online).map(|replica| replica.address.host).collect()
    }

    #[test]
    fn a_full_sync_is_over_with_the_first_acknowledgement_after_it() {
        let mut streams = Streams::of_process(false);
        let none: [&str; 0] = [];
        assert_eq!(streamed_to(&mut streams, 0, said(1, &[(A, "wait_bgsave", 0)])), none);
        assert_eq!(streamed_to(&mut streams, 100, said(1, &[(A, "online", 0)])), none);
        assert!(streams.awaited(Timestamp(100)));
        // It may have been given before it came online, rounding included.
        assert_eq!(streamed_to(&mut streams, 1_100, said(1, &[(A, "online", 0)])), none);
        assert_eq!(streamed_to(&mut streams, 2_200, said(1, &[(A, "online", 2)])), none);
        assert_eq!(streamed_to(&mut streams, 2_300, said(1, &[(A, "online", 1)])), [A]);
        assert!(!streams.awaited(Timestamp(2_300)));
        assert_eq!(streamed_to(&mut streams, 9_000, said(1, &[(A, "online", 7)])), [A]);
    }

    #[test]
    fn a_partial_sync_streams_at_once() {
        let mut streams = Streams::of_process(false);
        assert!(streamed_to(&mut streams, 0, said(3, &[])).is_empty());
        assert_eq!(streamed_to(&mut streams, 100, said(3, &[(A, "online", 0)])), [A]);
        // The next one takes a full sync.
        let both = [(A, "online", 0), (B, "online", 0)];
        assert_eq!(streamed_to(&mut streams, 200, said(4, &both)), [A]);
        assert_eq!(streamed_to(&mut streams, 1_300, said(4, &both)), [A, B]);
    }

    #[test]
    fn replicas_of_an_adopted_server_are_streamed_to() {
        let both = [(A, "online", 0), (B, "send_bulk", 0)];
        assert_eq!(streamed_to(&mut Streams::of_process(true), 0, said(5, &both)), [A]);
        let none: [&str; 0] = [];
        assert_eq!(streamed_to(&mut Streams::of_process(false), 0, said(5, &both)), none);
    }

    #[test]
    fn the_only_replica_that_came_again_between_two_samples_is_found_out() {
        let mut streams = Streams::of_process(true);
        assert_eq!(streamed_to(&mut streams, 0, said(1, &[(A, "online", 0)])), [A]);
        assert!(streamed_to(&mut streams, 1_000, said(2, &[(A, "online", 0)])).is_empty());
        assert_eq!(streamed_to(&mut streams, 2_100, said(2, &[(A, "online", 0)])), [A]);
        // Another one's full sync says nothing of it.
        let joined = [(A, "online", 0), (B, "wait_bgsave", 0)];
        assert_eq!(streamed_to(&mut streams, 2_200, said(3, &joined)), [A]);
    }
}
