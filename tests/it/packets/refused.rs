//! Packets of clients for a container that this node no longer has: answered through the tunnel, on a real device.
#![expect(unsafe_code, reason = "TUNSETIFF has no safe form")]

use super::build::*;
use super::kernel::*;
use skep_ebpf::packet::{REPLY, REQUEST};
use skep_ebpf::{Backend, Config, Counter, INGRESS, Prefix};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;

const ENTRY: Prefix = [0xfd02, 7];
const GONE: &str = "10.0.0.99:80";
/// `Config::containers` of these tests.
const GONE6: &str = "[2fd:0:900::a00:63]:80";
const CLIENT: &str = "203.0.113.9:40000";
const CLIENT6: &str = "[2001:db8:1::9]:40000";

/// A tunnel device with `from_mesh` at its ingress.
fn tunnel(kernel: &mut Kernel) -> File {
    let device = File::options().read(true).write(true).open("/dev/net/tun").expect("a kernel with TUN");
    // SAFETY: plain numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"tunnel0") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_TUN | libc::IFF_NO_PI).unwrap();
    // SAFETY: the request outlives the call.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    run("ip link set tunnel0 up");
    let index = ifindex("tunnel0");
    kernel.change_config(|config: &mut Config| config.tunnel = index);
    kernel.attach("from_mesh", "tunnel0");
    device
}

