//! Socket calls of a process in a container, with the programs attached to a cgroup of the test's own. The virtual address and
//! the containers' addresses are those of the loopback device.

use super::kernel::{Kernel, UDP, address, in_host_namespace, in_namespaces, netns_cookie, run, v4};
use skep_ebpf::packet::mapped;
use skep_ebpf::{Backend, Config, Counter, NetnsMembership, Reply, Tuple, Vip};
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

const PORT: u16 = 7000;
const CLIENT_PORT: u16 = 40_000;
const VIP: &str = "10.0.1.2";
/// The calling container's address on the network.
const OWN: &str = "10.0.1.5";
const OWNER: u32 = 42;
const TASKS: [&str; 6] = ["10.0.1.11", "10.0.1.12", "10.0.1.13", "10.0.1.14", "10.0.1.15", "10.0.1.16"];

/// Runs a test in the namespace of a container on the network, with these tasks serving the virtual address.
fn in_container(tasks: &[&str], test: impl FnOnce(&mut Kernel) + Send) {
    in_namespaces(|kernel| {
        for own in TASKS.iter().chain([&OWN]) {
            run(&format!("ip address add {own}/32 dev lo"));
        }
        let cookie = kernel.attach_calls();
        let network = v4("10.0.1.0");
        kernel.member(cookie);
        kernel.set("MEMBERS", NetnsMembership { cookie, network, zero: 0 }, v4(OWN));
        serve(kernel, tasks);
        test(kernel);
    });
}

/// Makes these tasks the backends of the virtual address; others run no more.
fn serve(kernel: &mut Kernel, tasks: &[&str]) {
    for task in TASKS {
        let backend = Backend { serving: tasks.contains(&task).into(), owner: OWNER, ..Backend::default() };
        kernel.set("BACKENDS", v4(task), backend);
    }
    let base = kernel.add_slots(tasks);
    let size = u32::try_from(tasks.len()).unwrap();
    let vip = Vip { network: v4("10.0.1.0"), mask: v4("255.255.255.0"), base, size, owner: OWNER };
    kernel.set("VIPS", v4(VIP), vip);
}

fn at(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), PORT)
}

/// The virtual address in both forms.
fn targets() -> [SocketAddr; 2] {
    [at(VIP), SocketAddr::new(VIP.parse::<Ipv4Addr>().unwrap().to_ipv6_mapped().into(), PORT)]
}

fn any(to: SocketAddr) -> SocketAddr {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    SocketAddr::new(any, 0)
}

/// The servers of all tasks.
fn servers() -> BTreeMap<&'static str, UdpSocket> {
    TASKS.into_iter().map(|task| (task, bound(at(task)))).collect()
}

fn bound(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(to).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket
}

