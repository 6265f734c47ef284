//! Socket calls to the IPv6 address of a virtual address, on a dual-stack network: a host has the same number in both subnets.
//! The addresses of all tasks are those of the loopback device.

use super::build::{Frame, UPLINK_MAC, checksum};
use super::kernel::{Decision, Kernel, in_namespaces, run, v4};
use skep_ebpf::{Backend, Counter, NetnsMembership, Vip};
use std::io::{self, ErrorKind};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

const PORT: u16 = 7000;
const TASKS: [&str; 2] = ["fd00:1::1:b", "fd00:1::1:c"];
const OWN: &str = "fd00:1::1:5";
const VIP: &str = "fd00:1::1:2";
/// The virtual address of another network, which the container is not on.
const FOREIGN: &str = "fd00:2::2";

fn at(address: &str) -> SocketAddr {
    SocketAddr::V6(SocketAddrV6::new(address.parse().unwrap(), PORT, 0, 0))
}

/// Runs a test in the namespace of a container on 172.16.0.0/12 and fd00:1::/64, with so many tasks behind the virtual address.
fn in_container(tasks: usize, test: impl FnOnce(&mut Kernel) + Send) {
    in_namespaces(|kernel| {
        for own in TASKS.iter().chain([&OWN]) {
            run(&format!("ip -6 address add {own}/128 dev lo nodad"));
        }
        let cookie = kernel.attach_calls();
        let (network, mask) = (v4("172.16.0.0"), v4("255.240.0.0"));
        kernel.member(cookie);
        kernel.set("MEMBERS", NetnsMembership { cookie, network, zero: 0 }, v4("172.17.0.5"));
        let all = ["172.17.0.11", "172.17.0.12"];
        for task in all {
            kernel.set("BACKENDS", v4(task), Backend { serving: 1, owner: 7, ..Backend::default() });
        }
        let base = kernel.add_slots(&all[..tasks]);
        let size = u32::try_from(tasks).unwrap();
        kernel.set("VIPS", v4("172.17.0.2"), Vip { network, mask, base, size, owner: 7 });
        let other = v4("192.168.9.0");
        kernel.set("VIPS", v4("192.168.9.2"), Vip { network: other, mask: v4("255.255.255.0"), base, size, owner: 8 });
        kernel.add_subnet6("fd00:1::", 64, "172.16.0.0", "255.240.0.0");
        kernel.add_subnet6("fd00:2::", 64, "192.168.9.0", "255.255.255.0");
        test(kernel);
    });
}

fn bound(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(to).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket
}

#[test]
fn calls_to_the_ipv6_form_of_a_virtual_address_reach_every_task() {
    in_container(2, |kernel| {
        let listeners: Vec<TcpListener> = TASKS.iter().map(|task| TcpListener::bind(at(task)).unwrap()).collect();
        let servers: Vec<UdpSocket> = TASKS.iter().map(|task| bound(at(task))).collect();
        let (mut accepted, mut received) = ([0, 0], [0, 0]);
        for (listener, server) in listeners.iter().zip(&servers) {
            listener.set_nonblocking(true).unwrap();
            server.set_nonblocking(true).unwrap();
        }
        for _ in 0..40 {
            let stream = TcpStream::connect(at(VIP)).unwrap();
            assert_eq!(stream.peer_addr().unwrap(), at(VIP), "getpeername6");
            for (listener, count) in listeners.iter().zip(&mut accepted) {
                *count += usize::from(listener.accept().is_ok());
            }
            for connected in [true, false] {
                let socket = bound(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0));
                if connected {
                    socket.connect(at(VIP)).unwrap();
                    socket.send(b"hello").unwrap();
                    assert_eq!(socket.peer_addr().unwrap(), at(VIP));
                } else {
                    socket.send_to(b"hello", at(VIP)).unwrap();
                }
                let mut buffer = [0; 16];
                for (server, count) in servers.iter().zip(&mut received) {
                    let Ok((_, from)) = server.recv_from(&mut buffer) else { continue };
                    server.send_to(b"welcome", from).unwrap();
                    *count += 1;
                }
                assert_eq!(socket.recv_from(&mut buffer).unwrap(), (7, at(VIP)), "recvmsg6");
            }
        }
        assert!(accepted.iter().sum::<usize>() == 40 && accepted.iter().all(|count| *count > 0), "{accepted:?}");
        assert!(received.iter().sum::<usize>() == 80 && received.iter().all(|count| *count > 0), "{received:?}");
        assert!(kernel.counted(Counter::VipConnect) >= 120);
    });
}

