//! What the daemon says of itself and of the swarm: blockers, session, paths, certificate, managers.

use super::facts::{Facts, NodeFacts};
use super::finding::Finding;
use crate::model::Role;
use crate::status::{NodeSummary, Status};
use std::collections::{BTreeMap, BTreeSet};

/// MTU of a path, in bytes, below which the mesh cannot carry IPv6 packets of the least size that hosts must take.
const SMALL_PATH: u32 = 1360;
/// Last part of a label's key that names a place whose loss takes its nodes along.
const PLACES: [&str; 8] = ["zone", "az", "rack", "dc", "datacenter", "region", "room", "hypervisor"];

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let status = match &facts.daemon {
        Ok(status) => status,
        Err(error) if facts.has_membership => {
            return vec![Finding::error(
                "daemon",
                format!("this node is in a swarm and its daemon does not answer: {error}"),
                "systemctl start skep; journalctl -u skep",
            )];
        }
        Err(_) => return vec![Finding::ok("daemon", "does not run; this node is in no swarm")],
    };
    let mut findings = daemon(status);
    if status.node.is_none() {
        return findings;
    }
    findings.push(session(status));
    findings.push(certificate(status));
    findings.extend(paths(status));
    findings.extend(tables(status));
    findings.push(names(&status.nodes));
    findings.extend(managers(&facts.nodes, status));
    findings
}

fn daemon(status: &Status) -> Vec<Finding> {
    let blockers =
        status.blockers.iter().map(|(name, reason)| Finding::error("daemon", format!("{name}: {reason}"), "journalctl -u skep"));
    let troubles = status
        .troubles
        .iter()
        .map(|(name, reason)| Finding::warning("daemon", format!("{name}: {reason}"), "skep status; journalctl -u skep"));
    let warnings = status.warnings.iter().map(|warning| Finding::warning("daemon", warning.clone(), ""));
    let error = (!status.error.is_empty() && status.blockers.is_empty())
        .then(|| Finding::error("daemon", status.error.clone(), "journalctl -u skep"));
    let found: Vec<Finding> = blockers.chain(error).chain(troubles).chain(warnings).collect();
    if found.is_empty() { vec![Finding::ok("daemon", format!("skep {}, {}", status.version, status.state))] } else { found }
}

fn session(status: &Status) -> Finding {
    match &status.stale_since {
        Some(since) => Finding::error(
            "session",
            format!("no manager confirms this node's view since {since} ({}): it serves what it last knew", status.session),
            "start the managers, and look at the lines on paths and firewall",
        ),
        None => Finding::ok("session", status.session.clone()),
    }
}

fn certificate(status: &Status) -> Finding {
    match &status.certificate {
        Some(certificate) if certificate.seconds_left == 0 => Finding::error(
            "certificate",
            format!("expired at {}", certificate.expires.to_rfc3339()),
            "on a manager: skep recover-certificates",
        ),
        Some(certificate) if !certificate.warning.is_empty() => {
            Finding::warning("certificate", certificate.warning.clone(), "look at the clocks and at the session")
        }
        Some(certificate) => Finding::ok("certificate", format!("valid until {}", certificate.expires.to_rfc3339())),
        None => Finding::ok("certificate", "none"),
    }
}

fn paths(status: &Status) -> Vec<Finding> {
    let is_manager = status.role == Some(Role::Manager);
    let others = || status.nodes.iter().filter(|node| !node.here);
    // Workers that never sent each other anything have no handshake.
    let silent = others().filter(|node| node.path == "none" && (is_manager || node.manager)).map(|node| {
        let endpoint = node.endpoint.map_or_else(|| "an unknown address".to_owned(), |endpoint| endpoint.to_string());
        Finding::error(
            "paths",
            format!("no handshake with {} at {endpoint}", node.hostname),
            format!(
                "is UDP {} let in there, and out here? is its address right (`docker node inspect {}`)?",
                status.datapaths.tunnel_port, node.id
            ),
        )
    });
    let small = others().filter_map(|node| {
        let mtu = node.path_mtu.filter(|mtu| *mtu < SMALL_PATH)?;
        let found =
            format!("the path to {} takes packets of {mtu} bytes only: IPv6 over the mesh needs {SMALL_PATH}", node.hostname);
        Some(Finding::warning("paths", found, "raise the MTU of the devices on the way; `ip route get` shows the device"))
    });
    let found: Vec<Finding> = silent.chain(small).collect();
    if found.is_empty() {
        return vec![Finding::ok("paths", format!("{} other nodes", others().count()))];
    }
    found
}

