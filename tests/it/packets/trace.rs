//! `skep trace`: what the programs would do with a packet, on a node of the test's own: an eBPF datapath and a mesh namespace,
//! whose maps the test fills, without a swarm.
#![expect(unsafe_code, reason = "unshare has no safe form")]

use super::kernel::{TCP, UDP, address, run, v4};
use aya::Pod;
use aya::maps::{HashMap, Map, MapData};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use skep::datapath::ebpf::{
    Counter, EbpfDatapath, EbpfStep, FrameHeaders, HOST_END, Hook, PacketTrace, TraceNext, TraceRequest, TraceStep, VerdictKind,
};
use skep::datapath::mesh::{Mesh, TUNNEL, mesh_end};
use skep_ebpf::packet::{ICMP, SYN};
use skep_ebpf::{
    Backend, Config, Flow, Frontend, GUARDED, INGRESS, NO_CLIENT, NODE, Port, Prefix, Reply, Source, Target, Tuple, Vip, convert,
};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

/// A container of this node, and one of the other node.
const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 11);
const THERE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 12);
/// A second container of this node.
const CLIENT_TASK: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 13);
const VIP: &str = "10.0.0.100:80";
const EMPTY_VIP: &str = "10.0.0.101:80";
const CLIENT: &str = "203.0.113.9:40000";
const CLIENT6: &str = "[2001:db8:1::9]:40000";
const NODE_ADDRESS: &str = "192.168.9.1";
const NODE_ADDRESS6: &str = "2001:db8::1";
/// Owner of the service of all of them.
const WEB: u32 = 7;
/// Published ports: a task here, one on the other node, one that not every source may use, one without a task.
const LOCAL_PORT: u16 = 8080;
const REMOTE_PORT: u16 = 8081;
const GUARDED_PORT: u16 = 8082;
const EMPTY_PORT: u16 = 8083;

struct TracedNode {
    ebpf: Arc<EbpfDatapath>,
    mesh: Arc<Mesh>,
    folder: PathBuf,
    other: Prefix,
}

/// Runs a test on a node in network and mount namespaces of its own, which end with it.
fn on_a_node(test: impl AsyncFnOnce(&TracedNode) + Send) {
    let outcome = std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            // SAFETY: file descriptors stay shared; only this thread's namespaces change.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS | UnshareFlags::FS) }.expect("root");
            // Its threads are made by this one, in the same namespaces.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let node = TracedNode::make().await;
                test(&node).await;
            });
        });
        inside.join()
    });
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn of_node(text: &str) -> Prefix {
    convert::prefix(text.parse().expect("an address"))
}

fn headers(protocol: u8, from: &str, to: &str) -> FrameHeaders {
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().expect("a client"), to.parse().expect("a destination"));
    FrameHeaders {
        source: from.ip(),
        destination: to.ip(),
        source_port: from.port(),
        destination_port: to.port(),
        protocol,
        flags: if protocol == TCP { SYN } else { 0 },
    }
}

fn request(protocol: u8, from: &str, to: &str) -> TraceRequest {
    TraceRequest { headers: headers(protocol, from, to), length: 0, device: None, from_node: None, reply: false }
}

fn port(family: u8, number: u16) -> String {
    if family == 4 { format!("{NODE_ADDRESS}:{number}") } else { format!("[{NODE_ADDRESS6}]:{number}") }
}

fn tuple(protocol: u8, from: &str, to: &str) -> Tuple {
    let of = headers(protocol, from, to);
    Tuple {
        source: convert::address(of.source),
        destination: convert::address(of.destination),
        source_port: of.source_port.to_be(),
        destination_port: of.destination_port.to_be(),
        protocol,
        ..Tuple::default()
    }
}

