//! What arrives at an uplink: whose packet it is, and which task a client gets.

use super::build::*;
use super::kernel::*;
use skep_ebpf::{Backend, Counter, GUARDED, NO_CLIENT, Source, USERSPACE_MARK};

const CLIENT: &str = "203.0.113.9:40000";
const PORT: &str = "192.0.2.1:8080";
const CLIENT6: &str = "[2001:db8:1::9]:40000";
const PORT6: &str = "[2001:db8::1]:8080";
const ONE: [u8; 4] = [10, 0, 0, 11];
const TWO: [u8; 4] = [10, 0, 0, 12];
/// Owners of backends.
const WEB: u32 = 7;
const OTHER: u32 = 8;

/// Port 8080 over TCP and UDP with one task, and a second task that is in no table yet.
fn published(kernel: &mut Kernel) {
    kernel.backend("10.0.0.11", WEB);
    kernel.backend("10.0.0.12", WEB);
    republish(kernel, &["10.0.0.11"], 0);
}

fn republish(kernel: &mut Kernel, backends: &[&str], flags: u16) {
    kernel.publish(TCP, 8080, backends, flags);
    kernel.publish(UDP, 8080, backends, flags);
}

fn arrive(kernel: &mut Kernel, frame: &Frame) -> Run {
    kernel.run("from_uplink", frame, kernel.uplink)
}

/// The IPv4 destination of a redirected frame; `None` if it was left to the host.
fn task(kernel: &mut Kernel, frame: &Frame) -> Option<[u8; 4]> {
    let run = arrive(kernel, frame);
    assert_ne!(run.decision, Decision::Drop, "{frame:?}");
    (run.decision == Decision::Redirect).then(|| run.bytes[30..34].try_into().unwrap())
}

#[test]
fn a_client_s_packet_to_a_published_port_reaches_a_task() {
    in_namespaces(|kernel| {
        published(kernel);
        for frame in [Frame::tcp(CLIENT, PORT, SYN), Frame::udp(CLIENT, PORT)] {
            assert_eq!(task(kernel, &frame), Some(ONE));
        }
        assert_eq!(arrive(kernel, &Frame::tcp(CLIENT6, PORT6, SYN)).decision, Decision::Redirect);
        assert_eq!(task(kernel, &Frame::tcp(CLIENT, "192.0.2.1:8081", SYN)), None, "not published");
        assert_eq!(task(kernel, &Frame::tcp(CLIENT, "203.0.113.77:8080", SYN)), None, "not the host's address");
    });
}

/// Review finding 10: `bpf_fib_lookup` cannot tell these from the host's packets; the MAC address can.
#[test]
fn frames_for_other_machines_broadcasts_and_multicasts_are_left_to_the_host() {
    let others = [[2, 0, 0, 0, 0, 9], [0xff; 6], [1, 0, 0x5e, 0, 0, 0xfb], [0x33, 0x33, 0, 0, 0, 0xfb]];
    in_namespaces(|kernel| {
        published(kernel);
        for mac in others {
            for to in [PORT, "192.0.2.255:8080", "224.0.0.251:8080", "8.8.8.8:8080"] {
                for frame in [Frame::tcp(CLIENT, to, SYN), Frame::udp(CLIENT, to)] {
                    assert_eq!(task(kernel, &frame.for_mac(mac)), None, "{to} {mac:x?}");
                }
            }
            let multicast = Frame::udp("[fe80::9]:5353", "[ff02::fb]:8080").for_mac(mac);
            assert_eq!(task(kernel, &multicast), None);
        }
        assert_eq!(task(kernel, &Frame::udp(CLIENT, PORT)), Some(ONE));
        assert_eq!(task(kernel, &Frame::udp(CLIENT, PORT).for_mac(others[0])), None, "nor when the flow is known");
        let first = Frame::udp(CLIENT, PORT).fragment(7, 0, true);
        assert_eq!(task(kernel, &first), Some(ONE));
        assert_eq!(task(kernel, &Frame::udp(CLIENT, PORT).fragment(7, 16, false).for_mac(others[0])), None);
    });
}

/// Review finding 1: the tunnel's port can be no published port, whatever the tables say.
#[test]
fn the_tunnel_s_datagrams_are_left_to_the_host() {
    in_namespaces(|kernel| {
        published(kernel);
        for port in [TUNNEL_PORT, 8080] {
            kernel.publish(UDP, port, &["10.0.0.11"], 0);
            let frame = Frame::udp("203.0.113.9:2377", &format!("192.0.2.1:{port}"));
            assert_eq!(task(kernel, &frame).is_none(), port == TUNNEL_PORT);
        }
    });
}

