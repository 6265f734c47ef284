//! Virtual addresses as processes in containers meet them: by socket calls, by names, by packets without a call.

use super::packet;
use super::servers::{Seen, Talk, answer, say};
use super::*;
use anyhow::ensure;
use skep::lab::output;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::Read as _;
use std::net::{SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

/// A published port of the service.
pub const PUBLISHED: u16 = 8064;

/// A container with its address on the network.
pub struct Place {
    pub spot: Spot,
    pub address: Ipv4Addr,
}

pub struct Scene {
    /// Tasks of `web`, by node.
    pub web: Vec<Place>,
    /// Containers on the same network.
    pub askers: Vec<Place>,
    /// One on another network.
    alien: Spot,
    /// Task addresses of a service without a virtual address.
    plain: BTreeSet<String>,
    pub vip: Ipv4Addr,
}

impl Scene {
    pub async fn start(stage: &Stage) -> Self {
        let swarm = &stage.swarm;
        for network in ["back", "other"] {
            ok(&post(&swarm.hosts[0], "/networks/create", &json!({ "Name": network, "Driver": "overlay" })).await);
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
            make("ask", "back", 2, json!({})),
            make("plain", "back", 2, json!({ "Mode": "dnsrr" })),
            make("alien", "other", 1, json!({})),
        ] {
            ok(&post(&swarm.hosts[0], "/services/create", &spec).await);
        }
        let subnet =
            get(&swarm.hosts[0], "/networks/back").await["IPAM"]["Config"][0]["Subnet"].as_str().expect("subnet").to_owned();
        let subnet: ipnet::Ipv4Net = subnet.parse().expect("subnet");
        let mut places = Vec::new();
        for service in ["web", "ask", "plain"] {
            let mut list = Vec::new();
            for spot in stage.spots(service, 2).await {
                let shown = spot.run("ip -o -4 addr show").await;
                let mut words = shown.split_whitespace().filter_map(|word| word.split('/').next()?.parse::<Ipv4Addr>().ok());
                let address = words.find(|address| subnet.contains(address)).expect("an address on the network");
                list.push(Place { spot, address });
            }
            places.push(list);
        }
        let [web, askers, plain] = <[Vec<Place>; 3]>::try_from(places).ok().expect("three services");
        for place in &web {
            serve(&place.spot, TARGET, Ipv6Addr::UNSPECIFIED.into());
        }
        let service = get(&swarm.hosts[0], "/services/web").await;
        let vips = service["Endpoint"]["VirtualIPs"].as_array().expect("virtual addresses").iter();
        let mut vips = vips.filter_map(|vip| vip["Addr"].as_str()?.split('/').next()?.parse::<Ipv4Addr>().ok());
        let vip = vips.find(|vip| subnet.contains(vip)).expect("a virtual address");
        let alien = stage.spots("alien", 1).await.remove(0);
        let plain = plain.iter().map(|place| place.address.to_string()).collect();
        Self { web, askers, alien, plain, vip }
    }

    fn port(&self) -> SocketAddr {
        SocketAddr::new(self.vip.into(), TARGET)
    }

    fn mapped(&self) -> SocketAddr {
        SocketAddr::new(self.vip.to_ipv6_mapped().into(), TARGET)
    }
}

/// Every kind of call from containers of both nodes; both tasks are reached, and nobody sees another name than the one asked.
pub async fn calls(stage: &Stage, scene: &Scene) {
    let before = stage.counted("vip_connect").await;
    for asker in &scene.askers {
        let mut who = BTreeSet::new();
        within(20, "the virtual address to answer", || async { Talk::open(&asker.spot, scene.port())?.who() }).await;
        for round in 0..12 {
            for to in [scene.port(), scene.mapped()] {
                let what = format!("round {round} from {} to {to}", asker.spot.name);
                let mut talk = Talk::open(&asker.spot, to).unwrap_or_else(|e| panic!("TCP {what}: {e:#}"));
                let seen = talk.who().unwrap_or_else(|e| panic!("TCP {what}: {e:#}"));
                assert_eq!(talk.peer(), to, "getpeername, TCP {what}");
                assert_eq!(seen.peer.ip(), IpAddr::V4(asker.address), "TCP {what}");
                who.insert(seen.who);
                let socket = asker.spot.udp(None, to).unwrap_or_else(|e| panic!("UDP {what}: {e}"));
                let seen = within(10, "an answer by connected UDP", || async { say(&socket, b"hello") }).await;
                assert_eq!(socket.peer_addr().expect("connected"), to, "getpeername, UDP {what}");
                assert_eq!(seen.peer.ip(), IpAddr::V4(asker.address), "UDP {what}");
                who.insert(seen.who);
                let (seen, sender) = within(10, "an answer by unconnected UDP", || async { unconnected(asker, to) }).await;
                assert_eq!(sender, to, "recvfrom {what}");
                assert_eq!(seen.peer.ip(), IpAddr::V4(asker.address), "unconnected UDP {what}");
                who.insert(seen.who);
            }
        }
        assert_eq!(who.len(), 2, "both tasks answer: {who:?}");
        // Large ones, and many bytes: nothing is in the way.
        let mut talk = Talk::open(&asker.spot, scene.port()).expect("connects");
        talk.down(5_000_000).expect("down");
        talk.up(5_000_000).expect("up");
    }
    stage.counts("vip_connect", before + 144).await;
}

fn unconnected(asker: &Place, to: SocketAddr) -> anyhow::Result<(Seen, SocketAddr)> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = asker.spot.inside(|| UdpSocket::bind((any, 0)))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.send_to(b"hello", to)?;
    let mut buffer = [0; 200];
    let (length, sender) = socket.recv_from(&mut buffer)?;
    Ok((answer(&buffer[..length], b"hello")?, sender))
}

