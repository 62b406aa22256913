//! Endpoints over an API server in memory, and what it may refuse or forget.

use larder_model::Address;
use larder_model::lease::RouteTarget;
use serde_json::{Value, json};

use super::*;
use crate::fake::{Fake, touch};

const WRITE: &str = "endpointslices/i-1-write";
const READ: &str = "endpointslices/i-1-read";

fn node(id: &str) -> NodeId {
    NodeId::new(id).expect("valid")
}

fn target(id: &str) -> RouteTarget {
    RouteTarget { node: node(id), address: Address::new("10.0.0.1", 6379) }
}

fn route(epoch: u64) -> Route {
    let (write, read) = (Some(target("n-1")), vec![target("n-2")]);
    Route { epoch, write, read, hold: false }
}

fn empty() -> Value {
    json!({ "addressType": "IPv4", "endpoints": [] })
}

/// Two empty slices, and a replica in a pod.
fn fake() -> Fake {
    let fake = Fake::default();
    fake.put(WRITE, empty());
    fake.put(READ, empty());
    fake.put("pods/n-2-0", json!({ "status": { "podIP": "10.1.0.2" } }));
    fake
}

fn endpoint(fake: &Fake) -> KubeEndpoint {
    let ip = "10.1.0.1".parse().expect("ip");
    let instance = InstanceId::new("i-1").expect("valid");
    KubeEndpoint::new(fake.client(), "larder", instance, node("n-1"), ip, true)
}

fn leads_to(fake: &Fake, slice: &str) -> Vec<String> {
    let all = fake.get(slice)["endpoints"].as_array().cloned().unwrap_or_default();
    let address = |one: &Value| one["addresses"][0].as_str().map(str::to_owned);
    all.iter().filter_map(address).collect()
}

#[tokio::test]
async fn a_route_leads_to_pods_and_is_written_once() {
    let fake = fake();
    let mut endpoint = endpoint(&fake);
    assert_eq!(endpoint.publish(&route(3)).await.expect("published"), None);
    assert_eq!(leads_to(&fake, WRITE), ["10.1.0.1"]);
    assert_eq!(leads_to(&fake, READ), ["10.1.0.2"]);
    fake.asked();
    assert_eq!(endpoint.publish(&route(3)).await.expect("published"), None);
    assert!(!fake.asked().iter().any(|asked| asked.starts_with("PUT")));
    assert_eq!(endpoint.read().await.expect("read"), Some(route(3)));
}

#[tokio::test]
async fn a_newer_epoch_is_never_written_over() {
    let fake = fake();
    let (mut old, mut new) = (endpoint(&fake), endpoint(&fake));
    old.publish(&route(3)).await.expect("published");
    new.publish(&route(4)).await.expect("published");
    let alone = Route { read: Vec::new(), ..route(3) };
    assert_eq!(old.publish(&alone).await.expect("told"), Some(route(4)));
    // And when it comes between a look and the write.
    let newer = fake.get(WRITE);
    fake.put(WRITE, empty());
    fake.put(READ, empty());
    fake.meddles(move |all| {
        let slice = all.get_mut(WRITE).expect("there");
        *slice = newer;
        slice["metadata"]["resourceVersion"] = json!("9");
    });
    let mut late = endpoint(&fake);
    assert_eq!(late.publish(&route(3)).await.expect("told"), Some(route(4)));
    assert_eq!(fake.get(WRITE)["metadata"]["resourceVersion"], "9");
}

#[tokio::test]
async fn what_somebody_else_touches_is_read_again_and_written() {
    let fake = fake();
    let mut endpoint = endpoint(&fake);
    endpoint.publish(&route(3)).await.expect("published");
    fake.meddles(|all| touch(all.get_mut(WRITE).expect("there")));
    endpoint.publish(&route(4)).await.expect("published");
    assert_eq!(endpoint.read().await.expect("read"), Some(route(4)));
}

#[tokio::test]
async fn the_holder_puts_back_what_was_made_of_its_slices() {
    let fake = fake();
    let mut endpoint = endpoint(&fake);
    endpoint.publish(&route(3)).await.expect("published");
    fake.put(WRITE, empty());
    let mut inner = endpoint.inner.lock().await;
    inner.look(&route(3), "looking").await;
    assert_eq!(leads_to(&fake, WRITE), ["10.1.0.1"]);
    assert_eq!(inner.published, Some(route(3)));
    fake.fails("GET endpointslices", 500);
    inner.look(&route(3), "looking").await;
    assert_eq!(inner.published, Some(route(3)), "silence takes nothing away");
}

