//! The objects, whole, as snapshots: a change of one is a change of every instance made later.

use super::*;
use k8s_openapi::api::{apps, coordination, core, discovery, networking, policy, rbac};
use larder_cluster::NodeExposure;
use larder_model::agent::{Member, NodeConfig};
use larder_model::kube::{ANNOTATION_SETTINGS, VolumeIds};
use larder_model::local::NodeSecrets;
use larder_model::{
    Address, ByteSize, ElectionPolicy, EndpointKind, EngineName, Expose, InstanceName, Millis,
    NodeMode, OuterAddress, Secret,
};
use serde::de::DeserializeOwned;

fn instance() -> InstanceId {
    InstanceId::new("i-shop").expect("valid")
}

fn node(id: &str) -> NodeId {
    NodeId::new(id).expect("valid")
}

fn volume() -> VolumeIds {
    VolumeIds { first: "u-1".to_owned(), now: "u-1".to_owned() }
}

fn options() -> KubeOptions {
    let mut options = KubeOptions::new("east", "redis", "b-1");
    options.image = "registry.example/larder-{engine}:0.1".to_owned();
    options
}

#[test]
fn a_node_is_outdated_once_the_binding_says_otherwise_what_is_in_its_pod() {
    let config = config(NodeMode::Leased, members());
    let rendered = |options: &KubeOptions| {
        let set = serde_json::from_value(stateful_set(options, &config)).expect("one");
        crate::observe::Seen { sets: vec![std::sync::Arc::new(set)], ..Default::default() }
    };
    let seen = rendered(&options());
    let mut later = options();
    assert!(!seen.is_outdated(&config.node, &later));
    assert!(!seen.is_outdated(&node("n-other"), &later));
    later.volume_size = ByteSize::gib(1);
    later.engines.clear();
    assert!(!seen.is_outdated(&config.node, &later), "none of it is in the pod");
    let image = KubeOptions { image: "registry.example/larder-{engine}:0.2".to_owned(), ..later };
    let spread = KubeOptions { spread_strictly: false, ..options() };
    for later in [image, spread] {
        assert!(seen.is_outdated(&config.node, &later), "{later:?}");
        assert!(!rendered(&later).is_outdated(&config.node, &later));
    }
    let mut made_before = stateful_set(&options(), &config);
    made_before["metadata"]["annotations"] = serde_json::json!({});
    let set = serde_json::from_value(made_before).expect("one");
    let seen = crate::observe::Seen { sets: vec![std::sync::Arc::new(set)], ..Default::default() };
    assert!(seen.is_outdated(&config.node, &options()), "of a Larder that did not say");
}

fn members() -> Vec<Member> {
    ["n-1", "n-2"]
        .into_iter()
        .map(|id| Member {
            outer: None,
            node: node(id),
            shard: 0,
            zone: None,
            address: Address::new("10.0.0.1", 6379),
        })
        .collect()
}

fn config(mode: NodeMode, members: Vec<Member>) -> NodeConfig {
    NodeConfig {
        outer: None,
        renderer: 1,
        node: node("n-1"),
        instance: instance(),
        instance_name: InstanceName::new("shop").expect("valid"),
        shard: 0,
        zone: None,
        mode,
        engine: EngineName::new("redis-7.0").expect("valid"),
        address: Address::new("10.0.0.1", 6379),
        memory: ByteSize::mib(128),
        maxmemory: ByteSize::mib(102),
        cluster_node_timeout: Millis(5000),
        bootstrap: true,
        initialized: false,
        members,
        worker: Some("worker-2".parse().unwrap()),
        storage_class: None,
        parameters: std::collections::BTreeMap::new(),
        parameters_revision: 0,
        chained: false,
        upstream: None,
        has_read_endpoint: true,
        election: ElectionPolicy::default(),
        generation: 7,
    }
}

/// Every object is of its kind: what Kubernetes' own types do not know is lost on the way.
fn typed<T: DeserializeOwned + serde::Serialize>(value: &Value) {
    let object: T = serde_json::from_value(value.clone()).expect("of its kind");
    let back = serde_json::to_value(object).expect("plain data");
    assert_eq!(lost(value, &back), Vec::<String>::new());
}

fn lost(wanted: &Value, kept: &Value) -> Vec<String> {
    match (wanted, kept) {
        (Value::Object(wanted), Value::Object(kept)) => wanted
            .iter()
            .flat_map(|(key, value)| match kept.get(key) {
                Some(kept) => lost(value, kept),
                None if value.as_array().is_some_and(Vec::is_empty) => Vec::new(),
                None => vec![key.clone()],
            })
            .collect(),
        (Value::Array(wanted), Value::Array(kept)) if wanted.len() == kept.len() => {
            wanted.iter().zip(kept).flat_map(|(a, b)| lost(a, b)).collect()
        }
        (wanted, kept) if wanted == kept => Vec::new(),
        (wanted, kept) => vec![format!("{wanted} became {kept}")],
    }
}

