//! Slots move between real servers: with every key, under a writing client, over deaths.

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use larder_model::agent::{AgentStatus, ClusterView, Order, Role};
use larder_model::{
    Address, ByteSize, MoveLimits, MovePace, SlotJob, SlotMoveStatus, SlotRange, SlotSet,
};
use larder_node::Connection;
use support::World;
use support::cluster::{formed, formed_of, is_linked_replica, owns_slots, view};

const LIMIT: Duration = Duration::from_secs(60);

/// The machine's own server, and those of the engines at hand.
fn engines() -> Vec<PathBuf> {
    let folder = PathBuf::from(std::env::var_os("LARDER_TEST_ENGINES").expect("set by make"));
    let mut all = vec![PathBuf::from("/usr/bin/redis-server")];
    all.extend(
        ["redis-6.2/redis-server", "valkey-8.0/valkey-server", "valkey-9.1/valkey-server"]
            .map(|name| folder.join(name)),
    );
    all.iter().for_each(|path| assert!(path.exists(), "{}", path.display()));
    all
}

/// Follows redirections, as client libraries do.
struct Client<'w> {
    world: &'w World,
    lines: BTreeMap<String, Connection>,
    /// Where keys were last found.
    at: BTreeMap<String, String>,
}

impl<'w> Client<'w> {
    fn new(world: &'w World) -> Self {
        Self { world, lines: BTreeMap::new(), at: BTreeMap::new() }
    }

    async fn line(&mut self, address: &str) -> Option<&mut Connection> {
        if self.lines.get(address).is_none_or(Connection::is_closed) {
            let (host, port) = address.rsplit_once(':')?;
            let to = Address::new(host, port.parse().ok()?);
            let password = larder_model::Secret::new(support::TENANT);
            let line = Connection::login(&to, "default", &password, Duration::from_secs(2)).await;
            self.lines.insert(address.to_owned(), line.ok()?);
        }
        self.lines.get_mut(address)
    }

