//! Life of a flow: what establishes a connection, what ends it, and what cannot push it out.

use super::build::*;
use super::kernel::*;
use skep_ebpf::{Backend, Counter, Flow, Tuple, Vip};

/// Sequence number of the container's SYN.
const ISN: u32 = 0xffff_ffff;
const WEB: u32 = 7;

/// A client's connection to port 8080 with a task of this node.
#[derive(Clone)]
struct Connection {
    client: String,
    port: &'static str,
    container: &'static str,
}

impl Connection {
    fn v4(client: &str) -> Self {
        Self { client: client.to_owned(), port: "192.0.2.1:8080", container: "10.0.0.11:80" }
    }

    fn v6(client: &str) -> Self {
        // `Config::containers` of these tests.
        Self { client: client.to_owned(), port: "[2001:db8::1]:8080", container: "[2fd:0:900::a00:b]:80" }
    }

    /// A segment of the client.
    fn asks(&self, kernel: &mut Kernel, flags: u8, acknowledges: u32) -> Decision {
        let frame = Frame::segment(&self.client, self.port, flags, (1, acknowledges), b"");
        kernel.run("from_uplink", &frame, kernel.uplink).decision
    }

    /// A SYN of the client.
    fn begins(&self, kernel: &mut Kernel, sequence: u32) -> Decision {
        kernel.run("from_uplink", &Frame::syn(&self.client, self.port, sequence), kernel.uplink).decision
    }

    /// A segment of the client with a sequence number.
    fn says(&self, kernel: &mut Kernel, flags: u8, sequence: u32) -> Decision {
        let frame = Frame::segment(&self.client, self.port, flags, (sequence, ISN.wrapping_add(1)), b"");
        kernel.run("from_uplink", &frame, kernel.uplink).decision
    }

    /// The container that its packets go to.
    fn task(&self, kernel: &mut Kernel) -> String {
        let (_, flow) = kernel.flow(&self.client, self.port, TCP).expect("a flow");
        std::net::Ipv4Addr::from(flow.backend.to_ne_bytes()).to_string()
    }

    /// A segment of the container.
    fn answers(&self, kernel: &mut Kernel, flags: u8) -> Decision {
        let frame = Frame::segment(self.container, &self.client, flags, (ISN, 2), b"push");
        kernel.run("from_container", &frame, kernel.uplink).decision
    }

    fn handshake(&self, kernel: &mut Kernel) {
        assert_eq!(self.asks(kernel, SYN, 0), Decision::Redirect);
        assert_eq!(self.answers(kernel, SYN | ACK), Decision::Redirect);
        assert_eq!(self.asks(kernel, ACK, ISN.wrapping_add(1)), Decision::Redirect);
    }

    fn closes(&self, kernel: &mut Kernel) {
        assert_eq!(self.asks(kernel, FIN | ACK, ISN.wrapping_add(1)), Decision::Redirect);
        assert_eq!(self.answers(kernel, FIN | ACK), Decision::Redirect);
        assert_eq!(self.asks(kernel, ACK, ISN.wrapping_add(2)), Decision::Redirect, "the last acknowledgement");
    }

    fn is_established(&self, kernel: &mut Kernel) -> bool {
        let flow = kernel.flow(&self.client, self.port, TCP).map(|(table, _)| table);
        let reply = kernel.reply(self.container, &self.client, TCP).map(|(table, _)| table);
        let both = (flow == Some("TCP_FLOWS"), reply == Some("TCP_REPLIES"));
        assert_eq!(both.0, both.1, "{flow:?} {reply:?}");
        both.0
    }
}

fn published(kernel: &mut Kernel) {
    kernel.backend("10.0.0.11", WEB);
    kernel.backend("10.0.0.12", WEB);
    for protocol in [TCP, UDP] {
        kernel.publish(protocol, 8080, &["10.0.0.11"], 0);
    }
}

fn clients(count: u32) -> impl Iterator<Item = String> {
    (0..count).map(|n| format!("198.18.{}.{}:{}", n >> 8 & 0xff, n & 0xff, 1024 + (n >> 16)))
}

