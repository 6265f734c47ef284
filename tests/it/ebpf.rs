//! The eBPF datapath with the kernel's own word and with real packets, on whole swarms (root needed): real engines, daemons
//! and tunnels, servers of the test's own in the containers' namespaces, clients on hosts of their own.
//!
//! A swarm costs more time than most of what is asked of it, so one is walked through in parts. `SKEP_PART=word` walks the
//! parts with that word in their names only.

mod bulk;
mod client_address_matrix;
mod errors;
mod failover;
mod foreign;
mod host_connections;
mod kernel;
mod labels;
mod load;
mod packet;
mod servers;
mod spoof;
mod spot;
mod tuple_collision;
mod vips;

use super::swarm::kit::*;
use futures_util::FutureExt as _;
use serde_json::{Value, json};
use servers::{Server, serve};
use skep::lab::{Host, WHOAMI_IMAGE};
use spot::Spot;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::time::Instant;

/// Where the servers in the containers listen.
const TARGET: u16 = 7000;
/// Where they do as well, and a firewall is in front of it in some test.
const CLOSED: u16 = 7999;
/// Where somebody listens over IPv4 only.
const OLD: u16 = 7001;

/// A swarm with an address of each family per host, clients beside it, and what its containers serve.
struct Stage {
    swarm: Swarm,
    clients: Vec<Host>,
}

impl Stage {
    async fn new(name: &str, nodes: u8, clients: u8) -> Self {
        let begun = Instant::now();
        let swarm = swarm(name, nodes, "ebpf_datapath = \"auto\"\n").await;
        for (number, host) in (1..).zip(&swarm.hosts) {
            second_family(host, number).await;
        }
        let mut stage = Self { swarm, clients: Vec::new() };
        for number in 1..=clients {
            let client = stage.swarm.lab.host(&format!("c{number}"), 10 + number).await.expect("client");
            second_family(&client, u16::from(10 + number)).await;
            stage.clients.push(client);
        }
        eprintln!("a swarm of {nodes} in {:.1?}", begun.elapsed());
        stage
    }

    fn client(&self, at: usize) -> Spot {
        Spot::of_host(&self.clients[at])
    }

    fn node(&self, at: usize) -> Spot {
        Spot::of_host(&self.swarm.hosts[at])
    }

    /// A service with one task per node that is named, and these ports (published, target) over TCP and UDP.
    async fn publish(&self, name: &str, nodes: &[usize], ports: &[(u16, u16)], labels: Value) -> Vec<Spot> {
        let ports: Vec<Value> = ports
            .iter()
            .flat_map(|(published, target)| {
                ["tcp", "udp"]
                    .map(|p| json!({ "Protocol": p, "TargetPort": target, "PublishedPort": published, "PublishMode": "ingress" }))
            })
            .collect();
        let template = json!({ "ContainerSpec": { "Image": WHOAMI_IMAGE, "StopGracePeriod": 100_000_000 } });
        let spec = json!({
            "Name": name, "Labels": labels, "TaskTemplate": template,
            "Mode": { "Replicated": { "Replicas": nodes.len() } }, "EndpointSpec": { "Ports": ports },
        });
        // There are no constraints yet: the other nodes take no tasks meanwhile.
        let others: Vec<usize> = (0..self.swarm.hosts.len()).filter(|node| !nodes.contains(node)).collect();
        for node in &others {
            self.availability(*node, "pause").await;
        }
        ok(&post(&self.swarm.hosts[0], "/services/create", &spec).await);
        let spots = self.spots(name, nodes.len()).await;
        for node in others {
            self.availability(node, "active").await;
        }
        spots
    }

    async fn availability(&self, node: usize, value: &str) {
        let line = format!("node update --availability {value} n{}", node + 1);
        self.swarm.hosts[0].docker_run(&line).await.expect("node update");
    }

