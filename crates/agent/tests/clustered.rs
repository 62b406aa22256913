//! A real cluster, formed by orders, whose primaries are killed.

mod support;

use std::fs;
use std::time::{Duration, Instant};

use larder_agent::ClientError;
use larder_model::agent::{
    AgentStatus, ClusterFailoverMode, ClusterView, Fence, Order, Role, VolumeState,
};
use larder_model::{Code, Secret};
use larder_node::Connection;
use support::cluster::{SHARDS, formed, is_linked_replica, owns_slots, view};
use support::{World, events};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn a_killed_primary_is_replaced_at_once_and_comes_back_as_replica() {
    let world = formed().await;
    // `foo` is in slot 12182: the third shard's.
    let (old, new) = (4, 5);
    world.tenant(old).await.call(&["SET", "foo", "bar"]).await.expect("written");
    world.tenant(old).await.call(&["WAIT", "1", "1000"]).await.expect("copied");
    // Until the replica has an offset it is no candidate: the primary pings every ten seconds,
    // and the write above counts as well.
    let began = Instant::now();
    world.signal_server(old, "-9");
    world.wait("replaced", Duration::from_secs(6), |all| owns_slots(&all[new])).await;
    eprintln!("cluster failover after {:?}", began.elapsed());
    let value = world.tenant(new).await.call(&["GET", "foo"]).await.expect("read");
    assert_eq!(value.as_bytes(), Some(&b"bar"[..]));
    world.wait("back", Duration::from_secs(15), |all| is_linked_replica(&all[old])).await;

    // At once the other way round: the voters refuse, so the agent lets it take over.
    let began = Instant::now();
    world.signal_server(new, "-9");
    world.wait("replaced again", Duration::from_secs(6), |all| owns_slots(&all[old])).await;
    eprintln!("second cluster failover after {:?}", began.elapsed());
    world.wait("back again", Duration::from_secs(15), |all| is_linked_replica(&all[new])).await;

    // The third one is the last within the window; after it the server itself comes back.
    world.signal_server(old, "-9");
    world.wait("third", Duration::from_secs(6), |all| owns_slots(&all[new])).await;
    world.wait("back", Duration::from_secs(15), |all| is_linked_replica(&all[old])).await;
    let pid = world.signal_server(new, "-9");
    world
        .wait("on hold", Duration::from_secs(15), |all| {
            owns_slots(&all[new])
                && view(&all[new]).is_some_and(|v| v.state_ok)
                && all[new].as_ref().is_some_and(|status| {
                    status.server.pid.is_some_and(|now| now != pid)
                        && events(status).contains(&"failover-on-hold")
                })
        })
        .await;
    let value = world.tenant(new).await.call(&["GET", "foo"]).await.expect("read");
    assert_eq!(value.as_bytes(), Some(&b"bar"[..]));
}

