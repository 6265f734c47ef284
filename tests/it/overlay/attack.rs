//! What must not work. Everybody who can send a packet sends to everybody else's sockets, under every name; what arrives
//! at the receivers decides, and each receiver proves in between that it would have heard.

use super::kit::{A, B, INGRESS, PATIENCE, PORT, Place, Site, ip};
use super::packet::udp4;
use skep::datapath::Sockets;
use skep::lab::{Host, eventually};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

/// A socket that must hear only its friend.
struct Receiver {
    name: &'static str,
    socket: UdpSocket,
    address: SocketAddr,
    friend: UdpSocket,
}

impl Receiver {
    fn new(name: &'static str, socket: UdpSocket, friend: UdpSocket) -> Self {
        socket.set_nonblocking(true).expect("non-blocking");
        let address = socket.local_addr().expect("bound");
        Self { name, socket, address, friend }
    }

    /// Hears the friend, and says what else was heard until then.
    async fn heard(&self) -> Vec<String> {
        let mark = format!("friend {}", rand::random::<u64>());
        let mut heard = Vec::new();
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            assert!(std::time::Instant::now() < deadline, "{} does not hear its friend", self.name);
            let _ = self.friend.send_to(mark.as_bytes(), self.address);
            tokio::time::sleep(Duration::from_millis(5)).await;
            let mut buffer = [0; 256];
            while let Ok((length, _)) = self.socket.recv_from(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if text == mark {
                    return heard;
                }
                if !text.starts_with("friend") {
                    heard.push(format!("{} heard: {text}", self.name));
                }
            }
        }
    }
}

/// All that was heard by those who must not.
async fn breaches(receivers: &[Receiver]) -> Vec<String> {
    let mut all = Vec::new();
    for receiver in receivers {
        all.extend(receiver.heard().await);
    }
    all
}

/// The site with everybody in it: two hosts as Docker leaves them, a neighbour on the wire that is their default route.
struct Scene {
    site: Site,
    evil: Place,
    a1: Place,
    a2: Place,
    b1: Place,
    b2: Place,
    i1: Place,
    plain: Place,
    neighbour: Host,
    lan: Place,
}

impl Scene {
    async fn new() -> Self {
        let mut site = Site::new(2).await;
        let evil = site.container(0, A, "10.0.1.11").await;
        let a1 = site.container(0, A, "10.0.1.13").await;
        let a2 = site.container(1, A, "10.0.1.12").await;
        let b1 = site.container(0, B, "10.0.2.11").await;
        let b2 = site.container(1, B, "10.0.2.12").await;
        let i1 = site.container(0, INGRESS, "10.0.0.21").await;
        let neighbour = site.lab.host("lan", 200).await.expect("neighbour");
        let lan = Place::at("lan", format!("/proc/{}/ns/net", neighbour.pid()));
        for node in &site.nodes {
            let host = &node.place;
            host.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0").await;
            host.run("ip route add default via 192.0.2.200").await;
        }
        let host = &site.nodes[0].place;
        for (bridge, address) in [("gw0", "172.18.0.1/16"), ("docker0", "172.17.0.1/16")] {
            host.run(&format!("ip link add {bridge} type bridge")).await;
            host.run(&format!("ip addr add {address} dev {bridge}")).await;
            host.run(&format!("ip link set {bridge} up")).await;
        }
        let plain = Place::make(site.lab.dir(), "plain");
        leg(host, "docker0", &plain, "eth0", "172.17.0.2").await;
        leg(host, "gw0", &evil, "eth1", "172.18.0.11").await;
        leg(host, "gw0", &b1, "eth1", "172.18.0.12").await;
        for place in [&evil, &plain, &lan] {
            place.run("sysctl -qw net.ipv4.conf.all.rp_filter=0").await;
        }
        site.publish().await;
        Self { site, evil, a1, a2, b1, b2, i1, plain, neighbour, lan }
    }

