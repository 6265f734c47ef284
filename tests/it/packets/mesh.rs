//! Published ports between nodes: what `from_mesh` makes of packets of other nodes.

use super::build::*;
use super::kernel::*;
use skep_ebpf::packet::{REPLY, REQUEST, TCP_CHECKSUM, V6};
use skep_ebpf::{Backend, Counter, INGRESS, Prefix, TAKEOVER_SILENCE, Target};
use std::net::{Ipv4Addr, SocketAddrV4};

/// Two other nodes. The tunnel has no link header, the kernel's test runs take the first bytes for one: its type is bytes 4 and
/// 5 of the source, here those of IPv6.
const ENTRY: Prefix = [0xfd02, u32::from_ne_bytes([0x86, 0xdd, 0, 1])];
const OTHER: Prefix = [0xfd02, u32::from_ne_bytes([0x86, 0xdd, 0, 2])];
const CLIENT: &str = "203.0.113.9:40000";
const CONTAINER: &str = "10.0.0.11:80";
const ISN: u32 = 99;

fn bytes(prefix: Prefix, direction: u32, address: Ipv4Addr) -> Vec<u8> {
    [prefix[0].to_ne_bytes(), prefix[1].to_ne_bytes(), direction.to_ne_bytes(), address.octets()].concat()
}

/// A TCP segment over IPv4, translated as another node sends it.
fn translated(kernel: &Kernel, direction: u32, node: Prefix, segment: &Frame) -> Vec<u8> {
    translated_between(node, kernel.prefix, direction, segment)
}

/// A client's segment, translated as this node sends it to the other one.
fn translated_out(kernel: &Kernel, segment: &Frame) -> Vec<u8> {
    translated_between(kernel.prefix, ENTRY, REQUEST, segment)
}

fn translated_between(from: Prefix, to: Prefix, direction: u32, segment: &Frame) -> Vec<u8> {
    let v4 = &segment.packet;
    let addresses: Vec<Ipv4Addr> = [12, 16].map(|at| <[u8; 4]>::try_from(&v4[at..at + 4]).unwrap().into()).into();
    let tcp = &v4[20..];
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(tcp.len()).unwrap().to_be_bytes());
    packet.extend([6, 64]);
    packet.extend(bytes(from, direction, addresses[0]));
    packet.extend(bytes(to, direction, addresses[1]));
    let mut summed = packet[8..V6].to_vec();
    summed.extend(u32::try_from(tcp.len()).unwrap().to_be_bytes());
    summed.extend([0, 0, 0, 6]);
    packet.extend(tcp);
    packet[V6 + TCP_CHECKSUM..V6 + TCP_CHECKSUM + 2].fill(0);
    summed.extend(&packet[V6..]);
    let sum = checksum(&summed);
    packet[V6 + TCP_CHECKSUM..V6 + TCP_CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// A segment of a client that entered by `entry`.
fn request(kernel: &mut Kernel, entry: Prefix, client: &str, flags: u8, acknowledges: u32) -> Run {
    let segment = Frame::segment(client, CONTAINER, flags, (1, acknowledges), b"");
    let packet = translated(kernel, REQUEST, entry, &segment);
    kernel.run_bytes("from_mesh", &packet, kernel.uplink)
}

/// A segment of the container: the node that it is sent to, the client's port there.
fn answer(kernel: &mut Kernel, client: &str, flags: u8) -> Option<(Prefix, u16)> {
    let segment = Frame::segment(CONTAINER, client, flags, (ISN, 2), b"");
    let run = kernel.run("from_container", &segment, kernel.uplink);
    assert_ne!(run.decision, Decision::Drop);
    let packet = &run.bytes[14..];
    let word = |at: usize| u32::from_ne_bytes(packet[at..at + 4].try_into().unwrap());
    let is_sent = run.decision == Decision::Redirect && packet[0] >> 4 == 6 && word(32) == REPLY;
    is_sent.then(|| ([word(24), word(28)], u16::from_be_bytes([packet[42], packet[43]])))
}

fn establish(kernel: &mut Kernel, entry: Prefix, client: &str) {
    assert_eq!(request(kernel, entry, client, SYN, 0).decision, Decision::Redirect);
    assert!(answer(kernel, client, SYN | ACK).is_some());
    assert_eq!(request(kernel, entry, client, ACK, ISN + 1).decision, Decision::Redirect);
}

fn table(kernel: &mut Kernel, client: &str) -> Option<&'static str> {
    kernel.reply(CONTAINER, client, TCP).map(|(table, _)| table)
}

