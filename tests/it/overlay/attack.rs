//! Forbidden connectivity. Every party that can send a packet sends to all sockets that it must not reach, from every source
//! address; the tests check what the receivers get, and each receiver proves in between that it receives from its peer.

use super::fixture::{A, B, Fixture, INGRESS, Namespace, PATIENCE, PORT, ip};
use super::packet::udp4;
use skep::datapath::Sockets;
use skep::lab::{Host, eventually};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

/// A socket that must receive from its permitted peer only.
struct Receiver {
    name: &'static str,
    socket: UdpSocket,
    address: SocketAddr,
    permitted: UdpSocket,
}

impl Receiver {
    fn new(name: &'static str, socket: UdpSocket, permitted: UdpSocket) -> Self {
        socket.set_nonblocking(true).expect("non-blocking");
        let address = socket.local_addr().expect("bound");
        Self { name, socket, address, permitted }
    }

    /// Waits for a datagram of the permitted peer, and returns what else arrived before it.
    async fn forbidden_datagrams(&self) -> Vec<String> {
        let mark = format!("permitted {}", rand::random::<u64>());
        let mut forbidden = Vec::new();
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            assert!(std::time::Instant::now() < deadline, "{} does not receive from its permitted peer", self.name);
            let _ = self.permitted.send_to(mark.as_bytes(), self.address);
            tokio::time::sleep(Duration::from_millis(5)).await;
            let mut buffer = [0; 256];
            while let Ok((length, _)) = self.socket.recv_from(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if text == mark {
                    return forbidden;
                }
                if !text.starts_with("permitted") {
                    forbidden.push(format!("{} received: {text}", self.name));
                }
            }
        }
    }
}

/// All that arrived at receivers that must not get it.
async fn breaches(receivers: &[Receiver]) -> Vec<String> {
    let mut all = Vec::new();
    for receiver in receivers {
        all.extend(receiver.forbidden_datagrams().await);
    }
    all
}

/// Two hosts with the bridges that Docker configures, containers of all networks and of plain Docker, and a neighbour on the
/// Ethernet segment that is the default gateway of the hosts.
struct AttackFixture {
    base: Fixture,
    attacker: Namespace,
    a1: Namespace,
    a2: Namespace,
    b1: Namespace,
    b2: Namespace,
    i1: Namespace,
    plain: Namespace,
    neighbour: Host,
    lan: Namespace,
}

impl AttackFixture {
    async fn new() -> Self {
        let mut base = Fixture::new(2).await;
        let attacker = base.container(0, A, "10.0.1.11").await;
        let a1 = base.container(0, A, "10.0.1.13").await;
        let a2 = base.container(1, A, "10.0.1.12").await;
        let b1 = base.container(0, B, "10.0.2.11").await;
        let b2 = base.container(1, B, "10.0.2.12").await;
        let i1 = base.container(0, INGRESS, "10.0.0.21").await;
        let neighbour = base.lab.host("lan", 200).await.expect("neighbour");
        let lan = Namespace::open("lan", format!("/proc/{}/ns/net", neighbour.pid()));
        for node in &base.nodes {
            let host = &node.namespace;
            host.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0").await;
            host.run("ip route add default via 192.0.2.200").await;
        }
        let host = &base.nodes[0].namespace;
        for (bridge, address) in [("gw0", "172.18.0.1/16"), ("docker0", "172.17.0.1/16")] {
            host.run(&format!("ip link add {bridge} type bridge")).await;
            host.run(&format!("ip addr add {address} dev {bridge}")).await;
            host.run(&format!("ip link set {bridge} up")).await;
        }
        let plain = Namespace::create(base.lab.dir(), "plain");
        attach_to_bridge(host, "docker0", &plain, "eth0", "172.17.0.2").await;
        attach_to_bridge(host, "gw0", &attacker, "eth1", "172.18.0.11").await;
        attach_to_bridge(host, "gw0", &b1, "eth1", "172.18.0.12").await;
        for namespace in [&attacker, &plain, &lan] {
            namespace.run("sysctl -qw net.ipv4.conf.all.rp_filter=0").await;
        }
        base.publish().await;
        Self { base, attacker, a1, a2, b1, b2, i1, plain, neighbour, lan }
    }