    async fn stop(self) {
        let Self { site, evil, a1, a2, b1, b2, i1, plain, neighbour, lan } = self;
        drop((evil, a1, a2, b1, b2, i1, plain, lan));
        neighbour.stop().await;
        site.stop().await;
    }

    fn receivers(&self) -> Vec<Receiver> {
        let [near, far] = &self.site.nodes[..] else { panic!("two hosts") };
        let within = |node: &super::kit::Node, address: IpAddr, port| {
            node.mesh.udp(SocketAddr::new(address, port)).expect("socket in the mesh namespace")
        };
        let v4 = |text: &str| IpAddr::V4(ip(text));
        vec![
            Receiver::new("a1", self.a1.udp(ip("10.0.1.13"), PORT), self.a2.udp(ip("10.0.1.12"), 0)),
            Receiver::new("a2 (far)", self.a2.udp(ip("10.0.1.12"), PORT), self.a1.udp(ip("10.0.1.13"), 0)),
            Receiver::new("b1", self.b1.udp(ip("10.0.2.11"), PORT), self.b2.udp(ip("10.0.2.12"), 0)),
            Receiver::new("b2 (far)", self.b2.udp(ip("10.0.2.12"), PORT), self.b1.udp(ip("10.0.2.11"), 0)),
            Receiver::new("i1", self.i1.udp(ip("10.0.0.21"), PORT), within(far, v4("10.0.0.3"), 0)),
            Receiver::new("gateway of a", within(near, v4("10.0.1.1"), PORT), self.a1.udp(ip("10.0.1.13"), 0)),
            Receiver::new("gateway of b", within(near, v4("10.0.2.1"), PORT), self.b1.udp(ip("10.0.2.11"), 0)),
            Receiver::new("gateway of b (far)", within(far, v4("10.0.2.1"), PORT), self.b2.udp(ip("10.0.2.12"), 0)),
            Receiver::new("gateway of ingress", within(near, v4("10.0.0.1"), PORT), self.i1.udp(ip("10.0.0.21"), 0)),
            Receiver::new("node", within(near, v4("10.0.0.2"), PORT), self.i1.udp(ip("10.0.0.21"), 0)),
            Receiver::new("node (far)", within(far, v4("10.0.0.3"), PORT), self.i1.udp(ip("10.0.0.21"), 0)),
            Receiver::new("raft", within(near, near.peer.address().into(), PORT), within(far, far.peer.address().into(), 0)),
            Receiver::new(
                "raft (far)",
                within(far, far.peer.address().into(), PORT),
                within(near, near.peer.address().into(), 0),
            ),
        ]
    }
}

/// A leg into a bridge of the host, with the default route, as Docker gives it; neighbours there do not see each other
/// (Docker makes its gateway bridge with `enable_icc=false`).
async fn leg(host: &Place, bridge: &str, place: &Place, name: &str, address: &str) {
    let port = format!("p{}", address.replace('.', ""));
    host.run(&format!("ip link add {port} type veth peer name {name} netns {}", place.path().display())).await;
    host.run(&format!("ip link set {port} master {bridge} up")).await;
    host.run(&format!("bridge link set dev {port} isolated on")).await;
    place.run(&format!("ip addr add {address}/16 dev {name}")).await;
    place.run(&format!("ip link set {name} up")).await;
    place.run(&format!("ip route add default via {}.0.1", &address[..6])).await;
}

/// Names that a liar may use: itself, neighbours near and far, nobody, other networks, gateways, nodes, strangers.
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

/// Sends every target a packet in every name; `allowed` says which are no lie.
fn attack(who: &str, raw: &socket2::Socket, allowed: impl Fn(Ipv4Addr, Ipv4Addr) -> bool) {
    for (source, target) in SOURCES.iter().flat_map(|s| TARGETS.iter().map(move |t| (ip(s), ip(t)))) {
        if source != target && !allowed(source, target) {
            lie(raw, source, target, &format!("{who}: {source} -> {target}"));
        }
    }
}

