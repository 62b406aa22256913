//! The real Kubernetes that tests use: the one that `LARDER_TEST_KUBECONFIG` names, with the image of
//! `LARDER_TEST_IMAGE`. `LARDER_TEST_BED` is the command of its test bed (`testbed --dir DIR`).
//! `make test-kubernetes` sets them.
//!
//! With `LARDER_TEST_STORIES=kubernetes` every Larder of this kit has its instances there, each in a
//! namespace of its own, and the stories that are told of one machine are told of Kubernetes. They run
//! in the control plane's network (`testbed exec`), where the addresses of Services are reached; the
//! processes of pods are seen from the machine, past Larder's and Kubernetes' own word.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::process::Command;

use crate::larder::Larder;
use crate::wait;

const IMAGE: &str = "localhost/larder-{engine}:testbed";
/// The name under which the cluster is bound.
pub const BOUND: &str = "east";
/// What a cluster instance needs that is spread strictly.
const STRICT_WORKERS: usize = 6;
/// What instances of stories have that do not say how much: many of them fit on the test bed.
pub(crate) const MEMORY: &str = "128MiB";
/// All that Larder makes for an instance.
const KINDS: &str = "statefulsets,pods,services,secrets,persistentvolumeclaims,\
    endpointslices.discovery.k8s.io,leases.coordination.k8s.io,serviceaccounts,\
    roles.rbac.authorization.k8s.io,rolebindings.rbac.authorization.k8s.io,\
    networkpolicies.networking.k8s.io,poddisruptionbudgets.policy";

/// The value of an environment variable that has to be set.
///
/// # Errors
/// It is not, or empty.
pub fn variable(name: &str) -> Result<String> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty());
    value.with_context(|| format!("{name} is not set: `make test-kubernetes` sets it"))
}

/// A command of the test bed.
///
/// # Errors
/// There is none.
pub fn bed(args: &[&str]) -> Result<Command> {
    let (mut command, options) = program()?;
    command.args(options).args(args);
    Ok(command)
}

/// The test bed's program, and the arguments that name the test bed.
fn program() -> Result<(Command, Vec<String>)> {
    let bed = variable("LARDER_TEST_BED")?;
    let mut words = bed.split_whitespace().map(str::to_owned);
    let mut command = Command::new(words.next().context("LARDER_TEST_BED is empty")?);
    command.stdin(Stdio::null()).kill_on_drop(true);
    Ok((command, words.collect()))
}

/// Has the test bed do something.
///
/// # Errors
/// It does not.
pub async fn bed_does(args: &[&str]) -> Result<()> {
    done(bed(args)?, args).await.map(drop)
}

/// The kubectl in the test bed's program; gives its standard output.
///
/// # Errors
/// Another exit code than 0, with what it said.
pub async fn kubectl(args: &[&str]) -> Result<String> {
    done(kubectl_command(args)?, args).await
}

/// As [`kubectl`], in one namespace.
///
/// # Errors
/// As [`kubectl`].
pub async fn kubectl_in(namespace: &str, args: &[&str]) -> Result<String> {
    kubectl(&[&["--namespace", namespace], args].concat()).await
}

/// As [`kubectl`], with what `--filename -` reads.
///
/// # Errors
/// As [`kubectl`].
pub async fn kubectl_with(args: &[&str], input: &str) -> Result<String> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(input.as_bytes())?;
    let mut command = kubectl_command(args)?;
    command.stdin(file.reopen()?);
    done(command, args).await
}

fn kubectl_command(args: &[&str]) -> Result<Command> {
    let (mut command, _) = program()?;
    command.args(["kubectl", "--kubeconfig", &variable("LARDER_TEST_KUBECONFIG")?]).args(args);
    Ok(command)
}

