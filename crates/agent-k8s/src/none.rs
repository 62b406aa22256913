//! The lease and route of a node that has neither.

use async_trait::async_trait;
use larder_agent::{Endpoint, Lease, LeaseError};
use larder_model::lease::{LeaseRecord, Route};

/// Never asked: nodes in cluster mode decide over the cluster bus.
pub(crate) struct Nowhere;

fn nowhere<T>(doing: &'static str) -> Result<T, LeaseError> {
    Err(LeaseError::Unreachable { doing, reason: "cluster mode has none".to_owned() })
}

#[async_trait]
impl Lease for Nowhere {
    async fn read(&mut self) -> Result<Option<(u64, LeaseRecord)>, LeaseError> {
        nowhere("reading the lease")
    }

    async fn write(&mut self, _: Option<u64>, _: &LeaseRecord) -> Result<u64, LeaseError> {
        nowhere("writing the lease")
    }

    async fn renew(&mut self, _: u64) -> Result<u64, LeaseError> {
        nowhere("renewing the lease")
    }

    async fn changed(&mut self) {
        std::future::pending().await
    }
}

#[async_trait]
impl Endpoint for Nowhere {
    async fn read(&mut self) -> Result<Option<Route>, LeaseError> {
        nowhere("reading the route")
    }

    async fn publish(&mut self, _: &Route) -> Result<Option<Route>, LeaseError> {
        nowhere("publishing the route")
    }
}