#[test]
fn a_connection_is_established_by_the_client_s_ack_of_the_container_s_syn() {
    in_namespaces(|kernel| {
        published(kernel);
        for one in [Connection::v4("203.0.113.9:40000"), Connection::v6("[2001:db8:1::9]:40000")] {
            one.asks(kernel, SYN, 0);
            assert!(!one.is_established(kernel));
            one.asks(kernel, ACK, ISN.wrapping_add(1));
            assert!(!one.is_established(kernel), "the container has not answered");
            one.answers(kernel, SYN | ACK);
            assert!(!one.is_established(kernel), "an answered SYN");
            one.asks(kernel, ACK, ISN);
            assert!(!one.is_established(kernel), "a forged acknowledgement");
            one.asks(kernel, ACK, ISN.wrapping_add(1));
            assert!(one.is_established(kernel));
        }
        assert_eq!(kernel.counted(Counter::Established), 2);
    });
}

/// Review finding 6: short exchanges, however many, do not push an idle connection out, in either direction.
#[test]
fn short_exchanges_do_not_push_out_an_idle_connection() {
    in_namespaces(|kernel| {
        published(kernel);
        let idle = [Connection::v4("203.0.113.9:40000"), Connection::v6("[2001:db8:1::9]:40000")];
        let half_closed = Connection::v4("203.0.113.9:40001");
        for one in idle.iter().chain([&half_closed]) {
            one.handshake(kernel);
        }
        half_closed.asks(kernel, FIN | ACK, ISN.wrapping_add(1));
        let established = |kernel: &mut Kernel| kernel.entries::<Tuple, Flow>("TCP_FLOWS");
        for client in clients(2 * FLOWS) {
            kernel.run("from_uplink", &Frame::udp(&client, "192.0.2.1:8080"), kernel.uplink);
            let answer = kernel.run("from_container", &Frame::udp("10.0.0.11:80", &client), kernel.uplink);
            assert_eq!(answer.decision, Decision::Redirect);
        }
        for client in clients(2 * FLOWS) {
            let short = Connection::v4(&client);
            short.handshake(kernel);
            short.closes(kernel);
        }
        for client in clients(2 * FLOWS) {
            let embryo = Connection::v4(&client);
            embryo.asks(kernel, SYN, 0);
            embryo.answers(kernel, SYN | ACK);
        }
        assert_eq!(established(kernel), 3);
        for one in idle.iter().chain([&half_closed]) {
            assert!(one.is_established(kernel), "{}", one.client);
            let pushed = kernel.run("from_container", &Frame::tcp(one.container, &one.client, ACK), kernel.uplink);
            assert_eq!(pushed.decision, Decision::Redirect, "server push");
            let expected = Frame::tcp(one.port, &one.client, ACK);
            assert_eq!(pushed.bytes[14..], expected.packet, "with the address that the client asked for");
            assert_eq!(one.asks(kernel, ACK, ISN.wrapping_add(1)), Decision::Redirect);
        }
        assert_eq!(kernel.counted(Counter::FlowsFull), 0);
    });
}

#[test]
fn rst_of_either_end_and_both_fins_end_a_connection() {
    in_namespaces(|kernel| {
        published(kernel);
        let port = std::cell::Cell::new(40_000);
        let new = |kernel: &mut Kernel| {
            port.set(port.get() + 1);
            let one = Connection::v4(&format!("203.0.113.9:{}", port.get()));
            one.handshake(kernel);
            assert!(one.is_established(kernel));
            one
        };
        let one = new(kernel);
        one.asks(kernel, RST, 0);
        assert!(!one.is_established(kernel), "RST of the client");

        let one = new(kernel);
        one.answers(kernel, RST);
        assert!(!one.is_established(kernel), "RST of the container");

        let one = new(kernel);
        one.closes(kernel);
        assert!(!one.is_established(kernel), "the client closes first");
        assert_eq!(one.answers(kernel, FIN | ACK), Decision::Redirect, "sent again");
        one.asks(kernel, ACK, ISN.wrapping_add(2));
        assert!(!one.is_established(kernel), "the last segments do not begin it again");

        let one = new(kernel);
        one.answers(kernel, FIN | ACK);
        assert!(one.is_established(kernel), "half closed");
        one.asks(kernel, ACK, ISN.wrapping_add(2));
        assert!(one.is_established(kernel), "half closed");
        one.asks(kernel, FIN | ACK, ISN.wrapping_add(2));
        assert!(!one.is_established(kernel), "the container closes first");
        assert_eq!(one.answers(kernel, ACK), Decision::Redirect, "the last acknowledgement");
        one.asks(kernel, FIN | ACK, ISN.wrapping_add(2));
        one.asks(kernel, ACK, ISN.wrapping_add(2));
        assert!(!one.is_established(kernel));

        assert_eq!(kernel.counted(Counter::Ended), 4);
        let again = Connection::v4("203.0.113.9:40003");
        again.handshake(kernel);
        assert!(again.is_established(kernel), "a new connection of the same tuple");
    });
}

