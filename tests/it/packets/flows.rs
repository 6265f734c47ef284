//! Life of a flow: what establishes a connection, what ends it, and what cannot push it out.

use super::build::*;
use super::kernel::*;
use skep_ebpf::{Counter, Flow, Tuple};

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
        assert_eq!(one.asks(kernel, SYN, 0), Decision::Redirect);
        assert!(one.is_established(kernel), "the same task: it knows whether the connection is over");
        one.asks(kernel, FIN | ACK, ISN.wrapping_add(1));
        one.asks(kernel, SYN, 0);
        one.answers(kernel, FIN | ACK);
        assert!(one.is_established(kernel), "the first FIN was that of the earlier connection");
        kernel.publish(TCP, 8080, &["10.0.0.12"], 0);
        assert_eq!(one.asks(kernel, SYN, 0), Decision::Redirect);
        let other = Connection { container: "10.0.0.12:80", ..one.clone() };
        assert_eq!(kernel.reply(one.container, &one.client, TCP), None);
        assert!(!other.is_established(kernel));
        other.answers(kernel, SYN | ACK);
        other.asks(kernel, ACK, ISN.wrapping_add(1));
        assert!(other.is_established(kernel));
    });
}
