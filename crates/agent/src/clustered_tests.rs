//! A cluster node's decisions, on answers made up for it.

use super::*;

/// A node of the cluster; without a primary it is one, with all slots.
fn peer(id: &str, port: u16, primary: Option<&str>) -> ClusterPeer {
    let slots = SlotRange::new(0, 16_383).expect("valid");
    ClusterPeer {
        id: id.into(),
        address: Address::new("127.0.0.1", port),
        role: if primary.is_some() { Role::Replica } else { Role::Primary },
        primary: primary.map(str::to_owned),
        failed: false,
        suspected: false,
        handshake: false,
        linked: true,
        config_epoch: 1,
        slots: if primary.is_some() { SlotSet::default() } else { [slots].into_iter().collect() },
        open: Vec::new(),
    }
}

fn replica(offset: u64, replid: &str) -> PeerAnswer {
    let address = Address::new("127.0.0.1", 7001);
    let me = ClusterPeer { address: address.clone(), ..peer("b", 7001, Some("a")) };
    PeerAnswer {
        report: PeerReport {
            node: NodeId::new("n-b").expect("valid"),
            state: ServerState::Serving,
            run_id: None,
            replication: Some(larder_model::agent::ReplicationView {
                role: Role::Replica,
                primary: Some(address),
                link_up: false,
                syncing: false,
                replid: replid.into(),
                offset,
                replicas: Vec::new(),
            }),
            volume: VolumeState::Data,
            data_epoch: 0,
            synced: None,
            lease_epoch: 0,
        },
        cluster: Some(larder_model::agent::ClusterView {
            my_id: "b".into(),
            state_ok: true,
            current_epoch: 1,
            nodes: vec![me],
        }),
        up_for: Some(Millis(60_000)),
        behind: false,
    }
}

#[test]
fn a_replica_of_a_shard_without_writes_may_take_over_and_one_that_never_synced_may_not() {
    let fit = |offset, own: &str, dead| is_candidate(&replica(offset, own), "a", dead, Millis(100));
    assert!(fit(0, "of-the-primary", Some("of-the-primary")));
    assert!(!fit(0, "its-own", Some("of-the-primary")));
    assert!(!fit(0, "its-own", None), "a new agent does not know the id");
    assert!(fit(14, "of-the-primary", None));
    assert!(!is_candidate(&replica(14, "x"), "a", None, Millis(90_000)), "restarted since");
    let behind = PeerAnswer { behind: true, ..replica(14, "x") };
    assert!(!is_candidate(&behind, "a", Some("x"), Millis(100)), "may lack acknowledged writes");
}

#[test]
fn an_owner_by_an_older_epoch_does_not_count() {
    let (dead, owner) = (peer("a", 7000, None), peer("b", 7001, None));
    let dead =
        |config_epoch| ClusterPeer { slots: SlotSet::default(), config_epoch, ..dead.clone() };
    let answer = |dead| {
        let nodes = vec![dead, owner.clone()];
        let mut answer = replica(1, "r");
        answer.cluster =
            Some(ClusterView { my_id: "b".into(), nodes, ..answer.cluster.expect("a view") });
        answer
    };
    assert!(owns_slots_of(&answer(dead(0)), "a"));
    assert!(!owns_slots_of(&answer(dead(2)), "a"));
    let follows = ClusterPeer { role: Role::Replica, ..dead(2) };
    assert!(owns_slots_of(&answer(follows), "a"));
}

#[test]
fn a_change_that_was_ordered_in_agreement_fences_nobody_and_a_later_one_does() {
    let view = |of_a: Option<&str>, of_b: Option<&str>| ClusterView {
        my_id: "b".into(),
        state_ok: true,
        current_epoch: 1,
        nodes: vec![peer("a", 7000, of_a), peer("b", 7001, of_b)],
    };
    let (before, after) = (view(None, Some("a")), view(Some("b"), None));
    let fenced = |coordinated_at: Option<Timestamp>, seen_at: Timestamp| {
        let mut clustered = Clustered { coordinated_at, ..Clustered::default() };
        assert_eq!(clustered.replaces(&before, Timestamp(0)), None, "nobody was replaced");
        let former = clustered.replaces(&after, seen_at).expect("replaced");
        assert_eq!(clustered.replaces(&after, seen_at), None, "once");
        assert_eq!(former.id, "a");
        !former.agreed
    };
    let ordered = Some(Timestamp(1_000));
    assert!(!fenced(ordered, Timestamp(1_400)));
    assert!(fenced(ordered, Timestamp(6_000)), "its clients are back by then");
    assert!(fenced(None, Timestamp(1_400)));
}
