//! A trace in words. Pure.

use super::names::TraceNames;
use crate::admin::{TraceOutcome, TraceReport, TraceResult, TracedBackend, TracedCounter, TracedEntry, TracedHook, TracedTable};
use crate::datapath::ebpf::{
    Counter, FrameHeaders, HookSide, PacketTrace, TraceNext, TraceRequest, TraceStep, TracedFrame, VerdictKind, VipTable,
    protocol_text,
};
use crate::ingress::ebpf::refusal_reason;
use std::net::IpAddr;

/// The document of a trace.
pub(super) fn report(names: &TraceNames<'_>, request: &TraceRequest, trace: &PacketTrace) -> TraceReport {
    TraceReport {
        node: names.me(),
        packet: headers_text(&request.headers),
        table: trace.vip.as_ref().map(|vip| table(names, vip)),
        steps: trace.steps.iter().map(|step| hook(names, step)).collect(),
        no_reply: trace.no_reply.map(str::to_owned),
        outcome: outcome(names, trace),
    }
}

fn table(names: &TraceNames<'_>, vip: &VipTable) -> TracedTable {
    let backends = vip.backends.iter().map(|(address, slots)| {
        let (container, node) = names.container_parts(*address);
        TracedBackend { address: address.to_string(), container, node, slots: *slots }
    });
    let note = match &vip.unavailable {
        Some(why) => format!("read from the table, not run; the hook is unavailable here: {why}"),
        None if vip.backends.is_empty() => {
            "read from the table, not run: a call fails at once, the service has no task".to_owned()
        }
        None => "read from the table, not run: one of them is selected when a socket connects (or, unconnected, sends), and its packets then have the \
                 backend's address; below is what happens to a packet that no socket call has translated"
            .to_owned(),
    };
    TracedTable {
        hook: vip.hook.program().to_owned(),
        address: vip.address.to_string(),
        service: names.service(vip.owner),
        backends: backends.collect(),
        note,
    }
}

fn flags_text(flags: u8) -> String {
    let names = [(2, "SYN"), (16, "ACK"), (1, "FIN"), (4, "RST")];
    names.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect::<Vec<_>>().join(",")
}

/// `tcp 192.0.2.9:40000 > 192.0.2.1:8080 SYN`.
fn headers_text(headers: &FrameHeaders) -> String {
    let protocol = protocol_text(headers.protocol);
    let text = format!("{protocol} {} > {} {}", headers.source_text(), headers.destination_text(), flags_text(headers.flags));
    text.trim_end().to_owned()
}

fn frame_text(frame: &TracedFrame) -> String {
    match &frame.inner {
        None => headers_text(&frame.headers),
        Some(inner) => format!("{} in IPv6 {} > {}", headers_text(inner), frame.headers.source, frame.headers.destination),
    }
}

fn verdict_text(verdict: VerdictKind) -> &'static str {
    match verdict {
        VerdictKind::Pass => "pass",
        VerdictKind::RedirectPeer => "redirect_peer",
        VerdictKind::Redirect => "redirect",
        VerdictKind::RedirectNeighbour => "redirect_neighbour",
        VerdictKind::Drop => "drop",
    }
}

fn reason(step: &TraceStep) -> Option<Counter> {
    let mut reasons = step.counters.iter().copied().filter(|counter| refusal_reason(*counter).is_some());
    reasons.next()
}

fn hook(names: &TraceNames<'_>, step: &TraceStep) -> TracedHook {
    let counters = step.counters.iter();
    let entries = step.entries.iter();
    TracedHook {
        reply: step.reply,
        hook: step.hook.program().to_owned(),
        device: names.device(step.hook.side(), step.device),
        packet: frame_text(&step.before),
        verdict: verdict_text(step.verdict).to_owned(),
        next: next_text(names, step),
        reason: reason(step).and_then(refusal_reason).map(str::to_owned),
        counters: counters
            .map(|counter| TracedCounter { name: counter.name().to_owned(), meaning: counter.meaning().to_owned() })
            .collect(),
        rewritten: (step.before != step.after).then(|| frame_text(&step.after)),
        entries: entries.map(|entry| TracedEntry { map: entry.map.to_owned(), entry: entry.text.clone() }).collect(),
    }
}

/// Addresses that the packet has in the end, without what encapsulates it.
fn destination(step: &TraceStep) -> IpAddr {
    step.after.inner.as_ref().unwrap_or(&step.after.headers).destination
}

