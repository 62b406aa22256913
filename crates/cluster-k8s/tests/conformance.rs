//! The suite of all backends, on a real Kubernetes: the one that `LARDER_TEST_KUBECONFIG` names,
//! with the image of `LARDER_TEST_IMAGE`. Without the former nothing is tried.

mod common;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubernetes_is_a_container_cluster() {
    let Some(bed) = common::Bed::from_environment().await else { return };
    larder_cluster::conformance::run(async || bed.subject().await).await;
}
