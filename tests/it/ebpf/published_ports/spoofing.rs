//! Forged source addresses, of containers to a client and of a client to containers, are dropped.

use super::super::namespace::frames_with;
use super::super::packet;
use super::servers::MARK;
use super::*;
use std::net::{SocketAddrV4, UdpSocket};

impl PerNodeServices {
    /// The containers' addresses on the ingress network, by node.
    async fn ingress_addresses(&self) -> Vec<Ipv4Addr> {
        let mut addresses = Vec::new();
        for container in &self.containers {
            let shown = container.run("ip -o -4 addr show").await;
            let on_ingress = shown.split_whitespace().find(|word| word.starts_with("10.0.0.")).expect("an address on ingress");
            addresses.push(on_ingress.split('/').next().and_then(|ip| ip.parse::<Ipv4Addr>().ok()).expect("an address"));
        }
        addresses
    }
}

#[test]
fn a_container_cannot_send_with_the_address_of_another() {
    PUBLISHED_PORTS.exclusive_case(async |fixture| {
        let addresses = fixture.services.ingress_addresses().await;
        let client = fixture.client(0);
        let capture = client.capture();
        let client_address = |port| SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 11), port);
        // Flows to every backend, through the sender's node and another: entries that a forged packet could match.
        let mut sockets: Vec<UdpSocket> = Vec::new();
        for (node, backend) in [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (0, 2)] {
            let from = client_address(21_000 + u16::try_from(sockets.len()).expect("few"));
            let socket = client.udp(Some(from.into()), at(node, false, port_of(backend))).expect("a socket");
            within(15, "an answer", || async { exchange(&socket, b"a flow") }).await;
            sockets.push(socket);
        }
        assert!(frames_with(&capture.frames(), b"a flow") >= 6, "the capture sees answers");
        let raw = fixture.services.containers[0].raw();
        let mut sent = 0;
        // By the device that the container's routes select, the engine's bridge included. (Addresses that no node has are
        // not tried: what leaves by the bridge is the engine's to filter, as for any container.)
        for other in addresses.iter().skip(1).copied().chain([Ipv4Addr::new(192, 0, 2, 1)]) {
            for port in 21_000..21_006 {
                for (source, target) in [(TARGET, port), (8081, port), (8082, port)] {
                    let (from, to) = (SocketAddrV4::new(other, source), client_address(target));
                    for packet in [packet::udp(from, to, b"FORGED by UDP"), packet::tcp(from, to, 0x18, 1, b"FORGED by TCP")] {
                        sent += usize::from(raw.send_to(&packet, &SocketAddr::from(to).into()).is_ok());
                    }
                }
            }
        }
        assert!(sent >= 36, "only {sent} forged packets were sent");
        // Answers of the same container that were sent later than the forged packets.
        within(15, "an answer of the container", || async { exchange(&sockets[0], b"genuine") }).await;
        within(15, "an answer of the container", || async { exchange(&sockets[1], b"genuine") }).await;
        let frames = capture.frames();
        assert!(frames_with(&frames, b"genuine") >= 2);
        assert_eq!(frames_with(&frames, b"FORGED"), 0, "forged packets of a container reached a client");
    });
}

/// Sources of the containers, of a network of the cluster, and of the loopback network. (An address of the pool that is on no
/// network is that of a client: `published_ports::clients` has those.)
#[test]
fn a_client_cannot_send_with_an_address_of_the_overlay() {
    PUBLISHED_PORTS.exclusive_case(async |fixture| {
        let services = &fixture.services;
        let client = fixture.client(0);
        let raw = client.raw();
        let unassigned = [Ipv4Addr::new(10, 0, 0, 200), Ipv4Addr::LOCALHOST];
        for source in services.ingress_addresses().await.into_iter().chain(unassigned) {
            for node in 0..fixture.swarm.hosts.len() {
                for backend in 0..fixture.swarm.hosts.len() {
                    let node = Ipv4Addr::new(192, 0, 2, u8::try_from(node + 1).expect("few"));
                    let to = SocketAddrV4::new(node, port_of(backend));
                    let forged = packet::udp(SocketAddrV4::new(source, 5555), to, &[MARK, b" forged"].concat());
                    raw.send_to(&forged, &SocketAddr::from(to).into()).unwrap_or_else(|e| panic!("{source} -> {to}: {e}"));
                }
            }
        }
        for (node, backend) in [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 2)] {
            let socket = client.udp(None, at(node, false, port_of(backend))).expect("a socket");
            within(15, "an answer", || async { exchange(&socket, &[MARK, b" genuine"].concat()) }).await;
        }
        for (server, container) in services.servers.iter().zip(&services.containers) {
            let received = server.received();
            let genuine = received.iter().any(|(_, payload)| payload.ends_with(b"genuine"));
            assert!(genuine, "{} received {received:?}", container.name);
            let forged: Vec<_> = received.iter().filter(|(from, _)| from.port() == 5555).collect();
            assert!(forged.is_empty(), "{} received {forged:?}", container.name);
        }
    });
}

/// Review finding 9: a datagram from the published port of another node would be answered there, and so for ever. A node is known by every
/// address of its host, not by that of its tunnel alone.
#[test]
fn a_datagram_from_a_published_port_of_a_further_address_of_a_node_is_dropped() {
    const FURTHER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 77);
    PUBLISHED_PORTS.exclusive_case(async |fixture| {
        let (services, hosts) = (&fixture.services, &fixture.swarm.hosts);
        hosts[1].run(&format!("ip addr add {FURTHER}/32 dev eth0")).await.expect("an address");
        within(60, "the other nodes to know the address", || async {
            let nodes = dump(&hosts[0]).await?["view"]["cluster"]["nodes"].take();
            let named = |node: &Value| node["addresses"].as_array().is_some_and(|all| all.contains(&json!(FURTHER.to_string())));
            anyhow::ensure!(nodes.as_array().is_some_and(|nodes| nodes.iter().any(named)), "{nodes:#}");
            let status = status(&hosts[0]).await;
            anyhow::ensure!(status["applied"]["ebpf"] == status["view_revision"], "{:#}", status["applied"]);
            Ok(())
        })
        .await;
        let client = fixture.client(0);
        let raw = client.raw();
        let before = fixture.counter("drop_loop").await;
        let to = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), port_of(0));
        for (source, payload) in [(port_of(1), &b" looping"[..]), (5556, b" of a program of the node")] {
            let datagram = packet::udp(SocketAddrV4::new(FURTHER, source), to, &[MARK, payload].concat());
            raw.send_to(&datagram, &SocketAddr::from(to).into()).expect("sent");
        }
        fixture.wait_for_counter("drop_loop", before + 1).await;
        within(15, "a datagram of another program of the node to arrive", || async {
            let received = services.servers[0].received();
            anyhow::ensure!(received.iter().any(|(_, payload)| payload.ends_with(b" of a program of the node")), "{received:?}");
            Ok(())
        })
        .await;
        let received = services.servers[0].received();
        assert!(!received.iter().any(|(_, payload)| payload.ends_with(b" looping")), "{received:?}");
        hosts[1].run(&format!("ip addr del {FURTHER}/32 dev eth0")).await.expect("removed");
    });
}
