//! A container that sends from the port that it publishes over UDP, as time, telephony and game servers and every peer-to-peer
//! program do: to clients from the address that they know, to others as if nothing was published. Real sockets and routes, no
//! swarm: one namespace is the container, with an interface on `ingress` and one on the engine's bridge; one is where clients
//! are, one is the network outside.

use super::load::{DATAPATH, dir_of, end, open};
use aya::maps::{HashMap, Map, MapData};
use skep::datapath::ebpf::{EbpfDatapath, EbpfStep, Hook, HookSide, IngressNetwork, ProgramLink};
use skep::datapath::{Sandbox, Sandboxes as _, netns};
use skep::lab::output;
use skep::model::mesh::MeshPrefix;
use skep_ebpf::packet::UDP;
use skep_ebpf::{Config, Reply, Tuple, convert};
use socket2::{Domain, Socket, Type};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::process::Command;

/// The published port, in the container.
const PORT: u16 = 5060;
const CONTAINER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 7);
const CLIENTS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 9)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9))];
const OUTSIDE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(203, 0, 113, 5)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 5, 0, 0, 0, 0, 5))];

/// A named network namespace, removed with the value.
struct Netns(String);

impl Netns {
    async fn new(kind: &str) -> Self {
        let name = format!("skep-port-{kind}-{}", std::process::id());
        sh(&format!("ip netns add {name}; ip -n {name} link set lo up")).await;
        Self(name)
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    /// Runs `f` inside; sockets that it opens stay in the namespace.
    fn inside<T>(&self, f: impl FnOnce() -> io::Result<T>) -> T {
        let namespace = File::open(self.path()).expect("a namespace");
        netns::briefly(namespace.as_fd(), f).unwrap_or_else(|error| panic!("{}: {error}", self.0))
    }

    /// A socket bound to this address, which others may share.
    fn bind(&self, at: SocketAddr) -> UdpSocket {
        self.inside(|| {
            let socket = Socket::new(Domain::for_address(at), Type::DGRAM, None)?;
            if at.is_ipv6() {
                socket.set_only_v6(false)?;
            }
            socket.set_reuse_port(true)?;
            socket.bind(&at.into())?;
            socket.set_read_timeout(Some(Duration::from_secs(3)))?;
            Ok(socket.into())
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

async fn sh(line: &str) {
    output(Command::new("sh").args(["-ec", line])).await.unwrap_or_else(|e| panic!("{e:#}"));
}

/// The container's namespace and what it is connected to.
struct Container {
    own: Netns,
    clients: Netns,
    outside: Netns,
    own6: Ipv6Addr,
}

impl Container {
    async fn new(mesh: MeshPrefix) -> Self {
        let (own, clients, outside) = (Netns::new("own").await, Netns::new("clients").await, Netns::new("outside").await);
        let own6 = mesh.container(CONTAINER);
        // The gateway of `ingress` has a fixed MAC address over IPv6.
        sh(&format!(
            "ip link add name eth0 netns {own} type veth peer name mesh address 02:00:5e:7e:00:01 netns {clients}
             ip link add name eth1 netns {own} type veth peer name bridge netns {outside}
             ip -n {own} address add {CONTAINER}/32 dev eth0
             ip -n {own} address add 172.18.0.2/16 dev eth1
             ip -n {own} -6 address add fd18::2/64 dev eth1 nodad
             for link in '{own} link set eth0' '{own} link set eth1' '{clients} link set mesh' '{outside} link set bridge'; do
                 ip -n $link up
             done
             ip -n {own} route add 10.0.0.1 dev eth0
             ip -n {own} route add 10.0.0.0/24 via 10.0.0.1
             ip -n {clients} address add 10.0.0.1/24 dev mesh
             ip -n {clients} -6 route add {own6} dev mesh
             ip -n {outside} address add 172.18.0.1/16 dev bridge
             ip -n {outside} -6 address add fd18::1/64 dev bridge nodad
             ip -n {own} route add default via 172.18.0.1
             ip -n {own} -6 route add default via fd18::1",
            own = own.0,
            clients = clients.0,
            outside = outside.0,
        ))
        .await;
        for (namespace, addresses) in [(&clients, CLIENTS), (&outside, OUTSIDE)] {
            sh(&format!(
                "ip -n {0} address add {1}/32 dev lo; ip -n {0} -6 address add {2}/128 dev lo nodad",
                namespace.0, addresses[0], addresses[1]
            ))
            .await;
        }
        Self { own, clients, outside, own6 }
    }

    /// The container's address as a client of this family knows it.
    fn known_as(&self, client: IpAddr) -> SocketAddr {
        SocketAddr::new(if client.is_ipv4() { CONTAINER.into() } else { self.own6.into() }, PORT)
    }
}

/// What `from_uplink` or `from_mesh` records of a client's datagram.
fn record_flow(dir: &Path, container: SocketAddr, client: SocketAddr) {
    let pin = dir.join(format!("bpf/maps{}/UDP_REPLIES", skep_ebpf::LAYOUT));
    let map = Map::from_map_data(MapData::from_pin(pin).expect("a pin")).expect("a map");
    let mut replies: HashMap<MapData, Tuple, Reply> = map.try_into().expect("a hash");
    let tuple = Tuple {
        source: convert::address(container.ip()),
        destination: convert::address(client.ip()),
        source_port: convert::port(container.port()),
        destination_port: convert::port(client.port()),
        protocol: UDP,
        ..Tuple::default()
    };
    replies.insert(tuple, Reply { client_port: convert::port(client.port()), ..Reply::default() }, 0).expect("records");
}

fn receive(socket: &UdpSocket, what: &str) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{what}: {error}"));
    (buffer[..length].to_vec(), SocketAddr::new(from.ip().to_canonical(), from.port()))
}

/// Sends to a server outside from the socket, and receives its answer there.
fn ask_outside(container: &Container, socket: &UdpSocket, server: &UdpSocket, to: SocketAddr, what: &str) {
    match socket.peer_addr() {
        Ok(_) => socket.send(b"question"),
        Err(_) => socket.send_to(b"question", to),
    }
    .unwrap_or_else(|error| panic!("{what}: {error}"));
    let (question, from) = receive(server, what);
    assert_eq!(question, b"question", "{what}");
    assert_eq!(from.port(), PORT, "{what}");
    assert!(from.ip() != container.known_as(from.ip()).ip(), "{what}: from {from}, by the default route");
    server.send_to(b"answer", from).expect("sends");
    assert_eq!(receive(socket, what).0, b"answer", "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_answers_clients_and_sends_first_from_the_port_that_it_publishes() {
    let _datapath = DATAPATH.lock().await;
    let dir = dir_of("own-port");
    let (mesh, ebpf) = open(&dir).await;
    let prefix = MeshPrefix("fd77:7:7::/48".parse().expect("a prefix"));
    let container = Container::new(prefix).await;
    configure(&ebpf, &container, prefix).await;

    for (client, server) in CLIENTS.into_iter().zip(OUTSIDE) {
        for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
            if client.is_ipv6() && any.is_ipv4() {
                continue;
            }
            let what = |case: &str| format!("{case}: a socket at {any}, client {client}");
            let own = container.own.bind(SocketAddr::new(any, PORT));
            let caller = container.clients.bind(SocketAddr::new(client, 0));
            let from = caller.local_addr().expect("bound");
            let as_seen = |to: SocketAddr| match (any, to.ip()) {
                (IpAddr::V6(_), IpAddr::V4(v4)) => SocketAddr::new(v4.to_ipv6_mapped().into(), to.port()),
                _ => to,
            };
            record_flow(&dir, container.known_as(client), from);
            caller.send_to(b"hello", container.known_as(client)).expect("sends");
            assert_eq!(receive(&own, &what("a request")), (b"hello".to_vec(), from));
            own.send_to(b"welcome", as_seen(from)).expect("sends");
            assert_eq!(receive(&caller, &what("a reply")), (b"welcome".to_vec(), container.known_as(client)));

            let remote = container.outside.bind(SocketAddr::new(server, 0));
            let to = as_seen(remote.local_addr().expect("bound"));
            ask_outside(&container, &own, &remote, to, &what("an initiative"));

            // A server that connects a socket per client, and one of these that is used for another destination afterwards.
            let per_client = container.own.bind(SocketAddr::new(any, PORT));
            per_client.connect(as_seen(from)).unwrap_or_else(|error| panic!("{}: {error}", what("connect")));
            per_client.send(b"for you").expect("sends");
            assert_eq!(receive(&caller, &what("a connected reply")), (b"for you".to_vec(), container.known_as(client)));
            drop(own);
            rustix::net::connect_unspec(&per_client).expect("disconnects");
            per_client.connect(to).unwrap_or_else(|error| panic!("{}: {error}", what("connect")));
            ask_outside(&container, &per_client, &remote, to, &what("a connected initiative"));
        }
    }
    ebpf.remove().await.expect("removes");
    drop((ebpf, container));
    end(&dir, mesh);
}

/// Attaches the programs at socket calls and prepares the container as the daemon does.
async fn configure(ebpf: &EbpfDatapath, container: &Container, mesh: MeshPrefix) {
    let subnet = "10.0.0.0/24".parse().expect("a subnet");
    ebpf.set_ingress(Some(IngressNetwork { subnet, mtu: 1380, mesh, datagrams: BTreeMap::new() }));
    let sandbox = Sandbox {
        path: container.own.path(),
        subnet,
        further: Vec::new(),
        gateway: Ipv4Addr::new(10, 0, 0, 1),
        address: CONTAINER,
    };
    ebpf.enter(&sandbox).await.expect("prepares the namespace");
    let config = Config {
        ingress: convert::v4(subnet.network()),
        containers: convert::prefix(mesh.container(Ipv4Addr::UNSPECIFIED)),
        ..Config::default()
    };
    let calls = Hook::ALL.into_iter().filter(|hook| hook.side() == HookSide::Cgroup);
    let attach = calls.map(|hook| EbpfStep::Attach(ProgramLink { hook, device: String::new(), index: 0 }));
    let steps: Vec<EbpfStep> = std::iter::once(EbpfStep::Config(config)).chain(attach).collect();
    ebpf.apply(&steps).await.expect("attaches");
}
