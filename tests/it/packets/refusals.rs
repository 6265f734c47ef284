//! What the programs say of packets that they drop or leave to the host: counters by hook, reason and service, and events.

use super::build::*;
use super::kernel::*;
use skep_ebpf::{Counter, GUARDED, NO_CLIENT, RefusalEvent, Source, hook_number};

const CLIENT: &str = "203.0.113.9:40000";
const PORT: &str = "192.0.2.1:8080";
const PORT6: &str = "[2001:db8::1]:8080";
const WEB: u32 = 7;

fn published(kernel: &mut Kernel) {
    kernel.backend("10.0.0.11", WEB);
    for protocol in [TCP, UDP] {
        kernel.publish(protocol, 8080, &["10.0.0.11"], 0);
    }
}

/// A datagram from the published port of another node: dropped.
fn looping(kernel: &mut Kernel) -> Frame {
    kernel.node("192.0.2.2");
    Frame::udp("192.0.2.2:8080", PORT)
}

fn counts(kernel: &mut Kernel, hook: &str, reason: Counter) -> Vec<(u32, u64)> {
    let all = kernel.refusals().into_iter();
    let of = all.filter(|(key, _)| u32::from(key.hook) == hook_number(hook) && u32::from(key.reason) == reason as u32);
    of.map(|(key, count)| (key.owner, count)).collect()
}

#[test]
fn drops_and_refusals_are_counted_by_hook_reason_and_service() {
    in_namespaces(|kernel| {
        published(kernel);
        let frame = looping(kernel);
        for _ in 0..3 {
            kernel.run("from_uplink", &frame, kernel.uplink);
        }
        assert_eq!(counts(kernel, "from_uplink", Counter::DropLoop), [(PORT_OWNER, 3)]);
        assert_eq!(kernel.counted(Counter::DropLoop), 3, "the total by reason agrees");

        kernel.publish(TCP, 8080, &["10.0.0.11"], GUARDED);
        kernel.run("from_uplink", &Frame::tcp(CLIENT, PORT, SYN), kernel.uplink);
        kernel.run("from_uplink", &Frame::tcp("[2001:db8:1::9]:40000", PORT6, SYN), kernel.uplink);
        assert_eq!(counts(kernel, "from_uplink", Counter::PassNotAllowed), [(PORT_OWNER, 2)]);

        // Behind from_uplink a packet has the address of its container.
        kernel.run("from_container", &Frame::udp("10.0.0.11:80", "203.0.113.9:40000"), kernel.uplink);
        kernel.run("from_host", &Frame::udp(CLIENT, "10.0.0.99:80"), kernel.uplink);
        assert_eq!(counts(kernel, "from_host", Counter::DropBackend), [(0, 1)], "of an unknown container");

        let forged = Frame::udp("10.0.0.11:5000", "203.0.113.9:53");
        kernel.run_with("out_uplink", &forged, Context { arrived_by: kernel.uplink, ..Context::at(kernel.uplink) });
        assert_eq!(counts(kernel, "out_uplink", Counter::DropForged), [(WEB, 1)], "by the container whose address it has");
        assert_eq!(counts(kernel, "from_uplink", Counter::DropForged), []);
    });
}

#[test]
fn packets_that_continue_are_no_refusals() {
    in_namespaces(|kernel| {
        published(kernel);
        for frame in [Frame::tcp(CLIENT, PORT, SYN), Frame::udp(CLIENT, PORT), Frame::tcp(CLIENT, "192.0.2.1:22", SYN)] {
            kernel.watch(u32::MAX, 100, true);
            kernel.run("from_uplink", &frame, kernel.uplink);
        }
        assert_eq!(kernel.refusals(), []);
        assert_eq!(kernel.events(), []);
    });
}