/// Where the packet goes after a hook.
fn next_text(names: &TraceNames<'_>, step: &TraceStep) -> String {
    match step.next {
        TraceNext::Hook(next, index) => format!("to {} at {}", next.program(), names.device(next.side(), index)),
        TraceNext::Container(address) => format!("into {}", names.container(address)),
        TraceNext::Tunnel => match PacketTrace::node_of(step) {
            Some(prefix) => format!("through the tunnel to node {}", names.node(prefix)),
            None => "into the tunnel".to_owned(),
        },
        TraceNext::HostStack => "to the host's network stack".to_owned(),
        TraceNext::MeshRoutes => match names.container_address(destination(step)) {
            Some(address) => format!("by the routes of the mesh namespace to {}", names.container(address)),
            None => format!("to the routes of the mesh namespace: {} is no container that this node knows", destination(step)),
        },
        TraceNext::Uplink(index) => {
            format!("out of {} to {}", names.device(HookSide::Host, index), step.after.headers.destination)
        }
        TraceNext::Dropped => "dropped".to_owned(),
        TraceNext::Lost(index) => {
            format!(
                "lost: the verdict names a device with index {index}, which does not exist; the next repair corrects the table"
            )
        }
    }
}

fn outcome(names: &TraceNames<'_>, trace: &PacketTrace) -> TraceOutcome {
    let Some(last) = trace.steps.last() else {
        return TraceOutcome { result: TraceResult::Passed, text: "no program handles it".to_owned() };
    };
    let packet = if last.reply { "the answer" } else { "the packet" };
    let at = last.hook.program();
    let meaning =
        reason(last).map_or_else(|| "a program dropped it without a reason".to_owned(), |counter| counter.meaning().to_owned());
    let (result, text) = match last.next {
        TraceNext::Dropped | TraceNext::Container(_) if trace.vip.as_ref().is_some_and(|vip| vip.backends.is_empty()) => {
            (TraceResult::Refused, "refused: the service of the virtual address has no running task".to_owned())
        }
        TraceNext::Dropped => (TraceResult::Dropped, format!("{packet} is dropped by {at}: {meaning}")),
        TraceNext::Lost(_) => (TraceResult::Dropped, format!("{packet} is {}", next_text(names, last))),
        TraceNext::HostStack => host_stack(names, last),
        TraceNext::Container(_) => (TraceResult::Delivered, format!("{packet} is delivered {}", next_text(names, last))),
        TraceNext::Tunnel | TraceNext::Uplink(_) => (TraceResult::Sent, format!("{packet} is sent {}", next_text(names, last))),
        TraceNext::MeshRoutes => (TraceResult::Passed, format!("{packet} is passed on {}", next_text(names, last))),
        TraceNext::Hook(..) => (TraceResult::Passed, format!("{packet} goes {}", next_text(names, last))),
    };
    TraceOutcome { result, text }
}

