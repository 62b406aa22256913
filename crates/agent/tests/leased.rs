//! Standalone and read-write nodes with real servers: start, adoption, failover, hand-over, loss.

mod support;

use std::time::{Duration, Instant};

use larder_agent::ClientError;
use larder_model::agent::Fence;
use larder_model::agent::{Order, ProblemCode, Role, ServerState, VolumeState};
use larder_model::{Code, NodeMode};
use support::{World, events, leader, role};

const START: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_killed_standalone_server_comes_back_with_its_data_at_once() {
    let mut world = World::new(NodeMode::Leased, 1, 1);
    world.start_all();
    world.settled(START).await;
    world.tenant(0).await.call(&["SET", "key", "value"]).await.expect("written");
    let old = world.signal_server(0, "-9");
    let took = world
        .wait("back", Duration::from_secs(5), |all| {
            leader(all) == Some(0)
                && all[0].as_ref().is_some_and(|s| s.server.pid.is_some_and(|pid| pid != old))
        })
        .await;
    eprintln!("standalone back after {took:?}");
    let value = world.tenant(0).await.call(&["GET", "key"]).await.expect("read");
    assert_eq!(value.as_bytes(), Some(&b"value"[..]));
    let route = world.route().expect("published");
    assert_eq!(route.write.map(|target| target.node), Some(world.nodes[0].id.clone()));
}

#[tokio::test]
async fn a_new_agent_adopts_the_living_server_and_keeps_the_lease() {
    let mut world = World::new(NodeMode::Leased, 1, 2);
    world.start_all();
    let first = world.settled(START).await;
    let (pid, epoch) = (world.server_pid(first), world.lease().expect("taken").epoch);
    world.kill_agent(first);
    world.start(first);
    world
        .wait("adopted", Duration::from_secs(3), |all| {
            leader(all) == Some(first)
                && all[first].as_ref().is_some_and(|s| events(s).contains(&"server-adopted"))
        })
        .await;
    // A whole lease later it is still the same one.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(world.server_pid(first), pid);
    assert_eq!(world.lease().expect("held").epoch, epoch);
    assert_eq!(world.settled(START).await, first);
}