#[tokio::test]
async fn a_route_without_its_slice_is_not_published() {
    let fake = fake();
    let mut endpoint = endpoint(&fake);
    fake.delete(WRITE);
    let error = endpoint.publish(&route(3)).await.expect_err("it leads nowhere");
    assert!(error.to_string().contains("i-1-write is not there"), "{error}");
    fake.asked();
    assert!(endpoint.publish(&route(3)).await.is_err());
    assert!(fake.asked().is_empty(), "it is not asked for ten times a second");
    fake.put(WRITE, empty());
    tokio::time::sleep(LOOK_FOR_MISSING).await;
    assert_eq!(endpoint.publish(&route(3)).await.expect("published"), None);
    assert_eq!(leads_to(&fake, WRITE), ["10.1.0.1"]);
    // One that goes later is looked for more often, until it is there again.
    fake.delete(READ);
    let mut inner = endpoint.inner.lock().await;
    inner.look(&route(3), "looking").await;
    assert!(inner.missing.is_some());
    fake.fails("GET endpointslices", 500);
    inner.look(&route(3), "looking").await;
    assert!(inner.missing.is_some(), "silence brings back nothing");
    fake.put(READ, empty());
    inner.look(&route(3), "looking").await;
    assert!(inner.missing.is_none());
    assert_eq!(leads_to(&fake, READ), ["10.1.0.2"]);
}

/// kube-proxy takes the first change up at once and rests for a second before the next.
#[tokio::test]
async fn reads_are_led_once_writes_are() {
    let fake = fake();
    let mut endpoint = endpoint(&fake);
    let puts = || fake.asked().into_iter().filter(|asked| asked.starts_with("PUT"));
    let (write, read) = (format!("PUT {WRITE}"), format!("PUT {READ}"));
    // Not answered in time.
    fake.fails(&write, 0);
    assert!(endpoint.publish(&route(3)).await.is_err());
    assert_eq!(puts().collect::<Vec<_>>(), [write.as_str()]);
    endpoint.publish(&route(3)).await.expect("published");
    assert_eq!(puts().collect::<Vec<_>>(), [write, read]);
}

