//! The rules of the election, one decision at a time.

use larder_election::{
    Action, Chain, Decision, HandOverProgress, LeaseKnown, LeaseView, Local, LocalServer,
    OrderKind, OrderOutcome, Peer, PeerPromise, PeerReport, PendingOrder, Promise, Situation,
    Stall, StartAs, SyncMark, WhyNoPrimary, WhyParked, decide, may_promise, stall, sync_mark,
    view_looks_old,
};
use larder_model::agent::{Member, ReplicaSeen, ReplicationView, Role, ServerState, VolumeState};
use larder_model::lease::{LeaseHolder, LeaseRecord, Previous, ReleaseReason};
use larder_model::{Address, ElectionPolicy, NodeId, Observation, Timestamp, ZoneName};

const NOW: Timestamp = Timestamp(1_000_000);
const WALL: Timestamp = Timestamp(1_800_000_000_000);

fn id(name: &str) -> NodeId {
    NodeId::new(name).expect("valid")
}

fn member(name: &str) -> Member {
    let port = 6000 + u16::from(name.as_bytes()[0]);
    let zone = Some(ZoneName::new("z").expect("valid"));
    Member { outer: None, node: id(name), shard: 0, zone, address: Address::new("h", port) }
}

fn view(role: Role, offset: u64) -> ReplicationView {
    ReplicationView {
        role,
        primary: (role == Role::Replica).then(|| member("a").address),
        link_up: role == Role::Replica,
        syncing: false,
        replid: "x".into(),
        offset,
        replicas: Vec::new(),
    }
}

fn mark(name: &str) -> SyncMark {
    SyncMark { run_id: format!("run-{name}"), epoch: 5, replid: "x".into() }
}

/// A synced replica of epoch 5, or its primary.
fn local(name: &str, role: Role, offset: u64) -> Local {
    Local {
        me: member(name),
        server: LocalServer {
            state: ServerState::Serving,
            run_id: Some(format!("run-{name}")),
            replication: Some(view(role, offset)),
            writes_paused: false,
            down_since: None,
            may_start: true,
        },
        volume: VolumeState::Data,
        data_epoch: 5,
        data_aside: false,
        synced: Some(mark(name)),
        bootstrap: false,
        initialized: true,
        promise: None,
        renewed_at: (role == Role::Primary).then_some(NOW),
        order: None,
        hand_over: None,
        route: None,
        chain: None,
    }
}

fn dead(mut local: Local) -> Local {
    local.server.state = ServerState::Dead;
    local.server.replication = None;
    local.server.run_id = None;
    local.server.down_since = Some(NOW);
    local.renewed_at = None;
    local
}

fn report(name: &str, offset: u64) -> PeerReport {
    PeerReport {
        node: id(name),
        state: ServerState::Serving,
        run_id: Some(format!("run-{name}")),
        replication: Some(view(Role::Replica, offset)),
        volume: VolumeState::Data,
        data_epoch: 5,
        synced: Some(mark(name)),
        lease_epoch: 5,
    }
}

fn answered(report: PeerReport) -> Peer {
    Peer {
        member: member(report.node.as_str()),
        asked_at: Some(NOW),
        answer: Observation::Known { value: report, at: NOW },
        promise: None,
    }
}

fn silent(name: &str) -> Peer {
    let answer = Observation::Unknown { since: NOW };
    Peer { member: member(name), asked_at: Some(NOW), answer, promise: None }
}

fn held_by(name: &str, seen_at: Timestamp) -> LeaseView {
    let holder = Some(LeaseHolder { node: id(name), run_id: format!("run-{name}") });
    let record = LeaseRecord { epoch: 5, holder, previous: None, failovers: Vec::new() };
    LeaseView::Known(LeaseKnown { record, version: 7, seen_at, epoch_seen_at: seen_at })
}

fn released(reason: ReleaseReason, successor: Option<&str>, seen_at: Timestamp) -> LeaseView {
    let previous = Some(Previous { node: id("a"), epoch: 5, reason, successor: successor.map(id) });
    let record = LeaseRecord { epoch: 5, holder: None, previous, failovers: Vec::new() };
    LeaseView::Known(LeaseKnown { record, version: 8, seen_at, epoch_seen_at: seen_at })
}

