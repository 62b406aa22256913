//! What nodes share, as it is listed, deleted, withdrawn and refused.

use hyper::{Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use larder_model::kube::LABEL_NODE;
use serde_json::json;

use super::*;
use crate::options::KubeOptions;

fn id(text: &str) -> InstanceId {
    InstanceId::new(text).expect("valid")
}

fn set(leased: bool) -> StatefulSet {
    let labels = json!({ LABEL_INSTANCE: "i-1", LABEL_SHARD: "0", LABEL_NODE: "n-1" });
    serde_json::from_value(json!({
        "metadata": { "name": "n-1", "labels": labels },
        "spec": {
            "serviceName": "n-1",
            "selector": {},
            "template": { "spec": { "automountServiceAccountToken": leased, "containers": [] } },
        },
    }))
    .expect("a StatefulSet")
}

fn pods(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn all() -> Parts {
    let name = instance_name(&id("i-1"));
    let named = ALWAYS.into_iter().chain(LEASED).map(|kind| (kind, name.clone()));
    let mut parts = Parts::default();
    for (kind, name) in named.chain([(BUDGET, format!("{name}-s0"))]) {
        let pods = if kind == ROLE { pods(&["n-1-0"]) } else { BTreeSet::new() };
        parts.0.entry(kind).or_default().insert(name, pods);
    }
    parts
}

#[test]
fn a_node_is_whole_with_everything_that_it_shares() {
    assert!(is_whole(&set(true), &all()));
    for kind in all().0.into_keys() {
        let mut there = all();
        there.0.insert(kind, Named::new());
        assert!(!is_whole(&set(true), &there), "without {kind}");
        assert_eq!(is_whole(&set(false), &there), LEASED.contains(&kind), "without {kind}");
        there.0.remove(kind);
        assert!(is_whole(&set(true), &there), "{kind} is unknown, and unknown is not absent");
    }
    assert!(is_whole(&set(true), &Parts::default()));
}

/// Its peers have to learn its address when they lead.
#[test]
fn a_node_whose_pod_agents_may_not_look_at_is_not_whole() {
    let mut there = all();
    there.0.insert(ROLE, Named::from([("i-1".to_owned(), pods(&["n-2-0"]))]));
    assert!(!is_whole(&set(true), &there));
    assert!(is_whole(&set(false), &there));
}

#[test]
fn what_is_made_while_a_list_is_under_way_is_there() {
    let shared = Shared::default();
    let one = |name: &str| Named::from([(name.to_owned(), BTreeSet::new())]);
    let object = json!({});
    shared.begins();
    for kind in LEASED {
        assert!(shared.listed(kind, Named::new()).is_empty());
    }
    shared.wrote("Lease", "i-1", Some(&object));
    shared.wrote("Secret", "n-1", Some(&object));
    assert!(!shared.known().lacks("Lease", "i-1"));
    shared.begins();
    shared.wrote("Role", "i-1", Some(&object));
    shared.wrote("RoleBinding", "i-1", None);
    // As it was before these writes, and without the lease.
    assert!(shared.listed("RoleBinding", one("i-1")).is_empty());
    assert!(shared.listed("Role", Named::new()).is_empty());
    assert_eq!(shared.listed("Lease", Named::new()), [("Lease", "i-1".to_owned())]);
    let known = shared.known();
    assert!(!known.lacks("Role", "i-1"));
    assert!(known.lacks("RoleBinding", "i-1") && known.lacks("Lease", "i-1"));
}

#[test]
fn a_pod_that_somebody_takes_out_of_a_role_is_gone_and_one_that_larder_takes_out_is_not() {
    let shared = Shared::default();
    let role = |names: &[&str]| {
        let rule = json!({ "apiGroups": [""], "resources": ["pods"], "resourceNames": names,
            "verbs": ["get"] });
        json!({ "rules": [rule] })
    };
    let found = |names: &[&str]| Named::from([("i-1".to_owned(), pods(names))]);
    shared.begins();
    assert!(shared.listed(ROLE, found(&["n-1-0", "n-2-0"])).is_empty());
    shared.wrote(ROLE, "i-1", Some(&role(&["n-1-0"])));
    assert!(shared.known().withholds("i-1", "n-2-0"));
    shared.begins();
    assert!(shared.listed(ROLE, found(&["n-1-0"])).is_empty());
    shared.begins();
    assert_eq!(shared.listed(ROLE, found(&[])), [(ROLE, "i-1".to_owned())]);
}

#[test]
fn the_instances_of_what_is_gone_are_told() {
    let instances = BTreeSet::from(["i-1".to_owned(), "i-10".to_owned(), "i-2".to_owned()]);
    let name = |text: &str| instance_name(&id(text));
    let gone = [("Lease", name("i-2")), (BUDGET, format!("{}-s0", name("i-1")))];
    let told = of_which(&gone, instances);
    assert_eq!(told.iter().map(InstanceId::as_str).collect::<Vec<_>>(), ["i-1", "i-2"]);
}

/// Else one that misses its lease for a lasting reason makes all others wait.
#[tokio::test]
async fn who_begins_to_miss_something_does_not_wait_for_who_misses_it_for_long() {
    let shared = Shared::default();
    let mut pause = SOON;
    for _ in 0..5 {
        pause = next_pause(pause, Why::Missed);
    }
    assert_eq!(pause, EVERY, "it is looked less and less often");
    shared.is_missed(&id("i-1"));
    assert_eq!(shared.waits(EVERY).await, Why::NewlyMissed);
    let begin = Instant::now();
    let (why, ()) = tokio::join!(shared.waits(EVERY), async {
        shared.is_missed(&id("i-1"));
        tokio::time::sleep(SOON).await;
        shared.is_missed(&id("i-1"));
        tokio::task::yield_now().await;
        shared.is_missed(&id("i-2"));
    });
    assert_eq!(why, Why::NewlyMissed);
    let took = begin.elapsed();
    assert!((SOON..EVERY / 2).contains(&took), "{took:?}");
    assert_eq!(next_pause(EVERY, why), SOON);
    // One that was found to lack something is about to be made whole.
    shared.is_found_for(&[id("i-1")]);
    shared.is_missed(&id("i-1"));
    assert_eq!(shared.waits(EVERY).await, Why::NewlyMissed);
}

/// A place whose API server has nothing, and refuses to list these kinds.
fn refusing(refused: Arc<Mutex<Vec<&'static str>>>) -> Place {
    let server = tower::service_fn(move |request: Request<Body>| {
        let kind = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let is_refused = refused.lock().expect("no panic").iter().any(|all| *all == kind);
        let (code, answer) = if is_refused {
            let answer = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {},
                "status": "Failure", "code": 403, "reason": "Forbidden", "message": "no" });
            (StatusCode::FORBIDDEN, answer)
        } else {
            (StatusCode::OK, json!({ "metadata": { "resourceVersion": "1" }, "items": [] }))
        };
        let mut response = Response::new(Body::from(answer.to_string().into_bytes()));
        *response.status_mut() = code;
        std::future::ready(Ok::<_, std::io::Error>(response))
    });
    Place::new(Client::new(server, "redis"), KubeOptions::new("east", "redis", "b-1"))
}