fn lie(raw: &socket2::Socket, source: Ipv4Addr, target: Ipv4Addr, text: &str) {
    let packet = udp4(source, target, PORT, text.as_bytes());
    // The kernel may refuse a name or a target at once: as good as lost.
    let _ = raw.send_to(&packet, &SocketAddr::new(target.into(), 0).into());
}

/// The raw socket works: what is no lie arrives.
async fn honest(who: &str, raw: &socket2::Socket, source: &str, receiver: &UdpSocket) {
    receiver.set_nonblocking(true).expect("non-blocking");
    let SocketAddr::V4(target) = receiver.local_addr().expect("bound") else { panic!("IPv4") };
    eventually(&format!("{who} to be heard at {target}"), PATIENCE, || async {
        lie(raw, ip(source), *target.ip(), "friend, honestly");
        tokio::time::sleep(Duration::from_millis(5)).await;
        let mut buffer = [0; 64];
        let (length, _) = receiver.recv_from(&mut buffer)?;
        anyhow::ensure!(&buffer[..length] == b"friend, honestly");
        Ok(())
    })
    .await
    .unwrap_or_else(|e| panic!("{e:#}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_gets_through() {
    let scene = Scene::new().await;
    let receivers = scene.receivers();
    assert_eq!(breaches(&receivers).await, Vec::<String>::new(), "before any attack");
    let at_lan = scene.lan.udp(ip("192.0.2.200"), PORT);
    let [near, far] = &scene.site.nodes[..] else { panic!("two hosts") };
    let own = |source: Ipv4Addr, target: Ipv4Addr| source == ip("10.0.1.11") && target.octets()[2] == 1;

    // A container, through its own network and, around it, through its default route.
    scene.evil.run("ip route add 10.0.0.0/8 via 10.0.1.1 dev eth0").await;
    scene.evil.run("ip route add 10.0.0.0/8 via 172.18.0.1 dev eth1 metric 9").await;
    let raw = scene.evil.raw("eth0");
    honest("a container", &raw, "10.0.1.11", &receivers[0].socket).await;
    honest("a container", &raw, "10.0.1.11", &receivers[1].socket).await;
    honest("a container", &raw, "10.0.1.11", &receivers[5].socket).await;
    attack("container by its network", &raw, own);
    // To all: the kernel gives it to wildcard sockets without asking the rules, so servers bind one address.
    raw.set_broadcast(true).expect("broadcast");
    scene.evil.run("ip route add 224.0.0.0/4 dev eth0").await;
    let wildcard = near.inner.udp(Ipv4Addr::UNSPECIFIED, PORT + 1);
    wildcard.set_nonblocking(true).expect("non-blocking");
    for target in ["255.255.255.255", "224.0.0.1", "10.0.2.255", "10.0.1.255"] {
        lie(&raw, ip("10.0.1.11"), ip(target), &format!("to all: {target}"));
        let packet = udp4(ip("10.0.1.11"), ip(target), PORT + 1, b"to the wildcard");
        let _ = raw.send_to(&packet, &SocketAddr::new(ip(target).into(), 0).into());
    }
    assert!(wildcard.recv(&mut [0; 64]).is_ok(), "positive control: a wildcard socket does hear it");
    assert_eq!(breaches(&receivers).await, Vec::<String>::new());
    let raw = scene.evil.raw("eth1");
    honest("a container by its default route", &raw, "172.18.0.11", &at_lan).await;
    attack("container by its default route", &raw, |_, _| false);
    assert_eq!(breaches(&receivers).await, Vec::<String>::new());

    // The host, toward its wire, toward the other host, and toward the containers' bridge.
    near.place.run("ip route add 10.0.0.0/8 via 192.0.2.2 dev eth0").await;
    let raw = near.place.raw("eth0");
    honest("the host", &raw, "192.0.2.1", &at_lan).await;
    let at_far = far.place.udp(ip("192.0.2.2"), PORT);
    honest("the host", &raw, "192.0.2.1", &at_far).await;
    attack("host", &raw, |_, _| false);
    near.place.run("ip route del 10.0.0.0/8").await;
    let plain_socket = near.place.udp(ip("0.0.0.0"), 0);
    for target in TARGETS {
        let _ = plain_socket.send_to(format!("host plainly -> {target}").as_bytes(), (ip(target), PORT));
    }
    assert_eq!(breaches(&receivers).await, Vec::<String>::new());

    // A container of plain Docker on the same host.
    let raw = scene.plain.raw("eth0");
    honest("a plain container", &raw, "172.17.0.2", &at_lan).await;
    attack("plain container", &raw, |_, _| false);
    assert_eq!(breaches(&receivers).await, Vec::<String>::new());

    // A neighbour on the wire that takes each host for a router; the host does forward for it.
    scene.lan.run("ip route add 172.18.0.0/16 via 192.0.2.1").await;
    for gateway in ["192.0.2.1", "192.0.2.2"] {
        scene.lan.run(&format!("ip route replace 10.0.0.0/8 via {gateway}")).await;
        let raw = scene.lan.raw("eth0");
        honest("the neighbour", &raw, "192.0.2.200", &scene.evil.udp(ip("172.18.0.11"), PORT)).await;
        attack("neighbour", &raw, |_, _| false);
    }
    assert_eq!(breaches(&receivers).await, Vec::<String>::new());

    // Another node, root in its mesh namespace, in names that are not its own: the tunnel's keys say who it is.
    let raw = far.inner.raw("skep0");
    honest("another node", &raw, "10.0.1.12", &receivers[0].socket).await;
    let theirs = ["10.0.1.12", "10.0.2.12", "10.0.0.3"].map(ip);
    attack("another node", &raw, |source, target| theirs.contains(&source) && source.octets()[2] == target.octets()[2]);
    assert_eq!(breaches(&receivers).await, Vec::<String>::new());

    drop(receivers);
    scene.stop().await;
}

/// IPv6 from a container that makes itself addresses: mesh ends of veths do not speak it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_ipv6_from_containers() {
    let scene = Scene::new().await;
    let receivers = scene.receivers();
    let [near, far] = &scene.site.nodes[..] else { panic!("two hosts") };
    let shown = near.inner.run("ip -o link show v0a00010b").await;
    let mac = shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).expect("MAC").to_owned();
    let evil = &scene.evil;
    evil.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=0").await;
    let mut names = vec![near.peer.address(), far.peer.address(), scene.site.cluster.container(ip("10.0.1.11"))];
    names.push("fd12:3456:789a:77::1".parse().expect("address"));
    for name in &names {
        evil.run(&format!("ip addr add {name}/128 dev eth0 nodad")).await;
    }
    // Its own copies of the targets' addresses must not catch what it sends.
    evil.run("ip -6 rule add priority 5 lookup local").await;
    evil.run("ip -6 rule del priority 0").await;
    evil.run("ip -6 rule add priority 1 iif lo lookup 7").await;
    evil.run(&format!("ip -6 neigh replace fe80::1 lladdr {mac} dev eth0 nud permanent")).await;
    evil.run("ip -6 route add fd00::/8 via fe80::1 dev eth0 table 7").await;
    // Positive control: the frames do reach the veth's mesh end.
    let before = counter(&near.inner, "v0a00010b").await;
    let mut sent = 0;
    for name in &names {
        let socket = evil.udp(*name, 0);
        for target in [near.peer.address(), far.peer.address()] {
            for _ in 0..3 {
                let text = format!("container by IPv6: {name} -> {target}");
                sent += u64::from(socket.send_to(text.as_bytes(), (target, PORT)).is_ok());
            }
        }
    }
    assert!(sent >= 18, "only {sent} were sent");
    assert!(counter(&near.inner, "v0a00010b").await >= before + sent, "the frames did not reach the mesh end");
    assert_eq!(breaches(&receivers).await, Vec::<String>::new());
    drop(receivers);
    scene.stop().await;
}