/// Review finding 2: a flow must not outlive the table that it was selected by.
#[test]
fn a_new_connection_of_a_known_tuple_asks_the_table() {
    in_namespaces(|kernel| {
        published(kernel);
        let syn = |sequence| Frame::syn(CLIENT, PORT, sequence);
        assert_eq!(task(kernel, &syn(1)), Some(ONE));
        assert_eq!(task(kernel, &Frame::tcp(CLIENT, PORT, ACK)), Some(ONE));
        republish(kernel, &["10.0.0.12"], 0);
        assert_eq!(task(kernel, &Frame::tcp(CLIENT, PORT, ACK)), Some(ONE), "an established connection keeps its task");
        assert_eq!(task(kernel, &syn(2)), Some(TWO), "a new connection from the same port does not");
        assert_eq!(task(kernel, &Frame::tcp(CLIENT, PORT, ACK)), Some(TWO));
    });
}

#[test]
fn scaling_out_reaches_clients_whose_tuples_are_known() {
    in_namespaces(|kernel| {
        published(kernel);
        let syn = |port: u16, sequence| Frame::syn(&format!("203.0.113.9:{port}"), PORT, sequence);
        for port in 20_000..20_500 {
            assert_eq!(task(kernel, &syn(port, 1)), Some(ONE));
        }
        republish(kernel, &["10.0.0.11", "10.0.0.12"], 0);
        let moved = (20_000..20_500).filter(|port| task(kernel, &syn(*port, 2)) == Some(TWO)).count();
        assert!((150..350).contains(&moved), "{moved} of 500 new connections reached the second task");
    });
}

/// Review finding 3: the right to a port is asked for each connection and each datagram, not once per tuple.
#[test]
fn a_source_that_lost_the_right_to_a_port_is_refused_also_when_its_flow_is_known() {
    in_namespaces(|kernel| {
        published(kernel);
        let frames = [Frame::tcp(CLIENT, PORT, SYN), Frame::udp(CLIENT, PORT)];
        for frame in &frames {
            assert_eq!(task(kernel, frame), Some(ONE));
        }
        republish(kernel, &["10.0.0.11"], GUARDED);
        for frame in &frames {
            assert_eq!(task(kernel, frame), None);
        }
        for protocol in [TCP, UDP] {
            kernel.allow(protocol, 8080, 4, "203.0.113.0", 24);
        }
        for frame in &frames {
            assert_eq!(task(kernel, frame), Some(ONE));
        }
    });
}

/// Review finding 5: what is known to be gone is answered where the table leads, not sent into silence.
#[test]
fn a_connection_to_a_backend_that_is_gone_is_selected_again() {
    in_namespaces(|kernel| {
        published(kernel);
        assert_eq!(task(kernel, &Frame::tcp(CLIENT, PORT, SYN)), Some(ONE));
        republish(kernel, &["10.0.0.12"], 0);
        kernel.remove::<_, Backend>("BACKENDS", v4("10.0.0.11"));
        assert_eq!(task(kernel, &Frame::tcp(CLIENT, PORT, ACK)), Some(TWO), "there the connection is unknown: RST");
    });
}

/// Review finding 9: datagrams between two published ports of nodes would never end.
#[test]
fn a_datagram_of_another_node_s_published_port_is_no_request() {
    in_namespaces(|kernel| {
        published(kernel);
        kernel.node("192.0.2.2");
        let dropped = |kernel: &mut Kernel, frame: &Frame| arrive(kernel, frame).decision == Decision::Drop;
        assert!(dropped(kernel, &Frame::udp("192.0.2.2:8080", PORT)));
        assert!(!dropped(kernel, &Frame::udp("192.0.2.2:40000", PORT)), "another program of the node is a client");
        assert!(!dropped(kernel, &Frame::udp("203.0.113.9:8080", PORT)), "and so is another machine");
        assert!(!dropped(kernel, &Frame::tcp("192.0.2.2:8080", PORT, SYN)), "TCP cannot loop");
    });
}

#[test]
fn sources_that_are_no_clients_are_left_to_the_host() {
    in_namespaces(|kernel| {
        published(kernel);
        kernel.set_source(Source { scope: NO_CLIENT, address: address("10.0.0.0") }, 24);
        assert_eq!(task(kernel, &Frame::tcp("10.0.0.77:40000", PORT, SYN)), None, "on a network of the cluster");
        assert_eq!(task(kernel, &Frame::tcp("10.20.30.40:40000", PORT, SYN)), Some(ONE), "in the pool, on no network");
    });
}