/// A forged RST, with a sequence number that the container does not accept, ends nothing.
#[test]
fn a_connection_that_goes_on_after_rst_is_established_again() {
    in_namespaces(|kernel| {
        published(kernel);
        let one = Connection::v4("203.0.113.9:40000");
        one.handshake(kernel);
        one.asks(kernel, RST, 0);
        assert_eq!(one.answers(kernel, ACK), Decision::Redirect, "server push");
        one.asks(kernel, ACK, 77);
        assert!(one.is_established(kernel));
    });
}

#[test]
fn a_connection_without_room_works_and_is_counted() {
    in_namespaces(|kernel| {
        published(kernel);
        let mut last = None;
        for client in clients(FLOWS + 1) {
            let one = Connection::v4(&client);
            one.handshake(kernel);
            last = Some(one);
        }
        let last = last.expect("one");
        assert!(!last.is_established(kernel));
        assert_eq!(last.answers(kernel, ACK), Decision::Redirect);
        assert_eq!(last.asks(kernel, ACK, 9), Decision::Redirect);
        assert_eq!(kernel.counted(Counter::FlowsFull), 1, "once");
        let first = Connection::v4(&clients(1).next().expect("one"));
        first.closes(kernel);
        last.asks(kernel, ACK, 9);
        assert!(last.is_established(kernel), "as soon as there is room");
    });
}

/// Review finding 2: also when the earlier connection was established and its end was not seen.
#[test]
fn a_new_connection_of_an_established_tuple_asks_the_table() {
    in_namespaces(|kernel| {
        published(kernel);
        let one = Connection::v4("203.0.113.9:40000");
        one.handshake(kernel);
        assert_eq!(one.begins(kernel, 77), Decision::Redirect);
        assert!(one.is_established(kernel), "the same task: it knows whether the connection is over");
        one.asks(kernel, FIN | ACK, ISN.wrapping_add(1));
        one.begins(kernel, 78);
        one.answers(kernel, FIN | ACK);
        assert!(one.is_established(kernel), "the first FIN was that of the earlier connection");
        kernel.publish(TCP, 8080, &["10.0.0.12"], 0);
        assert_eq!(one.begins(kernel, 79), Decision::Redirect);
        let other = Connection { container: "10.0.0.12:80", ..one.clone() };
        assert_eq!(kernel.reply(one.container, &one.client, TCP), None);
        assert!(!other.is_established(kernel));
        other.answers(kernel, SYN | ACK);
        other.asks(kernel, ACK, ISN.wrapping_add(1));
        assert!(other.is_established(kernel));
    });
}

/// A SYN that is sent again is of the same connection: the container that may have answered the first one gets it, whatever the
/// table has become since.
#[test]
fn a_syn_that_is_sent_again_stays_with_its_container() {
    in_namespaces(|kernel| {
        published(kernel);
        let clients = [Connection::v4("203.0.113.9:40000"), Connection::v6("[2001:db8:1::9]:40000")];
        let (unanswered, answered, drained) = (&clients, ["203.0.113.9:40001"], ["203.0.113.9:40002", "203.0.113.9:40003"]);
        let answered = answered.map(Connection::v4);
        let drained = drained.map(Connection::v4);
        for one in unanswered.iter().chain(&answered).chain(&drained) {
            one.begins(kernel, 5);
        }
        for one in answered.iter().chain(&drained[..1]) {
            one.answers(kernel, SYN | ACK);
        }
        kernel.publish(TCP, 8080, &["10.0.0.12"], 0);
        for one in unanswered.iter().chain(&answered) {
            assert_eq!(one.begins(kernel, 5), Decision::Redirect);
            assert_eq!(one.task(kernel), "10.0.0.11", "{}", one.client);
        }
        // The container that is on its way out has answered one of these.
        let backend: Backend = kernel.get("BACKENDS", v4("10.0.0.11")).expect("a backend");
        kernel.set("BACKENDS", v4("10.0.0.11"), Backend { serving: 0, ..backend });
        for (one, task) in drained.iter().zip(["10.0.0.11", "10.0.0.12"]) {
            one.begins(kernel, 5);
            assert_eq!(one.task(kernel), task, "{}", one.client);
        }
        answered[0].asks(kernel, ACK, ISN.wrapping_add(1));
        assert!(answered[0].is_established(kernel));
        answered[0].begins(kernel, 5);
        assert_eq!(answered[0].task(kernel), "10.0.0.11", "a SYN that arrives late is that of the connection");
        assert!(answered[0].is_established(kernel));
        for (number, one) in (6..).zip(unanswered.iter().chain(&answered)) {
            one.begins(kernel, number);
            assert_eq!(one.task(kernel), "10.0.0.12", "a new connection");
        }
    });
}

