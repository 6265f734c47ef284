//! Networks of the cluster, and the engine's copies of them shown as what they are.

use crate::api::engine::swarm_network_of;
use crate::api::query::ApiVersion;
use crate::api::wire::{self, Driver, IpamConfig};
use crate::model::Network;
use ipnet::Ipv4Net;
use serde_json::{Value, json};

/// What overlay networks are called to users.
pub const OVERLAY: &str = "overlay";

/// A network, without this node's part in it.
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

/// The same with the engine's copy of it: the containers of this node.
pub fn with_local_part(mut shown: wire::Network, local: &Value) -> wire::Network {
    shown.containers = Some(local.get("Containers").cloned().unwrap_or_else(|| json!({})));
    shown.labels.get_or_insert_default();
    shown
}

/// The engine's copy of a network that the store is not here for (on a worker).
pub fn local_only(local: &Value) -> Value {
    let mut shown = local.clone();
    if let (Some(id), Some(map)) = (swarm_network_of(local).map(str::to_owned), shown.as_object_mut()) {
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

/// A network as tasks show it.
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

/// The address of a network's gateway: the first one of its subnet.
pub fn gateway(subnet: Ipv4Net) -> std::net::Ipv4Addr {
    subnet.hosts().next().unwrap_or_else(|| subnet.network())
}

fn ipam(subnet: Ipv4Net) -> IpamConfig {
    IpamConfig { subnet: subnet.to_string(), gateway: gateway(subnet).to_string() }
}
