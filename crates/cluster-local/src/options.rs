//! What a machine is told about itself.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use larder_model::{Address, ByteSize, EngineName};

/// Where the server binaries of engines are.
pub trait EngineLookup: Send + Sync {
    /// `None` when the engine is not installed on this machine.
    fn server_binary(&self, engine: &EngineName) -> Option<PathBuf>;
}

/// Settings of a [`crate::LocalCluster`].
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// The name users know the container cluster by.
    pub name: String,
    /// The data directory.
    pub data: PathBuf,
    /// The program that agents and relays run: `BINARY agent --dir …`, `BINARY proxy --dir …`.
    pub larder_binary: PathBuf,
    /// Where ports are tested to be free. Loopback unless somebody says otherwise.
    pub bind_host: String,
    /// What clients and peers are told to connect to; `None`: the same as `bind_host`.
    pub advertise_host: Option<String>,
    /// Ports of nodes and endpoints. Each port's bus port is 10,000 above it, so the range has at
    /// most 10,000 ports and ends at 55535. The default lies, with its bus ports, below the
    /// ports that Linux gives to outgoing connections (32768 and up).
    pub port_range: RangeInclusive<u16>,
    /// Memory that nodes may not be promised: for the system, Larder itself, and forks.
    pub reserve_memory: ByteSize,
    /// How long a released port rests before another owner gets it: late clients of the former
    /// owner come to nobody. Default 1 min.
    pub port_rest: Duration,
    /// The same for ports of cluster-mode nodes whose instance still lives, because its other
    /// nodes may remember the address and would invite whoever answers there into their cluster.
    /// Default 10 min.
    pub clustered_port_rest: Duration,
}

impl LocalOptions {
    /// The defaults, for loopback.
    pub fn new(data: impl Into<PathBuf>, larder_binary: impl Into<PathBuf>) -> Self {
        Self {
            name: "local".to_owned(),
            data: data.into(),
            larder_binary: larder_binary.into(),
            bind_host: "127.0.0.1".to_owned(),
            advertise_host: None,
            port_range: 17000..=19999,
            reserve_memory: ByteSize::mib(512),
            port_rest: Duration::from_secs(60),
            clustered_port_rest: Duration::from_secs(600),
        }
    }

    pub(crate) fn address(&self, port: u16) -> Address {
        Address::new(self.advertise_host.as_ref().unwrap_or(&self.bind_host), port)
    }

    /// Where to listen, when that is not the host that is told to others. What is the same is not
    /// written down, so that files of before stay as they are.
    pub(crate) fn bind_apart(&self) -> Option<String> {
        self.advertise_host
            .as_ref()
            .is_some_and(|advertised| *advertised != self.bind_host)
            .then(|| self.bind_host.clone())
    }

    /// The reason why the port range cannot be used, if there is one.
    pub(crate) fn port_range_problem(&self) -> Option<String> {
        let (first, last) = (*self.port_range.start(), *self.port_range.end());
        if first > last {
            Some(format!("the port range {first}-{last} is empty"))
        } else if last > u16::MAX - 10_000 {
            Some(format!("the port range ends at {last}: bus ports, 10000 above, end at 65535"))
        } else if last - first >= 10_000 {
            Some(format!("the port range {first}-{last} meets its own bus ports, 10000 above"))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_to_listen_is_said_only_when_others_are_told_another_host() {
        let options = |advertise: Option<&str>| LocalOptions {
            bind_host: "0.0.0.0".into(),
            advertise_host: advertise.map(str::to_owned),
            ..LocalOptions::new("/d", "/b")
        };
        assert_eq!(options(None).bind_apart(), None);
        assert_eq!(options(Some("0.0.0.0")).bind_apart(), None);
        assert_eq!(options(Some("192.0.2.7")).bind_apart(), Some("0.0.0.0".into()));
    }

    #[test]
    fn port_ranges_that_cannot_work_are_named() {
        let problem = |range| {
            LocalOptions { port_range: range, ..LocalOptions::new("/d", "/b") }.port_range_problem()
        };
        assert_eq!(problem(17000..=19999), None);
        assert_eq!(problem(1024..=11023), None);
        for bad in [1024..=11024, 50000..=55536, RangeInclusive::new(2, 1)] {
            assert!(problem(bad.clone()).is_some(), "{bad:?}");
        }
    }
}
