//! Socket diagnostics of the kernel (root needed), for sockets in namespaces that the tests create.

use super::overlay::fixture::{Namespace, TestDir, test_dir};
use skep::datapath::sockdiag::{AcceptedConnections, EndedConnections, destroy, first_listener, listening};
use skep::model::Listens;
use skep::model::Protocol::{self, Tcp, Udp};
use socket2::{Domain, Socket, Type};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::Duration;

const V4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 1);
const NONE: Listens = Listens { v4: false, v6: false };
const ONLY4: Listens = Listens { v4: true, v6: false };
const ONLY6: Listens = Listens { v4: false, v6: true };
const BOTH: Listens = Listens { v4: true, v6: true };

/// Creates a namespace with some addresses on `lo`.
async fn with_addresses(name: &str) -> (TestDir, Namespace) {
    let dir = test_dir();
    let namespace = Namespace::create(&dir.0, name);
    namespace.run("ip link set lo up").await;
    for n in 1..=4 {
        namespace.run(&format!("ip addr add 10.9.0.{n}/32 dev lo")).await;
        namespace.run(&format!("ip addr add fd00:9::{n}/128 dev lo nodad")).await;
    }
    (dir, namespace)
}

fn listens(namespace: &Namespace, protocol: Protocol, port: u16) -> Listens {
    let file = File::open(namespace.path()).expect("namespace");
    listening(file.as_fd(), (V4, V6), [(protocol, port)]).expect("a reply of the kernel")[0]
}

