//! Which process and which folder belongs to what, looked up past Larder's own word.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::instance::{Instance, Node};
use crate::larder::Larder;
use crate::process::{self, Kind, Process};
use crate::{kubernetes, wait};

fn only(kind: Kind, node: &str, mut found: Vec<Process>) -> Result<u32> {
    found.retain(|p| p.kind == kind);
    match found.as_slice() {
        [one] => Ok(one.pid),
        [] => bail!("no {kind:?} of {node} runs"),
        more => bail!("{} times {kind:?} of {node}: {more:?}", more.len()),
    }
}

impl Larder {
    /// Every living process of this Larder.
    pub fn processes(&self) -> Vec<Process> {
        process::all_of(self.data())
    }

    /// Every living process of a node's pod, when instances are not on this machine.
    fn in_pod(&self, node: &str) -> Option<Vec<Process>> {
        self.namespace().map(|_| process::all_of_pod(&kubernetes::pod_of(node)))
    }

    fn one(&self, kind: Kind, part: &str) -> Result<u32> {
        let mut found: Vec<Process> = self
            .processes()
            .into_iter()
            .filter(|p| p.kind == kind && p.argv.iter().any(|arg| arg.contains(part)))
            .collect();
        // A process that starts another one is there twice between fork and exec.
        let pids: Vec<u32> = found.iter().map(|p| p.pid).collect();
        found.retain(|p| process::parent(p.pid).is_none_or(|parent| !pids.contains(&parent)));
        match found.as_slice() {
            [one] => Ok(one.pid),
            [] => bail!("no {kind:?} with {part} runs"),
            more => bail!("{} times {kind:?} with {part}: {more:?}", more.len()),
        }
    }

    /// # Errors
    /// There is none, or more than one.
    pub fn keeper_pid(&self) -> Result<u32> {
        self.one(Kind::Keeper, &self.data().to_string_lossy())
    }

    /// # Errors
    /// There is none, or more than one.
    pub fn agent_pid(&self, node: &str) -> Result<u32> {
        if let Some(pod) = self.in_pod(node) {
            return only(Kind::Agent, node, pod);
        }
        self.one(Kind::Agent, &format!("nodes/{node}"))
    }

    /// # Errors
    /// There is none, or more than one.
    pub fn relay_pid(&self, instance: &Instance) -> Result<u32> {
        self.one(Kind::Relay, &format!("instances/{}/relay", instance.id))
    }

    /// The server of a node, by its working folder or its pod.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn server_pid(&self, instance: &Instance, node: &str) -> Result<u32> {
        let found = self.in_pod(node).unwrap_or_else(|| {
            let folder = self.node_folder(instance, node);
            let is_there = |p: &Process| p.cwd.as_ref().is_some_and(|cwd| cwd.starts_with(&folder));
            self.processes().into_iter().filter(is_there).collect()
        });
        only(Kind::Server, node, found)
    }

    /// Pids of all processes of an instance of the given kinds.
    pub fn pids_of(&self, instance: &Instance, kinds: &[Kind]) -> Vec<u32> {
        let found: Vec<Process> = if self.namespace().is_some() {
            instance.nodes.iter().filter_map(|node| self.in_pod(&node.id)).flatten().collect()
        } else {
            process::all_of(&self.instance_folder(instance))
        };
        found.into_iter().filter(|p| kinds.contains(&p.kind)).map(|p| p.pid).collect()
    }

    pub fn instance_folder(&self, instance: &Instance) -> PathBuf {
        self.data().join("instances").join(&instance.id)
    }

    pub fn node_folder(&self, instance: &Instance, node: &str) -> PathBuf {
        self.instance_folder(instance).join("nodes").join(node)
    }

    /// What Larder itself logs in with at the instance's servers, as user `larder`.
    ///
    /// # Errors
    /// The node's folder does not hold it.
    pub fn system_password(&self, instance: &Instance, node: &str) -> Result<String> {
        let path = self.node_folder(instance, node).join("secrets.json");
        let secrets: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        let password = secrets["system_password"].as_str().map(str::to_owned);
        password.with_context(|| format!("no system password in {}", path.display()))
    }

    pub fn volume(&self, instance: &Instance, node: &str) -> PathBuf {
        self.node_folder(instance, node).join("volume")
    }

    /// Kills agent and server of a node so that neither can do anything for the other, does
    /// `between` while both are dead, and lets the keeper go on. The keeper is stopped meanwhile.
    ///
    /// # Errors
    /// A process is missing, or `between` fails.
    pub async fn kill_node(
        &self,
        instance: &Instance,
        node: &Node,
        between: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let keeper = self.keeper_pid()?;
        process::sigstop(keeper)?;
        let done = async {
            let agent = self.agent_pid(&node.id)?;
            let server = self.server_pid(instance, &node.id)?;
            process::kill9(agent)?;
            process::kill9(server)?;
            wait::eventually("both are dead", Duration::from_secs(5), async || {
                Ok((!process::is_alive(agent) && !process::is_alive(server)).then_some(()))
            })
            .await?;
            between()
        }
        .await;
        process::sigcont(keeper)?;
        done
    }
}