/// The task that got the only datagram that is on its way.
fn receiver(servers: &BTreeMap<&'static str, UdpSocket>) -> &'static str {
    let mut buffer = [0; 16];
    for (task, socket) in servers {
        socket.set_nonblocking(true).unwrap();
        if socket.recv(&mut buffer).is_ok() {
            return task;
        }
    }
    panic!("no server received it");
}

/// Review finding 18: sessions of tasks that go on are not cut by a change of the number of tasks.
#[test]
fn a_datagram_socket_keeps_its_task_while_that_serves() {
    in_container(&TASKS[..2], |kernel| {
        let servers = servers();
        let sockets: Vec<UdpSocket> = (0..200).map(|_| bound(any(at(VIP)))).collect();
        let send = |socket: &UdpSocket| {
            socket.send_to(b"hello", at(VIP)).unwrap();
            receiver(&servers)
        };
        let mut now: Vec<&str> = sockets.iter().map(send).collect();
        for (tasks, ended) in [(&TASKS[..3], &[][..]), (&TASKS[..5], &[]), (&TASKS[..], &[]), (&TASKS[2..], &TASKS[..2])] {
            serve(kernel, tasks);
            let next: Vec<&str> = sockets.iter().map(send).collect();
            for (before, after) in now.iter().zip(&next) {
                assert!(if ended.contains(before) { tasks.contains(after) } else { before == after }, "{before} to {after}");
            }
            now = next;
        }
        // A new socket has the same choice as any other one, and the address of a task may become another service's.
        let new: std::collections::BTreeSet<&str> = (0..100).map(|_| send(&bound(any(at(VIP))))).collect();
        assert_eq!(new.len(), 4, "{new:?}");
        let taken = now[0];
        serve(kernel, &TASKS[2..].iter().copied().filter(|task| *task != taken).collect::<Vec<_>>());
        kernel.set("BACKENDS", v4(taken), Backend { serving: 1, owner: OWNER + 1, ..Backend::default() });
        assert_ne!(send(&sockets[0]), taken, "it is another service's now");
    });
}

/// A reply to a datagram shows the virtual address, whichever task it comes from.
#[test]
fn the_sender_of_a_reply_is_the_virtual_address() {
    in_container(&TASKS[..2], |_| {
        let servers = servers();
        for to in targets() {
            let socket = bound(any(to));
            socket.send_to(b"hello", to).unwrap();
            let from = receive_from(&servers);
            servers[from.0].send_to(b"welcome", from.1).unwrap();
            let mut buffer = [0; 16];
            assert_eq!(socket.recv_from(&mut buffer).unwrap(), (7, to));
        }
    });
}

fn receive_from(servers: &BTreeMap<&'static str, UdpSocket>) -> (&'static str, SocketAddr) {
    let mut buffer = [0; 16];
    for (task, socket) in servers {
        socket.set_nonblocking(true).unwrap();
        if let Ok((_, from)) = socket.recv_from(&mut buffer) {
            return (task, from);
        }
    }
    panic!("no server received it");
}

/// The sockets of an MPTCP connection are others than that of the process.
#[test]
fn the_peer_of_a_connection_is_the_virtual_address_also_over_mptcp() {
    in_container(&TASKS[..1], |_| {
        let listener = TcpListener::bind(at(TASKS[0])).unwrap();
        for protocol in [Protocol::TCP, Protocol::MPTCP] {
            for to in targets() {
                let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(protocol)).unwrap();
                socket.connect(&to.into()).unwrap();
                assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(to), "{protocol:?}");
                let (_, client) = listener.accept().unwrap();
                assert_eq!(Some(client.port()), socket.local_addr().unwrap().as_socket().map(|own| own.port()));
            }
        }
        // A connection to the task itself has no other name.
        let direct = std::net::TcpStream::connect(at(TASKS[0])).unwrap();
        assert_eq!(direct.peer_addr().unwrap(), at(TASKS[0]));
    });
}

/// A foreign source would leave on the task's wire, and its replies would be lost.
#[test]
fn a_socket_that_is_bound_to_another_address_is_refused() {
    in_container(&TASKS[..1], |kernel| {
        let _listener = TcpListener::bind(at(TASKS[0])).unwrap();
        let server = bound(at(TASKS[0]));
        let foreign = |kind| {
            let socket = Socket::new(Domain::IPV4, kind, None).unwrap();
            socket.bind(&SocketAddr::new(TASKS[3].parse().unwrap(), 0).into()).unwrap();
            socket
        };
        for refused in [
            foreign(Type::STREAM).connect(&at(VIP).into()),
            foreign(Type::DGRAM).connect(&at(VIP).into()),
            foreign(Type::DGRAM).send_to(b"hello", &at(VIP).into()).map(drop),
        ] {
            assert_eq!(refused.map_err(|error| error.kind()), Err(io::ErrorKind::AddrNotAvailable));
        }
        assert_eq!(kernel.counted(Counter::VipForeignSource), 3);
        let own = UdpSocket::bind((OWN, 0)).unwrap();
        own.send_to(b"hello", at(VIP)).unwrap();
        own.connect(at(VIP)).unwrap();
        own.send(b"hello").unwrap();
        let from = own.local_addr().unwrap();
        for _ in 0..2 {
            assert_eq!(server.recv_from(&mut [0; 16]).unwrap().1, from);
        }
    });
}

