//! What can go wrong in a simulated fleet.

use larder_model::NodeId;

use super::lease::LeaseTrouble;
use super::rng::Rng;

/// One fault. Lengths are virtual milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9` of the server.
    KillServer { node: NodeId },
    /// `kill -9` of the agent; the keeper starts it again within a second.
    KillAgent { node: NodeId },
    /// Both at once, as in a pod.
    KillNode { node: NodeId },
    /// The agent is stopped (SIGSTOP) and goes on later.
    StopAgent { node: NodeId, length: i64 },
    /// The server is stopped and goes on later, unless it was killed meanwhile.
    StopServer { node: NodeId, length: i64 },
    /// The worker loses its power: what was not fsynced is gone.
    CrashWorker { node: NodeId, length: i64 },
    /// Server killed, volume deleted.
    DeleteVolume { node: NodeId },
    /// Agents and replication of this node's worker reach nobody else.
    Isolate { node: NodeId, length: i64 },
    /// Replication of this node alone is cut.
    CutReplication { node: NodeId, length: i64 },
    /// The lease store behaves badly: towards the worker of `node`, or everybody.
    Lease { node: Option<NodeId>, trouble: LeaseTrouble, length: i64 },
    /// The lease of this node's shard is deleted.
    LoseLease { node: NodeId },
    /// What leads clients to the instance of this node, and what its nodes share, is deleted in the
    /// container cluster.
    LoseParts { node: NodeId },
    /// Full syncs take this long from now on.
    SlowSync { sync_ms: i64 },
    /// The keeper of this node's worker does nothing.
    StopKeeper { node: NodeId, length: i64 },
    /// The container cluster cannot be asked.
    ClusterUnreachable { length: i64 },
    /// Calls of the control plane take effect, their answers are lost, one in two.
    LoseReplies { length: i64 },
}

/// How often each kind of fault comes, as weights, and how unkind they are.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// How many faults in all.
    pub faults: u32,
    /// They come within this time.
    pub within_ms: i64,
    /// Volumes deleted at most, in all.
    pub lost_volumes: u32,
    /// Faults of the control plane too.
    pub control_plane: bool,
    /// One worker is without power for this long, besides all else; 0: none is.
    pub long_crash_ms: i64,
    /// Every call of the lease store takes up to this much longer, all the time; 0: none does.
    pub slow_lease_ms: i64,
    /// One in two answers to the control plane is lost, all the time.
    pub lost_replies: bool,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            faults: 8,
            within_ms: 40_000,
            lost_volumes: 1,
            control_plane: false,
            long_crash_ms: 0,
            slow_lease_ms: 0,
            lost_replies: false,
        }
    }
}

/// Draws the faults of one run: `(when, what)`, in order of time. `crowd` are the nodes, `copied`
/// those of them that are not the only one of their shard.
pub(super) fn draw(
    rng: &mut Rng,
    profile: &Profile,
    from: i64,
    crowd: &[NodeId],
    copied: &[NodeId],
) -> Vec<(i64, Fault)> {
    let mut lost = 0;
    let mut faults = Vec::new();
    if crowd.is_empty() {
        return faults;
    }
    if profile.long_crash_ms > 0 {
        let node = crowd[rng.below(crowd.len() as i64) as usize].clone();
        let at = from + rng.below(profile.within_ms / 2);
        faults.push((at, Fault::CrashWorker { node, length: profile.long_crash_ms }));
    }
    if profile.slow_lease_ms > 0 {
        let trouble = LeaseTrouble::Slow(profile.slow_lease_ms);
        faults.push((from, Fault::Lease { node: None, trouble, length: profile.within_ms }));
    }
    if profile.lost_replies {
        faults.push((from, Fault::LoseReplies { length: profile.within_ms }));
    }
    for _ in 0..profile.faults {
        let at = from + rng.below(profile.within_ms);
        let node = crowd[rng.below(crowd.len() as i64) as usize].clone();
        let length = 200 + rng.below(7000);
        let kinds = if profile.control_plane { 16 } else { 14 };
        let fault = match rng.below(kinds) {
            0 | 1 => Fault::KillServer { node },
            2 => Fault::KillAgent { node },
            3 => Fault::KillNode { node },
            4 => Fault::StopAgent { node, length },
            5 => Fault::StopServer { node, length },
            6 => Fault::CrashWorker { node, length },
            7 if lost < profile.lost_volumes && !copied.is_empty() => {
                lost += 1;
                let node = copied[rng.below(copied.len() as i64) as usize].clone();
                Fault::DeleteVolume { node }
            }
            7 => Fault::KillServer { node },
            8 => Fault::Isolate { node, length },
            9 => Fault::CutReplication { node, length },
            10 | 11 => {
                let trouble = match rng.below(3) {
                    0 => LeaseTrouble::Fails,
                    1 => LeaseTrouble::AnswersLost,
                    _ => LeaseTrouble::Slow(2000),
                };
                Fault::Lease { node: rng.chance(50).then_some(node), trouble, length }
            }
            12 => Fault::SlowSync { sync_ms: 50 + rng.below(3000) },
            13 => {
                // Everything of the shard is killed at once, as by an update of the machine.
                for node in crowd {
                    faults.push((at, Fault::KillNode { node: node.clone() }));
                }
                continue;
            }
            14 => Fault::ClusterUnreachable { length },
            _ => Fault::LoseReplies { length },
        };
        faults.push((at, fault));
    }
    faults.sort_by_key(|(at, _)| *at);
    faults
}
