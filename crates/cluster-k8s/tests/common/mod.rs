//! A namespace of a real Kubernetes, and a backend over it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client, ResourceExt};
use larder_cluster::conformance::Subject;
use larder_cluster::{BackendObserved, Cluster, ClusterError, EndpointSpec, NodeExposure};
use larder_cluster_k8s::{Credentials, KubeCluster, KubeOptions, connect, ensure_namespace};
use larder_model::agent::{Fence, NodeConfig};
use larder_model::kube::LABEL_OWNER;
use larder_model::local::NodeSecrets;
use larder_model::{
    Address, ByteSize, EndpointKind, EngineName, InstanceId, NodeId, OuterAddress, Secret, Worker,
};

/// Names this run's owners.
static NEXT: AtomicU32 = AtomicU32::new(0);
const SETTLED: Duration = Duration::from_secs(60);

/// A Kubernetes cluster that tests may use.
pub(crate) struct Bed {
    credentials: Credentials,
    client: Client,
    image: String,
}

impl Bed {
    pub(crate) async fn from_environment() -> Self {
        let path = std::env::var_os("LARDER_TEST_KUBECONFIG");
        let path = path.expect("LARDER_TEST_KUBECONFIG is not set: `make test-kubernetes` sets it");
        let _ = rustls::crypto::ring::default_provider().install_default();
        let text = Secret::new(std::fs::read_to_string(path).expect("kubeconfig"));
        let credentials = Credentials::Kubeconfig { text, context: None };
        let client = connect(&credentials).await.expect("client");
        let image = std::env::var("LARDER_TEST_IMAGE");
        let image = image.unwrap_or_else(|_| "localhost/larder-{engine}:testbed".to_owned());
        Self { credentials, client, image }
    }

    /// An empty namespace with nothing of former subjects on the workers.
    pub(crate) async fn subject(&self) -> KubeSubject {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("larder-test-{}-{number}", std::process::id());
        let mut options = KubeOptions::new("kubernetes", &name, &name);
        options.image.clone_from(&self.image);
        options.volume_size = ByteSize::mib(64);
        ensure_namespace(self.client.clone(), &options).await.expect("namespace");
        let subject = KubeSubject {
            credentials: self.credentials.clone(),
            client: self.client.clone(),
            cluster: Arc::new(Settled {
                kube: KubeCluster::new(self.client.clone(), options.clone()),
                client: self.client.clone(),
            }),
            options,
        };
        subject.wait_for_the_former().await;
        subject
    }
}

/// One namespace; deleted with the subject.
pub(crate) struct KubeSubject {
    credentials: Credentials,
    client: Client,
    options: KubeOptions,
    cluster: Arc<Settled>,
}

impl KubeSubject {
    async fn wait_for_the_former(&self) {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let all = ListParams::default().labels(LABEL_OWNER);
        let deadline = Instant::now() + SETTLED;
        loop {
            let list = pods.list(&all).await.expect("pods");
            let former = |pod: &&Pod| {
                let owner = pod.labels().get(LABEL_OWNER);
                owner.is_some_and(|owner| owner.starts_with("larder-test-"))
            };
            match list.items.iter().find(former) {
                None => return,
                Some(pod) => {
                    assert!(Instant::now() < deadline, "pod {} stays", pod.name_any());
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }
}

impl Drop for KubeSubject {
    fn drop(&mut self) {
        let (credentials, name) = (self.credentials.clone(), self.options.namespace.clone());
        // Another thread with a runtime of its own: this one's may be ending.
        let deleted = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let client = connect(&credentials).await.map_err(std::io::Error::other)?;
                let namespaces: Api<Namespace> = Api::all(client);
                let deleted = namespaces.delete(&name, &DeleteParams::background()).await;
                deleted.map(drop).map_err(std::io::Error::other)
            })
        });
        if !matches!(deleted.join(), Ok(Ok(()))) {
            #[expect(clippy::print_stderr, reason = "the last words of a test's subject")]
            {
                eprintln!("namespace {} is left behind", self.options.namespace);
            }
        }
    }
}

#[async_trait]
impl Subject for KubeSubject {
    fn cluster(&self) -> Arc<dyn Cluster> {
        self.cluster.clone()
    }

    fn engine(&self) -> EngineName {
        EngineName::new("redis-7.0").expect("valid")
    }

    async fn restart(&mut self) {
        let client = connect(&self.credentials).await.expect("client");
        self.cluster = Arc::new(Settled {
            kube: KubeCluster::new(client.clone(), self.options.clone()),
            client: client.clone(),
        });
        self.client = client;
    }

    async fn pause(&self) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The backend, with a scheduler that answers at once: a node that was ensured has its worker,
/// as it has at once on one machine.
struct Settled {
    kube: KubeCluster,
    client: Client,
}

impl Settled {
    async fn wait_for_a_worker(&self, node: &NodeId) {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.kube.options().namespace);
        let deadline = Instant::now() + SETTLED;
        loop {
            let pod = pods.get_opt(&larder_model::kube::pod_name(node)).await.expect("pod");
            if pod.is_some_and(|pod| pod.spec.is_some_and(|spec| spec.node_name.is_some())) {
                return;
            }
            assert!(Instant::now() < deadline, "node {node} gets no worker");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[async_trait]
impl Cluster for Settled {
    fn name(&self) -> &str {
        self.kube.name()
    }

    async fn workers(&self) -> Result<Vec<Worker>, ClusterError> {
        self.kube.workers().await
    }

    fn spreads_strictly(&self) -> Option<bool> {
        self.kube.spreads_strictly()
    }

    fn resizes_in_place(&self) -> bool {
        self.kube.resizes_in_place()
    }

    async fn observe(&self, instance: &InstanceId) -> Result<BackendObserved, ClusterError> {
        self.kube.observe(instance).await
    }

    async fn instances(&self) -> Result<BTreeSet<InstanceId>, ClusterError> {
        self.kube.instances().await
    }

    async fn reserve_address(
        &self,
        fence: Fence,
        instance: &InstanceId,
        node: &NodeId,
    ) -> Result<Address, ClusterError> {
        self.kube.reserve_address(fence, instance, node).await
    }

    async fn expose_node(
        &self,
        fence: Fence,
        wish: &NodeExposure,
    ) -> Result<Option<OuterAddress>, ClusterError> {
        self.kube.expose_node(fence, wish).await
    }

    async fn ensure_node(
        &self,
        fence: Fence,
        config: &NodeConfig,
        secrets: &NodeSecrets,
    ) -> Result<(), ClusterError> {
        self.kube.ensure_node(fence, config, secrets).await?;
        self.wait_for_a_worker(&config.node).await;
        Ok(())
    }

    async fn remove_node(
        &self,
        fence: Fence,
        instance: &InstanceId,
        node: &NodeId,
    ) -> Result<(), ClusterError> {
        self.kube.remove_node(fence, instance, node).await
    }

    async fn ensure_endpoint(&self, fence: Fence, spec: &EndpointSpec) -> Result<(), ClusterError> {
        self.kube.ensure_endpoint(fence, spec).await
    }

    async fn remove_endpoint(
        &self,
        fence: Fence,
        instance: &InstanceId,
        kind: EndpointKind,
    ) -> Result<(), ClusterError> {
        self.kube.remove_endpoint(fence, instance, kind).await
    }

    async fn remove_instance(
        &self,
        fence: Fence,
        instance: &InstanceId,
    ) -> Result<(), ClusterError> {
        self.kube.remove_instance(fence, instance).await
    }
}
