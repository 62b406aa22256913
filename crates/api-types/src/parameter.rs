//! Parameters of the servers of an instance.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One parameter of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Parameter {
    /// As this engine calls it.
    pub name: String,
    /// A stable word: `rdb`, `memory`, `replication` …
    pub group: String,
    /// Among those that most users look for.
    pub common: bool,
    /// `boolean`, `integer`, `bytes`, `choice`, `save-points` or `buffer-limits`.
    pub kind: String,
    /// What values it takes, in words.
    pub takes: String,
    /// Both ends of a number's range.
    pub least: Option<i64>,
    pub most: Option<i64>,
    /// The words that a choice has.
    pub choices: Vec<String>,
    pub unit: String,
    /// The value that it has unless it is set; `null`: it depends on the memory.
    pub default: Option<String>,
    /// The value that is wanted now; `null` as for `default`.
    pub value: Option<String>,
    /// Somebody has set it.
    pub set: bool,
    /// `now`, or `new-servers`: nodes are made anew, one after the other.
    pub applies: String,
    /// In English.
    pub meaning: String,
    /// In Chinese.
    pub meaning_zh: String,
}

/// New values by name; all of them are checked before any is applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetParameters {
    pub values: BTreeMap<String, String>,
}

/// Back to the defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ResetParameters {
    /// All that are set, when none is named.
    pub names: Vec<String>,
}

/// A change of parameters that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ParameterHistory {
    /// The operation's id.
    pub operation: String,
    pub requested_by: String,
    pub requested_at: String,
    /// Of the operation: what has failed or was cancelled has been taken back.
    pub state: String,
    pub error: Option<String>,
    pub changes: Vec<ParameterChange>,
}

/// One parameter's change; `null` is its default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ParameterChange {
    pub name: String,
    pub from: Option<String>,
    pub to: Option<String>,
}