/// Its agent is stopped with it, so nobody on that side ends it: what waits in its sockets would be
/// answered when both go on.
#[tokio::test]
async fn a_frozen_primary_is_killed_by_the_agent_of_its_successor() {
    let world = formed().await;
    let (old, new) = (4, 5);
    world.tenant(old).await.call(&["SET", "foo", "bar"]).await.expect("written");
    world.tenant(old).await.call(&["WAIT", "1", "1000"]).await.expect("copied");
    // Its agent has seen whose replica it is.
    world.wait("known", Duration::from_secs(5), |all| is_linked_replica(&all[new])).await;
    let agent = world.nodes[old].agent.as_ref().expect("runs").id();
    let stopped = std::process::Command::new("kill").args(["-STOP", &agent.to_string()]).status();
    assert!(stopped.expect("kill").success());
    let pid = world.signal_server(old, "-STOP");
    world.wait("succeeded", Duration::from_secs(30), |all| owns_slots(&all[new])).await;
    let until = Instant::now() + Duration::from_secs(8);
    loop {
        // Its parent is stopped and does not reap it.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if stat.is_empty() || stat.contains(") Z ") {
            break;
        }
        assert!(Instant::now() < until, "{stat}\n{}", world.logs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let cont = std::process::Command::new("kill").args(["-CONT", &agent.to_string()]).status();
    assert!(cont.expect("kill").success());
    world.wait("back", Duration::from_secs(20), |all| is_linked_replica(&all[old])).await;
}

const HOLD: &str = "cluster-replica-no-failover";

async fn system(world: &World, index: usize) -> Connection {
    let (address, password) = (&world.nodes[index].address, Secret::new("system-password"));
    Connection::login(address, "larder", &password, Duration::from_secs(2))
        .await
        .unwrap_or_else(|error| panic!("{error}\n{}", world.logs()))
}

async fn is_on_hold(world: &World, index: usize) -> bool {
    let values = system(world, index).await.config_get(HOLD).await.expect("answers");
    values.get(HOLD).is_some_and(|value| value == "yes")
}

async fn released(world: &World, index: usize) {
    let until = Instant::now() + Duration::from_secs(20);
    while is_on_hold(world, index).await {
        assert!(Instant::now() < until, "still on hold\n{}", world.logs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn cluster_id(status: &Option<AgentStatus>) -> String {
    view(status).expect("a view of the cluster").my_id.clone()
}

/// The third shard's primary (node 4) has data and is dead with its agent, as all others know.
/// Answers its id. Its replica (node 5) knows it too, was kept from taking over, and is down now as
/// well: started again it would ask for the votes at once.
async fn without_third_shard(world: &mut World) -> String {
    let mut tenant = world.tenant(4).await;
    tenant.call(&["SET", "foo", "bar"]).await.expect("written");
    tenant.call(&["WAIT", "1", "1000"]).await.expect("copied");
    let primary = cluster_id(&world.statuses().await[4]);
    world.kill_agent(5);
    let mut replica = system(world, 5).await;
    replica.config_set(HOLD, "yes").await.expect("set");
    world.kill_node(4);
    world
        .wait("given up", Duration::from_secs(20), |all| {
            [0, 1, 2, 3]
                .iter()
                .all(|index| view(&all[*index]).is_some_and(|view| has_failed(view, &primary)))
        })
        .await;
    let until = Instant::now() + Duration::from_secs(10);
    while !has_failed(&replica.cluster_view().await.expect("view"), &primary) {
        assert!(Instant::now() < until, "not given up by its replica");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world.signal_server(5, "-9");
    primary
}

fn has_failed(view: &ClusterView, id: &str) -> bool {
    view.nodes.iter().any(|node| node.id == id && node.failed)
}

/// Longer than an election takes once the primary is given up: nobody may have won one.
async fn nobody_else_leads(world: &World, primary: &str) {
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        let all = world.statuses().await;
        let owner = view(&all[0])
            .and_then(|view| view.nodes.iter().find(|node| node.slots.contains(12182)))
            .map(|node| node.id.as_str());
        assert_eq!(owner, Some(primary), "{}", world.logs());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Both have the data again. Whoever has copied them may have been given the votes, while the
/// primary that came back was still thought to be dead.
async fn healed(world: &World) {
    world
        .wait("healed", Duration::from_secs(40), |all| {
            let leads = if owns_slots(&all[4]) { 4 } else { 5 };
            owns_slots(&all[leads])
                && view(&all[leads]).is_some_and(|view| view.state_ok)
                && is_linked_replica(&all[9 - leads])
                && all[5].as_ref().is_some_and(|status| status.volume == VolumeState::Data)
        })
        .await;
    // A failover may still be under way when both look well.
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let leads = if owns_slots(&world.statuses().await[4]) { 4 } else { 5 };
        match world.tenant(leads).await.call(&["GET", "foo"]).await {
            Ok(value) => break assert_eq!(value.as_bytes(), Some(&b"bar"[..])),
            Err(error) => assert!(Instant::now() < until, "{error}\n{}", world.logs()),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    released(world, 5).await;
}

/// The empty replica leaves the slots to their primary, and both are whole once they are back.
async fn comes_back_after_nobody_led(world: &mut World, primary: &str) {
    nobody_else_leads(world, primary).await;
    assert!(is_on_hold(world, 5).await);
    world.start(4);
    world.start(5);
    healed(world).await;
}

#[tokio::test]
async fn an_empty_replica_whose_agent_dies_right_after_the_start_does_not_take_over() {
    let mut world = formed().await;
    let primary = without_third_shard(&mut world).await;
    fs::remove_dir_all(world.nodes[5].dir.join("volume/appendonlydir")).expect("removed");
    let before = world.server_pid(5);
    world.start(5);
    let until = Instant::now() + Duration::from_secs(10);
    while world.server_pid(5) == before {
        assert!(Instant::now() < until, "not started\n{}", world.logs());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    world.kill_agent(5);
    comes_back_after_nobody_led(&mut world, &primary).await;
}

#[tokio::test]
async fn a_replica_started_empty_by_order_does_not_take_over_before_its_first_copy() {
    let mut world = formed().await;
    let primary = without_third_shard(&mut world).await;
    fs::remove_dir_all(world.nodes[5].dir.join("volume")).expect("removed");
    world.start(5);
    world
        .wait("lost", Duration::from_secs(10), |all| {
            all[5].as_ref().is_some_and(|status| status.volume == VolumeState::Lost)
        })
        .await;
    world.order(5, Order::StartEmpty).await;
    world.wait("new", Duration::from_secs(10), |all| view(&all[5]).is_some()).await;
    let peers = vec![world.nodes[0].address.clone()];
    world.order(5, Order::ClusterMeet { peers }).await;
    world
        .wait("met", Duration::from_secs(20), |all| {
            let new = cluster_id(&all[5]);
            view(&all[5]).is_some_and(|v| v.nodes.iter().any(|n| n.id == primary && !n.handshake))
                && [0, 2].iter().all(|index| {
                    view(&all[*index])
                        .is_some_and(|v| v.nodes.iter().any(|n| n.id == new && n.linked))
                })
        })
        .await;
    world.order(5, Order::ClusterReplicate { primary: primary.clone() }).await;
    world
        .wait("given up by its new replica too", Duration::from_secs(20), |all| {
            view(&all[5]).is_some_and(|view| has_failed(view, &primary))
        })
        .await;
    nobody_else_leads(&world, &primary).await;
    // Also when both begin anew: nothing has been copied yet.
    world.kill_node(5);
    world.start(5);
    world
        .wait("started again", Duration::from_secs(10), |all| {
            view(&all[5]).and_then(ClusterView::me).is_some_and(|me| me.role == Role::Replica)
        })
        .await;
    world.kill_agent(5);
    comes_back_after_nobody_led(&mut world, &primary).await;
}

/// The target of a slot move dies with keys that had arrived, its slot not, and its shard goes on
/// under another node: what it has left is nobody's, and it is a replica as before.
#[tokio::test]
async fn a_server_with_keys_of_a_broken_off_slot_move_follows_its_shards_primary() {
    let mut world = formed().await;
    let primary = cluster_id(&world.statuses().await[4]);
    world.tenant(4).await.call(&["SET", "foo", "bar"]).await.expect("written");
    let mut server = system(&world, 5).await;
    // Its agent would have it follow at once.
    world.kill_agent(5);
    server.cluster_reset(false).await.expect("alone");
    server
        .call(&["CLUSTER", "MEET", "127.0.0.1", &world.nodes[4].address.port.to_string()])
        .await
        .expect("met");
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let view = server.cluster_view().await.expect("view");
        let in_touch = view.nodes.iter().any(|n| n.id == primary && n.linked && !n.handshake);
        if view.state_ok && in_touch && view.me().is_some_and(|me| me.role == Role::Primary) {
            break;
        }
        assert!(Instant::now() < until, "not alone, and in touch: {view:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // `foo`'s slot.
    let order = ["CLUSTER", "SETSLOT", "12182", "IMPORTING", &primary];
    server.call(&order).await.expect("marked");
    server.call(&["ASKING"]).await.expect("asked");
    server.call(&["SET", "foo", "half-way"]).await.expect("written");
    let stray = server.key_count().await.expect("answers");
    assert_eq!(stray, 1);
    world.start(5);
    world.wait("follows", Duration::from_secs(20), |all| is_linked_replica(&all[5])).await;
    let told = world.statuses().await[5]
        .as_ref()
        .is_some_and(|status| events(status).contains(&"stray-keys-dropped"));
    assert!(told, "{}", world.logs());
    let until = Instant::now() + Duration::from_secs(10);
    while server.key_count().await.expect("answers") != 1 {
        assert!(Instant::now() < until, "not copied");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let value = world.tenant(4).await.call(&["GET", "foo"]).await.expect("read");
    assert_eq!(value.as_bytes(), Some(&b"bar"[..]));
}

/// What a primary's cluster file says after its slots have gone to several others: that it is one
/// without slots. It stays one when it hears of its successor. `heard`: the file says who has them.
fn without_slots(file: &str, heard: bool) -> String {
    let mine = file.lines().find(|line| line.contains("myself")).expect("has a line of its own");
    let mine: Vec<&str> = mine.split(' ').collect();
    let (id, slots) = (mine[0], if heard { mine[8..].join(" ") } else { String::new() });
    let lines = file.lines().map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        match fields.as_slice() {
            [own, ..] if *own == id => fields[..8].join(" "),
            [node, address, flags, primary, ..] if flags.contains("slave") && *primary == id => {
                format!("{node} {address} master - 0 0 90 connected {slots}")
            }
            _ => line.to_owned(),
        }
    });
    lines.map(|line| line + "\n").collect()
}

async fn comes_back_without_slots(heard: bool) {
    let mut world = formed().await;
    world.tenant(4).await.call(&["SET", "foo", "bar"]).await.expect("written");
    world.tenant(4).await.call(&["WAIT", "1", "1000"]).await.expect("copied");
    world.kill_node(4);
    world.wait("replaced", Duration::from_secs(30), |all| owns_slots(&all[5])).await;
    let path = world.nodes[4].dir.join("volume/nodes.conf");
    let file = fs::read_to_string(&path).expect("a cluster file");
    fs::write(&path, without_slots(&file, heard)).expect("written");
    world.start(4);
    world.wait("follows", Duration::from_secs(40), |all| is_linked_replica(&all[4])).await;
    assert!(world.logs().contains("follows who has taken its slots"), "{}", world.logs());
    let value = world.tenant(5).await.call(&["GET", "foo"]).await.expect("read");
    assert_eq!(value.as_bytes(), Some(&b"bar"[..]));
}

#[tokio::test]
async fn a_primary_that_has_come_back_without_slots_follows_its_successor_unasked() {
    comes_back_without_slots(true).await;
}

/// The server takes a slot that it has keys of for its own, until it hears of its successor.
#[tokio::test]
async fn a_primary_that_has_come_back_without_slots_and_has_not_heard_whose_they_are_follows_too() {
    comes_back_without_slots(false).await;
}

/// Keys of a server that owns slots are not dropped, whoever is to be followed.
#[tokio::test]
async fn a_primary_with_slots_keeps_its_keys_when_it_is_told_to_follow_another() {
    let world = formed().await;
    world.tenant(4).await.call(&["SET", "foo", "bar"]).await.expect("written");
    let primary = cluster_id(&world.statuses().await[0]);
    let fence = Fence { controller_epoch: 1, generation: 1 };
    let refused = world.client(4).order(fence, &Order::ClusterReplicate { primary }).await;
    assert!(refused.is_err(), "{refused:?}");
    let value = world.tenant(4).await.call(&["GET", "foo"]).await.expect("read");
    assert_eq!(value.as_bytes(), Some(&b"bar"[..]));
}

/// A primary that is told to end a moment after its replica has acknowledged writes that nobody else
/// has. Both come back, the replica first.
#[tokio::test]
async fn a_restarted_replica_leaves_the_lead_to_a_primary_that_comes_back_late() {
    let mut world = formed().await;
    let primary = cluster_id(&world.statuses().await[4]);
    let mut tenant = world.tenant(4).await;
    tenant.call(&["SET", "foo", "old"]).await.expect("written");
    tenant.call(&["WAIT", "1", "1000"]).await.expect("copied");
    released(&world, 5).await;
    world.kill_node(5);
    tenant.call(&["SET", "foo", "bar"]).await.expect("written");
    world.kill_node(4);
    world.start(5);
    world
        .wait("given up, by its replica too", Duration::from_secs(20), |all| {
            [0, 2, 5]
                .iter()
                .all(|index| view(&all[*index]).is_some_and(|view| has_failed(view, &primary)))
        })
        .await;
    let all = world.statuses().await;
    assert!(all[5].as_ref().is_some_and(|status| status.behind), "{}", world.logs());
    world.kill_agent(5);
    comes_back_after_nobody_led(&mut world, &primary).await;
    assert!(world.statuses().await[5].as_ref().is_some_and(|status| !status.behind));
}

/// Nobody else can bring the shard back, so it does not wait for ever.
#[tokio::test]
async fn a_restarted_replica_whose_primary_stays_away_may_lead_in_the_end() {
    let mut world = formed().await;
    world.tenant(4).await.call(&["SET", "foo", "bar"]).await.expect("written");
    world.tenant(4).await.call(&["WAIT", "1", "1000"]).await.expect("copied");
    world.kill_node(5);
    world.kill_node(4);
    world.start(5);
    world.wait("leads", Duration::from_secs(60), |all| owns_slots(&all[5])).await;
    let all = world.statuses().await;
    assert!(events(all[5].as_ref().expect("answers")).contains(&"may-lead-behind"));
    let value = world.tenant(5).await.call(&["GET", "foo"]).await.expect("read");
    assert_eq!(value.as_bytes(), Some(&b"bar"[..]));
}

#[tokio::test]
async fn a_hold_that_a_former_agent_has_set_is_lifted_by_the_next_one() {
    let mut world = formed().await;
    released(&world, 5).await;
    let pid = world.server_pid(5);
    world.kill_agent(5);
    system(&world, 5).await.config_set(HOLD, "yes").await.expect("set");
    world.start(5);
    released(&world, 5).await;
    assert_eq!(world.server_pid(5), pid, "the same server");
}

#[tokio::test]
async fn a_former_primary_that_is_only_slow_is_not_killed() {
    let world = formed().await;
    let (old, new) = (4, 5);
    world.tenant(old).await.call(&["SET", "foo", "bar"]).await.expect("written");
    world.tenant(old).await.call(&["WAIT", "1", "1000"]).await.expect("copied");
    world.wait("known", Duration::from_secs(5), |all| is_linked_replica(&all[new])).await;
    let pid = world.server_pid(old);
    let mut tenant = world.tenant(old).await;
    let mut probe = world.tenant(old).await;
    probe.set_timeout(Duration::from_millis(100));
    // It answers nobody for 3 to 4 s; after 5 s it would say that it is busy.
    tenant.set_timeout(Duration::from_secs(10));
    let busy = async move {
        let script = "local now = function() return tonumber(redis.call('TIME')[1]) end \
                      local t = now() + 4 while now() < t do end return 1";
        let began = Instant::now();
        tenant.call(&["EVAL", script, "0"]).await.expect("ends by itself");
        assert!(began.elapsed() > Duration::from_millis(2_500));
    };
    let taken = async {
        // Until the script has begun.
        let until = Instant::now() + Duration::from_secs(2);
        while probe.call(&["PING"]).await.is_ok() {
            assert!(Instant::now() < until, "the script does not run");
        }
        let mode = ClusterFailoverMode::Takeover;
        world.order(new, Order::ClusterFailover { mode }).await;
        world.wait("taken over", Duration::from_secs(3), |all| owns_slots(&all[new])).await;
    };
    tokio::join!(busy, taken);
    world.wait("follows", Duration::from_secs(20), |all| is_linked_replica(&all[old])).await;
    assert_eq!(world.server_pid(old), pid, "the same server\n{}", world.logs());
}

#[tokio::test]
async fn a_cluster_killed_as_a_whole_comes_back_with_its_data() {
    let mut world = formed().await;
    world.tenant(4).await.call(&["SET", "foo", "bar"]).await.expect("written");
    for index in 0..world.nodes.len() {
        world.kill_node(index);
    }
    world.start_all();
    world
        .wait("whole again", Duration::from_secs(30), |all| {
            all.iter().all(|status| view(status).is_some_and(|v| v.state_ok))
                && all.iter().filter(|status| owns_slots(status)).count() == SHARDS as usize
                && all.iter().filter(|status| is_linked_replica(status)).count() == 3
        })
        .await;
    let mut found = 0;
    for index in [4, 5] {
        let answer = world.tenant(index).await.call(&["GET", "foo"]).await;
        found += usize::from(answer.is_ok_and(|frame| frame.as_bytes() == Some(&b"bar"[..])));
    }
    assert_eq!(found, 1, "the one primary of the shard has the key");
}

#[tokio::test]
async fn only_failovers_that_happened_by_themselves_count_against_the_limit() {
    let world = formed().await;
    let mut primary = 4;
    let other = |index: usize| if index == 4 { 5 } else { 4 };
    world.tenant(primary).await.call(&["SET", "foo", "bar"]).await.expect("written");
    world.tenant(primary).await.call(&["WAIT", "1", "1000"]).await.expect("copied");
    // Two that count.
    for _ in 0..2 {
        let replica = other(primary);
        world.signal_server(primary, "-9");
        world.wait("replaced", Duration::from_secs(6), |all| owns_slots(&all[replica])).await;
        world.wait("back", Duration::from_secs(15), |all| is_linked_replica(&all[primary])).await;
        primary = replica;
    }
    // All servers at once: the shard may change hands or not, but nobody has to be held back.
    for index in 0..world.nodes.len() {
        world.signal_server(index, "-9");
    }
    world
        .wait("whole again", Duration::from_secs(30), |all| {
            all.iter().all(|status| view(status).is_some_and(|v| v.state_ok))
                && all.iter().filter(|status| is_linked_replica(status)).count() == 3
        })
        .await;
    // By order, which is given again until its effect is seen: it is refused for as long as the
    // shard's last change is too recent for votes.
    let mut all = world.statuses().await;
    primary = if owns_slots(&all[4]) { 4 } else { 5 };
    let replica = other(primary);
    let given_up = Instant::now() + Duration::from_secs(40);
    while !(owns_slots(&all[replica]) && is_linked_replica(&all[primary])) {
        assert!(Instant::now() < given_up, "not handed over in time");
        let order = Order::ClusterFailover { mode: ClusterFailoverMode::Coordinated };
        let fence = Fence { controller_epoch: 1, generation: 1 };
        match world.client(replica).order(fence, &order).await {
            Ok(()) => {}
            Err(ClientError::Refused(refusal)) => assert_eq!(refusal.code, Code::InstanceNotReady),
            Err(error) => panic!("{order:?}: {error}\n{}", world.logs()),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        all = world.statuses().await;
    }
    assert!(
        all.iter().flatten().all(|status| !events(status).contains(&"failover-on-hold")),
        "held back after two failovers"
    );
    // The third that counts.
    world.signal_server(replica, "-9");
    world.wait("third", Duration::from_secs(6), |all| owns_slots(&all[primary])).await;
}

/// What a primary's agent does that is told to end, as its peer hears it.
async fn told_by_its_primary(world: &World, index: usize) -> u16 {
    let socket = world.agent_socket(index);
    let mut stream = tokio::net::UnixStream::connect(socket).await.expect("it listens");
    let body = r#"{"mode":"coordinated","failovers":[],"hold":false,"done":false}"#;
    let request = format!(
        "POST /v1/peer/fail-over HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status")
}

#[tokio::test]
async fn a_leaving_primary_begins_no_failover_that_cannot_get_its_votes() {
    let world = formed().await;
    let (first, second) = (4, 5);
    for (old, new) in [(first, second), (second, first)] {
        world.wait("known", Duration::from_secs(5), |all| is_linked_replica(&all[new])).await;
        assert!(told_by_its_primary(&world, new).await < 300);
        world.wait("handed over", Duration::from_secs(6), |all| owns_slots(&all[new])).await;
        world.wait("follows", Duration::from_secs(10), |all| is_linked_replica(&all[old])).await;
        // Who votes has heard of it, too, and so has the new primary: it heeds its own replicas only.
        world
            .wait("heard of", Duration::from_secs(10), |all| {
                let former = cluster_id(&all[old]);
                [0, 2, new].iter().all(|voter| {
                    view(&all[*voter]).is_some_and(|view| {
                        view.nodes.iter().any(|n| n.id == former && n.role == Role::Replica)
                    })
                })
            })
            .await;
    }
    // It has won an election a moment ago and would begin no other one.
    assert!(told_by_its_primary(&world, second).await >= 400, "{}", world.logs());
}