fn ago(ms: i64) -> Timestamp {
    Timestamp(NOW.0 - ms)
}

fn run(local: &Local, peers: &[Peer], lease: &LeaseView) -> Decision {
    decide(local, peers, lease, &ElectionPolicy::default(), NOW, WALL)
}

fn acquires(decision: &Decision) -> bool {
    decision.actions.iter().any(|a| matches!(a, Action::AcquireLease { .. }))
}

#[test]
fn a_new_instance_is_begun_by_its_bootstrap_node_alone() {
    let mut first = local("a", Role::Replica, 0);
    (first.data_epoch, first.synced, first.initialized) = (0, None, false);
    let mut other = first.clone();
    first.bootstrap = true;
    assert!(acquires(&run(&first, &[silent("b")], &LeaseView::Absent)));
    assert!(!acquires(&run(&other, &[silent("b")], &LeaseView::Absent)));
    // An instance with a past is never begun again.
    (other.bootstrap, other.initialized) = (true, true);
    assert!(!acquires(&run(&other, &[silent("b")], &LeaseView::Absent)));
    (first.volume, first.initialized) = (VolumeState::Lost, false);
    assert!(!acquires(&run(&first, &[silent("b")], &LeaseView::Absent)));
}

#[test]
fn a_holder_renews_each_second() {
    let mut holder = local("a", Role::Primary, 9);
    let peers = [answered(report("b", 9))];
    holder.renewed_at = Some(ago(999));
    let renews = |d: &Decision| d.actions.iter().any(|a| matches!(a, Action::RenewLease { .. }));
    let decision = run(&holder, &peers, &held_by("a", ago(999)));
    assert!(!renews(&decision));
    assert_eq!(decision.wake_at, Some(Timestamp(NOW.0 + 1)));
    holder.renewed_at = Some(ago(1000));
    assert!(renews(&run(&holder, &peers, &held_by("a", ago(1000)))));
}

#[test]
fn a_holder_that_cannot_renew_stops_writes_before_its_lease_runs_out() {
    let mut holder = local("a", Role::Primary, 9);
    let LeaseView::Known(known) = held_by("a", ago(3300)) else { unreachable!() };
    let lease = LeaseView::Unreachable { since: ago(2000), last: Some(known) };
    let peers = [answered(report("b", 9)), silent("c")];
    holder.renewed_at = Some(ago(3299));
    let decision = run(&holder, &peers, &lease);
    assert!(!decision.actions.contains(&Action::Park), "{decision:?}");
    assert_eq!(decision.wake_at, Some(Timestamp(NOW.0 + 1)));
    holder.renewed_at = Some(ago(3300));
    assert_eq!(run(&holder, &peers, &lease).actions, [Action::Park]);
}

#[test]
fn a_hand_over_waits_for_an_answer_before_it_calls_a_replica_silent() {
    let mut holder = local("a", Role::Primary, 9);
    let order =
        |since| Some(PendingOrder { kind: OrderKind::HandOver { to: Some(id("b")) }, since });
    holder.order = order(ago(100));
    let mut asked = answered(report("b", 9));
    asked.asked_at = Some(ago(90));
    asked.answer = Observation::Known { value: report("b", 9), at: ago(5000) };
    let refused = |d: &Decision| d.actions.iter().any(|a| matches!(a, Action::FinishOrder(_)));
    assert!(!refused(&run(&holder, &[asked.clone()], &held_by("a", ago(100)))), "on its way");
    let mut gone = asked.clone();
    gone.answer = Observation::Unknown { since: ago(90) };
    assert!(refused(&run(&holder, &[gone], &held_by("a", ago(100)))), "it did not answer");
    holder.order = order(ago(600));
    assert!(refused(&run(&holder, &[asked], &held_by("a", ago(100)))), "waited long enough");
}

