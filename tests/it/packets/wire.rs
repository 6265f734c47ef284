//! Frames on real devices, with the program attached: what only the kernel's own path to it shows.
#![expect(unsafe_code, reason = "an address of a packet socket has no safe form")]

use super::build::*;
use super::kernel::*;
use skep::datapath::netns;
use skep_ebpf::Counter;
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::{Duration, Instant};

/// `Config::containers` of these tests.
const TASK6: &str = "[2fd:0:900::a00:b]:80";

/// Puts a frame on a device.
fn send(device: u32, frame: &[u8]) {
    let kind = socket2::Protocol::from(0);
    let socket = socket2::Socket::new(socket2::Domain::PACKET, socket2::Type::RAW, Some(kind)).expect("root");
    assert_eq!(socket.send_to(frame, &packet_address(device)).unwrap(), frame.len());
}

fn packet_address(device: u32) -> socket2::SockAddr {
    // SAFETY: `storage` has room for every address; `size` is that of the one written.
    let ((), to) = unsafe {
        socket2::SockAddr::try_init(|storage, size| {
            let to = storage.cast::<libc::sockaddr_ll>();
            (*to).sll_family = u16::try_from(libc::AF_PACKET).unwrap();
            (*to).sll_protocol = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
            (*to).sll_ifindex = i32::try_from(device).unwrap();
            *size = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap();
            Ok(())
        })
    }
    .unwrap();
    to
}

/// The frame with 802.1Q tags, the outermost first.
fn tagged(frame: &Frame, tags: &[(u16, u16)]) -> Vec<u8> {
    let mut bytes = frame.bytes();
    let kinds = bytes.split_off(12);
    for (protocol, tag) in tags {
        bytes.extend(protocol.to_be_bytes());
        bytes.extend(tag.to_be_bytes());
    }
    bytes.extend(kinds);
    bytes
}

/// Waits until a client's flow exists, and returns its device. Frames sent before on the same wire were handled before.
fn taken(kernel: &mut Kernel, client: &str, to: &str) -> u32 {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some((_, flow)) = kernel.flow(client, to, TCP) {
            return flow.ifindex;
        }
        assert!(Instant::now() < deadline, "{client} to {to} is not taken");
        std::thread::yield_now();
    }
}

/// Review finding 7: the packets of a VLAN pass again on the VLAN's own device; redirected from its parent with their tag they
/// would be lost.
#[test]
fn a_tagged_frame_is_left_to_the_device_of_its_vlan() {
    const VLAN: u16 = 0x8100;
    const SERVICE: u16 = 0x88a8;
    in_namespaces(|kernel| {
        kernel.backend("10.0.0.11", 7);
        kernel.publish(TCP, 8080, &["10.0.0.11"], 0);
        kernel.attach("from_uplink", "uplink");
        let wire = ifindex("wire");
        let stacks: [&[(u16, u16)]; 4] =
            [&[(VLAN, 100)], &[(VLAN, 1)], &[(SERVICE, 7), (VLAN, 100)], &[(VLAN, 0x0ffe | 5 << 13)]];
        for (port, to) in [(1000, "192.0.2.1:8080"), (2000, "[2001:db8::1]:8080")] {
            let client = |n: u16| if to.starts_with('[') { format!("[2001:db8::9]:{n}") } else { format!("192.0.2.9:{n}") };
            for (n, tags) in (port..).zip(stacks) {
                send(wire, &tagged(&Frame::tcp(&client(n), to, SYN), tags));
            }
            let plain = client(port + 99);
            send(wire, &Frame::tcp(&plain, to, SYN).bytes());
            assert_eq!(taken(kernel, &plain, to), kernel.uplink);
            for (n, tags) in (port..).zip(stacks) {
                assert!(kernel.flow(&client(n), to, TCP).is_none(), "{tags:x?} was taken from its VLAN");
            }
        }
    });
}