    async fn stop(self) {
        let Self { base, attacker, a1, a2, b1, b2, i1, plain, neighbour, lan } = self;
        drop((attacker, a1, a2, b1, b2, i1, plain, lan));
        neighbour.stop().await;
        base.stop().await;
    }

    fn receivers(&self) -> Vec<Receiver> {
        let [near, far] = &self.base.nodes[..] else { panic!("two hosts") };
        let mesh_socket = |node: &super::fixture::Node, address: IpAddr, port| {
            node.mesh.udp(SocketAddr::new(address, port)).expect("socket in the mesh namespace")
        };
        let v4 = |text: &str| IpAddr::V4(ip(text));
        vec![
            Receiver::new("a1", self.a1.udp(ip("10.0.1.13"), PORT), self.a2.udp(ip("10.0.1.12"), 0)),
            Receiver::new("a2 (far)", self.a2.udp(ip("10.0.1.12"), PORT), self.a1.udp(ip("10.0.1.13"), 0)),
            Receiver::new("b1", self.b1.udp(ip("10.0.2.11"), PORT), self.b2.udp(ip("10.0.2.12"), 0)),
            Receiver::new("b2 (far)", self.b2.udp(ip("10.0.2.12"), PORT), self.b1.udp(ip("10.0.2.11"), 0)),
            Receiver::new("i1", self.i1.udp(ip("10.0.0.21"), PORT), mesh_socket(far, v4("10.0.0.3"), 0)),
            Receiver::new("gateway of a", mesh_socket(near, v4("10.0.1.1"), PORT), self.a1.udp(ip("10.0.1.13"), 0)),
            Receiver::new("gateway of b", mesh_socket(near, v4("10.0.2.1"), PORT), self.b1.udp(ip("10.0.2.11"), 0)),
            Receiver::new("gateway of b (far)", mesh_socket(far, v4("10.0.2.1"), PORT), self.b2.udp(ip("10.0.2.12"), 0)),
            Receiver::new("gateway of ingress", mesh_socket(near, v4("10.0.0.1"), PORT), self.i1.udp(ip("10.0.0.21"), 0)),
            Receiver::new("node", mesh_socket(near, v4("10.0.0.2"), PORT), self.i1.udp(ip("10.0.0.21"), 0)),
            Receiver::new("node (far)", mesh_socket(far, v4("10.0.0.3"), PORT), self.i1.udp(ip("10.0.0.21"), 0)),
            Receiver::new(
                "raft",
                mesh_socket(near, near.peer.address().into(), PORT),
                mesh_socket(far, far.peer.address().into(), 0),
            ),
            Receiver::new(
                "raft (far)",
                mesh_socket(far, far.peer.address().into(), PORT),
                mesh_socket(near, near.peer.address().into(), 0),
            ),
        ]
    }
}

/// Attaches a container to a bridge of the host, with the default route, as Docker does; ports of the bridge are isolated from
/// each other (Docker creates its gateway bridge with `enable_icc=false`).
async fn attach_to_bridge(host: &Namespace, bridge: &str, container: &Namespace, name: &str, address: &str) {
    let port = format!("p{}", address.replace('.', ""));
    host.run(&format!("ip link add {port} type veth peer name {name} netns {}", container.path().display())).await;
    host.run(&format!("ip link set {port} master {bridge} up")).await;
    host.run(&format!("bridge link set dev {port} isolated on")).await;
    container.run(&format!("ip addr add {address}/16 dev {name}")).await;
    container.run(&format!("ip link set {name} up")).await;
    container.run(&format!("ip route add default via {}.0.1", &address[..6])).await;
}

/// Source addresses of an attack: the sender's own, other members of its network on both hosts, an unused one, other networks,
/// gateways, nodes, unrelated hosts.
const SOURCES: [&str; 17] = [
    "10.0.1.11",
    "10.0.1.13",
    "10.0.1.12",
    "10.0.1.77",
    "10.0.2.11",
    "10.0.2.12",
    "10.0.2.77",
    "10.0.0.21",
    "10.0.1.1",
    "10.0.2.1",
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "8.8.8.8",
    "127.0.0.1",
    "172.18.0.11",
    "192.0.2.200",
];
const TARGETS: [&str; 10] =
    ["10.0.1.13", "10.0.1.12", "10.0.2.11", "10.0.2.12", "10.0.0.21", "10.0.1.1", "10.0.2.1", "10.0.0.1", "10.0.0.2", "10.0.0.3"];

