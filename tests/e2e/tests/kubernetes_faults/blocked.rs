//! Nodes that Kubernetes cannot make, or start: the reason reaches the instance, with Kubernetes' own
//! words, and when it has gone the instance goes on by itself.

use anyhow::{Result, ensure};
use larder_testkit::kubernetes::variable;

use super::*;

const SMALL: &str = r#"
apiVersion: v1
kind: ResourceQuota
metadata: { name: small }
spec: { hard: { pods: "1", persistentvolumeclaims: "2" } }
"#;

/// A rule of the namespace `story-rule` alone.
const NO_PODS: &str = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: { name: story-no-pods }
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules: [{ apiGroups: [""], apiVersions: ["v1"], operations: [CREATE], resources: [pods] }]
  validations: [{ expression: "false", message: "house rule: no pods" }]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: { name: story-no-pods }
spec:
  policyName: story-no-pods
  validationActions: [Deny]
  matchResources: { namespaceSelector: { matchLabels: { kubernetes.io/metadata.name: story-rule } } }
"#;

/// A pod that every other rule lets through.
const PROBE: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: probe }
spec:
  securityContext: { runAsNonRoot: true, runAsUser: 65532, seccompProfile: { type: RuntimeDefault } }
  containers:
    - name: probe
      image: none
      securityContext: { allowPrivilegeEscalation: false, capabilities: { drop: [ALL] } }
"#;

