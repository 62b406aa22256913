//! What the stories on a real Kubernetes share: the one that `LARDER_TEST_KUBECONFIG` names, with
//! the image of `LARDER_TEST_IMAGE`. `LARDER_TEST_BED` is the command of its test bed (`testbed --dir
//! DIR`). `make test-kubernetes` sets them.

use anyhow::{Context, Result, ensure};
use larder_testkit::Larder;
use tokio::process::Command;

const IMAGE: &str = "localhost/larder-{engine}:testbed";

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
    let bed = variable("LARDER_TEST_BED")?;
    let mut words = bed.split_whitespace();
    let mut command = Command::new(words.next().context("LARDER_TEST_BED is empty")?);
    command.args(words).args(args).kill_on_drop(true);
    Ok(command)
}

/// Has the test bed do something.
///
/// # Errors
/// It does not.
pub async fn bed_does(args: &[&str]) -> Result<()> {
    let output = bed(args)?.output().await?;
    ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A Larder with the Kubernetes cluster bound as `east`, in a namespace of its own.
///
/// # Errors
/// It does not start, or the binding is refused.
pub async fn bound(namespace: &str) -> Result<Larder> {
    let larder = Larder::started().await?;
    let image = variable("LARDER_TEST_IMAGE").unwrap_or_else(|_| IMAGE.to_owned());
    let kubeconfig = variable("LARDER_TEST_KUBECONFIG")?;
    let mut args = vec!["container-cluster", "bind", "east", "--kubeconfig", &kubeconfig];
    args.extend(["--namespace", namespace, "--image", &image, "--volume-size", "1GiB"]);
    larder.cli(&args).await?;
    Ok(larder)
}