fn port(client: &str) -> u16 {
    client.parse::<SocketAddrV4>().unwrap().port()
}

#[test]
fn a_request_reaches_the_container_and_its_answer_the_entry_node() {
    in_namespaces(|kernel| {
        kernel.backend("10.0.0.11", 7);
        let run = request(kernel, ENTRY, CLIENT, SYN, 0);
        assert_eq!(run.decision, Decision::Redirect);
        let expected = Frame::segment(CLIENT, CONTAINER, SYN, (1, 0), b"");
        assert_eq!(run.bytes[34..], expected.packet[20..], "ports, flags and checksum");
        assert_eq!(run.bytes[26..34], expected.packet[12..20], "addresses");
        assert_eq!(answer(kernel, CLIENT, SYN | ACK), Some((ENTRY, port(CLIENT))));
        assert_eq!(table(kernel, CLIENT), Some("SYN_REPLIES"));
        request(kernel, ENTRY, CLIENT, ACK, ISN);
        assert_eq!(table(kernel, CLIENT), Some("SYN_REPLIES"), "a forged acknowledgement");
        request(kernel, ENTRY, CLIENT, ACK, ISN + 1);
        assert_eq!(table(kernel, CLIENT), Some("TCP_REPLIES"));
    });
}

#[test]
fn a_connection_through_another_node_ends_by_rst_and_by_both_fins() {
    in_namespaces(|kernel| {
        kernel.backend("10.0.0.11", 7);
        establish(kernel, ENTRY, CLIENT);
        request(kernel, ENTRY, CLIENT, FIN | ACK, ISN + 1);
        assert_eq!(table(kernel, CLIENT), Some("TCP_REPLIES"), "half closed");
        assert_eq!(answer(kernel, CLIENT, FIN | ACK), Some((ENTRY, port(CLIENT))));
        assert_eq!(table(kernel, CLIENT), Some("SYN_REPLIES"));
        assert_eq!(answer(kernel, CLIENT, ACK), Some((ENTRY, port(CLIENT))), "the last segments pass");
        establish(kernel, ENTRY, CLIENT);
        answer(kernel, CLIENT, RST);
        assert_eq!(table(kernel, CLIENT), Some("SYN_REPLIES"));
    });
}

/// Two clients' tuples would be the same at the container: the second one gets another port, and both are established.
#[test]
fn the_same_tuple_through_two_entry_nodes_is_two_connections() {
    in_namespaces(|kernel| {
        kernel.backend("10.0.0.11", 7);
        establish(kernel, ENTRY, CLIENT);
        let second = request(kernel, OTHER, CLIENT, SYN, 0);
        let changed = format!("203.0.113.9:{}", u16::from_be_bytes([second.bytes[34], second.bytes[35]]));
        assert_ne!(changed, CLIENT);
        assert_eq!(answer(kernel, &changed, SYN | ACK), Some((OTHER, port(CLIENT))), "as the client knows it");
        request(kernel, OTHER, CLIENT, ACK, ISN + 1);
        assert_eq!([CLIENT, &changed].map(|client| table(kernel, client)), [Some("TCP_REPLIES"); 2]);
        assert_eq!(kernel.entries::<skep_ebpf::Tuple, skep_ebpf::Flow>("TCP_FLOWS"), 1, "that of the changed port");
        answer(kernel, &changed, RST);
        assert_eq!(table(kernel, &changed), Some("SYN_REPLIES"));
        assert_eq!(kernel.entries::<skep_ebpf::Tuple, skep_ebpf::Flow>("TCP_FLOWS"), 0);
        assert_eq!(answer(kernel, CLIENT, ACK), Some((ENTRY, port(CLIENT))));
    });
}

