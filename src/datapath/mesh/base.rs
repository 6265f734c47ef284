//! What every mesh namespace has before it has any network: sysctls, and the rules that replace the kernel's.
//!
//! With the kernel's own order (`0: from all lookup local` first) a container could reach every socket of this namespace
//! by address. Here the local and main tables are only for what this namespace sends itself (`iif lo`); what comes in by
//! a device finds the table of its own network or nothing.

use super::state::{Action, LOCAL, MAIN, MeshState, MeshStep, Rule};
use std::collections::BTreeSet;

/// Priority of every network's `from SUBNET` rule. (Above some 100 networks a flat list costs throughput: groups with
/// `goto` would start here.)
pub const FROM_NETWORK: u32 = 100;
/// Priority of the rule for other nodes' addresses coming in by the tunnel (IPv6).
pub const FROM_NODES: u32 = 52;
/// Priority of the local table, for what this namespace sends.
pub const OWN_LOCAL: u32 = 30_000;
/// Priority of the main table, for what this namespace sends.
pub const OWN_MAIN: u32 = 30_001;
/// Priority of every network's `to SUBNET` rule, for what this namespace sends: answers of the name server, ICMP errors.
pub const OWN_TO_NETWORK: u32 = 30_002;
/// Priority of the end: unreachable.
pub const CLOSED: u32 = 32_000;
/// The kernel's own rules.
const KERNELS: [u32; 3] = [0, 32_766, 32_767];

/// Sysctls below `/proc/sys/net`. All set explicitly: a fresh namespace takes some from the host.
pub const SYSCTLS: [(&str, &str); 23] = [
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/rp_filter", "1"),
    ("ipv4/conf/default/rp_filter", "1"),
    ("ipv4/conf/all/accept_local", "0"),
    ("ipv4/conf/default/accept_local", "0"),
    ("ipv4/conf/all/route_localnet", "0"),
    ("ipv4/conf/default/route_localnet", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv4/conf/all/accept_source_route", "0"),
    ("ipv4/conf/default/accept_source_route", "0"),
    ("ipv4/conf/all/proxy_arp", "0"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/all/accept_ra", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/all/accept_redirects", "0"),
    ("ipv6/conf/default/accept_redirects", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    // No link-local addresses: nothing here speaks over them.
    ("ipv6/conf/default/addr_gen_mode", "1"),
    // Never `all`: writing that one would open IPv6 on every veth.
    ("ipv6/conf/default/disable_ipv6", "0"),
    ("ipv6/conf/lo/disable_ipv6", "0"),
];

/// The rules that close everything but what later ones open.
#[must_use]
pub fn rules() -> BTreeSet<Rule> {
    let own = |v6, priority, table| Rule {
        v6,
        priority,
        from: None,
        to: None,
        iif: Some("lo".to_owned()),
        action: Action::Table(table),
    };
    let closed = |v6| Rule { v6, priority: CLOSED, from: None, to: None, iif: None, action: Action::Unreachable };
    [false, true].into_iter().flat_map(|v6| [own(v6, OWN_LOCAL, LOCAL), own(v6, OWN_MAIN, MAIN), closed(v6)]).collect()
}

/// What brings a fresh or an adopted namespace to the base. Rules of networks stay: an adopted namespace carries traffic.
#[must_use]
pub fn steps(actual: &MeshState) -> Vec<MeshStep> {
    let mut steps = Vec::new();
    for (key, value) in SYSCTLS {
        if actual.sysctls.get(key).map(String::as_str) != Some(value) {
            steps.push(MeshStep::Sysctl(key.to_owned(), value.to_owned()));
        }
    }
    // Closed before it can carry anything; the new rules before the old ones go, so that nothing in use is without.
    steps.extend(rules().difference(&actual.rules).cloned().map(MeshStep::AddRule));
    steps.extend(actual.rules.iter().filter(|r| KERNELS.contains(&r.priority)).cloned().map(MeshStep::RemoveRule));
    if actual.links.get("lo").is_some_and(|lo| !lo.up) {
        steps.push(MeshStep::Up("lo".to_owned()));
    }
    steps
}