impl TracedNode {
    async fn make() -> Self {
        for line in [
            "mount --make-rprivate /",
            "mount -t tmpfs tmpfs /tmp",
            "mkdir /tmp/skep",
            "ip link set lo up",
            "ip link add eth0 type veth peer name wire",
            "ip address add 192.168.9.1/24 dev eth0",
            "ip -6 address add 2001:db8::1/64 dev eth0 nodad",
            "ip link set eth0 up",
            "ip link set wire up",
            "ip route add default via 192.168.9.254",
            "ip -6 route add default via 2001:db8::fe",
        ] {
            run(line);
        }
        let folder = PathBuf::from("/tmp/skep");
        let mesh = Mesh::open(&folder.join("mesh")).await.expect("a mesh namespace");
        mesh.run(|| {
            // A device without link header, as the tunnel is.
            run(&format!("ip tuntap add {TUNNEL} mode tun"));
            for container in [HERE, CLIENT_TASK] {
                run(&format!("ip link add {} type veth peer name p{}", mesh_end(container), container.octets()[3]));
            }
        })
        .expect("devices in the mesh namespace");
        let ebpf = EbpfDatapath::open(&folder, mesh.clone(), 0).await.expect("loads");
        let node = Self { ebpf, mesh, folder, other: of_node("fd01:0:0:2::") };
        node.fill().await;
        node
    }

    async fn fill(&self) {
        let devices = self.ebpf.host_devices().await.expect("devices");
        let config = Config {
            host_end: devices.host_end.expect("the pair"),
            mesh_end: devices.mesh_end.expect("the pair"),
            tunnel: devices.tunnel.expect("the tunnel"),
            uplink: devices.uplinks["eth0"],
            prefix: of_node("fd01:0:0:1::"),
            containers: of_node("fd02:9::"),
            udp_idle: 60,
            tunnel_port: 2377_u16.to_be(),
            ..Config::default()
        };
        let index = |container: Ipv4Addr| devices.veths[&container].1;
        let backend = |ifindex, prefix| Backend { ifindex, serving: 1, prefix, owner: WEB, flags: INGRESS };
        let mut steps = vec![
            EbpfStep::Config(config),
            EbpfStep::Slots(0, vec![convert::v4(HERE), convert::v4(THERE)].into()),
            EbpfStep::SetBackend(convert::v4(HERE), backend(index(HERE), config.prefix)),
            EbpfStep::SetBackend(convert::v4(CLIENT_TASK), backend(index(CLIENT_TASK), config.prefix)),
            EbpfStep::SetBackend(convert::v4(THERE), backend(0, self.other)),
            EbpfStep::AddLocal(address(NODE_ADDRESS)),
            EbpfStep::AddLocal(address(NODE_ADDRESS6)),
            EbpfStep::AddSource(128 + 24, Source { scope: NO_CLIENT, address: address("10.0.0.0") }),
            EbpfStep::AddSource(32 + 128, Source { scope: NODE, address: address("192.168.9.2") }),
        ];
        for protocol in [TCP, UDP] {
            steps.push(EbpfStep::AddTarget(Target { owner: WEB, port: 80_u16.to_be(), protocol, zero: 0 }));
        }
        let ports = [(LOCAL_PORT, 0, 1, 0), (REMOTE_PORT, 1, 1, 0), (GUARDED_PORT, 0, 1, GUARDED), (EMPTY_PORT, 0, 0, 0)];
        for (number, base, size, flags) in ports {
            let frontend = Frontend { base, size, target: 80_u16.to_be(), flags, owner: WEB };
            for (protocol, family) in [(TCP, 4), (TCP, 6), (UDP, 4), (UDP, 6)] {
                steps.push(EbpfStep::SetPort(Port { protocol, family, port: number.to_be() }, frontend));
            }
        }
        let vip = Vip { network: v4("10.0.0.0"), mask: v4("255.255.255.0"), base: 0, size: 2, owner: WEB };
        steps.push(EbpfStep::SetVip(v4("10.0.0.100"), vip));
        steps.push(EbpfStep::SetVip(v4("10.0.0.101"), Vip { size: 0, ..vip }));
        self.ebpf.apply(&steps).await.expect("fills the maps");
    }

