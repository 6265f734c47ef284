//! `/metrics`: a node's status in Prometheus' text format, or in OpenMetrics. This file names the series; `family` writes them.
//!
//! Names follow Prometheus' conventions: counters end in `_total`, units are base units, what has been dropped or refused has
//! a `reason`. A node is labelled by `node_id`, which is unique, and by `node`, its host name, which is not.

mod family;
mod format;
mod http;
mod names;

use crate::ingress::PortStatus;
use crate::ingress::ebpf::{EbpfStatus, drop_reason};
use crate::model::Role;
use crate::status::{NodeSummary, RaftSummary, Status};
use family::{Exposition, MetricFamily};
pub use format::MetricsFormat;

/// All series of a node.
pub fn render(status: &Status, format: MetricsFormat) -> String {
    let mut out = Exposition::new(format);
    node(status, &mut out);
    health(status, &mut out);
    manager(status, &mut out);
    peers(status, &mut out);
    published_ports(&status.ports, &mut out);
    ebpf(status, &mut out);
    http::add(status, &mut out);
    names::add(status, &mut out);
    out.render()
}

fn node(status: &Status, out: &mut Exposition) {
    out.add(
        &MetricFamily::gauge("skep_build_info", "1, labelled by the daemon's version.", ["version"]).sample([&status.version], 1),
    );
    let mut info =
        MetricFamily::gauge("skep_node_info", "1, labelled by this node's id, host name and role.", ["node_id", "node", "role"]);
    if let Some(id) = &status.node {
        let hostname = status.nodes.iter().find(|node| node.here).map_or("", |node| node.hostname.as_str());
        info = info.sample([id.as_str(), hostname, status.role.map_or("", Role::as_str)], 1);
    }
    out.add(&info);
    out.add(&flag("skep_swarm_active", "1 while this node is in a swarm.", status.node.is_some()));
    out.add(&flag("skep_swarm_manager", "1 while this node is a manager.", status.role == Some(Role::Manager)));
    out.add(&flag("skep_session_established", "1 while this node has a session with the leader.", status.leader.is_some()));
    if let Some(certificate) = &status.certificate {
        let seconds = u64::try_from(certificate.expires.0 / 1_000_000_000).unwrap_or(0);
        let gauge = |name, help, value| MetricFamily::gauge(name, help, []).value(value);
        let ends = "End of this node's certificate, in seconds since 1970.";
        out.add(&gauge("skep_certificate_expiry_timestamp_seconds", ends, seconds));
        let left = "Time until this node's certificate ends; 0 once it has.";
        out.add(&gauge("skep_certificate_remaining_seconds", left, certificate.seconds_left));
        let failures = "Attempts to renew this node's certificate that have failed since the last one that succeeded.";
        out.add(&gauge("skep_certificate_renewal_failures", failures, u64::from(certificate.failures)));
        let warning = "1 while this node's certificate has expired, is near its end or cannot be renewed.";
        out.add(&flag("skep_certificate_warning", warning, !certificate.warning.is_empty()));
    }
    out.add(
        &MetricFamily::gauge("skep_view_revision", "Raft index of the newest view that a manager has sent.", [])
            .value(status.view_revision.index),
    );
    let applied = MetricFamily::gauge("skep_view_applied_revision", "Raft index of the view that a loop has applied.", ["loop"]);
    out.add(&status.applied.iter().fold(applied, |family, (name, revision)| family.sample([name], revision.index)));
}

/// Whether the node can follow its managers.
fn health(status: &Status, out: &mut Exposition) {
    out.add(&flag("skep_view_stale", "1 while no manager confirms the node's view.", status.stale_since.is_some()));
    let degraded = MetricFamily::gauge("skep_loop_degraded", "1 while a loop does not work as it should.", ["loop"]);
    let of_loop = |family: MetricFamily<1>, name: &String| family.sample([name], u64::from(status.troubles.contains_key(name)));
    out.add(&status.applied.keys().fold(degraded, of_loop));
}

