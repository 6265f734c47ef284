//! The calls of programs that read a swarm: Traefik's provider for swarms and Portainer's server and agent, and what they take from
//! the replies, in the types of their clients (Go's: a value of another type ends the whole call).

use super::kit::*;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use skep::http::UnixClient;
use skep::lab::Host;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The version that both pin in their paths, and one that newer releases agree on.
const VERSIONS: [&str; 2] = ["/v1.24", "/v1.41"];

async fn read<T: DeserializeOwned>(host: &Host, target: &str) -> T {
    let reply = UnixClient::new(host.skep_socket()).get(target).await.expect("skep answers");
    assert!(reply.status.is_success(), "{target}: {}", String::from_utf8_lossy(&reply.body));
    serde_json::from_slice(&reply.body).unwrap_or_else(|e| panic!("{target}: {e}: {}", String::from_utf8_lossy(&reply.body)))
}

fn filters(json: &str) -> String {
    json.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { (byte as char).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    #[serde(rename = "ID")]
    id: String,
    spec: ServiceSpec,
    endpoint: Endpoint,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ServiceSpec {
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    mode: Mode,
    endpoint_spec: Option<EndpointSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Mode {
    replicated: Option<Replicated>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Replicated {
    replicas: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EndpointSpec {
    mode: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Endpoint {
    #[serde(rename = "VirtualIPs", default)]
    virtual_ips: Vec<VirtualIp>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct VirtualIp {
    #[serde(rename = "NetworkID")]
    network_id: String,
    addr: ipnet::IpNet,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Task {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "ServiceID")]
    service_id: String,
    #[serde(rename = "NodeID")]
    node_id: String,
    slot: u64,
    status: TaskStatus,
    networks_attachments: Vec<TaskNetwork>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TaskStatus {
    state: String,
    container_status: ContainerStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ContainerStatus {
    #[serde(rename = "ContainerID")]
    container_id: String,
    #[serde(rename = "PID")]
    pid: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TaskNetwork {
    network: Network,
    addresses: Vec<ipnet::IpNet>,
}

#[derive(Deserialize)]
struct Network {
    #[serde(rename = "ID", alias = "Id")]
    id: String,
    #[serde(rename = "Name", default)]
    name: String,
    #[serde(rename = "Scope", default)]
    scope: String,
    #[serde(rename = "Ingress", default)]
    ingress: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    #[serde(rename = "ID")]
    id: String,
    description: NodeDescription,
    status: NodeStatus,
    manager_status: Option<ManagerStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NodeDescription {
    hostname: String,
    resources: Resources,
}

#[derive(Deserialize)]
struct Resources {
    #[serde(rename = "NanoCPUs")]
    nano_cpus: i64,
    #[serde(rename = "MemoryBytes")]
    memory_bytes: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NodeStatus {
    state: String,
    addr: IpAddr,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ManagerStatus {
    #[serde(default)]
    leader: bool,
}

/// Both with a service that Traefik is to route to, on an attachable network.
pub async fn programs_read_the_swarm(swarm: &Swarm, network: &str) {
    let manager = &swarm.hosts[0];
    // Not Traefik's own labels: skep itself serves what they ask for.
    let label = "routes.shop=shop.example";
    let create = format!(
        "service create -q --detach --name shop --replicas 2 --network {network} --label {label} -p 8090:80 {}",
        skep::lab::WHOAMI_IMAGE
    );
    manager.docker_run(&create).await.expect("created");
    swarm.running("shop", 2).await;
    traefik(manager, "shop", network).await;
    portainer(swarm, "shop", network).await;
    manager.docker_run("service rm shop").await.expect("removed");
}

/// A refresh of Traefik's provider (v3, `pkg/provider/docker/pswarm.go`), which it repeats every 15 s: a service with its virtual
/// address, and one target for each of its tasks.
async fn traefik(host: &Host, name: &str, network: &str) {
    for version in VERSIONS {
        let server: Value = read(host, &format!("{version}/version")).await;
        let api: Vec<u32> =
            server["ApiVersion"].as_str().expect("a version").split('.').map(|n| n.parse().expect("a number")).collect();
        assert!(api >= vec![1, 29], "an older one is asked for networks by driver: {api:?}");
        let scope = filters(r#"{"scope":{"swarm":true}}"#);
        let networks: Vec<Network> = read(host, &format!("{version}/networks?filters={scope}")).await;
        let wanted = networks.iter().find(|found| found.name == network).expect("the network");
        assert!(networks.iter().all(|network| network.scope == "swarm") && networks.iter().any(|network| network.ingress));
        let services: Vec<Service> = read(host, &format!("{version}/services")).await;
        let service = services.iter().find(|service| service.spec.name == name).expect("the service");
        let mode = service.spec.endpoint_spec.as_ref().map(|spec| spec.mode.as_str());
        assert_eq!(mode, Some("vip"), "without it no virtual address is used");
        assert!(service.spec.labels.keys().any(|label| label == "routes.shop"));
        let vip = service.endpoint.virtual_ips.iter().find(|vip| vip.network_id == wanted.id).expect("on the network");
        let replicas = service.spec.mode.replicated.as_ref().expect("replicated").replicas;
        let running = filters(&format!(r#"{{"desired-state":{{"running":true}},"service":{{"{}":true}}}}"#, service.id));
        let tasks: Vec<Task> = read(host, &format!("{version}/tasks?filters={running}")).await;
        assert_eq!(tasks.len() as u64, replicas);
        for task in tasks {
            let attachment = task.networks_attachments.iter().find(|a| a.network.id == wanted.id).expect("on the network");
            assert!(vip.addr.contains(&attachment.addresses[0].addr()), "of the same subnet");
            assert_eq!((task.status.state.as_str(), &task.service_id), ("running", &service.id), "{}", task.id);
            assert!(task.slot > 0 && task.status.container_status.pid > 0);
            let node: Node = read(host, &format!("{version}/nodes/{}", task.node_id)).await;
            assert!(node.id == task.node_id && node.status.addr.is_ipv4(), "its address is the target of host-mode ports");
        }
    }
}

/// The begin of Portainer's agent in a task on each node, and a snapshot of its server through the manager.
async fn portainer(swarm: &Swarm, name: &str, network: &str) {
    for version in VERSIONS {
        let mut leaders = 0;
        for host in &swarm.hosts {
            let ping = UnixClient::new(host.skep_socket()).get("/_ping").await.expect("skep answers");
            assert!(ping.headers.contains_key("api-version"), "clients agree on a version by it");
            let info: Value = read(host, &format!("{version}/info")).await;
            let id = info["Swarm"]["NodeID"].as_str().expect("a node of a swarm");
            assert_eq!(info["Name"], host.name());
            if info["Swarm"]["ControlAvailable"] == true {
                let node: Node = read(host, &format!("{version}/nodes/{id}")).await;
                leaders += usize::from(node.manager_status.is_some_and(|status| status.leader));
            }
            agent(host, version, name, network).await;
        }
        assert_eq!(leaders, 1, "one agent finds that it runs beside the leader");
        snapshot(&swarm.hosts[0], version, swarm.hosts.len()).await;
    }
}

/// What the agent asks of its own container: the service whose tasks are the other agents, and the address at which these reach
/// it, which must not be that of `ingress`.
async fn agent(host: &Host, version: &str, name: &str, network: &str) {
    let label = filters(&format!(r#"{{"label":{{"com.docker.swarm.service.name={name}":true}}}}"#));
    let own: Vec<Value> = read(host, &format!("{version}/containers/json?filters={label}")).await;
    for container in own {
        let id = &container["Id"].as_str().expect("an id")[..12];
        let shown: Value = read(host, &format!("{version}/containers/{id}/json")).await;
        assert_eq!(shown["Config"]["Labels"]["com.docker.swarm.service.name"], name);
        let mut addresses = Vec::new();
        for (of, endpoint) in shown["NetworkSettings"]["Networks"].as_object().expect("networks") {
            let id = endpoint["NetworkID"].as_str().expect("an id");
            let found: Network = read(host, &format!("{version}/networks/{id}")).await;
            assert_eq!((found.name.as_str(), found.scope.as_str()), (of.as_str(), "swarm"));
            if !found.ingress {
                addresses.push((of.clone(), endpoint["IPAddress"].as_str().expect("an address").to_owned()));
            }
        }
        assert!(addresses.iter().any(|(of, address)| of == network && address.parse::<IpAddr>().is_ok()), "{addresses:?}");
    }
}

/// What the server keeps of an environment, every five minutes.
async fn snapshot(manager: &Host, version: &str, count: usize) {
    let nodes: Vec<Node> = read(manager, &format!("{version}/nodes")).await;
    assert_eq!(nodes.iter().filter(|node| node.status.state == "ready" && !node.description.hostname.is_empty()).count(), count);
    assert!(nodes.iter().all(|node| node.description.resources.nano_cpus > 0 && node.description.resources.memory_bytes > 0));
    let services: Vec<Service> = read(manager, &format!("{version}/services")).await;
    let tasks: Vec<Task> =
        read(manager, &format!("{version}/tasks?filters={}", filters(r#"{"desired-state":{"running":true}}"#))).await;
    assert!(tasks.iter().all(|task| services.iter().any(|service| service.id == task.service_id)));
    assert!(tasks.iter().all(|task| !task.status.container_status.container_id.is_empty()));
    let containers: Vec<Value> = read(manager, &format!("{version}/containers/json?all=1")).await;
    assert!(containers.iter().all(|container| container["State"].is_string() && container["Labels"].is_object()));
    for list in ["images/json?all=0", "networks", "secrets", "configs"] {
        let _: Vec<Value> = read(manager, &format!("{version}/{list}")).await;
    }
    let volumes: Value = read(manager, &format!("{version}/volumes")).await;
    assert!(volumes.get("Volumes").is_some());
    let swarm: Value = read(manager, &format!("{version}/swarm")).await;
    assert!(swarm["JoinTokens"]["Worker"].is_string());
}