    async fn trace(&self, request: TraceRequest) -> PacketTrace {
        self.ebpf.trace(request.clone()).await.unwrap_or_else(|error| panic!("{request:?}: {error:#}"))
    }

    /// A live map.
    fn live<K: Pod, V: Pod>(&self, name: &str) -> HashMap<MapData, K, V> {
        let map = MapData::from_pin(self.folder.join(format!("bpf/maps{}/{name}", skep_ebpf::LAYOUT))).expect("a pin");
        HashMap::try_from(Map::from_map_data(map).expect("a map")).expect("its types")
    }

    /// All that a trace must not change: tables, flows, counters, pins.
    async fn state(&self) -> String {
        let dump = self.ebpf.dump().await.expect("dumps");
        let mut pins: Vec<_> = ["bpf", "bpf/links", &format!("bpf/maps{}", skep_ebpf::LAYOUT)]
            .iter()
            .flat_map(|folder| std::fs::read_dir(self.folder.join(folder)).expect("a folder"))
            .map(|entry| entry.expect("a file").path())
            .collect();
        pins.sort();
        let counts = (self.ebpf.counters().expect("counters"), self.ebpf.refusals().expect("refusals"));
        let seen: Vec<(Tuple, Flow)> = self.live("SYN_FLOWS").iter().map(|entry| entry.expect("a flow")).collect();
        format!("{dump:?} {counts:?} {:?} {:?} {seen:?} {pins:?}", self.ebpf.connections(), self.ebpf.occupancy())
    }
}

/// Hooks and what each one decided.
fn path(trace: &PacketTrace) -> Vec<(Hook, VerdictKind)> {
    trace.steps.iter().map(|step| (step.hook, step.verdict)).collect()
}

fn last(trace: &PacketTrace) -> &TraceStep {
    trace.steps.last().expect("a step")
}

const IN: [(Hook, VerdictKind); 2] = [(Hook::FromUplink, VerdictKind::RedirectPeer), (Hook::FromHost, VerdictKind::RedirectPeer)];
const OUT: [(Hook, VerdictKind); 2] =
    [(Hook::FromContainer, VerdictKind::RedirectPeer), (Hook::ToUplink, VerdictKind::RedirectNeighbour)];
const TO_NODE: [(Hook, VerdictKind); 2] =
    [(Hook::FromUplink, VerdictKind::RedirectPeer), (Hook::FromHost, VerdictKind::Redirect)];
const FROM_NODE: [(Hook, VerdictKind); 2] =
    [(Hook::FromMesh, VerdictKind::RedirectPeer), (Hook::ToUplink, VerdictKind::RedirectNeighbour)];

#[test]
fn a_client_s_packet_and_its_answer_are_followed_through_a_task_of_this_node() {
    on_a_node(async |node| {
        let before = node.state().await;
        for (protocol, family, client) in [(TCP, 4, CLIENT), (UDP, 4, CLIENT), (TCP, 6, CLIENT6), (UDP, 6, CLIENT6)] {
            let request = TraceRequest { reply: true, length: 1400, ..request(protocol, client, &port(family, LOCAL_PORT)) };
            let trace = node.trace(request).await;
            assert_eq!(path(&trace), [IN, OUT].concat(), "{protocol} {family}");
            assert_eq!(trace.steps[1].next, TraceNext::Container(HERE));
            let [first, _, answer, out] = &trace.steps[..] else { panic!("{trace:#?}") };
            assert_eq!(first.counters, [Counter::PortNew, Counter::PortIn]);
            assert_eq!((first.after.headers.destination_port, first.after.headers.source_port), (80, 40_000));
            let tables: Vec<&str> = first.entries.iter().map(|entry| entry.map).collect();
            assert_eq!(tables.len(), 2, "a flow and its reverse: {:?}", first.entries);
            let changed: Vec<&str> = answer.entries.iter().map(|entry| entry.map).collect();
            let handshake: &[&str] = if protocol == TCP { &["SYN_REPLIES"] } else { &[] };
            assert!(answer.reply && changed == handshake, "the number that the client has to acknowledge: {answer:?}");
            let client: SocketAddr = client.parse().unwrap();
            assert_eq!(answer.after.headers.source_text(), port(family, LOCAL_PORT));
            assert_eq!(out.after.headers.destination_text(), client.to_string());
            assert_eq!(
                (out.counters.as_slice(), out.next),
                (&[Counter::PortOut][..], TraceNext::Uplink(trace.devices.uplinks["eth0"]))
            );
        }
        assert_eq!(node.state().await, before);
        assert!(node.mesh.pin().exists());
    });
}