#[test]
fn objects_are_of_the_kinds_that_they_say() {
    let (options, id, one) = (options(), instance(), node("n-1"));
    let wish = config(NodeMode::Leased, members());
    let secrets =
        NodeSecrets::new(Secret::new("system"), Secret::new("0".repeat(64)), Secret::new(""));
    typed::<apps::v1::StatefulSet>(&stateful_set(&options, &wish));
    typed::<core::v1::Service>(&node_service(&options, &id, &one, None, Some(31_000)));
    for way in [Expose::NodePort, Expose::LoadBalancer] {
        typed::<core::v1::Service>(&outer_service(&options, &exposure(way, "redis-6.2")));
    }
    typed::<core::v1::PersistentVolumeClaim>(&claim(&options, &wish));
    typed::<core::v1::Secret>(&secret(&options, &wish, &secrets, &volume()).expect("secret"));
    typed::<core::v1::ServiceAccount>(&service_account(&options, &id));
    typed::<rbac::v1::Role>(&role(&options, &id, &members()));
    typed::<rbac::v1::RoleBinding>(&role_binding(&options, &id));
    typed::<coordination::v1::Lease>(&lease(&options, &id));
    typed::<policy::v1::PodDisruptionBudget>(&disruption_budget(&options, &id, 0));
    typed::<networking::v1::NetworkPolicy>(&network_policy(&options, &id, &[]));
    for kind in [EndpointKind::Write, EndpointKind::Discovery] {
        typed::<core::v1::Service>(&endpoint_service(
            &options,
            &id,
            kind,
            Expose::ClusterIp,
            &Kept::default(),
        ));
    }
    let slice = endpoint_slice(&options, &id, EndpointKind::Write);
    typed::<discovery::v1::EndpointSlice>(&slice);
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).expect("plain data")
}

#[test]
fn a_node_of_a_leased_shard() {
    let (options, wish) = (options(), config(NodeMode::Leased, members()));
    insta::assert_snapshot!("stateful_set", pretty(&stateful_set(&options, &wish)));
    insta::assert_snapshot!(
        "node_service",
        pretty(&node_service(&options, &instance(), &node("n-1"), Some("10.0.0.1"), None))
    );
    insta::assert_snapshot!("claim", pretty(&claim(&options, &wish)));
}

#[test]
fn what_the_nodes_of_an_instance_share() {
    let (options, id) = (options(), instance());
    insta::assert_snapshot!("role", pretty(&role(&options, &id, &members())));
    insta::assert_snapshot!("network_policy", pretty(&network_policy(&options, &id, &[])));
    insta::assert_snapshot!("disruption_budget", pretty(&disruption_budget(&options, &id, 2)));
}

#[test]
fn endpoints_with_and_without_a_selector() {
    let (options, id) = (options(), instance());
    let service = |kind| {
        let (way, kept) = (Expose::ClusterIp, Kept::default());
        pretty(&endpoint_service(&options, &id, kind, way, &kept))
    };
    insta::assert_snapshot!("write_service", service(EndpointKind::Write));
    insta::assert_snapshot!("discovery_service", service(EndpointKind::Discovery));
    let slice = endpoint_slice(&options, &id, EndpointKind::Write);
    insta::assert_snapshot!("write_slice", pretty(&slice));
}

fn exposure(way: Expose, engine: &str) -> NodeExposure {
    NodeExposure {
        instance: instance(),
        node: node("n-1"),
        address: Address::new("10.0.0.1", 6379),
        way,
        engine: EngineName::new(engine).expect("valid"),
        known: None,
    }
}

#[test]
fn ways_from_outside_to_a_node() {
    let options = options();
    let service = |wish: &NodeExposure| pretty(&outer_service(&options, wish));
    let balanced = exposure(Expose::LoadBalancer, "redis-7.0");
    insta::assert_snapshot!("outer_service_load_balancer", service(&balanced));
    let mut at_workers = exposure(Expose::NodePort, "redis-6.2");
    insta::assert_snapshot!("outer_service_node_port_6_2", service(&at_workers));
    // Made again, it has the ports that servers and clients know.
    at_workers.known = Some(OuterAddress { host: None, port: 31_007, bus_port: Some(31_008) });
    let again = outer_service(&options, &at_workers);
    assert_eq!(again["spec"]["ports"][0]["nodePort"], json!(31_007));
    assert_eq!(again["spec"]["ports"][1]["nodePort"], json!(31_008));
}

#[test]
fn a_configured_address_leads_through_any_worker() {
    let mut options = options();
    options.outer_address = Some("redis.example".to_owned());
    let policy = |options: &KubeOptions, wish: &NodeExposure| {
        outer_service(options, wish)["spec"]["externalTrafficPolicy"].clone()
    };
    assert_eq!(policy(&options, &exposure(Expose::NodePort, "redis-7.0")), json!("Cluster"));
    // An old server's gossip comes this way, and has to be told from other callers.
    assert_eq!(policy(&options, &exposure(Expose::NodePort, "redis-6.2")), json!("Local"));
    assert_eq!(policy(&options, &exposure(Expose::LoadBalancer, "redis-7.0")), json!("Local"));
}

