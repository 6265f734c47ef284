//! Frames on real devices, with the program attached: what only the kernel's own path to it shows.
#![expect(unsafe_code, reason = "an address of a packet socket has no safe form")]

use super::build::*;
use super::kernel::*;
use std::time::{Duration, Instant};

/// Puts a frame on a device.
fn send(device: u32, frame: &[u8]) {
    let kind = socket2::Protocol::from(0);
    let socket = socket2::Socket::new(socket2::Domain::PACKET, socket2::Type::RAW, Some(kind)).expect("root");
    // SAFETY: `storage` has room for every address; `size` is that of the one written.
    let ((), to) = unsafe {
        socket2::SockAddr::try_init(|storage, size| {
            let to = storage.cast::<libc::sockaddr_ll>();
            (*to).sll_family = u16::try_from(libc::AF_PACKET).unwrap();
            (*to).sll_ifindex = i32::try_from(device).unwrap();
            *size = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap();
            Ok(())
        })
    }
    .unwrap();
    assert_eq!(socket.send_to(frame, &to).unwrap(), frame.len());
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
    in_namespaces(|kernel| {
        kernel.backend("10.0.0.11", 7);
        kernel.publish(TCP, 8080, &["10.0.0.11"], 0);
        kernel.attach("from_uplink", "uplink");
        let wire = ifindex("wire");
        const VLAN: u16 = 0x8100;
        const SERVICE: u16 = 0x88a8;
        let stacks: [&[(u16, u16)]; 4] = [&[(VLAN, 100)], &[(VLAN, 1)], &[(SERVICE, 7), (VLAN, 100)], &[(VLAN, 4094 | 5 << 13)]];
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
