//! Networks of the cluster, and the engine's parts of them shown as swarm networks.

use crate::api::control::KnownNetwork;
use crate::api::wire::{self, Driver, IpamConfig};
use crate::model::docker::{ApiVersion, DRIVER, NETWORK_OPTION};
use crate::model::service::EndpointMode;
use crate::model::{Meta, Network, NetworkSpec, NodeId, PredefinedNetwork, Service, Task, Timestamp};
use crate::store::Store;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// The driver that users see: skep's own stands in for Docker's.
pub const OVERLAY: &str = "overlay";

/// The IPv6 address that belongs to an IPv4 address on a network, with the prefix length of its subnet.
pub fn v6_with_length(network: &Network, address: Ipv4Addr) -> Option<Ipv6Net> {
    let address = network.pairs().iter().find_map(|pair| pair.to_v6(address))?;
    Ipv6Net::new(address, network.subnet6?.prefix_len()).ok()
}

/// The subnets of an engine's network.
fn configured_subnets(ipam: &Value) -> Vec<IpNet> {
    let configs = ipam["Config"].as_array().into_iter().flatten();
    configs.filter_map(|config| config["Subnet"].as_str()?.parse().ok()).collect()
}

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
        enable_ipv6: network.spec.enable_ipv6,
        ipam: wire::NetworkIpam { driver: "default", options: None, config: ipam(network) },
        internal: network.spec.internal,
        attachable: network.spec.attachable,
        ingress: network.spec.ingress,
        config_from: wire::ConfigFrom::default(),
        config_only: false,
        containers: None,
        peers: None,
        services: None,
        options: network.spec.options.clone(),
        labels: (!labels.is_empty()).then(|| labels.clone()),
    }
}

/// One of the engine's own networks, as the swarm's network that a service names.
pub fn predefined(network: PredefinedNetwork, created: Timestamp, version: ApiVersion) -> wire::Network {
    wire::Network {
        name: network.name().to_owned(),
        id: network.id().to_owned(),
        created,
        scope: "swarm",
        driver: network.name(),
        enable_ipv4: (version >= ApiVersion::v1(48)).then_some(true),
        enable_ipv6: false,
        ipam: wire::NetworkIpam { driver: "", options: None, config: Vec::new() },
        internal: false,
        attachable: false,
        ingress: false,
        config_from: wire::ConfigFrom::default(),
        config_only: false,
        containers: None,
        peers: None,
        services: None,
        options: BTreeMap::new(),
        labels: Some(predefined_labels()),
    }
}

fn predefined_labels() -> BTreeMap<String, String> {
    BTreeMap::from([(PredefinedNetwork::LABEL.to_owned(), "true".to_owned())])
}

/// The same within a task's `NetworksAttachments`.
pub fn attached_predefined(network: PredefinedNetwork, meta: Meta) -> wire::AttachedNetwork {
    let driver = || Driver { name: network.name(), options: BTreeMap::new() };
    wire::AttachedNetwork {
        id: network.id().to_owned(),
        meta: meta.into(),
        spec: wire::AttachedNetworkSpec {
            name: network.name().to_owned(),
            labels: predefined_labels(),
            driver_configuration: driver(),
            internal: false,
            attachable: false,
            ingress: false,
            ipam_options: wire::Ipam::default(),
            scope: "swarm",
        },
        driver_state: driver(),
        ipam_options: wire::Ipam::default(),
    }
}

/// Adds the containers of this node from the engine's part of the network.
pub fn with_engine_part(mut shown: wire::Network, part: &Value, subnets: &[Ipv4Net], subnet6: Option<Ipv6Net>) -> wire::Network {
    shown.containers = Some(containers(part, subnets, subnet6));
    shown.labels.get_or_insert_default();
    shown
}