    /// The namespaces of a service's containers, named after their nodes, sorted.
    async fn spots(&self, service: &str, count: usize) -> Vec<Spot> {
        let mut spots = Vec::new();
        for task in self.swarm.running(service, count).await {
            spots.push(Spot::of_task(&self.swarm, &task).await);
        }
        spots.sort_by(|a, b| a.name.cmp(&b.name));
        spots
    }

    /// Waits until the eBPF datapath of every node serves these ports, over TCP and UDP, to clients of both families.
    async fn served(&self, ports: &[u16]) {
        for host in &self.swarm.hosts {
            within(40, "ports on the eBPF datapath", || async {
                let ebpf = status(host).await["ebpf"].take();
                let has: BTreeSet<&str> = ebpf["ports"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                let all = ports.iter().flat_map(|port| ["tcp", "udp", "tcp6", "udp6"].map(|kind| format!("{port}/{kind}")));
                let unavailable: Vec<String> = all.filter(|port| !has.contains(port.as_str())).collect();
                anyhow::ensure!(unavailable.is_empty(), "{} does not serve {unavailable:?}: {ebpf:#}", host.name());
                Ok(())
            })
            .await;
        }
    }

    /// What the programs of all nodes counted under a name.
    async fn counted(&self, name: &str) -> u64 {
        let mut sum = 0;
        for host in &self.swarm.hosts {
            sum += status(host).await["ebpf"]["counters"][name].as_u64().unwrap_or_else(|| panic!("no counter {name}"));
        }
        sum
    }

    /// Waits until they have counted so many: counters are read at each look at the kernel.
    async fn counts(&self, name: &str, least: u64) {
        within(20, "counters", || async {
            let counted = self.counted(name).await;
            anyhow::ensure!(counted >= least, "{name}: {counted}, not {least}");
            Ok(())
        })
        .await;
    }

    /// Connections and flows that user space carries now, on all nodes, by port.
    async fn in_user_space(&self, wanted: impl Fn(u16) -> bool) -> Vec<String> {
        let mut carried = Vec::new();
        for host in &self.swarm.hosts {
            for port in status(host).await["ports"].as_array().expect("ports") {
                let number = u16::try_from(port["port"].as_u64().expect("number")).expect("port");
                if wanted(number) && port["connections"] != 0 {
                    carried.push(format!("{} carries {port}", host.name()));
                }
            }
        }
        carried
    }

    async fn stop(self) {
        for client in self.clients {
            client.stop().await;
        }
        self.swarm.stop().await;
    }
}

async fn second_family(host: &Host, number: u16) {
    host.run(&format!("ip addr add {}/64 dev eth0 nodad", v6(number))).await.expect("an IPv6 address");
}

fn v6(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, number)
}

/// The address of the host with this number on the fabric.
fn address(number: usize, six: bool) -> IpAddr {
    let number = u8::try_from(number).expect("few");
    if six { v6(number.into()).into() } else { Ipv4Addr::new(192, 0, 2, number).into() }
}

/// A port of a node, counted from 0.
fn at(node: usize, six: bool, port: u16) -> SocketAddr {
    SocketAddr::new(address(node + 1, six), port)
}

/// Parts one after the other; one that fails does not keep the next from being seen.
#[derive(Default)]
struct Walk {
    failed: Vec<String>,
}

impl Walk {
    async fn part(&mut self, name: &str, part: impl Future<Output = ()>) {
        if std::env::var_os("SKEP_PART").is_some_and(|word| !name.contains(&*word.to_string_lossy())) {
            return;
        }
        let begun = Instant::now();
        let done = AssertUnwindSafe(part).catch_unwind().await;
        eprintln!("{} {name}: {:.1?}", if done.is_ok() { "well:" } else { "FAILED:" }, begun.elapsed());
        if let Err(panic) = done {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default();
            self.failed.push(format!("{name}: {text}"));
        }
    }

    fn end(self) {
        assert!(self.failed.is_empty(), "{} parts failed:\n\n{}", self.failed.len(), self.failed.join("\n\n"));
    }
}

