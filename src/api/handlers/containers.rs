//! `/containers/create`: forwarded to the engine, unless a plain container would be attached to a network of the swarm.

use super::networks::attachment_refusal;
use super::request::ApiRequest;
use crate::api::error::Result;
use axum::response::Response;
use serde_json::Value;
use std::collections::BTreeSet;

/// Network modes that are not the name of a user's network.
const NETWORK_MODES: [&str; 6] = ["", "default", "bridge", "host", "none", "nat"];

/// POST /containers/create
pub async fn create(request: &ApiRequest) -> Result<Response> {
    // The engine refuses what cannot be parsed.
    let posted: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    for name in requested_networks(&posted) {
        if let Some(refusal) = attachment_refusal(request, name).await? {
            return Err(refusal);
        }
    }
    request.forward().await
}

/// Names of the networks that a container would be attached to.
fn requested_networks(posted: &Value) -> BTreeSet<&str> {
    let mode = field(field(posted, "HostConfig"), "NetworkMode").as_str().unwrap_or_default();
    let endpoints = field(field(posted, "NetworkingConfig"), "EndpointsConfig").as_object();
    let endpoints = endpoints.into_iter().flat_map(|map| map.keys().map(String::as_str));
    endpoints.chain([mode]).filter(|n| !NETWORK_MODES.contains(n) && !n.starts_with("container:")).collect()
}

/// A field by its name in any case, as the engine matches it.
fn field<'a>(value: &'a Value, name: &str) -> &'a Value {
    let found = value.as_object().and_then(|map| map.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)));
    found.map_or(&Value::Null, |(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn networks_come_from_the_mode_and_the_endpoints() {
        let posted =
            json!({"HostConfig": {"NetworkMode": "ov1"}, "NetworkingConfig": {"EndpointsConfig": {"att1": {}, "ov1": {}}}});
        assert_eq!(requested_networks(&posted), BTreeSet::from(["att1", "ov1"]));
        assert_eq!(requested_networks(&json!({"hostconfig": {"networkmode": "ov1"}})), BTreeSet::from(["ov1"]));
        assert!(requested_networks(&json!({"HostConfig": {"NetworkMode": "container:x"}})).is_empty());
        assert!(requested_networks(&Value::Null).is_empty());
    }
}