#[test]
fn a_silent_server_of_a_holder_that_cannot_renew_is_stopped_in_time_too() {
    let mut holder = local("a", Role::Primary, 9);
    holder.server.state = ServerState::Busy;
    holder.server.replication = None;
    let LeaseView::Known(known) = held_by("a", ago(3300)) else { unreachable!() };
    let lease = LeaseView::Unreachable { since: ago(2000), last: Some(known) };
    let peers = [answered(report("b", 9)), silent("c")];
    holder.renewed_at = Some(ago(3299));
    let decision = run(&holder, &peers, &lease);
    assert!(!decision.actions.contains(&Action::Park), "{decision:?}");
    assert_eq!(decision.wake_at, Some(Timestamp(NOW.0 + 1)));
    holder.renewed_at = Some(ago(3300));
    assert_eq!(run(&holder, &peers, &lease).actions, [Action::Park]);
}

#[test]
fn a_holder_goes_on_only_when_every_replica_has_promised() {
    let mut holder = local("a", Role::Primary, 9);
    holder.renewed_at = Some(ago(3900));
    let LeaseView::Known(known) = held_by("a", ago(3900)) else { unreachable!() };
    let lease = LeaseView::Unreachable { since: ago(2000), last: Some(known) };
    let promise = Some(PeerPromise { epoch: 5, until: Timestamp(NOW.0 + 3000) });
    let mut peers = [silent("b"), silent("c")];
    peers[0].promise = promise;
    assert_eq!(run(&holder, &peers, &lease).actions, [Action::Park]);
    peers[1].promise = promise;
    let decision = run(&holder, &peers, &lease);
    assert!(matches!(decision.situation, Situation::FailStatic { .. }), "{decision:?}");
    // A promise to an older epoch's holder is none.
    peers[1].promise = Some(PeerPromise { epoch: 4, until: Timestamp(NOW.0 + 3000) });
    assert_eq!(run(&holder, &peers, &lease).actions, [Action::Park]);
}

#[test]
fn a_promise_binds_until_the_holder_lets_go() {
    let mut replica = local("b", Role::Replica, 9);
    let until = Timestamp(NOW.0 + 500);
    replica.promise = Some(Promise { epoch: 5, until });
    let decision = run(&replica, &[silent("a")], &held_by("a", ago(60_000)));
    assert_eq!(decision.situation, Situation::Parked(WhyParked::Promised));
    let lease = released(ReleaseReason::ServerLost, Some("b"), NOW);
    assert!(acquires(&run(&replica, &[silent("a")], &lease)));
}

#[test]
fn promises_are_given_to_the_newest_holder_only() {
    let replica = local("b", Role::Replica, 9);
    let lease = held_by("a", NOW);
    assert!(may_promise(&replica, &lease, 5));
    assert!(!may_promise(&replica, &lease, 4));
    assert!(!may_promise(&local("a", Role::Primary, 9), &lease, 5));
}

#[test]
fn nobody_takes_a_lease_that_may_still_be_held() {
    let replica = local("b", Role::Replica, 9);
    let peers = [silent("a")];
    assert!(!acquires(&run(&replica, &peers, &held_by("a", ago(4099)))));
    assert!(!acquires(&run(&replica, &peers, &held_by("a", ago(4200)))), "gathers first");
    assert!(acquires(&run(&replica, &peers, &held_by("a", ago(4600)))));
}

#[test]
fn a_dead_server_is_handed_over_at_once_to_the_highest_offset() {
    let holder = dead(local("a", Role::Primary, 9));
    let peers = [answered(report("b", 7)), answered(report("c", 8))];
    let decision = run(&holder, &peers, &held_by("a", ago(100)));
    let Some(Action::ReleaseLease { record, after_version: 7 }) = decision.actions.first() else {
        panic!("{decision:?}")
    };
    let previous = record.previous.as_ref().expect("it led");
    assert_eq!((previous.reason, &previous.successor), (ReleaseReason::ServerLost, &Some(id("c"))));
}

