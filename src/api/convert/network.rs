//! Networks of the cluster, and the engine's parts of them shown as swarm networks.

use crate::api::wire::{self, Driver, IpamConfig};
use crate::model::Network;
use crate::model::docker::{ApiVersion, DRIVER, NETWORK_OPTION};
use ipnet::Ipv4Net;
use serde_json::{Value, json};

/// The driver that users see: skep's own stands in for Docker's.
pub const OVERLAY: &str = "overlay";

/// The id of the swarm network that an engine's network is a part of; `None` for other drivers.
pub fn swarm_network_of(network: &Value) -> Option<&str> {
    if network.get("Driver").and_then(Value::as_str) != Some(DRIVER) {
        return None;
    }
    Some(network.get("Options").and_then(|o| o.get(NETWORK_OPTION)).and_then(Value::as_str).unwrap_or_default())
}

/// A network of the store, without the containers of this node.
pub fn network(network: &Network, version: ApiVersion) -> wire::Network {
    let labels = &network.spec.labels;
    wire::Network {
        name: network.spec.name.clone(),
        id: network.id.to_string(),
        created: network.meta.created_at,
        scope: "swarm",
        driver: OVERLAY,
        enable_ipv4: (version >= ApiVersion::v1(48)).then_some(true),
        enable_ipv6: false,
        ipam: wire::NetworkIpam { driver: "default", options: None, config: network.subnet.map(ipam).into_iter().collect() },
        internal: network.spec.internal,
        attachable: network.spec.attachable,
        ingress: network.spec.ingress,
        config_from: wire::ConfigFrom::default(),
        config_only: false,
        containers: None,
        options: network.spec.options.clone(),
        labels: (!labels.is_empty()).then(|| labels.clone()),
    }
}

/// Adds the containers of this node from the engine's part of the network.
pub fn with_engine_part(mut shown: wire::Network, part: &Value) -> wire::Network {
    shown.containers = Some(part.get("Containers").cloned().unwrap_or_else(|| json!({})));
    shown.labels.get_or_insert_default();
    shown
}

/// The engine's part of a swarm network shown as that network, for workers, which have no store.
pub fn from_engine_part(part: &Value) -> Value {
    let mut shown = part.clone();
    if let (Some(id), Some(map)) = (swarm_network_of(part).map(str::to_owned), shown.as_object_mut()) {
        map.insert("Id".to_owned(), json!(id));
        map.insert("Driver".to_owned(), json!(OVERLAY));
        map.insert("Scope".to_owned(), json!("swarm"));
        let ingress = map.get("Name").and_then(Value::as_str) == Some(crate::model::network::INGRESS);
        map.insert("Ingress".to_owned(), json!(ingress));
        map.insert("Options".to_owned(), json!({}));
        let config = map.get("IPAM").and_then(|i| i.get("Config")).cloned().unwrap_or(Value::Null);
        map.insert("IPAM".to_owned(), json!({ "Driver": "default", "Options": null, "Config": config }));
    }
    shown
}

/// A network within a task's `NetworksAttachments`.
pub fn attached(network: &Network) -> wire::AttachedNetwork {
    let spec = &network.spec;
    let driver = || Driver { name: OVERLAY, options: spec.options.clone() };
    let default = || Driver { name: "default", ..Driver::default() };
    wire::AttachedNetwork {
        id: network.id.to_string(),
        meta: network.meta.into(),
        spec: wire::AttachedNetworkSpec {
            name: spec.name.clone(),
            labels: spec.labels.clone(),
            driver_configuration: if spec.ingress { Driver::default() } else { driver() },
            internal: spec.internal,
            attachable: spec.attachable,
            ingress: spec.ingress,
            ipam_options: wire::Ipam {
                driver: if spec.ingress { Driver::default() } else { default() },
                configs: spec.subnets.iter().map(|s| IpamConfig { subnet: s.to_string(), gateway: String::new() }).collect(),
            },
            scope: "swarm",
        },
        driver_state: driver(),
        ipam_options: wire::Ipam { driver: default(), configs: network.subnet.map(ipam).into_iter().collect() },
    }
}

/// The gateway of a network: the first address of its subnet.
pub fn gateway(subnet: Ipv4Net) -> std::net::Ipv4Addr {
    subnet.hosts().next().unwrap_or_else(|| subnet.network())
}

fn ipam(subnet: Ipv4Net) -> IpamConfig {
    IpamConfig { subnet: subnet.to_string(), gateway: gateway(subnet).to_string() }
}