/// The containers of the engine's part of a network, with the prefix length of its subnet: the engine itself routes each address
/// alone.
fn containers(part: &Value, subnets: &[Ipv4Net], subnet6: Option<Ipv6Net>) -> Value {
    let mut all = part.get("Containers").filter(|containers| containers.is_object()).cloned().unwrap_or_else(|| json!({}));
    for container in all.as_object_mut().into_iter().flat_map(Map::values_mut) {
        let address = container["IPv4Address"].as_str().and_then(|text| text.strip_suffix("/32"));
        let subnet_of = |text: &str| {
            let address: Ipv4Addr = text.parse().ok()?;
            subnets.iter().find(|subnet| subnet.contains(&address))
        };
        if let Some((address, subnet)) = address.and_then(|text| Some((text, subnet_of(text)?))) {
            container["IPv4Address"] = json!(format!("{address}/{}", subnet.prefix_len()));
        }
        let address = container["IPv6Address"].as_str().and_then(|text| text.strip_suffix("/128"));
        if let Some((address, subnet)) = address.zip(subnet6) {
            container["IPv6Address"] = json!(format!("{address}/{}", subnet.prefix_len()));
        }
    }
    all
}

/// The nodes with containers on a network.
pub fn peers(network: &Network, store: &Store) -> Value {
    let nodes: BTreeSet<_> = running_on(network, store).filter_map(|task| task.node_id.as_ref()).collect();
    nodes.into_iter().filter_map(|id| Some(shown_peer(id, store.node(id)?.status.addr))).collect()
}

fn shown_peer(id: &NodeId, address: Option<IpAddr>) -> Value {
    let name = id.as_str().get(..PEER_NAME).unwrap_or(id.as_str());
    json!({ "Name": name, "IP": address.map(|ip| ip.to_string()).unwrap_or_default() })
}

/// Characters of a node's id in the name of a peer.
const PEER_NAME: usize = 12;

fn running_on<'a>(network: &Network, store: &'a Store) -> impl Iterator<Item = &'a Task> {
    store.tasks_on_network(&network.id).filter(|task| task.is_backend())
}

/// The services on a network with their tasks, as a verbose inspection shows them. Plain containers are those of the service without
/// a name.
pub fn services(network: &Network, store: &Store) -> Value {
    let mut tasks = BTreeMap::<&str, Vec<Value>>::new();
    let mut vips = BTreeMap::<&str, String>::new();
    for task in running_on(network, store).filter(|task| !task.container_name().is_empty()) {
        let service = store.service(&task.service_id);
        let name = service.map_or("", |service| service.spec.name.as_str());
        let node = task.node_id.as_ref().and_then(|id| store.node(id)).and_then(|node| node.status.addr);
        let address = task.address_on(&network.id).map(|address| address.to_string()).unwrap_or_default();
        let host = node.map(|ip| ip.to_string()).unwrap_or_default();
        let shown =
            json!({ "Name": task.container_name(), "EndpointID": task.id, "EndpointIP": address, "Info": { "Host IP": host } });
        tasks.entry(name).or_default().push(shown);
        vips.insert(name, service.and_then(|service| vip(service, network)).unwrap_or_else(|| NO_VIP.to_owned()));
    }
    let shown = |(name, tasks): (&str, Vec<Value>)| {
        (name.to_owned(), json!({ "VIP": vips[name], "Ports": [], "LocalLBIndex": 0, "Tasks": tasks }))
    };
    Value::Object(tasks.into_iter().map(shown).collect())
}

/// What Docker shows of a service without a virtual address.
const NO_VIP: &str = "<nil>";

fn vip(service: &Service, network: &Network) -> Option<String> {
    let vip = service.endpoint.vips.iter().find(|vip| vip.network_id == network.id)?;
    (service.spec.endpoint_mode() == EndpointMode::Vip).then(|| vip.addr.addr().to_string())
}

