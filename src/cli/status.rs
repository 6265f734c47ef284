//! `skep status`: this node's status as tables, or as JSON.

use super::http;
use super::table::table;
use super::target::DaemonTarget;
use super::time_left::time_left;
use crate::ingress::ebpf::EbpfStatus;
use crate::ingress::{PortState, PortStatus};
use crate::status::{CertificateSummary, ManagerSummary, NodeSummary, Status};
use std::fmt::Write as _;

/// Objects that are named; of the others the number.
const NAMED: usize = 5;

/// Flags of `skep status`.
#[derive(clap::Args, Debug)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    target: DaemonTarget,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: StatusArgs) -> anyhow::Result<()> {
    let reply = args.target.admin().get("/status").await?;
    if args.json {
        reply.ok()?;
        println!("{}", String::from_utf8_lossy(&reply.body));
        return Ok(());
    }
    print!("{}", render(&reply.json()?));
    Ok(())
}

/// The status as text.
pub(super) fn render(status: &Status) -> String {
    let mut out = String::new();
    let role = status.role.map_or("not in a swarm", crate::model::Role::as_str);
    let _ = writeln!(out, "skep {}: {} ({role})", status.version, status.state);
    if !status.error.is_empty() {
        let _ = writeln!(out, "error:    {}", status.error);
    }
    for (name, reason) in &status.blockers {
        let _ = writeln!(out, "blocked:  {name}: {reason}");
    }
    for warning in &status.warnings {
        let _ = writeln!(out, "warning:  {warning}");
    }
    let Some(node) = &status.node else {
        let _ = writeln!(out, "start a swarm with `skep init`, or join one with `skep join`");
        return out;
    };
    let _ = writeln!(out, "node:     {node}");
    let _ = writeln!(out, "leader:   {}", status.leader.as_deref().unwrap_or("unknown"));
    let _ = writeln!(out, "session:  {}", status.session);
    if let Some(since) = &status.stale_since {
        let _ = writeln!(out, "stale:    since {since}: no manager confirms the view, its addresses may be other tasks' by now");
    }
    for (name, reason) in &status.troubles {
        let _ = writeln!(out, "degraded: {name}: {reason}");
    }
    let applied: Vec<String> = status.applied.iter().map(|(name, r)| format!("{name} {}", r.index)).collect();
    if let Some(certificate) = &status.certificate {
        let _ = writeln!(out, "cert:     {}", certificate_text(certificate));
    }
    let _ = writeln!(out, "revision: received {}, applied {}", status.view_revision.index, applied.join(", "));
    for line in status.manager.iter().flat_map(manager_lines) {
        let _ = writeln!(out, "{line}");
    }
    let datapaths = &status.datapaths;
    let _ = writeln!(out, "tunnel:   {}, UDP {}, MTU {}", datapaths.tunnel, datapaths.tunnel_port, datapaths.mtu);
    let _ = writeln!(out, "ports:    {}", datapaths.ports);
    for warning in warnings(&status.ebpf) {
        let _ = writeln!(out, "{warning}");
    }
    let _ = writeln!(out);
    out.push_str(&node_table(&status.nodes));
    if !status.ports.is_empty() {
        let _ = writeln!(out);
        out.push_str(&port_table(&status.ports, &status.ebpf));
        out.push_str(&unserved_devices(&status.ebpf));
    }
    out.push_str(&http::summary(&status.http));
    out
}

/// The cluster's feature level, restarts of the leader's loops, and what the leader cannot write.
fn manager_lines(manager: &ManagerSummary) -> Vec<String> {
    let mut lines = vec![format!("features: level {}", manager.feature_level)];
    if manager.loop_restarts > 0 {
        lines.push(format!("restarts: the leader's loops were started again {} times after a panic", manager.loop_restarts));
    }
    let refused: u64 = manager.refused_connections.values().sum();
    if let Some((most, count)) = manager.refused_connections.iter().max_by_key(|(_, count)| **count).filter(|_| refused > 0) {
        lines.push(format!("refused:  {refused} connections on 2377, most for {most} ({count}): `skep status --json` has all"));
    }
    lines.extend(manager.left_out.iter().take(NAMED).map(|object| format!("left out: {object}")));
    if let Some(more) = manager.left_out.len().checked_sub(NAMED).filter(|more| *more > 0) {
        lines.push(format!("left out: {more} more objects: `skep status --json` names them"));
    }
    lines
}