#[tokio::test]
async fn a_kind_that_may_not_be_listed_hides_no_other_and_is_told_once() {
    let refused = Arc::new(Mutex::new(Vec::new()));
    let place = refusing(refused.clone());
    let mut looks = Looks::default();
    assert_eq!(looks.look(&place).await, Found::default());
    place.shared.wrote("Lease", "i-1", Some(&json!({})));
    place.shared.wrote(BUDGET, "i-1-s0", Some(&json!({})));
    *refused.lock().expect("no panic") = vec!["poddisruptionbudgets"];
    let gone = vec![("Lease", "i-1".to_owned())];
    assert_eq!(looks.look(&place).await, Found { gone, again: false });
    assert!(place.shared.known().lacks("Lease", "i-1"));
    assert!(!place.shared.known().lacks(BUDGET, "i-1-s0"), "nobody said that it is gone");
    assert_eq!(looks.look(&place).await, Found::default());
    assert!(looks.failed(BUDGET, true), "the third time");
    assert!(!looks.failed(BUDGET, true), "once");
    refused.lock().expect("no panic").clear();
    let gone = vec![(BUDGET, "i-1-s0".to_owned())];
    assert_eq!(looks.look(&place).await, Found { gone, again: true });
    // Where nobody answers, each kind has nothing of its own to tell.
    assert!((0..9).all(|_| !looks.failed("Lease", false)));
    assert!(looks.succeeded("Lease") && !looks.succeeded("Lease"));
}