#[test]
fn a_client_s_packet_and_its_answer_are_followed_by_way_of_the_other_node() {
    on_a_node(async |node| {
        let before = node.state().await;
        for (protocol, family, client) in [(TCP, 4, CLIENT), (UDP, 4, CLIENT), (TCP, 6, CLIENT6), (UDP, 6, CLIENT6)] {
            let request = TraceRequest { reply: true, ..request(protocol, client, &port(family, REMOTE_PORT)) };
            let trace = node.trace(request).await;
            assert_eq!(path(&trace), [TO_NODE, FROM_NODE].concat(), "{protocol} {family}");
            let [_, sent, answer, out] = &trace.steps[..] else { panic!("{trace:#?}") };
            assert_eq!((sent.next, PacketTrace::node_of(sent)), (TraceNext::Tunnel, Some("fd01:0:0:2::".parse().unwrap())));
            assert_eq!(sent.counters, [Counter::MeshOut]);
            assert_eq!(sent.after.inner.is_none(), protocol == TCP && family == 4, "only that is translated");
            assert_eq!(answer.counters, [Counter::MeshIn]);
            assert_eq!(out.after.headers.source_text(), port(family, REMOTE_PORT));
            assert_eq!(out.after.headers.destination_text(), client.parse::<SocketAddr>().unwrap().to_string());
        }
        assert_eq!(node.state().await, before);
    });
}

#[test]
fn a_packet_that_is_left_to_the_host_has_its_reason() {
    on_a_node(async |node| {
        for (from, to, reason) in [
            (CLIENT, GUARDED_PORT, Some(Counter::PassNotAllowed)),
            (CLIENT, EMPTY_PORT, Some(Counter::PassNoBackend)),
            ("10.0.0.77:40000", LOCAL_PORT, Some(Counter::PassNoClient)),
            (CLIENT, 9999, None),
        ] {
            let trace = node.trace(TraceRequest { reply: true, ..request(TCP, from, &port(4, to)) }).await;
            assert_eq!(path(&trace), [(Hook::FromUplink, VerdictKind::Pass)], "{to}");
            assert_eq!((last(&trace).next, last(&trace).counters.first().copied()), (TraceNext::HostStack, reason), "{to}");
            assert!(trace.no_reply.is_some());
        }
        let echo = node.trace(request(ICMP, "203.0.113.9:0", "192.168.9.1:0")).await;
        assert_eq!(path(&echo), [(Hook::FromUplink, VerdictKind::Pass)]);
    });
}

