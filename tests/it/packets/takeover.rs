//! While the flows of an earlier layout of the maps are carried over, entries may be missing that are there a moment later.

use super::build::*;
use super::kernel::*;
use aya::maps::Array;
use skep_ebpf::{Counter, TAKEOVER_SECONDS};

const CLIENT: &str = "203.0.113.9:40000";
const PORT: &str = "192.0.2.1:8080";

fn now() -> u32 {
    u32::try_from(rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec).unwrap()
}

fn set_end(kernel: &mut Kernel, second: u32) {
    let mut map: Array<_, u32> = kernel.array("TAKEOVER").try_into().unwrap();
    map.set(0, second, 0).unwrap();
}

fn segment(kernel: &mut Kernel, flags: u8) -> Decision {
    let frame = Frame::segment(CLIENT, PORT, flags, (1, 2), b"");
    kernel.run("from_uplink", &frame, kernel.uplink).decision
}

/// Another backend would reset the connection; TCP sends the segment again.
#[test]
fn a_segment_of_a_connection_without_an_entry_waits_for_it_while_flows_are_carried_over() {
    in_namespaces(|kernel| {
        kernel.backend("10.0.0.11", PORT_OWNER);
        kernel.publish(TCP, 8080, &["10.0.0.11"], 0);
        set_end(kernel, now() + TAKEOVER_SECONDS - 1);
        assert_eq!(segment(kernel, ACK), Decision::Drop);
        assert_eq!(kernel.flow(CLIENT, PORT, TCP), None);
        assert_eq!((kernel.counted(Counter::DropFlow), kernel.counted(Counter::PortReselected)), (1, 0));
        assert_eq!(segment(kernel, SYN), Decision::Redirect, "a new connection is served");
        assert_eq!(segment(kernel, ACK), Decision::Redirect, "and has its entry");
    });
}

#[test]
fn a_time_that_has_passed_or_cannot_be_right_holds_nothing_up() {
    in_namespaces(|kernel| {
        kernel.backend("10.0.0.11", PORT_OWNER);
        kernel.publish(TCP, 8080, &["10.0.0.11"], 0);
        for second in [0, now() - 1, now() + 60, u32::MAX] {
            set_end(kernel, second);
            assert_eq!(segment(kernel, ACK), Decision::Redirect, "{second}");
            kernel.remove::<_, skep_ebpf::Flow>("SYN_FLOWS", tuple(CLIENT, PORT, TCP));
        }
        assert_eq!(kernel.counted(Counter::PortReselected), 4);
    });
}

/// What else comes to a published port passes to the host as before.
#[test]
fn packets_that_are_no_client_s_pass_while_flows_are_carried_over() {
    in_namespaces(|kernel| {
        kernel.backend("10.0.0.11", PORT_OWNER);
        kernel.publish(TCP, 8080, &["10.0.0.11"], 0);
        set_end(kernel, now() + TAKEOVER_SECONDS - 1);
        assert_eq!(segment(kernel, RST), Decision::Pass);
        assert_eq!(segment(kernel, SYN | ACK), Decision::Pass);
        let other = Frame::segment(CLIENT, "192.0.2.1:22", ACK, (1, 2), b"");
        assert_eq!(kernel.run("from_uplink", &other, kernel.uplink).decision, Decision::Pass);
    });
}