/// After RST the same number is another connection: a SYN that was refused is not sent again.
#[test]
fn a_refused_connection_leaves_nothing_to_stay_with() {
    in_namespaces(|kernel| {
        published(kernel);
        let one = Connection::v4("203.0.113.9:40000");
        one.begins(kernel, 5);
        one.answers(kernel, RST | ACK);
        kernel.publish(TCP, 8080, &["10.0.0.12"], 0);
        one.begins(kernel, 5);
        assert_eq!(one.task(kernel), "10.0.0.12");
    });
}

/// A forged RST or FIN that the container does not accept, as its number is far off, does not end the protection of an idle
/// connection.
#[test]
fn the_end_of_a_connection_has_a_number_that_the_container_may_accept() {
    in_namespaces(|kernel| {
        published(kernel);
        for (port, flags) in (40_000..).zip([RST, RST | ACK, FIN | ACK]) {
            let one = Connection::v4(&format!("203.0.113.9:{port}"));
            one.handshake(kernel);
            // It acknowledges 2.
            one.answers(kernel, ACK);
            if flags & FIN != 0 {
                one.answers(kernel, FIN | ACK);
            }
            for forged in [0x8000_0000, 0x4000_0000, (1 << 23) + 2, 2_u32.wrapping_sub((1 << 16) + 1)] {
                assert_eq!(one.says(kernel, flags, forged), Decision::Redirect);
                assert!(one.is_established(kernel), "{flags} {forged:x}");
            }
            one.says(kernel, flags, if flags & FIN != 0 { 2 + 4096 } else { 2 });
            assert!(!one.is_established(kernel), "{flags}");
        }
        assert_eq!(kernel.counted(Counter::Ended), 3);
    });
}

/// One client cannot take all the room for established connections. What is beyond its share works as if there was no room.
#[test]
fn a_client_has_a_share_of_the_established_connections() {
    in_namespaces(|kernel| {
        published(kernel);
        let many = |n: u32| Connection::v4(&format!("203.0.113.9:{}", 1024 + n));
        let many6 = |n: u32| Connection::v6(&format!("[2001:db8:1:2::{n:x}]:4000"));
        let makers: [&dyn Fn(u32) -> Connection; 2] = [&many, &many6];
        for (crowd, make) in (1..).zip(makers) {
            for n in 1..=FLOWS_PER_SOURCE {
                make(n).handshake(kernel);
                assert!(make(n).is_established(kernel), "{n}");
            }
            let beyond = make(FLOWS_PER_SOURCE + 1);
            beyond.handshake(kernel);
            assert!(!beyond.is_established(kernel));
            assert_eq!(beyond.asks(kernel, ACK, 9), Decision::Redirect, "it works");
            assert_eq!(kernel.counted(Counter::FlowsOfSource), crowd, "counted once");
            make(1).closes(kernel);
            beyond.asks(kernel, ACK, ISN.wrapping_add(1));
            assert!(beyond.is_established(kernel), "as soon as another one of the client has ended");
        }
        let other = Connection::v4("203.0.113.10:1024");
        other.handshake(kernel);
        assert!(other.is_established(kernel));
        assert_eq!(kernel.counted(Counter::FlowsFull), 0);
    });
}

const VIP: &str = "10.0.1.2:7000";
const TASK: &str = "10.0.1.11:7000";
const CALLER: &str = "10.0.1.5:40000";

/// A service with a virtual address and one task, and a container that may call it.
fn virtual_address(kernel: &mut Kernel) {
    for address in ["10.0.1.11", "10.0.1.5"] {
        let backend = Backend { ifindex: kernel.uplink, serving: 1, owner: WEB, ..Backend::default() };
        kernel.set("BACKENDS", v4(address), backend);
    }
    let base = kernel.add_slots(&["10.0.1.11"]);
    let vip = Vip { network: v4("10.0.1.0"), mask: v4("255.255.255.0"), base, size: 1, owner: WEB };
    kernel.set("VIPS", v4("10.0.1.2"), vip);
}