/// Sends every target a packet from every source address, except for the pairs that are `permitted`.
fn attack(sender: &str, raw: &socket2::Socket, permitted: impl Fn(Ipv4Addr, Ipv4Addr) -> bool) {
    for (source, target) in SOURCES.iter().flat_map(|s| TARGETS.iter().map(move |t| (ip(s), ip(t)))) {
        if source != target && !permitted(source, target) {
            send_from(raw, source, target, &format!("{sender}: {source} -> {target}"));
        }
    }
}

fn send_from(raw: &socket2::Socket, source: Ipv4Addr, target: Ipv4Addr, text: &str) {
    let packet = udp4(source, target, PORT, text.as_bytes());
    // An error is as good as a lost packet: the kernel may refuse an address at once.
    let _ = raw.send_to(&packet, &SocketAddr::new(target.into(), 0).into());
}

/// Positive control: a packet with a permitted source address arrives.
async fn permitted_packet_arrives(sender: &str, raw: &socket2::Socket, source: &str, receiver: &UdpSocket) {
    receiver.set_nonblocking(true).expect("non-blocking");
    let SocketAddr::V4(target) = receiver.local_addr().expect("bound") else { panic!("IPv4") };
    eventually(&format!("a packet of {sender} at {target}"), PATIENCE, || async {
        send_from(raw, ip(source), *target.ip(), "permitted, raw");
        tokio::time::sleep(Duration::from_millis(5)).await;
        let mut buffer = [0; 64];
        let (length, _) = receiver.recv_from(&mut buffer)?;
        anyhow::ensure!(&buffer[..length] == b"permitted, raw");
        Ok(())
    })
    .await
    .unwrap_or_else(|e| panic!("{e:#}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_forbidden_packet_arrives() {
    let fixture = AttackFixture::new().await;
    let receivers = fixture.receivers();
    assert_eq!(breaches(&receivers).await, Vec::<String>::new(), "before any attack");
    let at_lan = fixture.lan.udp(ip("192.0.2.200"), PORT);
    let [near, far] = &fixture.base.nodes[..] else { panic!("two hosts") };
    let own = |source: Ipv4Addr, target: Ipv4Addr| source == ip("10.0.1.11") && target.octets()[2] == 1;

    // A container, through its own network and through its default route.
    fixture.attacker.run("ip route add 10.0.0.0/8 via 10.0.1.1 dev eth0").await;
    fixture.attacker.run("ip route add 10.0.0.0/8 via 172.18.0.1 dev eth1 metric 9").await;
    let raw = fixture.attacker.raw("eth0");
    permitted_packet_arrives("a container", &raw, "10.0.1.11", &receivers[0].socket).await;
    permitted_packet_arrives("a container", &raw, "10.0.1.11", &receivers[1].socket).await;
    permitted_packet_arrives("a container", &raw, "10.0.1.11", &receivers[5].socket).await;
    attack("container by its network", &raw, own);
    // Broadcast: the kernel delivers it to wildcard sockets without a rule lookup, so servers bind one address.
    raw.set_broadcast(true).expect("broadcast");
    fixture.attacker.run("ip route add 224.0.0.0/4 dev eth0").await;
    let wildcard = near.mesh_namespace.udp(Ipv4Addr::UNSPECIFIED, PORT + 1);
    wildcard.set_nonblocking(true).expect("non-blocking");
    for target in ["255.255.255.255", "224.0.0.1", "10.0.2.255", "10.0.1.255"] {
        send_from(&raw, ip("10.0.1.11"), ip(target), &format!("broadcast: {target}"));
        let packet = udp4(ip("10.0.1.11"), ip(target), PORT + 1, b"to the wildcard");
        let _ = raw.send_to(&packet, &SocketAddr::new(ip(target).into(), 0).into());
    }
    assert!(wildcard.recv(&mut [0; 64]).is_ok(), "positive control: a wildcard socket receives it");
    assert_eq!(breaches(&receivers).await, Vec::<String>::new());
    let raw = fixture.attacker.raw("eth1");
    permitted_packet_arrives("a container by its default route", &raw, "172.18.0.11", &at_lan).await;
    attack("container by its default route", &raw, |_, _| false);
    assert_eq!(breaches(&receivers).await, Vec::<String>::new());

    // The host, to the Ethernet segment, to the other host, and to the containers' bridge.
    near.namespace.run("ip route add 10.0.0.0/8 via 192.0.2.2 dev eth0").await;
    let raw = near.namespace.raw("eth0");
    permitted_packet_arrives("the host", &raw, "192.0.2.1", &at_lan).await;
    let at_far = far.namespace.udp(ip("192.0.2.2"), PORT);
    permitted_packet_arrives("the host", &raw, "192.0.2.1", &at_far).await;
    attack("host", &raw, |_, _| false);
    near.namespace.run("ip route del 10.0.0.0/8").await;
    let plain_socket = near.namespace.udp(ip("0.0.0.0"), 0);
    for target in TARGETS {
        let _ = plain_socket.send_to(format!("host, unforged -> {target}").as_bytes(), (ip(target), PORT));
    }
    assert_eq!(breaches(&receivers).await, Vec::<String>::new());

    // A container of plain Docker on the same host.
    let raw = fixture.plain.raw("eth0");
    permitted_packet_arrives("a plain container", &raw, "172.17.0.2", &at_lan).await;
    attack("plain container", &raw, |_, _| false);
    assert_eq!(breaches(&receivers).await, Vec::<String>::new());

    // A neighbour on the segment that routes through each host, which forwards for it.
    fixture.lan.run("ip route add 172.18.0.0/16 via 192.0.2.1").await;
    for gateway in ["192.0.2.1", "192.0.2.2"] {
        fixture.lan.run(&format!("ip route replace 10.0.0.0/8 via {gateway}")).await;
        let raw = fixture.lan.raw("eth0");
        permitted_packet_arrives("the neighbour", &raw, "192.0.2.200", &fixture.attacker.udp(ip("172.18.0.11"), PORT)).await;
        attack("neighbour", &raw, |_, _| false);
    }
    assert_eq!(breaches(&receivers).await, Vec::<String>::new());

    // Root in the mesh namespace of another node, with source addresses of others: allowed-ips restrict each key.
    let raw = far.mesh_namespace.raw("skep0");
    permitted_packet_arrives("another node", &raw, "10.0.1.12", &receivers[0].socket).await;
    let theirs = ["10.0.1.12", "10.0.2.12", "10.0.0.3"].map(ip);
    attack("another node", &raw, |source, target| theirs.contains(&source) && source.octets()[2] == target.octets()[2]);
    assert_eq!(breaches(&receivers).await, Vec::<String>::new());

    drop(receivers);
    fixture.stop().await;
}

/// IPv6 from a container that configures addresses itself: IPv6 is disabled on the mesh ends of veths.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_ipv6_from_containers() {
    let fixture = AttackFixture::new().await;
    let receivers = fixture.receivers();
    let [near, far] = &fixture.base.nodes[..] else { panic!("two hosts") };
    let shown = near.mesh_namespace.run("ip -o link show v0a00010b").await;
    let mac = shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).expect("MAC").to_owned();
    let attacker = &fixture.attacker;
    attacker.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=0").await;
    let mut sources = vec![near.peer.address(), far.peer.address(), skep::model::fixture::mesh().container(ip("10.0.1.11"))];
    sources.push("fd12:3456:789a:77::1".parse().expect("address"));
    for source in &sources {
        attacker.run(&format!("ip addr add {source}/128 dev eth0 nodad")).await;
    }
    // It has the targets' addresses itself; without these rules it would deliver the packets locally.
    attacker.run("ip -6 rule add priority 5 lookup local").await;
    attacker.run("ip -6 rule del priority 0").await;
    attacker.run("ip -6 rule add priority 1 iif lo lookup 7").await;
    attacker.run(&format!("ip -6 neigh replace fe80::1 lladdr {mac} dev eth0 nud permanent")).await;
    attacker.run("ip -6 route add fd00::/8 via fe80::1 dev eth0 table 7").await;
    // Positive control: the frames reach the veth's mesh end.
    let before = counter(&near.mesh_namespace, "v0a00010b").await;
    let mut sent = 0;
    for source in &sources {
        let socket = attacker.udp(*source, 0);
        for target in [near.peer.address(), far.peer.address()] {
            for _ in 0..3 {
                let text = format!("container by IPv6: {source} -> {target}");
                sent += u64::from(socket.send_to(text.as_bytes(), (target, PORT)).is_ok());
            }
        }
    }
    assert!(sent >= 18, "only {sent} were sent");
    assert!(counter(&near.mesh_namespace, "v0a00010b").await >= before + sent, "the frames did not reach the mesh end");
    assert_eq!(breaches(&receivers).await, Vec::<String>::new());
    drop(receivers);
    fixture.stop().await;
}