/// One service per node, so that a port number says where the backend is: 8081, 8082 and 8083, and 8181 to 8183 for the same
/// servers; 8091 to 8093 lead to a port of their own, and over IPv4 only behind 8071 to 8073.
struct PerNode {
    servers: Vec<Server>,
    spots: Vec<Spot>,
}

/// The port behind which the backend is on this node, counted from 0.
fn port_of(node: usize) -> u16 {
    8081 + u16::try_from(node).expect("few")
}

impl PerNode {
    async fn start(stage: &Stage) -> Self {
        let (mut servers, mut spots) = (Vec::new(), Vec::new());
        let nodes = 0..stage.swarm.hosts.len();
        for node in nodes.clone() {
            let port = port_of(node);
            let ports = [(port, TARGET), (port + 100, TARGET), (port + 10, CLOSED), (port - 10, OLD)];
            let spot = stage.publish(&format!("on{}", node + 1), &[node], &ports, json!({})).await.remove(0);
            servers.push(serve(&spot, TARGET, Ipv6Addr::UNSPECIFIED.into()));
            serve(&spot, OLD, Ipv4Addr::UNSPECIFIED.into());
            serve(&spot, CLOSED, Ipv6Addr::UNSPECIFIED.into());
            spots.push(spot);
        }
        let all: Vec<u16> = nodes.flat_map(|node| [0, 10, 100].map(|more| port_of(node) + more)).collect();
        stage.served(&all).await;
        Self { servers, spots }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn published_ports_packet_by_packet() {
    let stage = Stage::new("fp", 3, 3).await;
    let per_node = PerNode::start(&stage).await;
    let mut walk = Walk::default();
    walk.part("thirty-six: the client's address is kept", client_address_matrix::all(&stage)).await;
    walk.part("IPv4 only: an IPv6 client is served all the same", client_address_matrix::old(&stage)).await;
    walk.part("bulk: 100 MB both ways", async { bulk::streams(&stage) }).await;
    walk.part("bulk: datagrams of any size", bulk::datagrams(&stage)).await;
    walk.part("errors: closed ports refuse", errors::closed(&stage, &per_node)).await;
    walk.part("errors: a narrow hop", errors::narrow(&stage)).await;
    walk.part("collide: one client socket through two nodes and two ports", tuple_collision::all(&stage)).await;
    walk.part("labels: affinity", labels::affinity(&stage)).await;
    walk.part("labels: allow-list", labels::allow(&stage)).await;
    walk.part("moved: a connection goes on through another node", failover::address(&stage)).await;
    walk.part("not ours: connections from a published number", host_connections::connections(&stage)).await;
    walk.part("not ours: foreign programs run", host_connections::programs(&stage)).await;
    walk.part("spoof: nobody speaks in another's name", spoof::names(&stage, &per_node)).await;
    stage.stop().await;
    walk.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn virtual_addresses_call_by_call() {
    let mut stage = Stage::new("fv", 2, 1).await;
    let scene = vips::Scene::start(&stage).await;
    let mut walk = Walk::default();
    walk.part("vips: socket calls", vips::calls(&stage, &scene)).await;
    walk.part("vips: names", vips::names(&stage, &scene)).await;
    walk.part("vips: ping", vips::ping(&stage, &scene)).await;
    walk.part("vips: packets without a call", vips::raw(&scene)).await;
    walk.part("vips: a namespace inside a container", vips::nested(&scene)).await;
    walk.part("vips: strangers", vips::strangers(&stage, &scene)).await;
    walk.part("spoof: nothing in clear without programs", spoof::clear(&mut stage, &scene)).await;
    // An engine whose network driver is gone hangs over each endpoint.
    for host in &mut stage.swarm.hosts {
        host.stop_daemon(true).await.expect("gone");
        start(host).await;
    }
    stage.stop().await;
    walk.end();
}