/// A name is its virtual address; of a service without one, the addresses of its tasks.
pub async fn names(stage: &Stage, scene: &Scene) {
    for (host, asker) in stage.swarm.hosts.iter().zip(&scene.askers) {
        for (name, want) in [("web", BTreeSet::from([scene.vip.to_string()])), ("plain", scene.plain.clone())] {
            within(20, "a name", || async {
                let mut command = host.engine_cli();
                command.args(["exec", &asker.spot.container, "nslookup", "-type=a", name]);
                let said = output(&mut command).await?;
                let told = said.split_once("\nName").map(|(_, told)| told).unwrap_or_default();
                let addresses =
                    told.lines().filter(|line| line.starts_with("Address")).filter_map(|line| line.split_whitespace().last());
                let addresses: BTreeSet<String> = addresses.map(str::to_owned).collect();
                ensure!(addresses == want, "{name} is {addresses:?}, not {want:?}: {said}");
                Ok(())
            })
            .await;
        }
    }
}

pub async fn ping(stage: &Stage, scene: &Scene) {
    for (host, asker) in stage.swarm.hosts.iter().zip(&scene.askers) {
        for size in ["56", "1200"] {
            let mut command = host.engine_cli();
            command.args(["exec", &asker.spot.container, "ping", "-c", "1", "-W", "3", "-s", size, &scene.vip.to_string()]);
            let said = output(&mut command).await.unwrap_or_else(|e| panic!("from {}: {e:#}", asker.spot.name));
            assert!(said.contains(&format!("from {}", scene.vip)), "{said}");
        }
    }
    stage.counts("vip_echo", 4).await;
}

/// Packets that no socket call has seen: from raw sockets.
pub async fn raw(scene: &Scene) {
    for asker in &scene.askers {
        let raw = asker.spot.raw();
        let vip = SocketAddrV4::new(scene.vip, TARGET);
        let socket = asker.spot.inside(|| UdpSocket::bind((asker.address, 4444))).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a time");
        let from = SocketAddrV4::new(asker.address, 4444);
        let (seen, sender) = within(15, "an answer to a datagram without a call", || async {
            raw.send_to(&packet::udp(from, vip, b"raw"), &SocketAddr::from(vip).into())?;
            let mut buffer = [0; 200];
            let (length, sender) = socket.recv_from(&mut buffer)?;
            Ok((answer(&buffer[..length], b"raw")?, sender))
        })
        .await;
        assert_eq!((sender, seen.peer), (vip.into(), from.into()), "from the one asked, to the one who asks");

        let ear = asker.spot.inside(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))).expect("a raw socket");
        ear.set_read_timeout(Some(Duration::from_secs(2))).expect("a time");
        let next = std::sync::atomic::AtomicU16::new(4600);
        within(15, "an answer to a SYN without a call", || async {
            let port = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let from = SocketAddrV4::new(asker.address, port);
            raw.send_to(&packet::tcp(from, vip, 2, 1000, b""), &SocketAddr::from(vip).into())?;
            let until = Instant::now() + Duration::from_secs(2);
            let mut others = Vec::new();
            while Instant::now() < until {
                let mut packet = [0; 200];
                let Ok(length) = (&ear).read(&mut packet) else { break };
                let ends = [&packet[12..16], &packet[20..24]];
                let wanted = [&scene.vip.octets()[..], &[TARGET.to_be_bytes(), port.to_be_bytes()].concat()[..]];
                // SYN and ACK, of what was sent.
                if length >= 40 && ends == wanted && packet[33] == 0x12 && packet[28..32] == 1001_u32.to_be_bytes() {
                    return Ok(());
                }
                others.push(packet[12..34].to_vec());
            }
            anyhow::bail!("none from {vip}, but {others:?}")
        })
        .await;
    }
}