/// Packets received by a device.
async fn counter(namespace: &Namespace, link: &str) -> u64 {
    let table = namespace.run("cat /proc/net/dev").await;
    let line = table.lines().find(|line| line.trim().starts_with(&format!("{link}:"))).expect("device");
    line.split_whitespace().nth(2).and_then(|count| count.parse().ok()).expect("a number")
}

/// The rules and filters without the tunnel's checks: a veth replaces the tunnel, and its peer uses every source address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_from_a_tunnel_that_checks_nothing() {
    let fixture = AttackFixture::new().await;
    let [near, far] = &fixture.base.nodes[..] else { panic!("two hosts") };
    skep::datapath::tunnel::close(&near.config).await.expect("tunnel closes");
    let wire = Namespace::create(fixture.base.lab.dir(), "wire");
    near.mesh_namespace.run(&format!("ip link add skep0 type veth peer name wire netns {}", wire.path().display())).await;
    let shown = near.mesh_namespace.run("ip -o link show skep0").await;
    let mac = shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).expect("MAC").to_owned();
    wire.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=0").await;
    wire.run("ip link set lo up").await;
    wire.run("ip link set wire up").await;
    wire.run(&format!("ip neigh add 198.51.100.1 lladdr {mac} dev wire nud permanent")).await;
    wire.run("ip route add 10.0.0.0/8 via 198.51.100.1 dev wire onlink").await;
    wire.run(&format!("ip neigh add fe80::1 lladdr {mac} dev wire nud permanent")).await;
    let unknown = ["fd12:3456:789a:8000::a00:10b", "fd99::1", "2001:db8::1"].map(|s| s.parse().expect("address"));
    for source in unknown.iter().chain([&far.peer.address()]) {
        wire.run(&format!("ip addr add {source}/128 dev wire nodad")).await;
    }
    wire.run("ip -6 route add fd12:3456:789a::/48 via fe80::1 dev wire").await;
    eventually("the loop to use the new device", PATIENCE, || async {
        let routes = near.mesh_namespace.try_run("ip route show table 167772416").await?
            + &near.mesh_namespace.try_run("ip -6 route").await?;
        anyhow::ensure!(routes.contains("10.0.1.12 dev skep0") && routes.contains("fd12:3456:789a::/49 dev skep0"), "{routes}");
        Ok(())
    })
    .await
    .expect("routes");

    // Permitted peers on this host only: the tunnel to the other one is closed.
    let mesh_socket = |address: &str| near.mesh.udp(SocketAddr::new(ip(address).into(), PORT)).expect("socket");
    let a1 = || fixture.a1.udp(ip("10.0.1.13"), 0);
    let receivers = vec![
        Receiver::new("a1", fixture.a1.udp(ip("10.0.1.13"), PORT), fixture.attacker.udp(ip("10.0.1.11"), 0)),
        Receiver::new("b1", fixture.b1.udp(ip("10.0.2.11"), PORT), {
            near.mesh.udp(SocketAddr::new(ip("10.0.2.1").into(), 0)).expect("socket")
        }),
        Receiver::new("gateway of a", mesh_socket("10.0.1.1"), a1()),
        Receiver::new("gateway of b", mesh_socket("10.0.2.1"), fixture.b1.udp(ip("10.0.2.11"), 0)),
        Receiver::new("gateway of ingress", mesh_socket("10.0.0.1"), fixture.i1.udp(ip("10.0.0.21"), 0)),
        Receiver::new("node", mesh_socket("10.0.0.2"), fixture.i1.udp(ip("10.0.0.21"), 0)),
        Receiver::new("raft", near.mesh.udp(SocketAddr::new(near.peer.address().into(), PORT)).expect("socket"), {
            wire.udp(far.peer.address(), 0)
        }),
    ];
    let raw = wire.raw("wire");
    permitted_packet_arrives("the wire", &raw, "10.0.1.12", &receivers[0].socket).await;
    assert_eq!(breaches(&receivers).await, Vec::<String>::new(), "before any attack");
    let theirs = ["10.0.1.12", "10.0.2.12", "10.0.0.3"].map(ip);
    attack("the wire", &raw, |source, target| theirs.contains(&source) && source.octets()[2] == target.octets()[2]);
    for source in unknown {
        let source: std::net::Ipv6Addr = source;
        let socket = wire.udp(source, 0);
        socket.send_to(format!("the wire: {source}").as_bytes(), (near.peer.address(), PORT)).expect("sent");
    }
    assert_eq!(breaches(&receivers).await, Vec::<String>::new());
    drop((receivers, wire));
    fixture.stop().await;
}