/// What a manager knows of the cluster as a whole.
fn manager(status: &Status, out: &mut Exposition) {
    let Some(manager) = &status.manager else { return };
    let restarts = "Times that the leader's loops on this manager were started again after a panic.";
    out.add(&MetricFamily::counter("skep_manager_loop_restarts_total", restarts, []).value(manager.loop_restarts));
    let left_out = "Objects whose planned change the leader, if it is this manager, cannot write.";
    out.add(&MetricFamily::gauge("skep_manager_left_out_objects", left_out, []).value(manager.left_out.len() as u64));
    let help = "Connections on 2377 that this manager refused for what the other side is or does, by reason.";
    let mut refused = MetricFamily::counter("skep_manager_refused_connections_total", help, ["reason"]);
    for (reason, count) in &manager.refused_connections {
        refused.add([reason.as_str()], *count);
    }
    out.add(&refused);
    raft(&manager.raft, out);
    let level = "Feature level of the cluster: what managers may write to the log.";
    out.add(&MetricFamily::gauge("skep_cluster_feature_level", level, []).value(manager.feature_level.into()));
    let help = "Newest feature level of a node's build: the cluster's is not higher than that of any manager.";
    let mut newest = MetricFamily::gauge("skep_node_feature_level", help, ["node_id", "node"]);
    for node in &status.nodes {
        if let Some(levels) = node.feature_levels {
            newest.add([node.id.as_str(), node.hostname.as_str()], levels.newest.into());
        }
    }
    out.add(&newest);
}

/// Raft of a manager.
fn raft(raft: &RaftSummary, out: &mut Exposition) {
    out.add(&flag("skep_raft_leader", "1 while this manager leads.", raft.leads));
    out.add(&flag("skep_raft_problem", "1 while this manager's raft cannot write.", !raft.problem.is_empty()));
    let gauge = |name, help, value| MetricFamily::gauge(name, help, []).value(value);
    out.add(&gauge("skep_raft_term", "Term of this manager's raft: it rises with each election.", raft.term));
    out.add(&gauge("skep_raft_applied_index", "Raft index of the last entry that this manager has applied.", raft.applied));
    let ignored = "Raft messages of other managers that no manager sends, and snapshots that could not be read.";
    out.add(&MetricFamily::counter("skep_raft_ignored_messages_total", ignored, []).value(raft.ignored));
}

fn flag(name: &'static str, help: &'static str, value: bool) -> MetricFamily<0> {
    MetricFamily::gauge(name, help, []).value(u64::from(value))
}

/// The tunnel, peer by peer.
fn peers(status: &Status, out: &mut Exposition) {
    const LABELS: [&str; 2] = ["node_id", "node"];
    let labels = |node: &'_ NodeSummary| [node.id.to_string(), node.hostname.clone()];
    let mut received =
        MetricFamily::counter("skep_peer_receive_bytes_total", "Bytes received from a peer through the tunnel.", LABELS);
    let mut sent = MetricFamily::counter("skep_peer_transmit_bytes_total", "Bytes sent to a peer through the tunnel.", LABELS);
    let mut age = MetricFamily::gauge("skep_peer_handshake_age_seconds", "Time since the last handshake with a peer.", LABELS);
    for node in status.nodes.iter().filter(|node| !node.here) {
        received = received.sample(labels(node), node.rx_bytes);
        sent = sent.sample(labels(node), node.tx_bytes);
        if let Some(seconds) = node.handshake_seconds {
            age = age.sample(labels(node), seconds);
        }
    }
    out.add(&received);
    out.add(&sent);
    out.add(&age);
}

