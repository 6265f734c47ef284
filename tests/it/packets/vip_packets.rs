//! Packets of containers to virtual addresses that no socket call has translated: those of raw sockets, and of containers inside a
//! container.

use super::build::*;
use super::kernel::*;
use skep_ebpf::{Backend, Counter, Vip, hook_number};

const VIP: &str = "10.0.1.2:80";
const CALLER: &str = "10.0.1.5:40000";
const TASK: &str = "10.0.1.6";
const OWNER: u32 = 7;

/// Two containers on a network, and a virtual address with these tasks.
fn service(kernel: &mut Kernel, tasks: &[&str]) {
    for container in ["10.0.1.5", TASK] {
        let backend = Backend { ifindex: kernel.uplink, serving: 1, prefix: [0; 2], owner: OWNER, flags: 0 };
        kernel.set("BACKENDS", v4(container), backend);
    }
    let (base, size) = (kernel.add_slots(tasks), u32::try_from(tasks.len()).unwrap());
    let vip = Vip { network: v4("10.0.1.0"), mask: v4("255.255.255.0"), base, size, owner: OWNER };
    kernel.set("VIPS", v4("10.0.1.2"), vip);
}

fn sends(kernel: &mut Kernel, frame: &Frame) -> Run {
    kernel.run("from_container", frame, kernel.uplink)
}

/// Sequence number, acknowledgement number and flags of the answer to a segment, whose sums and addresses are right.
fn reset(kernel: &mut Kernel, frame: &Frame) -> (u32, u32, u8) {
    let run = sends(kernel, frame);
    assert_eq!(run.decision, Decision::Redirect, "{frame:?}");
    let sent = frame.bytes();
    assert_eq!(run.bytes[..12], [&sent[6..12], &sent[..6]].concat(), "back to the device that it came from");
    let packet = &run.bytes[14..];
    assert_eq!((packet.len(), packet[9]), (40, 6));
    assert_eq!(packet[12..20], [&frame.packet[16..20], &frame.packet[12..16]].concat());
    assert_eq!(packet[20..24], [&frame.packet[22..24], &frame.packet[20..22]].concat());
    assert_eq!(checksum(&packet[..20]), 0);
    assert_eq!(checksum(&[&packet[12..20], &[0, 6, 0, 20], &packet[20..]].concat()), 0);
    let word = |at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().unwrap());
    (word(24), word(28), packet[33])
}

/// Review finding 15: who holds the address must not wait in silence, also where no socket call tells it.
#[test]
fn a_segment_to_a_virtual_address_without_a_task_is_answered_with_rst() {
    in_namespaces(|kernel| {
        service(kernel, &[]);
        let segment = |flags, payload| Frame::segment(CALLER, VIP, flags, (5, 1000), payload);
        assert_eq!(reset(kernel, &segment(SYN, b"")), (0, 6, RST | ACK));
        assert_eq!(reset(kernel, &segment(ACK, &[7; 999])), (1000, 0, RST));
        assert_eq!(reset(kernel, &segment(FIN, b"abc")), (0, 9, RST | ACK));
        assert_eq!(kernel.counted(Counter::VipEmpty), 3);
        let rst = sends(kernel, &segment(RST, b""));
        assert_eq!(rst.decision, Decision::Drop, "RST is never answered");
        assert_eq!(kernel.counted(Counter::VipEmpty), 4, "and counted once");
    });
}

#[test]
fn a_datagram_to_a_virtual_address_without_a_task_is_answered_with_port_unreachable() {
    in_namespaces(|kernel| {
        service(kernel, &[]);
        let sent = Frame::udp(CALLER, VIP);
        let run = sends(kernel, &sent);
        assert_eq!(run.decision, Decision::Redirect);
        let (header, message) = run.bytes[14..].split_at(20);
        assert_eq!((checksum(header), checksum(message), header[9]), (0, 0, 1));
        assert_eq!(header[12..20], [10, 0, 1, 2, 10, 0, 1, 5]);
        assert_eq!((&message[..2], &message[8..]), (&[3, 3][..], &sent.packet[..28]), "with the datagram's headers");
    });
}

#[test]
fn a_connection_whose_last_task_is_gone_is_reset() {
    in_namespaces(|kernel| {
        service(kernel, &[TASK]);
        for flags in [SYN, ACK] {
            let run = sends(kernel, &Frame::tcp(CALLER, VIP, flags));
            assert_eq!((run.decision, &run.bytes[30..34]), (Decision::Pass, &[10, 0, 1, 6][..]), "to the task");
        }
        service(kernel, &[]);
        assert_eq!(sends(kernel, &Frame::tcp(CALLER, VIP, ACK)).decision, Decision::Pass, "it drains");
        kernel.remove::<_, Backend>("BACKENDS", v4(TASK));
        assert_eq!(reset(kernel, &Frame::tcp(CALLER, VIP, ACK)), (1, 0, RST));
    });
}

#[test]
fn only_packets_of_the_network_s_containers_are_answered() {
    in_namespaces(|kernel| {
        service(kernel, &[]);
        for (from, decision) in [("10.0.1.9:40000", Decision::Drop), ("10.0.2.5:40000", Decision::Pass)] {
            for frame in [Frame::tcp(from, VIP, SYN), Frame::udp(from, VIP)] {
                let run = sends(kernel, &frame);
                assert_eq!((run.decision, &run.bytes[14..]), (decision, &frame.packet[..]), "{from}");
            }
        }
        assert_eq!(kernel.counted(Counter::DropForged), 2, "of no container");
        let fragment = Frame::udp(CALLER, VIP).fragment(7, 0, true);
        assert_eq!(sends(kernel, &fragment).decision, Decision::Pass, "the routes have no such address");
        assert_eq!(kernel.counted(Counter::VipEmpty), 0);
    });
}

#[test]
fn what_is_refused_is_counted_and_shown_as_it_was_sent() {
    in_namespaces(|kernel| {
        service(kernel, &[]);
        kernel.watch(u32::MAX, 100, false);
        for frame in [Frame::tcp(CALLER, VIP, SYN), Frame::udp(CALLER, VIP)] {
            sends(kernel, &frame);
        }
        let events = kernel.events();
        let of_hook = u8::try_from(hook_number("from_container")).unwrap();
        for (event, protocol) in events.iter().zip([TCP, UDP]) {
            assert_eq!((event.source, event.source_port), (address("10.0.1.5"), 40_000_u16.to_be()));
            assert_eq!((event.destination, event.destination_port), (address("10.0.1.2"), 80_u16.to_be()));
            assert_eq!((event.protocol, event.owner, event.hook), (protocol, OWNER, of_hook));
            assert_eq!(event.reason, Counter::VipEmpty as u16);
        }
        let counts: Vec<u64> = kernel.refusals().into_iter().map(|(_, count)| count).collect();
        assert_eq!((events.len(), counts), (2, vec![2]));
    });
}
