//! `CLUSTER NODES` and `CLUSTER INFO` of real servers.

use super::*;

struct Want {
    id: &'static str,
    address: &'static str,
    marks: &'static str,
    primary: Option<&'static str>,
    epoch: u64,
    slots: &'static str,
}

/// `r` replica, `F` fail, `f` fail?, `h` handshake, `l` linked, `m` migrating.
fn marks(peer: &ClusterPeer) -> String {
    [
        (peer.role == Role::Replica, 'r'),
        (peer.failed, 'F'),
        (peer.suspected, 'f'),
        (peer.handshake, 'h'),
        (peer.linked, 'l'),
        (!peer.open.is_empty(), 'm'),
    ]
    .into_iter()
    .filter_map(|(set, mark)| set.then_some(mark))
    .collect()
}

fn check(line: &str, want: &Want) {
    let me = "07c37dfeb235213a872192d90877d0cd55635b91 10.0.0.9:1@10001 myself,master - 0 0 0 connected\n";
    let (my_id, nodes) = parse_cluster_nodes(&format!("{me}{line}\n"), "10.0.0.9").expect(line);
    assert_eq!(my_id, "07c37dfeb235213a872192d90877d0cd55635b91");
    let peer = &nodes[1];
    assert_eq!(peer.id, want.id, "{line}");
    assert_eq!(peer.address.to_string(), want.address, "{line}");
    assert_eq!(marks(peer), want.marks, "{line}");
    assert_eq!(peer.primary.as_deref(), want.primary, "{line}");
    assert_eq!(peer.config_epoch, want.epoch, "{line}");
    assert_eq!(peer.slots.to_string(), want.slots, "{line}");
}

#[test]
fn lines_of_real_servers_are_read() {
    let base = Want {
        id: "c151f4eef1bfb682ea16e6340d2803dce7fcaee5",
        address: "127.0.0.1:27103",
        marks: "l",
        primary: None,
        epoch: 0,
        slots: "",
    };
    // Redis 6.2.5
    check(
        "c151f4eef1bfb682ea16e6340d2803dce7fcaee5 127.0.0.1:27103@37103 master - 0 1795353254591 0 connected",
        &base,
    );
    check(
        "899fe496b52e1bfd164eb58f3cea613b8b4cffe2 127.0.0.1:27102@37102 slave,fail 40af06b537203d2ba29f898e8a202924d8c65d91 1795353256600 1795353255092 1 disconnected",
        &Want {
            id: "899fe496b52e1bfd164eb58f3cea613b8b4cffe2",
            address: "127.0.0.1:27102",
            marks: "rF",
            primary: Some("40af06b537203d2ba29f898e8a202924d8c65d91"),
            epoch: 1,
            ..base
        },
    );
    check(
        "3c23d52c6fec9ea3982852db7902af94d0fbf2be 127.0.0.1:27199@37199 handshake - 0 0 0 disconnected",
        &Want {
            id: "3c23d52c6fec9ea3982852db7902af94d0fbf2be",
            address: "127.0.0.1:27199",
            marks: "h",
            ..base
        },
    );
    // Redis 7.0.15 with a name announced, and slots on the move.
    check(
        "b2201a85b610ea53566e5e984e2c10f764d2d804 127.0.0.1:27104@37104,cache-1.example master,fail? - 0 1795353254000 7 connected 0-99 200 300-16383 [77->-7d715f321ad6ed29f8d3340a9093e977c15f7e87]",
        &Want {
            id: "b2201a85b610ea53566e5e984e2c10f764d2d804",
            address: "127.0.0.1:27104",
            marks: "flm",
            epoch: 7,
            slots: "0-99,200,300-16383",
            ..base
        },
    );
    // Valkey 9.1.2: the receiver's side; and the longer form with key=value.
    check(
        "52afbc73d6aa375e6c6c499c63eafb4bc226d87d 127.0.0.1:27109@37109,,tls-port=0,shard-id=a48d master - 0 0 1 connected [77-<-a48d282e300f6c7548fe02f11f61172e7802bc3a]",
        &Want {
            id: "52afbc73d6aa375e6c6c499c63eafb4bc226d87d",
            address: "127.0.0.1:27109",
            marks: "lm",
            epoch: 1,
            ..base
        },
    );
    // IPv6, and a node whose address is not known.
    check(
        "733ec3eba574651341c3b20247b6fbcd5cb33ddd ::1:27108@37108 slave - 0 0 0 connected",
        &Want {
            id: "733ec3eba574651341c3b20247b6fbcd5cb33ddd",
            address: "[::1]:27108",
            marks: "rl",
            ..base
        },
    );
    check(
        "733ec3eba574651341c3b20247b6fbcd5cb33ddd :0@0 master,noaddr - 1795353256600 1795353255092 0 disconnected",
        &Want {
            id: "733ec3eba574651341c3b20247b6fbcd5cb33ddd",
            address: "noaddr:0",
            marks: "",
            ..base
        },
    );
}

#[test]
fn a_server_alone_gets_the_address_by_which_it_was_asked() {
    let text = "40af06b537203d2ba29f898e8a202924d8c65d91 :27101@37101 myself,master - 0 0 0 connected 0-16383\n";
    let (my_id, nodes) = parse_cluster_nodes(text, "127.0.0.1").expect("a real answer");
    assert_eq!(my_id, nodes[0].id);
    assert_eq!(nodes[0].address, Address::new("127.0.0.1", 27101));
    assert_eq!(nodes[0].slots, SlotSet::full());
}

#[test]
fn nonsense_is_refused() {
    for text in ["", "x", "a b c d e f g h", "id 1:2@3 master - 0 0 x connected"] {
        assert!(parse_cluster_nodes(text, "h").is_err(), "{text:?}");
    }
    let odd = "40af 1.1.1.1:1@2 myself,master - 0 0 0 connected 0-99999\n";
    assert!(parse_cluster_nodes(odd, "h").is_err());
}

#[test]
fn cluster_info_gives_state_and_epoch() {
    let text = "cluster_state:ok\r\ncluster_slots_assigned:16384\r\ncluster_current_epoch:2\r\ncluster_my_epoch:1\r\n";
    assert_eq!(parse_cluster_info(text), Ok((true, 2)));
    assert_eq!(parse_cluster_info(&text.replace(":ok", ":fail")), Ok((false, 2)));
    assert_eq!(parse_cluster_info("# empty"), Err(ParseError::Missing("cluster_state")));
}

#[test]
fn slots_on_their_way_are_read_with_the_other_end() {
    let open = |word: &str| {
        let text = format!("a 10.0.0.9:1@10001 myself,master - 0 0 1 connected 0-99 {word}\n");
        parse_cluster_nodes(&text, "10.0.0.9").ok().map(|(_, nodes)| nodes[0].open.clone())
    };
    let slot = |leaves| OpenSlot { slot: 93, leaves, peer: "b-c".to_owned() };
    assert_eq!(open("[93->-b-c]"), Some(vec![slot(true)]));
    assert_eq!(open("[93-<-b-c]"), Some(vec![slot(false)]));
    for bad in ["[93-<-b", "[93-b]", "[16384->-b]", "[->-b]", "[93->-]"] {
        assert_eq!(open(bad), None, "{bad}");
    }
}