#[test]
fn a_packet_that_is_dropped_has_its_hook_and_reason() {
    on_a_node(async |node| {
        let before = node.state().await;
        let looping = node.trace(request(UDP, "192.168.9.2:8080", &port(4, LOCAL_PORT))).await;
        let forged = request(TCP, &format!("{CLIENT_TASK}:5000"), VIP);
        let forged = node.trace(TraceRequest { device: Some(mesh_end(HERE)), ..forged }).await;
        let from_node = Some("fd01:0:0:2::".parse().unwrap());
        let unknown = request(TCP, &format!("{THERE}:80"), CLIENT);
        let unknown = node.trace(TraceRequest { from_node, ..unknown }).await;
        let empty = node.trace(request(TCP, &format!("{CLIENT_TASK}:5000"), EMPTY_VIP)).await;
        for (trace, hook, reason) in [
            (&looping, Hook::FromUplink, Counter::DropLoop),
            (&forged, Hook::FromContainer, Counter::DropForged),
            (&unknown, Hook::FromMesh, Counter::DropFlow),
        ] {
            assert_eq!(path(trace), [(hook, VerdictKind::Drop)]);
            assert!(last(trace).counters.contains(&reason), "{:?}", last(trace));
            assert_eq!(last(trace).next, TraceNext::Dropped);
        }
        // Answered: back to the container that asks.
        assert_eq!(path(&empty), [(Hook::FromContainer, VerdictKind::Redirect)]);
        assert!(last(&empty).counters.contains(&Counter::VipEmpty), "{:?}", last(&empty));
        assert_eq!(last(&empty).next, TraceNext::Container(CLIENT_TASK));
        assert_eq!(empty.vip.expect("the table is read").backends.len(), 0);
        assert_eq!(node.state().await, before);
    });
}

#[test]
fn a_packet_of_another_entry_node_is_followed_into_the_container_and_back() {
    on_a_node(async |node| {
        let from_node = Some("fd01:0:0:2::".parse().unwrap());
        let six = "[fd02:9::a00:b]:80";
        for (protocol, from, to) in [(TCP, CLIENT, "10.0.0.11:80"), (UDP, CLIENT, "10.0.0.11:80"), (TCP, CLIENT6, six)] {
            let trace = node.trace(TraceRequest { from_node, reply: true, ..request(protocol, from, to) }).await;
            let expected = [(Hook::FromMesh, VerdictKind::RedirectPeer), (Hook::FromContainer, VerdictKind::Redirect)];
            assert_eq!(path(&trace), expected, "{to}");
            assert_eq!(trace.steps[0].next, TraceNext::Container(HERE));
            assert_eq!(trace.steps[0].after.headers, headers(protocol, from, to), "as the container sees it");
            assert_eq!(PacketTrace::node_of(last(&trace)), from_node, "the answer goes to the entry node");
        }
        let plain = node.trace(TraceRequest { from_node, ..request(TCP, "10.0.0.12:5000", "10.0.0.11:80") }).await;
        assert_eq!((path(&plain), last(&plain).next), (vec![(Hook::FromMesh, VerdictKind::Pass)], TraceNext::MeshRoutes));
    });
}

#[test]
fn a_virtual_address_is_read_from_the_table_and_an_untranslated_packet_is_run() {
    on_a_node(async |node| {
        let trace = node.trace(TraceRequest { reply: true, ..request(TCP, &format!("{CLIENT_TASK}:5000"), VIP) }).await;
        let vip = trace.vip.as_ref().expect("the table");
        assert_eq!((vip.owner, vip.backends.clone()), (WEB, [(HERE, 1), (THERE, 1)].into()));
        let first = &trace.steps[0];
        assert_eq!((first.hook, first.verdict, first.next), (Hook::FromContainer, VerdictKind::Pass, TraceNext::MeshRoutes));
        assert!(first.counters.contains(&Counter::VipPacket), "{first:?}");
        let answer = last(&trace);
        assert_eq!((answer.next, answer.after.headers.source_text()), (TraceNext::Container(CLIENT_TASK), VIP.to_owned()));

        let echo = node.trace(request(ICMP, &format!("{CLIENT_TASK}:0"), "10.0.0.100:0")).await;
        assert_eq!(
            (path(&echo), last(&echo).next),
            (vec![(Hook::FromContainer, VerdictKind::Redirect)], TraceNext::Container(CLIENT_TASK))
        );
        assert_eq!(last(&echo).counters, [Counter::VipEcho]);
        let elsewhere = node.trace(request(TCP, &format!("{CLIENT_TASK}:5000"), "10.9.9.9:80")).await;
        assert_eq!((&elsewhere.vip, last(&elsewhere).next), (&None, TraceNext::MeshRoutes));
    });
}