#[test]
fn an_event_says_hook_reason_service_and_the_packet() {
    in_namespaces(|kernel| {
        published(kernel);
        let frame = looping(kernel);
        kernel.watch(u32::MAX, 100, false);
        kernel.run("from_uplink", &frame, kernel.uplink);
        kernel.run("from_host", &Frame::tcp("[2001:db8:1::9]:40000", "[2001:db8::77]:80", SYN), kernel.uplink);
        let events = kernel.events();
        let expected = RefusalEvent {
            time: events[0].time,
            source: address("192.0.2.2"),
            destination: address("192.0.2.1"),
            owner: PORT_OWNER,
            device: kernel.uplink,
            source_port: 8080_u16.to_be(),
            destination_port: 8080_u16.to_be(),
            reason: Counter::DropLoop as u16,
            hook: u8::try_from(hook_number("from_uplink")).unwrap(),
            protocol: UDP,
        };
        assert_eq!(events[0], expected);
        assert!(events[0].time > 0 && events[1].time >= events[0].time);
        assert_eq!((events[1].source, events[1].protocol), (address("2001:db8:1::9"), TCP));
        assert_eq!((events[1].source_port, events[1].destination_port), (40_000_u16.to_be(), 80_u16.to_be()));
        assert_eq!(events.len(), 2);
    });
}

#[test]
fn a_later_fragment_has_no_ports() {
    in_namespaces(|kernel| {
        kernel.watch(u32::MAX, 100, false);
        kernel.run("from_host", &Frame::udp(CLIENT, "10.0.0.99:80").fragment(7, 16, false), kernel.uplink);
        let event = kernel.events()[0];
        assert_eq!((event.source_port, event.destination_port, event.protocol), (0, 0, UDP));
        assert_eq!(event.destination, address("10.0.0.99"));
    });
}

#[test]
fn what_is_left_to_the_host_is_an_event_only_if_that_is_watched() {
    in_namespaces(|kernel| {
        published(kernel);
        kernel.set_source(Source { scope: NO_CLIENT, address: address("10.0.0.0") }, 24);
        let frame = Frame::tcp("10.0.0.77:40000", PORT, SYN);
        kernel.watch(u32::MAX, 100, false);
        kernel.run("from_uplink", &frame, kernel.uplink);
        assert_eq!(kernel.events(), []);
        kernel.watch(u32::MAX, 100, true);
        kernel.run("from_uplink", &frame, kernel.uplink);
        let reasons: Vec<u16> = kernel.events().iter().map(|event| event.reason).collect();
        assert_eq!(reasons, [Counter::PassNoClient as u16]);
        assert_eq!(counts(kernel, "from_uplink", Counter::PassNoClient), [(PORT_OWNER, 2)], "counted in both cases");
    });
}

#[test]
fn nothing_is_written_while_no_one_watches_and_after_the_watcher_s_time() {
    in_namespaces(|kernel| {
        published(kernel);
        let frame = looping(kernel);
        kernel.run("from_uplink", &frame, kernel.uplink);
        assert_eq!(kernel.events(), [], "not watched");
        kernel.watch(1, 100, true);
        kernel.run("from_uplink", &frame, kernel.uplink);
        assert_eq!(kernel.events(), [], "a second that is over: the watcher has not renewed it");
        assert_eq!(kernel.lost(), 0);
    });
}

#[test]
fn events_of_a_flood_are_bounded_and_the_others_are_counted_as_lost() {
    in_namespaces(|kernel| {
        published(kernel);
        let frame = looping(kernel);
        kernel.watch(u32::MAX, 5, false);
        for _ in 0..2_000 {
            kernel.run("from_uplink", &frame, kernel.uplink);
        }
        let written = kernel.events().len() as u64;
        assert_eq!(written + kernel.lost(), 2_000);
        assert!((5..=500).contains(&written), "{written} events of 2,000 with a bound of 5 per second");
        // The ring has room for some thousand events; what does not fit is lost too, and the programs go on.
        kernel.watch(u32::MAX, u32::MAX, false);
        let lost = kernel.lost();
        for _ in 0..3_000 {
            assert_eq!(kernel.run("from_uplink", &frame, kernel.uplink).decision, Decision::Drop);
        }
        let written = kernel.events().len() as u64;
        assert!(written >= 900, "{written}");
        assert_eq!(written + kernel.lost() - lost, 3_000);
    });
}
