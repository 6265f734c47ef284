//! The eBPF datapath, checked by the kernel and with packets, on whole swarms (root needed): real engines, daemons and
//! tunnels, servers of the tests in the containers' namespaces, clients on lab hosts beside the swarm.

mod foreign_program;
mod growth;
mod kernel;
mod load;
mod migration;
mod namespace;
mod own_port;
mod packet;
mod published_ports;
mod servers;
mod virtual_addresses;

use super::shared_fixture::{Fixture, SharedFixture};
use super::swarm::kit::*;
use namespace::Namespace;
use serde_json::{Value, json};
use servers::{Server, serve};
use skep::lab::{Host, WHOAMI_IMAGE};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;
use tokio::sync::Mutex;

/// Port of the servers in the containers, both families.
const TARGET: u16 = 7000;
/// A second one, which the test of refusals puts behind a firewall.
const FIREWALLED: u16 = 7999;
/// Port of servers that listen on IPv4 only.
const IPV4_ONLY: u16 = 7001;

/// A swarm with an address of each family per host, client hosts beside it, and services on it.
struct EbpfFixture<S> {
    swarm: Swarm,
    clients: Vec<Host>,
    services: S,
    /// Nodes that take no tasks now. Locked while a service is created.
    paused: Mutex<BTreeSet<usize>>,
}

impl EbpfFixture<()> {
    async fn new(name: &str, nodes: u8, clients: u8) -> Self {
        let started = Instant::now();
        // A node whose daemon a case kills must not become down meanwhile: its tasks would be replaced.
        let swarm = swarm(name, nodes, "ebpf_datapath = \"auto\"\n[timeouts]\nnode_down_ms = 60000\n").await;
        for (number, host) in (1..).zip(&swarm.hosts) {
            add_ipv6(host, number).await;
        }
        let mut fixture = Self { swarm, clients: Vec::new(), services: (), paused: Mutex::default() };
        for number in 1..=clients {
            let client = fixture.swarm.lab.host(&format!("c{number}"), 10 + number).await.expect("client");
            add_ipv6(&client, u16::from(10 + number)).await;
            fixture.clients.push(client);
        }
        eprintln!("a swarm of {nodes} in {:.1?}", started.elapsed());
        fixture
    }

    fn with<S>(self, services: S) -> EbpfFixture<S> {
        EbpfFixture { swarm: self.swarm, clients: self.clients, services, paused: self.paused }
    }
}

impl<S> EbpfFixture<S> {
    fn client(&self, number: usize) -> Namespace {
        Namespace::of_host(&self.clients[number])
    }

    fn node(&self, number: usize) -> Namespace {
        Namespace::of_host(&self.swarm.hosts[number])
    }

    /// Creates a service with one task on each of these nodes, and these ports (published, target) over TCP and UDP. Returns
    /// the containers' namespaces, in the order of the nodes.
    async fn publish(&self, name: &str, nodes: &[usize], ports: &[(u16, u16)], labels: Value) -> Vec<Namespace> {
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
        // There are no constraints yet: the other nodes are paused meanwhile. A case that failed here may have left some.
        let mut paused = self.paused.lock().await;
        let others = (0..self.swarm.hosts.len()).filter(|node| !nodes.contains(node)).collect();
        self.pause(&mut paused, others).await;
        ok(&post(&self.swarm.hosts[0], "/services/create", &spec).await);
        let namespaces = self.namespaces(name, nodes.len()).await;
        self.pause(&mut paused, BTreeSet::new()).await;
        namespaces
    }

    /// Makes these nodes, and no others, the ones that take no tasks.
    async fn pause(&self, paused: &mut BTreeSet<usize>, nodes: BTreeSet<usize>) {
        for node in paused.symmetric_difference(&nodes).copied().collect::<Vec<_>>() {
            let value = if nodes.contains(&node) { "pause" } else { "active" };
            let line = format!("node update --availability {value} n{}", node + 1);
            self.swarm.hosts[0].docker_run(&line).await.expect("node update");
            if !paused.remove(&node) {
                paused.insert(node);
            }
        }
    }

    /// The namespaces of a service's containers, named after their nodes, sorted.
    async fn namespaces(&self, service: &str, count: usize) -> Vec<Namespace> {
        let mut namespaces = Vec::new();
        for task in self.swarm.running(service, count).await {
            namespaces.push(Namespace::of_task(&self.swarm, &task).await);
        }
        namespaces.sort_by(|a, b| a.name.cmp(&b.name));
        namespaces
    }

    /// Waits until the eBPF datapath of every node serves these ports, over TCP and UDP, to clients of both families.
    async fn wait_for_ports(&self, ports: &[u16]) {
        for host in &self.swarm.hosts {
            within(40, "ports on the eBPF datapath", || async {
                let ebpf = status(host).await["ebpf"].take();
                let served: BTreeSet<&str> = ebpf["ports"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                let all = ports.iter().flat_map(|port| ["tcp", "udp", "tcp6", "udp6"].map(|kind| format!("{port}/{kind}")));
                let missing: Vec<String> = all.filter(|port| !served.contains(port.as_str())).collect();
                anyhow::ensure!(missing.is_empty(), "{} does not serve {missing:?}: {ebpf:#}", host.name());
                Ok(())
            })
            .await;
        }
    }

    /// Sum of a counter of the programs over all nodes.
    async fn counter(&self, name: &str) -> u64 {
        let mut sum = 0;
        for host in &self.swarm.hosts {
            sum += status(host).await["ebpf"]["counters"][name].as_u64().unwrap_or_else(|| panic!("no counter {name}"));
        }
        sum
    }

    /// Waits until the sum of a counter is at least `least`: daemons read counters once per reconciliation.
    async fn wait_for_counter(&self, name: &str, least: u64) {
        within(20, "counters", || async {
            let sum = self.counter(name).await;
            anyhow::ensure!(sum >= least, "{name}: {sum}, not {least}");
            Ok(())
        })
        .await;
    }

    /// Ports of these numbers that carry connections or flows in user space now, on all nodes.
    async fn userspace_connections(&self, numbers: &BTreeSet<u16>) -> Vec<String> {
        let mut carried = Vec::new();
        for host in &self.swarm.hosts {
            for port in status(host).await["ports"].as_array().expect("ports") {
                let number = u16::try_from(port["port"].as_u64().expect("number")).expect("port");
                if numbers.contains(&number) && port["connections"] != 0 {
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

async fn add_ipv6(host: &Host, number: u16) {
    host.run(&format!("ip addr add {}/64 dev eth0 nodad", v6(number))).await.expect("an IPv6 address");
}

fn v6(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, number)
}

/// The address of the host with this number in the lab.
fn address(number: usize, six: bool) -> IpAddr {
    let number = u8::try_from(number).expect("few");
    if six { v6(number.into()).into() } else { Ipv4Addr::new(192, 0, 2, number).into() }
}

/// A port of a node, counted from 0.
fn at(node: usize, six: bool, port: u16) -> SocketAddr {
    SocketAddr::new(address(node + 1, six), port)
}
