//! Credentials of a binding that are withdrawn: what cannot be seen is unknown, and nothing else.

use anyhow::{Result, ensure};
use larder_testkit::kubernetes::variable;
use serde_json::json;

use super::*;

/// `packaging/kubernetes/bind.yaml` for a namespace of this story.
fn manifest(namespace: &str) -> Result<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/kubernetes/bind.yaml");
    let text = std::fs::read_to_string(path)?;
    let is_namespace = |document: &str| document.contains("kind: Namespace\n");
    let documents: Vec<String> = text
        .split("---\n")
        .map(|document| {
            let placed =
                document.replace("namespace: larder\n", &format!("namespace: {namespace}\n"));
            if is_namespace(document) {
                return placed.replace("name: larder\n", &format!("name: {namespace}\n"));
            }
            placed
        })
        .collect();
    Ok(documents.join("---\n"))
}

/// A kubeconfig of the service account, as docs/kubernetes.md makes one.
async fn kubeconfig(namespace: &str) -> Result<String> {
    let of_secret = async |what: &str| {
        let args = ["get", "secret", "larder-token", "-o", what];
        let text = eventually("the service account has a token", MINUTE, async || {
            let text = kubectl_in(namespace, &args).await?;
            Ok((!text.is_empty()).then_some(text))
        })
        .await?;
        Ok::<_, anyhow::Error>(text)
    };
    let token = of_secret("go-template={{with .data.token}}{{base64decode .}}{{end}}").await?;
    let authority = of_secret("jsonpath={.data.ca\\.crt}").await?;
    let server = ["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"];
    let server = kubectl(&server).await?;
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "larder",
        "clusters": [{ "name": "larder", "cluster": {
            "server": server, "certificate-authority-data": authority,
        } }],
        "users": [{ "name": "larder", "user": { "token": token } }],
        "contexts": [{ "name": "larder", "context": { "cluster": "larder", "user": "larder" } }],
    });
    Ok(config.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn withdrawn_rights_and_a_revoked_token_disturb_nothing_and_rebinding_heals() -> Result<()> {
    let namespace = "story-rights";
    let rights = manifest(namespace)?;
    apply(&rights).await?;
    let larder = Larder::started().await?;
    larder.expect_faults();
    larder.expect_log("strays cannot be swept");
    larder.expect_log("what nodes share cannot be listed");
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("kubeconfig");
    let file = file.to_str().context("a path that is no text")?;
    let image = variable("LARDER_TEST_IMAGE")?;
    std::fs::write(file, kubeconfig(namespace).await?)?;
    let bind = ["container-cluster", "bind", "east", "--kubeconfig", file];
    let options = ["--namespace", namespace, "--image", &image, "--volume-size", "1GiB"];
    let bind: Vec<&str> = bind.into_iter().chain(options).collect();
    larder.cli(&bind).await?;
    let shop = larder.create("shop", &READ_WRITE).await?;
    put(&shop, "kept").await?;
    let before = claims(namespace, &shop).await?;
    let kind = "container-cluster-unreachable";

    kubectl_in(namespace, &["delete", "rolebinding", "larder"]).await?;
    let parts = ["403", "forbidden", "rebind"];
    let seen = is_told(&larder, "shop", kind, "no-answer", &parts).await?;
    ensure!(seen.state == "degraded" && seen.nodes.len() == 2, "{seen:?}");
    check_data(&shop, "kept", MINUTE).await?;
    apply(&rights).await?;
    is_over(&larder, "shop", kind).await?;

    kubectl_in(namespace, &["delete", "secret", "larder-token"]).await?;
    let parts = ["401", "Unauthorized", "rebind"];
    is_told(&larder, "shop", kind, "no-answer", &parts).await?;
    let plan = larder.json(&["instance", "plan", "shop"]).await?;
    ensure!(plan["steps"].as_array().is_some_and(Vec::is_empty), "{plan}");
    check_data(&shop, "kept", MINUTE).await?;
    apply(&rights).await?;
    std::fs::write(file, kubeconfig(namespace).await?)?;
    larder.cli(&["container-cluster", "rebind", "east", "--kubeconfig", file]).await?;
    let now = is_over(&larder, "shop", kind).await?;
    ensure!(now.primary(0)?.id == shop.primary(0)?.id, "somebody else leads: {now:?}");
    ensure!(claims(namespace, &shop).await? == before, "there are other volumes");
    let reasons = larder.event_reasons("shop").await?;
    ensure!(reasons.iter().any(|r| r == "container-cluster-reachable"), "{reasons:?}");
    larder.cli(&["instance", "delete", "shop", "--permanent", "--yes", "--wait"]).await?;
    larder.cli(&["container-cluster", "unbind", "east"]).await?;
    take_away(&rights).await?;
    larder.finish().await
}
