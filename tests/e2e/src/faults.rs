//! What is done to a node, and what an instance may need to get over it.

use std::time::Duration;

use anyhow::{Context, Result};
use larder_testkit::process::{self, Kind, kill9, sigstop};
use larder_testkit::{Instance, Larder, eventually};

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
                kill9(agent)?;
                kill9(server)
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
                let pids = larder.pids_of(instance, &[Kind::Agent, Kind::Server]);
                for pid in pids {
                    kill9(pid)?;
                }
                Ok(())
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

    /// Another node must lead afterwards.
    pub fn moves_the_primary(self) -> bool {
        match self {
            Self::Planned
            | Self::ServerKilled
            | Self::ServerAndAgentKilled
            | Self::ServerStopped
            | Self::VolumeLost => true,
            Self::AgentStopped | Self::AllNodesKilled => false,
        }
    }

    /// Reasons that a read-write instance's events must hold afterwards.
    pub fn told_as(self) -> &'static [&'static str] {
        match self {
            Self::Planned => &["handed-over"],
            Self::ServerKilled => &["server-exited", "failover"],
            Self::ServerAndAgentKilled => &["failover"],
            Self::ServerStopped => &["server-hung", "failover"],
            Self::VolumeLost => &["volume-lost", "failover"],
            Self::AllNodesKilled => &["server-started"],
            // Replaced in time, it changes nothing that a person had to know.
            Self::AgentStopped => &[],
        }
    }

    /// The gap that a story allows. Wider than the figures of `docs/measurements.md`, which are
    /// measured on a quiet machine with a release binary: here several debug builds share it.
    pub fn allowed_gap(self) -> Duration {
        Duration::from_secs(match self {
            Self::Planned => 2,
            Self::ServerKilled => 6,
            Self::ServerAndAgentKilled => 12,
            Self::ServerStopped | Self::AgentStopped => 15,
            Self::VolumeLost => 15,
            Self::AllNodesKilled => 25,
        })
    }
}