#[test]
fn a_restarted_server_does_not_resume() {
    let mut holder = local("a", Role::Replica, 9);
    holder.server.run_id = Some("another".into());
    let peers = [answered(report("b", 7))];
    let decision = run(&holder, &peers, &held_by("a", ago(100)));
    assert!(matches!(decision.actions.first(), Some(Action::ReleaseLease { .. })), "{decision:?}");
    // Released, a candidate answers: it waits for that one, for ten seconds at most.
    let lease = released(ReleaseReason::ServerLost, Some("b"), ago(0));
    assert!(!acquires(&run(&holder, &peers, &lease)));
    let lease = released(ReleaseReason::ServerLost, Some("b"), ago(10_000));
    assert!(acquires(&run(&holder, &peers, &lease)));
}

#[test]
fn when_all_answered_and_nobody_is_a_candidate_the_own_file_leads_at_once() {
    let mut holder = local("a", Role::Replica, 0);
    holder.server.run_id = Some("another".into());
    let mut restarted = report("b", 0);
    restarted.run_id = Some("another-too".into());
    let lease = released(ReleaseReason::ServerLost, None, NOW);
    assert!(acquires(&run(&holder, &[answered(restarted)], &lease)));
    assert!(!acquires(&run(&holder, &[silent("b")], &lease)), "b may be one");
}

#[test]
fn lagging_replica_is_not_promoted() {
    let replica = local("b", Role::Replica, 7);
    let lease = released(ReleaseReason::ServerLost, None, ago(600));
    let mut better = answered(report("c", 8));
    let decision = run(&replica, &[silent("a"), better.clone()], &lease);
    let why = WhyNoPrimary::BetterCandidate(id("c"));
    assert_eq!(decision.situation, Situation::NoPrimary(why));
    // Of two with the same offset the lower id takes it.
    better.answer = Observation::Known { value: report("c", 7), at: NOW };
    if let Observation::Known { at, .. } = &mut better.answer {
        *at = ago(0);
    }
    assert!(acquires(&run(&replica, &[silent("a"), better], &lease)));
}

#[test]
fn loading_restarted_unsynced_and_volumeless_nodes_are_no_candidates() {
    let lease = released(ReleaseReason::ServerLost, None, ago(5000));
    let others = [silent("a")];
    assert!(acquires(&run(&local("b", Role::Replica, 7), &others, &lease)));
    let changes: [fn(&mut Local); 6] = [
        |l| l.server.state = ServerState::Loading,
        |l| l.server.run_id = Some("another".into()),
        |l| l.synced = None,
        |l| l.synced.as_mut().expect("set").epoch = 4,
        |l| l.volume = VolumeState::Lost,
        |l| l.server.replication.as_mut().expect("set").syncing = true,
    ];
    for (i, change) in changes.iter().enumerate() {
        let mut replica = local("b", Role::Replica, 7);
        change(&mut replica);
        assert!(!acquires(&run(&replica, &others, &lease)), "change {i}");
    }
}

#[test]
fn the_newest_lineage_leads_when_the_former_holder_lost_its_volume() {
    let mut restarted = local("b", Role::Replica, 0);
    restarted.server.run_id = Some("another".into());
    let mut former = report("a", 0);
    former.volume = VolumeState::Lost;
    let lease = released(ReleaseReason::VolumeLost, None, ago(100));
    assert!(acquires(&run(&restarted, &[answered(former.clone())], &lease)));
    // With its data it goes first, however long that takes.
    former.volume = VolumeState::Data;
    let lease = released(ReleaseReason::ServerLost, None, ago(60_000));
    let decision = run(&restarted, &[answered(former)], &lease);
    let why = WhyNoPrimary::BetterCandidate(id("a"));
    let waits = WhyNoPrimary::WaitsForFormerHolder(id("a"));
    assert!(
        [Situation::NoPrimary(why), Situation::NoPrimary(waits)].contains(&decision.situation),
        "{decision:?}"
    );
}