fn outer(prefix: Prefix, direction: u32, address: u32) -> Vec<u8> {
    [prefix[0], prefix[1], direction, address].into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// Sends a client's packet as the entry node sends it; the answer, without the outer header: an IPv4 or IPv6 packet. `None` if
/// there is none.
fn answer(kernel: &mut Kernel, tunnel: &mut File, packet: &Frame) -> Option<Vec<u8>> {
    let next = if packet.ipv6 { 41 } else { 4 };
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend(u16::try_from(packet.packet.len()).unwrap().to_be_bytes());
    bytes.extend([next, 64]);
    bytes.extend(outer(ENTRY, REQUEST, 0));
    bytes.extend(outer(kernel.prefix, REQUEST, 0));
    bytes.extend(&packet.packet);
    let (refused, dropped) = (kernel.counted(Counter::Refused), kernel.counted(Counter::DropBackend));
    tunnel.write_all(&bytes).unwrap();
    // The program runs within the write.
    if kernel.counted(Counter::Refused) == refused {
        assert_eq!(kernel.counted(Counter::DropBackend), dropped + 1);
        return None;
    }
    let mut received = vec![0; 2048];
    loop {
        let length = tunnel.read(&mut received).unwrap();
        // Beside router solicitations of the kernel.
        if received[32..36] == REPLY.to_ne_bytes() {
            received.truncate(length);
            break;
        }
    }
    assert_eq!(received[8..20], outer(kernel.prefix, REPLY, 0)[..12], "from this node");
    assert_eq!(received[24..32], outer(ENTRY, REPLY, 0)[..8], "to the entry node");
    match received[6] {
        4 | 41 => Some(received.split_off(40)),
        6 => {
            // Translated from IPv4: back, with a checksum that is right.
            let (tcp, from, to) = (received[40..].to_vec(), &received[20..24], &received[36..40]);
            assert_eq!(checksum(&with_pseudo(&received[8..40], 6, &tcp)), 0);
            let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
            packet.extend([from, to].concat());
            packet.extend(tcp);
            Some(packet)
        }
        other => panic!("protocol {other}"),
    }
}

fn with_pseudo(addresses: &[u8], protocol: u8, transport: &[u8]) -> Vec<u8> {
    let length = u32::try_from(transport.len()).unwrap().to_be_bytes();
    [addresses, &length, &[0, 0, 0, protocol], transport].concat()
}

/// The numbers and flags of a segment, and the rest of its header and payload.
fn segment(transport: &[u8]) -> (u32, u32, u8, usize) {
    let word = |at: usize| u32::from_be_bytes(transport[at..at + 4].try_into().unwrap());
    (word(4), word(8), transport[13], transport.len())
}

#[test]
fn a_segment_for_a_container_that_is_gone_is_answered_with_rst() {
    in_namespaces(|kernel| {
        let mut device = tunnel(kernel);
        kernel.backend("10.0.0.11", 7);
        for (client, container, l4) in [(CLIENT, GONE, 20), (CLIENT6, GONE6, 40)] {
            let payload = [7; 999];
            let cases = [
                (ACK, &b""[..], (1000, 0, RST)),
                (ACK, &payload, (1000, 0, RST)),
                (SYN, &b""[..], (0, 6, RST | ACK)),
                (FIN, &b"abc"[..], (0, 9, RST | ACK)),
            ];
            for (flags, payload, (sequence, acknowledges, expected)) in cases {
                let frame = Frame::segment(client, container, flags, (5, 1000), payload);
                let packet = answer(kernel, &mut device, &frame).expect("an answer");
                assert_eq!(segment(&packet[l4..]), (sequence, acknowledges, expected, 20), "{client} {flags}");
                let same = Frame::segment(container, client, expected, (sequence, acknowledges), b"");
                assert_eq!(packet[l4..l4 + 14], same.packet[l4..l4 + 14], "ports");
                let addresses = if l4 == 20 { 12..20 } else { 8..40 };
                assert_eq!(packet[addresses.clone()], same.packet[addresses.clone()]);
                if l4 == 40 {
                    assert_eq!(checksum(&with_pseudo(&packet[addresses], 6, &packet[l4..])), 0);
                }
            }
            let rst = Frame::segment(client, container, RST, (5, 0), b"");
            assert_eq!(answer(kernel, &mut device, &rst), None, "RST is never answered");
        }
    });
}

#[test]
fn a_datagram_for_a_container_that_is_gone_is_answered_with_port_unreachable() {
    in_namespaces(|kernel| {
        let mut device = tunnel(kernel);
        let sent = Frame::udp(CLIENT, GONE);
        let packet = answer(kernel, &mut device, &sent).expect("an answer");
        assert_eq!(packet.len(), 56);
        assert_eq!((checksum(&packet[..20]), checksum(&packet[20..])), (0, 0));
        assert_eq!(packet[20..22], [3, 3], "port unreachable");
        assert_eq!(packet[12..20], [10, 0, 0, 99, 203, 0, 113, 9]);
        assert_eq!(packet[28..], sent.packet[..28], "with the datagram's headers");

        let sent = Frame::udp(CLIENT6, GONE6);
        let packet = answer(kernel, &mut device, &sent).expect("an answer");
        assert_eq!(packet.len(), 96);
        assert_eq!(packet[40..42], [1, 4], "port unreachable");
        assert_eq!(packet[8..24], sent.packet[24..40]);
        assert_eq!(packet[24..40], sent.packet[8..24]);
        assert_eq!(packet[48..], sent.packet[..48]);
        assert_eq!(checksum(&with_pseudo(&packet[8..40], 58, &packet[40..])), 0);
    });
}

/// A refusal of a container on another node ends the client's flow here: its next datagram asks the table again.
#[test]
fn a_datagram_that_a_container_of_another_node_refuses_ends_the_client_s_flow() {
    const PORT: &str = "192.0.2.1:8080";
    const TASK: &str = "10.0.0.11:80";
    in_namespaces(|kernel| {
        let mut device = tunnel(kernel);
        let remote = Backend { ifindex: 0, serving: 1, prefix: ENTRY, owner: 7, flags: INGRESS };
        kernel.set("BACKENDS", v4("10.0.0.11"), remote);
        kernel.publish(UDP, 8080, &["10.0.0.11"], 0);
        let datagram = Frame::udp(CLIENT, PORT);
        assert_eq!(kernel.run("from_uplink", &datagram, kernel.uplink).decision, Decision::Redirect);
        for (number, (kind, ends)) in (1..).zip([([3, 4], false), ([11, 0], false), ([3, 3], true)]) {
            let mut error = Frame::unreachable("10.0.0.11", &Frame::udp(CLIENT, TASK)).packet;
            error[20..22].copy_from_slice(&kind);
            error[22..24].fill(0);
            let sum = checksum(&error[20..]);
            error[22..24].copy_from_slice(&sum.to_be_bytes());
            let mut bytes = vec![0x60, 0, 0, 0];
            bytes.extend(u16::try_from(error.len()).unwrap().to_be_bytes());
            bytes.extend([4, 64]);
            bytes.extend(outer(ENTRY, REPLY, 0));
            bytes.extend(outer(kernel.prefix, REPLY, 0));
            bytes.extend(error);
            // The program runs within the write.
            device.write_all(&bytes).unwrap();
            assert_eq!(kernel.counted(Counter::IcmpError), number, "the client learns it");
            // The entry stays: of several uplinks it knows the one that leads to the client.
            let (_, flow) = kernel.flow(CLIENT, PORT, UDP).expect("an entry");
            assert_eq!(flow.owner == u32::MAX, ends, "{kind:?}");
        }
    });
}