/// What becomes of a packet that no program has taken.
fn host_stack(names: &TraceNames<'_>, step: &TraceStep) -> (TraceResult, String) {
    let headers = &step.before.headers;
    let protocol = protocol_text(headers.protocol);
    let port = format!("{}/{protocol}", headers.destination_port);
    let service = names.publisher(&protocol, headers.destination_port);
    let of = service.map_or_else(String::new, |service| format!(" of service {service}"));
    match reason(step) {
        Some(reason @ (Counter::PassNotAllowed | Counter::PassNoBackend)) => {
            (TraceResult::Refused, format!("port {port}{of} is refused: {}", reason.meaning()))
        }
        Some(reason) => {
            (TraceResult::Passed, format!("the listener of the userspace datapath serves port {port}{of}: {}", reason.meaning()))
        }
        None if service.is_some() => {
            (TraceResult::Passed, format!("the packet is left to the host: to the programs it is no client's of port {port}{of}"))
        }
        None if headers.destination_port != 0 => {
            (TraceResult::Passed, format!("the packet is left to the host: no service publishes {port}"))
        }
        None => (TraceResult::Passed, "the packet is left to the host".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::ebpf::{Hook, HostDevices};
    use crate::model::fixture::{cluster_part, network_part, node_view, peer, task_endpoint};
    use std::net::Ipv4Addr;

    const TASK: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 5);

    fn headers(source: &str, destination: &str, protocol: u8) -> FrameHeaders {
        let (source, destination): (IpAddr, IpAddr) = (source.parse().unwrap(), destination.parse().unwrap());
        FrameHeaders {
            source,
            destination,
            source_port: 40_000,
            destination_port: 8080,
            protocol,
            flags: if protocol == 6 { 2 } else { 0 },
        }
    }

    fn step(hook: Hook, verdict: VerdictKind, next: TraceNext, counters: &[Counter]) -> TraceStep {
        let frame = TracedFrame { headers: headers("203.0.113.9", "192.168.1.1", 6), inner: None };
        let after = TracedFrame { headers: headers("203.0.113.9", "10.0.1.5", 6), inner: None };
        TraceStep {
            reply: false,
            hook,
            device: 2,
            before: frame,
            after,
            verdict,
            counters: counters.to_vec(),
            entries: Vec::new(),
            next,
        }
    }

    fn report_of(steps: Vec<TraceStep>) -> TraceReport {
        let tasks = vec![task_endpoint("web", 1, "node2", TASK)];
        let network = network_part("front", "10.0.1.0/24".parse().unwrap(), tasks);
        let view = node_view(1, vec![network], cluster_part(vec![peer(1), peer(2)]));
        let devices = HostDevices { uplinks: [("eth0".to_owned(), 2)].into(), ..HostDevices::default() };
        let request = TraceRequest { headers: steps[0].before.headers, length: 0, device: None, from_node: None, reply: false };
        let trace = PacketTrace { vip: None, steps, no_reply: None, devices: devices.clone() };
        report(&TraceNames::new(&view, &"node1".into(), &devices), &request, &trace)
    }

    #[test]
    fn every_end_of_a_path_has_its_result_and_its_words() {
        let mut to_node = step(Hook::FromHost, VerdictKind::Redirect, TraceNext::Tunnel, &[Counter::MeshOut]);
        let outer = FrameHeaders { destination: peer(2).subnet.addr().into(), ..headers("fd00::1", "fd00::2", 41) };
        to_node.after = TracedFrame { headers: outer, inner: Some(to_node.before.headers) };
        for (step, result, said) in [
            (
                step(Hook::FromHost, VerdictKind::RedirectPeer, TraceNext::Container(TASK), &[Counter::Delivered]),
                TraceResult::Delivered,
                "the packet is delivered into container web.1.web1id of service web on node host2",
            ),
            (to_node, TraceResult::Sent, "the packet is sent through the tunnel to node host2"),
            (
                step(Hook::FromContainer, VerdictKind::Drop, TraceNext::Dropped, &[Counter::DropForged]),
                TraceResult::Dropped,
                "the packet is dropped by from_container: The source address does not belong to the sender.",
            ),
            (
                step(Hook::FromUplink, VerdictKind::Pass, TraceNext::HostStack, &[Counter::PassNotAllowed]),
                TraceResult::Refused,
                "port 8080/tcp is refused",
            ),
            (
                step(Hook::FromUplink, VerdictKind::Pass, TraceNext::HostStack, &[Counter::PassNoClient]),
                TraceResult::Passed,
                "the listener of the userspace datapath serves port 8080/tcp",
            ),
            (
                step(Hook::FromUplink, VerdictKind::Pass, TraceNext::HostStack, &[]),
                TraceResult::Passed,
                "no service publishes 8080/tcp",
            ),
            (
                step(Hook::FromContainer, VerdictKind::Pass, TraceNext::MeshRoutes, &[]),
                TraceResult::Passed,
                "by the routes of the mesh namespace to container web.1.web1id of service web on node host2",
            ),
            (step(Hook::ToUplink, VerdictKind::RedirectNeighbour, TraceNext::Lost(9), &[]), TraceResult::Dropped, "index 9"),
            (
                step(Hook::ToUplink, VerdictKind::RedirectNeighbour, TraceNext::Uplink(2), &[Counter::PortOut]),
                TraceResult::Sent,
                "out of eth0 to 10.0.1.5",
            ),
        ] {
            let report = report_of(vec![step]);
            assert_eq!(report.outcome.result, result, "{}", report.outcome.text);
            assert!(report.outcome.text.contains(said), "{}", report.outcome.text);
        }
    }

    #[test]
    fn a_step_says_what_came_in_what_was_rewritten_and_why() {
        let report = report_of(vec![step(Hook::FromUplink, VerdictKind::Drop, TraceNext::Dropped, &[Counter::DropLoop])]);
        let step = &report.steps[0];
        assert_eq!((step.hook.as_str(), step.device.as_str(), step.verdict.as_str()), ("from_uplink", "eth0", "drop"));
        assert_eq!(step.packet, "tcp 203.0.113.9:40000 > 192.168.1.1:8080 SYN");
        assert_eq!(step.rewritten.as_deref(), Some("tcp 203.0.113.9:40000 > 10.0.1.5:8080 SYN"));
        assert_eq!((step.reason.as_deref(), report.node.as_str()), (Some("datagram_loop"), "host1"));
        assert_eq!(step.counters[0].meaning, Counter::DropLoop.meaning());
    }
}