#[test]
fn the_new_holder_fences_the_old_primary_syncs_its_file_and_writes_the_lease_before_it_promotes() {
    let mut replica = local("b", Role::Replica, 9);
    replica.renewed_at = Some(NOW);
    let LeaseView::Known(mut known) = held_by("b", NOW) else { unreachable!() };
    known.record.epoch = 6;
    let reason = ReleaseReason::Expired;
    known.record.previous = Some(Previous { node: id("a"), epoch: 5, reason, successor: None });
    let decision = run(&replica, &[silent("a")], &LeaseView::Known(known));
    let names: Vec<&Action> = decision.actions.iter().collect();
    assert!(
        matches!(
            names.as_slice(),
            [
                Action::FenceOldPrimary { epoch: 6, .. },
                Action::SyncData,
                Action::RenewLease { after_version: 7 },
                Action::Promote { epoch: 6 },
                Action::PublishRoute(_)
            ]
        ),
        "{decision:?}"
    );
}

#[test]
fn a_returning_primary_becomes_a_replica_and_keeps_its_data_aside() {
    let mut old = local("b", Role::Primary, 9);
    old.data_epoch = 4;
    let decision = run(&old, &[answered(report("a", 9))], &held_by("a", NOW));
    assert_eq!(decision.actions, [Action::KeepDataAside, Action::Follow(member("a"))]);
}

#[test]
fn a_lost_volume_starts_as_a_replica_only() {
    let mut lost = dead(local("b", Role::Replica, 0));
    lost.volume = VolumeState::Lost;
    let lease = released(ReleaseReason::ServerLost, None, ago(60_000));
    assert!(
        !run(&lost, &[silent("a")], &lease)
            .actions
            .iter()
            .any(|a| matches!(a, Action::StartServer { .. }))
    );
    let start_as = StartAs::ReplicaOf(member("a"));
    let mut leads = report("a", 9);
    leads.replication = Some(view(Role::Primary, 9));
    let decision = run(&lost, &[answered(leads)], &held_by("a", NOW));
    assert_eq!(decision.actions, [Action::StartServer { start_as }]);
}

#[test]
fn a_lost_volume_is_not_touched_before_its_holder_has_answered_that_it_leads_with_data() {
    let mut lost = dead(local("b", Role::Replica, 0));
    lost.volume = VolumeState::Lost;
    let mut dies = silent("a");
    dies.asked_at = None;
    let decision = run(&lost, &[dies], &held_by("a", NOW));
    assert_eq!(decision.actions, [Action::AskPeers]);
    assert!(
        decision.wake_at.is_some_and(|at| at <= NOW + larder_model::Millis(500)),
        "{decision:?}"
    );
    let mut lost_too = report("a", 9);
    lost_too.replication = Some(view(Role::Primary, 9));
    lost_too.volume = VolumeState::Lost;
    for not_yet in [silent("a"), answered(report("a", 9)), answered(lost_too)] {
        let decision = run(&lost, &[not_yet], &held_by("a", NOW));
        assert!(!decision.actions.iter().any(|a| matches!(a, Action::StartServer { .. })));
    }
}

#[test]
fn after_three_failovers_candidates_hold_and_the_former_holder_leads_from_its_file() {
    let hold = |view: &mut LeaseView, at: Timestamp| {
        if let LeaseView::Known(known) = view {
            known.record.failovers = vec![at; 3];
        }
    };
    let mut lease = released(ReleaseReason::ServerLost, None, ago(600));
    hold(&mut lease, Timestamp(WALL.0 - 299_999));
    let replica = local("b", Role::Replica, 7);
    let decision = run(&replica, &[silent("a")], &lease);
    assert_eq!(decision.situation, Situation::NoPrimary(WhyNoPrimary::OnHold));
    let mut former = local("a", Role::Replica, 0);
    former.server.run_id = Some("another".into());
    assert!(acquires(&run(&former, &[answered(report("b", 7))], &lease)));
    hold(&mut lease, Timestamp(WALL.0 - 300_000));
    assert!(acquires(&run(&replica, &[silent("a")], &lease)), "the window has passed");
}

#[test]
fn a_planned_hand_over_succeeds_while_automatic_failovers_are_on_hold() {
    let mut lease = released(ReleaseReason::Planned, Some("b"), NOW);
    if let LeaseView::Known(known) = &mut lease {
        known.record.failovers = vec![WALL; 3];
    }
    assert!(acquires(&run(&local("b", Role::Replica, 7), &[answered(report("a", 7))], &lease)));
}