async fn done(mut command: Command, args: &[&str]) -> Result<String> {
    let output = command.output().await?;
    ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Binds the cluster as [`BOUND`], for instances in a namespace.
///
/// # Errors
/// The binding is refused.
pub async fn bind(larder: &Larder, namespace: &str) -> Result<()> {
    let image = variable("LARDER_TEST_IMAGE").unwrap_or_else(|_| IMAGE.to_owned());
    let kubeconfig = variable("LARDER_TEST_KUBECONFIG")?;
    let mut args = vec!["container-cluster", "bind", BOUND, "--kubeconfig", &kubeconfig];
    args.extend(["--namespace", namespace, "--image", &image, "--volume-size", "1GiB"]);
    larder.cli(&args).await.map(drop)
}

/// Cluster instances are spread strictly where there are workers enough for that; fewer do here.
///
/// # Errors
/// The bound cluster shows no workers for a minute.
pub async fn spread_over_few(larder: &Larder) -> Result<()> {
    let workers = wait::eventually("workers are shown", Duration::from_secs(60), async || {
        let workers = larder.json(&["container-cluster", "workers", BOUND]).await?;
        Ok(workers.as_array().map(Vec::len).filter(|count| *count > 0))
    })
    .await?;
    if workers < STRICT_WORKERS {
        larder.cli(&["container-cluster", "set", BOUND, "--spread", "preferred"]).await?;
    }
    Ok(())
}

/// A Larder of this machine with the cluster bound, for instances in a namespace.
///
/// # Errors
/// It does not start, or the binding is refused.
pub async fn bound(namespace: &str) -> Result<Larder> {
    let larder = Larder::started().await?;
    bind(&larder, namespace).await?;
    Ok(larder)
}

/// The namespace of one Larder's instances.
#[derive(Debug)]
pub struct Namespace(String);

impl Namespace {
    /// A new one, when stories are told of Kubernetes.
    pub(crate) fn wanted() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        (std::env::var("LARDER_TEST_STORIES").is_ok_and(|where_to| where_to == "kubernetes")).then(
            || {
                let number = NUMBER.fetch_add(1, Ordering::Relaxed);
                Self(format!("story-{}-{number}", std::process::id()))
            },
        )
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    pub(crate) async fn bind(&self, larder: &Larder) -> Result<()> {
        bind(larder, &self.0).await?;
        spread_over_few(larder).await
    }

    /// As [`kubectl`], in this namespace.
    ///
    /// # Errors
    /// As [`kubectl`].
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        kubectl_in(&self.0, args).await
    }

    /// Names of objects of a kind that belong to an instance.
    ///
    /// # Errors
    /// As [`kubectl`].
    pub async fn names(&self, kinds: &str) -> Result<Vec<String>> {
        let list = ["get", kinds, "--selector", "larder.io/instance", "--output", "name"];
        Ok(self.kubectl(&list).await?.lines().map(str::to_owned).collect())
    }

    /// Has the agents' logs written into `folder`, deletes every instance, and sees that nothing of
    /// them is left.
    pub(crate) async fn leave(&self, larder: &Larder, folder: &Path) -> Result<()> {
        for pod in self.names("pods").await? {
            let of_pod = folder.join(pod.trim_start_matches("pod/"));
            std::fs::create_dir_all(&of_pod)?;
            std::fs::write(of_pod.join("agent.log"), self.kubectl(&["logs", &pod]).await?)?;
            // There is one only when a container has ended.
            if let Ok(text) = self.kubectl(&["logs", "--previous", &pod]).await {
                std::fs::write(of_pod.join("agent.log.1"), text)?;
            }
        }
        let instances = larder.json(&["instance", "list"]).await?;
        for instance in instances.as_array().context("no array")? {
            let name = instance["name"].as_str().context("no name")?;
            larder.cli(&["instance", "delete", name, "--permanent", "--yes", "--wait"]).await?;
        }
        // Kubernetes collects what belongs to a deleted object in its own time.
        wait::eventually("nothing is left", Duration::from_secs(60), async || {
            let left = self.names(KINDS).await?;
            ensure!(left.is_empty(), "left are {left:?}");
            Ok(Some(()))
        })
        .await?;
        larder.cli(&["container-cluster", "unbind", BOUND]).await?;
        self.kubectl(&["delete", "namespace", &self.0, "--wait=false"]).await.map(drop)
    }

    /// For a test that failed.
    pub(crate) fn abandon(&self) -> Result<()> {
        let args = ["delete", "namespace", &self.0, "--wait=false", "--ignore-not-found"];
        let output = kubectl_command(&args)?.into_std().output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// The worker on which a node's pod runs.
    ///
    /// # Errors
    /// There is no such pod, or it has no worker yet.
    pub async fn worker_of(&self, node: &str) -> Result<String> {
        let pod = pod_of(node);
        let text = self.kubectl(&["get", "pod", &pod, "--output", "json"]).await?;
        let value: Value = serde_json::from_str(&text)?;
        let worker = value["spec"]["nodeName"].as_str();
        Ok(worker.with_context(|| format!("{pod} has no worker"))?.to_owned())
    }
}

/// The pod of a node, which is the only one of its StatefulSet.
pub fn pod_of(node: &str) -> String {
    format!("{node}-0")
}
