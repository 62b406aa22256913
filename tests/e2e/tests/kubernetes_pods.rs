//! What Kubernetes does to the pods of an instance, and what it gets over: told as the stories of one
//! machine are (`LARDER_TEST_STORIES=kubernetes`, see `larder_testkit::kubernetes`).

use anyhow::Result;
use larder_e2e::Fault;
use larder_e2e::stories::{cluster_fault, read_write_fault};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_deleted_hands_over_and_loses_nothing() -> Result<()> {
    read_write_fault(Fault::PodDeleted, false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_deleted_hands_over_its_shard_and_loses_nothing() -> Result<()> {
    cluster_fault(Fault::PodDeleted, false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_gone_at_once_is_succeeded_or_comes_back() -> Result<()> {
    read_write_fault(Fault::PodGone, false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_pods_gone_at_once_come_back_with_the_data_while_serve_is_down() -> Result<()> {
    read_write_fault(Fault::AllPodsGone, true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_pods_of_a_cluster_gone_at_once_form_it_again_while_serve_is_down() -> Result<()> {
    cluster_fault(Fault::AllPodsGone, true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_the_primarys_worker_is_got_over_while_serve_is_down() -> Result<()> {
    read_write_fault(Fault::WorkerLost, true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_a_worker_is_got_over_by_a_cluster() -> Result<()> {
    cluster_fault(Fault::WorkerLost, false).await
}
