//! What is done to a node, and what an instance may need to get over it.

use std::time::Duration;

use anyhow::{Context, Result};
use larder_testkit::kubernetes::{Namespace, bed_does, pod_of};
use larder_testkit::process::{self, Kind, kill9, kill9_each, sigstop};
use larder_testkit::{Instance, Larder, Node, eventually};

fn on(larder: &Larder) -> Result<&Namespace> {
    larder.namespace().context("a fault that only Kubernetes knows")
}

/// Has pods deleted at once with no grace, and waits for the end of what runs in them, which comes
/// later.
async fn gone(larder: &Larder, nodes: &[Node]) -> Result<()> {
    let agents: Vec<u32> =
        nodes.iter().map(|node| larder.agent_pid(&node.id)).collect::<Result<_>>()?;
    let pods: Vec<String> = nodes.iter().map(|node| pod_of(&node.id)).collect();
    let mut args = vec!["delete", "pod", "--grace-period=0", "--force", "--wait=false"];
    args.extend(pods.iter().map(String::as_str));
    on(larder)?.kubectl(&args).await?;
    eventually("the deleted pods' agents have ended", Duration::from_secs(20), async || {
        Ok((!agents.iter().any(|agent| process::is_alive(*agent))).then_some(()))
    })
    .await
}

/// One fault of a shard's primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `larder instance failover`: nothing breaks.
    Planned,
    ServerKilled,
    /// Both at once; the keeper starts a new agent.
    ServerAndAgentKilled,
    /// SIGSTOP: the process is there and does not answer.
    ServerStopped,
    /// SIGSTOP of the agent: nobody renews, and nobody lets go.
    AgentStopped,
    /// Agents and servers of all nodes of the instance.
    AllNodesKilled,
    /// Agent and server killed, and the volume gone before the agent is back.
    VolumeLost,
    /// Of an instance on Kubernetes: as a drained worker does it, with the grace of the pod.
    PodDeleted,
    /// With no grace: the pod is gone for Kubernetes before its processes are.
    PodGone,
    /// All of the instance, with no grace.
    AllPodsGone,
    /// Its worker has no power. Somebody has to give it back.
    WorkerLost,
}

impl Fault {
    /// Does it to the primary of `shard`, as `instance` shows it.
    ///
    /// # Errors
    /// A process is not there, or the command is refused.
    pub async fn strike(self, larder: &Larder, instance: &Instance, shard: u32) -> Result<()> {
        let primary = instance.primary(shard)?;
        match self {
            Self::Planned => {
                let shard = shard.to_string();
                let args = ["instance", "failover", &instance.name, "--shard", &shard, "--wait"];
                larder.cli(&args).await.map(drop)
            }
            Self::ServerKilled => kill9(larder.server_pid(instance, &primary.id)?),
            Self::ServerAndAgentKilled => {
                let (agent, server) =
                    (larder.agent_pid(&primary.id)?, larder.server_pid(instance, &primary.id)?);
                kill9_each(&[agent, server])
            }
            Self::ServerStopped => sigstop(larder.server_pid(instance, &primary.id)?),
            Self::AgentStopped => {
                let agent = larder.agent_pid(&primary.id)?;
                sigstop(agent)?;
                // The effect comes later: the keeper replaces the agent, or the lease runs out.
                eventually("the stopped agent is replaced", Duration::from_secs(20), async || {
                    Ok((!process::is_alive(agent)).then_some(()))
                })
                .await
            }
            Self::AllNodesKilled => {
                kill9_each(&larder.pids_of(instance, &[Kind::Agent, Kind::Server]))
            }
            Self::PodDeleted => {
                // Until it has gone: what it says to its peers in that time is part of the story.
                on(larder)?.kubectl(&["delete", "pod", &pod_of(&primary.id)]).await.map(drop)
            }
            Self::PodGone => gone(larder, std::slice::from_ref(primary)).await,
            Self::AllPodsGone => gone(larder, &instance.nodes).await,
            Self::WorkerLost => {
                let worker = on(larder)?.worker_of(&primary.id).await?;
                bed_does(&["worker", "off", &worker]).await
            }
            Self::VolumeLost => {
                let volume = larder.volume(instance, &primary.id);
                larder
                    .kill_node(instance, primary, || {
                        std::fs::remove_dir_all(&volume).context("deleting the volume")
                    })
                    .await
            }
        }
    }

    /// Takes back what would stay: gives the worker of the former primary its power.
    ///
    /// # Errors
    /// It cannot be.
    pub async fn mend(self, larder: &Larder, instance: &Instance, primary: &str) -> Result<()> {
        if self != Self::WorkerLost {
            return Ok(());
        }
        // The pod of a worker that is gone stays where it was.
        let worker = on(larder)?.worker_of(&instance.node(primary)?.id).await?;
        bed_does(&["worker", "on", &worker]).await
    }

    /// Another node must lead afterwards.
    pub fn moves_the_primary(self) -> bool {
        match self {
            Self::Planned
            | Self::ServerKilled
            | Self::ServerAndAgentKilled
            | Self::ServerStopped
            | Self::VolumeLost
            | Self::PodDeleted
            | Self::WorkerLost => true,
            Self::AgentStopped | Self::AllNodesKilled | Self::PodGone | Self::AllPodsGone => false,
        }
    }

    /// Reasons that a read-write instance's events must hold afterwards.
    pub fn told_as(self) -> &'static [&'static str] {
        match self {
            Self::Planned | Self::PodDeleted => &["handed-over"],
            Self::ServerKilled => &["server-exited", "failover"],
            Self::ServerAndAgentKilled => &["failover"],
            Self::ServerStopped => &["server-hung", "failover"],
            Self::VolumeLost => &["volume-lost", "failover"],
            Self::AllNodesKilled | Self::AllPodsGone => &["server-started"],
            Self::WorkerLost => &["failover"],
            // Replaced in time, it changes nothing that a person had to know.
            Self::AgentStopped | Self::PodGone => &[],
        }
    }

    /// The gap that a story allows. Wider than the figures of `docs/measurements.md`, which are
    /// measured on a quiet machine with a release binary: here several debug builds share it.
    pub fn allowed_gap(self) -> Duration {
        Duration::from_secs(match self {
            Self::Planned | Self::PodDeleted => 2,
            Self::ServerKilled => 6,
            Self::ServerAndAgentKilled => 12,
            Self::ServerStopped | Self::AgentStopped => 15,
            Self::VolumeLost => 15,
            Self::PodGone | Self::WorkerLost => 15,
            Self::AllNodesKilled => 25,
            Self::AllPodsGone => 60,
        })
    }
}
