//! How clients outside of a container cluster reach what is inside.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::address::Address;
use crate::error::{Code, Refusal};

/// How clients outside of the container cluster reach an instance.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Expose {
    /// They do not; those inside use the Services' own addresses.
    #[default]
    ClusterIp,
    /// At a port that every worker has.
    NodePort,
    /// At an address of the container cluster's load balancer.
    LoadBalancer,
}

impl Expose {
    pub const ALL: [Self; 3] = [Self::ClusterIp, Self::NodePort, Self::LoadBalancer];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIp => "cluster-ip",
            Self::NodePort => "node-port",
            Self::LoadBalancer => "load-balancer",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|way| way.as_str() == text)
    }

    /// What a person has asked for.
    ///
    /// # Errors
    /// `invalid-request`, of the field `expose`.
    pub fn asked(text: &str) -> Result<Self, Refusal> {
        Self::parse(text).ok_or_else(|| {
            let detail =
                format!("`{text}` is no way to expose: use load-balancer, node-port or cluster-ip");
            Refusal::new(Code::InvalidRequest, detail).field("expose")
        })
    }

    /// Clients outside are meant to reach it.
    pub fn is_outside(self) -> bool {
        self != Self::ClusterIp
    }
}

impl fmt::Display for Expose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where clients outside reach one node of a cluster instance: what its server tells them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OuterAddress {
    /// `None`: the address of the worker that the node runs on, whichever that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    pub port: u16,
    /// The cluster bus, where it goes the same way: Redis 6.2 announces one host to clients and
    /// to the other servers. Later ones keep the bus inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus_port: Option<u16>,
}

impl OuterAddress {
    /// Whether a server that is reached here from outside and at `inner` from inside can be what
    /// another server knows at `seen`: at its inner host with the port that it announces, or at
    /// its outer address as a whole. A port of all workers is one node's alone.
    pub fn is_seen_at(&self, inner: Option<&Address>, seen: &Address) -> bool {
        if seen.port != self.port {
            return false;
        }
        let inside = inner.is_some_and(|inner| inner.host == seen.host);
        inside
            || match &self.host {
                Some(host) => *host == seen.host,
                None => self.bus_port.is_some(),
            }
    }
}

/// What a container cluster shows of the way from outside to a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exposed {
    /// There is none.
    #[default]
    No,
    /// It is asked for, and has no address yet.
    Pending,
    Yes(OuterAddress),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_known_by_what_it_announces_inside_and_outside() {
        let inner = Address::new("10.101.0.7", 6379);
        let at = |host: &str, port| Address::new(host, port);
        let own_worker = OuterAddress { host: None, port: 31_007, bus_port: None };
        assert!(own_worker.is_seen_at(Some(&inner), &at("10.101.0.7", 31_007)));
        assert!(!own_worker.is_seen_at(Some(&inner), &at("10.101.0.8", 31_007)));
        let old = OuterAddress { bus_port: Some(31_008), ..own_worker };
        assert!(old.is_seen_at(Some(&inner), &at("10.99.0.11", 31_007)), "any worker");
        assert!(!old.is_seen_at(Some(&inner), &at("10.99.0.11", 31_009)));
        let balanced = OuterAddress {
            host: Some("10.102.0.3".to_owned()),
            port: 6379,
            bus_port: Some(16_379),
        };
        assert!(balanced.is_seen_at(Some(&inner), &at("10.102.0.3", 6379)));
        assert!(!balanced.is_seen_at(Some(&inner), &at("10.102.0.4", 6379)));
    }

    #[test]
    fn ways_are_called_as_they_are_stored() {
        for way in Expose::ALL {
            assert_eq!(Expose::parse(way.as_str()), Some(way));
            assert_eq!(serde_json::to_value(way).unwrap(), way.as_str());
        }
    }
}
