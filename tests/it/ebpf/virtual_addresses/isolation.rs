//! What has no access to a virtual address, and what an overlay must not show on the wire.

use super::super::namespace::{Capture, frames_with};
use super::super::packet;
use super::servers::MARK;
use super::*;
use futures_util::FutureExt as _;
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, resume_unwind};

#[test]
fn a_container_of_another_network_does_not_reach_the_virtual_address() {
    VIRTUAL_ADDRESSES.concurrent_case(async |fixture| {
        let services = &fixture.services;
        let outsider = &services.outsider;
        let reached = Connection::open(outsider, services.target()).and_then(|mut connection| connection.identify());
        assert!(reached.is_err(), "by TCP: {reached:?}");
        let socket = outsider.udp(None, services.target()).map_err(anyhow::Error::from);
        let reached = socket.and_then(|socket| exchange(&socket, b"hello"));
        assert!(reached.is_err(), "by UDP: {reached:?}");

        // With the addresses of containers that are on the network.
        let raw = outsider.raw();
        for from in [services.callers[0].address, services.web[0].address] {
            let (from, to) = (SocketAddrV4::new(from, 4747), SocketAddrV4::new(services.vip, TARGET));
            let _ = raw.send_to(&packet::udp(from, to, &[MARK, b" forged"].concat()), &services.target().into());
        }
        for web in &services.web {
            let socket = services.callers[0].namespace.udp(None, SocketAddr::new(web.address.into(), TARGET)).expect("a socket");
            within(15, "an answer", || async { exchange(&socket, &[MARK, b" genuine"].concat()) }).await;
        }
        for server in &services.servers {
            let received = server.received();
            assert!(received.iter().any(|(_, payload)| payload.ends_with(b"genuine")), "{received:?}");
            assert!(!received.iter().any(|(_, payload)| payload.ends_with(b"forged")), "{received:?}");
        }
    });
}

/// A process of a node, and a host that is on no network of the swarm, cannot use the virtual address; once the host has the
/// address itself, its sockets use that.
#[test]
fn a_host_that_has_the_same_address_uses_its_own() {
    VIRTUAL_ADDRESSES.concurrent_case(async |fixture| {
        let services = &fixture.services;
        for host in [fixture.node(0), fixture.client(0)] {
            let connect = || host.inside(|| TcpStream::connect(services.target()));
            let reached = connect();
            assert!(reached.is_err(), "{} reached a task: {reached:?}", host.name);
            host.run(&format!("ip addr add {}/32 dev lo", services.vip)).await;
            let listener = host.inside(|| TcpListener::bind(services.target())).expect("the host has the address");
            connect().expect("the host's listener");
            listener.set_nonblocking(true).expect("non-blocking");
            let (_, from) = listener.accept().expect("the host's connection");
            assert_eq!(from.ip(), IpAddr::V4(services.vip));
            host.run(&format!("ip addr del {}/32 dev lo", services.vip)).await;
        }
    });
}

#[test]
fn no_packet_of_an_overlay_leaves_unencrypted_without_programs() {
    VIRTUAL_ADDRESSES.exclusive_case(async |fixture| {
        let result = AssertUnwindSafe(without_programs(fixture)).catch_unwind().await;
        // For the cases that follow, and because an engine without its network driver waits at each endpoint that it removes.
        for host in &mut fixture.swarm.hosts {
            host.stop_daemon(true).await.expect("stopped");
            start(host).await;
        }
        if let Err(panic) = result {
            resume_unwind(panic);
        }
        fixture.swarm.ready(2).await;
        // Programs are attached hook by hook: those at the calls of sockets, which a connection needs alone, come first.
        for host in &fixture.swarm.hosts {
            within(20, "programs at every hook", || async {
                let ebpf = status(host).await["ebpf"].take();
                let has_port = ebpf["ports"].as_array().is_some_and(|ports| ports.contains(&format!("{PUBLISHED}/udp").into()));
                anyhow::ensure!(has_port && ebpf["up"] == true && ebpf["reason"] == "", "{ebpf:#}");
                Ok(())
            })
            .await;
        }
        for caller in &fixture.services.callers {
            // Some connections to each round: the first ones may all meet the same task.
            within(30, "both tasks to answer at the virtual address again", || async {
                let server = |_| Ok(Connection::open(&caller.namespace, fixture.services.target())?.identify()?.server);
                let servers = (0..8).map(server).collect::<anyhow::Result<BTreeSet<_>>>()?;
                anyhow::ensure!(servers.len() == 2, "only {servers:?} answer");
                Ok(())
            })
            .await;
        }
    });
}

