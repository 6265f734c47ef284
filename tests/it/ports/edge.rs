//! The routing mesh in user space: TCP and UDP, IPv4 and IPv6, published numbers that the user chose and assigned ones.

use super::super::shared_fixture::{Fixture, SharedFixture};
use super::*;
use std::collections::{BTreeMap, BTreeSet};

static ROUTING_MESH: SharedFixture<RoutingMesh> = SharedFixture::new(module_path!());

/// Two nodes with a task each of a service on TCP and UDP, and a client.
struct RoutingMesh {
    swarm: Swarm,
    client: Host,
}

/// Two ports with a number, two without.
fn ports() -> Value {
    json!([
        { "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress" },
        { "Protocol": "udp", "TargetPort": 5300, "PublishedPort": 8080, "PublishMode": "ingress" },
        { "Protocol": "udp", "TargetPort": 5301, "PublishMode": "ingress" },
        { "Protocol": "tcp", "TargetPort": 80, "PublishMode": "ingress" },
    ])
}

impl Fixture for RoutingMesh {
    async fn set_up() -> Self {
        // The datapath of nodes without an eBPF datapath.
        let swarm = swarm("pe", 2, "ebpf_datapath = \"off\"").await;
        dual_stack(&swarm).await;
        let client = client(&swarm).await;
        create(&swarm, "web", 2, ports()).await;
        for task in &swarm.running("web", 2).await {
            echo(&swarm, task, 5300).await;
            echo(&swarm, task, 5301).await;
        }
        for address in addresses(&swarm) {
            within(10, "the ports to answer", || tcp_and_udp(&client, address)).await;
        }
        Self { swarm, client }
    }
    async fn take_down(self) {
        self.client.stop().await;
        self.swarm.stop().await;
    }
}

/// The tasks that answer by UDP and the containers that answer by TCP, on the chosen and on the assigned number.
async fn tcp_and_udp(client: &Host, address: IpAddr) -> anyhow::Result<(BTreeSet<String>, BTreeSet<String>)> {
    let (mut udp, mut tcp) = (BTreeSet::new(), BTreeSet::new());
    for port in [8080, 30_000] {
        let (task, seen, echo) = ask_udp(client, SocketAddr::new(address, port), b"hello".to_vec()).await?;
        anyhow::ensure!(echo == b"hello" && seen.starts_with("10.0.0."), "not the node's ingress address: {seen}");
        udp.insert(task);
        let answer = ask(client, SocketAddr::new(address, port)).await?;
        tcp.insert(answer.split_whitespace().next().unwrap_or_default().to_owned());
    }
    Ok((udp, tcp))
}

#[test]
fn ports_without_a_number_get_one_per_protocol() {
    ROUTING_MESH.concurrent_case(async |fixture| {
        let service = get(&fixture.swarm.hosts[0], "/services/web").await;
        assert_eq!(service["Spec"]["EndpointSpec"]["Ports"], ports(), "the spec stays as the user sent it");
        assert_eq!(service["Endpoint"]["Spec"]["Ports"], ports());
        let assigned: Vec<(&str, u64)> = service["Endpoint"]["Ports"]
            .as_array()
            .expect("ports")
            .iter()
            .map(|p| (p["Protocol"].as_str().expect("protocol"), p["PublishedPort"].as_u64().expect("port")))
            .collect();
        assert_eq!(assigned, [("tcp", 8080), ("udp", 8080), ("udp", 30_000), ("tcp", 30_000)]);
    });
}

/// Exclusive, because requests of other tests would shift the round-robin.
#[test]
fn tcp_and_udp_are_spread_over_both_tasks_on_every_address_of_every_node() {
    ROUTING_MESH.exclusive_case(async |fixture| {
        for address in addresses(&fixture.swarm) {
            let (mut udp, mut tcp) = (BTreeSet::new(), BTreeSet::new());
            for _ in 0..4 {
                let answered = tcp_and_udp(&fixture.client, address).await.expect("answers");
                udp.extend(answered.0);
                tcp.extend(answered.1);
            }
            assert_eq!((udp.len(), tcp.len()), (2, 2), "{address}: both tasks answer");
        }
    });
}

/// The largest one with the task's id and the client's address in front still fits a datagram.
#[test]
fn datagrams_of_up_to_60000_bytes_are_returned_unchanged() {
    ROUTING_MESH.concurrent_case(async |fixture| {
        for address in addresses(&fixture.swarm) {
            for len in [1400, 9000, 60_000] {
                let payload: Vec<u8> = (0..len).map(|i: usize| u8::try_from(i % 251).expect("byte")).collect();
                for _ in 0..2 {
                    let to = SocketAddr::new(address, 8080);
                    let (.., echo) = ask_udp(&fixture.client, to, payload.clone()).await.expect("large datagrams");
                    assert!(echo == payload, "{address}: the answer to {len} bytes has other content");
                }
            }
        }
    });
}

#[test]
fn processes_of_a_node_reach_published_ports_on_loopback() {
    ROUTING_MESH.concurrent_case(async |fixture| {
        for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            for host in &fixture.swarm.hosts {
                ask(host, SocketAddr::new(address, 8080)).await.expect("TCP on loopback");
                ask_udp(host, SocketAddr::new(address, 8080), b"x".to_vec()).await.expect("UDP on loopback");
            }
        }
    });
}

#[test]
fn the_status_of_every_node_shows_its_ports_and_flows() {
    ROUTING_MESH.concurrent_case(async |fixture| {
        for host in &fixture.swarm.hosts {
            let to = SocketAddr::new(host.address().into(), 8080);
            ask_udp(&fixture.client, to, b"x".to_vec()).await.expect("a flow");
            within(5, "the ports to be shown", || async {
                let shown = status(host).await["ports"].as_array().expect("ports").clone();
                let states: BTreeMap<String, String> = shown
                    .iter()
                    .map(|p| (format!("{}/{}", p["port"], p["protocol"].as_str().unwrap_or("?")), p["state"].to_string()))
                    .collect();
                let all = ["30000/tcp", "30000/udp", "8080/tcp", "8080/udp"].map(|p| (p.to_owned(), "\"listening\"".to_owned()));
                anyhow::ensure!(states == BTreeMap::from(all), "{states:?}");
                let flows = shown.iter().find(|p| p["protocol"] == "udp" && p["port"] == 8080).expect("shown");
                anyhow::ensure!(flows["connections"].as_u64().is_some_and(|n| n > 0), "flows are counted: {flows}");
                Ok(())
            })
            .await;
        }
    });
}
