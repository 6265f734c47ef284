//! `/containers/create`: forwarded to the engine. A container that is to be on a network of the swarm finds that network there, and its
//! name server.

use super::attach::{field, prepare, requested_addresses, set_address, update};
use super::request::ApiRequest;
use crate::api::control::PreparedNetwork;
use crate::api::error::Result;
use axum::response::Response;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Network modes that are not the name of a user's network.
const NETWORK_MODES: [&str; 6] = ["", "default", "bridge", "host", "none", "nat"];

/// POST /containers/create
pub async fn create(request: &ApiRequest) -> Result<Response> {
    // The engine refuses what cannot be parsed.
    let mut posted: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let mut prepared = Vec::new();
    for (name, endpoint) in requested_networks(&posted) {
        if let Some(network) = prepare(request, &name, requested_addresses(&endpoint)?).await? {
            prepared.push((name, network));
        }
    }
    if prepared.is_empty() {
        return request.forward().await;
    }
    attach(&mut posted, &prepared);
    request.forward_body(&request.target, posted.to_string().into()).await
}

/// The networks that a container is to be attached to, with what is asked for there.
fn requested_networks(posted: &Value) -> Vec<(String, Value)> {
    let mode = field(field(posted, "HostConfig"), "NetworkMode").as_str().unwrap_or_default();
    let endpoints = field(field(posted, "NetworkingConfig"), "EndpointsConfig").as_object();
    let names: BTreeSet<&str> = endpoints.into_iter().flat_map(|map| map.keys().map(String::as_str)).chain([mode]).collect();
    let of_users = names.into_iter().filter(|name| !NETWORK_MODES.contains(name) && !name.starts_with("container:"));
    let endpoint = |name: &str| endpoints.and_then(|map| map.get(name)).cloned().unwrap_or_default();
    of_users.map(|name| (name.to_owned(), endpoint(name))).collect()
}

/// Names the networks as the engine knows them, and has the container ask their name servers first: those forward what they do not
/// know. The engine takes no others later, so that the last ones are for a container that was disconnected from these networks: those
/// that the user asked for, or the host's.
fn attach(posted: &mut Value, networks: &[(String, PreparedNetwork)]) {
    for (reference, address) in networks.iter().filter_map(|(reference, network)| Some((reference, network.belonging?))) {
        update(posted, "NetworkingConfig", |networking| {
            update(networking, "EndpointsConfig", |endpoints| {
                update(endpoints, reference, |endpoint| set_address(endpoint, address));
            });
        });
    }
    for (reference, network) in networks.iter().filter(|(reference, network)| *reference != network.name) {
        let rename_mode = |mode: &mut Value| {
            if mode.as_str() == Some(reference) {
                *mode = json!(network.name);
            }
        };
        let rename_endpoint = |endpoints: &mut Value| {
            let endpoints = endpoints.as_object_mut();
            if let Some((map, endpoint)) = endpoints.and_then(|map| map.remove(reference).map(|endpoint| (map, endpoint))) {
                map.insert(network.name.clone(), endpoint);
            }
        };
        update(posted, "HostConfig", |host| update(host, "NetworkMode", rename_mode));
        update(posted, "NetworkingConfig", |networking| update(networking, "EndpointsConfig", rename_endpoint));
    }
    let servers = |servers: &mut Value| {
        let own = networks.iter().map(|(_, network)| json!(network.gateway.to_string()));
        let asked = servers.as_array().filter(|asked| !asked.is_empty()).cloned();
        let host =
            || networks.first().into_iter().flat_map(|(_, network)| &network.resolvers).map(|address| json!(address)).collect();
        *servers = own.chain(asked.unwrap_or_else(host)).collect();
    };
    update(posted, "HostConfig", |host| update(host, "Dns", servers));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_come_from_the_mode_and_the_endpoints() {
        let names = |posted: &Value| requested_networks(posted).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        let posted =
            json!({"HostConfig": {"NetworkMode": "ov1"}, "NetworkingConfig": {"EndpointsConfig": {"att1": {}, "ov1": {}}}});
        assert_eq!(names(&posted), ["att1", "ov1"]);
        assert_eq!(names(&json!({"hostconfig": {"networkmode": "ov1"}})), ["ov1"]);
        assert!(names(&json!({"HostConfig": {"NetworkMode": "container:x"}})).is_empty());
        assert!(names(&Value::Null).is_empty());
    }

    #[test]
    fn the_engine_gets_the_network_by_its_name_and_its_name_server_first() {
        let gateway = "172.20.9.1".parse().unwrap();
        let network = |id: &str, name: &str| PreparedNetwork {
            id: id.into(),
            name: name.to_owned(),
            gateway,
            resolvers: vec!["198.51.100.53".parse().unwrap()],
            belonging: None,
        };
        let mut posted = json!({
            "Image": "x", "hostConfig": { "networkMode": "n1id", "Dns": ["192.0.2.53"], "Memory": 7 },
            "NetworkingConfig": { "EndpointsConfig": { "n1id": { "Aliases": ["db"] }, "lan": {} } },
        });
        attach(&mut posted, &[("n1id".to_owned(), network("n1id", "back"))]);
        let expected = json!({
            "Image": "x", "hostConfig": { "networkMode": "back", "Dns": ["172.20.9.1", "192.0.2.53"], "Memory": 7 },
            "NetworkingConfig": { "EndpointsConfig": { "back": { "Aliases": ["db"] }, "lan": {} } },
        });
        assert_eq!(posted, expected);
        for mut short in
            [json!({ "HostConfig": { "NetworkMode": "back" } }), json!({ "HostConfig": { "NetworkMode": "back", "Dns": [] } })]
        {
            attach(&mut short, &[("back".to_owned(), network("n1id", "back"))]);
            let servers = ["172.20.9.1", "198.51.100.53"];
            assert_eq!(short, json!({ "HostConfig": { "NetworkMode": "back", "Dns": servers } }), "the host's come last");
        }
    }
}