/// Removes every program while no daemon repairs it: containers of two nodes still reach each other, and no packet with an
/// address of theirs is on the wire.
async fn without_programs(fixture: &mut EbpfFixture<NetworkServices>) {
    let mesh = status(&fixture.swarm.hosts[0]).await["nodes"][0]["mesh"].as_str().expect("a mesh address").to_owned();
    let mesh: Ipv6Addr = mesh.split('/').next().and_then(|a| a.parse().ok()).expect("a mesh address");
    let bridge = Namespace::of_bridge(&fixture.swarm.lab).await;
    let capture = bridge.capture();
    let client = fixture.client(0);
    let published = client.udp(None, at(0, false, PUBLISHED)).expect("a socket");
    within(20, "an answer of the published port", || async { exchange(&published, b"hello") }).await;
    let [caller, remote] = [&fixture.services.callers[0], &fixture.services.web[1]];
    let direct = caller.namespace.udp(None, SocketAddr::new(remote.address.into(), TARGET)).expect("a socket");
    within(10, "an answer of the other node's container", || async { exchange(&direct, b"SECRET") }).await;
    for host in &mut fixture.swarm.hosts {
        host.stop_daemon(true).await.expect("killed");
        remove_programs(host);
    }
    drop(capture.frames());
    let frames = exchange_without_programs(&capture, &direct, &published, caller, fixture.services.vip);
    client.run("busybox ping -c 1 -W 2 192.0.2.1").await;
    let frames = [frames, capture.frames()].concat();
    let overlay: Vec<&Vec<u8>> = frames.iter().filter(|frame| has_overlay_address(frame, mesh)).collect();
    assert!(
        overlay.is_empty(),
        "{} of {} frames on the wire have an overlay's address: {:02x?}",
        overlay.len(),
        frames.len(),
        overlay[0]
    );
    // The capture does see the wire, and the one payload that the client itself sent unencrypted.
    assert!(frames.len() > 100 && frames_with(&frames, b"SECRET") > 0, "{} frames", frames.len());
}

/// Removes the pinned links of a host's programs, and with them the programs.
fn remove_programs(host: &Host) {
    let links = format!("/proc/{}/root{}/bpf/links", host.pid(), host.run_dir().display());
    let mut removed = 0;
    for link in std::fs::read_dir(&links).expect("pinned links") {
        std::fs::remove_file(link.expect("an entry").path()).expect("removed");
        removed += 1;
    }
    assert!(removed > 10, "{links} had {removed} links");
}

/// Sends on a connection between containers until 50 datagrams were answered, and on paths that needed the programs. Returns the
/// frames on the wire meanwhile.
fn exchange_without_programs(
    capture: &Capture,
    direct: &UdpSocket,
    published: &UdpSocket,
    caller: &Container,
    vip: Ipv4Addr,
) -> Vec<Vec<u8>> {
    let raw = caller.namespace.raw();
    let (from, to) = (SocketAddrV4::new(caller.address, 4545), SocketAddrV4::new(vip, TARGET));
    let untranslated = packet::udp(from, to, b"SECRET");
    let started = Instant::now();
    let mut answered = 0;
    let mut frames = Vec::new();
    while answered < 50 && started.elapsed() < Duration::from_secs(30) {
        answered += usize::from(exchange(direct, b"SECRET").is_ok());
        let _ = published.send(b"SECRET");
        let _ = raw.send_to(&untranslated, &SocketAddr::from(to).into());
        frames.extend(capture.frames());
    }
    assert!(answered >= 50, "only {answered} answers between containers without programs");
    frames
}

/// Whether a frame's source or destination is in an address pool or in the mesh.
fn has_overlay_address(frame: &[u8], mesh: Ipv6Addr) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(26) == Some(&10) || frame.get(30) == Some(&10),
        Some([0x86, 0xdd]) => [22, 38].iter().any(|at| frame.get(*at..at + 6) == Some(&mesh.octets()[..6])),
        _ => false,
    }
}
