//! Socket diagnostics against the kernel (root needed): sockets in namespaces of the test's own.

use super::overlay::kit::{Folder, Place, folder};
use skep::datapath::sockdiag::{destroy, listening};
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

/// A namespace with some addresses on `lo`.
async fn place(name: &str) -> (Folder, Place) {
    let dir = folder();
    let place = Place::make(&dir.0, name);
    place.run("ip link set lo up").await;
    for n in 1..=4 {
        place.run(&format!("ip addr add 10.9.0.{n}/32 dev lo")).await;
        place.run(&format!("ip addr add fd00:9::{n}/128 dev lo nodad")).await;
    }
    (dir, place)
}

fn seen(place: &Place, protocol: Protocol, port: u16) -> Listens {
    let namespace = File::open(place.path()).expect("namespace");
    listening(namespace.as_fd(), (V4, V6), [(protocol, port)]).expect("the kernel answers")[0]
}

fn bound(place: &Place, kind: Type, address: &str, only_v6: bool) -> Socket {
    let address: SocketAddr = address.parse().expect("address");
    place
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
async fn who_listens_is_seen_as_packets_would_find_it() {
    let (_dir, place) = place("listening").await;
    for (protocol, kind) in [(Tcp, Type::STREAM), (Udp, Type::DGRAM)] {
        for (address, only_v6, expected) in [
            ("0.0.0.0:80", false, ONLY4),
            ("[::]:80", true, ONLY6),
            ("[::]:80", false, BOTH),
            ("10.9.0.1:80", false, ONLY4),
            ("[fd00:9::1]:80", false, ONLY6),
            ("[::ffff:10.9.0.1]:80", false, ONLY4),
            // Not where clients come in.
            ("127.0.0.1:80", false, NONE),
            ("[::1]:80", false, NONE),
            ("10.9.0.2:80", false, NONE),
            ("0.0.0.0:81", false, NONE),
        ] {
            let socket = bound(&place, kind, address, only_v6);
            assert_eq!(seen(&place, protocol, 80), expected, "{protocol:?} on {address}, only_v6 {only_v6}");
            let other = if protocol == Tcp { Udp } else { Tcp };
            assert_eq!(seen(&place, other, 80), NONE, "the other protocol is not meant");
            drop(socket);
            assert_eq!(seen(&place, protocol, 80), NONE, "{protocol:?} on {address} is closed");
        }
        // Many processes on one port, one per family.
        let (_four, _six) = (bound(&place, kind, "0.0.0.0:82", false), bound(&place, kind, "[::]:82", true));
        assert_eq!(seen(&place, protocol, 82), BOTH);
    }
    // Bound is not listening, and a connected UDP socket takes nothing from others.
    let address: SocketAddr = "0.0.0.0:90".parse().expect("address");
    let unheard = place.inside(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&address.into())?;
        Ok(socket)
    });
    assert_eq!(seen(&place, Tcp, 90), NONE);
    drop(unheard);
    let connected = place.udp(V4, 91);
    assert_eq!(seen(&place, Udp, 91), ONLY4);
    connected.connect("10.9.0.2:5").expect("connects");
    assert_eq!(seen(&place, Udp, 91), NONE);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_namespaces_listener_is_not_seen_and_connections_are_none() {
    let (_dir, place) = place("one").await;
    let (_other_dir, other) = self::place("two").await;
    let _theirs = bound(&other, Type::STREAM, "0.0.0.0:80", false);
    assert_eq!(seen(&place, Tcp, 80), NONE);
    // Connections that a closed listener leaves behind do not listen.
    let listener = bound(&place, Type::STREAM, "0.0.0.0:80", false);
    let client = place.inside(|| TcpStream::connect((V4, 80))).expect("connects");
    assert_eq!(seen(&place, Tcp, 80), ONLY4);
    let (accepted, _) = listener.accept().expect("accepts");
    drop(listener);
    assert_eq!(seen(&place, Tcp, 80), NONE);
    drop((client, accepted));
}

/// A connection from one address to another, either end.
struct Pair {
    client: TcpStream,
    server: TcpStream,
}

