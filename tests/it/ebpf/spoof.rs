//! Nobody speaks in another's name, and nothing of an overlay leaves in clear.

use super::packet;
use super::servers::{MARK, say};
use super::spot::holding;
use super::*;
use std::net::{SocketAddrV4, UdpSocket};
use std::time::Duration;

/// Containers with other containers' addresses toward a client; a client with addresses of the pools toward a port.
pub async fn names(stage: &Stage, per_node: &PerNode) {
    let mut addresses = Vec::new();
    for spot in &per_node.spots {
        let shown = spot.run("ip -o -4 addr show").await;
        let of_ingress = shown.split_whitespace().find(|word| word.starts_with("10.0.0.")).expect("an address on ingress");
        addresses.push(of_ingress.split('/').next().and_then(|ip| ip.parse::<Ipv4Addr>().ok()).expect("an address"));
    }
    let client = stage.client(0);
    let capture = client.capture();
    let own = |port| SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 11), port);
    // Real flows to every backend, through the liar's node and another: what the programs would take a lie for.
    let mut sockets: Vec<UdpSocket> = Vec::new();
    for (node, backend) in [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (0, 2)] {
        let from = own(21_000 + u16::try_from(sockets.len()).expect("few"));
        let socket = client.udp(Some(from.into()), at(node, false, port_of(backend))).expect("a socket");
        within(15, "an answer", || async { say(&socket, b"a flow") }).await;
        sockets.push(socket);
    }
    assert!(holding(&capture.frames(), b"a flow") >= 6, "the capture sees answers");
    let liar = per_node.spots[0].raw();
    let mut sent = 0;
    // By whichever device its routes choose, the engine's bridge among them. (What is nobody's address there is the engine's
    // business, as for any container.)
    for other in addresses.iter().skip(1).copied().chain([Ipv4Addr::new(192, 0, 2, 1)]) {
        for port in 21_000..21_006 {
            for (source, target) in [(TARGET, port), (8081, port), (8082, port)] {
                let (from, to) = (SocketAddrV4::new(other, source), own(target));
                let lies = [packet::udp(from, to, b"LIE by UDP"), packet::tcp(from, to, 0x18, 1, b"LIE by TCP")];
                for lie in lies {
                    sent += usize::from(liar.send_to(&lie, &SocketAddr::from(to).into()).is_ok());
                }
            }
        }
    }
    assert!(sent >= 36, "only {sent} lies were told");
    // Once an honest answer of the liar has come, its lies had the time to.
    within(15, "an honest answer", || async { say(&sockets[0], b"honest") }).await;
    within(15, "an honest answer", || async { say(&sockets[1], b"honest") }).await;
    let frames = capture.frames();
    assert!(holding(&frames, b"honest") >= 2);
    assert_eq!(holding(&frames, b"LIE"), 0, "lies of a container reached a client");

    // From the wire: sources of the pools, of the containers themselves, of the loopback.
    let raw = client.raw();
    let strangers = [Ipv4Addr::new(10, 0, 1, 77), Ipv4Addr::new(10, 200, 0, 1), Ipv4Addr::LOCALHOST];
    for source in addresses.iter().copied().chain(strangers) {
        for node in 0..stage.swarm.hosts.len() {
            for backend in 0..stage.swarm.hosts.len() {
                let to = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, u8::try_from(node + 1).expect("few")), port_of(backend));
                let word = [MARK, b" forged"].concat();
                let forged = packet::udp(SocketAddrV4::new(source, 5555), to, &word);
                raw.send_to(&forged, &SocketAddr::from(to).into()).unwrap_or_else(|e| panic!("{source} -> {to}: {e}"));
            }
        }
    }
    for (node, backend) in [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 2)] {
        let socket = client.udp(None, at(node, false, port_of(backend))).expect("a socket");
        within(15, "an honest answer", || async { say(&socket, &[MARK, b" honest"].concat()) }).await;
    }
    for (server, spot) in per_node.servers.iter().zip(&per_node.spots) {
        let heard = server.heard();
        assert!(heard.iter().any(|(_, word)| word.ends_with(b"honest")), "{} heard {heard:?}", spot.name);
        let forged: Vec<_> = heard.iter().filter(|(from, _)| from.port() == 5555).collect();
        assert!(forged.is_empty(), "{} heard {forged:?}", spot.name);
    }
}

/// Every program of ours is taken away and nobody mends it: containers of two nodes still talk, and no packet with an address
/// of theirs is on the wire.
pub async fn clear(stage: &mut Stage, scene: &vips::Scene) {
    let mesh = status(&stage.swarm.hosts[0]).await["nodes"][0]["mesh"].as_str().expect("a mesh address").to_owned();
    let mesh: Ipv6Addr = mesh.split('/').next().and_then(|a| a.parse().ok()).expect("a mesh address");
    let fabric = Spot::of_fabric(&stage.swarm.lab).await;
    let capture = fabric.capture();
    let client = stage.client(0);
    let port = client.udp(None, at(0, false, vips::PUBLISHED)).expect("a socket");
    within(20, "an answer of the published port", || async { say(&port, b"hello") }).await;
    let [asker, far] = [&scene.askers[0], &scene.web[1]];
    let to = SocketAddr::new(far.address.into(), TARGET);
    let direct = asker.spot.udp(None, to).expect("a socket");
    within(10, "containers to talk", || async { say(&direct, b"SECRET") }).await;
    for host in &mut stage.swarm.hosts {
        host.stop_daemon(true).await.expect("killed");
        let links = format!("/proc/{}/root{}/bpf/links", host.pid(), host.run_dir().display());
        let mut removed = 0;
        for link in std::fs::read_dir(&links).expect("pinned links") {
            std::fs::remove_file(link.expect("an entry").path()).expect("removed");
            removed += 1;
        }
        assert!(removed > 10, "{links} had {removed} links");
    }
    drop(capture.frames());
    let raw = asker.spot.raw();
    let begun = Instant::now();
    let mut answered = 0;
    let mut frames = Vec::new();
    while answered < 50 && begun.elapsed() < Duration::from_secs(30) {
        answered += usize::from(say(&direct, b"SECRET").is_ok());
        // Those that had the programs' help, and have it no more.
        let _ = port.send(b"SECRET");
        let vip = SocketAddrV4::new(scene.vip, TARGET);
        let word = packet::udp(SocketAddrV4::new(asker.address, 4545), vip, b"SECRET");
        let _ = raw.send_to(&word, &SocketAddr::from(vip).into());
        frames.extend(capture.frames());
    }
    assert!(answered >= 50, "only {answered} answers between containers without programs");
    client.run("busybox ping -c 1 -W 2 192.0.2.1").await;
    frames.extend(capture.frames());
    let ours: Vec<&Vec<u8>> = frames.iter().filter(|frame| names_overlay(frame, mesh)).collect();
    assert!(ours.is_empty(), "{} of {} frames on the wire have an overlay's address: {:02x?}", ours.len(), frames.len(), ours[0]);
    // The capture does see the wire, and the one thing that was sent in clear by the client itself.
    assert!(frames.len() > 100 && holding(&frames, b"SECRET") > 0, "{} frames", frames.len());
}

/// Whether a frame's source or destination is of a pool of ours or of the mesh.
fn names_overlay(frame: &[u8], mesh: Ipv6Addr) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(26) == Some(&10) || frame.get(30) == Some(&10),
        Some([0x86, 0xdd]) => [22, 38].iter().any(|at| frame.get(*at..at + 6) == Some(&mesh.octets()[..6])),
        _ => false,
    }
}