/// The certificate's end, and what is wrong with it.
fn certificate_text(certificate: &CertificateSummary) -> String {
    let left = time_left(certificate.seconds_left);
    let valid = format!("valid until {}, {left}", certificate.expires.to_rfc3339());
    if certificate.warning.is_empty() { valid } else { format!("{valid}; WARNING: {}", certificate.warning) }
}

/// What an operator should look at: drops that rise, and maps that are nearly full.
fn warnings(ebpf: &EbpfStatus) -> Vec<String> {
    let mut lines = Vec::new();
    let drops: Vec<_> = ebpf.rising.iter().filter(|refusal| !refusal.left).collect();
    if let Some(most) = drops.first() {
        let service = if most.service.is_empty() { String::new() } else { format!(" of {}", most.service) };
        let all: u64 = drops.iter().map(|refusal| refusal.count).sum();
        lines.push(format!(
            "drops:    {all} more between the last two reads, most for {} at {}{service} ({}): `skep drops` shows them",
            most.reason, most.hook, most.count
        ));
    }
    for (name, map) in ebpf.maps.iter().filter(|(_, map)| map.is_nearly_full()) {
        lines.push(format!("table:    {name} is nearly full, {} of {} entries", map.entries, map.room));
    }
    lines
}

fn node_table(nodes: &[NodeSummary]) -> String {
    let mut rows = vec![
        ["NODE", "ROLE", "PATH", "ENDPOINT", "MTU", "HANDSHAKE", "RECEIVED", "SENT", "CONTAINERS", "FEATURES"].map(str::to_owned),
    ];
    for node in nodes {
        rows.push([
            format!("{}{}", node.hostname, if node.here { " *" } else { "" }),
            if node.manager { "manager" } else { "worker" }.to_owned(),
            node.path.clone(),
            node.endpoint.map_or_else(|| "-".to_owned(), |e| e.to_string()),
            node.path_mtu.map_or_else(|| "-".to_owned(), |mtu| mtu.to_string()),
            node.handshake_seconds.map_or_else(|| "-".to_owned(), |s| format!("{s} s ago")),
            bytes(node.rx_bytes),
            bytes(node.tx_bytes),
            node.containers.to_string(),
            node.feature_levels.map_or_else(|| "-".to_owned(), |levels| levels.to_string()),
        ]);
    }
    table(&rows)
}

fn port_table(ports: &[PortStatus], ebpf: &EbpfStatus) -> String {
    let mut rows = vec![["PORT", "SERVICE", "STATE", "DATAPATH", "BACKENDS", "CONNECTIONS"].map(str::to_owned)];
    for port in ports {
        let name = format!("{}/{}", port.port, port.protocol.as_str());
        let datapath = datapath_of_port(ebpf, &name);
        rows.push([
            name,
            port.service.clone(),
            match &port.state {
                PortState::Listening => "listening".to_owned(),
                PortState::Taken(why) => format!("taken: {why}"),
                PortState::Unsupported => "not served: only TCP and UDP are".to_owned(),
            },
            datapath,
            port.backends.to_string(),
            port.connections.to_string(),
        ]);
    }
    table(&rows)
}

fn bytes(n: u64) -> String {
    match n {
        0..1024 => format!("{n} B"),
        1024..1_048_576 => format!("{} KiB", n >> 10),
        _ => format!("{} MiB", n >> 20),
    }
}

/// Devices whose clients only the userspace datapath serves: a line each.
fn unserved_devices(ebpf: &EbpfStatus) -> String {
    let mut out = String::new();
    for (device, why) in &ebpf.unserved_devices {
        let _ = writeln!(out, "device {device}: userspace datapath: {why}");
    }
    out
}

