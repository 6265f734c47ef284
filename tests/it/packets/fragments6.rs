//! Fragments over IPv6: only the first one has the ports, the others follow it by their identification.

use super::build::*;
use super::kernel::*;
use skep_ebpf::packet::{REQUEST, V6};
use skep_ebpf::{Backend, FRAGMENT_TIMEOUT, INGRESS, Prefix};

const CLIENT: &str = "[2001:db8:1::9]:40000";
const PORT: &str = "[2001:db8::1]:8080";
/// `Config::containers` of these tests.
const TASK: &str = "[2fd:0:900::a00:b]:80";
const OTHER: Prefix = [0xfd02, 7];

fn published(kernel: &mut Kernel) {
    kernel.backend("10.0.0.11", 7);
    kernel.publish(UDP, 8080, &["10.0.0.11"], 0);
}

fn first(from: &str, to: &str, id: u16) -> Frame {
    Frame::udp(from, to).fragment(id, 0, true)
}

/// Its payload is no header, whatever it looks like.
fn later(from: &str, to: &str, id: u16) -> Frame {
    Frame::udp(from, to).fragment(id, 16, false)
}

/// The frame with another address at this offset of the IPv6 header.
fn with_address(frame: &Frame, at: usize, of: &str) -> Vec<u8> {
    let mut packet = frame.packet.clone();
    packet[at..at + 16].copy_from_slice(&Frame::udp(of, of).packet[8..24]);
    packet
}

fn arrives(kernel: &mut Kernel, frame: &Frame) -> Option<Vec<u8>> {
    let run = kernel.run("from_uplink", frame, kernel.uplink);
    if run.decision == Decision::Pass {
        assert_eq!(run.bytes[14..], frame.packet, "unchanged");
    }
    (run.decision == Decision::Redirect).then(|| run.bytes[14..].to_vec())
}

#[test]
fn later_fragments_follow_the_first_one_to_its_task_and_back() {
    in_namespaces(|kernel| {
        published(kernel);
        assert_eq!(arrives(kernel, &later(CLIENT, PORT, 7)), None, "before the first one");
        assert_eq!(arrives(kernel, &first(CLIENT, PORT, 7)), Some(first(CLIENT, TASK, 7).packet), "with the right sum");
        let piece = later(CLIENT, PORT, 7);
        assert_eq!(arrives(kernel, &piece), Some(with_address(&piece, 24, TASK)));
        assert_eq!(arrives(kernel, &later(CLIENT, PORT, 8)), None, "of another datagram");
        assert_eq!(arrives(kernel, &later("[2001:db8:1::8]:40000", PORT, 7)), None, "of another client");

        let back = kernel.run("from_container", &first(TASK, CLIENT, 9), kernel.uplink);
        assert_eq!((back.decision, &back.bytes[14..]), (Decision::Redirect, &first(PORT, CLIENT, 9).packet[..]));
        let piece = later(TASK, CLIENT, 9);
        let back = kernel.run("from_container", &piece, kernel.uplink);
        assert_eq!((back.decision, &back.bytes[14..]), (Decision::Redirect, &with_address(&piece, 8, PORT)[..]));
        let other = kernel.run("from_container", &later(TASK, CLIENT, 10), kernel.uplink);
        assert_eq!(other.decision, Decision::Pass);
    });
}

/// Review finding 13, over IPv6.
#[test]
fn fragments_of_a_datagram_of_the_host_do_not_follow_an_earlier_datagram() {
    in_namespaces(|kernel| {
        published(kernel);
        for (frame, taken) in [
            (first(CLIENT, PORT, 7), true),
            (later(CLIENT, PORT, 7), true),
            (first(CLIENT, "[2001:db8::1]:9999", 7), false),
            (later(CLIENT, "[2001:db8::1]:9999", 7), false),
        ] {
            assert_eq!(arrives(kernel, &frame).is_some(), taken, "{frame:?}");
        }
        assert!(arrives(kernel, &first(CLIENT, PORT, 7)).is_some());
        kernel.age_fragments(FRAGMENT_TIMEOUT + 1);
        assert_eq!(arrives(kernel, &later(CLIENT, PORT, 7)), None, "too old");
    });
}

#[test]
fn fragments_for_another_node_are_encapsulated_each_by_itself() {
    in_namespaces(|kernel| {
        published(kernel);
        let remote = Backend { ifindex: 0, serving: 1, prefix: OTHER, owner: 7, flags: INGRESS };
        kernel.set("BACKENDS", v4("10.0.0.11"), remote);
        for frame in [first(CLIENT, TASK, 7), later(CLIENT, TASK, 7)] {
            let run = kernel.run("from_host", &frame, kernel.uplink);
            assert_eq!(run.decision, Decision::Redirect);
            let (header, inner) = run.bytes[14..].split_at(V6);
            assert_eq!((header[6], inner), (41, &frame.packet[..]));
            let to: Vec<u8> = [OTHER[0], OTHER[1], REQUEST].into_iter().flat_map(u32::to_ne_bytes).collect();
            assert_eq!(header[24..36], to);
        }
    });
}