#[test]
fn a_failover_is_written_into_the_lease_and_a_planned_one_is_not() {
    let replica = local("b", Role::Replica, 7);
    for (reason, count) in [(ReleaseReason::ServerLost, 1), (ReleaseReason::Planned, 0)] {
        let decision = run(&replica, &[silent("a")], &released(reason, Some("b"), NOW));
        let Some(Action::AcquireLease { record, after_version: Some(8) }) =
            decision.actions.first()
        else {
            panic!("{decision:?}")
        };
        assert_eq!((record.epoch, record.failovers.len()), (6, count));
    }
}

#[test]
fn a_node_without_peers_leads_from_its_file_though_the_lease_is_out_of_reach() {
    let mut only = local("a", Role::Replica, 9);
    only.server.run_id = Some("another".into());
    let LeaseView::Known(known) = held_by("a", ago(60_000)) else { unreachable!() };
    let lease = LeaseView::Unreachable { since: ago(2000), last: Some(known) };
    let decision = run(&only, &[], &lease);
    assert_eq!(decision.actions.first(), Some(&Action::Promote { epoch: 5 }), "{decision:?}");
}

#[test]
fn a_hand_over_waits_for_equal_offsets_and_then_names_its_successor() {
    let mut holder = local("a", Role::Primary, 9);
    let seen = |offset| ReplicaSeen { address: member("b").address, online: true, offset };
    holder.server.replication.as_mut().expect("set").replicas = vec![seen(8)];
    let kind = OrderKind::HandOver { to: None };
    holder.order = Some(PendingOrder { kind, since: NOW });
    let peers = [answered(report("b", 9))];
    let lease = held_by("a", NOW);
    let decision = run(&holder, &peers, &lease);
    assert!(decision.actions.contains(&Action::BeginHandOver { to: id("b") }), "{decision:?}");
    let progress = larder_election::HandOverProgress { to: id("b"), since: ago(100) };
    holder.hand_over = Some(progress);
    holder.server.writes_paused = true;
    assert!(run(&holder, &peers, &lease).actions.is_empty(), "one write behind");
    holder.server.replication.as_mut().expect("set").replicas = vec![seen(9)];
    let decision = run(&holder, &peers, &lease);
    assert!(
        matches!(
            decision.actions.as_slice(),
            [
                Action::CloseClients,
                Action::Park,
                Action::ResumeWrites,
                Action::ReleaseLease { .. },
                Action::EndHandOver,
                Action::FinishOrder(OrderOutcome::Done)
            ]
        ),
        "{decision:?}"
    );
    // Too slow: called off, writes go on.
    holder.server.replication.as_mut().expect("set").replicas = vec![seen(8)];
    holder.hand_over.as_mut().expect("set").since = ago(5000);
    let decision = run(&holder, &peers, &lease);
    assert!(decision.actions.contains(&Action::ResumeWrites), "{decision:?}");
    assert!(decision.actions.contains(&Action::FinishOrder(OrderOutcome::TooSlow)));
}

#[test]
fn a_hand_over_waits_for_a_replica_that_is_about_to_be_streamed_to() {
    let mut holder = local("a", Role::Primary, 9);
    let seen = |online| ReplicaSeen { address: member("b").address, online, offset: 9 };
    let peers = [answered(report("b", 9))];
    let lease = held_by("a", NOW);
    for to in [None, Some(id("b"))] {
        let begins = Action::BeginHandOver { to: id("b") };
        let refused = match &to {
            None => OrderOutcome::NoCandidate,
            Some(node) => OrderOutcome::NoSuchCandidate(node.clone()),
        };
        let mut run_at = |since, replicas| {
            let kind = OrderKind::HandOver { to: to.clone() };
            holder.order = Some(PendingOrder { kind, since });
            holder.server.replication.as_mut().expect("set").replicas = replicas;
            run(&holder, &peers, &lease).actions
        };
        assert_eq!(run_at(NOW, vec![seen(false)]), []);
        assert!(run_at(NOW, vec![seen(true)]).contains(&begins));
        let too_late = [Action::FinishOrder(refused)];
        assert_eq!(run_at(ago(3000), vec![seen(false)]), too_late);
        assert_eq!(run_at(NOW, vec![]), too_late, "not even connected");
    }
}