/// What the datapath drops, and tables that are nearly full.
fn tables(status: &Status) -> Vec<Finding> {
    let full = status.ebpf.maps.iter().filter(|(_, map)| map.is_nearly_full()).map(|(name, map)| {
        let found = format!("{name} is nearly full, {} of {} entries", map.entries, map.room);
        Finding::warning("tables", found, "raise ebpf.max_tcp_flows; `skep status` shows which ports have most connections")
    });
    let drops: u64 = status.ebpf.rising.iter().filter(|refusal| !refusal.left).map(|refusal| refusal.count).sum();
    let drops = (drops > 0)
        .then(|| Finding::warning("drops", format!("{drops} packets were dropped between the last two reads"), "skep drops"));
    let found: Vec<Finding> = full.chain(drops).collect();
    if found.is_empty() { vec![Finding::ok("tables", "have room")] } else { found }
}

fn names(nodes: &[NodeSummary]) -> Finding {
    let mut seen = BTreeSet::new();
    match nodes.iter().find(|node| !seen.insert(&node.hostname)) {
        Some(node) => Finding::warning(
            "host names",
            format!("two nodes are called {}: `docker node` commands need their ids", node.hostname),
            "hostnamectl set-hostname NAME on one of them",
        ),
        None => Finding::ok("host names", "differ"),
    }
}

/// What the loss of managers would mean. Empty on a worker, which has no list of nodes.
fn managers(nodes: &[NodeFacts], status: &Status) -> Vec<Finding> {
    let managers: Vec<&NodeFacts> = nodes.iter().filter(|node| node.is_manager).collect();
    if managers.is_empty() || status.role != Some(Role::Manager) {
        return Vec::new();
    }
    let needed = managers.len() / 2 + 1;
    let away: Vec<&str> =
        managers.iter().filter(|node| node.reachability != "reachable").map(|node| node.hostname.as_str()).collect();
    let left = managers.len() - away.len();
    let mut found = Vec::new();
    if left < needed {
        let what = format!("{left} of {} managers are reachable, {needed} are needed: nothing can be written", managers.len());
        found.push(Finding::error("managers", what, format!("start {}", away.join(", "))));
    } else if left == needed && managers.len() > 2 {
        let what = format!("{} away: the loss of one more of {} managers stops all writes", away.join(", "), managers.len());
        found.push(Finding::warning(
            "managers",
            what,
            format!("start it, or: docker node demote {}", away.first().unwrap_or(&"")),
        ));
    }
    if managers.len().is_multiple_of(2) {
        let what =
            format!("{} managers stand the loss of {}, as {} do", managers.len(), managers.len() - needed, managers.len() - 1);
        found.push(Finding::warning("managers", what, "docker node promote or demote one: an odd number is best"));
    } else if managers.len() == 1 && nodes.len() >= 3 {
        found.push(Finding::warning("managers", "one manager: its loss stops all writes", "docker node promote two others"));
    }
    found.extend(place(&managers, needed));
    if found.is_empty() {
        let what = format!("{} of {} reachable; the loss of {} is stood", left, managers.len(), managers.len() - needed);
        found.push(Finding::ok("managers", what));
    }
    found
}

/// A place that holds so many managers that the swarm cannot write without it.
fn place(managers: &[&NodeFacts], needed: usize) -> Option<Finding> {
    if managers.len() < 3 {
        return None;
    }
    let mut places: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (key, value) in managers.iter().flat_map(|node| &node.labels) {
        let last = key.rsplit(['.', '/']).next().unwrap_or(key);
        if PLACES.contains(&last) {
            *places.entry((key, value)).or_default() += 1;
        }
    }
    let ((key, value), number) = places.into_iter().find(|(_, number)| managers.len() - number < needed)?;
    let what = format!("{number} of {} managers have {key}={value}: without it nothing can be written", managers.len());
    Some(Finding::warning("managers", what, "promote nodes elsewhere, demote one there"))
}
