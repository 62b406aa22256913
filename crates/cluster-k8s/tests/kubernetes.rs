//! The suite of all backends, on a real Kubernetes: the one that `LARDER_TEST_KUBECONFIG` names,
//! with the image of `LARDER_TEST_IMAGE`. `make test-kubernetes` sets them.

mod common;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubernetes_is_a_container_cluster() {
    let bed = common::Bed::from_environment().await;
    larder_cluster::conformance::run(async || bed.subject().await).await;
}