/// An engine inside a container: its containers' packets are masqueraded by the outer one, no call of theirs is translated.
pub async fn nested(scene: &Scene) {
    for asker in &scene.askers {
        let nested = asker.spot.nested().await;
        asker.spot.run(&format!("ip link add in0 type veth peer name out0 netns {}", nested.holder())).await;
        for line in [
            "ip addr add 172.31.9.1/30 dev in0",
            "ip link set in0 up",
            "sysctl -qw net.ipv4.ip_forward=1",
            "iptables -t nat -A POSTROUTING -s 172.31.9.0/30 -j MASQUERADE",
        ] {
            asker.spot.run(line).await;
        }
        for line in [
            "ip link set lo up",
            "ip addr add 172.31.9.2/30 dev out0",
            "ip link set out0 up",
            "ip route add default via 172.31.9.1",
        ] {
            nested.run(line).await;
        }
        let to = scene.port();
        let mut who = BTreeSet::new();
        for _ in 0..12 {
            let mut talk =
                within(15, "a nested container to reach a virtual address", || async { Talk::open(&nested, to) }).await;
            let seen = talk.who().unwrap_or_else(|e| panic!("from inside {}: {e:#}", asker.spot.name));
            assert_eq!((seen.peer.ip(), talk.peer()), (IpAddr::V4(asker.address), to));
            talk.down(300_000).unwrap_or_else(|e| panic!("from inside {}: {e:#}", asker.spot.name));
            let socket = nested.udp(None, to).expect("a socket");
            let seen = within(10, "a nested container's datagram to be answered", || async { say(&socket, b"hello") }).await;
            assert_eq!(seen.peer.ip(), IpAddr::V4(asker.address));
            who.insert(seen.who);
        }
        assert_eq!(who.len(), 2, "both tasks answer: {who:?}");
        nested.run(&format!("busybox ping -c 1 -W 3 {}", scene.vip)).await;
    }
}

/// Who is not on the network is not let in; whose own address it is keeps it.
pub async fn strangers(stage: &Stage, scene: &Scene) {
    let reached = Talk::open(&scene.alien, scene.port()).and_then(|mut talk| talk.who());
    assert!(reached.is_err(), "a container of another network reached it: {reached:?}");
    let datagram = scene.alien.udp(None, scene.port()).map_err(anyhow::Error::from).and_then(|socket| say(&socket, b"let me in"));
    assert!(datagram.is_err(), "a container of another network reached it: {datagram:?}");
    let raw = scene.alien.raw();
    for from in [scene.askers[0].address, scene.web[0].address] {
        let lie = packet::udp(SocketAddrV4::new(from, 4747), SocketAddrV4::new(scene.vip, TARGET), b"MARK lie");
        let _ = raw.send_to(&lie, &scene.port().into());
    }

    // Processes of the node, and a host that has nothing to do with it, use the address as theirs.
    for spot in [stage.node(0), stage.client(0)] {
        let direct = TcpStream::connect;
        let reached = spot.inside(|| direct(scene.port()));
        assert!(reached.is_err(), "{} reached it: {reached:?}", spot.name);
        spot.run(&format!("ip addr add {}/32 dev lo", scene.vip)).await;
        let listener = spot.inside(|| TcpListener::bind(scene.port())).expect("an address of the host's own");
        spot.inside(|| direct(scene.port())).expect("reaches itself");
        listener.set_nonblocking(true).expect("non-blocking");
        let (_, from) = listener.accept().expect("it is reached by itself");
        assert_eq!(from.ip(), IpAddr::V4(scene.vip));
        spot.run(&format!("ip addr del {}/32 dev lo", scene.vip)).await;
    }
}
