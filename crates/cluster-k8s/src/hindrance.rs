//! Why a node does not come to be: what pods, claims and events say, in people's words.
//!
//! A pod that cannot be made at all has no status: only the events of its StatefulSet tell why (a
//! quota, an admission webhook), and only those of a claim and a pod why a volume does not come.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::ObjectMeta;
use larder_model::{Hindrance, HindranceKind, NodeId};

use crate::error::{is_admission, is_quota};
use crate::observe::{SELECTED_NODE, Seen, node_of};

/// Which revision of its StatefulSet a pod was made of (`controller-revision-hash`).
const LABEL_REVISION: &str = "controller-revision-hash";

/// What an event says, without the rest of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// UID of the object that it is about.
    uid: String,
    warning: bool,
    reason: String,
    message: String,
    /// Resource version: a repeated event is written again.
    at: u64,
}

pub(crate) fn told(event: Event) -> Told {
    let version = event.metadata.resource_version.as_deref();
    Told {
        uid: event.involved_object.uid.unwrap_or_default(),
        warning: event.type_.as_deref() == Some("Warning"),
        reason: event.reason.unwrap_or_default(),
        message: event.message.unwrap_or_default(),
        at: version.and_then(|text| text.parse().ok()).unwrap_or(0),
    }
}

/// The node that an event is of, by its name: that of the object that it is about, a point and a
/// number (client-go, `tools/record`). A node's objects have its name, its pod that and `-0`.
pub(crate) fn of_node(metadata: &ObjectMeta) -> String {
    let name = metadata.name.as_deref().unwrap_or_default();
    let about = name.split('.').next().unwrap_or_default();
    about.strip_suffix("-0").unwrap_or(about).to_owned()
}

impl Seen {
    /// What keeps nodes from coming to be. A node that is not in it has nothing in its way, as far
    /// as anybody says.
    pub(crate) fn hindrances(&self) -> BTreeMap<NodeId, Hindrance> {
        let all = self.node_ids().into_iter();
        all.filter_map(|id| self.hindrance(&id).map(|by| (id, by))).collect()
    }

    fn hindrance(&self, id: &NodeId) -> Option<Hindrance> {
        let is_of = |metadata: &ObjectMeta| node_of(metadata).as_ref() == Some(id);
        let claim = self.claims.iter().find(|o| is_of(&o.metadata)).map(|claim| &**claim);
        let pod = self.pods.iter().find(|o| is_of(&o.metadata));
        if claim.is_some_and(|claim| claim.metadata.deletion_timestamp.is_some()) {
            // It is there for as long as the pod that uses it (`kubernetes.io/pvc-protection`).
            let text = "has a volume that is being deleted";
            return pod.map(|_| Hindrance::new(HindranceKind::VolumeLeaving, text));
        }
        match pod {
            // One that ends is followed by another one.
            Some(pod) if pod.metadata.deletion_timestamp.is_some() => None,
            Some(pod) => in_container(pod).or_else(|| self.before_container(id, pod, claim)),
            None => {
                let set = self.sets.iter().find(|o| is_of(&o.metadata))?;
                let newest =
                    self.newest(id, &set.metadata, |told| told.reason.ends_with("Create"))?;
                (newest.reason == "FailedCreate").then(|| not_made(&newest.message))
            }
        }
    }