#[test]
fn a_hand_over_ends_when_the_lease_cannot_be_renewed() {
    for late in [2500, 3500] {
        let mut me = local("a", Role::Primary, 10);
        me.server.writes_paused = true;
        me.renewed_at = Some(ago(late));
        me.hand_over = Some(HandOverProgress { to: id("b"), since: ago(500) });
        let decision = run(&me, &[silent("b")], &held_by("a", ago(late)));
        let finished = Action::FinishOrder(OrderOutcome::TooSlow);
        assert!(decision.actions.contains(&Action::EndHandOver), "{decision:?}");
        assert!(decision.actions.contains(&finished), "{decision:?}");
    }
}

#[test]
fn a_lease_is_taken_by_force_only_with_data_and_only_with_acceptance() {
    let mut node = local("b", Role::Replica, 3);
    node.synced = None;
    let order = |accept_data_loss| {
        let kind = OrderKind::TakeLease { accept_data_loss };
        Some(PendingOrder { kind, since: NOW })
    };
    let lease = released(ReleaseReason::ServerLost, None, NOW);
    node.order = order(false);
    let refused = Action::FinishOrder(OrderOutcome::WouldLoseData);
    assert_eq!(run(&node, &[silent("a")], &lease).actions, [refused]);
    node.order = order(true);
    assert!(acquires(&run(&node, &[silent("a")], &lease)));
    node.volume = VolumeState::Lost;
    let refused = Action::FinishOrder(OrderOutcome::NoData);
    assert_eq!(run(&node, &[silent("a")], &lease).actions, [refused]);
}

#[test]
fn a_lease_taken_from_a_living_holder_has_to_run_out_first() {
    let mut node = local("b", Role::Replica, 3);
    let LeaseView::Known(mut known) = held_by("b", NOW) else { unreachable!() };
    known.record.epoch = 6;
    let reason = ReleaseReason::Forced;
    known.record.previous = Some(Previous { node: id("a"), epoch: 5, reason, successor: None });
    node.renewed_at = Some(NOW);
    known.epoch_seen_at = ago(4099);
    let decision = run(&node, &[silent("a")], &LeaseView::Known(known.clone()));
    assert_eq!(decision.situation, Situation::Parked(WhyParked::OldLeaseRuns));
    known.epoch_seen_at = ago(4100);
    let decision = run(&node, &[silent("a")], &LeaseView::Known(known));
    assert!(decision.actions.contains(&Action::Promote { epoch: 6 }), "{decision:?}");
}

#[test]
fn a_link_that_is_not_yet_known_to_be_broken_is_no_sync() {
    let mut replica = local("b", Role::Replica, 9);
    let LeaseView::Known(mut known) = held_by("a", NOW) else { unreachable!() };
    known.record.epoch = 6;
    let lease = LeaseView::Known(known);
    let peers = [silent("a")];
    assert_eq!(sync_mark(&replica, &peers, &lease).expect("kept").epoch, 5);
    replica.server.replication.as_mut().expect("set").replid = "y".into();
    assert_eq!(sync_mark(&replica, &peers, &lease).expect("made").epoch, 6);
    // A link to somebody else than the holder says nothing.
    replica.server.replication.as_mut().expect("set").primary = Some(member("c").address);
    assert_eq!(sync_mark(&replica, &peers, &lease).expect("kept").epoch, 5);
}