#[test]
fn a_connection_of_the_host_is_recorded_at_the_uplink() {
    on_a_node(async |node| {
        let trace = node.trace(request(TCP, &port(4, LOCAL_PORT), CLIENT)).await;
        assert_eq!(path(&trace), [(Hook::OutUplink, VerdictKind::Pass)]);
        assert_eq!((last(&trace).counters.as_slice(), last(&trace).entries.len()), (&[Counter::HostFlow][..], 1));
        assert_eq!(last(&trace).next, TraceNext::Uplink(trace.devices.uplinks["eth0"]));
    });
}

/// The live entries of the packet's connection decide, as they would for the packet.
#[test]
fn live_flows_of_the_packet_s_connection_are_followed_and_stay_as_they_are() {
    on_a_node(async |node| {
        let to = port(4, LOCAL_PORT);
        let ack = TraceRequest { headers: FrameHeaders { flags: 16, ..headers(TCP, CLIENT, &to) }, ..request(TCP, CLIENT, &to) };
        let flow = Flow {
            backend: convert::v4(THERE),
            target: 80_u16.to_be(),
            client_port: 40_000_u16.to_be(),
            ifindex: 99,
            owner: WEB,
            seen: 1,
        };
        node.live("SYN_FLOWS").insert(tuple(TCP, CLIENT, &to), flow, 0).expect("a flow");
        let before = node.state().await;
        let trace = node.trace(ack.clone()).await;
        assert_eq!(path(&trace), TO_NODE, "an established connection stays with its task");
        assert_eq!(trace.steps[0].counters, [Counter::PortIn]);
        let syn = node.trace(request(TCP, CLIENT, &to)).await;
        assert_eq!(path(&syn), IN, "a new one asks the table");
        assert_eq!(node.state().await, before);

        // Another client's connection has the tuple that this one would have at the container.
        let other = Reply {
            address: address("192.168.9.1"),
            entry: [0; 2],
            port: 9_u16.to_be(),
            client_port: 41_000_u16.to_be(),
            ..Reply::default()
        };
        let from = "203.0.113.9:41000";
        node.live("SYN_REPLIES").insert(tuple(TCP, "10.0.0.11:80", from), other, 0).expect("a reverse entry");
        let before = node.state().await;
        let trace = node.trace(TraceRequest { reply: true, ..request(TCP, from, &to) }).await;
        assert_eq!(path(&trace), [IN, OUT].concat());
        assert!(trace.steps[0].counters.contains(&Counter::PortChanged), "{:?}", trace.steps[0]);
        assert_ne!(trace.steps[0].after.headers.source_port, 41_000);
        assert_eq!(last(&trace).after.headers.destination_text(), from);
        assert_eq!(node.state().await, before);
    });
}

#[test]
fn a_device_that_was_made_again_is_seen_as_a_lost_packet() {
    on_a_node(async |node| {
        let gone = Backend { ifindex: 4_000, serving: 1, prefix: [0; 2], owner: WEB, flags: INGRESS };
        node.ebpf.apply(&[EbpfStep::SetBackend(convert::v4(HERE), gone)]).await.expect("sets");
        let trace = node.trace(request(TCP, CLIENT, &port(4, LOCAL_PORT))).await;
        assert_eq!(last(&trace).next, TraceNext::Lost(4_000));
    });
}

#[test]
fn what_does_not_fit_this_node_is_an_error_that_says_so() {
    on_a_node(async |node| {
        let device = TraceRequest { device: Some(HOST_END.to_owned()), ..request(TCP, CLIENT, &port(4, LOCAL_PORT)) };
        let error = node.ebpf.trace(device).await.expect_err("no hook of a trace");
        assert_eq!(error.to_string(), "no program is attached to a device skeph: the uplinks are eth0");
        assert!(node.ebpf.trace(request(TCP, &format!("{THERE}:80"), CLIENT)).await.is_err());
    });
}
