//! Endpoints: one relay process per instance, with one listener for each kind.

use std::path::PathBuf;

use larder_cluster::{ClusterError, EndpointSpec};
use larder_keeper::files;
use larder_model::agent::Fence;
use larder_model::local::{ProcessSpec, RelayBoot, RelayListener};
use larder_model::{EndpointKind, InstanceId};

use crate::nodes::{REMOVED, empty_folder, remove_folder, write};
use crate::place::Place;
use crate::ports::Owner;
use crate::{error, fences, readable};

impl Place {
    fn relay_file(&self, instance: &InstanceId) -> PathBuf {
        self.data.relay(instance).join("relay.json")
    }

    fn relay_removed(&self, instance: &InstanceId) -> PathBuf {
        self.data.relay(instance).join(REMOVED)
    }

    fn read_relay(&self, instance: &InstanceId) -> Result<Option<RelayBoot>, ClusterError> {
        readable::read(&self.relay_file(instance))
    }

    pub(crate) fn ensure_endpoint(
        &self,
        fence: Fence,
        spec: &EndpointSpec,
    ) -> Result<(), ClusterError> {
        let instance = &spec.instance;
        let instance_dir = self.data.instance(instance);
        fences::check(&instance_dir, fence)?;
        if self.relay_removed(instance).exists() && !self.finish_relay(instance)? {
            return Err(error::unreachable(format!(
                "the former relay of instance {instance} is still being removed"
            )));
        }
        let relay_dir = self.data.relay(instance);
        let route_dir = self.data.route(instance);
        for folder in [&relay_dir, &route_dir] {
            files::make_private_dir(folder).map_err(error::io("make", folder))?;
        }
        fences::check(&instance_dir, fence)?;
        let run_dir = self.run_dir()?.clone();
        let present = self.read_relay(instance)?;
        let mut listeners = present.map(|relay| relay.listeners).unwrap_or_default();
        let owner = Owner::Endpoint(spec.kind);
        match listeners.iter().find(|listener| listener.kind == spec.kind) {
            Some(listener) => self.ports.hold(listener.address.port, instance, &owner)?,
            None => {
                let address = self.options.address(self.ports.take(instance, &owner)?);
                listeners.push(RelayListener { kind: spec.kind, address, bind_host: None });
                listeners.sort_by_key(|listener| listener.kind);
            }
        }
        for listener in &mut listeners {
            listener.bind_host = self.options.bind_apart();
        }
        let relay = RelayBoot {
            instance: instance.clone(),
            listeners,
            route_dir,
            members: spec.members.clone(),
            run_dir: run_dir.0.clone(),
            generation: spec.generation,
        };
        write(&self.relay_file(instance), &relay)?;
        // The relay follows its file; without the notice it would look in two seconds.
        larder_linklog::notify(&relay_dir);
        let name = Self::relay_name(instance);
        let wish = self.wish(&name)?;
        self.set_wish(&ProcessSpec {
            argv: self.argv(wish.as_ref(), "proxy", &relay_dir),
            name,
            instance: instance.clone(),
            log: relay_dir.join("relay.log"),
            ping_socket: Some(run_dir.relay_socket(instance)),
            guard: None,
            removed: false,
        })
    }

    pub(crate) fn remove_endpoint(
        &self,
        fence: Fence,
        instance: &InstanceId,
        kind: EndpointKind,
    ) -> Result<(), ClusterError> {
        fences::check(&self.data.instance(instance), fence)?;
        let relay_dir = self.data.relay(instance);
        if !relay_dir.is_dir() && !self.has_process(&Self::relay_name(instance)) {
            return Ok(());
        }
        let owner = Owner::Endpoint(kind);
        let present = self.read_relay(instance)?;
        if let Some(mut relay) = present {
            relay.listeners.retain(|listener| listener.kind != kind);
            if !relay.listeners.is_empty() {
                // The others stay, and the relay with them; it closes this listener by itself.
                // Until it has, the port is not free, and it rests anyway.
                write(&self.relay_file(instance), &relay)?;
                larder_linklog::notify(&relay_dir);
                return self.ports.release(instance, &owner, false);
            }
        }
        if relay_dir.is_dir() {
            let path = self.relay_removed(instance);
            files::write_text(&path, "").map_err(error::io("write", &path))?;
        }
        self.dismiss_relay(instance)?;
        self.finish_relay(instance).map(drop)
    }

    /// Wishes for the end of the relay's process, if the keeper has, or may have, one.
    pub(crate) fn dismiss_relay(&self, instance: &InstanceId) -> Result<(), ClusterError> {
        let relay_dir = self.data.relay(instance);
        let name = Self::relay_name(instance);
        if self.has_process(&name) {
            let present = self.wish(&name)?.unwrap_or_else(|| ProcessSpec {
                name,
                instance: instance.clone(),
                argv: self.argv(None, "proxy", &relay_dir),
                log: relay_dir.join("relay.log"),
                ping_socket: Some(self.sockets().relay_socket(instance)),
                guard: None,
                removed: true,
            });
            self.set_wish(&ProcessSpec { removed: true, ..present })?;
        }
        Ok(())
    }

    /// Deletes what is left of a relay once the keeper has removed its process. Answers whether
    /// nothing is left.
    fn finish_relay(&self, instance: &InstanceId) -> Result<bool, ClusterError> {
        if self.has_process(&Self::relay_name(instance)) {
            return Ok(false);
        }
        let dir = self.data.relay(instance);
        empty_folder(&dir, &[&self.relay_file(instance), &self.relay_removed(instance)])?;
        let socket = self.sockets().relay_socket(instance);
        files::remove_if_exists(&socket).map_err(error::io("remove", &socket))?;
        for kind in [EndpointKind::Write, EndpointKind::Read, EndpointKind::Discovery] {
            self.ports.release(instance, &Owner::Endpoint(kind), false)?;
        }
        remove_folder(&dir)?;
        Ok(true)
    }

    /// The instance's listeners. Goes on with a removal on the way. A listener without a wish for
    /// its relay is not there yet.
    pub(crate) fn observe_relay(
        &self,
        instance: &InstanceId,
    ) -> Result<Vec<RelayListener>, ClusterError> {
        if self.relay_removed(instance).exists() && self.finish_relay(instance)? {
            return Ok(Vec::new());
        }
        if self.wish(&Self::relay_name(instance))?.is_none() {
            return Ok(Vec::new());
        }
        Ok(self.read_relay(instance)?.map(|relay| relay.listeners).unwrap_or_default())
    }
}