/// The agent of a replica slept through a change of primary: its server got the new replication id
/// through the demoted one, which the agent still took for the holder.
#[test]
fn a_replica_that_got_the_new_id_through_a_chain_is_synced_by_the_holders_word() {
    let mut me = local("b", Role::Replica, 10);
    (me.data_epoch, me.synced) = (4, Some(SyncMark { epoch: 4, ..mark("b") }));
    let lease = held_by("a", ago(3000));
    let peers = [silent("a")];
    assert_eq!(sync_mark(&me, &peers, &lease), me.synced, "the link may be an old one");
    let asked_long_ago = [Peer { asked_at: Some(ago(2000)), ..silent("a") }];
    let decision = run(&me, &asked_long_ago, &lease);
    assert!(decision.actions.contains(&Action::AskPeers), "{decision:?}");

    let holder = PeerReport { replication: Some(view(Role::Primary, 10)), ..report("a", 10) };
    let peers = [answered(holder.clone())];
    assert_eq!(sync_mark(&me, &peers, &lease), Some(mark("b")));

    let not_yet = PeerReport { data_epoch: 4, ..holder };
    assert_eq!(sync_mark(&me, &[answered(not_yet)], &lease), me.synced, "it has not led in it");
}

/// Before 7.0 a server that changes its primary drops its own replicas for a moment.
#[test]
fn who_loses_its_link_while_the_one_above_goes_around_a_dead_one_waits_for_it() {
    let lease = held_by("a", NOW);
    let leader = PeerReport { replication: Some(view(Role::Primary, 20)), ..report("a", 20) };
    let mut above = report("b", 10);
    above.replication.as_mut().expect("set").link_up = false;
    let peers = [answered(leader), answered(above)];
    let mut me = local("c", Role::Replica, 10);
    let chain = |stall| Chain { upstream: Some(id("b")), left: None, stall };
    let mut look = |link_up: bool, before: Option<Stall>, at: Timestamp| {
        let replication = me.server.replication.as_mut().expect("set");
        (replication.primary, replication.link_up) = (Some(member("b").address), link_up);
        let now = stall(before, &me, &peers, &lease, at);
        me.chain = Some(chain(now));
        let leaves = |action: &Action| matches!(action, Action::LeaveUpstream { .. });
        (now, run(&me, &peers, &lease).actions.iter().any(leaves))
    };
    let (idle, leaves) = look(true, None, ago(2100));
    assert!(!leaves && idle.is_some(), "the one above answers");
    let (lost, leaves) = look(false, idle, ago(10));
    assert!(!leaves, "its link is lost only now: {lost:?}");
    assert!(look(false, Some(Stall { unlinked_since: Some(ago(2100)), ..lost.unwrap() }), NOW).1);
    let (again, leaves) = look(true, lost, NOW);
    assert!(!leaves && again == idle, "the link is there again: {again:?}");
    assert!(look(true, Some(Stall { since: ago(6000), ..idle.unwrap() }), NOW).1, "for too long");
}

/// The notice of a new epoch is lost, the first copy is complete, and a moment later the only other
/// volume is: without a look at the lease in between the copy would count for nothing.
#[test]
fn a_view_that_does_not_explain_what_is_seen_looks_old() {
    let lease = held_by("a", NOW);
    let mut me = local("b", Role::Replica, 10);
    me.synced = Some(mark("b"));
    assert!(!view_looks_old(&me, &[silent("a")], &lease), "marked in this epoch");

    let newer = PeerReport { lease_epoch: 6, ..report("a", 10) };
    assert!(view_looks_old(&me, &[answered(newer)], &lease), "a peer knows more");

    me.synced = None;
    assert!(view_looks_old(&me, &[silent("a")], &lease), "in sync with nobody known");
    me.server.replication.as_mut().expect("set").syncing = true;
    assert!(!view_looks_old(&me, &[silent("a")], &lease), "no copy to mark yet");

    let me = local("a", Role::Primary, 10);
    assert!(!view_looks_old(&me, &[silent("b")], &lease), "a primary marks itself");
}

#[test]
fn a_hung_server_is_killed_before_anything_else() {
    let mut holder = local("a", Role::Primary, 9);
    holder.server.state = ServerState::Hung;
    let decision = run(&holder, &[silent("b")], &held_by("a", NOW));
    assert!(matches!(decision.actions.as_slice(), [Action::KillServer { .. }]), "{decision:?}");
}
