//! How long later fragments follow the first one, at every hook that translates or forwards them. Identifications are used again:
//! the state of an earlier datagram is neither followed for ever nor by the fragments of one that is not translated.

use super::build::*;
use super::kernel::*;
use skep_ebpf::packet::{REPLY, REQUEST};
use skep_ebpf::{Backend, FRAGMENT_TIMEOUT, INGRESS, Prefix};

const CLIENT: &str = "203.0.113.9:40000";
const PORT: &str = "192.0.2.1:8080";
const HERE: &str = "10.0.0.11:80";
const ELSEWHERE: &str = "10.0.0.12:80";
/// Another node.
const OTHER: Prefix = [0xfd02, 7];

/// A packet as another node sends it, with the link header of test runs.
fn encapsulated(kernel: &Kernel, direction: u32, inner: &Frame) -> Vec<u8> {
    let mut packet = [&[0; 12][..], &[0x86, 0xdd, 0x60, 0, 0, 0]].concat();
    packet.extend(u16::try_from(inner.packet.len()).unwrap().to_be_bytes());
    packet.extend([4, 64]);
    for prefix in [OTHER, kernel.prefix] {
        packet.extend([prefix[0], prefix[1], direction, 0].into_iter().flat_map(u32::to_ne_bytes));
    }
    packet.extend(&inner.packet);
    packet
}

/// Runs a hook on fragments of datagrams with one identification: from `from`, whose flow is known, and from a port without one. What
/// follows no first fragment meets `otherwise`.
fn follows(kernel: &mut Kernel, from: &str, to: &str, otherwise: Decision, hook: impl Fn(&mut Kernel, &Frame) -> Decision) {
    let first = Frame::udp(from, to).fragment(9, 0, true);
    let later = Frame::udp(from, to).fragment(9, 16, false);
    let unknown = Frame::udp(&format!("{}:9999", from.split(':').next().unwrap()), to).fragment(9, 0, true);
    assert_eq!(hook(kernel, &later), otherwise, "before the first one");
    for (what, end) in [("too old", None), ("of another datagram", Some(unknown))] {
        assert_eq!(hook(kernel, &first), Decision::Redirect);
        kernel.age_fragments(FRAGMENT_TIMEOUT);
        assert_eq!(hook(kernel, &later), Decision::Redirect);
        match end {
            None => kernel.age_fragments(1),
            Some(unknown) => assert_eq!(hook(kernel, &unknown), otherwise),
        }
        assert_eq!(hook(kernel, &later), otherwise, "{what}");
    }
}

fn arrives(kernel: &mut Kernel, frame: &Frame) -> Decision {
    kernel.run("from_uplink", frame, kernel.uplink).decision
}

fn published(kernel: &mut Kernel, container: &str) {
    kernel.backend("10.0.0.11", 7);
    kernel.set("BACKENDS", v4("10.0.0.12"), Backend { ifindex: 0, serving: 1, prefix: OTHER, owner: 7, flags: INGRESS });
    kernel.publish(UDP, 8080, &[container.split(':').next().unwrap()], 0);
}

/// Review finding 13. What follows no datagram to a published port is the host's.
#[test]
fn of_a_client() {
    in_namespaces(|kernel| {
        published(kernel, HERE);
        let first = |port: u16| Frame::udp(CLIENT, &format!("192.0.2.1:{port}")).fragment(9, 0, true);
        let later = Frame::udp(CLIENT, PORT).fragment(9, 16, false);
        assert_eq!(arrives(kernel, &first(8080)), Decision::Redirect);
        kernel.age_fragments(FRAGMENT_TIMEOUT);
        assert_eq!(arrives(kernel, &later), Decision::Redirect);
        kernel.age_fragments(1);
        assert_eq!(arrives(kernel, &later), Decision::Pass, "too old");
        assert_eq!(arrives(kernel, &first(8080)), Decision::Redirect);
        assert_eq!(arrives(kernel, &first(9999)), Decision::Pass);
        assert_eq!(arrives(kernel, &later), Decision::Pass, "of another datagram");
    });
}

#[test]
fn of_a_reply_to_a_client_of_this_node() {
    in_namespaces(|kernel| {
        published(kernel, HERE);
        assert_eq!(arrives(kernel, &Frame::udp(CLIENT, PORT)), Decision::Redirect);
        follows(kernel, HERE, CLIENT, Decision::Pass, |kernel, frame| {
            kernel.run("from_container", frame, kernel.uplink).decision
        });
        follows(kernel, PORT, CLIENT, Decision::Drop, |kernel, frame| kernel.run("to_uplink", frame, kernel.uplink).decision);
    });
}

#[test]
fn of_a_reply_to_a_client_of_another_node() {
    in_trace(|kernel| {
        published(kernel, HERE);
        let request = encapsulated(kernel, REQUEST, &Frame::udp(CLIENT, HERE));
        assert_eq!(kernel.run_bytes("from_mesh", &request, kernel.uplink).decision, Decision::Redirect);
        follows(kernel, HERE, CLIENT, Decision::Pass, |kernel, frame| {
            kernel.run("from_container", frame, kernel.uplink).decision
        });
    });
}

#[test]
fn of_a_reply_of_another_node() {
    in_trace(|kernel| {
        published(kernel, ELSEWHERE);
        assert_eq!(arrives(kernel, &Frame::udp(CLIENT, PORT)), Decision::Redirect);
        follows(kernel, ELSEWHERE, CLIENT, Decision::Drop, |kernel, frame| {
            let packet = encapsulated(kernel, REPLY, frame);
            kernel.run_bytes("from_mesh", &packet, kernel.uplink).decision
        });
    });
}
