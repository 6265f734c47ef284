//! What was read of nodes, and what a container is made again of. Pure.

use crate::api::handlers::field;
use crate::model::Timestamp;
use crate::model::docker::ApiVersion;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Length of the beginning of an id that is a container's host name unless it has another.
const SHORT_ID: usize = 12;

/// What was last read of a node.
#[derive(Clone, Default)]
pub struct SeenNode {
    /// As `docker ps --all` lists them.
    pub containers: Vec<Value>,
    /// Bodies that create those again which are made again elsewhere, by id.
    pub bodies: BTreeMap<String, Value>,
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

/// The body that creates a container like the one that was inspected.
pub fn creating_body(inspected: &Value) -> Value {
    let mut body = inspected["Config"].clone();
    let id = inspected["Id"].as_str().unwrap_or_default();
    if field(&body, "Hostname").as_str().is_some_and(|name| id.get(..SHORT_ID) == Some(name)) {
        body["Hostname"] = json!("");
    }
    body["HostConfig"] = inspected["HostConfig"].clone();
    let endpoints = inspected["NetworkSettings"]["Networks"].as_object().cloned().unwrap_or_default();
    let kept = endpoints.into_iter().map(|(name, endpoint)| {
        let aliases: Option<Vec<&str>> = endpoint["Aliases"]
            .as_array()
            .map(|list| list.iter().filter_map(Value::as_str).filter(|alias| !id.starts_with(*alias)).collect());
        let kept = json!({ "IPAMConfig": endpoint["IPAMConfig"], "Links": endpoint["Links"], "Aliases": aliases,
            "DriverOpts": endpoint["DriverOpts"] });
        (name, kept)
    });
    let mode = inspected["HostConfig"]["NetworkMode"].as_str().unwrap_or_default();
    let has_own = !mode.starts_with("container:") && !["host", "none", "default", "bridge"].contains(&mode);
    let endpoints: serde_json::Map<String, Value> = kept.filter(|_| has_own).collect();
    body["NetworkingConfig"] = json!({ "EndpointsConfig": endpoints });
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_made_again_with_its_networks_but_not_with_names_from_its_id() {
        let id = format!("0123456789ab{}", "c".repeat(52));
        let inspected = json!({
            "Id": id, "Config": { "Image": "x", "Hostname": "0123456789ab", "Env": ["A=1"] }, "HostConfig": { "NetworkMode": "back" },
            "NetworkSettings": { "Networks": { "back": { "Aliases": ["db", "0123456789ab"], "IPAddress": "10.0.0.7" } } },
        });
        let body = creating_body(&inspected);
        assert_eq!((&body["Image"], &body["Hostname"], &body["Env"]), (&json!("x"), &json!(""), &json!(["A=1"])));
        let endpoint = &body["NetworkingConfig"]["EndpointsConfig"]["back"];
        assert_eq!((&endpoint["Aliases"], &endpoint["IPAddress"]), (&json!(["db"]), &Value::Null));
    }
}