#[tokio::test]
async fn a_replica_leads_within_a_second_and_the_old_primary_returns_as_replica() {
    let mut world = World::new(NodeMode::Leased, 1, 3);
    world.start_all();
    let first = world.settled(START).await;
    world.tenant(first).await.call(&["SET", "key", "value"]).await.expect("written");
    world.tenant(first).await.call(&["WAIT", "2", "1000"]).await.expect("copied");
    let began = Instant::now();
    world.signal_server(first, "-9");
    world
        .wait("another leads", Duration::from_secs(5), |all| {
            leader(all).is_some_and(|node| node != first)
        })
        .await;
    let took = began.elapsed();
    eprintln!("failover after {took:?}");
    let second = world.settled(START).await;
    assert_ne!(second, first);
    let value = world.tenant(second).await.call(&["GET", "key"]).await.expect("read");
    assert_eq!(value.as_bytes(), Some(&b"value"[..]));
    let route = world.route().expect("published");
    assert_eq!(route.write.map(|target| target.node), Some(world.nodes[second].id.clone()));
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn a_planned_hand_over_loses_nothing() {
    let mut world = World::new(NodeMode::Leased, 1, 2);
    world.start_all();
    let first = world.settled(START).await;
    let second = 1 - first;
    // A client writes without a pause and without retries of its own until it is cut off.
    let mut client = world.tenant(first).await;
    let writer = tokio::spawn(async move {
        let mut acknowledged = 0_u32;
        while client.call(&["SET", &format!("k{acknowledged}"), "v"]).await.is_ok() {
            acknowledged += 1;
        }
        acknowledged
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let to = Some(world.nodes[second].id.clone());
    let began = Instant::now();
    world.order(first, Order::HandOver { to }).await;
    let acknowledged = tokio::time::timeout(Duration::from_secs(10), writer)
        .await
        .expect("cut off")
        .expect("no panic");
    world.wait("handed over", Duration::from_secs(5), |all| leader(all) == Some(second)).await;
    eprintln!("hand-over after {:?}, {acknowledged} writes", began.elapsed());
    assert!(acknowledged > 0);
    let mut reader = world.tenant(second).await;
    for key in 0..acknowledged {
        let value = reader.call(&["GET", &format!("k{key}")]).await.expect("read");
        assert_eq!(value.as_bytes(), Some(&b"v"[..]), "k{key} of {acknowledged} is lost");
    }
    assert_eq!(world.settled(START).await, second);
}

#[tokio::test]
async fn a_stopped_server_is_replaced() {
    let mut world = World::new(NodeMode::Leased, 1, 2);
    world.start_all();
    let first = world.settled(START).await;
    let began = Instant::now();
    world.signal_server(first, "-STOP");
    world.wait("another leads", Duration::from_secs(8), |all| leader(all) == Some(1 - first)).await;
    eprintln!("stopped server replaced after {:?}", began.elapsed());
    assert_eq!(world.settled(START).await, 1 - first);
}

#[tokio::test]
async fn a_node_without_its_volume_never_leads_and_copies_the_data_again() {
    let mut world = World::new(NodeMode::Leased, 1, 2);
    world.start_all();
    let first = world.settled(START).await;
    let second = 1 - first;
    world.tenant(first).await.call(&["SET", "key", "value"]).await.expect("written");
    world.tenant(first).await.call(&["WAIT", "1", "1000"]).await.expect("copied");
    // A copy counts once it is on the disk: before that nobody could lead.
    let memory = world.nodes[second].dir.join("state.json");
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let text = std::fs::read_to_string(&memory).expect("memory");
        let json: serde_json::Value = serde_json::from_str(&text).expect("json");
        if json["data_epoch"].as_u64().is_some_and(|epoch| epoch > 0) {
            break;
        }
        assert!(Instant::now() < until, "{text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Nobody is there to take over or to copy from.
    world.kill_node(second);
    world.kill_node(first);
    std::fs::remove_dir_all(world.nodes[first].dir.join("volume")).expect("removed");
    world.start(first);
    world
        .wait("lost", Duration::from_secs(5), |all| {
            all[first].as_ref().is_some_and(|s| {
                s.volume == VolumeState::Lost && events(s).contains(&"volume-lost")
            })
        })
        .await;
    // It stays so for longer than any patience of the election, and never takes a write.
    let until = Instant::now() + Duration::from_secs(6);
    while Instant::now() < until {
        let status = world.client(first).status().await.expect("status");
        assert_ne!(role(&status), Some(Role::Primary), "{status:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.start(second);
    assert_eq!(world.settled(Duration::from_secs(30)).await, second);
    world
        .wait("rebuilt", Duration::from_secs(5), |all| {
            all[first].as_ref().is_some_and(|s| s.volume == VolumeState::Data)
        })
        .await;
    let value = world.tenant(first).await.call(&["GET", "key"]).await.expect("read");
    assert_eq!(value.as_bytes(), Some(&b"value"[..]));
}

#[tokio::test]
async fn a_stranger_on_the_port_is_never_spoken_to() {
    let mut world = World::new(NodeMode::Leased, 1, 1);
    let port = world.nodes[0].address.port;
    let stranger = std::net::TcpListener::bind(("127.0.0.1", port)).expect("port");
    world.start_all();
    world
        .wait("port taken", Duration::from_secs(5), |all| {
            all[0].as_ref().is_some_and(|s| {
                s.problem.as_ref().is_some_and(|p| p.code == ProblemCode::PortTaken)
            })
        })
        .await;
    drop(stranger);
    assert_eq!(world.settled(START).await, 0);
    let status = world.client(0).status().await.expect("status");
    assert_eq!(status.server.state, ServerState::Serving);
    assert_eq!(status.problem, None);
}

#[tokio::test]
async fn older_and_misplaced_orders_are_refused_and_news_wakes_a_waiting_reader() {
    let mut world = World::new(NodeMode::Leased, 1, 1);
    world.start_all();
    world.settled(START).await;
    let client = world.client(0);
    let fence = |controller_epoch, generation| Fence { controller_epoch, generation };
    client.order(fence(2, 1), &Order::StartEmpty).await.expect("accepted");
    let stale = client.order(fence(1, 9), &Order::StartEmpty).await;
    assert!(matches!(stale, Err(ClientError::Stale { seen }) if seen == fence(2, 1)), "{stale:?}");
    for (order, code) in [
        (Order::HandOver { to: None }, Code::NoEligibleReplica),
        (Order::ClusterForget { ids: vec![] }, Code::InvalidRequest),
    ] {
        let refused = client.order(fence(2, 1), &order).await;
        assert!(
            matches!(&refused, Err(ClientError::Refused(refusal)) if refusal.code == code),
            "{refused:?}"
        );
    }
    let now = client.status().await.expect("status");
    let began = Instant::now();
    let (waiter, run, version) = (client.clone(), now.agent_run.clone(), now.version);
    let waiting = tokio::spawn(async move { waiter.next_status(&run, version).await });
    let run_id = now.server.run_id.expect("serves");
    client.order(fence(2, 2), &Order::RestartServer { run_id }).await.expect("accepted");
    let news = waiting.await.expect("no panic").expect("status");
    assert!(news.version > now.version && began.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_lost_folder_that_is_put_back_is_used_again() {
    let mut world = World::new(NodeMode::Leased, 1, 1);
    world.start_all();
    world.settled(START).await;
    world.tenant(0).await.call(&["SET", "key", "value"]).await.expect("written");
    let (folder, elsewhere) = (world.nodes[0].dir.join("volume"), world.nodes[0].dir.join("away"));
    world.kill_node(0);
    std::fs::rename(&folder, &elsewhere).expect("moved");
    world.start(0);
    world
        .wait("lost", START, |all| all[0].as_ref().is_some_and(|s| s.volume == VolumeState::Lost))
        .await;
    // Only a part of it: still lost, however long that takes.
    std::fs::create_dir(&folder).expect("made");
    std::fs::copy(elsewhere.join(".larder"), folder.join(".larder")).expect("copied");
    tokio::time::sleep(Duration::from_secs(6)).await;
    let status = world.client(0).status().await.expect("answers");
    assert_eq!(status.volume, VolumeState::Lost);
    std::fs::remove_dir_all(&folder).expect("removed");
    std::fs::rename(&elsewhere, &folder).expect("moved back");
    world.settled(START).await;
    let value = world.tenant(0).await.call(&["GET", "key"]).await.expect("read");
    assert_eq!(value.as_bytes(), Some(&b"value"[..]));
    let status = world.client(0).status().await.expect("answers");
    assert!(events(&status).contains(&"volume-back"), "{:?}", events(&status));
}

#[tokio::test]
async fn a_standalone_node_with_damaged_notes_leads_with_its_data() {
    let mut world = World::new(NodeMode::Leased, 1, 1);
    world.start_all();
    world.settled(START).await;
    world.tenant(0).await.call(&["SET", "key", "value"]).await.expect("written");
    let notes = world.nodes[0].dir.join("state.json");
    let before = world.client(0).status().await.expect("answers");
    let last = before.events.last().expect("some").seq;
    for damage in [Some("{\"born\": tr"), None] {
        world.kill_node(0);
        match damage {
            Some(text) => std::fs::write(&notes, text).expect("written"),
            None => std::fs::remove_file(&notes).expect("removed"),
        }
        world.start(0);
        world.settled(START).await;
        let value = world.tenant(0).await.call(&["GET", "key"]).await.expect("read");
        assert_eq!(value.as_bytes(), Some(&b"value"[..]));
        let status = world.client(0).status().await.expect("answers");
        let told = status.events.iter().find(|event| event.reason == "notes-recovered");
        assert!(told.is_some_and(|event| event.seq > last), "{:?}", status.events);
        assert_eq!(events(&status).contains(&"notes-unreadable"), damage.is_some());
    }
}

#[tokio::test]
async fn neither_adoption_nor_a_tenant_that_closes_all_connections_makes_a_server_look_busy() {
    let mut world = World::new(NodeMode::Leased, 1, 1);
    world.start_all();
    world.settled(START).await;
    for _ in 0..3 {
        world.kill_agent(0);
        world.start(0);
        let until = Instant::now() + Duration::from_secs(2);
        let mut answers = 0;
        while Instant::now() < until {
            let kill = ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"];
            world.tenant(0).await.call(&kill).await.expect("allowed");
            // No answer yet is none that misleads.
            if let Ok(status) = world.client(0).status().await {
                answers += 1;
                assert_eq!(leader(&[Some(status.clone())]), Some(0), "{status:?}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(answers > 0);
    }
}
