//! The MTU of the tunnel follows the host's routes to the other nodes, one by one: what a container may send to each of them.

use super::fixture::{A, Fixture, Namespace, Node, PATIENCE, PORT, ip};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, ip_mtu, set_ip_mtu_discover};
use skep::lab::eventually;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

/// Header bytes of a UDP datagram over IPv4.
const HEADERS: u32 = 28;
/// Larger than every path.
const LARGE: u32 = 9000;

/// Largest IPv4 packet, in bytes, that the container may send to `to` in one piece: the size that its kernel learns from the
/// mesh namespace's errors, and a datagram of that size that arrived.
async fn largest(from: &Namespace, to: Ipv4Addr, at: &UdpSocket) -> anyhow::Result<u32> {
    let socket = from.udp(ip("0.0.0.0"), 0);
    set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO)?;
    socket.connect((to, PORT))?;
    at.set_nonblocking(true)?;
    let mut buffer = vec![0; 10_000];
    let mut size = ip_mtu(&socket)?;
    for _ in 0..100 {
        let payload = usize::try_from(size - HEADERS)?;
        // An error reports what an earlier datagram met.
        let _ = socket.send(&vec![1; payload]);
        tokio::time::sleep(Duration::from_millis(10)).await;
        while let Ok(length) = at.recv(&mut buffer) {
            if length == payload {
                return Ok(size);
            }
        }
        size = ip_mtu(&socket)?;
    }
    anyhow::bail!("datagrams of {size} bytes vanish")
}

async fn reaches(from: &Namespace, to: Ipv4Addr, at: &UdpSocket, expected: u32) {
    eventually(&format!("packets of {expected} bytes to {to}"), PATIENCE, || async {
        // What the container's kernel remembers of an earlier path would hide the present one.
        from.run("ip route flush cache").await;
        let size = largest(from, to, at).await?;
        anyhow::ensure!(size == expected, "{size} bytes are the largest");
        Ok(())
    })
    .await
    .unwrap_or_else(|e| panic!("{e:#}"));
}

async fn device_has(node: &Node, mtu: u32) {
    eventually("the tunnel's MTU", PATIENCE, || async {
        let link = node.mesh_namespace.try_run("ip -o link show skep0").await?;
        anyhow::ensure!(link.contains(&format!(" mtu {mtu} ")), "expected {mtu}: {link}");
        Ok(())
    })
    .await
    .unwrap_or_else(|e| panic!("{e:#}"));
}

/// A stream of full segments passes, whatever MTU the ends have.
async fn streams(from: &Namespace, to: &Namespace, address: Ipv4Addr) {
    const BYTES: usize = 3_000_000;
    let listener = to.inside(|| TcpListener::bind((address, 0))).expect("listener");
    let port = listener.local_addr().expect("bound").port();
    let server = tokio::task::spawn_blocking(move || {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut got = Vec::new();
        stream.read_to_end(&mut got).map(|_| got.len())
    });
    let mut client = from.inside(|| TcpStream::connect((address, port))).expect("connects");
    client.set_write_timeout(Some(PATIENCE)).expect("set");
    let client = tokio::task::spawn_blocking(move || client.write_all(&vec![7; BYTES]));
    client.await.expect("no panic").expect("sent");
    assert_eq!(server.await.expect("no panic").expect("received"), BYTES);
}

/// Sizes of GCP, PPPoE and jumbo frames, a route with a smaller MTU to one node, and changes while the tunnel runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_path_has_its_own_mtu_and_changes_are_followed() {
    let mut fixture = Fixture::new(3).await;
    let a = fixture.container_with(0, A, "10.0.1.11", LARGE).await;
    let b = fixture.container_with(1, A, "10.0.1.12", LARGE).await;
    let c = fixture.container_with(2, A, "10.0.1.13", LARGE).await;
    let (to_b, to_c) = (ip("10.0.1.12"), ip("10.0.1.13"));
    fixture.publish().await;
    let (at_b, at_c) = (b.udp(to_b, PORT), c.udp(to_c, PORT));
    device_has(&fixture.nodes[0], 1440).await;
    reaches(&a, to_b, &at_b, 1440).await;

    // One node behind a smaller path, known by a route: the other one keeps what it has.
    let host = &fixture.nodes[0].namespace;
    let far = fixture.nodes[1].host.address();
    host.run(&format!("ip route add {far}/32 dev eth0 mtu 1400")).await;
    reaches(&a, to_b, &at_b, 1328).await;
    reaches(&a, to_c, &at_c, 1440).await;
    streams(&a, &b, to_b).await;
    host.run(&format!("ip route del {far}/32 dev eth0")).await;
    reaches(&a, to_b, &at_b, 1440).await;

    for (uplink, tunnel) in [(1460, 1400), (1492, 1432), (9001, 8941), (1500, 1440)] {
        for node in &fixture.nodes {
            fixture.lab.set_mtu(&node.host, uplink).await.expect("set");
        }
        for node in &fixture.nodes {
            device_has(node, tunnel).await;
        }
        reaches(&a, to_b, &at_b, tunnel).await;
        reaches(&a, to_c, &at_c, tunnel).await;
        streams(&c, &a, ip("10.0.1.11")).await;
    }
    drop((a, b, c));
    fixture.stop().await;
}

/// Between IPv6 endpoints the outer header is 20 bytes larger.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_between_ipv6_endpoints_takes_twenty_bytes_more() {
    let mut fixture = Fixture::new(2).await;
    for (number, node) in fixture.nodes.iter_mut().enumerate() {
        let address = format!("2001:db8:7::{}", number + 1);
        node.namespace.run(&format!("ip addr add {address}/64 dev eth0 nodad")).await;
        node.peer.endpoints = vec![format!("[{address}]:2377").parse().expect("address")];
    }
    let a = fixture.container_with(0, A, "10.0.1.11", LARGE).await;
    let b = fixture.container_with(1, A, "10.0.1.12", LARGE).await;
    fixture.publish().await;
    let at_b = b.udp(ip("10.0.1.12"), PORT);
    device_has(&fixture.nodes[0], 1420).await;
    reaches(&a, ip("10.0.1.12"), &at_b, 1420).await;
    streams(&a, &b, ip("10.0.1.12")).await;
    drop((a, b));
    fixture.stop().await;
}
