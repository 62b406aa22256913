//! `INFO` of real servers.

use super::*;

/// The fields that matter, as Redis 6.2.5 sent them; `\r\n` as on the wire.
fn redis_6_2(replication: &str) -> String {
    format!(
        "# Server\r\nredis_version:6.2.5\r\nredis_git_sha1:00000000\r\nredis_mode:standalone\r\nos:Linux 6.18.44 x86_64\r\narch_bits:64\r\nprocess_id:14041\r\nrun_id:92df8252104e4fe9ef99d2c6f78eade211c01c2e\r\ntcp_port:27101\r\nuptime_in_seconds:7\r\n\r\n# Clients\r\nconnected_clients:1\r\n\r\n# Memory\r\nused_memory:2632320\r\nmaxmemory:0\r\n\r\n# Persistence\r\nloading:0\r\nrdb_changes_since_last_save:3\r\nrdb_bgsave_in_progress:0\r\nrdb_last_bgsave_status:ok\r\naof_enabled:1\r\naof_rewrite_in_progress:0\r\naof_rewrite_scheduled:1\r\naof_last_bgrewrite_status:ok\r\naof_last_write_status:err\r\n\r\n# Stats\r\nsync_full:2\r\nsync_partial_ok:0\r\n\r\n# Replication\r\n{replication}\r\n# Cluster\r\ncluster_enabled:0\r\n"
    )
}

const PRIMARY: &str = "role:master\r\nconnected_slaves:2\r\nslave0:ip=127.0.0.1,port=27102,state=online,offset=154,lag=1\r\nslave1:ip=::1,port=27103,state=wait_bgsave,offset=0,lag=0\r\nmaster_failover_state:no-failover\r\nmaster_replid:7cd6602e627b3acbd034d5c3784939518175953e\r\nmaster_replid2:0000000000000000000000000000000000000000\r\nmaster_repl_offset:154\r\nsecond_repl_offset:-1\r\nrepl_backlog_active:1\r\n";

const REPLICA_DOWN: &str = "role:slave\r\nmaster_host:127.0.0.1\r\nmaster_port:27107\r\nmaster_link_status:down\r\nmaster_last_io_seconds_ago:-1\r\nmaster_sync_in_progress:1\r\nslave_read_repl_offset:1\r\nslave_repl_offset:1\r\nmaster_link_down_since_seconds:12\r\nslave_priority:100\r\nconnected_slaves:0\r\nmaster_replid:40cc74bc0427afa60ce9cf91512de3fec52c579a\r\nmaster_replid2:7cd6602e627b3acbd034d5c3784939518175953e\r\nmaster_repl_offset:0\r\nsecond_repl_offset:201\r\n";

#[test]
fn a_primary_is_read_with_its_replicas() {
    let info = parse_info(&redis_6_2(PRIMARY)).expect("a real answer");
    assert_eq!(info.flavour, Flavour::Redis);
    assert_eq!(info.engine_version, "6.2.5");
    assert_eq!(info.run_id, "92df8252104e4fe9ef99d2c6f78eade211c01c2e");
    assert_eq!((info.tcp_port, info.process_id), (27101, 14041));
    assert_eq!(info.loading, None);
    assert!(info.persistence.aof_enabled && info.persistence.aof_rewrite_scheduled);
    assert!(!info.persistence.aof_last_write_ok);
    assert_eq!(
        info.replication,
        ReplicationView {
            role: Role::Primary,
            primary: None,
            link_up: false,
            syncing: false,
            replid: "7cd6602e627b3acbd034d5c3784939518175953e".to_owned(),
            offset: 154,
            replicas: vec![
                ReplicaSeen {
                    address: Address::new("127.0.0.1", 27102),
                    online: true,
                    offset: 154
                },
                ReplicaSeen { address: Address::new("::1", 27103), online: false, offset: 0 },
            ],
        }
    );
    let ages = [1, 0].map(Duration::from_secs);
    assert_eq!(info.replication_detail.acknowledged, ages);
    assert_eq!(info.replication_detail.full_syncs, 2);
    assert_eq!(info.replication_detail.replid2, None);
    assert_eq!(info.replication_detail.second_offset, None);
}

#[test]
fn a_replica_that_never_synced_has_no_offset() {
    let info = parse_info(&redis_6_2(REPLICA_DOWN)).expect("a real answer");
    assert_eq!(info.replication.role, Role::Replica);
    assert_eq!(info.replication.primary, Some(Address::new("127.0.0.1", 27107)));
    assert!(!info.replication.link_up && info.replication.syncing);
    assert_eq!(info.replication.offset, 0);
    let detail = info.replication_detail;
    assert_eq!(detail.replica_offset, Some(1));
    assert_eq!(detail.second_offset, Some(201));
    assert_eq!(detail.link_down_for, Some(Duration::from_secs(12)));
    assert_eq!(detail.last_io, None);
}

#[test]
fn valkey_is_known_by_its_own_version() {
    let text = redis_6_2(PRIMARY).replace(
        "redis_version:6.2.5\r\n",
        "redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.1.2\r\n",
    );
    let info = parse_info(&text.replace("lag=1", "lag=1,type=replica")).expect("a real answer");
    assert_eq!(info.flavour, Flavour::Valkey);
    assert_eq!((info.engine_version.as_str(), info.redis_version.as_str()), ("9.1.2", "7.2.4"));
    assert_eq!(info.replication.replicas.len(), 2);
}

#[test]
fn progress_of_loading_is_read() {
    let text = redis_6_2(PRIMARY).replace(
        "loading:0",
        "loading:1\r\nloading_start_time:1\r\nloading_total_bytes:1000\r\nloading_loaded_bytes:250\r\nloading_loaded_perc:25.00\r\nloading_eta_seconds:3",
    );
    assert_eq!(
        parse_info(&text).expect("a real answer").loading,
        Some(Loading {
            loaded: ByteSize(250),
            total: ByteSize(1000),
            percent: 25.0,
            eta: Some(Duration::from_secs(3))
        })
    );
}

#[test]
fn answers_without_the_needed_fields_are_refused() {
    assert_eq!(parse_info(""), Err(ParseError::Missing("redis_version")));
    let odd = redis_6_2(PRIMARY).replace("role:master", "role:sentinel");
    assert_eq!(
        parse_info(&odd),
        Err(ParseError::Bad { field: "role", value: "sentinel".to_owned() })
    );
    let odd = redis_6_2(PRIMARY).replace("state=online,", "");
    assert!(matches!(parse_info(&odd), Err(ParseError::Line(_))));
}