#[test]
fn a_node_port_holds_inside_too() {
    let outer = OuterAddress { host: None, port: 31_007, bus_port: None };
    let port = inner_port(Some(&outer));
    assert_eq!(port, Some(31_007));
    let service = node_service(&options(), &instance(), &node("n-1"), Some("10.0.0.1"), port);
    let ports = service["spec"]["ports"].as_array().expect("ports");
    assert!(ports.iter().any(|p| p["port"] == 31_007 && p["targetPort"] == 6379), "{service}");
    let old = OuterAddress { bus_port: Some(31_008), ..outer.clone() };
    assert_eq!(inner_port(Some(&old)), None);
    let mut wish = config(NodeMode::Clustered, members());
    wish.outer = Some(outer);
    let text = stateful_set(&options(), &wish).to_string();
    assert!(text.contains("status.hostIP"), "the agent announces its worker: {text}");
}

#[test]
fn the_bus_is_open_to_workers_only_where_gossip_goes_through_them() {
    let policy = network_policy(&options(), &instance(), &["10.99.0.11".to_owned()]);
    let from = &policy["spec"]["ingress"][1]["from"];
    assert_eq!(from[1]["ipBlock"]["cidr"], json!("10.99.0.11/32"));
    typed::<networking::v1::NetworkPolicy>(&policy);
}

#[test]
fn an_endpoint_made_again_has_the_port_that_it_had() {
    let kept = Kept { address: Some("10.0.0.9".to_owned()), node_port: Some(31_000) };
    let service = |way| endpoint_service(&options(), &instance(), EndpointKind::Write, way, &kept);
    let at_workers = service(Expose::NodePort);
    assert_eq!(at_workers["spec"]["type"], json!("NodePort"));
    assert_eq!(at_workers["spec"]["ports"][0]["nodePort"], json!(31_000));
    assert_eq!(at_workers["spec"]["clusterIP"], json!("10.0.0.9"));
    let balanced = service(Expose::LoadBalancer);
    assert!(balanced["spec"]["ports"][0].get("nodePort").is_none());
}

#[test]
fn only_the_secret_holds_secrets() {
    let wish = config(NodeMode::Leased, members());
    let secrets = NodeSecrets::new(
        Secret::new("a-password-of-the-system"),
        Secret::new("ab".repeat(32)),
        Secret::new(""),
    );
    let text = secret(&options(), &wish, &secrets, &volume()).expect("secret").to_string();
    assert!(!text.contains("a-password-of-the-system"), "encoded, at least");
    assert!(!stateful_set(&options(), &wish).to_string().contains("password"));
}

#[test]
fn a_cluster_node_gets_no_token_and_a_lone_one_is_not_killed_in_a_hurry() {
    let clustered = stateful_set(&options(), &config(NodeMode::Clustered, members()));
    let spec = &clustered["spec"]["template"]["spec"];
    assert_eq!(spec["automountServiceAccountToken"], json!(false));
    let mut alone = members();
    alone.truncate(1);
    for (wish, failures) in [
        (config(NodeMode::Leased, alone), 5),
        (config(NodeMode::Leased, members()), 1),
        (config(NodeMode::Clustered, members()), 5),
    ] {
        let set = stateful_set(&options(), &wish);
        let probe = &set["spec"]["template"]["spec"]["containers"][0]["livenessProbe"];
        assert_eq!(probe["failureThreshold"], json!(failures));
    }
}

#[test]
fn a_storage_class_is_named_only_when_one_was_chosen() {
    let mut options = options();
    let mut wish = config(NodeMode::Leased, members());
    assert!(claim(&options, &wish)["spec"].get("storageClassName").is_none());
    options.storage_class = Some("fast".to_owned());
    assert_eq!(claim(&options, &wish)["spec"]["storageClassName"], json!("fast"));
    wish.storage_class = Some("faster".to_owned());
    assert_eq!(claim(&options, &wish)["spec"]["storageClassName"], json!("faster"));
}

#[test]
fn pull_secrets_are_named_in_the_pod_and_nowhere_else() {
    let (mut options, wish) = (options(), config(NodeMode::Leased, members()));
    let without = stateful_set(&options, &wish);
    assert!(without["spec"]["template"]["spec"].get("imagePullSecrets").is_none());
    options.pull_secrets = vec!["registry".to_owned(), "mirror".to_owned()];
    let mut with = stateful_set(&options, &wish);
    typed::<apps::v1::StatefulSet>(&with);
    // A pod that runs stays: only a person, or its end, makes a new one.
    assert_eq!(with["spec"]["updateStrategy"]["type"], json!("OnDelete"));
    let spec = with["spec"]["template"]["spec"].as_object_mut().expect("a pod's");
    let named = spec.remove("imagePullSecrets");
    assert_eq!(named, Some(json!([{ "name": "registry" }, { "name": "mirror" }])));
    // By these words it is seen that a node has other ones.
    let words = with["metadata"]["annotations"][ANNOTATION_SETTINGS].take();
    assert!(words.as_str().is_some_and(|words| words.ends_with("pull=registry,mirror")), "{words}");
    with["metadata"]["annotations"][ANNOTATION_SETTINGS] =
        without["metadata"]["annotations"][ANNOTATION_SETTINGS].clone();
    assert_eq!(with, without);
}