    /// The pod is there, and none of its containers.
    fn before_container(
        &self,
        id: &NodeId,
        pod: &Pod,
        claim: Option<&PersistentVolumeClaim>,
    ) -> Option<Hindrance> {
        if pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_none()) {
            return self.without_worker(id, pod, claim);
        }
        let waits = (container_waits(pod)).is_some_and(|(why, _)| why == "ContainerCreating");
        // The last three say that what was in the way is over (attach-detach controller, kubelet
        // `events/event.go`). Others are no reason, and do not hide one. "failed to sync": the kubelet
        // has not heard of a ConfigMap or Secret of a new pod, and has in a moment.
        let is_cause = |told: &Told| {
            [
                "FailedAttachVolume",
                "FailedMount",
                "FailedCreatePodSandBox",
                "SuccessfulAttachVolume",
                "Pulling",
                "Pulled",
            ]
            .contains(&told.reason.as_str())
                && !told.message.contains("failed to sync")
        };
        let newest = self.newest(id, &pod.metadata, is_cause).filter(|_| waits)?;
        let message = line(&newest.message);
        match newest.reason.as_str() {
            "FailedAttachVolume" => Some(Hindrance::new(
                HindranceKind::VolumeUnbound,
                format!("waits for its volume: {message}"),
            )),
            "FailedMount" | "FailedCreatePodSandBox" => Some(Hindrance::new(
                HindranceKind::ContainerNotCreated,
                format!("cannot start its container: {message}"),
            )),
            _ => None,
        }
    }

    fn without_worker(
        &self,
        id: &NodeId,
        pod: &Pod,
        claim: Option<&PersistentVolumeClaim>,
    ) -> Option<Hindrance> {
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        let scheduler = (conditions.into_iter().flatten())
            .find(|c| c.type_ == "PodScheduled" && c.status == "False")
            .and_then(|c| c.message.as_deref());
        let pending = claim.filter(|claim| {
            claim.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Bound")
        });
        if let Some(claim) = pending {
            // Bound only with a worker in mind: without a worker the volume is not what is missing.
            let its_turn = claim.annotations().contains_key(SELECTED_NODE)
                || scheduler.is_none_or(|text| text.to_lowercase().contains("volume"));
            if its_turn {
                let said = self.newest(id, &claim.metadata, |told| told.warning);
                let said = said.or_else(|| self.newest(id, &claim.metadata, |_| true));
                let class = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
                let class = class.map_or(String::new(), |class| format!(" of class {class}"));
                let why = said.map(|told| line(&told.message)).or(scheduler.map(line));
                let why = why.map_or(String::new(), |why| format!(": {why}"));
                let message = format!("waits for its volume{class}{why}");
                return Some(Hindrance::new(HindranceKind::VolumeUnbound, message));
            }
        }
        let said = line(scheduler?);
        let message = format!("has no worker that takes it: {said}");
        Some(Hindrance::new(HindranceKind::Unschedulable, message))
    }

    /// The newest event about the object that `is_asked_for`.
    fn newest(
        &self,
        id: &NodeId,
        about: &ObjectMeta,
        is_asked_for: impl Fn(&Told) -> bool,
    ) -> Option<&Told> {
        let uid = about.uid.as_deref()?;
        let all = self.told.get(id).into_iter().flatten().map(|told| &**told);
        all.filter(|told| told.uid == uid && is_asked_for(told)).max_by_key(|told| told.at)
    }
}

/// The pod was made for what its StatefulSet asked for before, and cannot start so. It has never run.
/// False while the StatefulSet's controller has not looked at what it asks for now.
pub(crate) fn waits_for_other_settings(set: &StatefulSet, pod: &Pod) -> bool {
    let Some(status) = &set.status else { return false };
    let (Some(wanted), Some(has)) = (&status.update_revision, pod.labels().get(LABEL_REVISION))
    else {
        return false;
    };
    let is_seen = status.observed_generation.is_some()
        && status.observed_generation == set.metadata.generation;
    let is_nowhere = pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_none());
    is_seen
        && wanted != has
        && pod.metadata.deletion_timestamp.is_none()
        && never_ran(pod)
        && (is_nowhere || in_container(pod).is_some())
}

/// No container of it has ever been there.
fn never_ran(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    containers.into_iter().flatten().all(|container| {
        container.restart_count == 0
            && container.last_state.as_ref().is_none_or(|last| last.terminated.is_none())
            && container.state.as_ref().is_some_and(|now| now.waiting.is_some())
    })
}

/// Why the pod's container waits, and in whose words.
fn container_waits(pod: &Pod) -> Option<(&str, &str)> {
    let status = pod.status.as_ref()?;
    let containers = status.container_statuses.iter().flatten();
    let waiting = containers.filter_map(|c| c.state.as_ref()?.waiting.as_ref()).next()?;
    Some((waiting.reason.as_deref()?, waiting.message.as_deref().unwrap_or_default()))
}