/// A class that nobody makes volumes of.
const NEVER: &str = r#"
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: { name: story-never }
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: Immediate
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_image_is_said_and_another_one_heals_it() -> Result<()> {
    let larder = story("story-image").await?;
    let kubeconfig = variable("LARDER_TEST_KUBECONFIG")?;
    let image = variable("LARDER_TEST_IMAGE")?;
    let rebind = async |image: &str| {
        let args = ["container-cluster", "rebind", "east", "--kubeconfig", &kubeconfig];
        let args: Vec<&str> = args.into_iter().chain(["--image", image]).collect();
        larder.cli(&args).await
    };
    rebind("registry.testbed/nobody-has-{engine}:1").await?;
    ask_for(&larder, "pic", &STANDALONE).await?;
    let parts = ["registry.testbed/nobody-has-redis-7.0:1", "not found", "rebind"];
    let seen = is_told(&larder, "pic", "node-blocked", "image-missing", &parts).await?;
    ensure!(seen.state == "creating", "{seen:?}");
    // The operation says what it waits for, too.
    let operations = larder.json(&["operation", "list"]).await?;
    let waiting = operations.as_array().context("no array")?.iter().any(|operation| {
        operation["state"] == "waiting"
            && operation["steps"].to_string().contains("nobody-has-redis-7.0")
    });
    ensure!(waiting, "no operation says that it waits for the image: {operations}");
    rebind("UPPER CASE/{engine}").await?;
    is_told(&larder, "pic", "node-blocked", "image-missing", &["UPPER CASE/redis-7.0"]).await?;
    rebind(&image).await?;
    let running = is_over(&larder, "pic", "node-blocked").await?;
    put(&running, "1").await?;
    end(larder, "story-image", &["pic"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_is_said_in_its_own_words_and_its_end_is_noticed() -> Result<()> {
    let larder = story("story-quota").await?;
    let shop = larder.create("shop", &READ_WRITE).await?;
    put(&shop, "kept").await?;
    let before = claims("story-quota", &shop).await?;
    kubectl_with(&["--namespace", "story-quota", "apply", "-f", "-"], SMALL).await?;
    let replica = shop.replicas(0).first().context("no replica")?.id.clone();
    let pod = pod_of(&replica);
    kubectl_in("story-quota", &["delete", "pod", &pod, "--grace-period=0", "--force"]).await?;
    let parts = [replica.as_str(), "exceeded quota: small", "raise the quota"];
    let seen = is_told(&larder, "shop", "node-blocked", "quota-exceeded", &parts).await?;
    ensure!(seen.state == "degraded", "{seen:?}");
    check_data(&shop, "kept", MINUTE).await?;

    // What a quota refuses at once is no wish to wait for.
    ask_for(&larder, "more", &STANDALONE).await?;
    let failed = larder.wait_state("more", "failed", MINUTE).await?;
    let events = larder.json(&["event", "list", "--instance", "more"]).await?.to_string();
    ensure!(events.contains("exceeded quota: small"), "{failed:?}: {events}");

    kubectl_in("story-quota", &["delete", "resourcequota", "small"]).await?;
    is_over(&larder, "shop", "node-blocked").await?;
    check_data(&shop, "kept", MINUTE).await?;
    ensure!(claims("story-quota", &shop).await? == before, "there are other volumes");
    end(larder, "story-quota", &["shop", "more"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admission_rule_is_said_in_its_own_words() -> Result<()> {
    let larder = story("story-rule").await?;
    apply(NO_PODS).await?;
    let told = async {
        // The API server takes a moment to know of a rule.
        eventually("the rule holds", MINUTE, async || {
            let args = ["--namespace", "story-rule", "apply", "--dry-run=server", "-f", "-"];
            let said = kubectl_with(&args, PROBE).await.err().map(|error| error.to_string());
            Ok(said.filter(|text| text.contains("house rule")))
        })
        .await?;
        ask_for(&larder, "ruled", &STANDALONE).await?;
        let parts = ["house rule: no pods", "change the admission rule"];
        is_told(&larder, "ruled", "node-blocked", "admission-denied", &parts).await
    }
    .await;
    take_away(NO_PODS).await?;
    told?;
    is_over(&larder, "ruled", "node-blocked").await?;
    end(larder, "story-rule", &["ruled"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_never_comes_is_said_and_the_creation_can_be_given_up() -> Result<()> {
    apply(NEVER).await?;
    let larder = story("story-volume").await?;
    let args: Vec<&str> =
        STANDALONE.iter().copied().chain(["--storage-class", "story-never"]).collect();
    ask_for(&larder, "slow", &args).await?;
    let parts = ["story-never", "look at the storage class"];
    let told = is_told(&larder, "slow", "node-blocked", "volume-unbound", &parts).await;
    take_away(NEVER).await?;
    told?;
    end(larder, "story-volume", &["slow"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_no_worker_takes_says_so() -> Result<()> {
    let larder = story("story-room").await?;
    // What does not fit anywhere is not begun.
    let mut args = vec!["instance", "create", "huge", "--engine", "redis-7.0", "--password-stdin"];
    args.extend(["--architecture", "standalone", "--memory", "30GiB"]);
    args.extend(["--container-cluster", "east"]);
    let refused = larder.cli_with_input(&args, &format!("{PASSWORD}\n")).await?;
    ensure!(refused.code == 1 && refused.stderr.contains("capacity-exceeded"), "{refused:?}");

    let shop = larder.create("shop", &STANDALONE).await?;
    put(&shop, "kept").await?;
    let node = shop.primary(0)?.id.clone();
    let workers = kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"]).await?;
    for worker in workers.split_whitespace() {
        kubectl(&["cordon", worker]).await?;
    }
    let told = async {
        kubectl_in("story-room", &["delete", "pod", &pod_of(&node), "--wait=false"]).await?;
        let parts = [node.as_str(), "no worker", "unschedulable", "add a worker"];
        is_told(&larder, "shop", "node-blocked", "unschedulable", &parts).await
    }
    .await;
    for worker in workers.split_whitespace() {
        kubectl(&["uncordon", worker]).await?;
    }
    let seen = told?;
    ensure!(seen.state == "unavailable", "{seen:?}");
    is_over(&larder, "shop", "node-blocked").await?;
    check_data(&shop, "kept", MINUTE).await?;
    end(larder, "story-room", &["shop"]).await
}