/// A bound source, the result of a connect to the virtual address.
#[test]
fn a_call_from_an_address_that_is_not_the_containers_on_the_network_is_refused() {
    in_container(1, |_| {
        let _listener = TcpListener::bind(at(TASKS[0])).unwrap();
        let _server = bound(at(TASKS[0]));
        for (source, refused) in
            [(OWN, None), ("::1", Some(ErrorKind::AddrNotAvailable)), (TASKS[1], Some(ErrorKind::AddrNotAvailable))]
        {
            let source = SocketAddr::new(source.parse().unwrap(), 0);
            let connect = || -> io::Result<()> {
                let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None)?;
                socket.bind(&source.into())?;
                socket.connect(&at(VIP).into())
            };
            assert_eq!(connect().err().map(|error| error.kind()), refused, "TCP from {source}");
            let sent = bound(source).send_to(b"hello", at(VIP));
            assert_eq!(sent.err().map(|error| error.kind()), refused, "UDP from {source}");
        }
    });
}

#[test]
fn a_virtual_address_without_a_task_refuses_over_ipv6_too() {
    in_container(0, |_| {
        assert_eq!(TcpStream::connect(at(VIP)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        let socket = bound(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0));
        assert_eq!(socket.send_to(b"hello", at(VIP)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
}

/// What is no virtual address of a network of the container goes where it was sent to.
#[test]
fn other_ipv6_addresses_are_left() {
    in_container(2, |kernel| {
        let before = kernel.counted(Counter::VipConnect);
        // A task, another network's virtual address, a host number that the IPv4 subnet does not have, an address of no network.
        for to in [TASKS[0], FOREIGN, "fd00:1::1:0:2", "2001:db8::2"] {
            run(&format!("ip -6 address replace {to}/128 dev lo nodad"));
            let listener = TcpListener::bind(at(to)).unwrap();
            let stream = TcpStream::connect(at(to)).unwrap();
            let (_, from) = listener.accept().unwrap();
            assert_eq!((stream.peer_addr().unwrap(), stream.local_addr().unwrap()), (at(to), from));
        }
        assert_eq!(kernel.counted(Counter::VipConnect), before);
    });
}

#[test]
fn an_echo_request_is_answered_at_the_virtual_address() {
    in_container(1, |kernel| {
        let mut answered = |from: &str, to: &str| {
            let frame = echo_request(from, to);
            let run = kernel.run("from_container", &frame, kernel.uplink);
            (run.decision == Decision::Redirect).then_some(run.bytes)
        };
        let bytes = answered(OWN, VIP).expect("an answer");
        let mut expected = echo_request(VIP, OWN);
        // The checksum is of the other type.
        expected.packet[40] = 129;
        let sum = u16::from_be_bytes([expected.packet[42], expected.packet[43]]) - 0x100;
        expected.packet[42..44].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(bytes[14..], expected.packet[..], "the addresses exchanged, and an echo reply");
        for (from, to) in [(OWN, TASKS[0]), (FOREIGN, VIP), ("2001:db8::9", VIP), (OWN, FOREIGN)] {
            assert_eq!(answered(from, to), None, "{from} to {to}");
        }
    });
}

/// An `ICMPv6` echo request with a right checksum, whose first byte is above 0.
fn echo_request(from: &str, to: &str) -> Frame {
    let [from, to] = [from, to].map(|address| address.parse::<Ipv6Addr>().unwrap().octets());
    let mut message = vec![128, 0, 0, 0, 0, 1, 0, 1];
    message.extend(*b"some payload");
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    let pseudo = [&from[..], &to, &[0, 0], &length, &[0, 0, 0, 58], &message].concat();
    message[2..4].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    let packet = [&[0x60, 0, 0, 0][..], &length, &[58, 64], &from, &to, &message].concat();
    Frame { destination_mac: UPLINK_MAC, packet, ipv6: true }
}
