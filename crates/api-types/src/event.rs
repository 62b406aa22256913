//! Events (what happened) and records (who asked for what).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// The event's place in the stream; the id of the server-sent event.
    pub seq: u64,
    /// RFC 3339.
    pub at: String,
    /// Who saw it: `control` or `node`.
    pub kind: String,
    /// `info`, `warning` or `critical`.
    pub severity: String,
    /// Name of the instance, or its id when it is no more.
    pub instance: Option<String>,
    pub instance_id: Option<String>,
    pub node: Option<String>,
    /// A stable word: `failover`, `volume-lost`.
    pub reason: String,
    pub message: String,
}

/// One line of the audit trail: a change or a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Record {
    pub id: u64,
    /// RFC 3339.
    pub at: String,
    pub user: String,
    /// The address that the request came from.
    pub from: String,
    /// What was asked: `instance.create`.
    pub action: String,
    /// What it was asked of: an instance's, user's, engine's or token's name.
    pub object: String,
    /// Name of the instance, where it is about one.
    pub instance: Option<String>,
    /// `accepted`, or the code of the refusal.
    pub outcome: String,
    /// What was asked in detail, without secrets.
    pub detail: serde_json::Value,
}