/// Without the tunnel nothing leaves unencrypted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_leaves_unencrypted_without_the_tunnel() {
    let fixture = AttackFixture::new().await;
    let near = &fixture.base.nodes[0];
    let capture = near
        .namespace
        .inside(|| {
            let all = i32::from(0x0003_u16.to_be());
            socket2::Socket::new(socket2::Domain::PACKET, socket2::Type::RAW, Some(socket2::Protocol::from(all)))
        })
        .expect("capture");
    capture.set_nonblocking(true).expect("non-blocking");
    capture.set_recv_buffer_size(4 << 20).expect("buffer");

    let to_far = fixture.attacker.udp(ip("10.0.1.11"), 0);
    let at_far = fixture.a2.udp(ip("10.0.1.12"), PORT);
    let node = near.mesh.udp("10.0.0.2:0".parse().expect("address")).expect("socket");
    let raft = near.mesh.udp(SocketAddr::new(near.peer.address().into(), 0)).expect("socket");
    let raft_far = SocketAddr::new(fixture.base.nodes[1].peer.address().into(), PORT);
    super::fixture::arrives(&to_far, ip("10.0.1.12"), &at_far).await;

    let by_default = fixture.attacker.udp(ip("172.18.0.11"), 0);
    for (tunnel, mark) in [("up", "SECRET-while-up"), ("gone", "SECRET-while-gone")] {
        if tunnel == "gone" {
            skep::datapath::tunnel::close(&near.config).await.expect("tunnel closes");
            assert!(near.mesh_namespace.try_run("ip link show skep0").await.is_err());
        }
        frames(&capture);
        for _ in 0..20 {
            let _ = to_far.send_to(mark.as_bytes(), (ip("10.0.1.12"), PORT));
            let _ = node.send_to(mark.as_bytes(), (ip("10.0.1.12"), PORT));
            let _ = raft.send_to(mark.as_bytes(), raft_far);
        }
        // Positive control: the capture sees what leaves unencrypted.
        let control = format!("CONTROL-{tunnel}");
        eventually("the capture to see the control", PATIENCE, || async {
            by_default.send_to(control.as_bytes(), (ip("192.0.2.200"), PORT))?;
            tokio::time::sleep(Duration::from_millis(20)).await;
            let frames = frames(&capture);
            assert_eq!(count(&frames, mark.as_bytes()), 0, "unencrypted with the tunnel {tunnel}");
            anyhow::ensure!(count(&frames, control.as_bytes()) > 0, "not in {} frames", frames.len());
            Ok(())
        })
        .await
        .unwrap_or_else(|e| panic!("{e:#}"));
    }
    // While the tunnel was up, the packets arrived.
    let mut buffer = [0; 64];
    at_far.set_nonblocking(true).expect("non-blocking");
    let mut arrived = Vec::new();
    while let Ok((length, _)) = at_far.recv_from(&mut buffer) {
        arrived.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
    }
    assert!(arrived.iter().any(|text| text == "SECRET-while-up"), "{arrived:?}");
    assert!(!arrived.iter().any(|text| text == "SECRET-while-gone"), "{arrived:?}");
    drop((to_far, at_far, node, raft));
    fixture.stop().await;
}

fn frames(capture: &socket2::Socket) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut buffer = vec![0; 65_536];
    while let Ok(length) = (&*capture).read(&mut buffer) {
        all.push(buffer[..length].to_vec());
    }
    all
}

fn count(frames: &[Vec<u8>], text: &[u8]) -> usize {
    frames.iter().filter(|frame| frame.windows(text.len()).any(|window| window == text)).count()
}