/// A namespace of the test's own with the other end of the pair that `Config::host_end` names, as the mesh namespace has it.
fn mesh_side(kernel: &mut Kernel) -> (File, u32) {
    for line in [
        "mount -t tmpfs tmpfs /run",
        "ip netns add far",
        "ip link add hostend type veth peer name meshend netns far",
        "ip link set hostend up",
        "ip -n far link set meshend up",
    ] {
        run(line);
    }
    let host_end = ifindex("hostend");
    kernel.change_config(|config| config.host_end = host_end);
    let far = File::open("/run/netns/far").unwrap();
    // SAFETY: the name ends with a zero.
    let index = netns::run(far.as_fd(), || unsafe { libc::if_nametoindex(c"meshend".as_ptr()) }).unwrap();
    (far, index)
}

/// Receives a frame; whether it has a VLAN tag.
fn receive_tag(socket: &socket2::Socket) -> (Vec<u8>, bool) {
    let (mut frame, mut control) = ([0_u8; 2048], [0_u64; 32]);
    let mut part = libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() };
    // SAFETY: all zeros is an empty message; what it points to outlives the call, with the right lengths.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
        (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control));
        let length = libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0);
        assert!(length > 0, "{}", std::io::Error::last_os_error());
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        assert!(!header.is_null() && (*header).cmsg_type == libc::PACKET_AUXDATA);
        let status = libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned().tp_status;
        (frame[..usize::try_from(length).unwrap()].to_vec(), status & libc::TP_STATUS_VLAN_VALID != 0)
    }
}

/// Crossings: a tag with a priority and no VLAN. The kernel takes it away for the host; redirected with it, a packet for a task of
/// another node would be lost.
#[test]
fn a_frame_with_a_priority_alone_is_served_and_loses_its_tag() {
    const VLAN: u16 = 0x8100;
    in_namespaces(|kernel| {
        let (far, index) = mesh_side(kernel);
        let received = netns::run(far.as_fd(), || receive(index)).unwrap();
        received.set_nonblocking(false).unwrap();
        let on: libc::c_int = 1;
        // SAFETY: the option is an int.
        let done =
            unsafe { libc::setsockopt(received.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_AUXDATA, (&raw const on).cast(), 4) };
        assert_eq!(done, 0);
        kernel.backend("10.0.0.11", 7);
        kernel.publish(UDP, 8080, &["10.0.0.11"], 0);
        kernel.attach("from_uplink", "uplink");
        let wire = ifindex("wire");
        let tasks = [("192.0.2.9", "192.0.2.1:8080", "10.0.0.11:80"), ("[2001:db8::9]", "[2001:db8::1]:8080", TASK6)];
        for (client, port, task) in tasks {
            for (number, tags) in (1000..).zip([&[][..], &[(VLAN, 0)], &[(VLAN, 5 << 13)], &[(VLAN, 7 << 13 | 1 << 12)]]) {
                let client = format!("{client}:{number}");
                send(wire, &tagged(&Frame::udp(&client, port), tags));
                let expected = Frame::udp(&client, task).packet;
                // Beside what the kernel says to its neighbours.
                let has_tag = loop {
                    let (frame, has_tag) = receive_tag(&received);
                    if frame[14..] == expected {
                        break has_tag;
                    }
                };
                assert!(!has_tag, "{tags:x?}");
            }
        }
        assert_eq!(kernel.counted(Counter::PortIn), 8);
    });
}

/// Review finding 7: where the VLAN's device has the address it is the uplink.
#[test]
fn a_client_on_a_vlan_is_served_at_the_vlan_s_device() {
    in_namespaces(|kernel| {
        let add = ["link", "add", "link", "uplink", "name", "uplink.100", "type", "vlan", "id", "100"];
        if !std::process::Command::new("ip").args(add).status().expect("ip").success() {
            eprintln!("this kernel has no VLAN devices");
            return;
        }
        run("ip address add 198.18.0.1/24 dev uplink.100");
        run("ip link set uplink.100 up");
        kernel.backend("10.0.0.11", 7);
        kernel.publish(TCP, 8080, &["10.0.0.11"], 0);
        kernel.set("LOCALS", address("198.18.0.1"), 0_u32);
        for device in ["uplink", "uplink.100"] {
            kernel.attach("from_uplink", device);
        }
        let (client, to) = ("198.18.0.9:4000", "198.18.0.1:8080");
        send(ifindex("wire"), &tagged(&Frame::tcp(client, to, SYN), &[(0x8100, 100)]));
        assert_eq!(taken(kernel, client, to), ifindex("uplink.100"));
    });
}