/// The engine's part of a swarm network shown as that network, for workers, which have no store: with what the node knows of it.
pub fn from_engine_part(part: &Value, known: Option<&KnownNetwork>) -> Value {
    let mut shown = part.clone();
    if let (Some(id), Some(map)) = (swarm_network_of(part).map(str::to_owned), shown.as_object_mut()) {
        map.insert("Id".to_owned(), json!(id));
        map.insert("Driver".to_owned(), json!(OVERLAY));
        map.insert("Scope".to_owned(), json!("swarm"));
        let named_ingress = || map.get("Name").and_then(Value::as_str) == Some(crate::model::network::INGRESS);
        let ingress = known.map_or_else(named_ingress, |known| known.part.ingress);
        map.insert("Ingress".to_owned(), json!(ingress));
        map.insert("Options".to_owned(), json!(known.map(|known| known.part.options.clone()).unwrap_or_default()));
        if let Some(known) = known {
            map.insert("Attachable".to_owned(), json!(known.part.attachable));
            map.insert("Labels".to_owned(), json!(known.part.labels));
            let peers = known.peers.iter().map(|(id, address)| shown_peer(id, *address));
            map.insert("Peers".to_owned(), peers.collect());
        }
        let subnets: Vec<IpNet> = map.get("IPAM").map(configured_subnets).unwrap_or_default();
        let v4: Vec<Ipv4Net> =
            subnets.iter().filter_map(|net| if let IpNet::V4(net) = net { Some(*net) } else { None }).collect();
        let subnet6 = subnets.iter().find_map(|net| if let IpNet::V6(net) = net { Some(*net) } else { None });
        if map.contains_key("Containers") {
            map.insert("Containers".to_owned(), containers(part, &v4, subnet6));
        }
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
                configs: spec
                    .subnets
                    .iter()
                    .map(|s| requested(spec, *s))
                    .chain(spec.subnet6.map(|s| requested6(spec, s)))
                    .collect(),
            },
            scope: "swarm",
        },
        driver_state: driver(),
        ipam_options: wire::Ipam {
            driver: default(),
            configs: network.subnets().into_iter().map(|subnet| assigned(spec, subnet)).chain(assigned6(network)).collect(),
        },
    }
}

/// The subnets of a network, the IPv4 one first.
fn ipam(network: &Network) -> Vec<IpamConfig> {
    let v4 = network.subnets().into_iter().map(|subnet| ipam_v4(&network.spec, subnet));
    let v6 = network.subnet6.map(|subnet| IpamConfig {
        subnet: subnet.to_string(),
        ip_range: network.spec.ip_range6.map(|range| range.to_string()).unwrap_or_default(),
        gateway: network.spec.v6_in(subnet).gateway.to_string(),
        ..IpamConfig::default()
    });
    v4.chain(v6).collect()
}

fn requested6(spec: &NetworkSpec, subnet: Ipv6Net) -> IpamConfig {
    let range = spec.ip_range6.map(|range| range.to_string()).unwrap_or_default();
    IpamConfig { subnet: subnet.to_string(), range, ..IpamConfig::default() }
}

fn assigned6(network: &Network) -> Option<IpamConfig> {
    let subnet = network.subnet6?;
    Some(IpamConfig { gateway: network.spec.v6_in(subnet).gateway.to_string(), ..requested6(&network.spec, subnet) })
}

fn ipam_v4(spec: &NetworkSpec, subnet: Ipv4Net) -> IpamConfig {
    IpamConfig {
        subnet: subnet.to_string(),
        ip_range: spec.range_in(subnet).map(|range| range.to_string()).unwrap_or_default(),
        gateway: spec.gateway_in(subnet).to_string(),
        ..IpamConfig::default()
    }
}

/// A subnet as the user asked for it, within a task's networks.
fn requested(spec: &NetworkSpec, subnet: Ipv4Net) -> IpamConfig {
    let range = spec.range_in(subnet).map(|range| range.to_string()).unwrap_or_default();
    IpamConfig { subnet: subnet.to_string(), range, ..IpamConfig::default() }
}

/// A subnet as it was assigned, within a task's networks.
fn assigned(spec: &NetworkSpec, subnet: Ipv4Net) -> IpamConfig {
    IpamConfig { gateway: spec.gateway_in(subnet).to_string(), ..requested(spec, subnet) }
}
