//! What the programs do with the other fields of a packet's headers: they arrive as they were sent, and every sum stays right.

use super::build::*;
use super::kernel::*;
use skep_ebpf::Counter;

const CLIENT: &str = "203.0.113.9:40000";
const CLIENT6: &str = "[2001:db8:1::9]:40000";
const PORT: &str = "192.0.2.1:8080";
const PORT6: &str = "[2001:db8::1]:8080";
const TASK: &str = "10.0.0.11:80";
/// `Config::containers` of these tests.
const TASK6: &str = "[2fd:0:900::a00:b]:80";
/// A client, the port that it asks, and the task that answers.
const PATHS: [[&str; 3]; 2] = [[CLIENT, PORT, TASK], [CLIENT6, PORT6, TASK6]];

fn published(kernel: &mut Kernel) {
    kernel.backend("10.0.0.11", PORT_OWNER);
    for protocol in [TCP, UDP] {
        kernel.publish(protocol, 8080, &["10.0.0.11"], 0);
    }
}

/// Review, section B: some cards deliver the sum of the whole packet (`CHECKSUM_COMPLETE`). A program that changes the packet
/// and not that sum makes the kernel compute it again, with a message ("hw csum failure").
#[test]
fn the_sum_of_a_whole_packet_stays_right() {
    in_namespaces(|kernel| {
        published(kernel);
        for [client, port, task] in PATHS {
            for make in [|from: &str, to: &str| Frame::tcp(from, to, SYN), |from: &str, to: &str| Frame::udp(from, to)] {
                let cases = [
                    ("from_uplink", make(client, port), make(client, task)),
                    ("from_container", make(task, client), make(port, client)),
                ];
                for (hook, frame, expected) in cases {
                    let Some(run) = kernel.run_summed(hook, &frame, kernel.uplink) else {
                        eprintln!("this kernel makes no packets with such sums for a test");
                        return;
                    };
                    assert_eq!(run.decision, Decision::Redirect);
                    assert_eq!(run.bytes[14..], expected.packet);
                }
            }
            // Their port is closed, say a router before the client, and the client; then the task, which ends the flow.
            let about = (Frame::udp(client, task), Frame::udp(port, client));
            let router = if client == CLIENT { "198.51.100.254" } else { "2001:db8:7::1" };
            for source in [router, host(client)] {
                let error = kernel.run_summed("from_uplink", &Frame::unreachable(source, &about.1), kernel.uplink);
                assert_eq!(error.expect("as above").decision, Decision::Redirect, "{source}");
            }
            let unreachable = kernel.run_summed("from_container", &Frame::unreachable(host(task), &about.0), kernel.uplink);
            assert_eq!(unreachable.expect("as above").decision, Decision::Redirect);
        }
        let (first, later) = (Frame::udp(CLIENT, PORT).fragment(7, 0, true), Frame::udp(CLIENT, PORT).fragment(7, 16, false));
        for fragment in [first, later] {
            let run = kernel.run_summed("from_uplink", &fragment, kernel.uplink).expect("as above");
            assert_eq!(run.decision, Decision::Redirect);
        }
    });
}

fn host(address: &str) -> &str {
    address.rsplit_once(':').expect("a port").0.trim_matches(['[', ']'])
}

/// Crossings: DSCP and ECN of the packet, and its TTL, which no hop of the mesh takes from: to traceroute a task is the first.
#[test]
fn service_class_congestion_marks_and_ttl_arrive_as_they_were_sent() {
    in_namespaces(|kernel| {
        published(kernel);
        for [client, port, task] in PATHS {
            for make in [|from: &str, to: &str| Frame::tcp(from, to, SYN), |from: &str, to: &str| Frame::udp(from, to)] {
                // Expedited forwarding; congestion experienced.
                for (class, ttl) in [(46 << 2 | 3, 1), (10 << 2 | 1, 63)] {
                    let sent = |from: &str, to: &str| make(from, to).class(class).ttl(ttl);
                    let there = kernel.run("from_uplink", &sent(client, port), kernel.uplink);
                    assert_eq!(there.bytes[14..], sent(client, task).packet, "{client}");
                    let back = kernel.run("from_container", &sent(task, client), kernel.uplink);
                    assert_eq!(back.bytes[14..], sent(port, client).packet, "{client}");
                }
            }
        }
    });
}