fn pair(place: &Place, from: IpAddr, to: IpAddr) -> Pair {
    place
        .inside(|| {
            let listener = TcpListener::bind((to, 0))?;
            let to = listener.local_addr()?;
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.bind(&SocketAddr::new(from, 0).into())?;
            socket.connect(&to.into())?;
            let client: TcpStream = socket.into();
            let (server, _) = listener.accept()?;
            for end in [&client, &server] {
                end.set_read_timeout(Some(Duration::from_secs(20)))?;
            }
            Ok(Pair { client, server })
        })
        .unwrap_or_else(|e| panic!("{from} to {to}: {e}"))
}

impl Pair {
    fn works(&mut self) -> bool {
        let mut byte = [0];
        self.client.write_all(b"x").and_then(|()| self.server.read_exact(&mut byte)).is_ok()
    }
}

fn address(n: u8, v6: bool) -> IpAddr {
    if v6 { format!("fd00:9::{n}").parse().expect("address") } else { [10, 9, 0, n].into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_dead_addresses_end_with_an_error_and_no_others() {
    let (_dir, place) = place("destroy").await;
    let namespace = File::open(place.path()).expect("namespace");
    let dead = BTreeSet::from([address(2, false), address(2, true)]);
    for v6 in [false, true] {
        let mut doomed = pair(&place, address(1, v6), address(2, v6));
        let mut other = pair(&place, address(1, v6), address(3, v6));
        let mut waiting = doomed.client.try_clone().expect("clone");
        let reader = std::thread::spawn(move || waiting.read(&mut [0; 8]));
        assert!(doomed.works() && other.works());
        assert_eq!(destroy(namespace.as_fd(), &dead).expect("destroys"), 1);
        let error = reader.join().expect("no panic").expect_err("a read that waits ends");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted, "{error}");
        assert!(other.works(), "another address is none of its business");
        // The dead one's own end would be destroyed elsewhere; here it was told by the reset.
        assert!(doomed.server.read(&mut [0; 8]).is_err());
    }
    // An IPv6 socket that speaks IPv4.
    let mapped: IpAddr = "::ffff:10.9.0.2".parse().expect("address");
    let mut doomed = pair(&place, "::ffff:10.9.0.1".parse().expect("address"), mapped);
    assert!(doomed.works());
    assert_eq!(destroy(namespace.as_fd(), &dead).expect("destroys"), 1);
    assert_eq!(doomed.client.read(&mut [0; 8]).expect_err("ended").kind(), io::ErrorKind::ConnectionAborted);
    // Many addresses, the meant one among them.
    let many: BTreeSet<IpAddr> = (0..=255).flat_map(|n| [[10, 7, 0, n].into(), [10, 9, n, 2].into()]).collect();
    let mut doomed = pair(&place, address(1, false), address(2, false));
    let mut other = pair(&place, address(1, false), address(3, false));
    assert_eq!(destroy(namespace.as_fd(), &many).expect("destroys"), 1);
    assert!(other.works() && !doomed.works());
}

#[tokio::test(flavor = "multi_thread")]
async fn connected_udp_sockets_get_an_error_and_open_ones_nothing() {
    let (_dir, place) = place("destroy-udp").await;
    let namespace = File::open(place.path()).expect("namespace");
    for v6 in [false, true] {
        let socket = |to: Option<u8>| {
            place
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
        let (doomed, other, open) = (socket(Some(2)), socket(Some(3)), socket(None));
        assert_eq!(destroy(namespace.as_fd(), &BTreeSet::from([address(2, v6)])).expect("destroys"), 1);
        let error = doomed.recv(&mut [0; 8]).expect_err("nothing was sent");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted, "{error}");
        for untouched in [other, open] {
            assert_eq!(untouched.recv(&mut [0; 8]).expect_err("nothing was sent").kind(), io::ErrorKind::WouldBlock);
        }
    }
    assert_eq!(destroy(namespace.as_fd(), &BTreeSet::new()).expect("nothing to do"), 0);
}