/// Packets that came in by a device.
async fn counter(place: &Place, link: &str) -> u64 {
    let table = place.run("cat /proc/net/dev").await;
    let line = table.lines().find(|line| line.trim().starts_with(&format!("{link}:"))).expect("device");
    line.split_whitespace().nth(2).and_then(|count| count.parse().ok()).expect("a number")
}

/// The rules and filters alone: in place of the tunnel a plain wire, on which somebody uses every name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_from_a_tunnel_that_checks_nothing() {
    let scene = Scene::new().await;
    let [near, far] = &scene.site.nodes[..] else { panic!("two hosts") };
    skep::datapath::tunnel::close(&near.config).await.expect("tunnel closes");
    let wire = Place::make(scene.site.lab.dir(), "wire");
    near.inner.run(&format!("ip link add skep0 type veth peer name wire netns {}", wire.path().display())).await;
    let shown = near.inner.run("ip -o link show skep0").await;
    let mac = shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).expect("MAC").to_owned();
    wire.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=0").await;
    wire.run("ip link set lo up").await;
    wire.run("ip link set wire up").await;
    wire.run(&format!("ip neigh add 198.51.100.1 lladdr {mac} dev wire nud permanent")).await;
    wire.run("ip route add 10.0.0.0/8 via 198.51.100.1 dev wire onlink").await;
    wire.run(&format!("ip neigh add fe80::1 lladdr {mac} dev wire nud permanent")).await;
    let strangers = ["fd12:3456:789a:8000::a00:10b", "fd99::1", "2001:db8::1"].map(|s| s.parse().expect("address"));
    for name in strangers.iter().chain([&far.peer.address()]) {
        wire.run(&format!("ip addr add {name}/128 dev wire nodad")).await;
    }
    wire.run("ip -6 route add fd12:3456:789a::/48 via fe80::1 dev wire").await;
    eventually("the loop to use the new device", PATIENCE, || async {
        let routes = near.inner.try_run("ip route show table 167772416").await? + &near.inner.try_run("ip -6 route").await?;
        anyhow::ensure!(routes.contains("10.0.1.12 dev skep0") && routes.contains("fd12:3456:789a::/49 dev skep0"), "{routes}");
        Ok(())
    })
    .await
    .expect("routes");

    // Friends on this host only: the other one is behind the wire that is gone.
    let within = |address: &str| near.mesh.udp(SocketAddr::new(ip(address).into(), PORT)).expect("socket");
    let a1 = || scene.a1.udp(ip("10.0.1.13"), 0);
    let receivers = vec![
        Receiver::new("a1", scene.a1.udp(ip("10.0.1.13"), PORT), scene.evil.udp(ip("10.0.1.11"), 0)),
        Receiver::new("b1", scene.b1.udp(ip("10.0.2.11"), PORT), {
            near.mesh.udp(SocketAddr::new(ip("10.0.2.1").into(), 0)).expect("socket")
        }),
        Receiver::new("gateway of a", within("10.0.1.1"), a1()),
        Receiver::new("gateway of b", within("10.0.2.1"), scene.b1.udp(ip("10.0.2.11"), 0)),
        Receiver::new("gateway of ingress", within("10.0.0.1"), scene.i1.udp(ip("10.0.0.21"), 0)),
        Receiver::new("node", within("10.0.0.2"), scene.i1.udp(ip("10.0.0.21"), 0)),
        Receiver::new("raft", near.mesh.udp(SocketAddr::new(near.peer.address().into(), PORT)).expect("socket"), {
            wire.udp(far.peer.address(), 0)
        }),
    ];
    let raw = wire.raw("wire");
    honest("the wire", &raw, "10.0.1.12", &receivers[0].socket).await;
    assert_eq!(breaches(&receivers).await, Vec::<String>::new(), "before any attack");
    let theirs = ["10.0.1.12", "10.0.2.12", "10.0.0.3"].map(ip);
    attack("the wire", &raw, |source, target| theirs.contains(&source) && source.octets()[2] == target.octets()[2]);
    for name in strangers {
        let name: std::net::Ipv6Addr = name;
        let socket = wire.udp(name, 0);
        socket.send_to(format!("the wire: {name}").as_bytes(), (near.peer.address(), PORT)).expect("sent");
    }
    assert_eq!(breaches(&receivers).await, Vec::<String>::new());
    drop((receivers, wire));
    scene.stop().await;
}