/// Published ports of the userspace datapath.
fn published_ports(ports: &[PortStatus], out: &mut Exposition) {
    let mut backends =
        MetricFamily::gauge("skep_port_backends", "Tasks that a published port sends to.", ["port", "protocol", "service"]);
    let mut open = MetricFamily::gauge(
        "skep_port_open_connections",
        "Connections (of UDP, flows) that the userspace datapath carries for a published port.",
        ["port", "protocol", "service"],
    );
    let mut refused = MetricFamily::counter(
        "skep_port_refusals_total",
        "Connections (of UDP, datagrams) that the userspace datapath refused at a published port.",
        ["port", "protocol", "service", "reason"],
    );
    for port in ports {
        let number = port.port.to_string();
        let labels = [number.as_str(), port.protocol.as_str(), &port.service];
        let [number, protocol, service] = labels;
        backends = backends.sample(labels, port.backends as u64);
        open = open.sample(labels, port.connections as u64);
        refused = refused
            .sample([number, protocol, service, "no_backend"], port.errors)
            .sample([number, protocol, service, "source_not_allowed"], port.refused)
            .sample([number, protocol, service, "source_over_share"], port.over_share);
    }
    out.add(&backends);
    out.add(&open);
    out.add(&refused);
}

fn ebpf(status: &Status, out: &mut Exposition) {
    let ebpf = &status.ebpf;
    let gauge = |name, help, value: usize| MetricFamily::gauge(name, help, []).value(value as u64);
    out.add(&flag("skep_ebpf_up", "1 while the programs of the eBPF datapath are loaded.", ebpf.up));
    out.add(&gauge("skep_ebpf_ports", "Published ports that the eBPF datapath serves.", ebpf.ports.len()));
    out.add(&gauge("skep_ebpf_vips", "Virtual addresses that the eBPF datapath serves.", ebpf.vips));
    out.add(&gauge("skep_ebpf_attached_programs", "Programs attached to a hook.", ebpf.links));
    out.add(
        &MetricFamily::counter(
            "skep_ebpf_repairs_total",
            "Map entries and programs that were found changed and were restored.",
            [],
        )
        .value(ebpf.repaired),
    );
    let connections = MetricFamily::counter(
        "skep_ebpf_connections_total",
        "New connections for which the eBPF datapath selected a backend, by published port or virtual address.",
        ["service", "frontend"],
    );
    out.add(&ebpf.connections.iter().fold(connections, |family, c| family.sample([&c.service, &c.frontend], c.connections)));
    let mut events =
        MetricFamily::counter("skep_ebpf_events_total", "Packets and calls that the eBPF datapath handled, by event.", ["event"]);
    // Drops have a family of their own, with hook and service.
    for (name, count) in ebpf.counters.iter().filter(|(name, _)| drop_reason(name).is_none()) {
        events = events.sample([name], *count);
    }
    out.add(&events);
    refusals(ebpf, out);
    maps(ebpf, out);
}

/// What the programs dropped, refused or left to the host.
fn refusals(ebpf: &EbpfStatus, out: &mut Exposition) {
    const LABELS: [&str; 3] = ["reason", "hook", "service"];
    let mut drops = MetricFamily::counter(
        "skep_ebpf_drops_total",
        "Packets that the eBPF datapath dropped, and calls that it refused, by kernel program and service.",
        LABELS,
    );
    let mut left = MetricFamily::counter(
        "skep_ebpf_left_total",
        "Packets to published ports that the eBPF datapath left to the host, by kernel program and service.",
        LABELS,
    );
    for refusal in &ebpf.refusals {
        let family = if refusal.left { &mut left } else { &mut drops };
        family.add([&refusal.reason, &refusal.hook, &refusal.service], refusal.count);
    }
    out.add(&drops);
    out.add(&left);
}

/// How full the maps of the programs are.
fn maps(ebpf: &EbpfStatus, out: &mut Exposition) {
    let mut entries =
        MetricFamily::gauge("skep_ebpf_map_entries", "Entries of a map of the eBPF datapath, when it was last read.", ["map"]);
    let mut room =
        MetricFamily::gauge("skep_ebpf_map_max_entries", "Entries that a map of the eBPF datapath has room for.", ["map"]);
    let mut bytes = MetricFamily::gauge(
        "skep_ebpf_map_memory_bytes",
        "Kernel memory of a map of the eBPF datapath, when it was last read.",
        ["map"],
    );
    for (name, map) in &ebpf.maps {
        bytes.add([name.as_str()], map.bytes);
        entries.add([name.as_str()], map.entries);
        room.add([name.as_str()], map.room);
    }
    out.add(&entries);
    out.add(&room);
    out.add(&bytes);
}

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod tests;