/// Crossings: a packet with IPv4 options is the host's, whether it begins a connection or is in the middle of one.
#[test]
fn packets_with_ipv4_options_are_left_to_the_host() {
    in_namespaces(|kernel| {
        published(kernel);
        kernel.run("from_uplink", &Frame::tcp(CLIENT, PORT, SYN), kernel.uplink);
        for frame in [Frame::tcp(CLIENT, PORT, SYN), Frame::tcp(CLIENT, PORT, ACK), Frame::udp(CLIENT, PORT)] {
            let frame = frame.router_alert();
            let run = kernel.run("from_uplink", &frame, kernel.uplink);
            assert_eq!((run.decision, &run.bytes[14..]), (Decision::Pass, &frame.packet[..]));
        }
    });
}

/// And so is one with an IPv6 extension header. Both are counted, as nothing else shows why a client's address is lost.
#[test]
fn packets_with_headers_that_the_programs_do_not_read_are_counted() {
    in_namespaces(|kernel| {
        published(kernel);
        let frames = [
            Frame::tcp(CLIENT, PORT, SYN).router_alert(),
            Frame::udp(CLIENT, PORT).router_alert(),
            Frame::tcp(CLIENT6, PORT6, ACK).extension(0),
            Frame::udp(CLIENT6, PORT6).extension(60),
        ];
        kernel.watch(u32::MAX, 100, true);
        for (frame, counted) in frames.iter().zip(1..) {
            let run = kernel.run("from_uplink", frame, kernel.uplink);
            assert_eq!((run.decision, &run.bytes[14..]), (Decision::Pass, &frame.packet[..]));
            assert_eq!(kernel.counted(Counter::PassHeaders), counted, "{frame:?}");
        }
        let events = kernel.events();
        let seen: Vec<_> =
            events.iter().map(|event| (event.reason, event.owner, event.protocol, event.destination_port)).collect();
        let expected = [TCP, UDP, TCP, UDP].map(|protocol| (Counter::PassHeaders as u16, PORT_OWNER, protocol, 8080_u16.to_be()));
        assert_eq!(seen, expected);
        // What concerns no published port of this host is not.
        for frame in [
            Frame::tcp(CLIENT, "192.0.2.1:22", SYN).router_alert(),
            Frame::tcp(CLIENT, "203.0.113.77:8080", SYN).router_alert(),
            Frame::tcp(CLIENT6, "[2001:db8::1]:22", SYN).extension(0),
            Frame::udp(CLIENT, PORT).fragment(7, 16, false).router_alert(),
        ] {
            assert_eq!(kernel.run("from_uplink", &frame, kernel.uplink).decision, Decision::Pass);
        }
        assert_eq!(kernel.counted(Counter::PassHeaders), 4);
        assert_eq!(kernel.refusals().into_iter().map(|(_, count)| count).collect::<Vec<_>>(), [4]);
    });
}

/// Review, section B: segments that a card has merged to more than 64 KB have the length 0 (BIG TCP).
#[test]
fn a_length_of_0_stays_and_the_sums_are_right() {
    in_namespaces(|kernel| {
        published(kernel);
        kernel.run("from_uplink", &Frame::tcp(CLIENT, PORT, SYN), kernel.uplink);
        for flags in [SYN, ACK] {
            let merged = |from: &str, to: &str| Frame::tcp(from, to, flags).length(0);
            let there = kernel.run("from_uplink", &merged(CLIENT, PORT), kernel.uplink);
            assert_eq!(there.bytes[14..], merged(CLIENT, TASK).packet);
            let back = kernel.run("from_container", &merged(TASK, CLIENT), kernel.uplink);
            assert_eq!(back.bytes[14..], merged(PORT, CLIENT).packet);
        }
    });
}