/// With the tunnel gone nothing leaves in clear.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_in_clear_without_the_tunnel() {
    let scene = Scene::new().await;
    let near = &scene.site.nodes[0];
    let capture = near
        .place
        .inside(|| {
            let all = i32::from(0x0003_u16.to_be());
            socket2::Socket::new(socket2::Domain::PACKET, socket2::Type::RAW, Some(socket2::Protocol::from(all)))
        })
        .expect("capture");
    capture.set_nonblocking(true).expect("non-blocking");
    capture.set_recv_buffer_size(4 << 20).expect("buffer");

    let to_far = scene.evil.udp(ip("10.0.1.11"), 0);
    let at_far = scene.a2.udp(ip("10.0.1.12"), PORT);
    let node = near.mesh.udp("10.0.0.2:0".parse().expect("address")).expect("socket");
    let raft = near.mesh.udp(SocketAddr::new(near.peer.address().into(), 0)).expect("socket");
    let raft_far = SocketAddr::new(scene.site.nodes[1].peer.address().into(), PORT);
    super::kit::arrives(&to_far, ip("10.0.1.12"), &at_far).await;

    let by_default = scene.evil.udp(ip("172.18.0.11"), 0);
    for (tunnel, mark) in [("up", "SECRET-while-up"), ("gone", "SECRET-while-gone")] {
        if tunnel == "gone" {
            skep::datapath::tunnel::close(&near.config).await.expect("tunnel closes");
            assert!(near.inner.try_run("ip link show skep0").await.is_err());
        }
        frames(&capture);
        for _ in 0..20 {
            let _ = to_far.send_to(mark.as_bytes(), (ip("10.0.1.12"), PORT));
            let _ = node.send_to(mark.as_bytes(), (ip("10.0.1.12"), PORT));
            let _ = raft.send_to(mark.as_bytes(), raft_far);
        }
        // The capture does see what leaves in clear.
        let control = format!("CONTROL-{tunnel}");
        eventually("the capture to see the control", PATIENCE, || async {
            by_default.send_to(control.as_bytes(), (ip("192.0.2.200"), PORT))?;
            tokio::time::sleep(Duration::from_millis(20)).await;
            let frames = frames(&capture);
            assert_eq!(count(&frames, mark.as_bytes()), 0, "in clear with the tunnel {tunnel}");
            anyhow::ensure!(count(&frames, control.as_bytes()) > 0, "not in {} frames", frames.len());
            Ok(())
        })
        .await
        .unwrap_or_else(|e| panic!("{e:#}"));
    }
    // While it was up it did carry them.
    let mut buffer = [0; 64];
    at_far.set_nonblocking(true).expect("non-blocking");
    let mut arrived = Vec::new();
    while let Ok((length, _)) = at_far.recv_from(&mut buffer) {
        arrived.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
    }
    assert!(arrived.iter().any(|text| text == "SECRET-while-up"), "{arrived:?}");
    assert!(!arrived.iter().any(|text| text == "SECRET-while-gone"), "{arrived:?}");
    drop((to_far, at_far, node, raft));
    scene.stop().await;
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