/// Receives what leaves by the other end of a device.
fn receive(device: u32) -> socket2::Socket {
    let kind = socket2::Protocol::from(i32::from(u16::try_from(libc::ETH_P_ALL).unwrap().to_be()));
    let socket = socket2::Socket::new(socket2::Domain::PACKET, socket2::Type::RAW, Some(kind)).expect("root");
    socket.bind(&packet_address(device)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

/// Waits for an IPv4 frame from a port; its destination port.
fn sent_from(socket: &socket2::Socket, port: u16) -> u16 {
    let mut buffer = [0_u8; 2048];
    loop {
        let length = std::io::Read::read(&mut &*socket, &mut buffer).expect("a frame within the bound");
        if length >= 38 && buffer[12..14] == [8, 0] && buffer[34..36] == port.to_be_bytes() {
            return u16::from_be_bytes([buffer[36], buffer[37]]);
        }
    }
}

/// Review finding 16: with several uplinks a reply leaves by the one that the host's routes name, else by the client's.
#[test]
fn a_reply_leaves_by_the_uplink_that_the_routes_name() {
    in_namespaces(|kernel| {
        for line in [
            "sysctl -qw net.ipv4.ip_forward=1",
            "ip neigh add 192.0.2.254 lladdr 02:00:00:00:00:fe dev uplink",
            "ip neigh add 198.51.100.254 lladdr 02:00:00:00:00:fd dev uplink2",
            "ip route add 203.0.113.128/25 via 198.51.100.254 dev uplink2",
            "ip link add hostend type veth peer name meshend",
            "ip link set hostend up",
            "ip link set meshend up",
            "ip link add unserved type veth peer name nowhere",
            "ip link set unserved up",
            "ip link set nowhere up",
            "ip route add 198.18.0.0/15 dev unserved metric 10",
            "ip route add 198.18.0.0/15 via 198.51.100.254 dev uplink2 metric 20",
        ] {
            run(line);
        }
        for index in [kernel.uplink, kernel.other_uplink] {
            kernel.set("UPLINKS", index, 1_u32);
        }
        kernel.backend("10.0.0.11", 7);
        kernel.publish(TCP, 8080, &["10.0.0.11"], 0);
        kernel.attach("to_uplink", "hostend");
        let (wire, wire2) = (receive(ifindex("wire")), receive(ifindex("wire2")));
        // All arrive by the second uplink.
        let to = "192.0.2.1:8080";
        for client in ["203.0.113.9:4001", "203.0.113.200:4002", "198.18.0.9:4003"] {
            let syn = Frame::tcp(client, to, SYN).for_mac(OTHER_UPLINK_MAC);
            assert_eq!(kernel.run("from_uplink", &syn, kernel.other_uplink).decision, Decision::Redirect);
            send(ifindex("meshend"), &Frame::tcp(to, client, SYN | ACK).bytes());
        }
        assert_eq!(sent_from(&wire, 8080), 4001, "by the default route");
        assert_eq!(sent_from(&wire2, 8080), 4002, "by the route to its network");
        assert_eq!(sent_from(&wire2, 8080), 4003, "by the device that it came by: the route's is no uplink");
    });
}

/// The bridge, not its port, has the address: the program at the bridge gets the frame, and replies leave by the bridge.
#[test]
fn a_client_behind_a_bridge_is_served_at_the_bridge() {
    in_namespaces(|kernel| {
        for line in [
            "ip address flush dev uplink2",
            "ip link add br0 address 02:00:00:00:00:02 type bridge",
            "ip link set uplink2 master br0",
            "ip address add 198.51.100.1/24 dev br0",
            "ip link set br0 up",
        ] {
            run(line);
        }
        kernel.backend("10.0.0.11", 7);
        kernel.publish(TCP, 8080, &["10.0.0.11"], 0);
        kernel.attach("from_uplink", "br0");
        let (client, to) = ("198.51.100.9:4000", "198.51.100.1:8080");
        send(ifindex("wire2"), &Frame::tcp(client, to, SYN).for_mac(OTHER_UPLINK_MAC).bytes());
        assert_eq!(taken(kernel, client, to), ifindex("br0"));
    });
}