/// Review finding 17: a segment with a forged source, through another node, turns no replies away.
#[test]
fn another_node_takes_a_connection_over_only_after_silence() {
    in_namespaces(|kernel| {
        kernel.backend("10.0.0.11", 7);
        establish(kernel, ENTRY, CLIENT);
        let run = request(kernel, OTHER, CLIENT, ACK, 5);
        assert_eq!(run.decision, Decision::Redirect, "the container answers it as it answers every false segment");
        assert_eq!(answer(kernel, CLIENT, ACK), Some((ENTRY, port(CLIENT))));
        kernel.change_reply(CONTAINER, CLIENT, TCP, |reply| reply.seen = reply.seen.wrapping_sub(TAKEOVER_SILENCE));
        request(kernel, ENTRY, CLIENT, ACK, ISN + 1);
        request(kernel, OTHER, CLIENT, ACK, ISN + 1);
        assert_eq!(answer(kernel, CLIENT, ACK), Some((ENTRY, port(CLIENT))), "it has spoken");
        kernel.change_reply(CONTAINER, CLIENT, TCP, |reply| reply.seen = reply.seen.wrapping_sub(TAKEOVER_SILENCE));
        request(kernel, OTHER, CLIENT, ACK, ISN + 1);
        assert_eq!(answer(kernel, CLIENT, ACK), Some((OTHER, port(CLIENT))));
        assert_eq!(table(kernel, CLIENT), Some("TCP_REPLIES"), "the same connection");
    });
}

/// The same between this node and another one, both ways.
#[test]
fn a_connection_moves_between_this_node_and_another_one_only_after_silence() {
    const PORT: &str = "192.0.2.1:8080";
    in_namespaces(|kernel| {
        kernel.backend("10.0.0.11", 7);
        kernel.publish(TCP, 8080, &["10.0.0.11"], 0);
        let arrive = |kernel: &mut Kernel, flags, acknowledges| {
            let segment = Frame::segment(CLIENT, PORT, flags, (1, acknowledges), b"");
            assert_eq!(kernel.run("from_uplink", &segment, kernel.uplink).decision, Decision::Redirect);
        };
        arrive(kernel, SYN, 0);
        assert_eq!(answer(kernel, CLIENT, SYN | ACK), None, "it leaves by this node");
        arrive(kernel, ACK, ISN + 1);
        request(kernel, ENTRY, CLIENT, ACK, 5);
        assert_eq!(answer(kernel, CLIENT, ACK), None);
        kernel.change_flow(CLIENT, PORT, TCP, |flow| flow.seen = flow.seen.wrapping_sub(TAKEOVER_SILENCE));
        request(kernel, ENTRY, CLIENT, ACK, ISN + 1);
        assert_eq!(answer(kernel, CLIENT, ACK), Some((ENTRY, port(CLIENT))));

        arrive(kernel, ACK, 5);
        assert_eq!(answer(kernel, CLIENT, ACK), Some((ENTRY, port(CLIENT))), "the other one has just spoken");
        kernel.change_reply(CONTAINER, CLIENT, TCP, |reply| reply.seen = reply.seen.wrapping_sub(TAKEOVER_SILENCE));
        arrive(kernel, ACK, ISN + 1);
        assert_eq!(answer(kernel, CLIENT, ACK), None);
        arrive(kernel, ACK, ISN + 1);
        assert_eq!(kernel.flow(CLIENT, PORT, TCP).map(|(table, _)| table), Some("TCP_FLOWS"));
    });
}

/// Review, section B: a node that is taken over reaches published ports, as every client does, and nothing else.
#[test]
fn a_request_reaches_published_ports_of_containers_on_ingress_only() {
    in_namespaces(|kernel| {
        kernel.backend("10.0.0.11", 7);
        let to = |kernel: &mut Kernel, container: &str, flags| {
            let segment = Frame::segment(CLIENT, container, flags, (1, 1), b"");
            let packet = translated(kernel, REQUEST, ENTRY, &segment);
            kernel.run_bytes("from_mesh", &packet, kernel.uplink).decision
        };
        for flags in [SYN, ACK] {
            assert_eq!(to(kernel, "10.0.0.11:9200", flags), Decision::Drop, "not published");
        }
        assert_eq!(to(kernel, CONTAINER, SYN), Decision::Redirect);
        kernel.remove::<_, u32>("TARGETS", Target { owner: 7, port: 80_u16.to_be(), protocol: TCP, zero: 0 });
        assert_eq!(
            to(kernel, CONTAINER, ACK),
            Decision::Redirect,
            "a connection goes on when its port is not published any more"
        );
        let internal = Backend { ifindex: kernel.uplink, serving: 1, prefix: [0; 2], owner: 7, flags: 0 };
        kernel.backend("10.0.0.12", 7);
        assert_eq!(to(kernel, "10.0.0.12:80", SYN), Decision::Redirect);
        kernel.set("BACKENDS", v4("10.0.0.12"), internal);
        for flags in [SYN, ACK] {
            assert_eq!(to(kernel, "10.0.0.12:80", flags), Decision::Drop, "on another network");
        }
        assert_eq!(kernel.counted(Counter::DropForged), 4);
    });
}