/// What the kubelet says of the pod's container (kubelet, `images/types.go` and
/// `container/sync_result.go`).
fn in_container(pod: &Pod) -> Option<Hindrance> {
    let (reason, message) = container_waits(pod)?;
    let image = || {
        let container = pod.spec.as_ref().and_then(|spec| spec.containers.first());
        container.and_then(|container| container.image.clone()).unwrap_or_default()
    };
    match reason {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "ImageInspectError"
        | "RegistryUnavailable"
        | "SignatureValidationFailed" => {
            let why = pull_error(message);
            let why = if why.is_empty() { String::new() } else { format!(": {why}") };
            Some(Hindrance::new(
                HindranceKind::ImageMissing,
                format!("waits for its image {}{why}", image()),
            ))
        }
        "CreateContainerConfigError"
        | "CreateContainerError"
        | "RunContainerError"
        | "PreCreateHookError"
        | "PreStartHookError"
        | "PostStartHookError" => {
            let message = format!("cannot start its container: {}", line(message));
            Some(Hindrance::new(HindranceKind::ContainerNotCreated, message))
        }
        "CrashLoopBackOff" => {
            let ended = (pod.status.as_ref())
                .and_then(|status| status.container_statuses.as_ref()?.first())
                .and_then(|container| container.last_state.as_ref()?.terminated.as_ref());
            let how = ended.map_or(String::new(), |ended| {
                let reason = ended.reason.as_deref().unwrap_or("Error");
                format!(": {reason}, exit code {}", ended.exit_code)
            });
            let message = format!("has a container that ends again and again{how}");
            Some(Hindrance::new(HindranceKind::ContainerCrashes, message))
        }
        _ => None,
    }
}

/// The cause in what the kubelet says of a pull: the same while it tries and while it pauses.
fn pull_error(message: &str) -> String {
    let mut text = match message.split_once("ErrImagePull: ") {
        Some((_, cause)) => cause,
        // It pauses, and does not say why (Kubernetes before 1.31).
        None if message.starts_with("Back-off pulling image") => "",
        None => message,
    };
    if let Some((_, cause)) = text.split_once(" desc = ") {
        text = cause;
    }
    for prefix in ["failed to pull and unpack image ", "failed to resolve reference "] {
        if let Some((_, cause)) = text.strip_prefix(prefix).and_then(|rest| rest.split_once(": ")) {
            text = cause;
        }
    }
    line(text)
}

/// The StatefulSet's controller has tried (kube-controller-manager, `stateful_pod_control.go`):
/// "create Pod n-1-0 in StatefulSet n-1 failed error: pods …".
fn not_made(message: &str) -> Hindrance {
    let said = message.split_once(" failed error: ").map_or(message, |(_, cause)| cause);
    let kind = if is_quota(said) {
        HindranceKind::QuotaExceeded
    } else if is_admission(said) {
        HindranceKind::AdmissionDenied
    } else {
        HindranceKind::Refused
    };
    Hindrance::new(kind, format!("has no pod, because none can be made: {}", line(said)))
}

