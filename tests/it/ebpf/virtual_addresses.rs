//! Virtual addresses as processes in containers use them, on one swarm of two nodes: by socket calls, by names, by packets
//! without a socket call.

mod drops;
mod dual_stack;
mod isolation;
mod packets;
mod socket_calls;
mod trace;

use super::super::ports::listens::wait_until_ready;
use super::servers::{self, Answer, Connection, exchange, parse_answer};
use super::*;
use anyhow::ensure;
use skep::model::SubnetPair;
use std::net::UdpSocket;
use std::time::Duration;

/// A published UDP port of the service `web`.
const PUBLISHED: u16 = 8064;

static VIRTUAL_ADDRESSES: SharedFixture<EbpfFixture<NetworkServices>> = SharedFixture::new(module_path!());

impl Fixture for EbpfFixture<NetworkServices> {
    async fn set_up() -> Self {
        let fixture = EbpfFixture::new("fv", 2, 1).await;
        let services = NetworkServices::start(&fixture).await;
        fixture.with(services)
    }
    async fn take_down(self) {
        self.stop().await;
    }
}

/// A container and its address on the network.
struct Container {
    namespace: Namespace,
    address: Ipv4Addr,
}

/// Services on the network `back`, one task on each node, and one on another network.
struct NetworkServices {
    /// Tasks of `web`, which has the virtual address, and their servers at [`TARGET`].
    web: Vec<Container>,
    servers: Vec<Server>,
    /// Containers that use the virtual address, by node.
    callers: Vec<Container>,
    /// A container on another network.
    outsider: Namespace,
    /// Task addresses of `plain`, which has no virtual address.
    plain: BTreeSet<String>,
    vip: Ipv4Addr,
    /// The subnets of `back`.
    pair: SubnetPair,
    /// Virtual address of `empty`, which has no task.
    empty: Ipv4Addr,
}

impl NetworkServices {
    async fn start(fixture: &EbpfFixture<()>) -> Self {
        let swarm = &fixture.swarm;
        for network in ["back", "other"] {
            ok(&post(&swarm.hosts[0], "/networks/create", &json!({ "Name": network, "Driver": "overlay", "EnableIPv6": true }))
                .await);
        }
        let make = |name: &str, network: &str, replicas: usize, endpoint: Value| {
            json!({
                "Name": name, "Mode": { "Replicated": { "Replicas": replicas } }, "EndpointSpec": endpoint,
                "TaskTemplate": {
                    "ContainerSpec": { "Image": WHOAMI_IMAGE, "StopGracePeriod": 100_000_000 },
                    "Networks": [{ "Target": network }],
                },
            })
        };
        let port = json!({ "Ports": [{ "Protocol": "udp", "TargetPort": TARGET, "PublishedPort": PUBLISHED }] });
        for spec in [
            make("web", "back", 2, port),
            make("callers", "back", 2, json!({})),
            make("plain", "back", 2, json!({ "Mode": "dnsrr" })),
            make("outsider", "other", 1, json!({})),
            make("empty", "back", 0, json!({})),
        ] {
            ok(&post(&swarm.hosts[0], "/services/create", &spec).await);
        }
        let network = get(&swarm.hosts[0], "/networks/back").await;
        let config = |i: usize| network["IPAM"]["Config"][i]["Subnet"].as_str().expect("a subnet").to_owned();
        let pair = SubnetPair::new(config(0).parse().expect("IPv4"), config(1).parse().expect("IPv6")).expect("a pair");
        let subnet = pair.v4;
        let web = containers(fixture, "web", subnet).await;
        let callers = containers(fixture, "callers", subnet).await;
        let plain = containers(fixture, "plain", subnet).await;
        let servers = web.iter().map(|one| serve(&one.namespace, TARGET, Ipv6Addr::UNSPECIFIED.into())).collect();
        wait_until_ready(&swarm.hosts, &swarm.running("web", 2).await, true).await;
        let vip = virtual_address(fixture, "web", subnet).await;
        let empty = virtual_address(fixture, "empty", subnet).await;
        let outsider = fixture.namespaces("outsider", 1).await.remove(0);
        let plain = plain.iter().map(|container| container.address.to_string()).collect();
        Self { web, servers, callers, outsider, plain, vip, pair, empty }
    }

    /// The virtual address and port.
    fn target(&self) -> SocketAddr {
        SocketAddr::new(self.vip.into(), TARGET)
    }

    /// The same in the form of IPv4-mapped IPv6.
    fn mapped_target(&self) -> SocketAddr {
        SocketAddr::new(self.vip.to_ipv6_mapped().into(), TARGET)
    }
}

/// A service's virtual address in the subnet.
async fn virtual_address(fixture: &EbpfFixture<()>, service: &str, subnet: ipnet::Ipv4Net) -> Ipv4Addr {
    let service = get(&fixture.swarm.hosts[0], &format!("/services/{service}")).await;
    let vips = service["Endpoint"]["VirtualIPs"].as_array().expect("virtual addresses").iter();
    let mut vips = vips.filter_map(|vip| vip["Addr"].as_str()?.split('/').next()?.parse::<Ipv4Addr>().ok());
    vips.find(|vip| subnet.contains(vip)).expect("a virtual address")
}

/// The two containers of a service, by node, with their addresses in the subnet.
async fn containers(fixture: &EbpfFixture<()>, service: &str, subnet: ipnet::Ipv4Net) -> Vec<Container> {
    let mut containers = Vec::new();
    for namespace in fixture.namespaces(service, 2).await {
        let shown = namespace.run("ip -o -4 addr show").await;
        let mut words = shown.split_whitespace().filter_map(|word| word.split('/').next()?.parse::<Ipv4Addr>().ok());
        let address = words.find(|address| subnet.contains(address)).expect("an address on the network");
        containers.push(Container { namespace, address });
    }
    containers
}