/// Both kinds of ping are answered by the virtual address itself.
#[test]
fn a_connected_ping_socket_keeps_the_virtual_address() {
    in_container(&TASKS[..1], |_| {
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
        run(&format!("ip route add {VIP} dev uplink"));
        let ping = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4)).unwrap();
        ping.connect(&at(VIP).into()).unwrap();
        let peer = ping.peer_addr().unwrap().as_socket().unwrap();
        assert_eq!(peer.ip(), at(VIP).ip());
    });
}

/// Calls whose destination `connect` has translated, and those without a destination: nothing is selected again.
#[test]
fn datagrams_of_connected_sockets_cost_no_selection() {
    in_container(&TASKS[..2], |kernel| {
        let servers = servers();
        for to in targets() {
            let socket = bound(any(to));
            socket.connect(to).unwrap();
            let before = kernel.counted(Counter::VipConnect);
            socket.send(b"hello").unwrap();
            let task = receiver(&servers);
            for _ in 0..20 {
                socket.send(b"hello").unwrap();
                assert_eq!(receiver(&servers), task);
                if to.is_ipv4() {
                    send_with_tos(&socket);
                    assert_eq!(receiver(&servers), task, "with control data");
                }
            }
            assert_eq!(socket.peer_addr().unwrap(), to);
            assert_eq!(kernel.counted(Counter::VipConnect), before);
        }
    });
}

/// `send` with the type of service as control data.
#[expect(unsafe_code, reason = "no crate here sends this control data")]
fn send_with_tos(socket: &UdpSocket) {
    use std::os::fd::AsRawFd as _;
    let mut data = *b"hello";
    let mut part = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    // A header of 16 bytes (length 20, level 0, IP_TOS), then the value.
    let mut control = [20_u64, 1 << 32, 0x10];
    // SAFETY: all zeros is a message without parts.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = 24;
    // SAFETY: the message and what it points to live until the call returns.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, 0) };
    assert_eq!(sent, 5, "{}", io::Error::last_os_error());
}

/// Crossings: operations of `io_uring` are translated as the calls are, and leave the process's address as it is.
#[test]
#[expect(unsafe_code, reason = "a message has pointers")]
fn operations_of_io_uring_reach_a_task() {
    use super::io_uring::{ASYNC, CONNECT, Operation, Ring, SENDMSG};
    use std::os::fd::AsFd as _;
    in_container(&TASKS[..1], |_| {
        let Some(mut ring) = Ring::new() else {
            eprintln!("this machine has no io_uring");
            return;
        };
        let (listener, server) = (TcpListener::bind(at(TASKS[0])).unwrap(), bound(at(TASKS[0])));
        for (to, flags) in targets().into_iter().flat_map(|to| [(to, 0), (to, ASYNC)]) {
            let address = socket2::SockAddr::from(to);
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
            let (pointer, length) = (address.as_ptr() as u64, address.len());
            let connect = Operation { code: CONNECT, flags, pointer, offset: length.into(), length: 0 };
            assert_eq!(ring.run(socket.as_fd(), &connect).map_err(|error| error.kind()), Ok(0), "{to} {flags}");
            assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(to));
            listener.accept().unwrap();

            let datagrams = Socket::new(Domain::for_address(to), Type::DGRAM, None).unwrap();
            let mut data = *b"hello";
            let mut part = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
            // SAFETY: all zeros is a message without parts.
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_name = address.as_ptr().cast_mut().cast();
            message.msg_namelen = length;
            (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
            let send = Operation { code: SENDMSG, flags, pointer: (&raw const message) as u64, offset: 0, length: 1 };
            assert_eq!(ring.run(datagrams.as_fd(), &send).map_err(|error| error.kind()), Ok(5), "{to} {flags}");
            let (_, from) = server.recv_from(&mut [0; 16]).unwrap();
            server.send_to(b"welcome", from).unwrap();
            let (count, sender) = datagrams.recv_from(&mut [std::mem::MaybeUninit::uninit(); 16]).unwrap();
            assert_eq!((count, sender.as_socket()), (7, Some(to)));
            assert_eq!(address.as_socket(), Some(to), "the process's own");
        }
    });
}

