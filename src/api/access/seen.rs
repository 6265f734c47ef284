//! What was read of nodes. Pure.

use crate::model::Timestamp;
use crate::model::docker::ApiVersion;
use serde_json::Value;
use std::collections::BTreeMap;

/// What was last read of a node.
#[derive(Clone, Default)]
pub struct SeenNode {
    /// As `docker ps --all` lists them.
    pub containers: Vec<Value>,
    pub facts: Option<EngineProperties>,
    /// When the containers were listed; `None`: never.
    pub at: Option<Timestamp>,
}

/// What an engine says of itself and does not change while it runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EngineProperties {
    /// Newest API version of the node.
    pub api: Option<ApiVersion>,
    /// `storagedriver`, `kernelversion`, `operatingsystem`, `ostype`.
    pub labels: BTreeMap<String, String>,
    pub server_version: String,
}

/// The labels of a listed container.
pub fn labels_of(container: &Value) -> BTreeMap<String, String> {
    serde_json::from_value(container["Labels"].clone()).unwrap_or_default()
}
