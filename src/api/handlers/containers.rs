//! `/containers/create`: the engine's, unless a plain container is to be on a network of the swarm.

use super::{Call, networks};
use crate::api::error::Result;
use axum::response::Response;
use serde_json::Value;
use std::collections::BTreeSet;

/// Network modes that are no network's name.
const MODES: [&str; 6] = ["", "default", "bridge", "host", "none", "nat"];

/// POST /containers/create
pub async fn create(call: &Call) -> Result<Response> {
    // What cannot be read is the engine's to refuse.
    let posted: Value = serde_json::from_slice(&call.body).unwrap_or_default();
    for name in named(&posted) {
        if let Some(refusal) = networks::refusal(call, name).await? {
            return Err(refusal);
        }
    }
    call.forward().await
}

/// Networks that a container is to be on.
fn named(posted: &Value) -> BTreeSet<&str> {
    let mode = field(field(posted, "HostConfig"), "NetworkMode").as_str().unwrap_or_default();
    let endpoints = field(field(posted, "NetworkingConfig"), "EndpointsConfig").as_object();
    let endpoints = endpoints.into_iter().flat_map(|map| map.keys().map(String::as_str));
    endpoints.chain([mode]).filter(|n| !MODES.contains(n) && !n.starts_with("container:")).collect()
}

/// A field, its name in any case, as the engine reads it.
fn field<'a>(value: &'a Value, name: &str) -> &'a Value {
    let found = value.as_object().and_then(|map| map.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)));
    found.map_or(&Value::Null, |(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn networks_are_named_in_two_places() {
        let posted =
            json!({"HostConfig": {"NetworkMode": "ov1"}, "NetworkingConfig": {"EndpointsConfig": {"att1": {}, "ov1": {}}}});
        assert_eq!(named(&posted), BTreeSet::from(["att1", "ov1"]));
        assert_eq!(named(&json!({"hostconfig": {"networkmode": "ov1"}})), BTreeSet::from(["ov1"]));
        assert!(named(&json!({"HostConfig": {"NetworkMode": "container:x"}})).is_empty());
        assert!(named(&Value::Null).is_empty());
    }
}