/// UDP-Lite has no hook at `connect`; unconnected it is translated as UDP is.
#[test]
fn udp_lite_reaches_a_task_without_connecting() {
    in_container(&TASKS[..1], |_| {
        let make = || Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::from(136)));
        let (Ok(server), Ok(client)) = (make(), make()) else { return };
        server.bind(&at(TASKS[0]).into()).unwrap();
        let (server, client) = (UdpSocket::from(server), UdpSocket::from(client));
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        }
        client.send_to(b"hello", at(VIP)).unwrap();
        let (_, from) = server.recv_from(&mut [0; 16]).unwrap();
        server.send_to(b"welcome", from).unwrap();
        assert_eq!(client.recv_from(&mut [0; 16]).unwrap(), (7, at(VIP)));
    });
}

/// Sockets of the host, among them that of the tunnel, leave the programs before anything is looked up.
#[test]
fn sockets_of_the_host_are_left_alone() {
    in_host_namespace(|kernel| {
        run("ip address add 10.0.1.5/32 dev lo");
        run("ip address add 10.0.1.2/32 dev lo");
        let cookie = kernel.attach_calls();
        // As if the host was a container on the network: its calls would be translated.
        kernel.member(cookie);
        kernel.set("MEMBERS", NetnsMembership { cookie, network: v4("10.0.1.0"), zero: 0 }, v4(OWN));
        serve(kernel, &TASKS[..1]);
        let server = bound(at(VIP));
        for to in targets() {
            let (plain, connected) = (bound(any(to)), bound(any(to)));
            plain.send_to(b"hello", to).unwrap();
            connected.connect(to).unwrap();
            connected.send(b"hello").unwrap();
            for _ in 0..2 {
                assert_eq!(server.recv_from(&mut [0; 16]).unwrap().0, 5);
            }
        }
        assert_eq!(kernel.counted(Counter::VipConnect), 0);
    });
}

/// Review finding 11: only a client's flow gives a datagram the address on `ingress`; see also `ebpf::own_port`.
#[test]
fn a_server_that_binds_no_address_answers_a_client_from_ingress() {
    in_container(&[], |kernel| {
        run("ip address add 10.0.0.7/32 dev lo");
        let cookie = netns_cookie();
        kernel.set("MEMBERS", NetnsMembership { cookie, network: v4("10.0.0.0"), zero: 0 }, v4("10.0.0.7"));
        kernel.change_config(|config: &mut Config| config.ingress = v4("10.0.0.0"));
        let server = bound(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT));
        let clients = [TASKS[0], TASKS[1]].map(|address| SocketAddr::new(address.parse().unwrap(), CLIENT_PORT));
        let reply = Tuple {
            source: address("10.0.0.7"),
            destination: mapped(v4(TASKS[0])),
            source_port: PORT.to_be(),
            destination_port: CLIENT_PORT.to_be(),
            protocol: UDP,
            ..Tuple::default()
        };
        kernel.set("UDP_REPLIES", reply, Reply::default());
        for (client, known) in clients.into_iter().zip([true, false]) {
            let socket = bound(client);
            server.send_to(b"hello", client).unwrap();
            let (_, from) = socket.recv_from(&mut [0; 16]).unwrap();
            assert_eq!(from == at("10.0.0.7"), known, "{client} from {from}");
        }
    });
}