#[test]
fn only_the_node_of_a_container_answers_for_it() {
    in_namespaces(|kernel| {
        let remote = Backend { ifindex: 0, serving: 1, prefix: ENTRY, owner: 7, flags: INGRESS };
        kernel.set("BACKENDS", v4("10.0.0.11"), remote);
        kernel.publish(TCP, 8080, &["10.0.0.11"], 0);
        let syn = Frame::tcp(CLIENT, "192.0.2.1:8080", SYN);
        assert_eq!(kernel.run("from_uplink", &syn, kernel.uplink).decision, Decision::Redirect);
        let segment = Frame::segment(CONTAINER, CLIENT, SYN | ACK, (ISN, 2), b"");
        let reply = |kernel: &mut Kernel, node| {
            let packet = translated(kernel, REPLY, node, &segment);
            kernel.run_bytes("from_mesh", &packet, kernel.uplink)
        };
        assert_eq!(reply(kernel, OTHER).decision, Decision::Drop);
        assert_eq!(kernel.counted(Counter::DropForged), 1);
        let run = reply(kernel, ENTRY);
        assert_eq!(run.decision, Decision::Redirect);
        let expected = Frame::segment("192.0.2.1:8080", CLIENT, SYN | ACK, (ISN, 2), b"");
        assert_eq!(run.bytes[34..], expected.packet[20..]);
        assert_eq!(run.bytes[26..34], expected.packet[12..20]);
    });
}

/// What `from_host` makes of a client's packet: the container's device, or the node that has it.
#[test]
fn a_client_s_packet_from_the_host_is_delivered_or_sent_to_the_container_s_node() {
    in_namespaces(|kernel| {
        kernel.backend("10.0.0.11", 7);
        let frames = [
            Frame::tcp(CLIENT, CONTAINER, SYN),
            Frame::udp(CLIENT, CONTAINER),
            Frame::tcp("[2001:db8:1::9]:40000", "[2fd:0:900::a00:b]:80", SYN),
        ];
        for frame in &frames {
            let run = kernel.run("from_host", frame, kernel.uplink);
            assert_eq!((run.decision, &run.bytes), (Decision::Redirect, &frame.bytes()), "here: unchanged");
        }
        let remote = Backend { ifindex: 0, serving: 1, prefix: ENTRY, owner: 7, flags: INGRESS };
        kernel.set("BACKENDS", v4("10.0.0.11"), remote);
        for (frame, next) in frames.iter().zip([4, 4, 41]) {
            let run = kernel.run("from_host", frame, kernel.uplink);
            assert_eq!(run.decision, Decision::Redirect);
            let (header, inner) = run.bytes[14..].split_at(V6);
            assert_eq!(header[24..32], bytes(ENTRY, REQUEST, Ipv4Addr::UNSPECIFIED)[..8], "to its node");
            if header[6] == next {
                assert_eq!(inner, frame.packet, "encapsulated, unchanged");
            } else {
                assert_eq!(run.bytes[14..], translated_out(kernel, frame), "translated");
            }
        }
        kernel.remove::<_, Backend>("BACKENDS", v4("10.0.0.11"));
        for frame in &frames {
            assert_eq!(kernel.run("from_host", frame, kernel.uplink).decision, Decision::Drop, "of no container");
        }
        assert_eq!(kernel.counted(Counter::DropBackend), 3);
    });
}