/// One line of bearable length.
fn line(text: &str) -> String {
    const LONGEST: usize = 400;
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::apps::v1::StatefulSet;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;

    fn id() -> NodeId {
        NodeId::new("n-1").expect("valid")
    }

    fn object<K: DeserializeOwned>(name: &str, rest: Value) -> Arc<K> {
        let mut object = json!({
            "metadata": {
                "name": name, "uid": format!("uid-{name}"), "labels": { "larder.io/node": "n-1" },
            },
        });
        for (key, value) in rest.as_object().expect("an object") {
            match key.as_str() {
                "metadata" => {
                    for (key, value) in value.as_object().expect("an object") {
                        object["metadata"][key] = value.clone();
                    }
                }
                _ => object[key] = value.clone(),
            }
        }
        Arc::new(serde_json::from_value(object).expect("an object"))
    }

    fn with_pod(status: Value, worker: Option<&str>) -> Seen {
        let image = "registry.example/larder-redis-7.0:1";
        let spec =
            json!({ "nodeName": worker, "containers": [{ "name": "node", "image": image }] });
        let pod = object("n-1-0", json!({ "spec": spec, "status": status }));
        let set: Arc<StatefulSet> = object("n-1", json!({}));
        Seen { pods: vec![pod], sets: vec![set], ..Seen::default() }
    }

    fn waiting(reason: &str, message: &str) -> Seen {
        let state = json!({ "waiting": { "reason": reason, "message": message } });
        let container = json!({
            "name": "node", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": state,
        });
        with_pod(json!({ "phase": "Pending", "containerStatuses": [container] }), Some("w1"))
    }

    fn event(seen: &mut Seen, about: &str, kind: &str, reason: &str, message: &str) {
        let all = seen.told.entry(id()).or_default();
        let uid = format!("uid-{about}");
        let at = all.len() as u64;
        let (reason, message) = (reason.to_owned(), message.to_owned());
        all.push(Arc::new(Told { uid, warning: kind == "Warning", reason, message, at }));
    }

    fn by(seen: &Seen) -> (HindranceKind, String) {
        let by = seen.hindrances().remove(&id()).expect("hindered");
        (by.kind, by.message)
    }

    #[test]
    fn a_missing_image_is_said_in_the_same_words_while_the_kubelet_tries_and_pauses() {
        let cause = "failed to pull and unpack image \"r/x:1\": failed to resolve reference \
                     \"r/x:1\": r/x:1: not found";
        let tries =
            by(&waiting("ErrImagePull", &format!("rpc error: code = NotFound desc = {cause}")));
        let pauses = by(&waiting(
            "ImagePullBackOff",
            &format!(
                "Back-off pulling image \"r/x:1\": ErrImagePull: rpc error: code = NotFound desc = \
                 {cause}"
            ),
        ));
        assert_eq!(tries, pauses);
        assert_eq!(tries.0, HindranceKind::ImageMissing);
        assert_eq!(
            tries.1,
            "waits for its image registry.example/larder-redis-7.0:1: r/x:1: not found"
        );
        let invalid = by(&waiting("InvalidImageName", "couldn't parse image name \"UP CASE\""));
        assert_eq!(invalid.0, HindranceKind::ImageMissing);
    }

    #[test]
    fn only_a_pod_of_other_settings_that_never_ran_is_left() {
        let set = |revision: &str, observed: i64| -> StatefulSet {
            serde_json::from_value(json!({
                "metadata": { "name": "n-1", "generation": 2 },
                "status": {
                    "replicas": 1, "observedGeneration": observed, "updateRevision": revision,
                },
            }))
            .expect("a StatefulSet")
        };
        let pod = |container: Value, worker: Option<&str>| -> Pod {
            serde_json::from_value(json!({
                "metadata": { "name": "n-1-0", "labels": { LABEL_REVISION: "old" } },
                "spec": { "nodeName": worker, "containers": [] },
                "status": { "containerStatuses": container },
            }))
            .expect("a Pod")
        };
        let waits = |reason: &str, restarts: u32| {
            json!([{
                "name": "node", "image": "", "imageID": "", "ready": false,
                "restartCount": restarts, "state": { "waiting": { "reason": reason } },
            }])
        };
        let left = waits_for_other_settings;
        let no_image = pod(waits("ImagePullBackOff", 0), Some("w1"));
        assert!(left(&set("new", 2), &no_image));
        assert!(!left(&set("old", 2), &no_image), "it is what is asked for");
        assert!(!left(&set("new", 1), &no_image), "the controller has not looked yet");
        assert!(!left(&set("new", 2), &pod(waits("ImagePullBackOff", 1), Some("w1"))), "it ran");
        assert!(!left(&set("new", 2), &pod(waits("ContainerCreating", 0), Some("w1"))), "it comes");
        assert!(left(&set("new", 2), &pod(json!([]), None)), "no worker takes it");
    }

    #[test]
    fn a_container_that_cannot_be_made_or_crashes_is_told_apart_from_one_that_comes() {
        let error = by(&waiting("CreateContainerConfigError", "secret \"n-1\" not found"));
        assert_eq!(error.0, HindranceKind::ContainerNotCreated);
        assert!(error.1.contains("secret \"n-1\" not found"));
        assert_eq!(by(&waiting("CrashLoopBackOff", "")).0, HindranceKind::ContainerCrashes);
        let mut comes = waiting("ContainerCreating", "");
        assert!(comes.hindrances().is_empty());
        event(&mut comes, "n-1-0", "Normal", "Pulling", "pulling");
        assert!(comes.hindrances().is_empty());
        event(&mut comes, "n-1-0", "Warning", "FailedMount", "failed to sync secret cache");
        assert!(comes.hindrances().is_empty());
        event(&mut comes, "n-1-0", "Warning", "FailedMount", "secret \"n-1\" not found");
        assert_eq!(by(&comes).0, HindranceKind::ContainerNotCreated);
    }

    #[test]
    fn what_was_in_the_way_of_a_mount_and_is_over_is_not_shown() {
        let mut seen = waiting("ContainerCreating", "");
        event(&mut seen, "n-1-0", "Warning", "FailedAttachVolume", "timed out");
        assert_eq!(by(&seen).0, HindranceKind::VolumeUnbound);
        event(&mut seen, "n-1-0", "Normal", "SuccessfulAttachVolume", "attached");
        assert!(seen.hindrances().is_empty());
        for over in ["Pulling", "Pulled"] {
            event(&mut seen, "n-1-0", "Warning", "FailedMount", "secret \"n-1\" not found");
            assert_eq!(by(&seen).0, HindranceKind::ContainerNotCreated);
            event(&mut seen, "n-1-0", "Normal", over, "image");
            assert!(seen.hindrances().is_empty(), "{over}");
        }
    }

    #[test]
    fn a_pod_that_cannot_be_made_is_known_by_its_statefulsets_events() {
        let mut seen = with_pod(json!({}), None);
        seen.pods.clear();
        assert!(seen.hindrances().is_empty(), "nobody says anything");
        let quota = "create Pod n-1-0 in StatefulSet n-1 failed error: pods \"n-1-0\" is forbidden: \
                     exceeded quota: small, requested: pods=1, used: pods=2, limited: pods=2";
        event(&mut seen, "n-1", "Warning", "FailedCreate", quota);
        let (kind, message) = by(&seen);
        assert_eq!(kind, HindranceKind::QuotaExceeded);
        assert!(message.starts_with("has no pod") && message.contains("exceeded quota: small"));
        let denied = "create Pod n-1-0 in StatefulSet n-1 failed error: admission webhook \
                      \"no.example\" denied the request: never";
        event(&mut seen, "n-1", "Warning", "FailedCreate", denied);
        assert_eq!(by(&seen).0, HindranceKind::AdmissionDenied);
        event(&mut seen, "n-1", "Normal", "SuccessfulCreate", "create Pod n-1-0 successful");
        assert!(seen.hindrances().is_empty(), "it was made since");
        event(&mut seen, "another", "Warning", "FailedCreate", denied);
        assert!(seen.hindrances().is_empty(), "of a StatefulSet of that name that is no more");
    }

    #[test]
    fn a_pod_without_a_worker_waits_for_room_or_for_its_volume() {
        let scheduled = |message: &str| {
            let condition = json!({
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": message,
            });
            with_pod(json!({ "phase": "Pending", "conditions": [condition] }), None)
        };
        let claim = |annotations: Value| {
            let spec = json!({ "storageClassName": "slow" });
            let metadata = json!({ "annotations": annotations });
            object(
                "n-1",
                json!({ "metadata": metadata, "spec": spec,
                "status": { "phase": "Pending" } }),
            )
        };
        let mut seen = scheduled("0/3 nodes are available: 3 Insufficient memory.");
        seen.claims = vec![claim(json!({}))];
        let (kind, message) = by(&seen);
        assert_eq!(kind, HindranceKind::Unschedulable, "it is bound with its worker");
        assert!(message.contains("Insufficient memory"));
        let mut seen = scheduled(
            "0/3 nodes are available: pod has unbound immediate \
                                  PersistentVolumeClaims.",
        );
        seen.claims = vec![claim(json!({}))];
        event(&mut seen, "n-1", "Warning", "ProvisioningFailed", "class \"slow\" not found");
        let (kind, message) = by(&seen);
        assert_eq!(kind, HindranceKind::VolumeUnbound);
        assert_eq!(message, "waits for its volume of class slow: class \"slow\" not found");
        // The scheduler has decided and waits for the provisioner, without a word.
        let mut seen = with_pod(json!({ "phase": "Pending" }), None);
        seen.claims = vec![claim(json!({ SELECTED_NODE: "w1" }))];
        assert_eq!(by(&seen).0, HindranceKind::VolumeUnbound);
        let seen = with_pod(json!({ "phase": "Pending" }), None);
        assert!(seen.hindrances().is_empty(), "made a moment ago");
    }

    #[test]
    fn a_volume_that_goes_with_its_pod_is_said_to() {
        let mut seen = with_pod(json!({ "phase": "Running" }), Some("w1"));
        let at = "2026-01-01T00:00:00Z";
        seen.claims = vec![object("n-1", json!({ "metadata": { "deletionTimestamp": at } }))];
        assert_eq!(by(&seen).0, HindranceKind::VolumeLeaving);
        seen.pods.clear();
        assert!(seen.hindrances().is_empty(), "it is about to be made anew");
    }

    #[test]
    fn events_are_found_by_the_node_that_they_are_of() {
        let of = |name: &str| {
            of_node(&ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() })
        };
        assert_eq!(of("n-1.17f3a"), "n-1");
        assert_eq!(of("n-1-0.17f3a"), "n-1");
        assert_eq!(of("i-shop-write.17f3a"), "i-shop-write");
    }
}
