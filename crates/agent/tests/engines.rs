//! The rendered configuration starts on every engine at hand: the machine's own, and those named
//! in `LARDER_TEST_SERVERS` (paths separated by colons).

mod support;

use std::path::PathBuf;
use std::time::Duration;

use larder_model::NodeMode;
use larder_model::agent::ServerState;
use support::World;

fn engines() -> Vec<PathBuf> {
    let more = std::env::var_os("LARDER_TEST_SERVERS").unwrap_or_default();
    let mut paths = vec![PathBuf::from("/usr/bin/redis-server")];
    paths.extend(std::env::split_paths(&more).filter(|path| !path.as_os_str().is_empty()));
    paths
}

#[tokio::test]
async fn every_engine_starts_in_both_modes_and_keeps_the_tenant_in_bounds() {
    for binary in engines() {
        for mode in [NodeMode::Leased, NodeMode::Clustered] {
            let mut world = World::with_binary(mode, 1, 1, &binary);
            world.start_all();
            world
                .wait("serves", Duration::from_secs(20), |all| {
                    all[0].as_ref().is_some_and(|s| {
                        s.server.state == ServerState::Serving && s.problem.is_none()
                    })
                })
                .await;
            let mut tenant = world.tenant(0).await;
            for refused in
                [&["CONFIG", "GET", "masterauth"][..], &["SHUTDOWN"], &["REPLICAOF", "NO", "ONE"]]
            {
                let answer = tenant.call(refused).await;
                assert!(answer.is_err(), "{refused:?} on {}: {answer:?}", binary.display());
            }
            if mode == NodeMode::Clustered {
                tenant.call(&["CLUSTER", "SLOTS"]).await.expect("clients need it");
            }
            let metrics = world.client(0).metrics().await.expect("metrics");
            assert!(
                metrics.contains("redis_up{instance_name=\"one\",node=\"n-00\"} 1"),
                "{metrics}"
            );
            assert!(metrics.contains("redis_memory_max_bytes"), "{metrics}");
            assert!(metrics.contains("redis_instance_info"), "{metrics}");
            let warnings: Vec<String> =
                std::fs::read_to_string(world.nodes[0].dir.join("server.log"))
                    .expect("log")
                    .lines()
                    .filter(|line| line.contains("FATAL") || line.contains("Bad directive"))
                    .map(str::to_owned)
                    .collect();
            assert!(warnings.is_empty(), "{warnings:?}");
        }
    }
}