/// Only `serve` makes slices, and a failover waits for no `serve`.
#[tokio::test]
async fn a_way_for_reads_that_is_gone_does_not_hold_up_the_one_for_writes() {
    let fake = fake();
    let mut endpoint = endpoint(&fake);
    fake.delete(READ);
    assert_eq!(endpoint.publish(&route(3)).await.expect("published"), None);
    assert_eq!(leads_to(&fake, WRITE), ["10.1.0.1"]);
    assert_eq!(endpoint.inner.lock().await.published, Some(route(3)), "it is defended");
    // The keeper looks for what is missing, and not only every ten seconds.
    fake.put(READ, empty());
    let deadline = Instant::now() + LOOK / 2;
    while leads_to(&fake, READ).is_empty() {
        assert!(Instant::now() < deadline, "reads lead nowhere");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whatever is wrong with the way for reads, it is tried again each second and not ten times.
#[tokio::test]
async fn a_way_for_reads_that_cannot_be_read_or_written_does_not_hold_up_the_one_for_writes() {
    for fault in [("PUT", 422), ("PUT", 403), ("GET", 403), ("GET", 500)] {
        let fake = fake();
        let mut endpoint = endpoint(&fake);
        for epoch in [3, 4] {
            fake.fails(&format!("{} {READ}", fault.0), fault.1);
            let published = endpoint.publish(&route(epoch)).await;
            assert_eq!(published.expect("writes lead right"), None, "{fault:?}");
            assert_eq!(leads_to(&fake, WRITE), ["10.1.0.1"], "{fault:?}");
            assert!(leads_to(&fake, READ).is_empty(), "{fault:?}");
            let inner = endpoint.inner.lock().await;
            assert_eq!(inner.published, Some(route(epoch)), "{fault:?}: it is defended");
            let missing = inner.missing.as_ref().map(|missing| missing.kind);
            assert_eq!(missing, Some(EndpointKind::Read), "{fault:?}: it is looked at again");
        }
        let deadline = Instant::now() + LOOK / 2;
        while leads_to(&fake, READ).is_empty() {
            assert!(Instant::now() < deadline, "{fault:?}: reads lead nowhere");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let inner = endpoint.inner.lock().await;
        assert!(inner.missing.is_none(), "{fault:?}: it is over");
    }
}

#[tokio::test]
async fn a_holder_that_cannot_read_where_reads_go_publishes_and_others_go_by_the_writes() {
    let fake = fake();
    endpoint(&fake).publish(&route(3)).await.expect("published");
    fake.fails(&format!("GET {READ}"), 403);
    let mut again = endpoint(&fake);
    assert_eq!(again.read().await.expect("writes are known"), None, "it has to be written");
    let (ip, instance) = ("10.1.0.2".parse().expect("ip"), InstanceId::new("i-1"));
    let instance = instance.expect("valid");
    let mut other = KubeEndpoint::new(fake.client(), "larder", instance, node("n-2"), ip, true);
    fake.fails(&format!("GET {READ}"), 403);
    assert_eq!(other.read().await.expect("writes are known"), Some(route(3)));
    fake.fails(&format!("GET {WRITE}"), 403);
    assert!(other.read().await.is_err(), "where writes go is not known");
}

/// A takeover has looked at the slices itself.
#[test]
fn the_first_look_comes_a_while_after_the_publication() {
    let begin = Instant::now();
    let after = |seconds: u64| begin + Duration::from_secs(seconds);
    let mut looked = Looked(begin);
    assert!(!looked.is_due(false, false, after(60)), "nothing is published");
    assert!(!looked.is_due(true, false, after(61)));
    assert!(!looked.is_due(true, false, after(69)));
    assert!(looked.is_due(true, false, after(70)));
    assert!(looked.is_due(true, true, after(62)), "something is missing");
}

#[tokio::test]
async fn a_look_in_vain_leaves_what_was_known() {
    let fake = fake();
    let mut endpoint = endpoint(&fake);
    endpoint.publish(&route(3)).await.expect("published");
    for code in [500, 0] {
        fake.fails(&format!("GET {WRITE}"), code);
        endpoint.inner.lock().await.look(&route(3), "looking").await;
        assert!(endpoint.inner.lock().await.known.is_some(), "{code}");
    }
    fake.asked();
    endpoint.publish(&route(4)).await.expect("published");
    let asked = fake.asked();
    assert!(!asked.iter().any(|asked| asked.starts_with("GET endpointslices")), "{asked:?}");
    // One that has asked and could not write has learned otherwise.
    fake.put(WRITE, empty());
    fake.fails(&format!("PUT {WRITE}"), 500);
    endpoint.inner.lock().await.look(&route(4), "looking").await;
    assert!(endpoint.inner.lock().await.known.is_none());
}

#[tokio::test]
async fn nobody_is_led_to_a_pod_that_is_gone_and_unknown_is_not_gone() {
    let fake = fake();
    let mut endpoint = endpoint(&fake);
    endpoint.publish(&route(3)).await.expect("published");
    fake.fails("GET pods", 500);
    endpoint.publish(&route(4)).await.expect("published");
    assert_eq!(leads_to(&fake, READ), ["10.1.0.2"], "nobody said that it is gone");
    fake.delete("pods/n-2-0");
    endpoint.publish(&route(5)).await.expect("published");
    assert!(leads_to(&fake, READ).is_empty(), "{:?}", fake.get(READ));
}

#[tokio::test]
async fn a_publication_waits_for_nobody_longer_than_for_itself() {
    let fake = fake();
    let mut endpoint = endpoint(&fake);
    let inner = Arc::clone(&endpoint.inner);
    let _held = inner.lock().await;
    let begin = Instant::now();
    assert!(endpoint.publish(&route(3)).await.is_err());
    assert!(endpoint.read().await.is_err());
    let took = begin.elapsed();
    // Else for as long as it is held.
    assert!(took < 2 * DEADLINE + Duration::from_secs(5), "it took {took:?}");
}

#[tokio::test]
async fn a_publication_that_ran_out_of_time_looks_again() {
    let fake = fake();
    let mut endpoint = endpoint(&fake);
    endpoint.publish(&route(3)).await.expect("published");
    fake.fails("PUT", 0);
    assert!(endpoint.publish(&route(4)).await.is_err());
    fake.asked();
    endpoint.publish(&route(4)).await.expect("published");
    assert!(fake.asked().contains(&format!("GET {WRITE}")));
    assert_eq!(endpoint.read().await.expect("read"), Some(route(4)));
}