/// The datapath that serves a port, and why it is not the eBPF datapath; of both address families if they differ.
fn datapath_of_port(ebpf: &EbpfStatus, name: &str) -> String {
    let datapath = |name: &str| match ebpf.unavailable_ports.get(name) {
        _ if ebpf.ports.contains(name) => "eBPF".to_owned(),
        Some(why) => format!("userspace: {why}"),
        None => "userspace".to_owned(),
    };
    let (v4, v6) = (datapath(name), datapath(&format!("{name}6")));
    if v4 == v6 { v4 } else { format!("{v4}; IPv6 {v6}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::ebpf::Occupancy;
    use crate::ingress::ebpf::RefusalCount;
    use crate::model::{Timestamp, UnwrittenObject};

    #[test]
    fn rising_drops_and_full_tables_are_named_and_what_is_left_to_the_host_is_not() {
        let refusal = |left, reason: &str, service: &str, count| RefusalCount {
            left,
            reason: reason.to_owned(),
            hook: "from_container".to_owned(),
            service: service.to_owned(),
            count,
        };
        let map = |entries, forgets| Occupancy { entries, room: 100, bytes: 0, forgets };
        let rising = vec![
            refusal(true, "no_backend", "web", 9),
            refusal(false, "forged_source", "web", 5),
            refusal(false, "unknown_flow", "", 2),
        ];
        let maps =
            [("FLOWS".to_owned(), map(81, false)), ("PORTS".to_owned(), map(80, false)), ("PEERS".to_owned(), map(100, true))];
        let ebpf = EbpfStatus { rising, maps: maps.into(), ..EbpfStatus::default() };
        let expected = [
            "drops:    7 more between the last two reads, most for forged_source at from_container of web (5): `skep drops` shows them",
            "table:    FLOWS is nearly full, 81 of 100 entries",
        ];
        assert_eq!(warnings(&ebpf), expected);
        assert_eq!(warnings(&EbpfStatus::default()), [""; 0]);
    }

    #[test]
    fn a_manager_names_its_feature_level_its_restarts_and_what_it_cannot_write() {
        assert_eq!(manager_lines(&ManagerSummary { feature_level: 2, ..ManagerSummary::default() }), ["features: level 2"]);
        let object = |number: u32| UnwrittenObject {
            kind: "task".to_owned(),
            id: format!("t{number}"),
            service_id: Some("s1".into()),
            service_name: "web".to_owned(),
            reason: "too large".to_owned(),
        };
        let refused_connections = [("frame", 2), ("token", 5)].map(|(reason, count)| (reason.to_owned(), count)).into();
        let refusing = ManagerSummary { feature_level: 2, refused_connections, ..ManagerSummary::default() };
        let line = "refused:  7 connections on 2377, most for token (5): `skep status --json` has all";
        assert_eq!(manager_lines(&refusing), ["features: level 2", line]);
        let manager = ManagerSummary {
            feature_level: 1,
            loop_restarts: 3,
            left_out: (1..=7).map(object).collect(),
            ..ManagerSummary::default()
        };
        let lines = manager_lines(&manager);
        assert!(lines[1].contains("3 times after a panic"), "{lines:?}");
        assert_eq!(lines[2], "left out: task t1 (service web): too large");
        assert_eq!((lines.len(), lines[7].as_str()), (8, "left out: 2 more objects: `skep status --json` names them"));
    }

    #[test]
    fn a_certificate_is_one_line_with_its_end_and_a_warning() {
        let end = Timestamp(1_795_000_000_000_000_000);
        let text = |seconds_left, warning: &str| {
            certificate_text(&CertificateSummary { expires: end, seconds_left, failures: 0, warning: warning.to_owned() })
        };
        assert_eq!(text(89 * 86_400, ""), "valid until 2026-11-18T11:06:40Z, 89 days left");
        assert_eq!(text(5 * 3600, ""), "valid until 2026-11-18T11:06:40Z, 5 h left");
        assert_eq!(text(90, "its renewal fails"), "valid until 2026-11-18T11:06:40Z, 90 s left; WARNING: its renewal fails");
        assert!(text(0, "it has expired").contains(", expired; WARNING: it has expired"));
    }
}