/// No hook runs at `connect` of UDP-Lite sockets, so what a connected one sends is for the virtual address itself.
#[test]
fn datagrams_of_connected_udp_lite_sockets_reach_a_task() {
    in_namespaces(|kernel| {
        virtual_address(kernel);
        for make in [Frame::udp_lite, Frame::udp] {
            let there = kernel.run("from_container", &make(CALLER, VIP), kernel.uplink);
            assert_eq!(there.decision, Decision::Pass);
            assert_eq!(there.bytes[14..], make(CALLER, TASK).packet, "with the right checksum");
            let back = kernel.run("from_container", &make(TASK, CALLER), kernel.uplink);
            assert_eq!(back.decision, Decision::Redirect);
            assert_eq!(back.bytes[14..], make(VIP, CALLER).packet);
        }
    });
}

/// Between containers on another network than `ingress` the tables of flows are looked at only once packets to virtual addresses
/// were translated.
#[test]
fn connections_between_containers_need_no_look_at_the_flows() {
    in_namespaces(|kernel| {
        published(kernel);
        virtual_address(kernel);
        kernel.change_config(|config| (config.ingress, config.ingress_length) = (v4("10.0.0.0"), 24));
        let one = Connection::v4("203.0.113.9:40000");
        one.handshake(kernel);
        assert!(one.is_established(kernel), "replies of published ports are found");
        let plain = Frame::tcp(TASK, CALLER, ACK);
        let passes = |kernel: &mut Kernel, frame: &Frame| {
            let run = kernel.run("from_container", frame, kernel.uplink);
            run.decision == Decision::Pass && run.bytes[14..] == frame.packet
        };
        // An entry that nothing of this node can have made yet shows that there is no look.
        kernel.set("SYN_REPLIES", tuple(TASK, CALLER, TCP), skep_ebpf::Reply::default());
        assert!(passes(kernel, &plain));
        kernel.remove::<_, skep_ebpf::Reply>("SYN_REPLIES", tuple(TASK, CALLER, TCP));
        let there = kernel.run("from_container", &Frame::tcp(CALLER, VIP, SYN), kernel.uplink);
        assert_eq!(there.bytes[14..], Frame::tcp(CALLER, TASK, SYN).packet);
        let back = kernel.run("from_container", &Frame::tcp(TASK, CALLER, SYN | ACK), kernel.uplink);
        assert_eq!(back.decision, Decision::Redirect, "from now on they are");
        assert_eq!(back.bytes[14..], Frame::tcp(VIP, CALLER, SYN | ACK).packet);
    });
}

/// Review, section B: a container cannot tell clients of another one that its port is closed, whatever source it names.
#[test]
fn a_container_sends_errors_about_its_own_flows_only() {
    in_namespaces(|kernel| {
        published(kernel);
        let other = Backend { ifindex: kernel.other_uplink, ..kernel.get("BACKENDS", v4("10.0.0.12")).expect("a backend") };
        kernel.set("BACKENDS", v4("10.0.0.12"), other);
        let client = "203.0.113.9:40000";
        kernel.run("from_uplink", &Frame::udp(client, "192.0.2.1:8080"), kernel.uplink);
        let about = Frame::udp(client, "10.0.0.11:80");
        for source in ["10.0.0.11", "10.0.0.12"] {
            let error = Frame::unreachable(source, &about);
            assert_eq!(kernel.run("from_container", &error, kernel.other_uplink).decision, Decision::Drop, "{source}");
        }
        assert_eq!(kernel.counted(Counter::DropForged), 2);
        let own = kernel.run("from_container", &Frame::unreachable("10.0.0.11", &about), kernel.uplink);
        assert_eq!(own.decision, Decision::Redirect);
        let expected = Frame::unreachable("192.0.2.1", &Frame::udp(client, "192.0.2.1:8080"));
        assert_eq!(own.bytes[14..34], expected.packet[..20]);
        // Without the quoted checksum, which its receiver cannot verify.
        assert_eq!(own.bytes[14 + 28..][..26], expected.packet[28..][..26], "it quotes what the client has sent");
    });
}

/// A datagram without a checksum stays without, in both directions.
#[test]
fn a_datagram_without_a_checksum_is_translated_without_one() {
    in_namespaces(|kernel| {
        published(kernel);
        let without = |from: &str, to: &str| {
            let mut frame = Frame::udp(from, to);
            frame.packet[26..28].fill(0);
            frame
        };
        let (client, port, container) = ("203.0.113.9:40000", "192.0.2.1:8080", "10.0.0.11:80");
        let there = kernel.run("from_uplink", &without(client, port), kernel.uplink);
        assert_eq!(there.bytes[14..], without(client, container).packet);
        let back = kernel.run("from_container", &without(container, client), kernel.uplink);
        assert_eq!(back.bytes[14..], without(port, client).packet);
    });
}
