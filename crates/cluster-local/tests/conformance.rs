//! The suite of all backends, on one machine with a real keeper.

#[allow(dead_code, reason = "shared with other test programs")]
mod common;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_is_a_container_cluster() {
    larder_cluster::conformance::run(async || common::Local::new()).await;
}