/// Review finding 20: a flow of the host ends with its traffic; then the client gets a task.
#[test]
fn a_datagram_flow_of_the_host_ends_when_it_is_idle() {
    in_namespaces(|kernel| {
        published(kernel);
        let own = Frame::udp(PORT, CLIENT);
        assert_eq!(kernel.run("out_uplink", &own, kernel.uplink).decision, Decision::Pass);
        let reply = Frame::udp(CLIENT, PORT);
        assert_eq!(task(kernel, &reply), None);
        kernel.change_flow(CLIENT, PORT, UDP, |flow| flow.seen = flow.seen.wrapping_sub(UDP_IDLE + 1));
        assert_eq!(kernel.run("out_uplink", &own, kernel.uplink).decision, Decision::Pass);
        assert_eq!(task(kernel, &reply), None, "the host's own datagrams keep it");
        kernel.change_flow(CLIENT, PORT, UDP, |flow| flow.seen = flow.seen.wrapping_sub(UDP_IDLE + 1));
        assert_eq!(task(kernel, &reply), Some(ONE));
    });
}

/// Review finding 20: a client that met the userspace datapath gets a task as soon as one is in the table.
#[test]
fn a_datagram_client_of_the_userspace_datapath_moves_to_a_task() {
    in_namespaces(|kernel| {
        published(kernel);
        republish(kernel, &[], 0);
        for (client, to) in [(CLIENT, PORT), (CLIENT6, PORT6)] {
            assert_eq!(arrive(kernel, &Frame::udp(client, to)).decision, Decision::Pass, "no task listens yet");
            let at = Context { mark: USERSPACE_MARK, ..Context::at(kernel.uplink) };
            assert_eq!(kernel.run_with("out_uplink", &Frame::udp(to, client), at).decision, Decision::Pass);
            assert_eq!(kernel.flow(client, to, UDP), None);
        }
        republish(kernel, &["10.0.0.11"], 0);
        for (client, to) in [(CLIENT, PORT), (CLIENT6, PORT6)] {
            assert_eq!(arrive(kernel, &Frame::udp(client, to)).decision, Decision::Redirect);
        }
    });
}

/// Review finding 2 (a): an address is given to a task of another service; a flow to the first one does not follow.
#[test]
fn a_flow_does_not_follow_an_address_to_another_service() {
    in_namespaces(|kernel| {
        published(kernel);
        let frames = [Frame::tcp(CLIENT, PORT, ACK), Frame::udp(CLIENT, PORT)];
        task(kernel, &Frame::tcp(CLIENT, PORT, SYN));
        for frame in &frames {
            assert_eq!(task(kernel, frame), Some(ONE));
        }
        republish(kernel, &["10.0.0.12"], 0);
        kernel.backend("10.0.0.11", OTHER);
        for frame in &frames {
            assert_eq!(task(kernel, frame), Some(TWO));
        }
    });
}

#[test]
fn a_datagram_flow_is_selected_again_after_it_was_idle() {
    in_namespaces(|kernel| {
        published(kernel);
        let frame = Frame::udp(CLIENT, PORT);
        assert_eq!(task(kernel, &frame), Some(ONE));
        republish(kernel, &["10.0.0.12"], 0);
        assert_eq!(task(kernel, &frame), Some(ONE), "in use");
        kernel.change_flow(CLIENT, PORT, UDP, |flow| flow.seen = flow.seen.wrapping_sub(UDP_IDLE + 1));
        assert_eq!(task(kernel, &frame), Some(TWO));
    });
}

/// Review finding 16: the reply leaves by the device that the client is reached by now.
#[test]
fn a_flow_follows_its_client_to_another_uplink() {
    in_namespaces(|kernel| {
        published(kernel);
        let (first, second) = (kernel.uplink, kernel.other_uplink);
        let device = |kernel: &mut Kernel| {
            let mut device = 0;
            kernel.change_flow(CLIENT, PORT, TCP, |flow| device = flow.ifindex);
            device
        };
        kernel.run("from_uplink", &Frame::tcp(CLIENT, PORT, SYN), first);
        assert_eq!(device(kernel), first);
        let moved = Frame::tcp(CLIENT, PORT, ACK).for_mac(OTHER_UPLINK_MAC);
        kernel.run("from_uplink", &moved, second);
        assert_eq!(device(kernel), second);
    });
}