fn bound(namespace: &Namespace, kind: Type, address: &str, only_v6: bool) -> Socket {
    let address: SocketAddr = address.parse().expect("address");
    namespace
        .inside(|| {
            let socket = Socket::new(Domain::for_address(address), kind, None)?;
            if address.is_ipv6() {
                socket.set_only_v6(only_v6)?;
            }
            socket.bind(&address.into())?;
            if kind == Type::STREAM {
                socket.listen(8)?;
            }
            Ok(socket)
        })
        .unwrap_or_else(|e| panic!("{address}: {e}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_port_that_is_listened_on_is_found() {
    let (_dir, namespace) = with_addresses("firstport").await;
    let first = || first_listener(File::open(namespace.path()).expect("namespace").as_fd(), V4).expect("a reply of the kernel");
    assert_eq!(first(), None);
    // Docker's resolver, a client, and servers that no client outside reaches.
    let private = [
        bound(&namespace, Type::STREAM, "127.0.0.11:70", false),
        bound(&namespace, Type::STREAM, "10.9.0.2:71", false),
        bound(&namespace, Type::STREAM, "[::]:72", true),
        bound(&namespace, Type::DGRAM, "127.0.0.11:53", false),
    ];
    let client = bound(&namespace, Type::DGRAM, "10.9.0.1:73", false);
    client.connect(&"10.9.0.2:9".parse::<SocketAddr>().expect("address").into()).expect("connected");
    assert_eq!(first(), None);
    let datagrams = bound(&namespace, Type::DGRAM, "0.0.0.0:54", false);
    assert_eq!(first(), Some((Udp, 54)));
    let late = bound(&namespace, Type::STREAM, "[::]:8080", false);
    assert_eq!(first(), Some((Tcp, 8080)));
    let early = bound(&namespace, Type::STREAM, "10.9.0.1:80", false);
    assert_eq!(first(), Some((Tcp, 80)));
    drop((private, client, datagrams, late, early));
    assert_eq!(first(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_is_found_as_a_packet_would_find_it() {
    let (_dir, namespace) = with_addresses("listening").await;
    for (protocol, kind) in [(Tcp, Type::STREAM), (Udp, Type::DGRAM)] {
        for (address, only_v6, expected) in [
            ("0.0.0.0:80", false, ONLY4),
            ("[::]:80", true, ONLY6),
            ("[::]:80", false, BOTH),
            ("10.9.0.1:80", false, ONLY4),
            ("[fd00:9::1]:80", false, ONLY6),
            ("[::ffff:10.9.0.1]:80", false, ONLY4),
            // Not reachable for clients.
            ("127.0.0.1:80", false, NONE),
            ("[::1]:80", false, NONE),
            ("10.9.0.2:80", false, NONE),
            ("0.0.0.0:81", false, NONE),
        ] {
            let socket = bound(&namespace, kind, address, only_v6);
            assert_eq!(listens(&namespace, protocol, 80), expected, "{protocol:?} on {address}, only_v6 {only_v6}");
            let other = if protocol == Tcp { Udp } else { Tcp };
            assert_eq!(listens(&namespace, other, 80), NONE, "the other protocol has no listener");
            drop(socket);
            assert_eq!(listens(&namespace, protocol, 80), NONE, "{protocol:?} on {address} is closed");
        }
        // Two sockets on one port, one per family.
        let (_four, _six) = (bound(&namespace, kind, "0.0.0.0:82", false), bound(&namespace, kind, "[::]:82", true));
        assert_eq!(listens(&namespace, protocol, 82), BOTH);
    }
    // A bound TCP socket does not listen, and a connected UDP socket does not receive from other clients.
    let address: SocketAddr = "0.0.0.0:90".parse().expect("address");
    let bound_only = namespace.inside(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&address.into())?;
        Ok(socket)
    });
    assert_eq!(listens(&namespace, Tcp, 90), NONE);
    drop(bound_only);
    let connected = namespace.udp(V4, 91);
    assert_eq!(listens(&namespace, Udp, 91), ONLY4);
    connected.connect("10.9.0.2:5").expect("connects");
    assert_eq!(listens(&namespace, Udp, 91), NONE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_of_another_namespace_is_not_found_and_a_connection_is_no_listener() {
    let (_dir, namespace) = with_addresses("one").await;
    let (_other_dir, other) = with_addresses("two").await;
    let _other_listener = bound(&other, Type::STREAM, "0.0.0.0:80", false);
    assert_eq!(listens(&namespace, Tcp, 80), NONE);
    // The connections of a closed listener do not listen.
    let listener = bound(&namespace, Type::STREAM, "0.0.0.0:80", false);
    let client = namespace.inside(|| TcpStream::connect((V4, 80))).expect("connects");
    assert_eq!(listens(&namespace, Tcp, 80), ONLY4);
    let (accepted, _) = listener.accept().expect("accepts");
    drop(listener);
    assert_eq!(listens(&namespace, Tcp, 80), NONE);
    drop((client, accepted));
}

#[tokio::test(flavor = "multi_thread")]
async fn accepted_connections_are_counted_and_their_end_is_seen_however_short_they_were() {
    let (_dir, namespace) = with_addresses("ended").await;
    let file = File::open(namespace.path()).expect("namespace");
    let accepted = || AcceptedConnections::read(file.as_fd()).expect("a reply of the kernel");
    let listeners = ["10.9.0.1:80", "127.0.0.1:80", "[fd00:9::1]:80"].map(|at| bound(&namespace, Type::STREAM, at, true));
    let mut ended = EndedConnections::watch(file.as_fd()).expect("watches");
    let ports = accepted().ports;
    assert_eq!(ports, [80].into());
    let visit = |at: &str| {
        let address: SocketAddr = at.parse().expect("address");
        let client = namespace.inside(|| TcpStream::connect(address)).expect("connects");
        let listener = listeners.iter().find(|l| l.local_addr().is_ok_and(|a| a.as_socket() == Some(address))).expect("one");
        (client, listener.accept().expect("accepts"))
    };
    let mut any = || ended.any(&ports).expect("the kernel says");
    for at in ["10.9.0.1:80", "[fd00:9::1]:80"] {
        let open = visit(at);
        assert_eq!(accepted().established, 1, "{at}");
        assert!(!any(), "{at} is open");
        drop(open);
        let until = std::time::Instant::now() + Duration::from_secs(5);
        while !any() {
            assert!(std::time::Instant::now() < until, "{at}: nothing was said of its end");
            tokio::task::yield_now().await;
        }
        assert_eq!(accepted().established, 0, "{at}");
    }
    // A health check.
    let check = visit("127.0.0.1:80");
    assert_eq!(accepted().established, 0);
    drop(check);
    let elsewhere = bound(&namespace, Type::STREAM, "10.9.0.2:81", false);
    drop(elsewhere);
    for _ in 0..20 {
        assert!(!any());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Both sockets of a connection.
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

fn connect(namespace: &Namespace, from: IpAddr, to: IpAddr) -> Connection {
    namespace
        .inside(|| {
            let listener = TcpListener::bind((to, 0))?;
            let to = listener.local_addr()?;
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.bind(&SocketAddr::new(from, 0).into())?;
            socket.connect(&to.into())?;
            let client: TcpStream = socket.into();
            let (server, _) = listener.accept()?;
            for socket in [&client, &server] {
                socket.set_read_timeout(Some(Duration::from_secs(20)))?;
            }
            Ok(Connection { client, server })
        })
        .unwrap_or_else(|e| panic!("{from} to {to}: {e}"))
}

impl Connection {
    fn works(&mut self) -> bool {
        let mut byte = [0];
        self.client.write_all(b"x").and_then(|()| self.server.read_exact(&mut byte)).is_ok()
    }
}

fn address(n: u8, v6: bool) -> IpAddr {
    if v6 { format!("fd00:9::{n}").parse().expect("address") } else { [10, 9, 0, n].into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_the_given_addresses_are_destroyed_and_no_others() {
    let (_dir, namespace) = with_addresses("destroy").await;
    let file = File::open(namespace.path()).expect("namespace");
    let remotes = BTreeSet::from([address(2, false), address(2, true)]);
    for v6 in [false, true] {
        let mut destroyed = connect(&namespace, address(1, v6), address(2, v6));
        let mut other = connect(&namespace, address(1, v6), address(3, v6));
        let mut waiting = destroyed.client.try_clone().expect("clone");
        let reader = std::thread::spawn(move || waiting.read(&mut [0; 8]));
        assert!(destroyed.works() && other.works());
        assert_eq!(destroy(file.as_fd(), &remotes).expect("destroys"), 1);
        let error = reader.join().expect("no panic").expect_err("the waiting read ends");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted, "{error}");
        assert!(other.works(), "a connection to another address stays");
        // The kernel sends a reset, which closes the other socket of the connection as well.
        assert!(destroyed.server.read(&mut [0; 8]).is_err());
    }
    // An IPv6 socket with IPv4 addresses.
    let mapped: IpAddr = "::ffff:10.9.0.2".parse().expect("address");
    let mut destroyed = connect(&namespace, "::ffff:10.9.0.1".parse().expect("address"), mapped);
    assert!(destroyed.works());
    assert_eq!(destroy(file.as_fd(), &remotes).expect("destroys"), 1);
    assert_eq!(destroyed.client.read(&mut [0; 8]).expect_err("destroyed").kind(), io::ErrorKind::ConnectionAborted);
    // Many addresses, one of them that of a connection.
    let many: BTreeSet<IpAddr> = (0..=255).flat_map(|n| [[10, 7, 0, n].into(), [10, 9, n, 2].into()]).collect();
    let mut destroyed = connect(&namespace, address(1, false), address(2, false));
    let mut other = connect(&namespace, address(1, false), address(3, false));
    assert_eq!(destroy(file.as_fd(), &many).expect("destroys"), 1);
    assert!(other.works() && !destroyed.works());
}

#[tokio::test(flavor = "multi_thread")]
async fn connected_udp_sockets_are_destroyed_and_unconnected_ones_are_not() {
    let (_dir, namespace) = with_addresses("destroy-udp").await;
    let file = File::open(namespace.path()).expect("namespace");
    for v6 in [false, true] {
        let socket = |to: Option<u8>| {
            namespace
                .inside(|| {
                    let socket = UdpSocket::bind((address(1, v6), 0))?;
                    if let Some(to) = to {
                        socket.connect((address(to, v6), 53))?;
                    }
                    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
                    Ok(socket)
                })
                .expect("socket")
        };
        let (destroyed, other, open) = (socket(Some(2)), socket(Some(3)), socket(None));
        assert_eq!(destroy(file.as_fd(), &BTreeSet::from([address(2, v6)])).expect("destroys"), 1);
        let error = destroyed.recv(&mut [0; 8]).expect_err("nothing was sent");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted, "{error}");
        for untouched in [other, open] {
            assert_eq!(untouched.recv(&mut [0; 8]).expect_err("nothing was sent").kind(), io::ErrorKind::WouldBlock);
        }
    }
    assert_eq!(destroy(file.as_fd(), &BTreeSet::new()).expect("nothing to do"), 0);
}