    /// `None`: no answer within the time that clients have.
    async fn call(&mut self, args: &[&str]) -> Option<larder_resp::Frame> {
        let key = args[1].to_owned();
        let first = self.world.nodes[0].address.to_string();
        let mut at = self.at.get(&key).cloned().unwrap_or(first);
        let mut asking = false;
        let until = Instant::now() + Duration::from_secs(20);
        while Instant::now() < until {
            let Some(line) = self.line(&at).await else {
                // Another one knows where its slots are now.
                let next = self.world.nodes.iter().position(|n| n.address.to_string() == at);
                let next = (next.unwrap_or(0) + 1) % self.world.nodes.len();
                at = self.world.nodes[next].address.to_string();
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            if std::mem::take(&mut asking) {
                line.call(&["ASKING"]).await.ok();
            }
            match line.call(args).await {
                Ok(frame) => {
                    self.at.insert(key, at);
                    return Some(frame);
                }
                Err(error) => {
                    let text =
                        error.reply().map(|r| String::from_utf8_lossy(r.as_bytes()).into_owned());
                    let mut words = text.as_deref().unwrap_or_default().split(' ');
                    match (words.next(), words.next(), words.next()) {
                        (Some("MOVED"), _, Some(to)) => at = to.to_owned(),
                        (Some("ASK"), _, Some(to)) => {
                            at = to.to_owned();
                            asking = true;
                        }
                        // Down, or failing over.
                        _ => tokio::time::sleep(Duration::from_millis(20)).await,
                    }
                }
            }
        }
        None
    }

    async fn set(&mut self, key: &str, value: &str) {
        assert!(self.call(&["SET", key, value]).await.is_some(), "{key}\n{}", self.world.logs());
    }

    async fn get(&mut self, key: &str) -> String {
        let frame = self.call(&["GET", key]).await;
        let frame = frame.unwrap_or_else(|| panic!("{key}\n{}", self.world.logs()));
        frame.as_text().unwrap_or("nothing").to_owned()
    }
}

fn key(n: u32) -> String {
    format!("key:{n}")
}

async fn filled(world: &World, keys: u32) {
    let mut client = Client::new(world);
    for n in 0..keys {
        client.set(&key(n), &format!("value {n}")).await;
    }
}

async fn holds_all(world: &World, keys: u32) {
    let mut client = Client::new(world);
    for n in 0..keys {
        assert_eq!(client.get(&key(n)).await, format!("value {n}"), "{}", world.logs());
    }
}

async fn job(world: &World, to: usize, slots: SlotSet, pace: MovePace) -> SlotJob {
    let status = world.statuses().await[to].clone().expect("answers");
    SlotJob {
        slots,
        to: world.nodes[to].address.clone(),
        to_id: status.cluster.expect("a view").my_id,
        copies: 1,
        limits: MoveLimits { pace, ..MoveLimits::default() },
    }
}

fn range(first: u16, last: u16) -> SlotSet {
    [SlotRange::new(first, last).expect("valid")].into_iter().collect()
}

fn moving(status: &Option<AgentStatus>) -> Option<&SlotMoveStatus> {
    status.as_ref()?.slot_move.as_ref()
}

/// Every server sees the slots there, and none half-way.
fn all_see(all: &[Option<AgentStatus>], slots: &SlotSet, at: usize) -> bool {
    let Some(id) = view(&all[at]).map(|v| v.my_id.clone()) else { return false };
    let sees = |v: &ClusterView| {
        v.nodes.iter().any(|n| n.id == id && slots.difference(&n.slots).is_empty())
            && v.me().is_some_and(|me| me.open.is_empty() || me.role == Role::Replica)
    };
    all.iter().all(|status| view(status).is_some_and(sees))
}

#[tokio::test]
async fn slots_move_with_all_their_keys_while_clients_write_on_every_engine() {
    const KEYS: u32 = 3_000;
    for binary in engines() {
        let world = formed_of(&binary).await;
        filled(&world, KEYS).await;
        let slots = range(100, 1_500);
        let began = Instant::now();
        let job = job(&world, 2, slots.clone(), MovePace::Gentle).await;
        world.order(0, Order::MoveSlots { job }).await;
        let there = world.wait("moved", LIMIT, |all| all_see(all, &slots, 2));
        let writes = async {
            let mut client = Client::new(&world);
            let mut written = 0_u32;
            loop {
                client.set(&format!("while:{written}"), &written.to_string()).await;
                client.set(&key(written % KEYS), &format!("value {}", written % KEYS)).await;
                written += 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
                if written > 500 && moving(&world.statuses().await[0]).is_some_and(|m| m.done) {
                    return written;
                }
            }
        };
        let (_, written) = tokio::join!(there, writes);
        let took = began.elapsed();
        let done = world.statuses().await;
        let status = moving(&done[0]).expect("told");
        eprintln!("{}: {} keys in {took:?}, {written} writes", binary.display(), status.keys_moved);
        assert_eq!((status.done, status.problem.as_ref()), (true, None));
        assert_eq!(status.slots_done, slots.count());
        holds_all(&world, KEYS).await;
        let mut client = Client::new(&world);
        for n in 0..written {
            assert_eq!(client.get(&format!("while:{n}")).await, n.to_string());
        }
    }
}

#[tokio::test]
async fn an_agent_that_dies_half_way_leaves_nothing_that_the_next_one_cannot_finish() {
    let mut world = formed().await;
    filled(&world, 12_000).await;
    let slots = range(0, 5_000);
    let told = job(&world, 2, slots.clone(), MovePace::Gentle).await;
    for _ in 0..4 {
        world.order(0, Order::MoveSlots { job: told.clone() }).await;
        world.wait("begun", LIMIT, |all| moving(&all[0]).is_some_and(|m| m.slots_done > 20)).await;
        world.kill_agent(0);
        world.start(0);
        world.wait("back", LIMIT, |all| view(&all[0]).is_some()).await;
    }
    let told = job(&world, 2, slots.clone(), MovePace::Fast).await;
    world.order(0, Order::MoveSlots { job: told }).await;
    world.wait("moved", LIMIT, |all| all_see(all, &slots, 2)).await;
    holds_all(&world, 12_000).await;
}

#[tokio::test]
async fn a_move_that_is_told_to_stop_opens_no_more_slots_and_leaves_none_open() {
    let world = formed().await;
    filled(&world, 4_000).await;
    let told = job(&world, 2, range(0, 5_000), MovePace::Gentle).await;
    world.order(0, Order::MoveSlots { job: told }).await;
    world.wait("begun", LIMIT, |all| moving(&all[0]).is_some_and(|m| m.slots_done > 20)).await;
    world.order(0, Order::StopMovingSlots).await;
    world.wait("stopped", LIMIT, |all| moving(&all[0]).is_some_and(|m| m.done)).await;
    let moved = moving(&world.statuses().await[0]).expect("told").slots_done;
    assert!(moved < 5_001, "{moved}");
    world.wait("none open", LIMIT, |all| all_see(all, &SlotSet::default(), 2)).await;
    holds_all(&world, 4_000).await;
}

/// Pain: a key that takes long to move keeps both servers from answering anybody.
#[tokio::test]
async fn pain_21_a_slot_with_a_key_that_is_too_large_stays_and_says_which() {
    let world = formed().await;
    // `foo` is in slot 12182: the third shard's.
    let mut client = Client::new(&world);
    client.set("foo", &"x".repeat(300_000)).await;
    client.set("{foo}:small", "1").await;
    let slots = range(12_150, 12_200);
    let mut told = job(&world, 0, slots.clone(), MovePace::Fast).await;
    told.limits.largest_key = ByteSize(100_000);
    world.order(4, Order::MoveSlots { job: told }).await;
    let names_it = |m: &SlotMoveStatus| {
        let text = m.problem.clone().unwrap_or_default();
        text.contains("12182") && text.contains("`foo`") && m.slots_done == 50
    };
    world.wait("named", LIMIT, |all| moving(&all[4]).is_some_and(names_it)).await;
    assert_eq!(client.get("{foo}:small").await, "1");
    client.set("foo", "small now").await;
    world.wait("moved", LIMIT, |all| all_see(all, &slots, 0)).await;
    assert_eq!(client.get("foo").await, "small now");
}

/// Slot of `{foo}`, of the third shard's.
const DENSE: u16 = 12_182;

/// Fills [`DENSE`] with so many keys that it is half-way for a while.
async fn dense(world: &World, keys: u32) {
    let mut tenant = world.tenant(4).await;
    let value = "x".repeat(300);
    for from in (0..keys).step_by(500) {
        let of = |n: u32| vec!["SET".to_owned(), dense_key(n), format!("{n} {value}")];
        let commands: Vec<_> = (from..keys.min(from + 500)).map(of).collect();
        let replies = tenant.pipeline(&commands).await.expect("set");
        assert!(replies.iter().all(Result::is_ok));
    }
    tenant.call(&["WAIT", "1", "5000"]).await.expect("copied");
}

fn dense_key(n: u32) -> String {
    format!("{{foo}}:{n}")
}

async fn holds_dense(world: &World, keys: u32) {
    let mut client = Client::new(world);
    for n in 0..keys {
        let value = client.get(&dense_key(n)).await;
        assert_eq!(value.split(' ').next(), Some(n.to_string().as_str()), "{}", world.logs());
    }
}

async fn system(world: &World, index: usize) -> Connection {
    let password = larder_model::Secret::new("system-password");
    let address = &world.nodes[index].address;
    Connection::login(address, "larder", &password, Duration::from_secs(5)).await.expect("in")
}

/// Has the third shard give [`DENSE`] to the first one, and answers once some of its keys have gone and
/// some have not.
async fn begin_dense(world: &World, copies: u32) -> SlotJob {
    let slots = range(DENSE, DENSE);
    let told = SlotJob { copies, ..job(world, 0, slots, MovePace::Gentle).await };
    world.order(4, Order::MoveSlots { job: told.clone() }).await;
    let (mut source, mut target) = (system(world, 4).await, system(world, 0).await);
    let until = Instant::now() + LIMIT;
    loop {
        let there = target.count_keys_in_slots(&[DENSE]).await.expect("counted")[0];
        let here = source.count_keys_in_slots(&[DENSE]).await.expect("counted")[0];
        if there > 0 {
            assert!(here > 0, "it was too quick: {there} keys are there");
            return told;
        }
        assert!(Instant::now() < until, "{}", world.logs());
    }
}

fn open_at(status: &Option<AgentStatus>) -> bool {
    view(status).and_then(ClusterView::me).is_some_and(|me| !me.open.is_empty())
}

/// Pain: who takes over does not know which slots are half-way, and answers that keys which have gone
/// on do not exist.
#[tokio::test]
async fn a_source_that_dies_half_way_is_followed_by_its_replica_which_knows_what_has_gone() {
    const KEYS: u32 = 20_000;
    let folder = PathBuf::from(std::env::var_os("LARDER_TEST_ENGINES").expect("set by make"));
    for binary in [PathBuf::from("/usr/bin/redis-server"), folder.join("redis-6.2/redis-server")] {
        let world = formed_of(&binary).await;
        dense(&world, KEYS).await;
        let told = begin_dense(&world, 1).await;
        world.signal_server(4, "-9");
        // Without an order.
        world.wait("it sends clients on", LIMIT, |all| open_at(&all[5])).await;
        holds_dense(&world, KEYS).await;
        world.order(5, Order::MoveSlots { job: told }).await;
        world.wait("back", LIMIT, |all| is_linked_replica(&all[4])).await;
        world.wait("moved", LIMIT, |all| all_see(all, &range(DENSE, DENSE), 0)).await;
        holds_dense(&world, KEYS).await;
    }
}

#[tokio::test]
async fn a_target_that_dies_half_way_is_followed_by_its_replica_with_every_key() {
    const KEYS: u32 = 20_000;
    let world = formed().await;
    dense(&world, KEYS).await;
    begin_dense(&world, 1).await;
    world.signal_server(0, "-9");
    world.wait("replaced", LIMIT, |all| owns_slots(&all[1])).await;
    // As whoever plans does: who was to get the slot leads its shard no more.
    world.order(4, Order::StopMovingSlots).await;
    world.wait("it ends", LIMIT, |all| moving(&all[4]).is_some_and(|m| m.done)).await;
    let told = job(&world, 1, range(DENSE, DENSE), MovePace::Gentle).await;
    world.order(4, Order::MoveSlots { job: SlotJob { copies: 0, ..told } }).await;
    world.wait("back", LIMIT, |all| is_linked_replica(&all[0])).await;
    world.wait("moved", LIMIT, |all| all_see(all, &range(DENSE, DENSE), 1)).await;
    holds_dense(&world, KEYS).await;
}

/// After a transfer that was not answered a key is at both ends, and clients write at the source.
#[tokio::test]
async fn of_a_key_at_both_ends_the_owners_copy_stays_while_it_is_the_same_server() {
    const KEYS: u32 = 20_000;
    for policy in ["noeviction", "allkeys-lfu"] {
        let world = formed().await;
        for index in 0..6 {
            system(&world, index).await.config_set("maxmemory-policy", policy).await.expect("set");
        }
        dense(&world, KEYS).await;
        begin_dense(&world, 1).await;
        let (mut source, mut target) = (system(&world, 4).await, system(&world, 0).await);
        let mut at_both = 0;
        // Used later there than here.
        for n in (0..KEYS).step_by(97) {
            let key = dense_key(n);
            target.call(&["ASKING"]).await.expect("asking");
            target.call(&["SET", &key, "old"]).await.expect("set");
            // One that has gone already is to be as it was.
            let left = source.call(&["EXISTS", &key]).await;
            if left.is_ok_and(|frame| frame == larder_resp::Frame::Integer(1)) {
                at_both += 1;
            } else {
                target.call(&["ASKING"]).await.expect("asking");
                target.call(&["SET", &key, &format!("{n} again")]).await.expect("set");
            }
        }
        assert!(at_both > 0, "it was too quick");
        world.wait("moved", LIMIT, |all| all_see(all, &range(DENSE, DENSE), 0)).await;
        holds_dense(&world, KEYS).await;
    }
}

/// A failover has brought back at the source what had gone.
#[tokio::test]
async fn a_key_that_has_come_back_at_the_source_stays_as_it_was_used_last() {
    for policy in ["noeviction", "allkeys-lfu"] {
        let world = formed().await;
        for index in 0..6 {
            system(&world, index).await.config_set("maxmemory-policy", policy).await.expect("set");
        }
        let mut client = Client::new(&world);
        client.set("foo", "of the source").await;
        client.set("{foo}:2", "the same").await;
        // These go in the same transfer.
        for n in 3..40 {
            client.set(&format!("{{foo}}:{n}"), "free").await;
        }
        let told = job(&world, 0, range(DENSE, DENSE), MovePace::Fast).await;
        let source_id = view(&world.statuses().await[4]).expect("a view").my_id.clone();
        let mut target = system(&world, 0).await;
        let slot = DENSE.to_string();
        let mark = ["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source_id];
        target.call(&mark).await.expect("importing");
        // It was used there after it was used here.
        tokio::time::sleep(Duration::from_millis(2_100)).await;
        for (key, value) in [("foo", "of the target"), ("{foo}:2", "the same")] {
            target.call(&["ASKING"]).await.expect("asking");
            target.call(&["SET", key, value]).await.expect("set");
        }
        world.order(4, Order::MoveSlots { job: told }).await;
        world.wait("moved", LIMIT, |all| all_see(all, &range(DENSE, DENSE), 0)).await;
        assert_eq!(client.get("foo").await, "of the target", "{policy}");
        assert_eq!(client.get("{foo}:2").await, "the same");
        for n in 3..40 {
            assert_eq!(client.get(&format!("{{foo}}:{n}")).await, "free");
        }
    }
}

/// Pain: data move to a server without replicas, and die with it.
#[tokio::test]
async fn slots_wait_for_the_copies_that_are_wanted_of_their_new_shard() {
    let engines = engines();
    for binary in [&engines[0], &engines[3]] {
        let mut world = formed_of(binary).await;
        filled(&world, 500).await;
        world.kill_agent(3);
        world.signal_server(3, "-9");
        let slots = range(0, 2_000);
        let told = job(&world, 2, slots.clone(), MovePace::Fast).await;
        let names_it = |m: &SlotMoveStatus| {
            m.problem.as_deref().is_some_and(|text| text.contains("has 0 of 1 replicas in sync"))
        };
        let is_alone = |status: &AgentStatus| {
            status.replication.as_ref().is_some_and(|view| view.replicas.is_empty())
        };
        world.wait("alone", LIMIT, |all| all[2].as_ref().is_some_and(is_alone)).await;
        world.order(0, Order::MoveSlots { job: told }).await;
        world.wait("said", LIMIT, |all| moving(&all[0]).is_some_and(names_it)).await;
        let status = world.statuses().await;
        assert_eq!(moving(&status[0]).map(|m| m.slots_done), Some(0));
        assert!(!open_at(&status[0]));
        world.start(3);
        world.wait("moved", LIMIT, |all| all_see(all, &slots, 2)).await;
        holds_all(&world, 500).await;
    }
}

/// That the other end dies says nothing of the engine's own mechanism.
#[tokio::test]
async fn slots_go_by_the_engines_own_mechanism_also_after_the_target_has_died() {
    let engines = engines();
    let world = formed_of(&engines[3]).await;
    filled(&world, 3_000).await;
    let slots = range(0, 4_000);
    let told = job(&world, 2, slots.clone(), MovePace::Gentle).await;
    world.order(0, Order::MoveSlots { job: told }).await;
    world.wait("begun", LIMIT, |all| moving(&all[0]).is_some_and(|m| m.slots_done > 20)).await;
    world.signal_server(2, "-9");
    world.wait("replaced", LIMIT, |all| owns_slots(&all[3])).await;
    world.order(0, Order::StopMovingSlots).await;
    world.wait("it ends", LIMIT, |all| moving(&all[0]).is_some_and(|m| m.done)).await;
    let told = job(&world, 3, slots.clone(), MovePace::Gentle).await;
    world.order(0, Order::MoveSlots { job: told }).await;
    world.wait("moved", LIMIT, |all| all_see(all, &slots, 3)).await;
    holds_all(&world, 3_000).await;
    assert!(!world.logs().contains("key by key"), "{}", world.logs());
}

#[tokio::test]
async fn a_mark_without_a_move_is_taken_back() {
    let world = formed().await;
    let password = larder_model::Secret::new("system-password");
    let address = &world.nodes[0].address;
    let mut server =
        Connection::login(address, "larder", &password, Duration::from_secs(2)).await.expect("in");
    let to = view(&world.statuses().await[2]).expect("a view").my_id.clone();
    server.call(&["CLUSTER", "SETSLOT", "7", "MIGRATING", &to]).await.expect("marked");
    let is_open = |all: &[Option<AgentStatus>]| {
        view(&all[0]).and_then(ClusterView::me).is_some_and(|me| !me.open.is_empty())
    };
    world.wait("open", LIMIT, is_open).await;
    world.order(0, Order::CloseSlots { slots: range(7, 7) }).await;
    world.wait("closed", LIMIT, |all| view(&all[0]).is_some() && !is_open(all)).await;
}