/// Calls of real programs that send, receive and connect in other ways than one datagram or one stream at a time.
#[test]
fn batches_segments_and_peeks_show_the_virtual_address() {
    in_container(&TASKS[..1], |_| {
        let (server, other) = (bound(at(TASKS[0])), bound(at(TASKS[3])));
        let socket = bound(any(at(VIP)));
        send_many(&socket, &[at(VIP), at(TASKS[3])]);
        let (_, from) = server.recv_from(&mut [0; 16]).unwrap();
        assert_eq!(other.recv_from(&mut [0; 16]).unwrap().1.port(), from.port(), "each to its own destination");
        server.send_to(b"welcome", from).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(socket.peek_from(&mut buffer).unwrap(), (7, at(VIP)), "peeked");
        assert_eq!(socket.recv_from(&mut buffer).unwrap(), (7, at(VIP)));
        // A super-packet is one call, and all of its segments go to one task.
        set_option(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, 5);
        socket.send_to(b"threetimesfive!", at(VIP)).unwrap();
        for segment in [b"three", b"times", b"five!"] {
            let length = server.recv_from(&mut buffer).unwrap().0;
            assert_eq!(&buffer[..length], segment);
        }
        // Connected, and no longer.
        let socket = bound(any(at(VIP)));
        socket.connect(at(VIP)).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), at(VIP));
        disconnect(&socket);
        assert!(socket.peer_addr().is_err());
        socket.send_to(b"hello", at(TASKS[3])).unwrap();
        assert_eq!(other.recv_from(&mut buffer).unwrap().0, 5);
    });
}

/// A server sees its clients as they are, also where the kernel asks for the name of each at `accept`; and a client that sends
/// with its SYN reaches a task as any other one.
#[test]
fn tcp_fast_open_and_accept_show_the_right_peers() {
    in_container(&TASKS[..1], |_| {
        std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "3").unwrap();
        let listener = TcpListener::bind(at(TASKS[0])).unwrap();
        set_option(&listener, libc::SOL_TCP, libc::TCP_FASTOPEN, 16);
        // The first connection brings the cookie.
        for round in 0..3 {
            let client = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
            set_option(&client, libc::SOL_TCP, libc::TCP_FASTOPEN_CONNECT, 1);
            client.connect(&at(VIP).into()).unwrap();
            assert_eq!(client.send(b"early").unwrap(), 5);
            let (mut server, name) = listener.accept().unwrap();
            assert_eq!(Some(name), client.local_addr().unwrap().as_socket(), "{round}");
            assert_eq!(server.peer_addr().unwrap(), name);
            let mut buffer = [0; 5];
            io::Read::read_exact(&mut server, &mut buffer).unwrap();
            assert_eq!((&buffer, client.peer_addr().unwrap().as_socket()), (b"early", Some(at(VIP))));
        }
    });
}

#[expect(unsafe_code, reason = "no crate here sets these options")]
fn set_option(socket: &impl std::os::fd::AsRawFd, level: i32, name: i32, value: i32) {
    // SAFETY: the option is an int.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), 4) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

/// Connects to no address.
#[expect(unsafe_code, reason = "no crate here has it")]
fn disconnect(socket: &UdpSocket) {
    use std::os::fd::AsRawFd as _;
    // All zeros is AF_UNSPEC.
    let none = [0_u8; 16];
    // SAFETY: an address of 16 bytes.
    let done = unsafe { libc::connect(socket.as_raw_fd(), none.as_ptr().cast(), 16) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

/// One datagram to each, in one call.
#[expect(unsafe_code, reason = "no crate here has it")]
fn send_many(socket: &UdpSocket, to: &[SocketAddr]) {
    use std::os::fd::AsRawFd as _;
    let mut data = *b"hello";
    let mut part = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    let addresses: Vec<socket2::SockAddr> = to.iter().map(|to| (*to).into()).collect();
    let message = |address: &socket2::SockAddr| {
        // SAFETY: all zeros is a message without parts.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        message.msg_hdr.msg_name = address.as_ptr().cast_mut().cast();
        message.msg_hdr.msg_namelen = address.len();
        message.msg_hdr.msg_iov = &raw mut part;
        message.msg_hdr.msg_iovlen = 1;
        message
    };
    let mut messages: Vec<libc::mmsghdr> = addresses.iter().map(message).collect();
    let count = u32::try_from(messages.len()).unwrap();
    // SAFETY: the messages and what they point to live until the call returns.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
    assert_eq!(u32::try_from(sent).ok(), Some(count), "{}", io::Error::last_os_error());
}