/// Review finding 14: a machine of the LAN may have the number of a container.
#[test]
fn forwarded_packets_of_machines_outside_pass_and_those_of_containers_are_verified() {
    in_namespaces(|kernel| {
        published(kernel);
        kernel.set("UPLINKS", kernel.other_uplink, 0_u32);
        let frame = Frame::udp("10.0.0.11:5000", "203.0.113.9:53");
        let leaves = |kernel: &mut Kernel, arrived_by: u32| {
            kernel.run_with("out_uplink", &frame, Context { arrived_by, ..Context::at(kernel.uplink) }).decision
        };
        assert_eq!(leaves(kernel, kernel.other_uplink), Decision::Pass, "it arrived by an uplink");
        assert_eq!(leaves(kernel, kernel.uplink), Decision::Drop, "it arrived by a bridge");
        assert_eq!(leaves(kernel, 0), Decision::Pass, "the host's own");
    });
}

/// The node is a router: of a VPN whose device has no link header and of the engine's plain containers. What they exchange with
/// machines outside from the number of a published port is neither taken nor recorded, masqueraded or not.
#[test]
fn what_the_node_forwards_for_devices_that_are_not_served_is_left_alone() {
    in_namespaces(|kernel| {
        for line in [
            "sysctl -qw net.ipv4.ip_forward=1",
            "sysctl -qw net.ipv6.conf.all.forwarding=1",
            "ip tuntap add vpn0 mode tun",
            "ip address add 10.8.0.1/24 dev vpn0",
            "ip -6 address add 2001:db8:8::1/64 dev vpn0 nodad",
            "ip link set vpn0 up",
            "ip link add docker0 type bridge",
            "ip address add 172.17.0.1/16 dev docker0",
            "ip link set docker0 up",
        ] {
            run(line);
        }
        published(kernel);
        kernel.set("UPLINKS", kernel.uplink, 0_u32);
        let behind = [
            ("vpn0", "10.8.0.5:8080", "203.0.113.9:8080"),
            ("vpn0", "[2001:db8:8::5]:8080", CLIENT6),
            ("docker0", "172.17.0.2:8080", "203.0.113.9:9000"),
        ];
        for (device, inside, outside) in behind {
            let at = Context { arrived_by: ifindex(device), ..Context::at(kernel.uplink) };
            for protocol in [TCP, UDP] {
                let make = |from, to| if protocol == TCP { Frame::tcp(from, to, SYN) } else { Frame::udp(from, to) };
                let (there, back) = (make(inside, outside), make(outside, inside));
                let run = kernel.run_with("out_uplink", &there, at);
                assert_eq!((run.decision, &run.bytes[14..]), (Decision::Pass, &there.packet[..]), "{inside}");
                let run = kernel.run("from_uplink", &back, kernel.uplink);
                assert_eq!((run.decision, &run.bytes[14..]), (Decision::Pass, &back.packet[..]), "{inside}");
                assert_eq!(kernel.flow(outside, inside, protocol), None, "{inside}");
            }
        }
        // Masqueraded, they have the host's address: what comes back is the host's, until the next connection of the client.
        let at = Context { arrived_by: ifindex("docker0"), ..Context::at(kernel.uplink) };
        for frame in [Frame::tcp(PORT, CLIENT, SYN), Frame::udp(PORT, CLIENT)] {
            assert_eq!(kernel.run_with("out_uplink", &frame, at).decision, Decision::Pass);
        }
        assert_eq!(task(kernel, &Frame::tcp(CLIENT, PORT, SYN | ACK)), None);
        assert_eq!(task(kernel, &Frame::udp(CLIENT, PORT)), None);
        assert_eq!(task(kernel, &Frame::tcp(CLIENT, PORT, SYN)), Some(ONE));
        assert_eq!(task(kernel, &Frame::udp("203.0.113.10:40000", PORT)), Some(ONE), "others are served");
    });
}

#[test]
fn what_is_left_to_the_host_is_counted_by_reason() {
    in_namespaces(|kernel| {
        published(kernel);
        kernel.set_source(Source { scope: NO_CLIENT, address: address("10.0.0.0") }, 24);
        task(kernel, &Frame::tcp("10.0.0.77:40000", PORT, SYN));
        republish(kernel, &["10.0.0.11"], GUARDED);
        task(kernel, &Frame::tcp(CLIENT, PORT, SYN));
        republish(kernel, &[], 0);
        task(kernel, &Frame::tcp(CLIENT, PORT, SYN));
        for counter in [Counter::PassNoClient, Counter::PassNotAllowed, Counter::PassNoBackend] {
            assert_eq!(kernel.counted(counter), 1, "{}", counter.name());
        }
    });
}
